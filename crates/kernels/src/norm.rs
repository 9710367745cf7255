//! Group norm (with SiLU fused) and layer norm.

use crate::share::tasks_of;
use crate::simd::{LANES, dispatch, silu};
use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Sum and sum of squares, in f64 from per-lane f32 partial sums over short blocks.
#[inline(always)]
fn sums(x: &[f32]) -> (f64, f64) {
    const BLOCK: usize = 1024;
    let (mut sum, mut squares) = (0f64, 0f64);
    for block in x.chunks(BLOCK) {
        let (mut s, mut q) = ([0f32; LANES], [0f32; LANES]);
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for i in 0..LANES {
                s[i] += chunk[i];
                q[i] += chunk[i] * chunk[i];
            }
        }
        for (i, &v) in chunks.remainder().iter().enumerate() {
            s[i] += v;
            q[i] += v * v;
        }
        sum += s.iter().map(|&v| f64::from(v)).sum::<f64>();
        squares += q.iter().map(|&v| f64::from(v)).sum::<f64>();
    }
    (sum, squares)
}

#[inline(always)]
fn affine(from: &[f32], to: &mut [f32], a: f32, b: f32, with_silu: bool) {
    if with_silu {
        to.iter_mut().zip(from).for_each(|(o, &v)| *o = silu(v * a + b));
    } else {
        to.iter_mut().zip(from).for_each(|(o, &v)| *o = v * a + b);
    }
}

/// Mean and 1 / standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let (sum, squares) = sums(x);
    let n = x.len() as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

/// Group normalisation of `x` `(batch, channels, height, width)` with affine `weight` and `bias`
/// `(channels)`, followed by SiLU if `with_silu`: one pass over the data for the statistics, one for
/// the result.
///
/// ```
/// use candle_core::{DType, Device};
/// use scalebench_kernels::{Tensor, channel_affine, channel_sums, group_norm, layer_norm};
/// let x = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 2, 2, 2))?;
/// let (ones, zeros) = (Tensor::ones(2, DType::F32, &Device::Cpu)?, Tensor::zeros(2, DType::F32, &Device::Cpu)?);
/// // With a group for each channel, sums of the channels say what to multiply by and to add.
/// let factors: Vec<(f32, f32)> = channel_sums(&x)?
///     .into_iter()
///     .map(|(sum, squares)| {
///         let (mean, scale) = (sum / 4.0, 1.0 / (squares / 4.0 - (sum / 4.0).powi(2)).sqrt());
///         (scale as f32, (-mean * scale) as f32)
///     })
///     .collect();
/// let apart = (group_norm(&x, 2, &ones, &zeros, 0.0, false)? - channel_affine(&x, &factors, false)?)?;
/// assert!(apart.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? < 1e-6);
/// // Of two numbers, the smaller is one deviation below their mean.
/// let pair = Tensor::new(&[[3f32, 7.0]], &Device::Cpu)?;
/// assert_eq!(layer_norm(&pair, &ones, &zeros, 0.0)?.to_vec2::<f32>()?, [[-1.0, 1.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, with_silu: bool) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if groups == 0 || channels % groups != 0 {
        bail!("group_norm: {channels} channels do not divide into {groups} groups");
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::group_norm(x, groups, weight, bias, eps, with_silu);
    }
    let (per_group, plane) = (channels / groups, h * w);
    with_slice(x, |x| {
        with_slice(weight, |weight| {
            with_slice(bias, |bias| {
                let mut output = vec![0f32; batch * channels * plane];
                let size = per_group * plane;
                let maps = output.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate();
                maps.with_min_len(tasks_of(2 * size)).for_each(|(g, (out, x))| {
                    let first = g % groups * per_group;
                    dispatch(
                        #[inline(always)]
                        || {
                            let (mean, inverse) = moments(x, eps);
                            for c in 0..per_group {
                                let a = inverse * weight[first + c];
                                let b = bias[first + c] - mean * a;
                                let (from, to) = (&x[c * plane..][..plane], &mut out[c * plane..][..plane]);
                                affine(from, to, a, b, with_silu);
                            }
                        },
                    );
                });
                tensor(output, (batch, channels, h, w))
            })
        })
    })
}

