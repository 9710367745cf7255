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

/// Vector lanes that the loops below are written for; narrower machines split them.
pub(crate) const LANES: usize = 16;

/// Whether the widest instruction set of this CPU, as [`dispatch`] picks it, has fused multiply-add.
pub(crate) fn has_fused() -> bool {
    !matches!(pulp::Arch::new(), pulp::Arch::Scalar)
}

/// `a · b + c`, fused where `FUSED` promises that it is one instruction.
#[inline(always)]
pub(crate) fn madd<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`, within 2 ulp on the range where the result is a normal number; 0 below it.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and a degree-7 polynomial.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to the nearest integer.
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first exact in few bits.
    let r = clamped - n * LN2_HIGH;
    let r = r + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` are those of the integer n: no conversion is needed to build 2^n.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
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
