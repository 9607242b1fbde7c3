//! From a loaded configuration to a running gateway, and from a signal to its orderly end.

use std::io;
use std::path::Path;

use foregate_edge::{Gateway, Listening};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Exit, complain, say};
use crate::config::Loaded;
use crate::control::{Control, Origin, Watch};
use crate::self_signed::SelfSigned;
use crate::state::StickySecret;
use crate::systemd::Given;
use crate::upgrade::Inherited;
use crate::{control, debugging, systemd};

/// Serves until a signal asks for the end. `watch`: whose files to follow. `inherited`: from the process that this one is to
/// replace. `given`: from a service manager. `announce` is called once, after everything listens.
///
/// The calling thread becomes the control thread, while the gateway's own threads serve.
pub(crate) fn serve(
    mut loaded: Loaded,
    origin: Origin,
    watch: Option<Watch>,
    mut inherited: Option<Inherited>,
    given: Given,
    announce: impl FnOnce(&[Listening]),
) -> Exit {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(format_args!("the control thread cannot start: {error}")),
    };
    // From here on a signal is not lost: whoever reads "listening on" may send one at once.
    let signals = match runtime.block_on(async { Signals::new() }) {
        Ok(signals) => signals,
        Err(error) => return failed(format_args!("signals cannot be waited for: {error}")),
    };
    let diagnostics = match debugging::from_environment() {
        Ok(diagnostics) => diagnostics,
        Err(sentence) => return failed(sentence),
    };
    let (made, sticky) = (std::mem::take(&mut loaded.self_signed), loaded.sticky.take());
    let (state_dir, admin) = (loaded.state_dir.clone(), loaded.admin.clone());
    let keeps = matches!(origin, Origin::File(_));
    let started = runtime.block_on(Control::start(loaded, origin, inherited.as_mut()));
    let (mut control, live, concerns, inbox) = match started {
        Ok(started) => started,
        Err(sentence) => return unable(inherited, sentence),
    };
    let heritage = inherited.as_mut().and_then(|inherited| inherited.heritage.take());
    given.complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
    let secret = control.quic_secret();
    let mut gateway = match Gateway::start(live, diagnostics, concerns, secret, heritage, given.sockets) {
        Ok(gateway) => gateway,
        Err(error) => return unable(inherited, error),
    };
    let mut predecessor = None;
    if let Some(mut inherited) = inherited {
        let orphaned = inherited.ready();
        let failed = runtime.block_on(gateway.take_over());
        if !orphaned && !failed.is_empty() {
            return unable(Some(inherited), failed.join("; "));
        }
        control::complain_of(failed);
        // Where the process before has gone there is nobody else.
        predecessor = inherited.done().filter(|_| !orphaned);
        if predecessor.is_none() {
            control::complain_of(runtime.block_on(gateway.unshare()));
        }
    }
    for listening in gateway.listeners() {
        say(format_args!("listening on {listening}"));
    }
    announce(gateway.listeners());
    if keeps {
        keep(&made, sticky.as_ref(), &state_dir);
    }
    let exit = runtime.block_on(async {
        if let Err(sentence) = control.serves(gateway, &admin, predecessor, given.store) {
            return failed(sentence);
        }
        systemd::ready();
        if let Some(watch) = watch {
            control.watch(watch);
        }
        control.attend(signals, inbox).await
    });
    // A file that cannot be read for now keeps nobody here.
    runtime.shutdown_background();
    exit
}

/// Says why it cannot start, to the process before too.
fn unable(inherited: Option<Inherited>, why: impl std::fmt::Display) -> Exit {
    if let Some(inherited) = inherited {
        inherited.refuse(&why.to_string());
    }
    failed(why)
}

/// Keeps what was made just now: certificates, so that nobody has to trust new ones after a restart, and what sticky cookies
/// are made with, so that visitors find their VM.
pub(crate) fn keep(certificates: &[SelfSigned], sticky: Option<&StickySecret>, state_dir: &Path) {
    let complain = |what: &str, error: io::Error| {
        tracing::warn!(
            "{what}: {} cannot be written ({error}); let this user write there, or name another folder as \
             server.state_dir",
            state_dir.display()
        );
    };
    for certificate in certificates {
        if let Err(error) = certificate.keep() {
            let hosts = certificate.hosts.join(", ");
            complain(
                &format!(
                    "the self-signed certificate for {hosts} is not kept, and the next start makes another one"
                ),
                error,
            );
        }
    }
    if let Some(Err(error)) = sticky.map(StickySecret::keep) {
        complain("sticky cookies are valid until the next start only", error);
    }
}

/// Says why it could not be done.
pub(crate) fn failed(why: impl std::fmt::Display) -> Exit {
    complain(format_args!("foregate: {why}"));
    Exit::Failed
}

/// The signals the program waits for.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

/// Which of them came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// To end; with the signal's name.
    End(&'static str),
    /// To follow the configuration.
    Reload,
    /// To have another program take over.
    Upgrade,
}

impl Signals {
    /// Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End("SIGTERM"),
            _ = self.interrupt.recv() => Told::End("SIGINT"),
            _ = self.hangup.recv() => Told::Reload,
            _ = self.user2.recv() => Told::Upgrade,
        }
    }
}
