//! Random numbers that are part of a result's definition: numpy's legacy generator and keyed draws.
//!
//! ```
//! use scalebench_metrics::random::{RandomState, keyed};
//! // `numpy.random.RandomState(0).permutation(10)`.
//! assert_eq!(RandomState::new(0).permutation(10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
//! assert_eq!(keyed(&[3, 1]), keyed(&[3, 1]));
//! assert_ne!(keyed(&[3, 1]), keyed(&[1, 3]));
//! ```

use scalebench_kernels::MersenneTwister;

/// The Mersenne Twister as `numpy.random.RandomState(seed)` runs it.
///
/// Only what metrics need: `choice` and [`RandomState::permutation`] give the same
/// indices as numpy, to the last one.
///
/// Example: [this module](self).
pub struct RandomState {
    twister: MersenneTwister,
}

impl RandomState {
    /// `numpy.random.RandomState(seed)`.
    /// Example: [`random`](crate::random).
    pub fn new(seed: u32) -> Self {
        Self { twister: MersenneTwister::new(seed) }
    }

    /// The next 32 bits.
    pub(crate) fn next_u32(&mut self) -> u32 {
        self.twister.next_u32()
    }

    /// Uniform in `0..=max` by masked rejection, the legacy `random_interval`.
    fn interval(&mut self, max: u32) -> u32 {
        let mask = max.checked_ilog2().map_or(0, |bits| u32::MAX >> (31 - bits));
        if mask == 0 {
            return 0;
        }
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// `permutation(n)`; `n` must fit 32 bits.
    /// Example: [`random`](crate::random).
    pub fn permutation(&mut self, n: u32) -> Vec<usize> {
        self.choice(n, n as usize)
    }

    /// `choice(n, count, replace=False)`: the head of a Fisher–Yates permutation of `0..n`.
    ///
    /// `n` must fit 32 bits (numpy draws 64 bits beyond that); `count` is cut at `n`.
    pub(crate) fn choice(&mut self, n: u32, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n as usize).collect();
        for i in (1..n).rev() {
            let j = self.interval(i);
            order.swap(i as usize, j as usize);
        }
        order.truncate(count);
        order
    }
}

/// 64 mixed bits of a key: the SplitMix64 finaliser chained over the words.
///
/// A keyed draw, unlike a stream, does not depend on what was drawn before, so a sharded or resumed
/// run sees the same crops.
///
/// Example: [this module](self).
pub fn keyed(words: &[u64]) -> u64 {
    words.iter().fold(0, |state, &word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A keyed draw from `0..=max`.
pub(crate) fn keyed_interval(words: &[u64], max: usize) -> usize {
    ((u128::from(keyed(words)) * (max as u128 + 1)) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_values() {
        let golden = crate::test_data::golden();
        let first = RandomState::new(2020).next_u32();
        assert_eq!(u64::from(first), golden["mt19937_seed2020_u32"][0]);
        let permutation = RandomState::new(2020).permutation(10);
        assert_eq!(serde_json::json!(permutation), golden["perm10_seed2020"]);
        let mut state = RandomState::new(2020);
        for row in 0..2 {
            let head = &state.choice(1500, 1000)[..5];
            assert_eq!(serde_json::json!(head), golden["choice_1500_5_x2"][row]);
        }
    }
}
