//! One HTTP/3 connection to a VM, shared by the requests of a worker. The protocol is h3's, behind a guard.

mod dial;
mod frames;
mod guard;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use foregate_exchange::deadline::Deadline;
use foregate_exchange::{Body, Failure, Kind, head};
use foregate_routing::{Address, InFlight};
use h3::client::{RequestStream, SendRequest};
use h3::error::{Code, ConnectionError, StreamError};
use h3::quic::StreamId;
use http::header::{CONTENT_LENGTH, EXPECT, TE};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use self::frames::{MAX_FRAME, Violation};
use self::guard::{Farewell, Guarded, Opener};
use crate::client::{Outgoing, SendError};
use crate::dial::Resolver;
use crate::patience::Patience;
use crate::response::check_status;
use crate::transport::Transport;
use crate::upload::{Progress, Rest, Upload};

pub(crate) use self::dial::{Sockets, client_config};

/// Requests at a time on one connection, as over HTTP/2.
const MAX_ACTIVE: usize = 100;

type Sending = RequestStream<guard::Send<h3_quinn::SendStream<Bytes>>, Bytes>;
type Receiving = RequestStream<guard::Recv<h3_quinn::RecvStream>, Bytes>;

pub(crate) struct Http3 {
    shared: Rc<Shared>,
    /// Counts the request this handle was shared for.
    active: Option<Active>,
}

/// What all handles of a connection hold. With the last of them it ends.
struct Shared {
    quic: quinn::Connection,
    requests: SendRequest<Opener, Bytes>,
    farewell: Rc<Farewell>,
    active: Cell<usize>,
    last: Cell<Instant>,
    /// For how long a VM may leave a new request without any sign of life.
    patience: Option<Duration>,
    /// It has left one so: nobody knows whether it is still there.
    silent: Cell<bool>,
}

/// One request under way.
struct Active(Rc<Shared>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.last.set(Instant::now());
    }
}

impl Http3 {
    pub(crate) async fn dial(
        sockets: &Sockets,
        resolver: &Resolver,
        address: &Address,
        transport: &Transport,
    ) -> Result<Http3, Failure> {
        let quic = dial::dial(sockets, resolver, address, transport).await?;
        let (guarded, farewell) = Guarded::new(quic.clone());
        let (mut connection, requests) = h3::client::builder()
            .max_field_section_size(MAX_FRAME as u64)
            .send_grease(false)
            .build(guarded)
            .await
            .map_err(|error| Failure::because(Kind::Connect, error))?;
        let ended = quic.clone();
        // It ends when the VM closes it or the last handle is dropped.
        tokio::task::spawn_local(async move {
            // Should h3 panic: nobody would hear what the VM says of its connection.
            let _closed = Closing(ended);
            let error = connection.wait_idle().await;
            if !error.is_h3_no_error() {
                tracing::debug!(%error, "HTTP/3 connection to a backend ended");
            }
        });
        let shared = Shared {
            quic,
            requests,
            farewell,
            active: Cell::new(0),
            last: Cell::new(Instant::now()),
            patience: transport.connect_timeout,
            silent: Cell::new(false),
        };
        Ok(Http3 { shared: Rc::new(shared), active: None })
    }

    /// A handle for one more request, if the connection takes it.
    pub(crate) fn share(&self) -> Option<Http3> {
        if self.is_closed() || self.shared.active.get() >= MAX_ACTIVE {
            return None;
        }
        self.shared.active.set(self.shared.active.get() + 1);
        Some(Http3 { shared: self.shared.clone(), active: Some(Active(self.shared.clone())) })
    }

    /// It takes no more requests. Those under way may still be answered.
    pub(crate) fn is_closed(&self) -> bool {
        let shared = &self.shared;
        shared.silent.get() || shared.farewell.said() || shared.quic.close_reason().is_some()
    }

    pub(crate) fn is_idle_since(&self, now: Instant, limit: Duration) -> bool {
        self.shared.active.get() == 0 && now.duration_since(self.shared.last.get()) >= limit
    }

