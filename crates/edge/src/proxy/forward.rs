//! To a VM and back: pick, connect, send, and when that fails decide whether to try another.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use foregate_exchange::head::{self, Origin};
use foregate_exchange::{Body, Failure, Kind, Side};
use foregate_routing::{
    Address, HeaderEdit, Matched, Member, Pick, Pool, RequestView, UpstreamHost, Variables,
};
use foregate_upstream::{Outgoing, SendError, Transport};
use http::header::{CONTENT_LENGTH, COOKIE, HOST, SET_COOKIE, TE, UPGRADE};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::{Interim, edit};
use crate::answer::Answer;
use crate::peer::Peer;
use crate::worker::{Prepared, Worker};

/// How often a request may be tried again, on another VM where there is one.
const RETRIES: usize = 2;
/// Seconds after which a client may hope for a VM again.
const RETRY_AFTER: u64 = 5;

/// A request that matched a route which names VMs.
pub(super) struct Forwarding<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) live: &'a Prepared,
    pub(super) peer: &'a Peer,
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
        let target = self.target()?;
        let policy = &self.matched.route.policy;
        let key = pool.key(&self.view(&headers));
        let secure = self.variables.scheme == "https";
        // The client may have asked for trailers in words; HTTP/2 and 3 take them without asking.
        let ask_trailers = self.takes_trailers && headers.contains_key(TE);
        let repeatable = self.method.is_idempotent() && matches!(body, Body::Empty);
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

        let mut tried: Vec<usize> = Vec::new();
        // Told when it is known whether another attempt follows.
        let mut failed: Option<Failed<'_>> = None;
        for left in (0..=RETRIES).rev() {
            let now = self.worker.now_nanos();
            let carried = cookies.as_ref().unwrap_or(&outgoing.headers);
            let pick =
                pool.pick_sticky(carried, &tried).or_else(|| pool.pick(key, &tried, self.worker.roll(), now));
            let Some(Pick { member, index, in_flight }) = pick else { break };
            if let Some(failed) = failed.take() {
                self.report(pool, &failed, true);
            }
            let endpoint = member.endpoint.clone();
            let link = match self.worker.client.connect(&endpoint, transport, self.upgrade.is_some()).await {
                Ok(link) => link,
                Err(failure) => {
                    tried.push(index);
                    failed = Some(Failed { member, failure });
                    continue;
                }
            };
            let reused = link.reused();
            let cookie = pool.sticky_cookie(cookies.as_ref().unwrap_or(&outgoing.headers), index, secure);
            // Whoever keeps connections open meets one that the VM is just closing; only then, or when
            // the method allows it, is the head needed again.
            let may_repeat = left > 0 && (reused || repeatable);
            let copy = (may_repeat && !link.leaves_fields()).then(|| outgoing.headers.clone());
            outgoing.authority = self.authority_for(&endpoint.address, transport);
            let begun = Instant::now();
            let interim = |status, fields| self.pass_interim(status, fields);
            match link.send(&mut outgoing, in_flight, interim).await {
                Ok(response) => {
                    endpoint.vitals.observe_latency(begun.elapsed(), self.worker.now_nanos());
                    return Ok(self.receive(response, cookie));
                }
                Err(SendError { failure, unsent }) => {
                    let untouched = unsent.is_some();
                    let body = match unsent {
                        Some(unsent) => Some(unsent),
                        None if repeatable && failure.kind() == Kind::Reset => Some(Body::Empty),
                        None => None,
                    };
                    failed = Some(Failed { member, failure });
                    let Some(body) = body.filter(|_| may_repeat) else { break };
                    outgoing.body = body;
                    if let Some(copy) = copy {
                        outgoing.headers = copy;
                    }
                    // A stale connection says nothing about its VM.
                    if !(reused || untouched) {
                        tried.push(index);
                    }
                }
            }
        }
        if let Some(failed) = &failed {
            self.report(pool, failed, false);
        }
        Err(self.give_up(pool, failed.map(|failed| failed.failure)))
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
    fn authority_for(&self, address: &Address, transport: &Transport) -> HeaderValue {
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
    fn receive(&self, mut response: Response<Body>, cookie: Option<HeaderValue>) -> Response<Body> {
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
            Body::Tunnel(tunnel) => Body::Tunnel(tunnel.guarded(idle, ())),
            other => other,
        })
    }

    /// The answer when no VM gave one.
    fn give_up(&self, pool: &Pool, failure: Option<Failure>) -> Answer {
        let Some(failure) = failure else {
            let (id, pool) = (self.variables.request_id, &*pool.name);
            tracing::warn!(request_id = id, pool, "no usable backend");
            let sentence = "No backend can take this request just now.";
            return Answer::new(StatusCode::SERVICE_UNAVAILABLE, sentence).retry_after(RETRY_AFTER);
        };
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

/// An attempt that brought no response.
struct Failed<'p> {
    member: &'p Member,
    failure: Failure,
}

fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    headers.get_all(COOKIE).iter().map(|value| (COOKIE, value.clone())).collect()
}

/// A body beyond the route's `request_body`.
pub(super) fn too_large() -> Answer {
    Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "The request's body is larger than this address takes.")
}
