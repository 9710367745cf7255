//! Floating-point operations of a checkpoint's networks, from the shapes that its configuration files give.
//!
//! Two for each multiply-add of convolutions, linear layers and attention. What is done once an element (normalisation,
//! activations, softmax, resizing) is left out, and so are the text encoders. What a plan changes about sizes counts: dispersed
//! kernels, fractional dilations, resized blocks, attention in windows.

use anyhow::{Context, Result};
use scalebench_generation::journey::Finish;
use scalebench_generation::plan::{AttentionAction, AttentionShape, ConvAction, Geometry, Kernel, Plan, Resize};
use scalebench_generation::step::{Pass, Step, View};
use scalebench_generation::{Blueprint, Ending, Method, Request, SiteTable, StageSteps};
use serde_json::Value;

/// Tokens of a text embedding.
const TOKENS: f64 = 77.0;

/// What happens to a map on its way, in the order of the network.
#[derive(Clone)]
enum Part {
    /// A convolution, by its module path.
    Conv { path: String, stride: usize, by_position: f64 },
    /// What self-attention does with pairs of positions, by its module path.
    Pairs { path: String, width: f64 },
    /// Everything else.
    Layer(Layer),
    /// The end of a layer of the down path, by its module path: its output goes into a skip connection.
    Leave(String),
    /// A skip connection joins; the map takes its size.
    Join,
    /// To the size of the next skip connection, and where there are none to twice the size.
    Enlarge,
}

/// Multiply-adds of linear layers.
#[derive(Clone, Default)]
struct Layer {
    /// For each position.
    by_position: f64,
    /// For each token of the text.
    by_token: f64,
    /// For each position and token.
    by_both: f64,
    /// Whatever the size.
    fixed: f64,
}

/// What the U-Net's sites do in a pass.
#[derive(Clone, Copy)]
struct Acting<'a> {
    sites: &'a SiteTable,
    plan: &'a Plan,
    /// Latent (height, width) of the pass that lends queries and keys.
    lender: Option<(usize, usize)>,
}

/// The layers of a U-Net or of a decoder.
pub(crate) struct Flops {
    parts: Vec<Part>,
    /// Maps that go through it together: a video's frames.
    frames: f64,
    /// Layers over frames: how often the latents are halved before each, and its multiply-adds for each position of a frame.
    temporals: Vec<(usize, f64)>,
}

impl Flops {
    /// A checkpoint's U-Net.
    pub(crate) fn unet(checkpoint: &Blueprint) -> Result<Flops> {
        Flops::of_unet(checkpoint.unet_config()).context("unet/config.json: expected the shapes of a U-Net")
    }

    /// A checkpoint's decoder.
    pub(crate) fn decoder(checkpoint: &Blueprint) -> Result<Flops> {
        Flops::of_decoder(checkpoint.vae_config()).context("vae/config.json: expected the shapes of a decoder")
    }

    /// A checkpoint's U-Net for videos of so many frames, with the layers over frames that are among its sites; they are taken to run
    /// on the trained network's sizes.
    pub(crate) fn unet_of_videos(checkpoint: &Blueprint, frames: usize) -> Result<Flops> {
        let temporals = Flops::over_frames(checkpoint.unet_config(), checkpoint.sites(), frames);
        Ok(Flops { frames: frames as f64, temporals, ..Flops::unet(checkpoint)? })
    }

