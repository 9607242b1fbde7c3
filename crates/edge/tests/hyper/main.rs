//! What hyper can and cannot do at the edge and towards VMs over HTTP/2.
//!
//! Each test asks one thing the gateway must do and asserts what hyper really does, right or wrong:
//! literal bytes in, literal bytes out. `docs/hyper.md` has one row per test and the decision drawn
//! from it. A test that fails after an upgrade of hyper means its row, and perhaps the decision, is
//! out of date.
//!
//! Nothing here sleeps. Time is paused, so a deadline passes only when every task is idle: that is
//! how [`wire::until_quiet`] knows that the other side has said all it is going to say.

// A panic is how a test reports, and every byte here is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod body;
mod http1_server;
mod http2_client;
mod http2_server;
mod wire;
