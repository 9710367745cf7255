//! Noise levels, timestep spacing and the solvers that walk them.
//!
//! A [`Schedule`] is what the checkpoint was trained with; [`Schedule::walk`] lays out one run of a
//! [`Sampler`] on it. Coefficients are computed in f64 from the f32 table that diffusers keeps.

mod alpha;
mod sigma;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::journey::Steps;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Which solver, by diffusers' name without `Scheduler`.
///
/// Example: [`ScheduleOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sampler {
    /// Denoising diffusion implicit models (Song et al. 2021) with `eta`.
    #[serde(rename = "ddim")]
    Ddim,
    /// Ancestral sampling of Ho et al. 2020.
    #[serde(rename = "ddpm")]
    Ddpm,
    /// Pseudo linear multistep (Liu et al. 2022), without its Runge–Kutta start: what SD 1.x ships with.
    #[serde(rename = "pndm")]
    Pndm,
    /// Euler steps in σ (Karras et al. 2022, algorithm 2 without churn): what SDXL ships with.
    #[serde(rename = "euler")]
    Euler,
    /// Euler steps that overshoot and add noise back.
    #[serde(rename = "euler-ancestral")]
    EulerAncestral,
    /// DPM-Solver++ 2M (Lu et al. 2022).
    #[serde(rename = "dpm++2m")]
    DpmPp2m,
    /// UniPC of order 2 with B₂(h) (Zhao et al. 2023).
    #[serde(rename = "unipc")]
    UniPc,
}

impl Sampler {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Ddim, Self::Ddpm, Self::Pndm, Self::Euler, Self::EulerAncestral, Self::DpmPp2m, Self::UniPc];

    fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::DpmPp2m => "dpm++2m",
            Self::UniPc => "unipc",
        }
    }

    /// The spacing that diffusers takes where neither the checkpoint nor the request names one.
    fn usual_spacing(self) -> Spacing {
        match self {
            Self::Ddim | Self::Ddpm | Self::Pndm => Spacing::Leading,
            Self::Euler | Self::EulerAncestral | Self::DpmPp2m | Self::UniPc => Spacing::Linspace,
        }
    }

    /// The `eta` of ScaleCrafter's code: 1 where it applies.
    /// Example: [`ScheduleOptions`].
    pub fn usual_eta(self) -> f64 {
        if self == Self::Ddim { 1.0 } else { 0.0 }
    }

    fn knows_karras(self) -> bool {
        matches!(self, Self::Euler | Self::DpmPp2m | Self::UniPc)
    }
}

impl std::str::FromStr for Sampler {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|s| s.name()).collect();
            format!("unknown sampler `{name}`, expected one of {}", names.join(", "))
        })
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prediction {
    /// The noise.
    Epsilon,
    /// `v = √ᾱ ε − √(1−ᾱ) x₀` (Salimans and Ho 2022).
    V,
    /// The clean sample.
    Sample,
}

/// Which of the trained timesteps a run visits (Lin et al. 2024, table 2).
///
/// Example: [`ScheduleOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Every `⌊T / n⌋`-th from the clean end, plus `steps_offset`.
    Leading,
    /// Every `T / n`-th from the noisy end.
    Trailing,
    /// Evenly from end to end.
    Linspace,
}

/// What a run may change of the checkpoint's scheduler configuration, under diffusers' names.
///
/// ```
/// use scalebench_generation::{Sampler, ScheduleOptions, Spacing};
/// // Names are those of files and of the command line.
/// assert_eq!(Sampler::ALL.map(|sampler| sampler.to_string().parse()), Sampler::ALL.map(Ok));
/// assert_eq!((Sampler::Ddim.usual_eta(), Sampler::Euler.usual_eta()), (1.0, 0.0));
/// let trailing = ScheduleOptions { timestep_spacing: Some("trailing".parse()?), ..ScheduleOptions::default() };
/// assert_eq!(trailing.timestep_spacing, Some(Spacing::Trailing));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleOptions {
    /// Which timesteps are visited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<Spacing>,
    /// Noise levels of Karras et al. 2022, equation 5 with ρ = 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// Betas rescaled so that the last step is pure noise (Lin et al. 2024, §3.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescale_betas_zero_snr: Option<bool>,
}

