//! Layers over the frames of a video: attention among the frames of each pixel, and convolution along frames.
//!
//! Maps are `(videos · frames, channels, height, width)`, the frames of a video one after the other. What is normalised here is
//! normalised over all frames of a video together; the layers over pixels see each frame by itself.

use super::transformer::Attention;
use super::{Build, UNetConfig};
use crate::checkpoint::LoadOptions;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{GroupNorm, LayerNorm, Linear};
use crate::weights::{Scope, Weights};
use candle_core::Tensor;
use scalebench_kernels::{self as kernels, Activation, ConvGeometry, ConvWeight};
use serde_json::json;
use std::path::Path;

/// Tokens whose attention is computed at a time: the kernel lays out keys and values in tiles, most of which a few frames leave empty.
const TOKENS_AT_ONCE: usize = 1 << 13;

/// What a `config.json` says of motion modules (AnimateDiff: Guo et al. 2023, arXiv 2307.04725).
#[derive(Debug, Clone)]
pub(super) struct MotionConfig {
    heads: Vec<usize>,
    groups: usize,
    /// Frames that there are positions for.
    max_frames: usize,
    mid: bool,
}

impl MotionConfig {
    /// Reads the keys that a `MotionAdapter` and a `UNetMotionModel` share, for a network of these `channels`.
    fn of(c: &mut Config, groups: usize, channels: &[usize]) -> Result<Self> {
        let config = Self {
            heads: c.counts("motion_num_attention_heads", Some(channels.len()), Some(8))?,
            groups,
            max_frames: c.within("motion_max_seq_length", Some(32), 1, 4096)?,
            mid: c.bool("use_motion_mid_block", true)?,
        };
        let divides = |by: usize| channels.iter().all(|c| c % by == 0);
        if !divides(config.groups) || config.heads.iter().zip(channels).any(|(heads, c)| c % heads != 0) {
            let reason = format!("{} groups and {:?} heads do not divide channels {channels:?}", config.groups, config.heads);
            return Err(Error::malformed(c.file(), reason));
        }
        Ok(config)
    }

    /// Of a `UNetMotionModel`, whose motion modules lie among its own layers and have the groups of its norms.
    pub(super) fn merged(c: &mut Config, groups: usize, channels: &[usize]) -> Result<Self> {
        let n = channels.len();
        c.only("temporal_transformer_layers_per_block", &[json!(1), json!(vec![1; n])])?;
        c.only("temporal_transformer_layers_per_mid_block", &[json!(1), json!([1])])?;
        c.only("mid_block_layers", &[json!(1)])?;
        Self::of(c, groups, channels)
    }

    /// Of an adapter's file, checked against the network that the modules go into.
    fn of_adapter(file: &Path, unet: &UNetConfig) -> Result<Self> {
        let mut c = Config::open(file)?;
        let n = unet.channels.len();
        let same = |key: &str, found: &[usize], expected: &[usize]| {
            let reason = || format!("`{key}` is {found:?}, expected the U-Net's {expected:?}");
            if found == expected { Ok(()) } else { Err(Error::malformed(file, reason())) }
        };
        same("block_out_channels", &c.counts("block_out_channels", None, None)?, &unet.channels)?;
        let layers = c.counts("motion_layers_per_block", Some(n), Some(2))?;
        same("motion_layers_per_block", &layers, &vec![unet.layers_per_block; n])?;
        for key in ["motion_transformer_layers_per_block", "motion_transformer_layers_per_mid_block"] {
            c.only(key, &[json!(1), json!(vec![1; n]), json!([1])])?;
        }
        c.only("motion_mid_block_layers_per_block", &[json!(1)])?;
        // Nine channels in are PIA's, which animates a picture.
        c.only("conv_in_channels", &[])?;
        // Of older versions; nothing reads them.
        c.ignore(&["motion_activation_fn", "motion_attention_bias", "motion_cross_attention_dim"]);
        let groups = c.count("motion_norm_num_groups", Some(32))?;
        let config = Self::of(&mut c, groups, &unet.channels)?;
        c.finish()?;
        Ok(config)
    }
}

