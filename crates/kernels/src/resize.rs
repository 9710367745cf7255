//! Resizing of feature maps, and the separable filters that are made like it.

use crate::share::tasks_of;
use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The two neighbours of each output position and the weight of the second, as
/// `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` computes them.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let s = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
            let i0 = (s as usize).min(from - 1);
            (i0, (i0 + 1).min(from - 1), (s - i0 as f32).clamp(0.0, 1.0))
        })
        .collect()
}

/// Resizes `x` `(batch, channels, h, w)` to `(batch, channels, height, width)`: half-pixel centres,
/// no antialiasing. Returns `x` itself when the size does not change.
///
/// ```
/// use candle_core::{DType, Device};
/// use scalebench_kernels::{
///     Tensor, area_mean, average_pool, blur_gaussian, blur_gaussian_mirrored, enlarge_bicubic, resize_bicubic, resize_bilinear, upsample_nearest,
/// };
/// let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
/// let x = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((1, 1, 2, 2))?;
/// // Between two pixels lies their mean, at a quarter and three quarters of the way.
/// assert_eq!(values(&resize_bilinear(&x, 2, 4)?)?, [0.0, 0.25, 0.75, 1.0, 2.0, 2.25, 2.75, 3.0]);
/// // Means of repeated pixels are the pixels.
/// let enlarged = upsample_nearest(&x, 4, 4)?;
/// assert_eq!((values(&area_mean(&enlarged, 2, 2)?)?, values(&average_pool(&enlarged, 2)?)?), (values(&x)?, values(&x)?));
/// // Weights sum to 1, but where a map ends in zeros.
/// let ones = Tensor::ones((1, 1, 4, 4), DType::F32, &Device::Cpu)?;
/// for y in [enlarge_bicubic(&ones, 8, 8)?, resize_bicubic(&ones, 6, 3)?, blur_gaussian_mirrored(&ones, 3, 1.0)?] {
///     assert!(values(&y)?.iter().all(|v| (v - 1.0).abs() < 1e-6));
/// }
/// assert!(values(&blur_gaussian(&ones, 3, 1.0)?)?[0] < 0.6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    if [h, w, height, width].contains(&0) {
        bail!("resize_bilinear: {h}×{w} to {height}×{width}");
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::resize_bilinear(x, height, width);
    }
    let (rows, columns) = (taps(h, height), taps(w, width));
    with_slice(x, |data| {
        let mut output = vec![0f32; batch * channels * height * width];
        let planes = output.par_chunks_mut(height * width).zip(data.par_chunks(h * w));
        planes.with_min_len(tasks_of(2 * height * width)).for_each(|(out, plane)| {
            for (line, &(y0, y1, fy)) in out.chunks_exact_mut(width).zip(&rows) {
                let (a, b) = (&plane[y0 * w..][..w], &plane[y1 * w..][..w]);
                for (o, &(x0, x1, fx)) in line.iter_mut().zip(&columns) {
                    let top = a[x0] * (1.0 - fx) + a[x1] * fx;
                    let bottom = b[x0] * (1.0 - fx) + b[x1] * fx;
                    *o = top * (1.0 - fy) + bottom * fy;
                }
            }
        });
        tensor(output, (batch, channels, height, width))
    })
}

/// The cubic of Keys.
fn cubic(a: f64, t: f64) -> f64 {
    let t = t.abs();
    if t < 1.0 {
        ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a
    } else {
        0.0
    }
}

/// First input position and weights of each output position.
pub(crate) type Taps = Vec<(usize, Vec<f32>)>;

/// Enlarges `x` `(batch, channels, h, w)` to `(batch, channels, height, width)` by the cubic of Keys
/// (a = −½) with half-pixel centres: Pillow's `BICUBIC`, without its rounding to bytes.
///
/// Example: [`resize_bilinear`].
pub fn enlarge_bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h == 0 || w == 0 || height < h || width < w {
        bail!("enlarge_bicubic: {h}×{w} to {height}×{width}");
    }
    // What lies outside is left out.
    let taps = |from: usize, to: usize| -> Taps {
        (0..to)
            .map(|i| {
                let centre = (i as f64 + 0.5) * from as f64 / to as f64;
                let first = (centre - 2.0 + 0.5).floor().max(0.0) as usize;
                let last = ((centre + 2.0 + 0.5).floor() as usize).min(from);
                let weights: Vec<f64> = (first..last).map(|j| cubic(-0.5, j as f64 + 0.5 - centre)).collect();
                let sum: f64 = weights.iter().sum();
                (first, weights.iter().map(|w| (w / sum) as f32).collect())
            })
            .collect()
    };
    separable(x, &taps(h, height), &taps(w, width))
}

