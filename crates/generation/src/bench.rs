//! Networks of a given shape on random weights: what speed comparisons run, without a checkpoint.

use std::path::Path;

use candle_core::{Device, Tensor};
use scalebench_kernels::in_pool;

use crate::checkpoint::Dtype;
use crate::error::{Error, Result};
use crate::methods::{Method, MethodSpec};
use crate::noise::Generator;
use crate::site::SiteTable;
use crate::step::{Conditioning, Moment};
use crate::unet::{SIZE_NUMBERS, Shown, Told, UNet};
use crate::vae::Vae;

/// Tokens of a text embedding, as CLIP has them.
const TOKENS: usize = 77;

/// The network of a diffusers `unet/config.json`, with weights drawn for its shapes.
///
/// ```
/// use scalebench_generation::{BenchStep, Device, Dtype, UNetBench, VaeBench};
/// let pocket = std::path::Path::new("../../datasets/pocket");
/// let mut unet = UNetBench::open(&pocket.join("unet/config.json"), Dtype::F32, &Device::Cpu)?;
/// assert!(!unet.sites().convs.is_empty());
/// // The first of 50 steps of one image of 8 × 8 latents: a pass with the text, and one without.
/// let step: BenchStep = unet.step(1, (8, 8), 50, None)?;
/// assert_eq!((unet.samples_per_image(&step), unet.run(&step)?.dims()), (2, &[1, 4, 8, 8][..]));
/// let mut vae = VaeBench::open(&pocket.join("vae/config.json"), &Device::Cpu)?;
/// let latents = vae.latents(1, (8, 8))?;
/// assert_eq!(vae.decode(&latents)?.dims(), [1, 3, 32, 32]);
/// # Ok::<(), scalebench_generation::Error>(())
/// ```
#[derive(Debug)]
pub struct UNetBench {
    unet: UNet,
    generator: Generator,
}

/// One guided step to be timed.
///
/// Example: [`UNetBench`].
#[derive(Debug)]
pub struct BenchStep {
    latents: Tensor,
    moment: Moment,
    method: Method,
}

impl UNetBench {
    /// Reads the configuration and draws the weights: uniform, of a variance that keeps activations of order one.
    /// Example: [`UNetBench`].
    pub fn open(config: &Path, dtype: Dtype, device: &Device) -> Result<Self> {
        Ok(Self { unet: UNet::random(config, dtype, device)?, generator: Generator::new(0) })
    }

    /// Where methods may act.
    /// Example: [`UNetBench`].
    pub fn sites(&self) -> &SiteTable {
        &self.unet.sites
    }

    /// The step of `images` images of `(height, width)` latents: the first one of a run of `n_steps`, when every
    /// method that acts at all acts. Without a method it is the plain network's.
    /// Example: [`UNetBench`].
    pub fn step(&mut self, images: usize, latent: (usize, usize), n_steps: usize, method: Option<&MethodSpec>) -> Result<BenchStep> {
        let side = self.unet.config.sample_size;
        let scale = (latent.0 * latent.1) as f64 / (side * side) as f64;
        let method = match method {
            None => Method::direct(self.sites()),
            Some(spec) => spec.resolve(self.unet.config.family().unwrap_or("sd15"), scale, self.sites())?,
        };
        method.check(latent, (side, side))?;
        let latents = self.generator.randn((images, self.unet.config.in_channels, latent.0, latent.1))?;
        let moment = Moment { step: 0, n_steps, timestep: 981.0, latent, native: (side, side), guidance_scale: 7.5, ..Moment::default() };
        Ok(BenchStep { latents, moment, method })
    }

    /// Samples that one image of a step passes through the network.
    /// Example: [`UNetBench`].
    pub fn samples_per_image(&self, step: &BenchStep) -> usize {
        step.method.passes(self.sites(), &step.moment).len()
    }

    /// Runs the step's passes, equal ones as one batch, and returns the last one's prediction, `(images, c, h, w)`.
    /// Example: [`UNetBench`].
    pub fn run(&mut self, step: &BenchStep) -> Result<Tensor> {
        in_pool(|| self.predict(step))
    }

    fn predict(&mut self, step: &BenchStep) -> Result<Tensor> {
        let passes = step.method.passes(self.sites(), &step.moment);
        let images = step.latents.dim(0)?;
        let config = &self.unet.config;
        let (width, added) = (config.cross_attention_dim, config.added);
        let generator = &mut self.generator;
        let mut told = |_, conditionings: &[Conditioning]| {
            let batch = images * conditionings.len();
            let text = generator.randn((batch, TOKENS, width))?;
            let added = match added {
                None => None,
                Some(added) => Some((generator.randn((batch, added.pooled_width))?, generator.randn((batch, SIZE_NUMBERS))?)),
            };
            Ok(Told { text, added, class: None })
        };
        let shown = Shown { now: &step.latents, before: None, frames: 1 };
        let predictions = self.unet.predict(&shown, step.moment.timestep, &passes, &mut told)?;
        predictions.into_iter().next_back().ok_or_else(|| Error::method(step.method.name(), "makes no pass"))
    }
}

/// The autoencoder of a diffusers `vae/config.json`, with weights drawn for its shapes.
///
/// Example: [`UNetBench`].
#[derive(Debug)]
pub struct VaeBench {
    vae: Vae,
    latent_channels: usize,
    generator: Generator,
}

impl VaeBench {
    /// Reads the configuration and draws the weights, f32.
    /// Example: [`UNetBench`].
    pub fn open(config: &Path, device: &Device) -> Result<Self> {
        let vae = Vae::random(config, device)?;
        Ok(Self { latent_channels: vae.latent_channels(), vae, generator: Generator::new(0) })
    }

    /// Unit normal latents of `images` images, `(images, c, height, width)`.
    /// Example: [`UNetBench`].
    pub fn latents(&mut self, images: usize, (height, width): (usize, usize)) -> Result<Tensor> {
        Ok(self.generator.randn((images, self.latent_channels, height, width))?)
    }

    /// Decodes them whole, as a sweep does by default: `(images, 3, H, W)`.
    /// Example: [`UNetBench`].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        in_pool(|| self.vae.decode(latents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of images run as they do one by one, and a re-dilated step differs from a plain one.
    #[test]
    fn random_networks_run_plain_and_re_dilated() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/pocket/unet/config.json");
        let spec =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/methods/scalecrafter.yaml")).unwrap();
        let spec = MethodSpec::parse(&spec, Path::new("scalecrafter.yaml")).unwrap();
        let run = |method: Option<&MethodSpec>, size| {
            let mut bench = UNetBench::open(&config, Dtype::F32, &Device::Cpu).unwrap();
            let step = bench.step(2, size, 50, method).unwrap();
            let samples = bench.samples_per_image(&step);
            let out = bench.run(&step).unwrap();
            assert_eq!(out.dims4().unwrap(), (2, 4, size.0, size.1));
            (samples, out.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let (plain, dilated) = (run(None, (32, 32)), run(Some(&spec), (32, 32)));
        assert_eq!((plain.0, dilated.0), (2, 2));
        assert!(plain.1.iter().all(|v| v.is_finite()));
        // Activations of order one, as in a trained network.
        let rms = (plain.1.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / plain.1.len() as f64).sqrt();
        assert!((0.02..50.0).contains(&rms), "{rms}");
        assert_ne!(plain.1, dilated.1);
        assert_eq!(run(Some(&spec), (64, 64)).0, 3, "noise-damped guidance makes three passes");
        assert_eq!(run(None, (32, 32)).1, plain.1);
    }
}
