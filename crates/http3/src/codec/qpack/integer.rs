//! Integers with a prefix (RFC 7541, section 5.1).

use super::Problem;

/// An integer that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Integer<'b> {
    /// The bits before it in its first byte.
    pub(super) flags: u8,
    pub(super) value: u64,
    /// The bytes after it.
    pub(super) rest: &'b [u8],
}

/// Reads an integer whose first `bits` bits end the first byte; `None` while it is not whole.
///
/// # Errors
/// A value that needs more than 62 bits (RFC 9204, section 4.1.1).
pub(super) fn decode(bytes: &[u8], bits: u32) -> Result<Option<Integer<'_>>, Problem> {
    let Some((first, mut rest)) = bytes.split_first() else { return Ok(None) };
    let mask = ((1u16 << bits) - 1) as u8;
    let flags = first & !mask;
    let mut value = u64::from(first & mask);
    if value < u64::from(mask) {
        return Ok(Some(Integer { flags, value, rest }));
    }
    let mut shift = 0;
    loop {
        let Some((byte, after)) = rest.split_first() else {
            return if shift > 56 { Err(Problem::Integer) } else { Ok(None) };
        };
        rest = after;
        let seven = u64::from(byte & 0x7f);
        if shift > 56 || (seven << shift) >> shift != seven {
            return Err(Problem::Integer);
        }
        value = value
            .checked_add(seven << shift)
            .filter(|value| *value <= crate::codec::varint::MAX)
            .ok_or(Problem::Integer)?;
        if byte & 0x80 == 0 {
            return Ok(Some(Integer { flags, value, rest }));
        }
        shift += 7;
    }
}

pub(super) fn encode(flags: u8, value: u64, bits: u32, out: &mut Vec<u8>) {
    let mask = (1u64 << bits) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn integer(flags: u8, value: u64, rest: &[u8]) -> Result<Option<Integer<'_>>, Problem> {
        Ok(Some(Integer { flags, value, rest }))
    }

    /// RFC 7541, appendix C.1.
    #[test]
    fn examples_of_the_rfc() {
        assert_eq!(decode(&[0b1110_1010], 5), integer(0b1110_0000, 10, &[]));
        assert_eq!(decode(&[31, 154, 10, 99], 5), integer(0, 1337, &[99]));
        assert_eq!(decode(&[42], 8), integer(0, 42, &[]));
    }

    #[test]
    fn too_large_is_refused_and_short_is_not_yet() {
        assert_eq!(decode(&[31, 154], 5), Ok(None));
        assert_eq!(
            decode(&[31, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 5),
            Err(Problem::Integer)
        );
        // Zeros without end are an integer without end.
        assert_eq!(
            decode(&[31, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80], 5),
            Err(Problem::Integer)
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in 0..=crate::codec::varint::MAX, bits in 3u32..=8) {
            let mut out = Vec::new();
            encode(0, value, bits, &mut out);
            prop_assert_eq!(decode(&out, bits), integer(0, value, &[]));
        }
    }
}
