//! One HTTP/1.1 connection to a VM, moved by the request that uses it.
//!
//! No task belongs to a connection: it lies on its shelf, or the request it carries polls it, and the body of
//! the response after that. Only an upload that goes on beside its response gets a task, for the client may
//! read nothing before it has sent everything.

mod download;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut, BytesMut};
use foregate_exchange::deadline::Deadline;
use foregate_exchange::http1::request::{self, Asking};
use foregate_exchange::http1::response::{self, Answered};
use foregate_exchange::http1::{BodyWriter, Ending, Framing, Output, Search, TooLong, announced};
use foregate_exchange::reading::{ReadBy, Rewound};
use foregate_exchange::{Body, Failure, Kind, Tunnel};
use foregate_routing::InFlight;
use http::header::EXPECT;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use self::download::{Download, Drive};
use crate::client::{Outgoing, SendError, Shelf};
use crate::patience::Patience;
use crate::response::check_status;
use crate::stream::Stream;
use crate::upload::{Progress, Upload};

/// A VM's response head may be this long.
const MAX_HEAD: usize = 256 * 1024;
/// So many interim responses may come before the final one: a VM that sends nothing else would fill our memory.
const MAX_INTERIMS: u32 = 64;
/// Room for one read of a head, with a small body.
const HEAD_READ: usize = 4 * 1024;

pub(crate) struct Http1 {
    io: Stream,
    /// Read and not yet taken.
    input: BytesMut,
    output: Output,
    sending: Sending,
    since: Instant,
    /// Of the request under way; its timer serves all requests of the connection.
    deadline: Deadline,
}

/// The body of a request under way.
enum Sending {
    Done,
    Body {
        upload: Upload,
        writer: BodyWriter,
    },
    /// The VM takes no more of the request. What is left of its body stays, so that the client is not told to stop
    /// before it is answered.
    Stuck {
        upload: Option<Upload>,
    },
}

/// Why a request cannot be sent on.
enum Stop {
    /// The client's side failed: no end must follow what was sent.
    Client(Failure),
    /// The VM takes no more. It may have said why.
    Vm(io::Error),
}

impl Http1 {
    pub(crate) fn new(io: Stream) -> Box<Http1> {
        Box::new(Http1 {
            io,
            input: BytesMut::new(),
            output: Output::default(),
            sending: Sending::Done,
            since: Instant::now(),
            deadline: Deadline::default(),
        })
    }

    /// Since when it has been idle.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Whether the VM has left it open and in step, as far as anybody can know.
    pub(crate) fn is_usable(&mut self) -> bool {
        // Nobody waits on an idle connection; asking it once reads the close that may have come.
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [MaybeUninit::uninit()];
        self.input.is_empty()
            && Pin::new(&mut self.io).poll_read(&mut cx, &mut ReadBuf::uninit(&mut byte)).is_pending()
    }