/// Sum and sum of squares of every channel of `x` `(batch, channels, height, width)`, batch summed too:
/// what [`channel_affine`] needs to normalise a map that is only ever seen in parts.
///
/// Example: [`group_norm`].
pub fn channel_sums(x: &Tensor) -> Result<Vec<(f64, f64)>> {
    let (batch, channels, h, w) = x.dims4()?;
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::channel_sums(x);
    }
    let plane = h * w;
    with_slice(x, |x| {
        Ok((0..channels)
            .into_par_iter()
            .with_min_len(tasks_of(batch * plane))
            .map(|c| {
                let mut total = (0f64, 0f64);
                for b in 0..batch {
                    let part = dispatch(
                        #[inline(always)]
                        || sums(&x[(b * channels + c) * plane..][..plane]),
                    );
                    total = (total.0 + part.0, total.1 + part.1);
                }
                total
            })
            .collect())
    })
}

/// `a_c · x + b_c` for every channel `c` of `x` `(batch, channels, height, width)`, followed by SiLU if
/// `with_silu`. `factors` holds `(a_c, b_c)`.
///
/// Example: [`group_norm`].
pub fn channel_affine(x: &Tensor, factors: &[(f32, f32)], with_silu: bool) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if factors.len() != channels {
        bail!("channel_affine: {} factors for {channels} channels", factors.len());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::channel_affine(x, factors, with_silu);
    }
    let plane = h * w;
    with_slice(x, |x| {
        let mut output = vec![0f32; batch * channels * plane];
        let maps = output.par_chunks_mut(plane).zip(x.par_chunks(plane)).enumerate();
        maps.with_min_len(tasks_of(plane)).for_each(|(i, (out, x))| {
            let (a, b) = factors[i % channels];
            dispatch(
                #[inline(always)]
                || affine(x, out, a, b, with_silu),
            );
        });
        tensor(output, (batch, channels, h, w))
    })
}

/// Layer normalisation over the last dimension of `x` `(…, channels)`.
///
/// Example: [`group_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = x.dims().last().copied().unwrap_or(0);
    if channels == 0 || weight.dims() != [channels] {
        bail!("layer_norm: input {:?}, weight {:?}", x.dims(), weight.dims());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::layer_norm(x, weight, bias, eps);
    }
    with_slice(x, |data| {
        with_slice(weight, |weight| {
            with_slice(bias, |bias| {
                let mut output = vec![0f32; data.len()];
                // Many short rows to a task, or scheduling costs more than the sums.
                let block = channels * 64;
                let blocks = output.par_chunks_mut(block).zip(data.par_chunks(block));
                blocks.with_min_len(tasks_of(block)).for_each(|(out, data)| {
                    dispatch(
                        #[inline(always)]
                        || {
                            for (out, row) in out.chunks_exact_mut(channels).zip(data.chunks_exact(channels)) {
                                let (mean, inverse) = moments(row, eps);
                                for i in 0..channels {
                                    out[i] = (row[i] - mean) * inverse * weight[i] + bias[i];
                                }
                            }
                        },
                    );
                });
                tensor(output, x.shape())
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn group_norm_standardises_each_group() {
        let data: Vec<f32> = (0..2 * 6 * 35).map(|i| 50.0 + (i as f32 * 0.77).sin() * (1.0 + i as f32 * 0.01)).collect();
        let x = Tensor::from_vec(data, (2, 6, 5, 7), &Device::Cpu).unwrap();
        let (one, zero) = (Tensor::ones(6, x.dtype(), &Device::Cpu).unwrap(), Tensor::zeros(6, x.dtype(), &Device::Cpu).unwrap());
        let y = group_norm(&x, 3, &one, &zero, 0.0, false).unwrap().reshape((6, 70)).unwrap().to_vec2::<f32>().unwrap();
        for group in y {
            let mean = group.iter().map(|&v| f64::from(v)).sum::<f64>() / 70.0;
            let var = group.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 70.0;
            assert!(mean.abs() < 1e-4 && (var - 1.0).abs() < 1e-3, "{mean} {var}");
        }
    }
}
