//! FreeU (Si et al. 2023, arXiv 2309.11497): where a skip connection joins, half of the backbone's
//! channels are amplified and the skip connection's lowest frequencies are damped.
//!
//! ScaleCrafter's scripts switch it on unless told otherwise. Two triggers are in use, and they touch
//! different layers.

use super::Resolving;
use crate::error::{Error, Result};
use crate::plan::SkipAction;
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FreeU {
    /// What decides which pair of factors a layer gets.
    pub(crate) trigger: Trigger,
    /// Backbone factor of the first group.
    pub(crate) b1: f64,
    /// Backbone factor of the second group.
    pub(crate) b2: f64,
    /// Skip factor of the first group.
    pub(crate) s1: f64,
    /// Skip factor of the second group.
    pub(crate) s2: f64,
}

/// What decides which group a layer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trigger {
    /// The backbone's channels, as in FreeU's and ScaleCrafter's code: most channels (1280 in Stable
    /// Diffusion) first group, the next smaller number (640) second.
    Channels,
    /// The up block, as in diffusers' `enable_freeu`: block 0 first group, block 1 second.
    Blocks,
}

#[derive(Debug)]
struct Resolved(Vec<(usize, SkipAction)>);

pub(super) fn resolve(settings: &FreeU, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    Ok(Arc::new(settings.resolve(at.method, at.sites)?))
}

impl FreeU {
    fn resolve(&self, method: &str, sites: &SiteTable) -> Result<Resolved> {
        for (key, value) in [("b1", self.b1), ("b2", self.b2), ("s1", self.s1), ("s2", self.s2)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::method(method, format!("`freeu.{key}` is {value}, expected a positive number")));
            }
        }
        if [self.b1, self.b2, self.s1, self.s2] == [1.0; 4] {
            return Err(Error::method(method, "`freeu` has no effect with all factors 1 (leave it out to switch it off)"));
        }
        let mut widths: Vec<usize> = sites.skips.iter().map(|s| s.channels).collect();
        widths.sort_unstable();
        widths.dedup();
        let wide = |rank: usize| widths.iter().rev().nth(rank).copied();
        let group = |channels: usize, block: usize| match self.trigger {
            Trigger::Channels => (0..2).find(|&rank| wide(rank) == Some(channels)),
            Trigger::Blocks => (block < 2).then_some(block),
        };
        let factors = [(self.b1, self.s1), (self.b2, self.s2)];
        let action = |group: usize| SkipAction { backbone: factors[group].0, low_frequencies: factors[group].1 };
        let actions = sites.skips.iter().enumerate().filter_map(|(i, s)| group(s.channels, s.block).map(|g| (i, action(g))));
        Ok(Resolved(actions.collect()))
    }
}

impl Intervention for Resolved {
    fn apply(&self, _sites: &SiteTable, _at: &Moment, step: &mut Step) {
        for pass in step.passes_mut() {
            for &(site, action) in &self.0 {
                pass.plan.skips[site] = action;
            }
        }
    }
}
