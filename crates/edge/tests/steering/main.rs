//! A trial of how QUIC packets find their worker, with real quinn on both sides: processes of two workers,
//! three generations of them on two sets of sockets, and clients that merge the packets of several
//! connections, change ports and addresses, and answer a Retry when its sender is being replaced.
//!
//! The processes are this test binary again; the sockets are handed to them as an upgrade would.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod client;
mod process;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socket2::{Domain, Socket, Type};

use client::{Crowd, Host, Late};
use process::WORKERS;

/// The longest that anything may take, on a machine that is busy building.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both sets, in the order of the group, on both families.
fn bind() -> Vec<UdpSocket> {
    let mut sockets = Vec::<UdpSocket>::new();
    for _ in 0..2 * WORKERS {
        let port = sockets.first().map_or(0, |first| first.local_addr().unwrap().port());
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
        sockets.push(socket.into());
    }
    sockets
}

/// A process of the trial.
struct Server {
    child: Child,
    control: BufReader<UnixStream>,
}

impl Server {
    /// Starts a process with all the sockets; `orders` as in `process.rs`.
    fn start(host: &Host, sockets: &[UdpSocket], orders: &str) -> Server {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::process", "--ignored", "--nocapture"])
            .env(process::CERTIFICATE, &host.certificate)
            .env(process::KEY, &host.key)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * WORKERS))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&ours, &[std::io::IoSlice::new(b"!")], &mut rights, SendFlags::empty()).unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut server = Server { child, control: BufReader::new(ours) };
        server.order(orders);
        server
    }

    /// Sends an order and waits until it is carried out.
    fn order(&mut self, order: &str) {
        writeln!(self.control.get_mut(), "{order}").unwrap();
        let mut done = String::new();
        self.control.read_line(&mut done).unwrap();
        assert_eq!(done, "done\n", "{order}");
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn end(mut self) {
        self.order("end");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already, in a trial that goes well.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[tokio::test]
async fn three_generations_lose_no_connection() {
    let (host, sockets) = (Host::new(), bind());
    let port = sockets[0].local_addr().unwrap().port();

    let mut first = Server::start(&host, &sockets, "first alone");
    first.order("newest");
    let mut old = Crowd::connect(&host, port, 3, 4).await;
    old.progress().await;
    old.served_by(first.id(), true);

    // A Retry is on its way when the next generation starts.
    first.order("retry");
    let retried = Late::connect(&host, port).await;
    first.order("no retry");
    first.order("shared");
    let mut second = Server::start(&host, &sockets, "second shared");
    second.order("newest");
    let mut middle = Crowd::connect(&host, port, 3, 4).await;
    assert_eq!(retried.answer().await, first.id(), "who was asked for a Retry is served by who asked");
    old.progress().await;
    middle.progress().await;
    old.served_by(first.id(), true);
    // What was merged with packets of the old process's reached it too, and it serves that. Nothing else.
    let mut apart = Crowd::connect(&host, port, 8, 1).await;
    apart.progress().await;
    apart.served_by(second.id(), false);

    for crowd in [&mut old, &mut middle] {
        crowd.change_port();
        crowd.progress().await;
        crowd.change_family();
        crowd.progress().await;
    }
    let mixed = old.mixed().min(middle.mixed());
    assert!(mixed > 20, "only {mixed} datagrams held packets of several connections");

    old.end().await;
    for crowd in [&mut middle, &mut apart] {
        crowd.leave(first.id()).await;
    }
    first.end();
    second.order("alone");
    middle.progress().await;
    apart.progress().await;
    second.order("shared");
    let mut third = Server::start(&host, &sockets, "first shared");
    third.order("newest");
    let mut new = Crowd::connect(&host, port, 3, 4).await;
    new.progress().await;
    let mut new_apart = Crowd::connect(&host, port, 8, 1).await;
    new_apart.progress().await;
    new_apart.served_by(third.id(), false);
    new_apart.end().await;
    middle.change_port();
    new.change_family();
    middle.progress().await;
    new.progress().await;
    apart.progress().await;
    // How many of these were merged with packets of the first process's, and so left with it, is chance.
    middle.kept_by(second.id());
    apart.served_by(second.id(), true);
    middle.end().await;
    apart.end().await;
    new.end().await;
    second.end();
    third.end();
}

/// Where the kernel takes no program, the workers carry everything themselves.
#[tokio::test]
async fn without_the_program_nothing_is_lost_either() {
    let (host, sockets) = (Host::new(), bind());
    let port = sockets[0].local_addr().unwrap().port();
    let server = Server::start(&host, &sockets, "first alone");
    let mut crowd = Crowd::connect(&host, port, 3, 4).await;
    crowd.progress().await;
    crowd.change_port();
    crowd.progress().await;
    crowd.change_family();
    crowd.progress().await;
    crowd.served_by(server.id(), true);
    crowd.end().await;
    server.end();
}
