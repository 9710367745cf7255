//! 3×3 convolutions by Winograd's F(2×2, 3×3): 16 products for four outputs instead of 36 (Lavin and Gray,
//! arXiv:1509.09308, section 4.1).
//!
//! With a dilation, outputs that are a dilation apart form a tile, and so do inputs. The transforms only add,
//! subtract and halve, so the error stays that of a sum in `f32`.

use crate::conv::{Activation, Band, CHUNK};
use crate::product::{Left, PANEL, Precision, Product, Right};
use crate::view::{SharedMut, Unwritten};
use crate::weight::ConvWeight;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Products of one tile.
const PRODUCTS: usize = 16;
/// Input channels at a time: with their sums, the transformed tiles stay in a second-level cache.
const DEPTH: usize = 64;
/// Output channels of one task at most, a multiple of a register tile's rows.
const CHANNELS: usize = 132;
/// Words of one product's panel. The gap takes what the last vector writes too much.
const STRIDE: usize = DEPTH * PANEL + CHUNK;
/// Tiles of an image from which on the transforms pay. It counts one image, whatever the batch: an image's result must
/// not depend on the others'.
const LEAST_TILES: usize = 512;

#[derive(Default)]
struct Scratch {
    /// `(PRODUCTS, STRIDE)`
    inputs: Vec<f32>,
    /// `(PRODUCTS, channels, PANEL)`
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether a convolution of stride 1 to an output of this size goes this way.
pub(crate) fn pays(weight: &ConvWeight, stride: usize, (oh, ow): (usize, usize)) -> bool {
    let (c_out, c_in, kh, kw) = weight.dims;
    weight.precision == Precision::F32 && (kh, kw, stride) == (3, 3, 1) && c_in >= 32 && c_out >= 48 && oh * ow >= 4 * LEAST_TILES
}

/// The kernels `(c_out, c_in, 3, 3)` as `(⌈c_in / DEPTH⌉, PRODUCTS, c_out, DEPTH)`: G g Gᵀ, in the order in which it is read.
pub(crate) fn transform_weight(weight: &ConvWeight) -> Vec<f32> {
    let (c_out, c_in, ..) = weight.dims;
    let len = c_in.div_ceil(DEPTH) * PRODUCTS * c_out * DEPTH;
    let mut transformed = Unwritten::<f32>::new(len);
    let to = transformed.shared();
    (0..c_out).into_par_iter().for_each(|c| {
        for i in 0..c_in.next_multiple_of(DEPTH) {
            let g: [f32; 9] = std::array::from_fn(|t| if i < c_in { weight.tap(c, i, t) } else { 0.0 });
            let half = |a: f32, b: f32, c: f32| [a, 0.5 * (a + c + b), 0.5 * (a + c - b), c];
            // Columns, then rows.
            let columns: [[f32; 4]; 3] = std::array::from_fn(|x| half(g[x], g[3 + x], g[6 + x]));
            for y in 0..4 {
                let row = half(columns[0][y], columns[1][y], columns[2][y]);
                for (x, value) in row.into_iter().enumerate() {
                    // SAFETY: this task owns output `c` of every product.
                    unsafe { to.at(((i / DEPTH * PRODUCTS + 4 * y + x) * c_out + c) * DEPTH + i % DEPTH).write(value) };
                }
            }
        }
    });
    // SAFETY: all outputs and inputs of all products are written.
    unsafe { transformed.vec(len) }
}

/// Neighbouring tiles of one panel that lie in one row.
struct Segment {
    /// First column of the panel.
    column: usize,
    tiles: usize,
    /// The first tile's first input, in the padded plane of a channel.
    source: [usize; 4],
    /// Its first output: row of the band, column.
    output: (usize, usize),
}

/// Convolves a band whose first row is a multiple of twice the dilation, and whose lines hold every `2 · dilation`-th
/// column together.
pub(crate) fn run(band: &Band<'_>, padded: &[u32], weight: &[f32], output: SharedMut<f32>) {
    let (c_out, ..) = band.weight.dims;
    let panels = panels(band);
    let parts = c_out.div_ceil(CHANNELS);
    let channels = c_out.div_ceil(parts).next_multiple_of(6);
    (0..band.images.len() * panels.len() * parts).into_par_iter().for_each(|task| {
        let (tile, part) = (task / parts, task % parts);
        let (image, panel) = (tile / panels.len(), tile % panels.len());
        let channels = part * channels..c_out.min((part + 1) * channels);
        if !channels.is_empty() {
            SCRATCH.with_borrow_mut(|scratch| tiles(band, padded, weight, image, channels, &panels[panel], scratch, output));
        }
    });
}

/// The tiles of a band, a panel's worth at a time.
fn panels(band: &Band<'_>) -> Vec<Vec<Segment>> {
    let d = band.geometry.dilation;
    let (rows, columns) = (band.rows.len(), band.output_size.1);
    // Pairs of outputs of phase `p` among `n`.
    let pairs = |n: usize, p: usize| n.saturating_sub(p).div_ceil(2 * d);
    let mut panels = vec![Vec::new()];
    let mut column = 0;
    for (py, px) in (0..d).flat_map(|py| (0..d).map(move |px| (py, px))) {
        for ty in 0..pairs(rows, py) {
            let n = pairs(columns, px);
            let mut first = 0;
            while first < n {
                if column == PANEL {
                    panels.push(Vec::new());
                    column = 0;
                }
                let tiles = (n - first).min(PANEL - column);
                let y = py + 2 * d * ty;
                let at = |j: usize| {
                    let x = px + d * j;
                    y * band.line + x % (2 * d) * (band.line / (2 * d)) + x / (2 * d) + first
                };
                let segment = Segment { column, tiles, source: std::array::from_fn(at), output: (y, px + 2 * d * first) };
                panels.last_mut().expect("never empty").push(segment);
                (first, column) = (first + tiles, column + tiles);
            }
        }
    }
    panels
}

#[allow(clippy::too_many_arguments)] // What is shared, what the task is, where it works.
fn tiles(
    band: &Band<'_>,
    padded: &[u32],
    weight: &[f32],
    image: usize,
    channels: Range<usize>,
    segments: &[Segment],
    scratch: &mut Scratch,
    output: SharedMut<f32>,
) {
    let (c_out, c_in, ..) = band.weight.dims;
    let Scratch { inputs, sums } = scratch;
    inputs.resize(PRODUCTS * STRIDE, 0.0);
    sums.resize(PRODUCTS * CHANNELS * PANEL, 0.0);
    let width = segments.last().map_or(0, |s| s.column + s.tiles);
    let source = &padded[image * c_in * band.plane..];
    for start in (0..c_in).step_by(DEPTH) {
        let depth = DEPTH.min(c_in - start);
        Arch::new().dispatch(Inputs { band, source, segments, channels: start..start + depth, to: inputs });
        for p in 0..PRODUCTS {
            let product = Product {
                m: channels.len(),
                n: width,
                depth,
                left: Left { ptr: weight[((start / DEPTH * PRODUCTS + p) * c_out + channels.start) * DEPTH..].as_ptr().cast(), row: DEPTH },
                right: Right { ptr: inputs[p * STRIDE..].as_ptr().cast(), panel: STRIDE },
                out: sums[p * CHANNELS * PANEL..].as_mut_ptr(),
                out_row: PANEL,
                accumulate: start > 0,
            };
            // SAFETY: one panel of columns, one row of sums for each channel.
            unsafe { product.run(Precision::F32) };
        }
    }
    Arch::new().dispatch(Outputs { band, image: band.images.start + image, channels, segments, sums, output });
}

/// Bᵀ d B of every tile, for some input channels.
struct Inputs<'a> {
    band: &'a Band<'a>,
    source: &'a [u32],
    segments: &'a [Segment],
    channels: Range<usize>,
    to: &'a mut [f32],
}

