//! Random integers for a method's windows, shifts and permutations: one stream for each image, stage and step.

/// SplitMix64 (Steele et al. 2014). The stream depends on seed, stage and step alone, so that an image can be made again from
/// any step on, in any batch.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Dice {
    /// The stream of one step; `step` counts the steps that are run in the stage.
    pub(crate) fn new(seed: u64, stage: usize, step: usize) -> Self {
        let place = (1 + ((stage as u64) << 32)).wrapping_add(step as u64);
        Self { state: seed.wrapping_add(GOLDEN.wrapping_mul(place)) }
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An integer in `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// An integer from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }

    /// A number in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    /// The published first outputs of SplitMix64 from state 0, which `seed = −GOLDEN` at step 0 of stage 0 begins with.
    #[test]
    fn known_answers() {
        let mut dice = Dice::new(super::GOLDEN.wrapping_neg(), 0, 0);
        assert_eq!([dice.bits(), dice.bits(), dice.bits()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
        assert!((0..100).all(|_| (-3..=4).contains(&dice.between(-3, 4)) && (0.0..1.0).contains(&dice.uniform())));
        assert_ne!(Dice::new(0, 0, 1).bits(), Dice::new(0, 1, 0).bits());
    }
}
