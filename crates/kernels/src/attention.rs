//! Softmax attention that never holds more than one tile of scores.
//!
//! A tile is laid out with its queries side by side in the lanes of vectors, one line of them for each key. So nothing is summed or
//! compared across lanes, no head size leaves lanes empty, and both products of attention are of the kind that
//! [`product`](crate::product) makes best: few numbers broadcast against whole panels. That holds for heads of 8 channels as for
//! those of 512.

use crate::product::{Left, PANEL, Precision, Product, Right, pairs_pay};
use crate::share::tasks_of;
use crate::simd::{dispatch, exp2_simd};
use crate::view::{SharedMut, Unwritten, with_slice};
use crate::words;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Queries of one tile: a panel of the right operands.
const QUERY_TILE: usize = PANEL;

/// Keys of one tile, an even number: its 24 KiB of scores stay in a first-level cache.
const KEY_TILE: usize = 96;

/// Vectors of a line of scores that are worked on at a time.
const CHUNK: usize = 4;

/// Scores, as logarithms to the base of 2, that need no maximum subtracted: sums of a million of their powers, times values of
/// 2^20, stay finite, and powers 2^46 times smaller than the largest do not vanish.
const SAFE_SCORE: f32 = 80.0;

/// One number, or word, for each query of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>([T; QUERY_TILE]);

struct Scratch {
    /// Queries as words, `(words of a head's channels, QUERY_TILE)`.
    queries: Vec<Line<u32>>,
    /// Rows of words before they are transposed.
    rows: Vec<u32>,
    /// Scores, then probabilities, then these as words: `(KEY_TILE, QUERY_TILE)`.
    scores: Vec<Line<f32>>,
    /// Weighted sums of values, `(channels, QUERY_TILE)`.
    acc: Vec<Line<f32>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { queries: Vec::new(), rows: Vec::new(), scores: Vec::new(), acc: Vec::new() }) };
}

/// Multi-head attention, `softmax(scale · Q Kᵀ) V` per head.
///
/// `q` is `(batch, n, heads · d)`, `k` and `v` `(batch, m, heads · d)`, heads side by side in the
/// channels as the projections leave them; returns `(batch, n, heads · d)`. Memory beyond the
/// operands is one tile per thread, whatever `n` and `m` (the running softmax of Milakov and
/// Gimelshein, 2018). With [`Precision::Bf16`], heads of more than 32 channels round queries, keys, values and
/// probabilities where the CPU's products of pairs pay; smaller ones gain little by it and stay `f32`.
///
/// ```
/// use candle_core::Device;
/// use scalebench_kernels::{Precision, Tensor, attention, attention_map, mapped_values};
/// let numbers = |tokens: usize, step: f64| (Tensor::arange(0f32, 4.0 * tokens as f32, &Device::Cpu)? * step)?.sin()?.reshape((1, tokens, 4));
/// let (q, k, v) = (numbers(2, 0.7)?, numbers(3, 0.9)?, numbers(3, 1.1)?);
/// // One head of four channels: the map of its probabilities, then means by it.
/// let map = attention_map(&q, &k, 1, 0.5)?;
/// let apart = (attention(&q, &k, &v, 1, 0.5, Precision::F32)? - mapped_values(&map, &v)?)?;
/// assert!(apart.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, precision: Precision) -> Result<Tensor> {
    let narrow = q.dims().last().is_some_and(|width| *width <= 32 * heads);
    attention_in(if narrow || !pairs_pay() { Precision::F32 } else { precision }, q, k, v, heads, scale)
}

