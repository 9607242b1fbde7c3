//! QUIC connections and the packets of others: clients that change their ports and addresses, forged
//! addresses, half-open handshakes and stray packets, on a gateway of two workers.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use foregate_tests::{
    Authority, Client, Direction, Fields, Gateway, GatewayBuilder, Origin, PATIENCE, Packet, Relay, Version,
    digest_of, eventually, eventually_async, gateway, get, origin, within,
};
use quinn::{
    ClientConfig, Connecting, Endpoint, TokenStore,
    udp::{Transmit, UdpSocketState},
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::Semaphore,
    time::{Instant, timeout_at},
};

const WORKERS: usize = 2;
const CLIENTS: usize = 12;
const LARGE: u64 = 4 << 20;
/// Half-open handshakes of a worker from which on others must prove their addresses.
const HALF_OPEN: usize = 100;
/// What a client's first datagram has (RFC 9000, section 14.1), and how much more an address may be sent that
/// is not proven (section 8.1).
const FIRST: usize = 1200;
const AMPLIFICATION: usize = 3;

fn builder(vm: &Origin) -> GatewayBuilder {
    gateway().server("workers", &WORKERS.to_string()).site("shop.test", vm)
}

/// A VM with a large answer that begins when it is allowed to.
async fn slow_origin() -> (Origin, Arc<Semaphore>) {
    let may_begin = Arc::new(Semaphore::new(0));
    let wait = may_begin.clone();
    let vm = origin().on("/large", move |call| {
        let wait = wait.clone();
        Box::pin(async move {
            wait.acquire().await.unwrap().forget();
            call.start(200, &Fields::new(), Some(LARGE)).await;
            let _ = call.write_pattern(LARGE).await;
            call.finish(&Fields::new()).await;
        })
    });
    (vm.start().await, may_begin)
}

/// Requests before, during and after a change, on the same connections.
async fn survive(vm: &Origin, may_begin: &Semaphore, clients: &[Client], change: impl Fn()) {
    vm.forget();
    let mut running = Vec::new();
    for client in clients {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        running.push(client.open(&get("/large")).await.unwrap());
    }
    let asked = || vm.requests().iter().filter(|r| r.target == "/large").count();
    eventually("all large ones are at the VM", || (asked() == clients.len()).then_some(())).await;
    change();
    for client in clients {
        let reply = client.send(&get("/")).await.expect("an answer after the change");
        assert_eq!(reply.status, 200);
    }
    may_begin.add_permits(clients.len());
    for mut exchange in running {
        let reply = exchange.down.whole().await.expect("what was asked for before the change");
        assert_eq!((reply.length, reply.digest), (LARGE, digest_of(LARGE)));
    }
    for client in clients {
        assert_eq!(client.quic().close_reason(), None);
    }
}

async fn clients(gw: &Gateway, to: SocketAddr) -> Vec<Client> {
    let mut dial = gw.dial("shop.test");
    dial.https = to;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&dial, Version::H3).await.unwrap());
    }
    clients
}

/// A NAT that forgets, and gives its clients new ports and then another address: they do not notice.
#[tokio::test]
async fn connections_outlive_a_nat_that_forgets_them() {
    let (vm, may_begin) = slow_origin().await;
    let gw = builder(&vm).start().await;
    let nat = Relay::start(gw.dial("shop.test").https).await;
    let clients = clients(&gw, nat.address()).await;
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        survive(&vm, &may_begin, &clients, || nat.rebind(address)).await;
    }
    gw.stop().await;
}

/// Clients that change networks, and take new connection ids for that (RFC 9000, section 9.5).
#[tokio::test]
async fn connections_outlive_clients_that_move() {
    let (vm, may_begin) = slow_origin().await;
    let gw = builder(&vm).start().await;
    let clients = clients(&gw, gw.dial("shop.test").https).await;
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        survive(&vm, &may_begin, &clients, || clients.iter().for_each(|client| client.rebind(address))).await;
    }
    gw.stop().await;
}

/// The VM answers everything with 200, and the gateway what comes to `/office` from 127.0.0.9 with 204. What that
/// address says of clients behind it is believed.
async fn office(vm: &Origin) -> Gateway {
    let route = "[[sites.\"shop.test\".routes]]\npaths = \"/office\"\nwhen = { client_ips = \"127.0.0.9\" }\n\
                 respond = { status = 204 }";
    builder(vm).toml(route).server("trusted_proxies", "\"127.0.0.9\"").start().await
}

