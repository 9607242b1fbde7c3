//! One HTTP/3 request stream: a request and its response.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::head::{EARLY_DATA, strip_trailers};
use foregate_exchange::{Body, Failure, Kind};
use foregate_http3::{Code, Error, Head, Incoming, RecvStream, SendStream, Tunnel};
use http::header::EXPECT;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

use crate::answer::Answer;
use crate::deadline::Deadline;
use crate::drain::Phase;
use crate::peer::Peer;
use crate::proxy::{self, Inbound};
use crate::quic::Handshake;
use crate::streams::{DISCARD, LINGER, announce_length};
use crate::websocket;
use crate::worker::Worker;

/// How long the FIN of a request that should have no body is waited for; then it has one.
const PEEK: Duration = Duration::from_millis(100);
/// A response of so many bytes takes a while to arrive after QUIC has taken it.
const LARGE: u64 = 64 * 1024;
/// How many 1xx responses of a VM wait for a client that does not read.
const INTERIMS: usize = 16;

/// Reads a request's head and has it answered. What answering takes is boxed and made when there is a head, for a
/// client may open many streams on which nothing comes.
#[allow(clippy::manual_async_fn, reason = "an async fn would hold its arguments twice")]
pub(super) fn serve<'a>(
    worker: &'a Rc<Worker>,
    peer: &'a Peer,
    handshake: &'a Handshake,
    mut incoming: Incoming,
) -> impl Future<Output = ()> + 'a {
    async move {
        let _running = peer.listener.begin();
        let limit = worker.current().settings.timeouts.request_head;
        let head = match limit {
            Some(limit) => timeout(limit, incoming.head()).await,
            None => Ok(incoming.head().await),
        };
        match head {
            Ok(Ok(head)) => {
                worker.advertising.came(peer.address.ip(), peer.local.ip(), &head.parts.uri);
                Box::pin(answer(worker, peer, handshake, incoming, head)).await;
            }
            Ok(Err(Error::TooLarge)) => Box::pin(refuse(worker, peer, incoming)).await,
            Ok(Err(error)) => {
                if error.violation().is_some() && worker.may_log() {
                    tracing::info!(peer = %peer.address, %error, "HTTP/3 request refused");
                }
            }
            Err(_) => {
                if worker.may_log() {
                    tracing::info!(peer = %peer.address, "reset: a request head took longer than timeouts.request_head");
                }
                incoming.refuse(Code::H3_REQUEST_INCOMPLETE);
            }
        }
    }
}

/// Answers a head that is larger than it may be.
async fn refuse(worker: &Rc<Worker>, peer: &Peer, incoming: Incoming) {
    let stalled = worker.current().settings.timeouts.keep_alive;
    let (recv, mut send) = incoming.into_streams();
    let _unread = Upload::new(recv, None, None);
    let sentence = "The request's head is larger than server.limits.request_head.";
    let answer = Answer::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, sentence).plain();
    log(peer, respond(peer, &mut send, answer, false, stalled).await);
}

#[allow(clippy::manual_async_fn, reason = "an async fn would hold its arguments twice")]
fn answer<'a>(
    worker: &'a Rc<Worker>,
    peer: &'a Peer,
    handshake: &'a Handshake,
    incoming: Incoming,
    head: Head,
) -> impl Future<Output = ()> + 'a {
    async move {
        let (stalled, pause) = {
            let timeouts = &worker.current().settings.timeouts;
            (timeouts.keep_alive, timeouts.request_body)
        };
        let early = incoming.early();
        let (recv, mut send) = incoming.into_streams();
        let mut inbound = Inbound {
            parts: head.parts,
            body: Body::Empty,
            upgrade: None,
            takes_trailers: true,
            early: false,
        };
        let parts = &mut inbound.parts;
        let head_only = parts.method == Method::HEAD;

        if parts.method == Method::CONNECT {
            match websocket::accept(worker, parts, head.protocol.as_deref()) {
                Ok(asked) => inbound.upgrade = Some(asked),
                Err(refused) => {
                    let _unread = Upload::new(recv, None, None);
                    return log(peer, respond(peer, &mut send, refused.plain(), head_only, stalled).await);
                }
            }
        }
        let interims = Rc::new(Interims::default());
        let mut tunnel = None;
        if inbound.upgrade.is_some() {
            tunnel = Some(Box::new(recv));
        } else {
            let expects = parts.headers.contains_key(EXPECT).then(|| interims.clone());
            let mut upload = Upload::new(recv, expects, pause);
            // The FIN of a request without body may come a packet later; a VM should not see an empty body then.
            let carries_content = || matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
            let expected = head.content_length.map_or_else(carries_content, |length| length > 0);
            if !expected {
                _ = timeout(PEEK, upload.peek()).await;
            }
            if let Some(Err(failure)) = &upload.first {
                let answer = Answer::new(failure.kind().status(), "The request's body is malformed.");
                return log(peer, respond(peer, &mut send, answer.plain(), head_only, stalled).await);
            }
            if !upload.is_end_stream() {
                inbound.body = Body::stream(upload);
            }
        }
        let mut spare = None;
        if early && !handshake.is_finished() {
            if matches!(inbound.body, Body::Empty)
                && tunnel.is_none()
                && proxy::takes_early(worker, peer, &inbound.parts)
            {
                // A client that speaks for another one itself knows what 425 means.
                let knows = inbound.parts.headers.contains_key(EARLY_DATA);
                spare = (!knows).then(|| Box::new(inbound.parts.clone()));
                inbound.early = true;
            } else if !is_over(handshake, &send).await {
                return;
            }
        }
        let mut response = ask(worker, peer, &mut inbound, &interims, &mut send).await;
        if let Some(parts) = spare
            && matches!(&response, Ok(response) if response.status() == StatusCode::TOO_EARLY)
        {
            // RFC 8470, section 5.2: that it was early is between us and the VM.
            if !is_over(handshake, &send).await {
                return;
            }
            (inbound.parts, inbound.early) = (*parts, false);
            response = Box::pin(ask(worker, peer, &mut inbound, &interims, &mut send)).await;
        }
        // Those that came together with the response stand before it.
        interims.queue_all(&mut send);
        let result = match (response, tunnel) {
            // Everything behind the request was dropped, and so cancelled.
            (Err(error), _) => Err(error.into()),
            (Ok(response), Some(recv)) => Box::pin(tunnelled(peer, *recv, send, response, stalled)).await,
            (Ok(response), None) => respond(peer, &mut send, response, head_only, stalled).await,
        };
        log(peer, result);
    }
}

