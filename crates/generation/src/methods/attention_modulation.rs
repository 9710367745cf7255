//! Attention modulation (FAM diffusion: Yang et al. 2024, arXiv 2411.18552, §3.3, equation 7): in one block of the up path the attention maps are
//! mixed with those that the smaller image had at the same step, enlarged: `M ← λ U(Mₙ) + (1 − λ) M`.
//!
//! There is no code by the authors. `U` is taken as repetition, with rows that sum to 1 again; where the factor is not whole, as the means of
//! what falls together. No matrix is built for it: `U(Mₙ) V` is `Mₙ` times the means of `V` over what one pixel of the smaller map stands for.
//! To keep the maps of a whole run would take tens of gigabytes; the latents of the smaller image are kept instead, and the network looks
//! at them again, which costs one small pass more for each pass.

use super::Resolving;
use crate::error::Result;
use crate::plan::Plan;
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Pass, Region, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where, and by how much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionModulation {
    /// λ.
    pub(crate) share: f64,
    /// Site rules; each must match a self-attention.
    pub(crate) sites: Vec<String>,
}

#[derive(Debug)]
struct Resolved {
    share: f64,
    sites: Vec<usize>,
}

pub(super) fn resolve(settings: &AttentionModulation, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.share > 0.0 && settings.share <= 1.0) {
        return at.refuse(format!("`share` is {}, expected more than 0 and at most 1", settings.share));
    }
    if settings.sites.is_empty() {
        return at.refuse("has no `sites`, expected at least one site rule");
    }
    let Some(cascade) = &at.settings.cascade else {
        return at.refuse("has no smaller image to look back at, expected `cascade` beside it");
    };
    // A stage looks back at the steps of the one before.
    if let Some((before, stage)) = cascade.stages.iter().zip(&cascade.stages[1..]).find(|(before, stage)| before.first > stage.first) {
        return at.refuse(format!(
            "a stage from step {} on looks back at one from step {} on, expected all of its steps",
            stage.first, before.first
        ));
    }
    for (key, there) in [("fouriscale", at.settings.fouriscale.is_some()), ("scale_fusion", at.settings.scale_fusion.is_some())] {
        if there {
            return at.refuse(format!("and `{key}` both say what self-attentions do, expected one of them"));
        }
    }
    Ok(Arc::new(Resolved { share: settings.share, sites: at.attentions(&settings.sites)? }))
}

impl Intervention for Resolved {
    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        let Some(before) = at.previous else { return };
        for view in step.views.iter_mut().filter(|view| view.region == Region::Whole) {
            for j in 0..view.passes.len() {
                let lender = Pass { before: Some(before), ..Pass::new(Plan::plain(sites), view.passes[j].conditioning, 0.0) };
                view.passes[j].queries_of = Some(view.passes.len());
                self.sites.iter().for_each(|&site| view.passes[j].plan.attentions[site].lent = self.share);
                view.passes.push(lender);
            }
        }
    }
}
