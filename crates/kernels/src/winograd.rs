//! 3×3 convolutions by Winograd's F(4×4, 3×3): 36 products for sixteen outputs instead of 144 (Lavin and Gray,
//! arXiv:1509.09308, section 4).
//!
//! The interpolation points are 0, ±3/4, ±3/2 and ∞: the numbers of the transforms of inputs and outputs are exact in
//! `f32`, and the error is 5 times that of a direct sum (root mean square, 320 channels), where the usual 0, ±1, ±2, ∞
//! make it 10.
//!
//! With a dilation, outputs that are a dilation apart form a tile, and so do inputs.

use crate::conv::{Activation, Band, CHUNK, ConvGeometry};
use crate::product::{Left, PANEL, Precision, Product, Right};
use crate::simd::dispatch;
use crate::view::{SharedMut, Unwritten};
use crate::weight::ConvWeight;
use crate::words;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Outputs of a tile along a side.
pub(crate) const SIDE: usize = 4;
/// Inputs of a tile along a side.
const REACH: usize = SIDE + 2;
/// Products of one tile.
const PRODUCTS: usize = REACH * REACH;
/// Tiles of one task: half a panel, so that there is room for more channels.
const TILES: usize = 32;
/// Input channels at a time: with their sums, the transformed tiles stay in a second-level cache.
const DEPTH: usize = 32;
/// Output channels of one task at most, a multiple of a register tile's rows.
const CHANNELS: usize = 162;
/// Transformed weights at a time, in numbers for each thread.
const WEIGHTS: usize = 8 << 20;
/// Words of one product's panel. The gap takes what the last vector writes too much.
const STRIDE: usize = DEPTH * PANEL + CHUNK;
/// Outputs of an image from which on the transforms pay: a panel of tiles. It counts one image, whatever the batch: an
/// image's result must not depend on the others'.
const LEAST_OUTPUTS: usize = PANEL * SIDE * SIDE;

/// The points that are neither 0 nor ∞ are ±A and ±B.
const A: f32 = 0.75;
const B: f32 = 1.5;