/// Most training timesteps; 1000 are usual.
const MOST_TIMESTEPS: usize = 100_000;

/// How β grows over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Betas {
    /// Its root grows evenly.
    ScaledLinear,
    /// It grows evenly itself.
    Linear,
}

/// The noise schedule of a checkpoint, `scheduler/scheduler_config.json`.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// β at both ends, f32 as diffusers keeps it.
    ends: (f32, f32),
    betas: Betas,
    n_train: usize,
    /// What the network predicts.
    pub(crate) prediction: Prediction,
    set_alpha_to_one: bool,
    steps_offset: usize,
    last_sigma_zero: bool,
    skip_prk_steps: bool,
    options: ScheduleOptions,
}

impl Schedule {
    /// Reads a diffusers scheduler configuration as every solver reads it, whichever class wrote it.
    pub(crate) fn open(file: &Path) -> Result<Self> {
        Self::of(Config::open(file)?)
    }

    pub(crate) fn of(mut config: Config) -> Result<Self> {
        let file = &config.file().to_owned();
        let n_train = config.within("num_train_timesteps", Some(1000), 2, MOST_TIMESTEPS)?;
        let (start, end) = (config.positive("beta_start", 1e-4, 1.0)? as f32, config.positive("beta_end", 0.02, 1.0)? as f32);
        if start.is_subnormal() || start >= 1.0 {
            return config.refuse("beta_start", "a number above 0 and below 1");
        }
        if end >= 1.0 || end < start {
            return config.refuse("beta_end", format!("a number below 1 and at least `beta_start`, {start}"));
        }
        let betas = match config.string("beta_schedule", "scaled_linear")?.as_str() {
            "scaled_linear" => Betas::ScaledLinear,
            "linear" => Betas::Linear,
            found => return Err(unknown(file, "beta_schedule", found, "scaled_linear or linear")),
        };
        config.only("trained_betas", &[])?;
        config.only("clip_sample", &[json!(false)])?;
        config.only("thresholding", &[json!(false)])?;
        config.only("variance_type", &[json!("fixed_small")])?;
        config.only("interpolation_type", &[json!("linear")])?;
        config.only("timestep_type", &[json!("discrete")])?;
        config.only("algorithm_type", &[json!("dpmsolver++")])?;
        config.only("solver_order", &[json!(2)])?;
        config.only("solver_type", &[json!("midpoint"), json!("bh2")])?;
        config.only("lower_order_final", &[json!(true)])?;
        for key in ["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "euler_at_final"] {
            config.only(key, &[json!(false)])?;
        }
        let prediction = match config.string("prediction_type", "epsilon")?.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::V,
            "sample" => Prediction::Sample,
            found => return Err(unknown(file, "prediction_type", found, "epsilon, v_prediction or sample")),
        };
        let timestep_spacing = match config.string("timestep_spacing", "")?.as_str() {
            "" => None,
            found => {
                let wrong = |_| unknown(file, "timestep_spacing", found, "leading, trailing or linspace");
                Some(found.parse().map_err(wrong)?)
            }
        };
        let last_sigma_zero = match config.string("final_sigmas_type", "zero")?.as_str() {
            "zero" => true,
            "sigma_min" => false,
            found => return Err(unknown(file, "final_sigmas_type", found, "zero or sigma_min")),
        };
        let schedule = Self {
            ends: (start, end),
            betas,
            n_train,
            prediction,
            set_alpha_to_one: config.bool("set_alpha_to_one", true)?,
            steps_offset: config.within("steps_offset", Some(0), 0, n_train - 1)?,
            last_sigma_zero,
            skip_prk_steps: config.bool("skip_prk_steps", false)?,
            options: ScheduleOptions {
                timestep_spacing,
                use_karras_sigmas: Some(config.bool("use_karras_sigmas", false)?),
                rescale_betas_zero_snr: Some(config.bool("rescale_betas_zero_snr", false)?),
            },
        };
        // Its noise level is infinite where nothing is left of the signal.
        if schedule.alphas_cumprod(false).last().is_none_or(|alpha| !alpha.is_normal()) {
            return config.refuse("beta_end", format!("betas that leave some of the signal after {n_train} timesteps"));
        }
        Ok(schedule)
    }

    /// Reads a configuration of which nothing but the noise matters, since no sampler walks it: an upscaler's `low_res_scheduler`.
    pub(crate) fn open_noise(file: &Path) -> Result<Vec<f32>> {
        let mut config = Config::open(file)?;
        let n_train = config.within("num_train_timesteps", Some(1000), 2, MOST_TIMESTEPS)?;
        let (start, end) = (config.positive("beta_start", 1e-4, 1.0)? as f32, config.positive("beta_end", 0.02, 1.0)? as f32);
        if end >= 1.0 || end < start {
            return config.refuse("beta_end", format!("a number below 1 and at least `beta_start`, {start}"));
        }
        config.only("trained_betas", &[])?;
        let betas: Vec<f32> = match config.string("beta_schedule", "linear")?.as_str() {
            "linear" => linspace(start, end, n_train),
            "scaled_linear" => linspace(start.sqrt(), end.sqrt(), n_train).into_iter().map(|root| root * root).collect(),
            found => return Err(unknown(file, "beta_schedule", found, "linear or scaled_linear")),
        };
        Ok(cumulated(betas.into_iter().map(|beta| 1.0 - beta)))
    }

    /// The same with betas that grow evenly, as AnimateDiff was trained.
    pub(crate) fn with_linear_betas(self) -> Self {
        Self { betas: Betas::Linear, ..self }
    }

    /// ᾱ at each of the training timesteps, f32 as diffusers computes and keeps it.
    fn alphas_cumprod(&self, zero_snr: bool) -> Vec<f32> {
        let between = |start: f32, end: f32| linspace(start, end, self.n_train).into_iter();
        let table = match self.betas {
            Betas::ScaledLinear => cumulated(between(self.ends.0.sqrt(), self.ends.1.sqrt()).map(|root| 1.0 - root * root)),
            Betas::Linear => cumulated(between(self.ends.0, self.ends.1).map(|beta| 1.0 - beta)),
        };
        if !zero_snr {
            return table;
        }
        let roots: Vec<f32> = table.iter().map(|a| a.sqrt()).collect();
        let (first, last) = (roots[0], roots[roots.len() - 1]);
        let bars: Vec<f32> = roots.iter().map(|r| ((r - last) * (first / (first - last))).powi(2)).collect();
        // Through betas and back, as the reference goes.
        let alpha = |i: usize| if i == 0 { bars[0] } else { bars[i] / bars[i - 1] };
        cumulated((0..bars.len()).map(|i| 1.0 - (1.0 - alpha(i))))
    }

    /// One run of `sampler` in `n` steps. `eta` is DDIM's.
    pub(crate) fn walk(&self, sampler: Sampler, n: usize, eta: f64, wanted: &ScheduleOptions) -> Result<Walk> {
        self.walk_stage(sampler, n, eta, wanted, &Steps::default())
    }

    /// [`walk`](Self::walk) on the noise levels and timesteps of a journey's stage. Which of the steps the stage runs plays no part.
    pub(crate) fn walk_stage(&self, sampler: Sampler, n: usize, eta: f64, wanted: &ScheduleOptions, stage: &Steps) -> Result<Walk> {
        let request = |key, found: String, expected: &str| Error::Request { key, found, expected: expected.to_owned() };
        let n = stage.timesteps.as_ref().map_or(n, |(timesteps, _)| timesteps.len());
        if n == 0 || n > self.n_train {
            return Err(request("steps", n.to_string(), &format!("from 1 to the {} training timesteps", self.n_train)));
        }
        if !(0.0..=1.0).contains(&eta) || (eta > 0.0 && sampler != Sampler::Ddim) {
            return Err(request("eta", eta.to_string(), "a number from 0 to 1 for `ddim`, 0 for any other sampler"));
        }
        if sampler == Sampler::Pndm && !self.skip_prk_steps {
            let expected =
                "another sampler: this checkpoint's scheduler configuration asks for a Runge-Kutta start (`skip_prk_steps` false)";
            return Err(request("sampler", "pndm".into(), expected));
        }
        let karras = wanted.use_karras_sigmas.or(self.options.use_karras_sigmas).unwrap_or(false);
        if karras && !sampler.knows_karras() && wanted.use_karras_sigmas.is_some() {
            return Err(request("use_karras_sigmas", "true".into(), "false, or a sampler that knows them: euler, dpm++2m, unipc"));
        }
        if stage.timesteps.is_some() && (karras || sampler == Sampler::Pndm) {
            let (key, found) = if karras { ("use_karras_sigmas", "true") } else { ("sampler", "pndm") };
            return Err(request(key, found.into(), "another one: this method says which timesteps are visited"));
        }
        let zero_snr = wanted.rescale_betas_zero_snr.or(self.options.rescale_betas_zero_snr).unwrap_or(false);
        if zero_snr && self.prediction == Prediction::Epsilon {
            return Err(request("rescale_betas_zero_snr", "true".into(), "false for a network that predicts the noise"));
        }
        let spacing = wanted.timestep_spacing.or(self.options.timestep_spacing).unwrap_or_else(|| sampler.usual_spacing());
        let mut table: Vec<f64> = self.alphas_cumprod(zero_snr).into_iter().map(f64::from).collect();
        if stage.gamma != 1.0 {
            table.iter_mut().for_each(|a| *a /= stage.gamma - (stage.gamma - 1.0) * *a);
        }
        let run = Run { schedule: self, n, spacing, karras, given: stage.timesteps.as_ref() };
        Ok(match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm => alpha::walk(sampler, &run, table, eta),
            _ => {
                if let Some(last) = table.last_mut().filter(|_| zero_snr) {
                    *last = 2f64.powi(-24); // As the reference: σ must stay finite.
                }
                sigma::walk(sampler, &run, &table)
            }
        })
    }
}

