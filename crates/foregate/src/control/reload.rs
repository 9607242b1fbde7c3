//! One configuration after the other: read and checked in full, made ready, and only then served.
//!
//! Until [`Control::commit`] nothing has happened that anybody could notice; from there on nothing can fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foregate_edge::{Change, Gateway, Live};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot::Sender;
use tokio::task::JoinHandle;

use super::diff::diff;
use super::history::{Entry, Written};
use super::{Control, Origin, Refused, Reply, answered, complain_of, done};
use crate::config::{self, File, Loaded, Report};
use crate::state::Aside;
use crate::{run, systemd};

/// A configuration that is being read.
pub(super) struct Job {
    loading: JoinHandle<Result<Loaded, Report>>,
    begun: Instant,
    what: What,
    by: String,
    reply: Option<Sender<Reply>>,
}

/// What becomes of it.
enum What {
    Check,
    Serve(Serve),
}

/// On what terms a change is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Also if it was rolled back before.
    pub(crate) force: bool,
    /// Goes back by itself unless somebody confirms within this time.
    pub(crate) confirm: Option<Duration>,
    /// Or sooner, if things get worse.
    pub(crate) guard: bool,
}

/// How it is to be served.
struct Serve {
    /// For the history.
    how: String,
    terms: Terms,
    /// Write it to this file.
    save: Option<PathBuf>,
    /// What is served now is not to come again by accident.
    goes_back: bool,
}

/// A configuration that somebody has to confirm.
#[derive(Debug)]
pub(super) struct Probation {
    pub(super) until: Instant,
    /// What was served before, and its number.
    before: (Vec<File>, u64),
    guard: Option<Guard>,
    /// Why it is over: going back is under way, or is tried again.
    pub(super) why: Option<String>,
    /// The file to write once it is confirmed.
    save: Option<PathBuf>,
}

impl Probation {
    /// Seconds in which it may still be confirmed.
    pub(super) fn left(&self) -> Option<u64> {
        let left = || self.until.saturating_duration_since(Instant::now()).as_secs();
        self.why.is_none().then(left)
    }
}

/// How things were before a change.
#[derive(Debug)]
struct Guard {
    /// Requests answered, and those of them with a 5xx, when it was made.
    answers: (u64, u64),
    /// Which share of answers failed in the minute before.
    share: f64,
    /// Pools that had a usable VM.
    usable: Vec<Arc<str>>,
}

/// What is read again when files have changed that the configuration only names.
const CERTIFICATES: &str = "certificates";
/// How long after going back has failed it is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// So many answers say something.
const ENOUGH: u64 = 50;
/// By so much more of them must fail.
const WORSE: f64 = 0.1;
/// Seconds that tell how things are.
const MINUTE: usize = 60;

/// Waits until it is read.
pub(super) async fn loaded(job: &mut Option<Job>) -> Result<Loaded, Refused> {
    let Some(job) = job else { return std::future::pending().await };
    match (&mut job.loading).await {
        Ok(Ok(loaded)) => Ok(loaded),
        Ok(Err(report)) => Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, report.to_string())),
        Err(error) => {
            let message = format!("the configuration could not be read: {error}");
            Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    }
}

impl Control {
    pub(super) fn validate(&self, text: String, reply: Option<Sender<Reply>>) -> Option<Job> {
        match self.main_file() {
            Ok(main) => {
                Some(self.job(What::Check, String::new(), reply, move |live| load_text(&main, &text, live)))
            }
            Err(refused) => refuse(reply, refused),
        }
    }

    pub(super) fn reload(&mut self, terms: Terms, by: String, reply: Option<Sender<Reply>>) -> Option<Job> {
        let main = match self.may_change().and_then(|()| self.main_file()) {
            Ok(main) => main,
            Err(refused) => {
                // Who asked by a signal waits for this.
                systemd::reloading();
                systemd::ready();
                return refuse(reply, refused);
            }
        };
        let what = Serve { how: "reload".to_owned(), terms, save: None, goes_back: false };
        Some(self.job(What::Serve(what), by, reply, move |live| config::load(&main, Some(live))))
    }

    /// What is served already, with certificates as their files are now.
    pub(super) fn renew(&mut self, by: String, reply: Option<Sender<Reply>>) -> Option<Job> {
        if let Err(refused) = self.may_change() {
            return refuse(reply, refused);
        }
        let (files, pairs) = (self.running.written.files.clone(), self.pairs.borrow().clone());
        let terms = Terms { force: true, ..Terms::default() };
        let what = Serve { how: CERTIFICATES.to_owned(), terms, save: None, goes_back: false };
        let load = move |live: &Live| config::load_again(&files, live, &pairs);
        Some(self.job(What::Serve(what), by, reply, load))
    }

