//! HTTP/3 by the RFCs, seen from the wire: every MUST that a server could break has a case here, named by
//! the section it comes from. The client writes bytes and knows nothing of the gateway's HTTP/3 code.
//!
//! What an RFC leaves open is left open here too, unless the case says that the gateway has decided it.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

/// Each line is a test: its name, and what the check in front of them gets.
macro_rules! cases {
    ($check:ident: $($name:ident => $($argument:expr),+;)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                $check($($argument),+).await;
            }
        )+
    };
}

mod rfc8470_early_data;
mod rfc9000_datagrams;
mod rfc9000_transport;
mod rfc9114_cancellation;
mod rfc9114_connect;
mod rfc9114_fields;
mod rfc9114_frames;
mod rfc9114_malformed;
mod rfc9114_messages;
mod rfc9114_responses;
mod rfc9114_settings;
mod rfc9114_shutdown;
mod rfc9114_sizes;
mod rfc9114_streams;
mod rfc9204_sections;
mod rfc9204_static_table;
mod rfc9204_streams;
mod rfc9218_priorities;
mod rfc9220_websocket;
mod scene;