/// Resizes `x` `(batch, channels, h, w)` to `(batch, channels, height, width)` as `interpolate(mode="bicubic",
/// align_corners=False)`: the cubic with a = −¾ on four taps, edges repeated, no antialiasing.
///
/// Example: [`resize_bilinear`].
pub fn resize_bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w, height, width].contains(&0) {
        bail!("resize_bicubic: {h}×{w} to {height}×{width}");
    }
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    let taps = |from: usize, to: usize| -> Taps {
        (0..to)
            .map(|i| {
                let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                let inside = |j: i64| j.clamp(0, from as i64 - 1) as usize;
                let base = centre.floor() as i64;
                let first = inside(base - 1);
                let mut weights = vec![0f32; inside(base + 2) - first + 1];
                (base - 1..=base + 2).for_each(|j| weights[inside(j) - first] += cubic(-0.75, j as f64 - centre) as f32);
                (first, weights)
            })
            .collect()
    };
    separable(x, &taps(h, height), &taps(w, width))
}

/// Means of `x` `(batch, channels, h, w)` over `height × width` areas, as `adaptive_avg_pool2d`: area `i` reaches from
/// `⌊i · h / height⌋` to `⌈(i + 1) · h / height⌉`.
///
/// Example: [`resize_bilinear`].
pub fn area_mean(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w, height, width].contains(&0) {
        bail!("area_mean: {h}×{w} to {height}×{width}");
    }
    let taps = |from: usize, to: usize| -> Taps {
        (0..to)
            .map(|i| {
                let (first, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
                (first, vec![1.0 / (end - first) as f32; end - first])
            })
            .collect()
    };
    separable(x, &taps(h, height), &taps(w, width))
}

/// Means of `x` `(batch, channels, h, w)` over squares of `side × side` pixels, as `avg_pool2d` with `ceil_mode`: the last row and
/// column may be means of fewer.
///
/// Example: [`resize_bilinear`].
pub fn average_pool(x: &Tensor, side: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w, side].contains(&0) {
        bail!("average_pool: {h}×{w} in squares of {side}");
    }
    let taps = |from: usize| -> Taps {
        let area = |first: usize| {
            let n = side.min(from - first);
            (first, vec![1.0 / n as f32; n])
        };
        (0..from).step_by(side).map(area).collect()
    };
    separable(x, &taps(h), &taps(w))
}

/// The weights of a Gaussian on `taps` pixels, an odd number.
fn bell(taps: usize, sigma: f64) -> Result<Vec<f64>> {
    if taps.is_multiple_of(2) || !(sigma.is_finite() && sigma > 0.0) {
        bail!("blur_gaussian: {taps} taps and a deviation of {sigma}");
    }
    let reach = taps / 2;
    Ok((0..taps).map(|i| (-0.5 * ((i as f64 - reach as f64) / sigma).powi(2)).exp()).collect())
}

/// Gaussian blur of `x` `(batch, channels, h, w)` on `taps × taps` pixels, `taps` odd, with zeros around the map.
///
/// Example: [`resize_bilinear`].
pub fn blur_gaussian(x: &Tensor, taps: usize, sigma: f64) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (bell, reach) = (bell(taps, sigma)?, taps / 2);
    let sum: f64 = bell.iter().sum();
    let side = |n: usize| -> Taps {
        (0..n)
            .map(|i| {
                let (first, end) = (i.saturating_sub(reach), (i + reach + 1).min(n));
                (first, (first..end).map(|j| (bell[j + reach - i] / sum) as f32).collect())
            })
            .collect()
    };
    separable(x, &side(h), &side(w))
}

