//! Softmax attention that never holds more than one tile of scores.

use crate::product::{Left, PANEL, Precision, Product, Right};
use crate::simd::{LANES, exp_simd, exp2_simd};
use crate::view::{SharedMut, Unwritten, tensor, with_slice};
use crate::weight::transpose;
use crate::words;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Queries and keys of one tile: 48 × 256 scores are 48 KiB.
const QUERY_TILE: usize = 48;
const KEY_TILE: usize = 4 * PANEL;

#[derive(Default)]
struct Scratch {
    /// Queries of one tile, and their probabilities, as words.
    query: Vec<u32>,
    words: Vec<u32>,
    scores: Vec<f32>,
    /// One query, times the scale.
    scaled: Vec<f32>,
    /// Weighted sums of values.
    acc: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Multi-head attention, `softmax(scale · Q Kᵀ) V` per head.
///
/// `q` is `(batch, n, heads · d)`, `k` and `v` `(batch, m, heads · d)`, heads side by side in the
/// channels as the projections leave them; returns `(batch, n, heads · d)`. Memory beyond the
/// operands is one tile per thread, whatever `n` and `m` (the running softmax of Milakov and
/// Gimelshein, 2018). With [`Precision::Bf16`], heads of more than 32 channels round queries, keys, values and
/// probabilities; smaller ones gain nothing by it and stay `f32`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, precision: Precision) -> Result<Tensor> {
    let (batch, _, width) = q.dims3()?;
    let (kb, m, kw) = k.dims3()?;
    if heads == 0 || width % heads != 0 || (kb, kw) != (batch, width) || v.dims() != k.dims() || m == 0 {
        bail!("attention: q {:?}, k {:?}, v {:?} with {heads} heads", q.dims(), k.dims(), v.dims());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(q) {
        return crate::gpu::attention(q, k, v, heads, scale);
    }
    let d = width / heads;
    // Long lines amortise their overhead; short ones do not pad a short context much.
    let narrow = match (d, m >= 512) {
        (8, true) => narrow::<8, 512>,
        (8, false) => narrow::<8, 32>,
        (16, true) => narrow::<16, 512>,
        (16, false) => narrow::<16, 32>,
        (24, true) => narrow::<24, 512>,
        (24, false) => narrow::<24, 32>,
        (32, true) => narrow::<32, 512>,
        (32, false) => narrow::<32, 32>,
        _ => return wide(q, k, v, heads, scale, precision),
    };
    narrow(q, k, v, heads, scale)
}

/// Any head size: tiles of scores by matrix products. Keys and values are laid out for them once a call.
fn wide(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, precision: Precision) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let (m, d) = (k.dims()[1], width / heads);
    let (depth, key_words) = (precision.words(d), precision.words(m));
    let key_size = m.div_ceil(PANEL) * depth * PANEL;
    let value_size = d.div_ceil(PANEL) * key_words * PANEL;
    let tiles = n.div_ceil(QUERY_TILE);
    // Scores are logarithms to the base of 2.
    let factor = (scale * std::f64::consts::LOG2_E) as f32;
    with_slice(q, |q| {
        let keys =
            with_slice(k, |k| Ok(panels(batch * heads * key_size, key_size, |i, to| lay_out_keys(k, i, m, heads, d, precision, to))))?;
        let values = with_slice(v, |v| {
            Ok(panels(batch * heads * value_size, value_size, |i, to| lay_out_values(v, i, m, heads, d, precision, to)))
        })?;
        let mut output = Unwritten::new(batch * n * width);
        let out = output.shared();
        (0..batch * heads * tiles).into_par_iter().for_each(|task| {
            let (panel, tile) = (task / tiles, task % tiles);
            let (b, head) = (panel / heads, panel % heads);
            let queries = tile * QUERY_TILE..n.min((tile + 1) * QUERY_TILE);
            let rows = queries.len();
            let at = |t: usize| (b * n + t) * width + head * d;
            SCRATCH.with_borrow_mut(|Scratch { query, words, scores, scaled, acc }| {
                query.resize(QUERY_TILE * depth, 0);
                words.resize(QUERY_TILE * precision.words(KEY_TILE), 0);
                scores.resize(QUERY_TILE * KEY_TILE, 0.0);
                acc.resize(QUERY_TILE * d, 0.0);
                for (t, to) in queries.clone().zip(query.chunks_exact_mut(depth)) {
                    scaled.clear();
                    scaled.extend(q[at(t)..][..d].iter().map(|v| v * factor));
                    words::rows(scaled, d, precision, to);
                }
                let mut peak = [f32::NEG_INFINITY; QUERY_TILE];
                let mut sum = [0f32; QUERY_TILE];
                for start in (0..m).step_by(KEY_TILE) {
                    let columns = KEY_TILE.min(m - start);
                    let product = Product {
                        m: rows,
                        n: columns,
                        depth,
                        left: Left { ptr: query.as_ptr(), row: depth },
                        right: Right { ptr: keys[panel * key_size + start / PANEL * depth * PANEL..].as_ptr(), panel: depth * PANEL },
                        out: scores.as_mut_ptr(),
                        out_row: KEY_TILE,
                        accumulate: false,
                    };
                    // SAFETY: the tile holds rows × columns scores, the keys have whole panels.
                    unsafe { product.run(precision) };
                    pulp::Arch::new().dispatch(Soften { scores, columns, d, rows, peak: &mut peak, sum: &mut sum, acc });
                    let (spent, row) = match precision {
                        Precision::F32 => (scores.as_ptr().cast(), KEY_TILE),
                        Precision::Bf16 => {
                            let row = precision.words(columns);
                            for (scores, words) in scores.chunks_exact(KEY_TILE).zip(words.chunks_exact_mut(row)).take(rows) {
                                words::rows(&scores[..columns], columns, precision, words);
                            }
                            (words.as_ptr(), row)
                        }
                    };
                    let product = Product {
                        m: rows,
                        n: d,
                        depth: precision.words(columns),
                        left: Left { ptr: spent, row },
                        right: Right {
                            ptr: values[panel * value_size + precision.words(start) * PANEL..].as_ptr(),
                            panel: key_words * PANEL,
                        },
                        out: acc.as_mut_ptr(),
                        out_row: d,
                        accumulate: start > 0,
                    };
                    // SAFETY: as above; the values have whole panels.
                    unsafe { product.run(precision) };
                }
                for ((t, sum), acc) in queries.zip(sum).zip(acc.chunks_exact(d)) {
                    let inverse = 1.0 / sum;
                    // SAFETY: this task owns head `head` of its query rows.
                    let to = unsafe { out.part(at(t), d) };
                    acc.iter().zip(to).for_each(|(a, o)| _ = o.write(a * inverse));
                }
            });
        });
        // SAFETY: the tasks cover all heads of all queries.
        unsafe { output.tensor((batch, n, width)) }
    })
}

