//! Ports for programs that cannot be told "any".
//!
//! The gateway binds with `SO_REUSEPORT`, so two of them on one port is not an error but cross-talk.
//! Every port handed out is therefore leased for the whole machine by an abstract socket of that name,
//! and lies below the range from which the kernel draws the ports of outgoing connections.

use std::{
    net::{self, Ipv4Addr, UdpSocket},
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener},
    sync::atomic::{AtomicU16, Ordering},
};

use tokio::net::TcpSocket;

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

/// A port that nobody else of these tests gets while this lives.
#[derive(Debug)]
pub struct Lease {
    pub port: u16,
    _name: UnixListener,
}

/// Leases a port that is free for TCP and UDP on every loopback address.
pub fn lease() -> Lease {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = LAST - FIRST;
    // Processes start at different places, so that they seldom meet.
    let start = (std::process::id() as u16).wrapping_mul(7919) % span;
    for _ in 0..span {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span;
        if let Some(lease) = try_lease(port) {
            return lease;
        }
    }
    panic!("no free port between {FIRST} and {LAST}");
}

fn try_lease(port: u16) -> Option<Lease> {
    let address = SocketAddr::from_abstract_name(format!("foregate-tests-port-{port}")).ok()?;
    let name = UnixListener::bind_addr(&address).ok()?;
    // Neither has SO_REUSEPORT: they fail if anybody at all has the port. The first is bound and does not
    // listen: a child that another thread forks just now holds a copy until it executes its program.
    let tcp = TcpSocket::new_v4().ok()?;
    tcp.bind(net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).ok()?;
    let _udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
    Some(Lease { port, _name: name })
}

/// A port on which nobody listens, so that connecting to it is refused.
pub fn closed_port() -> Lease {
    lease()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_differ_and_are_exclusive() {
        let (a, b) = (lease(), lease());
        assert_ne!(a.port, b.port);
        assert!(try_lease(a.port).is_none());
        let port = a.port;
        drop(a);
        assert!(try_lease(port).is_some());
    }
}
