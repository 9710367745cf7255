//! What is done in the frequency domain.

use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use rustfft::{Fft, FftPlanner, num_complex::Complex};
use std::f64::consts::TAU;

/// Multiplies the four lowest frequencies of every plane of `x` `(batch, channels, h, w)` by `scale`
/// and keeps the real part: those at 0 and −1 in both directions, a 2×2 box in a centred spectrum.
///
/// Equal to a Fourier transform, a product with the box and the way back, at the cost of two passes
/// over the map: only four coefficients change.
///
/// Example: [`low_pass`].
pub fn scale_low_frequencies(x: &Tensor, scale: f64) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::by_host(x, |x| scale_low_frequencies(x, scale));
    }
    // cos and sin of 2πi/n: the wave of frequency −1.
    let wave = |n: usize| -> Vec<(f64, f64)> { (0..n).map(|i| (TAU * i as f64 / n as f64).sin_cos()).map(|(s, c)| (c, s)).collect() };
    let (rows, columns) = (wave(h), wave(w));
    let gain = (scale - 1.0) / (h * w) as f64;
    with_slice(x, |data| {
        let mut output = vec![0f32; data.len()];
        output.par_chunks_mut(h * w).zip(data.par_chunks(h * w)).for_each(|(out, plane)| {
            // F(ky, kx) = Σ x e^{−2πi(ky y/h + kx x/w)}; at −1 the exponent is +2πi….
            let mut row_sums = Vec::with_capacity(h);
            for row in plane.chunks_exact(w) {
                let mut sum = (0f64, 0f64, 0f64);
                for (&v, &(c, s)) in row.iter().zip(&columns) {
                    let v = f64::from(v);
                    sum = (sum.0 + v, sum.1 + v * c, sum.2 + v * s);
                }
                row_sums.push(sum);
            }
            let (mut f00, mut f10, mut f01, mut f11) = (0f64, (0f64, 0f64), (0f64, 0f64), (0f64, 0f64));
            for (&(plain, re, im), &(c, s)) in row_sums.iter().zip(&rows) {
                f00 += plain;
                f10 = (f10.0 + plain * c, f10.1 + plain * s);
                f01 = (f01.0 + re, f01.1 + im);
                f11 = (f11.0 + re * c - im * s, f11.1 + re * s + im * c);
            }
            for (y, (out, row)) in out.chunks_exact_mut(w).zip(plane.chunks_exact(w)).enumerate() {
                // The real part of F(k) e^{2πi k·n}, with k = −1: Re F cos + Im F sin.
                let (c, s) = rows[y];
                let base = f00 + f10.0 * c + f10.1 * s;
                let across = (f01.0 + f11.0 * c + f11.1 * s, f01.1 + f11.1 * c - f11.0 * s);
                for ((o, &v), &(c, s)) in out.iter_mut().zip(row).zip(&columns) {
                    *o = (f64::from(v) + gain * (base + across.0 * c + across.1 * s)) as f32;
                }
            }
        });
        tensor(output, x.shape())
    })
}

