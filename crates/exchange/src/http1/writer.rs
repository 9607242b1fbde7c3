//! Fields and bodies, to bytes. Framing is decided here and never copied.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName};
use http_body::Frame;

use super::chunked::Broken;
use super::output::Output;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There is no body, whatever the fields say.
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    Close,
}

impl Ending {
    /// Writes the field that tells it, where one does.
    pub(super) fn announce(self, out: &mut BytesMut) {
        match self {
            Ending::None | Ending::Close => {}
            Ending::Length(length) => field(out, &CONTENT_LENGTH, decimal(length, &mut [0; 20])),
            Ending::Chunked => field(out, &TRANSFER_ENCODING, b"chunked"),
        }
    }
}

/// A body on its way out.
#[derive(Debug)]
pub struct BodyWriter {
    chunked: bool,
    /// Of the announced length.
    left: Option<u64>,
    announced: Vec<HeaderName>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl BodyWriter {
    /// `announced`: the trailers that may be sent.
    #[must_use]
    pub fn new(ending: Ending, announced: Vec<HeaderName>) -> BodyWriter {
        let left = match ending {
            Ending::Length(length) => Some(length),
            Ending::None | Ending::Chunked | Ending::Close => None,
        };
        let (chunked, ended) = (ending == Ending::Chunked, ending == Ending::None);
        BodyWriter { chunked, left, announced, trailers: None, ended }
    }

    /// Whether the announced length is through; only the end can follow.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Puts a piece of the body, or keeps its trailers for the end. There must be room.
    ///
    /// # Errors
    /// It is longer than announced.
    pub fn put(&mut self, output: &mut Output, frame: Frame<Bytes>) -> Result<(), Broken> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.trailers = frame.into_trailers().ok();
                return Ok(());
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        if let Some(left) = &mut self.left {
            let rest = left.checked_sub(data.len() as u64);
            *left = rest.ok_or(Broken("the body is longer than its Content-Length"))?;
        }
        if self.chunked {
            chunk_size(output.bytes(), data.len());
        }
        output.put_data(&data);
        if self.chunked {
            output.end_chunk();
        }
        Ok(())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// It is shorter than announced.
    pub fn end(&mut self, output: &mut Output) -> Result<(), Broken> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(Broken("the body is shorter than its Content-Length"));
        }
        if self.chunked {
            last_chunk(output.bytes(), self.trailers.as_ref(), &self.announced);
        }
        self.ended = true;
        Ok(())
    }
}

/// The names a `Trailer` field announces.
#[must_use]
pub fn announced(fields: &HeaderMap) -> Vec<HeaderName> {
    fields
        .get_all(TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// Writes a field's line.
pub fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// A number's decimal digits.
pub fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at = at.saturating_sub(1);
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits.get(at..).unwrap_or_default()
}

/// Begins a chunk; its data and CR LF follow.
fn chunk_size(out: &mut BytesMut, size: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = size;
    loop {
        at = at.saturating_sub(1);
        if let (Some(digit), Some(value)) = (digits.get_mut(at), b"0123456789abcdef".get(left & 15)) {
            *digit = *value;
        }
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
    out.put_slice(b"\r\n");
}

/// Ends a chunked body with those of its trailers that were announced.
fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>, announced: &[HeaderName]) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if announced.contains(name) {
            field(out, name, value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for number in [0, 7, 10, 255, 4096, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
        for size in [1, 15, 16, 255, 65536, usize::MAX] {
            let mut out = BytesMut::new();
            chunk_size(&mut out, size);
            assert_eq!(out, format!("{size:x}\r\n"));
        }
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_length_is_held_to() {
        let mut output = Output::default();
        let mut writer = BodyWriter::new(Ending::Length(5), Vec::new());
        writer.put(&mut output, data("abc")).unwrap();
        assert!(writer.end(&mut output).is_err());
        assert!(writer.put(&mut output, data("def")).is_err());
        writer.put(&mut output, data("de")).unwrap();
        writer.end(&mut output).unwrap();
        assert!(writer.has_ended());
        assert_eq!(output.bytes(), "abcde");
    }

    #[test]
    fn chunks_end_with_the_announced_trailers() {
        let mut fields = HeaderMap::new();
        fields.insert(TRAILER, "x-sum, x-other".parse().unwrap());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert("x-secret", "2".parse().unwrap());
        let mut output = Output::default();
        let mut writer = BodyWriter::new(Ending::Chunked, announced(&fields));
        writer.put(&mut output, data("abc")).unwrap();
        // An empty chunk would be the end.
        writer.put(&mut output, data("")).unwrap();
        writer.put(&mut output, Frame::trailers(trailers)).unwrap();
        writer.end(&mut output).unwrap();
        assert_eq!(output.bytes(), "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    }
}
