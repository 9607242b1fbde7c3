//! One HTTP/2 connection to a VM, shared by the requests of a worker.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::deadline::Deadline;
use foregate_exchange::{Body, Failure, Kind, head};
use foregate_routing::InFlight;
use http::header::{CONTENT_LENGTH, EXPECT, TE};
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use crate::client::{Outgoing, SendError};
use crate::patience::Patience;
use crate::response::{check_status, failure};
use crate::stream::Stream;
use crate::upload::{Progress, Upload};

/// Requests at a time on one connection; the value RFC 9113 recommends servers to allow at least.
const MAX_ACTIVE: usize = 100;
/// What one response may have in flight before its client reads; what all of a connection may have.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A connection that says nothing for so long while requests wait is asked whether it lives, and given up
/// when it does not answer; otherwise a VM that was switched off would be waited for.
const PING_AFTER: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Http2 {
    sender: SendRequest<Sent>,
    usage: Rc<Usage>,
    /// Counts the request this handle was shared for.
    active: Option<Active>,
}

/// How a connection is used, seen by all its handles.
struct Usage {
    active: Cell<usize>,
    last: Cell<Instant>,
    scheme: http::uri::Scheme,
    /// The VM has said so; hyper may not have noticed yet.
    leaving: Cell<bool>,
}

/// One request under way.
struct Active(Rc<Usage>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.last.set(Instant::now());
    }
}

#[derive(Clone)]
struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl Http2 {
    pub(crate) async fn new(stream: Stream) -> Result<Http2, Failure> {
        let scheme = match stream {
            Stream::Tls(_) => http::uri::Scheme::HTTPS,
            Stream::Tcp(_) | Stream::Unix(_) => http::uri::Scheme::HTTP,
        };
        let (sender, connection) = http2::Builder::new(Local)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_WAIT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::because(Kind::Connect, error))?;
        // It ends when the VM closes it or the last handle is dropped.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to a backend ended");
            }
        });
        let usage = Rc::new(Usage {
            active: Cell::new(0),
            last: Cell::new(Instant::now()),
            scheme,
            leaving: Cell::new(false),
        });
        Ok(Http2 { sender, usage, active: None })
    }

    /// A handle for one more request, if the connection takes it.
    pub(crate) fn share(&self) -> Option<Http2> {
        if self.is_closed() || self.usage.active.get() >= MAX_ACTIVE {
            return None;
        }
        self.usage.active.set(self.usage.active.get() + 1);
        let active = Some(Active(self.usage.clone()));
        Some(Http2 { sender: self.sender.clone(), usage: self.usage.clone(), active })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.usage.leaving.get()
    }

    pub(crate) fn is_idle_since(&self, now: Instant, limit: Duration) -> bool {
        self.usage.active.get() == 0 && now.duration_since(self.usage.last.get()) >= limit
    }

    pub(crate) async fn send(
        mut self,
        outgoing: &mut Outgoing,
        in_flight: InFlight,
    ) -> Result<Response<Body>, SendError> {
        let (response_timeout, idle_timeout) = (outgoing.response_timeout, outgoing.idle_timeout);
        let head_only = outgoing.method == Method::HEAD;
        let (upload, progress) = Upload::new(std::mem::take(&mut outgoing.body), false);
        let upload = Sent::new(upload);
        let mut request = Request::new(upload.clone());
        *request.method_mut() = outgoing.method.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = std::mem::take(&mut outgoing.headers);
        // Waiting for a 100 that this client does not pass on would only cost time.
        request.headers_mut().remove(EXPECT);
        // HTTP/2 trailers need no announcement, but gRPC servers want to hear that they are welcome.
        if outgoing.ask_trailers {
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        }
        let uri = outgoing.authority.to_str().ok().and_then(|authority| {
            Uri::builder()
                .scheme(self.usage.scheme.clone())
                .authority(authority)
                .path_and_query(outgoing.target.clone())
                .build()
                .ok()
        });
        let Some(uri) = uri else {
            let failure = Failure::because(Kind::ClientBody, "the host cannot be written as an authority");
            return Err(failure.into());
        };
        *request.uri_mut() = uri;

        let mut response = pin!(self.sender.try_send_request(request));
        let mut deadline = Deadline::default();
        let mut patience = Patience::new(response_timeout);
        let answered = poll_fn(|cx| {
            if let Poll::Ready(answer) = response.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            if patience.poll(&mut deadline, progress.as_deref(), cx).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;
        match answered {
            None => Err(Failure::from(Kind::HeadTimeout).into()),
            Some(Err(mut error)) => {
                let unseen = unseen(error.error());
                if unseen == Some(Unseen::Leaving) {
                    self.usage.leaving.set(true);
                }
                let untouched = error.take_message().is_some() || unseen.is_some();
                let unsent = untouched.then(|| upload.again()).flatten();
                let client_side = progress.as_ref().and_then(|progress| progress.failure());
                let failure = client_side.unwrap_or_else(|| failure(error.into_error()));
                Err(SendError { unsent, refused: unseen == Some(Unseen::Refused), ..failure.into() })
            }
            Some(Ok(response)) => {
                upload.forget();
                if let Err(failure) = check_status(response.status()) {
                    return Err(failure.into());
                }
                let (mut parts, incoming) = response.into_parts();
                // hyper takes a reset without error in mid-body for its end; the announced length knows.
                let length =
                    parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                let left = length.filter(|_| !head_only);
                if left.is_some() {
                    parts.headers.remove(CONTENT_LENGTH);
                }
                if incoming.is_end_stream() {
                    return Ok(Response::from_parts(parts, Body::Empty));
                }
                deadline.clear();
                let (idle, active) = (idle_timeout, self.active);
                let body = Download { incoming, left, idle, deadline, progress, _active: active, in_flight };
                Ok(Response::from_parts(parts, Body::stream(body)))
            }
        }
    }
}

/// Why a VM says that it has not looked at a request (RFC 9113, section 8.7), so that anything may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    /// It does not want it.
    Refused,
    /// It takes nothing more by this connection.
    Leaving,
}

