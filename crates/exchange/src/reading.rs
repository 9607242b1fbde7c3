//! Byte streams that are read in a way of their own and written as they are.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A way of reading.
pub trait Reading {
    /// As [`AsyncRead::poll_read`], with the stream to read from.
    ///
    /// # Errors
    /// Those of the stream.
    fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>;
}

/// A stream that is read by `R`.
#[derive(Debug)]
pub struct ReadBy<R, IO> {
    reading: R,
    io: IO,
}

impl<R, IO> ReadBy<R, IO> {
    pub fn new(reading: R, io: IO) -> ReadBy<R, IO> {
        ReadBy { reading, io }
    }
}

impl<R: Reading + Unpin, IO: AsyncRead + Unpin> AsyncRead for ReadBy<R, IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.reading.poll_read(&mut this.io, cx, buf)
    }
}

impl<R: Unpin, IO: AsyncWrite + Unpin> AsyncWrite for ReadBy<R, IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// First what was read too early, then the stream.
#[derive(Debug)]
pub struct Rewound(pub Bytes);

impl Reading for Rewound {
    fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Pin::new(io).poll_read(cx, buf);
        }
        let n = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0.split_to(n));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_read_too_early_comes_first() {
        let (near, mut far) = duplex(64);
        let mut stream = ReadBy::new(Rewound(Bytes::from_static(b"early")), near);
        far.write_all(b" and late").await.unwrap();
        // In reads smaller than what is there, and larger.
        let (mut first, mut rest) = ([0; 3], [0; 11]);
        stream.read_exact(&mut first).await.unwrap();
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!([&first[..], &rest].concat(), b"early and late");

        stream.write_all(b"answer").await.unwrap();
        drop(stream);
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }
}