/// The layout of one run.
struct Run<'a> {
    schedule: &'a Schedule,
    n: usize,
    spacing: Spacing,
    karras: bool,
    /// Timesteps in place of the spacing's, and how far a step goes.
    given: Option<&'a (Vec<usize>, usize)>,
}

/// A solver on its way: it keeps what multistep methods remember.
pub(crate) struct Walk {
    timesteps: Vec<f64>,
    /// Weights of the clean latents and of unit noise before each step.
    levels: Vec<(f64, f64)>,
    initial_sigma: f64,
    draws_noise: bool,
    /// Whether samples keep the clean latents' scale under growing noise, and are shown to the network
    /// scaled to unit variance.
    exploding: bool,
    prediction: Prediction,
    alphas_cumprod: Arc<[f64]>,
    solver: Box<dyn Solver>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("timesteps", &self.timesteps).finish_non_exhaustive()
    }
}

impl Walk {
    /// The network's timestep of every step, noisiest first. PNDM makes one step more than asked for.
    pub(crate) fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Unit-normal noise times this is where the run starts.
    pub(crate) fn initial_sigma(&self) -> f64 {
        self.initial_sigma
    }

    /// Whether steps draw noise.
    pub(crate) fn draws_noise(&self) -> bool {
        self.draws_noise
    }

