//! One HTTP/2 stream: a request and its response.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::head::strip_trailers;
use foregate_exchange::{Body, Failure, Kind};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use super::tunnel::StreamIo;
use crate::deadline::Deadline;
use crate::peer::Peer;
use crate::proxy::{self, Inbound};
use crate::streams::{DISCARD, LINGER, announce_length};
use crate::websocket;
use crate::worker::Worker;

/// The response side, also needed for interim responses while the request is being answered.
struct Responder {
    send: RefCell<SendResponse<Bytes>>,
    /// The final head is out: an interim one would now be malformed.
    answered: Cell<bool>,
}

type Respond = Rc<Responder>;

impl Responder {
    fn inform(&self, status: StatusCode, fields: HeaderMap) {
        if !self.answered.get() {
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = fields;
            // A client that has left is noticed elsewhere.
            _ = self.send.borrow_mut().send_informational(response);
        }
    }

    fn answer(&self, head: http::response::Parts, ended: bool) -> Result<SendStream<Bytes>, h2::Error> {
        self.answered.set(true);
        self.send.borrow_mut().send_response(Response::from_parts(head, ()), ended)
    }
}

pub(super) async fn serve(
    worker: &Rc<Worker>,
    peer: &Peer,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let _running = peer.listener.begin();
    let respond = Rc::new(Responder { send: RefCell::new(respond), answered: Cell::new(false) });
    // It may have waited for its turn for so long that the client has given it up.
    if poll_fn(|cx| Poll::Ready(respond.send.borrow_mut().poll_reset(cx).is_ready())).await {
        return;
    }
    let (mut parts, upload) = request.into_parts();
    let head_only = parts.method == Method::HEAD;

    let stalled = worker.current().settings.timeouts.keep_alive;
    let protocol = parts.extensions.remove::<h2::ext::Protocol>();
    let protocol = protocol.as_ref().map(|protocol| protocol.as_str().as_bytes());
    let mut upgrade = None;
    if parts.method == Method::CONNECT {
        match websocket::accept(worker, &mut parts, protocol) {
            Ok(asked) => upgrade = Some(asked),
            Err(refused) => return log(peer, send(&respond, refused.plain(), head_only, stalled).await),
        }
    }
    let (body, tunnel) = if protocol.is_some() {
        (Body::Empty, Some(upload))
    } else if upload.is_end_stream() {
        (Body::Empty, None)
    } else {
        let expects = parts.headers.contains_key(EXPECT).then(|| respond.clone());
        let pause = worker.current().settings.timeouts.request_body;
        (Body::stream(Upload::new(upload, &parts.headers, expects, pause)), None)
    };

    let mut inbound = Inbound { parts, body, upgrade, takes_trailers: true, early: false };
    let interim = |status: StatusCode, fields: &HeaderMap| respond.inform(status, fields.clone());
    let response = {
        let mut serving = pin!(proxy::serve(worker, peer, &mut inbound, &interim));
        poll_fn(|cx| {
            if let Poll::Ready(response) = serving.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            respond.send.borrow_mut().poll_reset(cx).map(|_| None)
        })
        .await
    };
    // Without a response the client reset the stream; everything behind it was dropped and so cancelled.
    let Some(response) = response else { return };
    let result = match tunnel {
        Some(upload) => Box::pin(tunnelled(&respond, upload, response, stalled)).await,
        None => send(&respond, response, head_only, stalled).await,
    };
    log(peer, result);
}

fn log(peer: &Peer, result: Result<(), Box<dyn std::error::Error>>) {
    if let Err(error) = result {
        tracing::debug!(peer = %peer.address, %error, "HTTP/2 stream ended");
    }
}

/// Joins the tunnel that the response opened, or sends the response.
async fn tunnelled(
    respond: &Respond,
    upload: RecvStream,
    response: Response<Body>,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    match websocket::answer(response) {
        Ok((head, tunnel)) => {
            let send = respond.answer(head, false)?;
            Ok(tunnel.join(StreamIo::new(upload, send)).await?)
        }
        Err(response) => send(respond, *response, false, stalled).await,
    }
}

