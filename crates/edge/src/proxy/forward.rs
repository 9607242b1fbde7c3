//! To a VM and back: pick, connect, send, and when that fails decide whether to try another.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::head::{self, Origin};
use foregate_exchange::{Body, Failure, Kind, Side, clock};
use foregate_routing::{
    Address, Cause, Entry, HeaderEdit, InFlight, Matched, Pick, Pool, RequestView, Sleep, UpstreamHost,
    Variables,
};
use foregate_upstream::{Link, Outgoing, SendError, Transport};
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, SET_COOKIE, TE, UPGRADE};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::attempts::{Attempt, Attempts, Failed, Made};
use super::hedge::{Outcome, Spare};
use super::{Interim, edit};
use crate::Concern;
use crate::answer::Answer;
use crate::peer::Peer;
use crate::waits::Waiting;
use crate::worker::{Prepared, Worker};

/// A body up to this length is kept, so that its request can be made again.
const KEPT: u64 = 16 * 1024;
/// How often a request that waits for a VM looks by itself: a VM that comes up calls nobody.
const LOOK: Duration = Duration::from_millis(250);
/// Seconds after which a client may hope for a VM again.
const RETRY_AFTER: u64 = 5;

/// A request that matched a route which names VMs.
pub(super) struct Forwarding<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) live: &'a Prepared,
    pub(super) peer: &'a Peer,
    /// The client has proven who it is.
    pub(super) is_known: bool,
    pub(super) interim: Interim<'a>,
    pub(super) matched: &'a Matched<'a>,
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) version: Version,
    pub(super) normal: &'a str,
    pub(super) variables: &'a Variables<'a>,
    pub(super) authority: &'a HeaderValue,
    pub(super) id: &'a HeaderValue,
    pub(super) trusted: bool,
    pub(super) upgrade: Option<&'a HeaderValue>,
    pub(super) early: bool,
    pub(super) takes_trailers: bool,
}

