//! HTTP/3 on quinn and the `h3` crate.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes};
use h3::error::Code;
use quinn::crypto::rustls::QuicClientConfig;

use super::{Dial, Error, Request, broken, h2c::http_request};
use crate::fields::Fields;

type Requests = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) quic: quinn::Connection,
    requests: Requests,
    // The endpoint drives the socket for as long as any clone is left.
    endpoint: quinn::Endpoint,
}

impl Connection {
    pub(super) async fn connect(dial: &Dial) -> Result<Connection, Error> {
        let refused = |e: &dyn std::fmt::Display| Error::Connect(e.to_string());
        let socket = UdpSocket::bind(SocketAddr::new(dial.from, 0)).map_err(|e| refused(&e))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)
            .map_err(|e| refused(&e))?;
        let mut transport = quinn::TransportConfig::default();
        // A gateway that is gone without a word is noticed within the harness's patience.
        transport.max_idle_timeout(Some(Duration::from_secs(15).try_into().expect("in range")));
        transport.stream_receive_window((1_u32 << 20).into()).receive_window((8_u32 << 20).into());
        let tls = QuicClientConfig::try_from(dial.offering(&[b"h3"])).expect("TLS 1.3");
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport));
        let quic = endpoint
            .connect_with(config, dial.https, &dial.name)
            .map_err(|e| refused(&e))?
            .await
            .map_err(|e| refused(&e))?;
        let (mut driver, requests) = h3::client::builder()
            .max_field_section_size(256 * 1024)
            .build(h3_quinn::Connection::new(quic.clone()))
            .await
            .map_err(broken)?;
        tokio::spawn(async move { driver.wait_idle().await });
        Ok(Connection { quic, requests, endpoint })
    }

    pub(super) fn rebind(&self, from: &str) {
        let address = SocketAddr::new(from.parse().unwrap(), 0);
        self.endpoint.rebind(UdpSocket::bind(address).unwrap()).unwrap();
    }

    pub(super) async fn open(&self, request: &Request) -> Result<(Up, Down), Error> {
        let mut requests = self.requests.clone();
        let stream = requests.send_request(http_request(request, true)).await.map_err(broken)?;
        let (send, recv) = stream.split();
        let mut up = Up { send, ended: false };
        if request.body.length().is_none() && request.trailers.is_empty() {
            up.finish(&Fields::new()).await?;
        }
        Ok((up, Down { recv: Some(recv), done: false, _requests: requests }))
    }
}

pub(super) struct Up {
    send: h3::client::RequestStream<h3_quinn::SendStream<Bytes>, Bytes>,
    ended: bool,
}

impl Up {
    pub(super) async fn data(&mut self, piece: Bytes) -> Result<(), Error> {
        self.send.send_data(piece).await.map_err(broken)
    }

    pub(super) async fn finish(&mut self, trailers: &Fields) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        if !trailers.is_empty() {
            self.send.send_trailers(trailers.to_map()).await.map_err(broken)?;
        }
        self.send.finish().await.map_err(broken)
    }

    pub(super) fn cancel(&mut self) {
        self.send.stop_stream(Code::H3_REQUEST_CANCELLED);
    }
}

pub(super) struct Down {
    recv: Option<h3::client::RequestStream<h3_quinn::RecvStream, Bytes>>,
    done: bool,
    // The last handle that goes closes the connection, under the feet of an exchange still running.
    _requests: Requests,
}

impl Down {
    pub(super) async fn head(&mut self) -> Result<(u16, Fields), Error> {
        let response = self.recv()?.recv_response().await.map_err(broken)?;
        Ok((response.status().as_u16(), Fields::from_map(response.headers())))
    }

    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        if self.done {
            return Ok(None);
        }
        match self.recv()?.recv_data().await.map_err(broken)? {
            Some(mut piece) => Ok(Some(piece.copy_to_bytes(piece.remaining()))),
            None => {
                self.done = true;
                Ok(None)
            }
        }
    }

    pub(super) async fn trailers(&mut self) -> Result<Fields, Error> {
        let trailers = self.recv()?.recv_trailers().await.map_err(broken)?;
        Ok(trailers.map(|t| Fields::from_map(&t)).unwrap_or_default())
    }

    pub(super) fn cancel(&mut self) {
        // Dropped, because h3-quinn panics on `stop_sending` while a read is pending.
        self.recv = None;
    }

    fn recv(&mut self) -> Result<&mut h3::client::RequestStream<h3_quinn::RecvStream, Bytes>, Error> {
        self.recv.as_mut().ok_or_else(|| broken("cancelled"))
    }
}
