//! The U-Net of Stable Diffusion with named sites. It asks the plan what to do and names no method.

mod conv;
mod fusion;
mod maps;
mod resnet;
mod temporal;
mod transformer;
mod windows;

pub(crate) use conv::SiteConv;
pub(crate) use maps::{MapStore, MapSum};
use maps::{MapTape, PromptMaps};
use resnet::ResnetBlock;
use temporal::{Adapter, Frames, MotionConfig, TemporalConv, TemporalTransformer};
use transformer::Transformer;

use crate::checkpoint::{Dtype, LoadOptions};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{GroupNorm, Linear};
use crate::plan::{ConvAction, LayerAction, Plan, Resize, SkipAction};
use crate::site::SiteTable;
use crate::step::{Conditioning, Pass};
use crate::weights::{Scope, Weights};
use candle_core::{DType, Device, Tensor};
use scalebench_kernels as kernels;
use serde_json::json;
use std::path::Path;
use std::sync::Mutex;

/// Largest side of the training latents.
const LARGEST_SAMPLE: usize = 1 << 13;

/// Most classes of a network that knows some: the x4 upscaler has 1000.
const MOST_CLASSES: usize = 1 << 16;

/// Most transformer blocks in a row; SDXL has ten.
const MOST_BLOCKS: usize = 256;

/// Elements of a video's map beyond which layers over pixels go through its frames some at a time: 16 MiB on the CPU, 512 MiB on a
/// GPU, which only large maps fill.
const STRIP: (usize, usize) = (1 << 22, 1 << 27);

/// What `unet/config.json` decides.
#[derive(Debug, Clone)]
pub(crate) struct UNetConfig {
    pub(crate) sample_size: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    channels: Vec<usize>,
    down_attention: Vec<bool>,
    up_attention: Vec<bool>,
    layers_per_block: usize,
    pub(crate) cross_attention_dim: usize,
    /// Per level. The file calls it `attention_head_dim`, a name that upstream kept by mistake.
    heads: Vec<usize>,
    transformer_depth: Vec<usize>,
    use_linear_projection: bool,
    /// Per level, whether its transformers attend to the text in place of the map itself, twice.
    only_cross_attention: Vec<bool>,
    /// The same of the middle block.
    mid_only_cross_attention: bool,
    /// Classes that the network may be told, such as noise levels.
    pub(crate) classes: Option<usize>,
    norm_num_groups: usize,
    norm_eps: f64,
    /// SDXL's text and size embedding.
    pub(crate) added: Option<AddedConfig>,
    /// Whether it has layers over frames of its own: `UNet3DConditionModel`.
    pub(crate) volume: bool,
    /// Its motion modules, of a network that a motion adapter was merged into: `UNetMotionModel`.
    motion: Option<MotionConfig>,
}

/// Width of the sinusoids of one size number, and of the pooled text embedding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AddedConfig {
    time_width: usize,
    pub(crate) pooled_width: usize,
}

/// How many numbers describe an image's size to SDXL: original height and width, top and left of the
/// crop, target height and width.
pub(crate) const SIZE_NUMBERS: usize = 6;

/// What the network is told besides latents and timestep.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Text embedding, `(batch, tokens, cross_attention_dim)`.
    pub(crate) text: Tensor,
    /// SDXL: pooled text embedding `(batch, pooled_width)` and size numbers `(batch, 6)`.
    pub(crate) added: Option<(Tensor, Tensor)>,
    /// The class of the whole batch, of a network with classes.
    pub(crate) class: Option<usize>,
}

impl AddedConfig {
    /// That of SDXL, if the configuration asks for it.
    fn of(c: &mut Config) -> Result<Option<Self>> {
        if c.string("addition_embed_type", "")?.is_empty() {
            return Ok(None);
        }
        let time_width = c.count("addition_time_embed_dim", None)?;
        if !time_width.is_multiple_of(2) {
            return c.refuse("addition_time_embed_dim", "an even number: sines and cosines");
        }
        let input = c.count("projection_class_embeddings_input_dim", None)?;
        match input.checked_sub(SIZE_NUMBERS * time_width).filter(|n| *n > 0) {
            Some(pooled_width) => Ok(Some(Self { time_width, pooled_width })),
            None => {
                let expected = format!("expected more than {SIZE_NUMBERS} times `addition_time_embed_dim`");
                Err(Error::malformed(c.file(), format!("`projection_class_embeddings_input_dim` is {input}, {expected}")))
            }
        }
    }
}

