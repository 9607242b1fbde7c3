//! The `http` probe: `GET` over the pool's own protocol and TLS; the status and perhaps a text decide.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use foregate_exchange::{Body, Failure, Kind};
use foregate_routing::{Address, Endpoint, InFlight};
use foregate_upstream::{Client, Link, Outgoing, Transport};
use http::header::USER_AGENT;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use super::Unwell;

/// So much of a body is read and searched; [`Unwell::Missing`] names it.
const MAX_BODY: usize = 64 * 1024;

/// What is asked, and what answer is wanted.
pub(super) struct Ask<'c> {
    pub(super) method: Method,
    pub(super) path: &'c str,
    pub(super) status: &'c [RangeInclusive<u16>],
    /// `None` sends the endpoint's address.
    pub(super) host: Option<&'c str>,
    pub(super) contains: Option<&'c str>,
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

        // Read even where nothing is sought: a connection closed upon an unread body looks like a failure
        // to the VM, and cannot be used again.
        let text = self.ask.contains.unwrap_or_default();
        let mut found = text.is_empty();
        let left = self.timeout.saturating_sub(begun.elapsed());
        let read = timeout(left, search(body, text.as_bytes(), &mut found)).await;

        if !self.ask.status.iter().any(|range| range.contains(&head.status.as_u16())) {
            return Err(Unwell::Status { found: head.status, expected: expected(self.ask.status) });
        }
        match read {
            _ if found => Ok(()),
            Err(_) => Err(Unwell::Silent(self.timeout)),
            Ok(Err(failure)) => Err(Unwell::Failed(failure)),
            Ok(Ok(())) => Err(Unwell::Missing(text.into())),
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
        let mut outgoing = Outgoing {
            method: self.ask.method.clone(),
            target,
            authority,
            headers: HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("foregate-health"))]),
            body: Body::Empty,
            ask_trailers: false,
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

#[cfg(test)]
mod tests;
