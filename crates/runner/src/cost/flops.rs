//! Floating-point operations of a checkpoint's networks, from the shapes that its configuration files give.
//!
//! Two for each multiply-add of convolutions, linear layers and attention. What is done once an element (normalisation,
//! activations, softmax, the interpolation of fractional dilations) is left out, and so are the text encoders.

use std::path::Path;

use anyhow::{Context, Result};
use scalebench_generation::SiteTable;
use scalebench_generation::plan::{Kernel, Plan};
use serde_json::Value;

/// Tokens of a text embedding.
const TOKENS: f64 = 77.0;

/// One layer.
struct Layer {
    /// Module path, for what plans can name.
    path: String,
    /// How often the latents' sides are halved where the layer's output is; below zero they are doubled.
    halvings: i32,
    /// Multiply-adds for each position of the output.
    by_position: f64,
    /// Multiply-adds for each pair of positions.
    by_pair: f64,
    /// Multiply-adds whatever the size.
    fixed: f64,
}

/// The layers of a U-Net or of a decoder.
pub(crate) struct Flops {
    layers: Vec<Layer>,
}

impl Flops {
    /// The U-Net of a `unet/config.json`.
    pub(crate) fn unet(file: &Path) -> Result<Flops> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let config: Value = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        Flops::of_unet(&config).with_context(|| format!("{}: expected the shapes of a U-Net", file.display()))
    }

    /// The decoder of a `vae/config.json`.
    pub(crate) fn decoder(file: &Path) -> Result<Flops> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let config: Value = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        Flops::of_decoder(&config).with_context(|| format!("{}: expected the shapes of a decoder", file.display()))
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
        if down.len() != blocks || up.len() != blocks {
            return None;
        }
        let time = 4.0 * widths[0];
        let mut net = Flops { layers: Vec::new() };
        net.conv("conv_in", 0, config["in_channels"].as_f64()?, widths[0], 3.0);
        net.fixed(widths[0] * time + time * time);
        if let Some(added) = config["projection_class_embeddings_input_dim"].as_f64() {
            net.fixed(added * time + time * time);
        }
        let mut width = widths[0];
        for i in 0..blocks {
            for j in 0..layers[i] as usize {
                net.resnet(&format!("down_blocks.{i}.resnets.{j}"), i as i32, width, widths[i], Some(time));
                width = widths[i];
                if down[i] {
                    net.transformer(i as i32, width, depths[i], text);
                }
            }
            if i + 1 < blocks {
                net.conv(&format!("down_blocks.{i}.downsamplers.0.conv"), i as i32 + 1, width, width, 3.0);
            }
        }
        let deepest = blocks as i32 - 1;
        net.resnet("mid_block.resnets.0", deepest, width, width, Some(time));
        net.transformer(deepest, width, depths[blocks - 1], text);
        net.resnet("mid_block.resnets.1", deepest, width, width, Some(time));
        for (i, &attends) in up.iter().enumerate().take(blocks) {
            let mirrored = blocks - 1 - i;
            let (out, halvings) = (widths[mirrored], mirrored as i32);
            let n = layers[mirrored] as usize + 1;
            for j in 0..n {
                // The skip connections in reverse: the last one of a block comes from the block before its mirror image.
                let skip = if j + 1 == n { widths[mirrored.saturating_sub(1)] } else { out };
                net.resnet(&format!("up_blocks.{i}.resnets.{j}"), halvings, width + skip, out, Some(time));
                width = out;
                if attends {
                    net.transformer(halvings, width, depths[mirrored], text);
                }
            }
            if mirrored > 0 {
                net.conv(&format!("up_blocks.{i}.upsamplers.0.conv"), halvings - 1, width, width, 3.0);
            }
        }
        net.conv("conv_out", 0, width, config["out_channels"].as_f64()?, 3.0);
        Some(net)
    }

    fn of_decoder(config: &Value) -> Option<Flops> {
        let widths = numbers(&config["block_out_channels"])?;
        let latent = config["latent_channels"].as_f64()?;
        let resnets = config["layers_per_block"].as_u64()? + 1;
        let mut width = *widths.last()?;
        let mut net = Flops { layers: Vec::new() };
        if config["use_post_quant_conv"].as_bool() != Some(false) {
            net.conv("post_quant_conv", 0, latent, latent, 1.0);
        }
        net.conv("conv_in", 0, latent, width, 3.0);
        net.resnet("mid_block.resnets.0", 0, width, width, None);
        if config["mid_block_add_attention"].as_bool() != Some(false) {
            net.push("mid_block.attentions.0", 0, 4.0 * width * width, 2.0 * width, 0.0);
        }
        net.resnet("mid_block.resnets.1", 0, width, width, None);
        for (i, out) in widths.iter().rev().enumerate() {
            let doublings = -(i as i32);
            for j in 0..resnets {
                net.resnet(&format!("up_blocks.{i}.resnets.{j}"), doublings, width, *out, None);
                width = *out;
            }
            if i + 1 < widths.len() {
                net.conv(&format!("up_blocks.{i}.upsamplers.0.conv"), doublings - 1, width, width, 3.0);
            }
        }
        net.conv("conv_out", 1 - widths.len() as i32, width, config["out_channels"].as_f64()?, 3.0);
        Some(net)
    }

    fn push(&mut self, path: &str, halvings: i32, by_position: f64, by_pair: f64, fixed: f64) {
        self.layers.push(Layer { path: path.to_owned(), halvings, by_position, by_pair, fixed });
    }

    fn fixed(&mut self, multiply_adds: f64) {
        self.push("", 0, 0.0, 0.0, multiply_adds);
    }

    fn conv(&mut self, path: &str, halvings: i32, from: f64, to: f64, side: f64) {
        self.push(path, halvings, from * to * side * side, 0.0, 0.0);
    }

    fn resnet(&mut self, path: &str, halvings: i32, from: f64, to: f64, time: Option<f64>) {
        self.conv(&format!("{path}.conv1"), halvings, from, to, 3.0);
        self.fixed(time.unwrap_or(0.0) * to);
        self.conv(&format!("{path}.conv2"), halvings, to, to, 3.0);
        if from != to {
            self.conv(&format!("{path}.conv_shortcut"), halvings, from, to, 1.0);
        }
    }

    fn transformer(&mut self, halvings: i32, width: f64, depth: f64, text: f64) {
        // Projections in and out, then for each layer: four of the self-attention, two of the cross-attention, and the gated
        // feed-forward of width 4 (8 + 4).
        let linear = (2.0 + depth * (4.0 + 2.0 + 12.0)) * width * width;
        let to_text = depth * 2.0 * width * TOKENS;
        self.push("", halvings, linear + to_text, depth * 2.0 * width, depth * 2.0 * text * width * TOKENS);
    }

    /// Operations for latents of `(height, width)`. A dispersed kernel's are those of its larger size.
    pub(crate) fn at(&self, latent: (usize, usize), acting: Option<(&SiteTable, &Plan)>) -> f64 {
        let growth = |path: &str| {
            let Some((sites, plan)) = acting else { return 1.0 };
            let site = sites.convs.iter().position(|site| site.path == path);
            match site.map(|site| plan.convs[site].kernel) {
                Some(Kernel::Dispersed(by)) => (by.large as f64 / by.small as f64).powi(2),
                Some(Kernel::Trained) | None => 1.0,
            }
        };
        let side = |side: usize, halvings: i32| match halvings {
            // A stride of 2 with a padding of 1 rounds up.
            0.. => (0..halvings).fold(side, |side, _| side.div_ceil(2)),
            _ => side << -halvings,
        };
        let of_layer = |layer: &Layer| {
            let positions = (side(latent.0, layer.halvings) * side(latent.1, layer.halvings)) as f64;
            layer.fixed + positions * layer.by_position * growth(&layer.path) + positions * positions * layer.by_pair
        };
        2.0 * self.layers.iter().map(of_layer).sum::<f64>()
    }
}

