//! Clients of the trial.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{
    AsyncUdpSocket, ClientConfig, Connecting, Connection, ConnectionError, ConnectionId, Endpoint, UdpPoller,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio::io::Interest;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::process::{STREAM, WORKERS};

const NAME: &str = "steering.test";
/// Packets that go out as one datagram at most: what the kernel takes, in packets of an Ethernet.
const MERGED: usize = 40;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What the processes present, and the clients believe; PEM.
pub(crate) struct Host {
    pub(crate) certificate: String,
    pub(crate) key: String,
    config: ClientConfig,
    begun: Arc<AtomicUsize>,
}

impl Host {
    pub(crate) fn new() -> Host {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        // With an address token from an earlier connection nobody would be sent a Retry.
        config.token_store(Arc::new(quinn::NoneTokenStore));
        let begun = Arc::<AtomicUsize>::default();
        let number = begun.clone();
        config.initial_dst_cid_provider(Arc::new(move || {
            let number = number.fetch_add(1, Ordering::Relaxed);
            let mut id = [0; 20];
            aws_lc_rs::default_provider().secure_random.fill(&mut id).unwrap();
            // The workers take turns.
            id[1] = id[1] & !1 | (number % WORKERS) as u8;
            ConnectionId::new(&id[..Host::first_id(number)])
        }));
        Host { certificate: made.cert.pem(), key: made.signing_key.serialize_pem(), config, begun }
    }

    /// How long a connection's first id is: now and then as long as the gateway's own, for each worker.
    fn first_id(number: usize) -> usize {
        [8, 18, 13, 20][number / WORKERS % 4]
    }

    /// Begins a connection, and says whether its first id has another length than the gateway's own.
    fn connect(&self, endpoint: &Endpoint, to: SocketAddr) -> (Connecting, bool) {
        let plain = Host::first_id(self.begun.load(Ordering::Relaxed)) != 13;
        (endpoint.connect_with(self.config.clone(), to, NAME).unwrap(), plain)
    }
}

/// A socket that merges the packets it is given at a time into as few datagrams as the kernel lets it, in
/// turn of their connections, and that the client's quinn believes to be connected to one address for good.
struct Merging {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    to: SocketAddr,
    believed: SocketAddr,
    given: Mutex<Vec<Vec<u8>>>,
    notify: Notify,
    /// Keeps what it is given, once a Retry has come, until released.
    patient: bool,
    retried: watch::Sender<bool>,
    released: AtomicBool,
    /// Datagrams that held packets of several connections.
    mixed: AtomicUsize,
}

impl Merging {
    fn new(from: IpAddr, port: u16, patient: bool) -> Arc<Merging> {
        let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        let merging = Arc::new(Merging {
            io: tokio::net::UdpSocket::from_std(socket).unwrap(),
            state,
            // Loopback reaches every address of the host's own from every other.
            to: SocketAddr::new(from, port),
            believed: (Ipv4Addr::LOCALHOST, port).into(),
            given: Mutex::default(),
            notify: Notify::new(),
            patient,
            retried: watch::Sender::new(false),
            released: AtomicBool::new(false),
            mixed: AtomicUsize::new(0),
        });
        tokio::spawn(merging.clone().send_on());
        merging
    }

