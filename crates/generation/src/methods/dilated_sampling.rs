//! Dilated sampling (DemoFusion: Du et al. 2024, arXiv 2311.16973, §3.4): beside the local windows the network looks at strided
//! subsets of the latents, each a small global map, blurred before; their share falls over time as `c^α`, and so does the blur,
//! `σ (0.99 c^β + 0.01)`.
//!
//! AccDiffusion (Lin et al. 2024, arXiv 2407.10738, §3.3) permutes beforehand which subset holds each pixel.

use super::Resolving;
use super::skip_residual::cosine;
use crate::error::Result;
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Region, Step, Strided, View};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Share and blur.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DilatedSampling {
    /// α.
    pub(crate) exponent: f64,
    /// σ, in latents; left out for no blur.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sigma: Option<f64>,
    /// β.
    #[serde(default = "one")]
    pub(crate) blur_exponent: f64,
    /// Whether subsets exchange pixels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shuffle: bool,
}

fn one() -> f64 {
    1.0
}

pub(super) fn resolve(settings: &DilatedSampling, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    if !positive(settings.exponent) || !positive(settings.blur_exponent) || !settings.sigma.is_none_or(positive) {
        return at.refuse(format!("has {settings:?}, expected positive numbers"));
    }
    Ok(Arc::new(*settings))
}

impl Intervention for DilatedSampling {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let factor = at.latent.0.div_ceil(at.native.0).max(at.latent.1.div_ceil(at.native.1));
        if factor < 2 {
            return;
        }
        let c = cosine(at);
        let share = c.powf(self.exponent);
        let passes = step.views[0].passes.clone();
        step.views.iter_mut().for_each(|view| view.weight *= 1.0 - share);
        let blur = self.sigma.map(|sigma| sigma * (0.99 * c.powf(self.blur_exponent) + 0.01));
        let shuffle = self.shuffle.then(|| at.dice().bits());
        let region = Region::Strided(Strided { factor, blur, shuffle });
        step.views.push(View { region, weight: share, passes, bands: None });
    }

    fn rolls_dice(&self) -> bool {
        self.shuffle
    }
}