#[derive(Default)]
struct Scratch {
    /// `(PRODUCTS, STRIDE)`
    inputs: Vec<f32>,
    /// `(PRODUCTS, CHANNELS, TILES)`
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether a convolution goes this way to an output of this size.
pub(crate) fn pays((c_out, c_in, kh, kw): (usize, usize, usize, usize), geometry: ConvGeometry, (oh, ow): (usize, usize)) -> bool {
    // Tiles that reach over the edge cost what whole ones cost.
    let tiles = |n: usize| (0..geometry.dilation).map(|p| tiles_of(n, p, geometry.dilation)).sum::<usize>();
    (kh, kw, geometry.stride) == (3, 3, 1)
        && c_in >= 16
        && c_out >= 16
        && oh * ow >= LEAST_OUTPUTS
        && 2 * tiles(oh) * tiles(ow) * PRODUCTS <= oh * ow * 9
}

/// Tiles of the outputs of phase `p` among `n`.
fn tiles_of(n: usize, p: usize, dilation: usize) -> usize {
    n.saturating_sub(p).div_ceil(SIDE * dilation)
}

/// The kernels `(outputs, c_in, 3, 3)` as `(⌈c_in / DEPTH⌉, PRODUCTS, outputs, DEPTH)`: G g Gᵀ, in the order in which it is read.
fn transform_weight(weight: &ConvWeight, outputs: Range<usize>) -> Vec<f32> {
    let (_, c_in, ..) = weight.dims;
    let (n, blocks) = (outputs.len(), c_in.div_ceil(DEPTH));
    let len = blocks * PRODUCTS * n * DEPTH;
    let mut transformed = Unwritten::<f32>::new(len);
    let to = transformed.shared();
    (0..n).into_par_iter().for_each(|c| {
        let kernels = weight.kernels(outputs.start + c);
        dispatch(
            #[inline(always)]
            || {
                for block in 0..blocks {
                    // Channels that there are not are zeros.
                    let mut g = [[0f32; DEPTH]; 9];
                    let words = weight.precision.words(DEPTH) * 9;
                    let some = &kernels[block * words..kernels.len().min((block + 1) * words)];
                    for i in 0..some.len() / 9 {
                        for t in 0..9 {
                            let word = some[9 * i + t];
                            match weight.precision {
                                Precision::F32 => g[t][i] = f32::from_bits(word),
                                Precision::Bf16 => [g[t][2 * i], g[t][2 * i + 1]] = words::apart(word),
                            }
                        }
                    }
                    let mut columns = [[[0f32; DEPTH]; REACH]; 3];
                    for x in 0..3 {
                        kernel([&g[x], &g[3 + x], &g[6 + x]], &mut columns[x]);
                    }
                    let mut values = [[0f32; DEPTH]; REACH];
                    for y in 0..REACH {
                        kernel([&columns[0][y], &columns[1][y], &columns[2][y]], &mut values);
                        for x in 0..REACH {
                            // SAFETY: this task owns output `c` of every product.
                            let to = unsafe { to.part(((block * PRODUCTS + REACH * y + x) * n + c) * DEPTH, DEPTH) };
                            for i in 0..DEPTH {
                                to[i].write(values[x][i]);
                            }
                        }
                    }
                }
            },
        );
    });
    // SAFETY: all outputs and inputs of all products are written.
    unsafe { transformed.vec(len) }
}

/// G of one line, channel by channel.
#[inline(always)]
fn kernel(g: [&[f32; DEPTH]; 3], to: &mut [[f32; DEPTH]; REACH]) {
    const OF_0: f32 = 1.0 / (A * A * B * B);
    const OF_A: f32 = 1.0 / (2.0 * A * A * (A * A - B * B));
    const OF_B: f32 = 1.0 / (2.0 * B * B * (B * B - A * A));
    for i in 0..DEPTH {
        let (even, odd) = (g[0][i] + A * A * g[2][i], A * g[1][i]);
        to[0][i] = OF_0 * g[0][i];
        to[1][i] = OF_A * (even + odd);
        to[2][i] = OF_A * (even - odd);
        let (even, odd) = (g[0][i] + B * B * g[2][i], B * g[1][i]);
        to[3][i] = OF_B * (even + odd);
        to[4][i] = OF_B * (even - odd);
        to[5][i] = g[2][i];
    }
}

/// Neighbouring tiles of one panel that lie in one row.
struct Segment {
    /// First column of the panel.
    column: usize,
    tiles: usize,
    /// The first tile's first input, in the padded plane of a channel.
    source: [usize; REACH],
    /// Its first output: row of the band, column.
    output: (usize, usize),
}

/// Convolves a band whose first row is a multiple of `SIDE · dilation`, and whose lines hold every `SIDE · dilation`-th
/// column together.
pub(crate) fn run(band: &Band<'_>, padded: &[u32], output: SharedMut<f32>) {
    let (c_out, c_in, ..) = band.weight.dims;
    let panels = panels(band);
    let channels = c_out.div_ceil(c_out.div_ceil(CHANNELS)).next_multiple_of(6);
    let size = channels * c_in.next_multiple_of(DEPTH) * PRODUCTS;
    let group = (WEIGHTS * rayon::current_num_threads() / size).max(1) * channels;
    for start in (0..c_out).step_by(group) {
        let group = start..c_out.min(start + group);
        let weight = transform_weight(band.weight, group.clone());
        let (parts, tiled) = (group.len().div_ceil(channels), band.images.len() * panels.len());
        // One part after the other: its weights are read for every panel.
        (0..parts * tiled).into_par_iter().for_each(|task| {
            let (part, tile) = (task / tiled, task % tiled);
            let (image, panel) = (tile / panels.len(), tile % panels.len());
            let first = start + part * channels;
            let part = Part { weight: &weight, group: &group, channels: first..group.end.min(first + channels) };
            SCRATCH.with_borrow_mut(|scratch| tiles(band, padded, &part, image, &panels[panel], scratch, output));
        });
    }
}

/// Output channels of a task, among those whose transformed weights there are.
struct Part<'a> {
    weight: &'a [f32],
    group: &'a Range<usize>,
    channels: Range<usize>,
}

