//! Large bodies that can be checked without being kept: a repeated block and a digest.

use std::sync::OnceLock;

use aws_lc_rs::digest;
use bytes::Bytes;

/// A prime, so that no power-of-two buffer boundary ever falls on the same place of the block twice.
const BLOCK: usize = 65_521;

/// The block every generated body repeats.
pub fn block() -> Bytes {
    static ONCE: OnceLock<Bytes> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..BLOCK)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Bytes::from(bytes)
    })
    .clone()
}

/// The pieces of a generated body of `length` bytes.
pub(crate) fn pieces(length: u64) -> impl Iterator<Item = Bytes> {
    let block = block();
    let whole = length / BLOCK as u64;
    let rest = (length % BLOCK as u64) as usize;
    let last = block.slice(..rest);
    (0..whole).map(move |_| block.clone()).chain((rest > 0).then_some(last))
}

/// A running SHA-256.
pub struct Digest(digest::Context);

impl Default for Digest {
    fn default() -> Self {
        Digest(digest::Context::new(&digest::SHA256))
    }
}

impl Digest {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest so far, in hexadecimal.
    pub fn hex(&self) -> String {
        self.0.clone().finish().as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The digest of a generated body of `length` bytes.
pub fn digest_of(length: u64) -> String {
    let mut digest = Digest::default();
    pieces(length).for_each(|piece| digest.update(&piece));
    digest.hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_length_asked_for() {
        for length in [0, 1, 65_521, 65_522, 1_000_000] {
            assert_eq!(pieces(length).map(|p| p.len() as u64).sum::<u64>(), length);
        }
        assert_ne!(digest_of(10), digest_of(11));
    }
}
