//! Restrained dilation (FreeScale: Qiu et al. 2024, arXiv 2412.09626, §3.2): a few convolutions of the down path and the middle are dilated by
//! the factor between the map's size and the training size, until the last steps; the up path is left alone, for it makes details.
//!
//! From the authors' code: the factor is that of the width, rounded down to a whole number; step counts are those of the whole run, also in a
//! stage that begins in its middle.

use super::Resolving;
use super::redilation::{check_tau, fifty, scaled_tau};
use crate::error::Result;
use crate::plan::Geometry;
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which convolutions, for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestrainedDilation {
    /// The first step of the whole run without it.
    pub(crate) tau: f64,
    /// The run length in which `tau` is counted.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// Site rules; each must match a convolution.
    pub(crate) sites: Vec<String>,
}

#[derive(Debug)]
struct Resolved {
    tau: f64,
    of_steps: usize,
    sites: Vec<usize>,
}

pub(super) fn resolve(settings: &RestrainedDilation, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    check_tau(at.method, at.key, settings.tau, settings.of_steps)?;
    if settings.sites.is_empty() {
        return at.refuse("has no `sites`, expected at least one site rule");
    }
    for (key, there) in [("redilation", at.settings.redilation.is_some()), ("resized_blocks", at.settings.resized_blocks.is_some())] {
        if there {
            return at.refuse(format!("and `{key}` both say what convolutions do, expected one of them"));
        }
    }
    Ok(Arc::new(Resolved { tau: settings.tau, of_steps: settings.of_steps, sites: at.convs(&settings.sites)? }))
}

impl Intervention for Resolved {
    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        let factor = at.latent.1 / at.native.1;
        if factor < 2 || at.index as f64 >= scaled_tau(self.tau, self.of_steps, at.n_steps) {
            return;
        }
        for pass in step.passes_mut() {
            for &i in &self.sites {
                pass.plan.convs[i].geometry = Some(Geometry { stride: sites.convs[i].stride, padding: factor, dilation: factor });
            }
        }
    }
}
