//! HTTP/3: connections and the requests they bring (RFC 9114). The protocol itself is `foregate-http3`'s.

mod stream;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use foregate_http3::{Code, Connection, Error, Incoming, Settings};

use crate::deadline::Deadline;
use crate::drain::{Phase, Turn};
use crate::peer::{Peer, canonical};
use crate::quic::{Handshake, first_streams, proven_address};
use crate::streams::Streams;
use crate::worker::Worker;

/// The shortest wait between the two GOAWAYs, and between the second and the end: what is on its way when a
/// client hears of it must be able to arrive.
const GOODBYE: Duration = Duration::from_millis(20);

/// How far a connection is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client knows that it should open no more requests.
    Announced,
    /// It knows which ones are served.
    Final,
}

/// What accepting waits for.
#[allow(
    clippy::large_enum_variant,
    reason = "taken apart at once; a box would be one more allocation per request"
)]
enum Event {
    Request(Incoming),
    /// What the client came by drains, or nothing has happened for as long as connections are kept.
    Leave,
    /// The next step of leaving is due.
    Step,
    End(Option<Error>),
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    mut peer: Rc<Peer>,
    quic: quinn::Connection,
    handshake: Rc<Handshake>,
) {
    let live = worker.current();
    let settings = Settings { max_field_section_size: live.settings.limits.request_head as u64 };
    let keep_alive = live.settings.timeouts.keep_alive;
    let streams_allowed = live.settings.limits.streams_per_connection;
    // A client that comes so far is not one of the many that ask for a page and then are idle.
    let busy_from = u64::from(first_streams(streams_allowed) / 2);
    let mut requests = 0;
    drop(live);
    let mut connection = match Connection::start(quic, settings) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(peer = %peer.address, %error, "HTTP/3 connection failed");
            return;
        }
    };
    let listener = peer.listener.clone();
    let mut draining = pin!(listener.drain.reached(Phase::Draining));
    let mut closing = pin!(listener.drain.reached(Phase::Closing));
    let streams = Rc::new(Streams::new(&worker.turns, usize::MAX));
    let mut deadline = Deadline::default();
    let (mut drains, mut turn) = (false, Turn::default());
    let mut leaving = Leaving::No;
    loop {
        let goodbye = GOODBYE.max(connection.quic().rtt().saturating_mul(2));
        let event = {
            let mut accepting = pin!(connection.accept());
            poll_fn(|cx| {
                drains = drains || draining.as_mut().poll(cx).is_ready();
                let called = leaving == Leaving::No && drains && turn.poll(cx, &listener.drain).is_ready();
                if called || leaving == Leaving::No && peer.is_outdated() {
                    return Poll::Ready(Event::Leave);
                }
                if closing.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::End(None));
                }
                if let Poll::Ready(accepted) = accepting.as_mut().poll(cx) {
                    return Poll::Ready(match accepted {
                        Ok(incoming) => Event::Request(incoming),
                        Err(error) => Event::End(Some(error)),
                    });
                }
                let idle = streams.observe(cx.waker()) == 0;
                match leaving {
                    Leaving::No | Leaving::Final if !idle => {
                        deadline.clear();
                        Poll::Pending
                    }
                    Leaving::No => deadline.poll(cx, keep_alive).map(|()| Event::Leave),
                    Leaving::Announced => deadline.poll(cx, Some(goodbye)).map(|()| Event::Step),
                    Leaving::Final => deadline.poll(cx, Some(goodbye)).map(|()| Event::End(None)),
                }
            })
            .await
        };
        match event {
            Event::Request(incoming) => {
                follow(&mut peer, connection.quic());
                let (worker, peer, handshake) = (worker.clone(), peer.clone(), handshake.clone());
                requests += 1;
                if requests == busy_from {
                    connection.quic().set_max_concurrent_bi_streams(streams_allowed.into());
                }
                let work = async move { stream::serve(&worker, &peer, &handshake, incoming).await };
                tokio::task::spawn_local(Streams::begin(&streams, work));
            }
            Event::Leave => {
                connection.begin_goaway();
                leaving = Leaving::Announced;
                deadline.clear();
            }
            Event::Step => {
                connection.finish_goaway();
                leaving = Leaving::Final;
                deadline.clear();
            }
            Event::End(error) => {
                if let Some(error) = error {
                    tracing::debug!(peer = %peer.address, %error, "HTTP/3 connection ended");
                }
                break;
            }
        }
    }
    connection.close(Code::H3_NO_ERROR);
}

/// Learns where a client is that has moved. What it may do depends on that, so the old address holds until the
/// new one is proven, and for requests that began before: none of them sees two addresses.
fn follow(peer: &mut Rc<Peer>, quic: &quinn::Connection) {
    // Nearly always it is where it was, and no more is asked.
    if canonical(quic.remote_address()) != peer.address
        && let Some(address) = proven_address(quic)
    {
        tracing::debug!(peer = %peer.address, %address, "the client has moved");
        *peer = Rc::new(peer.at(address));
    }
}