impl WithSimd for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { band, source, segments, channels, to } = self;
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        let row = band.geometry.dilation * band.line;
        for (k, channel) in channels.enumerate() {
            for segment in segments {
                for chunk in 0..segment.tiles.div_ceil(lanes) {
                    let to = &mut to[k * PANEL + segment.column + chunk * lanes..];
                    let first = channel * band.plane + chunk * lanes;
                    // The last column lies farthest in the line.
                    assert!(first + 3 * row + segment.source[3] + lanes <= source.len() && to.len() >= 15 * STRIDE + lanes);
                    let mut columns = [[simd.splat_f32s(0.0); 4]; 4];
                    for x in 0..4 {
                        // SAFETY: checked above.
                        unsafe {
                            let from = source.as_ptr().add(first + segment.source[x]).cast::<f32>();
                            columns[x] = input(simd, [load(from), load(from.add(row)), load(from.add(2 * row)), load(from.add(3 * row))]);
                        }
                    }
                    for y in 0..4 {
                        let values = input(simd, [columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
                        for x in 0..4 {
                            // SAFETY: checked above.
                            unsafe { to.as_mut_ptr().add((4 * y + x) * STRIDE).cast::<S::f32s>().write_unaligned(values[x]) };
                        }
                    }
                }
            }
        }
    }
}

