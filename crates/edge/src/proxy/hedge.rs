//! Asking a second VM where the first takes long: the first good answer wins.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use foregate_exchange::{Body, Kind, clock};
use foregate_routing::{Cause, Pick, Pool};
use foregate_upstream::{Outgoing, SendError, Transport};
use http::{HeaderMap, Response};
use tokio::time::sleep;

use super::attempts::{Attempt, judge};
use super::forward::Forwarding;

/// What an attempt, or two of them, came to.
pub(super) struct Outcome<'p> {
    pub(super) attempt: Attempt<'p>,
    pub(super) answer: Answered,
    /// Another member that was tried, and judged already.
    pub(super) other: Option<usize>,
}

pub(super) type Answered = Result<Response<Body>, SendError>;

/// What a second attempt needs beside the first.
pub(super) struct Spare<'a> {
    pub(super) transport: &'a Transport,
    pub(super) outgoing: Outgoing,
    pub(super) key: u64,
    /// What the client's cookies were.
    pub(super) carried: &'a HeaderMap,
    /// Including the first attempt's member.
    pub(super) tried: Vec<usize>,
    pub(super) after: Duration,
    /// The first attempt's connection had waited for work.
    pub(super) reused: bool,
}

impl Forwarding<'_> {
    /// Waits for `first`, and if that takes long for a second VM's answer too. Whoever is not waited for any more is
    /// cancelled.
    pub(super) async fn hedge<'p>(
        &self,
        pool: &'p Pool,
        attempt: Attempt<'p>,
        first: impl Future<Output = Answered>,
        spare: Spare<'_>,
    ) -> Outcome<'p> {
        let mut first = pin!(first);
        tokio::select! {
            biased;
            answer = &mut first => return Outcome { attempt, answer, other: None },
            () = sleep(spare.after) => {}
        }
        let counted = pool.repeat();
        let roll = self.worker.roll();
        let pick = counted
            .as_ref()
            .and_then(|_| pool.pick_beside(spare.key, &spare.tried, roll, clock::now_nanos()));
        let Some(Pick { member, index, entry, in_flight }) = pick else {
            return Outcome { attempt, answer: first.await, other: None };
        };
        let begun = clock::now_nanos();
        let cookie = pool.sticky_cookie(spare.carried, index, self.is_secure());
        let second_attempt = Attempt { member, index, entry, cookie, begun };
        let mut outgoing = spare.outgoing;
        outgoing.authority = self.authority_for(&member.endpoint.address, spare.transport);
        // One that hangs is left, and found out about, like any other.
        let waiting =
            pool.patience().map(|patience| self.worker.waits.begin(&member.endpoint, begun, patience));
        let reused = Cell::new(false);
        let mut second = pin!(async {
            match self.worker.client.connect(&member.endpoint, spare.transport, false).await {
                Ok(link) => {
                    reused.set(link.reused());
                    self.send(link, &mut outgoing, in_flight, waiting.as_ref()).await
                }
                Err(failure) => Err(failure.into()),
            }
        });
        let is_good = |answer: &Answered| {
            answer.as_ref().is_ok_and(|response| !pool.retry.covers(Cause::Status(response.status())))
        };
        let (one, is_first) = poll_fn(|cx| {
            if let Poll::Ready(answer) = first.as_mut().poll(cx) {
                return Poll::Ready((answer, true));
            }
            second.as_mut().poll(cx).map(|answer| (answer, false))
        })
        .await;
        if is_good(&one) {
            let loser = if is_first { &second_attempt } else { &attempt };
            self.lose(pool, loser, !is_first);
            if let Some(waiting) = waiting.as_ref().filter(|_| is_first) {
                waiting.linger();
            }
            let attempt = if is_first { attempt } else { second_attempt };
            return Outcome { attempt, answer: one, other: None };
        }
        let two = if is_first { second.await } else { first.await };
        let (first, second) = if is_first { (one, two) } else { (two, one) };
        // A good answer, or else any, or else the failure of the first attempt.
        let keeps_second = match (&first, &second) {
            (_, Ok(_)) if is_good(&second) => true,
            (Err(_), Ok(_)) => true,
            _ => false,
        };
        let (attempt, answer, lost, its, was_reused) = match keeps_second {
            true => (second_attempt, second, attempt, first, spare.reused),
            false => (attempt, first, second_attempt, second, reused.get()),
        };
        let says_nothing = match &its {
            // The VM may close a connection that waits for work when it likes.
            Err(error) => !error.blames_vm() || was_reused && error.failure.kind() == Kind::Reset,
            Ok(_) => false,
        };
        if !says_nothing {
            judge(pool, &lost, is_good(&its), clock::now_nanos());
        }
        Outcome { attempt, answer, other: Some(lost.index) }
    }

    /// An attempt is given up because the other one was faster. It would have taken this long at least, which is worth
    /// knowing if it is longer than what is known.
    fn lose(&self, pool: &Pool, loser: &Attempt<'_>, was_first: bool) {
        let now = clock::now_nanos();
        let took = Duration::from_nanos(now.saturating_sub(loser.begun));
        let vitals = &loser.member.endpoint.vitals;
        if took.as_secs_f64() > vitals.latency(now) {
            vitals.observe_latency(took, now);
        }
        if was_first {
            pool.observe(took);
        }
    }
}
