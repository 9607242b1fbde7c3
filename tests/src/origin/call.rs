//! One request at an origin, in the hands of the closure that answers it.

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{Response, StatusCode};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::{Delivery, Handler, Recorded, Shared, h3, serve::Tee};
use crate::{
    client::Io,
    fields::Fields,
    pattern::{Digest, pieces},
    wire::{Incoming, Reader, chunk, last_chunk, wrong},
};

/// How much of a body is kept in the record.
const KEPT: usize = 64 * 1024;

type Halves = (Reader<Tee>, WriteHalf<Box<dyn Io>>);

/// A request and the means to answer it, alike for every version.
pub struct Call {
    /// The head, as recorded; the body is read with the methods.
    pub request: Recorded,
    shared: Arc<Shared>,
    index: usize,
    digest: Digest,
    side: Side,
    state: State,
}

enum Side {
    Http1 {
        reader: Reader<Tee>,
        writer: WriteHalf<Box<dyn Io>>,
        incoming: Incoming,
        chunked: bool,
        persistent: bool,
    },
    Http2 {
        body: RecvStream,
        respond: SendResponse<Bytes>,
        send: Option<SendStream<Bytes>>,
    },
    Http3(Box<h3::Stream>),
    Gone,
}

#[derive(PartialEq, Clone, Copy)]
enum State {
    Waiting,
    Started,
    Finished,
}

impl Call {
    pub(super) fn http1(
        shared: Arc<Shared>,
        request: Recorded,
        reader: Reader<Tee>,
        writer: WriteHalf<Box<dyn Io>>,
        incoming: Incoming,
        minor: u8,
    ) -> Call {
        let persistent = minor == 1 && !request.fields.lists("connection", "close");
        let complete = incoming.is_done();
        let side = Side::Http1 { reader, writer, incoming, chunked: false, persistent };
        Call::new(shared, request, side, complete)
    }

    pub(super) fn http2(
        shared: Arc<Shared>,
        request: Recorded,
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) -> Call {
        let complete = body.is_end_stream();
        Call::new(shared, request, Side::Http2 { body, respond, send: None }, complete)
    }

    pub(super) fn http3(shared: Arc<Shared>, request: Recorded, stream: h3::Stream) -> Call {
        Call::new(shared, request, Side::Http3(Box::new(stream)), false)
    }

    fn new(shared: Arc<Shared>, request: Recorded, side: Side, complete: bool) -> Call {
        let mut requests = shared.requests.lock().unwrap();
        let index = requests.len();
        requests.push(request.clone());
        drop(requests);
        let call = Call { request, shared, index, digest: Digest::default(), side, state: State::Waiting };
        if complete {
            call.note(|r| r.delivery = Delivery::Complete);
        }
        call
    }

    pub(super) async fn run(&mut self) {
        let handler = self
            .shared
            .routes
            .iter()
            .find(|(p, _)| self.request.target.starts_with(p))
            .map(|(_, h)| h.clone());
        match handler {
            Some(handler) => {
                let handler: Handler = handler;
                handler(self).await;
            }
            None => self.greet().await,
        }
    }

    /// What an origin does without a closure: reads everything and answers 200 with its name.
    pub async fn greet(&mut self) {
        if self.request.fields.get("expect").is_some() {
            self.inform(100, &Fields::new()).await;
        }
        if self.drain().await.is_ok() {
            let text = format!("{}\n", self.shared.name);
            self.reply(200, &Fields::new().with("content-type", "text/plain"), &text).await;
        }
    }

    /// The next piece of the body; `None` at its end.
    pub async fn data(&mut self) -> io::Result<Option<Bytes>> {
        let read = match &mut self.side {
            Side::Http1 { reader, incoming, .. } => {
                reader.data(incoming).await.map(|p| (p, incoming.trailers.clone()))
            }
            Side::Http2 { body, .. } => http2_data(body).await,
            Side::Http3(stream) => stream.data().await,
            Side::Gone => Err(wrong("the stream was given away".to_owned())),
        };
        match read {
            Ok((Some(piece), _)) => {
                self.digest.update(&piece);
                self.note(|r| {
                    r.length += piece.len() as u64;
                    if r.body.len() < KEPT {
                        r.body =
                            [&r.body[..], &piece[..piece.len().min(KEPT - r.body.len())]].concat().into();
                    }
                });
                Ok(Some(piece))
            }
            Ok((None, trailers)) => {
                let digest = self.digest.hex();
                self.note(|r| (r.delivery, r.trailers, r.digest) = (Delivery::Complete, trailers, digest));
                Ok(None)
            }
            Err(e) => {
                self.note(|r| r.delivery = Delivery::Broken(e.to_string()));
                Err(e)
            }
        }
    }