    /// Halvings and multiply-adds of each layer over frames.
    fn over_frames(config: &Value, sites: &SiteTable, frames: usize) -> Vec<(usize, f64)> {
        let widths = numbers(&config["block_out_channels"]).unwrap_or_default();
        let head = config["attention_head_dim"].as_f64().unwrap_or(64.0);
        let of_site = |path: &str| -> Option<(usize, f64)> {
            let mut parts = path.split('.');
            let (first, index) = (parts.next()?, parts.next().and_then(|index| index.parse::<usize>().ok()));
            let level = match first {
                "down_blocks" => index?,
                "up_blocks" => widths.len().checked_sub(1 + index?)?,
                "mid_block" => widths.len().checked_sub(1)?,
                _ => 0,
            };
            let c = *widths.get(level)?;
            // Two projections; two attentions of four products each, and their pairs of frames; a gated feed-forward (8 + 4).
            let transformer = |c: f64, inner: f64| 2.0 * c * inner + 20.0 * inner * inner + 4.0 * frames as f64 * inner;
            Some(match () {
                // Four convolutions of three frames.
                () if path.contains("temp_convs") => (level, 12.0 * c * c),
                () if first == "transformer_in" => (level, transformer(c, 8.0 * head)),
                () => (level, transformer(c, c)),
            })
        };
        sites.temporals.iter().filter_map(|site| of_site(&site.path)).collect()
    }

    /// A decoder's for every frame of a video.
    pub(crate) fn with_frames(self, frames: usize) -> Flops {
        Flops { frames: frames as f64, ..self }
    }

    fn of_unet(config: &Value) -> Option<Flops> {
        let widths = numbers(&config["block_out_channels"])?;
        let blocks = widths.len();
        let each = |key: &str, default: f64| -> Option<Vec<f64>> {
            match &config[key] {
                Value::Null => Some(vec![default; blocks]),
                Value::Array(_) => numbers(&config[key]).filter(|list| list.len() == blocks),
                one => Some(vec![one.as_f64()?; blocks]),
            }
        };
        let (layers, depths) = (each("layers_per_block", 2.0)?, each("transformer_layers_per_block", 1.0)?);
        let text = config["cross_attention_dim"].as_f64()?;
        let attends = |key: &str| -> Option<Vec<bool>> {
            config[key].as_array()?.iter().map(|kind| Some(kind.as_str()?.starts_with("CrossAttn"))).collect()
        };
        let (down, up) = (attends("down_block_types")?, attends("up_block_types")?);
        // Whether both attentions of a level's transformers are to the text; the middle block's if that is said for all.
        let only_cross: Vec<bool> = match &config["only_cross_attention"] {
            Value::Array(list) => list.iter().map(Value::as_bool).collect::<Option<_>>()?,
            one => vec![one.as_bool() == Some(true); blocks],
        };
        let mid_only_cross = config["only_cross_attention"].as_bool() == Some(true);
        if only_cross.len() != blocks {
            return None;
        }
        if down.len() != blocks || up.len() != blocks {
            return None;
        }
        let time = 4.0 * widths[0];
        let mut net = Flops { parts: Vec::new(), frames: 1.0, temporals: Vec::new() };
        net.conv("conv_in", config["in_channels"].as_f64()?, widths[0], 3.0);
        net.parts.push(Part::Leave(String::new()));
        net.fixed(widths[0] * time + time * time);
        if let Some(added) = config["projection_class_embeddings_input_dim"].as_f64() {
            net.fixed(added * time + time * time);
        }
        let mut width = widths[0];
        for i in 0..blocks {
            let at = format!("down_blocks.{i}");
            for j in 0..layers[i] as usize {
                let mut layer = format!("{at}.resnets.{j}");
                net.resnet(&layer, width, widths[i], Some(time));
                width = widths[i];
                if down[i] {
                    layer = format!("{at}.attentions.{j}");
                    net.transformer(&layer, width, depths[i], text, only_cross[i]);
                }
                net.parts.push(Part::Leave(layer));
            }
            if i + 1 < blocks {
                let layer = format!("{at}.downsamplers.0");
                net.parts.push(Part::Conv { path: format!("{layer}.conv"), stride: 2, by_position: width * width * 9.0 });
                net.parts.push(Part::Leave(layer));
            }
        }
        net.resnet("mid_block.resnets.0", width, width, Some(time));
        net.transformer("mid_block.attentions.0", width, depths[blocks - 1], text, mid_only_cross);
        net.resnet("mid_block.resnets.1", width, width, Some(time));
        for (i, &attends) in up.iter().enumerate() {
            let mirrored = blocks - 1 - i;
            let (at, out) = (format!("up_blocks.{i}"), widths[mirrored]);
            let n = layers[mirrored] as usize + 1;
            for j in 0..n {
                // The skip connections in reverse: the last one of a block comes from the block before its mirror image.
                let skip = if j + 1 == n { widths[mirrored.saturating_sub(1)] } else { out };
                net.parts.push(Part::Join);
                net.resnet(&format!("{at}.resnets.{j}"), width + skip, out, Some(time));
                width = out;
                if attends {
                    net.transformer(&format!("{at}.attentions.{j}"), width, depths[mirrored], text, only_cross[mirrored]);
                }
            }
            if mirrored > 0 {
                net.parts.push(Part::Enlarge);
                net.conv(&format!("{at}.upsamplers.0.conv"), width, width, 3.0);
            }
        }
        net.conv("conv_out", width, config["out_channels"].as_f64()?, 3.0);
        Some(net)
    }