impl UNetConfig {
    fn of(mut c: Config) -> Result<Self> {
        let file = &c.file().to_owned();
        let groups = c.count("norm_num_groups", Some(32))?;
        let channels = c.channels("block_out_channels", groups)?;
        let n = channels.len();
        let types = c.strings("down_block_types")?;
        let kind = ["3D", "Motion"].into_iter().find(|kind| types.iter().any(|name| name.ends_with(kind))).unwrap_or("2D");
        let volume = kind == "3D";
        let motion = if kind == "Motion" { Some(MotionConfig::merged(&mut c, groups, &channels)?) } else { None };
        let mut attention = |key: &str, with: &str, without: &str| -> Result<Vec<bool>> {
            let names = c.strings(key)?;
            let wrong = || Error::malformed(file, format!("`{key}` is {names:?}, expected {n} of {with} or {without}"));
            if names.len() != n {
                return Err(wrong());
            }
            names
                .iter()
                .map(|s| {
                    if s == with {
                        Ok(true)
                    } else if s == without {
                        Ok(false)
                    } else {
                        Err(wrong())
                    }
                })
                .collect()
        };
        let down_attention = attention("down_block_types", &format!("CrossAttnDownBlock{kind}"), &format!("DownBlock{kind}"))?;
        let up_attention = attention("up_block_types", &format!("CrossAttnUpBlock{kind}"), &format!("UpBlock{kind}"))?;
        c.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
        c.only("act_fn", &[json!("silu")])?;
        c.only("flip_sin_to_cos", &[json!(true)])?;
        c.only("freq_shift", &[json!(0)])?;
        c.only("downsample_padding", &[json!(1)])?;
        c.only("mid_block_scale_factor", &[json!(1), json!(1.0)])?;
        c.only("dropout", &[json!(0.0), json!(0)])?;
        c.only("conv_in_kernel", &[json!(3)])?;
        c.only("conv_out_kernel", &[json!(3)])?;
        c.only("resnet_time_scale_shift", &[json!("default")])?;
        c.only("resnet_out_scale_factor", &[json!(1.0)])?;
        c.only("time_embedding_type", &[json!("positional")])?;
        c.only("attention_type", &[json!("default")])?;
        // Attention runs in f32 throughout; the head count belongs to other added embeddings.
        c.ignore(&["upcast_attention", "addition_embed_type_num_heads"]);
        c.only("addition_embed_type", &[json!("text_time")])?;
        let only_cross_attention = c.bools("only_cross_attention", n)?;
        // One boolean is of the middle block, too; a list says nothing of it.
        let of_all = c.bool("only_cross_attention", false).unwrap_or(false);
        let mid_only_cross_attention = c.bool("mid_block_only_cross_attention", of_all)?;
        let classes = match c.within("num_class_embeds", Some(0), 0, MOST_CLASSES)? {
            0 => None,
            classes => Some(classes),
        };
        let added = AddedConfig::of(&mut c)?;
        let heads = if volume {
            // Here the name means what it says.
            let width = c.count("attention_head_dim", Some(64))?;
            if channels.iter().any(|c| !c.is_multiple_of(width)) {
                return c.refuse("attention_head_dim", format!("a divisor of {channels:?}"));
            }
            channels.iter().map(|c| c / width).collect()
        } else if motion.is_some() {
            // Files of older versions keep the other key, too, which the merged network does not read.
            c.ignore(&["attention_head_dim"]);
            c.counts("num_attention_heads", Some(n), Some(8))?
        } else {
            c.counts("attention_head_dim", Some(n), Some(8))?
        };
        // An adapter's count for each block becomes the merged network's.
        let layers_per_block = match motion.as_ref().map(|_| c.counts("layers_per_block", Some(n), Some(2))).transpose()? {
            None => c.layers("layers_per_block", Some(2))?,
            Some(counts) if counts[0] <= 256 && counts.iter().all(|count| *count == counts[0]) => counts[0],
            Some(_) => return c.refuse("layers_per_block", "the same count, at most 256, in every block"),
        };
        let heads_key = if motion.is_some() { "num_attention_heads" } else { "attention_head_dim" };
        let config = Self {
            sample_size: c.within("sample_size", None, 1, LARGEST_SAMPLE)?,
            in_channels: c.count("in_channels", Some(4))?,
            out_channels: c.count("out_channels", Some(4))?,
            layers_per_block,
            cross_attention_dim: c.count("cross_attention_dim", Some(if volume { 1024 } else { 1280 }))?,
            heads,
            transformer_depth: c.counts("transformer_layers_per_block", Some(n), Some(1))?,
            use_linear_projection: volume || c.bool("use_linear_projection", false)?,
            only_cross_attention,
            mid_only_cross_attention,
            classes,
            norm_num_groups: groups,
            norm_eps: c.positive("norm_eps", 1e-5, 1.0)?,
            channels,
            down_attention,
            up_attention,
            added,
            volume,
            motion,
        };
        if !config.channels[0].is_multiple_of(2) {
            return c.refuse("block_out_channels", "an even number first: its time embedding is sines and cosines");
        }
        // The middle block, at the last level, always attends.
        let attends = |level: usize| level + 1 == n || config.down_attention[level] || config.up_attention[n - 1 - level];
        if let Some(level) = (0..n).find(|&level| attends(level) && !config.channels[level].is_multiple_of(config.heads[level])) {
            return c.refuse(heads_key, format!("at level {level} a divisor of its {} channels", config.channels[level]));
        }
        if config.transformer_depth.iter().any(|depth| *depth > MOST_BLOCKS) {
            return c.refuse("transformer_layers_per_block", format!("at most {MOST_BLOCKS}"));
        }
        c.finish()?;
        Ok(config)
    }

