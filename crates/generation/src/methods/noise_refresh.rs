//! Noise refresh and energy rectification (RectifiedHR: Yang et al. 2025, arXiv 2503.02537, §3.2 and §3.3): the clean image that the last step
//! of a stage implies is enlarged, noised anew to the next step's level, and denoised on; the guidance grows with the size, since refreshing
//! takes energy from the latents and guidance returns it.
//!
//! Of `N` sizes the stages end with step `Tᵢ = ⌊(T_max − T_min) (i / (N − 1))^M_T + T_min⌋` and have the guidance
//! `ωᵢ = (ω_max − ω_min) (i / (N − 1))^M_ω + ω_min`; sides grow evenly. The authors' code enlarges by Pillow's bicubic filter and encodes by the
//! posterior's mean, as here; it goes through bytes and bf16 in between, and rounds sides up to 8 pixels.

use super::Resolving;
use super::cascade::{Measure, ends, sized};
use super::redilation::fifty;
use crate::error::Result;
use crate::journey::{Encode, End, Enlarge, Filter, Journey, Route, Stage, Start, Steps, Through};
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes, steps and weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoiseRefresh {
    /// `N`: sizes, the training size and the image's among them.
    pub(crate) sizes: usize,
    /// `T_min`: steps of the first stage.
    pub(crate) first_end: usize,
    /// `T_max`: the run length in which steps are counted; other lengths scale them.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// `M_T`.
    #[serde(default = "one")]
    pub(crate) step_exponent: f64,
    /// `ω_min` and `ω_max`.
    pub(crate) guidance: (f64, f64),
    /// `M_ω`.
    #[serde(default = "one")]
    pub(crate) guidance_exponent: f64,
    /// DDIM's noise share, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eta: Option<f64>,
}

/// Most sizes of a run; the paper has up to five.
const MOST_SIZES: usize = 1000;

fn one() -> f64 {
    1.0
}

pub(super) fn resolve(settings: &NoiseRefresh, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    at.only_journey()?;
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let NoiseRefresh { sizes, first_end, of_steps, step_exponent, guidance, guidance_exponent, .. } = *settings;
    if !(2..=MOST_SIZES).contains(&sizes) || first_end == 0 || first_end.saturating_add(sizes) > of_steps.saturating_add(1) {
        let reason = format!("expected two to {MOST_SIZES}, with a step for each");
        return at.refuse(format!("{sizes} sizes, the first until step {first_end} of {of_steps}; {reason}"));
    }
    if ![step_exponent, guidance_exponent, guidance.0, guidance.1].into_iter().all(positive) {
        return at.refuse(format!("has {settings:?}, expected positive exponents and weights"));
    }
    if settings.eta.is_some_and(|eta| !(0.0..=1.0).contains(&eta)) {
        return at.refuse(format!("`eta` is {:?}, expected 0 to 1", settings.eta));
    }
    Ok(Arc::new(*settings))
}

impl NoiseRefresh {
    fn grown(&self, (low, high): (f64, f64), i: usize, exponent: f64) -> f64 {
        (high - low) * (i as f64 / (self.sizes - 1) as f64).powf(exponent) + low
    }

    /// `Tᵢ`.
    fn ends(&self) -> Vec<usize> {
        (0..self.sizes).map(|i| self.grown((self.first_end as f64, self.of_steps as f64), i, self.step_exponent) as usize).collect()
    }
}

impl Intervention for NoiseRefresh {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let ends = ends(&self.ends(), self.of_steps, route.n_steps);
        let base = sized(route, Measure::Area, 1.0);
        let stage = |i: usize| {
            let side = |low: usize, high: usize| self.grown((low as f64, high as f64), i, 1.0).ceil() as usize;
            let (through, filter, encode) = (Through::Pixels, Filter::PillowBicubic, Encode::Mean);
            let enlarge = Enlarge { through, filter, sharpen: None, clamped: true, encode };
            let last = i + 1 == self.sizes;
            Stage {
                start: if i == 0 { Start::Noise } else { Start::Enlarged(enlarge) },
                steps: Steps { first: if i == 0 { 0 } else { ends[i - 1] }, end: Some(ends[i]), ..Steps::default() },
                end: if last { End::Latents } else { End::Estimate },
                eta: self.eta,
                guidance_scale: Some(self.grown(self.guidance, i, self.guidance_exponent)),
                plain: i == 0,
                ..Stage::new((side(base.0, route.latent.0), side(base.1, route.latent.1)))
            }
        };
        journey.stages = (0..self.sizes).map(stage).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::cascade::route;
    use super::*;

    const FOUR: NoiseRefresh = NoiseRefresh {
        sizes: 2,
        first_end: 40,
        of_steps: 50,
        step_exponent: 1.0,
        guidance: (5.0, 30.0),
        guidance_exponent: 1.0,
        eta: None,
    };
    const SIXTEEN: NoiseRefresh = NoiseRefresh {
        sizes: 3,
        first_end: 40,
        of_steps: 50,
        step_exponent: 0.5,
        guidance: (5.0, 50.0),
        guidance_exponent: 0.5,
        eta: None,
    };

    #[test]
    fn stages_of_the_paper() {
        assert_eq!((FOUR.ends(), SIXTEEN.ends()), (vec![40, 50], vec![40, 47, 50]));
        let mut journey = Journey::direct((1, 1));
        SIXTEEN.route(&route((256, 256), 50), &mut journey);
        let seen: Vec<_> =
            journey.stages.iter().map(|s| (s.latent.0, s.steps.first, s.steps.end.unwrap(), s.guidance_scale.unwrap())).collect();
        assert_eq!(seen.iter().map(|s| (s.0, s.1, s.2)).collect::<Vec<_>>(), [(64, 0, 40), (160, 40, 47), (256, 47, 50)]);
        assert!(seen.iter().zip([5.0, 36.82, 50.0]).all(|(s, w)| (s.3 - w).abs() < 5e-3));
    }

    #[test]
    fn short_runs_have_all_stages() {
        for n in [3, 10, 12] {
            let mut journey = Journey::direct((1, 1));
            SIXTEEN.route(&route((256, 256), n), &mut journey);
            assert!(journey.stages.iter().all(|s| s.steps.first < s.steps.end.unwrap() && s.steps.end.unwrap() <= n), "{n}");
        }
    }
}
