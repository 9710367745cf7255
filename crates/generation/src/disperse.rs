//! Kernel dispersion: the linear map from a small kernel to a larger one (ScaleCrafter §3.3).
//!
//! The large kernel `k'` must act on an upsampled map as the small kernel `k` acts on the map itself
//! (structure), and on the map itself as `k` does (pixels). Both are linear in `k'`, for every input,
//! so one least-squares problem gives `k' = R k` for all kernels at once.

use crate::error::{Error, Result};
use faer::prelude::SolveLstsq;
use faer::{Mat, linalg::solvers::Qr};

/// The settings of one dispersion transform. The method's own are [`Dispersion::PAPER`].
///
/// Example: [`disperse`](fn@disperse).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispersion {
    /// Side of the trained kernel.
    pub small: usize,
    /// Side of the dispersed kernel.
    pub large: usize,
    /// Side of the map on which the two are compared.
    pub input: usize,
    /// How much the map is enlarged.
    pub scale: usize,
    /// Weight of the pixel equations. It multiplies the equations, so it enters the objective squared.
    pub eta: f64,
}

impl Dispersion {
    /// The call that the authors recommend and whose result they ship.
    pub const PAPER: Dispersion = Dispersion { small: 3, large: 5, input: 3, scale: 2, eta: 0.05 };
}

/// Most terms of all equations together; the paper's have 10 125 by the bound that is checked.
const MOST_TERMS: u128 = 1 << 24;

/// Solves for the transform `R`, `(large², small²)`, row-major, taps in row-major order:
/// `k'[m] = Σ_n R[m, n] k[n]`.
///
/// For every unit impulse in an `input × input` map, and every position of the enlarged map (bilinear,
/// corners kept, side `scale · (input − 1) + 1`), the large kernel's response to the enlarged impulse
/// equals the enlarged response of the small kernel; for every position of the map itself, weighted
/// by `eta`, the two responses are equal. Borders are zero-padded.
///
/// ```
/// use scalebench_generation::{Dispersion, disperse};
/// // Where nothing is enlarged, the larger kernel is the smaller one with zeros around it.
/// let transform = disperse(Dispersion { scale: 1, ..Dispersion::PAPER })?;
/// for (m, row) in transform.chunks_exact(9).enumerate() {
///     for (n, found) in row.iter().enumerate() {
///         let inside = m == 5 * (n / 3 + 1) + n % 3 + 1;
///         assert!((found - f64::from(u8::from(inside))).abs() < 1e-9);
///     }
/// }
/// # Ok::<(), scalebench_generation::Error>(())
/// ```
pub fn disperse(settings: Dispersion) -> Result<Vec<f64>> {
    let Dispersion { small, large, input, scale, eta } = settings;
    let wrong = |key: &'static str, found: String, expected: &str| Err(Error::Request { key, found, expected: expected.to_owned() });
    if small % 2 == 0 {
        return wrong("small", small.to_string(), "an odd kernel side");
    }
    if large % 2 == 0 || large < small {
        return wrong("large", large.to_string(), "an odd kernel side, at least the small one");
    }
    if input < 2 || scale < 1 {
        return wrong("input", format!("{input} at scale {scale}"), "at least 2, at a scale of at least 1");
    }
    // Of both kernels' responses to every impulse, at every position of both maps.
    let squared = |n: usize| (n as u128).saturating_mul(n as u128);
    let enlarged = squared(scale).saturating_mul(squared(input));
    let terms = squared(input).saturating_mul(enlarged.saturating_add(squared(input))).saturating_mul(squared(large));
    if terms > MOST_TERMS {
        let found = format!("{input} at scale {scale} for kernels of {large}");
        return wrong("input", found, &format!("a problem of at most {MOST_TERMS} terms; the paper's has 10 125"));
    }
    if !(eta.is_finite() && eta > 0.0) {
        return wrong("eta", eta.to_string(), "a positive number");
    }

    let side = scale * (input - 1) + 1;
    let upsample = upsampling(input, scale);
    let mut rows: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
    for impulse in 0..input * input {
        let map: Vec<f64> = (0..input * input).map(|i| f64::from(u8::from(i == impulse))).collect();
        // What each tap of the small kernel sees, per output position: (input², small²).
        let seen_small = neighbourhoods(&map, input, small);
        let enlarged = enlarge(&upsample, &map, input);
        let seen_large = neighbourhoods(&enlarged, side, large);
        for y in 0..side {
            for x in 0..side {
                let mut target = vec![0.0; small * small];
                for i in 0..input {
                    for j in 0..input {
                        let weight = upsample[y * input + i] * upsample[x * input + j];
                        for (t, s) in target.iter_mut().zip(&seen_small[i * input + j]) {
                            *t += weight * s;
                        }
                    }
                }
                rows.push((seen_large[y * side + x].clone(), target));
            }
        }
        for (large, small) in neighbourhoods(&map, input, large).into_iter().zip(seen_small) {
            let weigh = |v: Vec<f64>| v.into_iter().map(|v| eta * v).collect();
            rows.push((weigh(large), weigh(small)));
        }
    }
    rows.retain(|(a, b)| a.iter().chain(b).any(|v| *v != 0.0));

    let (m, n) = (large * large, small * small);
    if rows.len() < m {
        return wrong("input", input.to_string(), "a map large enough to determine the large kernel");
    }
    let a = Mat::from_fn(rows.len(), m, |i, j| rows[i].0[j]);
    let b = Mat::from_fn(rows.len(), n, |i, j| rows[i].1[j]);
    let r = Qr::new(a.as_ref()).solve_lstsq(&b);
    let transform: Vec<f64> = (0..m * n).map(|i| r[(i / n, i % n)]).collect();
    if transform.iter().any(|v| !v.is_finite()) {
        return wrong("input", input.to_string(), "a map large enough to determine the large kernel");
    }
    Ok(transform)
}

/// Bilinear interpolation along one axis, corners kept: `(scale · (n − 1) + 1, n)`, row-major.
fn upsampling(n: usize, scale: usize) -> Vec<f64> {
    let side = scale * (n - 1) + 1;
    let mut matrix = vec![0.0; side * n];
    for y in 0..side {
        let (i, rest) = (y / scale, y % scale);
        let fraction = rest as f64 / scale as f64;
        matrix[y * n + i] += 1.0 - fraction;
        if rest > 0 {
            matrix[y * n + i + 1] += fraction;
        }
    }
    matrix
}

fn enlarge(upsample: &[f64], map: &[f64], n: usize) -> Vec<f64> {
    let side = upsample.len() / n;
    let mut out = vec![0.0; side * side];
    for y in 0..side {
        for x in 0..side {
            for i in 0..n {
                for j in 0..n {
                    out[y * side + x] += upsample[y * n + i] * upsample[x * n + j] * map[i * n + j];
                }
            }
        }
    }
    out
}

/// For every position of a square map, the values under a `kernel × kernel` window, zero outside.
fn neighbourhoods(map: &[f64], n: usize, kernel: usize) -> Vec<Vec<f64>> {
    let half = (kernel / 2) as isize;
    let at = |y: isize, x: isize| {
        let inside = (0..n as isize).contains(&y) && (0..n as isize).contains(&x);
        if inside { map[y as usize * n + x as usize] } else { 0.0 }
    };
    let mut all = Vec::with_capacity(n * n);
    for y in 0..n as isize {
        for x in 0..n as isize {
            let window = (-half..=half).flat_map(|dy| (-half..=half).map(move |dx| (dy, dx)));
            all.push(window.map(|(dy, dx)| at(y + dy, x + dx)).collect());
        }
    }
    all
}
