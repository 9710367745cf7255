//! Scalar functions written so that the compiler vectorises them, and the run-time dispatch that
//! compiles them once per instruction set.

/// Runs `f` compiled for the widest instruction set of this CPU.
///
/// `f` and everything it calls must be `#[inline(always)]` to be compiled along.
#[inline(always)]
pub(crate) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Call<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}

/// `e^x`, within 2 ulp on the range where the result is a normal number; 0 below it.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and a degree-7 polynomial.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to the nearest integer.
    let clamped = x.clamp(-87.0, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + MAGIC) - MAGIC;
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_15e-4f32;
    let p = p * r + 1.398_199_95e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// `x · σ(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26 has 1.5e-7).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    // Numerical Recipes' rational Chebyshev form would be exact to 1.2e-7 relative; the A&S form is
    // evaluated in f64 here because its cancellation near zero costs digits in f32.
    let a = f64::from(x.abs());
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let poly = t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let y = 1.0 - poly * f64::from(exp(-(x * x)));
    (y as f32).copysign(x)
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in -8_600_000..8_700_000 {
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(super::exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
    }
}