/// An open motion adapter.
pub(super) struct Adapter {
    config: MotionConfig,
    weights: Weights,
}

impl Adapter {
    /// Opens a diffusers `MotionAdapter` folder for a network.
    pub(super) fn open(folder: &Path, unet: &UNetConfig, options: &LoadOptions) -> Result<Self> {
        let config = MotionConfig::of_adapter(&folder.join("config.json"), unet)?;
        let plain = LoadOptions { variant: None, ..options.clone() };
        let weights = Weights::open(folder, "diffusion_pytorch_model", &plain)?.multiplied_in(options.dtype);
        Ok(Self { config, weights })
    }

    /// Errors if the file has more than the network took.
    pub(super) fn finish(self) -> Result<()> {
        self.weights.finish()
    }
}

/// Where a network's layers over frames come from.
pub(super) enum Frames<'a> {
    /// It has none.
    None,
    /// Motion modules, one after each residual block and its attention: an adapter's, or those among the network's own weights.
    Motion(MotionConfig, Option<&'a Adapter>),
    /// Its own: convolutions after residual blocks, attentions after attentions (ModelScope: Wang et al. 2023, arXiv 2308.06571).
    Own,
}

impl<'a> Frames<'a> {
    /// Of a network and what is added to it.
    pub(super) fn of(config: &UNetConfig, adapter: Option<&'a Adapter>) -> Self {
        match (adapter, &config.motion) {
            (Some(adapter), _) => Self::Motion(adapter.config.clone(), Some(adapter)),
            (None, Some(motion)) => Self::Motion(motion.clone(), None),
            (None, None) if config.volume => Self::Own,
            (None, None) => Self::None,
        }
    }

