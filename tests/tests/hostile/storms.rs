//! Requests that are cancelled as soon as they are made (CVE-2023-44487), and frames that are short and some work.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use foregate_tests::{
    Dial,
    http3::{
        Connection, Head, Stream,
        code::{H3_EXCESSIVE_LOAD, H3_REQUEST_CANCELLED},
        frame::{PRIORITY_UPDATE, priority_update},
    },
};
use quinn::ConnectionError;

use crate::scene::{Attack, Pace, STREAMS, Time, bear, connection};

/// What a request costs while it is on its way to a VM: its task, QUIC's state of the stream, and a connection to
/// the VM with its first buffers.
const REQUEST: u64 = 32 * 1024;

/// How many requests are cancelled each time, and how often: a thousand a second.
const BURST: usize = 4;
const EVERY: Duration = Duration::from_millis(4);
/// What QUIC may hold of a stream that is not read.
const STREAM_WINDOW: u64 = 1 << 20;
/// How often a thousand priorities change.
const UPDATES_EVERY: Duration = Duration::from_millis(10);
/// How many cancelled ones the client keeps before it lets go of what it has not ended of them.
const KEPT: usize = 32;

pub(crate) fn stop_sending() -> Attack {
    storm("a storm of STOP_SENDING", |stream| stream.stop(H3_REQUEST_CANCELLED))
}

pub(crate) fn reset_stream() -> Attack {
    storm("a storm of RESET_STREAM", |stream| stream.reset(H3_REQUEST_CANCELLED))
}

/// The shortest frames there are that make the gateway remember something.
pub(crate) fn priority_updates() -> Attack {
    Attack {
        name: "a storm of PRIORITY_UPDATE",
        config: "",
        // Nothing but the newest of some streams, and what QUIC may hold before it is read.
        holds: STREAM_WINDOW,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let (client, mut control) = connection(&dial).await;
                let updates: Vec<u8> =
                    (0..64).flat_map(|n| priority_update(PRIORITY_UPDATE, n * 4, "u=1")).collect();
                let piece = updates.repeat(16);
                let mut pace = Pace::new(UPDATES_EVERY, until);
                let mut sent = 0;
                while pace.next().await {
                    control.write_all(&piece).await.unwrap();
                    sent += 1024;
                }
                assert!(sent > 100_000, "only {sent} frames were sent");
                assert_eq!(client.quic.close_reason(), None);
            })
        }),
    }
}

fn storm(name: &'static str, cancel: fn(&mut Stream)) -> Attack {
    Attack {
        name,
        config: "",
        // No more at a time than may be open, on the connection that goes on and on the one before it.
        holds: 2 * STREAMS * REQUEST,
        run: Box::new(move |dial, until| Box::pin(rage(dial, until, cancel))),
    }
}

/// Cancels requests, and comes again when the gateway has had enough.
async fn rage(dial: Dial, until: Instant, cancel: fn(&mut Stream)) {
    let mut pace = Pace::new(EVERY, until);
    let mut turned_out = 0;
    while Instant::now() < until {
        let (client, _control) = connection(&dial).await;
        let mut cancelled = VecDeque::new();
        while pace.next().await && client.quic.close_reason().is_none() {
            for n in 0..BURST {
                let Some(stream) = burst(&client, n, cancel).await else { break };
                cancelled.push_back(stream);
            }
            while cancelled.len() > KEPT {
                // Dropping it would end properly what was not whole, which is a fault of another kind.
                cancelled.pop_front().unwrap().reset(H3_REQUEST_CANCELLED);
            }
        }
        match client.quic.close_reason() {
            None => {}
            Some(ConnectionError::ApplicationClosed(close))
                if close.error_code.into_inner() == H3_EXCESSIVE_LOAD =>
            {
                turned_out += 1;
            }
            Some(other) => panic!("{other}"),
        }
    }
    assert!(turned_out > 0, "it was never too much");
}

/// One request: whole, without its end, or nothing but its beginning.
async fn burst(client: &Connection, n: usize, cancel: fn(&mut Stream)) -> Option<Stream> {
    let (mut send, recv) = client.quic.open_bi().await.ok()?;
    let bytes = Head::get("/held").frame();
    let part = if n == 0 { 1 } else { bytes.len() };
    send.write_all(&bytes[..part]).await.ok()?;
    if n == 1 {
        send.finish().ok()?;
    }
    let mut stream = Stream::new(send, recv);
    cancel(&mut stream);
    Some(stream)
}

#[tokio::test]
async fn a_storm_of_stop_sending_ends_its_connection() {
    bear(stop_sending(), Time::Little).await;
}

#[tokio::test]
async fn a_storm_of_reset_stream_ends_its_connection() {
    bear(reset_stream(), Time::Little).await;
}

#[tokio::test]
async fn a_storm_of_priorities_is_forgotten() {
    bear(priority_updates(), Time::Little).await;
}
