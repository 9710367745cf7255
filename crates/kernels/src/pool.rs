//! 3×3 pooling.

use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// What a 3×3 pool does with its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Largest value; padding counts as zero, which is exact after a ReLU.
    Max,
    /// Average of the real values; padding is left out of the count.
    Average,
}

/// 3×3 pooling with the given stride and zero padding on all sides: (b, c, h, w) → (b, c, h', w').
pub fn pool3x3(x: &Tensor, pool: Pool, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height.min(width) + 2 * padding < 3 || stride == 0 || padding > 1 {
        bail!("pool3x3: stride {stride} and padding {padding} on {:?}", x.dims());
    }
    let out = |side: usize| (side + 2 * padding - 3) / stride + 1;
    let (out_height, out_width) = (out(height), out(width));
    // The real positions of a window, first and one past the last.
    let window = |i: usize, side: usize| {
        let first = (i * stride).saturating_sub(padding);
        (first, (i * stride + 3 - padding).min(side))
    };
    with_slice(x, |x| {
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
        tensor(output, (batch, channels, out_height, out_width))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn padding_is_left_out_of_averages() {
        let x = Tensor::ones((1, 2, 4, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = pool3x3(&x, Pool::Average, 1, 1).unwrap();
        assert_eq!(y.dims(), [1, 2, 4, 5]);
        assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| *v == 1.0));
    }
}