    fn of_decoder(config: &Value) -> Option<Flops> {
        let widths = numbers(&config["block_out_channels"])?;
        let latent = config["latent_channels"].as_f64()?;
        let resnets = config["layers_per_block"].as_u64()? + 1;
        let mut width = *widths.last()?;
        let mut net = Flops { parts: Vec::new(), frames: 1.0, temporals: Vec::new() };
        if config["use_post_quant_conv"].as_bool() != Some(false) {
            net.conv("post_quant_conv", latent, latent, 1.0);
        }
        net.conv("conv_in", latent, width, 3.0);
        net.resnet("mid_block.resnets.0", width, width, None);
        if config["mid_block_add_attention"].as_bool() != Some(false) {
            net.parts.push(Part::Layer(Layer { by_position: 4.0 * width * width, ..Layer::default() }));
            net.parts.push(Part::Pairs { path: "mid_block.attentions.0".to_owned(), width });
        }
        net.resnet("mid_block.resnets.1", width, width, None);
        for (i, out) in widths.iter().rev().enumerate() {
            for j in 0..resnets {
                net.resnet(&format!("up_blocks.{i}.resnets.{j}"), width, *out, None);
                width = *out;
            }
            if i + 1 < widths.len() {
                net.parts.push(Part::Enlarge);
                net.conv(&format!("up_blocks.{i}.upsamplers.0.conv"), width, width, 3.0);
            }
        }
        net.conv("conv_out", width, config["out_channels"].as_f64()?, 3.0);
        Some(net)
    }

    fn fixed(&mut self, fixed: f64) {
        self.parts.push(Part::Layer(Layer { fixed, ..Layer::default() }));
    }

    fn conv(&mut self, path: &str, from: f64, to: f64, side: f64) {
        self.parts.push(Part::Conv { path: path.to_owned(), stride: 1, by_position: from * to * side * side });
    }

    fn resnet(&mut self, path: &str, from: f64, to: f64, time: Option<f64>) {
        self.conv(&format!("{path}.conv1"), from, to, 3.0);
        self.fixed(time.unwrap_or(0.0) * to);
        self.conv(&format!("{path}.conv2"), to, to, 3.0);
        if from != to {
            self.conv(&format!("{path}.conv_shortcut"), from, to, 1.0);
        }
    }

    fn transformer(&mut self, path: &str, width: f64, depth: f64, text: f64, only_cross: bool) {
        if only_cross {
            // The first attention's keys and values are of the text, too.
            self.parts.push(Part::Layer(Layer {
                by_position: (2.0 + depth * (2.0 + 2.0 + 12.0)) * width * width,
                by_token: depth * 4.0 * text * width,
                by_both: depth * 4.0 * width,
                fixed: 0.0,
            }));
            return;
        }
        // Projections in and out, then for each layer: four of the self-attention, two of the cross-attention, and the gated
        // feed-forward of width 4 (8 + 4).
        self.parts.push(Part::Layer(Layer {
            by_position: (2.0 + depth * (4.0 + 2.0 + 12.0)) * width * width,
            by_token: depth * 2.0 * text * width,
            by_both: depth * 2.0 * width,
            fixed: 0.0,
        }));
        for i in 0..depth as usize {
            self.parts.push(Part::Pairs { path: format!("{path}.transformer_blocks.{i}.attn1"), width });
        }
    }

