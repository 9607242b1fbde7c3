//! Clients that take what they asked for in the smallest pieces.

use std::time::Duration;

use foregate_tests::http3::{Head, Options};

use crate::scene::{Attack, Pace, STREAMS, Time, bear, connection_with};

/// So small that each byte that was read is told at once, and allows one more.
const WINDOW: u32 = 8;
/// What is read of a VM's response before anybody wants it: a connection to a VM has a buffer of so much.
const READ_AHEAD: u64 = 64 * 1024;

/// What is taken of a response before nothing more is: enough that the gateway reads on in larger pieces.
const TAKEN: u32 = 320 * 1024;
/// How many responses of a worker are read in larger pieces, and how large these are.
const LARGE_BODIES: u64 = 64;
const LARGE_PIECE: u64 = 256 * 1024;
/// What QUIC may hold of a connection until it is acknowledged.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;

/// As many large responses at a time as there may be, and one byte of one of them each millisecond.
pub(crate) fn by_single_bytes() -> Attack {
    Attack {
        name: "reads by single bytes",
        config: "",
        holds: STREAMS * READ_AHEAD,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let options = Options { window: WINDOW, ..Options::default() };
                let (client, _control) = connection_with(&dial, options).await;
                let mut streams = Vec::new();
                for _ in 0..STREAMS {
                    streams.push(client.request(Head::get("/large").frame()).await);
                }
                let mut pace = Pace::new(Duration::from_millis(1), until);
                let mut read = 0;
                while pace.next().await {
                    for stream in &mut streams {
                        let byte = stream.frames.recv.read_chunk(1, true);
                        let ready = tokio::time::timeout(Duration::ZERO, byte).await;
                        if let Ok(chunk) = ready {
                            read += chunk.unwrap().expect("not the end").bytes.len();
                            break;
                        }
                    }
                }
                assert!(read > 200, "only {read} bytes were read");
                assert_eq!(client.quic.close_reason(), None);
            })
        }),
    }
}

/// As many large responses at a time as there may be, at full speed to their midst, and then nothing.
pub(crate) fn that_stop() -> Attack {
    Attack {
        name: "reads that stop",
        config: "",
        holds: STREAMS * READ_AHEAD + LARGE_BODIES * (LARGE_PIECE - READ_AHEAD) + SEND_WINDOW,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let window = STREAMS as u32 * TAKEN;
                let options = Options { window, stream_window: TAKEN, ..Options::default() };
                let (client, _control) = connection_with(&dial, options).await;
                let mut streams = Vec::new();
                let mut pace = Pace::new(Duration::from_millis(10), until);
                while pace.next().await {
                    if (streams.len() as u64) < STREAMS {
                        streams.push(client.request(Head::get("/large").frame()).await);
                    }
                }
                assert_eq!(streams.len() as u64, STREAMS);
                let taken = client.quic.stats().udp_rx.bytes;
                assert!(taken > u64::from(window), "only {taken} bytes came");
                assert_eq!(client.quic.close_reason(), None);
            })
        }),
    }
}

#[tokio::test]
async fn reads_that_stop_hold_little() {
    bear(that_stop(), Time::Little).await;
}

#[tokio::test]
async fn reads_by_single_bytes_hold_little() {
    bear(by_single_bytes(), Time::Little).await;
}
