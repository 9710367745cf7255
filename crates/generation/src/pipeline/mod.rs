//! From request to image: the only folder that sees all parts.

mod blueprint;
mod digest;
mod guidance;
mod published;
mod request;
mod texts;
mod travel;
mod upscaler;
mod views;
mod words;

pub use blueprint::{Blueprint, Ending};
pub use request::{Injected, Request, Rgb, Seeding, SizeConditioning, Trace};
pub(crate) use upscaler::Enlarging;
pub use upscaler::Upscaler;

use crate::checkpoint::{Dtype, LoadOptions};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::journey::Stage;
use crate::methods::Method;
use crate::noise::Generator;
use crate::sampler::Schedule;
use crate::step::Step;
use crate::text::TextEncoder;
use crate::unet::UNet;
use crate::vae::{Vae, VaeDecode};
use crate::weights::first_not_finite;
use candle_core::Tensor;
use digest::digest;
use scalebench_kernels::in_pool;
use std::collections::hash_map::{Entry, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use texts::Texts;
use travel::Travel;

/// In a motion adapter's folder, if it was trained on another schedule than AnimateDiff's.
const ADAPTER_SCHEDULE: &str = "scheduler/scheduler_config.json";

/// A stage of a run and the steps that are made in it.
///
/// Example: [`Blueprint`](crate::Blueprint).
#[derive(Debug, Clone, PartialEq)]
pub struct StageSteps {
    /// The stage.
    pub stage: Stage,
    /// What happens in each, in order.
    pub steps: Vec<Step>,
}

/// A loaded checkpoint.
///
/// ```
/// use scalebench_generation::{Dtype, Injected, LoadOptions, Method, Pipeline, Rgb};
/// # use scalebench_generation::{Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
/// # let request = Request {
/// #     prompt: "pizza".to_owned(),
/// #     negative_prompt: String::new(),
/// #     width: 64,
/// #     height: 64,
/// #     steps: 1,
/// #     sampler: Sampler::Ddim,
/// #     schedule: ScheduleOptions::default(),
/// #     guidance_scale: 3.5,
/// #     guidance_rescale: 0.0,
/// #     eta: 0.0,
/// #     seed: 0,
/// #     size_conditioning: SizeConditioning::Target,
/// #     vae_decode: VaeDecode::Whole,
/// #     seeding: Seeding::PerImage,
/// #     frames: 1,
/// # };
/// let options = LoadOptions { dtype: Dtype::F32, ..LoadOptions::default() };
/// let pipeline = Pipeline::load_with("../../datasets/pocket".as_ref(), &options)?;
/// assert_eq!((pipeline.digest().len(), pipeline.dtype(), pipeline.overflow(&request.prompt)?), (64, Dtype::F32, ""));
/// // From here on the text encoder takes no memory.
/// pipeline.embed_ahead([&request])?;
/// // One step at the training size, 64 × 64. However it is asked for, the image is the same.
/// let method = Method::direct(pipeline.sites());
/// let image: Rgb = pipeline.generate(&request, &method, None)?;
/// assert_eq!(pipeline.generate_batch(&[&request], &method)?, [image.clone()]);
/// assert_eq!(pipeline.generate_frames(&request, &method, &Injected::default(), None)?, [image.clone()]);
/// assert_eq!(pipeline.first_steps(&request, &method, 1, None)?, [image.clone()]);
/// assert_eq!(pipeline.reconstruct(&image)?.data.len(), 64 * 64 * 3);
/// // The decoder's last map has more channels than the image.
/// assert!(pipeline.largest_map(&request) > 4 * 64 * 64 * 3);
/// assert!(pipeline.estimate_seconds(&request, &method)? > 0.0);
/// # Ok::<(), scalebench_generation::Error>(())
/// ```
pub struct Pipeline {
    blueprint: Blueprint,
    texts: Texts,
    pub(crate) unet: UNet,
    pub(crate) vae: Vae,
    digest: String,
    dtype: Dtype,
}

/// What is known of a checkpoint without its weights is known of it with them.
impl std::ops::Deref for Pipeline {
    type Target = Blueprint;

    fn deref(&self) -> &Blueprint {
        &self.blueprint
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Loads a diffusers folder of the Stable Diffusion 1.x, 2.x or XL layout.
    /// Example: [`Upscaler`](crate::Upscaler).
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_with(folder, &LoadOptions::default())
    }

    /// [`load`](Self::load) with a choice of files and precision.
    /// Example: [`Pipeline`].
    pub fn load_with(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let text = TextEncoder::open(folder, options)?;
        let unet = UNet::open(&folder.join("unet"), options)?;
        let vae = Vae::open(&folder.join("vae"), options)?;
        let schedule = Self::schedule(folder, options)?;
        let wrong = |reason: String| Err(Error::malformed(folder.join("unet").join("config.json"), reason));
        if text.width() != unet.config.cross_attention_dim {
            let found = unet.config.cross_attention_dim;
            return wrong(format!("`cross_attention_dim` is {found}, expected the text encoders' {}", text.width()));
        }
        let (pooled, expected) = (text.pooled_width(), unet.config.added.map(|a| a.pooled_width));
        if expected.is_some() && pooled != expected {
            let found = pooled.map_or("none".to_owned(), |n| n.to_string());
            return wrong(format!(
                "`projection_class_embeddings_input_dim` leaves {} for a pooled text embedding, expected the checkpoint's: {found}",
                expected.unwrap_or(0)
            ));
        }
        check_latents(folder, &unet, &vae)?;
        if let Some(classes) = unet.config.classes {
            return wrong(format!(
                "`num_class_embeds` is {classes}, expected none; a checkpoint that enlarges images belongs into a method's `upscaler`"
            ));
        }
        let texts = Texts::new(folder, options, text)?;
        let config = |component: &str| Ok::<_, Error>(Config::open(&folder.join(component).join("config.json"))?.value());
        let blueprint = Blueprint::new((&unet, &vae), schedule, config("unet")?, config("vae")?);
        Ok(Self { blueprint, texts, unet, vae, digest: digest(folder, options, &["scheduler"])?, dtype: options.dtype })
    }

    /// The checkpoint's schedule. A motion adapter's own comes first; one without was trained as AnimateDiff's were, on betas that grow
    /// evenly.
    fn schedule(folder: &Path, options: &LoadOptions) -> Result<Schedule> {
        let own = |folder: &Path| folder.join("scheduler").join("scheduler_config.json");
        match &options.motion_adapter {
            None => Schedule::open(&own(folder)),
            Some(adapter) if adapter.join(ADAPTER_SCHEDULE).exists() => Schedule::open(&adapter.join(ADAPTER_SCHEDULE)),
            Some(_) => Ok(Schedule::open(&own(folder))?.with_linear_betas()),
        }
    }

    /// Hash (BLAKE3, hex) of every file that determines the checkpoint's output.
    /// Example: [`Pipeline`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Precision that the weights were rounded to.
    /// Example: [`Pipeline`].
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The end of `prompt` that does not fit into the text encoder's tokens and is not seen; empty if
    /// all is.
    /// Example: [`Pipeline`].
    pub fn overflow<'a>(&self, prompt: &'a str) -> Result<&'a str> {
        self.texts.tokenizer.overflow(prompt)
    }

    /// Embeds the texts of requests ahead of them and drops the text encoders, so that their weights are
    /// not held beside the U-Net's. Embeddings made ahead earlier are forgotten. A request with another
    /// text loads the encoders again.
    /// Example: [`Pipeline`].
    pub fn embed_ahead<'a>(&self, requests: impl IntoIterator<Item = &'a Request>) -> Result<()> {
        let mut embedded = HashMap::new();
        for request in requests {
            for (text, negative) in [(&request.prompt, false), (&request.negative_prompt, true)] {
                if let Entry::Vacant(entry) = embedded.entry((text.clone(), negative)) {
                    entry.insert(self.texts.embed(text, negative)?);
                }
            }
        }
        *self.texts.embedded.lock().unwrap_or_else(PoisonError::into_inner) = embedded;
        *self.texts.encoder.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Generates one image.
    /// Example: [`Pipeline`].
    pub fn generate(&self, request: &Request, method: &Method, trace: Option<&mut Trace>) -> Result<Rgb> {
        self.generate_with(request, method, &Injected::default(), trace)
    }

    /// [`generate`](Self::generate) with randomness from outside where it is given.
    pub(crate) fn generate_with(&self, request: &Request, method: &Method, injected: &Injected, trace: Option<&mut Trace>) -> Result<Rgb> {
        if request.frames != 1 {
            return Err(Error::Request { key: "frames", found: request.frames.to_string(), expected: "1 of an image".into() });
        }
        Ok(self.generate_frames(request, method, injected, trace)?.remove(0))
    }

    /// Generates one video: its frames, in order. Initial noise is drawn as `(1, c, frames, h, w)`; the layers over pixels see frames
    /// as images, so that a method does to every frame what it does to an image.
    /// Example: [`Pipeline`].
    pub fn generate_frames(
        &self,
        request: &Request,
        method: &Method,
        injected: &Injected,
        mut trace: Option<&mut Trace>,
    ) -> Result<Vec<Rgb>> {
        in_pool(|| {
            let latents = Travel::new(self, &[request], method, injected, trace.as_deref_mut())?.arrive()?;
            let frames = self.timed_decode(&latents, request.vae_decode, trace.as_deref_mut())?;
            self.all_finished(frames, request, method, usize::MAX, trace)
        })
    }

    /// The first `n` steps of every stage alone, and of the upscaler if there is one, decoded: for timing.
    /// Example: [`Pipeline`].
    pub fn first_steps(&self, request: &Request, method: &Method, n: usize, mut trace: Option<&mut Trace>) -> Result<Vec<Rgb>> {
        in_pool(|| {
            let latents = Travel::new(self, &[request], method, &Injected::default(), trace.as_deref_mut())?.only_steps(n).arrive()?;
            let frames = self.timed_decode(&latents, request.vae_decode, trace.as_deref_mut())?;
            self.all_finished(frames, request, method, n, trace)
        })
    }

    /// An image as it was decoded, enlarged if the method's journey ends so. The upscaler makes `limit` steps at most.
    fn finished(&self, image: Rgb, request: &Request, method: &Method, limit: usize, mut trace: Option<&mut Trace>) -> Result<Rgb> {
        let Some(Ending { finish, upscaler, .. }) = self.ending(request, method)? else { return Ok(image) };
        let start = Instant::now();
        let target = (request.width, request.height);
        let Some(upscaling) = &finish.upscaler else {
            let image = image.resized(target, finish.filter)?;
            if let Some(trace) = trace {
                trace.seconds.push(("enlarge".into(), start.elapsed().as_secs_f64()));
            }
            return Ok(image);
        };
        let Some((upscaler, sizes)) = upscaler else {
            let reason = format!("enlarges by `{}`, expected that it was lent to the pipeline", upscaling.checkpoint);
            return Err(Error::method(method.name(), reason));
        };
        let mut image = image;
        for size in sizes {
            let enlarging = Enlarging {
                prompt: &request.prompt,
                negative_prompt: &request.negative_prompt,
                seed: request.seed,
                settings: upscaling,
                limit,
            };
            image = upscaler.enlarge(&image.resized(size, finish.filter)?, &enlarging, trace.as_deref_mut())?;
        }
        image.resized(target, finish.filter)
    }

    /// The same of every frame, each by itself.
    fn all_finished(
        &self,
        frames: Vec<Rgb>,
        request: &Request,
        method: &Method,
        limit: usize,
        mut trace: Option<&mut Trace>,
    ) -> Result<Vec<Rgb>> {
        frames.into_iter().map(|frame| self.finished(frame, request, method, limit, trace.as_deref_mut())).collect()
    }

    /// Lends a network to methods that enlarge by the checkpoint of this name.
    /// Example: [`Upscaler`](crate::Upscaler).
    pub fn lend_upscaler(&mut self, checkpoint: &str, upscaler: Arc<Upscaler>) {
        self.blueprint.lend_upscaler(checkpoint, upscaler);
    }

    fn timed_decode(&self, latents: &Tensor, how: VaeDecode, trace: Option<&mut Trace>) -> Result<Vec<Rgb>> {
        let start = Instant::now();
        let images = (0..latents.dim(0)?).map(|i| self.decode(&latents.narrow(0, i, 1)?, how)).collect();
        if let Some(trace) = trace {
            trace.seconds.push(("decode".into(), start.elapsed().as_secs_f64()));
        }
        images
    }

    /// Images of several requests at once, each the same as [`generate`](Self::generate) makes: on a GPU small images are
    /// faster together. The requests may differ in prompts, seeds and seeding alone. Videos go one by one, by
    /// [`generate_frames`](Self::generate_frames).
    /// Example: [`Pipeline`].
    pub fn generate_batch(&self, requests: &[&Request], method: &Method) -> Result<Vec<Rgb>> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        for request in requests {
            let Request { prompt, negative_prompt, seed, seeding, .. } = (*request).clone();
            if (Request { prompt, negative_prompt, seed, seeding, ..(*first).clone() }) != **request {
                let (found, expected) = ("different ones".to_owned(), "requests that differ in prompts and seeds alone".to_owned());
                return Err(Error::Request { key: "batch", found, expected });
            }
        }
        if method.rolls_dice() && requests.iter().any(|request| request.seed != first.seed) {
            return requests.iter().map(|request| self.generate(request, method, None)).collect();
        }
        if first.frames != 1 {
            return Err(Error::Request { key: "frames", found: first.frames.to_string(), expected: "1 of images".into() });
        }
        in_pool(|| {
            let latents = Travel::new(self, requests, method, &Injected::default(), None)?.arrive()?;
            let images = match first.vae_decode {
                VaeDecode::Whole => Rgb::of(&self.vae.decode(&(latents / self.vae.scaling_factor)?)?)?,
                _ => (0..requests.len()).map(|i| self.decode(&latents.narrow(0, i, 1)?, first.vae_decode)).collect::<Result<_>>()?,
            };
            images.into_iter().zip(requests).map(|(image, request)| self.finished(image, request, method, usize::MAX, None)).collect()
        })
    }

    /// Bytes of the largest map that making this request's image computes, the decoder's last one. Beside the weights it takes a few
    /// times as much memory.
    /// Example: [`Pipeline`].
    pub fn largest_map(&self, request: &Request) -> usize {
        let (height, width) = self.latent_size(request);
        size_of::<f32>() * self.vae.largest_map(height, width)
    }

    /// Seconds that an image of this request takes here: one step of every stage is timed after a warm-up, and
    /// the decoder once. Steps differ in cost where the method changes over time, so each timed step's
    /// evaluations of the network are weighed against those of its stage.
    /// Example: [`Pipeline`].
    pub fn estimate_seconds(&self, request: &Request, method: &Method) -> Result<f64> {
        self.first_steps(request, method, 1, None)?;
        let mut trace = Trace::of_times();
        self.first_steps(request, method, 1, Some(&mut trace))?;
        let of = |part: &'static str| trace.seconds.iter().filter(move |(name, _)| name == part).map(|(_, seconds)| *seconds);
        let mut seconds: f64 = of("decode").chain(of("enlarge")).chain(of("upscale decode")).sum();
        let upscaling = self.journey(request, method)?.finish.and_then(|finish| finish.upscaler);
        seconds += of("upscale step 0").sum::<f64>() * upscaling.map_or(0.0, |upscaling| upscaling.steps as f64);
        let of_base = trace.seconds.iter().filter(|(name, _)| name.contains("step ") && !name.starts_with("upscale"));
        let mut timed = of_base.map(|(_, seconds)| *seconds);
        for StageSteps { stage, steps } in self.outline(request, method)? {
            let cost = |step: &Step| step.evaluations(stage.latent).map(|(n, (h, w), _)| (n * h * w) as f64).sum::<f64>();
            seconds += timed.next().unwrap_or(0.0) * steps.iter().map(cost).sum::<f64>() / cost(&steps[0]);
        }
        Ok(seconds)
    }

    fn decode(&self, latents: &Tensor, how: VaeDecode) -> Result<Rgb> {
        let image = self.vae.decode_as(&(latents / self.vae.scaling_factor)?, how)?;
        Ok(Rgb::of(&image)?.remove(0))
    }

    /// What the autoencoder makes of an image: its reconstruction through the latents' mean. The
    /// distance between the two is the best that any latent sampler could reach.
    /// Example: [`Pipeline`].
    pub fn reconstruct(&self, image: &Rgb) -> Result<Rgb> {
        let (mean, _) = self.vae.encode(&image.tensor()?)?;
        self.decode(&(mean * self.vae.scaling_factor)?, VaeDecode::Whole)
    }
}

/// Refuses a U-Net and an autoencoder that do not speak of the same latents.
fn check_latents(folder: &Path, unet: &UNet, vae: &Vae) -> Result<()> {
    let expected = vae.latent_channels();
    for (key, found) in [("in_channels", unet.config.in_channels), ("out_channels", unet.config.out_channels)] {
        if found != expected {
            let file = folder.join("unet").join("config.json");
            let expected = format!("the autoencoder's `latent_channels`, {expected}");
            return Err(Error::Config { file, key: key.to_owned(), found: found.to_string(), expected });
        }
    }
    Ok(())
}

/// Refuses numbers of a run that are none, or infinite: an image of them would be a plausible grey.
fn check_finite(x: &Tensor, tensor: &'static str, place: impl FnOnce() -> String) -> Result<()> {
    match first_not_finite(x)? {
        None => Ok(()),
        Some((_, value)) => Err(Error::NotFinite { place: place(), tensor, value }),
    }
}

/// Each request's own.
fn generators(requests: &[&Request]) -> Vec<Generator> {
    requests.iter().map(|request| Generator::new(request.seed)).collect()
}
