//! The control thread: one inbox, one order of events, one publisher.
//!
//! Whatever changes what is served comes through here, one after the other: reloads and rollbacks (`reload`), what
//! operators say of backends (`overrides`), VMs that were looked up. What takes long, which is reading a configuration, is
//! done beside; meanwhile nothing else changes, but VMs that hang are still looked at.

mod ask;
mod diff;
mod history;
mod overrides;
mod reload;
mod renewal;
mod report;
mod successor;
mod watch;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use foregate_certs::Stapler;
use foregate_certs::acme::{Challenges, Keeper, Plan};
use foregate_discovery::{Discovery, Found};
use foregate_edge::{Concern, Gateway, Live};
use foregate_exchange::clock;
use foregate_health::{COMPARE, Monitor};
use foregate_routing::{Duty, Endpoint, Publisher};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Interval, interval, sleep_until, timeout};

use crate::admin::Server;
use crate::blueprint::Blueprint;
use crate::cli::Exit;
use crate::config::{Admin, Loaded};
use crate::run::{Signals, Told, failed};
use crate::systemd::Store;
use crate::upgrade::Inherited;
use crate::{state, systemd};

pub(crate) use self::ask::{Ask, Refused, Reply, Request};
use self::history::{History, Written};
pub(crate) use self::overrides::Overrides;
pub(crate) use self::reload::Terms;
use self::reload::{Job, Probation};
use self::renewal::{Pairs, Renewal};
use self::successor::{Heir, Predecessor, Raising};
pub(crate) use self::watch::Watch;
use self::watch::Watching;

/// So long the start waits for what is looked up.
const FIRST_LOOKUPS: Duration = Duration::from_secs(3);

/// For so long operators still find a process that has nothing else to do.
const LATE: Duration = Duration::from_millis(100);

/// For so long after it was taken over the process before this one may still be reached by somebody new.
const BESIDE: Duration = Duration::from_secs(5);

/// Where the configuration came from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    File(PathBuf),
    /// From the command line; there is nothing to reload.
    Made,
}

/// Everything the control thread knows.
pub(crate) struct Control {
    live: Publisher<Live>,
    /// None once it drains.
    gateway: Option<Gateway>,
    monitor: Monitor,
    blueprint: Blueprint,
    discovery: Option<Discovery>,
    /// Where discovery tells.
    finds: UnboundedSender<Found>,
    overrides: Overrides,
    origin: Origin,
    running: Running,
    history: History,
    probation: Option<Probation>,
    /// None once it drains.
    watching: Option<Watching>,
    pairs: Pairs,
    /// None once it drains.
    renewal: Option<Renewal>,
    /// What an authority is to issue; taken by who sees to it, once there is one.
    plan: Option<Plan>,
    /// None before it serves, and once it drains.
    keeper: Option<Keeper>,
    stapler: Option<Stapler>,
    /// Second by second, the requests answered so far, and those of them with a 5xx.
    answers: VecDeque<(u64, u64)>,
    admin: Server,
    store: Store,
    /// What clients are promised with.
    quic_secret: [u8; 64],
    /// The process before this one, while it drains.
    predecessor: Option<Predecessor>,
    /// Where another process has taken over.
    successor: Option<Heir>,
    /// The inbox, for those of us who ask too.
    asks: UnboundedSender<Ask>,
    /// Snapshots that workers may still hold: it takes time to give back a large one, and here nobody waits for that.
    old: Vec<Arc<Live>>,
    started: (SystemTime, Instant),
}

/// What is served.
#[derive(Debug)]
struct Running {
    written: Written,
    /// In the history.
    number: u64,
    state_dir: PathBuf,
    /// What the file says that this process cannot take up any more.
    waiting: Vec<String>,
}

/// What the loop waits for beside its own.
pub(crate) struct Inbox {
    pub(crate) asks: UnboundedReceiver<Ask>,
    pub(crate) concerned: UnboundedReceiver<Concern>,
    pub(crate) found: UnboundedReceiver<Found>,
}

