//! 2-D convolution with any stride, zero padding and integer dilation.
//!
//! The input is copied once, as words, with its zeros around it; then each tile of the output gathers
//! what a few taps see, a part that stays in a second-level cache, and multiplies it, until all taps are
//! through. A dilation only moves where the gather reads, so a dilated convolution costs what a plain
//! one costs: the phase images of the algebra are never built. Large maps under 3×3 kernels take Winograd's
//! way from there: `f32`, and rounded ones where products of pairs do not pay.

use crate::product::{DEPTH, PANEL, Precision, Product, Right, pairs_pay};
use crate::share::tasks_of;
use crate::simd::dispatch;
use crate::view::{SharedMut, Unwritten, with_optional, with_slice};
use crate::weight::ConvWeight;
use crate::{winograd, words};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

/// Where a kernel's taps fall.
///
/// Example: [this crate](crate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Step between output positions, in input pixels, in both directions.
    pub stride: usize,
    /// Zeros around the input: (rows, columns), in input pixels.
    pub padding: (usize, usize),
    /// Step between taps, in input pixels.
    pub dilation: usize,
}

impl ConvGeometry {
    /// Stride 1, no dilation.
    /// Example: [this crate](crate).
    pub fn padded(padding: usize) -> Self {
        Self { stride: 1, padding: (padding, padding), dilation: 1 }
    }
}

/// What follows a convolution, in the same pass.
///
/// Example: [this crate](crate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(0, x).
    Relu,
}

/// Words of the padded input at a time; larger maps go in bands of rows.
const BAND: usize = 8 << 20;
/// Panels of output pixels in one tile.
const PANELS: usize = 4;
/// Output channels in one tile, at least and at most.
const CHANNELS: Range<usize> = 96..384;
/// Tiles that a call is cut into, if it is large enough: work for some threads.
const TILES: usize = 16;
/// Words that a copy moves at once.
pub(crate) const CHUNK: usize = 16;

