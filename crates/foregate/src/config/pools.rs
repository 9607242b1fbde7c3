//! `[pools.*]` and `[defaults.pools]`: which VMs answer, and how one of them is chosen.

use std::time::Duration;

use foregate_discovery::Dns;
use foregate_routing::{Address, Agent, Balance, HashOn, MemberSpec, PoolSpec, Secret, Sticky, Wake};
use foregate_upstream::Protocol;

use super::agent::{AgentLayer, WakeLayer};
use super::decode::{Table, Value};
use super::diagnostic::{Problem, Problems};
use super::discover;
use super::failing::{self, OutlierLayer, QueueLayer, RetryLayer};
use super::health::HealthLayer;
use super::inherit::{Layer, Said};
use super::names::Named;
use super::source::{Place, Placed};
use super::transport::{PoolTlsLayer, TimeoutsLayer};
use super::value::{self, Location, Misfit};
use super::when::{cookie_name, header_name};

/// Keys of a pool that may hold tables.
pub(super) const TABLES: [&str; 11] = [
    "sticky", "tls", "timeouts", "health", "agent", "outlier", "retry", "queue", "wake", "discover",
    "backends",
];

/// One pool, named or inline.
#[derive(Debug)]
pub(super) struct PoolDraft {
    pub(super) name: Placed<String>,
    pub(super) layer: PoolLayer,
    pub(super) backends: Vec<Backend>,
    /// Where others are looked up.
    pub(super) discover: Option<Dns>,
}

#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) location: Placed<Location>,
    name: Option<Placed<String>>,
    weight: u32,
    tier: u32,
    max_requests: Option<u32>,
}

/// What a pool may inherit from `[defaults.pools]`.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolLayer {
    balance: Option<Balance>,
    hash_on: Option<Placed<HashOn>>,
    sticky: Said<StickyLayer>,
    pub(super) protocol: Option<Placed<Protocol>>,
    pub(super) tls: Said<PoolTlsLayer>,
    pub(super) timeouts: Said<TimeoutsLayer>,
    health: Said<HealthLayer>,
    outlier: Said<OutlierLayer>,
    retry: Said<RetryLayer>,
    queue: Said<QueueLayer>,
    slow_start: Said<Duration>,
    agent: Said<AgentLayer>,
    wake: Said<WakeLayer>,
}

#[derive(Clone, Debug, Default)]
struct StickyLayer {
    cookie: Option<String>,
    max_age: Said<Duration>,
}

impl PoolLayer {
    pub(super) fn read_defaults(table: Table<'_>) -> PoolLayer {
        let layer = PoolLayer::read(&table);
        table.misplaced(&["backends", "discover"], "this is each pool's own: write it under [pools.NAME]");
        table.finish();
        layer
    }

    pub(super) fn probes_grpc(&self) -> bool {
        self.health.as_ref().value().is_some_and(HealthLayer::is_grpc)
    }

    fn read(table: &Table<'_>) -> PoolLayer {
        let balancers: Vec<(&str, Balance)> = Balance::NAMES.into_iter().zip(Balance::ALL).collect();
        let layer = PoolLayer {
            balance: table.read("balance", |value| value.one_of(&balancers)),
            hash_on: table.read("hash_on", |value| {
                value.parse(
                    "\"client_ip\", \"header:NAME\", \"cookie:NAME\", \"query:NAME\" or \"path\"",
                    hash_on,
                )
            }),
            sticky: table.said("sticky", read_sticky),
            protocol: table.read("protocol", read_protocol),
            tls: table.said("tls", PoolTlsLayer::read),
            timeouts: table.said("timeouts", TimeoutsLayer::read),
            health: table.said("health", HealthLayer::read),
            outlier: table.said("outlier", OutlierLayer::read),
            retry: table.said("retry", RetryLayer::read),
            queue: table.said("queue", QueueLayer::read),
            slow_start: table.said("slow_start", Value::duration),
            agent: table.said("agent", AgentLayer::read),
            wake: table.said("wake", WakeLayer::read),
        };
        for key in ["send_proxy", "bandwidth"] {
            table.later(key, |value| value.is_word("off"));
        }
        layer
    }
}

impl PoolDraft {
    pub(super) fn read(named: Named<'_>) -> PoolDraft {
        let Named { name, table } = named;
        if name.value.is_empty() || value::looks_like_location(&name.value) {
            let problem =
                Problem::error(name.place, format!("\"{}\" cannot be the name of a pool", name.value));
            table.problem(problem.help("where pools are named, a text with `:` or `/` is an address"));
        }
        let layer = PoolLayer::read(&table);
        let discover = discover::read(&table);
        let backends = read_backends(&table, &name.value);
        table.finish();
        PoolDraft { name, layer, backends, discover }
    }

