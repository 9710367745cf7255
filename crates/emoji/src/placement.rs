//! Where an emoji stands on the canvas, drawn from keyed streams.

use crate::{Emoji, emojis};

/// A similarity transform of the emoji's unit square into the unit canvas.
///
/// ```
/// use scalebench_emoji::{Placement, RenderError, Split, emojis, render};
/// let pizza = emojis().iter().find(|emoji| emoji.name == "pizza").expect("an emoji of the set");
/// // Two splits never share a placement.
/// assert_ne!(Split::Train.placement(pizza, 0), Split::Reference.placement(pizza, 0));
/// // The corner of the canvas stays white.
/// let image = render(pizza, Placement { scale: 0.5, ..Placement::CENTERED }, 32, 32)?;
/// assert_eq!(image[..3], [255, 255, 255]);
/// assert!(matches!(render(pizza, Placement::CENTERED, 0, 32), Err(RenderError::Size { width: 0, height: 32 })));
/// # Ok::<(), RenderError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Side of the emoji's square relative to the canvas's shorter side, in (0, 1].
    pub scale: f32,
    /// Clockwise rotation about the emoji's centre, in degrees.
    pub rotation: f32,
    /// Centre of the emoji, relative to the canvas: (0.5, 0.5) is the middle.
    pub center: (f32, f32),
}

impl Placement {
    /// The emoji upright in the middle, filling the canvas's shorter side.
    pub const CENTERED: Placement = Placement { scale: 1.0, rotation: 0.0, center: (0.5, 0.5) };
}

/// The two disjoint image streams of the set.
///
/// Both hold every emoji: what a text-to-image model is asked for here is a *known* thing in a new
/// placement, which is also how real reference sets (captions and images of the training
/// distribution) are used.
///
/// Example: [`Placement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What the pocket networks are trained on.
    Train,
    /// What generated images are compared with.
    Reference,
}

impl Split {
    pub(crate) const fn seed(self) -> u64 {
        match self {
            Split::Train => 0x7261_696e,
            Split::Reference => 0x7265_6665,
        }
    }

    /// The placement of the `view`-th image of `emoji`: scale 0.8 to 1, rotation ±8°, anywhere that
    /// keeps the emoji's square (unrotated) on the canvas.
    /// Example: [`Placement`].
    pub fn placement(self, emoji: &Emoji, view: usize) -> Placement {
        let mut stream = Stream(hash(hash(self.seed(), emoji.index as u64), view as u64));
        let scale = 0.8 + 0.2 * stream.uniform();
        let rotation = 16.0 * stream.uniform() - 8.0;
        let margin = 1.0 - scale;
        let center = (0.5 + margin * (stream.uniform() - 0.5), 0.5 + margin * (stream.uniform() - 0.5));
        Placement { scale, rotation, center }
    }
}

/// The order in which prompts are taken from the set: a permutation of its indices keyed by `seed`.
///
/// Prompt `i` of an experiment is emoji `prompt_order(seed)[i % n]`.
///
/// Example: [`list`](crate::list).
pub fn prompt_order(seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..emojis().len()).collect();
    let mut stream = Stream(hash(0x0070_726f_6d70_7473, seed));
    for i in (1..order.len()).rev() {
        let j = (stream.next() % (i as u64 + 1)) as usize;
        order.swap(i, j);
    }
    order
}

/// SplitMix64 (Steele, Lea and Flood, 2014): tiny, well mixed, and the same everywhere.
pub(crate) struct Stream(pub(crate) u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), with 24 bits.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

pub(crate) fn hash(a: u64, b: u64) -> u64 {
    Stream(a ^ b.wrapping_mul(0xff51_afd7_ed55_8ccd)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_stay_on_the_canvas_and_differ_between_splits() {
        for emoji in &emojis()[..50] {
            for view in 0..20 {
                let p = Split::Train.placement(emoji, view);
                assert_eq!(p, Split::Train.placement(emoji, view));
                assert_ne!(p, Split::Reference.placement(emoji, view));
                for c in [p.center.0, p.center.1] {
                    assert!(c - p.scale / 2.0 >= -1e-6 && c + p.scale / 2.0 <= 1.0 + 1e-6);
                }
            }
        }
    }

    #[test]
    fn prompt_order_is_a_permutation() {
        let mut order = prompt_order(3);
        assert_ne!(order, prompt_order(4));
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &v)| i == v));
    }
}