impl Control {
    /// Begins to look after what is loaded: looks up whom the configuration does not name, probes, and listens to operators.
    /// Serves nothing yet.
    ///
    /// # Errors
    /// A sentence on what cannot be.
    pub(crate) async fn start(
        loaded: Loaded,
        origin: Origin,
        inherited: Option<&mut Inherited>,
    ) -> Result<(Control, Publisher<Live>, UnboundedSender<Concern>, Inbox), String> {
        let (testament, admin) = match inherited {
            Some(Inherited { testament, admin, .. }) => (Some(&*testament), admin.take()),
            None => (None, None),
        };
        let (asks, asked) = mpsc::unbounded_channel();
        let (finds, found) = mpsc::unbounded_channel();
        let (concerns, concerned) = mpsc::unbounded_channel();
        let keeps = matches!(origin, Origin::File(_)).then(|| loaded.state_dir.clone());
        let quic_secret = successor::quic_secret(testament, keeps.as_deref());
        successor::renew_tickets(testament, keeps.as_deref());
        let verdicts = successor::verdicts(testament, keeps.as_deref());
        let admin = Server::new(asks.clone(), admin);
        let live = Publisher::new(loaded.live);
        let history = History::open(&loaded.state_dir);
        let written = Written::new(loaded.files);
        if testament.is_none() && history.is_refused(&written) {
            tracing::warn!(
                "this configuration was rolled back before: it is served now, since at a start the file is the truth"
            );
        }
        let running = Running { written, number: 0, state_dir: loaded.state_dir, waiting: Vec::new() };
        let mut control = Control {
            live: live.clone(),
            gateway: None,
            monitor: Monitor::new(),
            blueprint: loaded.blueprint,
            discovery: None,
            finds,
            overrides: testament.map(|testament| Overrides::heard(&testament.overrides)).unwrap_or_default(),
            origin,
            running,
            history,
            probation: None,
            watching: None,
            pairs: Rc::new(RefCell::new(loaded.pairs.into())),
            renewal: None,
            plan: loaded.plan,
            keeper: None,
            stapler: None,
            answers: VecDeque::new(),
            admin,
            store: Store::default(),
            quic_secret,
            predecessor: testament.map(|testament| Predecessor::for_at_most(testament.drain_ms)),
            successor: None,
            asks,
            old: Vec::new(),
            started: (SystemTime::now(), Instant::now()),
        };
        let mut inbox = Inbox { asks: asked, concerned, found };
        control.look_up()?;
        // Whoever asks first is to find VMs; but a DNS server that is silent keeps nobody else from being served.
        let mut missing: HashSet<Arc<str>> = control.blueprint.looked_up().map(|(pool, _)| pool).collect();
        for known in testament.into_iter().flat_map(successor::found_before) {
            missing.remove(&known.pool);
            control.take_in(&known);
        }
        let first = async {
            while !missing.is_empty() {
                let Some(found) = inbox.found.recv().await else { break };
                missing.remove(&found.pool);
                control.take_in(&found);
            }
        };
        _ = timeout(FIRST_LOOKUPS, first).await;
        if control.overrides.has_weights() {
            control.rebuild();
        }
        successor::believe(&control.live.load(), &verdicts);
        if let Some(testament) = testament {
            successor::remember(&control.live.load(), &testament.memories);
        }
        control.follow();
        Ok((control, live, concerns, inbox))
    }

    pub(crate) fn quic_secret(&self) -> &[u8; 64] {
        &self.quic_secret
    }

