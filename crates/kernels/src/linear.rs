//! Linear layers, between token sequences and to and from feature maps without a transposed copy.

use crate::elementwise::{gated, geglu};
use crate::product::{Left, PANEL, Precision, Product, Right};
use crate::share::tasks_of;
use crate::simd::dispatch;
use crate::view::{SharedMut, Unwritten, with_optional, with_slice};
use crate::weight::{ConvWeight, LinearWeight, transpose};
use crate::words;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Tokens and outputs of one tile at most: the sums stay in a second-level cache. Tokens become words again for every tile of
/// outputs, which takes longer in `bf16`.
fn tile_of(precision: Precision) -> (usize, usize) {
    match precision {
        Precision::F32 => (192, 4 * PANEL),
        Precision::Bf16 => (96, 8 * PANEL),
    }
}

/// Outputs and tokens of one tile of a map at most.
const MAP_TILE: (usize, usize) = (4 * PANEL, 192);

/// A tile of the output of image `image`.
struct Tile {
    image: usize,
    tokens: Range<usize>,
    outputs: Range<usize>,
}

#[derive(Default)]
struct Scratch {
    /// The tile's operand.
    words: Vec<u32>,
    /// The tile's sums.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Calls `f` for all tiles of `tokens` × `outputs`, cut evenly into pieces of at most `most`; those that share
/// weights follow each other. `k` inputs are summed for each output.
fn for_each_tile(batch: usize, tokens: usize, (outputs, k): (usize, usize), most: (usize, usize), f: impl Fn(Tile, &mut Scratch) + Sync) {
    let piece = |n: usize, most: usize| n.div_ceil(n.div_ceil(most).max(1)).max(1);
    // Whole panels, if there are several.
    let (height, width) = (piece(tokens, most.0), piece(outputs, most.1).next_multiple_of(PANEL));
    let (rows, columns) = (tokens.div_ceil(height), outputs.div_ceil(width));
    let cycles = height * width * k / 16;
    (0..columns * batch * rows).into_par_iter().with_min_len(tasks_of(cycles)).for_each(|task| {
        let (column, rest) = (task / (batch * rows), task % (batch * rows));
        let (image, row) = (rest / rows, rest % rows);
        let part = |i: usize, size: usize, all: usize| i * size..all.min((i + 1) * size);
        let tile = Tile { image, tokens: part(row, height, tokens), outputs: part(column, width, outputs) };
        SCRATCH.with_borrow_mut(|scratch| f(tile, scratch));
    });
}

/// Writes a tile of `(rows, n)`, whose first token is row `first`: the words of its tokens times `weight`, plus `bias`.
///
/// # Safety
/// `left` must hold the tile's tokens, and no other thread may write the tile.
unsafe fn project(
    left: Left,
    tile: &Tile,
    first: usize,
    weight: &LinearWeight,
    bias: Option<&[f32]>,
    sums: &mut Vec<f32>,
    out: SharedMut<f32>,
) {
    let ((n, k), width) = (weight.dims, tile.outputs.len());
    sums.resize(tile.tokens.len() * width, 0.0);
    let product = Product {
        m: tile.tokens.len(),
        n: width,
        depth: weight.precision.words(k),
        left,
        right: weight.right(tile.outputs.start),
        out: sums.as_mut_ptr(),
        out_row: width,
        accumulate: false,
    };
    // SAFETY: the caller's promise; `sums` has room for the tile.
    unsafe { product.run(weight.precision) };
    for (row, sums) in sums.chunks_exact(width).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { out.part((first + row) * n + tile.outputs.start, width) };
        match bias {
            Some(bias) => {
                let sums = sums.iter().zip(&bias[tile.outputs.clone()]);
                sums.zip(to).for_each(|((s, b), o)| _ = o.write(s + b));
            }
            None => sums.iter().zip(to).for_each(|(s, o)| _ = o.write(*s)),
        }
    }
}

fn check_bias(bias: Option<&Tensor>, n: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [n] => bail!("bias {:?}, expected [{n}]", bias.dims()),
        _ => Ok(()),
    }
}

