//! From a loaded configuration to a running gateway, and from a signal to its orderly end.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use foregate_discovery::{Discovery, Found, NoResolver};
use foregate_edge::{Concern, Gateway, Listening, Live};
use foregate_health::{COMPARE, Monitor};
use foregate_routing::Publisher;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::blueprint::Blueprint;
use crate::cli::{Exit, complain, say};
use crate::config::Loaded;
use crate::debugging;

/// So long the start waits for what is looked up.
const FIRST_LOOKUPS: Duration = Duration::from_secs(3);

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
    let control = runtime.block_on(async { Control::start(live.clone(), loaded.blueprint).await });
    let control = match control {
        Ok(control) => control,
        Err(error) => return failed(error),
    };
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
    runtime.block_on(attend(&mut signals, gateway, control, concerned))
}

/// What the control thread looks after: who is there, and how they are.
struct Control {
    live: Publisher<Live>,
    monitor: Monitor,
    /// Where VMs are looked up.
    lookups: Option<Lookups>,
}

struct Lookups {
    blueprint: Blueprint,
    found: UnboundedReceiver<Found>,
    _discovery: Discovery,
}

impl Control {
    /// Looks up whom the configuration does not name, and begins to probe.
    async fn start(live: Publisher<Live>, blueprint: Option<Blueprint>) -> Result<Control, NoResolver> {
        let lookups = match blueprint {
            Some(blueprint) => {
                let (sender, found) = mpsc::unbounded_channel();
                let mut discovery = Discovery::new(sender)?;
                discovery.follow(blueprint.looked_up());
                Some(Lookups { blueprint, found, _discovery: discovery })
            }
            None => None,
        };
        let mut control = Control { live, monitor: Monitor::new(), lookups };
        // Whoever asks first is to find VMs; but a DNS server that is silent keeps nobody else from being served.
        let mut missing: HashSet<Arc<str>> =
            control.lookups.iter().flat_map(|l| l.blueprint.looked_up()).map(|(pool, _)| pool).collect();
        let first = async {
            while !missing.is_empty() {
                let found = control.found().await;
                missing.remove(&found.pool);
                control.take_in(&found);
            }
        };
        _ = timeout(FIRST_LOOKUPS, first).await;
        control.follow();
        Ok(control)
    }

    /// Probes those there are now.
    fn follow(&mut self) {
        let live = self.live.load();
        self.monitor.follow(live.routing.pools().iter().cloned().zip(live.transports.iter().cloned()));
    }

    /// Waits for VMs that were looked up.
    async fn found(&mut self) -> Found {
        let found = match &mut self.lookups {
            Some(lookups) => lookups.found.recv().await,
            None => None,
        };
        match found {
            Some(found) => found,
            None => std::future::pending().await,
        }
    }

    fn take_in(&mut self, found: &Found) {
        if let Some(Lookups { blueprint, .. }) = &mut self.lookups {
            blueprint.take_in(found);
            self.live.publish(blueprint.next(&self.live.load()));
        }
    }

    /// Never ends.
    async fn attend(mut self, mut concerned: UnboundedReceiver<Concern>) {
        let mut compare = tokio::time::interval(COMPARE);
        loop {
            tokio::select! {
                concern = concerned.recv() => match concern {
                    Some(Concern::Doubt(endpoint)) => self.monitor.doubt(endpoint),
                    Some(Concern::Wake(pool)) => self.monitor.wake(&pool),
                    // The probes would end with this.
                    None => std::future::pending().await,
                },
                found = self.found() => {
                    self.take_in(&found);
                    self.follow();
                }
                _ = compare.tick() => self.monitor.compare(),
            }
        }
    }
}

/// The control thread's work: health while the gateway serves, then its end.
async fn attend(
    signals: &mut Signals,
    gateway: Gateway,
    control: Control,
    concerned: UnboundedReceiver<Concern>,
) -> Exit {
    let live = control.live.clone();
    // To the end: what runs in a drain may still meet a VM that hangs.
    tokio::task::spawn_local(control.attend(concerned));
    let name = signals.next().await;
    tracing::info!("{name}: draining, at most {:?}", live.load().settings.timeouts.drain);

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

/// Says why it could not be done.
pub(crate) fn failed(why: impl std::fmt::Display) -> Exit {
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
