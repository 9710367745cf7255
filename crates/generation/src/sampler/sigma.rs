//! Solvers on noise levels σ = √((1 − ᾱ) / ᾱ): Euler, Euler ancestral, DPM-Solver++ 2M, UniPC.

use super::{Prediction, Run, Sampler, Solver, Spacing, Walk, noise_needed, weighted};
use crate::error::Result;
use candle_core::Tensor;

/// ρ of Karras et al. 2022, equation 5.
const RHO: f64 = 7.0;

struct Levels {
    /// One more than steps; the last is where the run ends.
    sigmas: Vec<f64>,
    prediction: Prediction,
}

pub(super) fn walk(sampler: Sampler, run: &Run<'_>, alphas_cumprod: &[f64]) -> Walk {
    let trained: Vec<f64> = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
    let euler = matches!(sampler, Sampler::Euler | Sampler::EulerAncestral);
    let mut shown = match run.given {
        Some((timesteps, _)) => timesteps.iter().map(|&t| t as f64).collect(),
        None if euler => euler_timesteps(run),
        None => multistep_timesteps(run),
    };
    let mut sigmas: Vec<f64> = shown.iter().map(|&t| interpolate(&trained, t)).collect();
    if run.karras {
        // diffusers spans the visited levels for Euler, the trained ones for the multistep solvers.
        let (high, low) = if euler { (sigmas[0], sigmas[run.n - 1]) } else { (trained[trained.len() - 1], trained[0]) };
        sigmas = karras(high, low, run.n);
        shown = sigmas.iter().map(|&s| timestep(&trained, s)).collect();
        if !euler {
            shown.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
    }
    let below = run.given.and_then(|(timesteps, stride)| timesteps.last()?.checked_sub(*stride));
    sigmas.push(match below {
        Some(timestep) => trained[timestep],
        None if run.schedule.last_sigma_zero => 0.0,
        None => trained[0],
    });
    let levels = Levels { sigmas, prediction: run.schedule.prediction };
    let steps = 0..shown.len();
    let first = levels.sigmas[0];
    // Euler's runs that do not begin at the noisiest level keep its signal's share of the variance.
    let initial_sigma = match run.spacing {
        _ if !euler => 1.0,
        Spacing::Leading => (first * first + 1.0).sqrt(),
        _ => first,
    };
    let ancestral = sampler == Sampler::EulerAncestral;
    Walk {
        timesteps: shown,
        levels: if euler { steps.map(|i| (1.0, levels.sigmas[i])).collect() } else { steps.map(|i| levels.amplitudes(i)).collect() },
        initial_sigma,
        draws_noise: ancestral,
        exploding: euler,
        prediction: run.schedule.prediction,
        alphas_cumprod: alphas_cumprod.into(),
        solver: match sampler {
            Sampler::Euler | Sampler::EulerAncestral => Box::new(Euler { levels, ancestral }),
            Sampler::DpmPp2m => Box::new(DpmPp2m { levels, previous: None }),
            _ => Box::new(UniPc { levels, outputs: Vec::new(), last: None }),
        },
    }
}

fn euler_timesteps(run: &Run<'_>) -> Vec<f64> {
    let (total, n) = (run.schedule.n_train, run.n);
    match run.spacing {
        Spacing::Leading => (0..n).rev().map(|i| (i * (total / n) + run.schedule.steps_offset) as f64).collect(),
        Spacing::Trailing => trailing(total, n),
        Spacing::Linspace => {
            let step = if n > 1 { (total - 1) as f64 / (n - 1) as f64 } else { 0.0 };
            // Kept in f32, and between the trained timesteps.
            (0..n).rev().map(|i| f64::from((i as f64 * step) as f32)).collect()
        }
    }
}

fn multistep_timesteps(run: &Run<'_>) -> Vec<f64> {
    let (total, n) = (run.schedule.n_train, run.n);
    match run.spacing {
        Spacing::Leading => (1..=n).rev().map(|i| (i * (total / (n + 1)) + run.schedule.steps_offset) as f64).collect(),
        Spacing::Trailing => trailing(total, n),
        Spacing::Linspace => (1..=n).rev().map(|i| (i as f64 * ((total - 1) as f64 / n as f64)).round_ties_even()).collect(),
    }
}

fn trailing(total: usize, n: usize) -> Vec<f64> {
    (0..n).map(|i| (total as f64 - i as f64 * (total as f64 / n as f64)).round_ties_even() - 1.0).collect()
}

/// σ between the trained timesteps, linearly.
fn interpolate(trained: &[f64], t: f64) -> f64 {
    let t = t.clamp(0.0, (trained.len() - 1) as f64);
    let low = (t.floor() as usize).min(trained.len() - 2);
    let part = t - low as f64;
    trained[low] * (1.0 - part) + trained[low + 1] * part
}

/// The timestep at which σ is met, linear in ln σ.
fn timestep(trained: &[f64], sigma: f64) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = trained.partition_point(|s| s.ln() <= log).saturating_sub(1).min(trained.len() - 2);
    let (a, b) = (trained[low].ln(), trained[low + 1].ln());
    low as f64 + ((a - log) / (a - b)).clamp(0.0, 1.0)
}

