//! VMs that break the rules, byte by byte, and some that keep them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use foregate_http3::codec::frame::{Header, Kind as FrameKind};
use foregate_routing::Endpoint;
use http_body_util::BodyExt;
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::{Client, Protocol, TlsSpec, TransportSpec};

const SECOND: Duration = Duration::from_secs(1);

/// Static QPACK: `:status: 200` and `:status: 103`.
const STATUS_200: u8 = 0xc0 | 25;
const STATUS_103: u8 = 0xc0 | 24;

fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut out = header(kind, payload.len() as u64);
    out.extend_from_slice(payload);
    out
}

fn header(kind: FrameKind, length: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Header { kind, length }.encode(&mut out);
    out
}

/// A HEADERS frame of fields without a dynamic table.
fn head(fields: &[u8]) -> Vec<u8> {
    frame(FrameKind::HEADERS, &[&[0, 0], fields].concat())
}

/// A `name: value` written out, after the status.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = name.len() as u8;
    // The name's length has three bits, then whole bytes.
    let mut out = if length < 7 { vec![0x20 | length] } else { vec![0x27, length - 7] };
    out.extend_from_slice(name.as_bytes());
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
    out
}

/// What a VM does with its n-th request, counted from 0.
enum Act {
    /// Sends this and ends the stream.
    Say(Vec<u8>),
    /// Sends this over and over, until nobody takes it.
    Endless(Vec<u8>, Vec<u8>),
    /// Sends GOAWAY with this id, and then closes the connection.
    Leave(u64),
    /// Sends this on its control stream.
    Control(Vec<u8>),
    /// Sends this and ends its direction, and neither reads nor stops the other.
    Ignore(Vec<u8>),
}

struct Vm {
    address: SocketAddr,
    /// Ends with the test.
    _endpoint: quinn::Endpoint,
    sent: Rc<Cell<usize>>,
    connections: Rc<Cell<usize>>,
}

