//! How long a VM is waited for.

use std::task::{Context, Poll};
use std::time::Duration;

use foregate_exchange::deadline::Deadline;

use crate::upload::Progress;

/// How long a VM may leave us without a step of its own: taking a piece of the request, or beginning the
/// response when it has all of it. Waiting for the client does not count.
pub(crate) struct Patience {
    limit: Option<Duration>,
    taken: u64,
}

impl Patience {
    pub(crate) fn new(limit: Option<Duration>) -> Patience {
        Patience { limit, taken: 0 }
    }

    /// Ready when the limit has passed. The deadline is the caller's, cleared before the first call.
    pub(crate) fn poll(
        &mut self,
        deadline: &mut Deadline,
        progress: Option<&Progress>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.limit.is_none() {
            return Poll::Pending;
        }
        let turn = progress.map_or(Some(0), |progress| progress.vms_turn(cx));
        if turn != Some(self.taken) {
            self.taken = turn.unwrap_or(self.taken);
            deadline.clear();
        }
        // Over HTTP/2 nobody tells us that the client's turn is over, so its wait too is looked at in time.
        let due = deadline.poll(cx, self.limit);
        if turn.is_some() { due } else { Poll::Pending }
    }
}
