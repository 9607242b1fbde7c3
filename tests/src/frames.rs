//! HTTP/2 frame by frame, for what no well-behaved client sends (RFC 9113).

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::within;

/// How a client begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Methods by their place in the static table (RFC 7541, appendix A).
pub const GET: u8 = 2;
pub const POST: u8 = 3;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The preface with the empty SETTINGS that must follow it.
pub fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()
}

/// The field block of a request to `shop.test`, by literals and the static table; `fields` are encoded already.
pub fn request_block(method: u8, tls: bool, path: &str, fields: &[u8]) -> Vec<u8> {
    let mut block = vec![0x80 | method, if tls { 0x87 } else { 0x86 }, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"shop.test");
    block.extend_from_slice(fields);
    block
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Reads the next frame; panics where there is none.
pub async fn next(io: &mut (impl AsyncRead + Unpin)) -> Frame {
    let reading = async {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        Frame { kind, flags, stream: u32::from_be_bytes(stream), payload }
    };
    within("a frame", reading).await
}