/// Asks at the VM until it is told that the client is at this address. Returns what it was told before.
async fn told_at_last(vm: &Origin, client: &Client, address: &str) -> HashSet<String> {
    vm.forget();
    eventually_async("the VM is told of the new address", || async {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        let last = vm.requests().pop().unwrap();
        (last.fields.all("x-forwarded-for") == [address]).then_some(())
    })
    .await;
    let told = vm.requests().into_iter();
    told.flat_map(|request| request.fields.get("x-forwarded-for").map(str::to_owned))
        .filter(|told| told != address)
        .collect()
}

/// What makes a client go on from another address.
type Going<'a> = &'a dyn Fn(&str);

/// Requests that begin after a client has moved are those of its new address, once that is proven; until then they
/// are those of the old one.
#[tokio::test]
async fn who_has_moved_is_known_by_the_new_address() {
    let vm = origin().start().await;
    let gw = office(&vm).await;
    let nat = Relay::start(gw.dial("shop.test").https).await;
    let mut through = gw.dial("shop.test");
    through.https = nat.address();
    let direct = gw.client(Version::H3, "shop.test").await;
    let behind_nat = Client::connect(&through, Version::H3).await.unwrap();
    let cases: [(&Client, Going<'_>); 2] =
        [(&direct, &|to| direct.rebind(to)), (&behind_nat, &|to| nat.rebind(to))];
    for (client, go) in cases {
        let mut old = "127.0.0.1";
        for new in ["127.0.0.2", "127.0.0.3"] {
            assert_eq!(client.send(&get("/office")).await.unwrap().status, 200, "{old}");
            go(new);
            let told = told_at_last(&vm, client, new).await;
            assert!(told.iter().all(|told| told == old), "from {old} to {new}: {told:?}");
            old = new;
        }
        // By the new address goes what may be asked for, too. A trusted proxy is no client, so there is no VM
        // that could be asked.
        go("127.0.0.9");
        eventually_async("the office is open", || async {
            (client.send(&get("/office")).await.unwrap().status == 204).then_some(())
        })
        .await;
        assert_eq!(client.quic().close_reason(), None);
    }
    gw.stop().await;
}

/// Whoever has a connection can send from an address that is not his own (RFC 9000, section 21.5.6). That gains
/// him nothing: before the gateway has heard that he gets what is sent there, his requests are those of his own.
#[tokio::test]
async fn a_forged_address_gives_no_rights() {
    const REQUESTS: usize = 10;
    let vm = origin().start().await;
    let gw = office(&vm).await;
    let relay = Relay::start(gw.dial("shop.test").https).await;
    let mut dial = gw.dial("shop.test");
    dial.https = relay.address();
    let client = Client::connect(&dial, Version::H3).await.unwrap();
    assert_eq!(client.send(&get("/office")).await.unwrap().status, 200);
    vm.forget();

    let mut running = Vec::new();
    for number in 0..REQUESTS {
        // Each from another port, so that the gateway never gives up finding out.
        relay.forge("127.0.0.9");
        let target = format!("/office?{number}");
        let request = get(&target).field("x-forwarded-for", "192.0.2.1");
        running.push(client.open(&request).await.unwrap());
        let seen = vm.saw("the request", |request| request.target == target).await;
        assert_eq!(seen.fields.all("x-forwarded-for"), ["127.0.0.1"], "{number}");
    }
    // The answers were on their way to somebody else; the client hears them when it is where it was.
    relay.rebind("127.0.0.1");
    for mut exchange in running {
        assert_eq!(exchange.down.whole().await.expect("an answer").status, 200);
    }
    // And it is the address that did it, not the place of the test.
    relay.rebind("127.0.0.9");
    eventually_async("the office is open", || async {
        (client.send(&get("/office")).await.unwrap().status == 204).then_some(())
    })
    .await;
    gw.stop().await;
}

/// Several addresses of one port have one owner for each connection.
#[tokio::test]
async fn every_address_of_a_port_is_served() {
    let (vm, may_begin) = slow_origin().await;
    let gw = builder(&vm).server("addresses", "[\"127.0.0.1\", \"127.0.0.4\", \"::1\"]").start().await;
    for address in ["127.0.0.1", "127.0.0.4", "::1"] {
        let to = SocketAddr::new(address.parse().unwrap(), gw.https_port());
        let mut dial = gw.dial("shop.test");
        (dial.https, dial.from) = (to, to.ip());
        let client = Client::connect(&dial, Version::H3).await.unwrap();
        let from = if to.is_ipv4() { "127.0.0.2" } else { "::1" };
        survive(&vm, &may_begin, std::slice::from_ref(&client), || client.rebind(from)).await;
    }
    gw.stop().await;
}

/// Address tokens of NEW_TOKEN frames, and what is used up.
#[derive(Default)]
struct Tokens(Mutex<Vec<Bytes>>);

impl TokenStore for Tokens {
    fn insert(&self, _: &str, token: Bytes) {
        self.0.lock().unwrap().push(token);
    }

    fn take(&self, _: &str) -> Option<Bytes> {
        self.0.lock().unwrap().pop()
    }
}

fn quic_client(tokens: &Arc<Tokens>) -> ClientConfig {
    let mut config = Authority::shared().one_datagram_client();
    config.token_store(tokens.clone());
    config
}

/// Connects through a relay of its own. Returns whether the client was sent a Retry, and the length of its first
/// token.
async fn handshake(gw: &Gateway, tokens: &Arc<Tokens>) -> (bool, usize) {
    let relay = Relay::start(gw.dial("shop.test").https).await;
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = endpoint.connect_with(quic_client(tokens), relay.address(), "shop.test").unwrap();
    let connection = within("a handshake", connecting).await.unwrap();
    let seen = relay.datagrams();
    let retried = seen.iter().any(|d| d.direction == Direction::ToClient && d.packet() == Packet::Retry);
    let Packet::Initial(token) = seen[0].packet() else { panic!("{seen:?}") };
    if tokens.0.lock().unwrap().is_empty() {
        eventually("an address token", || (!tokens.0.lock().unwrap().is_empty()).then_some(())).await;
    }
    drop(connection);
    (retried, token.len())
}

/// First datagrams of clients that have nobody to talk to.
struct Beginners {
    endpoint: Endpoint,
    config: ClientConfig,
    nobody: UdpSocket,
    begun: Vec<Connecting>,
    seen: HashSet<Bytes>,
}

impl Beginners {
    async fn new() -> Beginners {
        Beginners {
            endpoint: Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap(),
            config: quic_client(&Arc::default()),
            nobody: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
            begun: Vec::new(),
            seen: HashSet::new(),
        }
    }

    async fn next(&mut self) -> Bytes {
        let to = self.nobody.local_addr().unwrap();
        self.begun.push(self.endpoint.connect_with(self.config.clone(), to, "shop.test").unwrap());
        loop {
            let datagram = receive(&self.nobody, Instant::now() + PATIENCE).await.expect("a first datagram");
            assert_eq!(Packet::first_of(&datagram), Packet::Initial(Bytes::new()));
            // Those before this one try again.
            let id = datagram.slice(6..6 + usize::from(datagram[5]));
            if self.seen.insert(id) {
                assert_eq!(datagram.len(), FIRST);
                return datagram;
            }
        }
    }
}

async fn receive(socket: &UdpSocket, until: Instant) -> Option<Bytes> {
    let mut buffer = vec![0; 65_535];
    let length = timeout_at(until, socket.recv(&mut buffer)).await.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer.into())
}

/// Everything that has come.
fn received(socket: &UdpSocket) -> Vec<Bytes> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_535];
    while let Ok(length) = socket.try_recv(&mut buffer) {
        all.push(Bytes::copy_from_slice(&buffer[..length]));
    }
    all
}

