//! 2-D convolution with any stride, zero padding and integer dilation.
//!
//! Columns are gathered row by row (a dilation only moves where a row is read, so a dilated
//! convolution costs what a plain one costs) into a strip that stays in the cache, and one matrix
//! product per strip writes the output in place.

use crate::view::{Matrix, SharedMut, gemm, tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Where a kernel's taps fall.
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
    pub fn padded(padding: usize) -> Self {
        Self { stride: 1, padding: (padding, padding), dilation: 1 }
    }
}

/// What follows a convolution, in the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(0, x).
    Relu,
}

/// Columns of one strip: small enough for a second-level cache beside the packed operands.
const STRIP_FLOATS: usize = 256 * 1024;

thread_local! {
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Convolves `x` `(batch, c_in, h, w)` with `weight` `(c_out, c_in, kh, kw)` (a correlation, as in
/// every deep-learning library) and adds `bias`, `(c_out)` or `(batch, c_out)`.
///
/// Returns `(batch, c_out, (h + 2p − d(kh − 1) − 1) / stride + 1, …)`. Errors when the channel counts
/// differ or the dilated kernel does not fit into the padded input.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry, activation: Activation) -> Result<Tensor> {
    let (batch, c_in, h, w) = x.dims4()?;
    let (c_out, w_in, kh, kw) = weight.dims4()?;
    let ConvGeometry { stride, padding: (ph, pw), dilation } = geometry;
    if c_in != w_in {
        bail!("conv2d: input {:?} has {c_in} channels, weight {:?} expects {w_in}", x.dims(), weight.dims());
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
    let k = c_in * kh * kw;
    let pointwise = kh == 1 && kw == 1 && stride == 1 && ph == 0 && pw == 0;
    let strip_rows = (STRIP_FLOATS / (k * ow).max(1)).clamp(1, oh);
    let strips = oh.div_ceil(strip_rows);

    with_slice(x, |input| {
        with_slice(weight, |taps| {
            let zeros = vec![0f32; if bias.is_none() { c_out } else { 0 }];
            let run = |bias: &[f32]| {
                let mut output = vec![0f32; batch * c_out * oh * ow];
                let out = SharedMut::new(&mut output);
                (0..batch * strips).into_par_iter().for_each(|task| {
                    let (b, strip) = (task / strips, task % strips);
                    let rows = strip * strip_rows..((strip + 1) * strip_rows).min(oh);
                    let pixels = rows.len() * ow;
                    let first = b * c_out * oh * ow + rows.start * ow;
                    for (c, &value) in bias[b * c_out % bias.len()..][..c_out].iter().enumerate() {
                        // SAFETY: this strip owns rows `rows` of every channel of image `b`.
                        let row = unsafe { std::slice::from_raw_parts_mut(out.at(first + c * oh * ow), pixels) };
                        row.fill(value);
                    }
                    let image = &input[b * c_in * h * w..][..c_in * h * w];
                    let lhs = Matrix { ptr: taps.as_ptr(), row: k, col: 1 };
                    let multiply = |rhs: Matrix| {
                        // SAFETY: `dst` spans this strip of `c_out` channels, the operands their slices.
                        unsafe { gemm(c_out, pixels, k, out.at(first), oh * ow, true, lhs, rhs, 1.0) }
                    };
                    if pointwise {
                        multiply(Matrix { ptr: image[rows.start * ow..].as_ptr(), row: h * w, col: 1 });
                    } else {
                        COLUMNS.with_borrow_mut(|columns| {
                            if columns.len() < k * pixels {
                                columns.resize(k * pixels, 0.0);
                            }
                            let shape = Gather { c_in, h, w, kh, kw, ow, geometry };
                            shape.gather(image, rows.clone(), &mut columns[..k * pixels]);
                            multiply(Matrix { ptr: columns.as_ptr(), row: pixels, col: 1 });
                        });
                    }
                    if activation == Activation::Relu {
                        for c in 0..c_out {
                            // SAFETY: as above.
                            let row = unsafe { std::slice::from_raw_parts_mut(out.at(first + c * oh * ow), pixels) };
                            row.iter_mut().for_each(|v| *v = v.max(0.0));
                        }
                    }
                });
                tensor(output, (batch, c_out, oh, ow))
            };
            match bias {
                Some(bias) => with_slice(bias, run),
                None => run(&zeros),
            }
        })
    })
}

struct Gather {
    c_in: usize,
    h: usize,
    w: usize,
    kh: usize,
    kw: usize,
    ow: usize,
    geometry: ConvGeometry,
}

impl Gather {
    /// Fills `columns` `(c_in · kh · kw, rows · ow)` with what each tap sees.
    fn gather(&self, image: &[f32], rows: std::ops::Range<usize>, columns: &mut [f32]) {
        let &Gather { c_in, h, w, kh, kw, ow, geometry: ConvGeometry { stride, padding: (ph, pw), dilation } } = self;
        let mut lines = columns.chunks_exact_mut(ow);
        for c in 0..c_in {
            let plane = &image[c * h * w..][..h * w];
            for ky in 0..kh {
                for kx in 0..kw {
                    // Output columns whose tap falls inside the input row: x = ox · stride + shift.
                    let shift = (kx * dilation) as isize - pw as isize;
                    let lo = (-shift).max(0).unsigned_abs().div_ceil(stride).min(ow);
                    let last = w as isize - 1 - shift;
                    let hi = if last < 0 { lo } else { (last as usize / stride + 1).min(ow).max(lo) };
                    for oy in rows.clone() {
                        let line = lines.next().expect("one line per tap and row");
                        let y = (oy * stride + ky * dilation) as isize - ph as isize;
                        if y < 0 || y >= h as isize {
                            line.fill(0.0);
                            continue;
                        }
                        let source = &plane[y as usize * w..][..w];
                        line[..lo].fill(0.0);
                        line[hi..].fill(0.0);
                        if lo == hi {
                            continue;
                        }
                        let start = (lo * stride) as isize + shift;
                        let source = &source[start as usize..];
                        if stride == 1 {
                            line[lo..hi].copy_from_slice(&source[..hi - lo]);
                        } else {
                            for (to, from) in line[lo..hi].iter_mut().zip(source.iter().step_by(stride)) {
                                *to = *from;
                            }
                        }
                    }
                }
            }
        }
    }
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
                        let got: Vec<f32> =
                            conv2d(&x, &k, Some(&b), g, Activation::Identity).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                        let want = direct(&x, &k, &b, g);
                        assert_eq!(got.len(), want.len());
                        let rectified = conv2d(&x, &k, Some(&b), g, Activation::Relu).unwrap().flatten_all().unwrap();
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
        let got: Vec<f32> = conv2d(&x, &k, None, g, Activation::Identity).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (g, w) in got.iter().zip(direct(&x, &k, &b, g)) {
            assert!((f64::from(*g) - w).abs() < 2e-4);
        }
    }

    #[test]
    fn a_kernel_that_does_not_fit_is_an_error() {
        let (x, k) = (ramp(&[1, 1, 4, 4], 1.0), ramp(&[1, 1, 5, 5], 1.0));
        assert!(conv2d(&x, &k, None, ConvGeometry::padded(0), Activation::Identity).is_err());
    }
}
