//! The configuration as a whole: texts in, errors with their places or a snapshot out.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use foregate_routing::{
    Action, HeaderEdit, Policy, RequestView, Respond, Rewrite, Route, Site, TlsVersion, UpstreamHost,
};
use http::{HeaderMap, Method};

use super::*;

/// What every text here begins with, on one line, so that line 2 is its own first.
const HEAD: &str = "server.state_dir = \"/nonexistent\"; tls.self_signed = true";

fn text(body: &str) -> String {
    format!("{}\n{body}", HEAD.replace("; ", "\n").replace('\n', " #\n"))
}

fn load_text(body: &str) -> Result<Loaded, Report> {
    load_str("foregate.toml", &text(body), Path::new("/nonexistent"), None)
}

fn served(body: &str) -> Loaded {
    match load_text(body) {
        Ok(loaded) => loaded,
        Err(report) => panic!("{report}"),
    }
}

/// "LINE:COLUMN message | help", lines counted from the first of `body`.
fn complaints(body: &str) -> Vec<String> {
    match load_text(body) {
        Ok(_) => Vec::new(),
        Err(report) => report.errors().iter().map(|error| brief(error)).collect(),
    }
}

fn brief(rendered: &str) -> String {
    let mut out = String::new();
    if let Some(place) = rendered.lines().find_map(|line| line.trim_start().strip_prefix("--> foregate.toml:")) {
        let (line, column) = place.split_once(':').unwrap();
        let line: usize = line.parse().unwrap();
        out = format!("{}:{column} ", line.saturating_sub(2));
    }
    let title = rendered.lines().next().unwrap_or_default();
    out.push_str(title.trim_start_matches("error: ").trim_start_matches("warning: "));
    if let Some(help) = rendered.lines().find_map(|line| line.trim_start().strip_prefix("= help: ")) {
        out.push_str(" | ");
        out.push_str(help);
    }
    out
}

fn warnings(body: &str) -> Vec<String> {
    served(body).warnings.iter().map(|warning| brief(warning)).collect()
}

fn site<'l>(loaded: &'l Loaded, host: &str) -> &'l Site {
    loaded.live.routing.host(host, Ipv4Addr::LOCALHOST.into()).unwrap().site
}

fn view<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView { method: &Method::GET, path, query: None, headers, client_ip: IpAddr::from([192, 0, 2, 1]) }
}

fn route<'l>(loaded: &'l Loaded, host: &str, path: &str) -> &'l Route {
    site(loaded, host).route(&view(path, &HeaderMap::new())).unwrap().route
}

fn policy<'l>(loaded: &'l Loaded, host: &str, path: &str) -> &'l Policy {
    &route(loaded, host, path).policy
}

fn pool_of(route: &Route) -> &foregate_routing::Pool {
    match &route.action {
        Action::Pool(pool) => pool,
        other => panic!("not a pool: {other:?}"),
    }
}

/// A folder for one test, removed when it is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("foregate-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Errors with the folder's own path taken out.
    fn report(&self, path: &Path) -> String {
        let report = load(path, None).unwrap_err().to_string();
        report.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_smallest_useful_file() {
    let loaded = served("[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n");
    let route = route(&loaded, "app.example.com", "/any/path");
    let members = pool_of(route).members();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].endpoint.address.to_string(), "192.168.1.10:80");
    let site = site(&loaded, "app.example.com");
    assert!(site.http3 && site.redirect_to_https && site.hsts.is_none());
    assert_eq!(site.tls_min_version, TlsVersion::V1_3);
    assert_eq!(loaded.live.transports.len(), loaded.live.routing.pools().len());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn an_error_is_shown_with_its_place_its_line_and_what_to_write() {
    let text = "[server]\nbacklgo = 4096\n\n[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n[tls]\nself_signed = true\n";
    let report = load_str("conf/foregate.toml", text, Path::new("/nonexistent"), None).unwrap_err();
    let golden = "\
error: unknown key `backlgo` in `server`
 --> conf/foregate.toml:2:1
  |
2 | backlgo = 4096
  | ^^^^^^^
  |
  = help: did you mean `backlog`?

1 error in conf/foregate.toml";
    assert_eq!(report.to_string(), golden);
}

