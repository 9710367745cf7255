//! What a checkpoint's configuration files decide without its weights.

use super::published::configurations;
use super::upscaler::Upscaler;
use super::{Request, Seeding, StageSteps};
use crate::checkpoint::{FAMILIES, Family};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::journey::{Finish, Journey, Route, Stage};
use crate::methods::Method;
use crate::sampler::{Prediction, Sampler, Schedule, Walk};
use crate::site::SiteTable;
use crate::step::{Moment, Step};
use crate::unet::UNet;
use crate::vae::Vae;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How a finished image is enlarged.
///
/// Example: [`Blueprint`].
#[derive(Debug)]
pub struct Ending<'a> {
    /// Its (width, height) in pixels.
    pub from: (u32, u32),
    /// By what.
    pub finish: Finish,
    /// The network, if there is one and it was lent, and the (width, height) of each image that it sees.
    pub upscaler: Option<(&'a Upscaler, Vec<(u32, u32)>)>,
}

/// Pixels of the largest image, 32768 × 32768.
const MOST_PIXELS: u64 = 1 << 30;

/// A checkpoint's sites, sizes and noise levels, and by them every stage, step and pass of a run.
///
/// ```
/// use scalebench_generation::journey::{Finish, ImageFilter};
/// use scalebench_generation::{Blueprint, Ending, FAMILIES, Family, Method, MethodSpec, Request, StageSteps};
/// # use scalebench_generation::{Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
/// # let request = Request {
/// #     prompt: "pizza".to_owned(),
/// #     negative_prompt: String::new(),
/// #     width: 1024,
/// #     height: 1024,
/// #     steps: 50,
/// #     sampler: Sampler::Ddim,
/// #     schedule: ScheduleOptions::default(),
/// #     guidance_scale: 7.5,
/// #     guidance_rescale: 0.0,
/// #     eta: 0.0,
/// #     seed: 0,
/// #     size_conditioning: SizeConditioning::Target,
/// #     vae_decode: VaeDecode::Whole,
/// #     seeding: Seeding::PerImage,
/// #     frames: 1,
/// # };
/// let sd15: &'static Family = &FAMILIES[0];
/// let blueprint = Blueprint::of_family(sd15).expect("a published family");
/// assert_eq!((blueprint.family(), blueprint.native_size(), blueprint.vae_factor()), (Some(sd15), (512, 512), 8));
/// assert_eq!((&blueprint.unet_config()["in_channels"], &blueprint.vae_config()["latent_channels"]), (&4.into(), &4.into()));
/// let method = |name: &str| -> Result<Method, Box<dyn std::error::Error>> {
///     let file = format!("../../experiments/methods/{name}.yaml");
///     Ok(MethodSpec::parse(&std::fs::read_to_string(&file)?, file.as_ref())?.resolve("sd15", 4.0, blueprint.sites())?)
/// };
/// // A request for 1024 × 1024 pixels in 50 steps: ScaleCrafter acts in the first 30 of them, on latents of 128 × 128.
/// let scalecrafter = method("scalecrafter")?;
/// let run: Vec<StageSteps> = blueprint.outline(&request, &scalecrafter)?;
/// assert_eq!((run.len(), run[0].stage.latent, run[0].steps.len()), (1, (128, 128), 50));
/// assert_eq!(run[0].steps.iter().position(|step| step.is_plain()), Some(30));
/// assert!(blueprint.ending(&request, &scalecrafter)?.is_none());
/// // A filter enlarges the finished image.
/// let Some(Ending { from, finish, .. }) = blueprint.ending(&request, &method("upscale-lanczos")?)? else { panic!("no ending") };
/// assert_eq!((from, finish), ((512, 512), Finish { filter: ImageFilter::Lanczos, upscaler: None }));
/// // Only with a motion adapter does it make videos.
/// let video = Request { frames: 16, ..request };
/// let direct = Method::direct(blueprint.sites());
/// assert!(blueprint.check(&video, &direct).is_err());
/// assert!(blueprint.assuming_motion().check(&video, &direct).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Blueprint {
    sites: SiteTable,
    family: Option<&'static Family>,
    /// Latent side of the training resolution.
    native: usize,
    /// Pixels per latent, along one axis.
    factor: usize,
    /// Most frames of a video.
    max_frames: usize,
    schedule: Schedule,
    unet: Value,
    vae: Value,
    /// What methods enlarge finished images with, by the name that they know it by.
    upscalers: BTreeMap<String, Arc<Upscaler>>,
}

