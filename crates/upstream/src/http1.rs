//! One HTTP/1.1 connection to a VM, polled inside the request that uses it: no task, no wake-up between.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::deadline::Deadline;
use foregate_exchange::reading::{ReadBy, Rewound};
use foregate_exchange::{Body, Failure, Kind, Tunnel, head};
use foregate_routing::InFlight;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::client::{Outgoing, SendError, Shelf};
use crate::patience::Patience;
use crate::response::{check_status, failure};
use crate::stream::Stream;
use crate::upload::{Progress, Upload};

/// A VM's response head may have this many fields and bytes.
const MAX_FIELDS: usize = 256;
const MAX_HEAD: usize = 256 * 1024;

type Connection = http1::Connection<TokioIo<Stream>, Upload>;

pub(crate) struct Http1 {
    sender: SendRequest<Upload>,
    /// `None` once hyper has finished with it.
    connection: Option<Connection>,
    since: Instant,
    /// Of the request under way; its timer serves all requests of the connection.
    deadline: Deadline,
}

impl Http1 {
    pub(crate) async fn new(stream: Stream) -> Result<Box<Http1>, Failure> {
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::because(Kind::Connect, error))?;
        let (since, deadline) = (Instant::now(), Deadline::default());
        Ok(Box::new(Http1 { sender, connection: Some(connection), since, deadline }))
    }

    /// Since when it has been idle.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Whether the VM has left it open, as far as anybody can know.
    pub(crate) fn is_usable(&mut self) -> bool {
        // Nobody waits on an idle connection; asking it once reads the close that may have come.
        let mut cx = Context::from_waker(Waker::noop());
        self.poll(&mut cx).is_pending() && self.sender.is_ready()
    }

    /// Moves the connection; ready when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.connection {
            Some(connection) => connection.poll_without_shutdown(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    pub(crate) async fn send(
        mut self: Box<Self>,
        outgoing: Outgoing,
        in_flight: InFlight,
        shelf: Rc<Shelf>,
        mut interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Response<Body>, SendError> {
        let expects = outgoing.headers.contains_key(EXPECT);
        let (response_timeout, idle_timeout) = (outgoing.response_timeout, outgoing.idle_timeout);
        let (upgrade, head_only) = (outgoing.upgrade.is_some(), outgoing.method == Method::HEAD);
        let (request, progress) = request(outgoing, expects);
        let mut response = pin!(self.sender.try_send_request(request));
        let mut patience = Patience::new(response_timeout);
        self.deadline.clear();
        let answered = poll_fn(|cx| {
            let over = self.poll(cx).is_ready();
            for (status, fields) in interims() {
                if let (StatusCode::CONTINUE, Some(progress)) = (status, &progress) {
                    progress.allow();
                }
                interim(status, fields);
            }
            if let Poll::Ready(answer) = response.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            if over && self.connection.take().is_some() {
                // Without its connection the answer that will never come is an error now.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if patience.poll(&mut self.deadline, progress.as_deref(), cx).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;

        let client_side = progress.as_ref().and_then(|progress| progress.failure());
        match answered {
            None => Err(SendError { failure: Kind::HeadTimeout.into(), unsent: None }),
            Some(Err(mut error)) => {
                let unsent = error.take_message().map(|request| request.into_body().into_body());
                let failure = client_side.unwrap_or_else(|| failure(error.into_error()));
                Err(SendError { failure, unsent })
            }
            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                if !upgrade {
                    let failure = Failure::because(Kind::BadResponse, "it switched protocols unasked");
                    return Err(SendError { failure, unsent: None });
                }
                Box::pin(self.switch(response, in_flight)).await
            }
            Some(Ok(mut response)) => {
                let checked = check_status(response.status());
                let clean = match checked.and_then(|()| response_framing(&mut response, head_only)) {
                    Ok(clean) => clean,
                    Err(failure) => return Err(SendError { failure, unsent: None }),
                };
                let upload = progress.filter(|progress| !progress.is_done());
                self.deadline.clear();
                Ok(self.receive(response, clean, upload, in_flight, shelf, idle_timeout))
            }
        }
    }

    /// The response, its body driving this connection, which goes back on the shelf at the body's end.
    /// A connection whose framing was not `clean` does not.
    fn receive(
        mut self: Box<Self>,
        response: Response<Incoming>,
        clean: bool,
        upload: Option<Rc<Progress>>,
        in_flight: InFlight,
        shelf: Rc<Shelf>,
        idle: Option<Duration>,
    ) -> Response<Body> {
        let (parts, incoming) = response.into_parts();
        let drive = match (self.connection.take(), upload) {
            (None, _) => Drive::Done,
            (Some(connection), Some(upload)) if parts.status.is_success() => {
                // The client may not read before it has sent everything, so the upload must go on by itself.
                drop(upload);
                let task = tokio::task::spawn_local(async move { _ = connection.await });
                Drive::Task(task.abort_handle())
            }
            (Some(connection), Some(upload)) => {
                // The VM has refused the upload and may have closed; a write that fails now would take the
                // rest of its answer with it.
                upload.hold();
                self.connection = Some(connection);
                Drive::Inline(self, None)
            }
            (Some(connection), None) => {
                self.connection = Some(connection);
                if incoming.is_end_stream() {
                    if clean {
                        self.recycle(&shelf);
                    }
                    return Response::from_parts(parts, Body::Empty);
                }
                Drive::Inline(self, clean.then_some(shelf))
            }
        };
        let body = Download { incoming, drive, idle, deadline: Deadline::default(), _in_flight: in_flight };
        Response::from_parts(parts, Body::stream(body))
    }

    /// Keeps the connection for the next request, if the VM does.
    fn recycle(mut self: Box<Self>, shelf: &Shelf) {
        if self.is_usable() {
            self.since = Instant::now();
            shelf.keep(self);
        }
    }

    /// The VM agreed to leave HTTP: from here on its bytes are the tunnel's.
    async fn switch(
        mut self: Box<Self>,
        response: Response<Incoming>,
        in_flight: InFlight,
    ) -> Result<Response<Body>, SendError> {
        poll_fn(|cx| self.poll(cx)).await;
        let Some(connection) = self.connection else {
            return Err(SendError { failure: Kind::Reset.into(), unsent: None });
        };
        let parts = connection.into_parts();
        let stream = ReadBy::new(Rewound(parts.read_buf), parts.io.into_inner());
        let head = response.into_parts().0;
        Ok(Response::from_parts(head, Body::Tunnel(Tunnel::new(stream, None, in_flight))))
    }
}

/// The request as HTTP/1.1 says it. Its framing is hyper's, from what the body knows of its length.
fn request(outgoing: Outgoing, expects: bool) -> (Request<Upload>, Option<Rc<Progress>>) {
    let (upload, progress) = Upload::new(outgoing.body, expects);
    let bodiless = upload.is_end_stream();
    let unsized_body = progress.is_some() && upload.size_hint().exact().is_none();
    let mut request = Request::new(upload);
    let method = &outgoing.method;
    *request.method_mut() = method.clone();
    *request.uri_mut() = Uri::from(outgoing.target);
    *request.headers_mut() = outgoing.headers;
    let headers = request.headers_mut();
    headers.insert(HOST, outgoing.authority);
    if unsized_body {
        // Left to itself hyper sends no body with a GET.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if bodiless && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        // Where a body is usual, its absence is said (RFC 9110, section 8.6); some servers insist with 411.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    if let Some(protocol) = outgoing.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    } else if outgoing.ask_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    hyper::ext::on_informational(&mut request, |response| {
        INTERIMS.with_borrow_mut(|list| {
            // A VM that sends nothing but 1xx must not fill our memory.
            if list.len() < 16 {
                list.push((response.status(), response.headers().clone()));
            }
        });
    });
    (request, progress)
}

thread_local! {
    /// hyper's callback must be `Send`, so it cannot hold the request it speaks of. It is called while
    /// that request polls its connection, which then finds here what came.
    static INTERIMS: RefCell<Vec<(StatusCode, HeaderMap)>> = const { RefCell::new(Vec::new()) };
}

fn interims() -> Vec<(StatusCode, HeaderMap)> {
    INTERIMS.with_borrow_mut(|list| if list.is_empty() { Vec::new() } else { std::mem::take(list) })
}

/// Checks what hyper leaves to us of a response's framing (RFC 9112, section 6.3). False: it can be read,
/// but what follows on this connection is not to be trusted.
fn response_framing(response: &mut Response<Incoming>, head_only: bool) -> Result<bool, Failure> {
    let bodiless = head_only || response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coded = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        _ => return Err(Failure::because(Kind::BadResponse, "its transfer coding is not understood")),
    };
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    if coded && lengths > 0 {
        headers.remove(CONTENT_LENGTH);
        return Ok(false);
    }
    if lengths > 1 || !bodiless {
        // What the body's length is the body knows.
        headers.remove(CONTENT_LENGTH);
    }
    Ok(true)
}

/// A response body that moves its own connection.
struct Download {
    incoming: Incoming,
    drive: Drive,
    /// How long the VM may pause.
    idle: Option<Duration>,
    /// Where the connection is not at hand, whose own is taken otherwise.
    deadline: Deadline,
    _in_flight: InFlight,
}

enum Drive {
    /// With the shelf it goes back to, if it may.
    Inline(Box<Http1>, Option<Rc<Shelf>>),
    Task(AbortHandle),
    Done,
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // First the connection, then the body: what the one has read the other can give.
        let mut closed = false;
        if let Drive::Inline(http1, _) = &mut self.drive {
            if let ready @ Poll::Ready(Some(_)) = Pin::new(&mut self.incoming).poll_frame(cx) {
                return ready;
            }
            closed = http1.poll(cx).is_ready();
        }
        if closed {
            self.drive = Drive::Done;
        }
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn deadline(&mut self) -> &mut Deadline {
        match &mut self.drive {
            Drive::Inline(http1, _) => &mut http1.deadline,
            Drive::Task(_) | Drive::Done => &mut self.deadline,
        }
    }

    fn finish(&mut self) {
        if let Drive::Inline(http1, Some(shelf)) = std::mem::replace(&mut self.drive, Drive::Done) {
            http1.recycle(&shelf);
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
        match self.poll(cx) {
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                self.deadline().clear();
                if let Some(trailers) = frame.trailers_mut() {
                    head::strip_trailers(trailers);
                }
                // The last piece of a body of known length: the connection is free before it is written.
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.drive = Drive::Done;
                Poll::Ready(Some(Err(Failure::because(Kind::Truncated, error))))
            }
            Poll::Pending => {
                let idle = self.idle;
                self.deadline().poll(cx, idle).map(|()| Some(Err(Kind::BodyTimeout.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The client is gone: so is our interest in the rest.
        if let Drive::Task(task) = &self.drive
            && !self.incoming.is_end_stream()
        {
            task.abort();
        }
    }
}