    /// The gateway serves; from now on operators are heard. `predecessor` ends with the process before this one. `store`
    /// is where its sockets are kept.
    ///
    /// # Errors
    /// Operators cannot be heard, although the file says where.
    pub(crate) fn serves(
        &mut self,
        gateway: Gateway,
        admin: &Admin,
        predecessor: Option<UnixStream>,
        mut store: Store,
    ) -> Result<(), String> {
        store.keep(gateway.accepting());
        self.store = store;
        self.gateway = Some(gateway);
        // One that has taken over must not end for less than that it cannot serve.
        let succeeds = self.predecessor.is_some();
        self.predecessor = self.predecessor.take().zip(predecessor).and_then(|(p, channel)| p.at(channel));
        match self.admin.open(admin) {
            Err(reason) if succeeds => tracing::error!("this gateway cannot be administrated: {reason}"),
            opened => opened?,
        }
        if self.predecessor.is_none() {
            self.admin.is_alone();
        }
        self.remember_admin();
        if matches!(self.origin, Origin::File(_)) {
            self.renewal = Some(Renewal::begin(self.pairs.clone(), self.live.clone(), self.asks.clone()));
            // An authority may still find the process before this one for a moment.
            let pause = if succeeds { BESIDE } else { Duration::ZERO };
            let keeper = Keeper::begin(Challenges::shared(), state::write, pause);
            keeper.follow(self.plan.take(), false);
            self.keeper = Some(keeper);
            let live = self.live.clone();
            let folder = self.running.state_dir.join("ocsp");
            let shown = move || live.load().certificates.wanting_word();
            self.stapler = Some(Stapler::begin(folder, state::write, shown));
        }
        self.running.number = match self.origin {
            Origin::File(_) => self.history.add(&self.running.written, "start", "start"),
            Origin::Made => 0,
        };
        Ok(())
    }

    /// Those who look for this gateway find it although its file names another place by then.
    fn remember_admin(&self) {
        if matches!(self.origin, Origin::File(_)) {
            // Where that cannot be kept they have to say where it is.
            _ = state::write(&self.running.state_dir.join(state::ADMIN), self.admin.place().as_bytes());
        }
    }

    /// Watches the files it was made of, and reloads when they change.
    pub(crate) fn watch(&mut self, watch: Watch) {
        self.watching = Some(Watching::begin(watch, self.asks.clone()));
    }

    /// Looks after everything until a signal asks for the end, and then until that has come.
    pub(crate) async fn attend(mut self, mut signals: Signals, mut inbox: Inbox) -> Exit {
        let mut compare = interval(COMPARE);
        let mut tidy = interval(Duration::from_secs(1));
        let mut watchdog = systemd::watchdog().map(interval);
        let mut job: Option<Job> = None;
        let mut raising: Option<Raising> = None;
        let mut later: Vec<Ask> = Vec::new();
        let mut drained: Option<oneshot::Receiver<()>> = None;
        let mut told_to_end = false;
        loop {
            let due = self.probation.as_ref().map(|probation| probation.until.into());
            tokio::select! {
                concern = inbox.concerned.recv() => match concern {
                    Some(Concern::Doubt(endpoint)) => self.monitor.doubt(endpoint),
                    Some(Concern::Wake(pool)) => self.monitor.wake(&pool),
                    // The workers have gone; the end is near.
                    None => tokio::time::sleep(Duration::from_secs(1)).await,
                },
                Some(ask) = inbox.asks.recv(), if job.is_none() || self.successor.is_some() => match (&self.successor, &ask.request) {
                    (Some(heir), _) => heir.is_asked(ask),
                    // Who knows whose change that would be.
                    (None, request) if raising.is_some() && request.changes() => later.push(ask),
                    (None, Request::Upgrade) => raising = self.raise(ask.by, ask.reply).await,
                    _ => job = self.begin(ask),
                },
                raised = successor::raised(&mut raising), if raising.is_some() => {
                    if let Some(Raising { by, reply, .. }) = raising.take() {
                        let handed_over = self.hand_over(raised, &by).await;
                        // What came meanwhile is not for this process any more.
                        while let Some(heir) = &self.successor
                            && let Ok(told) = timeout(Duration::ZERO, signals.next()).await
                        {
                            heir.tell(told);
                        }
                        // In the order in which they came.
                        while let Ok(ask) = inbox.asks.try_recv() {
                            later.push(ask);
                        }
                        for ask in later.drain(..) {
                            match &self.successor {
                                Some(heir) => heir.is_asked(ask),
                                None => _ = self.asks.send(ask),
                            }
                        }
                        answered(reply, handed_over);
                        if self.successor.is_some() && drained.is_none() {
                            match self.drain("upgrade", true) {
                                Ok(done) => drained = Some(done),
                                Err(error) => return failed(format_args!("the drain cannot start: {error}")),
                            }
                        }
                    }
                }
                pid = successor::lost(&mut self.successor), if self.successor.is_some() => {
                    self.successor = None;
                    tracing::error!(pid, "the process that has taken over has ended; this one only finishes what it has begun");
                }
                () = successor::gone(&mut self.predecessor), if self.predecessor.is_some() => self.is_alone().await,
                loaded = reload::loaded(&mut job), if job.is_some() => {
                    if let Some(job) = job.take() {
                        self.finish(job, loaded).await;
                    }
                }
                Some(found) = inbox.found.recv(), if job.is_none() && raising.is_none() => {
                    self.take_in(&found);
                    self.follow();
                }
                () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() && job.is_none() && raising.is_none() => {
                    job = self.go_back();
                }
                _ = compare.tick() => self.monitor.compare(),
                _ = tidy.tick() => self.tidy(),
                () = tick(&mut watchdog) => systemd::alive(),
                told = signals.next() => match (told, &drained) {
                    (Told::Reload, _) => self.ask("SIGHUP", Request::Reload(Terms::default())),
                    (Told::Upgrade, _) => self.ask("SIGUSR2", Request::Upgrade),
                    (Told::End(name), None) => {
                        told_to_end = true;
                        raising.iter().for_each(Raising::give_up);
                        match self.drain(name, false) {
                            Ok(done) => drained = Some(done),
                            Err(error) => return failed(format_args!("the drain cannot start: {error}")),
                        }
                    }
                    (Told::End(name), Some(_)) if told_to_end => {
                        tracing::warn!("{name} again: ending at once");
                        return Exit::Failed;
                    }
                    (Told::End(name), Some(_)) => {
                        told_to_end = true;
                        tracing::info!("{name}: draining already; once more ends it at once");
                    }
                },
                done = over(&mut drained), if job.is_none() => {
                    self.send_on(&mut inbox).await;
                    return match done {
                        Ok(()) => {
                            tracing::info!("drained");
                            Exit::Done
                        }
                        Err(_) => failed("the drain did not come to its end"),
                    };
                }
            }
        }
    }