/// `len` words in parts of `size`, part `i` written by `f`; what it leaves out is 0.
fn panels(len: usize, size: usize, f: impl Fn(usize, &mut [u32]) + Sync) -> Vec<u32> {
    let mut words = Unwritten::new(len);
    let shared = words.shared();
    // SAFETY: every task owns one part.
    (0..len / size).into_par_iter().for_each(|i| f(i, unsafe { shared.zeroed(i * size, size) }));
    // SAFETY: the parts are all of it.
    unsafe { words.vec(len) }
}

/// The rows `(m, d)` of image and head `i` in `x` `(batch, m, heads · d)`.
fn head_rows(x: &[f32], i: usize, m: usize, heads: usize, d: usize) -> impl Iterator<Item = &[f32]> + Clone {
    let (b, head) = (i / heads, i % heads);
    (0..m).map(move |t| &x[((b * m + t) * heads + head) * d..][..d])
}

/// Keys for `Q Kᵀ`: panels of keys, summed over channels.
fn lay_out_keys(k: &[f32], i: usize, m: usize, heads: usize, d: usize, precision: Precision, to: &mut [u32]) {
    let rows = head_rows(k, i, m, heads, d);
    for (j, panel) in to.chunks_exact_mut(precision.words(d) * PANEL).enumerate() {
        transpose(rows.clone().skip(j * PANEL).take(PANEL), precision, panel);
    }
}

