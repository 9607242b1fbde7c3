//! The life of a worker's thread: it listens, does as it is told, and lets what runs come to its end.

use std::future::ready;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use foregate_exchange::clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::accept;
use crate::door::{Door, ROOM};
use crate::drain::Phase;
use crate::gateway::Shared;
use crate::limit::Permit;
use crate::listen::{Opened, Way};
use crate::listener::Listener;
use crate::peer::canonical;
use crate::pressure;
use crate::quic::{Entrance, Keys};
use crate::worker::Worker;

/// How long nothing must have run before idle connections are closed in a drain: a request that is just
/// on its way on one of them is still answered.
const QUIET: Duration = Duration::from_secs(1);

/// How long before the end of a drain WebSockets are told to go.
const PART: Duration = Duration::from_secs(2);
/// Within what time clients are told to go where a successor is there to take them: each connection anew is a handshake.
const SPREAD: Duration = Duration::from_secs(4);

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Make ready to listen on these as well. Says when that is done, or what could not be.
    Listen(Vec<Opened>, Report),
    /// Accept what comes to those that are ready.
    Begin(Report),
    /// Listen on these no more, and let what came by them end within this time.
    Leave(Vec<u64>, Duration, Report),
    /// There is a new snapshot.
    Look,
    /// The sockets of the other set, with the numbers of their addresses: they are nobody else's.
    Adopt(Vec<(u64, UdpSocket)>, Report),
    /// They are another process's.
    GiveUp(Report),
    /// Leave all of them, and end. A successor may have taken over.
    Drain { limit: Duration, handed_over: bool },
}

/// Hears of an order that it was done.
pub(crate) type Report = UnboundedSender<Result<(), String>>;

/// Lives until it is told to drain, or nobody tells it anything any more.
pub(crate) fn live(shared: Shared, number: u16, mut orders: UnboundedReceiver<Order>, report: &Report) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            _ = report.send(Err(error.to_string()));
            return;
        }
    };
    runtime.block_on(async {
        let keys = shared.keys.clone();
        let worker = match Worker::new(shared) {
            Ok(worker) => worker,
            Err(error) => {
                _ = report.send(Err(error.to_string()));
                return;
            }
        };
        _ = report.send(Ok(()));
        tokio::task::spawn_local(worker.waits.clone().attend());
        tokio::task::spawn_local(watch_pressure(worker.clone(), number.into()));
        let sweeper = worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sweeper.client.sweep();
                sweeper.partings.look(clock::now_nanos());
            }
        });
        let (limit, spread) = loop {
            match orders.recv().await {
                Some(Order::Listen(opened, report)) => {
                    let done = opened.into_iter().try_for_each(|one| {
                        open(&worker, number, &keys, one).map_err(|error| error.to_string())
                    });
                    _ = report.send(done);
                }
                Some(Order::Begin(report)) => {
                    let listeners = worker.listeners.borrow();
                    let waiting = listeners.iter().filter(|one| one.drain.phase() == Phase::Waiting);
                    waiting.for_each(|listener| listener.drain.enter(Phase::Serving));
                    _ = report.send(Ok(()));
                }
                Some(Order::Leave(ids, limit, report)) => {
                    for listener in leave(&worker, Duration::ZERO, |listener| ids.contains(&listener.id)) {
                        tokio::task::spawn_local(part(worker.clone(), listener, limit));
                    }
                    // The accept loops take what the kernel has accepted for them, and close their sockets.
                    yield_now().await;
                    _ = report.send(Ok(()));
                }
                Some(Order::Look) => _ = worker.current(),
                Some(Order::Adopt(sockets, report)) => _ = report.send(adopt(&worker, sockets)),
                Some(Order::GiveUp(report)) => {
                    worker.entrances.borrow().iter().for_each(|entrance| entrance.give_up_idle());
                    _ = report.send(Ok(()));
                }
                Some(Order::Drain { limit, handed_over }) => {
                    let mut spread = Duration::ZERO;
                    if handed_over {
                        worker.entrances.borrow().iter().for_each(|entrance| entrance.hand_over());
                        spread = SPREAD.min(limit / 4);
                    }
                    break (limit, spread);
                }
                None => break (Duration::ZERO, Duration::ZERO),
            }
        };
        leave(&worker, spread, |_| true);
        let all = worker.listeners.borrow().clone();
        finish(&worker, &all, limit, spread).await;
    });
}

