//! Asking a second VM where the first takes long: the first good answer wins.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use foregate_exchange::{Body, clock};
use foregate_routing::{Cause, Pick, Pool};
use foregate_upstream::{Outgoing, SendError, Transport};
use http::{HeaderMap, Response};
use tokio::time::sleep;

use super::forward::{Attempt, Forwarding, judge};

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
}

impl Forwarding<'_> {
    /// Waits for `first`, and if that takes long for a second VM's answer too.
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
        let pick = self.pick_now(pool, spare.key, spare.carried, &spare.tried);
        let (Some(pick), Some(_counted)) = (pick, pool.repeat()) else {
            return Outcome { attempt, answer: first.await, other: None };
        };
        let Pick { member, index, entry, in_flight } = pick;
        let cookie = pool.sticky_cookie(spare.carried, index, self.is_secure());
        let second_attempt = Attempt { member, index, entry, cookie, begun: clock::now_nanos() };
        let mut outgoing = spare.outgoing;
        outgoing.authority = self.authority_for(&member.endpoint.address, spare.transport);
        let mut second = pin!(async {
            match self.worker.client.connect(&member.endpoint, spare.transport, false).await {
                // Whoever asks twice wants one answer: what is said before it is the first one's to say.
                Ok(link) => link.send(&mut outgoing, in_flight, |_, _| {}).await,
                Err(failure) => Err(SendError { failure, unsent: None }),
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
        let (attempt, other) = if is_first { (attempt, second_attempt) } else { (second_attempt, attempt) };
        let now = clock::now_nanos();
        if is_good(&one) {
            // It took this long at least, which is worth knowing although nobody waits for it any more.
            let took = Duration::from_nanos(now.saturating_sub(other.begun));
            other.member.endpoint.vitals.observe_latency(took, now);
            pool.observe(took);
            return Outcome { attempt, answer: one, other: None };
        }
        let two = if is_first { second.await } else { first.await };
        let now = clock::now_nanos();
        // A good answer, or else any, or else the failure of the first attempt.
        let takes_two = match (&one, &two) {
            (Err(_), Err(_)) => !is_first,
            (Err(_), Ok(_)) => true,
            (Ok(_), _) => is_good(&two),
        };
        let (kept, lost) = match takes_two {
            true => ((other, two), (attempt, one)),
            false => ((attempt, one), (other, two)),
        };
        let (lost, answer) = lost;
        if answer.as_ref().err().is_none_or(|error| error.blames_vm()) {
            judge(pool, &lost, is_good(&answer), now);
        }
        let (attempt, answer) = kept;
        Outcome { attempt, answer, other: Some(lost.index) }
    }
}
