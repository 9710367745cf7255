//! The stages of a run: sizes, where each starts, which steps it makes. Plain data.
//!
//! ```
//! use scalebench_generation::journey::{
//!     Encode, End, Enlarge, Filter, KeptMaps, Reduce, Sharpen, Stage, Start, Steps, Through, Upscaling,
//! };
//! use scalebench_generation::{Blueprint, FAMILIES, Method, MethodSpec};
//! # use scalebench_generation::{Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
//! # let request = Request {
//! #     prompt: "pizza".to_owned(),
//! #     negative_prompt: String::new(),
//! #     width: 2048,
//! #     height: 2048,
//! #     steps: 50,
//! #     sampler: Sampler::Ddim,
//! #     schedule: ScheduleOptions::default(),
//! #     guidance_scale: 5.0,
//! #     guidance_rescale: 0.0,
//! #     eta: 0.0,
//! #     seed: 0,
//! #     size_conditioning: SizeConditioning::Target,
//! #     vae_decode: VaeDecode::Whole,
//! #     seeding: Seeding::PerImage,
//! #     frames: 1,
//! # };
//! let sdxl = Blueprint::of_family(&FAMILIES[3]).expect("a published family");
//! let method = |name: &str| -> Result<Method, Box<dyn std::error::Error>> {
//!     let file = format!("../../experiments/methods/{name}.yaml");
//!     Ok(MethodSpec::parse(&std::fs::read_to_string(&file)?, file.as_ref())?.resolve("sdxl", 4.0, sdxl.sites())?)
//! };
//! // The last stage of DiffuseHigh in a request for 2048 × 2048 pixels in 50 steps.
//! let run = sdxl.outline(&request, &method("diffuse-high")?)?;
//! let sharpen = Some(Sharpen { taps: 3, sigma: (0.1, 2.0), amount: 1.0 });
//! let enlarge = Enlarge { through: Through::Pixels, filter: Filter::Bicubic, sharpen, clamped: false, encode: Encode::Mean };
//! let last = Stage {
//!     start: Start::Enlarged(enlarge),
//!     steps: Steps { first: 35, ..Steps::default() },
//!     end: End::Latents,
//!     guidance_scale: Some(10.0),
//!     eta: Some(0.0),
//!     told_size: Some((128, 128)),
//!     ..Stage::new((256, 256))
//! };
//! assert_eq!((run.len(), &run[2].stage), (3, &last));
//! // AccDiffusion's first stage keeps maps, by which the next finds what each window shows.
//! let kept: Option<KeptMaps> = sdxl.outline(&request, &method("accdiffusion")?)?[0].stage.keeps.clone();
//! assert_eq!(kept.expect("maps").name, "first stage");
//! // What a network does to the finished image.
//! let upscaling = Upscaling {
//!     checkpoint: "stabilityai/stable-diffusion-x4-upscaler".to_owned(),
//!     noise_level: 20,
//!     steps: 75,
//!     eta: 0.0,
//!     guidance_scale: 9.0,
//!     reduce: Reduce::Output,
//!     tile: None,
//! };
//! assert_eq!(method("sd-upscale")?.upscaling(), Some(&upscaling));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

/// What a journey is planned from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    /// Latent (height, width) of the image.
    pub(crate) latent: (usize, usize),
    /// Latent (height, width) of the training resolution.
    pub(crate) native: (usize, usize),
    /// The sampler's steps.
    pub(crate) n_steps: usize,
    /// ᾱ at each of the training timesteps.
    pub(crate) alphas_cumprod: Arc<[f64]>,
    /// Weight of the text direction.
    pub(crate) guidance_scale: f64,
}

/// A run: its stages, in order. The last one has the image's size, or that of a smaller image which is enlarged to it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Journey {
    /// Never empty.
    pub(crate) stages: Vec<Stage>,
    /// How the last stage's image becomes one of the size that was asked for, if it has another.
    pub(crate) finish: Option<Finish>,
}

impl Journey {
    /// Everything at the image's size, from noise.
    pub(crate) fn direct(latent: (usize, usize)) -> Self {
        Self { stages: vec![Stage::new(latent)], finish: None }
    }
}

/// How a finished image is enlarged.
///
/// Example: [`Blueprint`](crate::Blueprint).
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// The filter, for all that the network does not do.
    pub filter: ImageFilter,
    /// The network, if it is not for the filter alone.
    pub upscaler: Option<Upscaling>,
}

/// Pillow's resizing of 8-bit images.
///
/// Example: [`Blueprint`](crate::Blueprint).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFilter {
    /// The cubic with a = −½.
    Bicubic,
    /// The windowed sinc of three lobes.
    Lanczos,
}

impl std::fmt::Display for ImageFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde::Serialize::serialize(self, f)
    }
}

/// Diffusion super-resolution: a network that enlarges by its autoencoder's factor, as often as it takes.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upscaling {
    /// The checkpoint: a folder, or a repository of the Hugging Face hub.
    pub checkpoint: String,
    /// How much noise the small image gets, in training timesteps of the checkpoint's `low_res_scheduler`.
    #[serde(default = "twenty")]
    pub noise_level: usize,
    /// DDIM steps.
    #[serde(default = "seventy_five")]
    pub steps: usize,
    /// DDIM's noise share.
    #[serde(default)]
    pub eta: f64,
    /// Weight of the text direction.
    #[serde(default = "nine")]
    pub guidance_scale: f64,
    /// What is done where the factor is not a power of the network's.
    #[serde(default)]
    pub reduce: Reduce,
    /// Overlapping windows in place of the whole map, for bounded memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<Tile>,
}

