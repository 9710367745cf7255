//! Blocks that run at a smaller size: while the image's composition forms, deep blocks see maps of about their training size, and
//! objects are not repeated; where the smaller map meets a skip connection of its old size, it is enlarged again.
//!
//! Two methods of this idea. The resolution-aware U-Net of HiDiffusion (Zhang et al. 2024, arXiv 2311.17528, §3.2, and its package)
//! has a dilated downsampler of stride 4 and, at other layers, means of 2×2 pixels; its thresholds `T₁` and `T₂` are shares of the
//! run's steps. The package counts calls of the network, so that passes which are not made together drift; here steps count. Deep
//! Shrink ("Kohya hires fix", ComfyUI's `PatchModelAddDownscale`; there is no paper) interpolates; it acts while the timestep is
//! above a share of the trained ones, whatever the sampler's steps.

use super::Resolving;
use crate::error::Result;
use crate::plan::{Geometry, Resize};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What happens at which layers, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResizedBlocks {
    /// Each acts by itself.
    pub(crate) rules: Vec<Rule>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Module path of a layer of the down path (`down_blocks.1.attentions.0`), or for `downsampler` of its convolution.
    pub(crate) site: String,
    /// What is done there.
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub(crate) how: How,
    /// Begins with this share of the run; for `shrink` of the training timesteps, from the noisy end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) from: f64,
    /// Ends before this share.
    pub(crate) until: f64,
}

/// A way to a smaller map.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// The downsampler's convolution with a stride of 4, dilated by 2.
    Downsampler,
    /// Means of 2×2 pixels; the skip connection carries the means.
    AveragePool,
    /// To a part of this, bicubic; the skip connection carries the map as it was.
    Shrink(f64),
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

#[derive(Debug)]
struct Resolved(Vec<(usize, Rule)>);

pub(super) fn resolve(settings: &ResizedBlocks, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if settings.rules.is_empty() {
        return at.refuse("has no `rules`, expected at least one");
    }
    let mut found = Vec::new();
    for rule in &settings.rules {
        if !(rule.from >= 0.0 && rule.from < rule.until && rule.until <= 1.0) {
            return at.refuse(format!("acts from {} until {} of the run, expected 0 ≤ `from` < `until` ≤ 1", rule.from, rule.until));
        }
        let site = match rule.how {
            How::Downsampler => at.sites.convs.iter().position(|site| site.path == rule.site && site.stride == 2),
            _ => at.sites.layers.iter().position(|site| site.path == rule.site),
        };
        let Some(site) = site else {
            let known: Vec<&str> = at.sites.layers.iter().map(|site| site.path.as_str()).collect();
            return at.refuse(format!(
                "`{}` is no such layer, expected one of {} (for `downsampler` with `.conv`)",
                rule.site,
                known.join(", ")
            ));
        };
        if matches!(rule.how, How::Shrink(factor) if !(factor.is_finite() && factor > 1.0)) {
            return at.refuse(format!("{:?}, expected a factor above 1", rule.how));
        }
        found.push((site, rule.clone()));
    }
    Ok(Arc::new(Resolved(found)))
}

impl Rule {
    fn acts(&self, at: &Moment) -> bool {
        match self.how {
            How::Shrink(_) => {
                // The timestep at a share of the way from the noisiest one; the way begins before it.
                let noisiest = at.alphas_cumprod.len() as f64 - 1.0;
                let reached = |share: f64| share == 0.0 || at.timestep <= (1.0 - share) * noisiest;
                reached(self.from) && at.timestep >= (1.0 - self.until) * noisiest
            }
            How::Downsampler | How::AveragePool => {
                // Whole steps, rounded down, as the authors count.
                let of_run = |share: f64| (share * at.n_steps as f64 + 1e-9) as usize;
                (of_run(self.from)..of_run(self.until)).contains(&at.step)
            }
        }
    }
}

impl Intervention for Resolved {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        for (site, rule) in self.0.iter().filter(|(_, rule)| rule.acts(at)) {
            for pass in step.passes_mut() {
                match rule.how {
                    How::Downsampler => pass.plan.convs[*site].geometry = Some(Geometry { stride: 4, padding: 2, dilation: 2 }),
                    How::AveragePool => pass.plan.layers[*site].resize = Some(Resize::AveragePool),
                    How::Shrink(factor) => {
                        pass.plan.layers[*site].resize = Some(Resize::Bicubic(factor));
                        pass.plan.layers[*site].skip_before = true;
                    }
                }
            }
        }
    }
}
