//! Diffusion super-resolution in the layout of Stability AI's x4 upscaler (diffusers' `StableDiffusionUpscalePipeline`): latent diffusion
//! at the small image's own size, whose U-Net sees the latents and the slightly noised image side by side and is told how much
//! noise that has; the autoencoder enlarges.

use super::check_finite;
use super::digest::digest;
use super::guidance::combine;
use super::request::{Rgb, Trace};
use super::texts::Texts;
use super::views::Canvas;
use crate::checkpoint::LoadOptions;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::journey::{Reduce, Tile, Upscaling};
use crate::methods::window_starts;
use crate::noise::Generator;
use crate::sampler::{Sampler, Schedule, ScheduleOptions, Walk};
use crate::step::{Conditioning, Moment, Pass, classifier_free};
use crate::text::TextEncoder;
use crate::unet::{Shown, Told, UNet};
use crate::vae::{Vae, VaeDecode};
use candle_core::Tensor;
use serde_json::Value;
use std::path::Path;
use std::time::Instant;

/// Channels of the image beside the latents.
const IMAGE_CHANNELS: usize = 3;

/// A loaded upscaler.
///
/// ```
/// use scalebench_generation::journey::{Tile, Upscaling};
/// use scalebench_generation::{Ending, LoadOptions, MethodSpec, Pipeline, Upscaler};
/// # use scalebench_generation::{Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};
/// # let request = Request {
/// #     prompt: "pizza".to_owned(),
/// #     negative_prompt: String::new(),
/// #     width: 128,
/// #     height: 128,
/// #     steps: 2,
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
/// let mut pipeline = Pipeline::load("../../datasets/pocket".as_ref())?;
/// let upscaler = Upscaler::load_with("../../datasets/pocket-upscaler".as_ref(), &LoadOptions::default())?;
/// assert_eq!((upscaler.factor(), upscaler.digest().len()), (4, 64));
/// // The image beside the latents: 4 + 3 channels go in.
/// assert_eq!((&upscaler.unet_config()["in_channels"], &upscaler.vae_config()["latent_channels"]), (&7.into(), &4.into()));
/// let file = "../../experiments/methods/sd-upscale.yaml".as_ref();
/// let method = MethodSpec::parse(&std::fs::read_to_string(file)?, file)?.resolve("pocket", 4.0, pipeline.sites())?;
/// let upscaling = method.upscaling().expect("a method that enlarges");
/// // The whole of a small image, or three windows a side.
/// let tiled = Upscaling { tile: Some(Tile { side: 32, overlap: 16 }), ..upscaling.clone() };
/// assert_eq!((upscaler.maps((64, 64), upscaling), upscaler.maps((64, 64), &tiled)), ((1, (64, 64)), (9, (32, 32))));
/// pipeline.lend_upscaler(&upscaling.checkpoint, upscaler.into());
/// // Of a request for 128 × 128 pixels, an image of the training size is enlarged once.
/// let Some(Ending { from, upscaler: Some((_, sizes)), .. }) = pipeline.ending(&request, &method)? else { panic!("nothing is lent") };
/// assert_eq!((from, sizes), ((64, 64), vec![(64, 64)]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Upscaler {
    texts: Texts,
    pub(crate) unet: UNet,
    pub(crate) vae: Vae,
    schedule: Schedule,
    /// ᾱ of the small image's noise, by level.
    pub(crate) noise: Vec<f32>,
    pub(crate) max_noise_level: usize,
    digest: String,
    /// Contents of `unet/config.json` and `vae/config.json`.
    configs: (Value, Value),
}

impl std::fmt::Debug for Upscaler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upscaler").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// One enlargement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enlarging<'a> {
    pub(crate) prompt: &'a str,
    pub(crate) negative_prompt: &'a str,
    /// Of the small image's noise, then the initial latents, then the steps' noise.
    pub(crate) seed: u64,
    pub(crate) settings: &'a Upscaling,
    /// No more steps than this are made.
    pub(crate) limit: usize,
}

/// What is fixed over the steps of an enlargement.
struct Run<'a> {
    steps: usize,
    settings: &'a Upscaling,
    /// The noised small image, `(1, 3, h, w)`.
    beside: Tensor,
    /// Embeddings of the prompt and of the negative one.
    texts: (Tensor, Tensor),
}

