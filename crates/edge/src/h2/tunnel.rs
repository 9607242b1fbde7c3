//! An HTTP/2 stream as a byte stream, for tunnels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The client's end of a tunnel.
pub(super) struct StreamIo {
    recv: RecvStream,
    send: SendStream<Bytes>,
    /// Received and not yet read.
    unread: Bytes,
    finished: bool,
}

impl StreamIo {
    pub(super) fn new(recv: RecvStream, send: SendStream<Bytes>) -> StreamIo {
        StreamIo { recv, send, unread: Bytes::new(), finished: false }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                // RFC 8441, section 5: a reset is what a closed TCP connection is.
                Some(Err(error)) if error.reason() == Some(Reason::CANCEL) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(self.unread.get(..n).unwrap_or_default());
        self.unread.advance(n);
        self.recv.flow_control().release_capacity(n).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(buf.len());
        let capacity = loop {
            if self.send.capacity() > 0 {
                break self.send.capacity();
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) if capacity > 0 => break capacity,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        };
        let n = buf.len().min(capacity);
        let piece = Bytes::copy_from_slice(buf.get(..n).unwrap_or_default());
        self.send.send_data(piece, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
