//! Clients that ask for a name for which there is no certificate yet, but may be in a moment.
//!
//! Over TCP alone: over QUIC anybody can ask in anybody's name, and nobody could wait.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use foregate_certs::acme::Demand;
use foregate_routing::HostPattern;
use tokio::time::{Instant, sleep};

use crate::Live;
use crate::worker::Worker;

/// How often it is looked whether there is one.
const LOOK: Duration = Duration::from_millis(100);
/// An authority takes a few seconds, and browsers have more patience than that.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients of one worker that wait.
const WAITING: usize = 256;
/// Files are called by names, and those have an end at 255.
const LONGEST: usize = 200;

/// Waits until there is a certificate for this name, if one is on its way.
pub(crate) async fn certificate(worker: &Rc<Worker>, name: Option<&str>, local: IpAddr) {
    if !worker.current().on_demand || worker.demanding.get() >= WAITING {
        return;
    }
    let Some(name) = name.map(str::to_ascii_lowercase) else { return };
    let _counted = Counted::begin(worker);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE
        && is_on_demand(&worker.current(), &name, local)
        && Demand::shared().is_worth_waiting(&name)
    {
        sleep(LOOK).await;
    }
}

/// Whether a certificate for this name could be made because it is asked for.
fn is_on_demand(live: &Live, name: &str, local: IpAddr) -> bool {
    let shown = || live.certificates.present(Some(name), &[]);
    live.on_demand
        && name.len() <= LONGEST
        && matches!(HostPattern::parse(name), Ok(HostPattern::Exact(_)))
        && name.contains('.')
        // What is made here for development stands in for any.
        && shown().is_none_or(|one| one.is_self_signed() || !one.covers(name))
        && live.routing.host(name, local).is_some_and(|found| {
            // By the site for all hosts, and by no narrower pattern of it.
            found.wildcard == Some(name) && found.site.hosts.contains(&HostPattern::Any)
        })
}

/// Counts a client until it is dropped.
struct Counted<'w>(&'w Worker);

impl<'w> Counted<'w> {
    fn begin(worker: &'w Worker) -> Counted<'w> {
        worker.demanding.update(|waiting| waiting + 1);
        Counted(worker)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.demanding.update(|waiting| waiting - 1);
    }
}
