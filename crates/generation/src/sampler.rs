//! Noise levels, timestep spacing and the solvers that walk them.

use crate::config::Config;
use crate::error::{Error, Result};
use candle_core::Tensor;
use serde_json::json;
use std::path::Path;

/// Which solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Denoising diffusion implicit models (Song et al. 2021) with `eta`.
    Ddim,
}

impl std::str::FromStr for Sampler {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "ddim" => Ok(Self::Ddim),
            _ => Err(format!("unknown sampler `{name}`, expected `ddim`")),
        }
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ddim => "ddim",
        })
    }
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// `v = √ᾱ ε − √(1−ᾱ) x₀` (Salimans and Ho 2022).
    V,
    /// The clean sample.
    Sample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// The noise schedule of a checkpoint, `scheduler/scheduler_config.json`.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// ᾱ at each of the training timesteps, f32 as diffusers keeps it.
    pub alphas_cumprod: Vec<f32>,
    /// What the network predicts.
    pub prediction: Prediction,
    final_alpha: f32,
    steps_offset: usize,
    spacing: Spacing,
}

impl Schedule {
    /// Reads a diffusers scheduler configuration as DDIM reads it, whichever class wrote it.
    pub fn open(file: &Path) -> Result<Self> {
        let mut config = Config::open(file)?;
        let n = config.usize("num_train_timesteps", Some(1000))?;
        let (start, end) = (config.f64("beta_start", 1e-4)? as f32, config.f64("beta_end", 0.02)? as f32);
        config.only("beta_schedule", &[json!("scaled_linear")])?;
        config.only("trained_betas", &[])?;
        config.only("clip_sample", &[json!(false)])?;
        config.only("thresholding", &[json!(false)])?;
        config.only("rescale_betas_zero_snr", &[json!(false)])?;
        let prediction = match config.string("prediction_type", "epsilon")?.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::V,
            "sample" => Prediction::Sample,
            found => return Err(unknown(file, "prediction_type", found, "epsilon, v_prediction or sample")),
        };
        let spacing = match config.string("timestep_spacing", "leading")?.as_str() {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            found => return Err(unknown(file, "timestep_spacing", found, "leading, trailing or linspace")),
        };
        let steps_offset = config.usize("steps_offset", Some(0))?;
        let set_alpha_to_one = config.bool("set_alpha_to_one", true)?;

        // torch.linspace and cumprod in f32, as the reference computes them.
        let (a, b) = (start.sqrt(), end.sqrt());
        let mut product = 1f32;
        let alphas_cumprod: Vec<f32> = linspace(a, b, n)
            .into_iter()
            .map(|root| {
                product *= 1.0 - root * root;
                product
            })
            .collect();
        let final_alpha = if set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self { alphas_cumprod, prediction, final_alpha, steps_offset, spacing })
    }

    /// Timesteps of a run of `n` steps, noisiest first.
    pub fn timesteps(&self, n: usize) -> Vec<usize> {
        let total = self.alphas_cumprod.len();
        let last = total - 1;
        match self.spacing {
            Spacing::Leading => (0..n).rev().map(|i| (i * (total / n) + self.steps_offset).min(last)).collect(),
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

    fn alpha(&self, timestep: Option<usize>) -> f64 {
        f64::from(timestep.map_or(self.final_alpha, |t| self.alphas_cumprod[t]))
    }

    /// One DDIM step from `timestep` (equations 12 and 16): `x` and `prediction` have one shape, and
    /// `noise` too; it is needed when `eta` is positive.
    pub fn ddim_step(
        &self,
        x: &Tensor,
        prediction: &Tensor,
        timestep: usize,
        n_steps: usize,
        eta: f64,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let previous = timestep.checked_sub(self.alphas_cumprod.len() / n_steps);
        let (alpha, alpha_previous) = (self.alpha(Some(timestep)), self.alpha(previous));
        let (root_alpha, root_beta) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (x0, epsilon) = match self.prediction {
            Prediction::Epsilon => (((x - (prediction * root_beta)?)? / root_alpha)?, prediction.clone()),
            Prediction::V => (((x * root_alpha)? - (prediction * root_beta)?)?, ((prediction * root_alpha)? + (x * root_beta)?)?),
            Prediction::Sample => (prediction.clone(), ((x - (prediction * root_alpha)?)? / root_beta)?),
        };
        let variance = (1.0 - alpha_previous) / (1.0 - alpha) * (1.0 - alpha / alpha_previous);
        let sigma = eta * variance.sqrt();
        let direction = (1.0 - alpha_previous - sigma * sigma).max(0.0).sqrt();
        let next = ((x0 * alpha_previous.sqrt())? + (epsilon * direction)?)?;
        match noise {
            Some(noise) if eta > 0.0 => Ok((next + (noise * sigma)?)?),
            None if eta > 0.0 => {
                Err(Error::Request { key: "noise", found: "none".into(), expected: "step noise, since eta is positive".into() })
            }
            _ => Ok(next),
        }
    }
}

fn unknown(file: &Path, key: &str, found: &str, expected: &str) -> Error {
    Error::Config { file: file.to_owned(), key: key.into(), found: format!("`{found}`"), expected: expected.into() }
}

/// `torch.linspace` in f32: both halves count from their own end.
fn linspace(a: f32, b: f32, n: usize) -> Vec<f32> {
    let step = (b - a) / (n - 1) as f32;
    (0..n).map(|i| if i < n / 2 { a + step * i as f32 } else { b - step * (n - 1 - i) as f32 }).collect()
}