impl Blueprint {
    /// Of the networks whose configurations are the values `unet` and `vae`.
    pub(super) fn new(networks: (&UNet, &Vae), schedule: Schedule, unet: Value, vae: Value) -> Self {
        let config = &networks.0.config;
        let name = config.family().map(|name| match name {
            "sd21" if schedule.prediction == Prediction::V => "sd21-768",
            name => name,
        });
        let family = FAMILIES.iter().find(|family| Some(family.name) == name);
        Self {
            sites: networks.0.sites.clone(),
            family,
            native: config.sample_size,
            factor: networks.1.factor,
            max_frames: networks.0.max_frames,
            schedule,
            unet,
            vae,
            upscalers: BTreeMap::new(),
        }
    }

    /// Of a family's published checkpoint; None of one that has not been published.
    /// Example: [`Blueprint`].
    pub fn of_family(family: &Family) -> Option<Self> {
        let [unet, vae, scheduler] = configurations(family.name)?;
        let file = Path::new(family.name);
        let build = || {
            let hollow = (UNet::hollow(Config::of(unet.clone(), file)?)?, Vae::hollow(Config::of(vae.clone(), file)?)?);
            let schedule = Schedule::of(Config::of(scheduler, file)?)?;
            Ok::<_, Error>(Self::new((&hollow.0, &hollow.1), schedule, unet, vae))
        };
        Some(build().expect("published configurations are of kinds that this program has"))
    }