fn karras(high: f64, low: f64, n: usize) -> Vec<f64> {
    let (a, b) = (high.powf(1.0 / RHO), low.powf(1.0 / RHO));
    (0..n).map(|i| (a + i as f64 / (n.max(2) - 1) as f64 * (b - a)).powf(RHO)).collect()
}

impl Levels {
    fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// Signal and noise amplitudes (αₜ, σₜ) of a variance-preserving sample at level `i`.
    fn amplitudes(&self, i: usize) -> (f64, f64) {
        let alpha = 1.0 / (self.sigmas[i] * self.sigmas[i] + 1.0).sqrt();
        (alpha, self.sigmas[i] * alpha)
    }

    /// λ = ln(αₜ / σₜ); infinite at the clean end.
    fn lambda(&self, i: usize) -> f64 {
        -self.sigmas[i].ln()
    }

    /// The clean sample that `prediction` implies for a variance-preserving `x` at level `i`.
    fn clean(&self, i: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = self.amplitudes(i);
        match self.prediction {
            Prediction::Epsilon => weighted(&[(1.0 / alpha, x), (-sigma / alpha, prediction)]),
            Prediction::V => weighted(&[(alpha, x), (-sigma, prediction)]),
            Prediction::Sample => Ok(prediction.clone()),
        }
    }
}

/// Karras et al. 2022, algorithm 2 with S_churn = 0; samples are variance-exploding.
struct Euler {
    levels: Levels,
    ancestral: bool,
}

impl Solver for Euler {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (sigma, next) = (self.levels.sigmas[i], self.levels.sigmas[i + 1]);
        let square = sigma * sigma + 1.0;
        let clean = match self.levels.prediction {
            Prediction::Epsilon => weighted(&[(1.0, x), (-sigma, prediction)])?,
            Prediction::V => weighted(&[(-sigma / square.sqrt(), prediction), (1.0 / square, x)])?,
            Prediction::Sample => prediction.clone(),
        };
        let up = if self.ancestral { (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0).sqrt() } else { 0.0 };
        let down = (next * next - up * up).max(0.0).sqrt();
        // x + (x − clean) / σ · (down − σ)
        let moved = weighted(&[(down / sigma, x), (1.0 - down / sigma, &clean)])?;
        if self.ancestral { Ok((moved + (noise_needed(noise)? * up)?)?) } else { Ok(moved) }
    }
}

/// Lu et al. 2022 (DPM-Solver++), algorithm 2; the last step, to σ = 0, is of first order.
struct DpmPp2m {
    levels: Levels,
    /// Clean sample of the step before.
    previous: Option<Tensor>,
}

