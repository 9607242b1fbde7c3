//! Sees to it that there is a certificate for every site in time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foregate_exchange::sparing::Sparing;
use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, Id, JoinSet, spawn_local};
use tokio::time::sleep;

use super::account::Client;
use super::{
    Challenges, Demand, Keep, Plan, Settings, Standing, Trouble, Wanted, account, ask, order, schedule,
};
use crate::{Certificate, Look, look_at};

/// Orders and questions at a time.
const AT_A_TIME: usize = 4;
/// Certificates that visitors wait for and that are not there yet.
const ON_DEMAND: usize = 100;
/// For how long a name is refused that is not allowed, and a certificate that is there is not renewed.
const REFUSED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));
/// Orders for a name that may fail before nobody tries any more, unless it is asked for again: that is after some hours.
const GIVEN_UP: u32 = 6;
/// However long nothing is due: clocks are set.
const LOOK: Duration = Duration::from_secs(60 * 60);
/// Between two orders for a site that went well, however short their certificates live.
const BETWEEN: Duration = Duration::from_secs(60 * 60);
/// An authority that wants to be left alone for longer has made a mistake.
const LONGEST_REST: Duration = Duration::from_secs(24 * 60 * 60);
/// How often an authority is asked when it would like a certificate to be renewed, within what it says itself
/// (RFC 9773, section 4.3).
const ASKING: (Duration, Duration) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));
const ASK_AGAIN: Duration = Duration::from_secs(6 * 60 * 60);

/// Works until it is dropped. What it has begun is then gone on with by whoever comes next.
#[derive(Debug)]
pub struct Keeper {
    plans: UnboundedSender<(Option<Plan>, bool)>,
    standings: Standings,
    task: AbortHandle,
}

type Standings = Rc<RefCell<BTreeMap<String, Standing>>>;

impl Keeper {
    /// In a local runtime. `keep` writes files. Orders nothing for as long as `pause`.
    #[must_use]
    pub fn begin(challenges: Arc<Challenges>, keep: Keep, pause: Duration) -> Keeper {
        let (plans, told) = unbounded_channel();
        let standings = Standings::default();
        let keeping = Keeping {
            challenges,
            demand: Demand::shared(),
            keep,
            client: Rc::default(),
            settings: None,
            sites: BTreeMap::new(),
            running: HashMap::new(),
            said: Sparing::default(),
        };
        let own = standings.clone();
        let task = spawn_local(async move {
            sleep(pause).await;
            keeping.attend(told, own).await;
        });
        let task = task.abort_handle();
        Keeper { plans, standings, task }
    }

    /// From now on this is to be looked after; none: nothing. `anew`: what has failed is tried again at once.
    pub fn follow(&self, plan: Option<Plan>, anew: bool) {
        // It lives as long as this.
        _ = self.plans.send((plan, anew));
    }