    pub(crate) async fn send(
        mut self: Box<Self>,
        outgoing: &mut Outgoing,
        in_flight: InFlight,
        shelf: Rc<Shelf>,
        interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Response<Body>, SendError> {
        let expects = outgoing.headers.contains_key(EXPECT);
        let head_only = outgoing.method == Method::HEAD;
        let (upload, progress) = Upload::new(std::mem::take(&mut outgoing.body), expects);
        let length = progress.is_some().then(|| upload.size_hint().exact());
        let ending = request::ending(&outgoing.method, length);
        let asking = Asking {
            method: &outgoing.method,
            target: outgoing.target.as_str(),
            authority: &outgoing.authority,
            headers: &outgoing.headers,
            ending,
            upgrade: outgoing.upgrade.as_ref(),
            ask_trailers: outgoing.ask_trailers,
        };
        request::write(self.output.bytes(), &asking);
        if progress.is_some() {
            let trailers = if ending == Ending::Chunked { announced(&outgoing.headers) } else { Vec::new() };
            self.sending = Sending::Body { upload, writer: BodyWriter::new(ending, trailers) };
        }
        let mut untouched = true;
        let answered = self.answer(outgoing, progress.as_deref(), head_only, &mut untouched, interim).await;
        let failed = match answered {
            Ok(answered) if answered.status == StatusCode::SWITCHING_PROTOCOLS => {
                if outgoing.upgrade.is_some() && self.is_sent() {
                    return Ok(self.switch(answered, in_flight));
                }
                Failure::because(
                    Kind::BadResponse,
                    "it switched protocols unasked, or before it had the request",
                )
            }
            Ok(answered) => {
                self.deadline.clear();
                return Ok(self.receive(answered, in_flight, shelf, progress, outgoing));
            }
            Err(failure) => failure,
        };
        let failure = progress.as_ref().and_then(|progress| progress.failure()).unwrap_or(failed);
        let unsent = untouched.then(|| match self.sending {
            Sending::Body { upload, .. } | Sending::Stuck { upload: Some(upload) } => upload.into_body(),
            Sending::Done | Sending::Stuck { upload: None } => Body::Empty,
        });
        Err(SendError { unsent, ..failure.into() })
    }

    /// Sends the request, and waits for the head of its final response. `untouched` stays true as long as nothing
    /// of the request can have reached the VM.
    async fn answer(
        &mut self,
        outgoing: &Outgoing,
        progress: Option<&Progress>,
        head_only: bool,
        untouched: &mut bool,
        mut interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Answered, Failure> {
        let mut patience = Patience::new(outgoing.response_timeout);
        let mut search = Search::default();
        let mut refused = None;
        let mut interims = 0;
        self.deadline.clear();
        poll_fn(|cx| {
            loop {
                if refused.is_none() {
                    let sent = self.poll_send(cx, untouched);
                    match sent {
                        Poll::Ready(Err(Stop::Client(failure))) => return Poll::Ready(Err(failure)),
                        Poll::Ready(Err(Stop::Vm(error))) => refused = Some(error),
                        Poll::Ready(Ok(())) | Poll::Pending => {}
                    }
                }
                let length = match search.end(&mut self.input, MAX_HEAD) {
                    Ok(length) => length,
                    Err(TooLong) => {
                        return Poll::Ready(Err(Failure::because(Kind::BadResponse, "its head is too long")));
                    }
                };
                if let Some(length) = length {
                    let head = self.input.split_to(length).freeze();
                    let answered = response::parse(head, head_only)?;
                    check_status(answered.status)?;
                    if !answered.status.is_informational()
                        || answered.status == StatusCode::SWITCHING_PROTOCOLS
                    {
                        return Poll::Ready(Ok(answered));
                    }
                    if let (StatusCode::CONTINUE, Some(progress)) = (answered.status, progress) {
                        progress.allow();
                    }
                    interims += 1;
                    if interims > MAX_INTERIMS {
                        return Poll::Ready(Err(Failure::because(
                            Kind::BadResponse,
                            "it says nothing but 1xx",
                        )));
                    }
                    interim(answered.status, answered.headers);
                    continue;
                }
                match self.poll_fill(cx, HEAD_READ) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(Ok(_)) => {
                        return Poll::Ready(Err(match refused.take() {
                            Some(error) => lost(error),
                            None => Kind::Reset.into(),
                        }));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
                    Poll::Pending => {
                        // Once the VM takes no more, it is not the client who is waited for.
                        let progress = progress.filter(|_| refused.is_none());
                        ready!(patience.poll(&mut self.deadline, progress, cx));
                        return Poll::Ready(Err(Kind::HeadTimeout.into()));
                    }
                }
            }
        })
        .await
    }

    /// Writes what there is of the request. Ready when all of it is written.
    fn poll_send(&mut self, cx: &mut Context<'_>, untouched: &mut bool) -> Poll<Result<(), Stop>> {
        loop {
            let mut waits = false;
            while let Sending::Body { upload, writer } = &mut self.sending
                && !writer.has_ended()
                && self.output.has_room()
            {
                // A client may end its body later than it has sent all of it.
                let frame =
                    if writer.is_full() { Poll::Ready(None) } else { Pin::new(upload).poll_frame(cx) };
                let Poll::Ready(frame) = frame else {
                    waits = true;
                    break;
                };
                // What was taken from the body cannot be given back.
                *untouched &= frame.is_none();
                let put = match frame {
                    Some(Ok(frame)) => writer.put(&mut self.output, frame),
                    Some(Err(failure)) => return Poll::Ready(Err(Stop::Client(failure))),
                    None => writer.end(&mut self.output),
                };
                if let Err(broken) = put {
                    return Poll::Ready(Err(Stop::Client(Failure::because(Kind::ClientBody, broken))));
                }
            }
            if !self.output.is_empty() {
                let before = self.output.written();
                let flushed = self.output.poll_flush(&mut self.io, cx);
                *untouched &= self.output.written() == before;
                if let Err(error) = ready!(flushed) {
                    self.send_no_more();
                    return Poll::Ready(Err(Stop::Vm(error)));
                }
            }
            match &self.sending {
                Sending::Body { writer, .. } if writer.has_ended() => self.sending = Sending::Done,
                Sending::Body { .. } if waits => return Poll::Pending,
                // There is room again.
                Sending::Body { .. } => continue,
                Sending::Done | Sending::Stuck { .. } => {}
            }
            return Poll::Ready(Ok(()));
        }
    }

    /// The VM takes no more of the request.
    fn send_no_more(&mut self) {
        self.output = Output::default();
        let upload = match std::mem::replace(&mut self.sending, Sending::Done) {
            Sending::Body { upload, .. } => Some(upload),
            Sending::Stuck { upload } => upload,
            Sending::Done => None,
        };
        self.sending = Sending::Stuck { upload };
    }

    /// Whether the request has been sent whole.
    fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done) && self.output.is_empty()
    }