#[derive(Default)]
struct Scratch {
    columns: Vec<u32>,
    tile: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Convolves `x` `(batch, c_in, h, w)` with kernels `(c_out, c_in, kh, kw)` (a correlation, as in
/// every deep-learning library) and adds `bias`, `(c_out)` or `(batch, c_out)`.
///
/// Returns `(batch, c_out, (h + 2p − d(kh − 1) − 1) / stride + 1, …)`. Errors when the channel counts
/// differ or the dilated kernel does not fit into the padded input.
///
/// Example: [this crate](crate).
pub fn conv2d(x: &Tensor, weight: &ConvWeight, bias: Option<&Tensor>, geometry: ConvGeometry, activation: Activation) -> Result<Tensor> {
    convolve(x, weight, bias, geometry, activation, pairs_pay())
}

/// As [`conv2d`]; `pairs`: whether products of pairs pay.
fn convolve(
    x: &Tensor,
    weight: &ConvWeight,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    activation: Activation,
    pairs: bool,
) -> Result<Tensor> {
    let (batch, c_in, h, w) = x.dims4()?;
    let (c_out, w_in, kh, kw) = weight.dims;
    let ConvGeometry { stride, padding: (ph, pw), dilation } = geometry;
    if c_in != w_in {
        bail!("conv2d: input {:?} has {c_in} channels, weight {:?} expects {w_in}", x.dims(), weight.dims);
    }
    let (reach_h, reach_w) = (dilation * (kh - 1) + 1, dilation * (kw - 1) + 1);
    if stride == 0 || h + 2 * ph < reach_h || w + 2 * pw < reach_w {
        bail!("conv2d: a {reach_h}×{reach_w} kernel does not fit into {h}×{w} padded by {ph}, {pw}");
    }
    let (oh, ow) = ((h + 2 * ph - reach_h) / stride + 1, (w + 2 * pw - reach_w) / stride + 1);
    if let Some(bias) = bias
        && bias.dims() != [c_out]
        && bias.dims() != [batch, c_out]
    {
        bail!("conv2d: bias {:?}, expected [{c_out}] or [{batch}, {c_out}]", bias.dims());
    }
    #[cfg(gpu)]
    if let Some(weight) = &weight.on_gpu {
        return crate::gpu::conv2d(x, weight, bias, geometry, activation, (oh, ow));
    }
    let tiled = (weight.precision == Precision::F32 || !pairs) && winograd::pays(weight.dims, geometry, (oh, ow));
    // Transforms are sums of `f32`, whatever the weight was rounded to.
    let layout = if tiled { Precision::F32 } else { weight.precision };
    let channels = layout.words(c_in);
    let side = winograd::SIDE * dilation;
    // A line holds every `phases`-th column, then those behind them, and so on: what a tap sees is contiguous.
    let phases = if tiled { side } else { stride };
    // The last tiles see what lies behind the edge: zeros.
    let line = if tiled { ow.next_multiple_of(side) + side } else { (w + 2 * pw).next_multiple_of(phases) };
    let rows_of = |band: usize| if tiled { band.next_multiple_of(side) + 2 * dilation } else { (band - 1) * stride + reach_h };
    // Images side by side while they fit, else one image in bands of output rows.
    let direct = weight.precision == Precision::F32 && (kh, kw, stride, ph, pw) == (1, 1, 1, 0, 0);
    let (images, rows) = if direct {
        (batch.max(1), oh)
    } else {
        let images = (BAND / (channels * rows_of(oh) * line).max(1)).clamp(1, batch.max(1));
        let rows = (1..=oh).rev().find(|rows| channels * rows_of(*rows) * line <= BAND).unwrap_or(1);
        // Tiles begin where a band does.
        let rows = if tiled { (rows / side * side).max(side) } else { rows };
        (images, if images > 1 { oh } else { rows })
    };
    with_slice(x, |input| {
        with_optional(bias, |bias| {
            let mut output = Unwritten::new(batch * c_out * oh * ow);
            for first in (0..batch).step_by(images) {
                for start in (0..oh).step_by(rows) {
                    Band {
                        input,
                        weight,
                        bias,
                        geometry,
                        activation,
                        direct,
                        layout,
                        images: first..batch.min(first + images),
                        rows: start..oh.min(start + rows),
                        size: (h, w),
                        output_size: (oh, ow),
                        phases,
                        line,
                        plane: rows_of(oh.min(start + rows) - start) * line,
                    }
                    .run(tiled, output.shared());
                }
            }
            // SAFETY: the bands cover all rows of all images.
            unsafe { output.tensor((batch, c_out, oh, ow)) }
        })
    })
}

/// Some output rows of some images.
pub(crate) struct Band<'a> {
    input: &'a [f32],
    pub(crate) weight: &'a ConvWeight,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) geometry: ConvGeometry,
    pub(crate) activation: Activation,
    /// The input serves as it is: 1×1 kernels in `f32`.
    direct: bool,
    /// Of the padded input.
    layout: Precision,
    pub(crate) images: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// Of the input and of the output, (height, width).
    size: (usize, usize),
    pub(crate) output_size: (usize, usize),
    /// Padded rows hold every `phases`-th column together; their width, and words of one channel of all of them.
    phases: usize,
    pub(crate) line: usize,
    pub(crate) plane: usize,
}

/// Neighbouring pixels of one panel that lie in one row.
struct Segment {
    /// Where they go, in the first line of the columns.
    column: usize,
    /// Where its first tap sees, in the padded plane.
    source: usize,
    pixels: usize,
}

/// Words of one panel of columns. The gap takes what the last copy writes too much.
const PANEL_STRIDE: usize = DEPTH * PANEL + CHUNK;

impl Band<'_> {
    /// Convolves, in Winograd's way if `tiled`.
    fn run(&self, tiled: bool, output: SharedMut<f32>) {
        let padded = if self.direct { Cow::Borrowed(self.as_words()) } else { Cow::Owned(self.padded()) };
        if tiled {
            return winograd::run(self, &padded, output);
        }
        let (c_out, ..) = self.weight.dims;
        let pixels = self.rows.len() * self.output_size.1;
        // Even strips of whole panels.
        let panels = pixels.div_ceil(PANEL);
        let width = panels.div_ceil(panels.div_ceil(PANELS).max(1)) * PANEL;
        let strips = pixels.div_ceil(width.max(1));
        let tiles = strips * self.images.len();
        let parts = TILES.div_ceil(tiles.max(1)).clamp(c_out.div_ceil(CHANNELS.end), c_out.div_ceil(CHANNELS.start));
        let channels = c_out.div_ceil(parts).next_multiple_of(6);
        let cycles = channels * width * self.weight.row() / 16;
        (0..tiles * parts).into_par_iter().with_min_len(tasks_of(cycles)).for_each(|task| {
            let (tile, part) = (task / parts, task % parts);
            let (image, strip) = (tile / strips, tile % strips);
            let channels = part * channels..c_out.min((part + 1) * channels);
            let pixels = strip * width..pixels.min((strip + 1) * width);
            if !channels.is_empty() {
                SCRATCH.with_borrow_mut(|scratch| self.tile(&padded, image, channels, pixels, scratch, output));
            }
        });
    }

