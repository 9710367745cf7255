//! From request to image: the only folder that sees all parts.

mod digest;
mod guidance;
mod request;
mod texts;
mod travel;
mod views;
mod words;

pub use request::{Injected, Request, Rgb, Seeding, SizeConditioning, Trace};

use crate::checkpoint::{Dtype, FAMILIES, Family, LoadOptions};
use crate::error::{Error, Result};
use crate::journey::{Journey, Route, Stage};
use crate::methods::Method;
use crate::noise::Generator;
use crate::sampler::{Prediction, Sampler, Schedule, Walk};
use crate::site::SiteTable;
use crate::step::{Moment, Step};
use crate::text::{ClipTokenizer, TextEncoder};
use crate::unet::UNet;
use crate::vae::{Vae, VaeDecode};
use candle_core::Tensor;
use digest::digest;
use std::collections::hash_map::{Entry, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use texts::Texts;
use travel::Travel;

/// A stage of a run and the steps that are made in it.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSteps {
    /// The stage.
    pub stage: Stage,
    /// What happens in each, in order.
    pub steps: Vec<Step>,
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
        let journey = self.journey(request, method)?;
        for stage in &journey.stages {
            let walk = self.walk(request, stage)?;
            if stage.steps.first > 0 && request.sampler == Sampler::Pndm {
                let expected = "another sampler: pndm cannot begin in the middle of its run, as this method does";
                return Err(Error::Request { key: "sampler", found: "pndm".into(), expected: expected.into() });
            }
            let (first, end) = (stage.steps.first, stage.steps.end.unwrap_or(walk.timesteps().len()));
            if first >= end || end > walk.timesteps().len() {
                let reason = format!(
                    "has a stage of steps {first} to {end} in a run of {}, expected at least one step: raise `steps`",
                    walk.timesteps().len()
                );
                return Err(Error::method(method.name(), reason));
            }
        }
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
        let latents = Travel::new(self, &[request], method, injected, trace.as_deref_mut())?.arrive()?;
        self.timed_decode(&latents, request.vae_decode, trace)
    }

    /// The first `n` steps of every stage alone, decoded: for timing.
    pub fn first_steps(&self, request: &Request, method: &Method, n: usize, mut trace: Option<&mut Trace>) -> Result<Rgb> {
        let latents = Travel::new(self, &[request], method, &Injected::default(), trace.as_deref_mut())?.only_steps(n).arrive()?;
        self.timed_decode(&latents, request.vae_decode, trace)
    }

    fn timed_decode(&self, latents: &Tensor, how: VaeDecode, trace: Option<&mut Trace>) -> Result<Rgb> {
        let start = Instant::now();
        let image = self.decode(latents, how)?;
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
        if method.rolls_dice() && requests.iter().any(|request| request.seed != first.seed) {
            return requests.iter().map(|request| self.generate(request, method, None)).collect();
        }
        let latents = Travel::new(self, requests, method, &Injected::default(), None)?.arrive()?;
        match first.vae_decode {
            VaeDecode::Whole => Rgb::of(&self.vae.decode(&(latents / self.vae.scaling_factor)?)?),
            _ => (0..requests.len()).map(|i| self.decode(&latents.narrow(0, i, 1)?, first.vae_decode)).collect(),
        }
    }

    /// Seconds that an image of this request takes here: one step of every stage is timed after a warm-up, and
    /// the decoder once. Steps differ in cost where the method changes over time, so each timed step's
    /// evaluations of the network are weighed against those of its stage.
    pub fn estimate_seconds(&self, request: &Request, method: &Method) -> Result<f64> {
        self.first_steps(request, method, 1, None)?;
        let mut trace = Trace::of_times();
        self.first_steps(request, method, 1, Some(&mut trace))?;
        let mut seconds = trace.seconds.iter().filter(|(name, _)| name == "decode" || name == "enlarge").map(|(_, seconds)| seconds).sum();
        let mut timed = trace.seconds.iter().filter(|(name, _)| name.contains("step ")).map(|(_, seconds)| *seconds);
        for StageSteps { stage, steps } in self.outline(request, method)? {
            let cost = |step: &Step| step.evaluations(stage.latent).map(|(n, (h, w), _)| (n * h * w) as f64).sum::<f64>();
            seconds += timed.next().unwrap_or(0.0) * steps.iter().map(cost).sum::<f64>() / cost(&steps[0]);
        }
        Ok(seconds)
    }

    /// The stages and steps that [`generate`](Self::generate) would make at the request's size, in order.
    pub fn outline(&self, request: &Request, method: &Method) -> Result<Vec<StageSteps>> {
        self.check(request, method)?;
        let journey = self.journey(request, method)?;
        let of_stage = |s: usize| {
            let moments = self.moments(request, &journey, s, &self.walk(request, &journey.stages[s])?);
            let stage = journey.stages[s].clone();
            let steps = moments.iter().map(|at| self.step(method, &stage, at)).collect();
            Ok(StageSteps { stage, steps })
        };
        (0..journey.stages.len()).map(of_stage).collect()
    }

    /// One step of a stage.
    fn step(&self, method: &Method, stage: &Stage, at: &Moment) -> Step {
        if stage.plain { Step::plain(self.sites(), at) } else { method.step(self.sites(), at) }
    }

    fn journey(&self, request: &Request, method: &Method) -> Result<Journey> {
        let latent = self.latent_size(request);
        let walk = self.walk(request, &Stage::new(latent))?;
        let (native, n_steps, alphas_cumprod) = (self.native_latent(), walk.timesteps().len(), walk.alphas_cumprod());
        Ok(method.journey(&Route { latent, native, n_steps, alphas_cumprod, guidance_scale: request.guidance_scale }))
    }

    fn walk(&self, request: &Request, stage: &Stage) -> Result<Walk> {
        let eta = stage.eta.unwrap_or(request.eta);
        self.schedule.walk_stage(request.sampler, stage.steps.of.unwrap_or(request.steps), eta, &request.schedule, &stage.steps)
    }

    /// The moments of the steps that are run in stage `s`.
    fn moments(&self, request: &Request, journey: &Journey, s: usize, walk: &Walk) -> Vec<Moment> {
        let stage = &journey.stages[s];
        let timesteps = walk.timesteps();
        let (first, end) = (stage.steps.first, stage.steps.end.unwrap_or(timesteps.len()));
        let moment = |index: usize| Moment {
            // Schedules count from the first step that is run.
            step: index - first,
            n_steps: timesteps.len(),
            timestep: timesteps[index],
            latent: stage.latent,
            native: self.native_latent(),
            guidance_scale: stage.guidance_scale.unwrap_or(request.guidance_scale),
            index,
            n_run: end - first,
            stage: s,
            n_stages: journey.stages.len(),
            previous: s.checked_sub(1).map(|before| journey.stages[before].latent),
            seed: request.seed,
            level: walk.level(index),
            alphas_cumprod: walk.alphas_cumprod(),
        };
        (first..end).map(moment).collect()
    }

    fn decode(&self, latents: &Tensor, how: VaeDecode) -> Result<Rgb> {
        let image = self.vae.decode_as(&(latents / self.vae.scaling_factor)?, how)?;
        Ok(Rgb::of(&image)?.remove(0))
    }

    /// What the autoencoder makes of an image: its reconstruction through the latents' mean. The
    /// distance between the two is the best that any latent sampler could reach.
    pub fn reconstruct(&self, image: &Rgb) -> Result<Rgb> {
        let (mean, _) = self.vae.encode(&image.tensor()?)?;
        self.decode(&(mean * self.vae.scaling_factor)?, VaeDecode::Whole)
    }
}

/// Each request's own.
fn generators(requests: &[&Request]) -> Vec<Generator> {
    requests.iter().map(|request| Generator::new(request.seed)).collect()
}
