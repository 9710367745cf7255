//! Joint diffusion (MultiDiffusion: Bar-Tal et al. 2023, arXiv 2302.08113, equation 5): at each step the network looks at
//! overlapping windows of its training size, and where several cover a pixel, the mean of what they say counts.
//!
//! The authors make the sampler's step in each window and take the mean of the results; a step without noise is affine in the
//! prediction, so the mean of the predictions is the same. Where the stride does not divide what is left beside the first
//! window, theirs leaves a border uncovered (its latents become 0); here a last window lies flush with the edge.
//!
//! DemoFusion (Du et al. 2024, arXiv 2311.16973, §3.2) moves the windows at random at every step, AccDiffusion (Lin et al. 2024,
//! arXiv 2407.10738, §3.2) once for each stage. Their code draws from an unseeded generator; here moves depend on the image's seed.

use super::Resolving;
use crate::dice::Dice;
use crate::error::{Error, Result};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Region, Step, View, Windows};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The grid of windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JointDiffusion {
    /// Distance of windows, in windows.
    pub(crate) stride: f64,
    /// Whether windows are moved by up to a quarter of their overlap, every step anew; those at an edge outward only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) jitter: bool,
    /// Whether they stay where the first step of a stage has moved them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) held: bool,
    /// Moves are multiples of this many latents.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) grain: usize,
    /// Whether SDXL is told where each window lies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) told_corners: bool,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

pub(super) fn resolve(settings: &JointDiffusion, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    if !(settings.stride > 0.0 && settings.stride <= 1.0) {
        return at.refuse(format!("`stride` is {}, expected more than 0 windows and at most 1", settings.stride));
    }
    if !settings.jitter && (settings.held || settings.grain != 1) || settings.grain == 0 {
        return at.refuse("`held` and a positive `grain` are of moved windows, expected `jitter: true` beside them");
    }
    Ok(Arc::new(*settings))
}

impl JointDiffusion {
    fn windows(&self, at: &Moment) -> Windows {
        let size = (at.native.0.min(at.latent.0), at.native.1.min(at.latent.1));
        let stride = |side: usize| ((self.stride * side as f64).round() as usize).max(1);
        let step = stride(at.native.0.min(at.native.1));
        let rows = starts(at.latent.0, size.0, step);
        let columns = starts(at.latent.1, size.1, step);
        let grain = self.grain as i64;
        // In grains.
        let reach = if self.jitter { ((size.0.max(size.1).saturating_sub(step)) / 4 / self.grain) as i64 } else { 0 };
        let mut dice = if self.held { Dice::new(at.seed, at.stage, 0) } else { at.dice() };
        let mut corners = Vec::with_capacity(rows.len() * columns.len());
        for &row in &rows {
            for &column in &columns {
                let (across, down) = if self.jitter {
                    let across = grain * moved(&mut dice, column, size.1, at.latent.1, reach);
                    (across, grain * moved(&mut dice, row, size.0, at.latent.0, reach))
                } else {
                    (0, 0)
                };
                corners.push((row as i64 + down, column as i64 + across));
            }
        }
        // The authors of DemoFusion count from the corner of the padded latents.
        Windows { size, corners, told_corners: self.told_corners.then_some((grain * reach, grain * reach)), words: None }
    }
}

/// Where windows of `window` begin on a side of `all`: every `stride`, the last one flush with the edge.
pub(crate) fn starts(all: usize, window: usize, stride: usize) -> Vec<usize> {
    let last = all - window;
    (0..last).step_by(stride).chain([last]).collect()
}

/// By how much a window of `side` from `start` on is moved: inside by up to `reach` both ways, at an edge outward only, where it touches
/// both edges not at all.
pub(super) fn moved(dice: &mut Dice, start: usize, side: usize, all: usize, reach: i64) -> i64 {
    match (start == 0, start + side == all) {
        (true, true) => 0,
        (first, last) => dice.between(if last { 0 } else { -reach }, if first { 0 } else { reach }),
    }
}

impl Intervention for JointDiffusion {
    fn apply(&self, _sites: &SiteTable, at: &Moment, step: &mut Step) {
        if at.latent.0 <= at.native.0 && at.latent.1 <= at.native.1 {
            return;
        }
        let windows = self.windows(at);
        let whole = step.views.iter_mut().filter(|view| view.region == Region::Whole);
        whole.for_each(|view: &mut View| view.region = Region::Windows(windows.clone()));
    }

    fn rolls_dice(&self) -> bool {
        self.jitter
    }

    fn check(&self, method: &str, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        if latent.0 <= native.0 && latent.1 <= native.1 {
            return Err(Error::method(method, "`joint_diffusion` has no effect at the training resolution or below"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_of_the_papers() {
        // MultiDiffusion at 128² with a stride of 8: 81; DemoFusion at 256, 384 and 512 with one of 64: 3², 5², 7².
        assert_eq!(starts(128, 64, 8).len(), 9);
        assert_eq!([256, 384, 512].map(|all| starts(all, 128, 64).len()), [3, 5, 7]);
        assert_eq!(starts(100, 64, 24), [0, 24, 36]);
        assert_eq!(starts(64, 64, 8), [0]);
    }

    #[test]
    fn windows_move_inside_and_outward_only() {
        let windows = JointDiffusion { stride: 0.5, jitter: true, held: false, grain: 1, told_corners: true };
        let at = Moment { latent: (256, 128), native: (128, 128), seed: 3, ..Moment::default() };
        let found = windows.windows(&at);
        assert_eq!((found.size, found.corners.len(), found.told_corners), ((128, 128), 3, Some((16, 16))));
        let rows: Vec<i64> = found.corners.iter().map(|c| c.0).collect();
        assert!(found.corners.iter().all(|c| c.1 == 0));
        assert!((-16..=0).contains(&rows[0]) && (48..=80).contains(&rows[1]) && (128..=144).contains(&rows[2]), "{rows:?}");
        // The next step has others, unless they are held; those are on a grid.
        let next = Moment { step: 1, ..at.clone() };
        assert_ne!(windows.windows(&next), found);
        let held = JointDiffusion { held: true, grain: 8, ..windows };
        assert_eq!(held.windows(&next), held.windows(&at));
        assert!(held.windows(&at).corners.iter().all(|corner| corner.0 % 8 == 0));
    }
}
