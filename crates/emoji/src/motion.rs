//! Emoji that move: placements as exact functions of time.

use crate::placement::{Stream, hash};
use crate::{Emoji, Placement, RenderError, Split, render};

/// What an emoji does in a video.
///
/// Example: [`Clip`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Motion {
    /// Its centre goes left, at an even speed.
    Left,
    /// Its centre goes right.
    Right,
    /// Its centre goes up.
    Up,
    /// Its centre goes down.
    Down,
    /// Its scale rises evenly.
    Grows,
    /// Its scale falls evenly.
    Shrinks,
    /// It turns clockwise by [`QUARTER_TURN`] about its centre.
    Spins,
    /// It hops twice: parabolas in time.
    Bounces,
    /// It stands still, and is not there in the second and in the last quarter of the time.
    Blinks,
}

/// By how many degrees an emoji that spins turns.
pub const QUARTER_TURN: f32 = 90.0;

/// All motions, in the order of [`Motion::index`].
pub const MOTIONS: [Motion; 9] =
    [Motion::Left, Motion::Right, Motion::Up, Motion::Down, Motion::Grows, Motion::Shrinks, Motion::Spins, Motion::Bounces, Motion::Blinks];

impl Motion {
    /// What `emoji` does in its `view`-th video. Nine views in a row show all motions, and both splits agree, so that a caption goes
    /// with the reference video of its number.
    /// Example: [`Clip`].
    pub fn of(emoji: &Emoji, view: usize) -> Motion {
        let first = hash(0x6d6f_7469_6f6e, emoji.index as u64) % MOTIONS.len() as u64;
        MOTIONS[(first as usize + view) % MOTIONS.len()]
    }

    /// Its place in [`MOTIONS`].
    /// Example: [`Clip`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The words that follow the emoji's name in a caption.
    /// Example: [`Clip`].
    pub fn words(self) -> &'static str {
        match self {
            Motion::Left => "moves left",
            Motion::Right => "moves right",
            Motion::Up => "moves up",
            Motion::Down => "moves down",
            Motion::Grows => "grows",
            Motion::Shrinks => "shrinks",
            Motion::Spins => "spins",
            Motion::Bounces => "bounces",
            Motion::Blinks => "blinks",
        }
    }

    /// The prompt of a video: `cat face moves left`.
    /// Example: [`Clip`].
    pub fn caption(self, emoji: &Emoji) -> String {
        format!("{} {}", emoji.name, self.words())
    }
}

/// A motion from one placement to another.
///
/// ```
/// use scalebench_emoji::{Clip, MOTIONS, Motion, Split, emojis};
/// let pizza = emojis().iter().find(|emoji| emoji.name == "pizza").expect("an emoji of the set");
/// // Nine views in a row show all motions.
/// let view = (0..MOTIONS.len()).find(|view| Motion::of(pizza, *view) == Motion::Right).expect("all motions");
/// let clip: Clip = Split::Reference.clip(pizza, view);
/// assert_eq!((clip.motion.index(), clip.motion.words(), clip.motion.caption(pizza).as_str()), (1, "moves right", "pizza moves right"));
/// // The second of three frames shows it half way.
/// let half = clip.at(Clip::time(1, 3)).expect("it does not blink");
/// assert!((half.center.0 - (clip.start.center.0 + clip.end.center.0) / 2.0).abs() < 1e-6);
/// assert_eq!(clip.render(pizza, 3, 16, 16)?.len(), 3);
/// # Ok::<(), scalebench_emoji::RenderError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// What happens.
    pub motion: Motion,
    /// Where the emoji is at time 0.
    pub start: Placement,
    /// Where it is at time 1; of an emoji that bounces, at the top of its hops.
    pub end: Placement,
}

impl Clip {
    /// The placement at a time in [0, 1]; none while the emoji is not there.
    /// Example: [`Clip`].
    pub fn at(&self, time: f32) -> Option<Placement> {
        let between = |a: f32, b: f32, share: f32| if share == 0.0 { a } else { a + (b - a) * share };
        let share = match self.motion {
            // Two hops; at a hop's own time u it is 4u(1 − u) of its height up.
            Motion::Bounces => {
                let u = (2.0 * time).fract();
                4.0 * u * (1.0 - u)
            }
            Motion::Blinks if (4.0 * time).floor() % 2.0 == 1.0 => return None,
            _ => time,
        };
        Some(Placement {
            scale: between(self.start.scale, self.end.scale, share),
            rotation: between(self.start.rotation, self.end.rotation, share),
            center: (between(self.start.center.0, self.end.center.0, share), between(self.start.center.1, self.end.center.1, share)),
        })
    }

