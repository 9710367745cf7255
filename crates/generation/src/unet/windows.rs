//! Self-attention inside the windows of a map.

use crate::error::Result;
use crate::plan::ShiftedWindows;
use candle_core::Tensor;
use scalebench_kernels as kernels;

/// Attention in windows of a map of `size` (height, width), whose `[q, k, v]` are `(batch, tokens, width)`. Sides that the grid does
/// not divide are resized (bicubic) before and after.
pub(super) fn shifted(
    windows: &ShiftedWindows,
    (h, w): (usize, usize),
    qkv: [&Tensor; 3],
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (rows, columns) = (h.div_ceil(windows.grid.0), w.div_ceil(windows.grid.1));
    let (height, width) = (rows * windows.grid.0, columns * windows.grid.1);
    let (down, across) = (rows / 4 * windows.quarters, columns / 4 * windows.quarters);
    let cut = |x: &Tensor| -> Result<Tensor> {
        let (batch, _, c) = x.dims3()?;
        let x = x.reshape((batch, h, w, c))?;
        let x = if (height, width) == (h, w) {
            x
        } else {
            kernels::resize_bicubic(&x.permute((0, 3, 1, 2))?.contiguous()?, height, width)?.permute((0, 2, 3, 1))?.contiguous()?
        };
        let x = roll(&roll(&x, 1, height - down % height)?, 2, width - across % width)?;
        let x = x.reshape(&[batch, windows.grid.0, rows, windows.grid.1, columns, c][..])?.permute(vec![0, 1, 3, 2, 4, 5])?;
        Ok(x.contiguous()?.reshape((batch * windows.grid.0 * windows.grid.1, rows * columns, c))?)
    };
    let [q, k, v] = qkv;
    let found = attend(&cut(q)?, &cut(k)?, &cut(v)?)?;
    let (all, _, c) = found.dims3()?;
    let batch = all / (windows.grid.0 * windows.grid.1);
    let x = found.reshape(&[batch, windows.grid.0, windows.grid.1, rows, columns, c][..])?.permute(vec![0, 1, 3, 2, 4, 5])?;
    let x = x.contiguous()?.reshape((batch, height, width, c))?;
    let x = roll(&roll(&x, 1, down)?, 2, across)?;
    let x = if (height, width) == (h, w) {
        x
    } else {
        kernels::resize_bicubic(&x.permute((0, 3, 1, 2))?.contiguous()?, h, w)?.permute((0, 2, 3, 1))?.contiguous()?
    };
    Ok(x.reshape((batch, h * w, c))?)
}

/// `x` turned by `n` places toward higher indices along `dim`.
fn roll(x: &Tensor, dim: usize, n: usize) -> Result<Tensor> {
    let side = x.dim(dim)?;
    let n = n % side;
    if n == 0 {
        return Ok(x.clone());
    }
    Ok(Tensor::cat(&[x.narrow(dim, side - n, n)?, x.narrow(dim, 0, side - n)?], dim)?)
}
