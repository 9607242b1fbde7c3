//! From a number to a choice. Where the number comes from, a random source or a hash of the request, is the
//! caller's business.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

/// Spreads every bit of `x` over the whole word (the finaliser of SplitMix64), so that neighbouring numbers
/// make unrelated choices and one random number can be stretched to several: `mix(dice + 1)` and so on.
pub(crate) const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Scales an evenly spread `hash` to `0..n` without a division (Lemire's multiply and shift); 0 when `n` is 0.
pub(crate) const fn below(hash: u64, n: u64) -> u64 {
    ((hash as u128 * n as u128) >> 64) as u64
}

/// What a stable hash is taken for. Each purpose has its own seed, so that for example the clients of one
/// arm of a split are still spread over the whole Maglev table behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The key of a request for the `hash` balancer.
    Key,
    /// The arm of a split.
    Split,
    /// The permutation of a member in a Maglev table: where it begins.
    MaglevOffset,
    /// The permutation of a member in a Maglev table: how far it steps.
    MaglevSkip,
}

/// The same number in every process, on every platform and after every upgrade: clients carry these in their
/// cookies, and several gateways in front of the same VMs must agree. RapidHash v3 promises a fixed output.
pub(crate) fn digest(purpose: Purpose, bytes: &[u8]) -> u64 {
    const KEY: RapidSecrets = RapidSecrets::seed(0x666f_7265_6761_7465);
    const SPLIT: RapidSecrets = RapidSecrets::seed(0x7370_6c69_7420_6f6e);
    const OFFSET: RapidSecrets = RapidSecrets::seed(0x6d61_676c_6576_206f);
    const SKIP: RapidSecrets = RapidSecrets::seed(0x6d61_676c_6576_2073);
    let secrets = match purpose {
        Purpose::Key => &KEY,
        Purpose::Split => &SPLIT,
        Purpose::MaglevOffset => &OFFSET,
        Purpose::MaglevSkip => &SKIP,
    };
    rapidhash_v3_seeded(bytes, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, 7), 6);
        assert_eq!(below(u64::MAX, u64::MAX), u64::MAX - 1);
        assert_eq!(below(12345, 0), 0);
    }

    #[test]
    fn neighbours_are_mixed_evenly() {
        let mut counts = [0_u32; 10];
        for n in 0..100_000 {
            counts[below(mix(n), 10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
    }

    // Clients carry these values: a change of the digest loses every session.
    #[test]
    fn digests_never_change() {
        assert_eq!(digest(Purpose::Key, b"10.0.0.1"), 8_808_385_198_515_027_849);
        assert_eq!(digest(Purpose::Split, b"10.0.0.1"), 4_650_857_515_149_219_442);
    }
}
