//! Reuse of cross-attention maps (FreCaS: Zhang et al. 2024, arXiv 2410.18410, §3.4): what the text's words refer to was settled at the smaller
//! size. The mean of all cross-attention maps at the last step of a stage has a share in every cross-attention of the next.
//!
//! As the authors' code, a map is brought to another size along its row of tokens, not along the two sides of the image.

use super::Resolving;
use crate::error::Result;
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Region, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How much of the map before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MapReuse {
    /// Share of the kept map.
    pub(crate) weight: f64,
}

pub(super) fn resolve(settings: &MapReuse, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.weight > 0.0 && settings.weight <= 1.0) {
        return at.refuse(format!("`weight` is {}, expected more than 0 (leave it out to switch it off) and at most 1", settings.weight));
    }
    if at.settings.shifted_cascade.is_none() {
        return at.refuse("keeps maps from stage to stage, expected `shifted_cascade` beside it, whose first stage is not plain");
    }
    Ok(Arc::new(*settings))
}

impl Intervention for MapReuse {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let keep = at.step + 1 == at.n_run && at.stage + 1 < at.n_stages;
        for view in step.views.iter_mut().filter(|view| view.region == Region::Whole) {
            for pass in &mut view.passes {
                pass.maps.keep = keep;
                pass.maps.reuse = if at.previous.is_some() { self.weight } else { 0.0 };
            }
        }
    }
}
