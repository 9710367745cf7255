//! Scale fusion (FreeScale: Qiu et al. 2024, arXiv 2412.09626, §3.3): self-attentions see both windows of the training size and the whole
//! map; the result has the low frequencies of the local attention and the high frequencies of the global one,
//! `G(local) + (global − G(global))`, with a Gaussian `G` of `2 s − 1` taps a side at `s` times the training size.
//!
//! From the authors' code: windows lie half a window apart and are moved at random by up to an eighth of one; `s` is a whole number, rounded
//! down, so that at 2.5 times the side a window is half the map; at other shapes than square a window has less than the trained area. Their
//! blur is one of rows, columns *and channels*, which the paper does not say; it is here, too. `strided` is their fast mode, in which the
//! global attention is one of strided subsets; where subsets do not divide a map, it stays whole here.

use super::Resolving;
use super::joint_diffusion::{moved, starts};
use crate::dice::Dice;
use crate::error::{Error, Result};
use crate::plan::{AttentionShape, ScaleFusion as Action};
use crate::site::{AttentionSite, SiteTable};
use crate::step::{Intervention, Moment, Region, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// All self-attentions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleFusion {
    /// Standard deviation of the blur, in pixels of each map.
    pub(crate) sigma: f64,
    /// Whether the global attention is one of strided subsets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) strided: bool,
}

pub(super) fn resolve(settings: &ScaleFusion, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.sigma.is_finite() && settings.sigma > 0.0) {
        return at.refuse(format!("`sigma` is {}, expected a positive number", settings.sigma));
    }
    if at.settings.window_attention.is_some() {
        return at.refuse("and `window_attention` both say what self-attentions see, expected one of them");
    }
    Ok(Arc::new(*settings))
}

/// How many times (down, across) the training size the latents are, rounded down; nothing to fuse if not at least 1 both ways and 2 one.
fn times(latent: (usize, usize), native: (usize, usize)) -> Option<(usize, usize)> {
    let times = (latent.0 / native.0, latent.1 / native.1);
    (times.0.min(times.1) >= 1 && times.0.max(times.1) >= 2).then_some(times)
}

impl ScaleFusion {
    fn action(&self, site: &AttentionSite, times: (usize, usize), at: &Moment, dice: &mut Dice) -> Action {
        let map = site.size(at.latent);
        // In latents of the training size a window is `native` by as much less as the shape is narrower.
        let most = times.0.max(times.1);
        let side = |times: usize, native: usize, map: usize| {
            let window = native * times / most;
            ((window * map / (native * times)).max(1), (window / 2 * map / (native * times)).max(1))
        };
        let (height, down) = side(times.0, at.native.0, map.0);
        let (width, across) = side(times.1, at.native.1, map.1);
        let reach = ((height / 8) as i64, (width / 8) as i64);
        let mut corners = Vec::new();
        for row in starts(map.0, height, down) {
            for column in starts(map.1, width, across) {
                let right = moved(dice, column, width, map.1, reach.1);
                corners.push((row as i64 + moved(dice, row, height, map.0, reach.0), column as i64 + right));
            }
        }
        let divides = map.0.is_multiple_of(times.0) && map.1.is_multiple_of(times.1);
        let stride = if self.strided && divides { times } else { (1, 1) };
        Action { window: (height, width), corners: corners.into(), stride, taps: 2 * most - 1, sigma: self.sigma }
    }
}

impl Intervention for ScaleFusion {
    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        let Some(times) = times(at.latent, at.native) else { return };
        let mut dice = at.dice();
        for (i, site) in sites.attentions.iter().enumerate() {
            let shape = AttentionShape::Fused(self.action(site, times, at, &mut dice));
            let whole = step.views.iter_mut().filter(|view| view.region == Region::Whole);
            whole.flat_map(|view| &mut view.passes).for_each(|pass| pass.plan.attentions[i].shape = shape.clone());
        }
    }

    fn rolls_dice(&self) -> bool {
        true
    }

    fn check(&self, method: &str, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        match times(latent, native) {
            Some(_) => Ok(()),
            None => Err(Error::method(
                method,
                "`scale_fusion` has no effect here, expected at least the training size both ways and twice it one way",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(latent: (usize, usize), halvings: usize, strided: bool) -> Action {
        let at = Moment { latent, native: (128, 128), seed: 1, ..Moment::default() };
        let site = AttentionSite { path: String::new(), halvings };
        ScaleFusion { sigma: 1.0, strided }.action(&site, times(latent, at.native).unwrap(), &at, &mut at.dice())
    }

    /// SDXL's sizes, as the authors' code has them.
    #[test]
    fn windows_of_the_authors() {
        let of = |latent, halvings| {
            let found = action(latent, halvings, false);
            (found.window, found.corners.len(), found.taps)
        };
        assert_eq!(of((256, 256), 1), ((64, 64), 9, 3));
        assert_eq!(of((256, 256), 2), ((32, 32), 9, 3));
        assert_eq!(of((512, 512), 2), ((32, 32), 49, 7));
        assert_eq!(of((320, 320), 1), ((80, 80), 9, 3));
        // 2048 × 4096 px: 64 × 128 latents.
        assert_eq!(of((256, 512), 1), ((32, 64), 49, 7));
        assert_eq!((times((128, 128), (128, 128)), times((96, 512), (128, 128))), (None, None));
        assert_eq!((action((256, 256), 1, true).stride, action((256, 256), 1, false).stride), ((2, 2), (1, 1)));
    }
}