    async fn send_on(self: Arc<Merging>) {
        loop {
            self.notify.notified().await;
            // The connections' tasks come first.
            tokio::task::yield_now().await;
            if self.holds() {
                continue;
            }
            let mut by_length = BTreeMap::<usize, Vec<_>>::new();
            let mut seen = BTreeMap::<Vec<u8>, usize>::new();
            for packet in std::mem::take(&mut *self.given.lock().unwrap()) {
                let connection = id(&packet).to_vec();
                let turn = seen.entry(connection.clone()).or_default();
                *turn += 1;
                by_length.entry(packet.len()).or_default().push((*turn, connection, packet));
            }
            for (length, mut packets) in by_length {
                packets.sort();
                for merged in packets.chunks(MERGED) {
                    if merged.iter().any(|(_, connection, _)| *connection != merged[0].1) {
                        self.mixed.fetch_add(1, Ordering::Relaxed);
                    }
                    let contents: Vec<u8> = merged.iter().flat_map(|(.., packet)| packet).copied().collect();
                    let transmit = Transmit {
                        destination: self.to,
                        ecn: Some(quinn::udp::EcnCodepoint::Ect0),
                        contents: &contents,
                        segment_size: Some(length),
                        src_ip: None,
                    };
                    loop {
                        self.io.writable().await.unwrap();
                        let send = || self.state.send((&self.io).into(), &transmit);
                        if self.io.try_io(Interest::WRITABLE, send).is_ok() {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn holds(&self) -> bool {
        self.patient && *self.retried.borrow() && !self.released.load(Ordering::Relaxed)
    }
}

/// The destination id of a packet, or as much of it as tells connections apart.
fn id(packet: &[u8]) -> &[u8] {
    if packet[0] & 0x80 == 0 { &packet[1..14] } else { &packet[6..6 + usize::from(packet[5])] }
}

impl fmt::Debug for Merging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merging").finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Merging {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.given.lock().unwrap().extend(transmit.contents.chunks(segment).map(<[u8]>::to_vec));
        self.notify.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.io.poll_recv_ready(cx))?;
            let receive = || self.state.recv((&self.io).into(), buffers, metas);
            if let Ok(count) = self.io.try_io(Interest::READABLE, receive) {
                for (buffer, meta) in buffers.iter().zip(&mut *metas).take(count) {
                    (meta.addr, meta.dst_ip) = (self.believed, None);
                    // RFC 9000, section 17.2.5: a Retry is a long header of type 3.
                    if buffer[0] & 0xb0 == 0xb0 {
                        self.retried.send_replace(true);
                    }
                }
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Who answered last, and how often somebody did.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    count: usize,
    process: u32,
    worker: u32,
}

/// A connection that uploads without a pause.
struct Load {
    connection: Connection,
    /// Its first id was not of the length that the gateway's own have.
    plain: bool,
    rounds: watch::Receiver<Round>,
    task: JoinHandle<Result<(), String>>,
}

impl Load {
    fn start(connection: Connection, plain: bool) -> Load {
        let (tell, rounds) = watch::channel(Round::default());
        let task = tokio::spawn(upload(connection.clone(), tell));
        Load { connection, plain, rounds, task }
    }

    fn last(&self) -> Round {
        *self.rounds.borrow()
    }

    async fn progress(&mut self, more: usize) {
        let wanted = self.last().count + more;
        let there = self.rounds.wait_for(|round| round.count >= wanted);
        match timeout(PATIENCE, there).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => panic!("the connection is lost: {:?}", (&mut self.task).await),
            Err(_) => panic!("no answers any more: {:?}", self.connection.close_reason()),
        }
    }

    async fn end(self) {
        self.connection.close(0_u32.into(), b"");
        self.task.await.unwrap().unwrap();
    }
}

async fn upload(connection: Connection, tell: watch::Sender<Round>) -> Result<(), String> {
    let body = vec![7; STREAM / 8];
    loop {
        let round = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&body).await.map_err(|e| e.to_string())?;
            send.finish().map_err(|e| e.to_string())?;
            receive.read_to_end(100).await.map_err(|e| e.to_string())
        };
        let answer = match round.await {
            Ok(answer) => String::from_utf8(answer).unwrap(),
            Err(_) if connection.close_reason() == Some(ConnectionError::LocallyClosed) => return Ok(()),
            Err(error) => return Err(format!("{error}: {:?}", connection.close_reason())),
        };
        let fields: Vec<u32> = answer.split(' ').map(|field| field.parse().unwrap()).collect();
        let before = *tell.borrow();
        let now = Round { count: before.count + 1, process: fields[0], worker: fields[1] };
        if fields[2] as usize != body.len() {
            return Err(format!("an upload is not whole: {answer}"));
        }
        if before.count > 0 && (before.process, before.worker) != (now.process, now.worker) {
            return Err(format!("{before:?} answered, and then {now:?}"));
        }
        tell.send_replace(now);
    }
}

/// A client: one socket at a time, and several connections on it.
struct Peer {
    endpoint: Endpoint,
    sockets: Vec<Arc<Merging>>,
    loads: Vec<Load>,
}

impl Peer {
    fn new(port: u16, patient: bool) -> Peer {
        let socket = Merging::new(Ipv4Addr::LOCALHOST.into(), port, patient);
        let endpoint = Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            None,
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        );
        Peer { endpoint: endpoint.unwrap(), sockets: vec![socket], loads: Vec::new() }
    }

    fn socket(&self) -> &Arc<Merging> {
        self.sockets.last().unwrap()
    }

    fn move_to(&mut self, from: IpAddr, port: u16) {
        let socket = Merging::new(from, port, false);
        self.endpoint.rebind_abstract(socket.clone()).unwrap();
        self.sockets.push(socket);
    }
}

/// Several clients.
pub(crate) struct Crowd(Vec<Peer>);

impl Crowd {
    /// All of a client's connections begin at once.
    pub(crate) async fn connect(host: &Host, port: u16, clients: usize, connections: usize) -> Crowd {
        let mut crowd = Vec::new();
        for _ in 0..clients {
            let mut client = Peer::new(port, false);
            let begun: Vec<_> =
                (0..connections).map(|_| host.connect(&client.endpoint, client.socket().believed)).collect();
            for (connecting, plain) in begun {
                let connection = timeout(PATIENCE, connecting).await.expect("a handshake").unwrap();
                client.loads.push(Load::start(connection, plain));
            }
            crowd.push(client);
        }
        Crowd(crowd)
    }

