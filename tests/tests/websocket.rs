//! WebSocket to an HTTP/1.1 VM: over HTTP/1.1 (RFC 6455) and over HTTP/2 (RFC 8441).
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use foregate_tests::{
    Client, Delivery, Fields, Gateway, Io, Origin, Reader, Version, eventually_async, gateway, get, origin,
    parse_response, within,
};
use futures_util::{SinkExt, StreamExt};
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::Role},
};

type Socket = WebSocketStream<Box<dyn Io>>;

const VERSIONS: [Version; 4] = [Version::H1, Version::H1Tls, Version::H2c, Version::H2];

async fn echo() -> (Origin, Gateway) {
    let vm = origin()
        .named("ws")
        .on("/ws", |call| Box::pin(call.websocket()))
        .on("/refused", |call| Box::pin(async move { call.reply(403, &Fields::new(), "not you").await }))
        .on("/dies", |call| {
            Box::pin(async move {
                let accepted =
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                call.literal(accepted).await;
                call.die();
            })
        })
        .start()
        .await;
    let gw = gateway().site("shop.test", &vm).start().await;
    (vm, gw)
}

/// The stream of an extended CONNECT as one byte stream.
fn stream_of(mut send: h2::SendStream<Bytes>, mut recv: h2::RecvStream) -> Box<dyn Io> {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (mut from_near, mut to_near) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from_near.read(&mut buffer).await {
            let mut piece = Bytes::copy_from_slice(&buffer[..n]);
            while !piece.is_empty() {
                send.reserve_capacity(piece.len());
                let Some(Ok(granted)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else {
                    return;
                };
                if send.send_data(piece.split_to(granted.min(piece.len())), false).is_err() {
                    return;
                }
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    });
    tokio::spawn(async move {
        while let Some(Ok(piece)) = recv.data().await {
            let _ = recv.flow_control().release_capacity(piece.len());
            if to_near.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to_near.shutdown().await;
    });
    let near: DuplexStream = near;
    Box::new(near)
}

/// Asks for a WebSocket over HTTP/2: the status, the fields, and the stream if it was granted.
async fn extended_connect(
    client: &Client,
    path: &str,
    protocol: Option<&str>,
) -> (u16, HeaderMap, Option<Box<dyn Io>>) {
    let requests = client.http2();
    eventually_async("SETTINGS_ENABLE_CONNECT_PROTOCOL", || async {
        requests.is_extended_connect_protocol_enabled().then_some(())
    })
    .await;
    let scheme = if client.version.tls() { "https" } else { "http" };
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("{scheme}://shop.test{path}"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("origin", "https://shop.test");
    if let Some(protocol) = protocol {
        request = request.header("sec-websocket-protocol", protocol);
    }
    let mut ready = requests.ready().await.unwrap();
    let (response, send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let (parts, recv) = within("an answer to CONNECT", response).await.unwrap().into_parts();
    let stream = (parts.status == StatusCode::OK).then(|| stream_of(send, recv));
    (parts.status.as_u16(), parts.headers, stream)
}

async fn open(gw: &Gateway, version: Version, path: &str) -> Socket {
    if version.is_h2() {
        let client = gw.client(version, "shop.test").await;
        let (status, headers, stream) = extended_connect(&client, path, Some("chat")).await;
        assert_eq!(status, 200, "{version:?}");
        assert_eq!(headers.get("sec-websocket-protocol").unwrap(), "chat", "{version:?}");
        // Both belong to HTTP/1.1's handshake: RFC 8441, section 5.
        assert!(
            !headers.contains_key("sec-websocket-accept") && !headers.contains_key("upgrade"),
            "{headers:?}"
        );
        return WebSocketStream::from_raw_socket(stream.unwrap(), Role::Client, None).await;
    }
    let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
    let mut request = format!("ws://shop.test{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    // As Firefox writes it.
    request.headers_mut().insert("connection", "keep-alive, Upgrade".parse().unwrap());
    let (socket, response) = within("an answer to Upgrade", client_async(request, io)).await.unwrap();
    assert_eq!(response.headers().get("sec-websocket-protocol").unwrap(), "chat", "{version:?}");
    socket
}

async fn next(socket: &mut Socket) -> Option<Result<Message, Error>> {
    within("a message", socket.next()).await
}

#[tokio::test]
async fn messages_come_back() {
    let (vm, gw) = echo().await;
    for version in VERSIONS {
        let mut socket = open(&gw, version, "/ws?room=1").await;
        for number in 0..20 {
            let text = Message::text(format!("message {number}"));
            socket.send(text.clone()).await.unwrap();
            assert_eq!(next(&mut socket).await.unwrap().unwrap(), text, "{version:?}");
        }
        let seen = vm.only();
        let place = format!("{version:?}: {:?}", seen.fields);
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str(), seen.host.as_str()),
            ("GET", "/ws?room=1", "shop.test")
        );
        assert!(
            seen.fields.lists("connection", "upgrade") && seen.fields.lists("upgrade", "websocket"),
            "{place}"
        );
        assert_eq!(seen.fields.all("sec-websocket-version"), ["13"], "{place}");
        assert_eq!(seen.fields.all("sec-websocket-key").len(), 1, "{place}");
        assert_eq!(seen.fields.all("x-forwarded-for"), ["127.0.0.1"], "{place}");
        socket.close(None).await.unwrap();
        while next(&mut socket).await.is_some_and(|m| m.is_ok()) {}
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn large_messages_come_back_whole() {
    let (_vm, gw) = echo().await;
    for version in VERSIONS {
        let socket = open(&gw, version, "/ws").await;
        let (mut send, mut receive) = socket.split();
        let sizes = [0_usize, 1, 125, 126, 65_535, 65_536, 1 << 20, 8 << 20];
        let sending = async {
            for size in sizes {
                send.send(Message::binary(vec![size as u8; size])).await.unwrap();
            }
        };
        let receiving = async {
            for size in sizes {
                let message = within("a message", receive.next()).await.unwrap().unwrap();
                let data = message.into_data();
                assert!(data.len() == size && data.iter().all(|b| *b == size as u8), "{version:?} {size}");
            }
        };
        tokio::join!(sending, receiving);
    }
    gw.stop().await;
}

#[tokio::test]
async fn either_side_may_close() {
    let (vm, gw) = echo().await;
    for version in VERSIONS {
        let mut socket = open(&gw, version, "/ws").await;
        socket.close(None).await.unwrap();
        // The close comes back, then the stream ends.
        loop {
            match next(&mut socket).await {
                Some(Ok(Message::Close(_))) => {}
                None | Some(Err(Error::ConnectionClosed)) => break,
                other => panic!("{version:?}: {other:?}"),
            }
        }
        vm.saw("the client's close", |r| r.delivery == Delivery::Complete).await;
        vm.forget();

        let mut socket = open(&gw, version, "/ws").await;
        socket.send(Message::text("bye")).await.unwrap();
        let closing = next(&mut socket).await.unwrap().unwrap();
        assert!(matches!(closing, Message::Close(_)), "{version:?}: {closing:?}");
        while next(&mut socket).await.is_some_and(|m| m.is_ok()) {}
        vm.saw("its own close", |r| r.delivery == Delivery::Complete).await;
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_is_gone_for_the_vm_too() {
    let (vm, gw) = echo().await;
    for version in VERSIONS {
        let mut socket = open(&gw, version, "/ws").await;
        socket.send(Message::text("x")).await.unwrap();
        next(&mut socket).await.unwrap().unwrap();
        drop(socket);
        vm.saw("the end", |r| r.delivery == Delivery::Complete).await;
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_dies_ends_the_stream() {
    let (_vm, gw) = echo().await;
    for version in VERSIONS {
        // Its `Accept` fits no key, so the stream is opened without a library's check.
        if version.is_h2() {
            let client = gw.client(version, "shop.test").await;
            let (status, _, stream) = extended_connect(&client, "/dies", None).await;
            if status == 200 {
                let mut rest = Vec::new();
                let _ = within("the end", stream.unwrap().read_to_end(&mut rest)).await;
                assert!(rest.is_empty(), "{version:?}");
            } else {
                assert_eq!(status, 502, "{version:?}");
            }
            continue;
        }
        let mut io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        io.write_all(upgrade("/dies").as_bytes()).await.unwrap();
        let mut reader = Reader::new(io);
        let head = reader.head().await.unwrap().unwrap();
        assert!(matches!(parse_response(&head).unwrap().0, 101 | 502), "{version:?}");
        while within("the end", reader.fill()).await.is_ok_and(|n| n > 0) {}
    }
    gw.stop().await;
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[tokio::test]
async fn a_refusal_passes() {
    let (_vm, gw) = echo().await;
    for version in VERSIONS {
        if version.is_h2() {
            let client = gw.client(version, "shop.test").await;
            let (status, headers, _) = extended_connect(&client, "/refused", None).await;
            assert_eq!((status, headers.get("x-vm").unwrap().to_str().unwrap()), (403, "ws"), "{version:?}");
            // The connection goes on.
            assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?}");
            continue;
        }
        let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        let request = "ws://shop.test/refused".into_client_request().unwrap();
        match within("an answer", client_async(request, io)).await {
            Err(Error::Http(response)) => {
                assert_eq!(response.status(), 403, "{version:?}");
                assert_eq!(response.headers().get("x-vm").unwrap(), "ws", "{version:?}");
            }
            other => panic!("{version:?}: {:?}", other.map(|_| ())),
        }
    }
    gw.stop().await;
}

/// What a client sends before the 101 is no request and no frame to a VM that then refuses.
#[tokio::test]
async fn nothing_is_tunnelled_before_the_101() {
    let (vm, gw) = echo().await;
    for version in [Version::H1, Version::H1Tls] {
        let mut io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        let text = format!("{}\u{1}not-a-request-and-not-for-the-vm\r\n\r\n", upgrade("/refused"));
        io.write_all(text.as_bytes()).await.unwrap();
        let mut reader = Reader::new(io);
        let head = within("an answer", reader.head()).await.unwrap().unwrap();
        assert_eq!(parse_response(&head).unwrap().0, 403, "{version:?}");
        // Whatever the gateway says next, it has by then dealt with those bytes.
        while within("the end", reader.fill()).await.is_ok_and(|n| n > 0) {}
        for connection in vm.wire() {
            let text = String::from_utf8_lossy(&connection).into_owned();
            assert!(!text.contains("not-for-the-vm"), "{version:?}: {text}");
        }
    }
    gw.stop().await;
}

/// What a client sends early to a VM that accepts is not lost.
#[tokio::test]
async fn early_frames_arrive_after_the_101() {
    let (_vm, gw) = echo().await;
    for version in [Version::H1, Version::H1Tls] {
        let mut io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        // A masked text frame "Hello" with the mask of RFC 6455, section 5.7.
        let frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let bytes = [upgrade("/ws").as_bytes(), &frame].concat();
        io.write_all(&bytes).await.unwrap();
        let mut reader = Reader::new(io);
        let head = within("an answer", reader.head()).await.unwrap().unwrap();
        assert_eq!(parse_response(&head).unwrap().0, 101, "{version:?}");
        while reader.buffer.len() < 7 {
            assert!(within("the echo", reader.fill()).await.unwrap() > 0, "{version:?}");
        }
        assert_eq!(&reader.buffer[..], b"\x81\x05Hello", "{version:?}");
    }
    gw.stop().await;
}

/// One stream of many is a socket; the others are not disturbed.
#[tokio::test]
async fn ordinary_requests_beside_a_socket_go_on() {
    let (_vm, gw) = echo().await;
    for version in [Version::H2c, Version::H2] {
        let client = gw.client(version, "shop.test").await;
        let (_, _, stream) = extended_connect(&client, "/ws", None).await;
        let mut socket: Socket = WebSocketStream::from_raw_socket(stream.unwrap(), Role::Client, None).await;
        for _ in 0..5 {
            assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?}");
            socket.send(Message::text("x")).await.unwrap();
            assert_eq!(next(&mut socket).await.unwrap().unwrap(), Message::text("x"), "{version:?}");
        }
    }
    gw.stop().await;
}

/// An agent that says what it is told to say.
async fn agent() -> (u16, std::sync::Arc<std::sync::Mutex<&'static str>>, foregate_tests::Lease) {
    let lease = foregate_tests::lease();
    let listener = tokio::net::TcpListener::bind(("127.0.0.2", lease.port)).await.unwrap();
    let line = std::sync::Arc::new(std::sync::Mutex::new("up\n"));
    let says = line.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let line = *says.lock().unwrap();
            _ = stream.write_all(line.as_bytes()).await;
        }
    });
    (lease.port, line, lease)
}

/// Its VM is to have no more work: who has a WebSocket there may go on for a while, and is then told to come again.
#[tokio::test]
async fn a_vm_that_drains_says_goodbye() {
    let (port, line, _lease) = agent().await;
    let vm =
        origin().named("ws").at([127, 0, 0, 2]).on("/ws", |call| Box::pin(call.websocket())).start().await;
    let toml = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = [{:?}]\nagent = {{ port = {port}, interval = \"100ms\" }}\n\
         [server.timeouts]\ndrain = \"1s\"\n",
        vm.address()
    );
    let gw = gateway().named(&["shop.test"]).toml(&toml).start().await;
    for version in VERSIONS {
        *line.lock().unwrap() = "up\n";
        eventually_async("it takes work", || async {
            (gw.request(version, get("/")).await.status == 200).then_some(())
        })
        .await;
        let (mut idle, mut busy) = (open(&gw, version, "/ws").await, open(&gw, version, "/ws").await);
        *line.lock().unwrap() = "drain\n";
        eventually_async("it drains", || async {
            (gw.request(version, get("/")).await.status == 503).then_some(())
        })
        .await;
        let drained = std::time::Instant::now();
        idle.send(Message::text("still here")).await.unwrap();
        assert_eq!(next(&mut idle).await.unwrap().unwrap(), Message::text("still here"), "{version:?}");
        // In the midst of other frames, and between two of them.
        let message = Message::binary(vec![0x81; 200_000]);
        let mut echoes = 0;
        let close = loop {
            if busy.send(message.clone()).await.is_err() {
                break next(&mut busy).await.unwrap().unwrap();
            }
            match next(&mut busy).await.unwrap().unwrap() {
                Message::Binary(echo) => assert_eq!(echo.len(), 200_000, "{version:?}"),
                other => break other,
            }
            echoes += 1;
        };
        assert!(echoes > 3, "{version:?}: {echoes}");
        let is_goodbye = |message: &Message| matches!(message, Message::Close(Some(frame)) if u16::from(frame.code) == 1001);
        assert!(is_goodbye(&close), "{version:?}: {close:?}");
        let close = next(&mut idle).await.unwrap().unwrap();
        assert!(is_goodbye(&close), "{version:?}: {close:?}");
        assert!(drained.elapsed() > std::time::Duration::from_millis(700), "{:?}", drained.elapsed());
        for mut socket in [idle, busy] {
            // tungstenite answers, the VM agrees, and the end comes without an error.
            while let Some(rest) = next(&mut socket).await {
                assert!(
                    rest.is_ok() || matches!(rest, Err(Error::ConnectionClosed)),
                    "{version:?}: {rest:?}"
                );
            }
        }
        eventually_async("the VM saw the end of both", || async {
            let ended =
                vm.requests().into_iter().filter(|r| r.target == "/ws" && r.delivery == Delivery::Complete);
            (ended.count() == 2).then_some(())
        })
        .await;
        vm.forget();
    }
    gw.stop().await;
}
