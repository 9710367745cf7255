//! The embedded emoji reference set.
//!
//! Twemoji's vector art (CC-BY 4.0, see `datasets/README.md`) gives real reference images at *any*
//! resolution, so that a model trained at 64×64 pixels can be judged at 256×256 against images that
//! really have 256×256 pixels of detail.
//!
//! - [`emojis`](fn@emojis) lists the set in a fixed order; near-duplicates are left out, by the rules in `build.rs`.
//! - [`Placement`] says where on the white canvas an emoji stands; [`Split`] draws placements from
//!   keyed streams, so that training and reference images never share one.
//! - [`render`] draws one emoji at one size: the same bytes on every run.
//! - A [`Clip`] moves it: [`Split::clip`] draws one of nine motions, exact at every time, and [`Motion::caption`] says which.
//!
//! ```
//! use scalebench_emoji::{emojis, render, Split};
//! let cat = emojis().iter().find(|e| e.name == "cat face").unwrap();
//! let image = render(cat, Split::Reference.placement(cat, 0), 128, 128).unwrap();
//! assert_eq!(image.len(), 128 * 128 * 3);
//! ```

mod groups;
pub mod list;
mod motion;
mod placement;
mod render;

pub use list::{Emoji, GROUPS, emojis};
pub use motion::{Clip, MOTIONS, Motion, QUARTER_TURN};
pub use placement::{Placement, Split, prompt_order};
pub use render::{RenderError, render};
