//! Sample grids: a row of reference images, then a row per method; a column per prompt.

use std::borrow::Cow;

use anyhow::{Context, Result, anyhow, bail};
use scalebench_metrics::Image;
use scalebench_metrics::resize::{Filter, Raster, pillow_u8};

use crate::run::video;

/// Most columns of a grid.
pub(crate) const MAX_COLUMNS: usize = 8;

/// Height of a tile in pixels, whatever the size of the images.
const TILE: usize = 112;

/// Space between tiles in pixels.
const GAP: usize = 4;

/// Longer side in pixels, at most, of an image that is embedded in a page.
pub(crate) const EMBEDDED: usize = 320;

/// The same of videos.
pub(crate) const EMBEDDED_VIDEO: usize = 160;

/// Quality of embedded images: at 320 pixels hardly to be told from the original, and a sixth of the bytes of a PNG file.
const EMBEDDED_QUALITY: f32 = 90.0;

/// The same of a video's frames, of which there are many: a fifth of the bytes that they take without losses.
const EMBEDDED_VIDEO_QUALITY: f32 = 75.0;

/// A WebP file for a page, reduced if the image is large and never enlarged.
pub(crate) fn embedded(image: &Image) -> Result<Vec<u8>> {
    encoded(&*reduced(image, EMBEDDED)?, EMBEDDED_QUALITY)
}

fn encoded(image: &Image, quality: f32) -> Result<Vec<u8>> {
    let side = |side: usize| u32::try_from(side).context("reduced to a side that fits");
    let mut config = webp::WebPConfig::new().map_err(|()| anyhow!("libwebp has no configuration"))?;
    config.quality = quality;
    // Colours have half the resolution: how they are halved is chosen so that edges keep theirs.
    config.use_sharp_yuv = 1;
    let encoded = webp::Encoder::from_rgb(&image.rgb, side(image.width)?, side(image.height)?).encode_advanced(&config);
    Ok(encoded.map_err(|error| anyhow!("cannot encode a sample as WebP: {error:?}"))?.to_vec())
}

/// An animated WebP file for a page, likewise.
pub(crate) fn embedded_video(frames: &[Image], fps: f64) -> Result<Vec<u8>> {
    let frames = frames.iter().map(|frame| Ok(reduced(frame, EMBEDDED_VIDEO)?.into_owned())).collect::<Result<Vec<_>>>()?;
    video::animated(&frames, fps, |frame| encoded(frame, EMBEDDED_VIDEO_QUALITY))
}

/// An image whose longer side is at most `most` pixels.
fn reduced(image: &Image, most: usize) -> Result<Cow<'_, Image>> {
    let longer = image.width.max(image.height);
    if longer <= most {
        return Ok(Cow::Borrowed(image));
    }
    let side = |side: usize| (side * most / longer).max(1);
    let (width, height) = (side(image.width), side(image.height));
    let raster = pillow_u8(&Raster::from(image), width, height, Filter::Bicubic)?;
    Ok(Cow::Owned(Image::new(width, height, raster.pixels.into_flattened())?))
}

/// The place of a video in a grid: its first, middle and last frame side by side; an image's is its [`tile`].
pub(crate) fn tile_of(frames: &[Image]) -> Result<Image> {
    match frames {
        [image] => tile(image),
        [] => bail!("a video without frames"),
        frames => {
            let shown = [0, frames.len() / 2, frames.len() - 1].map(|at| tile(&frames[at]));
            let shown = shown.into_iter().collect::<Result<Vec<_>>>()?;
            // Without gaps: what belongs together touches.
            let mut strip = blank(shown.iter().map(|tile| tile.width).sum(), TILE)?;
            let mut left = 0;
            for tile in &shown {
                paste(&mut strip, tile, left, 0);
                left += tile.width;
            }
            Ok(strip)
        }
    }
}

/// One row of [`tile`]s.
pub(crate) fn row(tiles: &[Image]) -> Result<Image> {
    let mut row = blank(tiles.iter().map(|tile| tile.width + GAP).sum::<usize>() - GAP, TILE)?;
    let mut left = 0;
    for tile in tiles {
        paste(&mut row, tile, left, 0);
        left += tile.width + GAP;
    }
    Ok(row)
}

/// Rows below one another.
pub(crate) fn stack(rows: &[Image]) -> Result<Image> {
    let width = rows.iter().map(|row| row.width).max().unwrap_or(1);
    let mut grid = blank(width, rows.iter().map(|row| row.height + GAP).sum::<usize>() - GAP)?;
    let mut top = 0;
    for row in rows {
        paste(&mut grid, row, 0, top);
        top += row.height + GAP;
    }
    Ok(grid)
}

/// An image shrunk or enlarged to the height of a grid's row.
pub(crate) fn tile(image: &Image) -> Result<Image> {
    let width = (image.width * TILE).div_ceil(image.height);
    let raster = pillow_u8(&Raster::from(image), width, TILE, Filter::Bicubic)?;
    Ok(Image::new(width, TILE, raster.pixels.into_flattened())?)
}

fn blank(width: usize, height: usize) -> Result<Image> {
    Ok(Image::new(width, height, vec![221; 3 * width * height])?)
}

fn paste(target: &mut Image, image: &Image, left: usize, top: usize) {
    for (y, line) in image.rgb.chunks_exact(3 * image.width).enumerate() {
        let start = 3 * ((top + y) * target.width + left);
        target.rgb[start..start + line.len()].copy_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_images_are_reduced_but_never_enlarged() {
        for ((width, height), expected) in [((40, 20), (40, 20)), ((640, 320), (320, 160)), ((4, 3200), (1, 320))] {
            let bytes = embedded(&Image::new(width, height, vec![90; 3 * width * height]).unwrap()).unwrap();
            let decoded = Image::decode(std::io::Cursor::new(bytes), "a test".as_ref()).unwrap();
            assert_eq!((decoded.width, decoded.height), expected);
            assert!(decoded.rgb.iter().all(|v| v.abs_diff(90) <= 2));
        }
    }

    #[test]
    fn videos_are_shown_by_three_frames_and_embedded_with_all() {
        let frames: Vec<Image> = (0..5u8).map(|i| Image::new(320, 160, vec![40 * i; 3 * 320 * 160]).unwrap()).collect();
        let strip = tile_of(&frames).unwrap();
        assert_eq!((strip.width, strip.height), (3 * 2 * TILE, TILE));
        let at = |x: usize| strip.rgb[3 * x];
        assert_eq!((at(0), at(2 * TILE), at(4 * TILE)), (0, 80, 160));
        let found = embedded_video(&frames, 8.0).unwrap();
        let found = scalebench_metrics::videos::animation(std::io::Cursor::new(found), "a test".as_ref()).unwrap();
        assert_eq!((found.len(), found[0].width, found[0].height), (5, 160, 80));
        assert!(found[3].rgb[0].abs_diff(120) <= 2);
    }

    #[test]
    fn tiles_have_one_height_and_keep_their_shape() {
        let image = |width, height| tile(&Image::new(width, height, vec![0; 3 * width * height]).unwrap()).unwrap();
        let wide = row(&[image(64, 32), image(64, 32)]).unwrap();
        assert_eq!((wide.width, wide.height), (4 * TILE + GAP, TILE));
        let square = row(&[image(32, 32)]).unwrap();
        let grid = stack(&[wide, square]).unwrap();
        assert_eq!((grid.width, grid.height), (4 * TILE + GAP, 2 * TILE + GAP));
        assert_eq!(grid.rgb[..3], [0; 3]);
        assert_eq!(grid.rgb[grid.rgb.len() - 3..], [221; 3]);
    }
}