    /// What the network is shown of `x` at step `i`.
    pub(crate) fn scale_input(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        let (_, sigma) = self.levels[i];
        if self.exploding { Ok((x * (1.0 / (sigma * sigma + 1.0).sqrt()))?) } else { Ok(x.clone()) }
    }

    /// From `x` at step `i` to the next: `prediction` has its shape, and so has `noise`, which is
    /// there if [`draws_noise`](Self::draws_noise). Steps are taken in order.
    pub(crate) fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        self.solver.step(i, x, prediction, noise)
    }

    /// Weights of the clean latents and of unit noise in the latents before step `i`.
    pub(crate) fn level(&self, i: usize) -> (f64, f64) {
        self.levels[i]
    }

    /// ᾱ at each of the training timesteps.
    pub(crate) fn alphas_cumprod(&self) -> Arc<[f64]> {
        self.alphas_cumprod.clone()
    }

    /// Signal and noise amplitudes at unit variance before step `i`, and what `x` is multiplied by to have it.
    fn amplitudes(&self, i: usize) -> (f64, f64, f64) {
        let (signal, spread) = self.levels[i];
        let scale = if self.exploding { 1.0 / (signal * signal + spread * spread).sqrt() } else { 1.0 };
        (signal * scale, spread * scale, scale)
    }

    /// The clean latents that `prediction` implies for `x` before step `i`.
    pub(crate) fn clean(&self, i: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        let (alpha, sigma, scale) = self.amplitudes(i);
        match self.prediction {
            Prediction::Epsilon => weighted(&[(scale / alpha, x), (-sigma / alpha, prediction)]),
            Prediction::V => weighted(&[(alpha * scale, x), (-sigma, prediction)]),
            Prediction::Sample => Ok(prediction.clone()),
        }
    }

    /// The prediction that implies the `clean` latents for `x` before step `i`: the inverse of [`clean`](Self::clean).
    pub(crate) fn implied(&self, i: usize, x: &Tensor, clean: &Tensor) -> Result<Tensor> {
        let (alpha, sigma, scale) = self.amplitudes(i);
        match self.prediction {
            Prediction::Epsilon => weighted(&[(scale / sigma, x), (-alpha / sigma, clean)]),
            Prediction::V => weighted(&[(alpha * scale / sigma, x), (-1.0 / sigma, clean)]),
            Prediction::Sample => Ok(clean.clone()),
        }
    }

    /// Clean latents `x` with `noise` as they are before step `i`: where a run that starts there begins.
    pub(crate) fn add_noise(&self, i: usize, x: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let (signal, spread) = self.levels[i];
        weighted(&[(signal, x), (spread, noise)])
    }
}

/// One way to walk.
trait Solver {
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// `Σ wᵢ xᵢ`; terms of weight 0 are left out.
fn weighted(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, x) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
        let term = (*x * *weight)?;
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(terms[0].1.zeros_like()?),
    }
}

fn noise_needed(noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| Error::Request { key: "noise", found: "none".into(), expected: "step noise, since this sampler draws it".into() })
}

fn unknown(file: &Path, key: &str, found: &str, expected: &str) -> Error {
    Error::Config { file: file.to_owned(), key: key.into(), found: format!("`{found}`"), expected: expected.into() }
}

/// Products of the first 1, 2, 3, … numbers.
fn cumulated(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1f32;
    let running = alphas.map(|alpha| {
        product *= alpha;
        product
    });
    running.collect()
}

/// `torch.linspace` in f32: both halves count from their own end.
pub(crate) fn linspace(a: f32, b: f32, n: usize) -> Vec<f32> {
    let step = (b - a) / (n.max(2) - 1) as f32;
    (0..n).map(|i| if i == 0 || i < n / 2 { a + step * i as f32 } else { b - step * (n - 1 - i) as f32 }).collect()
}
