//! A journey through sizes: an image of a smaller size, enlarged, noised and denoised again at the next.
//!
//! What Self-Cascade (Guo et al. 2024, arXiv 2402.10491, §4.1), MegaFusion (Wu et al. 2024, arXiv 2408.11001), RectifiedHR
//! (Yang et al. 2025, arXiv 2503.02537) and the phases of DemoFusion (Du et al. 2024, arXiv 2311.16973, §3.2) have in common;
//! they differ in sizes, filters, steps, and whether latents or images are enlarged.

use super::Resolving;
use super::redilation::fifty;
use crate::error::Result;
use crate::journey::{Encode, End, Enlarge, Filter, Journey, Route, Sharpen, Stage, Start, Steps, Through};
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The stages, smallest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cascade {
    /// The run length in which steps are counted; other lengths scale them.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// What the stages' sizes measure.
    #[serde(default, skip_serializing_if = "Measure::is_default")]
    pub(crate) measure: Measure,
    /// At least two. The last one has the image's size.
    pub(crate) stages: Vec<StageSettings>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageSettings {
    /// In trained sides; the shape is the image's, to multiples of an eighth of the trained side, or of 8 latents if that is less.
    /// Left out for the image's own size, in the last stage alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<f64>,
    /// The first step that is run.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) first: usize,
    /// The first step that is not run any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<usize>,
    /// The step whose noise level the enlarged start gets, if not the first that is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) noised_for: Option<usize>,
    /// What of the stage before is enlarged; of the first stage nothing.
    #[serde(default = "pixels")]
    pub(crate) through: Through,
    /// By which filter.
    #[serde(default = "bicubic")]
    pub(crate) filter: Filter,
    /// Unsharp masking of the enlarged image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sharpen: Option<Sharpen>,
    /// Whether the enlarged image may leave its range, in which it is clamped otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unclamped: bool,
    /// How an enlarged image becomes latents again.
    #[serde(default = "mean")]
    pub(crate) encode: Encode,
    /// What is handed on, or decoded at the end.
    #[serde(default)]
    pub(crate) hands_on: HandsOn,
    /// Weight of the text direction, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guidance_scale: Option<f64>,
    /// DDIM's noise share, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eta: Option<f64>,
    /// Divides the signal-to-noise ratio of the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gamma: Option<f64>,
    /// Whether the method's other ingredients leave this stage alone. By default they do in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plain: Option<bool>,
    /// Whether SDXL is told the image's final size instead of the stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) told_final_size: bool,
    /// Whether SDXL is told the training size instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) told_trained_size: bool,
    /// Whether SDXL is told the first stage's size instead of the stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) told_first_size: bool,
    /// Whether the result gets mean and deviation of the first stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) normalised: bool,
}

/// What the size of a stage measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// The side of a square of its area.
    #[default]
    Area,
    /// Its longer side, as in DemoFusion.
    LongestSide,
}