    /// How it stands, by site.
    #[must_use]
    pub fn standings(&self) -> BTreeMap<String, Standing> {
        self.standings.borrow().clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An account that was used already, and what it was made for.
type Known = Option<(Settings, Rc<Client>)>;

struct Keeping {
    challenges: Arc<Challenges>,
    demand: Arc<Demand>,
    keep: Keep,
    client: Rc<Mutex<Known>>,
    settings: Option<Settings>,
    sites: BTreeMap<String, Site>,
    /// What is under way, also for sites that are not looked after any more: nothing is begun twice.
    running: HashMap<Id, Wanted>,
    /// Of names that strangers have made up.
    said: Sparing,
}

/// One certificate to be looked after.
struct Site {
    wanted: Wanted,
    /// How its file was when it was looked at last.
    seen: Look,
    due: SystemTime,
    /// However long the authority would like to wait.
    latest: SystemTime,
    /// When the authority is asked for its opinion on that; none: it has none.
    ask: Option<SystemTime>,
    failures: u32,
    trouble: Option<String>,
    /// The authority wants no order before.
    not_before: Option<SystemTime>,
    /// One has just been made, and the next one is not made at once however short its certificate lives.
    floor: Option<SystemTime>,
}

/// What came of something.
enum Done {
    Ordered(Result<(), Trouble>),
    /// There is to be none for this name.
    Refused,
    /// Nobody has said whether there is to be one.
    Unsaid(Trouble),
    Asked(Result<Opinion, Trouble>),
}

/// When an authority would like to see a certificate renewed, and when to ask again.
struct Opinion {
    window: Option<(SystemTime, SystemTime)>,
    again: Option<Duration>,
}

impl Keeping {
    async fn attend(mut self, mut told: UnboundedReceiver<(Option<Plan>, bool)>, standings: Standings) {
        let (mut jobs, demand) = (JoinSet::new(), self.demand.clone());
        loop {
            self.begin_what_is_due(&mut jobs);
            let standing =
                |(name, site): (&String, &Site)| (name.clone(), site.standing(self.is_running(name)));
            standings.replace(self.sites.iter().map(standing).collect());
            let full = jobs.len() >= AT_A_TIME;
            let waiting = self.sites.values().filter(|site| !full && !self.is_busy(&site.wanted));
            let next = waiting.map(Site::next).min();
            let pause = next
                .map_or(LOOK, |next| next.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK));
            tokio::select! {
                plan = told.recv() => match plan {
                    Some((plan, anew)) => self.follow(plan, anew),
                    None => return,
                },
                Some(done) = jobs.join_next_with_id() => {
                    let (id, done) = match done {
                        Ok((id, done)) => (id, done),
                        Err(error) => (error.id(), Done::Ordered(Err(Trouble::new(format!("a fault of the gateway: {error}"))))),
                    };
                    if let Some(begun) = self.running.remove(&id) {
                        self.take_in(begun, done);
                    }
                }
                names = demand.new_names() => names.iter().for_each(|name| self.demanded(name)),
                () = sleep(pause) => self.look(),
            }
        }
    }

    fn is_running(&self, site: &str) -> bool {
        self.running.values().any(|begun| begun.site == site)
    }

    /// Whether something is under way for it, or for one of its names, which another site may have on another address.
    fn is_busy(&self, wanted: &Wanted) -> bool {
        self.running.values().any(|begun| begun.site == wanted.site || begun.shares(wanted))
    }

    fn follow(&mut self, plan: Option<Plan>, anew: bool) {
        let (settings, wanted) = match plan {
            Some(Plan { settings, wanted }) => (Some(settings), wanted),
            None => (None, Vec::new()),
        };
        let changed = std::mem::replace(&mut self.settings, settings) != self.settings;
        let mut before = std::mem::take(&mut self.sites);
        for wanted in wanted {
            let site = match before.remove(&wanted.site) {
                Some(mut site) if !changed && site.wanted == wanted => {
                    if anew && site.failures > 0 {
                        site.due = site.not_before.unwrap_or_else(SystemTime::now);
                    }
                    site
                }
                // What the authority has said holds for other hosts too.
                Some(site) if !changed => Site::new(wanted, site.not_before),
                _ => Site::new(wanted, None),
            };
            self.sites.insert(site.wanted.site.clone(), site);
        }
        // Those that are not there yet are in no plan.
        let demanded = self.settings.as_ref().is_some_and(|settings| !changed && settings.ask.is_some());
        for (name, site) in before.into_iter().filter(|(_, site)| site.is_awaited()) {
            let own = |one: &Site| one.wanted.hosts.iter().any(|host| site.wanted.is_for(host));
            if demanded && !self.sites.values().any(own) {
                self.sites.insert(name, site);
            } else {
                site.wanted.hosts.iter().for_each(|host| self.demand.forget(host));
            }
        }
        self.look();
    }

    /// A visitor has asked for a name that has no certificate.
    fn demanded(&mut self, name: &str) {
        let wanted = self.settings.as_ref().filter(|settings| settings.ask.is_some());
        let Some(wanted) = wanted.map(|settings| Wanted::on_demand(settings, name)) else {
            return self.demand.refuse(name, REFUSED.0);
        };
        if let Some(site) = self.sites.get(&wanted.site) {
            if site.failures > 0 && !self.is_running(&wanted.site) {
                self.demand.refuse(name, site.due.duration_since(SystemTime::now()).unwrap_or_default());
            }
            return;
        }
        if self.sites.values().filter(|site| site.is_awaited()).count() >= ON_DEMAND {
            if self.said.may_say() {
                tracing::warn!(name, "no certificate on demand: {ON_DEMAND} others are waited for already");
            }
            return self.demand.refuse(name, REFUSED.0);
        }
        self.sites.insert(wanted.site.clone(), Site::new(wanted, None));
    }

    /// Looks at the files, which somebody may have changed or removed.
    fn look(&mut self) {
        let Keeping { sites, running, .. } = self;
        for (name, site) in sites {
            let idle = site.failures == 0 && running.values().all(|begun| begun.site != *name);
            if idle && look_at(&site.wanted.file) != site.seen {
                *site = Site::new(site.wanted.clone(), site.not_before);
            }
        }
    }

    fn begin_what_is_due(&mut self, jobs: &mut JoinSet<Done>) {
        let Some(settings) = self.settings.clone() else { return };
        let now = SystemTime::now();
        self.sites.values_mut().for_each(|site| site.heed_clock(now));
        let mut due: Vec<_> = self.sites.values().filter(|site| site.next() <= now).collect();
        // Orders first, and visitors can make up what is on demand.
        due.sort_by_key(|site| (site.due > now, site.wanted.on_demand, site.next()));
        let mut picked: Vec<(Wanted, u32, bool)> = Vec::new();
        for site in due {
            if jobs.len() + picked.len() >= AT_A_TIME {
                break;
            }
            if !self.is_busy(&site.wanted) && !picked.iter().any(|(other, ..)| other.shares(&site.wanted)) {
                picked.push((site.wanted.clone(), site.failures, site.due <= now));
            }
        }
        for (wanted, failures, is_order) in picked {
            let (client, keep) = (self.client.clone(), self.keep);
            let (settings, begun) = (settings.clone(), wanted.clone());
            let job = if is_order {
                let challenges = self.challenges.clone();
                jobs.spawn_local(async move {
                    ordered(&client, &settings, &wanted, failures, &challenges, keep).await
                })
            } else {
                jobs.spawn_local(async move {
                    let asked = async {
                        let client = obtain(&client, &settings, keep).await?;
                        opinion(&client, &wanted.file).await
                    };
                    Done::Asked(asked.await)
                })
            };
            self.running.insert(job.id(), begun);
        }
    }

    fn take_in(&mut self, begun: Wanted, done: Done) {
        let now = SystemTime::now();
        let (name, hosts) = (&begun.site, begun.hosts.join(" "));
        let ordered = matches!(done, Done::Ordered(Ok(())));
        if ordered {
            tracing::info!(site = name, hosts, "there is a new certificate");
            if begun.on_demand {
                self.demand.issued_for(&hosts);
            }
            self.demand.announce();
        }
        // It may have been taken out of the configuration meanwhile.
        let Some(site) = self.sites.get_mut(name) else { return };
        // Or something else may be wanted for it.
        let is_still_wanted = site.wanted == begun;
        match done {
            Done::Ordered(Ok(())) => {}
            Done::Refused => {
                if self.said.may_say() {
                    tracing::info!(name = hosts, "no certificate on demand: it is not allowed");
                }
                if site.is_good(now) {
                    site.due = now + REFUSED.1;
                } else {
                    // What has expired is shown no more.
                    _ = fs::remove_file(&site.wanted.file);
                    self.demand.refuse(&hosts, REFUSED.0);
                    self.sites.remove(name);
                }
                return;
            }
            Done::Unsaid(trouble) if site.is_awaited() => {
                if self.said.may_say() {
                    tracing::error!(name = hosts, "no certificate on demand: {trouble}");
                }
                self.demand.refuse(&hosts, REFUSED.0);
                self.sites.remove(name);
                return;
            }
            Done::Ordered(Err(trouble)) | Done::Unsaid(trouble) => {
                site.failures = site.failures.saturating_add(1);
                let longest = now + LONGEST_REST;
                site.not_before = trouble.not_before.map(|time| time.min(longest)).filter(|time| *time > now);
                let pause = now + schedule::pause(site.failures, dice());
                site.due = site.not_before.map_or(pause, |time| time.max(pause));
                // What it thinks of the one that is there is of no use now.
                site.ask = None;
                let next_in_s = site.due.duration_since(now).unwrap_or_default().as_secs();
                let failures = site.failures;
                tracing::error!(site = name, hosts, failures, next_in_s, "no certificate: {trouble}");
                site.trouble = Some(trouble.message);
                if site.is_awaited() {
                    self.demand.refuse(&hosts, site.due.duration_since(now).unwrap_or_default());
                    if site.failures >= GIVEN_UP {
                        self.sites.remove(name);
                        return;
                    }
                }
            }
            Done::Asked(Ok(Opinion { window, again })) => {
                if let Some((start, end)) = window {
                    let wished = schedule::within(start, end, dice()).min(site.latest);
                    let least = site.not_before.max(site.floor);
                    site.due = least.map_or(wished, |time| time.max(wished));
                }
                site.ask =
                    again.map(|again| now + again.clamp(ASKING.0, ASKING.1).mul_f64(1.0 + dice() / 10.0));
            }
            Done::Asked(Err(trouble)) => {
                tracing::debug!(site = name, "when to renew the certificate is not known: {trouble}");
                site.ask = Some(now + ASK_AGAIN);
            }
        }
        if ordered || !is_still_wanted {
            *site = Site::new(site.wanted.clone(), site.not_before);
        }
        if ordered && is_still_wanted {
            let floor = now + BETWEEN;
            (site.due, site.floor) = (site.due.max(floor), Some(floor));
        }
    }
}

impl Site {
    /// By what is in the file.
    fn new(wanted: Wanted, not_before: Option<SystemTime>) -> Site {
        let now = SystemTime::now();
        let seen = look_at(&wanted.file);
        let kept = Certificate::load(&wanted.file, &wanted.file).ok();
        let fits = |one: &Certificate| wanted.hosts.iter().all(|host| one.is_named(host));
        let facts = kept.as_ref().filter(|one| fits(one)).and_then(Certificate::facts);
        let due = facts.map_or(now, |facts| schedule::renewal(facts.not_before, facts.not_after, dice()));
        let latest = facts.map_or(now, |facts| schedule::latest(facts.not_before, facts.not_after));
        Site {
            wanted,
            seen,
            due: not_before.map_or(due, |time| time.max(due)),
            latest,
            // Of one that is there the authority may think otherwise.
            ask: facts.map(|_| now),
            failures: 0,
            trouble: None,
            not_before,
            floor: None,
        }
    }