    pub(crate) fn time_width(&self) -> usize {
        4 * self.channels[0]
    }

    /// The family with this architecture, as far as the network alone tells: 2.1 at 768 pixels is as 2.1 base.
    pub(crate) fn family(&self) -> Option<&'static str> {
        if self.volume {
            return (self.cross_attention_dim == 1024).then_some("modelscope");
        }
        match (self.cross_attention_dim, self.sample_size) {
            (2048, _) if self.added.is_some() => Some("sdxl"),
            (1024, _) => Some("sd21"),
            (768, _) => Some("sd15"),
            (96, 16) => Some("pocket"),
            _ => None,
        }
    }
}

/// What loading threads through: the configuration, and the sites found so far.
pub(crate) struct Build {
    config: UNetConfig,
    sites: SiteTable,
    /// Stride-2 convolutions between the latents and the layer that is loaded.
    halvings: usize,
}

/// What every layer may look at during one pass.
pub(crate) struct Context<'a> {
    plan: &'a Plan,
    /// Text embedding, `(batch, tokens, cross_attention_dim)`.
    text: &'a Tensor,
    /// SiLU of the time embedding, `(1 or batch, time_width)`.
    time_silu: Tensor,
    /// Consecutive maps of the batch that are one video's.
    frames: usize,
    /// Elements of a map beyond which layers over pixels go through a video's frames some at a time.
    strip: usize,
    tape: &'a Tape,
    maps: &'a MapTape,
    prompt: &'a PromptMaps<'a>,
}

/// What a self-attention lends to the same one of another pass.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    /// Queries and keys, `(batch, tokens, width)`.
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    /// (height, width) of the map whose pixels they are.
    pub(crate) size: (usize, usize),
}

/// Queries and keys of self-attentions, by site, on their way from one pass to another.
pub(crate) enum Tape {
    /// Nothing is lent.
    Off,
    /// Kept for another pass at the sites that it asks for.
    Record(Vec<bool>, Mutex<Vec<Option<Lent>>>),
    /// Lent by another pass.
    Play(Vec<Option<Lent>>),
}

impl Tape {
    /// For what `borrowers` ask for; off if there are none.
    fn recorder<'a>(borrowers: impl Iterator<Item = &'a Pass>) -> Self {
        let mut wanted: Vec<bool> = Vec::new();
        for pass in borrowers {
            wanted.resize(pass.plan.attentions.len(), false);
            wanted.iter_mut().zip(&pass.plan.attentions).for_each(|(wanted, action)| *wanted |= action.lent > 0.0);
        }
        let kept = Mutex::new(vec![None; wanted.len()]);
        if wanted.is_empty() { Self::Off } else { Self::Record(wanted, kept) }
    }

    /// Whether what happens at `site` is kept.
    pub(crate) fn wants(&self, site: usize) -> bool {
        matches!(self, Self::Record(wanted, _) if wanted[site])
    }

    pub(crate) fn keep(&self, site: usize, lent: Lent) {
        if let Self::Record(_, kept) = self {
            kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[site] = Some(lent);
        }
    }

    /// What another pass lends at `site`.
    pub(crate) fn lent(&self, site: usize) -> Result<&Lent> {
        match self {
            Self::Play(lent) => lent[site].as_ref(),
            _ => None,
        }
        .ok_or_else(|| Error::method("", "has a self-attention that borrows from no pass"))
    }

    /// Rows `from..from + n` of what was recorded, `times` over.
    fn rows(&self, from: usize, n: usize, times: usize) -> Result<Self> {
        let Self::Record(_, kept) = self else { return Err(Error::method("", "takes queries of a pass that lends none")) };
        let kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let narrow = |t: &Tensor| Ok::<_, Error>(Tensor::cat(&vec![t.narrow(0, from, n)?.contiguous()?; times], 0)?);
        let rows = |lent: &Option<Lent>| match lent {
            None => Ok(None),
            Some(Lent { q, k, size }) => Ok(Some(Lent { q: narrow(q)?, k: narrow(k)?, size: *size })),
        };
        Ok(Self::Play(kept.iter().map(rows).collect::<Result<_>>()?))
    }
}