    /// Reads the body to its end.
    pub async fn drain(&mut self) -> io::Result<()> {
        while self.data().await?.is_some() {}
        Ok(())
    }

    /// Sends an interim answer.
    pub async fn inform(&mut self, status: u16, fields: &Fields) {
        match &mut self.side {
            Side::Http1 { writer, .. } => {
                let mut out = format!("HTTP/1.1 {status} Interim\r\n").into_bytes();
                fields.write_to(&mut out);
                out.extend_from_slice(b"\r\n");
                let _ = writer.write_all(&out).await;
            }
            Side::Http2 { respond, .. } => {
                let _ = respond.send_informational(head(status, fields));
            }
            Side::Http3(stream) => {
                let _ = stream.head(head(status, fields)).await;
            }
            Side::Gone => {}
        }
    }

    /// A whole answer with its length.
    pub async fn reply(&mut self, status: u16, fields: &Fields, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        self.start(status, fields, Some(body.len() as u64)).await;
        if self.request.method != "HEAD" && !matches!(status, 204 | 304) && !body.is_empty() {
            let _ = self.write(Bytes::copy_from_slice(body)).await;
        }
        self.finish(&Fields::new()).await;
    }

    /// The head of an answer, with `x-vm`; a body without `length` is chunked.
    pub async fn start(&mut self, status: u16, fields: &Fields, length: Option<u64>) {
        self.state = State::Started;
        let mut fields = fields.clone().with("x-vm", &self.shared.name);
        if status != 204
            && let Some(length) = length
        {
            fields.push("content-length", &length.to_string());
        }
        match &mut self.side {
            Side::Http1 { writer, chunked, .. } => {
                if length.is_none() {
                    fields.push("transfer-encoding", "chunked");
                    *chunked = true;
                }
                let mut out = format!("HTTP/1.1 {status} Reason\r\n").into_bytes();
                fields.write_to(&mut out);
                out.extend_from_slice(b"\r\n");
                let _ = writer.write_all(&out).await;
            }
            Side::Http2 { respond, send, .. } => {
                *send = respond.send_response(head(status, &fields), false).ok()
            }
            Side::Http3(stream) => {
                let _ = stream.head(head(status, &fields)).await;
            }
            Side::Gone => {}
        }
    }

    /// A piece of the body; waits while the gateway does not read.
    pub async fn write(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.side {
            Side::Http1 { writer, chunked, .. } => {
                if *chunked {
                    writer.write_all(&chunk(&data)).await
                } else {
                    writer.write_all(&data).await
                }
            }
            Side::Http2 { send: Some(send), .. } => {
                crate::client::send_h2(send, data).await.map_err(io::Error::other)
            }
            Side::Http3(stream) => stream.write(data).await,
            _ => Err(wrong("no answer was begun".to_owned())),
        }
    }

    /// A body of `length` generated bytes.
    pub async fn write_pattern(&mut self, length: u64) -> io::Result<()> {
        for piece in pieces(length) {
            self.write(piece).await?;
        }
        Ok(())
    }

    /// Ends the answer.
    pub async fn finish(&mut self, trailers: &Fields) {
        self.state = State::Finished;
        match &mut self.side {
            Side::Http1 { writer, chunked: true, .. } if self.request.method != "HEAD" => {
                let _ = writer.write_all(&last_chunk(trailers)).await;
            }
            Side::Http2 { send: Some(send), .. } => {
                let _ = if trailers.is_empty() {
                    send.send_data(Bytes::new(), true)
                } else {
                    send.send_trailers(trailers.to_map())
                };
            }
            Side::Http3(stream) => stream.finish(trailers).await,
            _ => {}
        }
    }

    /// Writes literal bytes (HTTP/1.1) and closes the connection when the closure returns.
    pub async fn literal(&mut self, bytes: &[u8]) {
        if let Side::Http1 { writer, persistent, .. } = &mut self.side {
            *persistent = false;
            let _ = writer.write_all(bytes).await;
            let _ = writer.flush().await;
        }
    }

