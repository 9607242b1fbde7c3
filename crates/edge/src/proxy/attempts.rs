//! The attempts of one request: what became of each, what that says of its VM, and whether another one follows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::{Body, Failure, Kind, head};
use foregate_routing::{Cause, Entry, Member, Pool, Repetition, Verdict};
use foregate_upstream::SendError;
use http::{HeaderValue, Response};
use http_body::Body as _;

/// What has been tried so far.
pub(super) struct Attempts<'p> {
    pool: &'p Arc<Pool>,
    /// The body that another attempt would have, where one may follow although a VM may have seen this one.
    pub(super) again: Option<Bytes>,
    /// VMs that are not asked again.
    pub(super) tried: Vec<usize>,
    /// What the client gets if no other VM does better.
    pub(super) refused: Option<Response<Body>>,
    /// Told when it is known whether another attempt follows.
    pub(super) failed: Option<Failed<'p>>,
    repetition: Option<Repetition<'p>>,
    /// Whose last failure said nothing of it.
    excused: Option<usize>,
}

/// How an attempt was made.
#[derive(Clone, Copy)]
pub(super) struct Made {
    /// On a connection that was there.
    pub(super) reused: bool,
    /// The fields are still whole if the connection turns out to be stale.
    pub(super) leaves_fields: bool,
    /// Its VM was set aside while it waited.
    pub(super) has_left: bool,
    /// Another one may follow.
    pub(super) may_repeat: bool,
}

impl<'p> Attempts<'p> {
    pub(super) fn new(pool: &'p Arc<Pool>, again: Option<Bytes>) -> Attempts<'p> {
        Attempts {
            pool,
            again,
            tried: Vec::new(),
            refused: None,
            failed: None,
            repetition: None,
            excused: None,
        }
    }

    /// There was no connection. Whether another VM is asked.
    pub(super) fn unconnected(&mut self, attempt: &Attempt<'p>, failure: Failure, now: u64) -> bool {
        let unreachable = cause(failure.kind()) == Some(Cause::Connect);
        self.failed = Some(Failed { member: attempt.member, failure });
        if !unreachable {
            return false;
        }
        judge(self.pool, attempt, false, now);
        self.tried.push(attempt.index);
        self.pool.retry.covers(Cause::Connect)
    }

    /// A VM has answered; whether that is well.
    pub(super) fn answered(&self, attempt: &Attempt<'p>, response: &Response<Body>, now: u64) -> bool {
        let took = Duration::from_nanos(now.saturating_sub(attempt.begun));
        let vitals = &attempt.member.endpoint.vitals;
        vitals.observe_latency(took, now);
        self.pool.observe(took);
        let well = judge_answer(self.pool, attempt, response, now);
        if response.body().is_end_stream() || matches!(response.body(), Body::Full(_)) {
            vitals.cut(false);
        }
        well
    }

    /// What it has answered is to be had better. The body for another VM, if one is asked.
    pub(super) fn refused(&mut self, index: usize, response: Response<Body>, made: Made) -> Option<Body> {
        self.refused.get_or_insert(response);
        let again = self.again.clone().filter(|_| made.may_repeat)?;
        if !self.repeat() {
            return None;
        }
        self.tried.push(index);
        Some(Body::from(again))
    }

    /// No answer came. The body for another attempt, if one follows.
    pub(super) fn failed(
        &mut self,
        attempt: Attempt<'p>,
        error: SendError,
        made: Made,
        now: u64,
    ) -> Option<Body> {
        let blames_vm = error.blames_vm();
        let SendError { failure, unsent, refused } = error;
        let cause = cause(failure.kind());
        // A stale connection says nothing about its VM.
        let untouched = unsent.is_some();
        let reset = failure.kind() == Kind::Reset;
        let stale = made.reused && !refused && reset && (made.leaves_fields || untouched);
        if blames_vm && !stale {
            judge(self.pool, &attempt, false, now);
        }
        let covered = stale || cause.is_some_and(|cause| self.pool.retry.covers(cause));
        let body = unsent.or_else(|| self.again.clone().filter(|_| covered).map(Body::from));
        self.failed = Some(Failed { member: attempt.member, failure });
        let body = body.filter(|_| made.may_repeat)?;
        let is_only = self.pool.members().len() == 1;
        if !(stale || untouched) {
            // Where the VM is dead nothing is done twice.
            if made.has_left {
                self.repetition = None;
            } else if !self.repeat() {
                return None;
            }
            // An only VM may do better on a new connection.
            if !(made.reused && is_only) {
                self.tried.push(attempt.index);
            }
        } else if !is_only && (refused || self.excused.replace(attempt.index) == Some(attempt.index)) {
            // All the connections of one that has just died are stale, and there may be many.
            self.tried.push(attempt.index);
        }
        Some(body)
    }

    /// One more within the pool's budget, in the place of the one before.
    fn repeat(&mut self) -> bool {
        drop(self.repetition.take());
        self.repetition = self.pool.repeat();
        self.repetition.is_some()
    }

    /// There are no more of them: what a VM has said, or why none has said anything.
    pub(super) fn end(self) -> (Option<Response<Body>>, Option<Failed<'p>>) {
        (self.refused, self.failed)
    }
}

/// One VM that is asked.
pub(super) struct Attempt<'p> {
    pub(super) member: &'p Member,
    pub(super) index: usize,
    pub(super) entry: Entry,
    /// What its answer sets, so that the client comes back.
    pub(super) cookie: Option<HeaderValue>,
    /// Nanoseconds, when it had a connection.
    pub(super) begun: u64,
}

