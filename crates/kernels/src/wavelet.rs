//! The coarse part of an image in a wavelet basis.

use crate::resize::{gathered, separable};
use candle_core::{Result, Tensor, bail};

/// Scaling filter of Daubechies' wavelet with four vanishing moments (Daubechies 1992, table 6.1), which PyWavelets calls `db4`.
const SCALING: [f64; 8] = [
    0.230_377_813_308_896_5,
    0.714_846_570_552_915_7,
    0.630_880_767_929_859,
    -0.027_983_769_416_859_854,
    -0.187_034_811_719_093_1,
    0.030_841_381_835_560_764,
    0.032_883_011_666_885_2,
    -0.010_597_401_785_069_032,
];

/// What the scaling coefficients alone of a one-level transform of `x` `(batch, channels, h, w)` stand for: the same shape, both sides
/// even. The image is continued symmetrically at its edges (`mode="symmetric"`: each border pixel twice).
///
/// Replacing the coefficients (LL) of an image by another's and transforming back is `x + coarse(y − x)`.
///
/// ```
/// use candle_core::{DType, Device};
/// // What has no details is its own coarse part.
/// let ones = candle_core::Tensor::ones((1, 1, 8, 10), DType::F32, &Device::Cpu)?;
/// let coarse = scalebench_kernels::wavelet_coarse(&ones)?.flatten_all()?.to_vec1::<f32>()?;
/// assert!(coarse.iter().all(|v| (v - 1.0).abs() < 1e-6));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn wavelet_coarse(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h % 2 != 0 || w % 2 != 0 || h.min(w) < SCALING.len() {
        bail!("wavelet_coarse: {h}×{w}, expected even sides of at least {}", SCALING.len());
    }
    let side = |n: usize| (0..n).map(|i| gathered(weights(i, n).into_iter())).collect();
    separable(x, &side(h), &side(w))
}

/// Which positions of `n` the one at `i` is made from: analysis, every second coefficient, synthesis.
fn weights(i: usize, n: usize) -> Vec<(usize, f64)> {
    let taps = SCALING.len();
    let mirrored = |j: i64| if j < 0 { -1 - j } else { j.min(2 * n as i64 - 1 - j) } as usize;
    let mut found = Vec::new();
    for k in 0..(n + taps - 1) / 2 {
        let Some(synthesis) = (i + taps - 2).checked_sub(2 * k).and_then(|t| SCALING.get(t)) else { continue };
        for (t, analysis) in SCALING.iter().rev().enumerate() {
            found.push((mirrored(2 * k as i64 + 1 - t as i64), synthesis * analysis));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(&values.repeat(8), (1, 1, 8, values.len()), &Device::Cpu).unwrap()
    }

    fn coarse(values: &[f32]) -> Vec<f32> {
        wavelet_coarse(&row(values)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[..values.len()].to_vec()
    }

    #[test]
    fn the_filter_is_orthonormal() {
        let product = |shift: usize| SCALING.iter().zip(&SCALING[shift..]).map(|(a, b)| a * b).sum::<f64>();
        assert!((SCALING.iter().sum::<f64>() - std::f64::consts::SQRT_2).abs() < 1e-10);
        assert!((product(0) - 1.0).abs() < 1e-10 && (1..4).all(|k| product(2 * k).abs() < 1e-10));
    }

    /// Four vanishing moments: cubics have no detail, but where their continuation has an edge.
    #[test]
    fn cubics_are_coarse() {
        let cubic: Vec<f32> = (0..48).map(|i| (i as f32 / 24.0 - 1.0).powi(3) + 0.5).collect();
        for (i, (a, b)) in coarse(&cubic).iter().zip(&cubic).enumerate().skip(8).take(32) {
            assert!((a - b).abs() < 1e-5, "{i}: {a} {b}");
        }
        assert!(coarse(&[0.7; 16]).iter().all(|v| (v - 0.7).abs() < 1e-6));
    }

    /// `pywt.idwt(pywt.dwt(x, "db4", "symmetric")[0], None, "db4", "symmetric")` of PyWavelets 1.9.0.
    #[test]
    fn as_pywavelets() {
        let x: Vec<f32> = (0..12).map(|i| ((i * i * 7 + 3 * i) % 11) as f32).collect();
        let want = [1.53403, 5.39995, 5.80114, 3.74585, 3.32733, 3.51815, 4.01687, 5.40198, 5.19563, 3.34083, 2.04219, 0.82510];
        let found = coarse(&x);
        assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
    }
}
