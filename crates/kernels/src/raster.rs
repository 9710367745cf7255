//! The resamplers of the reference tools, to the bit where that is possible.
//!
//! | function | imitates | exactness on the stored references |
//! | --- | --- | --- |
//! | [`pillow_f32`] | Pillow `Image.resize`, mode `F` | equal (Lanczos: up to the platform's `sin`) |
//! | [`pillow_u8`] | Pillow `Image.resize`, modes `L` and `RGB` | equal |
//! | [`tf1_bilinear`] | TensorFlow 1 `resize_bilinear(align_corners=False)` | equal |
//! | [`torch_bilinear`] | PyTorch `F.interpolate(bilinear, align_corners=False)` | rounding (6e-5 of 255) |
//! | [`torch_antialias`] | PyTorch `F.interpolate(…, align_corners=False, antialias=True)` | rounding (5e-5 of 255) |
//!
//! Passes run horizontally first, as in Pillow up to 12. Pillow 13 swaps them where the height shrinks more than the width, which
//! moves 8-bit results of such images by up to two levels and floats by rounding.
//!
//! Pillow and `torch_antialias` widen the kernel when they shrink an image; the two bilinear ones do not, so they alias: reducing
//! 4096 pixels to 299 they look at 4 of every 188. They are here to reproduce published numbers.
//!
//! What proves it: the goldens of `metrics/src/resize.rs`.
//!
//! All functions take and return rasters of interleaved pixels, `(height, width, C)`, values on any
//! scale (callers use 0 to 255). Sources: Pillow `src/libImaging/Resample.c`, torch-fidelity
//! `interpolate_compat_tensorflow.py`, PyTorch `UpSampleKernel.cpp`.
//!
//! ```
//! use scalebench_kernels::raster::{
//!     Filter, Raster, pillow_f32, pillow_f32_of, pillow_u8, tf1_bilinear, torch_antialias, torch_bilinear,
//! };
//! // Two grey columns, reduced to one pixel.
//! let grey = Raster::new(2, 2, vec![[0u8], [101], [0], [101]])?;
//! let float = grey.map(f32::from);
//! assert_eq!(pillow_f32(&float, 1, 1, Filter::Bilinear)?.pixels, [[50.5]]);
//! assert_eq!(pillow_f32_of(&grey.pixels, (2, 2), 1, 1, Filter::Bilinear)?, pillow_f32(&float, 1, 1, Filter::Bilinear)?);
//! assert_eq!(pillow_u8(&grey, 1, 1, Filter::Box)?.pixels, [[51]]);
//! assert_eq!((torch_bilinear(&float, 1, 1)?.pixels, torch_antialias(&float, 1, 1, Filter::Bilinear)?.pixels), (vec![[50.5]], vec![[50.5]]));
//! // TensorFlow 1 has the centre of the one pixel in the top left corner.
//! assert_eq!(tf1_bilinear(&float, 1, 1)?.pixels, [[0.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::f64::consts::PI;
use std::ops::{AddAssign, Mul, Range};

use candle_core::{Result, bail};

/// Interleaved pixels of `C` channels, row-major.
///
/// Example: [this module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Raster<T, const C: usize> {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `width * height` pixels.
    pub pixels: Vec<[T; C]>,
}

impl<T: Copy, const C: usize> Raster<T, C> {
    /// Wraps pixels, checking their number.
    /// Example: [`raster`](crate::raster).
    pub fn new(width: usize, height: usize, pixels: Vec<[T; C]>) -> Result<Self> {
        if pixels.len() != width * height {
            bail!("{} values do not make {C} channels of {width} x {height} pixels", C * pixels.len());
        }
        Ok(Self { width, height, pixels })
    }

    /// The same raster with every value mapped.
    /// Example: [`raster`](crate::raster).
    pub fn map<U>(&self, f: impl Fn(T) -> U) -> Raster<U, C> {
        let pixels = self.pixels.iter().map(|p| p.map(&f)).collect();
        Raster { width: self.width, height: self.height, pixels }
    }

    fn check_target(&self, width: usize, height: usize) -> Result<()> {
        check_sizes([self.width, self.height], [width, height])
    }
}

/// A resampling kernel of Pillow.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Average over the pixel's footprint.
    Box,
    /// Triangle.
    Bilinear,
    /// Keys' cubic with a = −0.5 (PyTorch's unantialiased bicubic has −0.75).
    Bicubic,
    /// Windowed sinc of three lobes.
    Lanczos,
}

