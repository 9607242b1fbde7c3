//! What is right is served as it is meant.

use std::time::Duration;

use foregate_edge::settings::AltSvc;
use foregate_routing::{
    Cause, HeaderEdit, Outlier, Probe, QueueSpec, Respond, Retry, Rewrite, TlsRules, TlsVersion, UpstreamHost,
};
use http::StatusCode;

use super::*;

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[test]
fn the_smallest_useful_file() {
    let loaded = served("[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n");
    let members = pool_of(route(&loaded, "app.example.com", "/any/path")).members();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].endpoint.address.to_string(), "192.168.1.10:80");
    let site = site(&loaded, "app.example.com");
    assert!(site.http3 && site.redirect_to_https && site.hsts.is_none());
    assert_eq!(site.tls, TlsRules::open(TlsVersion::V1_3));
    assert_eq!(loaded.live.transports.len(), loaded.live.routing.pools().len());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn settings_of_the_server() {
    let body = r#"server.addresses = "127.0.0.1"
server.http = [8080, 8081]
server.https = 8443
server.trusted_proxies = ["10.0.0.1", "fd00::/8"]
server.workers = 3
server.backlog = 128
server.timeouts = { request_head = "off", drain = "1m" }
server.limits = { connections = 1000, connections_per_ip = 10, request_head = "64KiB" }
http3 = { alt_svc = "never", alt_svc_max_age = "1d", alt_svc_port = 443, address_validation = "always", congestion = "bbr" }
"#;
    let loaded = served(body);
    let settings = &loaded.live.settings;
    assert_eq!(settings.addresses, [IpAddr::from([127, 0, 0, 1])]);
    assert_eq!((settings.http.as_slice(), settings.https.as_slice()), (&[8080, 8081][..], &[8443][..]));
    assert!(settings.trusts("10.0.0.1".parse().unwrap()) && settings.trusts("fd00::1".parse().unwrap()));
    assert_eq!(settings.workers.map(usize::from), Some(3));
    assert_eq!(settings.backlog, 128);
    assert_eq!((settings.timeouts.request_head, settings.timeouts.keep_alive), (None, seconds(75)));
    assert_eq!(settings.timeouts.drain, Duration::from_secs(60));
    assert_eq!((settings.limits.connections, settings.limits.connections_per_ip), (Some(1000), Some(10)));
    assert_eq!(settings.limits.request_head, 65_536);
    assert_eq!(settings.http3.alt_svc, AltSvc::Never);
    assert_eq!(settings.http3.alt_svc_max_age, Duration::from_secs(86_400));
    assert_eq!(settings.http3.alt_svc_port, Some(443));
}

#[test]
fn hosts_of_every_kind() {
    let body =
        "[sites.x]\nhosts = [\"Bücher.example\", \"*.bücher.example\", \"*\", \"[::1]\"]\nrespond = {}";
    let loaded = served(body);
    for host in ["xn--bcher-kva.example", "www.xn--bcher-kva.example", "anything.else", "::1"] {
        assert_eq!(&*site(&loaded, host).name, "x");
    }
}

#[test]
fn layers_are_inherited() {
    let body = r#"[server.limits]
request_body = "1MiB"
[defaults.sites]
hsts = { max_age = "365d" }
timeouts = { response = "7s", idle = "8s" }
request_headers = "X-A: 1"
tls = { min_version = "1.2" }
redirect_to_https = false
[sites."a.example.com"]
pool = "10.0.0.1:80"
hsts = { include_subdomains = true }
timeouts = { idle = "9s" }
routes = [
  { paths = "/r/", timeouts = { response = "off" }, request_headers = ["X-B: 2", "-X-C"], request_body = "off", upstream_host = "app.lan" },
]
[sites."b.example.com"]
pool = "10.0.0.1:80"
hsts = "off"
request_headers = "off"
request_body = "2MiB"
timeouts = "off"
tls = { min_version = "1.3" }
redirect_to_https = true
"#;
    let loaded = served(body);
    let (a, b) = (site(&loaded, "a.example.com"), site(&loaded, "b.example.com"));
    assert_eq!(a.hsts.as_ref().unwrap(), "max-age=31536000; includeSubDomains");
    assert_eq!(b.hsts, None);
    assert_eq!((a.tls.min_version, b.tls.min_version), (TlsVersion::V1_2, TlsVersion::V1_3));
    assert_eq!((a.redirect_to_https, b.redirect_to_https), (false, true));

    let own = policy(&loaded, "a.example.com", "/");
    let timeouts = &own.timeouts;
    assert_eq!((timeouts.response, timeouts.idle, timeouts.tunnel), (seconds(7), seconds(9), seconds(3600)));
    assert_eq!(own.request_body, Some(1_048_576));
    assert_eq!(own.request_headers.len(), 1);
    assert!(matches!(own.upstream_host, UpstreamHost::Preserve));

    let routed = policy(&loaded, "a.example.com", "/r/");
    assert_eq!((routed.timeouts.response, routed.timeouts.idle), (None, seconds(9)));
    assert_eq!(routed.request_body, None);
    assert!(matches!(&routed.request_headers[..], [HeaderEdit::Set(..), HeaderEdit::Remove(_)]));
    assert!(matches!(&routed.upstream_host, UpstreamHost::Literal(host) if host == "app.lan"));

    let other = policy(&loaded, "b.example.com", "/");
    let timeouts = &other.timeouts;
    assert_eq!((timeouts.response, timeouts.idle, timeouts.tunnel), (None, None, None));
    assert_eq!(other.request_body, Some(2_097_152));
    assert!(other.request_headers.is_empty());
}

