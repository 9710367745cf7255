//! The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), which PyTorch's and numpy's generators share.

const N: usize = 624;
const M: usize = 397;

/// Its state, as `init_genrand` seeds it.
///
/// ```
/// use scalebench_kernels::MersenneTwister;
/// // The first number from the seed of the authors' own program.
/// assert_eq!(MersenneTwister::new(5489).next_u32(), 3_499_211_612);
/// ```
#[derive(Debug, Clone)]
pub struct MersenneTwister {
    state: [u32; N],
    next: usize,
}

impl MersenneTwister {
    /// From a seed of 32 bits.
    /// Example: [`MersenneTwister`].
    pub fn new(seed: u32) -> Self {
        let mut state = [0; N];
        state[0] = seed;
        for i in 1..N {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = previous.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// The next 32 bits.
    /// Example: [`MersenneTwister`].
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = (y & 1).wrapping_neg() & 0x9908_b0df;
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard demands this of `std::mt19937` ([rand.predef]).
    #[test]
    fn the_ten_thousandth_number_is_the_standards() {
        let mut twister = MersenneTwister::new(5489);
        assert_eq!((0..10_000).map(|_| twister.next_u32()).last(), Some(4_123_659_995));
    }
}
