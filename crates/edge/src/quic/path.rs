//! The paths of a connection: which address its client is proven to have.
//!
//! A client may go on from another address (RFC 9000, section 9). quinn takes an address with the first packet
//! that comes from it, and only then asks whether the client can be reached there (section 8.2). Until it has
//! answered, the address is a claim: whoever has the keys of a connection can send from a forged one. quinn does
//! not say when it has answered, but it tells the congestion controller of a path of no acknowledgement before.
//! So every path gets a controller that remembers whether it was told of one.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use crate::peer::canonical;

/// Where the client is, if it is proven to be there. `None` while that is being found out.
pub(crate) fn proven_address(connection: &quinn::Connection) -> Option<SocketAddr> {
    let controller = connection.congestion_state().into_any().downcast::<Path>().ok()?;
    controller.proven.then(|| canonical(connection.remote_address()))
}

/// Makes the controllers of paths.
pub(super) struct Paths<F>(pub(super) Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Paths<F> {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Path { controller: self.0.clone().build(now, mtu), proven: false })
    }
}

/// A controller and what it shows of its path. quinn makes a new one for each address, and a copy where only
/// the port is another, which is no other client: the copy is as proven as the original.
struct Path {
    controller: Box<dyn Controller>,
    proven: bool,
}

impl Controller for Path {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.controller.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.proven = true;
        self.controller.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.controller.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.controller.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.controller.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.controller.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.controller.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Path { controller: self.controller.clone_box(), proven: self.proven })
    }

    fn initial_window(&self) -> u64 {
        self.controller.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
