//! The one thing that is done in the frequency domain.

use crate::view::{tensor, with_slice};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::f64::consts::TAU;

/// Multiplies the four lowest frequencies of every plane of `x` `(batch, channels, h, w)` by `scale`
/// and keeps the real part: those at 0 and −1 in both directions, a 2×2 box in a centred spectrum.
///
/// Equal to a Fourier transform, a product with the box and the way back, at the cost of two passes
/// over the map: only four coefficients change.
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
