//! SDEdit start (Meng et al. 2022, arXiv 2108.01073), as an option of ScaleCrafter's SDXL script: sample
//! a smaller image with the plain network and no step noise, enlarge it, add noise, and go on from there.
//!
//! The released script has the option half finished: it noises for step `tau` and then runs all steps
//! from the first. Here the run goes on from `tau`, as the option's name promises. Schedules count from
//! the first step that is run, as they do there.

use super::Resolving;
use crate::error::{Error, Result};
use crate::journey::{Encode, Enlarge, Filter, Journey, Route, Stage, Start, Steps, Through};
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where a run starts, and from what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sdedit {
    /// The first step that is run, of a run of [`of_steps`](Self::of_steps) steps; other lengths scale it.
    pub(crate) tau: f64,
    /// The run length in which `tau` is counted.
    #[serde(default = "super::redilation::fifty")]
    pub(crate) of_steps: usize,
    /// Linear factor between the smaller image and the target.
    pub(crate) scale: f64,
}

pub(super) fn resolve(settings: &Sdedit, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    super::redilation::check_tau(at.method, at.key, settings.tau, settings.of_steps)?;
    if settings.tau >= settings.of_steps as f64 || !(settings.scale.is_finite() && settings.scale > 1.0) {
        let reason = format!(
            "`sdedit` has tau {} of {} steps and scale {}, expected a tau below `of_steps` and a scale above 1",
            settings.tau, settings.of_steps, settings.scale
        );
        return Err(Error::method(at.method, reason));
    }
    Ok(Arc::new(*settings))
}

impl Intervention for Sdedit {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let side = |n: usize| ((n as f64 / self.scale).round() as usize).max(1);
        let smaller = (side(route.latent.0), side(route.latent.1));
        let first = (super::redilation::scaled_tau(self.tau, self.of_steps, route.n_steps).round() as usize).min(route.n_steps - 1);
        let (through, filter, encode) = (Through::Pixels, Filter::PillowBicubic, Encode::Mean);
        let enlarge = Enlarge { through, filter, sharpen: None, clamped: true, encode };
        journey.stages = vec![
            Stage { eta: Some(0.0), plain: true, ..Stage::new(smaller) },
            Stage { start: Start::Enlarged(enlarge), steps: Steps { first, ..Steps::default() }, ..Stage::new(route.latent) },
        ];
    }
}
