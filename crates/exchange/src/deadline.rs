//! A time limit that costs nothing while things go well.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Counts from the first `poll` after a `clear`. The runtime's timer is touched only when it fires, or
/// when a shorter limit comes: a busy connection moves its deadline thousands of times for nothing.
///
/// Time in which nobody polls before that does not count: who did not wait was not kept waiting.
#[derive(Debug, Default)]
pub struct Deadline {
    due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Something happened: the next wait begins anew.
    pub fn clear(&mut self) {
        self.due = None;
    }

    /// Ready when the limit has passed since waiting began; `None` never is. Call it when there is
    /// nothing to do.
    pub fn poll(&mut self, cx: &mut Context<'_>, limit: Option<Duration>) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        let now = Instant::now();
        let due = *self.due.get_or_insert_with(|| now + limit);
        // The timer says nothing to a task that has used up its share of the thread, as one does that is flooded.
        if due <= now {
            return Poll::Ready(());
        }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long it takes to become due; whoever waits is woken by its timer alone.
    async fn due_after(deadline: &mut Deadline, limit: Duration) -> Duration {
        let begun = Instant::now();
        poll_fn(|cx| deadline.poll(cx, Some(limit))).await;
        begun.elapsed()
    }

    /// One look at it, by a task that then does something else.
    async fn look(deadline: &mut Deadline, limit: Option<Duration>) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(deadline.poll(cx, limit))).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_first_wait() {
        let mut deadline = Deadline::default();
        // Before anybody waits nothing is due, and what passes does not count.
        tokio::time::advance(SECOND * 100).await;
        assert_eq!(due_after(&mut deadline, SECOND * 5).await, SECOND * 5);
        assert_eq!(due_after(&mut deadline, SECOND * 5).await, Duration::ZERO, "it stays due");
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_begins_it_anew() {
        let mut deadline = Deadline::default();
        for _ in 0..10 {
            assert!(look(&mut deadline, Some(SECOND * 5)).await.is_pending());
            tokio::time::advance(SECOND * 4).await;
            deadline.clear();
        }
        tokio::time::advance(SECOND * 4).await;
        assert_eq!(due_after(&mut deadline, SECOND * 5).await, SECOND * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn looking_again_does_not_begin_it_anew() {
        let mut deadline = Deadline::default();
        for _ in 0..4 {
            assert!(look(&mut deadline, Some(SECOND * 5)).await.is_pending());
            tokio::time::advance(SECOND).await;
        }
        assert_eq!(due_after(&mut deadline, SECOND * 5).await, SECOND);
    }

    /// The timer stands where the longer limit set it, and must not be waited for.
    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_after_a_longer_one_holds() {
        let mut deadline = Deadline::default();
        assert!(look(&mut deadline, Some(SECOND * 60)).await.is_pending());
        deadline.clear();
        assert_eq!(due_after(&mut deadline, SECOND * 2).await, SECOND * 2);
        deadline.clear();
        assert_eq!(due_after(&mut deadline, SECOND * 60).await, SECOND * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_is_never_due() {
        let mut deadline = Deadline::default();
        tokio::time::advance(SECOND * 1_000_000).await;
        assert!(look(&mut deadline, None).await.is_pending());
    }
}
