//! Accepting connections: whose address must be proven first, and what a connection may hold.

use std::cell::{Cell, RefCell};
use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connecting, ConnectionError, Endpoint, IdleTimeout, Incoming, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::path::Paths;
use super::tls::Choice;
use super::{Handshake, Keys, Port, WorkerSocket};
use crate::door::{BURST, Door, ROOM};
use crate::h3;
use crate::limit::{Full, Permit};
use crate::listener::Listener;
use crate::peer::{Peer, TlsPeer, canonical};
use crate::settings::{AddressValidation, Congestion, Settings};
use crate::terms::Terms;
use crate::worker::{Prepared, Worker};

/// What one upload may have in flight before its VM reads, and what a connection may.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// What may be sent and not yet acknowledged.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// Requests a client may open at first. quinn keeps room for each, in tables that are half as large as with the 128
/// that are usual, which most clients never come near.
const FIRST_STREAMS: u32 = 100;
/// Control and QPACK streams, with a little room for what a client greases.
const UNI_STREAMS: u32 = 8;
/// What every path carries, until more is found out. quinn sends whole datagrams while anything is left of what
/// an unproven address may be sent, so that only datagrams as small as a client's first stay within three
/// times of that (RFC 9000, section 8.1).
const INITIAL_MTU: u16 = 1200;
/// What nearly every path carries: Ethernet, DSL with PPPoE and IPv6, IPv4 in IPv6 (DS-Lite). Finding it out begins
/// with this size, since more than half of what is between the two is no step that quinn would take before; where it
/// is lost it tries the middle and leaves it at that. A finer search takes more datagrams and round trips on all
/// paths for a few bytes on few of them.
const USUAL_MTU: u16 = 1432;
const MTU_STEP: u16 = (USUAL_MTU - INITIAL_MTU) / 2 + 1;
/// How long a connection may be silent before it is asked whether it is still there.
const PING: Duration = Duration::from_secs(15);
/// Half-open handshakes of a worker beyond which a client must prove its address.
const HALF_OPEN: usize = 100;
/// How often all others run before another handshake begins, which takes as long as several requests: it has a
/// signature in it.
const ROUNDS: usize = 5;
/// What waits for the accept loop: connections, bytes that came after the first packet of one, and of all.
const MAX_INCOMING: usize = 1024;
const INCOMING_BUFFER: u64 = 64 * 1024;
const INCOMING_BUFFERS: u64 = 4 * 1024 * 1024;

/// A configuration for connections accepted from now on.
fn server_config(
    live: &Prepared,
    keys: &Keys,
    tls: Arc<QuicServerConfig>,
) -> Result<ServerConfig, quinn::VarIntBoundsExceeded> {
    let mut config = keys.server_config(tls);
    config
        .transport_config(Arc::new(transport(&live.settings)?))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    Ok(config)
}

