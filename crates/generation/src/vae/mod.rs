//! The autoencoder: latents to pixels and back.

mod strips;
mod tiles;

use crate::checkpoint::LoadOptions;
use crate::config::{Config, LARGEST};
use crate::error::Result;
use crate::layers::{Conv, GroupNorm, IntoMap, IntoTokens};
use crate::weights::{Scope, Weights};
use candle_core::{Device, Tensor};
use scalebench_kernels as kernels;
use scalebench_kernels::Precision;
use serde_json::json;
use std::path::Path;

/// Epsilon of every normalisation in the autoencoder.
const EPS: f64 = 1e-6;

#[derive(Debug)]
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
}

impl ResnetBlock {
    fn load(at: &Scope<'_>, c_in: usize, c_out: usize, groups: usize) -> Result<Self> {
        let shortcut = || Conv::load(&at.pp("conv_shortcut"), c_in, c_out, 1, 1);
        Ok(Self {
            norm1: GroupNorm::load(&at.pp("norm1"), c_in, groups, EPS)?,
            conv1: Conv::load(&at.pp("conv1"), c_in, c_out, 3, 1)?,
            norm2: GroupNorm::load(&at.pp("norm2"), c_out, groups, EPS)?,
            conv2: Conv::load(&at.pp("conv2"), c_out, c_out, 3, 1)?,
            conv_shortcut: if c_in == c_out { None } else { Some(shortcut()?) },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let h = self.conv2.forward(&self.norm2.forward_silu(&h)?)?;
        Ok(kernels::add(&self.shortcut(x)?, &h)?)
    }

    /// What is added to the block's own result.
    fn shortcut(&self, x: &Tensor) -> Result<Tensor> {
        self.conv_shortcut.as_ref().map_or_else(|| Ok(x.clone()), |conv| conv.forward(x))
    }
}

/// Single-head self-attention over pixels.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    q: IntoTokens,
    k: IntoTokens,
    v: IntoTokens,
    out: IntoMap,
    precision: Precision,
}

impl Attention {
    fn load(at: &Scope<'_>, c: usize, groups: usize) -> Result<Self> {
        // Checkpoints of 2022 use the names in the second column.
        let legacy = at.has("query.weight");
        let tokens = |new: &str, old: &str| IntoTokens::load(&at.pp(if legacy { old } else { new }), &[c, c]);
        Ok(Self {
            norm: GroupNorm::load(&at.pp("group_norm"), c, groups, EPS)?,
            q: tokens("to_q", "query")?,
            k: tokens("to_k", "key")?,
            v: tokens("to_v", "value")?,
            out: IntoMap::load(&at.pp(if legacy { "proj_attn" } else { "to_out.0" }), &[c, c])?,
            precision: at.precision(),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, c, _, _) = x.dims4()?;
        let h = self.norm.forward(x)?;
        let (q, k, v) = (self.q.forward(&h)?, self.k.forward(&h)?, self.v.forward(&h)?);
        self.out.forward(&kernels::attention(&q, &k, &v, 1, 1.0 / (c as f64).sqrt(), self.precision)?, x)
    }
}

#[derive(Debug)]
struct Mid {
    resnets: [ResnetBlock; 2],
    attention: Attention,
}

impl Mid {
    fn load(at: &Scope<'_>, c: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            resnets: [ResnetBlock::load(&at.pp("resnets.0"), c, c, groups)?, ResnetBlock::load(&at.pp("resnets.1"), c, c, groups)?],
            attention: Attention::load(&at.pp("attentions.0"), c, groups)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.resnets[1].forward(&self.attention.forward(&self.resnets[0].forward(x)?)?)
    }
}

#[derive(Debug)]
struct Stage {
    resnets: Vec<ResnetBlock>,
    resampler: Option<Conv>,
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv,
    mid: Mid,
    up_blocks: Vec<Stage>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Decoder {
    /// Elements of the largest map of an image of `h` × `w` latents.
    fn largest_map(&self, mut h: usize, mut w: usize) -> usize {
        let mut largest = 0;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                largest = largest.max(resnet.conv1.out_channels() * h * w);
            }
            if let Some(conv) = &block.resampler {
                (h, w) = (2 * h, 2 * w);
                largest = largest.max(conv.out_channels() * h * w);
            }
        }
        largest
    }

