//! How the VMs of a pool are spoken to: the protocol by key or by the scheme of the addresses, and TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use foregate_discovery::Query;
use foregate_routing::Address;
use foregate_upstream::{Protocol, TlsSpec, Transport, TransportSpec};

use super::decode::Value;
use super::diagnostic::{Problem, Problems};
use super::inherit::{Layer, Said};
use super::pools::{PoolDraft, PoolLayer};
use super::source::{Place, Placed};
use super::value::Scheme;
use crate::pair::Pair;

/// One layer of a pool's `tls`.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolTlsLayer {
    ca: Option<Placed<PathBuf>>,
    server_name: Option<Placed<String>>,
    cert: Option<Placed<PathBuf>>,
    key: Option<Placed<PathBuf>>,
    verify: Option<Placed<bool>>,
}

/// One layer of a pool's `timeouts`.
#[derive(Clone, Debug, Default)]
pub(super) struct TimeoutsLayer {
    connect: Said<Duration>,
    keep_alive: Said<Duration>,
}

const CONNECT: Duration = Duration::from_secs(2);

/// Below the VM's own, so that it is us who close: Node.js closes idle connections after 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

impl PoolTlsLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<PoolTlsLayer> {
        let table = value.table_or("\"off\" or a table such as { ca = \"vm-ca.pem\" }")?;
        let layer = PoolTlsLayer {
            ca: table.read("ca", Value::path),
            server_name: table.read("server_name", Value::string),
            cert: table.read("cert", Value::path),
            key: table.read("key", Value::path),
            verify: table.read("verify", |value| Some(Placed::new(value.bool()?, value.place()))),
        };
        table.finish();
        Some(layer)
    }

    /// Where the file or name stands that an error is about.
    fn place_of(&self, path: Option<&Path>) -> Option<Place> {
        let file = |file: &Option<Placed<PathBuf>>| {
            file.as_ref().filter(|file| Some(file.value.as_path()) == path).map(|file| file.place)
        };
        file(&self.ca).or_else(|| file(&self.cert)).or_else(|| file(&self.key)).or_else(|| {
            let name = self.server_name.as_ref().filter(|_| path.is_none());
            name.map(|name| name.place)
        })
    }
}

impl Layer for PoolTlsLayer {
    fn over(self, below: &PoolTlsLayer) -> PoolTlsLayer {
        PoolTlsLayer {
            ca: self.ca.or_else(|| below.ca.clone()),
            server_name: self.server_name.or_else(|| below.server_name.clone()),
            cert: self.cert.or_else(|| below.cert.clone()),
            key: self.key.or_else(|| below.key.clone()),
            verify: self.verify.or_else(|| below.verify.clone()),
        }
    }
}

impl TimeoutsLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<TimeoutsLayer> {
        let table = value.table()?;
        let layer = TimeoutsLayer {
            connect: table.said("connect", Value::duration),
            keep_alive: table.said("keep_alive", Value::duration_or_zero),
        };
        table.finish();
        Some(layer)
    }
}

impl Layer for TimeoutsLayer {
    fn over(self, below: &TimeoutsLayer) -> TimeoutsLayer {
        TimeoutsLayer {
            connect: self.connect.or(below.connect.clone()),
            keep_alive: self.keep_alive.or(below.keep_alive.clone()),
        }
    }
}

