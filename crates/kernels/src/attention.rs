//! Softmax attention that never holds more than one tile of scores.

use crate::simd::{dispatch, exp};
use crate::view::{Matrix, SharedMut, gemm, tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Queries and keys of one tile: 64 × 512 scores are 128 KiB.
const QUERY_TILE: usize = 64;
const KEY_TILE: usize = 512;

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Multi-head attention, `softmax(scale · Q Kᵀ) V` per head.
///
/// `q` is `(batch, n, heads · d)`, `k` and `v` `(batch, m, heads · d)`, heads side by side in the
/// channels as the projections leave them; returns `(batch, n, heads · d)`. Memory beyond the
/// operands is one tile per thread, whatever `n` and `m` (the running softmax of Milakov and
/// Gimelshein, 2018).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let (kb, m, kw) = k.dims3()?;
    if heads == 0 || width % heads != 0 || (kb, kw) != (batch, width) || v.dims() != k.dims() || m == 0 {
        bail!("attention: q {:?}, k {:?}, v {:?} with {heads} heads", q.dims(), k.dims(), v.dims());
    }
    let d = width / heads;
    let tiles = n.div_ceil(QUERY_TILE);
    with_slice(q, |q| {
        with_slice(k, |k| {
            with_slice(v, |v| {
                let mut output = vec![0f32; batch * n * width];
                let out = SharedMut::new(&mut output);
                (0..batch * heads * tiles).into_par_iter().for_each(|task| {
                    let (b, rest) = (task / (heads * tiles), task % (heads * tiles));
                    let (head, tile) = (rest / tiles, rest % tiles);
                    let first = tile * QUERY_TILE;
                    let rows = QUERY_TILE.min(n - first);
                    let at = |t: usize| (b * n + t) * width + head * d;
                    let kv = b * m * width + head * d;
                    let query = Matrix { ptr: q[at(first)..].as_ptr(), row: width, col: 1 };
                    SCORES.with_borrow_mut(|scores| {
                        scores.resize(QUERY_TILE * KEY_TILE, 0.0);
                        let mut peak = [f32::NEG_INFINITY; QUERY_TILE];
                        let mut sum = [0f32; QUERY_TILE];
                        for start in (0..m).step_by(KEY_TILE) {
                            let columns = KEY_TILE.min(m - start);
                            let key = Matrix { ptr: k[kv + start * width..].as_ptr(), row: 1, col: width };
                            let value = Matrix { ptr: v[kv + start * width..].as_ptr(), row: width, col: 1 };
                            // SAFETY: the tile holds rows × columns scores; q and k are inside their slices.
                            unsafe {
                                gemm(rows, columns, d, scores.as_mut_ptr(), columns, false, query, key, scale as f32);
                            }
                            for i in 0..rows {
                                let line = &mut scores[i * columns..][..columns];
                                // SAFETY: this task owns head `head` of its query rows.
                                let acc = unsafe { std::slice::from_raw_parts_mut(out.at(at(first + i)), d) };
                                dispatch(
                                    #[inline(always)]
                                    || soften(line, &mut peak[i], &mut sum[i], acc),
                                );
                            }
                            let probabilities = Matrix { ptr: scores.as_ptr(), row: columns, col: 1 };
                            // SAFETY: as above; the output rows belong to this task.
                            unsafe {
                                gemm(rows, d, columns, out.at(at(first)), width, true, probabilities, value, 1.0);
                            }
                        }
                        for (i, sum) in sum[..rows].iter().enumerate() {
                            // SAFETY: this task owns head `head` of its query rows.
                            let acc = unsafe { std::slice::from_raw_parts_mut(out.at(at(first + i)), d) };
                            let inverse = 1.0 / sum;
                            acc.iter_mut().for_each(|a| *a *= inverse);
                        }
                    });
                });
                tensor(output, (batch, n, width))
            })
        })
    })
}

/// Turns a line of scores into unnormalised probabilities under the running maximum, and rescales
/// what has been accumulated under the old one.
#[inline(always)]
fn soften(line: &mut [f32], peak: &mut f32, sum: &mut f32, acc: &mut [f32]) {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = line.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let top = chunks.remainder().iter().chain(&lanes).fold(*peak, |a, &b| if b > a { b } else { a });
    let shrink = exp(*peak - top);
    *peak = top;
    let mut lanes = [0f32; LANES];
    let mut chunks = line.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - top);
            *lane += *x;
        }
    }
    let mut total: f32 = 0.0;
    for x in chunks.into_remainder() {
        *x = exp(*x - top);
        total += *x;
    }
    *sum = *sum * shrink + total + lanes.iter().sum::<f32>();
    if shrink != 1.0 {
        acc.iter_mut().for_each(|a| *a *= shrink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    fn random(shape: (usize, usize, usize), a: f32) -> Tensor {
        let n = shape.0 * shape.1 * shape.2;
        let data: Vec<f32> = (0..n).map(|i| 3.0 * (i as f32 * a + (i as f32 * 0.01).cos()).sin()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// The definition with candle's own operations.
    fn direct(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Tensor {
        let (b, n, c) = q.dims3().unwrap();
        let m = k.dims()[1];
        let split = |t: &Tensor, n| {
            t.reshape((b, n, heads, c / heads)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
        };
        let (q, k, v) = (split(q, n), split(k, m), split(v, m));
        let scores = (q.matmul(&k.transpose(2, 3).unwrap().contiguous().unwrap()).unwrap() * scale).unwrap();
        let top = scores.max_keepdim(D::Minus1).unwrap();
        let e = scores.broadcast_sub(&top).unwrap().exp().unwrap();
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        p.matmul(&v).unwrap().transpose(1, 2).unwrap().reshape((b, n, c)).unwrap()
    }

    #[test]
    fn matches_the_definition() {
        for (n, m, heads, d) in [(70, 1100, 2, 8), (5, 3, 4, 16), (130, 513, 1, 40), (64, 77, 3, 160)] {
            let (q, k, v) = (random((2, n, heads * d), 0.7), random((2, m, heads * d), 0.3), random((2, m, heads * d), 0.9));
            let scale = 1.0 / (d as f64).sqrt();
            let got = attention(&q, &k, &v, heads, scale).unwrap();
            let want = direct(&q, &k, &v, heads, scale);
            let error = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < 2e-5, "{n} {m} {heads} {d}: {error:e}");
        }
    }
}