    /// Whoever has come to this process at its very end is told where to go.
    async fn send_on(&self, inbox: &mut Inbox) {
        let Some(heir) = &self.successor else { return };
        let late = async {
            while let Some(ask) = inbox.asks.recv().await {
                heir.is_asked(ask);
            }
        };
        // Connections are read, and answers written, beside this.
        _ = timeout(LATE, late).await;
    }

    fn ask(&self, by: &str, request: Request) {
        _ = self.asks.send(Ask { request, by: by.to_owned(), reply: None });
    }

    /// The drain blocks, and this thread has more to do: VMs are probed as long as requests run, and a second signal must be
    /// heard.
    fn drain(&mut self, name: &str, handed_over: bool) -> std::io::Result<oneshot::Receiver<()>> {
        let (done, drained) = oneshot::channel();
        // Where another process is the service by now that goes on.
        if !handed_over {
            systemd::stopping();
        }
        tracing::info!("{name}: draining, at most {:?}", self.live.load().settings.timeouts.drain);
        let gateway = self.gateway.take();
        (self.watching, self.renewal, self.keeper, self.stapler) = (None, None, None, None);
        thread::Builder::new().name("drain".to_owned()).spawn(move || {
            gateway.into_iter().for_each(|gateway| gateway.drain(handed_over));
            _ = done.send(());
        })?;
        Ok(drained)
    }