impl Filter {
    /// Half-width of the kernel at scale 1, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                let sinc = |x: f64| {
                    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
                };
                if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
            }
        }
    }
}

/// For every output position: the first input position and the weights from there on.
struct Windows<W> {
    windows: Vec<(usize, Range<usize>)>,
    weights: Vec<W>,
}

impl Windows<f64> {
    /// `precompute_coeffs` of Pillow: operations in its order, so that results are equal bit by bit.
    fn pillow(filter: Filter, from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut weights = Vec::new();
        let windows = (0..to)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                let first = ((centre - support + 0.5) as i64).max(0);
                let last = ((centre + support + 0.5) as i64).min(from as i64);
                let start = weights.len();
                weights.extend((0..last - first).map(|k| filter.weight(((k + first) as f64 - centre + 0.5) * inverse)));
                let sum = weights[start..].iter().fold(0.0, |sum, w| sum + w);
                if sum != 0.0 {
                    let inverse = 1.0 / sum;
                    weights[start..].iter_mut().for_each(|w| *w *= inverse);
                }
                (first as usize, start..weights.len())
            })
            .collect();
        Self { windows, weights }
    }
}

impl Windows<f32> {
    /// `_compute_indices_weights_aa` of PyTorch: the same windows, computed in `f32`.
    fn torch(filter: Filter, from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let support = filter.support() as f32 * scale.max(1.0);
        let inverse = if scale >= 1.0 { 1.0 / scale } else { 1.0 };
        let mut weights = Vec::<f32>::new();
        let windows = (0..to)
            .map(|i| {
                let centre = scale * (i as f32 + 0.5);
                let first = ((centre - support + 0.5) as i64).max(0);
                let last = ((centre + support + 0.5) as i64).min(from as i64);
                let start = weights.len();
                weights.extend((first..last).map(|k| filter.weight(f64::from((k as f32 - centre + 0.5) * inverse)) as f32));
                let sum: f32 = weights[start..].iter().sum();
                if sum != 0.0 {
                    weights[start..].iter_mut().for_each(|w| *w /= sum);
                }
                (first as usize, start..weights.len())
            })
            .collect();
        Self { windows, weights }
    }
}

impl<W> Windows<W> {
    fn iter(&self) -> impl Iterator<Item = (usize, &[W])> {
        self.windows.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }
}

/// In which numbers a resampler works.
trait Arithmetic {
    /// What is stored after each pass.
    type Pixel: Copy + Default;
    /// What sums and weights are.
    type Sum: Copy + Default + Mul<Output = Self::Sum> + AddAssign;

    fn windows(filter: Filter, from: usize, to: usize) -> Windows<Self::Sum>;
    fn widen(pixel: Self::Pixel) -> Self::Sum;
    fn store(sum: Self::Sum) -> Self::Pixel;
}

/// Pillow, mode `F`.
struct PillowFloat;

impl Arithmetic for PillowFloat {
    type Pixel = f32;
    type Sum = f64;

    fn windows(filter: Filter, from: usize, to: usize) -> Windows<f64> {
        Windows::pillow(filter, from, to)
    }

    #[inline(always)]
    fn widen(pixel: f32) -> f64 {
        f64::from(pixel)
    }

    #[inline(always)]
    fn store(sum: f64) -> f32 {
        sum as f32
    }
}

/// Bits of Pillow's fixed-point coefficients: `32 − 8 − 2`.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Pillow, modes `L` and `RGB`.
struct PillowFixed;

impl Arithmetic for PillowFixed {
    type Pixel = u8;
    type Sum = i32;

    fn windows(filter: Filter, from: usize, to: usize) -> Windows<i32> {
        let Windows { windows, weights } = Windows::pillow(filter, from, to);
        // Half away from zero, like the C cast of `k ± 0.5`.
        let one = f64::from(1 << PRECISION_BITS);
        Windows { windows, weights: weights.iter().map(|w| (w * one).round() as i32).collect() }
    }

    #[inline(always)]
    fn widen(pixel: u8) -> i32 {
        i32::from(pixel)
    }