/// A socket that speaks to the gateway and to nobody else.
async fn stranger(gw: &Gateway) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(gw.dial("shop.test").https).await.unwrap();
    socket
}

/// Under a flood of handshakes that nobody goes on with, new clients must prove their addresses; who was given
/// a token earlier need not, whichever worker gave it, but only once.
#[tokio::test]
async fn a_flood_of_handshakes_makes_clients_prove_their_addresses() {
    let vm = origin().start().await;
    let gw = builder(&vm).toml("[server.timeouts]\nhandshake = \"60s\"").start().await;
    let mut returning = Vec::new();
    for _ in 0..6 {
        let tokens = Arc::<Tokens>::default();
        assert_eq!(handshake(&gw, &tokens).await, (false, 0), "there is no flood yet");
        returning.push(tokens);
    }

    let mut beginners = Beginners::new().await;
    let (mut accepted, mut retried) = (0, 0);
    // Twenty in a row: both workers ask for it.
    while retried < 20 {
        let socket = stranger(&gw).await;
        socket.send(&beginners.next().await).await.unwrap();
        let answer = receive(&socket, Instant::now() + PATIENCE).await.expect("an answer");
        match Packet::first_of(&answer) {
            Packet::Initial(_) => (accepted, retried) = (accepted + 1, 0),
            Packet::Retry => retried += 1,
            other => panic!("{other:?}"),
        }
        assert!(accepted <= WORKERS * HALF_OPEN, "{accepted} handshakes are half open");
    }
    assert_eq!(accepted, WORKERS * HALF_OPEN);

    assert_eq!(handshake(&gw, &Arc::default()).await, (true, 0), "a new client");
    for tokens in returning {
        let token = tokens.0.lock().unwrap().last().cloned().unwrap();
        assert_eq!(handshake(&gw, &tokens).await, (false, token.len()), "a client that was here before");
        *tokens.0.lock().unwrap() = vec![token.clone()];
        assert_eq!(handshake(&gw, &tokens).await, (true, token.len()), "a token that was used");
    }
    let reply = gw.request(Version::H3, get("/")).await;
    assert_eq!(reply.status, 200);
    gw.stop().await;
}

