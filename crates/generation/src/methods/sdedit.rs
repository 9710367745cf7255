//! SDEdit start (Meng et al. 2022, arXiv 2108.01073), as an option of ScaleCrafter's SDXL script: sample
//! a smaller image with the plain network and no step noise, enlarge it, add noise, and go on from there.
//!
//! The released script has the option half finished: it noises for step `tau` and then runs all steps
//! from the first. Here the run goes on from `tau`, as the option's name promises. Schedules count from
//! the first step that is run, as they do there.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a run starts, and from what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sdedit {
    /// The first step that is run, of a run of [`of_steps`](Self::of_steps) steps; other lengths scale it.
    pub tau: f64,
    /// The run length in which `tau` is counted.
    #[serde(default = "super::redilation::fifty")]
    pub of_steps: usize,
    /// Linear factor between the smaller image and the target.
    pub scale: f64,
}

impl Sdedit {
    pub(super) fn check(&self, method: &str) -> Result<()> {
        super::redilation::check_tau(method, "sdedit", self.tau, self.of_steps)?;
        if self.tau >= self.of_steps as f64 || !(self.scale.is_finite() && self.scale > 1.0) {
            let reason = format!(
                "`sdedit` has tau {} of {} steps and scale {}, expected a tau below `of_steps` and a scale above 1",
                self.tau, self.of_steps, self.scale
            );
            return Err(Error::method(method, reason));
        }
        Ok(())
    }

    /// Index of the first step of a run of `n_steps`.
    pub(crate) fn first_step(&self, n_steps: usize) -> usize {
        (super::redilation::scaled_tau(self.tau, self.of_steps, n_steps).round() as usize).min(n_steps - 1)
    }

    /// Latent (height, width) of the smaller image.
    pub(crate) fn smaller(&self, latent: (usize, usize)) -> (usize, usize) {
        let side = |n: usize| ((n as f64 / self.scale).round() as usize).max(1);
        (side(latent.0), side(latent.1))
    }
}