/// Sends a response.
async fn send(
    respond: &Respond,
    response: Response<Body>,
    head_only: bool,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (mut head, mut body) = response.into_parts();
    head.version = http::Version::HTTP_2;
    head.extensions.clear();
    let bodiless = announce_length(&mut head, &body, head_only);
    let ended = bodiless || body.is_end_stream();
    let mut stream = respond.answer(head, ended)?;
    if ended {
        return Ok(());
    }
    let mut deadline = Deadline::default();
    let result = loop {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            stream.poll_reset(cx).map(Err)
        });
        match frame.await {
            Err(_reset) => return Ok(()),
            Ok(None) => break stream.send_data(Bytes::new(), true).map_err(Into::into),
            Ok(Some(Err(failure))) => {
                tracing::warn!(failure = failure.kind().label(), reason = %failure, "response cut short");
                break Err(failure.into());
            }
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    if let Err(error) = send_data(&mut stream, data, last, &mut deadline, stalled).await {
                        break Err(error);
                    }
                    if last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        break stream.send_trailers(trailers).map_err(Into::into);
                    }
                }
            },
        }
    };
    if result.is_err() {
        stream.send_reset(Reason::INTERNAL_ERROR);
    }
    result
}

/// Sends a piece as the client's window opens.
async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    deadline: &mut Deadline,
    stalled: Option<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    if data.is_empty() {
        return if last { Ok(stream.send_data(data, true)?) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = poll_fn(|cx| {
            if let Poll::Ready(capacity) = stream.poll_capacity(cx) {
                deadline.clear();
                return Poll::Ready(capacity.unwrap_or(Err(Reason::CANCEL.into())).map_err(Into::into));
            }
            if let Poll::Ready(reason) = stream.poll_reset(cx) {
                return Poll::Ready(Err(
                    reason.map_or_else(Into::into, |reason| h2::Error::from(reason).into())
                ));
            }
            deadline.poll(cx, stalled).map(|()| Err("the client stopped reading".into()))
        });
        let capacity: usize = capacity.await.map_err(|error: Box<dyn std::error::Error>| error)?;
        let piece = data.split_to(capacity.min(data.len()));
        let end = last && data.is_empty();
        stream.send_data(piece, end)?;
    }
    Ok(())
}

/// A request's body. Its window opens again as the VM takes it.
struct Upload {
    /// Taken out when the body is dropped.
    stream: Option<RecvStream>,
    /// Of the announced length; h2 itself checks it.
    left: Option<u64>,
    /// The client waits for a 100 before it sends.
    expects: Option<Respond>,
    pause: Option<Duration>,
    deadline: Deadline,
    in_trailers: bool,
}

impl Upload {
    fn new(
        stream: RecvStream,
        headers: &HeaderMap,
        expects: Option<Respond>,
        pause: Option<Duration>,
    ) -> Upload {
        let left = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Upload {
            stream: Some(stream),
            left,
            expects,
            pause,
            deadline: Deadline::default(),
            in_trailers: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if !self.in_trailers {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    stream.flow_control().release_capacity(data.len())?;
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.in_trailers = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(Some(mut trailers)) => {
                strip_trailers(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(respond) = self.expects.take() {
            respond.inform(StatusCode::CONTINUE, HeaderMap::new());
        }
        match self.poll(cx) {
            Poll::Ready(frame) => {
                self.deadline.clear();
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|error| {
                        // Every error here is a body that is not whole, a reset without error too.
                        let kind = if error.is_io() || error.is_reset() || error.is_go_away() {
                            Kind::ClientGone
                        } else {
                            Kind::ClientBody
                        };
                        Failure::because(kind, error)
                    })
                }))
            }
            Poll::Pending => {
                let pause = self.pause;
                self.deadline.poll(cx, pause).map(|()| Some(Err(Kind::ClientBodyTimeout.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Upload {
    /// Reads away for a moment what nobody wanted: some clients (curl before 8) take the reset that asks
    /// them to stop for the loss of an answer they have already been given.
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take().filter(|stream| !stream.is_end_stream()) else { return };
        tokio::task::spawn_local(tokio::time::timeout(LINGER, async move {
            let mut left = DISCARD;
            while let Some(Ok(data)) = stream.data().await {
                let released = stream.flow_control().release_capacity(data.len());
                left = left.saturating_sub(data.len());
                if released.is_err() || left == 0 {
                    break;
                }
            }
        }));
    }
}
