//! The prober: one thread of the process that asks its own HTTP/3 whether it is there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foregate_exchange::{Body, Failure, Kind};
use foregate_routing::{Address, Endpoint, InFlight, Publisher};
use foregate_upstream::{Client, Outgoing, Transport};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use super::judge::{Change, Judge, MANY, Seen};
use super::{Advertising, Saying};
use crate::Live;
use crate::settings::AltSvc;
use crate::terms::Terms;

/// How long one question may take. It goes to this machine, or to the router before it and back.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the start waits for the first finding, so that the first answers carry the advertisement. What is
/// there answers within milliseconds.
const FIRST: Duration = Duration::from_millis(500);
/// A host nobody has (RFC 6761): the gateway answers itself, and no VM is asked.
pub(super) const NOBODY: &str = "foregate.invalid";

/// Begins to look after what is said, until there is no more `news` to come. Returns when the first probe has found
/// something, or after a moment.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn probe(
    live: Publisher<Live>,
    advertising: &Arc<Advertising>,
    news: watch::Receiver<bool>,
) -> io::Result<()> {
    let (first, found) = std::sync::mpsc::channel();
    let advertising = advertising.clone();
    std::thread::Builder::new().name("alt-svc".to_owned()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(run(&live, &advertising, news, first)),
            Err(error) => {
                tracing::error!(%error, "the HTTP/3 probe cannot start, and HTTP/3 is not advertised")
            }
        }
    })?;
    _ = found.recv_timeout(FIRST);
    Ok(())
}

async fn run(
    live: &Publisher<Live>,
    advertising: &Advertising,
    mut news: watch::Receiver<bool>,
    first: std::sync::mpsc::Sender<()>,
) {
    let mut first = Some(first);
    let mut judge = Judge::new(Duration::ZERO);
    loop {
        if *news.borrow_and_update() {
            return;
        }
        let current = live.load();
        let http3 = &current.settings.http3;
        let max_age = http3.alt_svc_max_age;
        if http3.alt_svc != AltSvc::Auto || !current.settings.serves_http3() {
            let always = http3.alt_svc == AltSvc::Always && current.settings.serves_http3();
            drop(current);
            judge = Judge::new(max_age);
            first = None;
            if !said_without_probing(advertising, always, max_age, &mut news).await {
                return;
            }
            continue;
        }
        judge.tell_for(max_age);
        let found = tokio::select! {
            found = examine(&current) => found,
            _ = news.wait_for(|over| *over) => return,
        };
        drop(current);
        let told = advertising.told.count();
        let seen = Seen { answered: found.is_ok(), told, came: advertising.came.load(Ordering::Relaxed) };
        let now = Instant::now();
        let change = judge.judge(now, seen);
        advertising.say(judge.saying(now));
        match (change, &found) {
            (Some(Change::Begins), Ok(false)) => {
                tracing::info!(
                    "HTTP/3 is advertised by Alt-Svc, and not probed: every site requires a client's certificate"
                )
            }
            (Some(Change::Begins), _) => {
                tracing::info!("HTTP/3 is advertised by Alt-Svc: the probe was answered")
            }
            (Some(Change::NeverBegan), Err(silence)) => {
                tracing::warn!(reason = %silence, "HTTP/3 is not advertised")
            }
            (Some(Change::Fails), Err(silence)) => {
                tracing::warn!(reason = %silence, "HTTP/3 is no longer advertised; clients are told Alt-Svc: clear");
            }
            (Some(Change::NobodyComes), _) => {
                tracing::warn!(
                    told,
                    "HTTP/3 is no longer advertised: none of at least {MANY} clients ever came over it; does a \
                     firewall outside drop UDP? Clients are told Alt-Svc: clear"
                );
            }
            (None, Err(silence)) => tracing::debug!(reason = %silence, "the HTTP/3 probe failed"),
            _ => {}
        }
        if matches!(change, Some(Change::Begins | Change::NobodyComes)) {
            // Those told before had their chance, and those who came before proved what was then.
            advertising.told.clear();
            advertising.came.store(false, Ordering::Relaxed);
        }
        if let Some(first) = first.take() {
            _ = first.send(());
        }
        tokio::select! {
            () = tokio::time::sleep(judge.pause()) => {}
            heard = news.changed() => if heard.is_err() { return },
        }
    }
}

/// What is said where nobody probes, until there are news. False: there are none any more.
async fn said_without_probing(
    advertising: &Advertising,
    always: bool,
    max_age: Duration,
    news: &mut watch::Receiver<bool>,
) -> bool {
    if always {
        advertising.say(Saying::Come);
    } else if advertising.saying() != Saying::Nothing {
        // Clients remember what they were told.
        advertising.say(Saying::Clear);
        tokio::select! {
            () = tokio::time::sleep(max_age) => {}
            heard = news.changed() => return heard.is_ok(),
        }
        advertising.say(Saying::Nothing);
    }
    news.changed().await.is_ok()
}

