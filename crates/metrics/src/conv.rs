//! Convolution and pooling of `f32` images, `(batch, channels, height, width)`, on the CPU.
//!
//! A convolution is a matrix product of the weights with the unfolded input. The unfolding is done in
//! bands of output rows that stay in the second-level cache, by whole-row copies; images of a batch
//! run in parallel, each on one thread, so results do not depend on the batch or the thread count.

use candle_core::{CpuStorage, Storage, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use crate::{Error, Result};

/// Values of an unfolded band: 1 MiB, the second-level cache of current server cores.
const BAND: usize = 1 << 18;

/// Cross-correlation with zero padding `(height, width)`, bias and optional ReLU.
///
/// `x`: (batch, in, height, width), `weight`: (out, in, kernel height, kernel width), `bias`: (out).
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: (usize, usize), relu: bool) -> Result<Tensor> {
    let mismatch = || Error::ConvShape { input: x.dims().to_vec(), weight: weight.dims().to_vec(), bias: bias.dims().to_vec(), padding };
    let (batch, channels, height, width) = x.dims4().map_err(|_| mismatch())?;
    let (out_channels, in_channels, kh, kw) = weight.dims4().map_err(|_| mismatch())?;
    let (padded_height, padded_width) = (height + 2 * padding.0, width + 2 * padding.1);
    let fits = in_channels == channels && padded_height >= kh && padded_width >= kw;
    if !fits || bias.dims() != [out_channels] || stride == 0 || batch == 0 {
        return Err(mismatch());
    }
    let out_height = (padded_height - kh) / stride + 1;
    let out_width = (padded_width - kw) / stride + 1;
    let shape = Unfold { height, width, kh, kw, stride, padding, out_width };
    let depth = channels * kh * kw;
    let plane = out_height * out_width;
    let pointwise = (kh, kw, stride, padding) == (1, 1, 1, (0, 0));
    // Whole output rows, at least one.
    let band_rows = if pointwise { out_height } else { (BAND / (depth * out_width)).max(1) };

    let output = with_slices([x, weight, bias], |[x, weight, bias]| {
        let mut output = vec![0f32; batch * out_channels * plane];
        let images = x.par_chunks_exact(channels * height * width);
        output.par_chunks_exact_mut(out_channels * plane).zip(images).for_each_init(Vec::new, |unfolded, (output, image)| {
            for first in (0..out_height).step_by(band_rows) {
                let rows = band_rows.min(out_height - first);
                let columns = rows * out_width;
                let matrix = if pointwise {
                    image
                } else {
                    shape.unfold(image, first, rows, unfolded);
                    unfolded.as_slice()
                };
                let output = &mut output[first * out_width..];
                multiply(weight, matrix, output, [out_channels, depth, columns], plane);
            }
            for (plane, bias) in output.chunks_exact_mut(plane).zip(bias) {
                let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
                plane.iter_mut().for_each(|v| *v = (*v + bias).max(floor));
            }
        });
        output
    })?;
    Ok(Tensor::from_vec(output, (batch, out_channels, out_height, out_width), x.device())?)
}

/// `output[o][j] = Σ_k weight[o][k] · matrix[k][j]` with rows of `output` `stride` values apart.
fn multiply(weight: &[f32], matrix: &[f32], output: &mut [f32], [rows, depth, columns]: [usize; 3], stride: usize) {
    assert!(weight.len() >= rows * depth && matrix.len() >= depth * columns);
    assert!(stride >= columns && output.len() >= (rows - 1) * stride + columns);
    // SAFETY: the three row-major matrices lie inside their slices by the assertions above, and the
    // borrow rules keep `output` apart from the two others.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            output.as_mut_ptr(),
            1,
            stride as isize,
            false,
            weight.as_ptr(),
            1,
            depth as isize,
            matrix.as_ptr(),
            1,
            columns as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Geometry of one convolution's unfolding.
struct Unfold {
    height: usize,
    width: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    padding: (usize, usize),
    out_width: usize,
}

impl Unfold {
    /// Writes output rows `first..first + rows` unfolded: `(channels · kh · kw, rows · out_width)`.
    fn unfold(&self, image: &[f32], first: usize, rows: usize, unfolded: &mut Vec<f32>) {
        let Self { height, width, kh, kw, stride, padding, out_width } = *self;
        unfolded.clear();
        for plane in image.chunks_exact(height * width) {
            for ky in 0..kh {
                for kx in 0..kw {
                    // Output columns whose input column `x·stride + kx − padding` exists.
                    let begin = padding.1.saturating_sub(kx).div_ceil(stride).min(out_width);
                    let end = (width + padding.1 - kx).div_ceil(stride).clamp(begin, out_width);
                    for y in first..first + rows {
                        let row = (y * stride + ky).checked_sub(padding.0).filter(|y| *y < height);
                        let Some(row) = row else {
                            unfolded.resize(unfolded.len() + out_width, 0.0);
                            continue;
                        };
                        unfolded.resize(unfolded.len() + begin, 0.0);
                        let start = row * width + (begin * stride + kx).saturating_sub(padding.1);
                        if stride == 1 {
                            unfolded.extend_from_slice(&plane[start..start + end - begin]);
                        } else {
                            let columns = (0..end - begin).map(|x| plane[start + x * stride]);
                            unfolded.extend(columns);
                        }
                        unfolded.resize(unfolded.len() + out_width - end, 0.0);
                    }
                }
            }
        }
    }
}

/// What a 3×3 pool does with its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Largest value; padding counts as zero, which is exact after a ReLU.
    Max,
    /// Average of the real values; padding is left out of the count.
    Average,
}

