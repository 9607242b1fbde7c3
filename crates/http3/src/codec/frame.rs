//! Frame headers (RFC 9114, section 7).

use super::varint;

/// A frame's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u64);

impl Kind {
    pub const DATA: Kind = Kind(0x00);
    pub const HEADERS: Kind = Kind(0x01);
    pub const CANCEL_PUSH: Kind = Kind(0x03);
    pub const SETTINGS: Kind = Kind(0x04);
    pub const PUSH_PROMISE: Kind = Kind(0x05);
    pub const GOAWAY: Kind = Kind(0x07);
    pub const MAX_PUSH_ID: Kind = Kind(0x0d);
    /// RFC 9218, section 7.2.
    pub const PRIORITY_UPDATE_REQUEST: Kind = Kind(0xf_0700);
    pub const PRIORITY_UPDATE_PUSH: Kind = Kind(0xf_0701);

    /// Types of HTTP/2 that must not appear in HTTP/3 (RFC 9114, section 7.2.8).
    #[must_use]
    pub fn of_http2(self) -> bool {
        matches!(self.0, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// What stands before a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub length: u64,
}

impl Header {
    /// The longest header there is.
    pub const LONGEST: usize = 16;

    /// The header at the start of the bytes and its size; `None` while it is not whole.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Header, usize)> {
        let (kind, first) = varint::decode(bytes)?;
        let (length, second) = varint::decode(bytes.get(first..)?)?;
        Some((Header { kind: Kind(kind), length }, first + second))
    }

    pub fn encode(self, out: &mut Vec<u8>) {
        varint::encode(self.kind.0, out);
        varint::encode(self.length, out);
    }
}

/// Collects a header that comes in pieces.
#[derive(Debug, Default)]
pub struct Partial {
    bytes: [u8; Header::LONGEST],
    held: u8,
}

impl Partial {
    /// Takes from the front of `bytes` what the header lacks; the rest is left there.
    pub fn read(&mut self, bytes: &mut impl bytes::Buf) -> Option<Header> {
        // The usual case: it is all there.
        if self.held == 0
            && let Some((header, size)) = Header::decode(bytes.chunk())
        {
            bytes.advance(size);
            return Some(header);
        }
        while bytes.has_remaining() {
            let at = usize::from(self.held);
            *self.bytes.get_mut(at)? = bytes.get_u8();
            self.held += 1;
            if let Some((header, _)) = self.bytes.get(..=at).and_then(Header::decode) {
                self.held = 0;
                return Some(header);
            }
        }
        None
    }

    /// Whether nothing of the next header has come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_comes_back_in_whatever_pieces(kind in 0..=varint::MAX, length in 0..=varint::MAX, cut in 0usize..16) {
            let header = Header { kind: Kind(kind), length };
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            let size = bytes.len();
            prop_assert_eq!(Header::decode(&bytes), Some((header, size)));
            bytes.push(0xff);
            let (mut first, mut second) = bytes.split_at(cut.min(size - 1));
            let mut partial = Partial::default();
            prop_assert_eq!(partial.read(&mut first), None);
            prop_assert_eq!(partial.read(&mut second), Some(header));
            prop_assert_eq!(second, &[0xff][..]);
            prop_assert!(partial.is_empty());
        }
    }
}
