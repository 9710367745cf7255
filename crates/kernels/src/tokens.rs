//! Projections between feature maps and token sequences, without a transposed copy.

use crate::view::{Matrix, SharedMut, gemm, tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

const BLOCK: usize = 256;

/// Reads a map `(batch, c, h, w)` as `h · w` tokens and projects them: `(batch, h · w, n)` for
/// `weight` `(n, c)` and `bias` `(n)`.
pub fn map_to_tokens(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, c, h, w) = x.dims4()?;
    let (n, k) = weight.dims2()?;
    if k != c {
        bail!("map_to_tokens: input {:?}, weight {:?}", x.dims(), weight.dims());
    }
    let tokens = h * w;
    let blocks = tokens.div_ceil(BLOCK);
    with_slice(x, |x| {
        with_slice(weight, |weight| {
            with_slice(bias, |bias| {
                let mut output = vec![0f32; batch * tokens * n];
                let out = SharedMut::new(&mut output);
                (0..batch * blocks).into_par_iter().for_each(|task| {
                    let (b, first) = (task / blocks, task % blocks * BLOCK);
                    let m = BLOCK.min(tokens - first);
                    let start = (b * tokens + first) * n;
                    for row in 0..m {
                        // SAFETY: this task owns `m` rows of `n` values from `start` on.
                        unsafe { std::slice::from_raw_parts_mut(out.at(start + row * n), n) }.copy_from_slice(bias);
                    }
                    let lhs = Matrix { ptr: x[b * c * tokens + first..].as_ptr(), row: 1, col: tokens };
                    let rhs = Matrix { ptr: weight.as_ptr(), row: 1, col: c };
                    // SAFETY: sizes follow from the shapes; the output rows belong to this task.
                    unsafe { gemm(m, n, c, out.at(start), n, true, lhs, rhs, 1.0) }
                });
                tensor(output, (batch, tokens, n))
            })
        })
    })
}

/// Projects tokens `(batch, h · w, k)` into a map and adds `residual` `(batch, n, h, w)`, for
/// `weight` `(n, k)` and `bias` `(n)`.
pub fn tokens_to_map(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (batch, tokens, k) = x.dims3()?;
    let (n, wk) = weight.dims2()?;
    let (rb, rn, h, w) = residual.dims4()?;
    if wk != k || (rb, rn, h * w) != (batch, n, tokens) {
        bail!("tokens_to_map: tokens {:?}, weight {:?}, residual {:?}", x.dims(), weight.dims(), residual.dims());
    }
    let blocks = tokens.div_ceil(BLOCK);
    with_slice(x, |x| {
        with_slice(weight, |weight| {
            with_slice(bias, |bias| {
                with_slice(residual, |residual| {
                    let mut output = residual.to_vec();
                    let out = SharedMut::new(&mut output);
                    (0..batch * blocks).into_par_iter().for_each(|task| {
                        let (b, first) = (task / blocks, task % blocks * BLOCK);
                        let m = BLOCK.min(tokens - first);
                        let start = b * n * tokens + first;
                        for (row, &value) in bias.iter().enumerate() {
                            // SAFETY: this task owns columns first..first + m of image `b`.
                            let line = unsafe { std::slice::from_raw_parts_mut(out.at(start + row * tokens), m) };
                            line.iter_mut().for_each(|o| *o += value);
                        }
                        let lhs = Matrix { ptr: weight.as_ptr(), row: k, col: 1 };
                        let rhs = Matrix { ptr: x[(b * tokens + first) * k..].as_ptr(), row: 1, col: k };
                        // SAFETY: sizes follow from the shapes; the output columns belong to this task.
                        unsafe { gemm(n, m, k, out.at(start), tokens, true, lhs, rhs, 1.0) }
                    });
                    tensor(output, (batch, n, h, w))
                })
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn projections_match_transposed_products() {
        let data = |n: usize, a: f32| (0..n).map(|i| (i as f32 * a).sin()).collect::<Vec<f32>>();
        let x = Tensor::from_vec(data(2 * 6 * 300, 0.3), (2, 6, 20, 15), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(data(24, 0.7), (4, 6), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(data(4, 1.7), 4, &Device::Cpu).unwrap();
        let max = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let want = tokens.broadcast_matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        let got = map_to_tokens(&x, &w, &b).unwrap();
        assert!(max((&got - &want).unwrap()) < 1e-5);

        let back = Tensor::from_vec(data(24, 0.9), (6, 4), &Device::Cpu).unwrap();
        let bias = Tensor::from_vec(data(6, 0.4), 6, &Device::Cpu).unwrap();
        let want = want.broadcast_matmul(&back.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let want = (want.transpose(1, 2).unwrap().reshape((2, 6, 20, 15)).unwrap() + &x).unwrap();
        let got = tokens_to_map(&got, &back, &bias, &x).unwrap();
        assert!(max((got - want).unwrap()) < 1e-5);
    }
}
