//! Stages whose noise levels follow from their sizes (FreCaS: Zhang et al. 2024, arXiv 2410.18410, §3.2): a stage ends where its size has
//! nothing more to add, and the next begins at the timestep whose noise hides in the larger image what it hid in the smaller one. With `r =
//! (s / s′)^γ` of the sides and `ᾱ` where the stage ends, that is `ᾱ′ = r ᾱ / (1 + (r − 1) ᾱ)`.
//!
//! As the authors' code: timesteps lie evenly between start and end, both included, rounded down; the clean image that the last prediction
//! implies is enlarged to its nearest pixels, encoded by a sample of the posterior; SDXL is told the training size. The longer growth of
//! the two sides counts. A stage of a single step, which the code cannot divide, goes to its end.

use super::Resolving;
use super::cascade::{Measure, ends, sized};
use crate::error::Result;
use crate::journey::{Encode, End, Enlarge, Filter, Journey, Route, Stage, Start, Steps, Through};
use crate::sampler::linspace;
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The stages, smallest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShiftedCascade {
    /// γ.
    pub(crate) gamma: f64,
    /// At least two.
    pub(crate) stages: Vec<ShiftedStage>,
    /// DDIM's noise share, if not the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eta: Option<f64>,
}

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShiftedStage {
    /// Side of a square of the stage's area, in trained sides; left out for the image's own size, in the last stage alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<f64>,
    /// Steps, of the sum over the stages; runs of other lengths share theirs alike.
    pub(crate) steps: usize,
    /// The timestep of the last step, in thousandths of the training timesteps.
    pub(crate) end: usize,
}

/// Most steps of a stage.
const MOST_STEPS: usize = 10_000;

pub(super) fn resolve(settings: &ShiftedCascade, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    at.only_journey()?;
    let n = settings.stages.len();
    if n < 2 || !(settings.gamma.is_finite() && settings.gamma >= 0.0) {
        return at.refuse(format!("has {n} stages and a gamma of {}, expected at least two stages and no negative number", settings.gamma));
    }
    if settings.eta.is_some_and(|eta| !(0.0..=1.0).contains(&eta)) {
        return at.refuse(format!("`eta` is {:?}, expected 0 to 1", settings.eta));
    }
    for (i, stage) in settings.stages.iter().enumerate() {
        if stage.size.is_some() == (i + 1 == n) || stage.size.is_some_and(|size| !(size.is_finite() && size > 0.0)) {
            let reason = "expected a positive number for every stage but the last, which has the image's";
            return at.refuse(format!("stage {}: `size` is {:?}, {reason}", i + 1, stage.size));
        }
        if !(1..=MOST_STEPS).contains(&stage.steps) || stage.end >= 999 {
            let expected = format!("expected 1 to {MOST_STEPS}, to an end below 999");
            return at.refuse(format!("stage {}: {} steps to {}, {expected}", i + 1, stage.steps, stage.end));
        }
    }
    Ok(Arc::new(settings.clone()))
}

/// The timestep at which a side grown by `growth` starts after a stage that ended at `end`.
fn start(alphas: &[f64], end: usize, growth: f64, gamma: f64) -> usize {
    let r = growth.powf(-gamma);
    let wanted = r * alphas[end] / (1.0 + (r - 1.0) * alphas[end]);
    // In f32, as the table is.
    alphas.partition_point(|a| *a as f32 > wanted as f32).min(alphas.len() - 1)
}

/// `n` timesteps from `start` to `end`, and how far one step goes.
fn timesteps(start: usize, end: usize, n: usize, n_train: usize) -> (Vec<usize>, usize) {
    let span = start.saturating_sub(end).max(1);
    let mut timesteps: Vec<usize> = linspace(start as f32, end as f32, n).into_iter().map(|t| t as usize).collect();
    timesteps.dedup();
    // The code's length of a run that steps as far.
    let run = (n_train as f64 / span as f64 * (n - 1) as f64) as usize;
    (timesteps, n_train.checked_div(run).unwrap_or(span))
}