/// The latents that the network is shown.
pub(crate) struct Shown<'a> {
    /// As they are now, `(images, c, h, w)`; of videos, frame after frame, `(videos · frames, c, h, w)`.
    pub(crate) now: &'a Tensor,
    /// As the stage before had them at the same step, of its own height and width.
    pub(crate) before: Option<&'a Tensor>,
    /// Frames of a video; 1 of images.
    pub(crate) frames: usize,
}

/// Says what a batch of passes with these conditionings is told, all images of the first before those of the second; of the stage
/// before, if its latents are shown.
pub(crate) type Telling<'a> = dyn FnMut(bool, &[Conditioning]) -> Result<Told> + 'a;

impl Context<'_> {
    fn conv(&self, conv: &SiteConv) -> &ConvAction {
        &self.plan.convs[conv.site]
    }

    /// `x` through layers over pixels; of a video, so many frames at a time that memory is bounded. No frame depends on another there.
    fn over_pixels(&self, x: &Tensor, layers: impl Fn(&Tensor, &Context<'_>) -> Result<Tensor>) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let at_once = (self.strip * batch / x.elem_count().max(1)).max(1);
        let is_alone = matches!(self.tape, Tape::Off) && self.maps.is_idle() && self.prompt.is_idle();
        if self.frames == 1 || at_once >= batch || !is_alone {
            return layers(x, self);
        }
        let strip = |first: usize| -> Result<Tensor> {
            let n = at_once.min(batch - first);
            let text = self.text.narrow(0, first, n)?.contiguous()?;
            let time_silu = if self.time_silu.dim(0)? == 1 { self.time_silu.clone() } else { self.time_silu.narrow(0, first, n)? };
            let Self { plan, frames, strip, tape, maps, prompt, .. } = *self;
            layers(&x.narrow(0, first, n)?.contiguous()?, &Context { plan, text: &text, time_silu, frames, strip, tape, maps, prompt })
        };
        Ok(Tensor::cat(&(0..batch).step_by(at_once).map(strip).collect::<Result<Vec<_>>>()?, 0)?)
    }
}

#[derive(Debug, Default)]
struct Stage {
    resnets: Vec<ResnetBlock>,
    /// One per resnet, or none.
    temp_convs: Vec<TemporalConv>,
    /// One per resnet, or none.
    attentions: Vec<Transformer>,
    /// Over frames; one per resnet, or none.
    temporals: Vec<TemporalTransformer>,
    /// Skip sites, one per resnet on the way up.
    joins: Vec<usize>,
    /// Layer sites, one per resnet and resampler on the way down.
    layers: Vec<usize>,
    resampler: Option<SiteConv>,
}

impl Stage {
    /// Block `level` of the way down, from `c` channels on. What its skip connections carry is added to `skips`.
    fn load_down(
        build: &mut Build,
        root: &Scope<'_>,
        frames: &Frames<'_>,
        level: usize,
        c: &mut usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let (at, out, attends) = (root.pp("down_blocks").pp(level), build.config.channels[level], build.config.down_attention[level]);
        build.halvings = level;
        let mut stage = Self::default();
        for i in 0..build.config.layers_per_block {
            let mut layer = at.pp("resnets").pp(i);
            stage.resnets.push(ResnetBlock::load(build, &layer, *c, out)?);
            stage.temp_convs.extend(frames.convolution(build, &at, i, out)?);
            if attends {
                layer = at.pp("attentions").pp(i);
                let only_cross = build.config.only_cross_attention[level];
                stage.attentions.push(Transformer::load(build, &layer, out, level, only_cross)?);
            }
            stage.temporals.extend(frames.attention(build, &at, i, level, attends)?);
            stage.layers.push(build.sites.add_layer(layer.path()));
            *c = out;
            skips.push(out);
        }
        if level + 1 < build.config.channels.len() {
            skips.push(*c);
            stage.layers.push(build.sites.add_layer(at.pp("downsamplers.0").path()));
            stage.resampler = Some(SiteConv::load(build, &at.pp("downsamplers.0.conv"), *c, *c, 2)?);
        }
        Ok(stage)
    }

