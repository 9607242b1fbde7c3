//! Mistakes that were made once. Each test is one that a review found, seen from outside.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod answers;
mod framing;
mod http2;
mod stalls;

use std::time::{Duration, Instant};

use foregate_tests::{Fields, Gateway, Incoming, Io, Origin, Reader, gateway, parse_response, within};
use tokio::io::ReadHalf;

/// A gateway with this VM as `shop.test`; `http2`: spoken to with prior knowledge; `site`: more keys of it.
async fn serving(vm: &Origin, http2: bool, site: &str, rest: &str) -> Gateway {
    serving_at(&vm.address(), http2, site, rest).await
}

async fn serving_at(address: &str, http2: bool, site: &str, rest: &str) -> Gateway {
    let scheme = if http2 { "h2c://" } else { "" };
    let text = format!("[sites.\"shop.test\"]\npool = \"{scheme}{address}\"\n{site}\n{rest}\n");
    gateway().named(&["shop.test"]).toml(&text).start().await
}

type Side = Reader<ReadHalf<Box<dyn Io>>>;

/// A final response on HTTP/1.1: its status, fields and body.
type Heard = (u16, Fields, Vec<u8>);

/// Reads one; `None` where the connection ends or breaks instead.
async fn hear(reader: &mut Side) -> Option<Heard> {
    let hearing = async {
        loop {
            let head = reader.head().await.ok()??;
            let (status, _, fields) = parse_response(&head).unwrap();
            if status < 200 {
                continue;
            }
            let mut body = Incoming::response("GET", status, &fields).unwrap();
            let mut text = Vec::new();
            while let Some(piece) = reader.data(&mut body).await.ok()? {
                text.extend_from_slice(&piece);
            }
            return Some((status, fields, text));
        }
    };
    within("an answer or the connection's end", hearing).await
}

/// The upper end is for a machine that is busy, and still well below the limits that do not hold here.
fn took_less(begun: Instant, seconds: u64, what: &str) {
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(seconds), "{what} took {took:?}");
}
