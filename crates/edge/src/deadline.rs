//! A time limit that costs nothing while things go well.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Counts from the first `poll` after a `clear`. The runtime's timer is touched only when it fires, or
/// when a shorter limit comes: a busy connection moves its deadline thousands of times for nothing.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Something happened: the next wait begins anew.
    pub(crate) fn clear(&mut self) {
        self.due = None;
    }

    /// Ready when the limit has passed since waiting began; `None` never is. Call it when there is
    /// nothing to do.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, limit: Option<Duration>) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        let due = *self.due.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}