    pub(crate) async fn send(
        self,
        outgoing: &mut Outgoing,
        in_flight: InFlight,
        mut interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Response<Body>, SendError> {
        let expects = outgoing.headers.contains_key(EXPECT);
        let (response_timeout, idle_timeout) = (outgoing.response_timeout, outgoing.idle_timeout);
        let head_only = outgoing.method == Method::HEAD;
        let (upload, progress) = Upload::new(std::mem::take(&mut outgoing.body), expects);
        let request = match request(outgoing, upload.size_hint().exact()) {
            Ok(request) => request,
            Err(failure) => return Err(failure.into()),
        };
        // It is given back where the VM says that it has not looked at the request.
        let upload = Rc::new(RefCell::new(upload));
        upload.borrow_mut().keep();
        let failed = |broken: Broken, sent: Option<StreamId>| {
            let untouched = sent.is_none_or(|id| broken.rejects() || self.shared.farewell.excludes(id));
            let unsent = untouched.then(|| upload.borrow_mut().again()).flatten();
            SendError { unsent, refused: broken.rejects(), ..broken.failure().into() }
        };
        let mut deadline = Deadline::default();
        let mut patience = Patience::new(response_timeout);

        // The VM decides how many requests it takes at a time.
        let mut requests = self.shared.requests.clone();
        let opened = {
            let mut opening = pin!(requests.send_request(request));
            poll_fn(|cx| match contained(|| opening.as_mut().poll(cx)) {
                Poll::Ready(opened) => Poll::Ready(Some(opened)),
                Poll::Pending => patience.poll(&mut deadline, None, cx).map(|()| None),
            })
            .await
        };
        let stream = match opened {
            None => return Err(Failure::from(Kind::HeadTimeout).into()),
            Some(Err(broken)) => return Err(failed(broken, None)),
            Some(Ok(stream)) => stream,
        };
        let id = stream.id();
        let (sending, mut receiving) = stream.split();
        let mut uploading: Option<Pin<Box<dyn Future<Output = ()>>>> =
            Some(Box::pin(transmit(sending, upload.clone())));
        let heard = self.shared.heard();
        let (mut sign_of_life, mut waits) = (Deadline::default(), true);
        deadline.clear();
        let answered = {
            let mut response = pin!(response(&mut receiving, progress.as_deref(), &mut interim));
            poll_fn(|cx| {
                if let Some(future) = &mut uploading
                    && contained(|| future.as_mut().poll(cx).map(Ok::<(), Failure>)).is_ready()
                {
                    uploading = None;
                }
                if let Some(failure) = progress.as_ref().and_then(|progress| progress.failure()) {
                    return Poll::Ready(Err(Stop::Client(failure)));
                }
                if let Poll::Ready(answer) = contained(|| response.as_mut().poll(cx)) {
                    return Poll::Ready(answer.map_err(Stop::Vm));
                }
                if waits && sign_of_life.poll(cx, self.shared.patience).is_ready() {
                    // A VM that lives acknowledges what it gets, however long its answer takes.
                    waits = false;
                    if self.shared.heard() == heard {
                        self.shared.silent.set(true);
                        return Poll::Ready(Err(Stop::Silent));
                    }
                }
                patience.poll(&mut deadline, progress.as_deref(), cx).map(|()| Err(Stop::Late))
            })
            .await
        };
        let response = match answered {
            Ok(response) => response,
            Err(stop) => {
                drop(uploading);
                return Err(match stop {
                    Stop::Vm(broken) => failed(broken, Some(id)),
                    Stop::Client(failure) => failure.into(),
                    Stop::Late => Failure::from(Kind::HeadTimeout).into(),
                    Stop::Silent => {
                        let failure = Failure::because(Kind::Reset, "nothing at all came from it");
                        failure.into()
                    }
                });
            }
        };
        upload.borrow_mut().forget();
        let (mut parts, ()) = response.into_parts();
        let length = match announced(&parts.headers) {
            Ok(length) => length,
            Err(failure) => return Err(failure.into()),
        };
        // The client may not read before it has sent everything, so the upload must go on by itself.
        let connection = self.shared.clone();
        let upload = uploading.map(|future| {
            let whole = async move {
                let _open = connection;
                future.await;
            };
            let task = tokio::task::spawn_local(whole).abort_handle();
            Rest::new(task, progress.clone(), response_timeout)
        });
        let keeps_length = head_only || parts.status == StatusCode::NOT_MODIFIED;
        if !keeps_length {
            // What the body's length is the body knows.
            parts.headers.remove(CONTENT_LENGTH);
        }
        if keeps_length || parts.status == StatusCode::NO_CONTENT {
            if let Some(upload) = upload {
                upload.end();
            }
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        deadline.clear();
        let (idle, active) = (idle_timeout, self.active);
        let mut body = Download {
            receiving,
            phase: Phase::Data,
            left: length,
            first: None,
            idle,
            deadline,
            upload,
            _active: active,
            in_flight,
        };
        if body.has_ended().await {
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        Ok(Response::from_parts(parts, Body::stream(body)))
    }
}

impl Shared {
    /// How many datagrams have come from the VM.
    fn heard(&self) -> u64 {
        self.quic.stats().udp_rx.datagrams
    }
}

/// Closes the connection when dropped.
struct Closing(quinn::Connection);

impl Drop for Closing {
    fn drop(&mut self) {
        let code = quinn::VarInt::from_u64(Code::H3_INTERNAL_ERROR.value());
        // Where it is closed already this changes nothing.
        self.0.close(code.unwrap_or_default(), b"");
    }
}

/// The request's head as HTTP/3 says it; `length` is that of the body, where it is known.
fn request(outgoing: &mut Outgoing, length: Option<u64>) -> Result<Request<()>, Failure> {
    let uri = outgoing.authority.to_str().ok().and_then(|authority| {
        let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority);
        uri.path_and_query(outgoing.target.clone()).build().ok()
    });
    let Some(uri) = uri else {
        return Err(Failure::because(Kind::ClientBody, "the host cannot be written as an authority"));
    };
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_3;
    *request.uri_mut() = uri;
    *request.headers_mut() = std::mem::take(&mut outgoing.headers);
    // RFC 9110, section 8.6: these methods have a body, be it an empty one.
    let bodied = matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = length.filter(|length| *length > 0 || bodied) {
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    // Trailers need no announcement, but gRPC servers want to hear that they are welcome.
    if outgoing.ask_trailers {
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
    *request.method_mut() = outgoing.method.clone();
    Ok(request)
}

/// Sends the body as it comes, as fast as the VM takes it. Dropped before its end it cancels the request.
async fn transmit(mut sending: Sending, upload: Rc<RefCell<Upload>>) {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *upload.borrow_mut()).poll_frame(cx)).await;
        let sent = match frame.map(|frame| frame.map(Frame::into_data)) {
            None => {
                _ = sending.finish().await;
                return;
            }
            Some(Ok(Ok(data))) if data.is_empty() => Ok(()),
            Some(Ok(Ok(data))) => sending.send_data(data).await,
            Some(Ok(Err(frame))) => match frame.into_trailers() {
                Ok(trailers) => sending.send_trailers(trailers).await,
                Err(_) => Ok(()),
            },
            // The upload remembers why.
            Some(Err(_)) => return,
        };
        if sent.is_err() {
            // The VM wants no more of it. What it says of that comes the other way.
            return;
        }
    }
}

/// The final response head; those before it go to `interim`.
async fn response(
    receiving: &mut Receiving,
    progress: Option<&Progress>,
    interim: &mut impl FnMut(StatusCode, HeaderMap),
) -> Result<Response<()>, Broken> {
    loop {
        let response = receiving.recv_response().await?;
        let status = response.status();
        check_status(status)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9114, section 4.5.
            return Err(
                Failure::because(Kind::BadResponse, "it switched protocols, which HTTP/3 cannot").into()
            );
        }
        if !status.is_informational() {
            return Ok(response);
        }
        if let (StatusCode::CONTINUE, Some(progress)) = (status, progress) {
            progress.allow();
        }
        interim(status, response.into_parts().0.headers);
    }
}

