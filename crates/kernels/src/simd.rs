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

/// Adding it rounds a small number to the nearest integer, which then fills the low bits: 1.5 · 2^23.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 = `LN2_HIGH` − `LN2_LOW`, the first exact in few bits (Cody and Waite).
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = 2.121_944_4e-4;
/// (e^r − 1 − r) / r² for |r| ≤ ln 2 / 2, highest power first (Cephes).
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x`, within 2 ulp on the range where the result is a normal number; 0 below it.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * LN2_HIGH;
    let r = r + n * LN2_LOW;
    let p = POLYNOMIAL.iter().fold(0.0, |p, c| p * r + c);
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` are those of the integer n: no conversion is needed to build 2^n.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * scale }
}

/// 2^r for |r| ≤ 1/2, highest power first: of the polynomials that are 1 at 0, the one of least relative error, 2.9e-6.
const EXP2: [f32; 5] = [9.582_853e-3, 5.590_642_6e-2, 2.402_41e-1, 6.931_242e-1, 1.0];

/// `2^x` of a vector of numbers from −126 to 127, within 3e-6. Exactly 1 at 0.
#[inline(always)]
pub(crate) fn exp2_simd<S: pulp::Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |v: f32| simd.splat_f32s(v);
    let shifted = simd.add_f32s(x, splat(MAGIC));
    let r = simd.sub_f32s(x, simd.sub_f32s(shifted, splat(MAGIC)));
    let mut p = splat(EXP2[0]);
    for c in &EXP2[1..] {
        p = simd.mul_add_f32s(p, r, splat(*c));
    }
    // Adding the integer to the exponent's bits multiplies by its power of two: p is in [0.7, 1.5).
    let bits = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), bits))
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
    struct Exp2<'a>(&'a mut [f32]);

    impl pulp::WithSimd for Exp2<'_> {
        type Output = ();

        fn with_simd<S: pulp::Simd>(self, simd: S) {
            S::as_mut_simd_f32s(self.0).0.iter_mut().for_each(|x| *x = super::exp2_simd(simd, *x));
        }
    }

    #[test]
    fn exp2_is_within_three_millionths() {
        let x: Vec<f32> = (-126 * 4096..127 * 4096).map(|i| i as f32 / 4096.0).collect();
        let mut y = x.clone();
        pulp::Arch::new().dispatch(Exp2(&mut y));
        for (x, y) in x.iter().zip(y) {
            let exact = f64::from(*x).exp2();
            assert!(((f64::from(y) - exact) / exact).abs() < 3e-6, "{x}: {y}");
            assert!(x.fract() != 0.0 || y == x.exp2(), "{x}: {y}");
        }
    }

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