/// Multiplies the spectrum of every plane of `x` `(batch, channels, h, w)` by `rows ⊗ columns` and keeps the real part. Planes are
/// padded with zeros at the bottom and right to `rows.len() × columns.len()` and cut back; masks are in the order of a shifted
/// spectrum, frequency zero at `⌊n / 2⌋`.
///
/// ```
/// use candle_core::{DType, Device};
/// use scalebench_kernels::{Tensor, low_pass, scale_low_frequencies};
/// let values = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
/// let x = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 1, 4, 4))?;
/// // Frequency zero alone is the mean.
/// let only_zero = [0.0, 0.0, 1.0, 0.0];
/// assert!(values(low_pass(&x, &only_zero, &only_zero)?)?.iter().all(|v| (v - 7.5).abs() < 1e-5));
/// // A constant has no other.
/// let ones = Tensor::ones((1, 1, 4, 4), DType::F32, &Device::Cpu)?;
/// assert!(values(scale_low_frequencies(&ones, 0.25)?)?.iter().all(|v| (v - 0.25).abs() < 1e-6));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn low_pass(x: &Tensor, rows: &[f32], columns: &[f32]) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (height, width) = (rows.len(), columns.len());
    if height < h || width < w {
        bail!("low_pass: a mask of {height}×{width} for maps of {h}×{w}");
    }
    #[cfg(gpu)]
    if crate::gpu::takes(x) {
        return crate::gpu::by_host(x, |x| low_pass(x, rows, columns));
    }
    let unshifted = |mask: &[f32]| -> Vec<f32> { (0..mask.len()).map(|i| mask[(i + mask.len() / 2) % mask.len()]).collect() };
    let (rows, columns) = (unshifted(rows), unshifted(columns));
    let mut planner = FftPlanner::<f32>::new();
    let (down, across) = (
        [planner.plan_fft_forward(height), planner.plan_fft_inverse(height)],
        [planner.plan_fft_forward(width), planner.plan_fft_inverse(width)],
    );
    let transposed = |from: &[Complex<f32>], to: &mut [Complex<f32>], width: usize| {
        let height = from.len() / width;
        for (i, row) in from.chunks_exact(width).enumerate() {
            row.iter().enumerate().for_each(|(j, v)| to[j * height + i] = *v);
        }
    };
    let every = |fft: &dyn Fft<f32>, lines: &mut [Complex<f32>]| fft.process(lines);
    // What keeps the real part alone: the mask's mean with its mirror image. It takes real maps to real ones, so that two of them
    // go through one complex transform.
    let mirrored = |mask: &[f32], i: usize| mask[(mask.len() - i) % mask.len()];
    let half = 0.5 / (height * width) as f32;
    with_slice(x, |data| {
        let mut output = vec![0f32; data.len()];
        output.par_chunks_mut(2 * h * w).zip(data.par_chunks(2 * h * w)).for_each(|(out, planes)| {
            let mut wide = vec![Complex::new(0f32, 0.0); height * width];
            for (line, row) in wide.chunks_exact_mut(width).zip(planes[..h * w].chunks_exact(w)) {
                line.iter_mut().zip(row).for_each(|(o, v)| o.re = *v);
            }
            for (line, row) in wide.chunks_exact_mut(width).zip(planes[h * w..].chunks_exact(w)) {
                line.iter_mut().zip(row).for_each(|(o, v)| o.im = *v);
            }
            let mut high = wide.clone();
            // Below the map there are zeros.
            every(&*across[0], &mut wide[..h * width]);
            transposed(&wide, &mut high, width);
            every(&*down[0], &mut high);
            for (j, line) in high.chunks_exact_mut(height).enumerate() {
                let (column, mirror) = (columns[j] * half, mirrored(&columns, j) * half);
                line.iter_mut().enumerate().for_each(|(i, o)| *o *= rows[i] * column + mirrored(&rows, i) * mirror);
            }
            every(&*down[1], &mut high);
            transposed(&high, &mut wide, height);
            every(&*across[1], &mut wide[..h * width]);
            let (first, second) = out.split_at_mut(h * w);
            for (out, line) in first.chunks_exact_mut(w).zip(wide.chunks_exact(width)) {
                out.iter_mut().zip(line).for_each(|(o, v)| *o = v.re);
            }
            for (out, line) in second.chunks_exact_mut(w).zip(wide.chunks_exact(width)) {
                out.iter_mut().zip(line).for_each(|(o, v)| *o = v.im);
            }
        });
        tensor(output, x.shape())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// A mask of ones is the identity, padded or not; a wave passes by its own factor.
    #[test]
    fn masks_act_on_their_frequency() {
        let (h, w) = (6, 10);
        let wave = |ky: f64, kx: f64| -> Tensor {
            let at = |y: usize, x: usize| (TAU * (ky * y as f64 / h as f64 + kx * x as f64 / w as f64)).cos() as f32;
            let values: Vec<f32> = (0..h).flat_map(|y| (0..w).map(move |x| at(y, x))).collect();
            Tensor::from_vec(values, (1, 1, h, w), &Device::Cpu).unwrap()
        };
        let difference = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let x = wave(1.0, 2.0);
        assert!(difference(&low_pass(&x, &[1.0; 6], &[1.0; 10]).unwrap(), &x) < 1e-6);
        assert!(difference(&low_pass(&x, &[1.0; 9], &[1.0; 16]).unwrap(), &x) < 1e-6);
        // Frequencies ±1 down are at 3 ± 1, ±2 across at 5 ± 2.
        let (mut rows, mut columns) = ([1.0; 6], [1.0; 10]);
        (rows[2], rows[4], columns[3], columns[7]) = (0.5, 0.5, 0.25, 0.25);
        assert!(difference(&low_pass(&x, &rows, &columns).unwrap(), &(&x * 0.125).unwrap()) < 1e-6);
        assert!(low_pass(&x, &rows[1..], &columns).is_err());
    }
    /// Three maps, the last without a partner, against the definition in f64, under a mask without symmetry.
    #[test]
    fn maps_go_in_pairs() {
        let (h, w) = (4, 3);
        let values: Vec<f32> = (0..3 * h * w).map(|i| ((i * 37 % 23) as f32 - 11.0) / 7.0).collect();
        let x = Tensor::from_vec(values.clone(), (1, 3, h, w), &Device::Cpu).unwrap();
        let (rows, columns) = ([0.1f32, 0.9, 1.0, 0.3, 0.7], [0.2f32, 0.6, 1.0, 0.5]);
        let found = low_pass(&x, &rows, &columns).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (height, width) = (rows.len(), columns.len());
        for (plane, found) in values.chunks_exact(h * w).zip(found.chunks_exact(h * w)) {
            for (at, found) in found.iter().enumerate() {
                let mut want = 0.0;
                for (i, row) in rows.iter().enumerate() {
                    for (j, column) in columns.iter().enumerate() {
                        // The wave of index i has the frequency i − ⌊height / 2⌋.
                        let (ky, kx) = (i as f64 - (height / 2) as f64, j as f64 - (width / 2) as f64);
                        for (from, v) in plane.iter().enumerate() {
                            let (dy, dx) = ((at / w) as f64 - (from / w) as f64, (at % w) as f64 - (from % w) as f64);
                            let phase = TAU * (ky * dy / height as f64 + kx * dx / width as f64);
                            want += f64::from(*v) * f64::from(row * column) * phase.cos() / (height * width) as f64;
                        }
                    }
                }
                assert!((want - f64::from(*found)).abs() < 1e-5, "{want} {found}");
            }
        }
    }
}