    /// Waits until each connection has been answered some more times.
    pub(crate) async fn progress(&mut self) {
        for load in self.0.iter_mut().flat_map(|client| &mut client.loads) {
            load.progress(3).await;
        }
    }

    /// Checks that this process serves them, with all its workers; unless `all`, those whose first id looked
    /// like one of the gateway's own may be another's.
    pub(crate) fn served_by(&self, process: u32, all: bool) {
        let mut workers = [0; WORKERS];
        for load in self.0.iter().flat_map(|client| &client.loads).filter(|load| all || load.plain) {
            let round = load.last();
            assert_eq!(round.process, process);
            workers[round.worker as usize] += 1;
        }
        assert!(workers.iter().all(|connections| *connections > 0), "{workers:?}");
    }

    /// Checks that this process serves all of them. They may be few, since others have left.
    pub(crate) fn kept_by(&self, process: u32) {
        for load in self.0.iter().flat_map(|client| &client.loads) {
            assert_eq!(load.last().process, process);
        }
    }

    pub(crate) fn change_port(&mut self) {
        for client in &mut self.0 {
            let to = client.socket().to;
            client.move_to(to.ip(), to.port());
        }
    }

    /// From IPv4 to IPv6.
    pub(crate) fn change_family(&mut self) {
        for client in &mut self.0 {
            client.move_to(Ipv6Addr::LOCALHOST.into(), client.socket().to.port());
        }
    }

    /// How many datagrams held packets of several connections.
    pub(crate) fn mixed(&self) -> usize {
        let sockets = self.0.iter().flat_map(|client| &client.sockets);
        sockets.map(|socket| socket.mixed.load(Ordering::Relaxed)).sum()
    }

    /// Ends the connections that this process serves.
    pub(crate) async fn leave(&mut self, process: u32) {
        for client in &mut self.0 {
            for load in client.loads.extract_if(.., |load| load.last().process == process) {
                load.end().await;
            }
        }
    }

    pub(crate) async fn end(self) {
        for client in self.0 {
            for load in client.loads {
                load.end().await;
            }
            timeout(PATIENCE, client.endpoint.wait_idle()).await.expect("the goodbyes");
        }
    }
}

/// A client that was asked to prove its address and has not answered yet.
pub(crate) struct Late {
    client: Peer,
    connecting: Connecting,
}

impl Late {
    pub(crate) async fn connect(host: &Host, port: u16) -> Late {
        let client = Peer::new(port, true);
        let (connecting, _) = host.connect(&client.endpoint, client.socket().believed);
        let mut retried = client.socket().retried.subscribe();
        timeout(PATIENCE, retried.wait_for(|retried| *retried)).await.expect("a Retry").unwrap();
        Late { client, connecting }
    }

    /// Lets it answer, and tells which process served it then.
    pub(crate) async fn answer(mut self) -> u32 {
        let socket = self.client.socket();
        socket.released.store(true, Ordering::Relaxed);
        socket.notify.notify_one();
        let connection = timeout(PATIENCE, self.connecting).await.expect("a handshake").unwrap();
        let mut load = Load::start(connection, true);
        load.progress(1).await;
        let process = load.last().process;
        self.client.loads.push(load);
        Crowd(vec![self.client]).end().await;
        process
    }
}