impl Upscaler {
    /// Loads a diffusers folder of the x4 upscaler's layout.
    /// Example: [`Upscaler`].
    pub fn load_with(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let text = TextEncoder::open(folder, options)?;
        let unet = UNet::open(&folder.join("unet"), options)?;
        let vae = Vae::open(&folder.join("vae"), options)?;
        let schedule = Schedule::open(&folder.join("scheduler").join("scheduler_config.json"))?;
        let noise = Schedule::open_noise(&folder.join("low_res_scheduler").join("scheduler_config.json"))?;
        let max_noise_level = Config::open(&folder.join("model_index.json"))?.within("max_noise_level", Some(350), 0, 1 << 20)?;
        let wrong = |reason: String| Err(Error::malformed(folder.join("unet").join("config.json"), reason));
        let (found, expected) = (unet.config.in_channels, vae.latent_channels() + IMAGE_CHANNELS);
        if found != expected {
            return wrong(format!("`in_channels` is {found}, expected {expected}: the autoencoder's latents and an image beside them"));
        }
        if unet.config.out_channels != vae.latent_channels() {
            return wrong(format!("`out_channels` is {}, expected the autoencoder's {}", unet.config.out_channels, vae.latent_channels()));
        }
        let Some(classes) = unet.config.classes else {
            return wrong("`num_class_embeds` is missing, expected the number of noise levels".into());
        };
        if unet.config.added.is_some() || text.width() != unet.config.cross_attention_dim {
            let found = unet.config.cross_attention_dim;
            return wrong(format!("`cross_attention_dim` is {found}, expected the text encoder's {} and nothing added", text.width()));
        }
        let config = |component: &str| Ok::<_, Error>(Config::open(&folder.join(component).join("config.json"))?.value());
        Ok(Self {
            texts: Texts::new(folder, options, text)?,
            max_noise_level: max_noise_level.min(classes - 1).min(noise.len() - 1),
            unet,
            vae,
            schedule,
            noise,
            digest: digest(folder, options, &["scheduler", "low_res_scheduler"])?,
            configs: (config("unet")?, config("vae")?),
        })
    }

    /// Hash (BLAKE3, hex) of every file that determines the checkpoint's output.
    /// Example: [`Upscaler`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Content of `unet/config.json`.
    /// Example: [`Upscaler`].
    pub fn unet_config(&self) -> &Value {
        &self.configs.0
    }

    /// Content of `vae/config.json`.
    /// Example: [`Upscaler`].
    pub fn vae_config(&self) -> &Value {
        &self.configs.1
    }

    /// Pixels of the result for a pixel of the small image, along one axis.
    /// Example: [`Upscaler`].
    pub fn factor(&self) -> u32 {
        self.vae.factor as u32
    }

    /// Refuses settings that it cannot serve.
    pub(super) fn check(&self, method: &str, settings: &Upscaling) -> Result<()> {
        if settings.noise_level > self.max_noise_level {
            let (found, most) = (settings.noise_level, self.max_noise_level);
            return Err(Error::method(
                method,
                format!("`upscaler.noise_level` is {found}, expected at most {most}, the most that it was trained on"),
            ));
        }
        self.walk(settings).map(|_| ())
    }

    fn walk(&self, settings: &Upscaling) -> Result<Walk> {
        self.schedule.walk(Sampler::Ddim, settings.steps, settings.eta, &ScheduleOptions::default())
    }

    /// The (width, height) of every image that is enlarged on the way from one size to another, in pixels: each result is resized to
    /// the next one's size, and the last to the target.
    pub(crate) fn sizes(&self, from: (u32, u32), to: (u32, u32), reduce: Reduce) -> Vec<(u32, u32)> {
        let factor = u64::from(self.factor());
        let enlarged = |side: u32, times: u32| u64::from(side) * factor.pow(times);
        let times = (1..).find(|&n| enlarged(from.0, n) >= u64::from(to.0) && enlarged(from.1, n) >= u64::from(to.1)).unwrap_or(1);
        let first = match reduce {
            Reduce::Output => from,
            Reduce::Input => {
                let side = |n: u32| u64::from(n).div_ceil(factor.pow(times)) as u32;
                (side(to.0), side(to.1))
            }
        };
        (0..times).map(|n| (enlarged(first.0, n) as u32, enlarged(first.1, n) as u32)).collect()
    }

    /// How many maps of which latent (height, width) the U-Net sees in each pass of a step on an image of (width, height) pixels.
    /// Example: [`Upscaler`].
    pub fn maps(&self, (width, height): (u32, u32), settings: &Upscaling) -> (usize, (usize, usize)) {
        let (windows, size) = windows((height as usize, width as usize), settings.tile);
        (windows.len(), size)
    }