    pub(super) fn put(
        &mut self,
        text: String,
        save: bool,
        terms: Terms,
        by: String,
        reply: Option<Sender<Reply>>,
    ) -> Option<Job> {
        let main = match self.may_change().and_then(|()| self.main_file()) {
            Ok(main) => main,
            Err(refused) => return refuse(reply, refused),
        };
        let how = if save { "put, saved" } else { "put" };
        let what = Serve { how: how.to_owned(), terms, save: save.then(|| main.clone()), goes_back: false };
        Some(self.job(What::Serve(what), by, reply, move |live| load_text(&main, &text, live)))
    }

    pub(super) fn roll_back(
        &mut self,
        to: Option<u64>,
        by: String,
        reply: Option<Sender<Reply>>,
    ) -> Option<Job> {
        if let Err(refused) = self.main_file() {
            return refuse(reply, refused);
        }
        let nothing = || Refused::new(StatusCode::NOT_FOUND, "there is nothing in the history to go back to");
        let entry = match to {
            Some(number) => self.known(number).and_then(|entry| self.intact(entry)),
            None => self.history.before(self.running.number).ok_or_else(nothing),
        };
        match entry.map(|entry| (entry.files(), entry.number)) {
            Ok((files, number)) => Some(self.going_to(files, number, by, reply)),
            Err(refused) => refuse(reply, refused),
        }
    }

