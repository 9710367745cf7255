//! 3×3 pooling.

use crate::conv::Activation;
use crate::simd::dispatch;
use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// What a 3×3 pool does with its window.
///
/// Example: [`pool3x3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Largest value; padding counts as zero, which is exact after a ReLU.
    Max,
    /// Average of the real values; padding is left out of the count.
    Average,
}

/// 3×3 pooling with the given stride and zero padding on all sides, then `activation`: (b, c, h, w) → (b, c, h', w').
///
/// ```
/// use candle_core::Device;
/// use scalebench_kernels::{Activation, Pool, Tensor, pool3x3};
/// let x = Tensor::arange(0f32, 9.0, &Device::Cpu)?.reshape((1, 1, 3, 3))?;
/// let pooled = |pool, padding| pool3x3(&x, pool, 1, padding, Activation::Identity)?.flatten_all()?.to_vec1::<f32>();
/// assert_eq!((pooled(Pool::Max, 0)?, pooled(Pool::Average, 0)?), (vec![8.0], vec![4.0]));
/// // In a corner there are four real values.
/// assert_eq!(pooled(Pool::Average, 1)?[0], (0.0 + 1.0 + 3.0 + 4.0) / 4.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn pool3x3(x: &Tensor, pool: Pool, stride: usize, padding: usize, activation: Activation) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height.min(width) + 2 * padding < 3 || stride == 0 || padding > 1 {
        bail!("pool3x3: stride {stride} and padding {padding} on {:?}", x.dims());
    }
    let out = |side: usize| (side + 2 * padding - 3) / stride + 1;
    let (out_height, out_width) = (out(height), out(width));
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        let y = crate::gpu::pool3x3(x, pool, stride, padding, (out_height, out_width))?;
        return if activation == Activation::Relu { y.relu() } else { Ok(y) };
    }
    // The real positions of a window, first and one past the last.
    let window = |i: usize, side: usize| ((i * stride).saturating_sub(padding), (i * stride + 3 - padding).min(side));
    let columns: Vec<f32> = (0..out_width).map(|x| window(x, width)).map(|(left, right)| (right - left) as f32).collect();
    let neutral = match pool {
        Pool::Max => f32::NEG_INFINITY,
        Pool::Average => 0.0,
    };
    with_slice(x, |x| {
        let size = out_height * out_width;
        let mut output = vec![0f32; batch * channels * size];
        let planes = x.par_chunks_exact(height * width);
        output.par_chunks_exact_mut(size).zip(planes).for_each_init(
            || vec![neutral; width + 2 * padding],
            |line, (output, plane)| {
                dispatch(
                    #[inline(always)]
                    || {
                        for (y, output) in output.chunks_exact_mut(out_width).enumerate() {
                            let (top, bottom) = window(y, height);
                            let rows = &plane[top * width..bottom * width];
                            // Vertically first, whole rows; the padding of the line stays neutral.
                            join_rows(pool, rows, &mut line[padding..][..width]);
                            join_columns(pool, line, stride, output);
                            if pool == Pool::Average {
                                let rows = (bottom - top) as f32;
                                for x in 0..out_width {
                                    output[x] /= rows * columns[x];
                                }
                            }
                            if activation == Activation::Relu {
                                for y in output.iter_mut() {
                                    *y = y.max(0.0);
                                }
                            }
                        }
                    },
                );
            },
        );
        tensor(output, (batch, channels, out_height, out_width))
    })
}

#[inline(always)]
fn join(pool: Pool, a: f32, b: f32) -> f32 {
    match pool {
        // Not `f32::max`, which is several instructions for the sake of NaNs.
        Pool::Max => {
            if b > a {
                b
            } else {
                a
            }
        }
        Pool::Average => a + b,
    }
}

/// Joins rows of `line`'s width into one.
#[inline(always)]
fn join_rows(pool: Pool, rows: &[f32], line: &mut [f32]) {
    let width = line.len();
    line.copy_from_slice(&rows[..width]);
    for row in 1..rows.len() / width {
        let row = &rows[row * width..][..width];
        for x in 0..width {
            line[x] = join(pool, line[x], row[x]);
        }
    }
}

/// Joins three neighbours at every `stride`.
#[inline(always)]
fn join_columns(pool: Pool, line: &[f32], stride: usize, output: &mut [f32]) {
    let n = output.len();
    if stride == 1 {
        let line = &line[..n + 2];
        for x in 0..n {
            output[x] = join(pool, join(pool, line[x], line[x + 1]), line[x + 2]);
        }
    } else {
        let line = &line[..(n - 1) * stride + 3];
        for x in 0..n {
            output[x] = join(pool, join(pool, line[x * stride], line[x * stride + 1]), line[x * stride + 2]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn padding_is_left_out_of_averages() {
        let x = Tensor::ones((1, 2, 4, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = pool3x3(&x, Pool::Average, 1, 1, Activation::Identity).unwrap();
        assert_eq!(y.dims(), [1, 2, 4, 5]);
        assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| *v == 1.0));
    }

    /// Against the definition, at both strides, with and without padding.
    #[test]
    fn matches_the_definition() {
        let (height, width) = (9, 22);
        let data: Vec<f32> = (0..2 * height * width).map(|i| ((i * 37) % 101) as f32).collect();
        let x = Tensor::from_vec(data.clone(), (1, 2, height, width), &Device::Cpu).unwrap();
        for (pool, stride, padding) in [(Pool::Max, 2, 0), (Pool::Max, 1, 1), (Pool::Average, 1, 1), (Pool::Average, 2, 0)] {
            let y = pool3x3(&x, pool, stride, padding, Activation::Identity).unwrap();
            let (_, _, out_height, out_width) = y.dims4().unwrap();
            let got = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let shifted = pool3x3(&(&x - 50.0).unwrap(), pool, stride, 0, Activation::Relu).unwrap();
            let relu = pool3x3(&(&x - 50.0).unwrap(), pool, stride, 0, Activation::Identity).unwrap().relu().unwrap();
            assert_eq!(shifted.flatten_all().unwrap().to_vec1::<f32>().unwrap(), relu.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            for (i, got) in got.into_iter().enumerate() {
                let (c, oy, ox) = (i / (out_height * out_width), i / out_width % out_height, i % out_width);
                let near =
                    |o: usize, side: usize| (0..3).filter_map(move |k| (o * stride + k).checked_sub(padding)).filter(move |p| *p < side);
                let seen: Vec<f32> = near(oy, height)
                    .flat_map(|y| near(ox, width).map(move |x| (y, x)))
                    .map(|(y, x)| data[(c * height + y) * width + x])
                    .collect();
                let want = match pool {
                    Pool::Max => seen.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                    Pool::Average => seen.iter().sum::<f32>() / seen.len() as f32,
                };
                assert_eq!(got, want, "{pool:?} {stride} {padding} at {i}");
            }
        }
    }
}
