//! From vector art to pixels.

use crate::{Emoji, Placement};
use resvg::{tiny_skia, usvg};

/// Why an emoji could not be drawn.
///
/// Example: [`Placement`](crate::Placement).
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The asset is not an SVG that `resvg` can read.
    #[error("the drawing of `{name}` cannot be read: {source}")]
    Svg {
        /// The emoji's name.
        name: String,
        /// The parser's reason.
        source: usvg::Error,
    },
    /// A canvas with no pixels, or more than can be addressed.
    #[error("cannot draw on a canvas of {width}×{height} pixels")]
    Size {
        /// Canvas width in pixels.
        width: u32,
        /// Canvas height in pixels.
        height: u32,
    },
}

/// Draws `emoji` on a white canvas of `width`×`height` pixels.
///
/// Returns sRGB bytes, row by row, `height * width * 3` of them. On a canvas that is not square the
/// emoji keeps its shape: its size follows the shorter side, and its centre the whole canvas.
///
/// Example: [`Placement`](crate::Placement).
pub fn render(emoji: &Emoji, placement: Placement, width: u32, height: u32) -> Result<Vec<u8>, RenderError> {
    let tree = usvg::Tree::from_str(emoji.svg, &usvg::Options::default())
        .map_err(|source| RenderError::Svg { name: emoji.name.clone(), source })?;
    let mut canvas = tiny_skia::Pixmap::new(width, height).ok_or(RenderError::Size { width, height })?;
    canvas.fill(tiny_skia::Color::WHITE);

    let side = placement.scale * width.min(height) as f32;
    let art = tree.size();
    let transform = tiny_skia::Transform::from_translate(-art.width() / 2.0, -art.height() / 2.0)
        .post_scale(side / art.width(), side / art.height())
        .post_rotate(placement.rotation)
        .post_translate(placement.center.0 * width as f32, placement.center.1 * height as f32);
    resvg::render(&tree, transform, &mut canvas.as_mut());

    // Drawn on opaque white, every pixel is opaque, so premultiplied bytes are plain ones.
    Ok(canvas.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Split, emojis};

    #[test]
    fn every_emoji_draws_something_and_leaves_white() {
        for emoji in emojis() {
            let image = render(emoji, Split::Train.placement(emoji, 0), 32, 32).unwrap();
            let ink = image.chunks_exact(3).filter(|p| *p != [255, 255, 255]).count();
            assert!(ink > 20, "{}: {ink} pixels of ink", emoji.name);
        }
    }

    #[test]
    fn resolutions_agree() {
        // A 128-pixel render averaged 2×2 is the 64-pixel render but for anti-aliasing.
        let emoji = emojis().iter().find(|e| e.name == "pizza").unwrap();
        let p = Split::Reference.placement(emoji, 1);
        let (small, large) = (render(emoji, p, 64, 64).unwrap(), render(emoji, p, 128, 128).unwrap());
        let mut error = 0.0;
        for y in 0..64 {
            for x in 0..64 {
                for c in 0..3 {
                    let at = |dy: usize, dx: usize| f64::from(large[((2 * y + dy) * 128 + 2 * x + dx) * 3 + c]);
                    let mean = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0;
                    error += (mean - f64::from(small[(y * 64 + x) * 3 + c])).abs();
                }
            }
        }
        assert!(error / (64.0 * 64.0 * 3.0) < 2.0);
    }

    #[test]
    fn empty_canvas_is_an_error() {
        assert!(matches!(render(&emojis()[0], Placement::CENTERED, 0, 4), Err(RenderError::Size { .. })));
    }
}