fn transport(settings: &Settings) -> Result<TransportConfig, quinn::VarIntBoundsExceeded> {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(USUAL_MTU).minimum_change(MTU_STEP);
    let idle = match settings.timeouts.keep_alive {
        Some(limit) => Some(IdleTimeout::try_from(limit)?),
        None => None,
    };
    transport
        .max_concurrent_bidi_streams(first_streams(settings.limits.streams_per_connection).into())
        .max_concurrent_uni_streams(UNI_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .initial_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(None)
        // A request may take longer than a path may be silent; connections without one are closed by us.
        .keep_alive_interval(Some(settings.timeouts.keep_alive.map_or(PING, |limit| (limit / 3).min(PING))))
        .max_idle_timeout(idle);
    match settings.http3.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(paths(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(paths(BbrConfig::default())),
    };
    Ok(transport)
}

/// What a client may open at first of what is allowed. A little more would not be announced (RFC 9000, section 4.6,
/// leaves that to us, and quinn waits for an eighth), so a little more is given at once.
pub(crate) fn first_streams(all: u32) -> u32 {
    if all < FIRST_STREAMS + FIRST_STREAMS / 4 { all } else { FIRST_STREAMS }
}

fn paths<F>(controllers: F) -> Arc<Paths<F>> {
    Arc::new(Paths(Arc::new(controllers)))
}

/// One port of HTTP/3, as a worker has it: an endpoint on all addresses of the port.
pub(crate) struct Entrance {
    port: Arc<Port>,
    socket: Arc<WorkerSocket>,
    endpoint: Endpoint,
    /// One for each address.
    listeners: RefCell<Vec<Rc<Listener>>>,
    changed: Notify,
    /// A successor accepts: what comes here all the same has been led here before, and is let in.
    handed_over: Cell<bool>,
}

/// The number of a socket of the other set.
fn idle_number(id: u64) -> u64 {
    id | 1 << 63
}

impl Entrance {
    /// Listens on the first address, and accepts until the last has been [removed](Entrance::remove).
    pub(crate) fn open(
        worker: &Rc<Worker>,
        number: u16,
        keys: &Keys,
        port: Arc<Port>,
        (listener, socket, idle): (Rc<Listener>, UdpSocket, Option<UdpSocket>),
    ) -> Result<Rc<Entrance>, Box<dyn std::error::Error>> {
        let sockets = port.socket(number);
        sockets.add(listener.id, socket)?;
        if let Some(idle) = idle {
            sockets.add(idle_number(listener.id), idle)?;
        }
        let endpoint = Endpoint::new_with_abstract_socket(
            port.endpoint_config(number, keys),
            Some(Configured::by(worker.current(), keys)?.server),
            sockets.clone(),
            Arc::new(quinn::TokioRuntime),
        )?;
        let entrance = Rc::new(Entrance {
            port,
            socket: sockets,
            endpoint,
            listeners: RefCell::new(vec![listener]),
            changed: Notify::new(),
            handed_over: Cell::new(false),
        });
        tokio::task::spawn_local(accept(worker.clone(), entrance.clone(), keys.clone()));
        Ok(entrance)
    }

    pub(crate) fn is_of(&self, port: &Arc<Port>) -> bool {
        Arc::ptr_eq(&self.port, port)
    }

    /// Listens on one more address.
    pub(crate) fn add(
        &self,
        listener: Rc<Listener>,
        socket: UdpSocket,
        idle: Option<UdpSocket>,
    ) -> io::Result<()> {
        self.socket.add(listener.id, socket)?;
        if let Some(idle) = idle {
            self.socket.add(idle_number(listener.id), idle)?;
        }
        self.listeners.borrow_mut().push(listener);
        Ok(())
    }

    /// The other set's socket of this address is nobody's any more, so it is ours, if the address is.
    pub(crate) fn adopt(&self, id: u64, idle: UdpSocket) -> io::Result<()> {
        let ours = self.listeners.borrow().iter().any(|listener| listener.id == id);
        if ours { self.socket.add(idle_number(id), idle) } else { Ok(()) }
    }

    /// The other set is another process's.
    pub(crate) fn give_up_idle(&self) {
        self.listeners.borrow().iter().for_each(|listener| self.socket.remove(idle_number(listener.id)));
    }

    /// A successor accepts what is new.
    pub(crate) fn hand_over(&self) {
        self.handed_over.set(true);
    }

    /// A listener drains from now on: who waits already is let in, who comes later is told to go elsewhere.
    pub(crate) fn turn_away(&self) {
        self.changed.notify_one();
    }

    /// Nothing goes on any more that came by this one, if it is one of ours. Says whether it was the last.
    pub(crate) fn remove(&self, id: u64) -> bool {
        let mut listeners = self.listeners.borrow_mut();
        if listeners.iter().all(|listener| listener.id != id) {
            return false;
        }
        listeners.retain(|listener| listener.id != id);
        // The last socket stays until the last packet has gone.
        if listeners.is_empty() {
            self.changed.notify_one()
        } else {
            self.socket.remove(id);
            self.socket.remove(idle_number(id));
        }
        listeners.is_empty()
    }

    /// What a client came by: it came to this address. Of one that leaves and one that has taken its place, the latter.
    fn listener(&self, local: Option<IpAddr>) -> Option<Rc<Listener>> {
        let listeners = self.listeners.borrow();
        let fits = |listener: &&Rc<Listener>| {
            let bound = listener.address.ip();
            local.is_none_or(|local| bound.is_unspecified() || bound == local.to_canonical())
        };
        let serving = listeners.iter().filter(fits).find(|listener| listener.serves());
        serving.or_else(|| listeners.iter().find(fits)).cloned()
    }
}

/// Accepts connections as long as there are listeners.
async fn accept(worker: Rc<Worker>, entrance: Rc<Entrance>, keys: Keys) {
    let mut acceptor = Acceptor { worker, entrance, keys, half_open: Rc::new(()), configured: None };
    // For how long handshakes may still follow one another: half as long as others ran.
    let mut share = Duration::ZERO;
    let (mut door, mut taken) = (Door::new(), 0);
    loop {
        let (gate, now) = (&acceptor.entrance.socket.gate, Instant::now());
        door.keep_out(gate.take_kept_out(), now);
        while let Some(incoming) = door.stale(now) {
            acceptor.turn_away(incoming);
        }
        gate.set(door.room(now));
        if door.is_empty() {
            taken = 0;
        }
        tokio::select! {
            biased;
            () = acceptor.entrance.changed.notified() => {
                if acceptor.entrance.listeners.borrow().is_empty() {
                    break;
                }
                acceptor.take_waiting(&mut door).await;
                continue;
            }
            incoming = acceptor.entrance.endpoint.accept(), if taken < ROOM && door.takes(now) => {
                let Some(incoming) = incoming else { break };
                taken += 1;
                // It may have been waited for for hours.
                if let Some(incoming) = door.wait(incoming, Instant::now()) {
                    acceptor.turn_away(incoming);
                }
                continue;
            }
            () = ready(()), if !door.is_empty() => {}
            // Nothing else opens it when nobody comes any more.
            () = sleep(BURST), if !gate.is_open() => continue,
        }
        if std::mem::take(&mut taken) >= ROOM {
            yield_now().await;
        }
        let Some(incoming) = door.next() else { continue };
        if let Some(number) = door.over(Instant::now()) {
            tracing::info!(turned_away = number, "everybody is let in again");
        }
        let begun = Instant::now();
        acceptor.take(incoming, false);
        let spent = begun.elapsed();
        share = match share.checked_sub(spent) {
            Some(left) => left,
            None => others(spent).await / 2,
        };
    }
}

/// Lets others run, and says for how long. What has come for them goes through several tasks, and none should wait for
/// another handshake, unless all of them together take long anyway.
async fn others(enough: Duration) -> Duration {
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        yield_now().await;
        if begun.elapsed() >= enough {
            break;
        }
    }
    begun.elapsed()
}

/// What accepting goes by.
struct Acceptor {
    worker: Rc<Worker>,
    entrance: Rc<Entrance>,
    keys: Keys,
    /// Held by each handshake under way.
    half_open: Rc<()>,
    configured: Option<Configured>,
}

/// The newest configuration, and the snapshot it was made of.
struct Configured {
    live: Rc<Prepared>,
    /// With TLS for everybody.
    server: ServerConfig,
    tls: Arc<QuicServerConfig>,
}

impl Configured {
    fn by(live: Rc<Prepared>, keys: &Keys) -> Result<Configured, Box<dyn std::error::Error>> {
        let tls = Arc::new(super::tls::open(&live.tls)?);
        Ok(Configured { server: server_config(&live, keys, tls.clone())?, tls, live })
    }

    /// For one connection, that came to this address: its TLS is chosen by the name it asks for.
    fn choosing(&self, local: IpAddr) -> ServerConfig {
        let (live, tls) = (self.live.live(), self.live.tls.clone());
        let mut config = self.server.clone();
        config.crypto = Arc::new(Choice::new(self.tls.clone(), live, tls, local));
        config
    }
}

impl Acceptor {
    /// Refuses a client for whom nobody has the time.
    fn turn_away(&self, incoming: Incoming) {
        self.worker.turned_away(incoming.remote_address());
        incoming.refuse();
    }

    /// Lets those in who came before somebody was to be turned away.
    async fn take_waiting(&mut self, door: &mut Door<Incoming>) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> = std::iter::from_fn(|| door.next()).collect();
        while let Poll::Ready(Some(incoming)) = pin!(self.entrance.endpoint.accept()).poll(&mut cx) {
            waiting.push(incoming);
        }
        for incoming in waiting {
            self.take(incoming, true);
            yield_now().await;
        }
    }

    /// Begins a handshake, or asks the client to prove its address first. One that has `waited` is let in in any case.
    fn take(&mut self, incoming: Incoming, waited: bool) {
        let listener = self.entrance.listener(incoming.local_ip());
        let waited = waited || self.entrance.handed_over.get();
        let Some(listener) = listener.filter(|listener| waited || listener.serves()) else {
            return incoming.refuse();
        };
        let live = self.worker.current();
        let configured = match &self.configured {
            Some(configured) if Rc::ptr_eq(&configured.live, &live) => configured,
            _ => match Configured::by(live.clone(), &self.keys) {
                Ok(configured) => &*self.configured.insert(configured),
                Err(error) => {
                    tracing::error!(%error, "the QUIC configuration cannot be used");
                    return incoming.refuse();
                }
            },
        };
        let must_prove = match live.settings.http3.address_validation {
            AddressValidation::Always => true,
            AddressValidation::Never => false,
            AddressValidation::Auto => Rc::strong_count(&self.half_open) > HALF_OPEN,
        };
        let proven = incoming.remote_address_validated();
        if must_prove && incoming.may_retry() && !proven {
            // Only a client that has been asked already cannot be asked again.
            _ = incoming.retry();
            return;
        }
        let address = canonical(incoming.remote_address());
        let permit = match self.worker.connections.admit(address.ip(), proven) {
            Ok(permit) => permit,
            Err(Full::Unproven) if incoming.may_retry() => {
                _ = incoming.retry();
                return;
            }
            Err(full) => {
                full.log(&self.worker, address);
                return incoming.refuse();
            }
        };
        let mut local = canonical(listener.address);
        if let Some(ip) = incoming.local_ip() {
            local.set_ip(ip.to_canonical());
        }
        let mut config = configured.choosing(local.ip());
        if let Some(transport) = logged(&self.worker, &live, address, &incoming) {
            config.transport_config(transport);
        }
        match incoming.accept_with(Arc::new(config)) {
            Ok(connecting) => {
                let (worker, half_open) = (self.worker.clone(), self.half_open.clone());
                let begun = Begun { live, address, local, listener, permit, connecting, half_open };
                tokio::task::spawn_local(handshake(worker, begun));
            }
            Err(error) => tracing::debug!(peer = %address, %error, "QUIC handshake failed"),
        }
    }
}

