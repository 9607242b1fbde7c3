//! One HTTP/1.1 (or 1.0) connection: head, exchange, response, again (RFC 9112).

mod body;
mod send;
mod wire;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use foregate_exchange::Body;
use foregate_exchange::http1::request::{self, Head, Refusal};
use foregate_exchange::http1::response::{self, Asked};
use foregate_exchange::http1::{BodyWriter, Ending, Framing, Piece, Search, TooLong, announced};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use self::body::RequestBody;
use self::send::Sending;
use self::wire::{Bare, Wire};
use crate::answer::{Answer, Parting};
use crate::deadline::Deadline;
use crate::drain::{Phase, Turn};
use crate::peer::Peer;
use crate::proxy::{self, Inbound};
use crate::worker::Worker;

/// What of a body nobody wanted is read away to keep the connection; beyond it closing is cheaper.
const DISCARD: usize = 256 * 1024;
/// How long a closed connection is read on, so that a late byte's reset does not destroy the answer
/// (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// Serves a connection to its end. `first` has been read from it already.
///
/// The stream is put where it stays before the future begins, which would hold it a second time otherwise.
pub(crate) fn serve<IO>(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    io: IO,
    first: BytesMut,
) -> impl Future<Output = ()>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let wire = Rc::new(Wire::new(io, first));
    let mut connection = Connection {
        worker,
        peer,
        wire,
        deadline: Deadline::default(),
        turn: Turn::default(),
        served: false,
    };
    async move {
        if let Err(error) = connection.run().await {
            tracing::debug!(peer = %connection.peer.address, %error, "connection ended");
        }
    }
}

struct Connection<IO> {
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    wire: Rc<Wire<IO>>,
    deadline: Deadline,
    turn: Turn,
    /// A request has been answered: from now on waiting for a head is keep-alive.
    served: bool,
}

