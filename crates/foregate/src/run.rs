//! From a loaded configuration to a running gateway, and from a signal to its orderly end.

use std::io;
use std::thread;

use foregate_edge::{Concern, Gateway, Listening, Live};
use foregate_health::{COMPARE, Monitor};
use foregate_routing::Publisher;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;

use crate::cli::{Exit, complain, say};
use crate::config::Loaded;
use crate::debugging;

/// Serves until a signal asks for the end. `announce` is called once, after everything listens.
///
/// The calling thread becomes the control thread: it probes the VMs and waits for signals, while the
/// gateway's own threads serve.
pub(crate) fn serve(loaded: Loaded, announce: impl FnOnce(&[Listening])) -> Exit {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(format_args!("the control thread cannot start: {error}")),
    };
    // From here on a signal is not lost: whoever reads "listening on" may send one at once.
    let mut signals = match runtime.block_on(async { Signals::new() }) {
        Ok(signals) => signals,
        Err(error) => return failed(format_args!("signals cannot be waited for: {error}")),
    };
    let live = Publisher::new(loaded.live);
    let diagnostics = match debugging::from_environment() {
        Ok(diagnostics) => diagnostics,
        Err(sentence) => return failed(sentence),
    };
    let (concerns, concerned) = mpsc::unbounded_channel();
    let gateway = match Gateway::start(live.clone(), diagnostics, concerns) {
        Ok(gateway) => gateway,
        Err(error) => return failed(error),
    };
    for listening in gateway.listeners() {
        say(format_args!("listening on {listening}"));
    }
    announce(gateway.listeners());
    runtime.block_on(control(&mut signals, gateway, &live, concerned))
}

/// The control thread's work: health while the gateway serves, then its end.
async fn control(
    signals: &mut Signals,
    gateway: Gateway,
    live: &Publisher<Live>,
    mut concerned: UnboundedReceiver<Concern>,
) -> Exit {
    let current = live.load();
    let mut monitor = Monitor::new();
    monitor.follow(current.routing.pools().iter().cloned().zip(current.transports.iter().cloned()));
    // To the end: what runs in a drain may still meet a VM that hangs.
    tokio::task::spawn_local(async move {
        let mut compare = tokio::time::interval(COMPARE);
        loop {
            tokio::select! {
                concern = concerned.recv() => match concern {
                    Some(Concern::Doubt(endpoint)) => monitor.doubt(endpoint),
                    Some(Concern::Wake(pool)) => monitor.wake(&pool),
                    // The probes would end with this.
                    None => std::future::pending().await,
                },
                _ = compare.tick() => monitor.compare(),
            }
        }
    });
    let name = signals.next().await;
    tracing::info!("{name}: draining, at most {:?}", current.settings.timeouts.drain);
    drop(current);

    // The drain blocks, and this thread has more to do: VMs are probed as long as requests run, and a
    // second signal must be heard.
    let (done, drained) = oneshot::channel();
    let drain = thread::Builder::new().name("drain".to_owned()).spawn(move || {
        gateway.drain();
        let _ = done.send(());
    });
    if let Err(error) = drain {
        return failed(format_args!("the drain cannot start: {error}"));
    }
    tokio::select! {
        drained = drained => match drained {
            Ok(()) => {
                tracing::info!("drained");
                Exit::Done
            }
            Err(_) => failed("the drain did not come to its end"),
        },
        name = signals.next() => {
            tracing::warn!("{name} again: ending at once");
            Exit::Failed
        }
    }
}

fn failed(why: impl std::fmt::Display) -> Exit {
    complain(format_args!("foregate: {why}"));
    Exit::Failed
}

/// The signals that ask for the end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
