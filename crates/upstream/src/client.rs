//! The client of one worker: connections kept for reuse, by endpoint and transport.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use foregate_exchange::{Body, Failure, Kind, Side};
use foregate_routing::{Address, Endpoint, InFlight};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::Instant;

use crate::dial::{self, Resolver, Spoken};
use crate::http1::Http1;
use crate::http2::Http2;
use crate::http3::{self, Http3};
use crate::transport::{Protocol, Transport};

/// Idle HTTP/1.1 connections kept for one endpoint; beyond it the one that has waited longest is closed.
const MAX_IDLE: usize = 256;

/// The HTTP client of one worker. Belongs to its thread.
#[derive(Default)]
pub struct Client {
    shelves: RefCell<HashMap<(u64, u64), Rc<Shelf>>>,
    resolver: Resolver,
    sockets: http3::Sockets,
}

/// Connections to one endpoint over one transport.
#[derive(Default)]
pub(crate) struct Shelf {
    /// Last in, first out, so that a burst's surplus grows old and goes.
    #[allow(clippy::vec_box, reason = "a connection is large and moves to and fro with every request")]
    pub(crate) http1: RefCell<Vec<Box<Http1>>>,
    pub(crate) http2: RefCell<Vec<Http2>>,
    http3: RefCell<Vec<Http3>>,
    /// One dial at a time where the connection will be shared.
    dialing: tokio::sync::Mutex<()>,
    /// What ALPN chose last; until then connections are assumed to be shareable.
    speaks: Cell<Option<Spoken>>,
    keep_alive: Option<Duration>,
}

impl Shelf {
    /// A shared connection that takes one more request. A transport speaks one version, so one list is empty.
    fn open(&self) -> Option<LinkKind> {
        let http2 = self.http2.borrow().iter().find_map(Http2::share).map(LinkKind::Http2);
        http2.or_else(|| self.http3.borrow().iter().find_map(Http3::share).map(LinkKind::Http3))
    }

    /// The connection that was used last and still can be.
    fn take(&self) -> Option<Box<Http1>> {
        loop {
            let mut connection = self.http1.borrow_mut().pop()?;
            let fresh = self.keep_alive.is_none_or(|limit| connection.since().elapsed() < limit);
            if fresh && connection.is_usable() {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back for the next request.
    pub(crate) fn keep(&self, connection: Box<Http1>) {
        let mut idle = self.http1.borrow_mut();
        if idle.len() >= MAX_IDLE {
            idle.remove(0);
        }
        idle.push(connection);
    }
}

/// A request ready for a VM: hygiene done, framing left to the connection.
#[derive(Debug)]
pub struct Outgoing {
    pub method: Method,
    pub target: PathAndQuery,
    /// What the VM finds in `Host` or `:authority`.
    pub authority: HeaderValue,
    /// Without `Host`, framing and connection fields.
    pub headers: HeaderMap,
    pub body: Body,
    /// The client asked for trailers in words, so the VM is asked too.
    pub ask_trailers: bool,
    /// The protocol to leave HTTP for.
    pub upgrade: Option<HeaderValue>,
    /// From the last byte of the request to the response head.
    pub response_timeout: Option<Duration>,
    /// Between two reads of the response body.
    pub idle_timeout: Option<Duration>,
}

impl Outgoing {
    /// The same request, with these headers and this body, for another VM.
    #[must_use]
    pub fn twin(&self, headers: HeaderMap, body: Body) -> Outgoing {
        Outgoing {
            method: self.method.clone(),
            target: self.target.clone(),
            authority: self.authority.clone(),
            headers,
            body,
            upgrade: self.upgrade.clone(),
            ..*self
        }
    }
}

/// Why no response came.
#[derive(Debug)]
pub struct SendError {
    pub failure: Failure,
    /// The request's body, when nothing of the request reached the VM.
    pub unsent: Option<Body>,
    /// The VM has said that it will not look at the request.
    pub refused: bool,
}

impl From<Failure> for SendError {
    /// Nobody knows how far the request got.
    fn from(failure: Failure) -> SendError {
        SendError { failure, unsent: None, refused: false }
    }
}

impl SendError {
    /// Whether the VM is at fault, not its client.
    #[must_use]
    pub fn blames_vm(&self) -> bool {
        self.failure.kind().side() == Side::Upstream
    }
}

/// A connection about to carry one request.
pub struct Link {
    kind: LinkKind,
    reused: bool,
    shelf: Rc<Shelf>,
}

enum LinkKind {
    Http1(Box<Http1>),
    Http2(Http2),
    Http3(Http3),
}

impl Client {
    /// A connection to the endpoint: a waiting one, or a new one. `upgrade` asks for HTTP/1.1.
    ///
    /// # Errors
    /// No connection; nothing was sent.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        transport: &Transport,
        upgrade: bool,
    ) -> Result<Link, Failure> {
        let shelf = self.shelf(endpoint, transport);
        let only_http1 = match transport.protocol {
            Protocol::Http1 => true,
            Protocol::Auto => upgrade || shelf.speaks.get() == Some(Spoken::Http1),
            Protocol::H2 | Protocol::H2c | Protocol::H3 => false,
        };
        if only_http1 && let Some(connection) = shelf.take() {
            return Ok(Link { kind: LinkKind::Http1(connection), reused: true, shelf });
        }
        // Boxed: dialling takes much room, which the many requests that find a connection must not pay for.
        Box::pin(self.open(shelf, endpoint, transport, only_http1, upgrade)).await
    }

    /// A new connection, or a shared one.
    async fn open(
        &self,
        shelf: Rc<Shelf>,
        endpoint: &Endpoint,
        transport: &Transport,
        only_http1: bool,
        upgrade: bool,
    ) -> Result<Link, Failure> {
        if only_http1 {
            let (stream, _) = dial::dial(&self.resolver, &endpoint.address, transport, true).await?;
            return Ok(Link { kind: LinkKind::Http1(Http1::new(stream)), reused: false, shelf });
        }
        if upgrade {
            return Err(Failure::because(
                Kind::BadResponse,
                "protocol upgrades need a pool that speaks HTTP/1.1",
            ));
        }
        let connecting = self.connect_shared(shelf, endpoint, transport);
        // Waiting for somebody else's dial is part of connecting.
        match transport.connect_timeout {
            None => connecting.await,
            Some(limit) => tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                Err(Failure::because(Kind::ConnectTimeout, endpoint.address.to_string()))
            }),
        }
    }

