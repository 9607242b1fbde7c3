//! One HTTP/3 request stream.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use foregate_exchange::head::{self, TakesTrailers, strip_trailers};
use foregate_exchange::{Body, Failure, Kind};
use h3::error::{Code, StreamError};
use h3::quic::SendStream as _;
use h3::server::RequestStream;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

use super::Resolver;
use crate::answer::Answer;
use crate::deadline::Deadline;
use crate::peer::Peer;
use crate::proxy;
use crate::streams::announce_length;
use crate::worker::Worker;

/// What of a body nobody wanted is read away, and for how long, before the client is told to stop.
const DISCARD: usize = 256 * 1024;
const LINGER: Duration = Duration::from_millis(500);
/// What is written at a time: a client that is slow but reads must get through it within the limit.
const PIECE: usize = 32 * 1024;
/// How long the FIN of a request that should have no body is waited for; then it has one.
const PEEK: Duration = Duration::from_millis(100);
const STOP_WAIT: Duration = Duration::from_secs(30);

type Send = RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;
type Recv = RequestStream<h3_quinn::RecvStream, Bytes>;

pub(super) fn id(resolver: &Resolver) -> u64 {
    resolver.frame_stream.send_id().into_inner()
}

/// Refuses a stream our GOAWAY has excluded, so that the client may send it elsewhere.
pub(super) async fn reject(resolver: Resolver) {
    // h3 lets go of a stream's request side only once its head was read.
    if let Ok(Ok((_, mut stream))) = timeout(Duration::from_secs(1), resolver.resolve_request()).await {
        stream.stop_sending(Code::H3_REQUEST_REJECTED);
        stream.stop_stream(Code::H3_REQUEST_REJECTED);
    }
}