/// What reading a head led to.
enum Next {
    Head(Box<Head>),
    Refused(Refusal),
    /// The client is gone, or has been idle for too long, or the gateway is closing.
    Nothing,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Connection<IO> {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let head = match self.next().await? {
                Next::Head(head) => *head,
                Next::Refused(refusal) => return self.refuse(refusal).await,
                Next::Nothing => return poll_fn(|cx| self.wire.poll_shutdown(cx)).await,
            };
            let _running = self.peer.listener.begin();
            let keep_alive = head.keep_alive;
            // Boxed, so that it takes no memory between requests.
            let (asked, response) = match Box::pin(self.exchange(head)).await? {
                Some(answered) => answered,
                None => return Ok(()),
            };
            let (head, body) = response.into_parts();
            if let Body::Tunnel(tunnel) = body {
                self.wire.put(|out| {
                    response::write(out, head.status, &head.headers, Ending::None, &asked, false);
                });
                self.respond(&head.headers, Body::Empty, Ending::None, &asked).await?;
                return tunnel.join(Bare(self.wire.clone())).await;
            }
            let body_left = !self.wire.body_is_done();
            // A client that was never told to send its body may or may not do so: nobody can tell.
            let close = !keep_alive
                || head.extensions.get::<Parting>().is_some()
                || self.wire.has_failed()
                || self.is_told_to_go()
                || (body_left && (self.wire.owes_continue.get() || Rc::strong_count(&self.wire) > 1));
            // Once the response begins, a 100 would be taken for another one.
            self.wire.owes_continue.set(false);
            let ending = asked.ending(head.status, &body.size_hint());
            let close = close || ending == Ending::Close;
            self.wire.put(|out| response::write(out, head.status, &head.headers, ending, &asked, close));
            self.respond(&head.headers, body, ending, &asked).await?;
            self.served = true;
            if close || !self.discard().await? {
                self.wire.abandon();
                return self.linger().await;
            }
        }
    }

    fn is_told_to_go(&mut self) -> bool {
        let listener = &self.peer.listener;
        self.peer.is_outdated() || (!listener.serves() && self.turn.has_come(&listener.drain))
    }

    /// Waits for the next request head.
    async fn next(&mut self) -> io::Result<Next> {
        *self.wire.framing.borrow_mut() = Framing::None;
        self.deadline.clear();
        let (live, listener) = (self.worker.current(), self.peer.listener.clone());
        let (limits, timeouts) = (&live.settings.limits, &live.settings.timeouts);
        let mut closing = pin!(listener.drain.reached(Phase::Closing));
        let mut search = Search::default();
        let mut begun = false;
        poll_fn(|cx| {
            loop {
                let end = search.end(&mut self.wire.input.borrow_mut(), limits.request_head);
                match end {
                    Ok(None) => {}
                    Ok(Some(length)) => {
                        let head = self.wire.input.borrow_mut().split_to(length).freeze();
                        return Poll::Ready(Ok(match request::parse(head) {
                            Ok(head) => Next::Head(Box::new(head)),
                            Err(refusal) => Next::Refused(refusal),
                        }));
                    }
                    Err(TooLong) => {
                        let refusal = request::too_long(&self.wire.input.borrow());
                        return Poll::Ready(Ok(Next::Refused(refusal)));
                    }
                }
                let partial = !self.wire.input.borrow().is_empty();
                if partial && !begun {
                    // Its first byte starts the clock of a head; more bytes do not stop it.
                    begun = true;
                    self.deadline.clear();
                }
                match self.wire.poll_fill(cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Next::Nothing)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.wire.rest();
                        if !partial && closing.as_mut().poll(cx).is_ready() {
                            return Poll::Ready(Ok(Next::Nothing));
                        }
                        let idle = self.served && !partial;
                        let limit = if idle { timeouts.keep_alive } else { timeouts.request_head };
                        ready!(self.deadline.poll(cx, limit));
                        if partial && self.worker.may_log() {
                            let peer = self.peer.address;
                            tracing::info!(%peer, "closed: the request head took longer than timeouts.request_head");
                        }
                        return Poll::Ready(Ok(Next::Nothing));
                    }
                }
            }
        })
        .await
    }

    /// Has the request answered; `None` if the client left meanwhile.
    async fn exchange(&mut self, head: Head) -> io::Result<Option<(Asked, Response<Body>)>> {
        let asked = Asked {
            method: head.request.method().clone(),
            version: head.request.version(),
            takes_trailers: head.takes_trailers,
        };
        *self.wire.framing.borrow_mut() = head.framing;
        self.wire.owes_continue.set(head.expects);
        let body = if self.wire.body_is_done() {
            Body::Empty
        } else {
            let pause = self.worker.current().settings.timeouts.request_body;
            Body::stream(RequestBody::new(self.wire.clone(), pause))
        };
        let (parts, ()) = head.request.into_parts();
        let takes_trailers = asked.takes_trailers;
        let mut inbound = Inbound { parts, body, upgrade: head.upgrade, takes_trailers, early: false };

        let (wire, interims) = (self.wire.clone(), asked.version == Version::HTTP_11);
        let interim = |status: StatusCode, fields: &HeaderMap| {
            if interims {
                wire.put(|out| response::write_interim(out, status, fields));
            }
        };
        let mut serving = pin!(proxy::serve(&self.worker, &self.peer, &mut inbound, &interim));
        poll_fn(|cx| {
            if let Poll::Ready(response) = serving.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(response)));
            }
            if !self.wire.output.borrow().is_empty()
                && let Poll::Ready(Err(error)) = self.wire.poll_flush(cx)
            {
                return Poll::Ready(Err(error));
            }
            let ahead = self.wire.input.borrow().len();
            if self.wire.watch(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if !self.wire.body_is_done() {
                // A VM that takes nothing must not hide that the client has left.
                if self.wire.read_ahead(cx).is_ready() {
                    return Poll::Ready(Ok(None));
                }
                self.wire.loop_waits(cx);
                if self.wire.input.borrow().len() > ahead {
                    self.wire.wake_body();
                }
            }
            Poll::Pending
        })
        .await
        .map(|response| response.map(|response| (asked, response)))
    }

    /// Writes the body after its head, together as far as they come together.
    async fn respond(
        &mut self,
        fields: &HeaderMap,
        body: Body,
        ending: Ending,
        asked: &Asked,
    ) -> io::Result<()> {
        let trailers = if asked.takes_trailers { announced(fields) } else { Vec::new() };
        self.deadline.clear();
        let sending = Sending {
            wire: &self.wire,
            body,
            writer: BodyWriter::new(ending, trailers),
            failed: None,
            deadline: &mut self.deadline,
            stalled: self.worker.current().settings.timeouts.keep_alive,
        };
        sending.all(self.peer.address).await
    }

    /// Reads away what is left of the request's body. False: it is too much, or broken, or somebody still
    /// reads it.
    async fn discard(&mut self) -> io::Result<bool> {
        if self.wire.has_failed() {
            return Ok(false);
        }
        if Rc::strong_count(&self.wire) > 1 {
            return Ok(self.wire.body_is_done());
        }
        let mut left = DISCARD;
        let limit = Some(LINGER);
        self.deadline.clear();
        poll_fn(|cx| {
            loop {
                match self.wire.decode() {
                    Err(_) => return Poll::Ready(Ok(false)),
                    Ok(Piece::End | Piece::Trailers(_)) => return Poll::Ready(Ok(true)),
                    Ok(Piece::Data(data)) => match left.checked_sub(data.len()) {
                        Some(rest) => left = rest,
                        None => return Poll::Ready(Ok(false)),
                    },
                    Ok(Piece::More) => match self.wire.poll_fill(cx) {
                        Poll::Ready(Ok(n)) if n > 0 => {}
                        Poll::Ready(_) => return Poll::Ready(Ok(false)),
                        Poll::Pending => return self.deadline.poll(cx, limit).map(|()| Ok(false)),
                    },
                }
            }
        })
        .await
    }

    /// Closes after an answer, reading on for a moment.
    async fn linger(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.wire.poll_shutdown(cx)).await?;
        let until = Instant::now() + LINGER;
        let rest = async {
            loop {
                self.wire.input.borrow_mut().clear();
                if poll_fn(|cx| self.wire.poll_fill(cx)).await? == 0 {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout_at(until, rest).await.unwrap_or(Ok(()))
    }

    /// Answers a head that cannot be understood, and closes: where the next one begins is unknown.
    async fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        let Refusal { status, reason } = refusal;
        if self.worker.may_log() {
            tracing::info!(peer = %self.peer.address, status = status.as_u16(), reason, "request refused");
        }
        let _running = self.peer.listener.begin();
        let response = Answer::new(status, reason).plain();
        let (head, body) = response.into_parts();
        let asked = Asked { method: http::Method::GET, version: Version::HTTP_11, takes_trailers: false };
        let ending = asked.ending(head.status, &body.size_hint());
        self.wire.put(|out| response::write(out, head.status, &head.headers, ending, &asked, true));
        self.respond(&head.headers, body, ending, &asked).await?;
        self.linger().await
    }
}