/// The tiles of a band, a panel's worth at a time.
fn panels(band: &Band<'_>) -> Vec<Vec<Segment>> {
    let d = band.geometry.dilation;
    let (rows, columns) = (band.rows.len(), band.output_size.1);
    let step = SIDE * d;
    let mut panels = vec![Vec::new()];
    let mut column = 0;
    for (py, px) in (0..d).flat_map(|py| (0..d).map(move |px| (py, px))) {
        for ty in 0..tiles_of(rows, py, d) {
            let n = tiles_of(columns, px, d);
            let mut first = 0;
            while first < n {
                if column == TILES {
                    panels.push(Vec::new());
                    column = 0;
                }
                let tiles = (n - first).min(TILES - column);
                let y = py + step * ty;
                let at = |j: usize| {
                    let x = px + d * j;
                    y * band.line + x % step * (band.line / step) + x / step + first
                };
                let segment = Segment { column, tiles, source: std::array::from_fn(at), output: (y, px + step * first) };
                panels.last_mut().expect("never empty").push(segment);
                (first, column) = (first + tiles, column + tiles);
            }
        }
    }
    panels
}

fn tiles(
    band: &Band<'_>,
    padded: &[u32],
    part: &Part<'_>,
    image: usize,
    segments: &[Segment],
    scratch: &mut Scratch,
    output: SharedMut<f32>,
) {
    let (_, c_in, ..) = band.weight.dims;
    let Part { weight, group, channels } = part;
    let Scratch { inputs, sums } = scratch;
    inputs.resize(PRODUCTS * STRIDE, 0.0);
    sums.resize(PRODUCTS * CHANNELS * TILES, 0.0);
    let width = segments.last().map_or(0, |s| s.column + s.tiles);
    let source = &padded[image * c_in * band.plane..];
    for start in (0..c_in).step_by(DEPTH) {
        let depth = DEPTH.min(c_in - start);
        Arch::new().dispatch(Inputs { band, source, segments, channels: start..start + depth, to: inputs });
        for p in 0..PRODUCTS {
            let first = ((start / DEPTH * PRODUCTS + p) * group.len() + channels.start - group.start) * DEPTH;
            let product = Product {
                m: channels.len(),
                n: width,
                depth,
                left: Left { ptr: weight[first..].as_ptr().cast(), row: DEPTH },
                right: Right { ptr: inputs[p * STRIDE..].as_ptr().cast(), panel: STRIDE },
                out: sums[p * CHANNELS * TILES..].as_mut_ptr(),
                out_row: TILES,
                accumulate: start > 0,
            };
            // SAFETY: one panel of columns, one row of sums for each channel.
            unsafe { product.run(Precision::F32) };
        }
    }
    Arch::new().dispatch(Outputs { band, image: band.images.start + image, channels: channels.clone(), segments, sums, output });
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
                    // Which of the columns lies farthest in the line depends on the phase.
                    let farthest = segment.source.iter().max().expect("six columns");
                    assert!(first + (REACH - 1) * row + farthest + lanes <= source.len());
                    assert!(to.len() >= (PRODUCTS - 1) * STRIDE + lanes);
                    let mut columns = [[simd.splat_f32s(0.0); REACH]; REACH];
                    for x in 0..REACH {
                        let mut line = [simd.splat_f32s(0.0); REACH];
                        for y in 0..REACH {
                            // SAFETY: checked above.
                            line[y] = unsafe { load(source.as_ptr().add(first + segment.source[x] + y * row).cast()) };
                        }
                        columns[x] = input(simd, line);
                    }
                    for y in 0..REACH {
                        let mut line = [simd.splat_f32s(0.0); REACH];
                        for x in 0..REACH {
                            line[x] = columns[x][y];
                        }
                        let values = input(simd, line);
                        for x in 0..REACH {
                            // SAFETY: checked above.
                            unsafe { to.as_mut_ptr().add((REACH * y + x) * STRIDE).cast::<S::f32s>().write_unaligned(values[x]) };
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
fn input<S: Simd>(simd: S, d: [S::f32s; REACH]) -> [S::f32s; REACH] {
    let n = |x: f32| simd.splat_f32s(x);
    let (both, sum) = (n(A * A * B * B), n(-(A * A + B * B)));
    let (a, b, a2, b2) = (n(A), n(B), n(-A * A), n(-B * B));
    let (even_a, odd_a) = (simd.mul_add_f32s(b2, d[2], d[4]), simd.mul_f32s(a, simd.mul_add_f32s(b2, d[1], d[3])));
    let (even_b, odd_b) = (simd.mul_add_f32s(a2, d[2], d[4]), simd.mul_f32s(b, simd.mul_add_f32s(a2, d[1], d[3])));
    [
        simd.mul_add_f32s(both, d[0], simd.mul_add_f32s(sum, d[2], d[4])),
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        simd.mul_add_f32s(both, d[1], simd.mul_add_f32s(sum, d[3], d[5])),
    ]
}

/// Aᵀ of one line.
#[inline(always)]
fn result<S: Simd>(simd: S, m: [S::f32s; REACH]) -> [S::f32s; SIDE] {
    let n = |x: f32| simd.splat_f32s(x);
    let (even_a, odd_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even_b, odd_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(m[0], simd.add_f32s(even_a, even_b)),
        simd.mul_add_f32s(n(A), odd_a, simd.mul_f32s(n(B), odd_b)),
        simd.mul_add_f32s(n(A * A), even_a, simd.mul_f32s(n(B * B), even_b)),
        simd.mul_add_f32s(n(A * A * A), odd_a, simd.mul_add_f32s(n(B * B * B), odd_b, m[5])),
    ]
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
        let mut lines = [[0f32; TILES]; SIDE * SIDE];
        for (row, c) in channels.enumerate() {
            let bias = simd.splat_f32s(band.bias.map_or(0.0, |bias| bias[(image * c_out + c) % bias.len()]));
            for i in (0..width).step_by(lanes) {
                let from = &sums[row * TILES + i..];
                assert!(from.len() >= (PRODUCTS - 1) * CHANNELS * TILES + lanes);
                let mut columns = [[simd.splat_f32s(0.0); SIDE]; REACH];
                for x in 0..REACH {
                    let mut line = [simd.splat_f32s(0.0); REACH];
                    for y in 0..REACH {
                        // SAFETY: checked above.
                        line[y] = unsafe { load(from.as_ptr().add((REACH * y + x) * CHANNELS * TILES)) };
                    }
                    columns[x] = result(simd, line);
                }
                for y in 0..SIDE {
                    let mut line = [simd.splat_f32s(0.0); REACH];
                    for x in 0..REACH {
                        line[x] = columns[x][y];
                    }
                    let values = result(simd, line);
                    for x in 0..SIDE {
                        let value = simd.add_f32s(values[x], bias);
                        let value = match band.activation {
                            Activation::Identity => value,
                            Activation::Relu => simd.max_f32s(value, simd.splat_f32s(0.0)),
                        };
                        S::as_mut_simd_f32s(&mut lines[SIDE * y + x]).0[i / lanes] = value;
                    }
                }
            }
            let plane = (image * c_out + c) * oh * ow + band.rows.start * ow;
            for Segment { column, tiles, output: (top, left), .. } in segments {
                for y in 0..SIDE {
                    let top = top + y * d;
                    if top >= band.rows.len() {
                        continue;
                    }
                    let lines: [&[f32]; SIDE] = std::array::from_fn(|x| &lines[SIDE * y + x][*column..][..*tiles]);
                    let to = plane + top * ow + left;
                    if d == 1 && ow - left >= SIDE * tiles {
                        // SAFETY: this task owns these outputs of this channel.
                        let to = unsafe { output.part(to, SIDE * tiles) };
                        for t in 0..*tiles {
                            for x in 0..SIDE {
                                to[SIDE * t + x].write(lines[x][t]);
                            }
                        }
                        continue;
                    }
                    for x in 0..SIDE {
                        // The last tile may reach over the edge.
                        let inside = (ow - left).saturating_sub(x * d).div_ceil(SIDE * d);
                        for t in 0..inside.min(*tiles) {
                            // SAFETY: this task owns this output.
                            unsafe { output.at(to + x * d + SIDE * d * t).write(lines[x][t]) };
                        }
                    }
                }
            }
        }
    }
}