    /// The pool of an address or a list of addresses written where a pool is named.
    pub(super) fn inline(
        name: Placed<String>,
        locations: Vec<Placed<Location>>,
        problems: &Problems,
    ) -> PoolDraft {
        let mut backends: Vec<Backend> = Vec::new();
        for location in locations {
            let backend = Backend { location, name: None, weight: 1, tier: 0, max_requests: None };
            if is_new(&backend, &backends, problems) {
                backends.push(backend);
            }
        }
        PoolDraft { name, layer: PoolLayer::default(), backends, discover: None }
    }

    /// Compiles all but the transport. Call it with `layer` already merged over the defaults.
    pub(super) fn compile(&self, layer: &PoolLayer, around: &Around, problems: &Problems) -> PoolSpec {
        let balance = layer.balance.unwrap_or_default();
        if let Some(hash_on) = self.layer.hash_on.as_ref().filter(|_| balance != Balance::Hash) {
            let problem =
                Problem::warning(hash_on.place, "`hash_on` has no effect without `balance = \"hash\"`");
            problems.push(problem);
        }
        if let Some(first) = self.backends.first()
            && self.discover.is_none()
            && self.backends.iter().all(|backend| backend.weight == 0)
        {
            let message =
                format!("every backend of the pool `{}` has weight 0: it takes no new work", self.name.value);
            problems.push(Problem::warning(first.location.place, message));
        }
        let members = self.backends.iter().map(|backend| {
            let address = backend.location.value.address.clone();
            MemberSpec {
                name: backend.shown_name().into(),
                address,
                weight: backend.weight,
                tier: backend.tier,
                max_requests: backend.max_requests,
            }
        });
        let queue = failing::queue(&layer.queue);
        let health = layer.health.as_ref().value();
        let health = health.and_then(|health| health.compile(self.name.place, problems));
        PoolSpec {
            name: self.name.value.as_str().into(),
            balance,
            hash_on: layer.hash_on.as_ref().map(|hash_on| hash_on.value.clone()).unwrap_or_default(),
            sticky: layer.sticky.clone().value().map(|sticky| sticky.compile(around.secret)),
            agent: layer.agent.as_ref().value().and_then(|agent| self.agent(agent, problems)),
            wake: layer
                .wake
                .as_ref()
                .value()
                .and_then(|wake| self.wake(wake, health.is_some(), queue.length > 0, problems)),
            health,
            slow_start: layer.slow_start.clone().value(),
            drain: around.drain,
            outlier: failing::outlier(&layer.outlier),
            retry: failing::retry(&layer.retry),
            queue,
            members: members.collect(),
        }
    }

    fn wake(&self, wake: &WakeLayer, is_probed: bool, waits: bool, problems: &Problems) -> Option<Wake> {
        // Who waits would not see whom it finds.
        if self.discover.is_some() {
            let message = "`wake` in a pool with `discover` is not supported yet";
            let problem = Problem::error(self.name.place, message);
            problems.push(problem.help("write `wake = \"off\"`, or name the VMs under `backends`"));
            return None;
        }
        wake.compile(is_probed, waits, problems)
    }

    fn agent(&self, agent: &AgentLayer, problems: &Problems) -> Option<Agent> {
        let unreachable = |backend: &&Backend| matches!(backend.address(), Address::Unix(_));
        if let Some(backend) = self.backends.iter().find(unreachable) {
            let message = "an agent is asked over the network, and this backend is a unix socket";
            let problem = Problem::error(backend.location.place, message);
            problems.push(problem.help("write `agent = \"off\"` in this pool"));
            return None;
        }
        agent.compile(problems)
    }
}

/// What pools take from the rest of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// `server.timeouts.drain`
    pub(super) drain: Duration,
    /// What sticky cookies are made with.
    pub(super) secret: Secret,
}

impl Backend {
    pub(super) fn address(&self) -> &Address {
        &self.location.value.address
    }

    fn shown_name(&self) -> String {
        match &self.name {
            Some(name) => name.value.clone(),
            None => self.address().to_string(),
        }
    }

    fn name_place(&self) -> Place {
        self.name.as_ref().map_or(self.location.place, |name| name.place)
    }
}

fn read_backends(table: &Table<'_>, pool: &str) -> Vec<Backend> {
    let Some(value) = table.get("backends") else {
        if table.get("discover").is_none() && !table.misspells(&["backends"]) {
            let problem = Problem::absence(table.place(), format!("the pool `{pool}` has no `backends`"));
            table.problem(problem.help("write `backends = [\"192.168.1.10:8080\"]`"));
        }
        return Vec::new();
    };
    let mut backends: Vec<Backend> = Vec::new();
    value.at_least_one(|one| {
        let backend = read_backend(one)?;
        if is_new(&backend, &backends, table.problems()) {
            backends.push(backend);
        }
        Some(())
    });
    backends
}