impl Intervention for ShiftedCascade {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let n_train = route.alphas_cumprod.len();
        let of_steps = self.stages.iter().map(|stage| stage.steps).sum();
        let sums = self.stages.iter().scan(0, |sum, stage| {
            *sum += stage.steps;
            Some(*sum)
        });
        let ends = ends(&sums.collect::<Vec<_>>(), of_steps, route.n_steps);
        let (mut stages, mut first, mut done) = (Vec::<Stage>::new(), n_train - 1, 0);
        for (stage, end) in self.stages.iter().zip(ends) {
            let latent = stage.size.map_or(route.latent, |size| sized(route, Measure::Area, size));
            let last_timestep = stage.end * n_train / 1000;
            let (through, filter, encode) = (Through::Pixels, Filter::Nearest, Encode::Sample);
            let enlarge = Enlarge { through, filter, sharpen: None, clamped: true, encode };
            if let Some(before) = stages.last() {
                let growth = (latent.0 as f64 / before.latent.0 as f64).max(latent.1 as f64 / before.latent.1 as f64);
                let (visited, _) = before.steps.timesteps.as_ref().expect("every stage has timesteps");
                first = start(&route.alphas_cumprod, visited[visited.len() - 1], growth, self.gamma);
            }
            // A start that is not noisier than the end leaves one step.
            let timesteps = timesteps(first.max(last_timestep), last_timestep, end - done, n_train);
            stages.push(Stage {
                start: if done == 0 { Start::Noise } else { Start::Enlarged(enlarge) },
                steps: Steps { timesteps: Some(timesteps), ..Steps::default() },
                end: if stage.size.is_some() { End::Estimate } else { End::Latents },
                eta: self.eta,
                told_size: Some(route.native),
                ..Stage::new(latent)
            });
            done = end;
        }
        journey.stages = stages;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cascade::route;
    use super::*;

    #[test]
    fn equal_sizes_go_on_where_they_were() {
        let alphas = route((64, 64), 50).alphas_cumprod;
        assert!((0..999).all(|t| start(&alphas, t, 1.0, 3.0) == t));
        // A larger image is noised more, and more so the larger γ is.
        assert!(start(&alphas, 100, 2.0, 1.5) > 100 && start(&alphas, 100, 2.0, 3.0) > start(&alphas, 100, 2.0, 1.5));
        // ᾱ / (1 − ᾱ) falls by r.
        let (odds, t) = (|t: usize| alphas[t] / (1.0 - alphas[t]), start(&alphas, 200, 2.0, 2.0));
        assert!(odds(t) <= odds(200) / 4.0 && odds(t - 1) > odds(200) / 4.0);
    }

    #[test]
    fn timesteps_reach_both_ends() {
        assert_eq!(timesteps(999, 100, 40, 1000).0[..2], [999, 975]);
        assert_eq!(timesteps(400, 0, 5, 1000), (vec![400, 300, 200, 100, 0], 100));
        assert_eq!(timesteps(400, 0, 1, 1000), (vec![400], 400));
        assert_eq!(timesteps(0, 0, 3, 1000).0, [0]);
    }

    #[test]
    fn short_runs_have_all_stages() {
        let stage = |size, steps, end| ShiftedStage { size, steps, end };
        let stages = vec![stage(Some(1.0), 30, 200), stage(Some(2.0), 10, 200), stage(None, 10, 0)];
        for n in [3, 10, 50] {
            let mut journey = Journey::direct((1, 1));
            ShiftedCascade { gamma: 3.0, stages: stages.clone(), eta: None }.route(&route((256, 256), n), &mut journey);
            let counts: Vec<usize> = journey.stages.iter().map(|s| s.steps.timesteps.as_ref().unwrap().0.len()).collect();
            assert_eq!(counts.iter().sum::<usize>(), n, "{counts:?}");
            assert!(counts.iter().all(|count| *count > 0));
        }
    }
}