/// Waits for the end of the handshake. False: the client or the connection is gone.
async fn is_over(handshake: &Handshake, send: &SendStream) -> bool {
    tokio::select! {
        () = handshake.finished() => true,
        _ = send.stopped() => false,
    }
}

/// Has a request answered, and passes on what is said before the answer. Ends early when the client cancels.
async fn ask(
    worker: &Rc<Worker>,
    peer: &Peer,
    inbound: &mut Inbound,
    interims: &Interims,
    send: &mut SendStream,
) -> Result<Response<Body>, Error> {
    let interim = |status: StatusCode, fields: &HeaderMap| interims.put(status, fields.clone());
    let mut serving = pin!(proxy::serve(worker, peer, inbound, &interim));
    let mut stopped = pin!(None);
    poll_fn(|cx| {
        if let Poll::Ready(response) = serving.as_mut().poll(cx) {
            return Poll::Ready(Ok(response));
        }
        interims.write(cx, send)?;
        if stopped.is_none() {
            stopped.set(Some(send.stopped()));
        }
        match stopped.as_mut().as_pin_mut() {
            Some(stopped) => stopped.poll(cx).map(Err),
            None => Poll::Pending,
        }
    })
    .await
}

fn log(peer: &Peer, result: Result<(), Box<dyn std::error::Error>>) {
    if let Err(error) = result {
        tracing::debug!(peer = %peer.address, %error, "HTTP/3 stream ended");
    }
}

/// Joins the tunnel that the response opened, or sends the response.
async fn tunnelled(
    peer: &Peer,
    recv: RecvStream,
    mut send: SendStream,
    response: Response<Body>,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    match websocket::answer(response) {
        Ok((head, tunnel)) => {
            send.head(head.status, &head.headers);
            flush(&mut send, &mut Deadline::default(), stalled).await?;
            Ok(tunnel.join(Tunnel::new(recv, send)).await?)
        }
        Err(response) => {
            let _unread = Upload::new(recv, None, None);
            respond(peer, &mut send, *response, false, stalled).await
        }
    }
}

/// Sends a response. A head whose body is there already leaves together with it.
async fn respond(
    peer: &Peer,
    send: &mut SendStream,
    response: Response<Body>,
    head_only: bool,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (mut head, mut body) = response.into_parts();
    let bodiless = announce_length(&mut head, &body, head_only);
    send.head(head.status, &head.headers);
    let mut deadline = Deadline::default();
    let mut stopped = pin!(None);
    while !bodiless && !body.is_end_stream() {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            // What is there goes out while more is waited for.
            if let Poll::Ready(Err(error)) = send.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            // A VM that says nothing for long, as one with events does, must hear of it too when nobody listens.
            if stopped.is_none() {
                stopped.set(Some(send.stopped()));
            }
            match stopped.as_mut().as_pin_mut() {
                Some(stopped) => stopped.poll(cx).map(Err),
                None => Poll::Pending,
            }
        });
        match frame.await? {
            None => break,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    send.data(data);
                    flush(send, &mut deadline, stalled).await?;
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        flush(send, &mut deadline, stalled).await?;
                        send.trailers(&trailers);
                    }
                }
            },
            Some(Err(failure)) => {
                tracing::warn!(failure = failure.kind().label(), reason = %failure, "response cut short");
                send.reset(Code::H3_INTERNAL_ERROR);
                return Err(failure.into());
            }
        }
    }
    flush(send, &mut deadline, stalled).await?;
    send.finish();
    // Whoever closes the connection takes back what has not arrived, so until then this is not done. What is small arrives
    // before anybody gets so far who begins with it now.
    if send.written() >= LARGE || peer.listener.drain.phase() >= Phase::Draining {
        drop(body);
        let mut arrived = pin!(send.stopped());
        deadline.clear();
        poll_fn(|cx| match arrived.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => deadline.poll(cx, stalled),
        })
        .await;
    }
    Ok(())
}