    /// The family whose architecture this is, if it is a known one.
    /// Example: [`Blueprint`].
    pub fn family(&self) -> Option<&'static Family> {
        self.family
    }

    /// Where methods may act.
    /// Example: [`Blueprint`].
    pub fn sites(&self) -> &SiteTable {
        &self.sites
    }

    /// Content of `unet/config.json`.
    /// Example: [`Blueprint`].
    pub fn unet_config(&self) -> &Value {
        &self.unet
    }

    /// Content of `vae/config.json`.
    /// Example: [`Blueprint`].
    pub fn vae_config(&self) -> &Value {
        &self.vae
    }

    /// Training (width, height) in pixels.
    /// Example: [`Blueprint`].
    pub fn native_size(&self) -> (u32, u32) {
        let side = (self.native * self.factor) as u32;
        (side, side)
    }

    /// Pixels per latent, along one axis.
    /// Example: [`Blueprint`].
    pub fn vae_factor(&self) -> u32 {
        self.factor as u32
    }

    /// Most frames of a video that the network makes: 1 if it has no layers over frames.
    pub(crate) fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// The same with a motion adapter that is not at hand: it makes videos, whose layers over frames are not known.
    /// Example: [`Blueprint`].
    pub fn assuming_motion(self) -> Self {
        Self { max_frames: usize::MAX, ..self }
    }

    pub(super) fn native_latent(&self) -> (usize, usize) {
        (self.native, self.native)
    }

    pub(super) fn latent_size(&self, request: &Request) -> (usize, usize) {
        (request.height as usize / self.factor, request.width as usize / self.factor)
    }

    /// Refuses what [`Pipeline::generate`](super::Pipeline::generate) could not do, without doing anything.
    /// Example: [`Blueprint`].
    pub fn check(&self, request: &Request, method: &Method) -> Result<()> {
        let f = self.vae_factor();
        for (key, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || side % f != 0 {
                let expected = format!("a positive multiple of the autoencoder's factor {f}");
                return Err(Error::Request { key, found: side.to_string(), expected });
            }
        }
        let pixels = u64::from(request.width) * u64::from(request.height);
        if pixels > MOST_PIXELS {
            let expected = format!("at most {MOST_PIXELS} pixels, as of 32768x32768");
            return Err(Error::Request { key: "size", found: format!("{}x{}", request.width, request.height), expected });
        }
        let range = |key: &'static str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::Request { key, found: value.to_string(), expected: format!("a number from {low} to {high}") })
            }
        };
        if request.frames == 0 || request.frames > self.max_frames() {
            let expected = match self.max_frames() {
                1 => "1: this network has no layers over frames, which a motion adapter would add".to_owned(),
                usize::MAX => "at least 1".to_owned(),
                most => format!("a number from 1 to the motion modules' {most} (`motion_max_seq_length`)"),
            };
            return Err(Error::Request { key: "frames", found: request.frames.to_string(), expected });
        }
        if pixels.saturating_mul(request.frames as u64) > MOST_PIXELS {
            let expected = format!("at most {} of this size, {MOST_PIXELS} pixels in all", MOST_PIXELS / pixels);
            return Err(Error::Request { key: "frames", found: request.frames.to_string(), expected });
        }
        range("guidance_scale", request.guidance_scale, 0.0, 1e3)?;
        range("guidance_rescale", request.guidance_rescale, 0.0, 1.0)?;
        let journey = self.journey(request, method)?;
        for stage in &journey.stages {
            let (height, width) = stage.latent;
            if height == 0 || width == 0 || (height as u64).saturating_mul(width as u64) > MOST_PIXELS / u64::from(f * f) {
                let reason = format!("has a stage of {width}x{height} latents, expected 1 to {MOST_PIXELS} pixels");
                return Err(Error::method(method.name(), reason));
            }
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
        if let Some(upscaling) = journey.finish.as_ref().and_then(|finish| finish.upscaler.as_ref())
            && let Some(upscaler) = self.upscalers.get(&upscaling.checkpoint)
        {
            upscaler.check(method.name(), upscaling)?;
        }
        if let Seeding::Batched { batch, row } = request.seeding
            && row >= batch
        {
            return Err(Error::Request { key: "seeding", found: format!("row {row} of {batch}"), expected: "a row of the batch".into() });
        }
        method.check(self.latent_size(request), self.native_latent())
    }

    /// The stages and steps that [`Pipeline::generate`](super::Pipeline::generate) would make at the request's size, in order.
    /// Example: [`Blueprint`].
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

    /// Lends a network to methods that enlarge by the checkpoint of this name.
    /// Example: [`Upscaler`].
    pub fn lend_upscaler(&mut self, checkpoint: &str, upscaler: Arc<Upscaler>) {
        self.upscalers.insert(checkpoint.to_owned(), upscaler);
    }

    /// What [`Pipeline::generate`](super::Pipeline::generate) would do to the finished image at the request's size, if anything.
    /// Example: [`Blueprint`].
    pub fn ending(&self, request: &Request, method: &Method) -> Result<Option<Ending<'_>>> {
        let journey = self.journey(request, method)?;
        let Some(finish) = journey.finish else { return Ok(None) };
        let (h, w) = journey.stages[journey.stages.len() - 1].latent;
        let from = (w as u32 * self.vae_factor(), h as u32 * self.vae_factor());
        let lent = finish.upscaler.as_ref().and_then(|upscaling| Some((self.upscalers.get(&upscaling.checkpoint)?, upscaling.reduce)));
        let upscaler = lent.map(|(upscaler, reduce)| (&**upscaler, upscaler.sizes(from, (request.width, request.height), reduce)));
        Ok(Some(Ending { from, upscaler, finish }))
    }

    /// One step of a stage.
    pub(super) fn step(&self, method: &Method, stage: &Stage, at: &Moment) -> Step {
        if stage.plain { Step::plain(self.sites(), at) } else { method.step(self.sites(), at) }
    }

    pub(super) fn journey(&self, request: &Request, method: &Method) -> Result<Journey> {
        let latent = self.latent_size(request);
        let walk = self.walk(request, &Stage::new(latent))?;
        let (native, n_steps, alphas_cumprod) = (self.native_latent(), walk.timesteps().len(), walk.alphas_cumprod());
        Ok(method.journey(&Route { latent, native, n_steps, alphas_cumprod, guidance_scale: request.guidance_scale }))
    }

    pub(super) fn walk(&self, request: &Request, stage: &Stage) -> Result<Walk> {
        let eta = stage.eta.unwrap_or(request.eta);
        self.schedule.walk_stage(request.sampler, stage.steps.of.unwrap_or(request.steps), eta, &request.schedule, &stage.steps)
    }

    /// The moments of the steps that are run in stage `s`.
    pub(super) fn moments(&self, request: &Request, journey: &Journey, s: usize, walk: &Walk) -> Vec<Moment> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every family that is published has a blueprint that knows itself again.
    #[test]
    fn published_families_have_blueprints() {
        for family in &FAMILIES {
            let found = Blueprint::of_family(family);
            assert_eq!(found.is_some(), family.repository.is_some());
            if let Some(found) = found {
                assert_eq!((found.family(), found.native_size()), (Some(family), (family.side, family.side)));
                assert_eq!(found.vae_factor(), 8);
            }
        }
    }
}
