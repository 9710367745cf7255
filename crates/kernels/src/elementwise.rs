//! SiLU, GELU and GEGLU.

use crate::share::tasks_of;
use crate::simd::{dispatch, erf, silu as silu_scalar};
use crate::view::{Unwritten, tensor, with_slice, with_slices};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

const BLOCK: usize = 4096;

/// Elements that a thread copies at a time.
const JOINED: usize = 1 << 16;

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
    if x.dtype() != DType::F32 || x.dims() != y.dims() {
        return x + y;
    }
    let shape = x.shape();
    with_slices(&[x, y], |parts| {
        let (x, y) = (parts[0], parts[1]);
        let mut output = Unwritten::new(x.len());
        let written = output.spare(x.len());
        let blocks = written.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(y.par_chunks(BLOCK));
        blocks.with_min_len(tasks_of(2 * BLOCK)).for_each(|((out, x), y)| {
            dispatch(
                #[inline(always)]
                || {
                    for i in 0..out.len() {
                        out[i].write(x[i] + y[i]);
                    }
                },
            );
        });
        // SAFETY: the blocks are the whole of it.
        unsafe { output.tensor(shape) }
    })
}

/// Maps `(batch, channels, height, width)` side by side along their channels.
///
/// Example: [`geglu`].
pub fn join_channels(parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("join_channels: nothing to join") };
    let rest = |t: &Tensor| t.dims4().map(|(b, _, h, w)| (b, h, w));
    for part in parts {
        if rest(part)? != rest(first)? {
            bail!("join_channels: {:?} and {:?}", first.dims(), part.dims());
        }
    }
    #[cfg(gpu)]
    if crate::gpu::takes(first) {
        return crate::gpu::join_channels(parts);
    }
    if parts.iter().any(|part| part.dtype() != DType::F32) {
        return Tensor::cat(parts, 1);
    }
    let (batch, height, width) = rest(first)?;
    let parts: Vec<&Tensor> = parts.iter().collect();
    with_slices(&parts, |parts| {
        // Elements of an image in each part, and in what is made of them.
        let of: Vec<usize> = parts.iter().map(|part| part.len() / batch.max(1)).collect();
        let image: usize = of.iter().sum();
        let mut output = Unwritten::new(batch * image);
        output.spare(batch * image).par_chunks_mut(JOINED).enumerate().for_each(|(block, mut out)| {
            let mut at = block * JOINED;
            while !out.is_empty() {
                let (i, mut within) = (at / image, at % image);
                let mut part = 0;
                while within >= of[part] {
                    within -= of[part];
                    part += 1;
                }
                let n = (of[part] - within).min(out.len());
                let from = &parts[part][i * of[part] + within..][..n];
                let (to, behind) = out.split_at_mut(n);
                for (to, from) in to.iter_mut().zip(from) {
                    to.write(*from);
                }
                out = behind;
                at += n;
            }
        });
        let channels = image / (height * width).max(1);
        // SAFETY: the blocks are the whole of it.
        unsafe { output.tensor((batch, channels, height, width)) }
    })
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
                            out[i] = gated(a[i], gate[i]);
                        }
                    }
                },
            );
        });
        tensor(output, dims)
    })
}

/// `a · gelu(gate)`.
#[inline(always)]
pub(crate) fn gated(a: f32, gate: f32) -> f32 {
    a * 0.5 * gate * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2))
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

    /// Against candle's own, to the last bit, beyond a thread's block and from views that are not contiguous.
    #[test]
    fn sums_and_joints_are_candles() {
        let made = |channels: usize, step: f32| {
            let values: Vec<f32> = (0..2 * channels * 37 * 41).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_vec(values, (2, channels, 37, 41), &Device::Cpu).unwrap()
        };
        let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (x, y, z) = (made(64, 0.3), made(64, 0.7), made(3, 0.11));
        assert_eq!(bits(add(&x, &y).unwrap()), bits((&x + &y).unwrap()));
        let turned = y.narrow(1, 5, 17).unwrap();
        let joined = join_channels(&[x.clone(), turned.clone(), z.clone()]).unwrap();
        assert_eq!(joined.dims(), [2, 84, 37, 41]);
        assert_eq!(bits(joined), bits(Tensor::cat(&[x.clone(), turned, z.clone()], 1).unwrap()));
        assert!(join_channels(&[x, z.narrow(2, 0, 5).unwrap()]).is_err() && join_channels(&[]).is_err());
    }
}