pub(super) async fn serve(worker: &Rc<Worker>, peer: &Peer, mut resolver: Resolver) {
    let _running = worker.begin();
    let timeouts = worker.current().settings.timeouts.clone();
    let frame = poll_fn(|cx| resolver.frame_stream.poll_next(cx));
    let frame = match timeouts.request_head {
        Some(limit) => timeout(limit, frame).await,
        None => Ok(frame.await),
    };
    let Ok(frame) = frame else {
        tracing::info!(peer = %peer.address, "reset: a request head took longer than timeouts.request_head");
        resolver.frame_stream.reset(Code::H3_REQUEST_INCOMPLETE.value());
        return;
    };
    let resolved = match resolver.accept_with_frame(frame) {
        Ok(resolved) => resolved.resolve().await,
        Err(error) => Err(error),
    };
    let (request, stream) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => {
            tracing::debug!(peer = %peer.address, %error, "HTTP/3 request refused");
            return;
        }
    };
    let (mut send, recv) = stream.split();
    let (mut parts, ()) = request.into_parts();
    parts.version = Version::HTTP_3;
    parts.extensions.insert(TakesTrailers);
    let interims = Rc::new(Interims::default());
    let expects = parts.headers.contains_key(EXPECT).then(|| interims.clone());
    let head_only = parts.method == Method::HEAD;

    let length = match check(&parts.headers) {
        Ok(length) => length,
        Err(sentence) => {
            // RFC 9114, section 4.1.2: malformed; an answer is allowed, and says more than a reset.
            let _unread = Upload::new(recv, None, None, None);
            let response = Answer::new(StatusCode::BAD_REQUEST, sentence).plain();
            _ = answer(&mut send, response, head_only, timeouts.keep_alive).await;
            return;
        }
    };
    let mut upload = Upload::new(recv, length, expects, timeouts.request_body);
    // The FIN of a request without body may come a packet later; a VM should not see an empty body then.
    let expected = upload.left.is_some_and(|left| left > 0) || carries_content(&parts.method);
    if !expected {
        _ = timeout(PEEK, upload.peek()).await;
    }
    let body = if upload.ended { Body::Empty } else { Body::stream(upload) };

    let response = if parts.method == Method::CONNECT {
        Answer::new(StatusCode::METHOD_NOT_ALLOWED, "This gateway is not a forward proxy.").plain()
    } else {
        let interim = |status: StatusCode, fields: &HeaderMap| interims.put(status, fields.clone());
        let mut serving = pin!(proxy::serve(worker, peer, Request::from_parts(parts, body), &interim));
        loop {
            let next = poll_fn(|cx| match serving.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Err(response)),
                Poll::Pending => interims.poll(cx).map(Ok),
            });
            match next.await {
                Err(response) => break response,
                Ok(interim) => {
                    if within(timeouts.keep_alive, send.send_response(interim)).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    if let Err(error) = answer(&mut send, response, head_only, timeouts.keep_alive).await {
        tracing::debug!(peer = %peer.address, %error, "HTTP/3 stream ended");
        send.stop_stream(Code::H3_INTERNAL_ERROR);
    }
}

/// Interim responses waiting to be written: they come from code that cannot wait.
#[derive(Default)]
struct Interims {
    queue: RefCell<VecDeque<Response<()>>>,
    writer: Cell<Option<Waker>>,
}

impl Interims {
    fn put(&self, status: StatusCode, fields: HeaderMap) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        let mut queue = self.queue.borrow_mut();
        // A VM that says nothing but 1xx must not fill our memory.
        if queue.len() < 16 {
            queue.push_back(response);
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Response<()>> {
        match self.queue.borrow_mut().pop_front() {
            Some(response) => Poll::Ready(response),
            None => {
                self.writer.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// What h3 does not check of a head (RFC 9114, sections 4.1.2 and 4.2): the fields of HTTP/1.1 connections,
/// and the announced length, which is returned.
fn check(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let connection = [CONNECTION, TRANSFER_ENCODING, UPGRADE, head::KEEP_ALIVE, head::PROXY_CONNECTION];
    if connection.iter().any(|name| headers.contains_key(name)) {
        return Err("The request has a field that HTTP/3 does not allow.");
    }
    if headers.get_all(TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        return Err("The request has a TE field that HTTP/3 does not allow.");
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let digits = |value: &HeaderValue| {
        let text = value.to_str().ok()?;
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => digits(length).map(Some).ok_or("The Content-Length is not a number."),
        (Some(_), Some(_)) => Err("The Content-Length stands there twice."),
    }
}

/// Methods whose requests usually have a body.
fn carries_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

async fn answer(
    send: &mut Send,
    response: Response<Body>,
    head_only: bool,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (mut head, mut body) = response.into_parts();
    let bodiless = announce_length(&mut head, &body, head_only);
    within(stalled, send.send_response(Response::from_parts(head, ()))).await?;
    if !bodiless {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let frame = frame.inspect_err(|failure| {
                tracing::warn!(failure = failure.kind().label(), reason = %failure, "response cut short");
            })?;
            match frame.into_data() {
                Ok(mut data) => {
                    while !data.is_empty() {
                        let piece = data.split_to(data.len().min(PIECE));
                        within(stalled, send.send_data(piece)).await?;
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        within(stalled, send.send_trailers(trailers)).await?;
                    }
                }
            }
        }
    }
    within(stalled, send.finish()).await
}

/// A write with a limit on how long the client may take nothing.
async fn within(
    limit: Option<Duration>,
    write: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), Box<dyn std::error::Error>> {
    match limit {
        Some(limit) => Ok(timeout(limit, write).await??),
        None => Ok(write.await?),
    }
}

/// A request's body.
struct Upload {
    recv: Option<Recv>,
    /// Taken out by [`Upload::peek`].
    first: Option<Bytes>,
    /// The client waits for a 100 before it sends.
    expects: Option<Rc<Interims>>,
    /// Of the announced length, which h3 does not check.
    left: Option<u64>,
    pause: Option<Duration>,
    deadline: Deadline,
    in_trailers: bool,
    ended: bool,
}

impl Upload {
    fn new(recv: Recv, left: Option<u64>, expects: Option<Rc<Interims>>, pause: Option<Duration>) -> Upload {
        Upload {
            recv: Some(recv),
            first: None,
            expects,
            left,
            pause,
            deadline: Deadline::default(),
            in_trailers: false,
            ended: false,
        }
    }

    /// Waits for the first piece or the end.
    async fn peek(&mut self) {
        match poll_fn(|cx| self.poll(cx)).await {
            Some(Ok(frame)) => self.first = frame.into_data().ok(),
            // Whatever is wrong shows again when the body is read; without one it does not matter.
            Some(Err(_)) | None => self.ended = true,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(None) };
        if !self.in_trailers {
            let data = recv
                .poll_recv_data(cx)
                .map_ok(|data| data.map(|mut data| data.copy_to_bytes(data.remaining())));
            match ready!(data) {
                Ok(Some(data)) => return Poll::Ready(Some(self.count(data))),
                Ok(None) => self.in_trailers = true,
                Err(error) => return Poll::Ready(Some(Err(Failure::because(Kind::ClientGone, error)))),
            }
        }
        // h3 panics here after a frame that the end of the stream cut short; that is a broken body.
        let trailers = catch_unwind(AssertUnwindSafe(|| recv.poll_recv_trailers(cx)))
            .unwrap_or_else(|_| Poll::Ready(Ok(None)));
        let trailers = ready!(trailers);
        self.ended = true;
        match trailers {
            _ if self.left.is_some_and(|left| left > 0) => {
                let reason = "the body is shorter than its Content-Length";
                Poll::Ready(Some(Err(Failure::because(Kind::ClientBody, reason))))
            }
            Ok(Some(mut trailers)) => {
                strip_trailers(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(Failure::because(Kind::ClientGone, error)))),
        }
    }

    /// Holds the body to its announced length.
    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, Failure> {
        if let Some(left) = &mut self.left {
            let rest = left.checked_sub(data.len() as u64);
            *left = rest.ok_or_else(|| {
                Failure::because(Kind::ClientBody, "the body is longer than its Content-Length")
            })?;
        }
        Ok(Frame::data(data))
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
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.ended {
            return Poll::Ready(None);
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
        self.ended && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + first))
    }
}

impl Drop for Upload {
    /// Ends the request side as RFC 9114, section 4.1 wants it: without an error. Left to itself quinn
    /// would send code 0, which clients take for one, and h3-quinn cannot stop a stream while it reads.
    fn drop(&mut self) {
        let Some(mut recv) = self.recv.take().filter(|_| !self.ended) else { return };
        tokio::task::spawn_local(async move {
            // Some clients (curl) take even that for an error if it comes before the response's end, so
            // the rest is read away for a moment first.
            let mut left = DISCARD;
            let discard = async {
                while left > 0 {
                    let read = poll_fn(|cx| {
                        recv.poll_recv_data(cx).map_ok(|data| data.map(|data| data.remaining()))
                    });
                    match read.await {
                        Ok(Some(n)) => left = left.saturating_sub(n),
                        Ok(None) | Err(_) => return false,
                    }
                }
                true
            };
            match timeout(LINGER, discard).await {
                Ok(false) => return,
                Ok(true) => {}
                // The next piece ends the read that is under way; a client that sends none may keep its half.
                Err(_) => {
                    let read = poll_fn(|cx| recv.poll_recv_data(cx).map_ok(|data| data.is_some()));
                    if !matches!(timeout(STOP_WAIT, read).await, Ok(Ok(true))) {
                        return;
                    }
                }
            }
            recv.stop_sending(Code::H3_NO_ERROR);
        });
    }
}
