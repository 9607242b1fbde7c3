//! Streams that are opened and never used.

use std::time::Duration;

use crate::scene::{Attack, Pace, STREAMS, Time, bear, connection};

const CONNECTIONS: u64 = 20;
/// How many streams a client may open before it has opened any.
const AT_FIRST: u64 = 100;
/// What waits for the head of a request: its task, and QUIC's state of a stream.
const STREAM: u64 = 6 * 1024;
/// What a connection costs: QUIC's state, TLS, its task and its buffers.
const CONNECTION: u64 = 256 * 1024;

/// All streams of each connection, by one packet: who opens one opens those before it as well (RFC 9000,
/// section 3.2). By two, since a client is told of the last ones when it uses those before.
pub(crate) fn never_used() -> Attack {
    Attack {
        name: "streams never used",
        config: "",
        holds: CONNECTIONS * (CONNECTION + STREAMS * STREAM),
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let mut pace = Pace::new(Duration::from_millis(50), until);
                let mut kept = Vec::new();
                while pace.next().await {
                    if kept.len() as u64 == CONNECTIONS {
                        continue;
                    }
                    let (client, control) = connection(&dial).await;
                    let mut streams = Vec::new();
                    for end in [AT_FIRST, STREAMS] {
                        while (streams.len() as u64) < end {
                            streams.push(client.open().await);
                        }
                        // The beginning of a type that has eight bytes.
                        streams.last_mut().unwrap().write([0xc0]).await;
                    }
                    let mut unidirectional = Vec::new();
                    for _ in 0..7 {
                        unidirectional.push(client.quic.open_uni().await.unwrap());
                    }
                    unidirectional.last_mut().unwrap().write_all(&[0xc0]).await.unwrap();
                    kept.push((client, control, streams, unidirectional));
                }
                assert_eq!(kept.len() as u64, CONNECTIONS);
                for (client, ..) in &kept {
                    assert_eq!(client.quic.close_reason(), None);
                }
            })
        }),
    }
}

#[tokio::test]
async fn streams_that_are_never_used_hold_little() {
    bear(never_used(), Time::Little).await;
}