    /// Attention over frames after layer `i` of the block at `block`, which attends to the text if `attends`; `level` is the block's
    /// among the channel counts.
    pub(super) fn attention(
        &self,
        build: &mut Build,
        block: &Scope<'_>,
        i: usize,
        level: usize,
        attends: bool,
    ) -> Result<Option<TemporalTransformer>> {
        let c = build.config.channels[level];
        match self {
            Self::Motion(config, adapter) => {
                let block = adapter.map_or_else(|| block.clone(), |adapter| adapter.weights.root().pp(block.path()));
                let at = block.pp("motion_modules").pp(i);
                let shape = Shape { channels: c, width: c, heads: config.heads[level], groups: config.groups };
                TemporalTransformer::load(build, &at, shape, Some(config.max_frames)).map(Some)
            }
            Self::Own if attends => {
                let at = block.pp("temp_attentions").pp(i);
                let shape = Shape { channels: c, width: c, heads: build.config.heads[level], groups: build.config.norm_num_groups };
                TemporalTransformer::load(build, &at, shape, None).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The same in the middle block.
    pub(super) fn mid_attention(&self, build: &mut Build, block: &Scope<'_>) -> Result<Option<TemporalTransformer>> {
        match self {
            Self::Motion(config, _) if !config.mid => Ok(None),
            _ => self.attention(build, block, 0, build.config.channels.len() - 1, true),
        }
    }

    /// The convolution along frames after residual block `i` of the block at `block`.
    pub(super) fn convolution(&self, build: &mut Build, block: &Scope<'_>, i: usize, channels: usize) -> Result<Option<TemporalConv>> {
        match self {
            Self::Own => TemporalConv::load(build, &block.pp("temp_convs").pp(i), channels).map(Some),
            _ => Ok(None),
        }
    }

    /// The attention over frames right after the first convolution.
    pub(super) fn first_attention(&self, build: &mut Build, root: &Scope<'_>) -> Result<Option<TemporalTransformer>> {
        let Self::Own = self else { return Ok(None) };
        // Eight heads of the usual width, whatever the channels.
        let c = &build.config;
        let shape = Shape { channels: c.channels[0], width: 8 * c.channels[0] / c.heads[0], heads: 8, groups: c.norm_num_groups };
        TemporalTransformer::load(build, &root.pp("transformer_in"), shape, None).map(Some)
    }

    /// Most frames of a video.
    pub(super) fn max_frames(&self) -> usize {
        match self {
            Self::None => 1,
            Self::Motion(config, _) => config.max_frames,
            Self::Own => usize::MAX,
        }
    }
}

/// Sizes of a temporal transformer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    channels: usize,
    /// Channels inside.
    width: usize,
    heads: usize,
    groups: usize,
}

/// Two self-attentions among the frames of each pixel and a feed-forward layer, added to the map.
#[derive(Debug)]
pub(super) struct TemporalTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    proj_out: Linear,
    /// Added to the normalised frames before each attention: `(frames, width)`.
    positions: Option<Tensor>,
}

impl TemporalTransformer {
    /// With positions for up to `max_frames` frames, if the network has any.
    fn load(build: &mut Build, at: &Scope<'_>, shape: Shape, max_frames: Option<usize>) -> Result<Self> {
        let Shape { channels, width, heads, groups } = shape;
        build.sites.add_temporal(at.path());
        let block = at.pp("transformer_blocks.0");
        let positions = match max_frames {
            None => None,
            // Files of other programs lack the table.
            Some(n) if !block.has("pos_embed.pe") => Some(positions(n, width)?.to_device(at.device())?),
            Some(n) => Some(block.get("pos_embed.pe", &[1, n, width])?.squeeze(0)?),
        };
        Ok(Self {
            norm: GroupNorm::load(&at.pp("norm"), channels, groups, 1e-6)?,
            proj_in: Linear::load(&at.pp("proj_in"), channels, width)?,
            norm1: LayerNorm::load(&block.pp("norm1"), width)?,
            attn1: Attention::load(&block.pp("attn1"), width, width, heads)?,
            norm2: LayerNorm::load(&block.pp("norm2"), width)?,
            attn2: Attention::load(&block.pp("attn2"), width, width, heads)?,
            norm3: LayerNorm::load(&block.pp("norm3"), width)?,
            ff_in: Linear::load(&block.pp("ff.net.0.proj"), width, 8 * width)?,
            ff_out: Linear::load(&block.pp("ff.net.2"), 4 * width, width)?,
            proj_out: Linear::load(&at.pp("proj_out"), width, channels)?,
            positions,
        })
    }

    /// `x` `(videos · frames, channels, h, w)` → the same shape. Pixels go some at a time, so that memory is bounded.
    pub(super) fn forward(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        let (batch, c, h, w) = x.dims4()?;
        let (videos, pixels) = (batch / frames, h * w);
        let normed = self.norm.forward(&over_frames(x, frames)?)?.contiguous()?;
        let mut parts = Vec::new();
        let at_once = (TOKENS_AT_ONCE / (videos * frames)).max(1);
        for first in (0..pixels).step_by(at_once) {
            let n = at_once.min(pixels - first);
            // (videos, pixels, frames, channels)
            let tokens = normed.narrow(3, first, n)?.permute((0, 3, 2, 1))?.contiguous()?.reshape((videos * n, frames, c))?;
            parts.push(self.tokens(&tokens, frames)?.reshape((videos, n, frames, c))?);
        }
        let found = Tensor::cat(&parts, 1)?.permute((0, 2, 3, 1))?.contiguous()?.reshape((batch, c, h, w))?;
        Ok(kernels::add(x, &found)?)
    }