    /// The images as they are.
    fn as_words(&self) -> &[u32] {
        let (size, images) = (self.weight.dims.1 * self.plane, &self.images);
        let input = &self.input[images.start * size..images.end * size];
        // SAFETY: every `f32` is a valid `u32` of the same size and alignment.
        unsafe { std::slice::from_raw_parts(input.as_ptr().cast(), input.len()) }
    }

    /// The rows of the input that the band sees, with zeros around them: `(images, channel words, plane)`, and some slack.
    fn padded(&self) -> Vec<u32> {
        let &Self { input, phases, line, plane, size: (h, w), ref images, ref rows, .. } = self;
        let ConvGeometry { stride, padding: (ph, pw), .. } = self.geometry;
        let (_, c_in, ..) = self.weight.dims;
        let channels = self.layout.words(c_in);
        let per_word = c_in.div_ceil(channels.max(1));
        let len = images.len() * channels * plane + CHUNK;
        let mut padded = Unwritten::new(len);
        let to = padded.shared();
        (0..images.len() * channels).into_par_iter().with_min_len(tasks_of(plane / 2)).for_each(|task| {
            let (image, word) = (task / channels, task % channels);
            let channel = |c: usize| if c < c_in { &input[((images.start + image) * c_in + c) * h * w..][..h * w] } else { &[] };
            let (low, high) = (channel(word * per_word), channel(word * per_word + 1));
            // SAFETY: this task owns one plane of the buffer.
            let to = unsafe { to.zeroed(task * plane, plane) };
            let mut row = vec![0; if phases == 1 { 0 } else { w }];
            dispatch(
                #[inline(always)]
                || {
                    for (y, to) in to.chunks_exact_mut(line).enumerate() {
                        let Some(y) = (rows.start * stride + y).checked_sub(ph).filter(|y| *y < h) else { continue };
                        let write = |to: &mut [u32]| match (self.layout, self.weight.precision) {
                            (Precision::F32, Precision::F32) => words::bits(&low[y * w..][..w], to),
                            (Precision::F32, Precision::Bf16) => words::rounded(&low[y * w..][..w], to),
                            (Precision::Bf16, _) => words::joined(&low[y * w..][..w], high.get(y * w..(y + 1) * w).unwrap_or(&[]), to),
                        };
                        if phases == 1 {
                            write(&mut to[pw..][..w]);
                        } else {
                            write(&mut row);
                            for phase in 0..phases {
                                take_phase(&row, pw, phases, phase, &mut to[phase * (line / phases)..]);
                            }
                        }
                    }
                },
            );
        });
        // SAFETY: as above, past the last plane.
        unsafe { to.zeroed(len - CHUNK, CHUNK) };
        // SAFETY: the planes and the slack are all of it.
        unsafe { padded.vec(len) }
    }