    /// Where the clock was wrong nothing is waited for longer than it should be.
    fn heed_clock(&mut self, now: SystemTime) {
        self.not_before = self.not_before.filter(|time| *time > now).map(|time| time.min(now + LONGEST_REST));
        if self.failures > 0 {
            self.due = self.due.min(now + LONGEST_REST);
        }
        self.ask = self.ask.map(|ask| ask.min(now + ASKING.1));
    }

    /// Whether what is there has not expired.
    fn is_good(&self, now: SystemTime) -> bool {
        let kept = Certificate::load(&self.wanted.file, &self.wanted.file).ok();
        kept.as_ref().and_then(Certificate::facts).is_some_and(|facts| now < facts.not_after)
    }

    /// A visitor has asked for it, and there is none yet.
    fn is_awaited(&self) -> bool {
        self.wanted.on_demand && self.seen.is_none()
    }

    /// When something is to be done next.
    fn next(&self) -> SystemTime {
        self.ask.map_or(self.due, |ask| ask.min(self.due))
    }

    fn standing(&self, running: bool) -> Standing {
        Standing {
            hosts: self.wanted.hosts.clone(),
            due: (!running || self.due > SystemTime::now()).then_some(self.due),
            failures: self.failures,
            trouble: self.trouble.clone(),
        }
    }
}

/// The account that all share, made by whoever needs it first.
async fn obtain(client: &Mutex<Known>, settings: &Settings, keep: Keep) -> Result<Rc<Client>, Trouble> {
    let mut known = client.lock().await;
    if let Some((of, client)) = &*known
        && of == settings
    {
        return Ok(client.clone());
    }
    let client = Rc::new(Client::obtain(settings, keep).await?);
    *known = Some((settings.clone(), client.clone()));
    Ok(client)
}

/// What comes of an order.
async fn ordered(
    client: &Mutex<Known>,
    settings: &Settings,
    wanted: &Wanted,
    failures: u32,
    challenges: &Arc<Challenges>,
    keep: Keep,
) -> Done {
    let (hosts, directory) = (wanted.hosts.join(" "), &settings.directory);
    if let (true, Some(address)) = (wanted.on_demand, &settings.ask) {
        match ask::is_allowed(address, &hosts).await {
            Ok(true) => {}
            Ok(false) => return Done::Refused,
            Err(trouble) => return Done::Unsaid(trouble),
        }
    }
    tracing::info!(site = wanted.site, hosts, directory, "a certificate is ordered");
    let ordered = async {
        let known = obtain(client, settings, keep).await?;
        order::obtain(&known, &settings.turned(failures), wanted, challenges, keep).await
    };
    let ordered = ordered.await;
    if ordered.as_ref().is_err_and(|trouble| trouble.account_is_lost) {
        *client.lock().await = None;
        account::forget(settings);
    }
    Done::Ordered(ordered)
}

/// What the authority thinks of a certificate (RFC 9773).
async fn opinion(client: &Client, file: &Path) -> Result<Opinion, Trouble> {
    let certificate = Certificate::load(file, file).map_err(|error| Trouble::new(error.to_string()))?;
    let leaf: &CertificateDer<'_> =
        certificate.end_entity().ok_or_else(|| Trouble::new("there is no certificate"))?;
    let none = Opinion { window: None, again: None };
    let Ok(id) = leaf.try_into() else { return Ok(none) };
    match client.account.renewal_info(&id).await {
        Ok((info, again)) => {
            let window = (info.suggested_window.start.into(), info.suggested_window.end.into());
            Ok(Opinion { window: Some(window), again: Some(again) })
        }
        Err(instant_acme::Error::Unsupported(_)) => Ok(none),
        Err(error) => Err(error.into()),
    }
}

/// From 0 to 1. Not for secrets: it spreads load.
fn dice() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}
