//! HTTP/1.1 on the wire, read by the letter: what the gateway sends to either side must be beyond doubt,
//! so this reader refuses what RFC 9112 lets a lenient one accept.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::fields::{Fields, latin1};

/// A byte stream with what was read ahead.
pub struct Reader<R> {
    pub io: R,
    pub buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Reader<R> {
        Reader { io, buffer: BytesMut::with_capacity(64 * 1024) }
    }

    /// Reads once more; 0 at the end of the stream.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(64 * 1024);
        self.io.read_buf(&mut self.buffer).await
    }

    /// A whole head with its empty line; `None` when the stream ends before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Bytes>> {
        let mut seen = 0;
        loop {
            if let Some(at) = find(&self.buffer[seen..], b"\r\n\r\n") {
                let head = self.buffer.split_to(seen + at + 4).freeze();
                strict(&head)?;
                return Ok(Some(head));
            }
            seen = self.buffer.len().saturating_sub(3);
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(short("inside a head")) };
            }
        }
    }

    /// The next piece of a body; `None` at its end, when `body.trailers` are complete.
    pub async fn data(&mut self, body: &mut Incoming) -> io::Result<Option<Bytes>> {
        loop {
            match &mut body.state {
                State::Done => return Ok(None),
                State::Length(0) => body.state = State::Done,
                State::Length(left) => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        return Err(short("inside a body with Content-Length"));
                    }
                    return Ok(Some(take(&mut self.buffer, left)));
                }
                State::UntilClose => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        body.state = State::Done;
                        return Ok(None);
                    }
                    return Ok(Some(self.buffer.split().freeze()));
                }
                State::Size => {
                    let line = self.line().await?;
                    let digits = line.split(|&b| b == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(digits)
                        .ok()
                        .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()))
                        .and_then(|d| u64::from_str_radix(d, 16).ok())
                        .ok_or_else(|| wrong(format!("chunk size {:?}", latin1(&line))))?;
                    body.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                }
                State::Chunk(0) => {
                    if !self.line().await?.is_empty() {
                        return Err(wrong("no CRLF after a chunk".to_owned()));
                    }
                    body.state = State::Size;
                }
                State::Chunk(left) => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        return Err(short("inside a chunk"));
                    }
                    return Ok(Some(take(&mut self.buffer, left)));
                }
                State::Trailers => {
                    let line = self.line().await?;
                    if line.is_empty() {
                        body.state = State::Done;
                        continue;
                    }
                    let text = latin1(&line);
                    let (name, value) =
                        text.split_once(':').ok_or_else(|| wrong(format!("trailer {text:?}")))?;
                    body.trailers.push(name, value.trim_matches([' ', '\t']));
                }
            }
        }
    }

    /// A line of chunked framing, without its CRLF.
    async fn line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(at) = self.buffer.iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(at + 1).freeze();
                let Some(line) = line.strip_suffix(b"\r\n").map(|l| line.slice_ref(l)) else {
                    return Err(wrong("bare LF in chunked framing".to_owned()));
                };
                if line.contains(&b'\r') {
                    return Err(wrong("bare CR in chunked framing".to_owned()));
                }
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(short("inside chunked framing"));
            }
        }
    }
}

/// Where the reading of one body stands.
#[derive(Debug)]
pub struct Incoming {
    state: State,
    pub trailers: Fields,
}

#[derive(Debug)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    Size,
    Chunk(u64),
    Trailers,
}

impl Incoming {
    fn of(state: State) -> Incoming {
        Incoming { state, trailers: Fields::new() }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Length(0))
    }

    /// Whether the end of this body is the end of the connection.
    pub fn until_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// The body of a request with these fields. Anything that two readers could read in two ways is refused.
    pub fn request(fields: &Fields) -> io::Result<Incoming> {
        Ok(Incoming::of(framing(fields)?.unwrap_or(State::Done)))
    }

    /// The body of a response to `method`.
    pub fn response(method: &str, status: u16, fields: &Fields) -> io::Result<Incoming> {
        let declared = framing(fields)?;
        if method == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
            return Ok(Incoming::of(State::Done));
        }
        Ok(Incoming::of(declared.unwrap_or(State::UntilClose)))
    }
}