/// Decides the protocol of a pool and opens the files its TLS needs, which are added to those that are watched. `layer` is
/// merged over the defaults. `renews`: nothing but files has changed, so what cannot be used any more is kept as it was.
pub(super) fn compile(
    pool: &PoolDraft,
    layer: &PoolLayer,
    previous: Option<&Arc<Transport>>,
    renews: bool,
    watched: &mut Vec<Pair>,
    problems: &Problems,
) -> Option<Arc<Transport>> {
    let scheme = common_scheme(pool, problems)?;
    let (protocol, encrypted) = protocol(pool, layer, scheme, problems)?;
    let socket = pool.backends.iter().find(|backend| matches!(backend.address(), Address::Unix(_)));
    if let (Protocol::H3, Some(socket)) = (protocol, socket) {
        let problem = Problem::error(socket.location.place, "HTTP/3 is not spoken over a unix socket");
        problems.push(problem.help("write \"host:port\", or another `protocol`"));
        return None;
    }
    if protocol == Protocol::Http1 && layer.probes_grpc() {
        let message =
            format!("gRPC probes need HTTP/2 or HTTP/3, and the pool `{}` speaks HTTP/1.1", pool.name.value);
        let problem = Problem::error(pool.name.place, message);
        problems.push(
            problem.help("write `protocol = \"h2c\"`, or addresses such as \"h2c://192.168.1.10:50051\""),
        );
        return None;
    }
    let tls = if encrypted { Some(tls_spec(pool, layer, problems)?) } else { None };
    if let Some(tls) = &tls {
        // Before they are read: what changes meanwhile is read again.
        watched.extend(tls.ca.as_ref().map(|ca| Pair::watched(ca, ca)));
        watched.extend(tls.identity.as_ref().map(|(cert, key)| Pair::watched(cert, key)));
    }
    let (connect_timeout, keep_alive) = match layer.timeouts.as_ref() {
        Said::Nothing => (Some(CONNECT), Some(KEEP_ALIVE)),
        Said::Off => (None, None),
        Said::Value(timeouts) => (
            timeouts.connect.clone().value_or(Some(CONNECT)),
            timeouts.keep_alive.clone().value_or(Some(KEEP_ALIVE)),
        ),
    };
    match Transport::following(previous, TransportSpec { protocol, tls, connect_timeout, keep_alive }) {
        Ok(transport) => Some(transport),
        Err(error) => {
            let place = layer.tls.as_ref().value().and_then(|tls| tls.place_of(error.path()));
            let (place, before) = (place.unwrap_or(pool.name.place), previous.filter(|_| renews));
            problems.push(match before {
                Some(_) => Problem::warning(place, error.to_string())
                    .help("what was there before is used on, until these files change again"),
                None => Problem::error(place, error.to_string()),
            });
            before.cloned()
        }
    }
}

/// One pool speaks one protocol, so its addresses have one scheme; a plain `host:port` goes with `http://`.
fn common_scheme(pool: &PoolDraft, problems: &Problems) -> Option<Option<Placed<Scheme>>> {
    let mut found: Option<Placed<Scheme>> = None;
    for backend in &pool.backends {
        let location = &backend.location;
        if let (None, Some(scheme)) = (&found, location.value.scheme) {
            found = Some(Placed::new(scheme, location.place));
        }
    }
    let Some(first) = found else { return Some(None) };
    for backend in &pool.backends {
        let scheme = backend.location.value.scheme;
        if scheme != Some(first.value) && !(scheme.is_none() && first.value == Scheme::Http) {
            let problem = Problem::error(backend.location.place, "the addresses of one pool have one scheme")
                .other(first.place, format!("this is `{}`", first.value))
                .help("make two pools of them, and a `split` where both shall answer");
            problems.push(problem);
            return None;
        }
    }
    Some(Some(first))
}