    /// Block `i` of the way up, likewise; its skip connections are taken from `skips`.
    fn load_up(build: &mut Build, root: &Scope<'_>, frames: &Frames<'_>, i: usize, c: &mut usize, skips: &mut Vec<usize>) -> Result<Self> {
        let n = build.config.channels.len();
        let level = n - 1 - i;
        let (at, out, attends) = (root.pp("up_blocks").pp(i), build.config.channels[level], build.config.up_attention[i]);
        build.halvings = level;
        let mut stage = Self::default();
        for j in 0..=build.config.layers_per_block {
            let skip = skips.pop().expect("one skip per up layer");
            let at_resnet = at.pp("resnets").pp(j);
            stage.joins.push(build.sites.add_skip(at_resnet.path(), i, *c));
            stage.resnets.push(ResnetBlock::load(build, &at_resnet, *c + skip, out)?);
            stage.temp_convs.extend(frames.convolution(build, &at, j, out)?);
            if attends {
                let only_cross = build.config.only_cross_attention[level];
                stage.attentions.push(Transformer::load(build, &at.pp("attentions").pp(j), out, level, only_cross)?);
            }
            stage.temporals.extend(frames.attention(build, &at, j, level, attends)?);
            *c = out;
        }
        // It sees what is enlarged already.
        build.halvings = level.saturating_sub(1);
        if i + 1 < n {
            stage.resampler = Some(SiteConv::load(build, &at.pp("upsamplers.0.conv"), *c, *c, 1)?);
        }
        Ok(stage)
    }

    fn layer(&self, i: usize, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let mut x = cx.over_pixels(x, |x, cx| self.resnets[i].forward(x, cx))?;
        if let Some(conv) = self.temp_convs.get(i) {
            x = conv.forward(&x, cx.frames)?;
        }
        if let Some(attention) = self.attentions.get(i) {
            x = cx.over_pixels(&x, |x, cx| attention.forward(x, cx))?;
        }
        match self.temporals.get(i) {
            Some(temporal) => temporal.forward(&x, cx.frames),
            None => Ok(x),
        }
    }
}

/// The middle block.
#[derive(Debug)]
struct Mid {
    resnets: [ResnetBlock; 2],
    temp_convs: [Option<TemporalConv>; 2],
    attention: Transformer,
    temporal: Option<TemporalTransformer>,
}

impl Mid {
    fn load(build: &mut Build, at: &Scope<'_>, frames: &Frames<'_>, c: usize) -> Result<Self> {
        let level = build.config.channels.len() - 1;
        let first = ResnetBlock::load(build, &at.pp("resnets.0"), c, c)?;
        let first_conv = frames.convolution(build, at, 0, c)?;
        let only_cross = build.config.mid_only_cross_attention;
        let attention = Transformer::load(build, &at.pp("attentions.0"), c, level, only_cross)?;
        let temporal = frames.mid_attention(build, at)?;
        let second = ResnetBlock::load(build, &at.pp("resnets.1"), c, c)?;
        let second_conv = frames.convolution(build, at, 1, c)?;
        Ok(Self { resnets: [first, second], temp_convs: [first_conv, second_conv], attention, temporal })
    }

    fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let resnet = |i: usize, x: &Tensor| -> Result<Tensor> {
            let x = cx.over_pixels(x, |x, cx| self.resnets[i].forward(x, cx))?;
            self.temp_convs[i].as_ref().map_or_else(|| Ok(x.clone()), |conv| conv.forward(&x, cx.frames))
        };
        let x = resnet(0, x)?;
        let mut x = cx.over_pixels(&x, |x, cx| self.attention.forward(x, cx))?;
        if let Some(temporal) = &self.temporal {
            x = temporal.forward(&x, cx.frames)?;
        }
        resnet(1, &x)
    }
}

/// The noise predictor.
#[derive(Debug)]
pub(crate) struct UNet {
    pub(crate) config: UNetConfig,
    pub(crate) sites: SiteTable,
    conv_in: SiteConv,
    time: Embedding,
    added: Option<Embedding>,
    /// A row for each class, `(classes, time_width)`.
    classes: Option<Tensor>,
    first_temporal: Option<TemporalTransformer>,
    down_blocks: Vec<Stage>,
    mid: Mid,
    up_blocks: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: SiteConv,
    device: Device,
    activations: DType,
    /// Most frames of a video; 1 without layers over frames.
    pub(crate) max_frames: usize,
    /// Elements of a map beyond which a video's frames go through layers over pixels some at a time.
    pub(crate) strip: usize,
}

impl UNet {
    /// Reads `config.json` and the weights of a diffusers `unet/` folder.
    pub(crate) fn open(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let config = UNetConfig::of(Config::open(&folder.join("config.json"))?)?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", options)?.multiplied_in(options.dtype);
        let adapter = match &options.motion_adapter {
            Some(_) if config.volume || config.motion.is_some() => {
                return Err(Error::malformed(folder.join("config.json"), "has layers over frames of its own, expected no motion adapter"));
            }
            Some(place) => Some(Adapter::open(place, &config, options)?),
            None => None,
        };
        let frames = Frames::of(&config, adapter.as_ref());
        let unet = Self::load(config, &weights.root(), &frames)?;
        weights.finish()?;
        adapter.map_or(Ok(()), Adapter::finish)?;
        Ok(unet)
    }

