//! Heads and frames that do not end, and heads that are larger than they look.

use std::time::Duration;

use foregate_tests::http3::{
    Head, Outcome,
    code::{H3_MESSAGE_ERROR, H3_NO_ERROR},
    frame::{HEADERS, frame, frame_head, grease},
    huffman,
    qpack::integer,
};

use crate::scene::{Attack, Pace, REQUEST_HEAD, STREAMS, Time, bear, connection};

const CONNECTIONS: u64 = 4;
/// How many bombs are on their way at most.
const UNANSWERED: usize = 64;
/// What QUIC may hold of a connection before it is read.
const CONNECTION_WINDOW: u64 = 4 << 20;

/// Each stream of each connection is brought to one byte before the end of the largest head there may be.
pub(crate) fn endless() -> Attack {
    Attack {
        name: "heads that never end",
        config: "",
        // A head is collected in a buffer that doubles, so that it may be twice as large as what is in it.
        holds: CONNECTIONS * STREAMS * 2 * REQUEST_HEAD,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                const PIECES: u64 = 32;
                let mut connections = Vec::new();
                let mut streams = Vec::new();
                for _ in 0..CONNECTIONS {
                    let client = connection(&dial).await;
                    for _ in 0..STREAMS {
                        streams.push(client.0.begin(frame_head(HEADERS, REQUEST_HEAD)).await);
                    }
                    connections.push(client);
                }
                let piece = vec![0; (REQUEST_HEAD / PIECES) as usize];
                let mut pace = Pace::new(Duration::from_millis(80), until);
                let mut sent = 0;
                while pace.next().await {
                    if sent < PIECES - 1 {
                        sent += 1;
                        for stream in &mut streams {
                            stream.write(&piece).await;
                        }
                    }
                }
                assert!(sent > PIECES / 2, "only {sent} pieces were sent");
                assert!(connections.iter().all(|(client, _)| client.quic.close_reason().is_none()));
            })
        }),
    }
}

/// A head and an unknown frame that say they have 2^61 bytes, and then bytes as they are taken.
pub(crate) fn of_2_to_the_61_bytes() -> Attack {
    Attack {
        name: "frames of 2^61 bytes",
        config: "",
        // Nothing of them is kept; what has come and was not read yet may be as much as the windows are.
        holds: 2 * CONNECTION_WINDOW,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let (client, mut control) = connection(&dial).await;
                let mut head = client.begin(frame_head(HEADERS, 1 << 61)).await;
                let mut unknown = client.begin(frame_head(grease(3), 1 << 61)).await;
                let mut body = client.begin(Head::post("/").frame()).await;
                body.write(frame_head(grease(3), 1 << 61)).await;
                control.write_all(&frame_head(grease(3), 1 << 61)).await.unwrap();
                let piece = [7; 8 * 1024];
                let mut pace = Pace::new(Duration::from_millis(2), until);
                let mut sent = 0;
                while pace.next().await {
                    sent += 1;
                    for stream in [&mut head, &mut unknown, &mut body] {
                        stream.write(&piece).await;
                    }
                    control.write_all(&piece).await.unwrap();
                }
                assert!(sent > 200, "only {sent} pieces were sent");
                // The head was answered, and the rest of it is not wanted.
                assert_eq!(head.answer().await.status, 431);
                assert!(matches!(head.stopped().await, Some(H3_NO_ERROR)));
                assert_eq!(client.quic.close_reason(), None);
            })
        }),
    }
}

/// Whole heads whose bytes stand for much more: references to the longest fields of the static table, the
/// shortest codes there are, and as many fields as fit.
pub(crate) fn qpack_bombs() -> Attack {
    Attack {
        name: "QPACK bombs",
        config: "",
        // What has come of each, as above, and once more while QUIC holds it; what they stand for is refused
        // before there is more than one head of it.
        holds: UNANSWERED as u64 * 3 * REQUEST_HEAD,
        run: Box::new(|dial, until| {
            Box::pin(async move {
                let full = REQUEST_HEAD as usize - 2;
                let prefix = &[0, 0][..];
                // Entry 58 counts 101 bytes: HSTS with all there is to say.
                let references = |count| frame(HEADERS, &[prefix, &vec![0xc0 | 58; count]].concat());
                // Five bits for each `a`.
                let code = huffman::encode(&vec![b'a'; full]);
                let path = [integer(0x50, 4, 1), integer(0x80, 7, code.len() as u64), code].concat();
                let codes = frame(HEADERS, &[prefix, &path].concat());
                // Fields with one letter and no value count 33 bytes, and take three.
                let many = (0..full / 3).fold(prefix.to_vec(), |mut section, n| {
                    section.extend_from_slice(&[0x21, b'a' + (n % 26) as u8, 0]);
                    section
                });
                // The second is no larger than it may be, and so is read to its end.
                let bombs = [references(full), references(full / 102), codes, frame(HEADERS, &many)];
                let mut connections = Vec::new();
                for _ in 0..CONNECTIONS {
                    connections.push(connection(&dial).await);
                }
                let mut pace = Pace::new(Duration::from_millis(8), until);
                let mut answers = tokio::task::JoinSet::new();
                let mut rounds = 0;
                while pace.next().await {
                    rounds += 1;
                    for (n, (client, _)) in connections.iter().enumerate() {
                        let mut stream = client.request(&bombs[n % bombs.len()]).await;
                        answers.spawn(async move { stream.outcome().await });
                    }
                    while answers.len() > UNANSWERED - CONNECTIONS as usize {
                        answers.join_next().await;
                    }
                }
                assert!(rounds > 50, "only {rounds} times a bomb each was sent");
                assert!(connections.iter().all(|(client, _)| client.quic.close_reason().is_none()));
                while let Some(outcome) = answers.join_next().await {
                    match outcome.unwrap() {
                        Outcome::Answered(answer) => {
                            assert_eq!(answer.status, 431, "{answer:?}");
                        }
                        // The second has no pseudo-header fields.
                        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR),
                        Outcome::Lost(why) => panic!("{why}"),
                    }
                }
            })
        }),
    }
}

#[tokio::test]
async fn heads_that_never_end_are_bounded() {
    bear(endless(), Time::Little).await;
}

#[tokio::test]
async fn frames_of_2_to_the_61_bytes_are_skipped() {
    bear(of_2_to_the_61_bytes(), Time::Little).await;
}

#[tokio::test]
async fn qpack_bombs_do_not_go_off() {
    bear(qpack_bombs(), Time::Little).await;
}
