//! QUIC connections to VMs: one socket per address family and worker, opened when it is first needed.

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use foregate_exchange::{Failure, Kind};
use foregate_routing::Address;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, TransportConfig};

use crate::dial::Resolver;
use crate::transport::{Transport, TransportError};

/// What one response may have in flight before its client reads; what all of a connection may have.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// What may be sent and not yet acknowledged.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// Control and QPACK streams, with a little room for what a VM greases. Pushes are not asked for.
const UNI_STREAMS: u32 = 8;
/// A connection that says nothing for so long is asked whether it lives, and given up when it has not said
/// anything for so long; otherwise a VM that was switched off would be waited for.
const PING_AFTER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(15);
/// Bytes the kernel may hold for the socket, which all connections of a worker share. It may grant less.
const UDP_BUFFER: usize = 4 * 1024 * 1024;

/// The worker's sockets for QUIC.
#[derive(Default)]
pub(crate) struct Sockets {
    v4: OnceCell<Endpoint>,
    v6: OnceCell<Endpoint>,
}

impl Sockets {
    /// The endpoint that reaches addresses of this family.
    fn towards(&self, ip: IpAddr) -> io::Result<&Endpoint> {
        let (cell, any): (_, IpAddr) = match ip {
            IpAddr::V4(_) => (&self.v4, Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => (&self.v6, Ipv6Addr::UNSPECIFIED.into()),
        };
        if let Some(endpoint) = cell.get() {
            return Ok(endpoint);
        }
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        let buffers = socket2::SockRef::from(&socket);
        // Less than asked for is no error.
        _ = buffers.set_recv_buffer_size(UDP_BUFFER);
        _ = buffers.set_send_buffer_size(UDP_BUFFER);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)?;
        Ok(cell.get_or_init(|| endpoint))
    }
}

/// The QUIC side of a transport that speaks HTTP/3.
pub(crate) fn client_config(tls: Arc<rustls::ClientConfig>) -> Result<quinn::ClientConfig, TransportError> {
    let refused = |error: &dyn std::fmt::Display| TransportError::Tls(error.to_string());
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| refused(&error))?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(UNI_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(PING_AFTER))
        .max_idle_timeout(Some(SILENCE.try_into().map_err(|error| refused(&error))?));
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Opens a connection, handshake included.
///
/// # Errors
/// `Resolve`, `Connect`, `ConnectTimeout` or `Tls`: nothing of a request has been sent.
pub(super) async fn dial(
    sockets: &Sockets,
    resolver: &Resolver,
    address: &Address,
    transport: &Transport,
) -> Result<quinn::Connection, Failure> {
    let Some((config, tls)) = transport.quic.as_ref().zip(transport.tls.as_ref()) else {
        return Err(Failure::because(Kind::Tls, "this pool has no TLS, which HTTP/3 cannot do without"));
    };
    let (addresses, host) = match address {
        Address::Ip(address) => (vec![*address], address.ip().to_string()),
        Address::Name { host, port } => {
            let found = resolver.addresses(host).await?;
            (found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect(), host.to_string())
        }
        Address::Unix(_) => {
            return Err(Failure::because(Kind::Connect, "there is no QUIC over a unix socket"));
        }
    };
    let found_as = tls.found_as.as_ref().filter(|_| matches!(address, Address::Ip(_)));
    let name = tls.server_name.as_ref().or(found_as).map_or(host, |name| name.to_str().into_owned());
    // Nobody says that a UDP port is closed, so every address gets its share of the time.
    let share =
        transport.connect_timeout.map(|limit| limit / u32::try_from(addresses.len().max(1)).unwrap_or(1));
    let mut last = Failure::because(Kind::Resolve, format!("{address} has no address"));
    for remote in addresses {
        let connecting = connect(sockets, config, remote, &name);
        let connected = match share {
            None => connecting.await,
            Some(share) => tokio::time::timeout(share, connecting)
                .await
                .unwrap_or_else(|_| Err(Failure::because(Kind::ConnectTimeout, remote.to_string()))),
        };
        match connected {
            Ok(connection) => return Ok(connection),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

async fn connect(
    sockets: &Sockets,
    config: &quinn::ClientConfig,
    remote: SocketAddr,
    name: &str,
) -> Result<quinn::Connection, Failure> {
    let endpoint = sockets.towards(remote.ip()).map_err(|error| Failure::because(Kind::Connect, error))?;
    let connecting = endpoint
        .connect_with(config.clone(), remote, name)
        .map_err(|error| Failure::because(Kind::Connect, error))?;
    connecting.await.map_err(|error| {
        let kind = match &error {
            ConnectionError::TransportError(found) if of_tls(found.code) => Kind::Tls,
            ConnectionError::ConnectionClosed(found) if of_tls(found.error_code) => Kind::Tls,
            ConnectionError::TimedOut => Kind::ConnectTimeout,
            _ => Kind::Connect,
        };
        Failure::because(kind, error)
    })
}

/// RFC 9001, section 4.8: TLS alerts are the codes from 0x100 to 0x1ff.
fn of_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
