//! HTTP/2 on the `h2` crate, with and without TLS.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{Request as HttpRequest, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Error, Io, Request, Version, broken};
use crate::fields::Fields;

/// A frame the gateway sent, other than DATA and HEADERS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameSeen {
    /// Last stream id and error code.
    GoAway(u32, u32),
    /// Stream id and error code.
    Reset(u32, u32),
    Other(u8),
}

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) requests: h2::client::SendRequest<Bytes>,
    seen: Arc<Mutex<Watch>>,
}

impl Connection {
    pub(super) async fn connect(io: impl Io + 'static) -> Result<Connection, Error> {
        let seen = Arc::<Mutex<Watch>>::default();
        let io = Watched { io, seen: seen.clone() };
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(8 << 20).enable_push(false);
        // What browsers suppose until they are told: 300 streams before the SETTINGS would be an attack.
        builder.initial_max_send_streams(100);
        let (requests, connection) = builder.handshake(io).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok(Connection { requests, seen })
    }

    pub(super) fn frames(&self) -> Vec<FrameSeen> {
        self.seen.lock().unwrap().frames.clone()
    }

    pub(super) async fn open(&self, request: &Request, version: Version) -> Result<(Up, Down), Error> {
        let head = http_request(request, version.tls());
        let empty = request.body.length().is_none() && request.trailers.is_empty();
        let mut ready = self.requests.clone().ready().await.map_err(broken)?;
        let (response, send) = ready.send_request(head, empty).map_err(broken)?;
        Ok((Up { send, ended: empty }, Down { response: Some(response), body: None }))
    }
}

/// The head of a request for `h2` and `h3`.
pub(super) fn http_request(request: &Request, tls: bool) -> HttpRequest<()> {
    let scheme = if tls { "https" } else { "http" };
    // CONNECT and `*` have other forms; the tests that need them write bytes.
    let uri: Uri = format!("{scheme}://{}{}", request.host, request.target)
        .parse()
        .unwrap_or_else(|e| panic!("{} {}: {e}", request.host, request.target));
    let mut head = HttpRequest::new(());
    *head.method_mut() = request.method.parse().expect("a method");
    *head.uri_mut() = uri;
    *head.headers_mut() = request.fields.to_map();
    if request.announced
        && let Some(length) = request.body.length()
    {
        head.headers_mut().insert("content-length", length.into());
    }
    head
}

pub(super) struct Up {
    send: SendStream<Bytes>,
    ended: bool,
}

impl Up {
    pub(super) async fn data(&mut self, piece: Bytes) -> Result<(), Error> {
        send(&mut self.send, piece).await.map_err(broken)
    }

    pub(super) fn finish(&mut self, trailers: &Fields) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let sent = if trailers.is_empty() {
            self.send.send_data(Bytes::new(), true)
        } else {
            self.send.send_trailers(trailers.to_map())
        };
        sent.map_err(broken)
    }

    pub(super) fn cancel(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
    }
}

/// Sends a piece as the windows allow.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), String> {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let granted = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(granted)) => granted,
            Some(Err(e)) => return Err(e.to_string()),
            None => return Err("the stream is closed".to_owned()),
        };
        let part = piece.split_to(granted.min(piece.len()));
        stream.send_data(part, false).map_err(|e| e.to_string())?;
    }
    Ok(())
}

pub(super) struct Down {
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
}

impl Down {
    pub(super) async fn head(&mut self) -> Result<(u16, Fields), Error> {
        let response = self.response.as_mut().ok_or_else(|| broken("the head was read"))?;
        let interim = poll_fn(|cx| {
            if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                return Poll::Ready(Err(interim));
            }
            Pin::new(&mut *response).poll(cx).map(Ok)
        })
        .await;
        match interim {
            Err(interim) => {
                let interim = interim.map_err(broken)?;
                Ok((interim.status().as_u16(), Fields::from_map(interim.headers())))
            }
            Ok(last) => {
                self.response = None;
                let (parts, body) = last.map_err(broken)?.into_parts();
                self.body = Some(body);
                Ok((parts.status.as_u16(), Fields::from_map(&parts.headers)))
            }
        }
    }

    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        let body = self.body.as_mut().ok_or_else(|| broken("no head was read"))?;
        match body.data().await {
            Some(Ok(piece)) => {
                body.flow_control().release_capacity(piece.len()).map_err(broken)?;
                Ok(Some(piece))
            }
            Some(Err(e)) => Err(broken(e)),
            None => Ok(None),
        }
    }

    pub(super) async fn trailers(&mut self) -> Result<Fields, Error> {
        let body = self.body.as_mut().ok_or_else(|| broken("no head was read"))?;
        let trailers = body.trailers().await.map_err(broken)?;
        Ok(trailers.map(|t| Fields::from_map(&t)).unwrap_or_default())
    }
}

/// Reads the frame headers that pass by, for what `h2` does not tell its user.
#[derive(Default)]
struct Watch {
    pending: Vec<u8>,
    skip: usize,
    frames: Vec<FrameSeen>,
}

impl Watch {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            // The largest frame looked into is GOAWAY's fixed part.
            let wanted = if self.pending.len() < 9 { 9 } else { 17 };
            let taken = (wanted - self.pending.len()).min(bytes.len());
            self.pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.pending.len() < 9 {
            return;
        }
        let number = |at: usize| u32::from_be_bytes(self.pending[at..at + 4].try_into().expect("four bytes"));
        let (length, kind) = ((number(0) >> 8) as usize, self.pending[3]);
        let looked_at = match kind {
            7 => 8,
            3 => 4,
            _ => 0,
        };
        if self.pending.len() < 9 + looked_at {
            return;
        }
        let seen = match kind {
            0 | 1 => None,
            7 => Some(FrameSeen::GoAway(number(9), number(13))),
            3 => Some(FrameSeen::Reset(number(5), number(9))),
            other => Some(FrameSeen::Other(other)),
        };
        self.frames.extend(seen);
        // For RST_STREAM up to four bytes of the next frame are already here.
        let used = 9 + looked_at;
        let rest = self.pending.split_off(used);
        self.pending.clear();
        self.skip = length - looked_at;
        if !rest.is_empty() {
            self.take(&rest);
        }
    }
}

struct Watched<S> {
    io: S,
    seen: Arc<Mutex<Watch>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        this.seen.lock().unwrap().take(&buf.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = vec![0, 0, 3, 0, 0, 0, 0, 0, 1, 9, 9, 9];
        bytes.extend([0, 0, 4, 3, 0, 0, 0, 0, 5, 0, 0, 0, 8]);
        bytes.extend([0, 0, 10, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, b'h', b'i']);
        bytes.extend([0, 0, 0, 4, 1, 0, 0, 0, 0]);
        let expected = [FrameSeen::Reset(5, 8), FrameSeen::GoAway(7, 0), FrameSeen::Other(4)];
        for step in [1, 2, 5, 7, 100] {
            let mut watch = Watch::default();
            bytes.chunks(step).for_each(|part| watch.take(part));
            assert_eq!(watch.frames, expected, "in steps of {step}");
        }
    }
}
