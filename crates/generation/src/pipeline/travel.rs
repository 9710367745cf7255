//! A run: the stages of a journey, one after the other.

use super::request::{DrawOrder, Injected, Request, SizeConditioning, Trace, as_videos};
use super::texts::Told;
use super::views::{Look, low_pass, restored};
use super::words::KeptAttention;
use super::{Pipeline, check_finite, generators};
use crate::dice::Dice;
use crate::error::{Error, Result};
use crate::journey::{Encode, End, Enlarge, Filter, Journey, Stage, Start, Through};
use crate::methods::Method;
use crate::noise::Generator;
use crate::sampler::Walk;
use crate::step::{Band, Blend, Moment, Target};
use crate::text::Embedding;
use crate::unet::MapStore;
use candle_core::{DType, Tensor};
use scalebench_kernels as kernels;
use std::collections::BTreeMap;
use std::time::Instant;

/// The random numbers of a run: drawn in order, or given.
struct Noise<'a> {
    requests: &'a [&'a Request],
    generators: Vec<Generator>,
    given: std::slice::Iter<'a, Tensor>,
    /// Of the noise of steps.
    order: DrawOrder,
}

impl Noise<'_> {
    /// Unit-normal latents of every image, for `shape` `(frames, c, h, w)` of one.
    fn draw(&mut self, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        self.draw_in(shape, DrawOrder::Channels)
    }

    /// The same for a step.
    fn draw_for_step(&mut self, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        self.draw_in(shape, self.order)
    }

    fn draw_in(&mut self, shape: (usize, usize, usize, usize), order: DrawOrder) -> Result<Tensor> {
        if let Some(given) = self.given.next() {
            return frames_of(given, shape, "draws");
        }
        let each = self.requests.iter().zip(&mut self.generators).map(|(request, generator)| request.seeding.draw(generator, shape, order));
        Ok(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// What a stage's blends refer to.
struct Reference {
    /// The enlarged start, `(images, c, h, w)`.
    clean: Tensor,
    /// The image that it is the latents of, if it went through one: `(images, 3, height, width)` in [−1, 1], or a little beyond where it
    /// is not clamped.
    image: Option<Tensor>,
    /// The unit noise that it was noised with.
    noise: Tensor,
}

/// A run on its way. The requests, one for each image, agree in all that is not an image's own. What is injected is a
/// single image's.
pub(super) struct Travel<'a> {
    pipeline: &'a Pipeline,
    requests: &'a [&'a Request],
    method: &'a Method,
    injected: &'a Injected,
    trace: Option<&'a mut Trace>,
    journey: Journey,
    noise: Noise<'a>,
    texts: Vec<Embedding>,
    empties: Vec<Embedding>,
    /// No stage makes more steps.
    limit: usize,
    /// The first stage's result, for stages that take its mean and deviation.
    first: Option<Tensor>,
    /// Maps that passes keep for later ones.
    maps: MapStore,
    /// Attention to the prompt that stages kept.
    attention: KeptAttention,
    /// What the network was shown in the stage before, by step, as far as this stage looks back.
    before: BTreeMap<usize, Tensor>,
    /// The same of this stage, for the next one, if that looks back.
    seen: BTreeMap<usize, Tensor>,
    remembers: bool,
}

