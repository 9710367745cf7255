//! Attention whose probabilities are wanted for themselves, or given.

use crate::inner::inner_products;
use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Queries of one piece of work.
const QUERIES: usize = 64;

/// The mean over heads of `softmax(scale · Q Kᵀ)`: `q` `(batch, n, heads · d)` and `k` `(batch, m, heads · d)`, heads side by side,
/// give `(batch, n, m)`.
///
/// Example: [`attention`](fn@crate::attention).
pub fn attention_map(q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let ((batch, n, width), (kb, m, kw)) = (q.dims3()?, k.dims3()?);
    if heads == 0 || width % heads != 0 || (kb, kw) != (batch, width) || m == 0 {
        bail!("attention_map: q {:?}, k {:?} with {heads} heads", q.dims(), k.dims());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(q) {
        let k = k.to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        return crate::gpu::by_host(q, |q| attention_map(q, &k, heads, scale));
    }
    let d = width / heads;
    let head = |rows: &[f32], h: usize, factor: f32| -> Vec<f32> {
        rows.chunks_exact(width).flat_map(|row| row[h * d..][..d].iter().map(move |v| v * factor)).collect()
    };
    with_slice(q, |q| {
        with_slice(k, |k| {
            let keys: Vec<Vec<f32>> = (0..batch * heads).map(|i| head(&k[i / heads * m * width..][..m * width], i % heads, 1.0)).collect();
            let mut output = vec![0f32; batch * n * m];
            let pieces = output
                .chunks_exact_mut(n * m)
                .enumerate()
                .flat_map(|(b, out)| out.chunks_mut(QUERIES * m).enumerate().map(move |(i, out)| (b, i, out)));
            pieces.collect::<Vec<_>>().into_par_iter().for_each(|(b, i, out)| {
                let rows = &q[(b * n + i * QUERIES) * width..][..out.len() / m * width];
                let mut scores = vec![0f32; out.len()];
                for h in 0..heads {
                    inner_products(&head(rows, h, scale as f32), &keys[b * heads + h], d, &mut scores);
                    for (line, out) in scores.chunks_exact_mut(m).zip(out.chunks_exact_mut(m)) {
                        let highest = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        line.iter_mut().for_each(|s| *s = (*s - highest).exp());
                        let share = 1.0 / (heads as f32 * line.iter().sum::<f32>());
                        out.iter_mut().zip(line).for_each(|(o, s)| *o += *s * share);
                    }
                }
            });
            tensor(output, (batch, n, m))
        })
    })
}

/// Means of `v` `(batch, m, width)` by the weights of `map` `(batch, n, m)`: `(batch, n, width)`.
///
/// Example: [`attention`](fn@crate::attention).
pub fn mapped_values(map: &Tensor, v: &Tensor) -> Result<Tensor> {
    let ((batch, n, m), (vb, vm, width)) = (map.dims3()?, v.dims3()?);
    if (vb, vm) != (batch, m) {
        bail!("mapped_values: map {:?}, v {:?}", map.dims(), v.dims());
    }
    #[cfg(gpu)]
    if crate::gpu::takes(v) {
        let map = map.to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        return crate::gpu::by_host(v, |v| mapped_values(&map, v));
    }
    with_slice(map, |map| {
        with_slice(&v.transpose(1, 2)?.contiguous()?, |v| {
            let mut output = vec![0f32; batch * n * width];
            let pieces = output.chunks_exact_mut(n * width).enumerate();
            let pieces = pieces.flat_map(|(b, out)| out.chunks_mut(QUERIES * width).enumerate().map(move |(i, out)| (b, i, out)));
            pieces.collect::<Vec<_>>().into_par_iter().for_each(|(b, i, out)| {
                let rows = &map[(b * n + i * QUERIES) * m..][..out.len() / width * m];
                inner_products(rows, &v[b * m * width..][..m * width], m, out);
            });
            tensor(output, (batch, n, width))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Precision, attention};
    use candle_core::Device;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 16) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// With equal heads, values weighted by the map are what attention gives.
    #[test]
    fn a_map_and_its_values_are_an_attention() {
        let make = |n: usize, seed| Tensor::from_vec(values(2 * n * 12, seed), (2, n, 12), &Device::Cpu).unwrap();
        let (q, k, v) = (make(70, 1), make(5, 2), make(5, 3));
        let map = attention_map(&q, &k, 1, 0.7).unwrap();
        assert!(map.sum(2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|s| (s - 1.0).abs() < 1e-5));
        let difference = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference(&mapped_values(&map, &v).unwrap(), &attention(&q, &k, &v, 1, 0.7, Precision::F32).unwrap()) < 1e-5);
        // Two heads: the mean of the maps of each.
        let half = |t: &Tensor, h: usize| t.narrow(2, 6 * h, 6).unwrap().contiguous().unwrap();
        let each = |h| attention_map(&half(&q, h), &half(&k, h), 1, 0.7).unwrap();
        let mean = ((each(0) + each(1)).unwrap() * 0.5).unwrap();
        assert!(difference(&attention_map(&q, &k, 2, 0.7).unwrap(), &mean) < 1e-6);
    }
}