/// As [`attention`], in this precision.
fn attention_in(precision: Precision, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let (kb, m, kw) = k.dims3()?;
    if heads == 0 || width % heads != 0 || (kb, kw) != (batch, width) || v.dims() != k.dims() || m == 0 {
        bail!("attention: q {:?}, k {:?}, v {:?} with {heads} heads", q.dims(), k.dims(), v.dims());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(q) {
        return crate::gpu::attention(q, k, v, heads, scale);
    }
    let d = width / heads;
    // Scores are logarithms to the base of 2.
    let factor = (scale * std::f64::consts::LOG2_E) as f32;
    let context = with_slice(k, |k| with_slice(v, |v| Ok(Context::new(k, v, (batch, m, heads, d), factor, precision))))?;
    let tiles = n.div_ceil(QUERY_TILE);
    with_slice(q, |q| {
        let mut output = Unwritten::new(batch * n * width);
        let out = output.shared();
        let cycles = QUERY_TILE * m * (2 * d + 8) / 16;
        (0..batch * heads * tiles).into_par_iter().with_min_len(tasks_of(cycles)).for_each(|task| {
            let (head, tile) = (task / tiles, task % tiles);
            let first = tile * QUERY_TILE;
            let start = (head / heads * n + first) * width + head % heads * d;
            // SAFETY: this task owns the channels of its head in the rows of its queries.
            SCRATCH.with_borrow_mut(|scratch| unsafe {
                context.attend(head, &q[start..], n.min(first + QUERY_TILE) - first, scratch, out, start)
            });
        });
        // SAFETY: the tasks cover all heads of all queries.
        unsafe { output.tensor((batch, n, width)) }
    })
}

/// Keys and values of all images and heads, laid out as left operands of the products with tiles of queries.
struct Context {
    precision: Precision,
    /// Number of keys, channels of a head, channels of a token.
    m: usize,
    d: usize,
    width: usize,
    /// Per image, head and key: words of its scaled channels.
    keys: Vec<u32>,
    /// Per image, head and tile of keys: `(d, words of KEY_TILE)`.
    values: Vec<u32>,
    /// Per image, head and tile of keys: the largest squared norm of a scaled key.
    norms: Vec<f32>,
}

impl Context {
    /// Of `k`, which is scaled by `factor`, and `v`, both `(batch, m, heads · d)`.
    fn new(k: &[f32], v: &[f32], (batch, m, heads, d): (usize, usize, usize, usize), factor: f32, precision: Precision) -> Self {
        let (width, depth, row) = (heads * d, precision.words(d), precision.words(KEY_TILE));
        let tiles = m.div_ceil(KEY_TILE);
        let parts = batch * heads * tiles;
        let (mut keys, mut values, mut norms) =
            (Unwritten::new(batch * heads * m * depth), Unwritten::new(parts * d * row), Unwritten::new(parts));
        let (to_keys, to_values, to_norms): (SharedMut<u32>, SharedMut<u32>, SharedMut<f32>) =
            (keys.shared(), values.shared(), norms.shared());
        (0..parts).into_par_iter().with_min_len(tasks_of(2 * KEY_TILE * d)).for_each(|part| {
            let (head, first) = (part / tiles, part % tiles * KEY_TILE);
            let columns = KEY_TILE.min(m - first);
            let start = (head / heads * m + first) * width + head % heads * d;
            // SAFETY: every part owns its piece of each buffer.
            let (keys, values) =
                unsafe { (to_keys.zeroed((head * m + first) * depth, columns * depth), to_values.zeroed(part * d * row, d * row)) };
            let norm = SCRATCH.with_borrow_mut(|Scratch { rows, .. }| {
                dispatch(
                    #[inline(always)]
                    || {
                        lay_out_values(&v[start..], width, d, columns, precision, rows, values);
                        lay_out_keys(&k[start..], width, d, factor, precision, keys);
                        factor * factor * largest_norm(&k[start..], width, d, columns)
                    },
                )
            });
            // SAFETY: as above.
            unsafe { to_norms.at(part).write(norm) };
        });
        // SAFETY: the parts cover all keys and values.
        unsafe {
            Self {
                precision,
                m,
                d,
                width,
                keys: keys.vec(batch * heads * m * depth),
                values: values.vec(parts * d * row),
                norms: norms.vec(parts),
            }
        }
    }

    /// Attention of the first `rows` rows of `q`, `width` apart, over head `head` of all images' heads, to `out` from `start` on.
    ///
    /// # Safety
    /// The `d` elements of `out` from `start` on, and those of the next `rows` − 1 rows, must be this call's alone.
    unsafe fn attend(&self, head: usize, q: &[f32], rows: usize, scratch: &mut Scratch, out: SharedMut<f32>, start: usize) {
        let Self { precision, m, d, width, .. } = *self;
        let (depth, row) = (precision.words(d), precision.words(KEY_TILE));
        let tiles = m.div_ceil(KEY_TILE);
        let Scratch { queries, rows: words, scores, acc } = scratch;
        queries.resize(depth, Line([0; QUERY_TILE]));
        scores.resize(KEY_TILE, Line([0.0; QUERY_TILE]));
        acc.resize(d, Line([0.0; QUERY_TILE]));
        let query_norm = dispatch(
            #[inline(always)]
            || {
                lay_out_queries(q, width, d, rows, precision, words, queries);
                largest_norm(q, width, d, rows)
            },
        );
        // By the inequality of Cauchy and Schwarz. A tile is part of one image, so that the choice is the image's own.
        let key_norm = self.norms[head * tiles..][..tiles].iter().fold(0f32, |top, norm| top.max(*norm));
        let bounded = query_norm * key_norm <= SAFE_SCORE * SAFE_SCORE;
        let mut peak = Line([f32::NEG_INFINITY; QUERY_TILE]);
        let mut sum = Line([0f32; QUERY_TILE]);
        for (tile, first) in (0..m).step_by(KEY_TILE).enumerate() {
            let columns = KEY_TILE.min(m - first);
            let product = Product {
                m: columns,
                n: rows,
                depth,
                left: Left { ptr: self.keys[(head * m + first) * depth..].as_ptr(), row: depth },
                right: Right { ptr: queries.as_ptr().cast(), panel: depth * PANEL },
                out: scores.as_mut_ptr().cast(),
                out_row: QUERY_TILE,
                accumulate: false,
            };
            // SAFETY: the scratch memory holds whole panels of all keys of the tile.
            unsafe { product.run(precision) };
            let running = (!bounded).then_some((&mut peak, &mut acc[..]));
            pulp::Arch::new().dispatch(Soften { scores, columns, rows, sum: &mut sum, running, precision });
            let product = Product {
                m: d,
                n: rows,
                depth: precision.words(columns),
                left: Left { ptr: self.values[(head * tiles + tile) * d * row..].as_ptr(), row },
                right: Right { ptr: scores.as_ptr().cast(), panel: row * PANEL },
                out: acc.as_mut_ptr().cast(),
                out_row: QUERY_TILE,
                accumulate: first > 0,
            };
            // SAFETY: as above.
            unsafe { product.run(precision) };
        }
        dispatch(
            #[inline(always)]
            || {
                divide(acc, &sum);
                // SAFETY: the caller's promise.
                unsafe { transpose(acc.as_ptr().cast(), QUERY_TILE, out.at(start).cast(), width, d, rows) };
            },
        );
    }
}

/// Rows of `k`, `width` apart, times `factor`, as rows of words.
#[inline(always)]
fn lay_out_keys(k: &[f32], width: usize, d: usize, factor: f32, precision: Precision, to: &mut [u32]) {
    for (t, to) in to.chunks_exact_mut(precision.words(d)).enumerate() {
        let row = &k[t * width..][..d];
        match precision {
            Precision::F32 => {
                for c in 0..d {
                    to[c] = (row[c] * factor).to_bits();
                }
            }
            Precision::Bf16 => {
                for c in 0..d / 2 {
                    to[c] = words::pair(row[2 * c] * factor, row[2 * c + 1] * factor);
                }
                if d % 2 == 1 {
                    to[d / 2] = words::pair(row[d - 1] * factor, 0.0);
                }
            }
        }
    }
}

/// The transpose of `columns` rows of `v`, `width` apart: rows of words of keys. What `to` has beyond stays zero.
#[inline(always)]
fn lay_out_values(v: &[f32], width: usize, d: usize, columns: usize, precision: Precision, pairs: &mut Vec<u32>, to: &mut [u32]) {
    let row = precision.words(KEY_TILE);
    let (from, from_row) = match precision {
        Precision::F32 => (v[..(columns - 1) * width + d].as_ptr().cast(), width),
        Precision::Bf16 => {
            pairs.resize(row * d, 0);
            for (t, to) in pairs.chunks_exact_mut(d).take(columns.div_ceil(2)).enumerate() {
                let high = if 2 * t + 1 < columns { &v[(2 * t + 1) * width..][..d] } else { &[] };
                words::joined(&v[2 * t * width..][..d], high, to);
            }
            (pairs.as_ptr(), d)
        }
    };
    // SAFETY: `from` has as many rows of `d` words, and `to` `d` rows of `row` words.
    unsafe { transpose(from, from_row, to[..d * row].as_mut_ptr(), row, precision.words(columns), d) };
}

/// The transpose of `rows` rows of `q`, `width` apart. Lanes without a query keep what they have.
#[inline(always)]
fn lay_out_queries(q: &[f32], width: usize, d: usize, rows: usize, precision: Precision, words: &mut Vec<u32>, to: &mut [Line<u32>]) {
    let depth = precision.words(d);
    let (from, from_row) = match precision {
        Precision::F32 => (q[..(rows - 1) * width + d].as_ptr().cast(), width),
        Precision::Bf16 => {
            words.resize(QUERY_TILE * depth, 0);
            for (t, to) in words.chunks_exact_mut(depth).take(rows).enumerate() {
                words::neighbours(&q[t * width..][..d], to);
            }
            (words.as_ptr(), depth)
        }
    };
    // SAFETY: `from` has `rows` rows of `depth` words, and `to` `depth` lines.
    unsafe { transpose(from, from_row, to[..depth].as_mut_ptr().cast(), QUERY_TILE, rows, depth) };
}

/// Lines of sums over totals.
#[inline(always)]
fn divide(lines: &mut [Line<f32>], totals: &Line<f32>) {
    let mut inverse = [0f32; QUERY_TILE];
    for t in 0..QUERY_TILE {
        inverse[t] = 1.0 / totals.0[t];
    }
    for line in lines {
        for t in 0..QUERY_TILE {
            line.0[t] *= inverse[t];
        }
    }
}

/// Writes the `rows` rows of `columns` words, `from_row` apart, as columns of rows that are `to_row` apart.
///
/// # Safety
/// `from` must be readable and `to` writable for all of them, and they must not overlap.
#[inline(always)]
unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize, rows: usize, columns: usize) {
    let (whole_rows, whole_columns) = if cfg!(target_arch = "x86_64") { (rows / 4 * 4, columns / 4 * 4) } else { (0, 0) };
    // SAFETY: all offsets stay inside what the caller promised.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        for j in (0..whole_columns).step_by(4) {
            for i in (0..whole_rows).step_by(4) {
                transpose_4x4(from.add(i * from_row + j), from_row, to.add(j * to_row + i), to_row);
            }
        }
        for i in 0..rows {
            for j in if i < whole_rows { whole_columns } else { 0 }..columns {
                to.add(j * to_row + i).write(from.add(i * from_row + j).read());
            }
        }
    }
}

