//! hyper's HTTP/2 server.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};

use crate::body::{data, fed, feed, fields, read, trailers};
use crate::wire::{Local, Tapped, TokioIo, Tunnel, all_idle, bytes_until_quiet};

/// One connection of hyper's server and its other end, which speaks frames or is an h2 client.
struct Session {
    connection: JoinHandle<hyper::Result<()>>,
    stop: Option<oneshot::Sender<()>>,
    writes: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Session {
    fn start<F, A, B>(builder: &Builder<Local>, vectored: bool, service: F) -> (Self, DuplexStream)
    where
        F: Fn(Request<Incoming>) -> A + 'static,
        A: Future<Output = Response<B>> + 'static,
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (client, server) = duplex(1 << 20);
        let writes = Rc::default();
        let server = Tapped { io: server, writes: Rc::clone(&writes), vectored };
        let service = hyper::service::service_fn(move |request| {
            let answer = service(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = builder.serve_connection(TokioIo(server), service);
        let (stop, stopped) = oneshot::channel();
        let connection = spawn_local(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => return ended,
                Ok(()) = stopped => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        });
        (Self { connection, stop: Some(stop), writes }, client)
    }

    fn shut_down_gracefully(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

fn builder() -> Builder<Local> {
    let mut builder = Builder::new(Local);
    builder.auto_date_header(false);
    builder
}

/// An h2 client over `io`.
async fn client(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    spawn_local(connection);
    // The server's SETTINGS have to arrive first.
    all_idle().await;
    sender.ready().await.unwrap()
}

async fn text(mut body: h2::RecvStream) -> String {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).unwrap()
}

fn request(method: &str) -> http::request::Builder {
    Request::builder().method(method).uri("http://a/")
}

/// Demand: 103 of the VM reaches the client, then the final answer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn service_answers_1xx() {
    let (_session, mut client) = Session::start(&builder(), true, |_| async {
        Response::builder().status(103).body(Full::from("")).unwrap()
    });
    client.write_all(&opening()).await.unwrap();
    // It is sent as the final answer: no client can make sense of that.
    let heard = frames(&bytes_until_quiet(&mut client).await.0);
    assert_eq!(heard, ["SETTINGS", "SETTINGS ACK", "WINDOW_UPDATE 0", "HEADERS 1 :status 103 END_STREAM"]);
}

/// The same with `h2` alone.
#[tokio::test(flavor = "local", start_paused = true)]
async fn h2_itself_sends_1xx() {
    let (mut client, server) = duplex(1 << 20);
    spawn_local(async move {
        let mut connection = h2::server::handshake(server).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (_, mut answer) = request.unwrap();
            answer.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
            answer.send_response(Response::new(()), true).unwrap();
        }
    });
    client.write_all(&opening()).await.unwrap();
    let heard = frames(&bytes_until_quiet(&mut client).await.0);
    assert_eq!(
        heard,
        ["SETTINGS", "SETTINGS ACK", "HEADERS 1 :status 103", "HEADERS 1 :status 200 END_STREAM"]
    );
}

/// Demand: WebSocket over HTTP/2 (RFC 8441).
#[tokio::test(flavor = "local", start_paused = true)]
async fn extended_connect() {
    let echo = |mut request: Request<Incoming>| async move {
        let protocol = request.extensions().get::<hyper::ext::Protocol>().unwrap();
        assert_eq!(protocol.as_str(), "websocket");
        let tunnel = hyper::upgrade::on(&mut request);
        spawn_local(async move {
            let mut tunnel = Tunnel(tunnel.await.unwrap());
            let mut bytes = [0; 3];
            tunnel.read_exact(&mut bytes).await.unwrap();
            tunnel.write_all(&bytes).await.unwrap();
            tunnel.shutdown().await.unwrap();
        });
        Response::new(Empty::<Bytes>::new())
    };

    // Off by default.
    let (_session, io) = Session::start(&builder(), true, echo);
    assert!(!client(io).await.is_extended_connect_protocol_enabled());

    let mut enabled = builder();
    enabled.enable_connect_protocol();
    let (_session, io) = Session::start(&enabled, true, echo);
    let mut client = client(io).await;
    assert!(client.is_extended_connect_protocol_enabled());
    let request = request("CONNECT").extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap();
    let (answer, mut up) = client.send_request(request, false).unwrap();
    up.send_data("abc".into(), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(text(answer.into_body()).await, "abc");
}

/// Demand: a malformed CONNECT ends its own stream and no other.
#[tokio::test(flavor = "local", start_paused = true)]
async fn connect_with_a_content_length() {
    // `CONNECT a` with `content-length: 1`.
    const CONNECT: &[u8] = b"\x02\x07CONNECT\x41\x01a\x0f\x0d\x011";
    let (session, mut client) =
        Session::start(&builder(), true, |_| std::future::pending::<Response<Empty<Bytes>>>());
    client.write_all(&opening()).await.unwrap();
    bytes_until_quiet(&mut client).await;
    client.write_all(&frame(HEADERS, END_HEADERS, 3, CONNECT)).await.unwrap();
    // The connection is gone, stream 1 with it, without RST_STREAM or GOAWAY.
    assert_eq!(bytes_until_quiet(&mut client).await, (vec![], true));
    session.connection.await.unwrap().unwrap();
}

/// Demand: a body cut short is an error, or a VM takes half an upload for the whole.
#[tokio::test(flavor = "local", start_paused = true)]
async fn request_cut_short() {
    // `POST http://a/` with `content-length: 9`.
    const POST: &[u8] = b"\x83\x86\x84\x41\x01a\x0f\x0d\x019";
    const NO_ERROR: u8 = 0;
    const CANCEL: u8 = 8;
    for (reason, expected) in [(CANCEL, "!error reading a body from connection"), (NO_ERROR, "abc")] {
        let (body, mut seen) = mpsc::unbounded_channel();
        let (_session, mut client) = Session::start(&builder(), true, move |request: Request<Incoming>| {
            let body = body.clone();
            async move {
                let read = read(request.into_body()).await;
                body.send(read.unwrap_or_else(|error| format!("!{error}"))).unwrap();
                Response::new(Empty::<Bytes>::new())
            }
        });
        let start = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, POST)].concat();
        client.write_all(&start).await.unwrap();
        client.write_all(&frame(DATA, 0, 1, b"abc")).await.unwrap();
        bytes_until_quiet(&mut client).await;
        client.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, reason])).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), expected);
    }
}