impl Measure {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a stage hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HandsOn {
    /// The latents after its last step.
    #[default]
    Latents,
    /// The clean latents that the last prediction implied.
    Estimate,
    /// The same with the latents after the step, as MegaFusion's code has it.
    LateEstimate,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn pixels() -> Through {
    Through::Pixels
}

fn bicubic() -> Filter {
    Filter::PillowBicubic
}

fn mean() -> Encode {
    Encode::Mean
}

/// Largest side of a sharpening kernel; the authors' is 5.
const MOST_TAPS: usize = 101;

pub(super) fn resolve(settings: &Cascade, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    let n = settings.stages.len();
    if n < 2 || settings.of_steps == 0 {
        return at.refuse(format!("has {n} stages of {} steps, expected at least two stages", settings.of_steps));
    }
    at.only_journey()?;
    for (i, stage) in settings.stages.iter().enumerate() {
        let last = i + 1 == n;
        if stage.size.is_some() == last {
            return at.refuse(format!("stage {}: `size` is for every stage but the last, which has the image's", i + 1));
        }
        if stage.size.is_some_and(|size| !(size.is_finite() && size > 0.0)) {
            return at.refuse(format!("stage {}: `size` is {:?}, expected a positive number", i + 1, stage.size));
        }
        if stage.told_final_size && stage.told_first_size {
            return at.refuse(format!("stage {}: SDXL is told the first or the final size, expected one of them", i + 1));
        }
        let end = stage.end.unwrap_or(settings.of_steps);
        if stage.first >= end || end > settings.of_steps || (i == 0 && stage.first > 0) {
            let reason = "expected at least one step inside `of_steps`, and the first stage to begin with the first";
            return at.refuse(format!("stage {}: steps {} to {end} of {}, {reason}", i + 1, stage.first, settings.of_steps));
        }
        if stage.told_final_size && stage.told_trained_size {
            return at.refuse(format!("stage {}: `told_final_size` and `told_trained_size`, expected one of them", i + 1));
        }
        let blurred = |s: &Sharpen| {
            s.taps % 2 == 1
                && s.taps <= MOST_TAPS
                && 0.0 < s.sigma.0
                && s.sigma.0 <= s.sigma.1
                && s.sigma.1.is_finite()
                && s.amount.is_finite()
        };
        if stage.sharpen.as_ref().is_some_and(|sharpen| !blurred(sharpen) || stage.through == Through::Latents) {
            let reason = format!(
                "expected an odd number of `taps`, at most {MOST_TAPS}, two positive widths `sigma`, the smaller first, and an image to sharpen"
            );
            return at.refuse(format!("stage {}: `sharpen` is {:?}, {reason}", i + 1, stage.sharpen));
        }
        if stage.eta.is_some_and(|eta| !(0.0..=1.0).contains(&eta)) {
            return at.refuse(format!("stage {}: `eta` is {:?}, expected 0 to 1", i + 1, stage.eta));
        }
        if stage.gamma.is_some_and(|gamma| !(gamma.is_finite() && gamma > 0.0)) {
            return at.refuse(format!("stage {}: `gamma` is {:?}, expected a positive number", i + 1, stage.gamma));
        }
    }
    Ok(Arc::new(settings.clone()))
}

impl Intervention for Cascade {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let step = |n: usize| (n as f64 * route.n_steps as f64 / self.of_steps as f64).round() as usize;
        let last = route.n_steps - 1;
        let stage = |(i, s): (usize, &StageSettings)| {
            let &StageSettings { through, filter, sharpen, encode, .. } = s;
            let enlarge = Enlarge { through, filter, sharpen, clamped: !s.unclamped, encode };
            // Short runs leave every stage a step.
            let first = step(s.first).min(last);
            Stage {
                start: if i == 0 { Start::Noise } else { Start::Enlarged(enlarge) },
                steps: Steps {
                    first,
                    end: s.end.map(|end| step(end).max(first + 1)),
                    noised_for: s.noised_for.map(|n| step(n).clamp(first, last)),
                    gamma: s.gamma.unwrap_or(1.0),
                    ..Steps::default()
                },
                end: match s.hands_on {
                    HandsOn::Latents => End::Latents,
                    HandsOn::Estimate => End::Estimate,
                    HandsOn::LateEstimate => End::LateEstimate,
                },
                eta: s.eta,
                guidance_scale: s.guidance_scale,
                told_size: match (s.told_final_size, s.told_first_size, s.told_trained_size) {
                    (true, _, _) => Some(route.latent),
                    (_, true, _) => self.stages[0].size.map(|size| sized(route, self.measure, size)),
                    (_, _, true) => Some(route.native),
                    _ => None,
                },
                plain: s.plain.unwrap_or(i == 0),
                normalised: s.normalised,
                ..Stage::new(s.size.map_or(route.latent, |size| sized(route, self.measure, size)))
            }
        };
        journey.stages = self.stages.iter().enumerate().map(stage).collect();
    }
}

/// A latent size of the image's shape whose area is `size²` times the training resolution's, or whose longer side `size` times; sides
/// are multiples of an eighth of the trained one, or of 8 if that is less.
pub(super) fn sized(route: &Route, measure: Measure, size: f64) -> (usize, usize) {
    let measured = |(h, w): (usize, usize)| match measure {
        Measure::Area => ((h * w) as f64).sqrt(),
        Measure::LongestSide => h.max(w) as f64,
    };
    let factor = size * measured(route.native) / measured(route.latent);
    let unit = |native: usize| (native / 8).clamp(1, 8);
    let side = |n: usize, unit: usize| ((n as f64 * factor / unit as f64).round() as usize).max(1) * unit;
    (side(route.latent.0, unit(route.native.0)), side(route.latent.1, unit(route.native.1)))
}

/// The ends of stages of these shares of a run, in a run of `n` steps; each has at least one.
pub(super) fn ends(ends: &[usize], of: usize, n: usize) -> Vec<usize> {
    let mut before = 0;
    let scaled = ends.iter().enumerate().map(|(i, end)| {
        let later = ends.len() - 1 - i;
        before = ((*end as f64 * n as f64 / of as f64).round() as usize).min(n.saturating_sub(later)).max(before + 1);
        before
    });
    scaled.collect()
}

#[cfg(test)]
pub(super) fn route(latent: (usize, usize), n_steps: usize) -> Route {
    // Stable Diffusion's schedule.
    let (a, b) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let betas = (0..1000).map(|i| (a + (b - a) * f64::from(i) / 999.0).powi(2));
    let alphas_cumprod = betas.scan(1.0, |product, beta| {
        *product *= 1.0 - beta;
        Some(*product)
    });
    Route { latent, native: (64, 64), n_steps, alphas_cumprod: alphas_cumprod.collect(), guidance_scale: 7.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_the_shape() {
        let route = |latent| route(latent, 50);
        assert_eq!(sized(&route((128, 128)), Measure::Area, 1.0), (64, 64));
        assert_eq!(sized(&route((128, 128)), Measure::Area, 1.5), (96, 96));
        assert_eq!(sized(&route((256, 256)), Measure::Area, 2.0), (128, 128));
        assert_eq!(sized(&route((128, 256)), Measure::Area, 1.0), (48, 88));
        assert_eq!(sized(&Route { native: (16, 16), ..route((32, 64)) }, Measure::Area, 1.0), (12, 22));
        // DemoFusion's phases of an image of twice the trained height and four times the width.
        assert_eq!([1.0, 2.0, 3.0].map(|size| sized(&route((128, 256)), Measure::LongestSide, size)), [(32, 64), (64, 128), (96, 192)]);
    }

    #[test]
    fn every_stage_has_a_step() {
        assert_eq!(ends(&[40, 45, 50], 50, 50), [40, 45, 50]);
        assert_eq!(ends(&[40, 45, 50], 50, 12), [10, 11, 12]);
        assert_eq!(ends(&[40, 47, 50], 50, 10), [8, 9, 10]);
        assert_eq!(ends(&[48, 49, 50], 50, 4), [2, 3, 4]);
        assert_eq!(ends(&[30, 50], 50, 1), [1, 2]);
    }
}
