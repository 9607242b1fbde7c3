//! Time limits whose timers are touched only when they fire.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::upload::Progress;

/// A time-out between two events, whose timer is touched only when it fires.
pub(crate) struct Idle {
    limit: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(crate) fn new(limit: Duration) -> Idle {
        Idle { limit, last: Instant::now(), timer: None }
    }

    /// Something happened.
    pub(crate) fn touch(&mut self) {
        self.last = Instant::now();
    }

    /// Ready when nothing has happened for the limit. Call it when there is nothing to do.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.last + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        while timer.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// How long a VM may leave us without a step of its own: taking a piece of the request, or beginning the
/// response when it has all of it. Waiting for the client does not count.
pub(crate) struct Patience {
    limit: Option<Duration>,
    since: Option<Instant>,
    taken: u64,
}

impl Patience {
    pub(crate) fn new(limit: Option<Duration>) -> Patience {
        Patience { limit, since: None, taken: 0 }
    }

    /// Ready when the limit has passed. The timer is the caller's, on its stack.
    pub(crate) fn poll(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        progress: Option<&Progress>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let turn = progress.map_or(Some(0), |progress| progress.vms_turn(cx));
        if turn != Some(self.taken) {
            self.taken = turn.unwrap_or(self.taken);
            self.since = None;
        }
        let due = *self.since.get_or_insert_with(Instant::now) + limit;
        if timer.is_none() {
            timer.set(Some(tokio::time::sleep_until(due)));
        }
        while timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
            if due <= Instant::now() && turn.is_some() {
                return Poll::Ready(());
            }
            timer.set(Some(tokio::time::sleep_until(due.max(Instant::now() + limit / 4))));
        }
        Poll::Pending
    }
}
