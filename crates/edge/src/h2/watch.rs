//! Request heads that arrive drop by drop. The h2 crate shows a head when it is whole and has no clock for
//! one that is not, so the frames' outlines are followed on their way in (RFC 9113, section 4.1).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use foregate_exchange::reading::Reading;
use tokio::io::{AsyncRead, ReadBuf};

use crate::deadline::Deadline;

const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Whether a head has begun and not ended; `begun` counts heads, so that each gets its own time.
#[derive(Debug, Default)]
pub(super) struct HalfHead {
    open: Cell<bool>,
    begun: Cell<u64>,
}

/// The time a head may take.
#[derive(Debug, Default)]
pub(super) struct HalfHeadDeadline {
    deadline: Deadline,
    of: u64,
}

impl HalfHeadDeadline {
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        head: &HalfHead,
        limit: Option<Duration>,
    ) -> Poll<()> {
        if !head.open.get() {
            return Poll::Pending;
        }
        if self.of != head.begun.get() {
            self.of = head.begun.get();
            self.deadline.clear();
        }
        self.deadline.poll(cx, limit)
    }
}

/// Follows the frames of a connection as they are read.
pub(super) struct Outline {
    head: Rc<HalfHead>,
    /// Bytes of the preface or of a payload still to pass.
    skip: usize,
    frame: [u8; FRAME_HEAD],
    have: usize,
    /// The block of fields goes on after this frame.
    continues: bool,
}

impl Outline {
    pub(super) fn new(head: Rc<HalfHead>) -> Outline {
        Outline { head, skip: PREFACE, frame: [0; FRAME_HEAD], have: 0, continues: false }
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = bytes.get(n..).unwrap_or_default();
                if self.skip == 0 && !self.continues {
                    self.head.open.set(false);
                }
                continue;
            }
            let n = (FRAME_HEAD - self.have).min(bytes.len());
            let (now, rest) = bytes.split_at_checked(n).unwrap_or_default();
            if let Some(room) = self.frame.get_mut(self.have..self.have + n) {
                room.copy_from_slice(now);
            }
            self.have += n;
            bytes = rest;
            if self.have == FRAME_HEAD {
                self.have = 0;
                self.frame();
            }
        }
    }

    fn frame(&mut self) {
        let [a, b, c, kind, flags, ..] = self.frame;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == HEADERS || kind == CONTINUATION {
            if !self.head.open.replace(true) {
                self.head.begun.set(self.head.begun.get() + 1);
            }
            self.continues = flags & END_HEADERS == 0;
        }
        if self.skip == 0 && !self.continues {
            self.head.open.set(false);
        }
    }
}

impl Reading for Outline {
    fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        self.follow(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_open_from_its_first_frame_to_its_last_byte() {
        let head = Rc::new(HalfHead::default());
        let mut outline = Outline::new(head.clone());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let headers = [0, 0, 2, HEADERS, 0, 0, 0, 0, 1, 7, 7];
        let rest = [0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1, 7];
        let data = [0, 0, 1, 0, 0, 0, 0, 0, 1, 7];
        bytes.extend(settings.iter().chain(&headers).chain(&rest).chain(&data));
        let opens = PREFACE + settings.len() + FRAME_HEAD;
        let closes = PREFACE + settings.len() + headers.len() + rest.len();
        for (at, byte) in bytes.iter().enumerate() {
            outline.follow(&[*byte]);
            let read = at + 1;
            assert_eq!(head.open.get(), (opens..closes).contains(&read), "after {read} bytes");
        }
        assert_eq!(head.begun.get(), 1);
    }
}
