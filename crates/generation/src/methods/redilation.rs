//! Re-dilation (ScaleCrafter §3.2): convolutions reach further, with the weights they have.
//!
//! A listed convolution is dilated by its factor for the first steps of a run, where structure is
//! decided, and is plain afterwards. Progressive schedules lower the factor step by step.

use super::Resolving;
use crate::error::{Error, Result};
use crate::plan::{Dilation, Plan};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which convolutions, by how much, for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redilation {
    /// Active while `step < tau`, counted in a run of [`of_steps`](Self::of_steps) steps; runs of
    /// other lengths scale it.
    pub(crate) tau: f64,
    /// The run length in which `tau` is counted.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// Whether the factor falls as `max(⌈d (tau − step) / tau⌉, 2)`.
    #[serde(default)]
    pub(crate) progressive: bool,
    /// Site rule → factor. Every rule must match a site, and no two rules the same one.
    pub(crate) dilation: BTreeMap<String, Dilation>,
    /// Rules of a published list that match no site of this model, kept for the record. Each must match
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unmatched: Vec<String>,
}

pub(super) fn fifty() -> usize {
    50
}

/// A [`Redilation`] with its rules looked up.
#[derive(Debug)]
pub(super) struct Resolved {
    /// For messages.
    key: String,
    tau: f64,
    of_steps: usize,
    progressive: bool,
    factors: Vec<(usize, f64)>,
}

/// `tau` of a run of `n_steps`, in its own steps.
pub(super) fn scaled_tau(tau: f64, of_steps: usize, n_steps: usize) -> f64 {
    if n_steps == of_steps { tau } else { tau * n_steps as f64 / of_steps as f64 }
}

/// A `tau` that switches something on in some step of the run it is counted in.
pub(super) fn check_tau(method: &str, key: &str, tau: f64, of_steps: usize) -> Result<()> {
    if of_steps == 0 || !(tau > 0.0 && tau <= of_steps as f64) {
        let reason = format!(
            "`{key}.tau` is {tau} of {of_steps} steps, expected more than 0 (leave `{key}` out to switch it off) and at most `of_steps`"
        );
        return Err(Error::method(method, reason));
    }
    Ok(())
}

/// The rules that are said to match nothing do match nothing.
pub(super) fn check_unmatched(method: &str, key: &str, rules: &[String], sites: &SiteTable) -> Result<()> {
    for rule in rules {
        if let Ok(found) = sites.match_convs(method, rule) {
            let path = &sites.convs[found[0]].path;
            return Err(Error::method(method, format!("`{key}.unmatched`: `{rule}` matches `{path}`, expected a rule without a match")));
        }
    }
    Ok(())
}

pub(super) fn resolve(settings: &Redilation, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    Ok(Arc::new(settings.resolve(at.method, at.key, at.sites)?))
}

impl Redilation {
    pub(super) fn resolve(&self, method: &str, key: &str, sites: &SiteTable) -> Result<Resolved> {
        check_tau(method, key, self.tau, self.of_steps)?;
        if self.dilation.is_empty() {
            return Err(Error::method(method, format!("`{key}.dilation` is empty, expected at least one site rule")));
        }
        check_unmatched(method, key, &self.unmatched, sites)?;
        let mut by_site: BTreeMap<usize, (&str, f64)> = BTreeMap::new();
        for (pattern, factor) in &self.dilation {
            if factor.get() <= 1.0 {
                let reason =
                    format!("`{key}.dilation`: `{pattern}` is 1, expected more: a dilation of 1 is the plain layer; leave the rule out");
                return Err(Error::method(method, reason));
            }
            for site in sites.match_convs(method, pattern)? {
                if let Some((other, _)) = by_site.insert(site, (pattern, factor.get())) {
                    let path = &sites.convs[site].path;
                    let reason = format!("site rules `{other}` and `{pattern}` both match `{path}`, expected one rule a site");
                    return Err(Error::method(method, reason));
                }
            }
        }
        let factors = by_site.into_iter().map(|(site, (_, factor))| (site, factor)).collect();
        Ok(Resolved { key: key.to_owned(), tau: self.tau, of_steps: self.of_steps, progressive: self.progressive, factors })
    }
}

impl Resolved {
    pub(super) fn is_active(&self, at: &Moment) -> bool {
        (at.step as f64) < scaled_tau(self.tau, self.of_steps, at.n_steps)
    }

    pub(super) fn dilate(&self, at: &Moment, plan: &mut Plan) {
        let tau = scaled_tau(self.tau, self.of_steps, at.n_steps);
        for &(site, factor) in &self.factors {
            let factor = if self.progressive { (factor * ((tau - at.step as f64) / tau)).ceil().max(2.0) } else { factor };
            plan.convs[site].dilation = Some(Dilation::new(factor).expect("rules hold factors of at least 1"));
        }
    }

    /// Refuses a dilation that reaches beyond the whole map from everywhere: only zeros would be seen, and as many laid around it.
    pub(super) fn check_reach(&self, method: &str, (h, w): (usize, usize)) -> Result<()> {
        let largest = self.factors.iter().map(|(_, factor)| *factor).fold(1.0, f64::max);
        if largest > h.max(w) as f64 {
            let reason = format!("`{}.dilation` is {largest}, expected at most the longer side of the {w}x{h} latents", self.key);
            return Err(Error::method(method, reason));
        }
        Ok(())
    }

    pub(super) fn covers(&self, site: usize) -> bool {
        self.factors.iter().any(|(s, _)| *s == site)
    }
}

impl Intervention for Resolved {
    fn check(&self, method: &str, latent: (usize, usize), _native: (usize, usize)) -> Result<()> {
        self.check_reach(method, latent)
    }

    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        if self.is_active(at) {
            for pass in step.passes_mut() {
                self.dilate(at, &mut pass.plan);
            }
        }
    }
}