fn twenty() -> usize {
    20
}

fn seventy_five() -> usize {
    75
}

fn nine() -> f64 {
    9.0
}

/// Where an enlargement by too large a factor is made up for.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduce {
    /// The network sees the image as it is; its result is reduced to the target.
    #[default]
    Output,
    /// The image is reduced, so that the network's result has the target's size, but for rounding.
    Input,
}

/// Windows on a map.
///
/// Example: [`Upscaler`](crate::Upscaler).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Side in latents.
    pub side: usize,
    /// Latents that neighbours share.
    pub overlap: usize,
}

/// One size of a journey.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Latent (height, width).
    pub latent: (usize, usize),
    /// What it starts from.
    pub start: Start,
    /// Which of the sampler's steps it runs.
    pub steps: Steps,
    /// What is handed on, and decoded at the end.
    pub end: End,
    /// DDIM's noise share, if not the request's.
    pub eta: Option<f64>,
    /// Weight of the text direction, if not the request's.
    pub guidance_scale: Option<f64>,
    /// Latent (height, width) of the image size that SDXL is told, if not the stage's own or, where the request asks for that, the
    /// training size.
    pub told_size: Option<(usize, usize)>,
    /// Whether the method's ingredients leave this stage alone.
    pub plain: bool,
    /// Whether the result gets mean and deviation of the first stage's.
    pub normalised: bool,
    /// Attention that later stages refer to.
    pub keeps: Option<KeptMaps>,
}

/// Cross-attention maps that a stage keeps: how much each pixel attends to each token of the prompt, the mean over the stage's
/// steps, some sites, and their heads. Only looks at the whole latents count.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMaps {
    /// What later stages know them by.
    pub name: String,
    /// Indices of self-attention sites; it is the cross-attentions beside them that are kept. All run on maps of one size.
    pub sites: Arc<[usize]>,
}

impl Stage {
    /// All steps from noise.
    /// Example: [`journey`](crate::journey).
    pub fn new(latent: (usize, usize)) -> Self {
        Self {
            latent,
            start: Start::Noise,
            steps: Steps::default(),
            end: End::Latents,
            eta: None,
            guidance_scale: None,
            told_size: None,
            plain: false,
            normalised: false,
            keeps: None,
        }
    }
}

/// What a stage starts from.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Unit-normal latents.
    Noise,
    /// The stage before's result, enlarged, noised to the level of the first step that is run.
    Enlarged(Enlarge),
}

/// How latents become larger ones.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Enlarge {
    /// As what.
    pub through: Through,
    /// By which filter.
    pub filter: Filter,
    /// Unsharp masking of the enlarged image, `x + amount · (x − G(x))`.
    pub sharpen: Option<Sharpen>,
    /// Whether the image is clamped to its range after enlarging and after sharpening.
    pub clamped: bool,
    /// How the image becomes latents again.
    pub encode: Encode,
}

/// A Gaussian of a kernel of `taps × taps`; the image is mirrored at its borders.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharpen {
    /// Side of the kernel.
    pub taps: usize,
    /// Standard deviation is drawn evenly between these.
    pub sigma: (f64, f64),
    /// Weight of the difference.
    pub amount: f64,
}

/// What is resized.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Through {
    /// The latents.
    Latents,
    /// The decoded image, clamped to its range.
    Pixels,
    /// The decoded image as the autoencoder gives it, beyond its range as well.
    UnclampedPixels,
}

/// A resizing filter.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// `torch.nn.functional.interpolate(mode="nearest")`.
    Nearest,
    /// The same with `mode="bilinear"`, `align_corners=False`.
    Bilinear,
    /// The same with `mode="bicubic"`: the cubic with a = −¾, edges repeated.
    Bicubic,
    /// Pillow's `BICUBIC`: the cubic with a = −½, what lies outside left out.
    PillowBicubic,
}

/// Which latents stand for an image.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encode {
    /// The posterior's mean.
    Mean,
    /// A sample of the posterior, which draws noise.
    Sample,
}

/// Which of a sampler's steps a stage runs.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// Length of the sampler's run, if not the request's.
    pub of: Option<usize>,
    /// The first that is run.
    pub first: usize,
    /// The first that is not run any more; `None` is the end of the run.
    pub end: Option<usize>,
    /// The step whose noise level an enlarged start gets, if not the first that is run.
    pub noised_for: Option<usize>,
    /// The network's timesteps, noisiest first, in place of the sampler's own spacing, and how many training timesteps the last of
    /// the stage's steps goes; with DDIM, whose steps need not meet, every one.
    pub timesteps: Option<(Vec<usize>, usize)>,
    /// Divides the signal-to-noise ratio of every training timestep: `ᾱ ← ᾱ / (γ − (γ − 1) ᾱ)`.
    pub gamma: f64,
}

impl Default for Steps {
    fn default() -> Self {
        Self { of: None, first: 0, end: None, noised_for: None, timesteps: None, gamma: 1.0 }
    }
}

/// What a stage hands on.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The latents after the last step.
    Latents,
    /// The clean latents that the last step's prediction implied.
    Estimate,
    /// The same from that prediction and the latents after the step, as MegaFusion's code has it.
    LateEstimate,
}