/// Waits until QUIC has taken what is queued, with a limit on how long the client may take nothing.
async fn flush(
    send: &mut SendStream,
    deadline: &mut Deadline,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    poll_fn(|cx| {
        let before = send.written();
        if let Poll::Ready(result) = send.poll_flush(cx) {
            deadline.clear();
            return Poll::Ready(result.map_err(Into::into));
        }
        if send.written() > before {
            deadline.clear();
        }
        deadline.poll(cx, stalled).map(|()| Err("the client stopped reading".into()))
    })
    .await
}

/// Interim responses waiting to be written: they come from code that cannot wait.
#[derive(Default)]
struct Interims {
    queue: RefCell<VecDeque<(StatusCode, HeaderMap)>>,
    writer: Cell<Option<Waker>>,
}

impl Interims {
    fn put(&self, status: StatusCode, fields: HeaderMap) {
        let mut queue = self.queue.borrow_mut();
        // A VM that says nothing but 1xx must not fill our memory.
        if queue.len() < INTERIMS {
            queue.push_back((status, fields));
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Writes what waits, as the client takes it.
    fn write(&self, cx: &mut Context<'_>, send: &mut SendStream) -> Result<(), Error> {
        while let Poll::Ready(flushed) = send.poll_flush(cx) {
            flushed?;
            if self.queue.borrow().is_empty() {
                self.writer.set(Some(cx.waker().clone()));
                break;
            }
            self.queue_all(send);
        }
        Ok(())
    }

    fn queue_all(&self, send: &mut SendStream) {
        for (status, fields) in self.queue.borrow_mut().drain(..) {
            send.interim(status, &fields);
        }
    }
}

/// A request's body.
struct Upload {
    /// Taken out when the body is dropped.
    recv: Option<RecvStream>,
    /// Taken out by [`Upload::peek`].
    first: Option<Result<Frame<Bytes>, Failure>>,
    /// The client waits for a 100 before it sends.
    expects: Option<Rc<Interims>>,
    pause: Option<Duration>,
    deadline: Deadline,
}

impl Upload {
    fn new(recv: RecvStream, expects: Option<Rc<Interims>>, pause: Option<Duration>) -> Upload {
        Upload { recv: Some(recv), first: None, expects, pause, deadline: Deadline::default() }
    }

    /// Waits for the first piece or the end.
    async fn peek(&mut self) {
        self.first = poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(None) };
        recv.poll_body(cx).map(|frame| {
            Some(match frame? {
                Ok(frame) => Ok(match frame.into_trailers() {
                    Ok(mut trailers) => {
                        strip_trailers(&mut trailers);
                        Frame::trailers(trailers)
                    }
                    Err(data) => data,
                }),
                Err(error) if error.violation().is_some() => Err(Failure::because(Kind::ClientBody, error)),
                Err(error) => Err(Failure::because(Kind::ClientGone, error)),
            })
        })
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if let Some(interims) = self.expects.take() {
            interims.put(StatusCode::CONTINUE, HeaderMap::new());
        }
        match self.poll(cx) {
            Poll::Ready(frame) => {
                self.deadline.clear();
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let pause = self.pause;
                self.deadline.poll(cx, pause).map(|()| Some(Err(Kind::ClientBodyTimeout.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.recv.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first = match &self.first {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len) as u64,
            _ => 0,
        };
        let rest = self.recv.as_ref().and_then(|recv| recv.size_hint().exact());
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(first + rest))
    }
}

impl Drop for Upload {
    /// Reads away for a moment what nobody wanted, before the client is told to stop (RFC 9114, section 4.1):
    /// some clients (curl) take even that for an error if it comes before the response's end.
    fn drop(&mut self) {
        let Some(mut recv) = self.recv.take().filter(|recv| !recv.is_over()) else { return };
        tokio::task::spawn_local(timeout(LINGER, async move {
            let mut left = DISCARD;
            while left > 0
                && let Some(Ok(frame)) = poll_fn(|cx| recv.poll_body(cx)).await
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        }));
    }
}
