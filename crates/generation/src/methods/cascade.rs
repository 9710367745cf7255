//! A journey through sizes: an image of a smaller size, enlarged, noised and denoised again at the next.
//!
//! What Self-Cascade (Guo et al. 2024, arXiv 2402.10491, §4.1), MegaFusion (Wu et al. 2024, arXiv 2408.11001), RectifiedHR
//! (Yang et al. 2025, arXiv 2503.02537) and the phases of DemoFusion (Du et al. 2024, arXiv 2311.16973, §3.2) have in common;
//! they differ in sizes, filters, steps, and whether latents or images are enlarged.

use super::Resolving;
use super::redilation::fifty;
use crate::error::Result;
use crate::journey::{Encode, End, Enlarge, Filter, Journey, Route, Stage, Start, Steps, Through};
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The stages, smallest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cascade {
    /// The run length in which steps are counted; other lengths scale them.
    #[serde(default = "fifty")]
    pub of_steps: usize,
    /// At least two. The last one has the image's size.
    pub stages: Vec<StageSettings>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSettings {
    /// Side of a square of the stage's area, in trained sides; the shape is the image's, to multiples of 8 latents. Left out for
    /// the image's own size, in the last stage alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<f64>,
    /// The first step that is run.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: usize,
    /// The first step that is not run any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
    /// The step whose noise level the enlarged start gets, if not the first that is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noised_for: Option<usize>,
    /// What of the stage before is enlarged; of the first stage nothing.
    #[serde(default = "pixels")]
    pub through: Through,
    /// By which filter.
    #[serde(default = "bicubic")]
    pub filter: Filter,
    /// How an enlarged image becomes latents again.
    #[serde(default = "mean")]
    pub encode: Encode,
    /// What is handed on, or decoded at the end.
    #[serde(default)]
    pub hands_on: HandsOn,
    /// Weight of the text direction, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// DDIM's noise share, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Divides the signal-to-noise ratio of the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Whether the method's other ingredients leave this stage alone. By default they do in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<bool>,
    /// Whether SDXL is told the image's final size instead of the stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_final_size: bool,
    /// Whether SDXL is told the first stage's size instead of the stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_first_size: bool,
    /// Whether the result gets mean and deviation of the first stage's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub normalised: bool,
}

/// What a stage hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandsOn {
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

pub(super) fn resolve(settings: &Cascade, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    let n = settings.stages.len();
    if n < 2 || settings.of_steps == 0 {
        return at.refuse(format!("has {n} stages of {} steps, expected at least two stages", settings.of_steps));
    }
    if at.settings.sdedit.is_some() {
        return at.refuse("and `sdedit` both say where the run starts, expected one of them");
    }
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
        if stage.gamma.is_some_and(|gamma| !(gamma.is_finite() && gamma > 0.0)) {
            return at.refuse(format!("stage {}: `gamma` is {:?}, expected a positive number", i + 1, stage.gamma));
        }
    }
    Ok(Arc::new(settings.clone()))
}

impl Intervention for Cascade {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let step = |n: usize| (n as f64 * route.n_steps as f64 / self.of_steps as f64).round() as usize;
        let stage = |(i, s): (usize, &StageSettings)| {
            let enlarge = Enlarge { through: s.through, filter: s.filter, sharpen: None, encode: s.encode };
            Stage {
                start: if i == 0 { Start::Noise } else { Start::Enlarged(enlarge) },
                steps: Steps {
                    first: step(s.first).min(route.n_steps - 1),
                    end: s.end.map(step),
                    noised_for: s.noised_for.map(|n| step(n).min(route.n_steps - 1)),
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
                told_size: match (s.told_final_size, s.told_first_size) {
                    (true, _) => Some(route.latent),
                    (false, true) => self.stages[0].size.map(|size| sized(route, size)),
                    _ => None,
                },
                plain: s.plain.unwrap_or(i == 0),
                normalised: s.normalised,
                ..Stage::new(s.size.map_or(route.latent, |size| sized(route, size)))
            }
        };
        journey.stages = self.stages.iter().enumerate().map(stage).collect();
    }
}

/// A latent size of the image's shape and of `size²` times the training resolution's area.
fn sized(route: &Route, size: f64) -> (usize, usize) {
    let area = |(h, w): (usize, usize)| (h * w) as f64;
    let factor = size * (area(route.native) / area(route.latent)).sqrt();
    let side = |n: usize| ((n as f64 * factor / 8.0).round() as usize).max(1) * 8;
    (side(route.latent.0), side(route.latent.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_the_shape() {
        let route = |latent| Route { latent, native: (64, 64), n_steps: 50, n_train: 1000, guidance_scale: 7.5 };
        assert_eq!(sized(&route((128, 128)), 1.0), (64, 64));
        assert_eq!(sized(&route((128, 128)), 1.5), (96, 96));
        assert_eq!(sized(&route((256, 256)), 2.0), (128, 128));
        assert_eq!(sized(&route((128, 256)), 1.0), (48, 88));
    }
}
