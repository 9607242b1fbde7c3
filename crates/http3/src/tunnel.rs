//! A request stream as a byte stream in both directions, after an extended CONNECT (RFC 9220).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Code, Error, RecvStream, SendStream};

/// Both halves of a stream whose CONNECT was accepted. An end in one direction leaves the other open;
/// dropped before both have ended, it is what a reset TCP connection is.
pub struct Tunnel {
    recv: RecvStream,
    send: SendStream,
    unread: Bytes,
}

impl Tunnel {
    #[must_use]
    pub fn new(recv: RecvStream, send: SendStream) -> Tunnel {
        Tunnel { recv, send, unread: Bytes::new() }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_body(cx)) {
                Some(frame) => self.unread = frame.map_err(broken)?.into_data().unwrap_or_default(),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(self.unread.get(..n).unwrap_or_default());
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.send.poll_flush(cx)).map_err(broken)?;
        self.send.data(Bytes::copy_from_slice(buf));
        // It is taken; how far it gets now is seen at the next call.
        if let Poll::Ready(Err(error)) = self.send.poll_flush(cx) {
            return Poll::Ready(Err(broken(error)));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send.poll_flush(cx)).map_err(broken)?;
        self.send.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.recv.stop(Code::H3_REQUEST_CANCELLED);
    }
}

fn broken(error: Error) -> io::Error {
    let kind = match error {
        Error::Cancelled(_) | Error::Lost(_) => io::ErrorKind::ConnectionReset,
        Error::Closed => io::ErrorKind::NotConnected,
        Error::Violation(_) | Error::TooLarge => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}