    /// `x` `(sequences, frames, channels)` → the same shape.
    fn tokens(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        let mut x = self.proj_in.forward(x)?;
        for (norm, attention) in [(&self.norm1, &self.attn1), (&self.norm2, &self.attn2)] {
            let mut h = norm.forward(&x)?;
            if let Some(positions) = &self.positions {
                h = h.broadcast_add(&positions.narrow(0, 0, frames)?.to_dtype(h.dtype())?)?;
            }
            x = kernels::add(&x, &attention.among(&h)?)?;
        }
        let h = self.ff_in.forward_geglu(&self.norm3.forward(&x)?)?;
        let x = kernels::add(&x, &self.ff_out.forward(&h)?)?;
        self.proj_out.forward(&x)
    }
}

/// Sinusoidal positions, sines first, interleaved: `(n, width)`.
fn positions(n: usize, width: usize) -> Result<Tensor> {
    let mut values = Vec::with_capacity(n * width);
    for position in 0..n {
        for i in 0..width {
            let frequency = (-((i / 2 * 2) as f32) * (10_000f32.ln() / width as f32)).exp();
            let angle = position as f32 * frequency;
            values.push(if i % 2 == 0 { angle.sin() } else { angle.cos() });
        }
    }
    Ok(Tensor::from_vec(values, (n, width), &candle_core::Device::Cpu)?)
}

/// Four convolutions of three frames each, added to the map.
#[derive(Debug)]
pub(super) struct TemporalConv {
    stages: Vec<(GroupNorm, ConvWeight, Tensor)>,
}

impl TemporalConv {
    fn load(build: &mut Build, at: &Scope<'_>, c: usize) -> Result<Self> {
        build.sites.add_temporal(at.path());
        let groups = build.config.norm_num_groups;
        // The first stage has no dropout, which is a module with a number.
        let stage = |(name, conv): (&str, usize)| {
            let (norm, conv) = (at.pp(name).pp(0), at.pp(name).pp(conv));
            // Of the group norm's default epsilon, whatever the network's.
            Ok((GroupNorm::load(&norm, c, groups, 1e-5)?, conv.conv_over_frames("weight", c, c, 3)?, conv.get("bias", &[c])?))
        };
        Ok(Self { stages: [("conv1", 2), ("conv2", 3), ("conv3", 3), ("conv4", 3)].into_iter().map(stage).collect::<Result<_>>()? })
    }

    /// `x` `(videos · frames, channels, h, w)` → the same shape.
    pub(super) fn forward(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        // As a map of frames and pixels, under a kernel that is one pixel wide.
        let geometry = ConvGeometry { stride: 1, padding: (1, 0), dilation: 1 };
        let mut volume = over_frames(x, frames)?;
        for (norm, weight, bias) in &self.stages {
            volume = kernels::conv2d(&norm.forward_silu(&volume)?, weight, Some(bias), geometry, Activation::Identity)?;
        }
        // Back, which is the same exchange.
        let found = volume.transpose(1, 2)?.contiguous()?.reshape(x.shape())?;
        Ok(kernels::add(x, &found)?)
    }
}

/// `(videos · frames, channels, h, w)` as `(videos, channels, frames, h · w)`.
fn over_frames(x: &Tensor, frames: usize) -> Result<Tensor> {
    let (batch, c, h, w) = x.dims4()?;
    Ok(x.reshape((batch / frames, frames, c, h * w))?.transpose(1, 2)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    /// The values of the paper's code: sin and cos of position times frequency, frequencies from 1 down.
    #[test]
    fn positions_are_interleaved_sines_and_cosines() {
        let table = positions(3, 8).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(table[0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        for (position, row) in table.iter().enumerate() {
            for pair in 0..4 {
                let angle = position as f64 * 10_000f64.powf(-(2.0 * pair as f64) / 8.0);
                assert!((row[2 * pair] - angle.sin()).abs() < 1e-6 && (row[2 * pair + 1] - angle.cos()).abs() < 1e-6);
            }
        }
        assert!((table[1][0] - 0.841_471).abs() < 1e-6 && (table[1][1] - 0.540_302).abs() < 1e-6);
    }
}