/// `x Wᵀ + b` for `x` `(…, k)`, `weight` `(n, k)`, `bias` `(n)`: `(…, n)`.
///
/// Example: [`LinearWeight`](crate::LinearWeight).
pub fn linear(x: &Tensor, weight: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.dims;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == k && k > 0 => *last = n,
        _ => bail!("linear: input {:?}, weight {:?}", x.dims(), weight.dims),
    }
    check_bias(bias, n)?;
    #[cfg(gpu)]
    if let Some(weight) = &weight.on_gpu {
        return crate::gpu::linear(x, weight, bias);
    }
    let precision = weight.precision;
    with_slice(x, |x| {
        with_optional(bias, |bias| {
            let tokens = x.len() / k;
            let mut output = Unwritten::new(tokens * n);
            let out = output.shared();
            for_each_tile(1, tokens, (n, k), tile_of(precision), |tile, Scratch { words, sums }| {
                let left = operand(&x[tile.tokens.start * k..tile.tokens.end * k], k, precision, words);
                // SAFETY: `left` holds the tile's rows, and each tile is one task's.
                unsafe { project(left, &tile, tile.tokens.start, weight, bias, sums, out) };
            });
            // SAFETY: the tiles cover all tokens and outputs.
            unsafe { output.tensor(dims) }
        })
    })
}

/// Rows of `k` numbers as a left operand: as they are, or in `words`.
fn operand(rows: &[f32], k: usize, precision: Precision, words: &mut Vec<u32>) -> Left {
    let row = precision.words(k);
    let ptr = match precision {
        Precision::F32 => rows.as_ptr().cast(),
        Precision::Bf16 => {
            words.resize(rows.len() / k * row, 0);
            words::rows(rows, k, precision, words);
            words.as_ptr()
        }
    };
    Left { ptr, row }
}

/// [`geglu`](crate::geglu) of [`linear`], to the last bit, without the tensor of twice the size in between: `(…, k)` to `(…, n / 2)`.
///
/// Example: [`LinearWeight`](crate::LinearWeight).
pub fn linear_geglu(x: &Tensor, weight: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((n, k), precision) = (weight.dims, weight.precision);
    let half = n / 2;
    #[cfg(gpu)]
    if weight.on_gpu.is_some() {
        return geglu(&linear(x, weight, bias)?);
    }
    // The gates have to begin with a panel.
    if n % (2 * PANEL) != 0 || k == 0 || x.dims().last() != Some(&k) {
        return geglu(&linear(x, weight, bias)?);
    }
    check_bias(bias, n)?;
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("checked above") = half;
    let (most_tokens, most_outputs) = tile_of(precision);
    with_slice(x, |x| {
        with_optional(bias, |bias| {
            let tokens = x.len() / k;
            let mut output = Unwritten::new(tokens * half);
            let out = output.shared();
            for_each_tile(1, tokens, (half, 2 * k), (most_tokens, most_outputs / 2), |tile, Scratch { words, sums }| {
                let left = operand(&x[tile.tokens.start * k..tile.tokens.end * k], k, precision, words);
                let (rows, width) = (tile.tokens.len(), tile.outputs.len());
                sums.resize(2 * rows * width, 0.0);
                let (values, gates) = sums.split_at_mut(rows * width);
                for (first, sums) in [(tile.outputs.start, &mut *values), (half + tile.outputs.start, &mut *gates)] {
                    let (right, out) = (weight.right(first), sums.as_mut_ptr());
                    let product = Product { m: rows, n: width, depth: left.row, left, right, out, out_row: width, accumulate: false };
                    // SAFETY: `left` holds the tile's rows, `sums` has room for them.
                    unsafe { product.run(precision) };
                }
                dispatch(
                    #[inline(always)]
                    || {
                        for row in 0..rows {
                            let (values, gates) = (&mut values[row * width..][..width], &mut gates[row * width..][..width]);
                            if let Some(bias) = bias {
                                let (of_values, of_gates) =
                                    (&bias[tile.outputs.start..][..width], &bias[half + tile.outputs.start..][..width]);
                                for i in 0..width {
                                    values[i] += of_values[i];
                                    gates[i] += of_gates[i];
                                }
                            }
                            // SAFETY: each tile is one task's.
                            let to = unsafe { out.part((tile.tokens.start + row) * half + tile.outputs.start, width) };
                            for i in 0..width {
                                to[i].write(gated(values[i], gates[i]));
                            }
                        }
                    },
                );
            });
            // SAFETY: the tiles cover all tokens and outputs.
            unsafe { output.tensor(dims) }
        })
    })
}