    /// The network of a `config.json` on random weights, multiplying in `dtype`.
    pub(crate) fn random(config: &Path, dtype: Dtype, device: &Device) -> Result<Self> {
        let config = UNetConfig::of(Config::open(config)?)?;
        let frames = Frames::of(&config, None);
        Self::load(config, &Weights::random(device).multiplied_in(dtype).root(), &frames)
    }

    /// The network of a `config.json` without weights, which has sites and cannot run.
    pub(crate) fn hollow(config: Config) -> Result<Self> {
        let config = UNetConfig::of(config)?;
        let frames = Frames::of(&config, None);
        Self::load(config, &Weights::hollow().root(), &frames)
    }

    fn load(config: UNetConfig, root: &Scope<'_>, frames: &Frames<'_>) -> Result<Self> {
        let build = &mut Build { config: config.clone(), sites: SiteTable::default(), halvings: 0 };
        let (channels, n, time) = (&config.channels, config.channels.len(), config.time_width());
        let conv_in = SiteConv::load(build, &root.pp("conv_in"), config.in_channels, channels[0], 1)?;
        let time_embedding = Embedding::load(&root.pp("time_embedding"), channels[0], time)?;
        let added = match &config.added {
            Some(a) => Some(Embedding::load(&root.pp("add_embedding"), a.pooled_width + SIZE_NUMBERS * a.time_width, time)?),
            None => None,
        };
        let classes = config.classes.map(|n| root.get("class_embedding.weight", &[n, time])).transpose()?;
        let first_temporal = frames.first_attention(build, root)?;

        // What each skip connection carries, in the order in which the down path makes them.
        let mut skips = vec![channels[0]];
        let mut c = channels[0];
        let down_blocks = (0..n).map(|level| Stage::load_down(build, root, frames, level, &mut c, &mut skips)).collect::<Result<_>>()?;
        let mid = Mid::load(build, &root.pp("mid_block"), frames, c)?;
        let up_blocks = (0..n).map(|i| Stage::load_up(build, root, frames, i, &mut c, &mut skips)).collect::<Result<_>>()?;
        let conv_norm_out = GroupNorm::load(&root.pp("conv_norm_out"), c, config.norm_num_groups, config.norm_eps)?;
        let conv_out = SiteConv::load(build, &root.pp("conv_out"), c, config.out_channels, 1)?;
        let sites = std::mem::take(&mut build.sites);
        Ok(Self {
            config,
            sites,
            conv_in,
            time: time_embedding,
            added,
            classes,
            first_temporal,
            down_blocks,
            mid,
            up_blocks,
            conv_norm_out,
            conv_out,
            device: root.device().clone(),
            activations: root.activations(),
            max_frames: frames.max_frames(),
            strip: if kernels::on_gpu(root.device()) { STRIP.1 } else { STRIP.0 },
        })
    }

    /// The prediction of each pass from what is `shown`, in the shape of that; passes with equal plans run as one batch, after the
    /// pass whose queries they take.
    pub(crate) fn predict(&self, shown: &Shown<'_>, timestep: f64, passes: &[Pass], told: &mut Telling<'_>) -> Result<Vec<Tensor>> {
        Ok(self.predict_keeping(shown, timestep, passes, told, &mut MapStore::default(), &[])?.0)
    }