    /// The time of frame `i` of `frames`: evenly from 0 to 1.
    /// Example: [`Clip`].
    pub fn time(i: usize, frames: usize) -> f32 {
        if frames < 2 { 0.0 } else { i as f32 / (frames - 1) as f32 }
    }

    /// Draws `frames` frames, each as [`render`] draws one; without the emoji the canvas is white.
    /// Example: [`Clip`].
    pub fn render(&self, emoji: &Emoji, frames: usize, width: u32, height: u32) -> Result<Vec<Vec<u8>>, RenderError> {
        let frame = |i| match self.at(Clip::time(i, frames)) {
            Some(placement) => render(emoji, placement, width, height),
            None => Ok(vec![u8::MAX; 3 * width as usize * height as usize]),
        };
        (0..frames).map(frame).collect()
    }
}

impl Split {
    /// The `view`-th video of `emoji`. Its square is on the canvas at all times, but for the first frame's rotation of ±8°, as in
    /// [`Split::placement`]; what spins is small enough for all of the turn.
    /// Example: [`Clip`].
    pub fn clip(self, emoji: &Emoji, view: usize) -> Clip {
        let motion = Motion::of(emoji, view);
        let mut stream = Stream(hash(hash(self.seed() ^ 0x636c_6970, emoji.index as u64), view as u64));
        let mut within = |low: f32, high: f32| low + (high - low) * stream.uniform();
        // Scales at both ends of the time.
        let (first, last) = match motion {
            Motion::Grows => (within(0.5, 0.6), within(0.9, 1.0)),
            Motion::Shrinks => (within(0.9, 1.0), within(0.5, 0.6)),
            Motion::Spins => [within(0.64, 0.7); 2].into(),
            Motion::Blinks => [within(0.8, 1.0); 2].into(),
            _ => [within(0.65, 0.8); 2].into(),
        };
        let rotation = within(-8.0, 8.0);
        // What turns reaches farthest at 45°.
        let free = 1.0 - first.max(last) * if motion == Motion::Spins { std::f32::consts::SQRT_2 } else { 1.0 };
        let mut place = || 0.5 + free * (within(0.0, 1.0) - 0.5);
        let center = (place(), place());
        // Most of the way that there is, from one side to the other.
        let far = within(0.8, 1.0) * free;
        let low = 0.5 - free / 2.0 + within(0.0, free - far);
        let (a, b) = match motion {
            Motion::Left => ((low + far, center.1), (low, center.1)),
            Motion::Right => ((low, center.1), (low + far, center.1)),
            Motion::Up | Motion::Bounces => ((center.0, low + far), (center.0, low)),
            Motion::Down => ((center.0, low), (center.0, low + far)),
            _ => (center, center),
        };
        let turned = if motion == Motion::Spins { rotation + QUARTER_TURN } else { rotation };
        Clip { motion, start: Placement { scale: first, rotation, center: a }, end: Placement { scale: last, rotation: turned, center: b } }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::emojis;

    fn clip(motion: Motion) -> (&'static Emoji, Clip) {
        let emoji = emojis().iter().find(|e| e.name == "cat face").unwrap();
        let view = (0..9).find(|view| Motion::of(emoji, *view) == motion).unwrap();
        (emoji, Split::Reference.clip(emoji, view))
    }

    /// Placements at `n` even times.
    fn path(motion: Motion, n: usize) -> Vec<Option<Placement>> {
        (0..n).map(|i| clip(motion).1.at(Clip::time(i, n))).collect()
    }

    #[test]
    fn nine_views_show_nine_motions_and_splits_agree_on_them() {
        for emoji in &emojis()[..20] {
            let seen: HashSet<Motion> = (3..12).map(|view| Motion::of(emoji, view)).collect();
            assert_eq!(seen.len(), MOTIONS.len());
            let (train, reference) = (Split::Train.clip(emoji, 4), Split::Reference.clip(emoji, 4));
            assert_eq!(train, Split::Train.clip(emoji, 4));
            assert_eq!(train.motion, reference.motion);
            assert_ne!(train.start, reference.start);
        }
        assert!(MOTIONS.iter().enumerate().all(|(i, motion)| motion.index() == i));
        let firsts: HashSet<Motion> = emojis()[..60].iter().map(|emoji| Motion::of(emoji, 0)).collect();
        assert_eq!(firsts.len(), MOTIONS.len(), "one view of many emoji shows all, too");
        assert_eq!(Motion::Left.caption(clip(Motion::Left).0), "cat face moves left");
    }

    #[test]
    fn squares_stay_on_the_canvas() {
        for emoji in &emojis()[..60] {
            for (view, split) in (0..9).flat_map(|view| [(view, Split::Train), (view, Split::Reference)]) {
                let clip = split.clip(emoji, view);
                for p in (0..=32).filter_map(|i| clip.at(i as f32 / 32.0)) {
                    let turn = (p.rotation - clip.start.rotation).to_radians();
                    let half = p.scale / 2.0 * (turn.sin().abs() + turn.cos().abs());
                    for c in [p.center.0, p.center.1] {
                        assert!(c - half >= -1e-3 && c + half <= 1.0 + 1e-3, "{} {clip:?}: {p:?}", emoji.name);
                    }
                }
            }
        }
    }

    #[test]
    fn centres_go_where_the_words_say() {
        type Along = fn(&Placement) -> f32;
        let cases: [(Motion, Along, f32); 4] = [
            (Motion::Left, |p| p.center.0, -1.0),
            (Motion::Right, |p| p.center.0, 1.0),
            (Motion::Up, |p| p.center.1, -1.0),
            (Motion::Down, |p| p.center.1, 1.0),
        ];
        for (motion, along, sign) in cases {
            let path: Vec<Placement> = path(motion, 16).into_iter().map(Option::unwrap).collect();
            let steps: Vec<f32> = path.windows(2).map(|pair| sign * (along(&pair[1]) - along(&pair[0]))).collect();
            let (start, end) = (path[0], path[15]);
            let even = sign * (along(&end) - along(&start)) / 15.0;
            assert!(even > 0.15 / 15.0 && steps.iter().all(|step| (step - even).abs() < 1e-5), "{motion:?}: {steps:?}");
            assert!((end.scale - start.scale).abs() < 1e-6 && end.rotation == start.rotation);
            let across = |p: &Placement| p.center.0 + p.center.1 - along(p);
            assert!((across(&end) - across(&start)).abs() < 1e-6);
        }
    }

    #[test]
    fn sizes_and_angles_change_evenly() {
        for (motion, sign) in [(Motion::Grows, 1.0), (Motion::Shrinks, -1.0)] {
            let path: Vec<Placement> = path(motion, 9).into_iter().map(Option::unwrap).collect();
            let by = sign * (path[8].scale - path[0].scale);
            assert!((0.3..=0.5).contains(&by), "{motion:?}: {by}");
            assert!((path[4].scale - (path[0].scale + path[8].scale) / 2.0).abs() < 1e-6);
            assert_eq!(path[8].center, path[0].center);
        }
        let path: Vec<Placement> = path(Motion::Spins, 31).into_iter().map(Option::unwrap).collect();
        assert!((path[30].rotation - path[0].rotation - QUARTER_TURN).abs() < 1e-4);
        assert!(path.windows(2).all(|pair| (pair[1].rotation - pair[0].rotation - 3.0).abs() < 1e-4));
    }

    #[test]
    fn hops_are_parabolas_and_blinks_are_quarters() {
        let (_, clip) = clip(Motion::Bounces);
        let up = |time: f32| clip.start.center.1 - clip.at(time).unwrap().center.1;
        let height = clip.start.center.1 - clip.end.center.1;
        assert!(height > 0.15);
        for (time, share) in [(0.0, 0.0), (0.125, 0.75), (0.25, 1.0), (0.375, 0.75), (0.5, 0.0), (0.75, 1.0), (1.0, 0.0)] {
            assert!((up(time) - share * height).abs() < 1e-6, "{time}");
        }
        let there: Vec<bool> = path(Motion::Blinks, 9).iter().map(Option::is_some).collect();
        assert_eq!(there, [true, true, false, false, true, true, false, false, true]);
    }

    #[test]
    fn frames_are_still_renders_at_every_size() {
        for motion in MOTIONS {
            let (emoji, clip) = clip(motion);
            for (width, height) in [(32, 32), (48, 40)] {
                let frames = clip.render(emoji, 5, width, height).unwrap();
                assert_eq!(frames[0], render(emoji, clip.start, width, height).unwrap(), "{motion:?}");
                assert_eq!(clip.render(emoji, 1, width, height).unwrap(), frames[..1]);
                for (i, frame) in frames.iter().enumerate() {
                    match clip.at(i as f32 / 4.0) {
                        Some(placement) => assert_eq!(*frame, render(emoji, placement, width, height).unwrap()),
                        None => assert!(motion == Motion::Blinks && frame.iter().all(|value| *value == 255)),
                    }
                }
                assert!(frames.iter().any(|frame| *frame != frames[0]), "{motion:?} moves");
            }
        }
    }
}