    /// A plain connection that is closed at once: the VM's port is open.
    ///
    /// # Errors
    /// It is not.
    pub async fn touch(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        dial::connect(&self.resolver, &endpoint.address).await.map(drop)
    }

    /// The first line a program says that says one to whoever connects; of a longer one so many bytes.
    ///
    /// # Errors
    /// It cannot be reached, or breaks off.
    pub async fn hear(&self, address: &Address, limit: usize) -> Result<Vec<u8>, Failure> {
        let stream = dial::connect(&self.resolver, address).await?;
        let mut line = Vec::new();
        let mut reader = BufReader::new(stream).take(limit as u64);
        match reader.read_until(b'\n', &mut line).await {
            Ok(_) => Ok(line),
            Err(error) => Err(Failure::because(Kind::Reset, error)),
        }
    }

    /// Closes what has been idle for longer than its pool keeps it. Call it about once a second.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.shelves.borrow_mut().retain(|_, shelf| {
            if let Some(limit) = shelf.keep_alive {
                shelf.http1.borrow_mut().retain(|connection| now.duration_since(connection.since()) < limit);
                shelf.http2.borrow_mut().retain(|connection| !connection.is_idle_since(now, limit));
                shelf.http3.borrow_mut().retain(|connection| !connection.is_idle_since(now, limit));
            }
            shelf.http2.borrow_mut().retain(|connection| !connection.is_closed());
            shelf.http3.borrow_mut().retain(|connection| !connection.is_closed());
            // A shelf in use by a request is referenced; an empty one of a removed endpoint goes.
            Rc::strong_count(shelf) > 1
                || !shelf.http1.borrow().is_empty()
                || !shelf.http2.borrow().is_empty()
                || !shelf.http3.borrow().is_empty()
        });
    }

    fn shelf(&self, endpoint: &Endpoint, transport: &Transport) -> Rc<Shelf> {
        self.shelves
            .borrow_mut()
            .entry((endpoint.id, transport.id))
            .or_insert_with(|| Rc::new(Shelf { keep_alive: transport.keep_alive, ..Shelf::default() }))
            .clone()
    }

    /// A connection that carries many requests at a time.
    async fn connect_shared(
        &self,
        shelf: Rc<Shelf>,
        endpoint: &Endpoint,
        transport: &Transport,
    ) -> Result<Link, Failure> {
        if let Some(kind) = shelf.open() {
            return Ok(Link { kind, reused: true, shelf });
        }
        let dialing = shelf.dialing.lock().await;
        if let Some(kind) = shelf.open() {
            drop(dialing);
            return Ok(Link { kind, reused: true, shelf });
        }
        let kind = if transport.protocol == Protocol::H3 {
            let connection = Http3::dial(&self.sockets, &self.resolver, &endpoint.address, transport).await?;
            let shared = connection.share();
            shelf.http3.borrow_mut().push(connection);
            LinkKind::Http3(shared.ok_or_else(|| Failure::new(Kind::Connect))?)
        } else {
            let (stream, spoken) = dial::dial(&self.resolver, &endpoint.address, transport, false).await?;
            shelf.speaks.set(Some(spoken));
            match spoken {
                Spoken::Http1 => LinkKind::Http1(Http1::new(stream)),
                Spoken::H2 => {
                    let connection = Http2::new(stream).await?;
                    let shared = connection.share();
                    shelf.http2.borrow_mut().push(connection);
                    LinkKind::Http2(shared.ok_or_else(|| Failure::new(Kind::Connect))?)
                }
            }
        };
        drop(dialing);
        Ok(Link { kind, reused: false, shelf })
    }
}

impl Link {
    /// Whether the connection has carried requests before. Such a one may have been closed by the VM at
    /// the very moment it was taken.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Whether a request keeps its fields when it is sent, so that nobody needs a copy of them to repeat it.
    #[must_use]
    pub fn leaves_fields(&self) -> bool {
        matches!(self.kind, LinkKind::Http1(_))
    }

    /// Sends the request, taking its body, and waits for the response head. `interim` is called with each 1xx the
    /// VM sends. `in_flight` is given back when the response body has ended or was dropped.
    ///
    /// # Errors
    /// No response; with the body where nothing was sent, so that the request may be made again.
    pub async fn send(
        self,
        outgoing: &mut Outgoing,
        in_flight: InFlight,
        interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Response<Body>, SendError> {
        match self.kind {
            LinkKind::Http1(connection) => connection.send(outgoing, in_flight, self.shelf, interim).await,
            // Boxed, so that a request over HTTP/1.1 does not take the room one over the others would.
            LinkKind::Http2(connection) => Box::pin(connection.send(outgoing, in_flight)).await,
            LinkKind::Http3(connection) => Box::pin(connection.send(outgoing, in_flight, interim)).await,
        }
    }
}
