//! Sees to it that there is a certificate for every site in time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::sleep;

use super::account::Client;
use super::{Challenges, Keep, Plan, Settings, Standing, Trouble, Wanted, order, schedule};
use crate::Certificate;

/// Orders and questions at a time.
const AT_A_TIME: usize = 4;
/// However long nothing is due: clocks are set.
const LOOK: Duration = Duration::from_secs(60 * 60);
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
        let keeping =
            Keeping { challenges, keep, client: Rc::default(), sites: BTreeMap::new(), settings: None };
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
    keep: Keep,
    client: Rc<Mutex<Known>>,
    settings: Option<Settings>,
    sites: BTreeMap<String, Site>,
}

/// One certificate to be looked after.
struct Site {
    wanted: Wanted,
    due: SystemTime,
    /// When the authority is asked for its opinion on that; none: it has none.
    ask: Option<SystemTime>,
    running: bool,
    /// Something else is wanted since that was begun.
    stale: bool,
    failures: u32,
    trouble: Option<String>,
    /// The authority wants no order before.
    not_before: Option<SystemTime>,
}

/// What came of something.
enum Done {
    Ordered(Result<(), Trouble>),
    Asked(Result<Opinion, Trouble>),
}

/// When an authority would like to see a certificate renewed, and when to ask again.
struct Opinion {
    window: Option<(SystemTime, SystemTime)>,
    again: Option<Duration>,
}

impl Keeping {
    async fn attend(mut self, mut told: UnboundedReceiver<(Option<Plan>, bool)>, standings: Standings) {
        let mut jobs: JoinSet<(String, Done)> = JoinSet::new();
        loop {
            self.begin_what_is_due(&mut jobs);
            standings
                .replace(self.sites.iter().map(|(name, site)| (name.clone(), site.standing())).collect());
            let now = SystemTime::now();
            let full = jobs.len() >= AT_A_TIME;
            let next = self.sites.values().filter(|site| !site.running && !full).map(Site::next).min();
            let pause = next.map_or(LOOK, |next| next.duration_since(now).unwrap_or_default().min(LOOK));
            tokio::select! {
                plan = told.recv() => match plan {
                    Some((plan, anew)) => self.follow(plan, anew),
                    None => return,
                },
                Some(done) = jobs.join_next() => {
                    // One that has panicked has been told of; its site stays as it is.
                    if let Ok((name, done)) = done {
                        self.take_in(&name, done);
                    }
                }
                () = sleep(pause) => {}
            }
        }
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
                // An order under way is not begun a second time: when it has ended it is seen what is missing.
                Some(mut site) if !changed && (site.wanted == wanted || site.running) => {
                    if anew && site.failures > 0 && !site.running {
                        site.due = site.not_before.unwrap_or_else(SystemTime::now);
                    }
                    site.stale |= site.wanted != wanted;
                    site.wanted = wanted;
                    site
                }
                before => {
                    let running = before.is_some_and(|site| site.running);
                    Site { running, stale: running, ..Site::new(wanted) }
                }
            };
            self.sites.insert(site.wanted.site.clone(), site);
        }
    }

    fn begin_what_is_due(&mut self, jobs: &mut JoinSet<(String, Done)>) {
        let Some(settings) = &self.settings else { return };
        let now = SystemTime::now();
        let mut due: Vec<_> =
            self.sites.values_mut().filter(|site| !site.running && site.next() <= now).collect();
        due.sort_by_key(|site| site.next());
        for site in due {
            if jobs.len() >= AT_A_TIME {
                return;
            }
            site.running = true;
            let (client, challenges, keep) = (self.client.clone(), self.challenges.clone(), self.keep);
            let (settings, wanted, failures) = (settings.clone(), site.wanted.clone(), site.failures);
            if site.due <= now {
                let (hosts, directory) = (wanted.hosts.join(" "), &settings.directory);
                tracing::info!(site = wanted.site, hosts, directory, "a certificate is ordered");
                jobs.spawn_local(async move {
                    let ordered = async {
                        let client = obtain(&client, &settings, keep).await?;
                        let settings = settings.turned(failures);
                        order::obtain(&client, &settings, &wanted, &challenges, keep).await
                    };
                    let ordered = ordered.await;
                    (wanted.site, Done::Ordered(ordered))
                });
            } else {
                jobs.spawn_local(async move {
                    let asked = async {
                        let client = obtain(&client, &settings, keep).await?;
                        opinion(&client, &wanted.file).await
                    };
                    let asked = asked.await;
                    (wanted.site, Done::Asked(asked))
                });
            }
        }
    }

    fn take_in(&mut self, name: &str, done: Done) {
        // It may have been taken out of the configuration meanwhile.
        let Some(site) = self.sites.get_mut(name) else { return };
        let now = SystemTime::now();
        site.running = false;
        if site.stale {
            *site = Site::new(site.wanted.clone());
            return;
        }
        match done {
            Done::Ordered(Ok(())) => {
                tracing::info!(
                    site = name,
                    hosts = site.wanted.hosts.join(" "),
                    "there is a new certificate"
                );
                *site = Site::new(site.wanted.clone());
            }
            Done::Ordered(Err(trouble)) => {
                site.failures = site.failures.saturating_add(1);
                let longest = now + LONGEST_REST;
                site.not_before = trouble.not_before.map(|time| time.min(longest)).filter(|time| *time > now);
                let pause = now + schedule::pause(site.failures, dice());
                site.due = site.not_before.map_or(pause, |time| time.max(pause));
                let wait = site.due.duration_since(now).unwrap_or_default().as_secs();
                tracing::error!(
                    site = name,
                    hosts = site.wanted.hosts.join(" "),
                    failures = site.failures,
                    next_in_s = wait,
                    "no certificate: {trouble}"
                );
                site.trouble = Some(trouble.message);
            }
            Done::Asked(Ok(Opinion { window, again })) => {
                if let Some((start, end)) = window {
                    site.due = schedule::within(start, end, dice());
                }
                site.ask = again.map(|again| now + again.clamp(ASKING.0, ASKING.1));
            }
            Done::Asked(Err(trouble)) => {
                tracing::debug!(site = name, "when to renew the certificate is not known: {trouble}");
                site.ask = Some(now + ASK_AGAIN);
            }
        }
    }
}

impl Site {
    /// By what is in the file.
    fn new(wanted: Wanted) -> Site {
        let now = SystemTime::now();
        let kept = Certificate::load(&wanted.file, &wanted.file).ok();
        let fits = |one: &Certificate| wanted.hosts.iter().all(|host| one.names().contains(host));
        let facts = kept.as_ref().filter(|one| fits(one)).and_then(Certificate::facts);
        let due = facts.map_or(now, |facts| schedule::renewal(facts.not_before, facts.not_after, dice()));
        // Of one that is there the authority may think otherwise.
        let ask = facts.map(|_| now);
        Site { wanted, due, ask, running: false, stale: false, failures: 0, trouble: None, not_before: None }
    }

    /// When something is to be done next.
    fn next(&self) -> SystemTime {
        self.ask.map_or(self.due, |ask| ask.min(self.due))
    }

    fn standing(&self) -> Standing {
        Standing {
            hosts: self.wanted.hosts.clone(),
            due: (!self.running || self.due > SystemTime::now()).then_some(self.due),
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