fn framing(fields: &Fields) -> io::Result<Option<State>> {
    let (lengths, codings) = (fields.all("content-length"), fields.all("transfer-encoding"));
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(None),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => length
            .parse()
            .map(|n| Some(State::Length(n)))
            .map_err(|_| wrong(format!("Content-Length {length}"))),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(State::Size)),
        _ => Err(wrong(format!("ambiguous framing: lengths {lengths:?}, codings {codings:?}"))),
    }
}

/// Method, target, minor version and fields of a request head.
pub(crate) fn parse_request(head: &[u8]) -> io::Result<(String, String, u8, Fields)> {
    let mut space = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut space);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => Ok((
            parsed.method.unwrap_or_default().to_owned(),
            parsed.path.unwrap_or_default().to_owned(),
            parsed.version.unwrap_or_default(),
            fields_of(parsed.headers),
        )),
        other => Err(wrong(format!("request head {:?}: {other:?}", latin1(head)))),
    }
}

/// Status, minor version and fields of a response head.
pub fn parse_response(head: &[u8]) -> io::Result<(u16, u8, Fields)> {
    let mut space = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Response::new(&mut space);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => Ok((
            parsed.code.unwrap_or_default(),
            parsed.version.unwrap_or_default(),
            fields_of(parsed.headers),
        )),
        other => Err(wrong(format!("response head {:?}: {other:?}", latin1(head)))),
    }
}

fn fields_of(headers: &[httparse::Header<'_>]) -> Fields {
    Fields(headers.iter().map(|h| (h.name.to_owned(), latin1(h.value))).collect())
}

/// Refuses line ends other than CRLF, control characters, folded lines, and spaces before colons.
fn strict(head: &[u8]) -> io::Result<()> {
    let refuse = |what: &str| Err(wrong(format!("{what} in head {:?}", latin1(head))));
    for (at, &byte) in head.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || head[at - 1] != b'\r' => return refuse("bare LF"),
            b'\r' if head.get(at + 1) != Some(&b'\n') => return refuse("bare CR"),
            b'\r' | b'\n' | b'\t' | 0x20.. if byte != 0x7f => {}
            _ => return refuse("a control character"),
        }
    }
    for line in head.split(|&b| b == b'\n').skip(1) {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return refuse("a folded line");
        }
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        if name.ends_with(b" ") || name.ends_with(b"\t") {
            return refuse("a space before a colon");
        }
    }
    Ok(())
}

/// The bytes of one chunk.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

/// The bytes after the last chunk.
pub(crate) fn last_chunk(trailers: &Fields) -> Vec<u8> {
    let mut out = b"0\r\n".to_vec();
    trailers.write_to(&mut out);
    out.extend_from_slice(b"\r\n");
    out
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let n = buffer.remaining().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= n as u64;
    buffer.split_to(n).freeze()
}

fn short(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream ended {place}"))
}

pub(crate) fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(input: &[u8]) -> io::Result<(Bytes, Fields)> {
        let mut reader = Reader::new(input);
        let head = reader.head().await?.expect("a head");
        let (_, _, _, fields) = parse_request(&head)?;
        let mut body = Incoming::request(&fields)?;
        let mut all = Vec::new();
        while let Some(piece) = reader.data(&mut body).await? {
            all.extend_from_slice(&piece);
        }
        Ok((all.into(), body.trailers))
    }

    #[tokio::test]
    async fn chunked_with_trailers() {
        let (body, trailers) =
            read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
                .await
                .unwrap();
        assert_eq!((&body[..], trailers.get("x-sum")), (&b"abcde"[..], Some("5")));
    }

    #[tokio::test]
    async fn doubtful_input_is_refused() {
        for input in [
            &b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab",
            b"POST / HTTP/1.1\r\nA: b\n\r\n\r\n",
            b"POST / HTTP/1.1\r\nA : b\r\n\r\n",
            b"POST / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            assert!(read(input).await.is_err(), "{:?}", latin1(input));
        }
    }
}
