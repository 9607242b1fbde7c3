//! HTTP/3 on quinn and h3 (RFC 9114).
//!
//! The h3 crate is guarded where it would let a peer harm us (limits, deadlines, contained panics) and
//! where it ends streams wrongly; its other gaps are named in the README.

mod endpoint;
mod stream;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h3::error::Code;
use h3::server::RequestResolver;
use quinn::{Connection, VarInt};

pub(crate) use endpoint::{Quic, accept};

use crate::deadline::Deadline;
use crate::drain::Phase;
use crate::peer::Peer;
use crate::streams::Streams;
use crate::worker::Worker;

type Resolver = RequestResolver<h3_quinn::Connection, Bytes>;

/// What accepting waits for.
enum Event {
    Stream(Box<Resolver>),
    Drain,
    End,
}

/// Serves a connection to its end.
async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, quic: Connection) {
    let limit = worker.current().settings.limits.request_head as u64;
    let built = h3::server::builder()
        .max_field_section_size(limit)
        .send_grease(false)
        .build::<_, Bytes>(h3_quinn::Connection::new(quic.clone()))
        .await;
    let mut connection = match built {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(peer = %peer.address, %error, "HTTP/3 connection failed");
            return;
        }
    };
    let mut draining = pin!(worker.drain.reached(Phase::Draining));
    let mut closing = pin!(worker.drain.reached(Phase::Closing));
    let streams = Rc::new(Streams::default());
    let keep_alive = worker.current().settings.timeouts.keep_alive;
    let mut deadline = Deadline::default();
    // Stream ids at or above it were refused by our GOAWAY.
    let mut announced = None;
    let mut next_id = 0;
    loop {
        let event = {
            let mut accepting = pin!(connection.accept());
            poll_fn(|cx| {
                if announced.is_none() && draining.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Drain);
                }
                if closing.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::End);
                }
                if let Poll::Ready(accepted) = accepting.as_mut().poll(cx) {
                    return Poll::Ready(match accepted {
                        Ok(Some(resolver)) => Event::Stream(Box::new(resolver)),
                        Ok(None) => Event::End,
                        Err(error) => {
                            tracing::debug!(peer = %peer.address, %error, "HTTP/3 connection ended");
                            Event::End
                        }
                    });
                }
                if streams.observe(cx.waker()) > 0 {
                    deadline.clear();
                    return Poll::Pending;
                }
                deadline.poll(cx, keep_alive).map(|()| Event::End)
            })
            .await
        };
        match event {
            Event::Drain => {
                // h3 counts from the last stream it has accepted, so one more is the first it refuses;
                // without any it announces 0, which is the same.
                announced = Some(next_id);
                if connection.shutdown(1).await.is_err() {
                    break;
                }
            }
            Event::Stream(resolver) => {
                let id = stream::id(&resolver);
                if announced.is_some_and(|limit| id >= limit) {
                    tokio::task::spawn_local(stream::reject(*resolver));
                    continue;
                }
                next_id = next_id.max(id + 4);
                let (worker, peer, quic) = (worker.clone(), peer.clone(), quic.clone());
                let open = Streams::begin(&streams);
                tokio::task::spawn_local(async move {
                    let _open = open;
                    // A client that is gone is nobody to answer; dropping cancels what runs for it.
                    tokio::select! {
                        () = stream::serve(&worker, &peer, *resolver) => {}
                        _ = quic.closed() => {}
                    }
                });
            }
            Event::End => break,
        }
    }
    quic.close(VarInt::from_u64(Code::H3_NO_ERROR.value()).unwrap_or_default(), b"");
}