/// Takes in how an attempt went.
pub(super) fn judge(pool: &Pool, attempt: &Attempt<'_>, well: bool, now: u64) {
    if let Some(verdict) = pool.judge(attempt.index, attempt.entry, well, now) {
        announce(pool, attempt.member, verdict);
    }
}

/// Takes in what a VM has answered; whether that is well.
fn judge_answer(pool: &Pool, attempt: &Attempt<'_>, response: &Response<Body>, now: u64) -> bool {
    let well = !pool.retry.covers(Cause::Status(response.status()));
    let mut verdict = pool.judge(attempt.index, attempt.entry, well, now);
    if let (false, Some(Verdict::SetAside(_))) = (well, verdict)
        && let Some(rest) = head::retry_after(response.headers())
    {
        verdict = pool.let_rest(attempt.index, rest, now);
    }
    if let Some(verdict) = verdict {
        announce(pool, attempt.member, verdict);
    }
    well
}

/// Says what live traffic has changed.
fn announce(pool: &Pool, member: &Member, verdict: Verdict) {
    let (pool, backend, address) = (&*pool.name, &*member.name, &member.endpoint.address);
    match verdict {
        Verdict::SetAside(time) => {
            tracing::warn!(pool, backend, %address, ?time, "backend is set aside: its requests fail");
        }
        Verdict::Restored => tracing::info!(pool, backend, %address, "backend takes part again"),
        Verdict::AllFail => {
            tracing::error!(pool, backend, "every backend fails: those that were set aside take part again");
        }
    }
}

/// An attempt that brought no response.
pub(super) struct Failed<'p> {
    pub(super) member: &'p Member,
    pub(super) failure: Failure,
}

/// What a pool's `retry.on` calls a failure; none: it is the client's.
fn cause(kind: Kind) -> Option<Cause> {
    match kind {
        Kind::Resolve | Kind::Connect | Kind::ConnectTimeout | Kind::Tls => Some(Cause::Connect),
        Kind::Reset | Kind::BadResponse | Kind::Truncated => Some(Cause::Reset),
        Kind::HeadTimeout | Kind::BodyTimeout => Some(Cause::Timeout),
        Kind::ClientGone | Kind::ClientBody | Kind::ClientBodyTimeout | Kind::ClientBodyTooLarge => None,
    }
}