/// Values for `P V`: panels of channels, summed over keys.
fn lay_out_values(v: &[f32], i: usize, m: usize, heads: usize, d: usize, precision: Precision, to: &mut [u32]) {
    let key_words = precision.words(m);
    let mut rows = head_rows(v, i, m, heads, d);
    for p in 0..key_words {
        let low = rows.next().unwrap_or(&[]);
        let high = if precision == Precision::Bf16 { rows.next().unwrap_or(&[]) } else { &[] };
        for (j, panel) in to.chunks_exact_mut(key_words * PANEL).enumerate() {
            let channels = j * PANEL..d.min((j + 1) * PANEL);
            let (low, high, to) = (&low[channels.clone()], high.get(channels).unwrap_or(&[]), &mut panel[p * PANEL..]);
            match precision {
                Precision::F32 => words::bits(low, to),
                Precision::Bf16 => words::joined(low, high, to),
            }
        }
    }
}

/// Turns lines of scores into unnormalised probabilities under the running maximum, and rescales what has been
/// accumulated under the old one.
struct Soften<'a> {
    /// `(rows, KEY_TILE)`, of which `columns` are scores; the rest of the last vector becomes 0.
    scores: &'a mut [f32],
    columns: usize,
    rows: usize,
    d: usize,
    peak: &'a mut [f32],
    sum: &'a mut [f32],
    /// `(rows, d)`.
    acc: &'a mut [f32],
}

impl pulp::WithSimd for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { scores, columns, rows, d, peak, sum, acc } = self;
        let lines = scores.chunks_exact_mut(KEY_TILE).zip(acc.chunks_exact_mut(d)).zip(peak).zip(sum).take(rows);
        for (((line, acc), peak), sum) in lines {
            let padded = columns.next_multiple_of(LANES).min(KEY_TILE);
            line[columns..padded].fill(f32::NEG_INFINITY);
            let vectors = S::as_mut_simd_f32s(&mut line[..padded]).0;
            // Four chains hide the latency of one.
            let mut tops = [simd.splat_f32s(f32::NEG_INFINITY); 4];
            for (i, score) in vectors.iter().enumerate() {
                tops[i % 4] = simd.max_f32s(tops[i % 4], *score);
            }
            let top = simd.max_f32s(simd.max_f32s(tops[0], tops[1]), simd.max_f32s(tops[2], tops[3]));
            let new_peak = peak.max(simd.reduce_max_f32s(top));
            let shrink = (*peak - new_peak).exp2();
            let shift = simd.splat_f32s(new_peak);
            let mut total = simd.splat_f32s(0.0);
            for score in &mut *vectors {
                *score = exp2_simd(simd, simd.sub_f32s(*score, shift));
                total = simd.add_f32s(total, *score);
            }
            *peak = new_peak;
            *sum = *sum * shrink + simd.reduce_sum_f32s(total);
            if shrink != 1.0 {
                acc.iter_mut().for_each(|a| *a *= shrink);
            }
        }
    }
}

