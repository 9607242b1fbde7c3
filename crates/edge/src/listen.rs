//! Binding the public address: one socket for each worker in one `SO_REUSEPORT` group per address and port.
//!
//! [`Listeners`] knows what is bound, and what has to change for the next configuration.

mod listeners;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

pub use listeners::{Handed, Kind};
pub(crate) use listeners::{Listeners, Opened, Plan, Way};

/// Bytes the kernel may hold for a UDP socket, so that a burst outlives a busy moment. The kernel may
/// grant less (`net.core.rmem_max`).
const UDP_BUFFER: usize = 4 * 1024 * 1024;

/// One address the gateway listens on, as the configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub address: SocketAddr,
    /// HTTPS, and with `http3` HTTP/3 on the UDP port of the same number.
    pub secure: bool,
    pub http3: bool,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match (self.secure, self.http3) {
            (false, _) => write!(f, "http://{address} (HTTP/1.1, h2c)"),
            (true, false) => write!(f, "https://{address} (HTTP/1.1, HTTP/2)"),
            (true, true) => write!(f, "https://{address} (HTTP/1.1, HTTP/2, HTTP/3)"),
        }
    }
}

/// Why an address cannot be listened on. Displays what to do about it.
#[derive(Debug)]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    /// Where the port stands in the configuration.
    key: &'static str,
    error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { what, address, key, error } = self;
        let port = address.port();
        write!(f, "cannot listen on {what} {address}: ")?;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "the port is taken by another program; `ss -lpn 'sport = :{port}'` names it; \
                 stop it, or choose another port as {key}"
            ),
            io::ErrorKind::PermissionDenied if port < 1024 => write!(
                f,
                "no permission for a port below 1024; run as root, give the program the capability \
                 (`setcap cap_net_bind_service=+ep foregate`, or AmbientCapabilities=CAP_NET_BIND_SERVICE \
                 in its systemd unit), or choose another port as {key}"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "this host does not have the address; correct server.addresses")
            }
            _ => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A socket of HTTP or HTTPS.
fn open_tcp(address: SocketAddr, place: Place, backlog: u32) -> io::Result<Socket> {
    let socket = open(address, place, Type::STREAM, Protocol::TCP, true)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// A socket of HTTP/3.
fn open_udp(address: SocketAddr, place: Place) -> io::Result<Socket> {
    let socket = open(address, place, Type::DGRAM, Protocol::UDP, true)?;
    // Less than asked for is no error.
    _ = socket.set_recv_buffer_size(UDP_BUFFER);
    _ = socket.set_send_buffer_size(UDP_BUFFER);
    Ok(socket)
}

/// A socket's place: both wildcards are one dual-stack socket, so that one QUIC endpoint owns a
/// connection whichever way it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ip: IpAddr,
    dual: bool,
}

fn places(addresses: &[IpAddr]) -> Vec<Place> {
    let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    let both = addresses.contains(&v4) && addresses.contains(&v6);
    let ipv6 = Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok();
    let mut places = Vec::new();
    for ip in addresses.iter().copied() {
        if both && ip == v4 && ipv6 {
            continue;
        }
        if ip == v6 && !ipv6 {
            tracing::info!("this host has no IPv6; listening on IPv4 only");
            continue;
        }
        places.push(Place { ip, dual: both && ip == v6 });
    }
    places
}

/// Another program in the group's place would silently share it, so the port is first bound alone.
fn reserve(address: SocketAddr, place: Place, kind: Type, protocol: Protocol) -> io::Result<()> {
    let socket = open(address, place, kind, protocol, false)?;
    if kind == Type::STREAM { socket.listen(1) } else { Ok(()) }
}

fn open(
    address: SocketAddr,
    place: Place,
    kind: Type,
    protocol: Protocol,
    share: bool,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!place.dual)?;
    }
    if share {
        socket.set_reuse_port(true)?;
    }
    if kind == Type::STREAM {
        // Connections of a process before this one may still be in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