/// Reads a map `(batch, c, h, w)` as `h · w` tokens and projects them: `(batch, h · w, n)` for
/// `weight` `(n, c)` and `bias` `(n)`.
///
/// Example: [`LinearWeight`](crate::LinearWeight).
pub fn map_to_tokens(x: &Tensor, weight: &LinearWeight, bias: &Tensor) -> Result<Tensor> {
    let (batch, c, h, w) = x.dims4()?;
    let (n, k) = weight.dims;
    if k != c || k == 0 {
        bail!("map_to_tokens: input {:?}, weight {:?}", x.dims(), weight.dims);
    }
    check_bias(Some(bias), n)?;
    #[cfg(gpu)]
    if let Some(weight) = &weight.on_gpu {
        return crate::gpu::map_to_tokens(x, weight, bias);
    }
    let (tokens, precision) = (h * w, weight.precision);
    let depth = precision.words(k);
    with_slice(x, |x| {
        with_slice(bias, |bias| {
            let mut output = Unwritten::new(batch * tokens * n);
            let out = output.shared();
            for_each_tile(batch, tokens, (n, k), tile_of(precision), |tile, Scratch { words, sums }| {
                words.resize(tile.tokens.len() * depth, 0);
                let channel = |c: usize| &x[(tile.image * k + c) * tokens..][tile.tokens.clone()];
                for p in 0..depth {
                    let column = words[p..].iter_mut().step_by(depth);
                    match precision {
                        Precision::F32 => column.zip(channel(p)).for_each(|(word, v)| *word = v.to_bits()),
                        Precision::Bf16 => {
                            let low = column.zip(channel(2 * p));
                            if 2 * p + 1 < k {
                                low.zip(channel(2 * p + 1)).for_each(|((word, l), h)| *word = words::pair(*l, *h));
                            } else {
                                low.for_each(|(word, l)| *word = words::pair(*l, 0.0));
                            }
                        }
                    }
                }
                let (left, first) = (Left { ptr: words.as_ptr(), row: depth }, tile.image * tokens + tile.tokens.start);
                // SAFETY: `left` holds the tile's rows, and each tile is one task's.
                unsafe { project(left, &tile, first, weight, Some(bias), sums, out) };
            });
            // SAFETY: the tiles cover all tokens and outputs.
            unsafe { output.tensor((batch, tokens, n)) }
        })
    })
}