/// Head size `D`, small: a matrix product over `D` is mostly packing, so each query makes, softens and
/// spends a short line of `TILE` scores that stays in the first-level cache, vectorised over keys.
fn narrow<const D: usize, const TILE: usize>(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let m = k.dims()[1];
    let padded = m.next_multiple_of(TILE);
    let tiles = n.div_ceil(QUERY_TILE);
    with_slice(q, |q| {
        let kt = with_slice(k, |k| Ok(channels_first::<D>(k, batch, m, heads, padded)))?;
        let vt = with_slice(v, |v| Ok(channels_first::<D>(v, batch, m, heads, padded)))?;
        let mut output = vec![0f32; batch * n * width];
        let out = SharedMut::new(&mut output);
        (0..batch * heads * tiles).into_par_iter().for_each(|task| {
            let (b, rest) = (task / (heads * tiles), task % (heads * tiles));
            let (head, tile) = (rest / tiles, rest % tiles);
            let panel = (b * heads + head) * D * padded;
            let (kt, vt) = (&kt[panel..][..D * padded], &vt[panel..][..D * padded]);
            let at = |t: usize| (b * n + t) * width + head * D;
            let queries = tile * QUERY_TILE..((tile + 1) * QUERY_TILE).min(n);
            let mut rows: Vec<[f32; D]> = queries.clone().map(|t| std::array::from_fn(|c| q[at(t) + c] * scale as f32)).collect();
            pulp::Arch::new().dispatch(Tile::<D, TILE> { kt, vt, m, rows: &mut rows });
            for (t, row) in queries.zip(&rows) {
                // SAFETY: this task owns head `head` of its query rows.
                unsafe { std::slice::from_raw_parts_mut(out.at(at(t)), D) }.copy_from_slice(row);
            }
        });
        tensor(output, (batch, n, width))
    })
}

/// `(batch, m, heads · D)` → `(batch, heads, D, padded)`, zeros in the padding.
fn channels_first<const D: usize>(x: &[f32], batch: usize, m: usize, heads: usize, padded: usize) -> Vec<f32> {
    let mut out = vec![0f32; batch * heads * D * padded];
    out.par_chunks_mut(D * padded).enumerate().for_each(|(i, panel)| {
        let (b, head) = (i / heads, i % heads);
        for t in 0..m {
            let token = &x[((b * m + t) * heads + head) * D..][..D];
            for (c, &value) in token.iter().enumerate() {
                panel[c * padded + t] = value;
            }
        }
    });
    out
}

/// The attention of the queries of one tile over one head's keys and values.
struct Tile<'a, const D: usize, const TILE: usize> {
    /// Keys and values, `(D, padded)` each, `padded` a multiple of `TILE`.
    kt: &'a [f32],
    vt: &'a [f32],
    /// Keys that are not padding.
    m: usize,
    /// Scaled queries, replaced by the result.
    rows: &'a mut [[f32; D]],
}