/// Tells how much the worker has to do. One of them looks at the memory too.
async fn watch_pressure(worker: Rc<Worker>, number: usize) {
    loop {
        worker.pressure.report(number, worker.running(), worker.connections.open());
        worker.pressure.report_answers(number, worker.answers());
        if number == 0 {
            worker.pressure.look_at_memory();
        }
        tokio::time::sleep(pressure::LOOK).await;
    }
}

/// Listens on one more address.
fn open(
    worker: &Rc<Worker>,
    number: u16,
    keys: &Keys,
    opened: Opened,
) -> Result<(), Box<dyn std::error::Error>> {
    let listener = Listener::new(opened.id, opened.address);
    match opened.way {
        Way::Http(socket) => {
            let socket = TcpListener::from_std(socket)?;
            tokio::task::spawn_local(accept_tcp(worker.clone(), listener.clone(), socket, false));
        }
        Way::Https(socket) => {
            let socket = TcpListener::from_std(socket)?;
            tokio::task::spawn_local(accept_tcp(worker.clone(), listener.clone(), socket, true));
        }
        Way::Http3(port, socket, idle) => {
            let mut entrances = worker.entrances.borrow_mut();
            match entrances.iter().find(|entrance| entrance.is_of(&port)) {
                Some(entrance) => entrance.add(listener.clone(), socket, idle)?,
                None => entrances.push(Entrance::open(
                    worker,
                    number,
                    keys,
                    port,
                    (listener.clone(), socket, idle),
                )?),
            }
        }
    }
    worker.listeners.borrow_mut().push(listener);
    Ok(())
}