impl Forwarding<'_> {
    /// Has a VM of the pool answer.
    pub(super) async fn to(
        &self,
        pool: &Arc<Pool>,
        mut headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Answer> {
        let Some(transport) = self.live.transports.get(pool.id.index()) else {
            return Err(Answer::new(StatusCode::BAD_GATEWAY, "The pool of this route cannot be reached."));
        };
        if let Some(answer) = self.refuse(pool) {
            return Err(answer);
        }
        let target = self.target()?;
        let policy = &self.matched.route.policy;
        let key = pool.key(&self.view(&headers));
        let secure = self.is_secure();
        // The client may have asked for trailers in words; HTTP/2 and 3 take them without asking.
        let ask_trailers = self.takes_trailers && headers.contains_key(TE);
        // The body a repetition would have, where one may follow (RFC 9110, section 9.2.2).
        // One that waits for 100 (Continue) waits for the VM to say so.
        let repeats = pool.retry.attempts > 0 || pool.retry.hedge.is_some();
        let keeps = self.method.is_idempotent() && repeats && !headers.contains_key(EXPECT);
        let (body, again) = match keeps {
            true => keep(body).await.map_err(|failure| self.give_up(failure))?,
            false => (body, None),
        };
        // Which VM a client belongs to is between it and us, whatever the VMs get to see of its cookies.
        let cookies = self.edits_cookies().then(|| cookies_of(&headers));
        self.clean(&mut headers);
        let mut outgoing = Outgoing {
            method: self.method.clone(),
            target,
            authority: self.authority.clone(),
            headers,
            body,
            ask_trailers,
            upgrade: self.upgrade.cloned(),
            response_timeout: policy.timeouts.response,
            idle_timeout: policy.timeouts.idle,
        };

        let mut attempts = Attempts::new(pool, again);
        let mut without = Without::Usable;
        for left in (0..=pool.retry.attempts).rev() {
            let carried = cookies.as_ref().unwrap_or(&outgoing.headers);
            // Whoever holds on to what one VM has said does not wait for another.
            let pick = match attempts.refused {
                Some(_) => self.pick_now(pool, key, carried, &attempts.tried).ok_or(Without::Usable),
                None => self.pick(pool, key, carried, &attempts.tried).await,
            };
            let Pick { member, index, entry, in_flight } = match pick {
                Ok(pick) => pick,
                Err(none) => {
                    without = none;
                    break;
                }
            };
            let now = clock::now_nanos();
            if let Some(failed) = attempts.failed.take() {
                self.report(pool, &failed, true);
            }
            let endpoint = &member.endpoint;
            let cookie = pool.sticky_cookie(cookies.as_ref().unwrap_or(&outgoing.headers), index, secure);
            let mut attempt = Attempt { member, index, entry, cookie, begun: now };
            let link = match self.worker.client.connect(endpoint, transport, self.upgrade.is_some()).await {
                Ok(link) => link,
                Err(failure) => match attempts.unconnected(&attempt, failure, clock::now_nanos()) {
                    true => continue,
                    false => break,
                },
            };
            let (reused, leaves_fields) = (link.reused(), link.leaves_fields());
            // Not only where the method allows it: a VM may be just closing the connection, or not look at the request.
            let may_repeat = left > 0;
            let hedge_after = attempts.again.as_ref().and_then(|again| {
                // Two at a time do no harm where nothing is changed, a trial is to be heard to its end, and who is stuck to
                // a VM is to stay there.
                let may = self.method.is_safe()
                    && self.upgrade.is_none()
                    && attempt.entry == Entry::Free
                    && attempt.cookie.is_some() == pool.sticks();
                Some((pool.hedge_after().filter(|_| may)?, again.clone()))
            });
            let copy =
                (hedge_after.is_some() || may_repeat && !leaves_fields).then(|| outgoing.headers.clone());
            outgoing.authority = self.authority_for(&endpoint.address, transport);
            if !reused {
                // A new connection has taken time.
                attempt.begun = clock::now_nanos();
            }
            let may_leave = may_repeat && attempts.again.is_some() && pool.retry.covers(Cause::Timeout);
            let begin = |patience| self.worker.waits.begin(endpoint, attempt.begun, patience);
            let waiting = pool.patience().map(begin);
            let leaves = waiting.as_ref().filter(|_| may_leave);
            let spare = hedge_after.zip(copy.as_ref()).map(|((after, again), headers)| Spare {
                transport,
                outgoing: outgoing.twin(headers.clone(), Body::from(again)),
                key,
                carried: cookies.as_ref().unwrap_or(headers),
                tried: attempts.tried.iter().copied().chain([index]).collect(),
                after,
                reused,
            });
            let sending = self.send(link, &mut outgoing, in_flight, leaves);
            let Outcome { attempt, answer, other } = match spare {
                // Boxed: it takes much room, and few need it.
                Some(spare) => Box::pin(self.hedge(pool, attempt, sending, spare)).await,
                None => Outcome { attempt, answer: sending.await, other: None },
            };
            attempts.tried.extend(other);
            let has_left = leaves.is_some_and(Waiting::has_left);
            if let Some(waiting) = waiting.as_ref().filter(|_| attempt.index != index) {
                // Somebody else was faster; whether it hangs is to be found out all the same.
                waiting.linger();
            }
            let (made, now) = (Made { reused, leaves_fields, has_left, may_repeat }, clock::now_nanos());
            let body = match answer {
                Ok(response) => {
                    let well = attempts.answered(&attempt, &response, now);
                    let response = self.receive(response, pool, attempt.index, attempt.cookie);
                    if well {
                        return Ok(response);
                    }
                    attempts.refused(attempt.index, response, made)
                }
                Err(error) => attempts.failed(attempt, error, made, now),
            };
            let Some(body) = body else { break };
            outgoing.body = body;
            if let Some(copy) = copy {
                outgoing.headers = copy;
            }
        }
        let (refused, failed) = attempts.end();
        if let Some(failed) = &failed {
            self.report(pool, failed, false);
        }
        match refused {
            Some(response) => Ok(response),
            None => Err(match failed {
                Some(failed) => self.give_up(failed.failure),
                None => self.turn_away(pool, without),
            }),
        }
    }

    /// Sends the request and waits for the head of its answer; who may leave does when its VM is set aside meanwhile.
    pub(super) async fn send(
        &self,
        link: Link,
        outgoing: &mut Outgoing,
        in_flight: InFlight,
        leaves: Option<&Waiting<'_>>,
    ) -> Result<Response<Body>, SendError> {
        let mut answer =
            pin!(link.send(outgoing, in_flight, |status, fields| self.pass_interim(status, fields)));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending if leaves.is_some_and(|waiting| waiting.is_lost(cx)) => {
                let failure = Failure::because(Kind::HeadTimeout, "it answers no probe either");
                Poll::Ready(Err(failure.into()))
            }
            polled => polled,
        })
        .await
    }

    fn is_for_websocket(&self) -> bool {
        self.upgrade.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
    }

    /// Over https to us, or to a trusted proxy before us.
    pub(super) fn is_secure(&self) -> bool {
        self.variables.scheme == "https"
    }

    /// The VM for the next attempt.
    async fn pick<'p>(
        &self,
        pool: &'p Arc<Pool>,
        key: u64,
        headers: &HeaderMap,
        tried: &[usize],
    ) -> Result<Pick<'p>, Without> {
        if !pool.others_wait()
            && let Some(pick) = self.pick_now(pool, key, headers, tried)
        {
            return Ok(pick);
        }
        // Boxed: it takes much room, and few need it.
        Box::pin(self.wait(pool, key, headers, tried)).await
    }

    fn pick_now<'p>(
        &self,
        pool: &'p Pool,
        key: u64,
        headers: &HeaderMap,
        tried: &[usize],
    ) -> Option<Pick<'p>> {
        let now = clock::now_nanos();
        let stuck = pool.pick_sticky(headers, tried, now);
        stuck.or_else(|| pool.pick(key, tried, self.worker.roll(), now))
    }

    /// Waits for a VM, if there is none because all have as many requests as they take.
    async fn wait<'p>(
        &self,
        pool: &'p Arc<Pool>,
        key: u64,
        headers: &HeaderMap,
        tried: &[usize],
    ) -> Result<Pick<'p>, Without> {
        let mut wait = pool.queue.timeout;
        let worth_waiting = self.is_worth_waiting(pool, tried, &mut wait);
        if !worth_waiting && !pool.others_wait() {
            return Err(Without::Usable);
        }
        let priority = self.matched.route.policy.queue_priority;
        let client = self.variables.client_ip;
        let Some(mut waiting) = pool.enter_queue(priority, client, clock::now_nanos()) else {
            return Err(Without::Room);
        };
        let (mut own_turn, mut called) = (waiting.is_first(), false);
        let begun = Instant::now();
        loop {
            if own_turn {
                if let Some(pick) = self.pick_now(pool, key, headers, tried) {
                    waiting.leave();
                    return Ok(pick);
                }
                if !self.is_worth_waiting(pool, tried, &mut wait) {
                    return Err(Without::Usable);
                }
                // Not where a VM is or was woken, and never whoever is next: then the VMs would have nothing to do.
                let stands = || pool.queue_stands(begun.elapsed(), clock::now_nanos());
                if !called && wait == pool.queue.timeout && stands() && !waiting.is_first() {
                    return Err(Without::Time);
                }
                if waiting.stay() {
                    yield_now().await;
                    continue;
                }
            }
            let look = Instant::now() + LOOK;
            let until = wait.map(|limit| begun + limit);
            let next = until.map_or(look, |until| until.min(look));
            called = timeout_at(next, &mut waiting).await.is_ok();
            if !called && until == Some(next) {
                return Err(Without::Time);
            }
            own_turn = true;
        }
    }

    /// Whether there may soon be a VM: one that is busy, or one that is being woken. For the latter one waits longer.
    fn is_worth_waiting(&self, pool: &Arc<Pool>, tried: &[usize], wait: &mut Option<Duration>) -> bool {
        if pool.is_busy(tried, clock::now_nanos()) {
            return true;
        }
        let Some(wake) = pool.wake.as_ref().filter(|_| !pool.any_usable() && pool.any_down()) else {
            return false;
        };
        match pool.alarm().raise() {
            Sleep::Sound => self.worker.waits.tell(Concern::Wake(pool.clone())),
            Sleep::Wakes => {}
            Sleep::Deaf => return false,
        }
        pool.excuse_queue(clock::now_nanos());
        *wait = wait.map(|wait| wait.max(wake.timeout));
        true
    }

    fn edits_cookies(&self) -> bool {
        self.matched.route.policy.request_headers.iter().any(|edit| match edit {
            HeaderEdit::Set(name, _) | HeaderEdit::Add(name, _) | HeaderEdit::Remove(name) => *name == COOKIE,
        })
    }

    fn view<'v>(&'v self, headers: &'v HeaderMap) -> RequestView<'v> {
        RequestView {
            method: self.method,
            path: self.normal,
            query: self.uri.query(),
            headers,
            client_ip: self.variables.client_ip,
            client_cert: self.is_known,
        }
    }

    /// The target for the VM: the original bytes, unless the route says otherwise.
    fn target(&self) -> Result<PathAndQuery, Answer> {
        let original = self.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        match (self.matched.target(original, self.variables), self.uri.path_and_query()) {
            // An absolute target may have no path; a request line must (RFC 9112, section 3.2.1).
            (target, _) if target.starts_with('?') => PathAndQuery::try_from(format!("/{target}"))
                .map_err(|_| Answer::new(StatusCode::BAD_REQUEST, "The request's target is not valid.")),
            (std::borrow::Cow::Borrowed(target), Some(same)) if target == same.as_str() => Ok(same.clone()),
            (target, _) => PathAndQuery::try_from(target.as_ref())
                .map_err(|_| Answer::new(StatusCode::BAD_REQUEST, "The request's path cannot be rewritten.")),
        }
    }

    /// Makes the client's head ours.
    fn clean(&self, headers: &mut HeaderMap) {
        head::strip_hop_by_hop(headers);
        headers.remove(CONTENT_LENGTH);
        head::join_cookies(headers);
        let origin = Origin {
            peer: &self.peer.ip,
            trusted: self.trusted,
            scheme: self.peer.scheme(),
            authority: self.authority,
            version: self.version,
        };
        head::forwarded(headers, &origin);
        if self.early {
            headers.insert(head::EARLY_DATA, HeaderValue::from_static("1"));
        }
        headers.insert(head::X_REQUEST_ID, self.id.clone());
        edit(headers, &self.matched.route.policy.request_headers, self.variables);
        headers.remove(HOST);
    }

    /// The host the VM is asked for. A unix socket has no name but the one its TLS is told.
    pub(super) fn authority_for(&self, address: &Address, transport: &Transport) -> HeaderValue {
        let backend = match (&self.matched.route.policy.upstream_host, transport.server_name()) {
            (UpstreamHost::Preserve, _) => return self.authority.clone(),
            (UpstreamHost::Literal(host), _) => return host.clone(),
            (UpstreamHost::Backend, Some(name)) => name.to_owned(),
            (UpstreamHost::Backend, None) => match address {
                Address::Unix(_) => "localhost".to_owned(),
                Address::Ip(_) | Address::Name { .. } => address.to_string(),
            },
        };
        HeaderValue::try_from(backend).unwrap_or_else(|_| HeaderValue::from_static("localhost"))
    }

    /// An interim response on its way to the client. 100 is between us and the VM: the client is told
    /// when its body is wanted.
    fn pass_interim(&self, status: StatusCode, mut fields: HeaderMap) {
        if status != StatusCode::CONTINUE {
            head::strip_hop_by_hop(&mut fields);
            (self.interim)(status, &fields);
        }
    }

    /// Makes the VM's head ours.
    fn receive(
        &self,
        mut response: Response<Body>,
        pool: &Arc<Pool>,
        member: usize,
        cookie: Option<HeaderValue>,
    ) -> Response<Body> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(UPGRADE).filter(|_| switched).cloned();
        let headers = response.headers_mut();
        head::strip_hop_by_hop(headers);
        if let Some(protocol) = protocol {
            headers.insert(UPGRADE, protocol);
        }
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie);
        }
        let idle = self.matched.route.policy.timeouts.tunnel;
        response.map(|body| match body {
            Body::Tunnel(tunnel) if self.is_for_websocket() => {
                let parting = self.worker.partings.begin(&self.peer.listener, pool, member);
                Body::Tunnel(tunnel.limited(idle).parting(parting))
            }
            Body::Tunnel(tunnel) => Body::Tunnel(tunnel.limited(idle)),
            other => other,
        })
    }

    /// The answer when no VM gave one.
    fn give_up(&self, failure: Failure) -> Answer {
        let sentence = match failure.kind() {
            Kind::ClientBodyTooLarge => return too_large(),
            Kind::ClientGone | Kind::ClientBody => "The request's body is malformed.",
            Kind::ClientBodyTimeout => "The request's body took too long.",
            Kind::HeadTimeout | Kind::ConnectTimeout | Kind::BodyTimeout => "The backend took too long.",
            Kind::BadResponse => "The backend's answer could not be understood.",
            _ => "The backend could not be reached.",
        };
        Answer::new(failure.kind().status(), sentence)
    }

    /// The answer where the gateway itself has too much to do.
    fn refuse(&self, pool: &Pool) -> Option<Answer> {
        let pressure = &self.worker.pressure;
        if !pressure.is_short() {
            // Where there is one pool there are no others.
            let alone = self.live.routing.pools().len() < 2;
            if alone || !pressure.is_too_much(|| pool.under_way()) {
                return None;
            }
            if self.worker.may_log() {
                let (id, pool) = (self.variables.request_id, &*pool.name);
                tracing::warn!(
                    request_id = id,
                    pool,
                    "request turned away: this pool has most of all requests, and there is little room left for others"
                );
            }
        }
        let answer = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "The gateway has too much to do just now.");
        Some(answer.retry_after(RETRY_AFTER).and_part())
    }

    /// The answer when no VM was asked.
    fn turn_away(&self, pool: &Pool, without: Without) -> Answer {
        let (id, pool) = (self.variables.request_id, &*pool.name);
        let sentence = match without {
            Without::Usable => {
                if self.worker.may_log() {
                    tracing::warn!(request_id = id, pool, "no usable backend");
                }
                "No backend can take this request just now."
            }
            Without::Room | Without::Time => {
                let why = if without == Without::Room { "the queue is full" } else { "waited too long" };
                // A pool that is flooded must not flood the log.
                if self.worker.may_log() {
                    tracing::warn!(
                        request_id = id,
                        pool,
                        "request turned away: every backend is busy, and {why}"
                    );
                }
                "All backends are busy just now."
            }
        };
        Answer::new(StatusCode::SERVICE_UNAVAILABLE, sentence).retry_after(RETRY_AFTER)
    }

    /// Logs a failed attempt; `again`: another one follows.
    fn report(&self, pool: &Pool, Failed { member, failure }: &Failed<'_>, again: bool) {
        let backend = &*member.name;
        let (request_id, pool, kind) = (self.variables.request_id, &*pool.name, failure.kind().label());
        if failure.kind().side() == Side::Client {
            tracing::debug!(request_id, pool, backend, failure = kind, reason = %failure, "request failed");
        } else {
            tracing::warn!(request_id, pool, backend, failure = kind, reason = %failure, again, "backend failed");
        }
    }
}

/// Why no VM could be picked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    /// None is up that was not tried.
    Usable,
    /// All are busy, and so is the queue.
    Room,
    /// It has waited as long as it may.
    Time,
}

/// Reads a short body, so that it can be sent twice; a long one, or one with trailers, cannot.
async fn keep(body: Body) -> Result<(Body, Option<Bytes>), Failure> {
    if body.size_hint().exact().is_none_or(|length| length > KEPT) {
        return Ok((body, None));
    }
    let read = body.collect().await?;
    if read.trailers().is_some() {
        return Ok((Body::stream(read.map_err(|never| match never {})), None));
    }
    let bytes = read.to_bytes();
    Ok((Body::from(bytes.clone()), Some(bytes)))
}

fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    headers.get_all(COOKIE).iter().map(|value| (COOKIE, value.clone())).collect()
}

/// A body beyond the route's `request_body`.
pub(super) fn too_large() -> Answer {
    Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "The request's body is larger than this address takes.")
}
