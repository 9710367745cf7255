//! Text and seed in, image out, under a tuning-free higher-resolution method.
//!
//! Reading order: [`site`] names the places where a method may act; [`plan`] says what may happen
//! there; [`step`] what of the latents is looked at, by which passes; [`journey`] at which sizes, one after
//! the other; a [`Method`] decides; the U-Net carries it out; a [`Sampler`] walks the noise levels;
//! [`Pipeline`] holds it together.
//!
//! The network names no method and methods hold no tensors. A plan that is plain everywhere leaves the
//! network bit-identical to the unmodified one. All tensors are f32; maps are
//! `(batch, channels, height, width)`.
//!
//! ```
//! use scalebench_generation::{MethodSpec, Pipeline, Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pipeline = Pipeline::load("../../datasets/pocket".as_ref())?;
//! let (width, height) = pipeline.native_size();
//! // Twice the trained sides, so four times the pixels.
//! let request = Request {
//!     prompt: "cat face".to_owned(),
//!     negative_prompt: String::new(),
//!     width: 2 * width,
//!     height: 2 * height,
//!     steps: 2,
//!     sampler: Sampler::Ddim,
//!     schedule: ScheduleOptions::default(),
//!     guidance_scale: 3.5,
//!     guidance_rescale: 0.0,
//!     eta: 0.0,
//!     seed: 0,
//!     size_conditioning: SizeConditioning::Target,
//!     vae_decode: VaeDecode::Whole,
//!     seeding: Seeding::PerImage,
//!     frames: 1,
//! };
//! let file = "../../experiments/methods/scalecrafter.yaml".as_ref();
//! let method = MethodSpec::parse(&std::fs::read_to_string(file)?, file)?.resolve("pocket", 4.0, pipeline.sites())?;
//! let image = pipeline.generate(&request, &method, None)?;
//! assert_eq!(image.data.len(), 128 * 128 * 3);
//! # Ok(())
//! # }
//! ```

mod bench;
mod checkpoint;
mod config;
mod dice;
mod disperse;
mod error;
pub mod journey;
mod layers;
mod methods;
mod names;
mod noise;
#[cfg(test)]
mod parity;
mod pipeline;
pub mod plan;
#[cfg(test)]
mod rivals;
mod sampler;
pub mod site;
pub mod step;
#[cfg(test)]
mod superres;
mod text;
mod unet;
mod vae;
#[cfg(test)]
mod videos;
mod weights;

pub use bench::{BenchStep, UNetBench, VaeBench};
pub use candle_core::{Device, Tensor};
pub use checkpoint::{Dtype, FAMILIES, Family, LoadOptions, locate, locate_here};
pub use disperse::{Dispersion, disperse};
pub use error::{Error, Result};
pub use methods::{Method, MethodSpec};
pub use pipeline::{Blueprint, Ending, Injected, Pipeline, Request, Rgb, Seeding, SizeConditioning, StageSteps, Trace, Upscaler};
pub use sampler::{Sampler, ScheduleOptions, Spacing};
pub use scalebench_kernels::{DeviceId, beside, on_gpu};
pub use site::SiteTable;
pub use vae::VaeDecode;
