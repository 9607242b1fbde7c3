//! The `grpc` probe: the two messages of [`grpc.health.v1.Health/Check`][1], which is all of gRPC that it needs.
//!
//! [1]: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;

pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";

/// The request's body: a `HealthCheckRequest` with its length before it.
pub(super) fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, a string.
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    // Not compressed.
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

/// Whether that is "serving"; otherwise what it is. `fields` are the trailers, or the head where that is all.
pub(super) fn answer(fields: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let Some(status) = fields.get("grpc-status") else { return Err("the answer is not gRPC".to_owned()) };
    if status != "0" {
        let message = fields.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
        let status = String::from_utf8_lossy(status.as_bytes());
        return Err(match message.filter(|message| !message.is_empty()) {
            Some(message) => format!("status {status} ({message})"),
            None => format!("status {status}"),
        });
    }
    match body.split_first_chunk::<5>() {
        Some(([0, ..], message)) => match serving_status(message) {
            Some(1) => Ok(()),
            Some(0) => Err("UNKNOWN".to_owned()),
            Some(2) => Err("NOT_SERVING".to_owned()),
            Some(3) => Err("SERVICE_UNKNOWN".to_owned()),
            Some(other) => Err(format!("serving status {other}")),
            None => Err("the message cannot be read".to_owned()),
        },
        Some(_) => Err("the message is compressed".to_owned()),
        None => Err("there is no message".to_owned()),
    }
}

/// Field 1 of a `HealthCheckResponse`, 0 where it is absent; other fields are passed over.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn questions_are_messages_with_their_length() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn only_serving_is_well() {
        let ok = fields(&[("grpc-status", "0")]);
        let told = |body: &[u8]| answer(&ok, body);
        assert_eq!(told(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        for (body, found) in [
            (&[0, 0, 0, 0, 0][..], "UNKNOWN"),
            (&[0, 0, 0, 0, 2, 8, 2], "NOT_SERVING"),
            (&[0, 0, 0, 0, 2, 8, 3], "SERVICE_UNKNOWN"),
            (&[0, 0, 0, 0, 2, 8, 9], "serving status 9"),
            (&[0, 0, 0, 0, 2, 8], "the message cannot be read"),
            (&[0, 0, 0, 0, 1, 0x0f], "the message cannot be read"),
            (&[1, 0, 0, 0, 2, 8, 1], "the message is compressed"),
            (&[0, 0], "there is no message"),
        ] {
            assert_eq!(told(body), Err(found.to_owned()), "{body:?}");
        }
        // Fields of a later version of the message.
        assert_eq!(
            told(&[0, 0, 0, 0, 0, 0x12, 1, b'x', 0x1d, 1, 2, 3, 4, 8, 1, 0x21, 1, 2, 3, 4, 5, 6, 7, 8]),
            Ok(())
        );
    }

    #[test]
    fn a_status_of_grpc_is_told() {
        assert_eq!(answer(&fields(&[]), &[]), Err("the answer is not gRPC".to_owned()));
        assert_eq!(answer(&fields(&[("grpc-status", "12")]), &[]), Err("status 12".to_owned()));
        let with_words = fields(&[("grpc-status", "5"), ("grpc-message", "unknown service")]);
        assert_eq!(answer(&with_words, &[]), Err("status 5 (unknown service)".to_owned()));
    }
}