    #[inline(always)]
    fn store(sum: i32) -> u8 {
        ((sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

/// PyTorch on float tensors.
struct TorchFloat;

impl Arithmetic for TorchFloat {
    type Pixel = f32;
    type Sum = f32;

    fn windows(filter: Filter, from: usize, to: usize) -> Windows<f32> {
        Windows::torch(filter, from, to)
    }

    #[inline(always)]
    fn widen(pixel: f32) -> f32 {
        pixel
    }

    #[inline(always)]
    fn store(sum: f32) -> f32 {
        sum
    }
}

/// Pillow's `resize` of float images: `f64` sums in index order, stored as `f32` after each pass.
///
/// Takes 8-bit pixels, too, with the bits that their conversion to `f32` beforehand would give.
///
/// Example: [this module](self).
pub fn pillow_f32<T, const C: usize>(raster: &Raster<T, C>, width: usize, height: usize, filter: Filter) -> Result<Raster<f32, C>>
where
    T: Copy + Into<f32>,
{
    resample::<PillowFloat, T, C>(&raster.pixels, [raster.width, raster.height], [width, height], filter)
}

/// Pillow's `resize` of 8-bit images: fixed-point coefficients, rounded to 8 bits after each pass.
///
/// Example: [this module](self).
pub fn pillow_u8<const C: usize>(raster: &Raster<u8, C>, width: usize, height: usize, filter: Filter) -> Result<Raster<u8, C>> {
    resample::<PillowFixed, u8, C>(&raster.pixels, [raster.width, raster.height], [width, height], filter)
}

/// PyTorch's `interpolate(align_corners=False, antialias=True)`, all in `f32`; torchmetrics' default.
///
/// PyTorch has [`Filter::Bilinear`] and [`Filter::Bicubic`] (a = −0.5 here, as in Pillow).
///
/// Example: [this module](self).
pub fn torch_antialias<T, const C: usize>(raster: &Raster<T, C>, width: usize, height: usize, filter: Filter) -> Result<Raster<f32, C>>
where
    T: Copy + Into<f32>,
{
    resample::<TorchFloat, T, C>(&raster.pixels, [raster.width, raster.height], [width, height], filter)
}

/// [`pillow_f32`] of pixels that lie elsewhere, of an image of (width, height).
///
/// Example: [this module](self).
pub fn pillow_f32_of<T, const C: usize>(
    pixels: &[[T; C]],
    size: (usize, usize),
    width: usize,
    height: usize,
    filter: Filter,
) -> Result<Raster<f32, C>>
where
    T: Copy + Into<f32>,
{
    resample::<PillowFloat, T, C>(pixels, size.into(), [width, height], filter)
}

fn resample<A: Arithmetic, T: Copy + Into<A::Pixel>, const C: usize>(
    pixels: &[[T; C]],
    from: [usize; 2],
    to: [usize; 2],
    filter: Filter,
) -> Result<Raster<A::Pixel, C>> {
    check_sizes(from, to)?;
    // A pass that keeps its size is skipped, as in Pillow.
    let [across, down] = [0, 1].map(|axis| (to[axis] != from[axis]).then(|| A::windows(filter, from[axis], to[axis])));
    let [width, height] = to;
    Ok(Raster { width, height, pixels: wide(Passes::<A, T, C> { pixels, from: from[0], width, across, down }) })
}

fn check_sizes(from: [usize; 2], to: [usize; 2]) -> Result<()> {
    if from.contains(&0) || to.contains(&0) {
        bail!("cannot resize {} x {} pixels to {} x {}", from[0], from[1], to[0], to[1]);
    }
    Ok(())
}

/// A loop to be compiled for the widest vectors of the machine.
///
/// Sums stay in index order, and neither compilation fuses a product with a sum: the bits are the same.
trait Pass {
    type Output;

    fn run(self) -> Self::Output;
}

fn wide<P: Pass>(pass: P) -> P::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
        fn avx512<P: Pass>(pass: P) -> P::Output {
            pass.run()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<P: Pass>(pass: P) -> P::Output {
            pass.run()
        }
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            // SAFETY: the features are present.
            return unsafe { avx512(pass) };
        }
        if has!("avx2") {
            // SAFETY: the feature is present.
            return unsafe { avx2(pass) };
        }
    }
    pass.run()
}

/// Rows that the horizontal pass takes together: one vector of sums per output pixel and channel.
const LANES: usize = 8;

/// The horizontal pass feeding the vertical one, which keeps no more rows than one of its windows needs.
struct Passes<'a, A: Arithmetic, T, const C: usize> {
    pixels: &'a [[T; C]],
    from: usize,
    width: usize,
    across: Option<Windows<A::Sum>>,
    down: Option<Windows<A::Sum>>,
}

impl<A: Arithmetic, T: Copy + Into<A::Pixel>, const C: usize> Pass for Passes<'_, A, T, C> {
    type Output = Vec<[A::Pixel; C]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { pixels, from, width, across, down } = self;
        let blank = [A::Pixel::default(); C];
        let mut band = vec![[[A::Sum::default(); LANES]; C]; if across.is_some() { from } else { 0 }];
        let mut bands = pixels.chunks(LANES * from);
        let Some(down) = down else {
            let mut out = vec![blank; pixels.len() / from * width];
            for (rows, out) in bands.zip(out.chunks_mut(LANES * width)) {
                narrow_band::<A, T, C>(rows, from, across.as_ref(), &mut band, out, width);
            }
            return out;
        };
        // A ring of whole bands: a window's rows and the band that its last row comes with.
        let longest = down.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let kept = (longest + LANES).next_multiple_of(LANES);
        let mut ring = vec![blank; kept * width];
        let mut done = 0;
        let mut out = Vec::with_capacity(width * down.windows.len());
        let mut sums = vec![A::Sum::default(); width * C];
        for (first, weights) in down.iter() {
            while done < first + weights.len() {
                let Some(rows) = bands.next() else { break };
                let count = rows.len() / from;
                let out = &mut ring[done % kept * width..][..count * width];
                narrow_band::<A, T, C>(rows, from, across.as_ref(), &mut band, out, width);
                done += count;
            }
            sums.fill(A::Sum::default());
            for (row, &weight) in (first..).zip(weights) {
                let row = &ring[row % kept * width..][..width];
                for (sum, pixel) in sums.iter_mut().zip(row.as_flattened()) {
                    *sum += A::widen(*pixel) * weight;
                }
            }
            out.extend(sums.as_chunks::<C>().0.iter().map(|sum| sum.map(A::store)));
        }
        out
    }
}