/// 3×3 pooling with the given stride and zero padding on all sides: (b, c, h, w) → (b, c, h', w').
pub(crate) fn pool3x3(x: &Tensor, pool: Pool, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height.min(width) + 2 * padding < 3 {
        return Err(Error::InputShape { found: x.dims().to_vec() });
    }
    let out = |side: usize| (side + 2 * padding - 3) / stride + 1;
    let (out_height, out_width) = (out(height), out(width));
    // The real positions of a window, first and one past the last.
    let window = |i: usize, side: usize| {
        let first = (i * stride).saturating_sub(padding);
        (first, (i * stride + 3 - padding).min(side))
    };
    let output = with_slices([x], |[x]| {
        let mut output = vec![0f32; batch * channels * out_height * out_width];
        let planes = x.par_chunks_exact(height * width);
        output.par_chunks_exact_mut(out_height * out_width).zip(planes).for_each_init(
            || vec![0f32; width],
            |column, (output, plane)| {
                for (y, output) in output.chunks_exact_mut(out_width).enumerate() {
                    let (top, bottom) = window(y, height);
                    // Vertically first: whole rows, which the compiler vectorises.
                    column.copy_from_slice(&plane[top * width..][..width]);
                    for row in plane[(top + 1) * width..bottom * width].chunks_exact(width) {
                        for (c, v) in column.iter_mut().zip(row) {
                            *c = match pool {
                                Pool::Max => c.max(*v),
                                Pool::Average => *c + v,
                            };
                        }
                    }
                    for (x, output) in output.iter_mut().enumerate() {
                        let (left, right) = window(x, width);
                        let values = column[left..right].iter().copied();
                        *output = match pool {
                            Pool::Max => values.fold(f32::NEG_INFINITY, f32::max),
                            Pool::Average => values.sum::<f32>() / ((bottom - top) * (right - left)) as f32,
                        };
                    }
                }
            },
        );
        output
    })?;
    Ok(Tensor::from_vec(output, (batch, channels, out_height, out_width), x.device())?)
}

/// Runs `f` on the values of contiguous `f32` CPU tensors.
fn with_slices<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage @ CpuStorage::F32(_)) = &**storage else {
            return Err(candle_core::Error::msg("expected f32 tensors in host memory").into());
        };
        let values = storage.as_slice::<f32>()?;
        *slice = &values[layout.start_offset()..][..layout.shape().elem_count()];
    }
    Ok(f(slices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Against candle's own convolution, over all the kernel shapes the network has and odd sizes.
    #[test]
    fn agrees_with_candle() {
        let ramp = |shape: &[usize], step: f32| {
            let n: usize = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        for (kernel, stride, padding) in [
            ((1, 1), 1, (0, 0)),
            ((3, 3), 1, (1, 1)),
            ((3, 3), 2, (0, 0)),
            ((5, 5), 1, (2, 2)),
            ((1, 7), 1, (0, 3)),
            ((7, 1), 1, (3, 0)),
            ((3, 3), 2, (1, 1)),
        ] {
            let x = ramp(&[2, 3, 11, 14], 0.37);
            let weight = ramp(&[5, 3, kernel.0, kernel.1], 0.73);
            let bias = ramp(&[5], 1.0);
            let ours = conv2d(&x, &weight, &bias, stride, padding, true).unwrap();
            let padded = x.pad_with_zeros(2, padding.0, padding.0).unwrap();
            let padded = padded.pad_with_zeros(3, padding.1, padding.1).unwrap();
            let theirs = padded.conv2d(&weight, 0, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&bias.reshape((1, 5, 1, 1)).unwrap()).unwrap();
            let difference = (ours - theirs.relu().unwrap()).unwrap().abs().unwrap();
            let worst = difference.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>();
            assert!(worst.unwrap() < 1e-5, "{kernel:?} stride {stride}");
        }
    }

    #[test]
    fn padding_is_left_out_of_averages() {
        let x = Tensor::ones((1, 2, 4, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = pool3x3(&x, Pool::Average, 1, 1).unwrap();
        assert_eq!(y.dims(), [1, 2, 4, 5]);
        assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| *v == 1.0));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let (x, weight) = (zeros(&[1, 3, 8, 8]), zeros(&[4, 2, 3, 3]));
        let error = conv2d(&x, &weight, &zeros(&[4]), 1, (0, 0), false).unwrap_err();
        assert!(error.to_string().contains("[4, 2, 3, 3]"), "{error}");
    }
}
