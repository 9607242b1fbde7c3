//! Variable-length integers (RFC 9000, section 16) and frames (RFC 9114, section 7).

pub const DATA: u64 = 0x00;
pub const HEADERS: u64 = 0x01;
pub const CANCEL_PUSH: u64 = 0x03;
pub const SETTINGS: u64 = 0x04;
pub const PUSH_PROMISE: u64 = 0x05;
pub const GOAWAY: u64 = 0x07;
pub const MAX_PUSH_ID: u64 = 0x0d;
/// RFC 9218, section 7.2: for a request stream.
pub const PRIORITY_UPDATE: u64 = 0xf_0700;
/// RFC 9218, section 7.2: for a push.
pub const PRIORITY_UPDATE_PUSH: u64 = 0xf_0701;

/// Types of unidirectional streams.
pub const CONTROL: u64 = 0x00;
pub const PUSH: u64 = 0x01;
pub const ENCODER: u64 = 0x02;
pub const DECODER: u64 = 0x03;

/// The largest value an integer can have.
pub const MAX: u64 = (1 << 62) - 1;

/// A number of those reserved for being ignored, of frames, streams, settings and errors alike.
pub const fn grease(n: u64) -> u64 {
    0x1f * n + 0x21
}

/// An integer in as few bytes as it needs.
pub fn varint(value: u64) -> Vec<u8> {
    let bytes = match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    };
    varint_of(bytes, value)
}

/// An integer in 1, 2, 4 or 8 bytes.
pub fn varint_of(bytes: usize, value: u64) -> Vec<u8> {
    assert!(bytes == 8 && value <= MAX || bytes < 8 && value < 1 << (8 * bytes - 2), "{value} in {bytes}");
    let length = u64::from(bytes.trailing_zeros());
    let whole = value | length << (8 * bytes - 2);
    whole.to_be_bytes()[8 - bytes..].to_vec()
}

/// Takes an integer off the front; `None` if it is not there as a whole.
pub fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let first = *from.first()?;
    let bytes = 1 << (first >> 6);
    let (head, rest) = from.split_at_checked(bytes)?;
    *from = rest;
    let whole = head.iter().fold(0_u64, |n, &b| n << 8 | u64::from(b));
    Some(whole & (u64::MAX >> (66 - 8 * bytes)))
}

/// A frame of any type.
pub fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varint(kind), varint(payload.len() as u64), payload.to_vec()].concat()
}

/// The beginning of a frame whose payload is to be so long.
pub fn frame_head(kind: u64, length: u64) -> Vec<u8> {
    [varint(kind), varint(length)].concat()
}

pub fn data(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, payload.as_ref())
}

/// A frame whose payload is one identifier.
pub fn id_frame(kind: u64, id: u64) -> Vec<u8> {
    frame(kind, &varint(id))
}

pub fn settings(pairs: &[(u64, u64)]) -> Vec<u8> {
    let payload: Vec<u8> =
        pairs.iter().flat_map(|&(id, value)| [varint(id), varint(value)].concat()).collect();
    frame(SETTINGS, &payload)
}

pub fn priority_update(kind: u64, id: u64, value: &str) -> Vec<u8> {
    frame(kind, &[varint(id), value.as_bytes().to_vec()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9000, appendix A.1.
    #[test]
    fn the_examples_of_the_rfc() {
        for (value, bytes) in [
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (15_293, &[0x7b, 0xbd]),
            (37, &[0x25]),
        ] {
            assert_eq!(varint(value), bytes);
            assert_eq!(take_varint(&mut &bytes[..]), Some(value));
        }
        assert_eq!(take_varint(&mut &[0x40, 0x25][..]), Some(37));
        assert_eq!(varint_of(2, 37), [0x40, 0x25]);
        assert_eq!(take_varint(&mut &varint(MAX)[..]), Some(MAX));
        assert_eq!(take_varint(&mut &[0x40][..]), None);
    }
}