/// The horizontal pass over up to [`LANES`] rows; without windows it only converts.
///
/// `band` holds them with the rows innermost, so that the sums of all of them run in one vector. A
/// function and not a closure: closures would not be compiled for the vectors of [`wide`].
#[inline(always)]
fn narrow_band<A: Arithmetic, T: Copy + Into<A::Pixel>, const C: usize>(
    rows: &[[T; C]],
    from: usize,
    windows: Option<&Windows<A::Sum>>,
    band: &mut [[[A::Sum; LANES]; C]],
    out: &mut [[A::Pixel; C]],
    width: usize,
) {
    let Some(windows) = windows else {
        for (to, pixel) in out.iter_mut().zip(rows) {
            *to = pixel.map(Into::into);
        }
        return;
    };
    // Lanes beyond the last row repeat it and are not stored.
    let last = rows.len() / from - 1;
    let rows: [&[[T; C]]; LANES] = std::array::from_fn(|lane| &rows[lane.min(last) * from..][..from]);
    for (x, to) in band.iter_mut().enumerate() {
        for (lane, row) in rows.iter().enumerate() {
            for c in 0..C {
                to[c][lane] = A::widen(row[x][c].into());
            }
        }
    }
    for (x, (first, weights)) in windows.iter().enumerate() {
        let mut sums = [[A::Sum::default(); LANES]; C];
        for (values, &weight) in band[first..].iter().zip(weights) {
            for c in 0..C {
                for lane in 0..LANES {
                    sums[c][lane] += values[c][lane] * weight;
                }
            }
        }
        for (lane, out) in out.chunks_exact_mut(width).enumerate() {
            for c in 0..C {
                out[x][c] = A::store(sums[c][lane]);
            }
        }
    }
}

/// TensorFlow 1's bilinear resize without half-pixel centres and without antialiasing, all in `f32`.
///
/// Example: [this module](self).
pub fn tf1_bilinear<const C: usize>(raster: &Raster<f32, C>, width: usize, height: usize) -> Result<Raster<f32, C>> {
    raster.check_target(width, height)?;
    let axis = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let scale = from as f32 / to as f32;
        (0..to)
            .map(|i| {
                let s = i as f32 * scale;
                let low = (s as usize).min(from - 1);
                (low, (low + 1).min(from - 1), s - low as f32)
            })
            .collect()
    };
    let (xs, ys) = (axis(raster.width, width), axis(raster.height, height));
    let lerp = |a: [f32; C], b: [f32; C], t: f32| -> [f32; C] { std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t) };
    Ok(bilinear(raster, &xs, &ys, lerp))
}

