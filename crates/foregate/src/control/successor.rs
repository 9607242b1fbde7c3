//! From one process to the next: what this one has from the one before, and what it leaves to the one after.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foregate_certs::Tickets;
use foregate_discovery::{Found, Target};
use foregate_edge::Live;
use foregate_exchange::clock;
use foregate_routing::{Endpoint, Memory, State};
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot::Sender;
use tokio::task::{JoinHandle, spawn_blocking};

use super::watch::Watching;
use super::{Ask, Control, Origin, Refused, Reply, Request, answered, complain_of, done, endpoints};
use crate::run::Told;
use crate::upgrade::{LookedUp, Remembered, Successor, Testament, Verdict};
use crate::{state, systemd};

/// How much longer than its drain a process may take to end.
const AFTER: Duration = Duration::from_secs(2);
/// What was found out of a VM so long ago is not believed.
const FRESH: Duration = Duration::from_secs(60);
/// How often it is kept.
const KEEP: u64 = 15;
const VERDICTS: &str = "verdicts.json";

/// A successor that makes ready.
pub(super) struct Raising {
    raised: JoinHandle<Result<Successor, String>>,
    pid: u32,
    pub(super) by: String,
    pub(super) reply: Option<Sender<Reply>>,
}

/// Waits until it is ready, or is not going to be.
pub(super) async fn raised(raising: &mut Option<Raising>) -> Result<Successor, String> {
    let Some(raising) = raising else { return std::future::pending().await };
    (&mut raising.raised).await.unwrap_or_else(|error| Err(error.to_string()))
}

impl Raising {
    /// It is not wanted any more: the service is to end.
    pub(super) fn give_up(&self) {
        if !self.raised.is_finished() {
            kill(self.pid, Signal::KILL);
        }
    }
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended is no trouble.
        _ = kill_process(pid, signal);
    }
}

/// The process that has taken over.
pub(crate) struct Heir {
    pid: u32,
    channel: Option<UnixStream>,
}

impl Heir {
    /// What this process is asked is for the other one, where operators are heard now.
    pub(super) fn is_asked(&self, ask: Ask) {
        match (ask.reply, ask.request) {
            (None, Request::Reload(_)) => self.tell(Told::Reload),
            (None, Request::Upgrade) => self.tell(Told::Upgrade),
            (reply, _) => {
                let message = format!("process {} serves by now: ask again, on a new connection", self.pid);
                answered(reply, Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, message)));
            }
        }
    }

    /// What this process was told is for the other one.
    pub(super) fn tell(&self, told: Told) {
        kill(
            self.pid,
            match told {
                Told::End(_) => Signal::TERM,
                Told::Reload => Signal::HUP,
                Told::Upgrade => Signal::USR2,
            },
        );
    }
}

/// Waits until the process that has taken over has ended.
pub(super) async fn lost(heir: &mut Option<Heir>) -> u32 {
    match heir {
        Some(Heir { pid, channel: Some(channel) }) => {
            closed(channel).await;
            *pid
        }
        _ => std::future::pending().await,
    }
}

/// The process before this one.
pub(crate) struct Predecessor {
    until: Instant,
    channel: Option<UnixStream>,
}

impl Predecessor {
    pub(super) fn for_at_most(drain_ms: u64) -> Predecessor {
        Predecessor { until: Instant::now() + Duration::from_millis(drain_ms) + AFTER, channel: None }
    }

    /// The other end of this is closed when it ends.
    pub(super) fn at(self, channel: std::os::unix::net::UnixStream) -> Option<Predecessor> {
        let channel = UnixStream::from_std(channel).ok()?;
        Some(Predecessor { channel: Some(channel), ..self })
    }

    /// Seconds it may still take.
    pub(super) fn left(&self) -> u64 {
        self.until.saturating_duration_since(Instant::now()).as_secs()
    }
}

/// Waits until it has ended.
pub(super) async fn gone(predecessor: &mut Option<Predecessor>) {
    let channel = predecessor.as_mut().and_then(|predecessor| predecessor.channel.as_mut());
    let Some(channel) = channel else { return std::future::pending().await };
    closed(channel).await;
}

async fn closed(channel: &mut UnixStream) {
    // Nothing is said any more; what a later version may say is not for us.
    while channel.read_u8().await.is_ok() {}
}