    /// [`predict`](Self::predict) with a store of the maps that passes keep; and how the last pass with the prompt attends to it beside
    /// the self-attentions `sites`, which run on maps of one size: the mean over these sites and their heads, `(images, pixels, tokens)`.
    pub(crate) fn predict_keeping(
        &self,
        shown: &Shown<'_>,
        timestep: f64,
        passes: &[Pass],
        told: &mut Telling<'_>,
        store: &mut MapStore,
        sites: &[usize],
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let images = shown.now.dim(0)?;
        // Videos are large enough to go pass by pass.
        let one_by_one = shown.frames > 1;
        let mut kept = None;
        let mut predictions: Vec<Option<Tensor>> = vec![None; passes.len()];
        // Which passes ran together, and what they lend.
        let mut tapes: Vec<(Vec<usize>, Tape)> = Vec::new();
        // Who lends comes first.
        let (borrowers, lenders): (Vec<usize>, Vec<usize>) = (0..passes.len()).partition(|&j| passes[j].queries_of.is_some());
        for first in lenders.into_iter().chain(borrowers) {
            let pass = &passes[first];
            if predictions[first].is_some() {
                continue;
            }
            let latents = match pass.before {
                None => shown.now,
                Some(_) => shown.before.ok_or_else(|| Error::method("", "looks back at a stage that did not make this step"))?,
            };
            let key = |pass: &Pass| (pass.queries_of, pass.before, pass.maps);
            let alike = |other: &Pass| other.plan == pass.plan && key(other) == key(pass);
            let same: Vec<usize> = (0..passes.len())
                .filter(|&j| predictions[j].is_none() && if one_by_one { j == first } else { alike(&passes[j]) })
                .collect();
            let tape = match pass.queries_of {
                Some(lender) => match tapes.iter().find_map(|(group, tape)| Some((tape, group.iter().position(|&j| j == lender)?))) {
                    Some((tape, row)) => tape.rows(row * images, images, same.len())?,
                    None => return Err(Error::method("", "takes queries of a pass that takes them itself")),
                },
                None => Tape::recorder(passes.iter().filter(|other| other.queries_of.is_some_and(|lender| same.contains(&lender)))),
            };
            let conditionings: Vec<Conditioning> = same.iter().map(|&j| passes[j].conditioning).collect();
            let told = told(pass.before.is_some(), &conditionings)?;
            let batch = Tensor::cat(&vec![latents; same.len()], 0)?;
            let text = conditionings.iter().position(|c| *c == Conditioning::Text);
            let maps = store.lend(pass.maps, &conditionings)?;
            let prompt = PromptMaps::of(if text.is_some() { sites } else { &[] });
            let batch = Shown { now: &batch, before: None, frames: shown.frames };
            let out = self.forward_taped(&batch, timestep, &told, &pass.plan, (&tape, &maps, &prompt), &mut |_, _| {})?;
            store.keep(maps, &conditionings)?;
            if let Some(row) = text {
                kept = prompt.mean(row * images, images)?;
            }
            for (row, &j) in same.iter().enumerate() {
                predictions[j] = Some(out.narrow(0, row * images, images)?.contiguous()?);
            }
            tapes.push((same, tape));
        }
        Ok((predictions.into_iter().flatten().collect(), kept))
    }

    /// Predicts from `latents` `(batch, in_channels, h, w)` at `timestep` under `plan`. Same shape out. What comes and goes is on
    /// the CPU, f32.
    #[cfg(test)]
    pub(crate) fn forward(&self, latents: &Tensor, timestep: f64, told: &Told, plan: &Plan) -> Result<Tensor> {
        self.forward_observed(&Shown { now: latents, before: None, frames: 1 }, timestep, told, plan, &mut |_, _| {})
    }

    /// The time embedding with that of the class, `(1, time_width)`, or with the added embedding `(batch, time_width)`.
    fn embed_time(&self, timestep: f64, told: &Told, see: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let time = self.time.forward(&sinusoid(&[timestep as f32], self.config.channels[0])?.to_device(&self.device)?)?;
        see("time_embedding", &time);
        let time = match (&self.classes, told.class) {
            (Some(classes), Some(class)) => time.broadcast_add(&classes.narrow(0, class, 1)?)?,
            _ => time,
        };
        let (Some(embedding), Some(config)) = (&self.added, &self.config.added) else { return Ok(time) };
        let (pooled, sizes) = told.added.as_ref().expect("the pipeline tells what the network asks for");
        let (batch, _) = sizes.dims2()?;
        let sizes = sinusoid(&sizes.flatten_all()?.to_vec1::<f32>()?, config.time_width)?;
        let sizes = sizes.reshape((batch, SIZE_NUMBERS * config.time_width))?;
        let added = embedding.forward(&Tensor::cat(&[pooled, &sizes], 1)?.to_device(&self.device)?)?;
        see("add_embedding", &added);
        Ok(time.broadcast_add(&added)?)
    }

    /// [`forward`](Self::forward), showing `see` the output of each block under its module path.
    #[cfg(test)]
    pub(crate) fn forward_observed(
        &self,
        shown: &Shown<'_>,
        timestep: f64,
        told: &Told,
        plan: &Plan,
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.forward_taped(shown, timestep, told, plan, (&Tape::Off, &MapTape::default(), &PromptMaps::of(&[])), see)
    }