    /// Operations for latents of `(height, width)`.
    pub(crate) fn at(&self, latent: (usize, usize)) -> f64 {
        self.in_pass(latent, None)
    }

    fn in_pass(&self, latent: (usize, usize), acting: Option<Acting<'_>>) -> f64 {
        let (mut size, mut skips, mut multiply_adds) = (latent, Vec::new(), 0.0);
        for part in &self.parts {
            let positions = (size.0 * size.1) as f64;
            match part {
                Part::Conv { path, stride, by_position } => {
                    let action = acting.and_then(|acting| {
                        let site = acting.sites.convs.iter().position(|site| site.path == *path)?;
                        Some(&acting.plan.convs[site])
                    });
                    let (computed, after) = convolved(size, *stride, action);
                    multiply_adds += computed * by_position;
                    size = after;
                }
                Part::Pairs { path, width } => {
                    let site = acting.and_then(|acting| acting.sites.attentions.iter().position(|site| site.path == *path));
                    multiply_adds += match acting.zip(site) {
                        None => pairs(size, &AttentionShape::Full) * 2.0 * width,
                        Some((acting, site)) => {
                            let tokens = |lender| acting.sites.attentions[site].n_tokens(lender) as f64;
                            attention(size, *width, &acting.plan.attentions[site], acting.lender.map(tokens))
                        }
                    };
                }
                Part::Layer(Layer { by_position, by_token, by_both, fixed }) => {
                    multiply_adds += positions * (by_position + TOKENS * by_both) + TOKENS * by_token + fixed;
                }
                Part::Leave(path) => {
                    let known = |acting: Acting<'_>| acting.sites.layers.iter().position(|site| site.path == *path);
                    let action = acting.and_then(|acting| Some(acting.plan.layers[known(acting)?])).unwrap_or_default();
                    let before = size;
                    size = match action.resize {
                        None => size,
                        Some(Resize::AveragePool) => (size.0.div_ceil(2), size.1.div_ceil(2)),
                        Some(Resize::Bicubic(factor)) => {
                            let side = |n: usize| ((n as f64 * (1.0 / factor)).round_ties_even() as usize).max(1);
                            (side(size.0), side(size.1))
                        }
                    };
                    skips.push(if action.skip_before { before } else { size });
                }
                Part::Join => size = skips.pop().unwrap_or(size),
                Part::Enlarge => size = skips.last().copied().unwrap_or((2 * size.0, 2 * size.1)),
            }
        }
        let halved = |side: usize, times: usize| (0..times).fold(side, |side, _| side.div_ceil(2));
        let over_frames = |(level, by_position): &(usize, f64)| (halved(latent.0, *level) * halved(latent.1, *level)) as f64 * by_position;
        2.0 * self.frames * (multiply_adds + self.temporals.iter().map(over_frames).sum::<f64>())
    }

    /// Operations of a U-Net's evaluations in one step on latents of `(height, width)`.
    pub(crate) fn of_step(&self, sites: &SiteTable, step: &Step, latent: (usize, usize)) -> f64 {
        let of_view = |view: &View| -> f64 {
            let (n, size) = view.region.maps(latent);
            let of_pass = |pass: &Pass| {
                let lender = pass.queries_of.and_then(|lender| view.passes.get(lender));
                let acting = Acting { sites, plan: &pass.plan, lender: lender.map(|lender| lender.before.unwrap_or(size)) };
                n as f64 * self.in_pass(pass.before.unwrap_or(size), Some(acting))
            };
            view.passes.iter().map(of_pass).sum()
        };
        step.views.iter().map(of_view).sum()
    }

    /// Operations of a U-Net's evaluations in all steps of a stage.
    pub(crate) fn of_stage(&self, sites: &SiteTable, stage: &StageSteps) -> f64 {
        stage.steps.iter().map(|step| self.of_step(sites, step, stage.stage.latent)).sum()
    }
}

