//! What goes into a pipeline and what comes out.

use super::check_finite;
use crate::error::{Error, Result};
use crate::journey::ImageFilter;
use crate::noise::Generator;
use crate::sampler::{Sampler, ScheduleOptions};
use crate::vae::VaeDecode;
use candle_core::{Device, Tensor};
use scalebench_kernels::raster;
use std::collections::BTreeMap;

/// What to generate. With the checkpoint and the method it determines the image.
///
/// Example: [`Trace`].
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Request {
    /// The text.
    pub prompt: String,
    /// What guidance leads away from; usually empty.
    pub negative_prompt: String,
    /// Image width in pixels.
    pub width: u32,
    /// Image height in pixels.
    pub height: u32,
    /// Sampler steps.
    pub steps: usize,
    /// Which solver.
    pub sampler: Sampler,
    /// What differs from the checkpoint's scheduler configuration.
    pub schedule: ScheduleOptions,
    /// Weight of the text direction; 1 and below switch guidance off.
    pub guidance_scale: f64,
    /// Share of the guided prediction that is rescaled to the text prediction's spread (Lin et al.
    /// 2024, §3.4), in [0, 1].
    pub guidance_rescale: f64,
    /// Share of the DDPM noise that each DDIM step adds, in [0, 1]; 0 for other samplers. The paper's
    /// code uses 1.
    pub eta: f64,
    /// Seeds the initial latents and the step noise, as `torch.Generator().manual_seed`.
    pub seed: u64,
    /// What SDXL is told about the image's size; other models are told nothing.
    pub size_conditioning: SizeConditioning,
    /// How the final latents become pixels.
    pub vae_decode: VaeDecode,
    /// Which part of a batch's noise this image gets.
    pub seeding: Seeding,
    /// Frames of a video; 1 of an image.
    #[serde(skip_serializing_if = "is_one")]
    pub frames: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_one(n: &usize) -> bool {
    *n == 1
}

/// Which of a step's axes noise is drawn along first, where it is a video's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrawOrder {
    /// Channels, then frames.
    Channels,
    /// Frames, each of them an item of a batch.
    Frames,
}

/// How an image's noise follows from its seed.
///
/// Example: [this crate](crate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seeding {
    /// By a generator of its own: the image does not depend on batches.
    #[default]
    PerImage,
    /// As row `row` of what one generator draws for a batch of `batch` images, which is what scripts do
    /// that set the seed before each batch.
    Batched {
        /// Images drawn together.
        batch: usize,
        /// Which of them this is.
        row: usize,
    },
}

impl Seeding {
    /// The next noise of `shape` `(frames, c, h, w)`.
    pub(super) fn draw(
        self,
        generator: &mut Generator,
        (frames, c, h, w): (usize, usize, usize, usize),
        order: DrawOrder,
    ) -> Result<Tensor> {
        let (batch, row) = match self {
            Self::PerImage => (1, 0),
            Self::Batched { batch, row } => (batch, row),
        };
        match order {
            DrawOrder::Channels => Ok(generator.randn((batch, c, frames, h, w))?.get(row)?.transpose(0, 1)?.contiguous()?),
            DrawOrder::Frames => Ok(generator.randn((batch * frames, c, h, w))?.narrow(0, row * frames, frames)?.contiguous()?),
        }
    }
}

/// `(videos · frames, c, h, w)` as programs write videos: `(videos, c, frames, h, w)`; images stay as they are.
pub(super) fn as_videos(maps: &Tensor, frames: usize) -> Result<Tensor> {
    if frames == 1 {
        return Ok(maps.clone());
    }
    let (batch, c, h, w) = maps.dims4()?;
    Ok(maps.reshape((batch / frames, frames, c, h, w))?.transpose(1, 2)?.contiguous()?)
}

/// The `original_size` and `target_size` that SDXL is told (Podell et al. 2023, §2.2); the crop is
/// always at (0, 0).
///
/// Example: [this crate](crate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SizeConditioning {
    /// The size of the image, as ScaleCrafter's code has it.
    #[default]
    Target,
    /// The training size, as FouriScale's code has it.
    Base,
}

/// An image: sRGB bytes, row by row.
///
/// Example: [`Pipeline`](crate::Pipeline).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `height × width × 3` bytes.
    pub data: Vec<u8>,
}

/// Randomness from outside, for comparisons with other programs.
///
/// Example: [`Trace`].
#[derive(Debug, Clone, Default)]
pub struct Injected {
    /// Unit-normal initial latents, `(1, c, h, w)`; of a video, here and below, `(1, c, frames, h, w)`.
    pub init_latents: Option<Tensor>,
    /// Step noise, `(steps, 1, c, h, w)`.
    pub step_noise: Option<Tensor>,
    /// All Gaussian tensors `(1, c, h, w)` of a journey in the order in which they are drawn: each stage's initial noise, then
    /// its steps'. Empty for the request's own.
    pub draws: Vec<Tensor>,
}