    /// Output `channels` of `pixels`, counted along the rows of the band.
    fn tile(
        &self,
        padded: &[u32],
        image: usize,
        channels: Range<usize>,
        pixels: Range<usize>,
        scratch: &mut Scratch,
        output: SharedMut<f32>,
    ) {
        let (oh, ow) = self.output_size;
        let (c_out, ..) = self.weight.dims;
        let (depth, width) = (self.weight.row(), pixels.len());
        let segments = self.segments(pixels.clone());
        let shifts = self.shifts();
        let image_words = self.layout.words(self.weight.dims.1) * self.plane;
        let source = &padded[image * image_words..];
        scratch.columns.resize(PANELS * PANEL_STRIDE, 0);
        let size = channels.len() * width;
        if scratch.tile.len() < size {
            scratch.tile.resize(size, 0.0);
        }
        for start in (0..depth).step_by(DEPTH) {
            let words = start..depth.min(start + DEPTH);
            dispatch(
                #[inline(always)]
                || self.gather(source, &segments, &shifts, words.clone(), &mut scratch.columns),
            );
            let product = Product {
                m: channels.len(),
                n: width,
                depth: words.len(),
                left: self.weight.left(channels.start, start),
                right: Right { ptr: scratch.columns.as_ptr(), panel: PANEL_STRIDE },
                out: scratch.tile.as_mut_ptr(),
                out_row: width,
                accumulate: start > 0,
            };
            // SAFETY: the columns hold a whole panel for every `PANEL` pixels, the tile all sums.
            unsafe { product.run(self.weight.precision) };
        }
        let image = self.images.start + image;
        for (c, sums) in channels.zip(scratch.tile[..size].chunks_exact(width)) {
            // A bias of `(c_out)` serves all images.
            let bias = self.bias.map_or(0.0, |bias| bias[(image * c_out + c) % bias.len()]);
            let first = (image * c_out + c) * oh * ow + self.rows.start * ow + pixels.start;
            // SAFETY: this tile owns these pixels of this channel.
            let pixels = sums.iter().zip(unsafe { output.part(first, width) });
            match self.activation {
                Activation::Identity => pixels.for_each(|(s, o)| _ = o.write(s + bias)),
                Activation::Relu => pixels.for_each(|(s, o)| _ = o.write((s + bias).max(0.0))),
            }
        }
    }

    fn segments(&self, pixels: Range<usize>) -> Vec<Segment> {
        let ((_, ow), stride) = (self.output_size, self.geometry.stride);
        // Where lines are as wide as the output, the rows are one.
        let ow = if stride == 1 && self.line == ow { usize::MAX } else { ow };
        let mut segments = Vec::new();
        let mut at = pixels.start;
        while at < pixels.end {
            let (y, x) = (at / ow, at % ow);
            let column = at - pixels.start;
            let (panel, first) = (column / PANEL, column % PANEL);
            let end = pixels.end.min((y + 1).saturating_mul(ow)).min(at + PANEL - first);
            segments.push(Segment { column: panel * PANEL_STRIDE + first, source: y * stride * self.line + x, pixels: end - at });
            at = end;
        }
        segments
    }

    /// Where in a line each column of a kernel sees the first pixel.
    fn shifts(&self) -> Vec<usize> {
        let ConvGeometry { stride, dilation, .. } = self.geometry;
        (0..self.weight.dims.3).map(|kx| kx * dilation).map(|x| x % stride * (self.line / stride) + x / stride).collect()
    }