    /// From the middle block's output to the image, on whole maps.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(conv) = &block.resampler {
                let (_, _, h, w) = x.dims4()?;
                x = conv.forward(&kernels::upsample_nearest(&x, 2 * h, 2 * w)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<Stage>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// How latents are decoded. It moves results, so it is part of an image's identity.
///
/// Example: [this crate](crate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VaeDecode {
    /// As one map: diffusers without tiling. Computed in strips of rows, so that memory is bounded.
    #[default]
    Whole,
    /// In blended tiles: diffusers' `enable_vae_tiling`, which ScaleCrafter's SDXL script always uses.
    Tiled,
    /// In blended tiles under common group norms: ScaleCrafter's `--vae_tiling`.
    TiledSynchronised,
}

/// `AutoencoderKL`.
#[derive(Debug)]
pub(crate) struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    quant: Conv,
    post_quant: Conv,
    /// Latents are multiplied by it after encoding and divided by it before decoding.
    pub(crate) scaling_factor: f64,
    /// Pixels per latent, along one axis.
    pub(crate) factor: usize,
    /// Side of a tile in latents.
    tile: usize,
    device: Device,
}

impl Vae {
    /// Reads `config.json` and the weights of a diffusers `vae/` folder.
    pub(crate) fn open(folder: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load(Config::open(&folder.join("config.json"))?, || Weights::open(folder, "diffusion_pytorch_model", options))
    }

    /// Elements of the largest map of an image of `h` × `w` latents.
    pub(crate) fn largest_map(&self, h: usize, w: usize) -> usize {
        self.decoder.largest_map(h, w)
    }

    pub(crate) fn latent_channels(&self) -> usize {
        self.post_quant.out_channels()
    }

    /// The network of a `config.json` on random weights.
    pub(crate) fn random(config: &Path, device: &Device) -> Result<Self> {
        Self::load(Config::open(config)?, || Ok(Weights::random(device)))
    }

    /// The network of a `config.json` without weights, which has a shape and cannot run.
    pub(crate) fn hollow(config: Config) -> Result<Self> {
        Self::load(config, || Ok(Weights::hollow()))
    }

    fn load(mut c: Config, weights: impl FnOnce() -> Result<Weights>) -> Result<Self> {
        let groups = c.count("norm_num_groups", Some(32))?;
        let channels = c.channels("block_out_channels", groups)?;
        let n = channels.len();
        c.only("act_fn", &[json!("silu")])?;
        c.only("down_block_types", &[json!(vec!["DownEncoderBlock2D"; n])])?;
        c.only("up_block_types", &[json!(vec!["UpDecoderBlock2D"; n])])?;
        c.only("mid_block_add_attention", &[json!(true)])?;
        c.only("use_quant_conv", &[json!(true)])?;
        c.only("use_post_quant_conv", &[json!(true)])?;
        c.ignore(&["force_upcast"]); // Everything runs in f32.
        let sample_size = c.within("sample_size", Some(512), 1 << (n - 1), LARGEST)?;
        let layers = c.layers("layers_per_block", Some(1))?;
        let latent = c.count("latent_channels", Some(4))?;
        // Red, green and blue.
        let (c_in, c_out) = (c.within("in_channels", Some(3), 3, 3)?, c.within("out_channels", Some(3), 3, 3)?);
        let scaling_factor = c.positive("scaling_factor", 0.18215, 1e3)?;
        c.finish()?;

        let weights = weights()?;
        let (root, last) = (weights.root(), channels[n - 1]);
        let norm_out = |at: &Scope<'_>, c| GroupNorm::load(&at.pp("conv_norm_out"), c, groups, EPS);

        let at = root.pp("encoder");
        let mut width = channels[0];
        let mut down_blocks = Vec::new();
        for (i, &out) in channels.iter().enumerate() {
            let at = at.pp("down_blocks").pp(i);
            let mut resnets = Vec::new();
            for j in 0..layers {
                resnets.push(ResnetBlock::load(&at.pp("resnets").pp(j), width, out, groups)?);
                width = out;
            }
            let resampler = if i + 1 < n { Some(Conv::load(&at.pp("downsamplers.0.conv"), out, out, 3, 2)?.unpadded()) } else { None };
            down_blocks.push(Stage { resnets, resampler });
        }
        let encoder = Encoder {
            conv_in: Conv::load(&at.pp("conv_in"), c_in, channels[0], 3, 1)?,
            down_blocks,
            mid: Mid::load(&at.pp("mid_block"), last, groups)?,
            norm_out: norm_out(&at, last)?,
            conv_out: Conv::load(&at.pp("conv_out"), last, 2 * latent, 3, 1)?,
        };

        let at = root.pp("decoder");
        let mut width = last;
        let mut up_blocks = Vec::new();
        for (i, &out) in channels.iter().rev().enumerate() {
            let at = at.pp("up_blocks").pp(i);
            let mut resnets = Vec::new();
            for j in 0..=layers {
                resnets.push(ResnetBlock::load(&at.pp("resnets").pp(j), width, out, groups)?);
                width = out;
            }
            let resampler = if i + 1 < n { Some(Conv::load(&at.pp("upsamplers.0.conv"), out, out, 3, 1)?) } else { None };
            up_blocks.push(Stage { resnets, resampler });
        }
        let decoder = Decoder {
            conv_in: Conv::load(&at.pp("conv_in"), latent, last, 3, 1)?,
            mid: Mid::load(&at.pp("mid_block"), last, groups)?,
            up_blocks,
            norm_out: norm_out(&at, channels[0])?,
            conv_out: Conv::load(&at.pp("conv_out"), channels[0], c_out, 3, 1)?,
        };
        let quant = Conv::load(&root.pp("quant_conv"), 2 * latent, 2 * latent, 1, 1)?;
        let post_quant = Conv::load(&root.pp("post_quant_conv"), latent, latent, 1, 1)?;
        let device = root.device().clone();
        weights.finish()?;
        let factor = 1 << (n - 1);
        Ok(Self { device, encoder, decoder, quant, post_quant, scaling_factor, factor, tile: sample_size / factor })
    }