impl Solver for DpmPp2m {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let levels = &self.levels;
        let clean = levels.clean(i, x, prediction)?;
        let (alpha, sigma) = levels.amplitudes(i + 1);
        let h = levels.lambda(i + 1) - levels.lambda(i);
        let shrink = -(-h).exp_m1();
        let n = levels.steps();
        // Short runs end with a first-order step even where they stop before σ = 0.
        let last = i + 1 == n && (n < 15 || levels.sigmas[n] == 0.0);
        let mut terms = vec![(sigma / levels.amplitudes(i).1, x), (alpha * shrink, &clean)];
        if let Some(previous) = self.previous.as_ref().filter(|_| !last) {
            let half = 0.5 * alpha * shrink * h / (levels.lambda(i) - levels.lambda(i - 1));
            terms.extend([(half, &clean), (-half, previous)]);
        }
        let next = weighted(&terms)?;
        self.previous = Some(clean);
        Ok(next)
    }
}

/// Zhao et al. 2023, algorithms 5 and 6 of order 2 on the clean sample, B(h) = eʰ − 1.
struct UniPc {
    levels: Levels,
    /// Clean samples of the last steps, newest last; at most two.
    outputs: Vec<Tensor>,
    /// Sample and order of the step before.
    last: Option<(Tensor, usize)>,
}

impl UniPc {
    /// The correction of `x`, which a step of `order` predicted for level `i`, by its own clean sample.
    fn correct(&self, i: usize, clean: &Tensor, from: &Tensor, order: usize) -> Result<Tensor> {
        let levels = &self.levels;
        let (alpha, sigma) = levels.amplitudes(i);
        let h = levels.lambda(i) - levels.lambda(i - 1);
        let e = (-h).exp_m1();
        let newest = &self.outputs[self.outputs.len() - 1];
        // φ-functions of −h, divided by B(h).
        let phi2 = e / -h - 1.0;
        let b1 = phi2 / e;
        let b2 = 2.0 * (phi2 / -h - 0.5) / e;
        let mut terms = vec![(sigma / levels.amplitudes(i - 1).1, from), (-alpha * e, newest)];
        let weight = if order == 1 {
            0.5
        } else {
            let r = (levels.lambda(i - 2) - levels.lambda(i - 1)) / h;
            // Two equations: ρ₁ + ρ₂ = b₁, r ρ₁ + ρ₂ = b₂.
            let first = (b1 - b2) / (1.0 - r);
            let older = &self.outputs[self.outputs.len() - 2];
            let slope = -alpha * e * first / r;
            terms.extend([(slope, older), (-slope, newest)]);
            b1 - first
        };
        let slope = -alpha * e * weight;
        terms.extend([(slope, clean), (-slope, newest)]);
        weighted(&terms)
    }
}

impl Solver for UniPc {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let clean = self.levels.clean(i, x, prediction)?;
        let x = match &self.last {
            Some((from, order)) => self.correct(i, &clean, from, *order)?,
            None => x.clone(),
        };
        if self.outputs.len() == 2 {
            self.outputs.remove(0);
        }
        self.outputs.push(clean);
        let levels = &self.levels;
        let order = 2.min(levels.steps() - i).min(self.outputs.len());
        let (alpha, sigma) = levels.amplitudes(i + 1);
        let h = levels.lambda(i + 1) - levels.lambda(i);
        let e = (-h).exp_m1();
        let newest = &self.outputs[self.outputs.len() - 1];
        let mut terms = vec![(sigma / levels.amplitudes(i).1, &x), (-alpha * e, newest)];
        if order == 2 {
            let r = (levels.lambda(i - 1) - levels.lambda(i)) / h;
            let slope = -alpha * e * 0.5 / r;
            terms.extend([(slope, &self.outputs[0]), (-slope, newest)]);
        }
        let next = weighted(&terms)?;
        self.last = Some((x, order));
        Ok(next)
    }
}