/// Who forges an address has it sent three times what it cost him at most, however large the certificate is.
#[tokio::test]
async fn forged_addresses_are_sent_little() {
    let vm = origin().start().await;
    let names: Vec<_> = (0..200).map(|n| format!("a-name-of-some-length-{n}.shop.test")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let gw = builder(&vm)
        .named(&names)
        .toml("[server.timeouts]\nhandshake = \"2s\"")
        .env("RUST_LOG", "debug")
        .start()
        .await;
    let victim = stranger(&gw).await;
    victim.send(&Beginners::new().await.next().await).await.unwrap();
    eventually("the gateway gives up", || gw.log().having(&["QUIC handshake took longer"]).pop()).await;
    gw.stop().await;
    let total: usize = received(&victim).iter().map(Bytes::len).sum();
    assert!(total <= AMPLIFICATION * FIRST, "{total} bytes for {FIRST}");
    // And it would have been more: the certificate alone is.
    assert!(total > (AMPLIFICATION - 1) * FIRST, "only {total} bytes");
}

/// A short header, an id and what could be the rest of a packet.
fn short(id: &[u8]) -> Vec<u8> {
    [&[0x40], id, &[7; 86]].concat()
}

/// Sends both as one datagram of two segments, which go where the first one belongs.
async fn send_merged(socket: &UdpSocket, first: &[u8], second: &[u8]) {
    assert_eq!(first.len(), second.len());
    let state = UdpSocketState::new(socket.into()).unwrap();
    let transmit = Transmit {
        destination: socket.peer_addr().unwrap(),
        ecn: None,
        contents: &[first, second].concat(),
        segment_size: Some(first.len()),
        src_ip: None,
    };
    socket.writable().await.unwrap();
    socket.try_io(Interest::WRITABLE, || state.try_send(socket.into(), &transmit)).unwrap();
}

/// Sends packets of an unknown connection until they are answered, and returns what is the same in every such
/// answer: the token (RFC 9000, section 10.3).
async fn reset_token(socket: &UdpSocket, id: &[u8], seen: &mut HashSet<Bytes>) -> Bytes {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        socket.send(&short(id)).await.unwrap();
        if let Some(answer) = receive(socket, Instant::now() + Duration::from_millis(50)).await {
            let token = answer.slice(answer.len() - 16..);
            seen.insert(token.clone());
            return token;
        }
    }
    panic!("a packet of no connection is never answered");
}

