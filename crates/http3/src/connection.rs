//! A connection: its control streams, the requests it brings, and its end.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::codec::control::{self, Event, Settings};
use crate::codec::head::{self, Head};
use crate::codec::{Violation, qpack, varint};
use crate::priority::{Priority, Updates};
use crate::turns::Turns;
use crate::uni::UniStreams;
use crate::{Code, Error, RecvStream, SendStream};

/// How many more requests a client may cancel than it lets be answered: one that only opens and cancels
/// makes us work for nothing.
const CANCELLED: u32 = 256;

/// The server's end of an HTTP/3 connection.
pub struct Connection {
    shared: Rc<Shared>,
    /// Our control stream, and what it could not take yet.
    control: quinn::SendStream,
    unsent: Bytes,
    /// The client asks us to stop it.
    stopped: Pin<Box<dyn Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>>>>,
    client: UniStreams,
    /// The lowest stream id that has not been accepted.
    next: u64,
    /// Requests at or above it are rejected.
    goaway: Option<u64>,
}

/// What a connection's streams have in common.
pub(crate) struct Shared {
    pub(crate) quic: quinn::Connection,
    pub(crate) settings: Settings,
    pub(crate) updates: RefCell<Updates>,
    pub(crate) turns: Turns,
    /// How many more cancellations are borne.
    patience: Cell<u32>,
}

impl Shared {
    /// The client has cancelled a request.
    pub(crate) fn cancelled(&self) {
        match self.patience.get().checked_sub(1) {
            Some(left) => self.patience.set(left),
            None => self.quic.close(Code::H3_EXCESSIVE_LOAD.into(), b"too many cancelled requests"),
        }
    }

    /// A response has been given whole.
    pub(crate) fn answered(&self) {
        self.patience.set((self.patience.get() + 1).min(CANCELLED));
    }

    /// Ends what a violation ends for.
    pub(crate) fn raise(&self, violation: Violation) -> Error {
        Error::raise(&self.quic, violation)
    }
}

impl Connection {
    /// Opens our control stream; SETTINGS leave when [`Connection::accept`] is polled.
    ///
    /// # Errors
    /// The connection was lost, or the client does not allow the stream.
    pub fn start(quic: quinn::Connection, settings: Settings) -> Result<Connection, Error> {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(control) = pin!(quic.open_uni()).poll(&mut cx) else {
            // Section 6.2: its transport parameters have to, and nobody waits until it changes its mind.
            let reason = "no unidirectional stream is allowed";
            return Err(Error::raise(&quic, Violation::connection(Code::H3_GENERAL_PROTOCOL_ERROR, reason)));
        };
        let control = control?;
        // What it says concerns the whole connection.
        _ = control.set_priority(i32::MAX);
        Ok(Connection {
            shared: Rc::new(Shared {
                quic,
                settings,
                updates: RefCell::default(),
                turns: Turns::default(),
                patience: Cell::new(CANCELLED),
            }),
            stopped: Box::pin(control.stopped()),
            control,
            unsent: settings.preface().into(),
            client: UniStreams::default(),
            next: 0,
            goaway: None,
        })
    }

    /// The next request, whose head is still to be read. What the client says on its other streams is read
    /// here too, so it must be polled as long as the connection lives.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The connection is over; if the client broke a rule it has been told.
    pub async fn accept(&mut self) -> Result<Incoming, Error> {
        loop {
            let Connection { shared, control, unsent, stopped, client, .. } = self;
            let (send, recv) = {
                let mut request = pin!(shared.quic.accept_bi());
                let mut uni = pin!(shared.quic.accept_uni());
                poll_fn(|cx| {
                    while let Poll::Ready(stream) = uni.as_mut().poll(cx) {
                        client.add(stream?);
                        uni.set(shared.quic.accept_uni());
                    }
                    let read = client.poll(cx, |event| {
                        if let Event::Priority { stream, value } = event {
                            shared.updates.borrow_mut().put(stream, Priority::parse(&value));
                        }
                    });
                    if let Err(error) = read {
                        return Poll::Ready(Err(match error {
                            Error::Violation(violation) => shared.raise(violation),
                            error => error,
                        }));
                    }
                    write(cx, control, unsent)?;
                    if let Poll::Ready(stopped) = stopped.as_mut().poll(cx) {
                        // Section 6.2.1: a client that wants no control stream wants no connection.
                        let reason = "our control stream was stopped";
                        let violation = Violation::connection(Code::H3_CLOSED_CRITICAL_STREAM, reason);
                        return Poll::Ready(Err(
                            stopped.map_or_else(Error::from, |_| shared.raise(violation))
                        ));
                    }
                    request.as_mut().poll(cx).map(|accepted| accepted.map_err(Error::from))
                })
                .await?
            };
            let id = u64::from(quinn::VarInt::from(recv.id()));
            let incoming = Incoming {
                id,
                early: recv.is_0rtt(),
                recv: RecvStream::new(recv, &self.shared),
                send: SendStream::new(send, &self.shared),
            };
            if self.goaway.is_some_and(|limit| id >= limit) {
                incoming.reject();
                continue;
            }
            self.next = self.next.max(id + 4);
            return Ok(incoming);
        }
    }