fn numbers(list: &Value) -> Option<Vec<f64>> {
    list.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>().filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Each multiply-add of a convolution or of a linear layer uses one weight: at latents of one pixel, without text and
    /// pairs, their number is that of the weights. SD 1.5 has 859 520 964 parameters, of which under 0.1 % are biases and norms.
    #[test]
    fn layers_add_up_to_the_published_sizes() {
        let weights: f64 = sd15()
            .layers
            .iter()
            .map(|layer| {
                let from_text = if layer.by_pair > 0.0 { layer.fixed / TOKENS - layer.fixed } else { 0.0 };
                layer.by_position - if layer.by_pair > 0.0 { layer.by_pair * TOKENS } else { 0.0 } + layer.fixed + from_text
            })
            .sum();
        assert!((weights / 859_520_964.0 - 1.0).abs() < 1e-3, "{weights}");
        // BK-SDM (Kim et al. 2024, table 1): 338.7 G multiply-adds at 512², the products of attention left out.
        let pairs: f64 = sd15().layers.iter().map(|l| l.by_pair * f64::from(64 >> l.halvings.max(0)).powi(4)).sum();
        let multiply_adds = sd15().at((64, 64), None) / 2.0 - pairs;
        assert!((multiply_adds / 338.7e9 - 1.0).abs() < 0.01, "{multiply_adds}");
    }

    #[test]
    fn decoders_double_and_odd_sides_round_up() {
        let config = json!({"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "out_channels": 3});
        let decoder = Flops::of_decoder(&config).unwrap();
        let resnet = |from: f64, to: f64| 9.0 * from * to + 9.0 * to * to + if from == to { 0.0 } else { from * to };
        let latent = 16.0 + 9.0 * 4.0 * 16.0 + 2.0 * resnet(16.0, 16.0) + 4.0 * 256.0 + 2.0 * resnet(16.0, 16.0);
        let doubled = 9.0 * 256.0 + resnet(16.0, 8.0) + resnet(8.0, 8.0) + 9.0 * 8.0 * 3.0;
        assert_eq!(decoder.at((3, 5), None), 2.0 * (15.0 * latent + 225.0 * 32.0 + 60.0 * doubled));
        let one = Flops { layers: vec![Layer { path: String::new(), halvings: 2, by_position: 1.0, by_pair: 0.0, fixed: 0.0 }] };
        assert_eq!(one.at((5, 9), None), 2.0 * 2.0 * 3.0);
        assert!(Flops::of_unet(&json!({"block_out_channels": []})).is_none());
    }
}