/// Demand: GOAWAY, then what runs is finished, then the connection closes.
#[tokio::test(flavor = "local", start_paused = true)]
async fn graceful_shutdown_sends_goaway() {
    let (go, gone) = oneshot::channel::<()>();
    let gone = RefCell::new(Some(gone));
    let (mut session, mut client) = Session::start(&builder(), true, move |_| {
        let gone = gone.take().unwrap();
        async move {
            gone.await.unwrap();
            Response::new(Full::from("ok"))
        }
    });
    client.write_all(&opening()).await.unwrap();
    bytes_until_quiet(&mut client).await;

    session.shut_down_gracefully();
    let (heard, _) = bytes_until_quiet(&mut client).await;
    assert_eq!(frames(&heard), ["GOAWAY last 2147483647", "PING"]);
    // The real last id waits for the client's PING, however long that takes.
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(bytes_until_quiet(&mut client).await, (vec![], false));
    client.write_all(&frame(PING, ACK, 0, &heard[heard.len() - 8..])).await.unwrap();
    assert_eq!(frames(&bytes_until_quiet(&mut client).await.0), ["GOAWAY last 1"]);

    go.send(()).unwrap();
    let (heard, closed) = bytes_until_quiet(&mut client).await;
    assert_eq!(frames(&heard), ["HEADERS 1 :status 200", "DATA 1 \"ok\" END_STREAM"]);
    assert!(closed);
}

