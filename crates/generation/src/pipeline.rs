//! From request to image: the only file that sees all parts.

use crate::checkpoint::{Dtype, FAMILIES, Family, LoadOptions, weight_files};
use crate::error::{Error, Result};
use crate::methods::{Method, Sdedit};
use crate::noise::Generator;
use crate::plan::{Conditioning, Moment, Pass};
use crate::sampler::{Prediction, Sampler, Schedule, ScheduleOptions, Walk};
use crate::site::SiteTable;
use crate::text::{ClipTokenizer, Embedding, TextEncoder};
use crate::unet::{SIZE_NUMBERS, Told, UNet};
use crate::vae::{Vae, VaeDecode};
use candle_core::{Device, Tensor};
use scalebench_kernels as kernels;
use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What to generate. With the checkpoint and the method it determines the image.
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
}

/// How an image's noise follows from its seed.
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
    /// The next noise of `shape` `(1, c, h, w)`.
    fn draw(self, generator: &mut Generator, (_, c, h, w): (usize, usize, usize, usize)) -> Result<Tensor> {
        match self {
            Self::PerImage => Ok(generator.randn((1, c, h, w))?),
            Self::Batched { batch, row } => Ok(generator.randn((batch, c, h, w))?.narrow(0, row, 1)?.contiguous()?),
        }
    }
}

/// The `original_size` and `target_size` that SDXL is told (Podell et al. 2023, §2.2); the crop is
/// always at (0, 0).
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
#[derive(Debug, Clone, Default)]
pub struct Injected {
    /// Unit-normal initial latents, `(1, c, h, w)`.
    pub init_latents: Option<Tensor>,
    /// Step noise, `(steps, 1, c, h, w)`.
    pub step_noise: Option<Tensor>,
}

/// What is recorded on the way: the time that each stage took and, if wanted, tensors: `init_latents`, `noise`, `text.cond`, `text.uncond`, per step
/// `pass<j>.<i>`, `guided.<i>` and `latents.<i>`, and `final_latents`.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Seconds of each stage: `text`, `step <i>`, `decode`, in order.
    pub seconds: Vec<(String, f64)>,
    without_tensors: bool,
}

impl Trace {
    /// A trace of times only.
    pub fn of_times() -> Self {
        Self { without_tensors: true, ..Self::default() }
    }

    fn keep(&mut self, name: String, tensor: &Tensor) {
        if !self.without_tensors {
            self.tensors.insert(name, tensor.clone());
        }
    }

    /// Writes a safetensors file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let temporary = path.with_extension("tmp");
        let tensors = self.tensors.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        candle_core::safetensors::save(&tensors, &temporary)?;
        std::fs::rename(&temporary, path).map_err(|source| Error::Io { file: path.to_owned(), source })
    }
}

/// A loaded checkpoint.
pub struct Pipeline {
    texts: Texts,
    pub(crate) unet: UNet,
    pub(crate) vae: Vae,
    schedule: Schedule,
    digest: String,
    dtype: Dtype,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The text side: embeddings made ahead, and an encoder that is loaded when it is needed.
struct Texts {
    folder: PathBuf,
    options: LoadOptions,
    tokenizer: ClipTokenizer,
    encoder: Mutex<Option<Arc<TextEncoder>>>,
    /// By text, and whether it is the negative prompt.
    embedded: Mutex<HashMap<(String, bool), Embedding>>,
}

impl Texts {
    fn encoder(&self) -> Result<Arc<TextEncoder>> {
        let mut slot = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = &*slot {
            return Ok(encoder.clone());
        }
        let encoder = Arc::new(TextEncoder::open(&self.folder, &self.options)?);
        *slot = Some(encoder.clone());
        Ok(encoder)
    }

    fn embed(&self, text: &str, negative: bool) -> Result<Embedding> {
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(embedding) = embedded.get(&(text.to_owned(), negative)) {
            return Ok(embedding.clone());
        }
        drop(embedded);
        let encoder = self.encoder()?;
        if negative { encoder.embed_negative(text) } else { encoder.embed(text) }
    }
}

impl Pipeline {
    /// Loads a diffusers folder of the Stable Diffusion 1.x, 2.x or XL layout.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_with(folder, &LoadOptions::default())
    }

