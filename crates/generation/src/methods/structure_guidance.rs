//! Structure guidance (DiffuseHigh: Kim et al. 2024, arXiv 2406.18459, §3.3): in the first steps of a stage the clean image that the prediction
//! implies keeps its details and gets the coarse part, the low-low band of a wavelet transform, of the image that the stage started from.
//!
//! The transform has one level of Daubechies' wavelet with four vanishing moments and symmetric edges, as in the authors' code. Each of
//! these steps decodes and encodes an image.

use super::Resolving;
use super::redilation::fifty;
use crate::error::Result;
use crate::journey::Through;
use crate::site::SiteTable;
use crate::step::{Band, Blend, Intervention, Moment, Step, Target};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructureGuidance {
    /// Steps at the start of every stage after the first, in a run of [`of_steps`](Self::of_steps); other lengths scale them, to one
    /// at least.
    pub(crate) steps: usize,
    /// The run length in which `steps` are counted.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
}

pub(super) fn resolve(settings: &StructureGuidance, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if settings.steps == 0 || settings.steps > settings.of_steps {
        return at.refuse(format!("acts in {} of {} steps, expected at least one and at most all", settings.steps, settings.of_steps));
    }
    let through_pixels = |cascade: &super::Cascade| cascade.stages.iter().skip(1).all(|stage| stage.through == Through::Pixels);
    if !at.settings.cascade.as_ref().is_some_and(through_pixels) {
        return at.refuse("refers to an enlarged image, expected a `cascade` beside it whose stages start `through: pixels`");
    }
    Ok(Arc::new(*settings))
}

impl Intervention for StructureGuidance {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let steps = (self.steps as f64 * at.n_steps as f64 / self.of_steps as f64).round().max(1.0) as usize;
        if at.previous.is_some() && at.step < steps {
            step.blends.push(Blend { target: Target::Estimate, band: Band::WaveletOfImage, weight: 1.0 });
        }
    }
}
