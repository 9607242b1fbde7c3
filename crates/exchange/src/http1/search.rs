//! The end of a head that may still be growing.

use bytes::BytesMut;

/// Finds the end of a head, looking at each byte once.
#[derive(Debug, Default)]
pub struct Search {
    seen: usize,
    /// Bytes of empty lines that were dropped.
    dropped: usize,
}

/// The head is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Search {
    /// The length of the head with its empty line, when it is complete. Drops empty lines before it
    /// (RFC 9112, section 2.2).
    ///
    /// # Errors
    /// The head is longer than `limit`.
    pub fn end(&mut self, buffer: &mut BytesMut, limit: usize) -> Result<Option<usize>, TooLong> {
        // A CR alone may be half an empty line.
        if self.seen <= 1 {
            while let Some(blank) = empty_line(buffer) {
                let _empty = buffer.split_to(blank);
                self.dropped += blank;
                // Who sends nothing else must not keep a reader busy for ever.
                if self.dropped > limit {
                    return Err(TooLong);
                }
            }
        }
        // A line end and one or two bytes may have been seen before.
        let from = self.seen.saturating_sub(2);
        let fresh = buffer.get(from..).unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', fresh) {
            let length = match fresh.get(at + 1..) {
                Some([b'\n', ..]) => at + 2,
                Some([b'\r', b'\n', ..]) => at + 3,
                _ => continue,
            };
            self.seen = 0;
            return if from + length <= limit { Ok(Some(from + length)) } else { Err(TooLong) };
        }
        self.seen = buffer.len();
        if buffer.len() > limit { Err(TooLong) } else { Ok(None) }
    }
}

/// The length of an empty line at the beginning.
fn empty_line(buffer: &[u8]) -> Option<usize> {
    match buffer {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] => Some(1),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_byte_by_byte() {
        for text in ["\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\nBODY", "GET / HTTP/1.1\nA: b\n\nBODY"] {
            let mut search = Search::default();
            let mut buffer = BytesMut::new();
            let mut found = None;
            for byte in text.bytes() {
                buffer.extend_from_slice(&[byte]);
                found = search.end(&mut buffer, 100).unwrap();
                if found.is_some() {
                    break;
                }
            }
            let head = text.trim_start().strip_suffix("BODY").unwrap();
            assert_eq!(found, Some(head.len()), "{text:?}");
            assert_eq!(&buffer[..], head.as_bytes());
        }
    }

    #[test]
    fn a_head_has_a_limit() {
        let end = |text: &str| Search::default().end(&mut BytesMut::from(text), 10);
        assert_eq!(end("GET /aaaaaaaaaaa"), Err(TooLong));
        assert_eq!(end("GET /\r\nA: bbbbbbb\r\n\r\n"), Err(TooLong));
        assert_eq!(end("GET /"), Ok(None));
        assert_eq!(end("\r\n\r\n\r\n\r\n\r\n"), Ok(None));
        assert_eq!(end("\r\n\r\n\r\n\r\n\r\n\r\n"), Err(TooLong));
    }
}