    /// [`load`](Self::load) with a choice of files and precision.
    pub fn load_with(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let text = TextEncoder::open(folder, options)?;
        let unet = UNet::open(&folder.join("unet"), options)?;
        let vae = Vae::open(&folder.join("vae"), options)?;
        let schedule = Schedule::open(&folder.join("scheduler").join("scheduler_config.json"))?;
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
        let texts = Texts {
            folder: folder.to_owned(),
            options: options.clone(),
            tokenizer: ClipTokenizer::open(&folder.join("tokenizer"))?,
            encoder: Mutex::new(Some(Arc::new(text))),
            embedded: Mutex::default(),
        };
        Ok(Self { texts, unet, vae, schedule, digest: digest(folder, options)?, dtype: options.dtype })
    }

    /// Hash (BLAKE3, hex) of every file that determines the checkpoint's output.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Precision that the weights were rounded to.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The family whose architecture this is, if it is a known one.
    pub fn family(&self) -> Option<&'static Family> {
        let name = match self.unet.config.family()? {
            "sd21" if self.schedule.prediction == Prediction::V => "sd21-768",
            name => name,
        };
        FAMILIES.iter().find(|f| f.name == name)
    }

    /// Where methods may act.
    pub fn sites(&self) -> &SiteTable {
        &self.unet.sites
    }

    /// Training (width, height) in pixels.
    pub fn native_size(&self) -> (u32, u32) {
        let side = (self.unet.native_side() * self.vae.factor) as u32;
        (side, side)
    }

    /// Pixels per latent, along one axis.
    pub fn vae_factor(&self) -> u32 {
        self.vae.factor as u32
    }

    /// The end of `prompt` that does not fit into the text encoder's tokens and is not seen; empty if
    /// all is.
    pub fn overflow<'a>(&self, prompt: &'a str) -> Result<&'a str> {
        self.texts.tokenizer.overflow(prompt)
    }

    /// Embeds the texts of requests ahead of them and drops the text encoders, so that their weights are
    /// not held beside the U-Net's. Embeddings made ahead earlier are forgotten. A request with another
    /// text loads the encoders again.
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

    fn native_latent(&self) -> (usize, usize) {
        let side = self.unet.native_side();
        (side, side)
    }

    fn latent_size(&self, request: &Request) -> (usize, usize) {
        (request.height as usize / self.vae.factor, request.width as usize / self.vae.factor)
    }

    /// Refuses what [`generate`](Self::generate) could not do, without doing anything.
    pub fn check(&self, request: &Request, method: &Method) -> Result<()> {
        let f = self.vae_factor();
        for (key, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || side % f != 0 {
                let expected = format!("a positive multiple of the autoencoder's factor {f}");
                return Err(Error::Request { key, found: side.to_string(), expected });
            }
        }
        let range = |key: &'static str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::Request { key, found: value.to_string(), expected: format!("a number from {low} to {high}") })
            }
        };
        range("guidance_scale", request.guidance_scale, 0.0, 1e3)?;
        range("guidance_rescale", request.guidance_rescale, 0.0, 1.0)?;
        self.walk(request)?;
        if let Seeding::Batched { batch, row } = request.seeding
            && row >= batch
        {
            return Err(Error::Request { key: "seeding", found: format!("row {row} of {batch}"), expected: "a row of the batch".into() });
        }
        method.check(self.latent_size(request), self.native_latent())
    }

    /// Generates one image.
    pub fn generate(&self, request: &Request, method: &Method, trace: Option<&mut Trace>) -> Result<Rgb> {
        self.generate_with(request, method, &Injected::default(), trace)
    }

    /// [`generate`](Self::generate) with randomness from outside where it is given.
    pub fn generate_with(&self, request: &Request, method: &Method, injected: &Injected, mut trace: Option<&mut Trace>) -> Result<Rgb> {
        let generators = &mut generators(&[request]);
        let latents = self.sample(&[request], method, injected, trace.as_deref_mut(), usize::MAX, generators)?;
        let start = Instant::now();
        let image = self.decode(&latents, request.vae_decode)?;
        if let Some(trace) = trace {
            trace.seconds.push(("decode".into(), start.elapsed().as_secs_f64()));
        }
        Ok(image)
    }

    /// Images of several requests at once, each the same as [`generate`](Self::generate) makes: on a GPU small images are
    /// faster together. The requests may differ in prompts, seeds and seeding alone.
    pub fn generate_batch(&self, requests: &[&Request], method: &Method) -> Result<Vec<Rgb>> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        for request in requests {
            let Request { prompt, negative_prompt, seed, seeding, .. } = (*request).clone();
            if (Request { prompt, negative_prompt, seed, seeding, ..(*first).clone() }) != **request {
                let (found, expected) = ("different ones".to_owned(), "requests that differ in prompts and seeds alone".to_owned());
                return Err(Error::Request { key: "batch", found, expected });
            }
        }
        let latents = self.sample(requests, method, &Injected::default(), None, usize::MAX, &mut generators(requests))?;
        match first.vae_decode {
            VaeDecode::Whole => rgb(&self.vae.decode(&(latents / self.vae.scaling_factor)?)?),
            _ => (0..requests.len()).map(|i| self.decode(&latents.narrow(0, i, 1)?, first.vae_decode)).collect(),
        }
    }

    /// Seconds that an image of this request takes here: one step is timed after a warm-up step, and
    /// the decoder once. Steps differ in cost where the method changes over time, so the timed step's
    /// passes are weighed against those of the whole run.
    pub fn estimate_seconds(&self, request: &Request, method: &Method) -> Result<f64> {
        self.check(request, method)?;
        let injected = Injected::default();
        let one_step = || self.sample(&[request], method, &injected, None, 1, &mut generators(&[request]));
        one_step()?;
        let start = Instant::now();
        let latents = one_step()?;
        let step = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.decode(&latents, request.vae_decode)?;
        let decode = start.elapsed().as_secs_f64();
        let moments = self.moments(request, self.walk(request)?.timesteps());
        let passes: Vec<usize> = moments.iter().map(|m| method.passes(self.sites(), m).len()).collect();
        Ok(step * passes.iter().sum::<usize>() as f64 / passes[0] as f64 + decode)
    }

    /// The passes of every step that [`generate`](Self::generate) would run at the request's size, in order.
    pub fn passes(&self, request: &Request, method: &Method) -> Result<Vec<Vec<Pass>>> {
        self.check(request, method)?;
        let walk = self.walk(request)?;
        let first = method.settings().sdedit.as_ref().map_or(0, |start| start.first_step(walk.timesteps().len()));
        let mut moments = self.moments(request, walk.timesteps()).split_off(first);
        moments.iter_mut().for_each(|moment| moment.step -= first);
        Ok(moments.iter().map(|moment| method.passes(self.sites(), moment)).collect())
    }

    fn walk(&self, request: &Request) -> Result<Walk> {
        self.schedule.walk(request.sampler, request.steps, request.eta, &request.schedule)
    }

    fn moments(&self, request: &Request, timesteps: &[f64]) -> Vec<Moment> {
        let moment = |(step, &timestep)| Moment {
            step,
            n_steps: timesteps.len(),
            timestep,
            latent: self.latent_size(request),
            native: self.native_latent(),
            guidance_scale: request.guidance_scale,
        };
        timesteps.iter().enumerate().map(moment).collect()
    }

    /// The sampler loop, stopped after `limit` steps: latents `(images, c, h, w)`. The requests, one for each image, with its
    /// generator, agree in all that is not an image's own. What is injected is a single image's.
    fn sample(
        &self,
        requests: &[&Request],
        method: &Method,
        injected: &Injected,
        mut trace: Option<&mut Trace>,
        limit: usize,
        generators: &mut [Generator],
    ) -> Result<Tensor> {
        let request = requests[0];
        for request in requests {
            self.check(request, method)?;
        }
        let (h, w) = self.latent_size(request);
        let mut walk = self.walk(request)?;
        let smaller = match &method.settings().sdedit {
            None => None,
            Some(start) => Some((start.first_step(walk.timesteps().len()), self.enlarged(requests, start, limit, generators)?)),
        };
        let shape = (1, self.unet.config.in_channels, h, w);
        let mut record = |name: String, tensor: &Tensor| {
            if let Some(trace) = trace.as_deref_mut() {
                trace.keep(name, tensor);
            }
        };
        let start = Instant::now();
        let mut stages = Vec::new();
        let texts = requests.iter().map(|r| self.texts.embed(&r.prompt, false)).collect::<Result<Vec<_>>>()?;
        let empties = requests.iter().map(|r| self.texts.embed(&r.negative_prompt, true)).collect::<Result<Vec<_>>>()?;
        record("text.cond".into(), &texts[0].hidden);
        record("text.uncond".into(), &empties[0].hidden);
        for (name, embedding) in [("text.cond_pooled", &texts[0]), ("text.uncond_pooled", &empties[0])] {
            if let Some(pooled) = &embedding.pooled {
                record(name.into(), pooled);
            }
        }

        stages.push(("text".to_owned(), start.elapsed().as_secs_f64()));
        let mut draw = || {
            let each = requests.iter().zip(&mut *generators).map(|(request, generator)| request.seeding.draw(generator, shape));
            Ok::<_, Error>(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?)
        };
        let drawn = draw()?;
        let mut latents = match &injected.init_latents {
            Some(given) => checked(given, &[shape.0, shape.1, h, w], "init_latents")?,
            None => drawn,
        };
        record("init_latents".into(), &latents);
        let mut moments = self.moments(request, walk.timesteps());
        let step_noise = match &injected.step_noise {
            Some(given) => Some(checked(given, &[moments.len(), shape.0, shape.1, h, w], "noise")?),
            None => None,
        };
        let first = smaller.as_ref().map_or(0, |(first, _)| *first);
        latents = match smaller {
            None => (latents * walk.initial_sigma())?,
            Some((first, clean)) => walk.add_noise(first, &clean, &latents)?,
        };
        // Schedules count from the first step that is run.
        let mut moments = moments.split_off(first);
        moments.iter_mut().for_each(|moment| moment.step -= first);
        let mut noises = Vec::new();
        for moment in moments.iter().take(limit) {
            let i = moment.step + first;
            let start = Instant::now();
            let passes = method.passes(self.sites(), moment);
            let shown = walk.scale_input(i, &latents)?;
            let mut told = |conditionings: &[Conditioning]| {
                let embeddings = conditionings.iter().flat_map(|conditioning| match conditioning {
                    Conditioning::Text => &texts,
                    Conditioning::Empty => &empties,
                });
                self.told(request, &embeddings.collect::<Vec<_>>())
            };
            let predictions = self.unet.predict(&shown, moment.timestep, &passes, &mut told)?;
            for (j, prediction) in predictions.iter().enumerate() {
                record(format!("pass{j}.{i}"), prediction);
            }
            let guided = combine(&passes, &predictions, request.guidance_rescale)?;
            record(format!("guided.{i}"), &guided);
            let noise = match &step_noise {
                Some(given) => Some(given.get(i)?),
                None if walk.draws_noise() => Some(draw()?),
                None => None,
            };
            latents = walk.step(i, &latents, &guided, noise.as_ref())?;
            record(format!("latents.{i}"), &latents);
            stages.push((format!("step {i}"), start.elapsed().as_secs_f64()));
            noises.extend(noise);
        }
        if !noises.is_empty() {
            record("noise".into(), &Tensor::stack(&noises, 0)?);
        }
        record("final_latents".into(), &latents);
        if let Some(trace) = trace {
            trace.seconds.extend(stages);
        }
        Ok(latents)
    }

    /// Clean latents of smaller images, enlarged to the requests' size: what an SDEdit run starts from.
    fn enlarged(&self, requests: &[&Request], start: &Sdedit, limit: usize, generators: &mut [Generator]) -> Result<Tensor> {
        let request = requests[0];
        let (h, w) = start.smaller(self.latent_size(request));
        let f = self.vae.factor;
        let small = |request: &&Request| Request { width: (w * f) as u32, height: (h * f) as u32, eta: 0.0, ..(*request).clone() };
        let small: Vec<Request> = requests.iter().map(small).collect();
        let plain = Method::direct(self.sites());
        let latents = self.sample(&small.iter().collect::<Vec<_>>(), &plain, &Injected::default(), None, limit, generators)?;
        let image = self.vae.decode(&(latents / self.vae.scaling_factor)?)?.clamp(-1f32, 1f32)?;
        let image = kernels::enlarge_bicubic(&image, request.height as usize, request.width as usize)?.clamp(-1f32, 1f32)?;
        let (mean, _) = self.vae.encode(&image)?;
        Ok((mean * self.vae.scaling_factor)?)
    }

    /// What the network is told in a batch with these embeddings.
    fn told(&self, request: &Request, embeddings: &[&Embedding]) -> Result<Told> {
        let text = Tensor::cat(&embeddings.iter().map(|e| &e.hidden).collect::<Vec<_>>(), 0)?;
        if self.unet.config.added.is_none() {
            return Ok(Told { text, added: None });
        }
        let pooled: Vec<&Tensor> = embeddings.iter().filter_map(|e| e.pooled.as_ref()).collect();
        let (width, height) = match request.size_conditioning {
            SizeConditioning::Target => (request.width, request.height),
            SizeConditioning::Base => self.native_size(),
        };
        let (height, width) = (height as f32, width as f32);
        let sizes: Vec<f32> = [height, width, 0.0, 0.0, height, width].repeat(embeddings.len());
        let sizes = Tensor::from_vec(sizes, (embeddings.len(), SIZE_NUMBERS), &Device::Cpu)?;
        Ok(Told { text, added: Some((Tensor::cat(&pooled, 0)?, sizes)) })
    }

    fn decode(&self, latents: &Tensor, how: VaeDecode) -> Result<Rgb> {
        let image = self.vae.decode_as(&(latents / self.vae.scaling_factor)?, how)?;
        Ok(rgb(&image)?.remove(0))
    }

    /// What the autoencoder makes of an image: its reconstruction through the latents' mean. The
    /// distance between the two is the best that any latent sampler could reach.
    pub fn reconstruct(&self, image: &Rgb) -> Result<Rgb> {
        let (h, w) = (image.height as usize, image.width as usize);
        let values: Vec<f32> = image.data.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
        let x = Tensor::from_vec(values, (1, h, w, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?;
        let (mean, _) = self.vae.encode(&x)?;
        self.decode(&(mean * self.vae.scaling_factor)?, VaeDecode::Whole)
    }
}

/// The bytes of each of some images `(images, channels, height, width)`.
fn rgb(images: &Tensor) -> Result<Vec<Rgb>> {
    let (_, channels, height, width) = images.dims4()?;
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

/// Each request's own.
fn generators(requests: &[&Request]) -> Vec<Generator> {
    requests.iter().map(|request| Generator::new(request.seed)).collect()
}

fn checked(tensor: &Tensor, shape: &[usize], key: &'static str) -> Result<Tensor> {
    if tensor.dims() != shape {
        return Err(Error::Request { key, found: format!("of shape {:?}", tensor.dims()), expected: format!("shape {shape:?}") });
    }
    Ok(tensor.to_dtype(candle_core::DType::F32)?)
}

/// The weighted sum of the passes, partly rescaled to the spread of the text prediction.
fn combine(passes: &[Pass], predictions: &[Tensor], rescale: f64) -> Result<Tensor> {
    let mut guided: Option<Tensor> = None;
    for (pass, prediction) in passes.iter().zip(predictions) {
        let term = (prediction * pass.weight)?;
        guided = Some(match guided {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    let guided = guided.ok_or_else(|| Error::method("", "a step without passes"))?;
    let text = passes.iter().position(|p| p.conditioning == Conditioning::Text);
    match text {
        Some(text) if rescale > 0.0 => {
            // Each image to its own spread.
            let one = |i: usize| -> Result<Tensor> {
                let (guided, text) = (guided.narrow(0, i, 1)?, predictions[text].narrow(0, i, 1)?);
                let rescaled = (&guided * (deviation(&text)? / deviation(&guided)?))?;
                Ok(((rescaled * rescale)? + (guided * (1.0 - rescale))?)?)
            };
            Ok(Tensor::cat(&(0..guided.dim(0)?).map(one).collect::<Result<Vec<_>>>()?, 0)?)
        }
        _ => Ok(guided),
    }
}

/// Sample standard deviation over all elements.
fn deviation(x: &Tensor) -> Result<f64> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    Ok((values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// Hashes names and contents of the files that a pipeline reads, in a fixed order.
fn digest(folder: &Path, options: &LoadOptions) -> Result<String> {
    let mut files: Vec<PathBuf> = vec!["scheduler/scheduler_config.json".into()];
    for suffix in ["", "_2"] {
        let encoder = format!("text_encoder{suffix}");
        if !suffix.is_empty() && !folder.join(&encoder).is_dir() {
            continue;
        }
        files.extend(["vocab.json", "merges.txt", "tokenizer_config.json"].map(|f| Path::new(&format!("tokenizer{suffix}")).join(f)));
        files.push(Path::new(&encoder).join("config.json"));
        files.extend(relative(folder, weight_files(&folder.join(&encoder), "model", options.variant.as_deref())?));
    }
    for component in ["unet", "vae"] {
        files.push(Path::new(component).join("config.json"));
        files.extend(relative(folder, weight_files(&folder.join(component), "diffusion_pytorch_model", options.variant.as_deref())?));
    }
    let mut hasher = blake3::Hasher::new();
    for name in files {
        let file = folder.join(&name);
        hasher.update(name.to_string_lossy().replace('\\', "/").as_bytes());
        let mut one = blake3::Hasher::new();
        let source = std::fs::File::open(&file).map_err(|source| Error::Io { file: file.clone(), source })?;
        one.update_reader(source).map_err(|source| Error::Io { file: file.clone(), source })?;
        hasher.update(one.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn relative(folder: &Path, files: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    files.into_iter().map(move |file| file.strip_prefix(folder).map(Path::to_owned).unwrap_or(file))
}