/// PyTorch's bilinear `interpolate` with `align_corners=False` and without antialiasing, in `f32`.
///
/// Example: [this module](self).
pub fn torch_bilinear<const C: usize>(raster: &Raster<f32, C>, width: usize, height: usize) -> Result<Raster<f32, C>> {
    raster.check_target(width, height)?;
    let axis = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let scale = from as f32 / to as f32;
        (0..to)
            .map(|i| {
                let s = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
                let low = (s as usize).min(from - 1);
                (low, (low + 1).min(from - 1), (s - low as f32).clamp(0.0, 1.0))
            })
            .collect()
    };
    let (xs, ys) = (axis(raster.width, width), axis(raster.height, height));
    let lerp = |a: [f32; C], b: [f32; C], t: f32| -> [f32; C] { std::array::from_fn(|c| a[c] * (1.0 - t) + b[c] * t) };
    Ok(bilinear(raster, &xs, &ys, lerp))
}

fn bilinear<const C: usize>(
    raster: &Raster<f32, C>,
    xs: &[(usize, usize, f32)],
    ys: &[(usize, usize, f32)],
    lerp: impl Fn([f32; C], [f32; C], f32) -> [f32; C],
) -> Raster<f32, C> {
    let row = |y: usize| &raster.pixels[y * raster.width..][..raster.width];
    let mut pixels = Vec::with_capacity(xs.len() * ys.len());
    for &(y0, y1, dy) in ys {
        let (upper, lower) = (row(y0), row(y1));
        pixels.extend(xs.iter().map(|&(x0, x1, dx)| {
            let top = lerp(upper[x0], upper[x1], dx);
            let bottom = lerp(lower[x0], lower[x1], dx);
            lerp(top, bottom, dy)
        }));
    }
    Raster { width: xs.len(), height: ys.len(), pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector loops against the formula, one output at a time, at sizes around the width of a band.
    #[test]
    fn bits_do_not_depend_on_the_loops() {
        for (w, h, width, height) in [(37, 23, 11, 9), (9, 8, 30, 8), (16, 7, 16, 3), (41, 17, 5, 40), (1, 1, 3, 2)] {
            let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
            let bytes = Raster::new(w, h, (0..w * h).map(|i| [value(3 * i), value(3 * i + 1), value(3 * i + 2)]).collect()).unwrap();
            let ours = pillow_f32(&bytes, width, height, Filter::Bicubic).unwrap();
            assert_eq!(ours, pillow_f32(&bytes.map(f32::from), width, height, Filter::Bicubic).unwrap());
            assert_eq!(ours, pillow_f32_of(&bytes.pixels, (w, h), width, height, Filter::Bicubic).unwrap());
            let line = |values: Vec<f32>, to: usize| -> Vec<f32> {
                if values.len() == to {
                    return values;
                }
                let table = Windows::pillow(Filter::Bicubic, values.len(), to);
                let dot = |(first, weights): (usize, &[f64])| {
                    weights.iter().zip(&values[first..]).fold(0.0, |sum, (w, v)| sum + f64::from(*v) * w) as f32
                };
                table.iter().map(dot).collect()
            };
            for c in 0..3 {
                let narrowed: Vec<Vec<f32>> =
                    bytes.pixels.chunks(w).map(|row| line(row.iter().map(|p| f32::from(p[c])).collect(), width)).collect();
                for x in 0..width {
                    let column = line(narrowed.iter().map(|row| row[x]).collect(), height);
                    let found: Vec<f32> = ours.pixels.iter().skip(x).step_by(width).map(|p| p[c]).collect();
                    assert_eq!(found, column, "{w}x{h} to {width}x{height}, channel {c}, column {x}");
                }
            }
        }
    }

    #[test]
    fn constant_images_stay_constant() {
        let flat = Raster::new(50, 40, vec![[200u8, 3, 128]; 2000]).unwrap();
        for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            assert!(pillow_u8(&flat, 17, 61, filter).unwrap().pixels.iter().all(|p| *p == [200, 3, 128]));
            for float in [pillow_f32(&flat, 17, 61, filter).unwrap(), torch_antialias(&flat, 17, 61, filter).unwrap()] {
                assert!(float.pixels.iter().flatten().zip([200.0, 3.0, 128.0].iter().cycle()).all(|(v, e)| (v - e).abs() < 1e-4));
            }
        }
    }

    #[test]
    fn empty_sides_are_refused() {
        let image = Raster::new(2, 1, vec![[1f32], [2.0]]).unwrap();
        assert!(pillow_f32(&image, 0, 3, Filter::Box).is_err());
        assert!(tf1_bilinear(&Raster::<f32, 1>::new(0, 3, vec![]).unwrap(), 1, 1).is_err());
        assert!(Raster::new(2, 2, vec![[0u8]]).is_err());
    }
}
