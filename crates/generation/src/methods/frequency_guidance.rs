//! Guidance by frequencies (FA-CFG of FreCaS: Zhang et al. 2024, arXiv 2410.18410, §3.3): in the stages after the first the low frequencies of
//! the prediction, those which the size before could show, are guided by one weight, and the high ones, which are new, by a larger one.

use super::Resolving;
use crate::error::Result;
use crate::site::SiteTable;
use crate::step::{Bands, Conditioning, Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The weights of the text direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrequencyGuidance {
    /// Of high frequencies.
    pub(crate) high: f64,
    /// Of low ones.
    pub(crate) low: f64,
}

pub(super) fn resolve(settings: &FrequencyGuidance, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if ![settings.high, settings.low].into_iter().all(|w| w.is_finite() && w >= 0.0) {
        return at.refuse(format!("has {settings:?}, expected weights of at least 0"));
    }
    if at.settings.noise_damped_guidance.is_some() {
        return at.refuse("and `noise_damped_guidance` both say how passes are weighted, expected one of them");
    }
    at.needs_journey()?;
    Ok(Arc::new(*settings))
}

impl Intervention for FrequencyGuidance {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        let Some(size) = at.previous else { return };
        // Without guidance there is one pass, and nothing to weigh.
        for view in step.views.iter_mut().filter(|view| view.passes.len() == 2) {
            let share = |conditioning: Conditioning, w: f64| if conditioning == Conditioning::Text { w } else { 1.0 - w };
            view.bands = Some(Bands { size, high: view.passes.iter().map(|pass| share(pass.conditioning, self.high)).collect() });
            view.passes.iter_mut().for_each(|pass| pass.weight = share(pass.conditioning, self.low));
        }
    }
}
