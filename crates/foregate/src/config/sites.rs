//! `[sites.*]` and `[defaults.sites]`: who is asked for, and what holds for all of a site's routes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use foregate_routing::{HostPattern, TlsVersion};
use http::HeaderValue;

use super::actions::Action;
use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::host;
use super::inherit::{Layer, Said};
use super::names::Named;
use super::policy::PolicyLayer;
use super::routes::RouteDraft;
use super::server;
use super::source::Placed;
use super::tls;

/// Keys of a site that may hold tables.
pub(super) const TABLES: [&str; 8] =
    ["hsts", "tls", "timeouts", "redirect", "respond", "split", "pool", "routes"];

/// One site, its pools still names.
#[derive(Debug)]
pub(super) struct SiteDraft {
    pub(super) name: Placed<String>,
    pub(super) hosts: Vec<Placed<HostPattern>>,
    pub(super) layer: SiteLayer,
    /// Its route for `/`, and for routes that name none.
    pub(super) action: Option<Action>,
    pub(super) routes: Vec<RouteDraft>,
    /// Whether it asks for `passthrough`, which is refused: without that it would need no certificate.
    pub(super) passthrough: bool,
}

/// What a site may inherit from `[defaults.sites]`.
#[derive(Clone, Debug, Default)]
pub(super) struct SiteLayer {
    /// The only addresses on which the site exists; `None` is all.
    pub(super) addresses: Option<Placed<Vec<IpAddr>>>,
    pub(super) hsts: Said<HstsLayer>,
    pub(super) http3: Option<bool>,
    pub(super) early_data: Option<bool>,
    pub(super) redirect_to_https: Option<Placed<bool>>,
    pub(super) tls: SiteTlsLayer,
    pub(super) policy: PolicyLayer,
}

#[derive(Clone, Debug, Default)]
pub(super) struct HstsLayer {
    max_age: Option<Duration>,
    include_subdomains: Option<bool>,
    preload: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SiteTlsLayer {
    pub(super) min_version: Option<TlsVersion>,
    pub(super) cert: Option<Placed<PathBuf>>,
    pub(super) key: Option<Placed<PathBuf>>,
    pub(super) client_ca: Option<Placed<PathBuf>>,
    pub(super) client_crl: Option<Placed<PathBuf>>,
    pub(super) client_auth: Option<Placed<ClientAuthWord>>,
}

impl SiteTlsLayer {
    /// Whether clients are asked for a certificate: where an authority is named they must have one, unless it is said
    /// otherwise.
    pub(super) fn asks_clients(&self) -> bool {
        match &self.client_auth {
            Some(word) => word.value != ClientAuthWord::Off,
            None => self.client_ca.is_some(),
        }
    }
}

/// Whether clients are asked who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuthWord {
    Off,
    Optional,
    Require,
}

impl SiteLayer {
    pub(super) fn read_defaults(table: Table<'_>) -> SiteLayer {
        let layer = SiteLayer::read(&table);
        table.misplaced(
            &["hosts", "pool", "split", "split_on", "redirect", "respond", "passthrough", "routes"],
            "this is each site's own: write it under [sites.NAME]",
        );
        table.finish();
        layer
    }

    fn read(table: &Table<'_>) -> SiteLayer {
        let layer = SiteLayer {
            addresses: table
                .read("addresses", |value| Some(Placed::new(server::addresses(value)?, value.place()))),
            hsts: table.said("hsts", read_hsts),
            http3: table.read("http3", Value::bool),
            early_data: table.read("early_data", Value::bool),
            redirect_to_https: table.read("redirect_to_https", Value::placed_bool),
            tls: table.table("tls").map(read_tls).unwrap_or_default(),
            policy: PolicyLayer::read(table),
        };
        table.later("filters", Value::is_empty_list);
        table.later("bandwidth", |value| value.is_word("off"));
        layer
    }
}

impl SiteDraft {
    pub(super) fn read(named: Named<'_>) -> SiteDraft {
        let Named { name, table } = named;
        let layer = SiteLayer::read(&table);
        let mut action = Action::read(&table, None);
        let routes = table.get("routes").map(|value| value.each(RouteDraft::read)).unwrap_or_default();
        table.never_yet(&["passthrough"]);
        let passthrough = table.get("passthrough").is_some();
        let hosts = read_hosts(&table, &name);
        action = action.or_else(|| Action::misspelt(&table));
        let says_more = passthrough
            || table.get("routes").is_some_and(|routes| !routes.is_empty_list())
            || table.misspells(&["routes", "passthrough"]);
        if action.is_none() && !says_more {
            let problem = Problem::absence(table.place(), format!("the site `{}` does nothing", name.value));
            table.problem(
                problem.help("give it one of `pool`, `split`, `redirect` and `respond`, or `routes`"),
            );
        }
        table.finish();
        SiteDraft { name, hosts, layer, action, routes, passthrough }
    }
}

