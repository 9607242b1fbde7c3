//! Opening a connection to an endpoint: resolve, connect, TLS; all within the pool's connect time-out.

use std::io;
use std::net::{IpAddr, SocketAddr};

use foregate_exchange::{Failure, Kind};
use foregate_routing::Address;
use hickory_resolver::TokioResolver;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::stream::Stream;
use crate::transport::{Protocol, Transport, TransportTls};

/// What a connection turned out to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    H2,
}

/// Finds the addresses of backends given by host name; remembers them for as long as their TTL says.
#[derive(Default)]
pub(crate) struct Resolver(std::cell::OnceCell<TokioResolver>);

impl Resolver {
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        let resolver = match self.0.get() {
            Some(resolver) => resolver,
            None => {
                let built = TokioResolver::builder_tokio()
                    .and_then(|builder| builder.build())
                    .map_err(|error| Failure::because(Kind::Resolve, error))?;
                self.0.get_or_init(|| built)
            }
        };
        let found = resolver.lookup_ip(host).await.map_err(|error| Failure::because(Kind::Resolve, error))?;
        Ok(found.iter().collect())
    }
}

/// Opens a connection; `only_http1` keeps HTTP/2 out of the ALPN offer.
///
/// # Errors
/// `Resolve`, `Connect`, `ConnectTimeout` or `Tls`: nothing of a request has been sent.
pub(crate) async fn dial(
    resolver: &Resolver,
    address: &Address,
    transport: &Transport,
    only_http1: bool,
) -> Result<(Stream, Spoken), Failure> {
    let dialing = async {
        let plain = connect(resolver, address).await?;
        match &transport.tls {
            None if transport.protocol == Protocol::H2c => Ok((plain, Spoken::H2)),
            None => Ok((plain, Spoken::Http1)),
            Some(tls) => handshake(plain, address, tls, transport.protocol, only_http1).await,
        }
    };
    match transport.connect_timeout {
        None => dialing.await,
        Some(limit) => tokio::time::timeout(limit, dialing)
            .await
            .unwrap_or_else(|_| Err(Failure::because(Kind::ConnectTimeout, address.to_string()))),
    }
}

/// A connection without TLS, for probes that ask no more than that.
pub(crate) async fn connect(resolver: &Resolver, address: &Address) -> Result<Stream, Failure> {
    let failed = |error: io::Error| Failure::because(Kind::Connect, error);
    match address {
        Address::Ip(address) => tcp(*address).await.map_err(failed),
        Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix).map_err(failed),
        Address::Name { host, port } => {
            let mut last = Failure::because(Kind::Resolve, format!("{host} has no address"));
            for ip in resolver.addresses(host).await? {
                match tcp(SocketAddr::new(ip, *port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = failed(error),
                }
            }
            Err(last)
        }
    }
}

async fn tcp(address: SocketAddr) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Stream::Tcp(stream))
}

async fn handshake(
    plain: Stream,
    address: &Address,
    tls: &TransportTls,
    protocol: Protocol,
    only_http1: bool,
) -> Result<(Stream, Spoken), Failure> {
    let failed = |reason: String| Failure::because(Kind::Tls, reason);
    let name = match (&tls.server_name, address) {
        (Some(name), _) => name.clone(),
        (None, Address::Ip(address)) => {
            tls.found_as.clone().unwrap_or_else(|| ServerName::from(address.ip()))
        }
        (None, Address::Name { host, .. }) => ServerName::try_from(host.to_string())
            .map_err(|_| failed(format!("\"{host}\" cannot be the name of a certificate")))?,
        (None, Address::Unix(_)) => {
            return Err(failed("a unix socket needs tls.server_name in its pool".to_owned()));
        }
    };
    let connector = TlsConnector::from(tls.config.clone());
    let connecting = if only_http1 {
        connector.with_alpn(vec![b"http/1.1".to_vec()]).connect(name, plain)
    } else {
        connector.connect(name, plain)
    };
    let stream = connecting.await.map_err(|error| Failure::because(Kind::Tls, error))?;
    let spoken = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Spoken::H2,
        _ if protocol == Protocol::H2 && !only_http1 => {
            return Err(failed(
                "the backend does not speak HTTP/2 by ALPN; use protocol = \"auto\" or \"http1\"".to_owned(),
            ));
        }
        _ => Spoken::Http1,
    };
    Ok((Stream::Tls(Box::new(stream)), spoken))
}