    /// What the taps `words` see at the pixels of some panels, `(panels, words, PANEL)`, with the kernel's columns at `shifts`.
    ///
    /// Copies whole chunks: what they write too much is written over by the next segment or word, or not read.
    #[inline(always)]
    fn gather(&self, source: &[u32], segments: &[Segment], shifts: &[usize], words: Range<usize>, to: &mut [u32]) {
        let ((_, _, kh, kw), dilation) = (self.weight.dims, self.geometry.dilation);
        // Counted along: four divisions a word would take longer than its copies.
        let (mut channel, tap) = (words.start / (kh * kw), words.start % (kh * kw));
        let (mut ky, mut kx) = (tap / kw, tap % kw);
        for i in 0..words.len() {
            let first = channel * self.plane + ky * dilation * self.line + shifts[kx];
            let new_channel = (ky, kx) == (0, 0);
            kx += 1;
            if kx == kw {
                (kx, ky) = (0, ky + 1);
            }
            if ky == kh {
                (ky, channel) = (0, channel + 1);
            }
            for segment in segments {
                // A channel's rows lie far from the last one's: no hardware expects them.
                if new_channel {
                    prefetch(source, first + AHEAD * self.plane + segment.source, segment.pixels);
                }
                let from = &source[first + segment.source..];
                let to = &mut to[i * PANEL + segment.column..];
                let words = segment.pixels.next_multiple_of(CHUNK);
                if words > from.len() {
                    to[..segment.pixels].copy_from_slice(&from[..segment.pixels]);
                    continue;
                }
                let (from, to) = (&from[..words], &mut to[..words]);
                for chunk in 0..words / CHUNK {
                    to[chunk * CHUNK..][..CHUNK].copy_from_slice(&from[chunk * CHUNK..][..CHUNK]);
                }
            }
        }
    }
}

/// Of `row` with `padding` before it, the columns x ≡ `phase` (mod `phases`).
#[inline(always)]
fn take_phase(row: &[u32], padding: usize, phases: usize, phase: usize, to: &mut [u32]) {
    let skip = padding.saturating_sub(phase).div_ceil(phases);
    let first = phase + phases * skip - padding;
    let from = &row[first.min(row.len())..];
    let n = from.len().div_ceil(phases);
    let to = &mut to[skip..][..n];
    if phases == 2 {
        // Constant strides are ones that the compiler makes shuffles of.
        for i in 0..n {
            to[i] = from[2 * i];
        }
    } else if phases == winograd::SIDE {
        for i in 0..n {
            to[i] = from[winograd::SIDE * i];
        }
    } else {
        for i in 0..n {
            to[i] = from[phases * i];
        }
    }
}

/// Channels that a gather looks ahead.
const AHEAD: usize = 4;