fn read_hosts(table: &Table<'_>, name: &Placed<String>) -> Vec<Placed<HostPattern>> {
    let Some(value) = table.get("hosts") else {
        if !name.value.contains('.') {
            if table.misspells(&["hosts"]) {
                return Vec::new();
            }
            let problem = Problem::absence(name.place, format!("the site `{}` has no `hosts`", name.value));
            table.problem(problem.help(format!(
                "write `hosts = \"{}.example.com\"`, or name the table after its host: [sites.\"{}.example.com\"]",
                name.value, name.value
            )));
            return Vec::new();
        }
        return match host::pattern(&name.value) {
            Ok(host) => vec![Placed::new(host, name.place)],
            Err(misfit) => {
                table.problem(Problem::misfit(name.place, misfit));
                Vec::new()
            }
        };
    };
    let mut seen: Vec<Placed<HostPattern>> = Vec::new();
    let hosts = value.at_least_one(|one| {
        let host = one.parse("a host such as \"shop.example.com\"", host::pattern)?;
        if let Some(first) = seen.iter().find(|first| first.value == host.value) {
            let problem = Problem::error(host.place, format!("the host {} stands twice", host.value));
            one.problem(problem.other(first.place, "here first"));
            return None;
        }
        seen.push(host.clone());
        Some(host)
    });
    hosts.unwrap_or_default()
}

fn read_tls(table: Table<'_>) -> SiteTlsLayer {
    let layer = SiteTlsLayer {
        min_version: table.read("min_version", tls::min_version),
        cert: table.read("cert", Value::path),
        key: table.read("key", Value::path),
        client_ca: table.read("client_ca", Value::path),
        client_crl: table.read("client_crl", Value::path),
        client_auth: table.read("client_auth", |value| Some(Placed::new(client_auth(value)?, value.place()))),
    };
    table.finish();
    layer
}

fn client_auth(value: &Value<'_>) -> Option<ClientAuthWord> {
    value.one_of(&[
        ("off", ClientAuthWord::Off),
        ("optional", ClientAuthWord::Optional),
        ("require", ClientAuthWord::Require),
    ])
}

impl Layer for SiteLayer {
    fn over(self, below: &SiteLayer) -> SiteLayer {
        SiteLayer {
            addresses: self.addresses.or_else(|| below.addresses.clone()),
            hsts: self.hsts.over(&below.hsts),
            http3: self.http3.or(below.http3),
            early_data: self.early_data.or(below.early_data),
            redirect_to_https: self.redirect_to_https.or_else(|| below.redirect_to_https.clone()),
            tls: SiteTlsLayer {
                min_version: self.tls.min_version.or(below.tls.min_version),
                cert: self.tls.cert.or_else(|| below.tls.cert.clone()),
                key: self.tls.key.or_else(|| below.tls.key.clone()),
                client_ca: self.tls.client_ca.or_else(|| below.tls.client_ca.clone()),
                client_crl: self.tls.client_crl.or_else(|| below.tls.client_crl.clone()),
                client_auth: self.tls.client_auth.or_else(|| below.tls.client_auth.clone()),
            },
            policy: self.policy.over(&below.policy),
        }
    }
}

fn read_hsts(value: &Value<'_>) -> Option<HstsLayer> {
    let table = value.table_or("\"off\" or a table such as { max_age = \"365d\" }")?;
    let layer = HstsLayer {
        max_age: table.read("max_age", Value::duration_or_zero),
        include_subdomains: table.read("include_subdomains", Value::bool),
        preload: table.read("preload", Value::bool),
    };
    table.finish();
    Some(layer)
}

impl HstsLayer {
    /// The value of `Strict-Transport-Security` (RFC 6797, section 6.1).
    pub(super) fn compile(&self) -> Option<HeaderValue> {
        let max_age = self.max_age.unwrap_or(YEAR);
        let mut text = format!("max-age={}", max_age.as_secs());
        if self.include_subdomains.unwrap_or(false) {
            text.push_str("; includeSubDomains");
        }
        if self.preload.unwrap_or(false) {
            text.push_str("; preload");
        }
        HeaderValue::from_str(&text).ok()
    }

    /// Why browsers would not take the site into their lists although it asks for it.
    pub(super) fn preload_is_vain(&self) -> bool {
        self.preload.unwrap_or(false)
            && (!self.include_subdomains.unwrap_or(false) || self.max_age.unwrap_or(YEAR) < YEAR)
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Layer for HstsLayer {
    fn over(self, below: &HstsLayer) -> HstsLayer {
        HstsLayer {
            max_age: self.max_age.or(below.max_age),
            include_subdomains: self.include_subdomains.or(below.include_subdomains),
            preload: self.preload.or(below.preload),
        }
    }
}