#[test]
fn pools_inherit_and_inline_pools_too() {
    let body = r#"[defaults.pools]
balance = "first"
health = { http = { path = "/healthz", contains = "ok" }, interval = "9s" }
[sites.a]
hosts = "a.example.com"
pool = ["10.0.0.1:80", "10.0.0.2:80"]
routes = [
  { paths = "/same/", pool = ["10.0.0.1:80", "10.0.0.2:80"] },
  { paths = "/tcp/", pool = "tcp" },
  { paths = "/path/", pool = "path" },
  { paths = "/none/", pool = "none" },
]
[pools.tcp]
backends = "10.0.0.3:80"
health = { tcp = {} }
[pools.path]
backends = "10.0.0.4:80"
health = { http = { path = "/other" }, fall = 9 }
[pools.none]
backends = "10.0.0.5:80"
health = "off"
"#;
    let loaded = served(body);
    assert_eq!(loaded.live.routing.pools().len(), 4, "equal addresses of one site are one pool");
    assert_eq!(&*pool_of(route(&loaded, "a.example.com", "/")).name, "sites.a");
    let health = |path: &str| pool_of(route(&loaded, "a.example.com", path)).health.clone();
    let http = |path: &str| match health(path).unwrap().probe {
        Probe::Http { path, contains, .. } => (path.to_string(), contains.map(String::from)),
        Probe::Tcp | Probe::Grpc { .. } => panic!("not http"),
    };
    let inline = health("/").unwrap();
    assert_eq!((inline.interval, inline.fall), (Duration::from_secs(9), 3));
    assert_eq!(http("/same/"), ("/healthz".to_owned(), Some("ok".to_owned())));

    let tcp = health("/tcp/").unwrap();
    assert_eq!((tcp.probe, tcp.interval), (Probe::Tcp, Duration::from_secs(9)));
    assert_eq!(http("/path/"), ("/other".to_owned(), Some("ok".to_owned())));
    assert_eq!(health("/path/").unwrap().fall, 9);
    assert_eq!(health("/none/"), None);
}

#[test]
fn what_follows_failures_is_inherited_too() {
    let body = r#"[defaults.pools]
outlier = { eject = "7s", max_ejected = "10%" }
retry = { attempts = 1, on = ["connect", "503"] }
queue = { timeout = "off" }
[sites.a]
hosts = "a.example.com"
pool = ["10.0.0.1:80"]
routes = [
  { paths = "/own/", pool = "own", queue_priority = -3 },
  { paths = "/off/", pool = "off" },
]
[pools.own]
backends = { address = "10.0.0.3:80", max_requests = 9 }
outlier = { consecutive_failures = 2, probe_after = "off" }
retry = { on = "timeout", budget = "off" }
queue = { length = 5 }
[pools.off]
backends = "10.0.0.4:80"
outlier = "off"
retry = "off"
queue = "off"
"#;
    let loaded = served(body);
    let pool = |path: &str| pool_of(route(&loaded, "a.example.com", path));
    let unavailable = Cause::Status(StatusCode::SERVICE_UNAVAILABLE);
    let outlier = Outlier { eject: Duration::from_secs(7), max_ejected: 10, ..Outlier::default() };
    assert_eq!((outlier.consecutive_failures, outlier.probe_after), (5, seconds(5)));
    assert_eq!(pool("/").outlier(), Some(&outlier));
    let retry =
        Retry { attempts: 1, on: [Cause::Connect, unavailable].into(), budget: Some(20), hedge: None };
    assert_eq!(pool("/").retry, retry);
    assert_eq!(pool("/").queue, QueueSpec { length: 1024, timeout: None });
    assert_eq!(pool("/").members()[0].max_requests, None);

    let own = Outlier { consecutive_failures: 2, probe_after: None, ..outlier };
    assert_eq!(pool("/own/").outlier(), Some(&own));
    assert_eq!(
        pool("/own/").retry,
        Retry { attempts: 1, on: [Cause::Timeout].into(), budget: None, hedge: None }
    );
    assert_eq!(pool("/own/").queue, QueueSpec { length: 5, timeout: None });
    assert_eq!(pool("/own/").members()[0].max_requests, Some(9));
    assert_eq!(policy(&loaded, "a.example.com", "/own/").queue_priority, -3);
    assert_eq!(policy(&loaded, "a.example.com", "/off/").queue_priority, 0);

    assert_eq!((pool("/off/").outlier(), pool("/off/").retry.attempts), (None, 0));
    assert_eq!(pool("/off/").queue.length, 0);
}

