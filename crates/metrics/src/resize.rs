//! The resamplers of the reference tools, to the bit where that is possible.
//!
//! | function | imitates | exactness on the stored references |
//! | --- | --- | --- |
//! | [`pillow_f32`] | Pillow `Image.resize`, mode `F` | equal (Lanczos: up to the platform's `sin`) |
//! | [`pillow_u8`] | Pillow `Image.resize`, modes `L` and `RGB` | equal |
//! | [`tf1_bilinear`] | TensorFlow 1 `resize_bilinear(align_corners=False)` | equal |
//! | [`torch_bilinear`] | PyTorch `F.interpolate(bilinear, align_corners=False)` | rounding (6e-5 of 255) |
//!
//! Pillow widens its kernel when it shrinks an image; the two others do not, so they alias: reducing
//! 4096 pixels to 299 they look at 4 of every 188. They are here to reproduce published numbers.
//!
//! All functions take and return rasters of interleaved pixels, `(height, width, C)`, values on any
//! scale (callers use 0 to 255). Sources: Pillow `src/libImaging/Resample.c`, torch-fidelity
//! `interpolate_compat_tensorflow.py`, PyTorch `UpSampleKernel.cpp`.

use std::f64::consts::PI;

use crate::{Error, Image, Result};

/// Interleaved pixels of `C` channels, row-major.
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
    pub fn new(width: usize, height: usize, pixels: Vec<[T; C]>) -> Result<Self> {
        if pixels.len() != width * height {
            let (expected, found) = (C * width * height, C * pixels.len());
            return Err(Error::PixelCount { width, height, expected, found });
        }
        Ok(Self { width, height, pixels })
    }

    /// The same raster with every value mapped.
    pub fn map<U>(&self, f: impl Fn(T) -> U) -> Raster<U, C> {
        let pixels = self.pixels.iter().map(|p| p.map(&f)).collect();
        Raster { width: self.width, height: self.height, pixels }
    }

    fn check_target(&self, width: usize, height: usize) -> Result<()> {
        if [self.width, self.height, width, height].contains(&0) {
            return Err(Error::EmptyResize { from_width: self.width, from_height: self.height, to_width: width, to_height: height });
        }
        Ok(())
    }
}

impl From<&Image> for Raster<u8, 3> {
    fn from(image: &Image) -> Self {
        let pixels = image.rgb.as_chunks::<3>().0.to_vec();
        Self { width: image.width, height: image.height, pixels }
    }
}

/// A resampling kernel of Pillow.
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
struct Windows {
    windows: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<f64>,
}