fn unseen(error: &hyper::Error) -> Option<Unseen> {
    let error = error.source()?.downcast_ref::<h2::Error>().filter(|error| error.is_remote())?;
    // A stream is told of the VM's GOAWAY only where its number lies beyond the last one that the VM has looked at.
    if error.is_go_away() {
        return Some(Unseen::Leaving);
    }
    (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)).then_some(Unseen::Refused)
}

/// A request's body as hyper sends it. Where the VM has not looked at it, it is given back; none: there is nothing in it.
#[derive(Clone)]
struct Sent(Option<Rc<RefCell<Upload>>>);

impl Sent {
    fn new(mut upload: Upload) -> Sent {
        if upload.is_end_stream() {
            return Sent(None);
        }
        upload.keep();
        Sent(Some(Rc::new(RefCell::new(upload))))
    }

    /// The whole body once more, if it is still known.
    fn again(&self) -> Option<Body> {
        match &self.0 {
            Some(upload) => upload.borrow_mut().again(),
            None => Some(Body::Empty),
        }
    }

    /// The VM has taken the request.
    fn forget(&self) {
        if let Some(upload) = &self.0 {
            upload.borrow_mut().forget();
        }
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &self.0 {
            Some(upload) => Pin::new(&mut *upload.borrow_mut()).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.borrow().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.borrow().size_hint())
    }
}

/// A response body. Dropping it before its end resets the stream, so the VM stops.
struct Download {
    incoming: Incoming,
    /// Of the announced length.
    left: Option<u64>,
    /// How long the VM may pause.
    idle: Option<Duration>,
    deadline: Deadline,
    /// Of the request's body.
    progress: Option<Rc<Progress>>,
    _active: Option<Active>,
    in_flight: InFlight,
}

impl Download {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(None) if this.left.is_some_and(|left| left > 0) => Poll::Ready(Some(Err(
                Failure::because(Kind::Truncated, "it is shorter than its Content-Length"),
            ))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(mut frame))) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                this.deadline.clear();
                if let Some(trailers) = frame.trailers_mut() {
                    head::strip_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Failure::because(Kind::Truncated, error)))),
            Poll::Pending => this.deadline.poll(cx, this.idle).map(|()| Some(Err(Kind::BodyTimeout.into()))),
        }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = self.poll_next(cx);
        match &polled {
            Poll::Ready(Some(Err(_))) => {
                if !self.progress.as_ref().is_some_and(|progress| progress.has_failed()) {
                    self.in_flight.cut(true);
                }
            }
            Poll::Ready(_) if self.is_end_stream() => self.in_flight.cut(false),
            Poll::Ready(_) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream() && self.left.is_none_or(|left| left == 0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(|| self.incoming.size_hint(), SizeHint::with_exact)
    }
}