impl Control {
    /// Starts a successor.
    pub(super) async fn raise(&mut self, by: String, reply: Option<Sender<Reply>>) -> Option<Raising> {
        let refused = |message: String| Some(Refused::new(StatusCode::CONFLICT, message));
        let refusal = match (&self.origin, &self.predecessor) {
            _ if std::process::id() == 1 => refused(
                "this is process 1 of its container, which ends when it does: start another container instead"
                    .to_owned(),
            ),
            (Origin::Made, _) => {
                refused("this gateway was started from flags: restart it instead".to_owned())
            }
            (_, Some(predecessor)) => refused(format!(
                "the process before this one is still draining, for at most {} s; try again then",
                predecessor.left()
            )),
            _ => self.may_change().err(),
        };
        if let Some(refused) = refusal {
            answered(reply, Err(refused));
            return None;
        }
        // What the next process does not find there it cannot go back to.
        self.history.keep();
        let testament = self.testament();
        let Some(gateway) = &mut self.gateway else {
            let draining = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is draining");
            answered(reply, Err(draining));
            return None;
        };
        tracing::info!(by, "upgrade: a new process is started");
        // Its packets are its own from its first one on.
        gateway.share().await;
        let heritage =
            gateway.bequeath().map_err(|error| format!("the sockets cannot be handed over: {error}"));
        let admin = self.admin.bequeath();
        match heritage.and_then(|heritage| Ok((Successor::start()?, heritage))) {
            Ok((successor, heritage)) => {
                let pid = successor.pid();
                let raised = spawn_blocking(move || successor.prepare(testament, heritage, admin));
                Some(Raising { raised, pid, by, reply })
            }
            Err(reason) => {
                let refused = self.hand_over(Err(reason), &by).await;
                answered(reply, refused);
                None
            }
        }
    }

    /// Lets a successor take over. If that fails all is as it was.
    pub(super) async fn hand_over(&mut self, raised: Result<Successor, String>, by: &str) -> Reply {
        let taken = match raised {
            // This process was told to end meanwhile, and means it.
            Ok(successor) if self.gateway.is_none() => {
                let ended = spawn_blocking(|| successor.dismiss("the gateway is draining")).await;
                Err(ended.unwrap_or_else(|error| error.to_string()))
            }
            Ok(successor) => {
                let (pid, program) = (successor.pid(), successor.program.clone());
                let taken = spawn_blocking(|| successor.take_over()).await;
                taken.unwrap_or_else(|error| Err(error.to_string())).map(|held| (held, pid, program))
            }
            Err(reason) => Err(reason),
        };
        match taken {
            Ok((held, pid, program)) => {
                self.admin.hand_over();
                self.successor = Some(Heir { pid, channel: asynchronous(held) });
                systemd::main_is(pid);
                tracing::info!(by, pid, program, "upgrade: the new process serves");
                Ok(done(format!("process {pid} serves, this one, {}, drains", std::process::id())))
            }
            Err(reason) => {
                let Some(gateway) = &mut self.gateway else {
                    tracing::info!("upgrade: given up, since this process was told to end");
                    return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is draining"));
                };
                tracing::error!("upgrade: {reason}; this process goes on");
                complain_of(gateway.unshare().await);
                Err(Refused::new(
                    StatusCode::BAD_GATEWAY,
                    format!("{reason}\nThis process goes on as it was."),
                ))
            }
        }
    }

    /// The process before this one has gone.
    pub(super) async fn is_alone(&mut self) {
        self.predecessor = None;
        self.admin.is_alone();
        tracing::info!("upgrade: the process before this one has ended");
        if let Some(gateway) = &mut self.gateway {
            complain_of(gateway.unshare().await);
        }
    }

    fn testament(&self) -> Testament {
        let live = self.live.load();
        let mut testament = Testament::new(&self.running.written.files);
        testament.quic_secret = state::digits_of(&self.quic_secret);
        testament.ticket_keys = Tickets::shared().renew(Vec::new()).iter().map(state::ticket_line).collect();
        testament.overrides = self.overrides.said();
        testament.verdicts = found(&live);
        testament.memories = memories(&live);
        testament.looked_up = self.blueprint.found().map(looked_up).collect();
        testament.sticky = state::fresh_sticky_secret();
        testament.watched = self.watching.as_ref().map(Watching::served);
        testament.drain_ms = u64::try_from(live.settings.timeouts.drain.as_millis()).unwrap_or(u64::MAX);
        testament
    }

    /// Keeps what a process after a crash should know. Once a second.
    pub(super) fn keep_what_is_known(&mut self) {
        if !matches!(self.origin, Origin::File(_)) || self.gateway.is_none() {
            return;
        }
        let uptime = self.started.1.elapsed().as_secs();
        if !uptime.is_multiple_of(KEEP) {
            return;
        }
        self.history.keep();
        let folder = &self.running.state_dir;
        let tickets = Tickets::shared().renew(Vec::new());
        if tickets != state::ticket_keys(folder) {
            state::keep_ticket_keys(folder, &tickets);
        }
        let down: Vec<Verdict> = found(&self.live.load()).into_iter().filter(|one| !one.up).collect();
        let file = folder.join(VERDICTS);
        if down.is_empty() {
            _ = fs::remove_file(file);
        } else if let Ok(text) = serde_json::to_vec(&Kept { time: now(), verdicts: down }) {
            // What cannot be kept is found out again.
            _ = state::write(&file, &text);
        }
    }
}

