//! One HTTP/2 connection, on the `h2` crate directly (RFC 9113).

mod stream;
mod tunnel;
mod watch;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::reading::ReadBy;
use h2::server;
use tokio::io::{AsyncRead, AsyncWrite};

use self::watch::{HalfHead, HalfHeadDeadline, Outline};
use crate::deadline::Deadline;
use crate::drain::{Phase, Turn};
use crate::listener::Counted;
use crate::peer::Peer;
use crate::streams::Streams;
use crate::unsent::Unsent;
use crate::worker::Worker;

/// What one upload may have in flight before its VM reads, and what all uploads of a connection may.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What a stream may have queued for a client that does not read.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams the peer resets before we have looked at them (CVE-2023-44487), and streams that our own
/// errors reset (CVE-2025-8671); a peer that makes more of them is not a browser.
const MAX_RESET: usize = 64;

/// How long a client that was idle may take to say that it has understood our GOAWAY.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often it is looked how much is on its way to one that was not.
const LOOK: Duration = Duration::from_millis(100);

/// Serves a connection to its end.
///
/// The stream is put where it stays before the future begins, which would hold it a second time otherwise.
pub(crate) fn serve<IO>(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    unsent: Unsent,
    io: IO,
) -> impl Future<Output = ()>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let half = Rc::new(HalfHead::default());
    let io = ReadBy::new(Outline::new(half.clone()), io);
    // Boxed, so that it takes no memory when it is over.
    let handshake = Box::pin(handshake(worker.clone(), peer.clone(), io));
    async move {
        if let Some(connection) = handshake.await {
            run(&worker, &peer, unsent, &half, connection).await;
        }
    }
}

/// Exchanges prefaces. `None`: the client did not.
async fn handshake<IO>(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    io: IO,
) -> Option<Box<server::Connection<IO, Bytes>>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let live = worker.current();
    let limits = &live.settings.limits;
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(u32::try_from(limits.request_head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_RESET)
        .max_local_error_reset_streams(Some(MAX_RESET))
        .enable_connect_protocol();
    let mut deadline = Deadline::default();
    let mut handshake = pin!(builder.handshake::<_, Bytes>(io));
    let accepted = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => deadline.poll(cx, live.settings.timeouts.request_head).map(|()| None),
    })
    .await;
    match accepted {
        Some(Ok(connection)) => Some(Box::new(connection)),
        Some(Err(error)) => {
            tracing::debug!(peer = %peer.address, %error, "HTTP/2 handshake failed");
            None
        }
        None => {
            tracing::info!(peer = %peer.address, "closed: the HTTP/2 preface took longer than timeouts.request_head");
            None
        }
    }
}

