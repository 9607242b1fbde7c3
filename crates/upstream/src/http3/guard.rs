//! Between h3 and h3-quinn: streams whose frames have been looked at, and that end with a code.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};

use super::frames::{Frames, Violation};

/// A QUIC connection as h3 wants it.
pub(super) struct Guarded {
    quic: h3_quinn::Connection,
    farewell: Rc<Farewell>,
}

/// What the VM said of its end.
#[derive(Debug, Default)]
pub(super) struct Farewell(Cell<Option<u64>>);

impl Farewell {
    /// No request may be opened any more.
    pub(super) fn said(&self) -> bool {
        self.0.get().is_some()
    }

    /// The VM has certainly not looked at this request. At the id itself nobody knows: RFC 9114, section 5.2,
    /// means the first that is not served, some servers the last that is.
    pub(super) fn excludes(&self, id: StreamId) -> bool {
        self.0.get().is_some_and(|last| id.into_inner() > last)
    }
}

impl Guarded {
    pub(super) fn new(quic: quinn::Connection) -> (Guarded, Rc<Farewell>) {
        let farewell = Rc::new(Farewell::default());
        (Guarded { quic: h3_quinn::Connection::new(quic), farewell: farewell.clone() }, farewell)
    }
}

impl quic::Connection<Bytes> for Guarded {
    type RecvStream = Recv<h3_quinn::RecvStream>;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(quic::Connection::<Bytes>::poll_accept_recv(&mut self.quic, cx))?;
        let mut stream = Recv::new(stream, Frames::unidirectional());
        stream.farewell = Some(self.farewell.clone());
        Poll::Ready(Ok(stream))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        quic::Connection::<Bytes>::poll_accept_bidi(&mut self.quic, cx).map_ok(Both::new)
    }

    fn opener(&self) -> Opener {
        Opener(quic::Connection::<Bytes>::opener(&self.quic))
    }
}

impl quic::OpenStreams<Bytes> for Guarded {
    type BidiStream = Both;
    type SendStream = Send<h3_quinn::SendStream<Bytes>>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        quic::OpenStreams::<Bytes>::poll_open_bidi(&mut self.quic, cx).map_ok(Both::new)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        quic::OpenStreams::<Bytes>::poll_open_send(&mut self.quic, cx).map_ok(Send::new)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        quic::OpenStreams::<Bytes>::close(&mut self.quic, code, reason);
    }
}

/// Opens request streams.
#[derive(Clone)]
pub(super) struct Opener(h3_quinn::OpenStreams);

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Both;
    type SendStream = Send<h3_quinn::SendStream<Bytes>>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        quic::OpenStreams::<Bytes>::poll_open_bidi(&mut self.0, cx).map_ok(Both::new)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        quic::OpenStreams::<Bytes>::poll_open_send(&mut self.0, cx).map_ok(Send::new)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        quic::OpenStreams::<Bytes>::close(&mut self.0, code, reason);
    }
}

/// Both directions of a request.
pub(super) struct Both {
    send: Send<h3_quinn::SendStream<Bytes>>,
    recv: Recv<h3_quinn::RecvStream>,
}

impl Both {
    fn new(stream: h3_quinn::BidiStream<Bytes>) -> Both {
        let (send, recv) = quic::BidiStream::split(stream);
        Both { send: Send::new(send), recv: Recv::new(recv, Frames::response()) }
    }
}

impl quic::BidiStream<Bytes> for Both {
    type SendStream = Send<h3_quinn::SendStream<Bytes>>;
    type RecvStream = Recv<h3_quinn::RecvStream>;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        (self.send, self.recv)
    }
}

impl quic::SendStream<Bytes> for Both {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::RecvStream for Both {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

/// The sending half. quinn ends a stream that is dropped with a FIN, and the VM would take what it has for
/// everything; this one is reset.
pub(super) struct Send<S: quic::SendStream<Bytes>> {
    quic: S,
    over: bool,
}

impl<S: quic::SendStream<Bytes>> Send<S> {
    fn new(quic: S) -> Send<S> {
        Send { quic, over: false }
    }
}

impl<S: quic::SendStream<Bytes>> quic::SendStream<Bytes> for Send<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.quic.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.quic.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let finished = ready!(self.quic.poll_finish(cx));
        self.over |= finished.is_ok();
        Poll::Ready(finished)
    }

    fn reset(&mut self, code: u64) {
        self.over = true;
        self.quic.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.quic.send_id()
    }
}

impl<S: quic::SendStream<Bytes>> Drop for Send<S> {
    fn drop(&mut self) {
        if !self.over {
            self.quic.reset(Code::H3_REQUEST_CANCELLED.value());
        }
    }
}

/// The receiving half.
pub(super) struct Recv<R: quic::RecvStream> {
    quic: R,
    id: StreamId,
    frames: Frames,
    /// What has been read and not yet handed on.
    chunk: Bytes,
    /// h3-quinn has lent the stream to a read, and panics when it is asked for it.
    reading: bool,
    over: bool,
    broken: Option<Violation>,
    /// Of the connection, where this may be its control stream.
    farewell: Option<Rc<Farewell>>,
}

impl<R: quic::RecvStream<Buf = Bytes>> Recv<R> {
    fn new(quic: R, frames: Frames) -> Recv<R> {
        let (id, chunk) = (quic.recv_id(), Bytes::new());
        Recv { quic, id, frames, chunk, reading: false, over: false, broken: None, farewell: None }
    }
}

impl<R: quic::RecvStream<Buf = Bytes>> Recv<R> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            match self.frames.next(&mut self.chunk) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    if let (Some(farewell), Some(id)) = (&self.farewell, self.frames.goaway()) {
                        farewell.0.set(Some(id));
                    }
                    return Poll::Ready(Ok(Some(piece)));
                }
                Err(violation) => {
                    self.broken = Some(violation);
                    quic::RecvStream::stop_sending(self, Code::H3_EXCESSIVE_LOAD.value());
                    return Poll::Ready(Err(unknown(violation)));
                }
            }
            self.reading = true;
            let read = ready!(self.quic.poll_data(cx));
            self.reading = false;
            match read {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => {
                    self.over = true;
                    self.broken = self.frames.finish().err();
                    return Poll::Ready(self.broken.map_or(Ok(None), |violation| Err(unknown(violation))));
                }
                Err(error) => {
                    self.over = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl<R: quic::RecvStream<Buf = Bytes>> quic::RecvStream for Recv<R> {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if let Some(violation) = self.broken {
            return Poll::Ready(Err(unknown(violation)));
        }
        self.poll_piece(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        if !(self.over || self.reading) {
            self.over = true;
            self.quic.stop_sending(code);
        }
    }

    fn recv_id(&self) -> StreamId {
        self.id
    }
}

impl<R: quic::RecvStream> Drop for Recv<R> {
    fn drop(&mut self) {
        // Where a read is pending quinn stops it, with code 0, which means no more and no less.
        if !(self.over || self.reading) {
            self.quic.stop_sending(Code::H3_REQUEST_CANCELLED.value());
        }
    }
}

/// An error of one stream that h3 passes on as it is.
fn unknown(violation: Violation) -> StreamErrorIncoming {
    StreamErrorIncoming::Unknown(Box::new(violation))
}