#[test]
fn two_places_are_shown_where_two_belong_together() {
    let body = "[sites.a]\nhosts = \"x.example.com\"\npool = \"10.0.0.1:80\"\n[sites.b]\nhosts = [\"y.example.com\", \"X.example.com\"]\npool = \"10.0.0.1:80\"\n";
    let report = load_text(body).unwrap_err().to_string();
    let golden = "\
error: the host x.example.com belongs to two sites
 --> foregate.toml:7:27
  |
4 | hosts = \"x.example.com\"
  |         --------------- here first
...
7 | hosts = [\"y.example.com\", \"X.example.com\"]
  |                           ^^^^^^^^^^^^^^^

1 error in foregate.toml";
    assert_eq!(report, golden);
}

#[test]
fn every_error_is_told_at_once_in_the_order_of_the_file() {
    let body = "\
[server.timeouts]
drain = 30
keep_alive = \"5 parsecs\"
[http3]
congestion = \"vegas\"
[sites.shop]
hosts = \"shop.example.com\"
pool = \"shpo\"
colour = \"red\"
routes = [{ paths = \"api\", pool = \"shop\" }, { paths = \"~(\", pool = 7 }]
[pools.shop]
backends = [\"10.0.0.1\", { address = \"10.0.0.2:80\", weight = -1 }]
";
    assert_eq!(
        complaints(body),
        [
            "2:9 `server.timeouts.drain` must be a duration such as \"30s\", not an integer",
            "3:14 \"parsecs\" is not a unit of time | a duration is a whole number and a unit: \"250ms\", \"5s\", \"3m\", \"24h\", \"365d\"",
            "5:14 `http3.congestion` must be \"cubic\" or \"bbr\"",
            "8:8 there is no pool `shpo` | did you mean `shop`?",
            "9:1 unknown key `colour` in `sites.shop` | the keys here are `addresses`, `bandwidth`, `early_data`, `filters`, `hosts`, `hsts`, `http3`, `passthrough`, `pool`, `redirect`, `redirect_to_https`, `request_body`, `request_headers`, `respond`, `response_headers`, `routes`, `split`, `split_on`, `timeouts`, `tls`, `upstream_host`",
            "10:21 a path begins with \"/\", \"=/\" (this path alone) or \"~\" (a regular expression)",
            "10:55 not a regular expression: unclosed group",
            "10:68 `sites.shop.routes[1].pool` must be the name of a pool, an address or a list of addresses, not an integer",
            "12:13 \"10.0.0.1\" has no port | write \"10.0.0.1:80\" or whichever port the VM serves",
            "12:61 `pools.shop.backends[1].weight` must be a number from 0 to 65535",
        ]
    );
}

#[test]
fn syntax_errors_are_told_together_and_blame_nothing_else() {
    let body = "[sites.shop]\nhosts = \"shop.example.com\npool = \"shop\"\n[pools.shop]\nbackends = [\"10.0.0.1:80\"\nweight 3\n[server]\nbacklgo = 1\n";
    let complaints = complaints(body);
    assert!(complaints.len() >= 2, "{complaints:#?}");
    assert!(complaints.iter().all(|complaint| !complaint.contains("no pool")), "{complaints:#?}");
}

#[test]
fn what_is_reserved_is_not_called_unknown() {
    let body = "\
[admin]
listen = \"off\"
[metrics]
listen = \"127.0.0.1:9180\"
[tracing]
otlp = \"off\"
[http3]
alt_svc = \"auto\"
[tls.acme]
email = \"ops@example.com\"
[filters.office]
allow = []
[forwards.ssh]
listen = \"2222/tcp\"
[sites.shop]
hosts = \"shop.example.com\"
passthrough = \"10.0.0.9:443\"
pool = \"shop\"
early_data = true
filters = [\"office\"]
tls = { client_ca = \"clients.pem\" }
routes = [{ paths = \"/a/\", when = { client_cert = true }, queue_priority = 10 }]
[pools.shop]
backends = [\"h3://10.0.0.1:443\", { address = \"10.0.0.2:80\", max_requests = 200 }]
send_proxy = \"v2\"
retry = { attempts = 2 }
health = { grpc = {} }
";
    let told: Vec<String> =
        complaints(body).iter().map(|complaint| complaint.split(" | ").next().unwrap().to_owned()).collect();
    assert_eq!(
        told,
        [
            "1:2 `admin` is not supported yet",
            "3:2 `metrics` is not supported yet",
            "8:11 `http3.alt_svc = \"auto\"` is not supported yet",
            "9:6 `tls.acme` is not supported yet",
            "11:2 `filters` is not supported yet",
            "13:2 `forwards` is not supported yet",
            "17:1 `sites.shop.passthrough` is not supported yet",
            "19:1 `sites.shop.early_data` is not supported yet",
            "20:1 `sites.shop.filters` is not supported yet",
            "21:9 `sites.shop.tls.client_ca` is not supported yet",
            "22:37 `sites.shop.routes[0].when.client_cert` is not supported yet",
            "22:59 `sites.shop.routes[0].queue_priority` is not supported yet",
            "24:13 HTTP/3 towards VMs (`h3://`) is not supported yet",
            "24:61 `pools.shop.backends[1].max_requests` is not supported yet",
            "25:1 `pools.shop.send_proxy` is not supported yet",
            "26:1 `pools.shop.retry` is not supported yet",
            "27:12 `pools.shop.health.grpc` is not supported yet",
        ]
    );
}

#[test]
fn defaults_of_reserved_keys_are_harmless() {
    let body = "\
server.accept_proxy_from = []
server.error_pages = \"off\"
[metrics]
listen = \"off\"
[tracing]
otlp = \"off\"
[http3]
alt_svc_probe = \"off\"
[sites.\"a.example.com\"]
pool = \"a\"
early_data = false
filters = []
bandwidth = \"off\"
tls = { client_auth = \"off\" }
[pools.a]
backends = \"10.0.0.1:80\"
send_proxy = \"off\"
slow_start = \"off\"
bandwidth = \"off\"
";
    assert_eq!(complaints(body), [""; 0]);
}

#[test]
fn settings_of_the_server() {
    let loaded = served(
        "\
server.addresses = \"127.0.0.1\"
server.http = [8080, 8081]
server.https = 8443
server.trusted_proxies = [\"10.0.0.1\", \"fd00::/8\"]
server.workers = 3
server.backlog = 128
server.timeouts = { request_head = \"off\", drain = \"1m\" }
server.limits = { connections = 1000, connections_per_ip = 10, request_head = \"64KiB\" }
http3 = { alt_svc = \"never\", alt_svc_max_age = \"1d\", alt_svc_port = 443, address_validation = \"always\", congestion = \"bbr\" }
",
    );
    let settings = &loaded.live.settings;
    assert_eq!(settings.addresses, [IpAddr::from([127, 0, 0, 1])]);
    assert_eq!((settings.http.as_slice(), settings.https.as_slice()), (&[8080, 8081][..], &[8443][..]));
    assert!(settings.trusts("10.0.0.1".parse().unwrap()) && settings.trusts("fd00::1".parse().unwrap()));
    assert_eq!(settings.workers.map(usize::from), Some(3));
    assert_eq!(settings.backlog, 128);
    assert_eq!(settings.timeouts.request_head, None);
    assert_eq!(settings.timeouts.keep_alive, Some(Duration::from_secs(75)));
    assert_eq!(settings.timeouts.drain, Duration::from_secs(60));
    assert_eq!(settings.limits.connections, Some(1000));
    assert_eq!(settings.limits.connections_per_ip, Some(10));
    assert_eq!(settings.limits.request_head, 65_536);
    assert!(!settings.http3.alt_svc);
    assert_eq!(settings.http3.alt_svc_port, Some(443));
}

#[test]
fn a_server_without_ports_is_refused() {
    assert_eq!(
        complaints("server.http = \"off\"\nserver.https = \"off\""),
        ["2:8 both `http` and `https` are off | a gateway without a port serves nobody; leave one of them on"]
    );
    assert_eq!(
        complaints("server.http = [80, 80]\nserver.https = 80"),
        ["1:8 the port 80 stands twice", "2:8 port 80 cannot be both an `http` and an `https` port"]
    );
}

#[test]
fn an_unquoted_host_gets_its_own_hint() {
    assert_eq!(
        complaints("[sites.www.example.com]\npool = \"10.0.0.1:80\"\ncolour = 1\n[pools.vm.lan]\nbackends = \"10.0.0.1:80\""),
        [
            "1:1 the dots in `sites.www.example.com` make it a table in a table | quote the name: [sites.\"www.example.com\"]",
            "3:1 unknown key `colour` in `sites.www.example.com` | the keys here are `addresses`, `bandwidth`, `early_data`, `filters`, `hosts`, `hsts`, `http3`, `passthrough`, `pool`, `redirect`, `redirect_to_https`, `request_body`, `request_headers`, `respond`, `response_headers`, `routes`, `split`, `split_on`, `timeouts`, `tls`, `upstream_host`",
            "4:1 the dots in `pools.vm.lan` make it a table in a table | quote the name: [pools.\"vm.lan\"]",
        ]
    );
}

#[test]
fn hosts() {
    let loaded = served("[sites.x]\nhosts = [\"Bücher.example\", \"*.bücher.example\", \"*\"]\npool = \"10.0.0.1:80\"");
    for host in ["xn--bcher-kva.example", "www.xn--bcher-kva.example", "anything.else"] {
        assert_eq!(&*site(&loaded, host).name, "x");
    }
    assert_eq!(
        complaints("[sites.shop]\npool = \"10.0.0.1:80\""),
        ["1:8 the site `shop` has no `hosts` | write `hosts = \"shop.example.com\"`, or name the table after its host: [sites.\"shop.example.com\"]"]
    );
    assert_eq!(
        complaints("[sites.a]\nhosts = [\"a.example.com\", \"b.example.com:8080\", \"A.example.com\"]\nrespond = {}"),
        [
            "2:27 \"b.example.com:8080\" names a port | hosts have no port; the ports are `http` and `https` of [server]",
            "2:49 the host a.example.com stands twice",
        ]
    );
}

#[test]
fn one_host_may_belong_to_two_sites_on_different_addresses() {
    let sites = |first: &str, second: &str| {
        format!("server.addresses = [\"10.0.0.1\", \"10.0.0.2\"]\n[sites.a]\nhosts = \"x.example.com\"\naddresses = \"{first}\"\nrespond = {{}}\n[sites.b]\nhosts = \"x.example.com\"\naddresses = \"{second}\"\nrespond = {{}}")
    };
    assert_eq!(complaints(&sites("10.0.0.1", "10.0.0.2")), [""; 0]);
    assert_eq!(complaints(&sites("10.0.0.1", "10.0.0.1")), ["7:9 the host x.example.com belongs to two sites"]);
    assert_eq!(
        complaints(&sites("10.0.0.1", "10.0.0.3")),
        ["8:13 10.0.0.3 is none of the addresses of [server] | add it to `server.addresses`"]
    );
}

#[test]
fn layers_are_inherited() {
    let loaded = served(
        "\
[server.limits]
request_body = \"1MiB\"
[defaults.sites]
hsts = { max_age = \"365d\" }
timeouts = { response = \"7s\", idle = \"8s\" }
request_headers = \"X-A: 1\"
tls = { min_version = \"1.2\" }
redirect_to_https = false
[sites.\"a.example.com\"]
pool = \"10.0.0.1:80\"
hsts = { include_subdomains = true }
timeouts = { idle = \"9s\" }
routes = [
  { paths = \"/r/\", timeouts = { response = \"off\" }, request_headers = [\"X-B: 2\", \"-X-C\"], request_body = \"off\", upstream_host = \"app.lan\" },
]
[sites.\"b.example.com\"]
pool = \"10.0.0.1:80\"
hsts = \"off\"
request_headers = \"off\"
request_body = \"2MiB\"
timeouts = \"off\"
tls = { min_version = \"1.3\" }
redirect_to_https = true
",
    );
    let (a, b) = (site(&loaded, "a.example.com"), site(&loaded, "b.example.com"));
    assert_eq!(a.hsts.as_ref().unwrap(), "max-age=31536000; includeSubDomains");
    assert_eq!(b.hsts, None);
    assert_eq!((a.tls_min_version, b.tls_min_version), (TlsVersion::V1_2, TlsVersion::V1_3));
    assert_eq!((a.redirect_to_https, b.redirect_to_https), (false, true));

    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let own = policy(&loaded, "a.example.com", "/");
    assert_eq!((own.timeouts.response, own.timeouts.idle, own.timeouts.tunnel), (seconds(7), seconds(9), seconds(3600)));
    assert_eq!(own.request_body, Some(1_048_576));
    assert_eq!(own.request_headers.len(), 1);
    assert!(matches!(own.upstream_host, UpstreamHost::Preserve));

    let routed = policy(&loaded, "a.example.com", "/r/");
    assert_eq!((routed.timeouts.response, routed.timeouts.idle), (None, seconds(9)));
    assert_eq!(routed.request_body, None);
    assert!(matches!(&routed.request_headers[..], [HeaderEdit::Set(..), HeaderEdit::Remove(_)]));
    assert!(matches!(&routed.upstream_host, UpstreamHost::Literal(host) if host == "app.lan"));

    let other = policy(&loaded, "b.example.com", "/");
    assert_eq!((other.timeouts.response, other.timeouts.idle, other.timeouts.tunnel), (None, None, None));
    assert_eq!(other.request_body, Some(2_097_152));
    assert!(other.request_headers.is_empty());
}

#[test]
fn a_mistake_in_the_defaults_is_told_once() {
    let sites: String =
        (0..3).map(|n| format!("[sites.\"{n}.example.com\"]\nrespond = {{}}\n")).collect();
    assert_eq!(
        complaints(&format!("[defaults.sites]\ntls = {{ cert = \"a.crt\" }}\npool = \"x\"\n{sites}")),
        [
            "2:16 `cert` and `key` of a `tls` table go together",
            "3:1 `pool` does not belong into [defaults.sites] | this is each site's own: write it under [sites.NAME]",
        ]
    );
}

#[test]
fn pools_inherit_and_inline_pools_too() {
    let loaded = served(
        "\
[defaults.pools]
balance = \"first\"
health = { http = { path = \"/healthz\", contains = \"ok\" }, interval = \"9s\" }
[sites.a]
hosts = \"a.example.com\"
pool = [\"10.0.0.1:80\", \"10.0.0.2:80\"]
routes = [
  { paths = \"/same/\", pool = [\"10.0.0.1:80\", \"10.0.0.2:80\"] },
  { paths = \"/tcp/\", pool = \"tcp\" },
  { paths = \"/path/\", pool = \"path\" },
  { paths = \"/none/\", pool = \"none\" },
]
[pools.tcp]
backends = \"10.0.0.3:80\"
health = { tcp = {} }
[pools.path]
backends = \"10.0.0.4:80\"
health = { http = { path = \"/other\" }, fall = 9 }
[pools.none]
backends = \"10.0.0.5:80\"
health = \"off\"
",
    );
    assert_eq!(loaded.live.routing.pools().len(), 4);
    let health = |path: &str| pool_of(route(&loaded, "a.example.com", path)).health.clone();
    let inline = health("/").unwrap();
    assert_eq!(health("/same/").unwrap(), inline);
    assert_eq!((inline.interval, inline.fall), (Duration::from_secs(9), 3));
    let foregate_routing::Probe::Http { path, contains, .. } = inline.probe else { panic!("not http") };
    assert_eq!((&*path, contains.as_deref()), ("/healthz", Some("ok")));

    let tcp = health("/tcp/").unwrap();
    assert_eq!((tcp.probe, tcp.interval), (foregate_routing::Probe::Tcp, Duration::from_secs(9)));
    let other = health("/path/").unwrap();
    assert_eq!(other.fall, 9);
    let foregate_routing::Probe::Http { path, contains, .. } = other.probe else { panic!("not http") };
    assert_eq!((&*path, contains.as_deref()), ("/other", Some("ok")));
    assert_eq!(health("/none/"), None);
    assert_eq!(&*pool_of(route(&loaded, "a.example.com", "/")).name, "sites.a");
}

#[test]
fn actions_of_routes() {
    let loaded = served(
        "\
[sites.\"a.example.com\"]
pool = \"10.0.0.1:80\"
routes = [
  { paths = \"=/own\" },
  { paths = \"/moved/\", redirect = { to = \"https://b.example.com{uri}\", status = 302 } },
  { paths = \"/said/\", respond = { body = '{{\"ok\":true}}', content_type = \"application/json\" } },
  { paths = \"~^/v([0-9])/(.*)\", rewrite = \"/{2}?version={1}\" },
  { paths = \"/api/\", strip_prefix = \"/api/\" },
  { paths = \"/split/\", split = [{ pool = \"10.0.0.2:80\", weight = 9 }, { pool = \"10.0.0.3:80\" }], split_on = \"cookie:arm\" },
]
",
    );
    let at = |path: &str| route(&loaded, "a.example.com", path);
    assert_eq!(pool_of(at("/own")).name, pool_of(at("/")).name);
    assert!(matches!(&at("/moved/x").action, Action::Redirect { status, .. } if status.as_u16() == 302));
    let Action::Respond(Respond { status, body, content_type }) = &at("/said/").action else { panic!("no answer") };
    assert_eq!((status.as_u16(), &body[..]), (200, &b"{\"ok\":true}"[..]));
    assert_eq!(content_type, "application/json");
    assert!(matches!(&at("/v1/x").rewrite, Rewrite::To(_)));
    assert!(matches!(&at("/api/x").rewrite, Rewrite::StripPrefix(prefix) if &**prefix == "/api"));
    assert!(matches!(&at("/split/x").action, Action::Split(_)));
}

#[test]
fn mistakes_in_routes() {
    let routes = |routes: &str| {
        complaints(&format!("[sites.\"a.example.com\"]\npool = \"10.0.0.1:80\"\nroutes = [\n{routes}\n]"))
    };
    for (text, told) in [
        ("{ pool = \"10.0.0.1:80\" }", "4:1 a route needs `paths` | write `paths = \"/\"` for every path of the site"),
        (
            "{ paths = \"/a/\", pool = \"10.0.0.1:80\", redirect = { to = \"/b\" } }",
            "4:40 `redirect` is a second action beside `pool`, and there is only one",
        ),
        (
            "{ paths = \"/a/\", redirect = { to = \"/{1}\" } }",
            "4:37 `{1}` is a group of a regular expression | a regular expression begins with `~`: \"~^/v([0-9])/\"",
        ),
        ("{ paths = \"~^/(a)\", rewrite = \"/{2}\" }", "4:34 there is no group 2"),
        (
            "{ paths = \"/a/\", redirect = { to = \"/{hots}\" } }",
            "4:37 there is no variable \"hots\" | did you mean `{host}`?",
        ),
        (
            "{ paths = \"/a/\", respond = { body = '{\"a\":1}' } }",
            "4:38 there is no variable \"\"a\":1\" | a literal brace is written `{{` or `}}`",
        ),
        (
            "{ paths = \"/a/\", respond = { body = \"{client_ip}\" } }",
            "4:37 variables in the body of an answer are not supported yet | a literal brace is written `{{` or `}}`",
        ),
        ("{ paths = \"/a/\", respond = { status = 204, body = \"x\" } }", "4:28 an answer 204 has no body"),
        (
            "{ paths = \"/a/\", redirect = { to = \"/b\", status = 304 } }",
            "4:51 `sites.\"a.example.com\".routes[0].redirect.status` must be 301, 302, 303, 307 or 308",
        ),
        ("{ paths = \"/a/\", strip_prefix = \"/b\" }", "4:33 not every path of this route begins with \"/b\""),
        (
            "{ paths = \"/a/\", strip_prefix = \"/a\", rewrite = \"/\" }",
            "4:49 `rewrite` writes the whole path, so `strip_prefix` has no effect",
        ),
        (
            "{ paths = \"/a/\", rewrite = \"/b\", respond = {} }",
            "4:28 the path is changed for a VM, and no VM sees this request",
        ),
        (
            "{ paths = \"/a/\", when = { methods = \"get\" } }",
            "4:37 \"get\" is no method; methods are written in capitals | write \"GET\"",
        ),
        (
            "{ paths = \"/a/\", when = { headers = { \"x y\" = \"1\" } } }",
            "4:39 \"x y\" is not the name of a header field",
        ),
        (
            "{ paths = \"/a/\", request_headers = \"Host: b\" }",
            "4:36 the gateway writes `host` itself | write `upstream_host = \"...\"` to change what the VM is asked for",
        ),
        (
            "{ paths = \"/a/\", response_headers = \"-Transfer-Encoding\" }",
            "4:37 the gateway writes `transfer-encoding` itself | it follows from the message; remove this edit",
        ),
        (
            "{ paths = \"/a/\", response_headers = \"X-A\" }",
            "4:37 \"X-A\" has no value | \"Name: value\" sets a field, \"+Name: value\" adds one, \"-Name\" removes it",
        ),
        (
            "{ paths = \"/a/\", split = [{ pool = \"10.0.0.1:80\", weight = 0 }] }",
            "4:26 every weight of this split is 0",
        ),
        ("{ paths = \"/a/\", split_on = \"request\" }", "4:29 `split_on` says how `split` chooses, and there is none"),
        (
            "{ paths = \"/a/\" },\n{ paths = \"/a/\", pool = \"10.0.0.2:80\" }",
            "5:1 this route can never match | remove it, or move it up or give it a narrower path",
        ),
    ] {
        assert_eq!(routes(text), [told], "{text}");
    }
}

#[test]
fn the_own_action_of_a_site() {
    assert_eq!(
        complaints("[sites.\"a.example.com\"]\nroutes = [{ paths = \"/a/\" }]"),
        ["2:11 this route does nothing, and the site `a.example.com` has no action of its own | give it one of `pool`, `split`, `redirect` and `respond`"]
    );
    assert_eq!(
        complaints("[sites.\"a.example.com\"]\nhttp3 = false"),
        ["1:1 the site `a.example.com` does nothing | give it one of `pool`, `split`, `redirect` and `respond`, or `routes`"]
    );
    assert_eq!(
        complaints("[sites.\"a.example.com\"]\nrespond = {}\nroutes = [{ paths = \"/\", pool = \"10.0.0.1:80\" }]"),
        ["2:1 the site's own action can never be reached | remove it, or move it up or give it a narrower path"]
    );
    // It is used by the route that names none.
    let body = "[sites.\"a.example.com\"]\nrespond = {}\nroutes = [{ paths = \"/\", pool = \"10.0.0.1:80\" }, { paths = \"/own/\" }]";
    let loaded = served(body);
    assert!(matches!(route(&loaded, "a.example.com", "/own/").action, Action::Respond(_)));
    assert!(matches!(route(&loaded, "a.example.com", "/").action, Action::Pool(_)));
}

#[test]
fn names_of_pools() {
    let pool = |name: &str| complaints(&format!("[sites.\"a.example.com\"]\npool = \"{name}\"\n[pools.backend]\nbackends = \"10.0.0.1:80\""));
    assert_eq!(pool("backned"), ["2:8 there is no pool `backned` | did you mean `backend`?"]);
    assert_eq!(pool("other"), ["2:8 there is no pool `other` | the pools are `backend`"]);
    assert_eq!(pool("10.0.0.1"), ["2:8 there is no pool `10.0.0.1` | an address has a port: \"10.0.0.1:80\""]);
    assert_eq!(
        complaints("[sites.\"a.example.com\"]\npool = \"other\""),
        ["2:8 there is no pool `other` | write [pools.other], or the VM's address in its place"]
    );
    assert_eq!(
        complaints("[pools.\"a:80\"]\nbackends = \"10.0.0.1:80\""),
        ["1:8 \"a:80\" cannot be the name of a pool | where pools are named, a text with `:` or `/` is an address"]
    );
}

#[test]
fn one_pool_speaks_one_protocol() {
    let pool = |pool: &str| complaints(&format!("[sites.\"a.example.com\"]\npool = \"p\"\n[pools.p]\n{pool}"));
    for good in [
        "backends = [\"10.0.0.1:80\", \"http://10.0.0.2\"]",
        "backends = [\"https://vm.lan\"]",
        "backends = [\"https://vm.lan\"]\nprotocol = \"http1\"",
        "backends = [\"h2c://vm.lan:50051\"]",
        "backends = [\"vm.lan:443\"]\nprotocol = \"h2\"",
        "backends = [\"vm.lan:443\"]\ntls = { server_name = \"app.lan\" }",
        "backends = [\"unix:/run/x.sock\"]",
    ] {
        assert_eq!(pool(good), [""; 0], "{good}");
    }
    for (wrong, told) in [
        (
            "backends = [\"https://10.0.0.1\", \"10.0.0.2:80\"]",
            "4:33 the addresses of one pool have one scheme | make two pools of them, and a `split` where both shall answer",
        ),
        (
            "backends = \"http://10.0.0.1\"\nprotocol = \"h2\"",
            "5:12 this protocol is not spoken over `http://` | \"h2\" and \"auto\" need `https://`, \"h2c\" needs `h2c://`; or leave the scheme out",
        ),
        (
            "backends = \"http://10.0.0.1\"\ntls = {}",
            "4:12 the pool `p` has a `tls` table, and speaks without TLS",
        ),
        (
            "backends = \"https://10.0.0.1\"\ntls = \"off\"",
            "4:12 the pool `p` has `tls = \"off\"`, and its protocol needs TLS",
        ),
        (
            "backends = \"unix:/run/x.sock\"\nprotocol = \"h2\"",
            "4:12 TLS over a unix socket needs a name to verify | write `tls = { server_name = \"app.lan\" }`",
        ),
        ("backends = \"https://10.0.0.1\"\ntls = { cert = \"a.crt\" }", "5:16 `cert` and `key` of a `tls` table go together"),
        ("backends = []", "4:12 `pools.p.backends` is an empty list"),
        ("balance = \"hash\"", "3:1 the pool `p` has no `backends` | write `backends = [\"192.168.1.10:8080\"]`"),
        (
            "backends = [\"10.0.0.1:80\", \"10.0.0.1:80\"]",
            "4:28 the backend 10.0.0.1:80 stands twice in this pool | `weight` gives a VM more of the work",
        ),
        (
            "backends = \"10.0.0.1:80\"\nhealth = { interval = \"1s\" }",
            "3:8 the health check of this pool does not say what it probes | write `health = { http = { path = \"/healthz\" } }` or `health = { tcp = {} }`",
        ),
        (
            "backends = \"10.0.0.1:80\"\nhealth = { tcp = {}, http = {} }",
            "5:18 a health check is either `http` or `tcp`",
        ),
        (
            "backends = \"10.0.0.1:80\"\nbalance = \"round-robin\"",
            "5:11 `pools.p.balance` must be \"round_robin\", \"least_requests\", \"random\", \"ewma\", \"hash\" or \"first\" | did you mean `round_robin`?",
        ),
    ] {
        assert_eq!(pool(wrong), [told], "{wrong}");
    }
    let missing = pool("backends = \"https://10.0.0.1\"\ntls = { ca = \"no-such.pem\" }");
    assert!(missing[0].starts_with("5:14 /nonexistent/no-such.pem cannot be used"), "{missing:?}");
}

#[test]
fn warnings_do_not_refuse() {
    assert_eq!(
        warnings(
            "\
[defaults.sites]
hsts = { preload = true }
[sites.\"a.example.com\"]
pool = \"a\"
[pools.a]
backends = [\"https://10.0.0.1\"]
tls = { verify = false }
hash_on = \"path\"
[pools.unused]
backends = { address = \"10.0.0.1:80\", weight = 0 }
"
        ),
        [
            "3:8 browsers will not preload the site `a.example.com` | their lists ask for `include_subdomains = true` and `max_age = \"365d\"` or more",
            "7:18 the certificates of the pool `a` are not verified | anyone on the way can answer for its VMs; `ca = \"...\"` trusts a private authority",
            "8:11 `hash_on` has no effect without `balance = \"hash\"`",
            "9:8 no site uses the pool `unused`",
            "10:24 every backend of the pool `unused` has weight 0: it takes no new work",
        ]
    );
    assert_eq!(
        warnings(
            "\
[sites.\"a.example.com\"]
pool = \"10.0.0.1:80\"
routes = [{ paths = \"/admin/\", when = { client_ips = \"10.0.0.0/8\" }, pool = \"10.0.0.1:80\" }]
"
        ),
        ["3:11 clients of other addresses reach the same pool all the same | `when` chooses among routes; it does not deny"]
    );
}

#[test]
fn references_are_followed_and_their_absence_has_a_place() {
    let folder = Folder::new("references");
    folder.write("secret", "s3cr{e}t\n");
    let main = folder.write(
        "foregate.toml",
        "server = { state_dir = \"state\", https = \"{env.CARGO_PKG_VERSION_MAJOR}\" }\n[tls]\nself_signed = true\n[sites.\"a.example.com\"]\npool = \"10.0.0.1:80\"\nrequest_headers = \"Authorization: Bearer {file.secret} {env.CARGO_PKG_NAME}\"\n",
    );
    let loaded = load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.state_dir, folder.0.join("state"));
    assert_eq!(loaded.live.settings.https, [0]);
    let [HeaderEdit::Set(_, template)] = &policy(&loaded, "a.example.com", "/").request_headers[..] else {
        panic!("one edit")
    };
    assert_eq!(template.as_literal(), Some("Bearer s3cr{e}t foregate"));

    assert_eq!(
        complaints("server.http = \"{env.FOREGATE_UNSET}\"\n[sites.\"a.example.com\"]\npool = \"http://{file.none}:80\""),
        [
            "1:16 the environment variable FOREGATE_UNSET is not set | set FOREGATE_UNSET where foregate is started, or write the value here",
            "3:16 /nonexistent/none cannot be read: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn files_are_included_in_the_order_of_their_names() {
    let folder = Folder::new("include");
    let main = folder.write(
        "foregate.toml",
        "include = \"conf.d/*.toml\"\nserver.state_dir = \"state\"\n[tls]\nself_signed = true\n[pools.shared]\nbackends = \"10.0.0.1:80\"\n",
    );
    folder.write("conf.d/20-b.toml", "[sites.\"b.example.com\"]\npool = \"shared\"\n");
    folder.write("conf.d/10-a.toml", "[sites.\"a.example.com\"]\npool = \"late\"\n");
    folder.write("conf.d/30-c.toml", "[pools.late]\nbackends = \"10.0.0.2:80\"\n");
    folder.write("conf.d/.hidden.toml", "nonsense");
    folder.write("conf.d/readme.txt", "nonsense");
    let loaded = load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    let names: Vec<&str> = loaded.live.routing.sites().iter().map(|site| &*site.name).collect();
    assert_eq!(names, ["a.example.com", "b.example.com"]);

    folder.write("conf.d/20-b.toml", "[sites.\"a.example.com\"]\npool = \"shraed\"\n[server]\nhttp = 1\n[tls]\nself_signed = true\n");
    assert_eq!(
        folder.report(&main),
        "\
error: the site `a.example.com` stands twice
 --> conf.d/20-b.toml:1:8
  |
1 | [sites.\"a.example.com\"]
  |        ^^^^^^^^^^^^^^^
  |
 ::: conf.d/10-a.toml:1:8
  |
1 | [sites.\"a.example.com\"]
  |        --------------- here first

error: `server` does not belong into an included file
 --> conf.d/20-b.toml:3:2
  |
3 | [server]
  |  ^^^^^^
  |
  = help: an included file holds only sites, pools, filters, forwards and tls.certificates; this belongs into the main file

error: `self_signed` does not belong into [tls]
 --> conf.d/20-b.toml:6:1
  |
6 | self_signed = true
  | ^^^^^^^^^^^
  |
  = help: an included file holds only `certificates` of [tls]; this belongs into the main file

3 errors in conf.d/20-b.toml"
    );
}

#[test]
fn an_include_elsewhere_is_explained() {
    assert_eq!(
        complaints("[server]\ninclude = \"x.toml\"").last().map(String::as_str),
        Some("2:1 unknown key `include` in `server` | `include` stands at the top of the main file, before the first [table]")
    );
    assert_eq!(warnings_of_include("include = \"none.d/*.toml\""), ["-1:11 \"none.d/*.toml\" names no file"]);
}

fn warnings_of_include(line: &str) -> Vec<String> {
    let text = format!("{line}\nserver.state_dir = \"/nonexistent\"\ntls.self_signed = true\n");
    let loaded = load_str("foregate.toml", &text, Path::new("/nonexistent"), None).unwrap();
    loaded.warnings.iter().map(|warning| brief(warning).replacen("0:", "-1:", 1)).collect()
}

#[test]
fn a_name_that_stands_twice_in_one_file_names_both_places() {
    let text = "[pools.a]\nbackends = \"10.0.0.1:80\"\n[sites.a]\nhosts = \"a.example.com\"\npool = \"a\"\npool = \"b\"\n[pools.a]\nbackends = \"10.0.0.2:80\"\n";
    let report = load_str("foregate.toml", text, Path::new("/nonexistent"), None).unwrap_err();
    let places: Vec<Vec<&str>> = report
        .errors()
        .iter()
        .map(|error| error.lines().filter(|line| line.contains("stands twice") || line.contains("here first")).collect())
        .collect();
    assert_eq!(
        places,
        [
            vec!["error: pool stands twice", "  | ---- here first"],
            vec!["error: a stands twice", "  |        - here first"],
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read() {
    let folder = Folder::new("unreadable");
    assert_eq!(folder.report(&folder.0.join("none.toml")), "error: none.toml does not exist\n\n1 error in none.toml");
    let path = folder.0.join("latin1.toml");
    fs::write(&path, b"# caf\xe9").unwrap();
    assert!(folder.report(&path).starts_with("error: latin1.toml is not UTF-8 text (byte 5)"));
}

#[test]
fn a_host_without_certificate_is_told_the_three_ways() {
    let refused = |text: &str| {
        let report = load_str("foregate.toml", text, Path::new("/nonexistent"), None).unwrap_err();
        report.errors().iter().map(|error| error.lines().next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let site = "[sites.a]\nhosts = [\"a.example.com\", \"*.a.example.com\"]\npool = \"10.0.0.1:80\"\n";
    assert_eq!(refused(site), ["error: there is no certificate for a.example.com, *.a.example.com"]);
    let report = load_str("foregate.toml", site, Path::new("/nonexistent"), None).unwrap_err().to_string();
    for way in ["[[tls.certificates]]", "[tls.acme]", "self_signed = true"] {
        assert!(report.contains(way), "{report}");
    }
    // Without HTTPS nobody asks for one.
    let plain = format!("server.https = \"off\"\n{site}");
    let loaded = load_str("foregate.toml", &plain, Path::new("/nonexistent"), None).unwrap();
    assert!(!loaded.live.routing.sites()[0].redirect_to_https);
    assert_eq!(
        refused("[[tls.certificates]]\ncert = \"a.crt\"\n[tls]\ndefault_certificate = \"a.example.com\"\n").len(),
        2
    );
}

#[test]
fn certificates_are_found_by_the_names_in_them() {
    let folder = Folder::new("certificates");
    let made = |name: &str, hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        folder.write(&format!("{name}.crt"), &made.cert.pem());
        folder.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
    };
    made("shop", &["shop.example.com", "*.shop.example.com"]);
    made("own", &["own.example.com"]);
    let listed = "server.state_dir = \"state\"\n[[tls.certificates]]\ncert = \"shop.crt\"\nkey = \"shop.key\"\n";
    let shop = "[sites.shop]\nhosts = [\"shop.example.com\", \"*.shop.example.com\"]\nrespond = {}\n";
    let own = "[sites.\"own.example.com\"]\nrespond = {}\ntls = { cert = \"own.crt\", key = \"own.key\" }\n";

    let main = folder.write("foregate.toml", &format!("{listed}{shop}{own}"));
    let loaded = load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    let store = &loaded.live.certificates;
    assert_eq!(store.find("x.shop.example.com").unwrap().names(), ["shop.example.com", "*.shop.example.com"]);
    assert_eq!(store.find("own.example.com").unwrap().names(), ["own.example.com"]);
    assert!(loaded.self_signed.is_empty());

    // "*" is what the default certificate is for.
    let any = "[sites.any]\nhosts = \"*\"\nrespond = {}\n";
    let main = folder.write("foregate.toml", &format!("{listed}{any}"));
    assert!(folder.report(&main).contains("error: there is no certificate for *\n"));
    let named = format!("tls.default_certificate = \"shop.example.com\"\n{}", listed.replace("[[tls.certificates]]", "[[tls.certificates]]"));
    let _ = named;
    let with_default = "server.state_dir = \"state\"\n[tls]\ndefault_certificate = \"shop.example.com\"\n[[tls.certificates]]\ncert = \"shop.crt\"\nkey = \"shop.key\"\n";
    let main = folder.write("foregate.toml", &format!("{with_default}{any}"));
    load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    let main = folder.write("foregate.toml", &with_default.replace("\"shop.example.com\"", "\"shpo.example.com\""));
    assert!(folder.report(&main).contains("help: did you mean `shop.example.com`?"));

    // The key of another certificate, and a site whose own certificate is for somebody else.
    let main = folder.write("foregate.toml", &format!("{}{shop}", listed.replace("shop.key", "own.key")));
    let report = folder.report(&main);
    assert!(report.contains("own.key is not the private key of the certificate"), "{report}");
    assert!(report.contains("foregate.toml:4:7"), "{report}");
    let main = folder.write("foregate.toml", &format!("{listed}{}", own.replace("own.crt", "shop.crt").replace("own.key", "shop.key")));
    let loaded = load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings[0].starts_with("warning: the certificate of the site `own.example.com` does not name own.example.com"));
}

#[test]
fn missing_certificates_are_made_where_that_is_allowed() {
    let folder = Folder::new("self-signed");
    let text = "server.state_dir = \"state\"\nserver.addresses = \"203.0.113.7\"\n[tls]\nself_signed = true\n[sites.a]\nhosts = [\"a.example.com\", \"*.a.example.com\", \"*\"]\nrespond = {}\n";
    let main = folder.write("foregate.toml", text);
    let loaded = load(&main, None).unwrap_or_else(|report| panic!("{report}"));
    let hosts: Vec<&[String]> = loaded.self_signed.iter().map(|made| made.hosts.as_slice()).collect();
    assert_eq!(
        hosts,
        [
            &["*.a.example.com".to_owned(), "a.example.com".to_owned()][..],
            &["*.localhost", "127.0.0.1", "203.0.113.7", "::1", "localhost"].map(str::to_owned)[..],
        ]
    );
    let store = &loaded.live.certificates;
    assert!(store.find("x.a.example.com").is_some());
    assert!(!folder.0.join("state").exists(), "loading writes nothing");
    for made in &loaded.self_signed {
        made.keep().unwrap();
    }
    let names: Vec<_> = fs::read_dir(folder.0.join("state/self-signed")).unwrap().count().to_string().chars().collect();
    assert_eq!(names, ['2']);
}

#[test]
fn endpoints_survive_a_reload() {
    let body = "[sites.\"a.example.com\"]\npool = \"10.0.0.1:80\"\n";
    let first = served(body);
    let second =
        load_str("foregate.toml", &text(body), Path::new("/nonexistent"), Some(&first.live.routing)).unwrap();
    let id = |loaded: &Loaded| pool_of(route(loaded, "a.example.com", "/")).members()[0].endpoint.id;
    assert_eq!(id(&first), id(&second));
}

fn shipped(name: &str) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name);
    load(&path, None).unwrap_or_else(|report| panic!("{report}"))
}

#[test]
fn shipped_examples_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["api-sandbox.toml", "gitlab-jenkins-docs.toml", "homelab.toml", "shop-canary.toml", "small-firm.toml"]
    );
    for name in names {
        let loaded = shipped(&format!("examples/{name}"));
        let unverified = |warning: &String| warning.contains("are not verified");
        assert!(loaded.warnings.iter().all(unverified), "{name}: {:#?}", loaded.warnings);
    }
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let written = shipped("foregate.toml");
    assert!(written.warnings.is_empty(), "{:#?}", written.warnings);
    let unsaid = load_str("empty.toml", "", Path::new("/nonexistent"), None).unwrap();
    assert_eq!(format!("{:?}", written.live.settings), format!("{:?}", unsaid.live.settings));
    assert_eq!(written.state_dir, unsaid.state_dir);
    let bare = served("[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n");
    assert_eq!(
        format!("{:?}", policy(&written, "app.example.com", "/")),
        format!("{:?}", policy(&bare, "app.example.com", "/"))
    );
}