fn read_backend(value: &Value<'_>) -> Option<Backend> {
    const EXPECTED: &str = "an address or a table with `address`";
    if value.is_string() {
        let location = value.parse(EXPECTED, value::location)?;
        return Some(Backend { location, name: None, weight: 1, tier: 0, max_requests: None });
    }
    let table = value.table_or(EXPECTED)?;
    let address = table.get("address");
    let name = table.read("name", Value::string);
    let weight = table.read("weight", |value| value.number(0, 65_535, "a number from 0 to 65535"));
    let tier = table.read("tier", |value| value.number(0, 255, "a number from 0 to 255"));
    let max_requests =
        table.read("max_requests", |value| value.number(1, 1_000_000, "a number from 1 to 1000000"));
    table.later("bandwidth", |value| value.is_word("off"));
    if address.is_none() && !table.misspells(&["address"]) {
        table.problem(Problem::absence(table.place(), "a backend needs `address`"));
    }
    table.finish();
    let location = address?.parse("an address", value::location)?;
    Some(Backend { location, name, weight: weight.unwrap_or(1), tier: tier.unwrap_or(0), max_requests })
}

/// Health and cookies tell backends apart by address and name, so neither may stand twice.
fn is_new(backend: &Backend, others: &[Backend], problems: &Problems) -> bool {
    let (address, name) = (backend.address(), backend.shown_name());
    if let Some(first) = others.iter().find(|other| other.address() == address) {
        let problem = Problem::error(
            backend.location.place,
            format!("the backend {address} stands twice in this pool"),
        );
        problems.push(
            problem.other(first.location.place, "here first").help("`weight` gives a VM more of the work"),
        );
        return false;
    }
    if let Some(first) = others.iter().find(|other| other.shown_name() == name) {
        let problem =
            Problem::error(backend.name_place(), format!("two backends of this pool are named `{name}`"));
        problems.push(problem.other(first.name_place(), "the first one"));
        return false;
    }
    true
}

fn read_protocol(value: &Value<'_>) -> Option<Placed<Protocol>> {
    let words = [
        ("http1", Protocol::Http1),
        ("h2", Protocol::H2),
        ("h2c", Protocol::H2c),
        ("h3", Protocol::H3),
        ("auto", Protocol::Auto),
    ];
    Some(Placed::new(value.one_of(&words)?, value.place()))
}

fn hash_on(text: &str) -> Result<HashOn, Misfit> {
    match text.split_once(':') {
        None if text == "client_ip" => Ok(HashOn::ClientIp),
        None if text == "path" => Ok(HashOn::Path),
        Some(("header", name)) => Ok(HashOn::Header(header_name(name)?)),
        Some(("cookie", name)) => Ok(HashOn::Cookie(cookie_name(name)?.into())),
        Some(("query", name)) if !name.is_empty() => Ok(HashOn::Query(name.into())),
        _ => Err(Misfit::new(format!("\"{text}\" is nothing a balancer can hash"))
            .help("write \"client_ip\", \"header:NAME\", \"cookie:NAME\", \"query:NAME\" or \"path\"")),
    }
}

fn read_sticky(value: &Value<'_>) -> Option<StickyLayer> {
    let table = value.table_or("\"off\" or a table such as { cookie = \"fg_vm\", max_age = \"1h\" }")?;
    let cookie = table.read("cookie", |value| {
        value.parse("the name of a cookie", |text| cookie_name(text).map(str::to_owned))
    });
    let layer = StickyLayer {
        cookie: cookie.map(|cookie| cookie.value),
        max_age: table.said("max_age", Value::duration),
    };
    table.finish();
    Some(layer)
}

impl StickyLayer {
    fn compile(self, secret: Secret) -> Sticky {
        let cookie = self.cookie.unwrap_or_else(|| "fg_vm".to_owned());
        Sticky { cookie: cookie.into(), max_age: self.max_age.value(), secret }
    }
}

impl Layer for StickyLayer {
    fn over(self, below: &StickyLayer) -> StickyLayer {
        StickyLayer {
            cookie: self.cookie.or_else(|| below.cookie.clone()),
            max_age: self.max_age.or(below.max_age.clone()),
        }
    }
}

impl Layer for PoolLayer {
    fn over(self, below: &PoolLayer) -> PoolLayer {
        PoolLayer {
            balance: self.balance.or(below.balance),
            hash_on: self.hash_on.or_else(|| below.hash_on.clone()),
            sticky: self.sticky.over(&below.sticky),
            protocol: self.protocol.or_else(|| below.protocol.clone()),
            tls: self.tls.over(&below.tls),
            timeouts: self.timeouts.over(&below.timeouts),
            health: self.health.over(&below.health),
            outlier: self.outlier.over(&below.outlier),
            retry: self.retry.over(&below.retry),
            queue: self.queue.over(&below.queue),
            slow_start: self.slow_start.or(below.slow_start.clone()),
            agent: self.agent.over(&below.agent),
            wake: self.wake.over(&below.wake),
        }
    }
}