/// As [`transpose`], of four rows of four words.
///
/// # Safety
/// As there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_4x4(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    // SAFETY: SSE is part of x86-64; the addresses are the caller's promise.
    unsafe {
        let (mut a, mut b) = (_mm_loadu_ps(from.cast()), _mm_loadu_ps(from.add(from_row).cast()));
        let (mut c, mut d) = (_mm_loadu_ps(from.add(2 * from_row).cast()), _mm_loadu_ps(from.add(3 * from_row).cast()));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        _mm_storeu_ps(to.cast(), a);
        _mm_storeu_ps(to.add(to_row).cast(), b);
        _mm_storeu_ps(to.add(2 * to_row).cast(), c);
        _mm_storeu_ps(to.add(3 * to_row).cast(), d);
    }
}

/// The largest squared norm among `n` rows of `d` numbers, `width` apart.
#[inline(always)]
fn largest_norm(x: &[f32], width: usize, d: usize, n: usize) -> f32 {
    let mut top = 0f32;
    for t in 0..n {
        let row = &x[t * width..][..d];
        let mut squares = [0f32; 8];
        let whole = d / 8 * 8;
        for c in (0..whole).step_by(8) {
            for i in 0..8 {
                squares[i] += row[c + i] * row[c + i];
            }
        }
        for c in whole..d {
            squares[0] += row[c] * row[c];
        }
        top = top.max(squares.iter().sum());
    }
    top
}