impl<const D: usize, const TILE: usize> pulp::WithSimd for Tile<'_, D, TILE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let padded = self.kt.len() / D;
        let mut line = [0f32; TILE];
        for row in self.rows {
            let query: [S::f32s; D] = std::array::from_fn(|c| simd.splat_f32s(row[c]));
            let mut peak = f32::NEG_INFINITY;
            let mut sum = simd.splat_f32s(0.0);
            let mut acc = [simd.splat_f32s(0.0); D];
            for start in (0..padded).step_by(TILE) {
                let keys: [&[S::f32s]; D] = std::array::from_fn(|c| S::as_simd_f32s(&self.kt[c * padded + start..][..TILE]).0);
                let values: [&[S::f32s]; D] = std::array::from_fn(|c| S::as_simd_f32s(&self.vt[c * padded + start..][..TILE]).0);
                let mut top = simd.splat_f32s(f32::NEG_INFINITY);
                let scores = S::as_mut_simd_f32s(&mut line).0;
                for (j, score) in scores.iter_mut().enumerate() {
                    let mut s = simd.mul_f32s(query[0], keys[0][j]);
                    for c in 1..D {
                        s = simd.mul_add_f32s(query[c], keys[c][j], s);
                    }
                    *score = s;
                    top = simd.max_f32s(top, s);
                }
                if self.m < start + TILE {
                    // The padding scored 0. It must not count for the maximum either: real scores far below
                    // it would all vanish.
                    line[self.m - start..].fill(f32::NEG_INFINITY);
                    let scores = S::as_simd_f32s(&line).0;
                    top = scores.iter().fold(scores[0], |top, s| simd.max_f32s(top, *s));
                }
                let new_peak = peak.max(simd.reduce_max_f32s(top));
                let shrink = simd.splat_f32s(crate::simd::exp(peak - new_peak));
                peak = new_peak;
                sum = simd.mul_f32s(sum, shrink);
                acc.iter_mut().for_each(|a| *a = simd.mul_f32s(*a, shrink));
                let shift = simd.splat_f32s(peak);
                for (j, score) in S::as_simd_f32s(&line).0.iter().enumerate() {
                    let p = exp_simd(simd, simd.sub_f32s(*score, shift));
                    sum = simd.add_f32s(sum, p);
                    for c in 0..D {
                        acc[c] = simd.mul_add_f32s(p, values[c][j], acc[c]);
                    }
                }
            }
            let inverse = 1.0 / simd.reduce_sum_f32s(sum);
            for c in 0..D {
                row[c] = simd.reduce_sum_f32s(acc[c]) * inverse;
            }
        }
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
        let split = |t: &Tensor, n| t.reshape((b, n, heads, c / heads)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let (q, k, v) = (split(q, n), split(k, m), split(v, m));
        let scores = (q.matmul(&k.transpose(2, 3).unwrap().contiguous().unwrap()).unwrap() * scale).unwrap();
        let top = scores.max_keepdim(D::Minus1).unwrap();
        let e = scores.broadcast_sub(&top).unwrap().exp().unwrap();
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        p.matmul(&v).unwrap().transpose(1, 2).unwrap().reshape((b, n, c)).unwrap()
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let q = (random((1, 40, 16), 0.7) * 100.0).unwrap();
        let got = attention(&q, &q, &q, 2, 1.0, Precision::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(got.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn padding_does_not_count_where_all_scores_are_far_below_zero() {
        // Five keys, the last a little closer: it takes nearly all the weight, at scores around −1000.
        let ones = Tensor::ones((1, 1, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let rows: Vec<f32> = (0..5).flat_map(|i| [if i == 4 { -124.0 } else { -125.0 }; 8]).collect();
        let k = Tensor::from_vec(rows, (1, 5, 8), &Device::Cpu).unwrap();
        let v = random((1, 5, 8), 0.7);
        let got = attention(&ones, &k, &v, 1, 1.0, Precision::F32).unwrap();
        let error = (got - direct(&ones, &k, &v, 1, 1.0)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 2e-5, "{error:e}");
    }

    #[test]
    fn matches_the_definition() {
        for (n, m, heads, d) in
            [(71, 1100, 2, 8), (5, 3, 4, 16), (65, 600, 2, 24), (33, 77, 1, 32), (130, 513, 1, 40), (64, 77, 3, 160), (50, 300, 2, 33)]
        {
            let (q, k, v) = (random((2, n, heads * d), 0.7), random((2, m, heads * d), 0.3), random((2, m, heads * d), 0.9));
            let scale = 1.0 / (d as f64).sqrt();
            let got = attention(&q, &k, &v, heads, scale, Precision::F32).unwrap();
            let want = direct(&q, &k, &v, heads, scale);
            let error = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < 2e-5, "{n} {m} {heads} {d}: {error:e}");
        }
    }

    /// Operands rounded to eight bits: the deviation stays of that size, and shrinks where many values are averaged.
    #[test]
    fn bf16_stays_near() {
        for (n, m, heads, d) in [(130, 513, 1, 40), (64, 77, 3, 160), (49, 1, 2, 64)] {
            let (q, k, v) = (random((2, n, heads * d), 0.7), random((2, m, heads * d), 0.3), random((2, m, heads * d), 0.9));
            let scale = 1.0 / (d as f64).sqrt();
            let got = attention(&q, &k, &v, heads, scale, Precision::Bf16).unwrap();
            let want = direct(&q, &k, &v, heads, scale);
            let error = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((1e-5..0.05).contains(&error), "{n} {m} {heads} {d}: {error:e}");
        }
    }
}
