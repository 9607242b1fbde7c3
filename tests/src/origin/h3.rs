//! An origin that speaks HTTP/3, on quinn and the `h3` crate.

use std::{io, net::Ipv4Addr, sync::Arc, sync::atomic::Ordering};

use bytes::{Buf, Bytes};
use h3::{error::Code, server::RequestStream};
use http::Response;
use quinn::crypto::rustls::QuicServerConfig;
use tokio::task::JoinSet;

use super::{
    Call, Shared,
    serve::{Open, recorded},
};
use crate::{eventually_async, fields::Fields, wire::wrong};

/// Binds the port and serves until aborted; its connections end with it.
pub(super) async fn bind(port: u16, tls: Arc<rustls::ServerConfig>) -> quinn::Endpoint {
    let tls = QuicServerConfig::try_from(tls).expect("TLS 1.3");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(200_u32.into());
    config.transport_config(Arc::new(transport));
    // As for TCP: whoever has the port is about to let go of it.
    eventually_async("the origin's port", || {
        let config = config.clone();
        async move { quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, port).into()).ok() }
    })
    .await
}

pub(super) async fn accept(endpoint: quinn::Endpoint, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = shared.clone();
        connections.spawn(async move {
            if let Ok(quic) = incoming.await {
                serve(quic, shared).await;
            }
        });
    }
}

async fn serve(quic: quinn::Connection, shared: Arc<Shared>) {
    let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
    shared.wire.lock().unwrap().push(Vec::new());
    let _open = Open::new(&shared.open);
    let mut goodbye = shared.goodbye.subscribe();
    goodbye.mark_unchanged();
    let Ok(mut connection) = h3::server::builder().build(h3_quinn::Connection::new(quic)).await else {
        return;
    };
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Ok(()) = goodbye.changed() => {
                let _ = connection.shutdown(0).await;
                continue;
            }
        };
        let Ok(Some(resolver)) = accepted else { break };
        let shared = shared.clone();
        streams.spawn(async move {
            let Ok((request, stream)) = resolver.resolve_request().await else { return };
            let (parts, ()) = request.into_parts();
            let host = parts.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
            let target = parts.uri.path_and_query().map(|p| p.as_str().to_owned()).unwrap_or_default();
            let fields = Fields::from_map(&parts.headers);
            let mut request = recorded(number, false, parts.method.to_string(), target, host, fields);
            request.http3 = true;
            let (send, recv) = stream.split();
            Call::http3(shared, request, Stream { send, recv }).run().await;
        });
    }
    // What has been answered is still on its way to the gateway.
    while streams.join_next().await.is_some() {}
}

/// Both directions of a request.
pub(super) struct Stream {
    send: RequestStream<h3_quinn::SendStream<Bytes>, Bytes>,
    recv: RequestStream<h3_quinn::RecvStream, Bytes>,
}

impl Stream {
    /// The next piece of the body, or its trailers.
    pub(super) async fn data(&mut self) -> io::Result<(Option<Bytes>, Fields)> {
        match self.recv.recv_data().await.map_err(io::Error::other)? {
            Some(mut piece) => Ok((Some(piece.copy_to_bytes(piece.remaining())), Fields::new())),
            None => {
                let trailers = self.recv.recv_trailers().await.map_err(io::Error::other)?;
                Ok((None, trailers.map(|t| Fields::from_map(&t)).unwrap_or_default()))
            }
        }
    }

    pub(super) async fn head(&mut self, head: Response<()>) -> io::Result<()> {
        self.send.send_response(head).await.map_err(io::Error::other)
    }

    pub(super) async fn write(&mut self, data: Bytes) -> io::Result<()> {
        self.send.send_data(data).await.map_err(|e| wrong(e.to_string()))
    }

    pub(super) async fn finish(&mut self, trailers: &Fields) {
        if !trailers.is_empty() {
            let _ = self.send.send_trailers(trailers.to_map()).await;
        }
        let _ = self.send.finish().await;
    }

    pub(super) fn reset(&mut self) {
        self.stop(Code::H3_INTERNAL_ERROR);
    }

    /// Says that nothing was done with the request.
    pub(super) fn reject(&mut self) {
        self.stop(Code::H3_REQUEST_REJECTED);
    }

    fn stop(&mut self, code: Code) {
        self.recv.stop_sending(code);
        self.send.stop_stream(code);
    }
}