    /// Tells the client to open no more requests here, while those on their way are still taken
    /// (RFC 9114, section 5.2). Goes out as [`Connection::accept`] is polled.
    pub fn begin_goaway(&mut self) {
        // The largest id of a request there can be.
        self.send_goaway(varint::MAX - 3);
    }

    /// Tells the client which requests are served; later ones are rejected, and it may send them again
    /// elsewhere. To be called about a round trip after [`Connection::begin_goaway`].
    pub fn finish_goaway(&mut self) {
        self.goaway = Some(self.next);
        self.send_goaway(self.next);
    }

    fn send_goaway(&mut self, id: u64) {
        let mut bytes = Vec::from(std::mem::take(&mut self.unsent));
        bytes.extend_from_slice(&control::goaway(id));
        self.unsent = bytes.into();
        // Now, if it can be: there may be no other poll before the end.
        let mut cx = Context::from_waker(Waker::noop());
        _ = write(&mut cx, &mut self.control, &mut self.unsent);
    }

    /// Ends the connection.
    pub fn close(&self, code: Code) {
        self.shared.quic.close(code.into(), b"");
    }

    #[must_use]
    pub fn quic(&self) -> &quinn::Connection {
        &self.shared.quic
    }
}

/// Writes to our control stream what it takes.
fn write(cx: &mut Context<'_>, control: &mut quinn::SendStream, unsent: &mut Bytes) -> Result<(), Error> {
    while !unsent.is_empty() {
        let chunks = std::slice::from_mut(unsent);
        match pin!(control.write_chunks(chunks)).poll(cx) {
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => break,
            // Seen where it is waited for.
            Poll::Ready(Err(quinn::WriteError::Stopped(_))) => break,
            Poll::Ready(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A request stream whose head has not been read. Dropping it cancels the request.
pub struct Incoming {
    id: u64,
    early: bool,
    recv: RecvStream,
    send: SendStream,
}

impl Incoming {
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// It came in 0-RTT: whoever recorded the packets can send it again (RFC 8470).
    #[must_use]
    pub fn early(&self) -> bool {
        self.early
    }

    /// Reads the head.
    ///
    /// # Errors
    /// [`Error::TooLarge`]: the streams are still open for an answer. After a violation both have been ended with
    /// its code.
    pub async fn head(&mut self) -> Result<Head, Error> {
        let head = poll_fn(|cx| self.recv.poll_head(cx)).await;
        match &head {
            Ok(head) => self.send.asked(&head.parts.headers),
            Err(Error::Violation(violation)) => self.send.reset(violation.code),
            Err(Error::Cancelled(_)) => self.send.reset(Code::H3_REQUEST_CANCELLED),
            Err(_) => {}
        }
        head
    }

    #[must_use]
    pub fn into_streams(self) -> (RecvStream, SendStream) {
        (self.recv, self.send)
    }

    /// Ends the stream with an error.
    pub fn refuse(mut self, code: Code) {
        self.recv.stop(code);
        self.send.reset(code);
    }

    /// Nothing of it was done: the client may send it again.
    pub fn reject(self) {
        self.refuse(Code::H3_REQUEST_REJECTED);
    }
}

impl RecvStream {
    /// # Errors
    /// [`Error::TooLarge`]: the streams are still open for an answer; else the request cannot be answered.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Error>> {
        self.poll_section(cx).map(|section| {
            let section = section?;
            let limit = self.settings().max_field_section_size;
            let head = match qpack::decode(&section, limit) {
                Err(qpack::Problem::TooLarge) => return Err(Error::TooLarge),
                fields => fields.map_err(Violation::from).and_then(head::request),
            };
            let head = head.map_err(|violation| self.fail(violation))?;
            self.expect(&head);
            Ok(head)
        })
    }
}
