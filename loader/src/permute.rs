//! A permutation of `0..n` in constant memory: a Feistel cipher over the next even power of two, walked until it lands.
//!
//! In: a size and a keyed generator. Out: position → row, and back. Never: a table, a buffer, state.
//! Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking); DATA-PLANE.md 7.

use imp_schemas::rng::Rng;

/// Rounds: four make a Feistel network a good permutation of a large domain; small ones want a few more.
const N_ROUNDS: usize = 6;

/// A bijection of `0..n`. Holds: `n >= 1`.
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; N_ROUNDS],
}

impl Permutation {
    /// A permutation of `0..n.max(1)` that `rng` decides.
    pub fn new(n: u64, rng: &mut Rng) -> Self {
        let n = n.max(1);
        let bits = u64::BITS - (n - 1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| rng.next_u64()) }
    }

    /// Where position `i` goes; `i` must be below `n`.
    pub fn at(&self, i: u64) -> u64 {
        let mut x = i;
        loop {
            x = self.encrypt(x);
            if x < self.n {
                return x;
            }
        }
    }

    /// The position that goes to `x`: `at(position_of(x)) == x`.
    pub fn position_of(&self, x: u64) -> u64 {
        let mut i = x;
        loop {
            i = self.decrypt(i);
            if i < self.n {
                return i;
            }
        }
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }

    fn decrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys.iter().rev() {
            (left, right) = (right ^ (mix(left ^ key) & mask), left);
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use imp_schemas::rng::{Role, rng_for};
    use proptest::prelude::*;

    use super::*;

    fn check(n: u64, seed: u64) {
        let permutation = Permutation::new(n, &mut rng_for(seed, Role::Shuffle, &[]));
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let x = permutation.at(i);
            assert!(!std::mem::replace(&mut seen[x as usize], true), "{x} came twice of {n}");
            assert_eq!(permutation.position_of(x), i);
        }
    }

    #[test]
    fn every_small_size_is_permuted() {
        for n in 1..200 {
            check(n, n);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_size_is_permuted(n in 1u64..20_000, seed in any::<u64>()) {
            check(n, seed);
        }
    }

    #[test]
    fn neighbours_part() {
        let permutation = Permutation::new(100_000, &mut rng_for(3, Role::Shuffle, &[]));
        let close = (0..99_999u64).filter(|&i| permutation.at(i).abs_diff(permutation.at(i + 1)) < 1000).count();
        // Uniform: about 2 % of pairs lie within 1,000 of 100,000.
        assert!((1700..2300).contains(&close), "{close}");
    }
}
