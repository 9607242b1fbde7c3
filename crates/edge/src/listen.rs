//! Binding the public address: one socket for each worker in one `SO_REUSEPORT` group per address and port.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::quic::{Group, Port, Set};
use crate::settings::Settings;

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

/// The sockets of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// With whether it is HTTPS.
    pub(crate) tcp: Vec<(TcpListener, bool)>,
    /// The ports of HTTP/3, each with a socket for each address.
    pub(crate) udp: Vec<(Arc<Port>, Vec<UdpSocket>)>,
}

/// What is bound.
pub(crate) struct Bound {
    pub(crate) listening: Vec<Listening>,
    /// In the order of the workers.
    pub(crate) sockets: Vec<Sockets>,
    /// The UDP sockets again, to be kept until the process ends: when one of a group is closed, the last of
    /// the group takes its place, and the kernel steers packets by places.
    pub(crate) held: Vec<UdpSocket>,
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

/// Binds everything the settings name, once for each of the group's workers, or nothing.
pub(crate) fn bind(settings: &Settings, group: Group) -> Result<Bound, BindError> {
    let mut sockets: Vec<Sockets> = (0..group.workers()).map(|_| Sockets::default()).collect();
    let (mut listening, mut held) = (Vec::new(), Vec::new());
    let ports = settings.http.iter().map(|port| (*port, false));
    let ports = ports.chain(settings.https.iter().map(|port| (*port, true)));
    for (port, secure) in ports {
        let http3 = secure && settings.http3.enabled;
        let key = if secure { "server.https" } else { "server.http" };
        if http3 {
            let port = Port::new(group, Set::First);
            sockets.iter_mut().for_each(|worker| worker.udp.push((port.clone(), Vec::new())));
        }
        for place in places(&settings.addresses) {
            let address = SocketAddr::new(place.ip, port);
            let failed = |what| move |error| BindError { what, address, key, error };
            reserve(address, place, Type::STREAM, Protocol::TCP).map_err(failed("TCP"))?;
            for worker in &mut sockets {
                let socket = open(address, place, Type::STREAM, Protocol::TCP, true)
                    .and_then(|socket| {
                        socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
                        Ok(TcpListener::from(socket))
                    })
                    .map_err(failed("TCP"))?;
                worker.tcp.push((socket, secure));
            }
            if http3 {
                reserve(address, place, Type::DGRAM, Protocol::UDP).map_err(failed("UDP"))?;
                for worker in &mut sockets {
                    let (kept, own) = open_udp(address, place)
                        .and_then(|socket| Ok((socket.try_clone()?, socket)))
                        .map_err(failed("UDP"))?;
                    held.push(kept);
                    if let Some((_, sockets)) = worker.udp.last_mut() {
                        sockets.push(own);
                    }
                }
                if let Some(socket) = held.last()
                    && let Err(error) = group.attach(socket, Set::First)
                {
                    tracing::warn!(
                        %address,
                        %error,
                        "the kernel does not steer QUIC packets; workers pass them to each other, which costs time"
                    );
                }
            }
            if place.dual {
                listening.push(Listening { address: (Ipv4Addr::UNSPECIFIED, port).into(), secure, http3 });
            }
            listening.push(Listening { address, secure, http3 });
        }
    }
    if let Some(granted) = held.first().and_then(|socket| SockRef::from(socket).recv_buffer_size().ok())
        // The kernel says twice what it was asked for: the rest is for its own records.
        && granted / 2 < UDP_BUFFER
    {
        let (granted, wanted) = (granted / 2 / 1024, UDP_BUFFER / 1024);
        tracing::info!("UDP sockets hold {granted} KiB of {wanted}; raise net.core.rmem_max for fast HTTP/3");
    }
    Ok(Bound { listening, sockets, held })
}

fn open_udp(address: SocketAddr, place: Place) -> io::Result<UdpSocket> {
    let socket = open(address, place, Type::DGRAM, Protocol::UDP, true)?;
    // Less than asked for is no error.
    _ = socket.set_recv_buffer_size(UDP_BUFFER);
    _ = socket.set_send_buffer_size(UDP_BUFFER);
    Ok(socket.into())
}

/// A socket's place: both wildcards are one dual-stack socket, so that one QUIC endpoint owns a
/// connection whichever way it comes.
#[derive(Clone, Copy)]
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
