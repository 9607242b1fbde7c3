//! A worker's UDP sockets as quinn sees them: one, on every address of the port.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;

use super::Port;
use super::gate::Gate;
use super::steer::first_id;
use crate::peer::canonical;

/// How often it is received at a time while nothing of it is to be looked at.
const BATCHES: usize = 16;

/// Receives for one worker, on its own sockets and what the others pass on, and passes on what is theirs.
#[derive(Debug)]
pub struct WorkerSocket {
    port: Arc<Port>,
    worker: u16,
    /// Changes when addresses come and go; connections go on with what is left.
    bound: ArcSwap<Box<[Arc<Bound>]>>,
    /// Which socket is asked first, in turn.
    turn: AtomicUsize,
    /// Some socket took no more; who wants to send waits until all of them do.
    full: AtomicBool,
    /// What new clients come in by.
    pub(super) gate: Gate,
}

#[derive(Debug)]
struct Bound {
    id: u64,
    address: SocketAddr,
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl WorkerSocket {
    pub(super) fn new(port: Arc<Port>, worker: u16) -> WorkerSocket {
        let bound = ArcSwap::from_pointee(Box::default());
        let (turn, full) = (AtomicUsize::new(0), AtomicBool::new(false));
        WorkerSocket { port, worker, bound, turn, full, gate: Gate::new() }
    }

    /// Receives by one more socket, until that is [removed](WorkerSocket::remove) by its number. In a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot wait for the socket, or the kernel does not know an option that quinn sets.
    pub fn add(&self, id: u64, socket: UdpSocket) -> io::Result<()> {
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        let new = Arc::new(Bound { id, address: io.local_addr()?, io, state });
        self.change(|bound| bound.chain([new]).collect());
        Ok(())
    }

    /// Receives by this one no more.
    pub fn remove(&self, id: u64) {
        self.change(|bound| bound.filter(|one| one.id != id).collect());
    }

    /// Only the worker's own thread comes here.
    fn change(&self, next: impl FnOnce(&mut dyn Iterator<Item = Arc<Bound>>) -> Box<[Arc<Bound>]>) {
        let before = self.bound.load_full();
        self.bound.store(Arc::new(next(&mut before.iter().cloned())));
        if let Some(inbox) = self.inbox() {
            // Whoever waits does so for the sockets there were.
            inbox.rouse();
        }
    }

    fn inbox(&self) -> Option<&super::Inbox> {
        self.port.inbox(self.worker)
    }

    /// Receives what is to be looked at. While clients are kept out, what comes of them is most of all, and costs quinn nothing.
    fn poll_sifted(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for _ in 0..BATCHES {
            let (Some(free), Some(of_free)) = (buffers.get_mut(count..), metas.get_mut(count..)) else {
                break;
            };
            let received = match self.poll_sockets(cx, free, of_free) {
                Poll::Ready(received) => received?,
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => break,
            };
            for (buffer, meta) in free.iter_mut().zip(of_free).take(received) {
                meta.len = self.sift(buffer, meta);
            }
            if self.gate.is_open() {
                return Poll::Ready(Ok(count + received));
            }
            let mut kept = count;
            for one in count..count + received {
                if metas.get(one).is_some_and(|meta| meta.len > 0) {
                    buffers.swap(kept, one);
                    metas.swap(kept, one);
                    kept += 1;
                }
            }
            count = kept;
            if count == buffers.len() {
                break;
            }
        }
        if count == 0 {
            // quinn would ask again at once, and for long. Others have their turn first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    /// Receives from the sockets, in turn.
    fn poll_sockets(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let bound = self.bound.load();
        let turn = self.turn.load(Ordering::Relaxed) % bound.len().max(1);
        let (later, sooner) = bound.split_at(turn);
        for (passed, socket) in sooner.iter().chain(later).enumerate() {
            while let Poll::Ready(ready) = socket.io.poll_recv_ready(cx) {
                ready?;
                let received = socket
                    .io
                    .try_io(Interest::READABLE, || socket.state.recv((&socket.io).into(), buffers, metas));
                // An error is of one packet (or the socket is not readable after all): on with the next.
                if let Ok(count) = received {
                    self.turn.store(turn + passed + 1, Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
            }
        }
        Poll::Pending
    }

    /// Leaves our own datagrams in a buffer, but for those whose clients have to wait, and passes on the others. Returns the length that is left.
    fn sift(&self, buffer: &mut [u8], meta: &RecvMeta) -> usize {
        let stride = meta.stride.max(1);
        let ours = Some(self.worker);
        let whole = buffer.get(..meta.len).unwrap_or_default();
        let open = self.gate.is_open();
        if open && whole.chunks(stride).all(|datagram| self.port.route(datagram) == ours) {
            return meta.len;
        }
        let route = |datagram| {
            let route = self.port.route(datagram);
            let stays_out = || first_id(datagram).is_some_and(|id| route == ours && !self.gate.admits(id));
            if open || !stays_out() { route } else { None }
        };
        let routes: Vec<_> = whole.chunks(stride).map(route).collect();
        let (mut at, mut left) = (0, 0);
        // Only the last datagram can be shorter than the others, and it stays behind them.
        for run in routes.chunk_by(PartialEq::eq) {
            let end = (at + run.len() * stride).min(meta.len);
            match run.first().copied().flatten() {
                route if route == ours => {
                    buffer.copy_within(at..end, left);
                    left += end - at;
                }
                Some(owner) => {
                    if let (Some(inbox), Some(datagrams)) = (self.port.inbox(owner), buffer.get(at..end)) {
                        inbox.put(meta, datagrams);
                    }
                }
                // Kept out, or of another process, which we cannot reach: lost, as on the way. Its sender repeats it.
                None => {}
            }
            at = end;
        }
        left
    }

    /// The socket a packet goes out by: the one it says it comes from.
    fn socket_for<'b>(bound: &'b [Arc<Bound>], transmit: &Transmit<'_>) -> Option<&'b Arc<Bound>> {
        let fits = |bound: &&Arc<Bound>| {
            let from = bound.address.ip().to_canonical();
            transmit.src_ip.is_none_or(|ip| ip.to_canonical() == from)
        };
        let reaches = |bound: &&Arc<Bound>| {
            let dual = bound.address.is_ipv6() && bound.address.ip().is_unspecified();
            bound.address.is_ipv4() == transmit.destination.is_ipv4() || dual
        };
        match bound {
            [only] => Some(only),
            many => {
                let mut reaching = many.iter().filter(reaches);
                reaching.clone().find(fits).or_else(|| reaching.next())
            }
        }
    }
}

impl AsyncUdpSocket for WorkerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let bound = self.bound.load();
        let Some(socket) = WorkerSocket::socket_for(&bound, transmit) else { return Ok(()) };
        let send = |transmit: &Transmit<'_>| {
            socket.io.try_io(Interest::WRITABLE, || socket.state.send((&socket.io).into(), transmit))
        };
        let sent = match transmit.src_ip {
            // quinn keeps the address that a connection began on. When its client has come to us by the other
            // family since, the kernel would not take that, and has to choose one.
            Some(ip) if ip.to_canonical().is_ipv4() != canonical(transmit.destination).is_ipv4() => {
                send(&Transmit { src_ip: None, ..transmit.clone() })
            }
            _ => send(transmit),
        };
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        if let Some(inbox) = self.inbox() {
            // Half of the buffers, so that neither way in can starve the other.
            let half = buffers.len().div_ceil(2);
            count = inbox.take(buffers.get_mut(..half).unwrap_or_default(), metas);
        }
        let (Some(buffers), Some(metas)) = (buffers.get_mut(count..), metas.get_mut(count..)) else {
            return Poll::Ready(Ok(count));
        };
        match self.poll_sifted(cx, buffers, metas) {
            Poll::Ready(Ok(received)) => Poll::Ready(Ok(count + received)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if count > 0 => Poll::Ready(Ok(count)),
            Poll::Pending => match self.inbox() {
                Some(inbox) if !inbox.wait(cx.waker()) => Poll::Ready(Ok(inbox.take(buffers, metas))),
                _ => Poll::Pending,
            },
        }
    }

    /// Any of them: whoever asks wants the port, which is the same.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.bound
            .load()
            .first()
            .map(|bound| bound.address)
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.bound.load().iter().map(|bound| bound.state.max_gso_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.bound.load().iter().map(|bound| bound.state.gro_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.bound.load().iter().any(|bound| bound.state.may_fragment())
    }
}

/// A connection's wait until it may send. Costs nothing as long as the sockets take what they are given.
struct Writable {
    socket: Arc<WorkerSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            if !self.socket.full.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let socket = self.socket.clone();
            self.waiting = Some(Box::pin(async move {
                for bound in &**socket.bound.load_full() {
                    bound.io.writable().await?;
                }
                socket.full.store(false, Ordering::Relaxed);
                Ok(())
            }));
        }
        let Some(waiting) = self.waiting.as_mut() else { return Poll::Ready(Ok(())) };
        let writable = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(writable)
    }
}

impl std::fmt::Debug for Writable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}
