//! Decoding in overlapping tiles that are blended, as diffusers and ScaleCrafter's code do it.
//!
//! Both differ from decoding the whole map: tiles do not see beyond their edges. ScaleCrafter's
//! `--vae_tiling` lets all tiles advance layer by layer under common group norms, which keeps their
//! tones together.

use super::strips::Budget;
use super::{Decoder, ResnetBlock, Vae};
use crate::error::Result;
use crate::layers::GroupNorm;
use candle_core::Tensor;
use scalebench_kernels as kernels;

/// Share of a tile that overlaps its neighbour.
const OVERLAP: f64 = 0.25;

/// How group norms see tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// Each tile by itself (diffusers).
    Own,
    /// All tiles together, except in the middle block's attention (ScaleCrafter).
    Common,
}

/// Unscaled latents `(1, latent, h, w)` → image, in tiles of `side` latents.
pub(super) fn decode(vae: &Vae, latents: &Tensor, side: usize, norms: Norms) -> Result<Tensor> {
    let (_, _, h, w) = latents.dims4()?;
    let stride = (side as f64 * (1.0 - OVERLAP)) as usize;
    let (rows, columns): (Vec<usize>, Vec<usize>) = ((0..h).step_by(stride).collect(), (0..w).step_by(stride).collect());
    let mut tiles = Vec::new();
    for &y in &rows {
        for &x in &columns {
            tiles.push(latents.narrow(2, y, side.min(h - y))?.narrow(3, x, side.min(w - x))?.contiguous()?);
        }
    }
    let tiles = match norms {
        Norms::Common => together(vae, tiles)?,
        Norms::Own => tiles.iter().map(|tile| vae.decode_within(tile, Budget::of(tile.device()))).collect::<Result<Vec<_>>>()?,
    };
    let pixels = side * vae.factor;
    let extent = (pixels as f64 * OVERLAP) as usize;
    let kept = pixels - extent;
    let mut lines = Vec::new();
    // Tiles are blended in place, so that a tile's neighbours are blended ones already.
    let mut blended: Vec<Tensor> = Vec::new();
    for i in 0..rows.len() {
        for j in 0..columns.len() {
            let mut tile = tiles[i * columns.len() + j].clone();
            if i > 0 {
                tile = blend(&blended[(i - 1) * columns.len() + j], &tile, 2, extent)?;
            }
            if j > 0 {
                tile = blend(&blended[i * columns.len() + j - 1], &tile, 3, extent)?;
            }
            blended.push(tile);
        }
        let cut = |tile: &Tensor| -> Result<Tensor> {
            let (_, _, h, w) = tile.dims4()?;
            Ok(tile.narrow(2, 0, kept.min(h))?.narrow(3, 0, kept.min(w))?)
        };
        let line = blended[i * columns.len()..].iter().map(cut).collect::<Result<Vec<_>>>()?;
        lines.push(Tensor::cat(&line, 3)?);
    }
    Ok(Tensor::cat(&lines, 2)?)
}

/// `next` with its first `extent` rows (`dim` 2) or columns (3) faded in over the last of `before`.
fn blend(before: &Tensor, next: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
    let extent = extent.min(before.dims()[dim]).min(next.dims()[dim]);
    let weights: Vec<f32> = (0..extent).map(|i| i as f32 / extent as f32).collect();
    let shape = if dim == 2 { (1, 1, extent, 1) } else { (1, 1, 1, extent) };
    let weights = Tensor::from_vec(weights, shape, next.device())?;
    let old = before.narrow(dim, before.dims()[dim] - extent, extent)?;
    let new = next.narrow(dim, 0, extent)?;
    let faded = (&old + (new - &old)?.broadcast_mul(&weights)?)?;
    let rest = next.dims()[dim] - extent;
    if rest == 0 { Ok(faded) } else { Ok(Tensor::cat(&[faded, next.narrow(dim, extent, rest)?], dim)?) }
}

/// Common statistics, with the unbiased variance that the reference takes of each tile.
fn normalised(norm: &GroupNorm, tiles: &[Tensor]) -> Result<Vec<Tensor>> {
    let part = |tile: &Tensor| -> Result<(Vec<(f64, f64)>, f64)> {
        let (_, _, h, w) = tile.dims4()?;
        Ok((kernels::channel_sums(tile)?, (h * w) as f64))
    };
    let factors = norm.factors(&tiles.iter().map(part).collect::<Result<Vec<_>>>()?, 1.0)?;
    tiles.iter().map(|tile| Ok(kernels::channel_affine(tile, &factors, true)?)).collect()
}

fn resnet(block: &ResnetBlock, tiles: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let each = |tiles: Vec<Tensor>, f: &dyn Fn(&Tensor) -> Result<Tensor>| tiles.iter().map(f).collect::<Result<Vec<_>>>();
    let h = each(normalised(&block.norm1, &tiles)?, &|t| block.conv1.forward(t))?;
    let h = each(normalised(&block.norm2, &h)?, &|t| block.conv2.forward(t))?;
    tiles.iter().zip(h).map(|(x, h)| Ok(kernels::add(&block.shortcut(x)?, &h)?)).collect()
}

/// All tiles through the decoder, layer by layer.
fn together(vae: &Vae, tiles: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let Decoder { conv_in, mid, up_blocks, norm_out, conv_out } = &vae.decoder;
    let mut tiles = tiles.iter().map(|t| conv_in.forward(&vae.post_quant.forward(t)?)).collect::<Result<Vec<_>>>()?;
    tiles = resnet(&mid.resnets[0], tiles)?;
    tiles = tiles.iter().map(|t| mid.attention.forward(t)).collect::<Result<_>>()?;
    tiles = resnet(&mid.resnets[1], tiles)?;
    for block in up_blocks {
        for one in &block.resnets {
            tiles = resnet(one, tiles)?;
        }
        if let Some(conv) = &block.resampler {
            let up = |t: &Tensor| -> Result<Tensor> {
                let (_, _, h, w) = t.dims4()?;
                conv.forward(&kernels::upsample_nearest(t, 2 * h, 2 * w)?)
            };
            tiles = tiles.iter().map(up).collect::<Result<_>>()?;
        }
    }
    normalised(norm_out, &tiles)?.iter().map(|t| conv_out.forward(t)).collect()
}