/// Takes requests until there are no more.
async fn run<IO>(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    unsent: Unsent,
    half: &HalfHead,
    mut connection: Box<server::Connection<IO, Bytes>>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let live = worker.current();
    let timeouts = live.settings.timeouts.clone();
    let allowed = live.settings.limits.streams_per_connection as usize;
    drop(live);
    let streams = Rc::new(Streams::new(&worker.turns, allowed + MAX_RESET));
    let mut draining = pin!(peer.listener.drain.reached(Phase::Draining));
    let mut closing = pin!(peer.listener.drain.reached(Phase::Closing));
    let mut half_head = HalfHeadDeadline::default();
    let mut deadline = Deadline::default();
    let (mut drains, mut closes, mut turn) = (false, false, Turn::default());
    let mut leaving: Option<Box<Rest>> = None;
    // Nothing more is said.
    let mut said_all = false;
    loop {
        let accepted = poll_fn(|cx| {
            drains = drains || draining.as_mut().poll(cx).is_ready();
            closes = closes || drains && closing.as_mut().poll(cx).is_ready();
            let called = drains && (closes || turn.poll(cx, &peer.listener.drain).is_ready());
            if leaving.is_none() && (called || peer.is_outdated()) {
                leaving = Some(Rest::new(unsent, streams.observe(cx.waker()) > 0));
                connection.graceful_shutdown();
            }
            // A stream that the client has reset no longer counts for `h2`, but for us until its task has seen that.
            // What is not accepted meanwhile and reset as well does count, for MAX_RESET.
            let accepted = if streams.are_full(cx.waker()) {
                connection.poll_closed(cx).map(|ended| ended.err().map(Err))
            } else {
                connection.poll_accept(cx)
            };
            if let Poll::Ready(accepted) = accepted {
                said_all = accepted.is_none();
                return Poll::Ready(accepted);
            }
            if half_head.poll(cx, half, timeouts.request_head).is_ready() {
                tracing::info!(peer = %peer.address, "closed: a request head took longer than timeouts.request_head");
                return Poll::Ready(None);
            }
            if streams.observe(cx.waker()) > 0 {
                deadline.clear();
                leaving.iter_mut().for_each(|rest| rest.begin_anew());
                return Poll::Pending;
            }
            if let Some(rest) = &mut leaving {
                // The last GOAWAY waits for the client's answer to a ping, which may never come.
                if closes {
                    return Poll::Ready(None);
                }
                return rest.poll(cx, peer, timeouts.keep_alive, false).map(|()| None);
            }
            if deadline.poll(cx, timeouts.keep_alive).is_ready() {
                leaving = Some(Rest::new(unsent, false));
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        match accepted {
            Some(Ok((request, respond))) => {
                let (worker, peer) = (worker.clone(), peer.clone());
                // Boxed first: the runtime moves a task several times before it runs, and this one is large.
                let work = Box::pin(async move { stream::serve(&worker, &peer, request, respond).await });
                tokio::task::spawn_local(Streams::begin(&streams, work));
            }
            Some(Err(error)) => {
                tracing::debug!(peer = %peer.address, %error, "HTTP/2 connection ended");
                return;
            }
            None => break,
        }
    }
    if let Some(rest) = leaving.as_mut().filter(|rest| said_all && rest.busy) {
        poll_fn(|cx| {
            closes = closes || closing.as_mut().poll(cx).is_ready();
            if rest.unsent.take_leave() {
                rest.goodbye.clear();
            }
            if closes { Poll::Ready(()) } else { rest.poll(cx, peer, timeouts.keep_alive, true) }
        })
        .await;
    }
}

/// What was sent last may still be on its way, and would be lost if the connection were closed: what the client sends
/// afterwards, its answer to our ping or room for more, would be answered with a reset.
struct Rest {
    unsent: Unsent,
    /// Something was on its way when the client was told to go.
    busy: bool,
    /// At the last look, and since when it has been as much.
    left: usize,
    stalled: Deadline,
    look: Deadline,
    goodbye: Deadline,
    /// A drain waits for it as for a request.
    running: Option<Counted>,
}

impl Rest {
    /// To be made before the client is told.
    fn new(unsent: Unsent, busy: bool) -> Box<Rest> {
        let (busy, deadline) = (busy || unsent.bytes() > 0, Deadline::default);
        let (stalled, look, goodbye) = (deadline(), deadline(), deadline());
        Box::new(Rest { unsent, busy, left: 0, stalled, look, goodbye, running: None })
    }

    /// A request has come that crossed our goodbye.
    fn begin_anew(&mut self) {
        self.busy = true;
        self.goodbye.clear();
        self.stalled.clear();
    }

    /// Waits until nothing of it is left, or the client has taken nothing of it for so long, and then for the client to say
    /// goodbye. One that was told all, and only does not hang up, is no reason for a drain to wait.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        peer: &Peer,
        stalled: Option<Duration>,
        said_all: bool,
    ) -> Poll<()> {
        if !self.busy {
            return self.goodbye.poll(cx, Some(GOODBYE));
        }
        loop {
            if self.unsent.is_over() {
                return Poll::Ready(());
            }
            let left = self.unsent.bytes();
            if left > 0 {
                self.goodbye.clear();
            }
            if left != std::mem::replace(&mut self.left, left) {
                self.stalled.clear();
            }
            if left == 0 && said_all {
                self.running = None;
            } else {
                self.running.get_or_insert_with(|| peer.listener.begin());
            }
            // What its system has its program still has to read, which may be slow.
            let (waits, long) = match left {
                0 if said_all => (&mut self.goodbye, Some(GOODBYE)),
                0 => (&mut self.goodbye, stalled),
                _ => (&mut self.stalled, stalled),
            };
            if waits.poll(cx, long).is_ready() {
                return Poll::Ready(());
            }
            if self.look.poll(cx, Some(LOOK)).is_pending() {
                return Poll::Pending;
            }
            self.look.clear();
        }
    }
}
