//! Philox4x32-10, the counter-based generator of Random123 (Salmon et al., SC 2011).
//!
//! Holds one function from (counter, key) to four random words, and the map from a word to a number
//! between 0 and 1. It refuses to hold state: a draw is named by what it is for (seed, row, step,
//! index), never by how many draws came before it, so the CPU and the GPU get the same bits in any
//! launch order. Two uses that share a key must differ in at least one counter word.

/// Multipliers of Philox4x32, Random123 `philox.h`.
pub(crate) const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Its Weyl constants.
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Its rounds.
pub(crate) const ROUNDS: usize = 10;

/// Four random words for `counter` under `key`.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = wide_product(MULTIPLIER[0], c0);
        let (high1, low1) = wide_product(MULTIPLIER[1], c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The low and the high word of `value`, as Philox keys and counters want it.
#[inline]
pub fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The middle of the `bits`-th of 2^32 equal cells of the unit interval: never 0, never 1.
#[inline]
pub fn unit_interval(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// High and low word of the 64-bit product.
#[inline]
fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let [low, high] = words(u64::from(a) * u64::from(b));
    (high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `philox4x32 10` of Random123's `tests/kat_vectors`.
    #[test]
    fn known_answers_of_random123() {
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(
                philox4x32(counter, key),
                want,
                "counter {counter:x?} key {key:x?}"
            );
        }
    }

    #[test]
    fn unit_interval_excludes_its_ends() {
        assert!(unit_interval(0) > 0.0);
        assert!(unit_interval(u32::MAX) < 1.0);
        assert_eq!(words(0x0123_4567_89ab_cdef), [0x89ab_cdef, 0x0123_4567]);
    }
}