impl<'a> Travel<'a> {
    pub(super) fn new(
        pipeline: &'a Pipeline,
        requests: &'a [&'a Request],
        method: &'a Method,
        injected: &'a Injected,
        trace: Option<&'a mut Trace>,
    ) -> Result<Self> {
        for request in requests {
            pipeline.check(request, method)?;
        }
        let start = Instant::now();
        let texts = requests.iter().map(|r| pipeline.texts.embed(&r.prompt, false)).collect::<Result<Vec<_>>>()?;
        let empties = requests.iter().map(|r| pipeline.texts.embed(&r.negative_prompt, true)).collect::<Result<Vec<_>>>()?;
        // diffusers' pipeline of ModelScope makes each step with frames as items of a batch, AnimateDiff's with whole videos.
        let order = if pipeline.unet.config.volume { DrawOrder::Frames } else { DrawOrder::Channels };
        let noise = Noise { requests, generators: generators(requests), given: injected.draws.iter(), order };
        let journey = pipeline.journey(requests[0], method)?;
        let mut travel = Self {
            pipeline,
            requests,
            method,
            injected,
            trace,
            journey,
            noise,
            texts,
            empties,
            limit: usize::MAX,
            first: None,
            maps: MapStore::default(),
            attention: KeptAttention::default(),
            before: BTreeMap::new(),
            seen: BTreeMap::new(),
            remembers: false,
        };
        travel.record_texts();
        travel.time("text".into(), start);
        Ok(travel)
    }

    /// Stops every stage after `n` steps.
    pub(super) fn only_steps(mut self, n: usize) -> Self {
        self.limit = n;
        self
    }

    /// Frames of each video; 1 of images.
    fn frames(&self) -> usize {
        self.requests[0].frames
    }

    /// The final latents `(images, c, h, w)`, of videos `(videos · frames, c, h, w)`.
    pub(super) fn arrive(mut self) -> Result<Tensor> {
        let mut latents = None;
        for s in 0..self.journey.stages.len() {
            let stage = self.journey.stages[s].clone();
            let mut found = self.stage(s, &stage, latents.as_ref())?;
            self.before = std::mem::take(&mut self.seen);
            match &self.first {
                Some(first) if stage.normalised => found = restored(&found, first)?,
                Some(_) => {}
                None => self.first = Some(found.clone()),
            }
            latents = Some(found);
        }
        let latents = latents.expect("a journey has stages");
        self.record_maps("final_latents".into(), &latents)?;
        Ok(latents)
    }

    fn record(&mut self, name: String, tensor: &Tensor) {
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.keep(name, tensor);
        }
    }

    /// [`record`](Self::record) of latents, or of what is predicted from them.
    fn record_maps(&mut self, name: String, maps: &Tensor) -> Result<()> {
        if self.trace.is_some() {
            self.record(name, &as_videos(maps, self.frames())?);
        }
        Ok(())
    }

    fn time(&mut self, name: String, since: Instant) {
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.seconds.push((name, since.elapsed().as_secs_f64()));
        }
    }

    fn record_texts(&mut self) {
        for (name, embedding) in [("text.cond", self.texts[0].clone()), ("text.uncond", self.empties[0].clone())] {
            self.record(name.into(), &embedding.hidden);
            if let Some(pooled) = &embedding.pooled {
                self.record(format!("{name}_pooled"), pooled);
            }
        }
    }

    /// What tensors and times of stage `s` begin with: nothing in the last stage.
    fn prefix(&self, s: usize, between: &str) -> String {
        if s + 1 == self.journey.stages.len() { String::new() } else { format!("stage{s}{between}") }
    }

    /// Stage `s` from what the stage before handed on.
    fn stage(&mut self, s: usize, stage: &Stage, before: Option<&Tensor>) -> Result<Tensor> {
        let (pipeline, request) = (self.pipeline, self.requests[0]);
        let mut walk = pipeline.walk(request, stage)?;
        let moments = pipeline.moments(request, &self.journey, s, &walk);
        let shape = (request.frames, pipeline.unet.config.in_channels, stage.latent.0, stage.latent.1);
        let last = s + 1 == self.journey.stages.len();
        let prefix = self.prefix(s, ".");

        let start = Instant::now();
        let enlarged = match (&stage.start, before) {
            (Start::Enlarged(enlarge), Some(before)) => Some(self.enlarged(s, stage, enlarge, before)?),
            _ => None,
        };
        if enlarged.is_some() {
            self.time("enlarge".into(), start);
        }
        let drawn = self.noise.draw(shape)?;
        let unit = match &self.injected.init_latents {
            Some(given) if last => frames_of(given, shape, "init_latents")?,
            _ => drawn,
        };
        self.record_maps(format!("{prefix}init_latents"), &unit)?;
        self.remembers = self.is_looked_back_at(s)?;
        let step_noise = match &self.injected.step_noise {
            Some(given) if last => {
                let (steps, given) = (walk.timesteps().len(), given);
                if given.dim(0)? != steps {
                    let (found, expected) = (format!("of shape {:?}", given.dims()), format!("that of {steps} steps"));
                    return Err(Error::Request { key: "noise", found, expected });
                }
                Some((0..steps).map(|i| frames_of(&given.get(i)?, shape, "noise")).collect::<Result<Vec<_>>>()?)
            }
            _ => None,
        };
        let reference = enlarged.map(|(clean, image)| Reference { clean, image, noise: unit.clone() });
        let mut latents = match &reference {
            None => (&unit * walk.initial_sigma())?,
            Some(from) => walk.add_noise(stage.steps.noised_for.unwrap_or(stage.steps.first), &from.clean, &unit)?,
        };
        let mut noises = Vec::new();
        let mut end = None;
        for at in moments.iter().take(self.limit) {
            let start = Instant::now();
            let (i, from) = (at.index, latents);
            let (shown, guided) = self.predict(&prefix, stage, at, &walk, from, reference.as_ref())?;
            let (n, prefix_of_step) = (walk.timesteps().len(), self.prefix(s, ", "));
            let place = || format!("{prefix_of_step}step {i} of {n}");
            check_finite(&guided, "predictions", place)?;
            let noise = match &step_noise {
                Some(given) => Some(given[i].clone()),
                None if walk.draws_noise() => Some(self.noise.draw_for_step(shape)?),
                None => None,
            };
            latents = walk.step(i, &shown, &guided, noise.as_ref())?;
            check_finite(&latents, "latents", place)?;
            self.record_maps(format!("{prefix}latents.{i}"), &latents)?;
            self.time(format!("{}step {i}", self.prefix(s, " ")), start);
            noises.extend(noise);
            end = Some((i, shown, guided));
        }
        if let Some(keeps) = &stage.keeps
            && let Some(maps) = self.attention.keep(keeps, pipeline.sites(), stage.latent)?
        {
            self.record(format!("{prefix}maps"), &maps);
        }
        if !noises.is_empty() {
            let noises = noises.iter().map(|noise| as_videos(noise, request.frames)).collect::<Result<Vec<_>>>()?;
            self.record(format!("{prefix}noise"), &Tensor::stack(&noises, 0)?);
        }
        match (stage.end, end) {
            (End::Estimate, Some((i, before, guided))) => walk.clean(i, &before, &guided),
            (End::LateEstimate, Some((i, _, guided))) => walk.clean(i, &latents, &guided),
            _ => Ok(latents),
        }
    }

    /// Whether the stage after `s` looks at what the network is shown in this one.
    fn is_looked_back_at(&self, s: usize) -> Result<bool> {
        let Some(next) = self.journey.stages.get(s + 1) else { return Ok(false) };
        let (pipeline, request) = (self.pipeline, self.requests[0]);
        let moments = pipeline.moments(request, &self.journey, s + 1, &pipeline.walk(request, next)?);
        Ok(moments.iter().any(|at| pipeline.step(self.method, next, at).passes_mut().any(|pass| pass.before.is_some())))
    }

    /// Latents before a step, blends done, and the guided prediction from them.
    fn predict(
        &mut self,
        prefix: &str,
        stage: &Stage,
        at: &Moment,
        walk: &Walk,
        mut latents: Tensor,
        reference: Option<&Reference>,
    ) -> Result<(Tensor, Tensor)> {
        let (pipeline, i) = (self.pipeline, at.index);
        let step = pipeline.step(self.method, stage, at);
        let blends = |target: Target| step.blends.iter().filter(move |blend| blend.target == target);
        if let Some(reference) = reference {
            for blend in blends(Target::Latents) {
                let noised = walk.add_noise(i, &reference.clean, &reference.noise)?;
                latents = Self::blended(blend, &latents, &noised)?;
            }
        }
        let seen = walk.scale_input(i, &latents)?;
        let told = Told {
            texts: &self.texts,
            empties: &self.empties,
            of_windows: self.attention.texts_of_windows(pipeline, self.requests, &step, at.latent)?,
            size: pipeline.unet.config.added.map(|_| self.told_size(stage)),
            size_before: pipeline.unet.config.added.and(at.stage.checked_sub(1)).map(|before| self.told_size(&self.journey.stages[before])),
            factor: pipeline.vae.factor as i64,
            frames: self.frames(),
        };
        let frames = self.frames();
        let mut trace = self.trace.as_deref_mut();
        let see = &mut |j: usize, prediction: &Tensor| {
            if let Some(trace) = trace.as_deref_mut()
                && let Ok(prediction) = as_videos(prediction, frames)
            {
                trace.keep(format!("{prefix}pass{j}.{i}"), &prediction);
            }
        };
        let mut look = Look {
            unet: &pipeline.unet,
            timestep: at.timestep,
            rescale: self.requests[0].guidance_rescale,
            told: &told,
            keeps: stage.keeps.as_ref().map_or(&[], |keeps| &keeps.sites),
            kept: None,
            before: self.before.get(&i),
            see,
            maps: &mut self.maps,
        };
        let mut guided = look.predict(&step, &seen)?;
        if let Some(maps) = look.kept {
            self.attention.add(maps)?;
        }
        if let Some(reference) = reference {
            for blend in blends(Target::Estimate) {
                let clean = walk.clean(i, &latents, &guided)?;
                let clean = match (&blend.band, &reference.image) {
                    (Band::WaveletOfImage, Some(image)) => self.blended_images(blend, &clean, image)?,
                    _ => Self::blended(blend, &clean, &reference.clean)?,
                };
                guided = walk.implied(i, &latents, &clean)?;
            }
        }
        self.record_maps(format!("{prefix}guided.{i}"), &guided)?;
        if self.remembers {
            self.seen.insert(i, seen);
        }
        Ok((latents, guided))
    }

    fn blended(blend: &Blend, x: &Tensor, toward: &Tensor) -> Result<Tensor> {
        match &blend.band {
            Band::All => Ok(((x * (1.0 - blend.weight))? + (toward * blend.weight)?)?),
            Band::Fourier(mask) => Ok((x + low_pass(&((toward - x)? * blend.weight)?, mask)?)?),
            Band::WaveletOfImage => {
                Err(Error::method("", "a wavelet's coefficients are of images: of estimates, in a stage whose start is enlarged in pixels"))
            }
        }
    }

    /// Clean latents whose image's coarse part is blended with that of `toward`.
    fn blended_images(&self, blend: &Blend, clean: &Tensor, toward: &Tensor) -> Result<Tensor> {
        let image = self.decoded(clean)?;
        let change = (kernels::wavelet_coarse(&(toward - &image)?)? * blend.weight)?;
        let (mean, _) = self.pipeline.vae.encode(&(image + change)?)?;
        Ok((mean * self.pipeline.vae.scaling_factor)?)
    }

    fn decoded(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.pipeline.vae.decode(&(latents / self.pipeline.vae.scaling_factor)?)?.clamp(-1f32, 1f32)?)
    }

    /// Image (height, width) in pixels that SDXL is told.
    fn told_size(&self, stage: &Stage) -> (f32, f32) {
        let latent = match (stage.told_size, self.requests[0].size_conditioning) {
            (Some(size), _) => size,
            (None, SizeConditioning::Target) => stage.latent,
            (None, SizeConditioning::Base) => self.pipeline.native_latent(),
        };
        ((latent.0 * self.pipeline.vae.factor) as f32, (latent.1 * self.pipeline.vae.factor) as f32)
    }

    /// Clean latents of the stage before at this stage's size, and their image where they went through one.
    fn enlarged(&mut self, s: usize, stage: &Stage, enlarge: &Enlarge, before: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let vae = &self.pipeline.vae;
        let (h, w) = stage.latent;
        if enlarge.through == Through::Latents {
            return Ok((resized(before, enlarge.filter, h, w)?, None));
        }
        // As they are, or inside their range.
        let raw = enlarge.through == Through::UnclampedPixels;
        let decoded = if raw { vae.decode(&(before / vae.scaling_factor)?)? } else { self.decoded(before)? };
        let within = |image: Tensor| -> Result<Tensor> { Ok(if enlarge.clamped && !raw { image.clamp(-1f32, 1f32)? } else { image }) };
        let image = within(resized(&decoded, enlarge.filter, h * vae.factor, w * vae.factor)?)?;
        let image = match &enlarge.sharpen {
            None => image,
            Some(sharpen) => {
                let (low, high) = sharpen.sigma;
                let sigma = low + (high - low) * Dice::new(self.requests[0].seed, s, usize::MAX >> 32).uniform();
                let blurred = kernels::blur_gaussian_mirrored(&image, sharpen.taps, sigma)?;
                within((&image + ((&image - blurred)? * sharpen.amount)?)?)?
            }
        };
        let (mean, log_variance) = vae.encode(&image)?;
        let latents = match enlarge.encode {
            Encode::Mean => mean,
            Encode::Sample => {
                let (_, c, h, w) = mean.dims4()?;
                (mean + ((log_variance.clamp(-30f32, 20f32)? * 0.5)?.exp()? * self.noise.draw((self.requests[0].frames, c, h, w))?)?)?
            }
        };
        Ok(((latents * vae.scaling_factor)?, Some(image)))
    }
}

fn resized(x: &Tensor, filter: Filter, height: usize, width: usize) -> Result<Tensor> {
    Ok(match filter {
        Filter::Nearest => kernels::upsample_nearest(x, height, width)?,
        Filter::Bilinear => kernels::resize_bilinear(x, height, width)?,
        Filter::Bicubic => kernels::resize_bicubic(x, height, width)?,
        Filter::PillowBicubic => kernels::enlarge_bicubic(x, height, width)?,
    })
}

/// What was given for one image, `(1, c, h, w)`, or one video, `(1, c, frames, h, w)`, as `(frames, c, h, w)`.
fn frames_of(given: &Tensor, (frames, c, h, w): (usize, usize, usize, usize), key: &'static str) -> Result<Tensor> {
    let expected = if frames == 1 { vec![1, c, h, w] } else { vec![1, c, frames, h, w] };
    if given.dims() != expected {
        return Err(Error::Request { key, found: format!("of shape {:?}", given.dims()), expected: format!("shape {expected:?}") });
    }
    let given = given.to_dtype(DType::F32)?;
    Ok(if frames == 1 { given } else { given.squeeze(0)?.transpose(0, 1)?.contiguous()? })
}