    /// An image of [`factor`](Self::factor) times the size.
    pub(crate) fn enlarge(&self, image: &Rgb, how: &Enlarging<'_>, mut trace: Option<&mut Trace>) -> Result<Rgb> {
        let settings = how.settings;
        let mut generator = Generator::new(how.seed);
        let (h, w) = (image.height as usize, image.width as usize);
        let clean = image.tensor()?;
        let unit = generator.randn((1, IMAGE_CHANNELS, h, w))?;
        let level = f64::from(self.noise[settings.noise_level]);
        let beside = ((&clean * level.sqrt())? + (&unit * (1.0 - level).sqrt())?)?;
        let embed = |text: &str, negative| Ok::<_, Error>(self.texts.embed(text, negative)?.hidden);
        let texts = (embed(how.prompt, false)?, embed(how.negative_prompt, true)?);
        let mut keep = |name: String, tensor: &Tensor| {
            if let Some(trace) = trace.as_deref_mut() {
                trace.keep(format!("upscale.{name}"), tensor);
            }
        };
        keep("image".into(), &clean);
        keep("image_noise".into(), &unit);
        let mut walk = self.walk(settings)?;
        let init = generator.randn((1, self.vae.latent_channels(), h, w))?;
        keep("init_latents".into(), &init);
        let mut latents = (init * walk.initial_sigma())?;
        let run = Run { steps: walk.timesteps().len(), settings, beside, texts };
        let mut seconds = Vec::new();
        for i in 0..run.steps.min(how.limit) {
            let start = Instant::now();
            let guided = self.predict(&run, walk.timesteps()[i], &walk.scale_input(i, &latents)?)?;
            keep(format!("guided.{i}"), &guided);
            let noise = if walk.draws_noise() { Some(generator.randn(latents.dims())?) } else { None };
            latents = walk.step(i, &latents, &guided, noise.as_ref())?;
            check_finite(&latents, "latents", || format!("step {i} of the upscaler"))?;
            keep(format!("latents.{i}"), &latents);
            seconds.push((format!("upscale step {i}"), start.elapsed().as_secs_f64()));
        }
        let start = Instant::now();
        // Windows bound the decoder's memory and the time of its attention, too.
        let decode = if settings.tile.is_some() { VaeDecode::Tiled } else { VaeDecode::Whole };
        let enlarged = Rgb::of(&self.vae.decode_as(&(latents / self.vae.scaling_factor)?, decode)?)?.remove(0);
        seconds.push(("upscale decode".into(), start.elapsed().as_secs_f64()));
        if let Some(trace) = trace {
            trace.seconds.extend(seconds);
        }
        Ok(enlarged)
    }

    /// The guided prediction from `latents` `(1, c, h, w)`.
    fn predict(&self, run: &Run<'_>, timestep: f64, latents: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = latents.dims4()?;
        let shown = Tensor::cat(&[latents, &run.beside], 1)?;
        let (corners, (rows, columns)) = windows((h, w), run.settings.tile);
        let side = self.unet.config.sample_size;
        let moment = Moment {
            n_steps: run.steps,
            timestep,
            latent: (rows, columns),
            native: (side, side),
            guidance_scale: run.settings.guidance_scale,
            ..Moment::default()
        };
        let passes = classifier_free(&self.unet.sites, &moment);
        if let [_] = corners[..] {
            return self.look(run, timestep, &passes, &shown);
        }
        let mut mean = Canvas::new(latents)?;
        for (top, left) in corners {
            let window = shown.narrow(2, top, rows)?.narrow(3, left, columns)?.contiguous()?;
            mean.add((top, left), &self.look(run, timestep, &passes, &window)?)?;
        }
        mean.divided()
    }

    fn look(&self, run: &Run<'_>, timestep: f64, passes: &[Pass], shown: &Tensor) -> Result<Tensor> {
        let mut told = |_, conditionings: &[Conditioning]| {
            let of = |conditioning: &Conditioning| match conditioning {
                Conditioning::Text => &run.texts.0,
                Conditioning::Empty => &run.texts.1,
            };
            let text = Tensor::cat(&conditionings.iter().map(of).collect::<Vec<_>>(), 0)?;
            Ok(Told { text, added: None, class: Some(run.settings.noise_level) })
        };
        let predictions = self.unet.predict(&Shown { now: shown, before: None, frames: 1 }, timestep, passes, &mut told)?;
        combine(passes, &predictions, None, 0.0, 1)
    }
}

/// Top left corners and (height, width) of the windows on a map, in latents: one where it fits.
fn windows((height, width): (usize, usize), tile: Option<Tile>) -> (Vec<(usize, usize)>, (usize, usize)) {
    let Some(Tile { side, overlap }) = tile else { return (vec![(0, 0)], (height, width)) };
    let (rows, columns) = (side.min(height), side.min(width));
    let lefts = window_starts(width, columns, side - overlap);
    let corners = window_starts(height, rows, side - overlap).into_iter().flat_map(|top| lefts.iter().map(move |&left| (top, left)));
    (corners.collect(), (rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_map_and_stay_inside() {
        for (size, tile, n) in
            [((64, 64), None, 1), ((64, 40), Some((64, 8)), 1), ((70, 40), Some((32, 8)), 6), ((33, 32), Some((32, 0)), 2)]
        {
            let (corners, (rows, columns)) = windows(size, tile.map(|(side, overlap)| Tile { side, overlap }));
            assert_eq!(corners.len(), n, "{size:?}");
            let mut seen = vec![false; size.0 * size.1];
            for (top, left) in corners {
                (top..top + rows).for_each(|y| seen[y * size.1 + left..][..columns].fill(true));
            }
            assert!(seen.iter().all(|seen| *seen), "{size:?}");
        }
    }
}