impl Windows {
    /// `precompute_coeffs` of Pillow: operations in its order, so that results are equal bit by bit.
    fn new(filter: Filter, from: usize, to: usize) -> Self {
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

    fn get(&self, i: usize) -> (usize, &[f64]) {
        let (first, range) = &self.windows[i];
        (*first, &self.weights[range.clone()])
    }
}

/// Pillow's `resize` of float images: `f64` sums in index order, stored as `f32` after each pass.
pub fn pillow_f32<const C: usize>(raster: &Raster<f32, C>, width: usize, height: usize, filter: Filter) -> Result<Raster<f32, C>> {
    pillow(raster, width, height, filter, &Windows::new, |weights, i| weights.get(i), |sum| sum as f32)
}

/// Bits of Pillow's fixed-point coefficients: `32 − 8 − 2`.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Pillow's `resize` of 8-bit images: fixed-point coefficients, rounded to 8 bits after each pass.
pub fn pillow_u8<const C: usize>(raster: &Raster<u8, C>, width: usize, height: usize, filter: Filter) -> Result<Raster<u8, C>> {
    struct Fixed {
        windows: Vec<(usize, std::ops::Range<usize>)>,
        weights: Vec<i32>,
    }
    let fixed = |filter: Filter, from: usize, to: usize| {
        let Windows { windows, weights } = Windows::new(filter, from, to);
        // Half away from zero, like the C cast of `k ± 0.5`.
        let one = f64::from(1 << PRECISION_BITS);
        Fixed { windows, weights: weights.iter().map(|w| (w * one).round() as i32).collect() }
    };
    pillow(
        raster,
        width,
        height,
        filter,
        &fixed,
        |fixed, i| {
            let (first, range) = &fixed.windows[i];
            (*first, &fixed.weights[range.clone()])
        },
        |sum: i32| ((sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8,
    )
}

/// Both passes, horizontal first; a pass that keeps its size is skipped, as in Pillow.
///
/// `T` is the pixel type, `S` the accumulator, `W` a table of windows.
fn pillow<T, S, W, const C: usize>(
    raster: &Raster<T, C>,
    width: usize,
    height: usize,
    filter: Filter,
    windows: &impl Fn(Filter, usize, usize) -> W,
    window: impl Fn(&W, usize) -> (usize, &[S]),
    store: impl Fn(S) -> T,
) -> Result<Raster<T, C>>
where
    T: Copy + Into<S>,
    S: Copy + Default + std::ops::Mul<Output = S> + std::ops::AddAssign,
{
    raster.check_target(width, height)?;
    let mut pixels = raster.pixels.clone();
    if width != raster.width {
        let table = windows(filter, raster.width, width);
        let mut narrowed = Vec::with_capacity(width * raster.height);
        for row in pixels.chunks_exact(raster.width) {
            narrowed.extend((0..width).map(|x| {
                let (first, weights) = window(&table, x);
                let mut sums = [S::default(); C];
                for (pixel, &weight) in row[first..].iter().zip(weights) {
                    for c in 0..C {
                        sums[c] += pixel[c].into() * weight;
                    }
                }
                sums.map(&store)
            }));
        }
        pixels = narrowed;
    }
    if height != raster.height {
        let table = windows(filter, raster.height, height);
        let mut shortened = Vec::with_capacity(width * height);
        let mut sums = vec![[S::default(); C]; width];
        for y in 0..height {
            let (first, weights) = window(&table, y);
            sums.fill([S::default(); C]);
            for (row, &weight) in pixels.chunks_exact(width).skip(first).zip(weights) {
                for (sum, pixel) in sums.iter_mut().zip(row) {
                    for c in 0..C {
                        sum[c] += pixel[c].into() * weight;
                    }
                }
            }
            shortened.extend(sums.iter().map(|sum| sum.map(&store)));
        }
        pixels = shortened;
    }
    Ok(Raster { width, height, pixels })
}

/// TensorFlow 1's bilinear resize without half-pixel centres and without antialiasing, all in `f32`.
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
    use crate::test_data::{formula_image, golden, json, max_difference, tensors};

    fn rows(value: &serde_json::Value) -> Vec<f32> {
        serde_json::from_value::<Vec<Vec<f32>>>(value.clone()).unwrap().concat()
    }

    /// All filters and both pixel types on the 13 × 11 grey image of `golden.json`.
    #[test]
    fn small_reference() {
        let golden = golden();
        let pixel = |i: usize| [((3 * (i % 13).pow(2) + 7 * (i / 13) + 5 * (i % 13) * (i / 13)) % 256) as u8];
        let grey = Raster::new(13, 11, (0..143).map(pixel).collect()).unwrap();
        let float = grey.map(f32::from);
        for (filter, name) in
            [(Filter::Box, "box"), (Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic"), (Filter::Lanczos, "lanczos")]
        {
            let ours = pillow_f32(&float, 4, 5, filter).unwrap().pixels.concat();
            let difference = max_difference(&ours, &rows(&golden[format!("pil_{name}_F")]));
            eprintln!("pillow F {name}: {difference:e}");
            assert!(difference <= if filter == Filter::Lanczos { 2e-5 } else { 0.0 }, "{name}");
            let ours = pillow_u8(&grey, 4, 5, filter).unwrap().map(f32::from).pixels.concat();
            assert_eq!(ours, rows(&golden[format!("pil_{name}_u8")]), "{name}");
        }
        let torch = torch_bilinear(&float, 4, 5).unwrap().pixels.concat();
        assert!(max_difference(&torch, &rows(&golden["torch_bilinear"])) < 3e-5);
        let tf1 = tf1_bilinear(&float, 4, 5).unwrap().pixels.concat();
        assert_eq!(tf1, rows(&golden["tf1_bilinear"]));
        let up: f64 = tf1_bilinear(&float, 19, 17).unwrap().pixels.iter().map(|p| f64::from(p[0])).sum();
        assert!((up - golden["tf1_bilinear_up_17x19"].as_f64().unwrap()).abs() < 1e-2, "{up}");
    }

    /// Colour images up and down, as the tools see them; large outputs are stored sampled.
    #[test]
    fn colour_references() {
        let references = tensors("resize.safetensors");
        let cases = json("resize.json");
        let mut worst = [0f32; 3];
        for (case, description) in cases["cases"].as_object().unwrap() {
            if !references.contains_key(&format!("{case}.clean")) {
                continue;
            }
            let number = |key: &str| description[key].as_u64().unwrap() as usize;
            let (width, height) = (number("out_w"), number("out_h"));
            let image = formula_image(number("image_seed") as u64, number("h"), number("w"));
            let sum: usize = image.rgb.iter().map(|v| usize::from(*v)).sum();
            assert_eq!(sum, number("image_sum"));
            let float = Raster::from(&image).map(f32::from);
            let sampled = |n: usize| -> Vec<usize> {
                let edge = |i: usize| i < 3 || i + 3 >= n || i.is_multiple_of(13);
                (0..n).filter(|i| !description["subsampled"].as_bool().unwrap() || edge(*i)).collect()
            };
            let clean = pillow_f32(&float, width, height, Filter::Bicubic).unwrap();
            let outputs = [
                ("clean", clean.map(|v| v.clamp(0.0, 255.0))),
                ("tf1", tf1_bilinear(&float, width, height).unwrap()),
                ("pt", torch_bilinear(&float, width, height).unwrap()),
            ];
            for ((name, output), worst) in outputs.iter().zip(&mut worst) {
                let (xs, ys) = (sampled(width), sampled(height));
                let pixels = ys.iter().flat_map(|y| xs.iter().map(move |x| y * width + x));
                let ours: Vec<f32> = pixels.flat_map(|i| output.pixels[i]).collect();
                let difference = max_difference(&ours, &references[&format!("{case}.{name}")].1);
                *worst = worst.max(difference);
            }
        }
        eprintln!("clean, tf1, torch: {worst:?}");
        assert_eq!(worst[0], 0.0, "clean");
        assert!(worst[1] < 1e-4, "tf1 {}", worst[1]);
        assert!(worst[2] < 2e-4, "torch {}", worst[2]);
    }

    #[test]
    fn empty_sides_are_refused() {
        let image = Raster::new(2, 1, vec![[1f32], [2.0]]).unwrap();
        assert!(pillow_f32(&image, 0, 3, Filter::Box).is_err());
        assert!(tf1_bilinear(&Raster::<f32, 1>::new(0, 3, vec![]).unwrap(), 1, 1).is_err());
        assert!(Raster::new(2, 2, vec![[0u8]]).is_err());
    }
}