/// Turns scores into unnormalised probabilities, adds them up, and for [`Precision::Bf16`] joins those of neighbouring keys in words.
struct Soften<'a> {
    /// `(columns, rows)` scores.
    scores: &'a mut [Line<f32>],
    columns: usize,
    rows: usize,
    sum: &'a mut Line<f32>,
    /// The running maximum, and what has been accumulated under it, where scores may be large.
    running: Option<(&'a mut Line<f32>, &'a mut [Line<f32>])>,
    precision: Precision,
}

impl pulp::WithSimd for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { scores, columns, rows, sum, mut running, precision } = self;
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        let scores = &mut scores[..columns];
        for chunk in (0..rows.div_ceil(lanes)).step_by(CHUNK) {
            let shift = match &mut running {
                Some((peak, acc)) => rescale(simd, chunk, scores, peak, sum, acc),
                None => [simd.splat_f32s(0.0); CHUNK],
            };
            match (running.is_some(), precision) {
                (false, Precision::F32) => soften::<S, false, false>(simd, chunk, shift, scores, sum),
                (false, Precision::Bf16) => soften::<S, false, true>(simd, chunk, shift, scores, sum),
                (true, Precision::F32) => soften::<S, true, false>(simd, chunk, shift, scores, sum),
                (true, Precision::Bf16) => soften::<S, true, true>(simd, chunk, shift, scores, sum),
            }
        }
    }
}