    /// Predicts from what is shown now, `(batch, in_channels, h, w)`, at `timestep` under `plan`, what the tapes hold lent or taken,
    /// maps to the prompt seen: the same shape out, on
    /// the CPU, f32. `see` is shown the output of each block under its module path.
    fn forward_taped(
        &self,
        shown: &Shown<'_>,
        timestep: f64,
        told: &Told,
        plan: &Plan,
        (tape, maps, prompt): (&Tape, &MapTape, &PromptMaps<'_>),
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let time = self.embed_time(timestep, told, see)?;
        let text = told.text.to_dtype(self.activations)?.to_device(&self.device)?;
        let (frames, strip) = (shown.frames, self.strip);
        let cx = Context { plan, text: &text, time_silu: kernels::silu(&time)?, frames, strip, tape, maps, prompt };

        let mut x = self.conv_in.forward(&shown.now.to_device(&self.device)?, cx.conv(&self.conv_in), None)?;
        see("conv_in", &x);
        if let Some(temporal) = &self.first_temporal {
            x = temporal.forward(&x, frames)?;
        }
        let mut skips = vec![x.clone()];
        for (level, block) in self.down_blocks.iter().enumerate() {
            for i in 0..block.resnets.len() {
                x = leave(block.layer(i, &x, &cx)?, &plan.layers[block.layers[i]], &mut skips)?;
            }
            if let Some(conv) = &block.resampler {
                x = leave(conv.forward(&x, cx.conv(conv), None)?, &plan.layers[block.layers[block.resnets.len()]], &mut skips)?;
            }
            see(&format!("down_blocks.{level}"), &x);
        }

        x = self.mid.forward(&x, &cx)?;
        see("mid_block", &x);

        for (level, block) in self.up_blocks.iter().enumerate() {
            for i in 0..block.resnets.len() {
                let skip = skips.pop().expect("one skip per up layer");
                x = block.layer(i, &join(&x, &skip, &plan.skips[block.joins[i]])?, &cx)?;
            }
            if let Some(conv) = &block.resampler {
                // Twice the size, or the next skip's where an odd size was halved on the way down.
                let (_, _, h, w) = skips.last().expect("skips remain below the last block").dims4()?;
                x = kernels::upsample_nearest(&x, h, w)?;
                x = conv.forward(&x, cx.conv(conv), None)?;
            }
            see(&format!("up_blocks.{level}"), &x);
        }
        x = self.conv_norm_out.forward_silu(&x)?;
        x = self.conv_out.forward(&x, cx.conv(&self.conv_out), None)?;
        see("conv_out", &x);
        // What becomes of the prediction is the host's, in f32.
        Ok(x.to_dtype(DType::F32)?.contiguous()?.to_device(&Device::Cpu)?)
    }

    /// Where it computes.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

/// Leaves a layer of the down path with `x`: its skip connection is kept, and its size changed, as `action` says.
fn leave(x: Tensor, action: &LayerAction, skips: &mut Vec<Tensor>) -> Result<Tensor> {
    let Some(resize) = &action.resize else {
        skips.push(x.clone());
        return Ok(x);
    };
    let (_, _, h, w) = x.dims4()?;
    let small = match resize {
        Resize::AveragePool => kernels::average_pool(&x, 2)?,
        Resize::Bicubic(factor) => {
            let side = |n: usize| ((n as f64 * (1.0 / factor)).round_ties_even() as usize).max(1);
            kernels::resize_bicubic(&x, side(h), side(w))?
        }
    };
    skips.push(if action.skip_before { x } else { small.clone() });
    Ok(small)
}

/// Joins backbone and skip connection `(batch, channels, h, w)` along the channels, as `action` says.
fn join(backbone: &Tensor, skip: &Tensor, action: &SkipAction) -> Result<Tensor> {
    // They differ where a layer on the way down changed the size after its skip connection, or before the next one's.
    let (_, _, h, w) = skip.dims4()?;
    let backbone = &if backbone.dims()[2..] == [h, w] { backbone.clone() } else { kernels::resize_bicubic(backbone, h, w)? };
    let mut parts = Vec::with_capacity(3);
    if action.backbone == 1.0 {
        parts.push(backbone.clone());
    } else {
        let channels = backbone.dims()[1];
        parts.push((backbone.narrow(1, 0, channels / 2)? * action.backbone)?);
        parts.push(backbone.narrow(1, channels / 2, channels - channels / 2)?);
    }
    parts.push(if action.low_frequencies == 1.0 { skip.clone() } else { kernels::scale_low_frequencies(skip, action.low_frequencies)? });
    Ok(kernels::join_channels(&parts)?)
}

/// Two linear layers with SiLU between them.
#[derive(Debug)]
struct Embedding {
    first: Linear,
    second: Linear,
}

impl Embedding {
    fn load(at: &Scope<'_>, input: usize, width: usize) -> Result<Self> {
        Ok(Self { first: Linear::load(&at.pp("linear_1"), input, width)?, second: Linear::load(&at.pp("linear_2"), width, width)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&kernels::silu(&self.first.forward(x)?)?)
    }
}

/// Sinusoidal embedding of `n` numbers, cosines first: `(n, width)`, in f32 as diffusers has it.
fn sinusoid(numbers: &[f32], width: usize) -> Result<Tensor> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| (-(10_000f32.ln()) * i as f32 / half as f32).exp()).collect();
    let mut values = Vec::with_capacity(numbers.len() * width);
    for &n in numbers {
        values.extend(frequencies.iter().map(|f| (n * f).cos()));
        values.extend(frequencies.iter().map(|f| (n * f).sin()));
    }
    Ok(Tensor::from_vec(values, (numbers.len(), 2 * half), &Device::Cpu)?)
}