/// Why HTTP/3 does not seem to be there.
#[derive(Debug)]
struct Silence {
    asked: Option<Address>,
    failure: Failure,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.asked {
            Some(asked) => write!(f, "no HTTP/3 at {asked}, UDP: {}", self.failure),
            None => write!(f, "{}", self.failure),
        }
    }
}

/// Asks every advertised port on every address. False: nobody could be asked, and it is taken for reachable.
async fn examine(live: &Live) -> Result<bool, Silence> {
    let settings = &live.settings;
    let mut pinned = live
        .certificates
        .names()
        .filter_map(|(name, certificate)| Some((name, certificate.end_entity()?)))
        .peekable();
    if pinned.peek().is_none() {
        let failure = Failure::because(Kind::Tls, "there is no certificate to show");
        return Err(Silence { asked: None, failure });
    }
    // Where only clients with a certificate are answered we are not, and have to believe it.
    let Some((name, leaf)) = pinned.find(|(name, _)| !requires(live, name)) else { return Ok(false) };
    let transport = Transport::pinned(&name, leaf.clone(), ANSWER)
        .map_err(|error| Silence { asked: None, failure: Failure::because(Kind::Tls, error) })?;
    for port in &settings.https {
        let advertised = settings.http3.alt_svc_port.unwrap_or(*port);
        for ip in reachable(&settings.addresses) {
            let here = |port| Address::Ip(SocketAddr::new(ip, port));
            let Err(silence) = ask(here(advertised), &transport).await else { continue };
            if advertised == *port {
                return Err(silence);
            }
            // A NAT maps it: from outside it is under the public name, if the NAT leads back in.
            let outside = Address::Name { host: name.as_str().into(), port: advertised };
            match ask(outside, &transport).await {
                Ok(()) => {}
                Err(unknown) if unknown.failure.kind() == Kind::Resolve => return Err(silence),
                Err(_) => ask(here(*port), &transport).await?,
            }
        }
    }
    Ok(true)
}

/// Whether a client that asks for this name must have a certificate, on whichever address.
fn requires(live: &Live, name: &str) -> bool {
    let mut addresses = reachable(&live.settings.addresses);
    addresses
        .any(|ip| Terms::of(live, Some(name), &[], ip).rules.clients.is_some_and(|clients| clients.required))
}

/// Where this machine reaches what it listens on: of an address for all of them, the loopback one.
fn reachable(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let both = addresses.iter().any(|ip| ip.is_ipv4() && ip.is_unspecified());
    addresses.iter().filter_map(move |ip| match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Some(Ipv4Addr::LOCALHOST.into()),
        // Beside the other it may be missing on this machine, and is the same socket where it is not.
        IpAddr::V6(ip) if ip.is_unspecified() => (!both).then_some(Ipv6Addr::LOCALHOST.into()),
        ip => Some(*ip),
    })
}

/// One request; any answer will do.
async fn ask(address: Address, transport: &Transport) -> Result<(), Silence> {
    let endpoint = Endpoint::new("alt-svc".into(), address.clone());
    let client = Client::default();
    let asking = async {
        let link = client.connect(&endpoint, transport, false).await?;
        let mut outgoing = Outgoing {
            method: Method::HEAD,
            target: http::uri::PathAndQuery::from_static("/"),
            authority: HeaderValue::from_static(NOBODY),
            headers: HeaderMap::new(),
            body: Body::Empty,
            ask_trailers: false,
            upgrade: None,
            response_timeout: None,
            idle_timeout: None,
        };
        let ignore = |_: StatusCode, _: HeaderMap| {};
        link.send(&mut outgoing, InFlight::begin(&endpoint), ignore).await.map_err(|error| error.failure)
    };
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(failure)) => Err(Silence { asked: Some(address), failure }),
        Err(_) => Err(Silence { asked: Some(address), failure: Kind::HeadTimeout.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_asked_on_the_loopback() {
        let asked = |addresses: &[&str]| -> Vec<String> {
            let addresses: Vec<IpAddr> = addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
            reachable(&addresses).map(|ip| ip.to_string()).collect()
        };
        assert_eq!(asked(&["0.0.0.0", "::"]), ["127.0.0.1"]);
        assert_eq!(asked(&["::"]), ["::1"]);
        assert_eq!(asked(&["203.0.113.7", "2001:db8::7"]), ["203.0.113.7", "2001:db8::7"]);
        assert_eq!(asked(&["203.0.113.7", "::"]), ["203.0.113.7", "::1"]);
    }
}
