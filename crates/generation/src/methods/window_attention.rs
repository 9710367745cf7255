//! Modified shifted window attention (HiDiffusion: Zhang et al. 2024, arXiv 2311.17528, §3.3): self-attentions of the largest maps
//! in 2×2 windows, after a cyclic shift by a random number of quarters of a window. It saves time.
//!
//! The authors draw the shift from an unseeded generator; here it depends on the image's seed and the step.

use super::Resolving;
use crate::error::Result;
use crate::plan::{AttentionShape, ShiftedWindows};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which self-attentions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WindowAttention {
    /// Site rules; each must match a self-attention.
    pub(crate) sites: Vec<String>,
}

#[derive(Debug)]
struct Resolved(Vec<usize>);

pub(super) fn resolve(settings: &WindowAttention, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if settings.sites.is_empty() {
        return at.refuse("has no `sites`, expected at least one site rule");
    }
    Ok(Arc::new(Resolved(at.attentions(&settings.sites)?)))
}

impl Intervention for Resolved {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let mut dice = at.dice();
        for &site in &self.0 {
            let shape = AttentionShape::Windows(ShiftedWindows { grid: (2, 2), quarters: dice.below(4) as usize });
            step.passes_mut().for_each(|pass| pass.plan.attentions[site].shape = shape.clone());
        }
    }

    fn rolls_dice(&self) -> bool {
        true
    }
}
