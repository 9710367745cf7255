//! SiLU, GEGLU and the linear layer.

use crate::simd::{dispatch, erf, silu as silu_scalar};
use crate::view::{Matrix, SharedMut, gemm, tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

const BLOCK: usize = 4096;

macro_rules! elementwise {
    ($(#[$doc:meta])* $name:ident, $f:expr) => {
        $(#[$doc])*
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            with_slice(x, |data| {
                let mut output = vec![0f32; data.len()];
                output.par_chunks_mut(BLOCK).zip(data.par_chunks(BLOCK)).for_each(|(out, data)| {
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
    silu,
    silu_scalar
);
elementwise!(
    /// `x · Φ(x)` with the exact normal distribution (`gelu` in transformers' configurations).
    gelu,
    |v: f32| 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))
);
elementwise!(
    /// `x · σ(1.702 x)`: the GELU of OpenAI's CLIP.
    quick_gelu,
    |v: f32| silu_scalar(1.702 * v) / 1.702
);

/// `a · gelu(g)` where `x` `(…, 2c)` holds `a` then `g`; the exact (erf) GELU that diffusers uses.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut().filter(|d| **d % 2 == 0 && **d > 0) else {
        bail!("geglu: the last dimension of {:?} is not even", x.dims());
    };
    *last /= 2;
    let c = *last;
    with_slice(x, |data| {
        let mut output = vec![0f32; data.len() / 2];
        let rows = (BLOCK / c).max(1);
        output.par_chunks_mut(rows * c).zip(data.par_chunks(rows * 2 * c)).for_each(|(out, data)| {
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

/// `x Wᵀ + b` for `x` `(…, k)`, `weight` `(n, k)`, `bias` `(n)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == k => *last = n,
        _ => bail!("linear: input {:?}, weight {:?}", x.dims(), weight.dims()),
    }
    with_slice(x, |data| {
        with_slice(weight, |weight| {
            let rows = data.len() / k;
            let run = |bias: &[f32]| {
                let mut output = vec![0f32; rows * n];
                let out = SharedMut::new(&mut output);
                let block = 256;
                (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
                    let first = task * block;
                    let m = block.min(rows - first);
                    if !bias.is_empty() {
                        for row in first..first + m {
                            // SAFETY: this task owns rows first..first + m.
                            unsafe { std::slice::from_raw_parts_mut(out.at(row * n), n) }.copy_from_slice(bias);
                        }
                    }
                    let lhs = Matrix { ptr: data[first * k..].as_ptr(), row: k, col: 1 };
                    let rhs = Matrix { ptr: weight.as_ptr(), row: 1, col: k };
                    // SAFETY: sizes follow from the shapes; the output rows belong to this task.
                    unsafe { gemm(m, n, k, out.at(first * n), n, !bias.is_empty(), lhs, rhs, 1.0) }
                });
                tensor(output, dims)
            };
            match bias {
                Some(bias) => with_slice(bias, run),
                None => run(&[]),
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn linear_and_geglu_match_candle() {
        let data = |n: usize, a: f32| (0..n).map(|i| 2.0 * (i as f32 * a).sin()).collect::<Vec<f32>>();
        let x = Tensor::from_vec(data(2 * 300 * 24, 0.3), (2, 300, 24), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(data(32 * 24, 0.7), (32, 24), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(data(32, 1.7), 32, &Device::Cpu).unwrap();
        let y = linear(&x, &w, Some(&b)).unwrap();
        let want = x.broadcast_matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        let max = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(max((&y - &want).unwrap()) < 1e-4);
        let halves = want.chunk(2, 2).unwrap();
        let want = (&halves[0] * halves[1].gelu_erf().unwrap()).unwrap();
        assert!(max((geglu(&y).unwrap() - want).unwrap()) < 1e-4);
    }
}