/// Demand: the client's trailers reach the service, the VM's reach the client.
#[tokio::test(flavor = "local", start_paused = true)]
async fn trailers_both_ways() {
    let (_session, io) = Session::start(&builder(), true, |request: Request<Incoming>| async {
        assert_eq!(read(request.into_body()).await.unwrap(), "abc||x: y");
        Response::new(fed([data("def"), trailers(&[("grpc-status", "0")])]))
    });
    let mut client = client(io).await;
    let (answer, mut up) = client.send_request(request("POST").body(()).unwrap(), false).unwrap();
    up.send_data("abc".into(), false).unwrap();
    up.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("x"),
        HeaderValue::from_static("y"),
    )]))
    .unwrap();
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "def");
    assert!(body.data().await.is_none());
    assert_eq!(fields(&body.trailers().await.unwrap().unwrap()), "|grpc-status: 0");
}

/// Demand: `Host` beside `:authority` is reconciled, split cookies are joined.
#[tokio::test(flavor = "local", start_paused = true)]
async fn host_and_cookies() {
    let (_session, io) = Session::start(&builder(), true, |request: Request<Incoming>| async move {
        Response::new(Full::from(format!("{}{}", request.uri(), fields(request.headers()))))
    });
    let mut client = client(io).await;
    let request = request("GET").header("host", "b").header("cookie", "c=1").header("cookie", "d=2");
    let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    let seen = text(answer.await.unwrap().into_body()).await;
    assert_eq!(seen, "http://a/|host: b|cookie: c=1|cookie: d=2");
}

/// Demand: frames are gathered into few writes, under TLS above all.
#[tokio::test(flavor = "local", start_paused = true)]
async fn one_write_per_data_frame() {
    // Four frames, all ready at once, and an empty one of 9 bytes for the end.
    for (size, vectored, expected) in [
        (4096, true, &[10 + 4105, 4105, 4105, 4105, 9][..]),
        (4096, false, &[1024, 10 + 3081, 1024, 3081, 1024, 3081, 1024, 3081, 9][..]),
        (200, true, &[10 + 4 * 209 + 9][..]),
        (200, false, &[10 + 4 * 209 + 9][..]),
    ] {
        let (session, io) = Session::start(&builder(), vectored, move |_| async move {
            let (body, feed) = feed();
            for _ in 0..4 {
                feed.send(Ok(Frame::data(vec![b'x'; size].into()))).unwrap();
            }
            Response::new(body)
        });
        let mut client = client(io).await;
        session.writes.borrow_mut().clear();
        let (answer, _) = client.send_request(request("GET").body(()).unwrap(), true).unwrap();
        let body = answer.await.unwrap().into_body();
        assert_eq!(text(body).await.len(), 4 * size);
        let written: Vec<_> = session.writes.borrow().iter().map(Vec::len).collect();
        assert_eq!(written, expected, "frames of {size}, vectored: {vectored}");
    }
}

// ----- frames -----------------------------------------------------------------------------

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://a/` in HPACK: three fields of the static table and a literal `:authority`.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// How a client begins, and its first request on stream 1.
fn opening() -> Vec<u8> {
    let end = END_STREAM | END_HEADERS;
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, end, 1, GET)].concat()
}

/// `:status`, the first field of an answer: in HPACK's static table, or a literal in Huffman code.
fn status(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x48, 0x82, 0x08, 0x19, ..] => 103,
        other => panic!("another status: {other:x?}"),
    }
}

/// A line for each frame.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(9);
        let (payload, rest) = rest.split_at(usize::try_from(number(&head[..3])).unwrap());
        bytes = rest;
        let (flags, stream) = (head[4], number(&head[5..]));
        let end = if flags & 1 == 1 { " END_STREAM" } else { "" };
        let ack = if flags & 1 == 1 { " ACK" } else { "" };
        lines.push(match head[3] {
            0 => format!("DATA {stream} {:?}{end}", String::from_utf8_lossy(payload)),
            1 => format!("HEADERS {stream} :status {}{end}", status(payload)),
            4 => format!("SETTINGS{ack}"),
            6 => format!("PING{ack}"),
            7 => format!("GOAWAY last {}", number(&payload[..4])),
            8 => format!("WINDOW_UPDATE {stream}"),
            other => format!("frame {other} {stream}"),
        });
    }
    lines
}
