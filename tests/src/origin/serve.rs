//! The accept loop of an origin and its two protocols.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{Call, Delivery, Recorded, Shared};
use crate::{
    client::Io,
    eventually_async,
    fields::Fields,
    wire::{Incoming, Reader, parse_request},
};

/// How much of one connection is kept.
const KEPT: usize = 256 * 1024;

#[derive(Clone)]
pub(super) enum Place {
    Tcp(SocketAddr),
    /// UDP, for HTTP/3, which has a listener of its own.
    Quic(u16),
    Unix(PathBuf),
}

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Place {
    pub(super) async fn bind(&self) -> Listener {
        match self {
            // The port is leased, so whoever has it is about to let go: an aborted listener, or a child
            // between fork and exec.
            Place::Tcp(address) => Listener::Tcp(
                eventually_async("the origin's port", || async { TcpListener::bind(address).await.ok() })
                    .await,
            ),
            Place::Quic(_) => panic!("not a stream socket"),
            Place::Unix(path) => {
                let _ = std::fs::remove_file(path);
                Listener::Unix(UnixListener::bind(path).unwrap())
            }
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves until aborted; its connections end with it.
pub(super) async fn accept(listener: Listener, tls: Option<Arc<rustls::ServerConfig>>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok(io) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            let io: Box<dyn Io> = match tls {
                Some(config) => match TlsAcceptor::from(config).accept(io).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => return,
                },
                None => io,
            };
            let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
            shared.wire.lock().unwrap().push(Vec::new());
            let _open = Open::new(&shared.open);
            if shared.http2 {
                http2(io, number, &shared).await;
            } else {
                http1(io, number, &shared).await;
            }
        });
    }
}

async fn http1(io: Box<dyn Io>, number: usize, shared: &Arc<Shared>) {
    let (read, write) = tokio::io::split(io);
    let mut reader = Reader::new(Tee { io: Box::new(read), number, shared: shared.clone() });
    let mut writer = write;
    let fault = |what: String| shared.faults.lock().unwrap().push(what);
    loop {
        let head = match reader.head().await {
            Ok(Some(head)) => head,
            Ok(None) => return,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return fault(e.to_string()),
            // Half a head and then nothing: the gateway must not begin what it cannot finish.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return fault(e.to_string()),
            Err(_) => return,
        };
        let (method, target, minor, fields) = match parse_request(&head) {
            Ok(parsed) => parsed,
            Err(e) => return fault(e.to_string()),
        };
        let incoming = match Incoming::request(&fields) {
            Ok(incoming) => incoming,
            Err(e) => return fault(e.to_string()),
        };
        if fields.all("host").len() != 1 {
            fault(format!("{} Host fields in {fields:?}", fields.all("host").len()));
        }
        let host = fields.get("host").unwrap_or_default().to_owned();
        let request = recorded(number, false, method, target, host, fields);
        let mut call = Call::http1(shared.clone(), request, reader, writer, incoming, minor);
        call.run().await;
        match call.reusable() {
            Some(halves) => (reader, writer) = halves,
            None => return,
        }
    }
}

async fn http2(io: Box<dyn Io>, number: usize, shared: &Arc<Shared>) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20).max_concurrent_streams(200);
    let Ok(mut connection) = builder.handshake::<_, bytes::Bytes>(io).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (parts, body) = request.into_parts();
        let host = parts.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let target = parts.uri.path_and_query().map(|p| p.as_str().to_owned()).unwrap_or_default();
        let fields = Fields::from_map(&parts.headers);
        let request = recorded(number, true, parts.method.to_string(), target, host, fields);
        let mut call = Call::http2(shared.clone(), request, body, respond);
        streams.spawn(async move { call.run().await });
    }
}

pub(super) fn recorded(
    connection: usize,
    http2: bool,
    method: String,
    target: String,
    host: String,
    fields: Fields,
) -> Recorded {
    Recorded {
        connection,
        http2,
        http3: false,
        method,
        target,
        host,
        fields,
        body: bytes::Bytes::new(),
        length: 0,
        digest: String::new(),
        trailers: Fields::new(),
        delivery: Delivery::Reading,
    }
}

/// Counts a connection as open for as long as it lives, however it ends.
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Open {
        count.fetch_add(1, Ordering::SeqCst);
        Open(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Keeps a copy of what is read.
pub(super) struct Tee {
    io: Box<dyn AsyncRead + Send + Unpin>,
    number: usize,
    shared: Arc<Shared>,
}

impl AsyncRead for Tee {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        let mut wire = this.shared.wire.lock().unwrap();
        let kept = &mut wire[this.number];
        let room = KEPT.saturating_sub(kept.len()).min(new.len());
        kept.extend_from_slice(&new[..room]);
        polled
    }
}
