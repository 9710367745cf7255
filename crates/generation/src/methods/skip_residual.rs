//! Skip residual (DemoFusion: Du et al. 2024, arXiv 2311.16973, §3.3): before each step the latents are mixed with the enlarged
//! start, noised to the same level by the same noise, with a share that falls over time:
//! `z ← (1 − c^α) z + c^α z'`, `c = (1 + cos(π (T − t) / T)) / 2`.

use super::Resolving;
use crate::error::Result;
use crate::site::SiteTable;
use crate::step::{Band, Blend, Intervention, Moment, Step, Target};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How fast the share falls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SkipResidual {
    /// α.
    pub(crate) exponent: f64,
}

/// The falling cosine `c` of DemoFusion: 1 at the noisy end, 0 at the clean one.
pub(super) fn cosine(at: &Moment) -> f64 {
    let total = at.alphas_cumprod.len() as f64;
    0.5 * (1.0 + (std::f64::consts::PI * (total - at.timestep) / total).cos())
}

pub(super) fn resolve(settings: &SkipResidual, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.exponent.is_finite() && settings.exponent > 0.0) {
        return at.refuse(format!("`exponent` is {}, expected a positive number", settings.exponent));
    }
    at.needs_journey()?;
    Ok(Arc::new(*settings))
}

impl Intervention for SkipResidual {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        if at.previous.is_some() {
            step.blends.push(Blend { target: Target::Latents, band: Band::All, weight: cosine(at).powf(self.exponent) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_falls_from_one_to_zero() {
        let at = |timestep: f64| Moment { timestep, alphas_cumprod: vec![0.5; 1000].into(), ..Moment::default() };
        assert!((cosine(&at(981.0)) - 0.9991).abs() < 5e-5);
        assert!((cosine(&at(1.0)) - 2.5e-6).abs() < 5e-8);
    }
}
