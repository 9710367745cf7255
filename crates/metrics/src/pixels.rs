//! What pixels say without a network: how much there is at which frequency, and how sharp it is.
//!
//! ```
//! use scalebench_metrics::pixels::{RINGS, curve};
//! use scalebench_metrics::{Extractor, Image, Preprocess, Sample};
//! // Images of one colour have nothing at any frequency: −20 dB, the least that is told.
//! let grey = |i: u32| Ok(Sample::image(i.to_string(), i, Image::new(64, 64, vec![40 * i as u8; 3 * 64 * 64])?));
//! let samples = (0..3).map(grey).collect::<scalebench_metrics::Result<Vec<_>>>()?;
//! let spectrum = curve(&Extractor::pixels().features(samples, &Preprocess::default(), |_| {})?)?;
//! assert_eq!(spectrum.len(), RINGS);
//! assert!(spectrum.iter().all(|ring| (ring.value + 20.0).abs() < 1e-5));
//! # Ok::<(), scalebench_metrics::Error>(())
//! ```

use std::collections::BTreeMap;

use rustfft::{FftPlanner, num_complex::Complex};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Estimate, FeatureSet, Image, Result};

/// Rings of the spectrum, of equal width from the lowest frequency to Nyquist's.
pub const RINGS: usize = 32;

/// Values of a row: the rings, then the sharpness.
pub(crate) const DIM: usize = RINGS + 1;

/// Extractor name in provenances.
pub(crate) const NAME: &str = "pixels/1";

/// Least side: below it rings would be empty.
const LEAST_SIDE: usize = 2 * RINGS;

/// Powers below this of (grey levels)² count as this: 8-bit rounding alone is 1/12.
const FLOOR: f64 = 1e-2;

/// The radially averaged power spectrum in decibels, then the sharpness.
///
/// *Spectrum*: luma minus its mean under a Hann window w on both axes, |FFT|² / Σw², its mean over each of [`RINGS`] rings of
/// equal width in |f| from 0 (left out) to ½ cycle a pixel, as 10 log₁₀. White noise of variance σ² is 10 log₁₀ σ² at all sizes and
/// frequencies. Frequencies beyond Nyquist's of one axis, the corners, are left out.
///
/// *Sharpness*: log₁₀ of the variance of the Laplacian (four neighbours) of luma, over all pixels but the border (Pech-Pacheco et al.
/// 2000), plus the same floor.
pub(crate) fn row(image: &Image, name: &str) -> Result<Vec<f32>> {
    let (width, height) = (image.width, image.height);
    if width.min(height) < LEAST_SIDE {
        let reason = format!("{name} is {width}x{height}, and a power spectrum needs {LEAST_SIDE} pixels a side");
        return Err(Error::BadPreprocess(reason));
    }
    let luma: Vec<f64> = image.luma().into_iter().map(f64::from).collect();
    let mut row = spectrum(&luma, width, height);
    row.push(sharpness(&luma, width, height));
    Ok(row.into_iter().map(|value| value as f32).collect())
}

/// The mean spectrum of a set in decibels, each ring with its 95 % interval over images (Student's t; crops of one image count as one).
///
/// # Errors
///
/// If the set is not of [`Extractor::pixels`](crate::Extractor::pixels), or of one image.
///
/// Example: [this module](self).
pub fn curve(set: &FeatureSet) -> Result<Vec<Estimate>> {
    let level = 0.95;
    let mut images: BTreeMap<u32, ([f64; RINGS], f64)> = BTreeMap::new();
    if set.dim != DIM {
        return Err(Error::BadPreprocess(format!("a spectrum is of pixels, found {}", set.provenance.extractor)));
    }
    for (row, group) in set.data.chunks(set.dim).zip(&set.groups) {
        let (sums, n) = images.entry(*group).or_insert(([0.0; RINGS], 0.0));
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        *n += 1.0;
    }
    let n = images.len();
    if n < 2 {
        return Err(Error::TooFewBlocks { found: n, blocks: 2 });
    }
    let t = StudentsT::new(0.0, 1.0, n as f64 - 1.0).map_err(|_| Error::BadLevel { level })?.inverse_cdf((1.0 + level) / 2.0);
    let ring = |k: usize| {
        let values = || images.values().map(|(sums, rows)| sums[k] / rows);
        let mean = values().sum::<f64>() / n as f64;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0);
        let std_error = (variance / n as f64).sqrt();
        Estimate { value: mean, lo: mean - t * std_error, hi: mean + t * std_error, level, n, std_error }
    };
    Ok((0..RINGS).map(ring).collect())
}

