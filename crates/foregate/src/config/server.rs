//! `[server]`: the shared address, its ports, and how long and how much clients may take.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use foregate_edge::Settings;
use foregate_edge::settings::{Limits, Timeouts};

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::inherit::Said;
use super::source::Placed;
use super::value::{self, Misfit};

/// `[server]`, with the language's defaults for what is not written. Its `http3` is filled in elsewhere.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) settings: Settings,
    /// Whether sites redirect plain HTTP unless they say otherwise; `None` is the language's default.
    pub(super) redirect_to_https: Option<Placed<bool>>,
    /// Whether `addresses` could be read: else a site may name others only because of that.
    pub(super) addresses_known: bool,
    /// Whether `http` and `https` could be read: else a port may be served only because of that.
    pub(super) ports_known: bool,
    /// The limit of routes that set none.
    pub(super) request_body: Option<u64>,
    pub(super) state_dir: PathBuf,
}

/// Where the gateway keeps what must survive a restart, unless it is told otherwise.
pub(crate) fn usual_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/foregate")
}

impl Default for Server {
    fn default() -> Server {
        Server {
            settings: Settings::default(),
            redirect_to_https: None,
            addresses_known: true,
            ports_known: true,
            request_body: None,
            state_dir: usual_state_dir(),
        }
    }
}

impl Server {
    pub(super) fn read(table: Table<'_>) -> Server {
        let mut server = Server::default();
        let settings = &mut server.settings;
        let mark = table.problems().count();
        if let Some(addresses) = table.read("addresses", addresses) {
            settings.addresses = addresses;
        }
        server.addresses_known = table.problems().count() == mark;
        server.ports_known = read_ports(&table, settings);
        if let Some(networks) = table.read("trusted_proxies", |value| {
            Some(value.each(|one| Some(one.parse("an address or network", value::network)?.value)))
        }) {
            settings.trusted_proxies = networks;
        }
        settings.workers = match table.get("workers") {
            Some(value) if !value.is_word("auto") => value
                .number::<usize>(1, 1024, "\"auto\" or a number from 1 to 1024")
                .and_then(NonZeroUsize::new),
            _ => None,
        };
        if let Some(backlog) =
            table.read("backlog", |value| value.number(1, i128::from(i32::MAX), "a number from 1 upwards"))
        {
            settings.backlog = backlog;
        }
        if let Some(timeouts) = table.table("timeouts") {
            read_timeouts(timeouts, &mut settings.timeouts);
        }
        if let Some(limits) = table.table("limits") {
            server.request_body = read_limits(limits, &mut settings.limits);
        }
        server.redirect_to_https = table.read("redirect_to_https", Value::placed_bool);
        if let Some(folder) = table.read("state_dir", Value::path) {
            server.state_dir = folder.value;
        }
        table.later("accept_proxy_from", Value::is_empty_list);
        table.later("error_pages", |value| value.is_word("off"));
        table.finish();
        server
    }
}

/// One or many addresses, none of them twice or beside the wildcard that includes it.
pub(super) fn addresses(value: &Value<'_>) -> Option<Vec<IpAddr>> {
    let mut seen: Vec<Placed<IpAddr>> = Vec::new();
    let addresses = value.at_least_one(|one| {
        let address = one.parse("an IP address", address)?;
        if let Some(first) = seen.iter().find(|first| first.value == address.value) {
            let problem =
                Problem::error(address.place, format!("the address {} stands twice", address.value));
            one.problem(problem.other(first.place, "here first"));
            return None;
        }
        seen.push(address.clone());
        Some(address.value)
    });
    for wildcard in seen.iter().filter(|address| address.value.is_unspecified()) {
        let included = |address: &&Placed<IpAddr>| {
            !address.value.is_unspecified() && address.value.is_ipv4() == wildcard.value.is_ipv4()
        };
        for single in seen.iter().filter(included) {
            let problem =
                Problem::error(single.place, format!("{} includes {}", wildcard.value, single.value));
            value.problem(problem.other(wildcard.place, "every address").help(format!(
                "remove {}, or name single addresses only, without {}",
                single.value, wildcard.value
            )));
        }
    }
    addresses
}