/// Vectors `chunk` to `chunk + CHUNK` of a line. A line has a multiple of [`CHUNK`] of them on every machine with vectors.
#[inline(always)]
fn vectors<S: pulp::Simd>(_: S, line: &mut Line<f32>, chunk: usize) -> &mut [S::f32s; CHUNK] {
    S::as_mut_simd_f32s(&mut line.0).0[chunk..].first_chunk_mut().expect("16 to 64 vectors a line")
}

/// Scores of some vectors of each line into probabilities under `shift`; [`Soften`].
#[inline(always)]
fn soften<S: pulp::Simd, const RUNNING: bool, const PAIRS: bool>(
    simd: S,
    chunk: usize,
    shift: [S::f32s; CHUNK],
    scores: &mut [Line<f32>],
    sum: &mut Line<f32>,
) {
    let least = simd.splat_f32s(-126.0);
    let mut sums = *vectors(simd, sum, chunk);
    for t in (0..scores.len()).step_by(if PAIRS { 2 } else { 1 }) {
        let mut low = *vectors(simd, &mut scores[t], chunk);
        for i in 0..CHUNK {
            if RUNNING {
                low[i] = simd.max_f32s(simd.sub_f32s(low[i], shift[i]), least);
            }
            low[i] = exp2_simd(simd, low[i]);
            sums[i] = simd.add_f32s(sums[i], low[i]);
        }
        if !PAIRS {
            *vectors(simd, &mut scores[t], chunk) = low;
            continue;
        }
        let mut high = [simd.splat_f32s(0.0); CHUNK];
        if t + 1 < scores.len() {
            high = *vectors(simd, &mut scores[t + 1], chunk);
            for i in 0..CHUNK {
                if RUNNING {
                    high[i] = simd.max_f32s(simd.sub_f32s(high[i], shift[i]), least);
                }
                high[i] = exp2_simd(simd, high[i]);
                sums[i] = simd.add_f32s(sums[i], high[i]);
            }
        }
        let words = vectors(simd, &mut scores[t / 2], chunk);
        for i in 0..CHUNK {
            words[i] = pair_simd(simd, low[i], high[i]);
        }
    }
    *vectors(simd, sum, chunk) = sums;
}