/// Asks for `words` words from `start` on, if they are there.
#[inline(always)]
fn prefetch(source: &[u32], start: usize, words: usize) {
    #[cfg(target_arch = "x86_64")]
    if start + words <= source.len() {
        for line in 0..words.div_ceil(CHUNK) {
            // SAFETY: a prefetch reads nothing; the address is inside the slice.
            unsafe {
                let address = source.as_ptr().add(start + line * CHUNK);
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (source, start, words);
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn ramp(shape: &[usize], a: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| (i as f32 * a).sin()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// The definition, in f64.
    fn direct(x: &Tensor, weight: &Tensor, bias: &Tensor, g: ConvGeometry) -> Vec<f64> {
        let (b, ci, h, w) = x.dims4().unwrap();
        let (co, _, kh, kw) = weight.dims4().unwrap();
        let (xs, ws): (Vec<f32>, Vec<f32>) =
            (x.flatten_all().unwrap().to_vec1().unwrap(), weight.flatten_all().unwrap().to_vec1().unwrap());
        let bs: Vec<f32> = bias.to_vec1().unwrap();
        let oh = (h + 2 * g.padding.0 - g.dilation * (kh - 1) - 1) / g.stride + 1;
        let ow = (w + 2 * g.padding.1 - g.dilation * (kw - 1) - 1) / g.stride + 1;
        let mut out = Vec::new();
        for n in 0..b {
            for (o, bias) in bs.iter().enumerate().take(co) {
                for y in 0..oh {
                    for xo in 0..ow {
                        let mut sum = f64::from(*bias);
                        for c in 0..ci {
                            for ky in 0..kh {
                                for kx in 0..kw {
                                    let iy = (y * g.stride + ky * g.dilation) as isize - g.padding.0 as isize;
                                    let ix = (xo * g.stride + kx * g.dilation) as isize - g.padding.1 as isize;
                                    if iy >= 0 && ix >= 0 && iy < h as isize && ix < w as isize {
                                        let i = ((n * ci + c) * h + iy as usize) * w + ix as usize;
                                        let j = ((o * ci + c) * kh + ky) * kw + kx;
                                        sum += f64::from(xs[i]) * f64::from(ws[j]);
                                    }
                                }
                            }
                        }
                        out.push(sum);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn matches_the_definition() {
        for (kh, kw) in [(1, 1), (3, 3), (5, 5), (1, 7), (7, 1)] {
            for stride in [1, 2] {
                for dilation in [1, 2, 4] {
                    for padding in [(0, 0), (dilation, 2 * dilation)] {
                        let (h, w) = (19, 26);
                        if (kw - 1) * dilation >= w || (kh - 1) * dilation >= h {
                            continue;
                        }
                        let g = ConvGeometry { stride, padding, dilation };
                        let (x, k, b) = (ramp(&[2, 3, h, w], 0.37), ramp(&[4, 3, kh, kw], 0.71), ramp(&[4], 1.3));
                        let weight = ConvWeight::new(&k, Precision::F32).unwrap();
                        let got: Vec<f32> =
                            conv2d(&x, &weight, Some(&b), g, Activation::Identity).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                        let want = direct(&x, &k, &b, g);
                        assert_eq!(got.len(), want.len());
                        let rectified = conv2d(&x, &weight, Some(&b), g, Activation::Relu).unwrap().flatten_all().unwrap();
                        let clamped: Vec<f32> = got.iter().map(|v| v.max(0.0)).collect();
                        assert_eq!(rectified.to_vec1::<f32>().unwrap(), clamped);
                        for (g, w) in got.iter().zip(want) {
                            assert!((f64::from(*g) - w).abs() < 2e-5);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn strips_cover_large_maps() {
        let (x, k) = (ramp(&[1, 64, 70, 66], 0.11), ramp(&[2, 64, 3, 3], 0.53));
        let b = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        let g = ConvGeometry::padded(1);
        let weight = ConvWeight::new(&k, Precision::F32).unwrap();
        let got: Vec<f32> = conv2d(&x, &weight, None, g, Activation::Identity).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (g, w) in got.iter().zip(direct(&x, &k, &b, g)) {
            assert!((f64::from(*g) - w).abs() < 2e-4);
        }
    }

    #[test]
    fn a_kernel_that_does_not_fit_is_an_error() {
        let (x, k) = (ramp(&[1, 1, 4, 4], 1.0), ramp(&[1, 1, 5, 5], 1.0));
        let weight = ConvWeight::new(&k, Precision::F32).unwrap();
        assert!(conv2d(&x, &weight, None, ConvGeometry::padded(0), Activation::Identity).is_err());
    }

    /// With `bf16` operands, the definition on operands that candle has rounded; and the weight gives them back.
    #[test]
    fn bf16_rounds_the_operands_alone() {
        let rounded = |t: &Tensor| t.to_dtype(candle_core::DType::BF16).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        let cases = [(3, 5, (9, 14), 1, 1), (64, 200, (16, 16), 1, 2), (33, 7, (40, 31), 2, 1), (33, 40, (45, 49), 1, 2)];
        for ((c_in, c_out, size, stride, dilation), pairs) in cases.into_iter().flat_map(|case| [(case, true), (case, false)]) {
            let (x, k) = (ramp(&[2, c_in, size.0, size.1], 0.37), ramp(&[c_out, c_in, 3, 3], 0.71));
            let g = ConvGeometry { stride, padding: (dilation, dilation), dilation };
            let weight = ConvWeight::new(&k, Precision::Bf16).unwrap();
            let back = (weight.tensor().unwrap() - rounded(&k)).unwrap().abs().unwrap().max_all().unwrap();
            assert_eq!(back.to_scalar::<f32>().unwrap(), 0.0);
            let b = ramp(&[2, c_out], 1.3);
            let got = convolve(&x, &weight, Some(&b), g, Activation::Identity, pairs).unwrap();
            let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
            let zeros = Tensor::zeros(c_out, candle_core::DType::F32, &Device::Cpu).unwrap();
            let want = direct(&rounded(&x), &rounded(&k), &zeros, g);
            let bias: Vec<f32> = b.flatten_all().unwrap().to_vec1().unwrap();
            let pixels = got.len() / (2 * c_out);
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((f64::from(*g) - w - f64::from(bias[i / pixels])).abs() < 1e-4);
            }
        }
    }

    /// Winograd's way, with odd sizes, dilations larger than some phases are long, and more than one panel of everything.
    #[test]
    fn tiles_match_the_definition() {
        for (size, dilation, padding) in [((45, 49), 1, 1), ((50, 47), 2, 2), ((33, 64), 3, 3), ((52, 48), 1, 0), ((70, 41), 16, 16)] {
            let (x, k, b) = (ramp(&[2, 33, size.0, size.1], 0.37), ramp(&[131, 33, 3, 3], 0.71), ramp(&[131], 1.3));
            let g = ConvGeometry { stride: 1, padding: (padding, padding), dilation };
            let weight = ConvWeight::new(&k, Precision::F32).unwrap();
            let y = conv2d(&x, &weight, Some(&b), g, Activation::Identity).unwrap();
            assert!(winograd::pays(weight.dims, g, (y.dims()[2], y.dims()[3])));
            let got: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
            let want = direct(&x, &k, &b, g);
            let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((f64::from(*g) - w).abs() < 2e-5 * rms, "{size:?} {dilation} at {i}: {g} {w}, root mean square {rms}");
            }
            let rectified = conv2d(&x, &weight, Some(&b), g, Activation::Relu).unwrap().flatten_all().unwrap();
            let clamped: Vec<f32> = got.iter().map(|v| v.max(0.0)).collect();
            assert_eq!(rectified.to_vec1::<f32>().unwrap(), clamped);
        }
    }

    /// Maps too large for one band, and several images in one, give what they give alone.
    #[test]
    fn bands_and_batches_change_nothing() {
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = |a: Tensor, b: Tensor| assert_eq!(values(a), values(b));
        let large = ramp(&[1, 512, 160, 132], 0.11);
        // Few outputs go the direct way, more in tiles.
        for c_out in [8, 48] {
            let weight = ConvWeight::new(&ramp(&[c_out, 512, 3, 3], 0.53), Precision::F32).unwrap();
            let whole = conv2d(&large, &weight, None, ConvGeometry::padded(1), Activation::Identity).unwrap();
            let rows = large.narrow(2, 100, 40).unwrap();
            let rows = conv2d(&rows, &weight, None, ConvGeometry::padded(1), Activation::Identity).unwrap();
            same(whole.narrow(2, 101, 38).unwrap(), rows.narrow(2, 1, 38).unwrap());
        }
        let weight = ConvWeight::new(&ramp(&[8, 512, 3, 3], 0.53), Precision::F32).unwrap();
        let three = ramp(&[3, 512, 8, 8], 0.2);
        let together = conv2d(&three, &weight, None, ConvGeometry::padded(1), Activation::Identity).unwrap();
        let alone = conv2d(&three.narrow(0, 2, 1).unwrap(), &weight, None, ConvGeometry::padded(1), Activation::Identity).unwrap();
        same(together.narrow(0, 2, 1).unwrap(), alone);
    }
}
