//! WebSocket over HTTP/2 and HTTP/3: between an extended CONNECT (RFC 8441, RFC 9220) and the upgrade of
//! HTTP/1.1, which is what VMs speak (RFC 6455).

use foregate_exchange::{Body, Tunnel};
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, request, response};

use crate::answer::Answer;
use crate::worker::Worker;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Makes a CONNECT the request a VM is asked with, and says what for; or says why it is not taken.
pub(crate) fn accept(
    worker: &Worker,
    parts: &mut request::Parts,
    protocol: Option<&[u8]>,
) -> Result<HeaderValue, Answer> {
    match protocol {
        Some(b"websocket") => {}
        Some(_) => {
            let sentence = "The only protocol known here is websocket.";
            return Err(Answer::new(StatusCode::NOT_IMPLEMENTED, sentence));
        }
        None => {
            let sentence = "This gateway is not a forward proxy.";
            return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, sentence));
        }
    }
    parts.method = Method::GET;
    if let Ok(key) = HeaderValue::try_from(key(worker)) {
        parts.headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    Ok(HeaderValue::from_static("websocket"))
}

/// The tunnel a response to a WebSocket request opened with the head that tells the client so, or the
/// response that says why there is none.
pub(crate) fn answer(response: Response<Body>) -> Result<(response::Parts, Tunnel), Box<Response<Body>>> {
    let (mut head, body) = response.into_parts();
    match body {
        Body::Tunnel(tunnel) => {
            head.status = StatusCode::OK;
            head.headers.remove(UPGRADE);
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            head.headers.remove(CONTENT_LENGTH);
            Ok((head, tunnel))
        }
        // 2xx would mean that the tunnel stands (RFC 8441, section 5).
        _ if head.status.is_success() => {
            let sentence = "The backend did not switch protocols.";
            Err(Box::new(Answer::new(StatusCode::BAD_GATEWAY, sentence).plain()))
        }
        body => Err(Box::new(Response::from_parts(head, body))),
    }
}

/// The nonce HTTP/1.1 wants: 16 random bytes in base64. The later versions have none.
fn key(worker: &Worker) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |value: u64| DIGITS.get((value & 63) as usize).map_or('A', |byte| char::from(*byte));
    let (mut first, mut second) = (worker.roll(), worker.roll());
    let mut key = String::with_capacity(24);
    for _ in 0..10 {
        key.push(digit(first));
        first >>= 6;
    }
    for _ in 0..11 {
        key.push(digit(second));
        second = second.rotate_right(6);
    }
    // 16 bytes are 21 digits and two bits, then padding.
    key.push(digit((first & 3) << 4));
    key.push_str("==");
    key
}
