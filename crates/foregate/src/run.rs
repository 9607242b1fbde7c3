//! From a loaded configuration to a running gateway, and from a signal to its orderly end.

use std::io;
use std::sync::Arc;
use std::thread;

use foregate_edge::{Gateway, Listening, Live};
use foregate_health::Monitor;
use foregate_routing::{Endpoint, Publisher};
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
    let (doubts, doubted) = mpsc::unbounded_channel();
    let gateway = match Gateway::start(live.clone(), diagnostics, doubts) {
        Ok(gateway) => gateway,
        Err(error) => return failed(error),
    };
    for listening in gateway.listeners() {
        say(format_args!("listening on {listening}"));
    }
    announce(gateway.listeners());
    runtime.block_on(control(&mut signals, gateway, &live, doubted))
}

/// The control thread's work: health while the gateway serves, then its end.
async fn control(
    signals: &mut Signals,
    gateway: Gateway,
    live: &Publisher<Live>,
    mut doubted: UnboundedReceiver<Arc<Endpoint>>,
) -> Exit {
    let current = live.load();
    let mut monitor = Monitor::new();
    monitor.follow(current.routing.pools().iter().cloned().zip(current.transports.iter().cloned()));
    // To the end: what runs in a drain may still meet a VM that hangs.
    tokio::task::spawn_local(async move {
        while let Some(endpoint) = doubted.recv().await {
            monitor.doubt(endpoint);
        }
        // The probes end with it.
        std::future::pending::<()>().await;
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
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called within a runtime.
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