fn spectrum(luma: &[f64], width: usize, height: usize) -> Vec<f64> {
    let mean = luma.iter().sum::<f64>() / luma.len() as f64;
    let hann = |n: usize| -> Vec<f64> { (0..n).map(|i| (std::f64::consts::PI * (i as f64 + 0.5) / n as f64).sin().powi(2)).collect() };
    let (across, down) = (hann(width), hann(height));
    let mut energy = 0.0;
    let mut rows: Vec<Complex<f64>> = Vec::with_capacity(luma.len());
    for (y, line) in luma.chunks_exact(width).enumerate() {
        for (x, value) in line.iter().enumerate() {
            let weight = across[x] * down[y];
            energy += weight * weight;
            rows.push(Complex::new((value - mean) * weight, 0.0));
        }
    }
    let mut planner = FftPlanner::new();
    planner.plan_fft_forward(width).process(&mut rows);
    let mut columns: Vec<Complex<f64>> =
        (0..width).flat_map(|x| (0..height).map(move |y| (x, y))).map(|(x, y)| rows[y * width + x]).collect();
    planner.plan_fft_forward(height).process(&mut columns);
    let frequency = |k: usize, n: usize| k.min(n - k) as f64 / n as f64;
    let mut rings = vec![(0.0, 0.0); RINGS];
    for (i, value) in columns.iter().enumerate() {
        let radius = frequency(i / height, width).hypot(frequency(i % height, height));
        if radius > 0.0 && radius <= 0.5 {
            let ring = ((2.0 * radius * RINGS as f64).ceil() as usize).clamp(1, RINGS) - 1;
            rings[ring].0 += value.norm_sqr() / energy;
            rings[ring].1 += 1.0;
        }
    }
    rings.into_iter().map(|(sum, n): (f64, f64)| 10.0 * (sum / n.max(1.0)).max(FLOOR).log10()).collect()
}

fn sharpness(luma: &[f64], width: usize, height: usize) -> f64 {
    let (mut sum, mut squares) = (0.0, 0.0);
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let at = y * width + x;
            let laplacian = luma[at - 1] + luma[at + 1] + luma[at - width] + luma[at + width] - 4.0 * luma[at];
            sum += laplacian;
            squares += laplacian * laplacian;
        }
    }
    let n = ((width - 2) * (height - 2)) as f64;
    (squares / n - (sum / n).powi(2)).max(FLOOR).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::keyed_interval;
    use crate::test_data::close;

    fn grey(width: usize, height: usize, value: impl Fn(usize, usize) -> f64) -> Image {
        let rgb = (0..width * height).flat_map(|i| [value(i % width, i / width).round().clamp(0.0, 255.0) as u8; 3]).collect();
        Image::new(width, height, rgb).unwrap()
    }

    #[test]
    fn white_noise_is_its_variance_at_every_frequency_and_size() {
        for (width, height) in [(128, 128), (96, 160)] {
            // Even from 78 to 178: variance (101² − 1) / 12.
            let image = grey(width, height, |x, y| 78.0 + keyed_interval(&[x as u64, y as u64], 100) as f64);
            let row = row(&image, "noise").unwrap();
            assert_eq!(row.len(), DIM);
            let expected = 10.0 * (10200.0f64 / 12.0).log10();
            for (k, value) in row[..RINGS].iter().enumerate().skip(1) {
                // Of a ring's 2πk frequencies or more half are independent, each with a deviation as large as its mean: three of their mean's.
                let most = 3.0 * 10.0 * std::f64::consts::LOG10_E / (std::f64::consts::PI * k as f64).sqrt();
                assert!((f64::from(*value) - expected).abs() < most, "{width}x{height} ring {k}: {value} for {expected}");
            }
            // A Laplacian's weights squared sum to 20.
            close("sharpness", f64::from(row[RINGS]), (20.0 * 10200.0f64 / 12.0).log10(), 0.02);
        }
    }

    #[test]
    fn a_wave_is_in_its_ring_and_blur_takes_what_is_fine() {
        let wave = grey(128, 128, |x, _| 128.0 + 60.0 * (std::f64::consts::TAU * 20.5 / 128.0 * x as f64).sin());
        let spectrum = row(&wave, "wave").unwrap();
        let largest = (0..RINGS).max_by(|a, b| spectrum[*a].total_cmp(&spectrum[*b])).unwrap();
        assert_eq!(largest, 10, "20.5 of 64 cycles are ring 10 of 32");
        let noise = |x: usize, y: usize| 78.0 + keyed_interval(&[x as u64, y as u64], 100) as f64;
        let blurred = grey(128, 128, |x, y| (0..9).map(|i| noise(x + i % 3, y + i / 3)).sum::<f64>() / 9.0);
        let (sharp, soft) = (row(&grey(128, 128, noise), "a").unwrap(), row(&blurred, "b").unwrap());
        assert!(soft[RINGS] < sharp[RINGS] - 0.8, "{} {}", soft[RINGS], sharp[RINGS]);
        assert!(soft[RINGS - 10] < sharp[RINGS - 10] - 10.0 && (soft[2] - sharp[2]).abs() < 1.5);
        let flat = row(&grey(64, 64, |_, _| 7.0), "flat").unwrap();
        assert!(flat[..RINGS].iter().all(|v| *v == -20.0) && flat[RINGS] == -2.0);
        assert!(row(&grey(63, 64, |_, _| 7.0), "small.png").unwrap_err().to_string().contains("small.png is 63x64"));
    }
}
