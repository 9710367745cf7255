//! Noise-damped classifier-free guidance (ScaleCrafter §3.4).
//!
//! Strong re-dilation gives the right structure but a poor noise estimate. So the estimate comes from
//! a lighter network and only the guidance *direction* from the strong one:
//! `ε = ε_weak(∅) + w (ε_strong(c) − ε_strong(∅))`. The reference code also evaluates `ε_weak(c)` and
//! drops it; here it is not made.

use super::Resolving;
use super::redilation::{Redilation, Resolved as Weak};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::site::SiteTable;
use crate::step::{Conditioning, Intervention, Moment, Pass, Step};
use std::sync::Arc;

/// The weak network's own re-dilation list; active while its `tau` lasts.
pub(crate) type NoiseDampedGuidance = Redilation;

#[derive(Debug)]
struct Resolved(Weak);

pub(super) fn resolve(settings: &NoiseDampedGuidance, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if at.settings.redilation.is_none() {
        return Err(Error::method(at.method, "`noise_damped_guidance` without `redilation` has no strong network, expected both"));
    }
    Ok(Arc::new(Resolved(settings.resolve(at.method, at.key, at.sites)?)))
}

impl Intervention for Resolved {
    fn check(&self, method: &str, latent: (usize, usize), _native: (usize, usize)) -> Result<()> {
        self.0.check_reach(method, latent)
    }

    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        if self.0.is_active(at) {
            step.views.iter_mut().for_each(|view| self.damp(sites, at, &mut view.passes));
        }
    }
}

impl Resolved {
    fn damp(&self, sites: &SiteTable, at: &Moment, passes: &mut Vec<Pass>) {
        // Without guidance there is no direction to take from the strong network.
        if passes.len() < 2 {
            return;
        }
        for pass in passes.iter_mut().filter(|p| p.conditioning == Conditioning::Empty) {
            pass.weight -= 1.0;
        }
        let mut plan = Plan::plain(sites);
        self.0.dilate(at, &mut plan);
        passes.push(Pass::new(plan, Conditioning::Empty, 1.0));
    }
}