    /// Unscaled latents `(batch, latent, h, w)` → images `(batch, 3, f·h, f·w)`, nominally in [−1, 1]. Both on the CPU.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        to_host(&self.decode_within(&latents.to_device(&self.device)?, strips::Budget::of(&self.device))?)
    }

    /// [`decode`](Self::decode) on the device.
    fn decode_within(&self, latents: &Tensor, budget: strips::Budget) -> Result<Tensor> {
        let d = &self.decoder;
        let (batch, _, h, w) = latents.dims4()?;
        let largest = d.largest_map(h, w);
        // As many images at a time as come in whole maps.
        let images = (budget.whole / largest.max(1)).clamp(1, batch.max(1));
        let parts = (0..batch).step_by(images).map(|first| {
            let part = latents.narrow(0, first, images.min(batch - first))?;
            let x = d.mid.forward(&d.conv_in.forward(&self.post_quant.forward(&part)?)?)?;
            if largest <= budget.whole { d.forward(&x) } else { strips::decode(d, &x, budget) }
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// [`decode`](Self::decode) of one image in the way asked for.
    pub(crate) fn decode_as(&self, latents: &Tensor, how: VaeDecode) -> Result<Tensor> {
        let (_, _, h, w) = latents.dims4()?;
        let norms = match how {
            VaeDecode::Tiled => tiles::Norms::Own,
            VaeDecode::TiledSynchronised => tiles::Norms::Common,
            VaeDecode::Whole => return self.decode(latents),
        };
        // A map of one tile is decoded whole, as the references do.
        if h <= self.tile && w <= self.tile {
            return self.decode(latents);
        }
        to_host(&tiles::decode(self, &latents.to_device(&self.device)?, self.tile, norms)?)
    }

    /// [`decode`](Self::decode) in the smallest strips, no upsampled map held.
    #[cfg(test)]
    pub(crate) fn decode_in_small_strips(&self, latents: &Tensor) -> Result<Tensor> {
        let image = self.decode_within(&latents.to_device(&self.device)?, strips::Budget { strip: 1, held: 0, whole: 0 })?;
        to_host(&image)
    }

    /// Images `(batch, 3, H, W)` in [−1, 1] → mean and log-variance of the unscaled latents, each
    /// `(batch, latent, H / f, W / f)`. All on the CPU.
    pub(crate) fn encode(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, _, height, width) = images.dims4()?;
        // As many at a time as are decoded.
        let largest = self.decoder.largest_map(height / self.factor, width / self.factor);
        let at_once = (strips::Budget::of(&self.device).whole / largest.max(1)).clamp(1, batch.max(1));
        let parts = (0..batch).step_by(at_once).map(|first| self.encode_at_once(&images.narrow(0, first, at_once.min(batch - first))?));
        let (means, log_variances): (Vec<_>, Vec<_>) = parts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Tensor::cat(&means, 0)?, Tensor::cat(&log_variances, 0)?))
    }

    fn encode_at_once(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let e = &self.encoder;
        let mut x = e.conv_in.forward(&images.to_device(&self.device)?)?;
        for block in &e.down_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(conv) = &block.resampler {
                // Padded on the right and below only.
                x = conv.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)?;
            }
        }
        let x = e.conv_out.forward(&e.norm_out.forward_silu(&e.mid.forward(&x)?)?)?;
        let moments = self.quant.forward(&x)?.chunk(2, 1)?;
        Ok((to_host(&moments[0])?, to_host(&moments[1])?))
    }
}

/// From the device, in the order of its dimensions.
fn to_host(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.to_device(&Device::Cpu)?)
}