/// The announced length (RFC 9110, section 8.6).
fn announced(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(|value| {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|digits| digits.parse::<u64>().ok())
    });
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(Some(length)), None) => Ok(Some(length)),
        _ => Err(Failure::because(Kind::BadResponse, "its Content-Length is not one number")),
    }
}

/// Why waiting for a response came to an end.
enum Stop {
    Vm(Broken),
    Client(Failure),
    /// It took longer than the route allows.
    Late,
    /// Not even an acknowledgement came.
    Silent,
}

/// What ended a stream.
enum Broken {
    H3(StreamError),
    Other(Failure),
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Broken {
        Broken::H3(error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Broken {
        Broken::Other(failure)
    }
}

impl Broken {
    /// What it says about the VM, before its response has begun.
    fn failure(self) -> Failure {
        let error = match self {
            Broken::Other(failure) => return failure,
            Broken::H3(error) => error,
        };
        let kind = match &error {
            StreamError::Undefined { 0: source, .. } => match source.downcast_ref::<Violation>() {
                Some(Violation::Cut) => Kind::Truncated,
                Some(Violation::TooLong) => Kind::BadResponse,
                Some(Violation::NoHead) | None => Kind::Reset,
            },
            StreamError::ConnectionError { 0: ConnectionError::Timeout { .. }, .. } => Kind::HeadTimeout,
            StreamError::StreamError { .. }
            | StreamError::HeaderTooBig { .. }
            | StreamError::ConnectionError { 0: ConnectionError::Local { .. }, .. } => Kind::BadResponse,
            _ => Kind::Reset,
        };
        Failure::because(kind, error)
    }

    /// The VM says that it has not looked at the request (RFC 9114, sections 4.1.1 and 5.2).
    fn rejects(&self) -> bool {
        match self {
            Broken::H3(StreamError::RemoteTerminate { code, .. }) => *code == Code::H3_REQUEST_REJECTED,
            Broken::H3(StreamError::RemoteClosing { .. }) => true,
            _ => false,
        }
    }

    /// As the end of a response's body.
    fn truncated(self) -> Failure {
        match self {
            Broken::Other(failure) => failure,
            Broken::H3(error) => Failure::because(Kind::Truncated, error),
        }
    }
}

/// Calls into h3. Should it panic, this exchange has failed, and nothing else.
fn contained<T, E: Into<Broken>>(call: impl FnOnce() -> Poll<Result<T, E>>) -> Poll<Result<T, Broken>> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(polled) => polled.map_err(Into::into),
        Err(_) => {
            let failure = Failure::because(Kind::BadResponse, "the HTTP/3 client panicked over it");
            Poll::Ready(Err(failure.into()))
        }
    }
}