/// Projects tokens `(batch, h · w, k)` into a map and adds `residual` `(batch, n, h, w)`, for
/// `weight` `(n, k)` and `bias` `(n)`.
///
/// Example: [`LinearWeight`](crate::LinearWeight).
pub fn tokens_to_map(x: &Tensor, weight: &ConvWeight, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (batch, tokens, k) = x.dims3()?;
    let (n, wk, kh, kw) = weight.dims;
    let (rb, rn, h, w) = residual.dims4()?;
    if wk != k || (kh, kw) != (1, 1) || (rb, rn, h * w) != (batch, n, tokens) {
        bail!("tokens_to_map: tokens {:?}, weight {:?}, residual {:?}", x.dims(), weight.dims, residual.dims());
    }
    check_bias(Some(bias), n)?;
    #[cfg(gpu)]
    if let Some(weight) = &weight.on_gpu {
        return crate::gpu::tokens_to_map(x, weight, bias, residual);
    }
    let (precision, depth) = (weight.precision, weight.precision.words(k));
    with_slice(x, |x| {
        with_slice(bias, |bias| {
            with_slice(residual, |residual| {
                let mut output = Unwritten::new(batch * n * tokens);
                let out = output.shared();
                for_each_tile(batch, tokens, (n, k), MAP_TILE, |Tile { image, tokens: strip, outputs }, Scratch { words, sums }| {
                    let width = strip.len();
                    words.resize(width.div_ceil(PANEL) * depth * PANEL, 0);
                    let rows = &x[(image * tokens + strip.start) * k..][..width * k];
                    for (rows, panel) in rows.chunks(PANEL * k).zip(words.chunks_exact_mut(depth * PANEL)) {
                        transpose(rows.chunks_exact(k), precision, panel);
                    }
                    sums.resize(outputs.len() * width, 0.0);
                    let product = Product {
                        m: outputs.len(),
                        n: width,
                        depth,
                        left: weight.left(outputs.start, 0),
                        right: Right { ptr: words.as_ptr(), panel: depth * PANEL },
                        out: sums.as_mut_ptr(),
                        out_row: width,
                        accumulate: false,
                    };
                    // SAFETY: the operands are those of the tile, and `sums` has room for it.
                    unsafe { product.run(precision) };
                    for (c, sums) in outputs.zip(sums.chunks_exact(width)) {
                        let first = (image * n + c) * tokens + strip.start;
                        let sums = sums.iter().zip(&residual[first..]);
                        // SAFETY: this task owns these pixels of channel `c`.
                        sums.zip(unsafe { out.part(first, width) }).for_each(|((s, r), o)| _ = o.write(s + bias[c] + r));
                    }
                });
                // SAFETY: the tiles cover all channels and pixels.
                unsafe { output.tensor((batch, n, h, w)) }
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn data(shape: impl Into<candle_core::Shape>, a: f32) -> Tensor {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * a).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    /// What a product sees of its operands.
    fn rounded(t: &Tensor, precision: Precision) -> Tensor {
        match precision {
            Precision::F32 => t.clone(),
            Precision::Bf16 => t.to_dtype(candle_core::DType::BF16).unwrap().to_dtype(candle_core::DType::F32).unwrap(),
        }
    }

    /// Against products of candle, on operands that candle has rounded: odd and even sizes, several tiles each way.
    #[test]
    fn projections_match_transposed_products() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (batch, h, w, k, n) in [(2, 20, 15, 6, 4), (1, 1, 1, 7, 65), (2, 3, 5, 301, 290), (1, 17, 29, 64, 640)] {
                let (x, weight, bias) = (data((batch, k, h, w), 0.3), data((n, k), 0.7), data(n, 1.7));
                let linear_weight = LinearWeight::new(&weight, precision).unwrap();
                let tokens = x.flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
                let product = |x: &Tensor, w: &Tensor| rounded(x, precision).broadcast_matmul(&rounded(w, precision).t().unwrap()).unwrap();
                let bare = product(&tokens, &weight);
                let want = bare.broadcast_add(&bias).unwrap();
                assert!(worst(&map_to_tokens(&x, &linear_weight, &bias).unwrap(), &want) < 5e-5);
                assert!(worst(&linear(&tokens, &linear_weight, Some(&bias)).unwrap(), &want) < 5e-5);
                assert!(worst(&linear(&tokens, &linear_weight, None).unwrap(), &bare) < 5e-5);

                let (back, bias) = (data((k, n), 0.9), data(k, 0.4));
                let projected = product(&want, &back).broadcast_add(&bias).unwrap().transpose(1, 2).unwrap();
                let map = (projected.reshape((batch, k, h, w)).unwrap() + &x).unwrap();
                let got = tokens_to_map(&want, &ConvWeight::new(&back, precision).unwrap(), &bias, &x).unwrap();
                assert!(worst(&got, &map) < 5e-4, "{:e}", worst(&got, &map));
            }
        }
    }

    /// To the last bit: gates that begin with a panel and gates that do not, ragged tiles.
    #[test]
    fn gated_projections_are_projections_that_are_gated() {
        let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for precision in [Precision::F32, Precision::Bf16] {
            for (tokens, k, n) in [(3, 7, 128), (201, 65, 640), (100, 300, 1152), (5, 8, 96)] {
                let (x, weight, bias) = (data((2, tokens, k), 0.3), data((n, k), 0.7), data(n, 1.7));
                let weight = LinearWeight::new(&weight, precision).unwrap();
                for bias in [None, Some(&bias)] {
                    let want = geglu(&linear(&x, &weight, bias).unwrap()).unwrap();
                    let got = linear_geglu(&x, &weight, bias).unwrap();
                    assert_eq!(got.dims(), [2, tokens, n / 2]);
                    assert_eq!(bits(got), bits(want), "{precision:?} {tokens} {k} {n}");
                }
            }
        }
        let weight = LinearWeight::new(&data((128, 5), 0.7), Precision::F32).unwrap();
        assert!(linear_geglu(&data((3, 4), 0.1), &weight, None).is_err());
        assert!(linear_geglu(&data((3, 5), 0.1), &weight, Some(&data(64, 0.1))).is_err());
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let (x, weight) = (data((1, 6, 2, 2), 0.3), LinearWeight::new(&data((4, 5), 0.7), Precision::F32).unwrap());
        assert!(map_to_tokens(&x, &weight, &data(4, 1.0)).is_err());
        assert!(linear(&x, &weight, None).is_err());
        assert!(linear(&data((3, 5), 0.1), &weight, Some(&data(5, 0.1))).is_err());
    }
}
