//! The encoder and decoder streams of a peer, as they can be when our table has no capacity and we refer to
//! none of the peer's (RFC 9204, sections 4.3 and 4.4).

use super::integer;
use crate::code::Code;
use crate::codec::Violation;

/// The most bytes one instruction that we accept can take: an integer of 62 bits and its prefix.
const LONGEST: usize = 11;

/// The peer's encoder stream. The only instruction left to it is to set the capacity to 0.
#[derive(Debug, Default)]
pub struct EncoderStream(Unread);

impl EncoderStream {
    /// # Errors
    /// `QPACK_ENCODER_STREAM_ERROR` for everything that needs a table.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let refuse = |reason| Violation::connection(Code::QPACK_ENCODER_STREAM_ERROR, reason);
        self.0.read(bytes, |unread| {
            let Some(first) = unread.first() else { return Ok(None) };
            if first & 0xe0 != 0x20 {
                return Err(refuse("an insertion into a dynamic table of capacity 0"));
            }
            match integer::decode(unread, 5) {
                Ok(Some(capacity)) if capacity.value == 0 => Ok(Some(unread.len() - capacity.rest.len())),
                Ok(None) => Ok(None),
                _ => Err(refuse("a dynamic table capacity above the announced 0")),
            }
        })
    }
}

/// The peer's decoder stream. It has nothing to acknowledge; it may only cancel streams.
#[derive(Debug, Default)]
pub struct DecoderStream(Unread);

impl DecoderStream {
    /// # Errors
    /// `QPACK_DECODER_STREAM_ERROR` for every acknowledgement.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let refuse = |reason| Violation::connection(Code::QPACK_DECODER_STREAM_ERROR, reason);
        self.0.read(bytes, |unread| {
            let Some(first) = unread.first() else { return Ok(None) };
            if first & 0xc0 != 0x40 {
                return Err(refuse("an acknowledgement of what was never inserted"));
            }
            match integer::decode(unread, 6) {
                Ok(Some(stream)) => Ok(Some(unread.len() - stream.rest.len())),
                Ok(None) => Ok(None),
                Err(_) => Err(refuse("a stream id that is too large")),
            }
        })
    }
}

/// The beginning of an instruction that is not whole.
#[derive(Debug, Default)]
struct Unread(Vec<u8>);

impl Unread {
    /// Reads instructions as long as there are whole ones; `one` says how many bytes the first took.
    fn read(
        &mut self,
        mut bytes: &[u8],
        one: impl Fn(&[u8]) -> Result<Option<usize>, Violation>,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            // No accepted instruction is longer, so this is all that is ever held.
            let missing = LONGEST.saturating_sub(self.0.len()).min(bytes.len());
            let held = self.0.len();
            self.0.extend_from_slice(bytes.get(..missing).unwrap_or_default());
            match one(&self.0)? {
                Some(taken) => {
                    self.0.clear();
                    bytes = bytes.get(taken - held..).unwrap_or_default();
                }
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_capacity_of_zero_may_be_set() {
        assert_eq!(EncoderStream::default().read(&[0x20, 0x20]), Ok(()));
        for bytes in [&[0x21][..], &[0x3f, 0], &[0xc0, 0], &[0x41, b'a', 0], &[0x00]] {
            let violation = EncoderStream::default().read(bytes).unwrap_err();
            assert_eq!(violation.code, Code::QPACK_ENCODER_STREAM_ERROR, "{bytes:x?}");
        }
    }

    #[test]
    fn only_cancellations_are_taken() {
        let mut stream = DecoderStream::default();
        // Stream 4, then a large one in two pieces.
        assert_eq!(stream.read(&[0x44, 0x7f, 0x80]), Ok(()));
        assert_eq!(stream.read(&[0x01, 0x40]), Ok(()));
        for bytes in [&[0x80][..], &[0x00], &[0x01]] {
            let violation = DecoderStream::default().read(bytes).unwrap_err();
            assert_eq!(violation.code, Code::QPACK_DECODER_STREAM_ERROR, "{bytes:x?}");
        }
    }

    #[test]
    fn an_endless_integer_ends() {
        let mut stream = DecoderStream::default();
        let result = (0..40).try_for_each(|_| stream.read(&[0x7f]));
        assert!(result.is_ok());
        let mut stream = DecoderStream::default();
        stream.read(&[0x7f]).unwrap();
        assert!((0..40).any(|_| stream.read(&[0xff]).is_err()));
    }
}
