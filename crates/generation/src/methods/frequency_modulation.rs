//! Frequency modulation (FAM diffusion: Yang et al. 2024, arXiv 2411.18552, §3.2, equation 4, and appendix B.1, equations 8–11): before each step,
//! the low frequencies of the latents are drawn toward those of the enlarged start with this step's noise,
//! `x ← F⁻¹(K F(x) + (1 − K) F(x̃))`, where `K` is `ρ = t / T` in a box about frequency zero and 1 outside. The box grows to `c` times
//! the map's sides as `c (1 − ρ)`.
//!
//! There is no code by the authors. The appendix writes the box's sides as `h c (1 − ρ)` with the `h × w` of the map that is filtered, as it is
//! taken here; elsewhere the paper has those letters for the training size. Ports have `1 − ρ` in the box's place of `ρ`, which contradicts the
//! appendix's text; here it is as printed.

use super::Resolving;
use crate::error::Result;
use crate::plan::LowPass;
use crate::site::SiteTable;
use crate::step::{Band, Blend, Intervention, Moment, Step, Target};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How large the box becomes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrequencyModulation {
    /// c: the box's part of the map's sides at the end of the run.
    pub(crate) cutoff: f64,
}

pub(super) fn resolve(settings: &FrequencyModulation, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.cutoff > 0.0 && settings.cutoff <= 1.0) {
        return at.refuse(format!("`cutoff` is {}, expected more than 0 and at most 1", settings.cutoff));
    }
    if at.settings.cascade.is_none() && at.settings.sdedit.is_none() {
        return at.refuse("has no enlarged start to refer to, expected `cascade` or `sdedit` beside it");
    }
    Ok(Arc::new(*settings))
}

/// 1 at the frequencies less than `reach` from zero, in the order of a shifted spectrum of `n`.
fn inside(n: usize, reach: f64) -> Arc<[f32]> {
    (0..n).map(|i| if (i as f64 - (n / 2) as f64).abs() < reach { 1.0 } else { 0.0 }).collect()
}

impl Intervention for FrequencyModulation {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let weight = 1.0 - at.timestep / at.alphas_cumprod.len() as f64;
        if at.previous.is_none() || weight <= 0.0 {
            return;
        }
        let side = |n: usize| inside(n, n as f64 * self.cutoff * weight / 2.0);
        let mask = LowPass { rows: side(at.latent.0), columns: side(at.latent.1) };
        step.blends.push(Blend { target: Target::Latents, band: Band::Fourier(mask), weight });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_grows() {
        assert_eq!(*inside(8, 0.5), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(*inside(8, 2.0), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(*inside(5, 1.5), [0.0, 1.0, 1.0, 1.0, 0.0]);
    }
}