/// What is recorded on the way: the time that each stage took and, if wanted, tensors: `init_latents`, `noise`, `text.cond`, `text.uncond`, per step
/// `pass<j>.<i>`, `guided.<i>` and `latents.<i>`, and `final_latents`. In a journey these are the last stage's; those of the stages
/// before begin with `stage<s>.`. Those of a video are `(1, c, frames, h, w)`. What an upscaler does comes under `upscale.`: `image` (the small one), `image_noise`, `init_latents`, `guided.<i>`,
/// `latents.<i>`.
///
/// ```
/// use scalebench_generation::{Injected, Method, Pipeline, Tensor, Trace};
/// # use scalebench_generation::{Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
/// # let request = Request {
/// #     prompt: "pizza".to_owned(),
/// #     negative_prompt: String::new(),
/// #     width: 64,
/// #     height: 64,
/// #     steps: 1,
/// #     sampler: Sampler::Ddim,
/// #     schedule: ScheduleOptions::default(),
/// #     guidance_scale: 1.0,
/// #     guidance_rescale: 0.0,
/// #     eta: 0.0,
/// #     seed: 0,
/// #     size_conditioning: SizeConditioning::Target,
/// #     vae_decode: VaeDecode::Whole,
/// #     seeding: Seeding::PerImage,
/// #     frames: 1,
/// # };
/// let pipeline = Pipeline::load("../../datasets/pocket".as_ref())?;
/// let method = Method::direct(pipeline.sites());
/// let mut first = Trace::default();
/// let image = pipeline.generate(&request, &method, Some(&mut first))?;
/// assert!(!first.safetensors()?.is_empty());
/// let parts: Vec<&str> = first.seconds.iter().map(|(part, _)| part.as_str()).collect();
/// assert_eq!(parts, ["text", "step 0", "decode"]);
/// // The same latents from outside give the same image, whatever the seed.
/// let latents: Tensor = first.tensors["init_latents"].clone();
/// let injected = Injected { init_latents: Some(latents), ..Injected::default() };
/// let mut times = Trace::of_times();
/// let other = Request { seed: 1, ..request };
/// assert_eq!(pipeline.generate_frames(&other, &method, &injected, Some(&mut times))?, [image]);
/// assert!(times.tensors.is_empty());
/// # Ok::<(), scalebench_generation::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Seconds of each part: `text`, `step <i>`, `decode`, in order; of the stages before the last `stage<s> step <i>`, and
    /// `enlarge` between stages; of an upscaler `upscale step <i>` and `upscale decode`.
    pub seconds: Vec<(String, f64)>,
    pub(super) without_tensors: bool,
}

impl Trace {
    /// A trace of times only.
    /// Example: [`Trace`].
    pub fn of_times() -> Self {
        Self { without_tensors: true, ..Self::default() }
    }

    pub(super) fn keep(&mut self, name: String, tensor: &Tensor) {
        if !self.without_tensors {
            self.tensors.insert(name, tensor.clone());
        }
    }

    /// The tensors as a safetensors file.
    /// Example: [`Trace`].
    pub fn safetensors(&self) -> Result<Vec<u8>> {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::serialize(tensors, None).map_err(|error| Error::malformed("trace", error))
    }
}

impl Rgb {
    /// The image at another (width, height), to the bit as Pillow resizes it; itself where it has this size.
    pub(crate) fn resized(self, (width, height): (u32, u32), filter: ImageFilter) -> Result<Self> {
        if (self.width, self.height) == (width, height) {
            return Ok(self);
        }
        let filter = match filter {
            ImageFilter::Bicubic => raster::Filter::Bicubic,
            ImageFilter::Lanczos => raster::Filter::Lanczos,
        };
        let pixels = self.data.as_chunks::<3>().0.to_vec();
        let from = raster::Raster::new(self.width as usize, self.height as usize, pixels)?;
        let data = raster::pillow_u8(&from, width as usize, height as usize, filter)?.pixels.into_flattened();
        Ok(Self { width, height, data })
    }

    /// The bytes of each of some images `(images, 3, height, width)` in [−1, 1].
    pub(super) fn of(images: &Tensor) -> Result<Vec<Self>> {
        let (_, channels, height, width) = images.dims4()?;
        check_finite(images, "pixels", || "decoding".to_owned())?;
        let (values, pixels) = (images.flatten_all()?.to_vec1::<f32>()?, height * width);
        let bytes = |planes: &[f32]| {
            let mut data = vec![0u8; pixels * channels];
            for (c, plane) in planes.chunks_exact(pixels).enumerate() {
                for (i, &v) in plane.iter().enumerate() {
                    // As diffusers: to [0, 1], clamp, times 255, round (ties to even).
                    data[i * channels + c] = ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
                }
            }
            Rgb { width: width as u32, height: height as u32, data }
        };
        Ok(values.chunks_exact(pixels * channels).map(bytes).collect())
    }

    /// The bytes of one image `(1, 3, height, width)` in [−1, 1].
    #[cfg(test)]
    pub(crate) fn of_one(image: &Tensor) -> Result<Self> {
        Ok(Self::of(image)?.remove(0))
    }

    /// The image as `(1, 3, height, width)` in [−1, 1].
    pub(super) fn tensor(&self) -> Result<Tensor> {
        let (h, w) = (self.height as usize, self.width as usize);
        let values: Vec<f32> = self.data.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
        Ok(Tensor::from_vec(values, (1, h, w, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