impl Vm {
    async fn start(act: impl Fn(usize) -> Act + 'static) -> Vm {
        let made = rcgen::generate_simple_self_signed(vec!["vm.lan".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        let config = quinn::ServerConfig::with_crypto(crypto);
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (sent, connections) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let vm = Vm {
            address: endpoint.local_addr().unwrap(),
            _endpoint: endpoint.clone(),
            sent: sent.clone(),
            connections: connections.clone(),
        };
        tokio::task::spawn_local(async move {
            let (act, requests) = (Rc::new(act), Rc::new(Cell::new(0)));
            while let Some(incoming) = endpoint.accept().await {
                let Ok(quic) = incoming.await else { continue };
                connections.set(connections.get() + 1);
                let (act, sent, requests) = (act.clone(), sent.clone(), requests.clone());
                tokio::task::spawn_local(async move {
                    let mut control = quic.open_uni().await.unwrap();
                    control.write_all(&[&[0][..], &frame(FrameKind::SETTINGS, &[])].concat()).await.unwrap();
                    while let Ok((mut send, mut recv)) = quic.accept_bi().await {
                        let number = requests.replace(requests.get() + 1);
                        let act = act(number);
                        if !matches!(act, Act::Ignore(_)) {
                            _ = recv.read_to_end(1 << 20).await;
                        }
                        match act {
                            Act::Ignore(bytes) => {
                                _ = send.write_all(&bytes).await;
                                _ = send.finish();
                                std::mem::forget(recv);
                            }
                            Act::Say(bytes) => {
                                _ = send.write_all(&bytes).await;
                                _ = send.finish();
                            }
                            Act::Endless(first, again) => {
                                let sent = sent.clone();
                                tokio::task::spawn_local(async move {
                                    _ = send.write_all(&first).await;
                                    while send.write_all(&again).await.is_ok() {
                                        sent.set(sent.get() + again.len());
                                    }
                                });
                            }
                            Act::Leave(id) => {
                                let mut payload = Vec::new();
                                foregate_http3::codec::varint::encode(id, &mut payload);
                                _ = control.write_all(&frame(FrameKind::GOAWAY, &payload)).await;
                                tokio::time::sleep(SECOND / 20).await;
                                quic.close(0x100_u32.into(), b"");
                            }
                            Act::Control(bytes) => {
                                _ = control.write_all(&bytes).await;
                                std::mem::forget(send);
                            }
                        }
                    }
                });
            }
        });
        vm
    }
}

fn transport() -> Transport {
    let tls = TlsSpec {
        ca: None,
        server_name: Some("vm.lan".to_owned()),
        found_as: None,
        identity: None,
        verify: false,
    };
    Transport::new(TransportSpec {
        protocol: Protocol::H3,
        tls: Some(tls),
        connect_timeout: Some(SECOND / 2),
        keep_alive: None,
    })
    .unwrap()
}

struct Asking {
    client: Client,
    transport: Transport,
    endpoint: Arc<Endpoint>,
    response_timeout: Duration,
    interims: Vec<u16>,
}

impl Asking {
    fn new(address: SocketAddr) -> Asking {
        let endpoint = Endpoint::new("pool".into(), Address::Ip(address));
        Asking {
            client: Client::default(),
            transport: transport(),
            endpoint,
            response_timeout: SECOND * 10,
            interims: Vec::new(),
        }
    }

    async fn send(&mut self, method: Method, body: Body) -> Result<Response<Body>, SendError> {
        let link = self.client.connect(&self.endpoint, &self.transport, false).await.unwrap();
        let mut outgoing = Outgoing {
            method,
            target: "/".parse().unwrap(),
            authority: HeaderValue::from_static("vm.lan"),
            headers: HeaderMap::new(),
            body,
            ask_trailers: false,
            upgrade: None,
            response_timeout: Some(self.response_timeout),
            idle_timeout: Some(SECOND / 2),
        };
        let interims = &mut self.interims;
        let note = |status: StatusCode, _| interims.push(status.as_u16());
        link.send(&mut outgoing, InFlight::begin(&self.endpoint), note).await
    }

    async fn get(&mut self) -> Result<Response<Body>, SendError> {
        self.send(Method::GET, Body::Empty).await
    }
}

/// How a GET ends to which a VM says this.
async fn told(bytes: Vec<u8>) -> Result<Bytes, (bool, Kind)> {
    let vm = Vm::start(move |_| Act::Say(bytes.clone())).await;
    let mut asking = Asking::new(vm.address);
    let response = asking.get().await.map_err(|error| (false, error.failure.kind()))?;
    let collected = response.into_body().collect().await.map_err(|failure| (true, failure.kind()))?;
    Ok(collected.to_bytes())
}

#[tokio::test(flavor = "local")]
async fn an_end_within_a_frame_is_told_as_such() {
    let ok = head(&[STATUS_200]);
    let data = frame(FrameKind::DATA, b"body");
    let grease = frame(FrameKind(0x21), b"grease");
    let whole = [&ok[..], &data, &grease, &data].concat();
    assert_eq!(told(whole.clone()).await, Ok(Bytes::from_static(b"bodybody")));
    let boundaries = [ok.len(), ok.len() + data.len(), ok.len() + data.len() + grease.len()];
    for cut in (0..whole.len()).filter(|cut| !boundaries.contains(cut)) {
        let expected = match cut {
            0 => (false, Kind::Reset),
            _ if cut < ok.len() => (false, Kind::Truncated),
            _ => (true, Kind::Truncated),
        };
        assert_eq!(told(whole[..cut].to_vec()).await, Err(expected), "cut at {cut}");
    }
    // h3 takes an empty DATA frame for the end.
    let empty = [&ok[..], &frame(FrameKind::DATA, b""), &data].concat();
    assert_eq!(told(empty).await, Ok(Bytes::from_static(b"body")));
}

#[tokio::test(flavor = "local")]
async fn a_body_is_as_long_as_announced() {
    let announced = |length: &str| head(&[&[STATUS_200][..], &field("content-length", length)].concat());
    let data = frame(FrameKind::DATA, b"body");
    assert_eq!(told([announced("4"), data.clone()].concat()).await, Ok(Bytes::from_static(b"body")));
    assert_eq!(told([announced("5"), data.clone()].concat()).await, Err((true, Kind::Truncated)));
    assert_eq!(told([announced("3"), data.clone()].concat()).await, Err((true, Kind::BadResponse)));
    for wrong in ["+4", "4, 4", "", "99999999999999999999"] {
        assert_eq!(
            told([announced(wrong), data.clone()].concat()).await,
            Err((false, Kind::BadResponse)),
            "{wrong}"
        );
    }
}

#[tokio::test(flavor = "local")]
async fn heads_that_are_none_are_refused() {
    let many = |count: usize| head(&[&[STATUS_200][..], &vec![0xc0 | 29; count]].concat());
    assert_eq!(told(many(1000)).await, Ok(Bytes::new()));
    for (what, bytes) in [
        ("30,000 fields", many(30_000)),
        ("no status", head(&field("x", "y"))),
        ("a name in capitals", head(&[&[STATUS_200][..], &field("X", "y")].concat())),
        ("a reference to nothing", head(&[STATUS_200, 0xff, 0x7f])),
        ("DATA before HEADERS", frame(FrameKind::DATA, b"body")),
        ("a frame of the control stream", frame(FrameKind::SETTINGS, &[])),
        ("a frame of HTTP/2", frame(FrameKind(0x8), &[0; 4])),
    ] {
        assert_eq!(told(bytes).await, Err((false, Kind::BadResponse)), "{what}");
    }
}

#[tokio::test(flavor = "local")]
async fn what_a_vm_sends_without_end_is_bounded() {
    let vm = Vm::start(|_| Act::Endless(header(FrameKind::HEADERS, 1 << 60), vec![0; 1000])).await;
    let error = Asking::new(vm.address).get().await.unwrap_err();
    assert_eq!(error.failure.kind(), Kind::BadResponse);
    assert!(vm.sent.get() < 1 << 20, "{} bytes", vm.sent.get());
    // A body nobody reads is as long as the stream's window.
    let begin = [head(&[STATUS_200]), header(FrameKind::DATA, 1 << 60)].concat();
    let vm = Vm::start(move |_| Act::Endless(begin.clone(), vec![0; 1000])).await;
    let _unread = Asking::new(vm.address).get().await.unwrap();
    tokio::time::sleep(SECOND / 2).await;
    assert!((1..1 << 20).contains(&vm.sent.get()), "{} bytes", vm.sent.get());
    // Frames that say nothing keep no body alive.
    let vm = Vm::start(move |_| Act::Endless(head(&[STATUS_200]), frame(FrameKind(0x21), &[0; 100]))).await;
    let body = Asking::new(vm.address).get().await.unwrap().into_body();
    let ended = tokio::time::timeout(SECOND * 5, body.collect()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), Kind::BodyTimeout);
}

#[tokio::test(flavor = "local")]
async fn a_control_stream_is_bounded_too() {
    let vm = Vm::start(|_| Act::Control(header(FrameKind::GOAWAY, 1 << 30))).await;
    let error = Asking::new(vm.address).get().await.unwrap_err();
    assert_eq!(error.failure.kind(), Kind::BadResponse);
}

#[tokio::test(flavor = "local")]
async fn interim_answers_come_before_the_final_one() {
    let say = [head(&[STATUS_103]), head(&[STATUS_103]), head(&[STATUS_200])].concat();
    let vm = Vm::start(move |_| Act::Say(say.clone())).await;
    let mut asking = Asking::new(vm.address);
    assert_eq!(asking.get().await.unwrap().status(), StatusCode::OK);
    assert_eq!(asking.interims, [103, 103]);

    let vm = Vm::start(move |_| Act::Say(head(&[STATUS_103]))).await;
    assert!(Asking::new(vm.address).get().await.is_err());
}

/// After GOAWAY: what the VM has not looked at may be sent again, whatever its method.
#[tokio::test(flavor = "local")]
async fn a_goodbye_says_what_was_not_looked_at() {
    // The first request is number 0, and some servers say the last they serve.
    for id in [0, (1 << 62) - 4] {
        let vm = Vm::start(move |_| Act::Leave(id)).await;
        let error =
            Asking::new(vm.address).send(Method::POST, Bytes::from_static(b"x").into()).await.unwrap_err();
        assert_eq!((error.failure.kind(), error.unsent.is_some()), (Kind::Reset, false), "{id}");
    }
    let vm = Vm::start(|number| match number {
        0 => Act::Say(head(&[STATUS_200])),
        1 => Act::Leave(0),
        _ => Act::Say(head(&[STATUS_200])),
    })
    .await;
    let mut asking = Asking::new(vm.address);
    asking.get().await.unwrap();
    let error = asking.send(Method::POST, Bytes::from_static(b"x").into()).await.unwrap_err();
    let body = error.unsent.unwrap().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "x");
    // And no other request goes there.
    asking.get().await.unwrap();
    assert_eq!(vm.connections.get(), 2);
}

