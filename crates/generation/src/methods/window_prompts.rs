//! Patch-content-aware prompts (AccDiffusion: Lin et al. 2024, arXiv 2407.10738, §3.2): a window that is told the whole prompt
//! repeats its objects. Here each window is told those words alone that are seen in it: the cross-attention maps of the first stage
//! are averaged, each word's is binarised at its mean (equation 5), opened by a square (equation 6), and enlarged; a word stays in
//! the prompt of a window of which it covers the share `c`.
//!
//! As in the authors' code words are the tokenizer's pieces, framing tokens aside, and the empty half of guidance is told what it
//! always is. Theirs mixes up height and width of the maps where the image is not square, and measures against the area of
//! the first stage; here the map keeps its shape and `c` is a share of the window. They agree on squares.

use super::Resolving;
use crate::error::Result;
use crate::journey::{Journey, KeptMaps, Route};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Region, Step, Words};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Name of the maps.
const MAPS: &str = "first stage";

/// Whose maps, and how much of a window a word must cover.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WindowPrompts {
    /// Rules of self-attentions; the maps are those of the cross-attentions beside them, which must all be of one size.
    pub(crate) sites: Vec<String>,
    /// `c`.
    #[serde(default = "three_tenths")]
    pub(crate) threshold: f64,
}

fn three_tenths() -> f64 {
    0.3
}

#[derive(Debug)]
struct Resolved {
    sites: Arc<[usize]>,
    threshold: f64,
}

pub(super) fn resolve(settings: &WindowPrompts, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.threshold > 0.0 && settings.threshold <= 1.0) {
        return at.refuse(format!("`threshold` is {}, expected more than 0 and at most 1", settings.threshold));
    }
    let first = at.settings.cascade.as_ref().and_then(|cascade| cascade.stages.first());
    if at.settings.joint_diffusion.is_none() || first.is_none_or(|stage| stage.plain == Some(false)) {
        return at.refuse("expected `joint_diffusion` beside it, and a `cascade` whose first stage is plain");
    }
    let sites = at.attentions(&settings.sites)?;
    let halvings = |site: &usize| at.sites.attentions[*site].halvings;
    if sites.is_empty() || sites.iter().any(|site| halvings(site) != halvings(&sites[0])) {
        return at.refuse("expected `sites` whose maps are of one size");
    }
    Ok(Arc::new(Resolved { sites: sites.into(), threshold: settings.threshold }))
}

impl Intervention for Resolved {
    fn route(&self, _route: &Route, journey: &mut Journey) {
        journey.stages[0].keeps = Some(KeptMaps { name: MAPS.into(), sites: self.sites.clone() });
    }

    fn apply(&self, _sites: &SiteTable, _at: &Moment, step: &mut Step) {
        for view in &mut step.views {
            if let Region::Windows(windows) = &mut view.region {
                // Two pixels of a map of 32.
                windows.words = Some(Words { maps: MAPS.into(), threshold: self.threshold, opening: 1.0 / 16.0 });
            }
        }
    }
}
