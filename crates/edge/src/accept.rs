//! From an accepted TCP connection to the HTTP version it speaks.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use foregate_exchange::reading::{ReadBy, Rewound};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::limit::Permit;
use crate::listener::{Entered, Listener};
use crate::peer::{Peer, TlsPeer, canonical};
use crate::terms::Terms;
use crate::unsent::Unsent;
use crate::worker::Worker;
use crate::{demand, h1, h2};

/// How a client of HTTP/2 with prior knowledge begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is done with a connection from some point on. Each phase of its life is boxed, so that it takes the memory of the
/// present one only: a handshake needs much more than waiting for a request.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    entered: Entered,
    stream: TcpStream,
    address: SocketAddr,
    permit: Permit,
    secure: bool,
) {
    let listener = entered.listener.clone();
    let Ok(local) = stream.local_addr().map(canonical) else { return };
    // Small responses must not wait for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let next = if secure {
        Box::pin(tls(worker, listener, stream, address, local, permit)).await
    } else {
        let peer = Peer::new(address, local, None, listener, Rc::new(permit));
        Box::pin(plain(worker, stream, peer)).await
    };
    if let Some(serving) = next {
        serving.await;
    }
}

/// HTTP/1.1, or HTTP/2 if that is how the client begins.
async fn plain(worker: Rc<Worker>, mut stream: TcpStream, peer: Peer) -> Option<Serving> {
    let limit = worker.current().settings.timeouts.request_head;
    let mut first = BytesMut::with_capacity(PREFACE.len());
    let begins_as_http2 = |first: &[u8]| PREFACE.starts_with(first) || first.starts_with(PREFACE);
    let sniff = async {
        loop {
            if stream.read_buf(&mut first).await? == 0 {
                return Ok(false);
            }
            if !begins_as_http2(&first) || first.len() >= PREFACE.len() {
                return io::Result::Ok(true);
            }
        }
    };
    if !matches!(within(limit, sniff).await, Some(Ok(true))) {
        return None;
    }
    let peer = Rc::new(peer);
    Some(if begins_as_http2(&first) {
        let unsent = Unsent::of(&stream);
        Box::pin(h2::serve(worker, peer, unsent, ReadBy::new(Rewound(first.freeze()), stream)))
    } else {
        Box::pin(h1::serve(worker, peer, stream, first))
    })
}

async fn tls(
    worker: Rc<Worker>,
    listener: Rc<Listener>,
    stream: TcpStream,
    address: SocketAddr,
    local: SocketAddr,
    permit: Permit,
) -> Option<Serving> {
    let unsent = Unsent::of(&stream);
    let limit = worker.current().settings.timeouts.handshake;
    let handshake = async {
        let begun = Instant::now();
        // Boxed, as what follows is: each takes much room, and for a short time.
        let start = in_time(limit, Box::pin(hello(&worker, stream))).await?;
        let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        // Whoever waits for us is not slow.
        demand::certificate(&worker, start.client_hello().server_name(), local.ip()).await;
        in_time(left, Box::pin(answer(&worker, start, local))).await
    };
    let (stream, tls) = match handshake.await {
        Ok(done) => done,
        Err(error) => {
            worker.handshake_failed(address, "TLS", &error);
            return None;
        }
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let peer = Rc::new(Peer::new(address, local, Some(tls), listener, Rc::new(permit)));
    Some(if http2 {
        Box::pin(h2::serve(worker, peer, unsent, stream))
    } else {
        Box::pin(h1::serve(worker, peer, stream, BytesMut::new()))
    })
}

/// What the client says first, and who it is that is asked for.
async fn hello(worker: &Worker, stream: TcpStream) -> io::Result<StartHandshake<TcpStream>> {
    // No memory is spent on a client that has said nothing, and TLS does not begin with a letter.
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first[0].is_ascii_alphabetic() {
        Box::pin(explain(stream)).await;
        return Err(io::Error::other("plain HTTP on the HTTPS port"));
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    if let Some(config) = wanted_by_authority(worker, &start) {
        _ = start.into_stream(config).await?.shutdown().await;
        return Err(io::Error::other("an authority has seen its certificate, and no more was wanted"));
    }
    Ok(start)
}

/// The rest of the handshake, on the terms of the site that is asked for.
async fn answer(
    worker: &Worker,
    start: StartHandshake<TcpStream>,
    local: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Rc<TlsPeer>)> {
    let live = worker.current();
    let hello = start.client_hello();
    let terms = Terms::of(&live, hello.server_name(), hello.signature_schemes(), local.ip());
    let config = live.tls.tcp(&terms.rules).ok_or_else(|| io::Error::other("no TLS configuration"))?.clone();
    drop(live);
    let stream = start.into_stream(config).await?;
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
    // The handshake has succeeded, so there was one to present.
    let tls = TlsPeer::new(terms, chain).ok_or_else(|| io::Error::other("no certificate"))?;
    Ok((stream, tls))
}

async fn in_time<T>(limit: Option<Duration>, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it took longer than timeouts.handshake");
    within(limit, work).await.unwrap_or_else(|| Err(late()))
}

/// How the handshake goes on with an authority that wants to see that a name is ours (RFC 8737).
fn wanted_by_authority(worker: &Worker, start: &StartHandshake<TcpStream>) -> Option<Arc<ServerConfig>> {
    let hello = start.client_hello();
    worker.challenges.certificate(hello.alpn()?, &hello.server_name()?.to_ascii_lowercase())
}

/// Plain HTTP on the HTTPS port is a mistake people make; a sentence is kinder than a reset.
async fn explain(mut stream: TcpStream) {
    let sentence = "This port speaks HTTPS; use https:// in the address.\n";
    let text = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{sentence}",
        sentence.len()
    );
    // Unread bytes would turn the close into a reset that takes the sentence with it.
    let mut unread = [0; 4096];
    _ = stream.read(&mut unread).await;
    _ = stream.write_all(text.as_bytes()).await;
    _ = stream.shutdown().await;
}

/// `None` when the limit has passed.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, work).await.ok(),
        None => Some(work.await),
    }
}
