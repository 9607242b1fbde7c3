//! Clients that ask for a name for which there is no certificate yet, but may be in a moment.

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

/// Whether a certificate for this name could be made because it is asked for.
fn is_on_demand(live: &Live, name: &str, local: IpAddr) -> bool {
    live.on_demand
        && name.contains('.')
        && live.certificates.find(name).is_empty()
        && live.routing.host(name, local).is_some_and(|found| {
            // By the site for all hosts, and by no narrower pattern of it.
            found.wildcard == Some(name) && found.site.hosts.contains(&HostPattern::Any)
        })
}

/// Has a certificate made for a name that is asked for, if it may be. True: it is worth coming back.
pub(crate) fn ask(live: &Live, name: &str, local: IpAddr) -> bool {
    is_on_demand(live, name, local) && Demand::shared().is_worth_waiting(name)
}

/// Waits until there is a certificate for this name, if one is on its way.
pub(crate) async fn certificate(worker: &Rc<Worker>, name: Option<&str>, local: IpAddr) {
    let Some(name) = name.map(str::to_ascii_lowercase) else { return };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && ask(&worker.current(), &name, local) {
        sleep(LOOK).await;
    }
}