/// A packet that a worker gets though its connection is another worker's is not answered with a reset; and
/// one of no connection at all is.
#[tokio::test]
async fn stray_packets_are_not_answered_in_their_owners_name() {
    let vm = origin().start().await;
    let gw = builder(&vm).start().await;
    let relay = Relay::start(gw.dial("shop.test").https).await;
    let mut dial = gw.dial("shop.test");
    dial.https = relay.address();
    let client = Client::connect(&dial, Version::H3).await.unwrap();
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    let sent = relay.datagrams();
    let of_client =
        |d: &&foregate_tests::Datagram| d.direction == Direction::ToGateway && d.packet() == Packet::Short;
    let live = sent.iter().rfind(of_client).unwrap().payload.slice(1..14);

    let socket = stranger(&gw).await;
    let mut seen = HashSet::new();
    // An id for each worker, by its first two bytes.
    let unknown = [[0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], [0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]];
    let mut tokens = HashSet::new();
    for id in &unknown {
        tokens.insert(reset_token(&socket, id, &mut seen).await);
    }
    assert_eq!(tokens.len(), WORKERS);
    for id in &unknown {
        // A Handshake packet takes the live connection's along, and is not answered itself.
        let handshake = [&[0xe0, 0, 0, 0, 1, 13][..], id, &[0; 81]].concat();
        send_merged(&socket, &handshake, &short(&live)).await;
        // The same way with an id of nobody: the token says that it came through.
        let other = unknown.iter().find(|other| *other != id).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let answer = loop {
            assert!(Instant::now() < deadline, "what is merged does not come through");
            send_merged(&socket, &handshake, &short(other)).await;
            if let Some(answer) = receive(&socket, Instant::now() + Duration::from_millis(50)).await {
                break answer;
            }
        };
        seen.insert(answer.slice(answer.len() - 16..));
    }
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    drop(client);
    gw.stop().await;
    seen.extend(received(&socket).iter().map(|answer| answer.slice(answer.len() - 16..)));
    assert_eq!(seen, tokens, "somebody answered for the connection that lives");
}

/// How long a client's datagrams from the gateway are while a large answer comes, with those that are longer than
/// every path must carry (RFC 9000, section 14) in their order.
async fn lengths(carries: usize) -> Vec<usize> {
    let vm = origin().on("/large", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new(), Some(LARGE)).await;
            let _ = call.write_pattern(LARGE).await;
            call.finish(&Fields::new()).await;
        })
    });
    let vm = vm.start().await;
    let gw = builder(&vm).start().await;
    let relay = Relay::narrow(carries, gw.dial("shop.test").https).await;
    let mut dial = gw.dial("shop.test");
    dial.https = relay.address();
    let client = Client::connect(&dial, Version::H3).await.unwrap();
    let reply = client.send(&get("/large")).await.unwrap();
    assert_eq!((reply.length, reply.digest), (LARGE, digest_of(LARGE)));
    let sent = relay.datagrams();
    gw.stop().await;
    let long = |d: &&foregate_tests::Datagram| d.direction == Direction::ToClient && d.payload.len() > FIRST;
    sent.iter().filter(long).map(|d| d.payload.len()).collect()
}

/// RFC 9000, section 14.3: what a path carries is found out, on a usual one at the first attempt.
#[tokio::test]
async fn datagrams_grow_to_what_a_path_carries() {
    let usual = lengths(usize::MAX).await;
    assert_eq!(usual.first(), Some(&1432));
    assert!(usual.iter().all(|length| *length <= 1432));
    assert!(usual.iter().filter(|length| **length == 1432).count() > usual.len() / 2, "{usual:?}");

    // Tunnels, say: whatever is lost on them, the answer comes; in longer datagrams than at first where they pass.
    let grown = |lengths: &[usize]| lengths.iter().filter(|length| **length > 1300).count() > 1000;
    let mut narrow = lengths(1400).await;
    for _ in 0..5 {
        // On a busy machine the relay may lose what fits as well, as often as a connection tries.
        if !grown(&narrow) {
            narrow = lengths(1400).await;
        }
    }
    assert!(grown(&narrow), "{narrow:?}");
    assert_eq!(lengths(1300).await, Vec::<usize>::new());
}