/// One word of two numbers in each lane, `low` first; they are finite and not negative. Ties are rounded up.
#[inline(always)]
fn pair_simd<S: pulp::Simd>(simd: S, low: S::f32s, high: S::f32s) -> S::f32s {
    let half = simd.splat_u32s(0x8000);
    let low = simd.wrapping_dyn_shr_u32s(simd.add_u32s(simd.transmute_u32s_f32s(low), half), simd.splat_u32s(16));
    let high = simd.and_u32s(simd.add_u32s(simd.transmute_u32s_f32s(high), half), simd.splat_u32s(0xffff_0000));
    simd.transmute_f32s_u32s(simd.or_u32s(low, high))
}

/// Raises the running maximum of some vectors of queries to that of their scores, and rescales what has been accumulated under
/// the old one. Returns the maximum.
#[inline(always)]
fn rescale<S: pulp::Simd>(
    simd: S,
    chunk: usize,
    scores: &mut [Line<f32>],
    peak: &mut Line<f32>,
    sum: &mut Line<f32>,
    acc: &mut [Line<f32>],
) -> [S::f32s; CHUNK] {
    let old = *vectors(simd, peak, chunk);
    let mut new = old;
    for line in scores {
        let line = vectors(simd, line, chunk);
        for i in 0..CHUNK {
            new[i] = simd.max_f32s(new[i], line[i]);
        }
    }
    let mut shrink = old;
    let mut least = simd.splat_f32s(1.0);
    for i in 0..CHUNK {
        shrink[i] = exp2_simd(simd, simd.max_f32s(simd.sub_f32s(old[i], new[i]), simd.splat_f32s(-126.0)));
        least = simd.min_f32s(least, shrink[i]);
        let total = &mut vectors(simd, sum, chunk)[i];
        *total = simd.mul_f32s(*total, shrink[i]);
    }
    if simd.reduce_min_f32s(least) != 1.0 {
        for line in acc {
            let line = vectors(simd, line, chunk);
            for i in 0..CHUNK {
                line[i] = simd.mul_f32s(line[i], shrink[i]);
            }
        }
    }
    *vectors(simd, peak, chunk) = new;
    new
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

    /// Scores beyond what needs no maximum subtracted, in some tiles of queries or in all.
    #[test]
    fn matches_the_definition_under_a_running_maximum() {
        for (n, m, d, scale) in [(130, 1100, 8, 2.0), (70, 200, 16, 0.2), (65, 97, 40, 1.0)] {
            let (q, k, v) = (random((1, n, 2 * d), 0.7), random((1, m, 2 * d), 0.3), random((1, m, 2 * d), 0.9));
            let rising: Vec<f32> = (0..n).map(|t| 3.0 * t as f32 / n as f32).collect();
            let q = q.broadcast_mul(&Tensor::from_vec(rising, (n, 1), &Device::Cpu).unwrap()).unwrap();
            let got = attention(&q, &k, &v, 2, scale, Precision::F32).unwrap();
            let error = (got - direct(&q, &k, &v, 2, scale)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < 2e-4, "{n} {m} {d}: {error:e}");
        }
    }

    /// Large scores of one image change how its own softmax is computed, not how that of its neighbour is.
    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        for d in [8, 40] {
            let (small, large) = (random((1, 100, 2 * d), 0.7), (random((1, 100, 2 * d), 0.3) * 50.0).unwrap());
            let bytes = |x: &Tensor, i: usize| x.get(i).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let run = |x: &Tensor| attention(x, x, x, 2, 0.3, Precision::F32).unwrap();
            let both = run(&Tensor::cat(&[&small, &large], 0).unwrap());
            assert_eq!(bytes(&both, 0), bytes(&run(&small), 0));
            assert_eq!(bytes(&both, 1), bytes(&run(&large), 0));
        }
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
            let got = attention_in(Precision::Bf16, &q, &k, &v, heads, scale).unwrap();
            let want = direct(&q, &k, &v, heads, scale);
            let error = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((1e-5..0.05).contains(&error), "{n} {m} {heads} {d}: {error:e}");
        }
    }
}