#[test]
fn a_panic_is_the_failure_of_one_exchange() {
    let panicking = || -> Poll<Result<(), StreamError>> { panic!("too many fields") };
    let Poll::Ready(Err(broken)) = contained(panicking) else { panic!("it went well") };
    assert_eq!(broken.failure().kind(), Kind::BadResponse);
}

/// Bytes without end, until they are let go of.
struct Endless(Rc<Cell<bool>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 4096])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// What it has answered to is not sent for ever, whether it has said so or not.
#[tokio::test(flavor = "local")]
async fn a_body_that_a_vm_ignores_comes_to_an_end() {
    let whole = [head(&[STATUS_200]), frame(FrameKind::DATA, b"enough")].concat();
    let nothing = head(&[&[STATUS_200][..], &field("content-length", "0")].concat());
    for answer in [whole, nothing] {
        let vm = Vm::start(move |_| Act::Ignore(answer.clone())).await;
        let (mut asking, dropped) = (Asking::new(vm.address), Rc::new(Cell::new(false)));
        asking.response_timeout = SECOND / 2;
        let body = Body::stream(Endless(dropped.clone()));
        let response = asking.send(Method::POST, body).await.unwrap();
        response.into_body().collect().await.unwrap();
        let begun = Instant::now();
        while !dropped.get() {
            assert!(begun.elapsed() < SECOND * 5, "it is still being sent");
            tokio::time::sleep(SECOND / 50).await;
        }
    }
}