/// A response body, read from its stream as it is asked for. Dropping it before its end stops the VM.
struct Download {
    receiving: Receiving,
    phase: Phase,
    /// Of the announced length.
    left: Option<u64>,
    /// What came together with the head.
    first: Option<Result<Frame<Bytes>, Failure>>,
    /// How long the VM may pause.
    idle: Option<Duration>,
    deadline: Deadline,
    /// What the request's body is still being sent by.
    upload: Option<Rest>,
    _active: Option<Active>,
    in_flight: InFlight,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Data,
    Trailers,
    Over,
}

impl Download {
    /// Whether nothing follows the head. Asked once, before anything else.
    async fn has_ended(&mut self) -> bool {
        poll_fn(|cx| {
            let first = self.poll_next(cx);
            Poll::Ready(match first {
                Poll::Ready(None) => true,
                Poll::Ready(first) => {
                    self.first = first;
                    false
                }
                Poll::Pending => false,
            })
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let next = match self.phase {
            Phase::Over => return Poll::Ready(None),
            Phase::Data => {
                let data = ready!(contained(|| self
                    .receiving
                    .poll_recv_data(cx)
                    .map_ok(|data| { data.map(|mut data| data.copy_to_bytes(data.remaining())) })));
                match data {
                    Ok(Some(data)) => self.count(data).map(Some),
                    Ok(None) => match self.left {
                        Some(1..) => {
                            Err(Failure::because(Kind::Truncated, "it is shorter than its Content-Length"))
                        }
                        _ => {
                            self.phase = Phase::Trailers;
                            return self.poll_next(cx);
                        }
                    },
                    Err(broken) => Err(broken.truncated()),
                }
            }
            Phase::Trailers => {
                let trailers = ready!(contained(|| self.receiving.poll_recv_trailers(cx)));
                self.phase = Phase::Over;
                match trailers {
                    Ok(Some(mut trailers)) => {
                        head::strip_trailers(&mut trailers);
                        Ok(Some(Frame::trailers(trailers)))
                    }
                    Ok(None) => Ok(None),
                    Err(broken) => Err(broken.truncated()),
                }
            }
        };
        if next.is_err() {
            self.phase = Phase::Over;
        }
        Poll::Ready(next.transpose())
    }

    /// Holds the body to its announced length.
    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, Failure> {
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(data.len() as u64)
                .ok_or_else(|| Failure::because(Kind::BadResponse, "it is longer than its Content-Length"))?;
        }
        Ok(Frame::data(data))
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let next = match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => this.poll_next(cx),
        };
        let polled = match next {
            Poll::Ready(next) => {
                this.deadline.clear();
                Poll::Ready(next)
            }
            Poll::Pending => this.deadline.poll(cx, this.idle).map(|()| Some(Err(Kind::BodyTimeout.into()))),
        };
        match &polled {
            Poll::Ready(Some(Err(_))) => {
                if !this.upload.as_ref().is_some_and(Rest::has_failed) {
                    this.in_flight.cut(true);
                }
            }
            Poll::Ready(_) if this.phase == Phase::Over => this.in_flight.cut(false),
            Poll::Ready(_) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.phase == Phase::Over && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum::<usize>();
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + first as u64))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        // Before its end the client is gone: so is our interest in the rest.
        if self.phase == Phase::Over { upload.end() } else { upload.abort() }
    }
}

#[cfg(test)]
mod tests;
