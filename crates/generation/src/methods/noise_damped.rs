//! Noise-damped classifier-free guidance (ScaleCrafter §3.4).
//!
//! Strong re-dilation gives the right structure but a poor noise estimate. So the estimate comes from
//! a lighter network and only the guidance *direction* from the strong one:
//! `ε = ε_weak(∅) + w (ε_strong(c) − ε_strong(∅))`. The reference code also evaluates `ε_weak(c)` and
//! drops it; here it is not made.

use super::redilation::{Redilation, Resolved as Weak};
use crate::plan::{Conditioning, Intervention, Moment, Pass, Plan};
use crate::site::SiteTable;

/// The weak network's own re-dilation list; active while its `tau` lasts.
pub type NoiseDampedGuidance = Redilation;

#[derive(Debug)]
pub(super) struct Resolved(pub(super) Weak);

impl Intervention for Resolved {
    fn apply(&self, sites: &SiteTable, at: &Moment, passes: &mut Vec<Pass>) {
        // Without guidance there is no direction to take from the strong network.
        if !self.0.is_active(at) || passes.len() < 2 {
            return;
        }
        for pass in passes.iter_mut().filter(|p| p.conditioning == Conditioning::Empty) {
            pass.weight -= 1.0;
        }
        let mut plan = Plan::plain(sites);
        self.0.dilate(at, &mut plan);
        passes.push(Pass { plan, conditioning: Conditioning::Empty, weight: 1.0 });
    }
}
