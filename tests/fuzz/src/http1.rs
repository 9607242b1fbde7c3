//! HTTP/1.1: requests and responses are read alike in whatever pieces they come, and what is passed on means the same.

use bytes::{Bytes, BytesMut};
use foregate_exchange::http1::request::{self, Asking, Head};
use foregate_exchange::http1::response;
use foregate_exchange::http1::{Ending, Framing, Piece, Search};
use foregate_exchange::{Failure, head};
use http::header::{CONTENT_LENGTH, HOST, TRAILER};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use crate::input::Input;

/// The longest head there may be; the real one is a multiple of it.
const LIMITS: [usize; 4] = [0, 40, 400, 32 * 1024];

/// What a connection brings.
#[derive(Debug, PartialEq)]
enum Event {
    Request(Method, String, HeaderMap),
    Response(StatusCode, HeaderMap),
    Data(Vec<u8>),
    Trailers(HeaderMap),
    /// The message is whole.
    End,
    Refused(String),
}

/// An input is a choice of the limit, of the side that reads and of whether the request was a HEAD, the lengths of four
/// pieces, over and over, and the bytes of the stream.
pub fn http1(input: &[u8]) {
    let mut input = Input(input);
    let choice = usize::from(input.byte());
    let lengths = [input.byte(), input.byte(), input.byte(), input.byte()];
    let stream = input.0;
    let limit = LIMITS[choice % LIMITS.len()];
    let begin: &dyn Fn(Bytes) -> Result<(Event, Framing), String> = match choice & 0xc0 {
        0 => &of_request,
        0x40 => &|head| of_response(head, true),
        _ => &|head| of_response(head, false),
    };
    let whole = read(&[stream], limit, begin);
    assert_eq!(whole, read(&input.pieces(lengths), limit, begin));
    assert_eq!(whole, read(&input.pieces([1; 4]), limit, begin));
}

/// Reads messages until the stream ends or one is refused. Neighbouring data is joined, since cuts fall within it.
fn read(
    pieces: &[&[u8]],
    limit: usize,
    begin: &dyn Fn(Bytes) -> Result<(Event, Framing), String>,
) -> Vec<Event> {
    let mut buffer = BytesMut::new();
    let mut search = Search::default();
    let mut body: Option<Framing> = None;
    let mut events = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let Some(framing) = &mut body else {
                match search.end(&mut buffer, limit) {
                    Ok(None) => break,
                    Ok(Some(length)) => match begin(buffer.split_to(length).freeze()) {
                        Ok((event, framing)) => {
                            events.push(event);
                            body = Some(framing);
                        }
                        Err(reason) => {
                            events.push(Event::Refused(reason));
                            return events;
                        }
                    },
                    Err(_) => {
                        events.push(Event::Refused("too long".to_owned()));
                        return events;
                    }
                }
                continue;
            };
            match framing.decode(&mut buffer) {
                Ok(Piece::More) => break,
                Ok(Piece::Data(data)) => match events.last_mut() {
                    Some(Event::Data(before)) => before.extend_from_slice(&data),
                    _ => events.push(Event::Data(data.to_vec())),
                },
                Ok(Piece::Trailers(trailers)) => events.push(Event::Trailers(trailers)),
                Ok(Piece::End) => {
                    events.push(Event::End);
                    body = None;
                }
                Err(broken) => {
                    events.push(Event::Refused(broken.to_string()));
                    return events;
                }
            }
        }
    }
    events
}

fn of_request(bytes: Bytes) -> Result<(Event, Framing), String> {
    let head = request::parse(bytes).map_err(|refusal| refusal.reason.to_owned())?;
    passed_on(&head);
    let Head { request, framing, .. } = head;
    let (parts, ()) = request.into_parts();
    Ok((Event::Request(parts.method, parts.uri.to_string(), parts.headers), framing))
}

/// What a VM is sent says the same, and is one message.
fn passed_on(head: &Head) {
    let Some(target) = head.request.uri().path_and_query() else { return };
    // An absolute target may have no path; a request line must (RFC 9112, section 3.2.1).
    let target = match target.as_str() {
        without if without.starts_with('?') => &format!("/{without}").parse().expect("a path and a query"),
        _ => target,
    };
    let mut headers = head.request.headers().clone();
    head::strip_hop_by_hop(&mut headers);
    for name in [HOST, CONTENT_LENGTH, TRAILER] {
        headers.remove(name);
    }
    let method = head.request.method();
    let ending = match head.framing {
        Framing::None => request::ending(method, None),
        Framing::Length(length) => Ending::Length(length),
        Framing::Chunked(_) => Ending::Chunked,
    };
    let authority = HeaderValue::from_static("vm.test");
    let asking = Asking {
        method,
        target: target.as_str(),
        authority: &authority,
        headers: &headers,
        ending,
        upgrade: None,
        ask_trailers: head.takes_trailers,
    };
    let mut out = BytesMut::new();
    request::write(&mut out, &asking);
    let written = out.len();
    assert_eq!(Search::default().end(&mut out, written), Ok(Some(written)), "{out:?}");
    let read = request::parse(out.freeze()).expect("what is written can be read");
    assert_eq!((read.request.method(), read.request.version()), (method, Version::HTTP_11));
    assert_eq!(read.request.uri().path_and_query(), Some(target));
    match (&read.framing, &head.framing) {
        (Framing::Length(ours), Framing::Length(theirs)) => assert_eq!(ours, theirs),
        (Framing::Chunked(_), Framing::Chunked(_)) | (Framing::None | Framing::Length(0), Framing::None) => {}
        other => panic!("another framing: {other:?}"),
    }
    assert_eq!(read.request.headers().get(HOST), Some(&authority));
    for (name, value) in &headers {
        assert!(read.request.headers().get_all(name).iter().any(|read| read == value), "{name} is lost");
    }
}

fn of_response(bytes: Bytes, head_only: bool) -> Result<(Event, Framing), String> {
    let answered = response::parse(bytes, head_only).map_err(|failure: Failure| failure.to_string())?;
    // Without a framing the body ends with the connection: as long as anything is.
    let framing = answered.framing.unwrap_or(Framing::Length(u64::MAX));
    Ok((Event::Response(answered.status, answered.headers), framing))
}