#[test]
fn pools_of_every_protocol() {
    for pool in [
        "backends = [\"10.0.0.1:80\", \"http://10.0.0.2\"]",
        "backends = [\"https://vm.lan\"]",
        "backends = [\"https://vm.lan\"]\nprotocol = \"http1\"",
        "backends = [\"h2c://vm.lan:50051\"]",
        "backends = [\"vm.lan:443\"]\nprotocol = \"h2\"",
        "backends = [\"vm.lan:443\"]\ntls = { server_name = \"app.lan\" }",
        "backends = [\"unix:/run/x.sock\"]",
    ] {
        let loaded = served(&format!("[sites.\"a.example.com\"]\npool = \"p\"\n[pools.p]\n{pool}"));
        let encrypted = pool.contains("https:") || pool.contains(":443");
        let transport = format!("{:?}", loaded.live.transports[0]);
        assert!(transport.contains(&format!("tls: {encrypted}")), "{pool}: {transport}");
    }
}

#[test]
fn actions_of_routes() {
    let body = r#"[sites."a.example.com"]
pool = "10.0.0.1:80"
routes = [
  { paths = "=/own" },
  { paths = "/moved/", redirect = { to = "https://b.example.com{uri}", status = 302 } },
  { paths = "/said/", respond = { body = '{{"ok":true}}', content_type = "application/json" } },
  { paths = "~^/v([0-9])/(.*)", rewrite = "/{2}?version={1}" },
  { paths = "/api/", strip_prefix = "/api/" },
  { paths = "/split/", split = [{ pool = "10.0.0.2:80", weight = 9 }, { pool = "10.0.0.3:80" }], split_on = "cookie:arm" },
]
"#;
    let loaded = served(body);
    let at = |path: &str| route(&loaded, "a.example.com", path);
    assert_eq!(pool_of(at("/own")).name, pool_of(at("/")).name);
    assert!(matches!(&at("/moved/x").action, Action::Redirect { status, .. } if status.as_u16() == 302));
    let Action::Respond(Respond { status, body, content_type }) = &at("/said/").action else {
        panic!("no answer")
    };
    assert_eq!((status.as_u16(), body.as_literal()), (200, Some("{\"ok\":true}")));
    assert_eq!(content_type, "application/json");
    assert!(matches!(&at("/v1/x").rewrite, Rewrite::To(_)));
    assert!(matches!(&at("/api/x").rewrite, Rewrite::StripPrefix(prefix) if &**prefix == "/api"));
    assert!(matches!(&at("/split/x").action, Action::Split(_)));
}

#[test]
fn a_sites_own_action_serves_routes_that_name_none() {
    let body = "[sites.\"a.example.com\"]\nrespond = {}\nroutes = [{ paths = \"/\", pool = \"10.0.0.1:80\" }, { paths = \"/own/\" }]";
    let loaded = served(body);
    assert!(matches!(route(&loaded, "a.example.com", "/own/").action, Action::Respond(_)));
    assert!(matches!(route(&loaded, "a.example.com", "/").action, Action::Pool(_)));
}

#[test]
fn endpoints_survive_a_reload() {
    let first = served(SITE);
    let text = format!("{HEAD}{SITE}");
    let again = load_str("foregate.toml", &text, Path::new("/nonexistent"), Some(&first.live)).unwrap();
    let id = |loaded: &Loaded| pool_of(route(loaded, "a.example.com", "/")).members()[0].endpoint.id;
    assert_eq!(id(&first), id(&again));
}
