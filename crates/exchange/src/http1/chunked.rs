//! The chunked transfer coding (RFC 9112, section 7.1), read strictly: what is doubtful is an error.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// A chunk-size line with its extensions, which we ignore, may be this long.
const MAX_SIZE_LINE: usize = 1024;
/// A trailer section may be this long and have this many fields.
const MAX_TRAILERS: usize = 8 * 1024;
const MAX_TRAILER_FIELDS: usize = 32;

/// A decoder of one body.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
    /// Nobody knows where the next message begins; there is no way on from here.
    Broken(Broken),
}

/// What came out of a body's framing.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Nothing before more bytes are in the buffer.
    More,
}

/// The body breaks its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

impl Chunked {
    /// Whether the end of the body has been read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next piece from the front of the buffer. Once broken it stays broken.
    ///
    /// # Errors
    /// The body breaks its framing.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Piece, Broken> {
        let piece = self.step(buffer);
        if let Err(broken) = piece {
            self.state = State::Broken(broken);
        }
        piece
    }

    fn step(&mut self, buffer: &mut BytesMut) -> Result<Piece, Broken> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line(buffer, MAX_SIZE_LINE)? else { return Ok(Piece::More) };
                    self.state = match size(&line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let left = left - n as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Piece::Data(buffer.split_to(n).freeze()));
                }
                State::DataEnd => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    Some(_) => return Err(Broken("a chunk is longer than its size")),
                    None => return Ok(Piece::More),
                },
                State::Trailers => {
                    if buffer.starts_with(b"\r\n") {
                        buffer.advance(2);
                        self.state = State::Done;
                        return Ok(Piece::End);
                    }
                    let Some(end) = find(buffer, b"\r\n\r\n") else {
                        return if buffer.len() > MAX_TRAILERS {
                            Err(Broken("the trailer section is too large"))
                        } else {
                            Ok(Piece::More)
                        };
                    };
                    if end > MAX_TRAILERS {
                        return Err(Broken("the trailer section is too large"));
                    }
                    let section = buffer.split_to(end + 4);
                    self.state = State::Done;
                    return trailers(&section).map(Piece::Trailers);
                }
                State::Done => return Ok(Piece::End),
                State::Broken(broken) => return Err(broken),
            }
        }
    }
}

/// A line that ends in CR LF, without them; a bare LF is an error, for some would end the line there.
fn line(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Broken> {
    let Some(end) = buffer.iter().take(limit).position(|byte| *byte == b'\n') else {
        return if buffer.len() >= limit { Err(Broken("a chunk-size line is too long")) } else { Ok(None) };
    };
    let mut line = buffer.split_to(end + 1);
    line.truncate(end);
    if line.last() != Some(&b'\r') {
        return Err(Broken("a chunk-size line does not end in CR LF"));
    }
    line.truncate(end - 1);
    Ok(Some(line))
}

/// Hexadecimal digits, then nothing or extensions.
fn size(line: &[u8]) -> Result<u64, Broken> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at_checked(digits).unwrap_or_default();
    if number.is_empty() || number.len() > 15 {
        return Err(Broken("a chunk size is not a number"));
    }
    let extension = rest.trim_ascii_start();
    if !(extension.is_empty() || extension.starts_with(b";"))
        || rest.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(Broken("a chunk size is followed by something else"));
    }
    std::str::from_utf8(number)
        .ok()
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or(Broken("a chunk size is not a number"))
}

fn trailers(section: &[u8]) -> Result<HeaderMap, Broken> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length == section.len() => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(Broken("a trailer field is not valid"));
                };
                map.append(name, value);
            }
            Ok(map)
        }
        _ => Err(Broken("the trailer section is not valid")),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    /// Feeds the text in pieces of every size and expects the same each time.
    fn decode(text: &str) -> Result<(String, Option<HeaderMap>, String), Broken> {
        let mut results = (1..=text.len()).map(|step| {
            let mut decoder = Chunked::default();
            let mut buffer = BytesMut::new();
            let mut input = text.as_bytes().chunks(step);
            let (mut data, mut fields) = (String::new(), None);
            loop {
                match decoder.decode(&mut buffer)? {
                    Piece::Data(bytes) => data.push_str(std::str::from_utf8(&bytes).unwrap()),
                    Piece::Trailers(map) => fields = Some(map),
                    Piece::End => break,
                    Piece::More => match input.next() {
                        Some(bytes) => buffer.extend_from_slice(bytes),
                        None => return Err(Broken("unfinished")),
                    },
                }
            }
            let mut rest = buffer.to_vec();
            input.for_each(|bytes| rest.extend_from_slice(bytes));
            Ok((data, fields, String::from_utf8(rest).unwrap()))
        });
        let first = results.next().unwrap();
        for other in results {
            assert_eq!(other.is_ok(), first.is_ok(), "{text:?}");
            if let (Ok(other), Ok(first)) = (&other, &first) {
                assert_eq!(other, first, "{text:?}");
            }
        }
        first
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        let (data, fields, rest) = decode("3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\nGET").unwrap();
        assert_eq!((data.as_str(), fields, rest.as_str()), ("abc0123456789", None, "GET"));
    }

    #[test]
    fn trailers_are_read() {
        let (_, fields, rest) = decode("1\r\na\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET").unwrap();
        assert_eq!(fields.unwrap().get("x-sum").unwrap(), "1");
        assert_eq!(rest, "GET");
    }

    #[test]
    fn what_is_broken_stays_broken() {
        for text in ["zz\r\n0\r\n\r\n", "0\r\nX Y: 1\r\n\r\n0\r\n\r\n", "1\r\nabc0\r\n\r\n"] {
            let mut decoder = Chunked::default();
            let mut buffer = BytesMut::from(text);
            while decoder.decode(&mut buffer).is_ok() {}
            buffer.clear();
            buffer.extend_from_slice(b"0\r\n\r\n");
            assert!(decoder.decode(&mut buffer).is_err() && !decoder.is_done(), "{text:?}");
        }
    }

    #[test]
    fn doubtful_framing_is_broken() {
        for text in [
            "\r\n",
            "g\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "-1\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "3 x\r\nabc\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3;a\rb\r\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "ffffffffffffffff\r\n",
            "0\r\nX Y: 1\r\n\r\n",
            "0\r\nX: 1\n\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(decode(text).is_err(), "{text:?}");
        }
    }
}
