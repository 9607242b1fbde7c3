//! The `http` and the `grpc` probe: a request over the pool's own protocol and TLS; the status and perhaps a text decide,
//! or the message.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use foregate_exchange::{Body, Failure, Kind};
use foregate_routing::{Address, Endpoint, InFlight};
use foregate_upstream::{Client, Link, Outgoing, Transport};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use super::{Unwell, grpc};

/// So much of a body is read and searched; [`Unwell::Missing`] names it.
const MAX_BODY: usize = 64 * 1024;

/// What is asked, and what answer is wanted.
pub(super) struct Ask<'c> {
    pub(super) method: Method,
    pub(super) path: &'c str,
    /// `None` sends the endpoint's address.
    pub(super) host: Option<&'c str>,
    pub(super) wanted: Wanted<'c>,
}

pub(super) enum Wanted<'c> {
    /// One of these statuses, and this text in the body.
    Answer { status: &'c [RangeInclusive<u16>], contains: Option<&'c str> },
    /// That this service of gRPC is serving.
    Serving { service: &'c str },
}

pub(super) struct HttpProbe<'c> {
    ask: Ask<'c>,
    transport: &'c Transport,
    timeout: Duration,
    /// The endpoint under another identity, whose count of requests in flight nobody reads: a probe is no
    /// load, and balancers must not see it as such.
    stand_in: Arc<Endpoint>,
    /// Holds the one connection that waits for the next probe.
    client: Client,
}

impl<'c> HttpProbe<'c> {
    pub(super) fn new(
        endpoint: &Endpoint,
        transport: &'c Transport,
        ask: Ask<'c>,
        timeout: Duration,
    ) -> HttpProbe<'c> {
        let stand_in = Endpoint::new(endpoint.pool.clone(), endpoint.address.clone());
        HttpProbe { ask, transport, timeout, stand_in, client: Client::default() }
    }

    /// One probe. The head of the response decides, or a text in its body where one is asked for; the check's
    /// time-out covers everything. After a failure the next probe begins with a new look-up and connection:
    /// a connection shared by HTTP/2 streams may lead nowhere without anybody noticing.
    pub(super) async fn run(&mut self) -> Result<(), Unwell> {
        self.client.sweep();
        let found = self.examine().await;
        if found.is_err() {
            self.client = Client::default();
        }
        found
    }

    async fn examine(&mut self) -> Result<(), Unwell> {
        let begun = Instant::now();
        let Ok(answered) = timeout(self.timeout, self.request()).await else {
            return Err(Unwell::Silent(self.timeout));
        };
        let (head, body) = answered?.into_parts();

        let left = self.timeout.saturating_sub(begun.elapsed());
        match self.ask.wanted {
            Wanted::Answer { status, contains } => {
                // Read even where nothing is sought: a connection closed upon an unread body looks like a failure
                // to the VM, and cannot be used again.
                let text = contains.unwrap_or_default();
                let mut found = text.is_empty();
                let read = timeout(left, search(body, text.as_bytes(), &mut found)).await;
                if !status.iter().any(|range| range.contains(&head.status.as_u16())) {
                    return Err(Unwell::Status { found: head.status, expected: expected(status) });
                }
                match read {
                    _ if found => Ok(()),
                    Err(_) => Err(Unwell::Silent(self.timeout)),
                    Ok(Err(failure)) => Err(Unwell::Failed(failure)),
                    Ok(Ok(())) => Err(Unwell::Missing(text.into())),
                }
            }
            Wanted::Serving { .. } => {
                let Ok(read) = timeout(left, message(body)).await else {
                    return Err(Unwell::Silent(self.timeout));
                };
                let (message, trailers) = read.map_err(Unwell::Failed)?;
                if head.status != StatusCode::OK {
                    return Err(Unwell::Status { found: head.status, expected: "200".to_owned() });
                }
                grpc::answer(trailers.as_ref().unwrap_or(&head.headers), &message).map_err(Unwell::NotServing)
            }
        }
    }

    /// The VM may close a waiting connection at the very moment it is used; that says nothing of its health.
    /// So a failure on such a one leads to a second attempt, on a connection that is certainly new.
    async fn request(&mut self) -> Result<Response<Body>, Unwell> {
        let link = self.connect().await?;
        let reused = link.reused();
        match self.send(link).await {
            Err(_) if reused => {
                self.client = Client::default();
                let link = self.connect().await?;
                self.send(link).await
            }
            answer => answer,
        }
    }

    async fn connect(&self) -> Result<Link, Unwell> {
        self.client.connect(&self.stand_in, self.transport, false).await.map_err(|failure| {
            match (failure.kind(), self.transport.connect_timeout()) {
                (Kind::ConnectTimeout, Some(limit)) => Unwell::Unconnected(limit),
                _ => Unwell::Failed(failure),
            }
        })
    }

    async fn send(&self, link: Link) -> Result<Response<Body>, Unwell> {
        let Ok(target) = self.ask.path.parse::<PathAndQuery>() else {
            return Err(Unwell::Unaskable(format!("path \"{}\"", self.ask.path)));
        };
        let host = self.ask.host.map_or_else(|| authority(&self.stand_in.address), str::to_owned);
        let Ok(authority) = HeaderValue::from_str(&host) else {
            return Err(Unwell::Unaskable(format!("host \"{host}\"")));
        };
        let mut headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("foregate-health"))]);
        let (mut body, mut ask_trailers) = (Body::Empty, false);
        if let Wanted::Serving { service } = self.ask.wanted {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            (body, ask_trailers) = (Body::from(grpc::question(service)), true);
        }
        let mut outgoing = Outgoing {
            method: self.ask.method.clone(),
            target,
            authority,
            headers,
            body,
            ask_trailers,
            upgrade: None,
            // The check's own time-out covers both.
            response_timeout: None,
            idle_timeout: None,
        };
        let uncounted = InFlight::begin(&self.stand_in);
        let ignore = |_: StatusCode, _: HeaderMap| {};
        link.send(&mut outgoing, uncounted, ignore).await.map_err(|error| Unwell::Failed(error.failure))
    }
}

/// What `Host` says where the check does not: the address, as far as it can be written there.
fn authority(address: &Address) -> String {
    match address {
        // Without the zone of a link-local IPv6 address, which means nothing to the other side.
        Address::Ip(address) => SocketAddr::new(address.ip(), address.port()).to_string(),
        Address::Name { host, port } => format!("{host}:{port}"),
        Address::Unix(_) => "localhost".to_owned(),
    }
}

fn expected(ranges: &[RangeInclusive<u16>]) -> String {
    let words: Vec<_> = ranges
        .iter()
        .map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    words.join(", ")
}

/// Reads a body up to [`MAX_BODY`] bytes; `found` becomes true as soon as `text` has come, which is not empty
/// unless `found` is true already.
async fn search(mut body: Body, text: &[u8], found: &mut bool) -> Result<(), Failure> {
    let mut seen: Vec<u8> = Vec::new();
    while seen.len() < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        let Ok(mut data) = frame?.into_data() else { continue };
        data.truncate(MAX_BODY - seen.len());
        // The text may have begun in what came before.
        let from = seen.len().saturating_sub(text.len());
        seen.extend_from_slice(&data);
        *found =
            *found || seen.get(from..).is_some_and(|new| new.windows(text.len()).any(|part| part == text));
    }
    Ok(())
}

/// Reads a body up to [`MAX_BODY`] bytes, and its trailers.
async fn message(mut body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), Failure> {
    let (mut message, mut trailers) = (Vec::new(), None);
    while message.len() < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        match frame?.into_data() {
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((message, trailers))
}

#[cfg(test)]
mod tests;
