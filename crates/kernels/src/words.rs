//! From `f32` to the words of [`Precision`].

use crate::product::Precision;
use crate::simd::dispatch;

/// The nearest `bf16`, ties to even; a NaN stays one.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    ((if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16) as u16
}

/// One word of two numbers, `low` first in the summed dimension.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> u32 {
    u32::from(bf16(low)) | u32::from(bf16(high)) << 16
}

/// The numbers of one word, those of [`pair`].
#[inline(always)]
pub(crate) fn apart(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

// Index loops below: the closures of iterator chains are functions of their own, which need not be compiled along
// with the wide instructions of `dispatch`.

/// Words that pair neighbours in `from`; a last number without a neighbour is paired with 0.
#[inline(always)]
pub(crate) fn neighbours(from: &[f32], to: &mut [u32]) {
    let n = from.len() / 2;
    let (pairs, to_pairs) = (&from[..2 * n], &mut to[..n]);
    for i in 0..n {
        to_pairs[i] = pair(pairs[2 * i], pairs[2 * i + 1]);
    }
    if from.len() % 2 == 1 {
        to[n] = pair(from[2 * n], 0.0);
    }
}

/// Words that join `low` and `high` number by number; an empty `high` is zeros.
#[inline(always)]
pub(crate) fn joined(low: &[f32], high: &[f32], to: &mut [u32]) {
    let to = &mut to[..low.len()];
    if high.is_empty() {
        for i in 0..low.len() {
            to[i] = pair(low[i], 0.0);
        }
    } else {
        let high = &high[..low.len()];
        for i in 0..low.len() {
            to[i] = pair(low[i], high[i]);
        }
    }
}

/// The bits of `from`.
#[inline(always)]
pub(crate) fn bits(from: &[f32], to: &mut [u32]) {
    let to = &mut to[..from.len()];
    for i in 0..from.len() {
        to[i] = from[i].to_bits();
    }
}

/// The bits of the nearest `bf16` to each number of `from`, as an `f32`.
#[inline(always)]
pub(crate) fn rounded(from: &[f32], to: &mut [u32]) {
    let to = &mut to[..from.len()];
    for i in 0..from.len() {
        to[i] = u32::from(bf16(from[i])) << 16;
    }
}

/// Rows of `from` `(rows, k)` as words `(rows, words of k)`, for a left operand.
pub(crate) fn rows(from: &[f32], k: usize, precision: Precision, to: &mut [u32]) {
    dispatch(
        #[inline(always)]
        || match precision {
            Precision::F32 => bits(from, to),
            Precision::Bf16 => {
                for (from, to) in from.chunks_exact(k).zip(to.chunks_exact_mut(k.div_ceil(2))) {
                    neighbours(from, to);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition: no other number of eight bits lies nearer, and ties have an even last bit.
    #[test]
    fn rounds_to_the_nearest_and_keeps_what_is_special() {
        let value = |b: u16| f32::from_bits(u32::from(b) << 16);
        for i in 0..1_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if !x.is_finite() || x.abs() > 3.3e38 {
                continue;
            }
            let b = bf16(x);
            let distance = |b: u16| (f64::from(value(b)) - f64::from(x)).abs();
            for other in [b.wrapping_sub(1), b.wrapping_add(1)] {
                let nearer = distance(other) < distance(b);
                assert!(!nearer && (distance(other) > distance(b) || b.is_multiple_of(2)), "{x:e}");
            }
        }
        assert!(value(bf16(f32::NAN)).is_nan() && value(bf16(f32::from_bits(0x7f80_0001))).is_nan());
        assert_eq!(value(bf16(f32::INFINITY)), f32::INFINITY);
        assert_eq!((pair(1.0, -2.0), pair(0.0, 0.0)), (0xc000_3f80, 0));
        assert_eq!(apart(pair(1.0, -2.0)), [1.0, -2.0]);
    }
}
