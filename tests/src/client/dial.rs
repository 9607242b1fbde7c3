//! Byte streams to the gateway.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Error;
use crate::{Visitor, certs::Authority};

pub const ALPN_H1: &[u8] = b"http/1.1";
pub const ALPN_H2: &[u8] = b"h2";

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where a client connects, from where, and by which name.
#[derive(Clone, Debug)]
pub struct Dial {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub from: IpAddr,
    /// SNI; no SNI is sent when this is an IP address.
    pub name: String,
    /// How it does TLS, if not as everybody does.
    pub client: Option<Arc<rustls::ClientConfig>>,
}

impl Dial {
    pub fn loopback(http: u16, https: u16, name: &str) -> Dial {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Dial {
            http: SocketAddr::new(local, http),
            https: SocketAddr::new(local, https),
            from: local,
            name: name.to_owned(),
            client: None,
        }
    }

    /// The same by a client that shows who it is.
    #[must_use]
    pub fn by(mut self, visitor: &Visitor) -> Dial {
        self.client = Some(Arc::new(visitor.tls.clone()));
        self
    }

    /// TLS as this client does it, offering these protocols.
    pub(crate) fn offering(&self, alpn: &[&[u8]]) -> rustls::ClientConfig {
        let Some(mut config) = self.client.as_deref().cloned() else {
            return Authority::shared().client(alpn);
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    /// The same from another of the machine's addresses, such as 127.0.0.2.
    #[must_use]
    pub fn from(mut self, address: &str) -> Dial {
        self.from = address.parse().unwrap();
        self
    }

    /// The same to another of the machine's addresses, and to these ports.
    #[must_use]
    pub fn to(mut self, address: &str, http: u16, https: u16) -> Dial {
        let ip: IpAddr = address.parse().unwrap();
        (self.http, self.https) = (SocketAddr::new(ip, http), SocketAddr::new(ip, https));
        self
    }

    /// Plain TCP to the http port.
    pub async fn tcp(&self) -> Result<TcpStream, Error> {
        self.connect(self.http).await.map_err(|e| Error::Connect(e.to_string()))
    }

    /// TLS to the https port, offering these protocols.
    pub async fn tls(&self, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>, Error> {
        self.tls_with(self.offering(alpn)).await
    }

    /// TLS with a client of the caller's own.
    pub async fn tls_with(&self, config: rustls::ClientConfig) -> Result<TlsStream<TcpStream>, Error> {
        let stream = self.connect(self.https).await.map_err(|e| Error::Connect(e.to_string()))?;
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|e| Error::Connect(e.to_string()))
    }

    /// The byte stream an HTTP/1.1 client uses.
    pub async fn http1(&self, tls: bool) -> Result<Box<dyn Io>, Error> {
        Ok(if tls { Box::new(self.tls(&[ALPN_H1]).await?) } else { Box::new(self.tcp().await?) })
    }

    /// The byte stream an HTTP/2 client uses.
    pub async fn http2(&self, tls: bool) -> Result<Box<dyn Io>, Error> {
        Ok(if tls { Box::new(self.tls(&[ALPN_H2]).await?) } else { Box::new(self.tcp().await?) })
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if to.is_ipv4() {
            socket.bind(SocketAddr::new(self.from, 0))?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