/// What becomes of a finished image, in operations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Finishing {
    /// Of the upscaler's U-Net.
    pub(crate) unet: f64,
    /// Of its decoder.
    pub(crate) decoder: f64,
    pub(crate) steps: usize,
    pub(crate) passes: usize,
}

impl Finishing {
    /// Of an image of a method; nothing where it is not enlarged by a network.
    pub(crate) fn of(checkpoint: &Blueprint, request: &Request, method: &Method) -> Result<Finishing> {
        let mut found = Finishing::default();
        let Some(Ending { upscaler: Some((upscaler, sizes)), finish: Finish { upscaler: Some(settings), .. }, .. }) =
            checkpoint.ending(request, method)?
        else {
            return Ok(found);
        };
        let (unet, decoder) = (Flops::of_unet(upscaler.unet_config()), Flops::of_decoder(upscaler.vae_config()));
        let (unet, decoder) = unet.zip(decoder).context("upscaler: expected the shapes of a U-Net and of a decoder")?;
        // Of every frame of a video.
        for (width, height) in sizes.iter().cycle().take(sizes.len() * request.frames).copied() {
            let (maps, size) = upscaler.maps((width, height), &settings);
            let passes = settings.steps * maps * if settings.guidance_scale > 1.0 { 2 } else { 1 };
            found.steps += settings.steps;
            found.passes += passes;
            found.unet += passes as f64 * unet.at(size);
            found.decoder += decoder.at((height as usize, width as usize));
        }
        Ok(found)
    }
}

/// How many positions a 3×3 convolution computes on a map of `size`, relative to the trained kernel's work for one, and the size of
/// what comes out.
fn convolved(size: (usize, usize), stride: usize, action: Option<&ConvAction>) -> (f64, (usize, usize)) {
    let area = |(height, width): (usize, usize)| (height * width) as f64;
    // A stride of 2 with a padding of 1 rounds up.
    let strided = |(height, width): (usize, usize)| (height.div_ceil(stride), width.div_ceil(stride));
    let Some(action) = action else { return (area(strided(size)), strided(size)) };
    let taps = match action.kernel {
        Kernel::Dispersed(by) => (by.large as f64 / by.small as f64).powi(2),
        Kernel::Trained => 1.0,
    };
    if let Some(Geometry { stride, padding, dilation }) = action.geometry {
        let side = |n: usize| (n + 2 * padding).saturating_sub(2 * dilation + 1) / stride + 1;
        let after = (side(size.0), side(size.1));
        return (taps * area(after), after);
    }
    match action.dilation.map(|dilation| dilation.get()) {
        None => (taps * area(strided(size)), strided(size)),
        Some(factor) => {
            // A fractional dilation is the next whole one on an enlarged map.
            let enlarged = |n: usize| (n as f64 * (factor.ceil() / factor)).round_ties_even() as usize;
            (taps * area(strided((enlarged(size.0), enlarged(size.1)))), (size.0 / stride, size.1 / stride))
        }
    }
}

/// Multiply-adds of a self-attention of this width on a map of `size`, beyond the projections that every one of them has; `lender` is the
/// number of positions of the map that queries and keys may be lent from.
fn attention(size: (usize, usize), width: f64, action: &AttentionAction, lender: Option<f64>) -> f64 {
    let projection = (size.0 * size.1) as f64 * width * width;
    let own = pairs(size, &action.shape) * 2.0 * width;
    // Results for different frequencies have a projection each.
    let own = own + if matches!(action.shape, AttentionShape::Fused(_)) { projection } else { 0.0 };
    let lent = lender.map_or(0.0, |tokens| tokens * tokens * 2.0 * width);
    match action.lent {
        0.0 => own,
        // Queries and keys of its own are not made.
        1.0 => lent - 2.0 * projection,
        _ => own + lent + projection,
    }
}

