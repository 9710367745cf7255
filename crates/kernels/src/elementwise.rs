//! SiLU, GELU and GEGLU.

use crate::share::tasks_of;
use crate::simd::{dispatch, erf, silu as silu_scalar};
use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

const BLOCK: usize = 4096;

macro_rules! elementwise {
    ($(#[$doc:meta])* $name:ident, $f:expr) => {
        $(#[$doc])*
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            #[cfg(gpu)]
            if crate::gpu::takes(x) {
                return crate::gpu::unary(stringify!($name), x);
            }
            with_slice(x, |data| {
                let mut output = vec![0f32; data.len()];
                let blocks = output.par_chunks_mut(BLOCK).zip(data.par_chunks(BLOCK));
                blocks.with_min_len(tasks_of(2 * BLOCK)).for_each(|(out, data)| {
                    dispatch(
                        #[inline(always)]
                        || out.iter_mut().zip(data).for_each(|(o, &v)| *o = $f(v)),
                    );
                });
                tensor(output, x.shape())
            })
        }
    };
}

elementwise!(
    /// `x · σ(x)`, elementwise.
    ///
    /// Example: [`geglu`].
    silu,
    silu_scalar
);
elementwise!(
    /// `x · Φ(x)` with the exact normal distribution (`gelu` in transformers' configurations).
    ///
    /// Example: [`geglu`].
    gelu,
    |v: f32| 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))
);
elementwise!(
    /// `x · σ(1.702 x)`: the GELU of OpenAI's CLIP.
    ///
    /// Example: [`geglu`].
    quick_gelu,
    |v: f32| silu_scalar(1.702 * v) / 1.702
);

/// `x + y`, elementwise, of equal shapes; on a GPU in the layout and type of `x`.
///
/// Example: [`geglu`].
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #[cfg(gpu)]
    if crate::gpu::takes(x) && x.shape() == y.shape() {
        return crate::gpu::add(x, y);
    }
    x + y
}

/// Maps `(batch, channels, height, width)` side by side along their channels.
///
/// Example: [`geglu`].
pub fn join_channels(parts: &[Tensor]) -> Result<Tensor> {
    #[cfg(gpu)]
    if let Some(first) = parts.first()
        && crate::gpu::takes(first)
    {
        let rest = |t: &Tensor| t.dims4().map(|(b, _, h, w)| (b, h, w));
        for part in parts {
            if rest(part)? != rest(first)? {
                bail!("join_channels: {:?} and {:?}", first.dims(), part.dims());
            }
        }
        return crate::gpu::join_channels(parts);
    }
    Tensor::cat(parts, 1)
}

/// `a · gelu(g)` where `x` `(…, 2c)` holds `a` then `g`; the exact (erf) GELU that diffusers uses.
///
/// ```
/// use candle_core::Device;
/// use scalebench_kernels::{Tensor, add, geglu, gelu, join_channels, quick_gelu, silu};
/// let x = Tensor::new(&[[2f32, -1.0, 0.5, 3.0]], &Device::Cpu)?;
/// // Each of them is x times a distribution function of a symmetric density, so f(x) − f(−x) = x.
/// for f in [silu, gelu, quick_gelu] {
///     let found = add(&f(&x)?, &f(&x.neg()?)?.neg()?)?.to_vec2::<f32>()?;
///     assert!(found[0].iter().zip([2.0, -1.0, 0.5, 3.0]).all(|(found, x)| (found - x).abs() < 1e-6));
/// }
/// let gated = (x.narrow(1, 0, 2)? * gelu(&x.narrow(1, 2, 2)?)?)?;
/// assert_eq!(geglu(&x)?.to_vec2::<f32>()?, gated.to_vec2::<f32>()?);
/// let map = x.reshape((1, 1, 2, 2))?;
/// assert_eq!(join_channels(&[map.clone(), map])?.dims(), [1, 2, 2, 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut().filter(|d| **d % 2 == 0 && **d > 0) else {
        bail!("geglu: the last dimension of {:?} is not even", x.dims());
    };
    *last /= 2;
    let c = *last;
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::geglu(x, &dims);
    }
    with_slice(x, |data| {
        let mut output = vec![0f32; data.len() / 2];
        let rows = (BLOCK / c).max(1);
        let blocks = output.par_chunks_mut(rows * c).zip(data.par_chunks(rows * 2 * c));
        blocks.with_min_len(tasks_of(4 * rows * c)).for_each(|(out, data)| {
            dispatch(
                #[inline(always)]
                || {
                    for (out, row) in out.chunks_exact_mut(c).zip(data.chunks_exact(2 * c)) {
                        let (a, gate) = row.split_at(c);
                        for i in 0..c {
                            let g = gate[i];
                            out[i] = a[i] * 0.5 * g * (1.0 + erf(g * std::f32::consts::FRAC_1_SQRT_2));
                        }
                    }
                },
            );
        });
        tensor(output, dims)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn geglu_matches_candle() {
        let values: Vec<f32> = (0..2 * 300 * 32).map(|i| 4.0 * (i as f32 * 0.3).sin()).collect();
        let x = Tensor::from_vec(values, (2, 300, 32), &Device::Cpu).unwrap();
        let halves = x.chunk(2, 2).unwrap();
        let want = (&halves[0] * halves[1].gelu_erf().unwrap()).unwrap();
        let error = (geglu(&x).unwrap() - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-5, "{error:e}");
    }
}