/// [`blur_gaussian`] with the map mirrored at its border pixels, as `torchvision.transforms.GaussianBlur`; sides of more than
/// `taps / 2` pixels.
///
/// Example: [`resize_bilinear`].
pub fn blur_gaussian_mirrored(x: &Tensor, taps: usize, sigma: f64) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (bell, reach) = (bell(taps, sigma)?, taps / 2);
    if h.min(w) <= reach {
        bail!("blur_gaussian_mirrored: {taps} taps on {h}×{w}");
    }
    let sum: f64 = bell.iter().sum();
    let side = |n: usize| -> Taps {
        let mirrored = |j: i64| if j < 0 { -j } else { j.min(2 * (n as i64 - 1) - j) } as usize;
        (0..n).map(|i| gathered(bell.iter().enumerate().map(|(t, b)| (mirrored((i + t) as i64 - reach as i64), b / sum)))).collect()
    };
    separable(x, &side(h), &side(w))
}

/// Sums the weights of each position, and lays them out from the first position to the last.
pub(crate) fn gathered(weights: impl Iterator<Item = (usize, f64)>) -> (usize, Vec<f32>) {
    let mut by_position = BTreeMap::new();
    for (position, weight) in weights {
        *by_position.entry(position).or_insert(0.0) += weight;
    }
    let (first, last) = (by_position.keys().next().copied().unwrap_or(0), by_position.keys().next_back().copied().unwrap_or(0));
    (first, (first..=last).map(|position| by_position.get(&position).copied().unwrap_or(0.0) as f32).collect())
}

/// Each row by `columns`, then each column by `rows`.
pub(crate) fn separable(x: &Tensor, rows: &Taps, columns: &Taps) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let (height, width) = (rows.len(), columns.len());
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::by_host(x, |x| separable(x, rows, columns));
    }
    with_slice(x, |data| {
        let mut output = vec![0f32; batch * channels * height * width];
        let planes = output.par_chunks_mut(height * width).zip(data.par_chunks(h * w));
        planes.with_min_len(tasks_of(2 * height * width)).for_each(|(out, plane)| {
            let mut wide = vec![0f32; h * width];
            for (line, row) in wide.chunks_exact_mut(width).zip(plane.chunks_exact(w)) {
                for (o, (first, weights)) in line.iter_mut().zip(columns) {
                    *o = weights.iter().zip(&row[*first..]).map(|(w, v)| w * v).sum();
                }
            }
            for (line, (first, weights)) in out.chunks_exact_mut(width).zip(rows) {
                for (j, weight) in weights.iter().enumerate() {
                    let row = &wide[(first + j) * width..][..width];
                    line.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
                }
            }
        });
        tensor(output, (batch, channels, height, width))
    })
}

/// Nearest-neighbour resize, as `interpolate(mode="nearest")`: output `i` reads `⌊i · from / to⌋`.
///
/// Example: [`resize_bilinear`].
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if [h, w, height, width].contains(&0) {
        bail!("upsample_nearest: {h}×{w} to {height}×{width}");
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::upsample_nearest(x, height, width);
    }
    let index = |from: usize, to: usize| (0..to).map(|i| (i * from / to).min(from - 1)).collect::<Vec<_>>();
    let (rows, columns) = (index(h, height), index(w, width));
    with_slice(x, |data| {
        let mut output = vec![0f32; batch * channels * height * width];
        let planes = output.par_chunks_mut(height * width).zip(data.par_chunks(h * w));
        planes.with_min_len(tasks_of(2 * height * width)).for_each(|(out, plane)| {
            for (line, &y) in out.chunks_exact_mut(width).zip(&rows) {
                let from = &plane[y * w..][..w];
                line.iter_mut().zip(&columns).for_each(|(o, &x)| *o = from[x]);
            }
        });
        tensor(output, (batch, channels, height, width))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_last_means_are_of_what_is_left() {
        let x = Tensor::arange(0f32, 15.0, &Device::Cpu).unwrap().reshape((1, 1, 3, 5)).unwrap();
        let means = average_pool(&x, 2).unwrap().squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(means, [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]);
    }

    #[test]
    fn constant_maps_stay_constant_and_nearest_repeats() {
        let x = Tensor::full(2.5f32, (1, 2, 5, 7), &Device::Cpu).unwrap();
        let y = resize_bilinear(&x, 8, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y.len() == 64 && y.iter().all(|v| (v - 2.5).abs() < 1e-6));
        let x = Tensor::arange(0f32, 4.0, &Device::Cpu).unwrap().reshape((1, 1, 2, 2)).unwrap();
        let y = upsample_nearest(&x, 4, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y[..8], [0., 0., 1., 1., 0., 0., 1., 1.]);
    }
}
