//! Certificates that are renewed while they are shown: their files are read again when they have changed, and it is told of
//! those that nobody renews.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foregate_certs::acme::Demand;
use foregate_edge::Live;
use foregate_routing::Publisher;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::{Instant, sleep};

use super::{Ask, Request};
use crate::pair::{Look, Pair};
use crate::self_signed;

const LOOK: Duration = Duration::from_secs(2);
/// With very many files looking takes its time: that much longer nothing is done.
const REST: u32 = 100;
/// How often it is looked how old they are.
const AGES: Duration = Duration::from_secs(60 * 60);
/// With less than this left one should have been renewed; a fifth of its time, if that is less.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The certificates in files that are shown.
pub(super) type Pairs = Rc<RefCell<Arc<[Pair]>>>;

/// Looks until dropped.
pub(super) struct Renewal(AbortHandle);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Renewal {
    /// In a local runtime.
    pub(super) fn begin(pairs: Pairs, live: Publisher<Live>, asks: UnboundedSender<Ask>) -> Renewal {
        Renewal(spawn_local(attend(pairs, live, asks)).abort_handle())
    }
}

async fn attend(pairs: Pairs, live: Publisher<Live>, asks: UnboundedSender<Ask>) {
    let (mut last, mut tried) = (BTreeMap::new(), BTreeMap::new());
    let (mut ages_due, mut told) = (Instant::now(), HashSet::new());
    let (mut pause, demand) = (LOOK, Demand::shared());
    loop {
        let issued = tokio::select! {
            () = sleep(pause) => false,
            () = demand.issued() => true,
        };
        let all = pairs.borrow().clone();
        let ours = all.iter().filter(|pair| pair.is_ours).map(|pair| (pair.cert.clone(), pair.key.clone()));
        let ours: HashSet<_> = if issued { ours.collect() } else { HashSet::new() };
        let begun = Instant::now();
        let Ok(now) = spawn_blocking(move || changes(&all)).await else { return };
        pause = LOOK.max(begun.elapsed() * REST);
        // Chain and key are written one after the other.
        let before = std::mem::replace(&mut last, now.clone());
        // What we have written ourselves is whole.
        let whole = |pair: &(PathBuf, PathBuf)| issued && ours.contains(pair);
        let settled = now.iter().filter(|(pair, looks)| whole(pair) || before.get(*pair) == Some(*looks));
        let settled: BTreeMap<_, _> = settled.map(|(pair, looks)| (pair.clone(), *looks)).collect();
        let mut due = settled.iter().any(|(pair, looks)| tried.get(pair) != Some(looks));
        if ages_due <= Instant::now() {
            ages_due = Instant::now() + AGES;
            due |= tell_of_ages(&live.load(), SystemTime::now(), &mut told);
        }
        if !due {
            continue;
        }
        let (reply, answered) = oneshot::channel();
        let ask =
            Ask { request: Request::Renew, by: "certificates have changed".to_owned(), reply: Some(reply) };
        if asks.send(ask).is_err() {
            return;
        }
        match answered.await {
            Ok(Err(refused)) if refused.passes => {}
            Ok(answer) => {
                if let Err(refused) = answer {
                    tracing::error!("certificates have changed, and nothing follows:\n{}", refused.message);
                }
                tried = settled;
            }
            Err(_) => return,
        }
    }
}

/// Those whose files are not as they were, and how they are.
fn changes(pairs: &[Pair]) -> BTreeMap<(PathBuf, PathBuf), [Look; 2]> {
    pairs.iter().filter_map(|pair| Some(((pair.cert.clone(), pair.key.clone()), pair.change()?))).collect()
}

/// Tells of each certificate, and of each list of clients that were disowned, once that it is about to expire, and once
/// that it has. Returns whether one is to be made anew.
fn tell_of_ages(live: &Live, now: SystemTime, told: &mut HashSet<(String, bool)>) -> bool {
    let mut anew = false;
    for (shown_for, certificate) in live.certificates.all() {
        let Some(facts) = certificate.facts() else { continue };
        let left = facts.not_after.duration_since(now).unwrap_or_default();
        if certificate.is_self_signed() {
            anew |= left < self_signed::RENEWAL;
            continue;
        }
        let (until, shown_for) = (humantime::format_rfc3339_seconds(facts.not_after), shown_for.join(" "));
        let expired = left.is_zero();
        if left > SOON.min(facts.lifetime() / 5) || !told.insert((certificate.fingerprint(), expired)) {
            continue;
        }
        if expired {
            tracing::error!(%until, "the certificate for {shown_for} has expired: clients refuse it; renew its files");
        } else {
            tracing::warn!(%until, "the certificate for {shown_for} is about to expire, and nobody has renewed it");
        }
    }
    for list in live.clients.iter().flat_map(|clients| clients.lists()) {
        let Some(end) = list.until else { continue };
        let left = end.duration_since(now).unwrap_or_default();
        let lifetime = end.duration_since(list.since).unwrap_or_default();
        let (until, issuer, expired) = (humantime::format_rfc3339_seconds(end), &list.issuer, left.is_zero());
        if left > SOON.min(lifetime / 5) || !told.insert((format!("{issuer} {until}"), expired)) {
            continue;
        }
        if expired {
            tracing::error!(%until, "the revocation list of {issuer} is out of date: its clients are refused; renew `client_crl`");
        } else {
            tracing::warn!(%until, "the revocation list of {issuer} is about to be out of date, and nobody has renewed it");
        }
    }
    anew
}