    /// Does what is asked, or begins with what takes longer.
    fn begin(&mut self, ask: Ask) -> Option<Job> {
        let Ask { request, by, reply } = ask;
        let answer = match request {
            Request::Status => Ok(self.status()),
            Request::Sites => Ok(self.sites()),
            Request::Pools => Ok(self.pools()),
            Request::Pool(name) => self.pool(&name),
            Request::Certificates => Ok(self.certificates()),
            Request::Workers => Ok(self.workers()),
            Request::Connections => Ok(self.connections()),
            Request::Config => Ok(self.config()),
            Request::History => Ok(self.history.to_json(self.running.number)),
            Request::Entry(number) => self.entry(number),
            Request::Diff(before, after) => self.diff(before, after),
            Request::Duty { pool, backend, duty } => self.set_duty(&pool, &backend, duty, &by),
            Request::Weight { pool, backend, weight } => self.set_weight(&pool, &backend, weight, &by),
            Request::Confirm => self.confirm(&by),
            // Done before, for it takes time.
            Request::Upgrade => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the upgrade was lost")),
            Request::Validate(text) => return self.validate(text, reply),
            Request::Reload(terms) => return self.reload(terms, by, reply),
            Request::Put { text, save, terms } => return self.put(text, save, terms, by, reply),
            Request::Renew => return self.renew(by, reply),
            Request::Rollback(to) => return self.roll_back(to, by, reply),
        };
        answered(reply, answer);
        None
    }

    /// Looks up those pools that say so.
    fn look_up(&mut self) -> Result<(), String> {
        if self.discovery.is_none() && self.blueprint.looked_up().next().is_some() {
            let discovery = Discovery::new(self.finds.clone()).map_err(|error| error.to_string())?;
            self.discovery = Some(discovery);
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.follow(self.blueprint.looked_up());
        }
        Ok(())
    }

    /// Probes those there are now, and has them do what operators have said.
    fn follow(&mut self) {
        let live = self.live.load();
        self.monitor.follow(live.routing.pools().iter().cloned().zip(live.transports.iter().cloned()));
        for pool in live.routing.pools() {
            for member in pool.members() {
                let (duty, reason) = self.duty_of(pool, member);
                self.monitor.instruct(&member.endpoint, duty, reason);
            }
        }
    }

    fn take_in(&mut self, found: &Found) {
        self.blueprint.take_in(found);
        self.rebuild();
    }

    /// Publishes who is there now, and what they are given.
    fn rebuild(&mut self) {
        let next = self.blueprint.next(&self.live.load(), &self.overrides);
        self.publish(next);
        if let Some(gateway) = &self.gateway {
            gateway.look();
        }
    }

    /// What is served from now on, once the workers look. Those it does not name any more get nothing, and what they have begun ends in time.
    fn publish(&mut self, next: Live) {
        let before = self.live.load();
        let next = self.live.publish(next);
        let stay: HashSet<u64> = endpoints(&next).map(|endpoint| endpoint.id).collect();
        for gone in endpoints(&before).filter(|endpoint| !stay.contains(&endpoint.id)) {
            gone.vitals.set_duty(Duty::Drain, clock::now_nanos());
        }
        self.old.push(before);
    }

    /// Once a second.
    fn tidy(&mut self) {
        self.keep_what_is_known();
        self.guard();
        self.old.retain(|live| Arc::strong_count(live) > 1);
        if let Some(gateway) = &mut self.gateway {
            gateway.tidy();
        }
    }
}

/// Never, where nobody wants to hear it.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => _ = interval.tick().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a drain, if there is one.
async fn over(drained: &mut Option<oneshot::Receiver<()>>) -> Result<(), oneshot::error::RecvError> {
    match drained {
        Some(drained) => drained.await,
        None => std::future::pending().await,
    }
}

/// What workers could not do, where nobody waits to hear it.
pub(crate) fn complain_of(complaints: Vec<String>) {
    for complaint in complaints {
        tracing::error!("a worker does not listen as it should: {complaint}");
    }
}

fn answered(reply: Option<oneshot::Sender<Reply>>, answer: Reply) {
    match reply {
        // Who does not wait any more does not want to know.
        Some(reply) => _ = reply.send(answer),
        None => {
            if let Err(refused) = answer {
                tracing::error!("{}", refused.message);
            }
        }
    }
}

fn endpoints(live: &Live) -> impl Iterator<Item = &Arc<Endpoint>> {
    live.routing.pools().iter().flat_map(|pool| pool.members()).map(|member| &member.endpoint)
}

/// An answer that only says that it is done.
fn done(what: impl Into<String>) -> Value {
    json!({ "done": what.into() })
}