    /// What was written into the history, and is as it was then.
    fn intact<'e>(&self, entry: &'e Entry) -> Result<&'e Entry, Refused> {
        let Entry { number, .. } = entry;
        let changed = || {
            let message = format!(
                "configuration {number} in the history is not as it was written, so it is not served; `foregate diff \
                 {number}` tells what it is now"
            );
            Refused::new(StatusCode::CONFLICT, message)
        };
        self.history.is_intact(*number).then_some(entry).ok_or_else(changed)
    }

    /// Nobody has confirmed.
    pub(super) fn go_back(&mut self) -> Option<Job> {
        let probation = self.probation.as_mut()?;
        // It is over when the other one is served; where that fails, it is tried again.
        probation.until = Instant::now() + AGAIN;
        let (files, number) = probation.before.clone();
        let why = probation.why.get_or_insert_with(|| "nobody has confirmed".to_owned()).clone();
        tracing::warn!("configuration {}: {why}: going back", self.running.number);
        Some(self.going_to(files, number, why, None))
    }

    pub(super) fn confirm(&mut self, by: &str) -> Reply {
        let conflict = |message: String| Refused::new(StatusCode::CONFLICT, message);
        let Some(probation) = &self.probation else {
            return Err(conflict("nothing waits to be confirmed".to_owned()));
        };
        if let Some(file) = &probation.save {
            saving(file, &self.running.written.files)
                .and_then(|aside| aside.replace().map_err(|error| unsaved(file, &error)))
                .map_err(|reason| conflict(format!("{reason}; it still waits to be confirmed")))?;
        }
        self.probation = None;
        tracing::info!(by, "configuration {} is confirmed", self.running.number);
        Ok(done(format!("configuration {} stays", self.running.number)))
    }

    fn going_to(&self, files: Vec<File>, number: u64, by: String, reply: Option<Sender<Reply>>) -> Job {
        let terms = Terms { force: true, ..Terms::default() };
        let how = format!("rollback to {number}");
        let goes_back = self.history.is_older(number, self.running.number);
        let what = Serve { how, terms, save: None, goes_back };
        self.job(What::Serve(what), by, reply, move |live| config::load_files(&files, Some(live)))
    }

    fn job(
        &self,
        what: What,
        by: String,
        reply: Option<Sender<Reply>>,
        load: impl FnOnce(&Live) -> Result<Loaded, Report> + Send + 'static,
    ) -> Job {
        if matches!(what, What::Serve(_)) {
            systemd::reloading();
        }
        let live = self.live.load();
        let loading = tokio::task::spawn_blocking(move || load(&live));
        Job { loading, begun: Instant::now(), what, by, reply }
    }

    fn main_file(&self) -> Result<PathBuf, Refused> {
        match &self.origin {
            Origin::File(path) => Ok(path.clone()),
            Origin::Made => Err(Refused::new(
                StatusCode::CONFLICT,
                "this gateway was started from flags: it has no file to reload",
            )),
        }
    }

    pub(super) fn may_change(&self) -> Result<(), Refused> {
        match &self.probation {
            None => Ok(()),
            Some(_) => Err(Refused::new(
                StatusCode::CONFLICT,
                format!(
                    "configuration {} waits to be confirmed: `foregate confirm`, or `foregate rollback`",
                    self.running.number
                ),
            )),
        }
    }

    /// What was being read is there.
    pub(super) async fn finish(&mut self, job: Job, loaded: Result<Loaded, Refused>) {
        let Job { begun, what, by, reply, .. } = job;
        let served = matches!(what, What::Serve(_));
        let answer = match (what, loaded) {
            (_, Err(refused)) => Err(refused),
            (What::Check, Ok(loaded)) => Ok(json!({ "done": "ok", "warnings": loaded.warnings })),
            (What::Serve(serve), Ok(loaded)) => self.serve(loaded, serve, begun, &by).await,
        };
        if served {
            systemd::ready();
        }
        answered(reply, answer);
    }

    /// Makes ready what it takes, and serves it.
    async fn serve(&mut self, mut loaded: Loaded, serve: Serve, begun: Instant, by: &str) -> Reply {
        let Some(gateway) = &self.gateway else {
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is draining"));
        };
        let next = Written::new(std::mem::take(&mut loaded.files));
        let is_running = next.content == self.running.written.content;
        if !serve.terms.force && !is_running && self.history.is_refused(&next) {
            let message =
                "this configuration was rolled back; change it, or take it all the same with --force";
            return Err(Refused::new(StatusCode::CONFLICT, message).for_good());
        }
        let conflict = |message: String| Refused::new(StatusCode::CONFLICT, message);
        // Written aside first, so that nothing is bound for what cannot be saved.
        let save = serve.save.as_ref().map(|file| saving(file, &next.files)).transpose().map_err(conflict)?;
        let admin = self.admin.prepare(&loaded.admin).map_err(conflict)?;
        let change = gateway.prepare(&loaded.live.settings).await;
        let change = change.map_err(|error| conflict(error.to_string()))?;
        // What waits to be confirmed is saved when it is.
        if let (Some(aside), Some(file), None) = (save, &serve.save, serve.terms.confirm)
            && let Err(error) = aside.replace()
        {
            gateway.abandon(change).await;
            return Err(conflict(unsaved(file, &error)));
        }
        let guard = Some(self.how_things_are());
        // From here on nothing fails.
        let lines = diff(&self.running.written.files, &next.files);
        let before = std::mem::replace(&mut self.running.written, next);
        // What has failed is tried again by whoever may have mended something, not because something else has changed.
        let waiting = self.commit(loaded, change, serve.how != CERTIFICATES).await;
        if self.admin.commit(admin) {
            self.remember_admin();
        }
        if serve.goes_back && !is_running {
            self.history.refuse(&before);
        }
        self.history.forgive(&self.running.written);
        let number_before = std::mem::replace(
            &mut self.running.number,
            self.history.add(&self.running.written, by, &serve.how),
        );
        self.probation = serve.terms.confirm.map(|limit| Probation {
            until: Instant::now() + limit,
            before: (before.files, number_before),
            guard: guard.filter(|_| serve.terms.guard),
            why: None,
            save: serve.save,
        });
        let took = begun.elapsed();
        tracing::info!(
            by,
            number = self.running.number,
            changes = lines.len(),
            ?took,
            "{}: served",
            serve.how
        );
        for what in &waiting {
            tracing::warn!("{what}: it takes a restart");
        }
        Ok(self.outcome(&lines, &waiting, took, serve.terms.confirm))
    }

    fn how_things_are(&self) -> Guard {
        let live = self.live.load();
        let usable = live.routing.pools().iter().filter(|pool| pool.any_usable());
        let now = self.gateway.as_ref().map(Gateway::answers).unwrap_or_default();
        let then = self.answers.front().copied().unwrap_or_default();
        Guard {
            answers: now,
            share: share(then, now),
            usable: usable.map(|pool| pool.name.clone()).collect(),
        }
    }

    /// Looks, once a second, whether a change that waits to be confirmed has made things worse, and if so has it undone.
    pub(super) fn guard(&mut self) {
        let Some(now) = self.gateway.as_ref().map(Gateway::answers) else { return };
        if self.answers.len() >= MINUTE {
            self.answers.pop_front();
        }
        self.answers.push_back(now);
        // One that is known to be worse is being gone back from.
        let probation = self.probation.as_ref().filter(|probation| probation.why.is_none());
        let worse = probation.and_then(|probation| self.is_worse(probation.guard.as_ref()?, now));
        if let (Some(why), Some(probation)) = (worse, &mut self.probation) {
            (probation.until, probation.why) = (Instant::now(), Some(why));
        }
    }

    fn is_worse(&self, guard: &Guard, now: (u64, u64)) -> Option<String> {
        let live = self.live.load();
        let lost =
            |pool: &&Arc<foregate_routing::Pool>| guard.usable.contains(&pool.name) && !pool.any_usable();
        if let Some(pool) = live.routing.pools().iter().find(lost) {
            return Some(format!("the pool {} has no usable backend any more", pool.name));
        }
        let failing = share(guard.answers, now);
        let enough = now.0.saturating_sub(guard.answers.0) >= ENOUGH;
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        (enough && failing >= guard.share + WORSE)
            .then(|| format!("{} of the answers fail, it was {}", percent(failing), percent(guard.share)))
    }

    fn outcome(
        &self,
        lines: &[String],
        waiting: &[String],
        took: Duration,
        confirm: Option<Duration>,
    ) -> Value {
        json!({
            "number": self.running.number,
            "changes": lines,
            "waits_for_restart": waiting,
            "took_ms": took.as_millis() as u64,
            "confirm_within_s": confirm.map(|limit| limit.as_secs()),
        })
    }

    /// Serves what was prepared. Returns what this process cannot take up any more.
    async fn commit(&mut self, loaded: Loaded, change: Change, mended: bool) -> Vec<String> {
        let Loaded { mut live, state_dir, warnings, self_signed, pairs, plan, sticky, mut blueprint, .. } =
            loaded;
        self.pairs.replace(pairs.into());
        if let Some(keeper) = &self.keeper {
            keeper.follow(plan, mended);
        }
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        blueprint.inherit(&self.blueprint);
        self.blueprint = blueprint;
        if self.overrides.has_weights() || self.blueprint.looked_up().next().is_some() {
            live.routing = self.blueprint.build(&self.live.load().routing, &self.overrides);
        }
        let drain = live.settings.timeouts.drain;
        let waiting = self.waiting(&live, &state_dir);
        self.publish(live);
        if let Some(gateway) = &mut self.gateway {
            complain_of(gateway.follow(change, drain).await);
            self.store.keep(gateway.accepting());
        }
        self.follow();
        if let Err(error) = self.look_up() {
            tracing::error!("{error}");
        }
        run::keep(&self_signed, sticky.as_ref(), &self.running.state_dir);
        self.running.waiting.clone_from(&waiting);
        waiting
    }

    fn waiting(&self, live: &Live, state_dir: &Path) -> Vec<String> {
        let mut waiting = Vec::new();
        let wanted = Gateway::wanted_workers(&live.settings);
        if let Some(workers) =
            self.gateway.as_ref().map(Gateway::workers).filter(|workers| *workers != wanted)
        {
            waiting.push(format!("server.workers {workers} -> {wanted}"));
        }
        if state_dir != self.running.state_dir {
            let (before, after) = (self.running.state_dir.display(), state_dir.display());
            waiting.push(format!("server.state_dir {before} -> {after}"));
        }
        waiting
    }
}

