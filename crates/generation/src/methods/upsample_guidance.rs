//! Upsample Guidance (Hwang et al. 2024, arXiv 2404.01709, equation 9): the latents' means over `m × m` pixels, scaled to unit
//! variance, are a map of the training size with less noise; what the network says of it, at the timestep of that noise level,
//! corrects the low frequencies of its prediction for the whole.
//!
//! There is no code by the authors. The timestep is the trained one whose signal-to-noise ratio is nearest to `m²` times the
//! present one; both predictions are guided.

use super::Resolving;
use crate::error::{Error, Result};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Pooled, Region, Step, View, classifier_free};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How strong, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpsampleGuidance {
    /// θ: weight of the correction.
    pub(crate) theta: f64,
    /// η: the share of the run, from its noisy end, in which it acts: while `t ≥ (1 − η) T`.
    pub(crate) eta: f64,
}

pub(super) fn resolve(settings: &UpsampleGuidance, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.theta.is_finite() && settings.theta > 0.0 && settings.eta > 0.0 && settings.eta <= 1.0) {
        return at.refuse(format!("has {settings:?}, expected a positive `theta` and an `eta` of more than 0 and at most 1"));
    }
    Ok(Arc::new(*settings))
}

/// The whole factor between two sizes, if there is one.
fn factor(latent: (usize, usize), native: (usize, usize)) -> Option<usize> {
    let m = latent.0 / native.0;
    (m >= 2 && (m * native.0, m * native.1) == latent).then_some(m)
}

/// The correction's timestep and input scale at ᾱ: `(argmin |ln SNR − ln m² SNR|, 1/√P)`, `P = ᾱ + (1 − ᾱ) / m²`.
fn small(alphas: &[f64], alpha: f64, m: usize) -> (usize, f64) {
    let square = (m * m) as f64;
    let log_snr = |a: f64| (a / (1.0 - a)).ln();
    let wanted = log_snr(alpha) + square.ln();
    let nearest = |(_, a): &(usize, &f64), (_, b): &(usize, &f64)| (log_snr(**a) - wanted).abs().total_cmp(&(log_snr(**b) - wanted).abs());
    let timestep = alphas.iter().enumerate().min_by(nearest).map_or(0, |(t, _)| t);
    (timestep, 1.0 / (alpha + (1.0 - alpha) / square).sqrt())
}

impl Intervention for UpsampleGuidance {
    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        let total = at.alphas_cumprod.len();
        let Some(m) = factor(at.latent, at.native).filter(|_| at.timestep >= (1.0 - self.eta) * total as f64) else { return };
        let (signal, spread) = at.level;
        let alpha = signal * signal / (signal * signal + spread * spread);
        let (timestep, scale) = small(&at.alphas_cumprod, alpha, m);
        let region = Region::Pooled(Pooled { factor: m, timestep: timestep as f64, scale });
        step.views.push(View { region, weight: self.theta, passes: classifier_free(sites, at), bands: None });
    }

    fn check(&self, method: &str, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        match factor(latent, native) {
            Some(_) => Ok(()),
            None => Err(Error::method(method, "`upsample_guidance` is defined for whole multiples of the training resolution alone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_map_has_the_noise_of_its_timestep() {
        let alphas: Vec<f64> = (1..1000).rev().map(|i| f64::from(i) / 1000.0).collect();
        let (t, scale) = small(&alphas, 0.2, 2);
        // SNR 1/4 becomes 1, met at ᾱ = 1/2; P = 0.2 + 0.8 / 4.
        assert!((alphas[t] - 0.5).abs() < 1e-9 && (scale - 0.4f64.sqrt().recip()).abs() < 1e-12);
        assert_eq!((factor((128, 128), (64, 64)), factor((160, 160), (64, 64)), factor((128, 256), (64, 64))), (Some(2), None, None));
    }
}