/// The protocol, and whether TLS carries it. What the pool writes itself must agree with its addresses;
/// what the defaults say yields to them.
fn protocol(
    pool: &PoolDraft,
    layer: &PoolLayer,
    scheme: Option<Placed<Scheme>>,
    problems: &Problems,
) -> Option<(Protocol, bool)> {
    let word = layer.protocol.as_ref();
    let own_word = pool.layer.protocol.is_some();
    let fits = |scheme: Scheme, protocol: Protocol| match scheme {
        Scheme::Http => matches!(protocol, Protocol::Http1 | Protocol::H2c),
        Scheme::H2c => protocol == Protocol::H2c,
        Scheme::H3 => protocol == Protocol::H3,
        Scheme::Https => protocol != Protocol::H2c,
    };
    let (protocol, encrypted) = match &scheme {
        None => {
            let protocol = word.map_or(Protocol::Http1, |word| word.value);
            let implied = matches!(protocol, Protocol::H2 | Protocol::H3 | Protocol::Auto);
            let written = matches!(layer.tls, Said::Value(_)) && protocol != Protocol::H2c;
            (protocol, implied || written)
        }
        Some(scheme) => {
            if let Some(word) = word.filter(|word| own_word && !fits(scheme.value, word.value)) {
                let message = format!("this protocol is not spoken over `{}`", scheme.value);
                let problem = Problem::error(word.place, message).other(scheme.place, "by this address");
                problems.push(problem.help(
                    "\"h2\" and \"auto\" need `https://`, \"h2c\" needs `h2c://`, \"h3\" needs `h3://` or `https://`; or leave the scheme out",
                ));
                return None;
            }
            let word = word.map(|word| word.value).filter(|protocol| fits(scheme.value, *protocol));
            let default = match scheme.value {
                Scheme::Http => Protocol::Http1,
                Scheme::H2c => Protocol::H2c,
                Scheme::H3 => Protocol::H3,
                Scheme::Https => Protocol::Auto,
            };
            (word.unwrap_or(default), matches!(scheme.value, Scheme::Https | Scheme::H3))
        }
    };
    let contradiction = match &pool.layer.tls {
        Said::Off if encrypted => "`tls = \"off\"`, and its protocol needs TLS",
        Said::Value(_) if !encrypted => "a `tls` table, and speaks without TLS",
        _ => return Some((protocol, encrypted)),
    };
    let place = scheme.map(|scheme| scheme.place).or(word.map(|word| word.place)).unwrap_or(pool.name.place);
    problems.push(Problem::error(place, format!("the pool `{}` has {contradiction}", pool.name.value)));
    None
}

/// The name that the certificates of VMs are for that were found under it.
fn looked_up(pool: &PoolDraft) -> Option<String> {
    match &pool.discover.as_ref()?.query {
        Query::Addresses { host, .. } => Some(host.to_string()),
        Query::Services { .. } => None,
    }
}

fn tls_spec(pool: &PoolDraft, layer: &PoolLayer, problems: &Problems) -> Option<TlsSpec> {
    let tls = layer.tls.clone().value().unwrap_or_default();
    let identity = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some((cert.value.clone(), key.value.clone())),
        (None, None) => None,
        (Some(lonely), None) | (None, Some(lonely)) => {
            problems.push(Problem::error(lonely.place, "`cert` and `key` of a `tls` table go together"));
            return None;
        }
    };
    if let Some(verify) = tls.verify.as_ref().filter(|verify| !verify.value) {
        let message = format!("the certificates of the pool `{}` are not verified", pool.name.value);
        let problem = Problem::warning(verify.place, message);
        problems.push(
            problem
                .help("anyone on the way can answer for its VMs; `ca = \"...\"` trusts a private authority"),
        );
    }
    let socket = pool.backends.iter().find(|backend| matches!(backend.address(), Address::Unix(_)));
    if let (Some(socket), None) = (socket, &tls.server_name) {
        let problem = Problem::error(socket.location.place, "TLS over a unix socket needs a name to verify");
        problems.push(problem.help("write `tls = { server_name = \"app.lan\" }`"));
        return None;
    }
    let verifies = tls.verify.as_ref().is_none_or(|verify| verify.value);
    let is_service = matches!(&pool.discover, Some(dns) if matches!(dns.query, Query::Services { .. }));
    if verifies && is_service && tls.server_name.is_none() {
        let message =
            "TLS to VMs found by SRV records needs a name to verify: only their addresses are known";
        let problem = Problem::error(pool.name.place, message);
        problems.push(problem.help("write `tls = { server_name = \"app.lan\" }`"));
        return None;
    }
    Some(TlsSpec {
        ca: tls.ca.map(|ca| ca.value),
        server_name: tls.server_name.map(|name| name.value),
        found_as: looked_up(pool),
        identity,
        verify: tls.verify.is_none_or(|verify| verify.value),
    })
}