fn address(text: &str) -> Result<IpAddr, Misfit> {
    let address: IpAddr = text.parse().map_err(|_| {
        Misfit::new(format!("\"{text}\" is not an IP address"))
            .help("write \"203.0.113.7\" or \"2001:db8::7\", without a port")
    })?;
    match address.to_canonical() {
        plain if plain != address => {
            let misfit = Misfit::new(format!("\"{text}\" is an IPv4 address written as one of IPv6"));
            Err(misfit.help(format!("write \"{plain}\"")))
        }
        address => Ok(address),
    }
}

/// Reads `http` and `https`; whether both could be.
fn read_ports(table: &Table<'_>, settings: &mut Settings) -> bool {
    let mark = table.problems().count();
    let port = |value: &Value<'_>| value.number::<u16>(1, 65_535, "a port, a list of ports or \"off\"");
    let read = |key: &'static str, default: &[u16]| match table.said(key, |value| value.at_least_one(port)) {
        Said::Off => Vec::new(),
        Said::Nothing => default.to_vec(),
        Said::Value(ports) => ports,
    };
    settings.http = read("http", &settings.http);
    settings.https = read("https", &settings.https);
    if table.problems().count() != mark {
        return false;
    }
    for (key, ports) in [("http", &settings.http), ("https", &settings.https)] {
        let twice =
            ports.iter().enumerate().find(|(index, port)| ports.iter().take(*index).any(|p| p == *port));
        if let Some((_, port)) = twice {
            table.problem(Problem::error(table.key_place(key), format!("the port {port} stands twice")));
        }
    }
    if settings.http.is_empty() && settings.https.is_empty() {
        let problem = Problem::error(table.key_place("https"), "both `http` and `https` are off");
        table.problem(problem.help("a gateway without a port serves nobody; leave one of them on"));
    }
    if let Some(port) = settings.http.iter().find(|port| settings.https.contains(port)) {
        let message = format!("port {port} cannot be both an `http` and an `https` port");
        table.problem(Problem::error(table.key_place("https"), message));
    }
    true
}

fn read_timeouts(table: Table<'_>, timeouts: &mut Timeouts) {
    let read = |key: &'static str, default| table.said(key, Value::duration).value_or(default);
    timeouts.handshake = read("handshake", timeouts.handshake);
    timeouts.request_head = read("request_head", timeouts.request_head);
    timeouts.request_body = read("request_body", timeouts.request_body);
    timeouts.keep_alive = read("keep_alive", timeouts.keep_alive);
    // Without an end a drain would never be one, so there is no "off".
    if let Some(drain) = table.read("drain", Value::duration_or_zero) {
        timeouts.drain = drain;
    }
    table.finish();
}

/// Reads the limits; answers the one on request bodies, which belongs to the routes.
fn read_limits(table: Table<'_>, limits: &mut Limits) -> Option<u64> {
    const COUNT: &str = "a number from 1 upwards";
    limits.connections = match table.get("connections") {
        Some(value) if !value.is_word("auto") => {
            value.number(1, i128::from(u32::MAX), "\"auto\" or a number from 1 upwards")
        }
        _ => None,
    };
    let per_ip =
        |value: &Value<'_>| value.number(1, i128::from(u32::MAX), "\"off\" or a number from 1 upwards");
    limits.connections_per_ip = table.said("connections_per_ip", per_ip).value();
    if let Some(streams) =
        table.read("streams_per_connection", |value| value.number(1, i128::from(u32::MAX), COUNT))
    {
        limits.streams_per_connection = streams;
    }
    if let Some(bytes) = table.read("request_head", head_size) {
        limits.request_head = bytes;
    }
    let request_body = table.said("request_body", Value::size).value();
    table.finish();
    request_body
}

/// Every connection may hold this much before anything is known of its client, hence the upper end.
fn head_size(value: &Value<'_>) -> Option<usize> {
    let bytes = value.size()?;
    match usize::try_from(bytes) {
        Ok(bytes) if (1024..=1024 * 1024).contains(&bytes) => Some(bytes),
        _ => {
            let message = format!("`{}` must be between 1KiB and 1MiB", value.name());
            value.problem(Problem::error(value.place(), message));
            None
        }
    }
}
