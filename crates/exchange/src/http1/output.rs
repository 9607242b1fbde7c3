//! What waits to be written to a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Pieces of a body smaller than this are copied together; larger ones are written from where they are.
const COPY_BELOW: usize = 8 * 1024;
/// What may wait to be written before a body is asked for more.
const WRITE_BEFORE_MORE: usize = 64 * 1024;

/// What a connection keeps to write from: a head with a small body.
const USUAL: usize = 2 * 1024;

/// Bytes on their way out: first the copied ones, then the large piece. While there is a large piece nothing
/// may be copied behind it.
#[derive(Debug, Default)]
pub struct Output {
    copied: BytesMut,
    large: Bytes,
    /// The large piece was a chunk whose CR LF is still owed.
    owes_chunk_end: bool,
    unflushed: bool,
    written: u64,
}

impl Output {
    /// What is written next, to append to.
    pub fn bytes(&mut self) -> &mut BytesMut {
        &mut self.copied
    }

    /// Appends a piece of a body, by reference if it is large. There must be room.
    pub fn put_data(&mut self, data: &Bytes) {
        if data.len() < COPY_BELOW {
            self.copied.put_slice(data);
        } else {
            self.large = data.clone();
        }
    }

    /// Ends the chunk whose data was just put.
    pub fn end_chunk(&mut self) {
        if self.large.is_empty() {
            self.copied.put_slice(b"\r\n");
        } else {
            self.owes_chunk_end = true;
        }
    }

    /// Whether more of a body may be put before a write.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.large.is_empty() && self.copied.len() < WRITE_BEFORE_MORE
    }

    /// Whether everything has been written and flushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.unflushed && self.copied.is_empty() && self.large.is_empty()
    }

    /// Gives back memory that only a large body needs.
    pub fn rest(&mut self) {
        // The capacity is what is behind the bytes that were written; this looks at all of the buffer.
        if self.copied.is_empty() && self.copied.try_reclaim(USUAL + 1) {
            self.copied = BytesMut::new();
        }
    }

    /// How many bytes the stream has taken.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes what waits, without flushing layers below. `Ready` when nothing waits here any more.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_write<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        let mut io = Pin::new(io);
        while !(self.copied.is_empty() && self.large.is_empty()) {
            let n = if self.copied.is_empty() {
                ready!(io.as_mut().poll_write(cx, &self.large))?
            } else if self.large.is_empty() || !io.is_write_vectored() {
                ready!(io.as_mut().poll_write(cx, &self.copied))?
            } else {
                let slices = [IoSlice::new(&self.copied), IoSlice::new(&self.large)];
                ready!(io.as_mut().poll_write_vectored(cx, &slices))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.written += n as u64;
            let copied = n.min(self.copied.len());
            self.copied.advance(copied);
            let uncopied = (n - copied).min(self.large.len());
            self.large.advance(uncopied);
            if self.large.is_empty() && std::mem::take(&mut self.owes_chunk_end) {
                self.copied.put_slice(b"\r\n");
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what waits and flushes it to the socket.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_flush<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        ready!(self.poll_write(io, cx))?;
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_large_body_needed_is_given_back() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for (pieces, kept) in [(1, true), (8, false)] {
            let mut output = Output::default();
            for _ in 0..pieces {
                output.put_data(&Bytes::from_static(&[0; 1024]));
            }
            assert!(output.poll_flush(&mut tokio::io::sink(), &mut cx).is_ready());
            output.rest();
            assert_eq!(output.bytes().try_reclaim(1024), kept, "{pieces} KiB");
            assert!(!output.bytes().try_reclaim(USUAL + 1), "{pieces} KiB");
        }
    }
}
