//! One process of the trial: two workers that answer each stream with who they are and what they got.

use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use foregate_edge::quic::{Group, Keys, Port, Set, Sets};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, Incoming, ServerConfig};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

pub(crate) const WORKERS: usize = 2;
pub(crate) const CERTIFICATE: &str = "STEERING_CERTIFICATE";
pub(crate) const KEY: &str = "STEERING_KEY";
/// The most that a stream holds.
pub(crate) const STREAM: usize = 256 * 1024;

/// What the workers are told.
#[derive(Clone, Copy)]
struct Orders {
    /// No other process has the other set: read it too.
    alone: bool,
    retry: bool,
    end: bool,
}

/// Standard input is a socket. The first message on it carries the UDP sockets of both sets; then comes one
/// order per line, each answered with a line when it is carried out.
#[test]
#[ignore = "a process of the trial, and started by it"]
fn process() {
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let sockets = receive(&control);
    let mut lines = BufReader::new(UnixStream::from(control));
    let mut order = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let mut answer = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());

    let group = Group::new(Sets::Two, WORKERS).unwrap();
    let first = order();
    let (set, alone) = first.split_once(' ').unwrap();
    let set = if set == "first" { Set::First } else { Set::Second };
    let port = Port::new(group, set);
    let mut orders = Orders { alone: alone == "alone", retry: false, end: false };
    port.share(!orders.alone);
    let (tell, told) = watch::channel(orders);
    let (report, reports) = mpsc::channel();
    let server = server_config();
    let threads: Vec<_> = (0..WORKERS)
        .map(|number| {
            let own = if set == Set::First { number } else { WORKERS + number };
            let sockets = [own, (own + WORKERS) % (2 * WORKERS)].map(|at| sockets[at].try_clone().unwrap());
            let (port, server) = (port.clone(), server.clone());
            let (told, report) = (told.clone(), report.clone());
            std::thread::spawn(move || work(&port, number as u16, &sockets, &server, told, &report))
        })
        .collect();
    loop {
        reports.iter().take(WORKERS).for_each(drop);
        writeln!(answer, "done").unwrap();
        if orders.end {
            break;
        }
        match order().as_str() {
            "newest" => group.attach(&sockets[0], set).unwrap(),
            "retry" => orders.retry = true,
            "no retry" => orders.retry = false,
            "alone" => orders.alone = true,
            "shared" => orders.alone = false,
            "end" => orders.end = true,
            other => panic!("{other:?} is no order"),
        }
        port.share(!orders.alone);
        tell.send_replace(orders);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn receive(control: impl AsFd) -> Vec<UdpSocket> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * WORKERS))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut sockets = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds.map(UdpSocket::from));
        }
    }
    assert_eq!(sockets.len(), 2 * WORKERS);
    sockets
}

/// With keys that all processes share.
fn server_config() -> ServerConfig {
    let certificate = CertificateDer::from_pem_slice(std::env::var(CERTIFICATE).unwrap().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(std::env::var(KEY).unwrap().as_bytes()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(crate::client::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    keys().server_config(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

fn keys() -> Keys {
    Keys::new(&[7; 64])
}

/// The numbers of a worker's sockets.
const OWN: u64 = 1;
const OTHERS: u64 = 2;

fn work(
    port: &Arc<Port>,
    number: u16,
    sockets: &[UdpSocket; 2],
    server: &ServerConfig,
    mut told: watch::Receiver<Orders>,
    report: &mpsc::Sender<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let [own, others] = sockets;
        let socket = port.socket(number);
        socket.add(OWN, own.try_clone().unwrap()).unwrap();
        let mut orders = *told.borrow_and_update();
        if orders.alone {
            socket.add(OTHERS, others.try_clone().unwrap()).unwrap();
        }
        let endpoint = Endpoint::new_with_abstract_socket(
            port.endpoint_config(number, &keys()),
            Some(server.clone()),
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        )
        .unwrap();
        report.send(()).unwrap();
        loop {
            tokio::select! {
                incoming = endpoint.accept() => {
                    let incoming = incoming.unwrap();
                    if orders.retry && !incoming.remote_address_validated() {
                        incoming.retry().unwrap();
                    } else {
                        tokio::task::spawn_local(serve(incoming, number));
                    }
                }
                changed = told.changed() => {
                    changed.unwrap();
                    let before = std::mem::replace(&mut orders, *told.borrow_and_update());
                    match (before.alone, orders.alone) {
                        (false, true) => socket.add(OTHERS, others.try_clone().unwrap()).unwrap(),
                        (true, false) => socket.remove(OTHERS),
                        _ => {}
                    }
                    report.send(()).unwrap();
                    if orders.end {
                        break;
                    }
                }
            }
        }
    });
}

async fn serve(incoming: Incoming, number: u16) {
    // A first packet that came twice, once before and once after a successor took over, ends here.
    let Ok(connection) = incoming.await else { return };
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        tokio::task::spawn_local(async move {
            // An error is the client's to notice.
            if let Ok(body) = receive.read_to_end(STREAM).await {
                let answer = format!("{} {number} {}", std::process::id(), body.len());
                if send.write_all(answer.as_bytes()).await.is_ok() {
                    _ = send.finish();
                }
            }
        });
    }
}