    /// Reads what has come, no more than there should be room for; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if !self.input.is_empty() {
            self.input.reserve(room);
        } else if !self.input.try_reclaim(room) || self.input.capacity() > room {
            // To reserve would let the buffer grow with what was in it before.
            self.input = BytesMut::with_capacity(room);
        }
        poll_read_buf(Pin::new(&mut self.io), cx, &mut (&mut self.input).limit(room))
    }

    /// The response. Its body moves this connection, which goes back on the shelf at the body's end, if VM and
    /// request are through with each other by then.
    fn receive(
        mut self: Box<Self>,
        answered: Answered,
        in_flight: InFlight,
        shelf: Rc<Shelf>,
        progress: Option<Rc<Progress>>,
        outgoing: &Outgoing,
    ) -> Response<Body> {
        let Answered { status, headers, framing, keeps } = answered;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let drive = if self.is_sent() {
            match self.whole(framing.as_ref()) {
                // A small body that is here already needs nobody to fetch it.
                Some(body) => {
                    if keeps {
                        self.recycle(&shelf);
                    }
                    *response.body_mut() = body;
                    return response;
                }
                None => Drive::Inline(self, keeps.then_some(shelf)),
            }
        } else if status.is_success() && !matches!(self.sending, Sending::Stuck { .. }) {
            Drive::beside(self, progress, outgoing.response_timeout)
        } else {
            // The VM has refused the upload, so nothing more of it is sent.
            self.send_no_more();
            Drive::Inline(self, None)
        };
        *response.body_mut() = Body::stream(Download::new(drive, framing, outgoing.idle_timeout, in_flight));
        response
    }

    /// The whole body, if it has come already.
    fn whole(&mut self, framing: Option<&Framing>) -> Option<Body> {
        match framing {
            Some(Framing::None | Framing::Length(0)) => Some(Body::Empty),
            Some(Framing::Length(length)) => {
                let length = usize::try_from(*length).ok().filter(|length| *length <= self.input.len())?;
                Some(Body::Full(self.input.split_to(length).freeze()))
            }
            Some(Framing::Chunked(_)) | None => None,
        }
    }

    /// Keeps the connection for the next request, if the VM does.
    fn recycle(mut self: Box<Self>, shelf: &Shelf) {
        if self.is_usable() {
            // An idle connection holds no buffers; what is left of the one may be part of a response.
            self.input = BytesMut::new();
            if self.output.bytes().capacity() > HEAD_READ {
                self.output = Output::default();
            }
            self.since = Instant::now();
            shelf.keep(self);
        }
    }

    /// The VM agreed to leave HTTP: from here on its bytes are the tunnel's.
    fn switch(self, answered: Answered, in_flight: InFlight) -> Response<Body> {
        let stream = ReadBy::new(Rewound(self.input.freeze()), self.io);
        let mut response = Response::new(Body::Tunnel(Tunnel::new(stream, None, in_flight)));
        *response.status_mut() = answered.status;
        *response.headers_mut() = answered.headers;
        response
    }
}

/// The connection broke before the response head was whole.
fn lost(error: io::Error) -> Failure {
    // The system gives up a VM that acknowledges nothing.
    let kind = if error.kind() == io::ErrorKind::TimedOut { Kind::HeadTimeout } else { Kind::Reset };
    Failure::because(kind, error)
}