/// Nothing is begun.
fn refuse(reply: Option<Sender<Reply>>, refused: Refused) -> Option<Job> {
    answered(reply, Err(refused));
    None
}

/// Which share of the answers between the two failed.
fn share(then: (u64, u64), now: (u64, u64)) -> f64 {
    let (all, failed) = (now.0.saturating_sub(then.0), now.1.saturating_sub(then.1));
    if all == 0 { 0.0 } else { failed as f64 / all as f64 }
}

/// A text in the place of the main file.
fn load_text(main: &Path, text: &str, live: &Live) -> Result<Loaded, Report> {
    config::load_str(&main.display().to_string(), text, &config::folder_of(main), Some(live))
}

/// Writes what is served from now on beside the file that it is read from at the next start.
fn saving(main: &Path, files: &[File]) -> Result<Aside, String> {
    let only = match files {
        [only] if !config::has_include(only) => only,
        _ => {
            return Err("it cannot be saved: with `include` nobody can tell which file a change belongs to; edit the \
                        files, and reload"
                .to_owned());
        }
    };
    // Not the link, but what it leads to: the link may be how it came there.
    let place = fs::canonicalize(main).unwrap_or_else(|_| main.to_owned());
    Aside::like(&place, only.text.as_bytes()).map_err(|error| unsaved(main, &error))
}

fn unsaved(main: &Path, error: &std::io::Error) -> String {
    format!("it is not served, for {} cannot be written: {error}", main.display())
}