fn adopt(worker: &Worker, sockets: Vec<(u64, UdpSocket)>) -> Result<(), String> {
    let entrances = worker.entrances.borrow();
    for (id, socket) in sockets {
        for entrance in entrances.iter() {
            let own = socket.try_clone().and_then(|own| entrance.adopt(id, own));
            own.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Accepts from when the listener serves until it drains. In between it awaits nothing but `accept`, and lets in one at a
/// time.
async fn accept_tcp(worker: Rc<Worker>, listener: Rc<Listener>, socket: TcpListener, secure: bool) {
    listener.drain.reached(Phase::Serving).await;
    if !listener.serves() {
        // It never did: what waits there is another process's.
        return;
    }
    let (mut door, mut taken) = (Door::new(), 0);
    while listener.serves() {
        while let Some((_, address, _)) = door.stale(Instant::now()) {
            worker.turned_away(address);
        }
        if door.is_empty() {
            // Nobody is kept waiting by those who come, however many of them the limits refuse.
            taken = 0;
        }
        let accepted = tokio::select! {
            biased;
            accepted = socket.accept(), if taken < ROOM && door.takes(Instant::now()) => Some(accepted),
            () = listener.drain.reached(Phase::Draining) => None,
            () = ready(()), if !door.is_empty() => None,
        };
        match accepted {
            Some(Ok(accepted)) => {
                taken += 1;
                if let Some(permitted) = permit(&worker, accepted)
                    && let Some((_, address, _)) = door.wait(permitted, Instant::now())
                {
                    worker.turned_away(address);
                }
                continue;
            }
            Some(Err(error)) => refused(&error).await,
            None => {}
        }
        if let Some(permitted) = door.next() {
            admit(&worker, &listener, permitted, secure);
        }
        if door.is_empty()
            && let Some(turned_away) = door.over(Instant::now())
        {
            tracing::info!(turned_away, "everybody is let in again");
        }
        if !door.is_empty() || taken >= ROOM {
            // Whoever is in comes first.
            yield_now().await;
        }
        taken = 0;
    }
    while let Some(permitted) = door.next() {
        admit(&worker, &listener, permitted, secure);
    }
    // What the kernel has accepted for us already would be reset when the socket closes: all of it, so not in the turns in
    // which the runtime lets tasks have their way.
    let Ok(socket) = socket.into_std() else { return };
    loop {
        let accepted = socket.accept().and_then(|(stream, address)| {
            stream.set_nonblocking(true)?;
            Ok((TcpStream::from_std(stream)?, address))
        });
        match accepted {
            Ok(accepted) => {
                if let Some(permitted) = permit(&worker, accepted) {
                    admit(&worker, &listener, permitted, secure);
                }
            }
            Err(error) if is_of_one(&error) => {}
            // Mostly that nothing waits any more.
            Err(_) => return,
        }
    }
}

/// A connection that counts.
type Permitted = (TcpStream, SocketAddr, Permit);

/// Counts a connection, if the limits allow it.
fn permit(worker: &Worker, (stream, address): (TcpStream, SocketAddr)) -> Option<Permitted> {
    let address = canonical(address);
    match worker.connections.admit(address.ip(), true) {
        Ok(permit) => Some((stream, address, permit)),
        Err(full) => {
            full.log(worker, address);
            None
        }
    }
}

/// Serves a connection.
fn admit(worker: &Rc<Worker>, listener: &Rc<Listener>, (stream, address, permit): Permitted, secure: bool) {
    let worker = worker.clone();
    listener.serve(|entered| accept::serve(worker, entered, stream, address, permit, secure));
}

/// `accept` fails for reasons of one connection, or because files or memory are short; then it would fail
/// again at once.
async fn refused(error: &io::Error) {
    if !is_of_one(error) {
        tracing::error!(%error, "a connection cannot be accepted; raise the open-file limit if this goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the next connection may be accepted all the same.
fn is_of_one(error: &io::Error) -> bool {
    let of_one =
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    of_one.contains(&error.kind())
}

/// Accepts nothing any more that comes by these, and returns them.
fn leave(worker: &Worker, spread: Duration, which: impl Fn(&Listener) -> bool) -> Vec<Rc<Listener>> {
    let listeners = worker.listeners.borrow();
    let leaves = |listener: &&Rc<Listener>| which(listener) && listener.drain.phase() < Phase::Draining;
    let leaving: Vec<_> = listeners.iter().filter(leaves).cloned().collect();
    leaving.iter().for_each(|listener| listener.drain.begin(spread));
    worker.entrances.borrow().iter().for_each(|entrance| entrance.turn_away());
    leaving
}

/// Lets what came by one listener end, and forgets it.
async fn part(worker: Rc<Worker>, listener: Rc<Listener>, limit: Duration) {
    finish(&worker, std::slice::from_ref(&listener), limit, Duration::ZERO).await;
    worker.entrances.borrow_mut().retain(|entrance| !entrance.remove(listener.id));
    worker.listeners.borrow_mut().retain(|one| one.id != listener.id);
}

/// Lets what runs end, then closes what is idle, but not before all have been told to go within `spread`. The listeners drain
/// already.
async fn finish(worker: &Worker, listeners: &[Rc<Listener>], limit: Duration, spread: Duration) {
    let running = || listeners.iter().map(|listener| listener.running()).sum::<usize>();
    let open = || listeners.iter().map(|listener| listener.open()).sum::<usize>();
    let until = Instant::now() + limit;
    let part = until - PART.min(limit / 4);
    let mut parted = false;
    let mut quiet_since = Instant::now() + spread;
    loop {
        // First of all the accept loops must take what the kernel has accepted for them.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if running() > 0 {
            quiet_since = quiet_since.max(Instant::now());
        }
        if !parted && Instant::now() >= part {
            parted = true;
            listeners.iter().for_each(|listener| listener.drain.enter(Phase::Parting));
            worker.partings.look(clock::now_nanos());
        }
        if open() == 0 || quiet_since.elapsed() >= QUIET || Instant::now() >= until {
            break;
        }
    }
    if running() > 0 {
        tracing::warn!(requests = running(), "drain is over: requests that still ran are cut");
    }
    listeners.iter().for_each(|listener| listener.drain.enter(Phase::Closing));
    // A moment for goodbyes: TLS close_notify, QUIC CONNECTION_CLOSE.
    let goodbyes = Instant::now() + Duration::from_millis(250);
    while Instant::now() < goodbyes && open() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    listeners.iter().for_each(|listener| listener.cut());
}