// Functions, not closures: those would not be compiled along with the wide instructions.

/// # Safety
/// A whole vector must be readable.
#[inline(always)]
unsafe fn load<V: Copy>(from: *const f32) -> V {
    // SAFETY: the caller's promise.
    unsafe { from.cast::<V>().read_unaligned() }
}

/// Bᵀ of one line.
#[inline(always)]
fn input<S: Simd>(simd: S, d: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(d[0], d[2]), simd.add_f32s(d[1], d[2]), simd.sub_f32s(d[2], d[1]), simd.sub_f32s(d[1], d[3])]
}

/// Aᵀ of one line.
#[inline(always)]
fn result<S: Simd>(simd: S, m: [S::f32s; 4]) -> [S::f32s; 2] {
    [simd.add_f32s(simd.add_f32s(m[0], m[1]), m[2]), simd.sub_f32s(simd.sub_f32s(m[1], m[2]), m[3])]
}

/// Aᵀ m A of every tile, plus bias, activated.
struct Outputs<'a> {
    band: &'a Band<'a>,
    image: usize,
    channels: Range<usize>,
    segments: &'a [Segment],
    sums: &'a [f32],
    output: SharedMut<f32>,
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { band, image, channels, segments, sums, output } = self;
        let ((oh, ow), (c_out, ..), d) = (band.output_size, band.weight.dims, band.geometry.dilation);
        let width = segments.last().map_or(0, |s| s.column + s.tiles).next_multiple_of(16);
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        let mut lines = [[0f32; PANEL]; 4];
        for (row, c) in channels.enumerate() {
            let bias = simd.splat_f32s(band.bias.map_or(0.0, |bias| bias[(image * c_out + c) % bias.len()]));
            for i in (0..width).step_by(lanes) {
                let from = &sums[row * PANEL + i..];
                assert!(from.len() >= (PRODUCTS - 1) * CHANNELS * PANEL + lanes);
                let mut columns = [[simd.splat_f32s(0.0); 2]; 4];
                for x in 0..4 {
                    // SAFETY: checked above.
                    unsafe {
                        let from = from.as_ptr().add(x * CHANNELS * PANEL);
                        let next = 4 * CHANNELS * PANEL;
                        columns[x] = result(simd, [load(from), load(from.add(next)), load(from.add(2 * next)), load(from.add(3 * next))]);
                    }
                }
                for y in 0..2 {
                    let values = result(simd, [columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
                    for x in 0..2 {
                        let value = simd.add_f32s(values[x], bias);
                        let value = match band.activation {
                            Activation::Identity => value,
                            Activation::Relu => simd.max_f32s(value, simd.splat_f32s(0.0)),
                        };
                        S::as_mut_simd_f32s(&mut lines[2 * y + x]).0[i / lanes] = value;
                    }
                }
            }
            let plane = (image * c_out + c) * oh * ow + band.rows.start * ow;
            for Segment { column, tiles, output: (top, left), .. } in segments {
                for y in 0..2 {
                    let top = top + y * d;
                    if top >= band.rows.len() {
                        continue;
                    }
                    let lines = [&lines[2 * y][*column..][..*tiles], &lines[2 * y + 1][*column..][..*tiles]];
                    let to = plane + top * ow + left;
                    if d == 1 && ow - left >= 2 * tiles {
                        // SAFETY: this task owns these outputs of this channel.
                        let to = unsafe { output.part(to, 2 * tiles) };
                        for t in 0..*tiles {
                            to[2 * t].write(lines[0][t]);
                            to[2 * t + 1].write(lines[1][t]);
                        }
                        continue;
                    }
                    for x in 0..2 {
                        // The last tile may reach over the edge.
                        let inside = (ow - left).saturating_sub(x * d).div_ceil(2 * d);
                        for t in 0..inside.min(*tiles) {
                            // SAFETY: this task owns this output.
                            unsafe { output.at(to + x * d + 2 * d * t).write(lines[x][t]) };
                        }
                    }
                }
            }
        }
    }
}