/// Pairs of positions that attend to each other on a map of `size`.
fn pairs((height, width): (usize, usize), shape: &AttentionShape) -> f64 {
    let square = |n: usize| (n as f64).powi(2);
    match shape {
        AttentionShape::Full => square(height * width),
        AttentionShape::Windows(windows) => {
            let (down, across) = windows.grid;
            (down * across) as f64 * square(height.div_ceil(down) * width.div_ceil(across))
        }
        AttentionShape::Fused(fusion) => {
            let (down, across) = fusion.stride;
            let local = fusion.corners.len() as f64 * square(fusion.window.0 * fusion.window.1);
            local + (down * across) as f64 * square((height / down) * (width / across))
        }
    }
}

fn numbers(list: &Value) -> Option<Vec<f64>> {
    list.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>().filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalebench_generation::Dispersion;
    use scalebench_generation::plan::{Dilation, ScaleFusion, ShiftedWindows};
    use scalebench_generation::site::{AttentionSite, ConvSite, LayerSite, TemporalSite};
    use serde_json::json;

    fn sd15() -> Flops {
        let (cross, plain) = ("CrossAttnDownBlock2D", "DownBlock2D");
        let config = json!({
            "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
            "cross_attention_dim": 768, "down_block_types": [cross, cross, cross, plain],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
        });
        Flops::of_unet(&config).unwrap()
    }

    /// Each multiply-add of a convolution or of a linear layer uses one weight: at latents of one pixel, a text of one token and
    /// without pairs, their number is that of the weights. SD 1.5 has 859 520 964 parameters, of which under 0.1 % are biases and
    /// norms.
    #[test]
    fn layers_add_up_to_the_published_sizes() {
        let weights = |part: &Part| match part {
            Part::Conv { by_position, .. } => *by_position,
            Part::Layer(layer) => layer.by_position + layer.by_token + layer.fixed,
            _ => 0.0,
        };
        let weights: f64 = sd15().parts.iter().map(weights).sum();
        assert!((weights / 859_520_964.0 - 1.0).abs() < 1e-3, "{weights}");
        // BK-SDM (Kim et al. 2024, table 1): 338.7 G multiply-adds at 512², the products of attention left out.
        let mut without = sd15();
        without.parts.retain(|part| !matches!(part, Part::Pairs { .. }));
        let multiply_adds = without.at((64, 64)) / 2.0;
        assert!((multiply_adds / 338.7e9 - 1.0).abs() < 0.01, "{multiply_adds}");
    }

    #[test]
    fn decoders_double_and_odd_sides_round_up() {
        let config = json!({"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "out_channels": 3});
        let decoder = Flops::of_decoder(&config).unwrap();
        let resnet = |from: f64, to: f64| 9.0 * from * to + 9.0 * to * to + if from == to { 0.0 } else { from * to };
        let latent = 16.0 + 9.0 * 4.0 * 16.0 + 2.0 * resnet(16.0, 16.0) + 4.0 * 256.0 + 2.0 * resnet(16.0, 16.0);
        let doubled = 9.0 * 256.0 + resnet(16.0, 8.0) + resnet(8.0, 8.0) + 9.0 * 8.0 * 3.0;
        assert_eq!(decoder.at((3, 5)), 2.0 * (15.0 * latent + 225.0 * 32.0 + 60.0 * doubled));
        let conv = |by_position| Part::Conv { path: String::new(), stride: 2, by_position };
        let two = Flops { parts: vec![conv(0.0), conv(1.0)], frames: 1.0, temporals: Vec::new() };
        assert_eq!(two.at((5, 9)), 2.0 * 2.0 * 3.0);
        assert!(Flops::of_unet(&json!({"block_out_channels": []})).is_none());
    }

    /// The published x4 upscaler has 473 M weights; its two finer attention levels attend to the text alone.
    #[test]
    fn an_upscaler_counts_as_published() {
        let (cross, plain) = ("CrossAttnDownBlock2D", "DownBlock2D");
        let config = json!({
            "in_channels": 7, "out_channels": 4, "block_out_channels": [256, 512, 512, 1024], "layers_per_block": 2,
            "cross_attention_dim": 1024, "down_block_types": [plain, cross, cross, cross], "num_class_embeds": 1000,
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "only_cross_attention": [true, true, true, false]
        });
        let net = Flops::of_unet(&config).unwrap();
        let pairs = net.parts.iter().filter(|part| matches!(part, Part::Pairs { .. })).count();
        assert_eq!(pairs, 2 + 1 + 3);
        let weights = |part: &Part| match part {
            Part::Conv { by_position, .. } => *by_position,
            Part::Layer(layer) => layer.by_position + layer.by_token + layer.fixed,
            _ => 0.0,
        };
        // The table of 1000 noise levels is looked up.
        let weights = net.parts.iter().map(weights).sum::<f64>() + 1000.0 * 1024.0;
        assert!((weights / 473.4e6 - 1.0).abs() < 2e-3, "{weights}");
    }

    /// A U-Net of two levels whose inner one attends, and its sites.
    fn small() -> (Flops, SiteTable) {
        let config = json!({
            "in_channels": 1, "out_channels": 1, "block_out_channels": [2, 2], "layers_per_block": 1, "cross_attention_dim": 3,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]
        });
        let net = Flops::of_unet(&config).unwrap();
        let mut sites = SiteTable::default();
        for part in &net.parts {
            match part {
                Part::Conv { path, stride, .. } => sites.convs.push(ConvSite { path: path.clone(), stride: *stride, halvings: 0 }),
                Part::Pairs { path, .. } => sites.attentions.push(AttentionSite { path: path.clone(), halvings: 1 }),
                Part::Leave(path) if !path.is_empty() => sites.layers.push(LayerSite { path: path.clone() }),
                _ => {}
            }
        }
        (net, sites)
    }

    /// Every frame as an image, and what happens between them: 22 C² and the pairs of frames in a motion module, 12 C² in convolutions.
    #[test]
    fn frames_count_and_so_do_layers_over_them() {
        let (net, mut sites) = small();
        let image = net.at((8, 8));
        let paths = ["transformer_in", "down_blocks.1.motion_modules.0", "mid_block.temp_convs.1", "up_blocks.1.temp_attentions.0"];
        sites.temporals.extend(paths.map(|path| TemporalSite { path: path.to_owned() }));
        let config = json!({ "block_out_channels": [2, 4], "attention_head_dim": 1 });
        let temporals = Flops::over_frames(&config, &sites, 5);
        let inner = 8.0;
        let first = 2.0 * 2.0 * inner + 20.0 * inner * inner + 4.0 * 5.0 * inner;
        let (module, convolutions, last) = (22.0 * 16.0 + 4.0 * 5.0 * 4.0, 12.0 * 16.0, 22.0 * 4.0 + 4.0 * 5.0 * 2.0);
        assert_eq!(temporals, [(0, first), (1, module), (1, convolutions), (0, last)]);
        let video = Flops { frames: 5.0, temporals, ..net };
        assert_eq!(video.at((8, 8)), 5.0 * (image + 2.0 * (64.0 * (first + last) + 16.0 * (module + convolutions))));
    }

    #[test]
    fn what_a_plan_does_to_sizes_counts() {
        let (net, sites) = small();
        let plain = Plan::plain(&sites);
        let lent = |latent, plan: &Plan, lender| net.in_pass(latent, Some(Acting { sites: &sites, plan, lender }));
        let at = |latent, plan: &Plan| lent(latent, plan, None);
        assert_eq!(at((8, 8), &plain), net.at((8, 8)));
        // The mid block and one layer up and one down attend: on maps of 4², in four windows a quarter of the pairs.
        let mut windows = plain.clone();
        let four = AttentionShape::Windows(ShiftedWindows { grid: (2, 2), quarters: 1 });
        windows.attentions.iter_mut().for_each(|action| action.shape = four.clone());
        let attending = 4.0;
        assert_eq!(sites.attentions.len() as f64, attending);
        assert_eq!(at((8, 8), &plain) - at((8, 8), &windows), 2.0 * attending * 2.0 * 2.0 * (256.0 - 4.0 * 16.0));
        assert_eq!(pairs((3, 5), &four), 4.0 * 36.0);
        // Five local windows of 2×3 and a global attention among every second pixel, each with its own projection.
        let fusion = ScaleFusion { window: (2, 3), corners: [(0, 0); 5].into(), stride: (2, 2), taps: 3, sigma: 1.0 };
        let mut fused = plain.clone();
        fused.attentions.iter_mut().for_each(|action| action.shape = AttentionShape::Fused(fusion.clone()));
        let (of_pairs, projection) = (2.0 * 2.0, 16.0 * 4.0);
        let more = of_pairs * (5.0 * 36.0 + 4.0 * 16.0 - 256.0) + projection;
        assert_eq!(at((8, 8), &fused) - at((8, 8), &plain), 2.0 * attending * more);
        // Queries and keys of a pass on latents of half the size, alone and beside those of its own.
        let share = |share: f64| {
            let mut plan = plain.clone();
            plan.attentions.iter_mut().for_each(|action| action.lent = share);
            (lent((8, 8), &plan, Some((4, 4))) - at((8, 8), &plain)) / (2.0 * attending)
        };
        assert_eq!(share(0.0), 0.0);
        assert_eq!(share(1.0), of_pairs * (16.0 - 256.0) - 2.0 * projection);
        assert_eq!(share(0.25), of_pairs * 16.0 + projection);
        // A downsampler with a stride of 4 leaves the inner level as it is at half the size; what is outside is four times as much.
        let of_outside = |part: &&Part| match part {
            Part::Conv { path, .. } => ["conv_in", "down_blocks.0.resnets", "up_blocks.0.upsamplers", "up_blocks.1", "conv_out"]
                .iter()
                .any(|outside| path.starts_with(outside)),
            _ => false,
        };
        let outside: f64 =
            net.parts.iter().filter(of_outside).map(|p| if let Part::Conv { by_position, .. } = p { *by_position } else { 0.0 }).sum();
        let conv = |path: &str| sites.convs.iter().position(|site| site.path == path).unwrap();
        let layer = |path: &str| sites.layers.iter().position(|site| site.path == path).unwrap();
        let mut quarter = plain.clone();
        quarter.convs[conv("down_blocks.0.downsamplers.0.conv")].geometry = Some(Geometry { stride: 4, padding: 2, dilation: 2 });
        assert_eq!(at((16, 16), &quarter), at((8, 8), &plain) + 2.0 * 3.0 * 64.0 * outside);
        // The same size by pooling after the downsampler, which itself then works at the larger size.
        let mut pooled = plain.clone();
        pooled.layers[layer("down_blocks.0.downsamplers.0")].resize = Some(Resize::AveragePool);
        assert_eq!(at((16, 16), &pooled), at((16, 16), &quarter) + 2.0 * 48.0 * 36.0);
        // Where the skip connection stays as it was, the layer that it joins does, too.
        let mut before = pooled.clone();
        before.layers[layer("down_blocks.0.downsamplers.0")].skip_before = true;
        assert!(at((16, 16), &before) > at((16, 16), &pooled) && at((16, 16), &before) < at((16, 16), &plain));
        // ⌈1.5⌉ / 1.5 a side, and a kernel of 5×5.
        let (inner, of_inner) = (conv("mid_block.resnets.0.conv1"), 16.0 * 36.0);
        let mut fractional = plain.clone();
        fractional.convs[inner].dilation = Some(Dilation::new(1.5).unwrap());
        let larger = (5.0 * 5.0 - 16.0) / 16.0;
        assert_eq!(at((8, 8), &fractional) - at((8, 8), &plain), 2.0 * of_inner * larger);
        let mut dispersed = plain.clone();
        dispersed.convs[inner].kernel = Kernel::Dispersed(Dispersion { small: 3, large: 5, input: 3, scale: 2, eta: 0.05 });
        assert!((at((8, 8), &dispersed) - at((8, 8), &plain) - 2.0 * of_inner * (25.0 / 9.0 - 1.0)).abs() < 1e-6);
    }
}
