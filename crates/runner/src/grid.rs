//! Sample grids: a row of reference images, then a row per method; a column per prompt.

use anyhow::Result;
use scalebench_metrics::Image;
use scalebench_metrics::resize::{Filter, Raster, pillow_u8};

/// Most columns of a grid.
pub(crate) const MAX_COLUMNS: usize = 8;

/// Height of a tile in pixels, whatever the size of the images.
const TILE: usize = 112;

/// Space between tiles in pixels.
const GAP: usize = 4;

/// One row of tiles, all images shrunk or enlarged to one tile size.
pub(crate) fn row(images: &[Image]) -> Result<Image> {
    let tiles: Vec<Image> = images.iter().map(tile).collect::<Result<_>>()?;
    let mut row = blank(tiles.iter().map(|tile| tile.width + GAP).sum::<usize>() - GAP, TILE)?;
    let mut left = 0;
    for tile in &tiles {
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

fn tile(image: &Image) -> Result<Image> {
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
    fn tiles_have_one_height_and_keep_their_shape() {
        let image = |width, height| Image::new(width, height, vec![0; 3 * width * height]).unwrap();
        let wide = row(&[image(64, 32), image(64, 32)]).unwrap();
        assert_eq!((wide.width, wide.height), (4 * TILE + GAP, TILE));
        let square = row(&[image(32, 32)]).unwrap();
        let grid = stack(&[wide, square]).unwrap();
        assert_eq!((grid.width, grid.height), (4 * TILE + GAP, 2 * TILE + GAP));
        assert_eq!(grid.rgb[..3], [0; 3]);
        assert_eq!(grid.rgb[grid.rgb.len() - 3..], [221; 3]);
    }
}
