//! Dispersed convolution (ScaleCrafter §3.3): larger kernels that act like the trained ones.
//!
//! While active, a listed convolution uses its kernel spread onto the larger one. That alone doubles
//! its reach (3×3 → 5×5), so a dilation at the same site is halved.

use super::Resolving;
use super::redilation::{Redilation, Resolved as Redilated, check_tau, check_unmatched, fifty, scaled_tau};
use crate::disperse::Dispersion as Transform;
use crate::error::{Error, Result};
use crate::plan::{Dilation, Kernel};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which convolutions, for how long, by which transform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dispersion {
    /// Active while `step < tau`, counted as in [`Redilation`](super::Redilation).
    pub(crate) tau: f64,
    /// The run length in which `tau` is counted.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// Site rules; each must match a site.
    pub(crate) sites: Vec<String>,
    /// How kernels are spread.
    #[serde(default = "paper")]
    pub(crate) transform: Transform,
    /// Rules of a published list that match no site of this model, kept for the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unmatched: Vec<String>,
    /// Allows a `tau` of 0, with which nothing is ever dispersed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) as_published: bool,
}

fn paper() -> Transform {
    Transform::PAPER
}

#[derive(Debug)]
struct Resolved {
    tau: f64,
    of_steps: usize,
    sites: Vec<usize>,
    transform: Transform,
}

pub(super) fn resolve(settings: &Dispersion, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    let of = |redilation: &Option<Redilation>, key| redilation.as_ref().map(|r| r.resolve(at.method, key, at.sites)).transpose();
    let dilated = [of(&at.settings.redilation, "redilation")?, of(&at.settings.noise_damped_guidance, "noise_damped_guidance")?];
    Ok(Arc::new(settings.resolve(at.method, at.sites, &dilated.iter().flatten().collect::<Vec<_>>())?))
}

impl Dispersion {
    /// `dilated`: every re-dilation of the method. The reference halves the dilation of a dispersed
    /// site, so a dispersed site that is never dilated would widen its reach instead of keeping it.
    fn resolve(&self, method: &str, table: &SiteTable, dilated: &[&Redilated]) -> Result<Resolved> {
        if !(self.as_published && self.tau == 0.0) {
            check_tau(method, "dispersion", self.tau, self.of_steps)?;
        }
        check_unmatched(method, "dispersion", &self.unmatched, table)?;
        if self.sites.is_empty() {
            return Err(Error::method(method, "`dispersion.sites` is empty, expected at least one site rule"));
        }
        crate::disperse::disperse(self.transform).map_err(|e| Error::method(method, format!("`dispersion.transform`: {e}")))?;
        let mut sites = Vec::new();
        for pattern in &self.sites {
            for site in table.match_convs(method, pattern)? {
                if !dilated.iter().any(|d| d.covers(site)) {
                    let path = &table.convs[site].path;
                    let reason = format!("`{path}` is dispersed but in no dilation list, expected it in one (its dilation is halved)");
                    return Err(Error::method(method, reason));
                }
                sites.push(site);
            }
        }
        sites.sort_unstable();
        sites.dedup();
        Ok(Resolved { tau: self.tau, of_steps: self.of_steps, sites, transform: self.transform })
    }
}

impl Intervention for Resolved {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        if at.step as f64 >= scaled_tau(self.tau, self.of_steps, at.n_steps) {
            return;
        }
        for pass in step.passes_mut() {
            for &site in &self.sites {
                let action = &mut pass.plan.convs[site];
                // Only where a dilation is there to be halved: reach stays what the method asks for.
                if let Some(dilation) = action.dilation {
                    action.kernel = Kernel::Dispersed(self.transform);
                    action.dilation = Some(Dilation::new((dilation.get() / 2.0).max(1.0)).expect("at least 1"));
                }
            }
        }
    }
}