fn asynchronous(channel: std::os::unix::net::UnixStream) -> Option<UnixStream> {
    channel.set_nonblocking(true).ok()?;
    UnixStream::from_std(channel).ok()
}

fn looked_up(found: Found) -> LookedUp {
    let members = found.members.iter().map(|one| (one.address, one.weight, one.tier)).collect();
    LookedUp { pool: found.pool.to_string(), members }
}

/// The VMs that the process before had looked up.
pub(super) fn found_before(testament: &Testament) -> impl Iterator<Item = Found> {
    let target = |&(address, weight, tier): &_| Target { address, weight, tier };
    testament.looked_up.iter().filter(|one| !one.members.is_empty()).map(move |one| Found {
        pool: one.pool.as_str().into(),
        members: one.members.iter().map(target).collect(),
    })
}

/// Verdicts as they are kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    time: u64,
    verdicts: Vec<Verdict>,
}

/// What was found out of those VMs that are probed.
fn found(live: &Live) -> Vec<Verdict> {
    let verdict = |endpoint: &Arc<Endpoint>| Verdict {
        pool: endpoint.pool.to_string(),
        address: endpoint.address.to_string(),
        up: endpoint.vitals.state() == State::Up,
    };
    let known = probed(live).filter(|endpoint| endpoint.vitals.state() != State::Unknown);
    known.map(verdict).collect()
}

fn memories(live: &Live) -> Vec<Remembered> {
    let now = clock::now_nanos();
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let remembered = |endpoint: &Arc<Endpoint>| {
        let memory = endpoint.vitals.memory(now);
        Remembered {
            pool: endpoint.pool.to_string(),
            address: endpoint.address.to_string(),
            aside_ms: memory.aside.map(milliseconds),
            ejections: memory.ejections,
            latency_s: memory.latency,
            warming_ms: memory.warming.map(milliseconds),
        }
    };
    endpoints(live).map(remembered).collect()
}

/// Goes on with what the process before knew of each.
pub(super) fn remember(live: &Live, memories: &[Remembered]) {
    let now = clock::now_nanos();
    let known: HashMap<(&str, &str), &Remembered> =
        memories.iter().map(|one| ((one.pool.as_str(), one.address.as_str()), one)).collect();
    for endpoint in endpoints(live) {
        if let Some(one) = known.get(&(&*endpoint.pool, endpoint.address.to_string().as_str())) {
            let memory = Memory {
                aside: one.aside_ms.map(Duration::from_millis),
                ejections: one.ejections,
                latency: one.latency_s,
                warming: one.warming_ms.map(Duration::from_millis),
            };
            endpoint.vitals.remember(&memory, now);
        }
    }
}

/// Those whose state somebody finds out, so that it can change.
fn probed(live: &Live) -> impl Iterator<Item = &Arc<Endpoint>> {
    let pools = live.routing.pools().iter().filter(|pool| pool.health.is_some());
    pools.flat_map(|pool| pool.members()).map(|member| &member.endpoint)
}

/// What is known of VMs by the process before, or was shortly before a crash.
pub(super) fn verdicts(testament: Option<&Testament>, state_dir: Option<&Path>) -> Vec<Verdict> {
    if let Some(testament) = testament {
        return testament.verdicts.clone();
    }
    let text = state_dir.and_then(|folder| fs::read(folder.join(VERDICTS)).ok()).unwrap_or_default();
    match serde_json::from_slice::<Kept>(&text) {
        Ok(kept) if now().saturating_sub(kept.time) < FRESH.as_secs() => kept.verdicts,
        _ => Vec::new(),
    }
}

/// Believes what was found out, of those that will be probed and so can change.
pub(super) fn believe(live: &Live, verdicts: &[Verdict]) {
    let known: HashMap<(&str, &str), bool> =
        verdicts.iter().map(|one| ((one.pool.as_str(), one.address.as_str()), one.up)).collect();
    for endpoint in probed(live) {
        if let Some(up) = known.get(&(&*endpoint.pool, endpoint.address.to_string().as_str())) {
            endpoint.vitals.set_state(if *up { State::Up } else { State::Down });
        }
    }
}

pub(super) fn quic_secret(testament: Option<&Testament>, state_dir: Option<&Path>) -> [u8; 64] {
    let inherited = testament.and_then(|testament| state::bytes_of(&testament.quic_secret));
    inherited.unwrap_or_else(|| state::quic_secret(state_dir))
}

/// Goes on with the keys of session tickets that there are.
pub(super) fn renew_tickets(testament: Option<&Testament>, state_dir: Option<&Path>) {
    let inherited = testament.into_iter().flat_map(|testament| &testament.ticket_keys);
    let inherited = inherited.filter_map(|line| state::ticket_key(line));
    let kept = state_dir.map(state::ticket_keys).unwrap_or_default();
    let keys = Tickets::shared().renew(inherited.chain(kept).collect());
    if let Some(folder) = state_dir {
        state::keep_ticket_keys(folder, &keys);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