/// A VM that was switched off says nothing, not even that.
#[tokio::test(flavor = "local")]
async fn silence_on_a_new_request_is_not_waited_for() {
    let vm = Vm::start(|_| Act::Say(head(&[STATUS_200]))).await;
    let relay = Relay::start(vm.address).await;
    let mut asking = Asking::new(relay.address);
    asking.get().await.unwrap();
    relay.cut.set(true);
    let begun = Instant::now();
    let error = asking.get().await.unwrap_err();
    assert_eq!(error.failure.kind(), Kind::Reset);
    assert!(begun.elapsed() < SECOND * 5, "{:?}", begun.elapsed());
    relay.cut.set(false);
    asking.get().await.unwrap();
    assert_eq!(vm.connections.get(), 2, "nobody else is sent where it is silent");
}

/// Passes datagrams both ways, until it is cut.
struct Relay {
    address: SocketAddr,
    cut: Rc<Cell<bool>>,
}

impl Relay {
    async fn start(vm: SocketAddr) -> Relay {
        let socket = |socket: UdpSocket| {
            socket.set_nonblocking(true).unwrap();
            tokio::net::UdpSocket::from_std(socket).unwrap()
        };
        let near = socket(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let far = socket(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        far.connect(vm).await.unwrap();
        let relay = Relay { address: near.local_addr().unwrap(), cut: Rc::default() };
        let cut = relay.cut.clone();
        tokio::task::spawn_local(async move {
            let (mut up, mut down, mut client) = ([0; 65_535], [0; 65_535], None);
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        if !cut.get() { _ = far.send(&up[..length]).await; }
                    }
                    Ok(length) = far.recv(&mut down) => {
                        if let (Some(client), false) = (client, cut.get()) {
                            _ = near.send_to(&down[..length], client).await;
                        }
                    }
                }
            }
        });
        relay
    }
}