/// The transport of a connection that is to be written down.
fn logged(
    worker: &Worker,
    live: &Prepared,
    address: SocketAddr,
    incoming: &Incoming,
) -> Option<Arc<TransportConfig>> {
    let qlog = worker.diagnostics.qlog.as_ref()?.of(address, &incoming.orig_dst_cid())?;
    let mut transport = transport(&live.settings).ok()?;
    transport.qlog_stream(Some(qlog));
    Some(Arc::new(transport))
}

/// A handshake whose first answer is on its way.
struct Begun {
    /// What it is held to.
    live: Rc<Prepared>,
    address: SocketAddr,
    local: SocketAddr,
    listener: Rc<Listener>,
    permit: Permit,
    connecting: Connecting,
    half_open: Rc<()>,
}

async fn handshake(worker: Rc<Worker>, begun: Begun) {
    let Begun { live, address, local, listener, permit, mut connecting, half_open } = begun;
    let _open = listener.connected();
    let begun = Instant::now();
    let limit = live.settings.timeouts.handshake.unwrap_or(Duration::MAX);
    let left = move || limit.saturating_sub(begun.elapsed());
    let failed = |error: &ConnectionError| worker.handshake_failed(address, "QUIC", error);
    let late = || tracing::debug!(peer = %address, "QUIC handshake took longer than timeouts.handshake");
    let handshake = Rc::new(Handshake::default());
    let mut early = false;
    if live.early_data {
        match timeout(limit, connecting.handshake_data()).await {
            Ok(Ok(data)) => early = data.downcast::<Terms>().is_ok_and(|terms| terms.early_data),
            Ok(Err(error)) => return failed(&error),
            Err(_) => return late(),
        }
    }
    let connection = if early {
        // Now that the client's first message is read, requests may follow; for each it is decided whether it waits.
        // A server's always can.
        let Ok((connection, finished)) = connecting.into_0rtt() else { return };
        let (watched, handshake) = (connection.clone(), handshake.clone());
        tokio::task::spawn_local(async move {
            match timeout(left(), finished).await {
                // What it says of 0-RTT is for clients; it resolves when the connection ends as well.
                Ok(_) if watched.close_reason().is_none() => handshake.finish(),
                Ok(_) => {}
                Err(_) => {
                    tracing::debug!(peer = %address, "QUIC handshake took longer than timeouts.handshake");
                    watched.close(VarInt::from_u32(0), b"");
                }
            }
            drop(half_open);
        });
        connection
    } else {
        let connection = match timeout(left(), connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return failed(&error),
            Err(_) => return late(),
        };
        handshake.finish();
        drop(half_open);
        connection
    };
    drop(live);
    let terms = connection.handshake_data().and_then(|data| data.downcast::<Terms>().ok());
    let chain = connection.peer_identity().and_then(|chain| chain.downcast().ok()).map(|chain| *chain);
    let Some(tls) = terms.and_then(|terms| TlsPeer::new(*terms, chain)) else {
        connection.close(VarInt::from_u32(0), b"");
        return;
    };
    let peer = Rc::new(Peer::new(address, local, Some(tls), listener, Rc::new(permit)));
    h3::serve(worker, peer, connection, handshake).await;
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::cell::Cell;

    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    #[test]
    fn others_run_several_times_unless_that_takes_long() {
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).expect("a runtime");
        runtime.block_on(async {
            let runs = Rc::new(Cell::new(0));
            let counted = runs.clone();
            tokio::task::spawn_local(async move {
                loop {
                    counted.set(counted.get() + 1);
                    yield_now().await;
                }
            });
            others(Duration::MAX).await;
            assert_eq!(runs.take(), ROUNDS);
            assert!(others(Duration::ZERO).await > Duration::ZERO);
            assert_eq!(runs.take(), 1);
        });
    }
}
