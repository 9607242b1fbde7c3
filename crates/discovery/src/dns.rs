//! Looking up VMs by DNS: the addresses of a name, or the services of one (RFC 2782).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};

use crate::Target;

/// What is looked up, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub query: Query,
    /// At least this often; sooner where the answer is valid for less.
    pub interval: Duration,
}

/// Displayed as in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A and AAAA: each address is a VM, at this port.
    Addresses { host: Box<str>, port: u16 },
    /// SRV: each target's addresses are VMs, at its port. A lower priority is a lower tier, weights are weights.
    Services { name: Box<str> },
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Query::Addresses { host, port } => write!(f, "{host}:{port}"),
            Query::Services { name } => f.write_str(name),
        }
    }
}

/// What every resolver here has in common.
pub(crate) fn tune(options: &mut ResolverOpts) {
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Whoever looks knows by himself when to look again.
    options.cache_size = 0;
}

/// The latest a thing that never changes is looked at again.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Dns {
    /// The VMs there are, sorted, and for how long that is valid.
    ///
    /// An answer is all or nothing: if one part of it cannot be had, VMs would seem to be gone that are not.
    pub(crate) async fn look_up(&self, resolver: &TokioResolver) -> Result<(Vec<Target>, Duration), String> {
        let (mut targets, valid) = match &self.query {
            Query::Addresses { host, port } => {
                let (ips, valid) = addresses(resolver, host).await?;
                let target = |ip| Target { address: SocketAddr::new(ip, *port), weight: 1, tier: 0 };
                (ips.into_iter().map(target).collect(), valid)
            }
            Query::Services { name } => services(resolver, name).await?,
        };
        // The same VM under two names is one; the better of its tiers counts.
        targets.sort_by_key(|target: &Target| (target.address, target.tier));
        targets.dedup_by_key(|target| target.address);
        if targets.is_empty() { Err("it has no address".to_owned()) } else { Ok((targets, valid)) }
    }
}

async fn addresses(resolver: &TokioResolver, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
    let host = &*whole(host);
    let (a, aaaa) =
        tokio::join!(resolver.lookup(host, RecordType::A), resolver.lookup(host, RecordType::AAAA));
    let is_unknown = |answer: &Result<Lookup, NetError>| answer.as_ref().is_err_and(NetError::is_nx_domain);
    if is_unknown(&a) && is_unknown(&aaaa) {
        return Err("there is no such name".to_owned());
    }
    let (mut ips, mut valid) = (Vec::new(), FOREVER);
    for answer in [a, aaaa] {
        // Of one kind there need be none: the hosts file may know only the other.
        let Some(answer) = some(answer)? else { continue };
        valid = valid.min(left(&answer));
        ips.extend(answer.answers().iter().filter_map(|record| match &record.data {
            RData::A(ip) => Some(IpAddr::V4(**ip)),
            RData::AAAA(ip) => Some(IpAddr::V6(**ip)),
            _ => None,
        }));
    }
    Ok((ips, valid))
}

async fn services(resolver: &TokioResolver, name: &str) -> Result<(Vec<Target>, Duration), String> {
    let Some(answer) = some(resolver.lookup(&*whole(name), RecordType::SRV).await)? else {
        return Err("it has no SRV record".to_owned());
    };
    let mut valid = left(&answer);
    let services: Vec<&SRV> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A target of "." says that there is none (RFC 2782).
            RData::SRV(service) if !service.target.is_root() => Some(service),
            _ => None,
        })
        .collect();
    let mut priorities: Vec<u16> = services.iter().map(|service| service.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut targets = Vec::new();
    for service in services {
        let (ips, until) = addresses(resolver, &service.target.to_utf8()).await?;
        valid = valid.min(until);
        let tier = priorities.iter().position(|priority| *priority == service.priority).unwrap_or_default();
        targets.extend(ips.into_iter().map(|ip| Target {
            address: SocketAddr::new(ip, service.port),
            // 0 is "hardly ever" there, and "no new work" here.
            weight: u32::from(service.weight).max(1),
            tier: u32::try_from(tier).unwrap_or(u32::MAX),
        }));
    }
    Ok((targets, valid))
}

/// An answer; none where the name has no such record.
fn some(answer: Result<Lookup, NetError>) -> Result<Option<Lookup>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// A name with a dot in it is the whole name: completed with the system's search list, somebody else might be found. One
/// without is meant to be completed.
fn whole(name: &str) -> Cow<'_, str> {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.").into() } else { name.into() }
}

fn left(answer: &Lookup) -> Duration {
    answer.valid_until().saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests;
