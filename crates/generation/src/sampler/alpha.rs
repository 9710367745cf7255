//! Solvers on the trained timesteps, in terms of ᾱ: DDIM, DDPM, PNDM.

use super::{Prediction, Run, Sampler, Solver, Spacing, Walk, noise_needed, weighted};
use crate::error::Result;
use candle_core::Tensor;

/// Timesteps of `run`, noisiest first.
fn timesteps(run: &Run<'_>) -> Vec<usize> {
    let (total, n) = (run.schedule.n_train, run.n);
    let last = total - 1;
    if let Some((timesteps, _)) = run.given {
        return timesteps.iter().map(|&t| t.min(last)).collect();
    }
    match run.spacing {
        Spacing::Leading => (0..n).rev().map(|i| (i * (total / n) + run.schedule.steps_offset).min(last)).collect(),
        Spacing::Trailing => {
            let ratio = total as f64 / n as f64;
            (0..n).map(|i| ((total as f64 - i as f64 * ratio).round_ties_even() as usize).max(1) - 1).collect()
        }
        Spacing::Linspace => {
            let step = if n > 1 { last as f64 / (n - 1) as f64 } else { 0.0 };
            (0..n).rev().map(|i| (i as f64 * step).round_ties_even() as usize).collect()
        }
    }
}

/// What the three share.
struct Levels {
    table: Vec<f64>,
    /// ᾱ below timestep 0.
    final_alpha: f64,
    prediction: Prediction,
    /// Trained timesteps between two steps.
    stride: usize,
    steps: Vec<usize>,
}

impl Levels {
    fn alpha(&self, timestep: Option<usize>) -> f64 {
        timestep.map_or(self.final_alpha, |t| self.table[t])
    }

    /// Clean sample and noise that `prediction` implies for `x` at ᾱ = `alpha`.
    fn split(&self, x: &Tensor, prediction: &Tensor, alpha: f64) -> Result<(Tensor, Tensor)> {
        let (root_alpha, root_beta) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        Ok(match self.prediction {
            Prediction::Epsilon => (weighted(&[(1.0 / root_alpha, x), (-root_beta / root_alpha, prediction)])?, prediction.clone()),
            Prediction::V => {
                (weighted(&[(root_alpha, x), (-root_beta, prediction)])?, weighted(&[(root_alpha, prediction), (root_beta, x)])?)
            }
            Prediction::Sample => (prediction.clone(), weighted(&[(1.0 / root_beta, x), (-root_alpha / root_beta, prediction)])?),
        })
    }
}

pub(super) fn walk(sampler: Sampler, run: &Run<'_>, table: Vec<f64>, eta: f64) -> Walk {
    let s = run.schedule;
    let mut steps = timesteps(run);
    if sampler == Sampler::Pndm && steps.len() > 1 {
        // The second step is made twice: first on an Euler guess, then as a mean of both slopes.
        steps.insert(1, steps[1]);
    }
    let levels = steps.iter().map(|&t| (table[t].sqrt(), (1.0 - table[t]).sqrt())).collect();
    let shown = steps.iter().map(|&t| t as f64).collect();
    let alphas_cumprod = table.as_slice().into();
    let final_alpha = if s.set_alpha_to_one { 1.0 } else { table[0] };
    let stride = run.given.map_or(s.n_train / run.n, |(_, stride)| *stride);
    let known = Levels { table, final_alpha, prediction: s.prediction, stride, steps };
    let (draws_noise, solver): (bool, Box<dyn Solver>) = match sampler {
        Sampler::Ddim => (eta > 0.0, Box::new(Ddim { levels: known, eta })),
        Sampler::Ddpm => (true, Box::new(Ddpm { levels: Levels { final_alpha: 1.0, ..known } })),
        _ => (false, Box::new(Pndm { levels: known, slopes: Vec::new(), start: None })),
    };
    Walk { timesteps: shown, levels, initial_sigma: 1.0, draws_noise, exploding: false, prediction: s.prediction, alphas_cumprod, solver }
}

/// Song et al. 2021, equations 12 and 16.
struct Ddim {
    levels: Levels,
    eta: f64,
}

impl Solver for Ddim {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let timestep = self.levels.steps[i];
        let alpha = self.levels.table[timestep];
        let before = self.levels.alpha(timestep.checked_sub(self.levels.stride));
        let (x0, epsilon) = self.levels.split(x, prediction, alpha)?;
        let variance = (1.0 - before) / (1.0 - alpha) * (1.0 - alpha / before);
        let sigma = self.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - before - sigma * sigma).max(0.0).sqrt();
        let next = weighted(&[(before.sqrt(), &x0), (direction, &epsilon)])?;
        if self.eta == 0.0 { Ok(next) } else { Ok((next + (noise_needed(noise)? * sigma)?)?) }
    }
}

/// Ho et al. 2020, equation 7, with the posterior's variance.
struct Ddpm {
    levels: Levels,
}

impl Solver for Ddpm {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let timestep = self.levels.steps[i];
        let alpha = self.levels.table[timestep];
        let before = self.levels.alpha(timestep.checked_sub(self.levels.stride));
        let (x0, _) = self.levels.split(x, prediction, alpha)?;
        let beta = 1.0 - alpha / before;
        let mean = weighted(&[(before.sqrt() * beta / (1.0 - alpha), &x0), ((alpha / before).sqrt() * (1.0 - before) / (1.0 - alpha), x)])?;
        if timestep == 0 {
            return Ok(mean);
        }
        let variance = ((1.0 - before) / (1.0 - alpha) * beta).max(1e-20);
        Ok((mean + (noise_needed(noise)? * variance.sqrt())?)?)
    }
}

/// Liu et al. 2022, equations 9 and 12, as SD 1.x runs it.
struct Pndm {
    levels: Levels,
    /// The last predictions, newest last; at most four.
    slopes: Vec<Tensor>,
    /// Where the step that is made twice began.
    start: Option<Tensor>,
}

impl Solver for Pndm {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let mut timestep = self.levels.steps[i];
        let mut before = timestep.checked_sub(self.levels.stride);
        if i == 1 {
            before = Some(timestep);
            timestep += self.levels.stride;
        } else {
            if self.slopes.len() == 4 {
                self.slopes.remove(0);
            }
            self.slopes.push(prediction.clone());
        }
        let newest = |k: usize| &self.slopes[self.slopes.len() - 1 - k];
        let (from, slope) = match (i, self.slopes.len()) {
            (0, _) => {
                self.start = Some(x.clone());
                (x.clone(), prediction.clone())
            }
            (1, _) => {
                let mean = weighted(&[(0.5, prediction), (0.5, newest(0))])?;
                (self.start.take().unwrap_or_else(|| x.clone()), mean)
            }
            (_, 2) => (x.clone(), weighted(&[(1.5, newest(0)), (-0.5, newest(1))])?),
            (_, 3) => (x.clone(), weighted(&[(23.0 / 12.0, newest(0)), (-16.0 / 12.0, newest(1)), (5.0 / 12.0, newest(2))])?),
            _ => {
                let terms = [(55.0 / 24.0, newest(0)), (-59.0 / 24.0, newest(1)), (37.0 / 24.0, newest(2)), (-9.0 / 24.0, newest(3))];
                (x.clone(), weighted(&terms)?)
            }
        };
        let (a, b) = (self.levels.alpha(Some(timestep)), self.levels.alpha(before));
        let (_, epsilon) = self.levels.split(&from, &slope, a)?;
        let denominator = a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt();
        weighted(&[((b / a).sqrt(), &from), (-(b - a) / denominator, &epsilon)])
    }
}