    /// Breaks off: closes the connection, or resets the stream.
    pub fn die(&mut self) {
        if let Side::Http2 { respond, send, .. } = &mut self.side {
            match send {
                Some(send) => send.send_reset(h2::Reason::INTERNAL_ERROR),
                None => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        }
        if let Side::Http3(stream) = &mut self.side {
            stream.reset();
        }
        self.side = Side::Gone;
    }

    /// Says that nothing was done with the request, and that it may be sent again (HTTP/2 and HTTP/3).
    pub fn reject(&mut self) {
        if let Side::Http2 { respond, .. } = &mut self.side {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        if let Side::Http3(stream) = &mut self.side {
            stream.reject();
        }
        self.side = Side::Gone;
    }

    /// Waits until the gateway closes the connection or resets the stream.
    pub async fn gone(&mut self) {
        match &mut self.side {
            Side::Http1 { reader, .. } => while reader.fill().await.is_ok_and(|n| n > 0) {},
            Side::Http2 { respond, send, .. } => {
                let _ = match send {
                    Some(send) => poll_fn(|cx| send.poll_reset(cx)).await,
                    None => poll_fn(|cx| respond.poll_reset(cx)).await,
                };
            }
            // The `h3` crate tells of it only to those who write.
            Side::Http3(stream) => {
                let begun = self.state == State::Started;
                while match begun {
                    true => stream.write(Bytes::from_static(b".")).await,
                    false => stream.head(head(103, &Fields::new())).await,
                }
                .is_ok()
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            Side::Gone => {}
        }
        self.note(|r| r.delivery = Delivery::Broken("the gateway went away".to_owned()));
        self.side = Side::Gone;
    }

    /// Accepts a WebSocket and returns every message, until the peer closes or sends `bye`, to which this
    /// side closes first.
    pub async fn websocket(&mut self) {
        let key = self.request.fields.get("sec-websocket-key").unwrap_or_default().to_owned();
        let Side::Http1 { reader, mut writer, .. } = std::mem::replace(&mut self.side, Side::Gone) else {
            panic!("WebSocket at an HTTP/2 origin");
        };
        let accept = derive_accept_key(key.as_bytes());
        let mut head = format!("HTTP/1.1 101 Switching Protocols\r\nx-vm: {}\r\n", self.shared.name);
        head += &format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n");
        if let Some(protocol) = self.request.fields.get("sec-websocket-protocol") {
            head += &format!("Sec-WebSocket-Protocol: {protocol}\r\n");
        }
        let _ = writer.write_all(format!("{head}\r\n").as_bytes()).await;
        let ahead = reader.buffer.to_vec();
        let io = tokio::io::join(reader.io, writer);
        let mut socket = WebSocketStream::from_partially_read(io, ahead, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Text(text) if text.as_str() == "bye" => {
                    let _ = socket.close(None).await;
                }
                Message::Text(_) | Message::Binary(_) if socket.send(message.clone()).await.is_err() => break,
                _ => {}
            }
        }
        self.note(|r| r.delivery = Delivery::Complete);
    }

    /// The halves of an HTTP/1.1 connection on which another request may follow.
    pub(super) fn reusable(self) -> Option<Halves> {
        match self.side {
            Side::Http1 { reader, writer, incoming, persistent: true, .. }
                if incoming.is_done() && self.state == State::Finished =>
            {
                Some((reader, writer))
            }
            _ => None,
        }
    }

    fn note(&self, change: impl FnOnce(&mut Recorded)) {
        change(&mut self.shared.requests.lock().unwrap()[self.index]);
    }
}

async fn http2_data(body: &mut RecvStream) -> io::Result<(Option<Bytes>, Fields)> {
    match body.data().await {
        Some(Ok(piece)) => {
            let _ = body.flow_control().release_capacity(piece.len());
            Ok((Some(piece), Fields::new()))
        }
        Some(Err(e)) => Err(io::Error::other(e)),
        None => {
            let trailers = body.trailers().await.map_err(io::Error::other)?;
            Ok((None, trailers.map(|t| Fields::from_map(&t)).unwrap_or_default()))
        }
    }
}

fn head(status: u16, fields: &Fields) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).expect("status");
    *response.headers_mut() = fields.to_map();
    response
}
