//! What is wrong is told, all of it, where it stands.

use super::*;

#[test]
fn an_error_is_shown_with_its_place_its_line_and_what_to_write() {
    let text = format!("[server]\nbacklgo = 4096\n\n{SITE}[tls]\nself_signed = true\n");
    let report = load_str("conf/foregate.toml", &text, Path::new("/nonexistent"), None).unwrap_err();
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
    let body = r#"[sites.a]
hosts = "x.example.com"
respond = {}
[sites.b]
hosts = ["y.example.com", "X.example.com"]
respond = {}
"#;
    let golden = r#"error: the host x.example.com belongs to two sites
 --> foregate.toml:7:27
  |
4 | hosts = "x.example.com"
  |         --------------- here first
...
7 | hosts = ["y.example.com", "X.example.com"]
  |                           ^^^^^^^^^^^^^^^

1 error in foregate.toml"#;
    assert_eq!(load_text(body).unwrap_err().to_string(), golden);
}

#[test]
fn every_error_is_told_at_once_in_the_order_of_the_file() {
    let body = r#"[server.timeouts]
drain = 30
keep_alive = "5 parsecs"
[http3]
congestion = "vegas"
[sites.shop]
hosts = "shop.example.com"
pool = "shpo"
tls = { min_versoin = "1.2", colour = "red" }
routes = [{ paths = "api", pool = "shop" }, { paths = "~(", pool = 7 }]
[pools.shop]
backends = ["10.0.0.1", { address = "10.0.0.2:80", weight = -1 }]
"#;
    assert_eq!(
        complaints(body),
        [
            "2:9 `server.timeouts.drain` must be a duration such as \"30s\", not an integer",
            "3:14 \"parsecs\" is not a unit of time | a duration is a whole number and a unit: \"250ms\", \"5s\", \"3m\", \"24h\", \"365d\"",
            "5:14 `http3.congestion` must be \"cubic\" or \"bbr\"",
            "8:8 there is no pool `shpo` | did you mean `shop`?",
            "9:9 unknown key `min_versoin` in `sites.shop.tls` | did you mean `min_version`?",
            "9:30 unknown key `colour` in `sites.shop.tls` | the keys here are `cert`, `client_auth`, `client_ca`, `client_crl`, `key`, `min_version`",
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
    let body = r#"[sites.shop]
hosts = "shop.example.com
pool = shop
[http3]
enabld = true
[pools.shop]
backends = ["10.0.0.1:80"
[pools.other]
backends = "10.0.0.2:80"
"#;
    assert_eq!(
        complaints(body),
        [
            "2:26 invalid basic string, expected `\"`",
            "3:8 string values must be quoted, expected literal string | write it in quotes: \"shop\"",
            "5:1 unknown key `enabld` in `http3` | did you mean `enabled`?",
            "7:12 this list is never closed | write the `]` that is missing",
        ]
    );
}

#[test]
fn what_may_stand_in_unreadable_text_is_not_missed() {
    let cases = [
        // The site's action, its hosts, and a route's path.
        ("[sites.\"a.b\"]\npool \"10.0.0.1:80\"", &["2:6"][..]),
        ("[sites.a]\nhosts \"a.b\"\npool = \"10.0.0.1:80\"", &["2:7"]),
        ("[sites.\"a.b\"]\nroutes = [{ paths \"/\", pool = \"10.0.0.1:80\" }]", &["2:19"]),
        // A header that is none may be that of anything.
        ("[sites.\"a.b\"]\n[sites.\"a.b\".routes\npaths = \"/\"\n[pools.a]", &["2:20"]),
        // What comes after is read all the same.
        ("[sites.a]\nhosts \"a.b\"\npoool = 1\n[pools.a]\nfirst\n[pools.b]\n", &["2:7", "3:1", "5:6", "6:1"]),
    ];
    for (body, places) in cases {
        let told = complaints(body);
        let told: Vec<&str> = told.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(told, places, "{body}");
    }
}

#[test]
fn quotes_too_many_or_too_few() {
    let body = r#"server.http = ["80", 8080]
server.backlog = "0"
server.redirect_to_https = "true"
tls.min_version = 1.2
[pools.a]
backends = "10.0.0.1:80"
protocol = 1.1
health = { http = { path = true, status = 200 }, interval = 5 }
"#;
    let short = |line: String| match line.split_once(' ') {
        Some((place, rest)) => format!("{place}{}", rest.split_once(" | ").map_or("", |(_, help)| help)),
        None => line,
    };
    let told: Vec<String> = complaints(body).into_iter().map(short).collect();
    assert_eq!(
        told,
        [
            "1:16write it without quotes: 80",
            "2:18",
            "3:28write it without quotes: true",
            "4:19write it with quotes: \"1.2\"",
            "7:12",
            "8:28",
            "8:43write it with quotes: \"200\"",
            "8:61",
        ]
    );
}

#[test]
fn a_name_that_stands_twice_in_one_file_names_both_places() {
    let body = r#"[pools.a]
backends = "10.0.0.1:80"
[sites.a]
hosts = "a.example.com"
pool = "a"
pool = "b"
[pools.a]
backends = "10.0.0.2:80"
"#;
    let report = load_text(body).unwrap_err().to_string();
    let golden = r#"error: `pool` stands twice
 --> foregate.toml:8:1
  |
7 | pool = "a"
  | ---- here first
8 | pool = "b"
  | ^^^^

error: `a` stands twice
 --> foregate.toml:9:8
  |
3 | [pools.a]
  |        - here first
...
9 | [pools.a]
  |        ^

2 errors in foregate.toml"#;
    assert_eq!(report, golden);
}

#[test]
fn what_is_wrong_ten_thousand_times_is_told_a_hundred_times() {
    let body: String = (0..10_000).map(|n| format!("[sites.\"a{n}.test\"]\n")).collect();
    let report = load_text(&body).unwrap_err().to_string();
    assert_eq!(report.matches("error: ").count(), 100);
    assert!(report.contains("and 9900 more,"), "{report}");
    assert!(report.ends_with("10000 errors in foregate.toml"), "{report}");
}

#[test]
fn what_is_reserved_is_not_called_unknown() {
    let body = r#"[admin]
listen = "off"
[metrics]
listen = "127.0.0.1:9180"
[tracing]
otlp = "off"
[http3]
alt_svc = "auto"
[tls.acme]
email = "ops@example.com"
[filters.office]
allow = []
[forwards.ssh]
listen = "2222/tcp"
[sites.shop]
hosts = "shop.example.com"
passthrough = "10.0.0.9:443"
pool = "shop"
filters = ["office"]

routes = [{ paths = "/a/", mirror = { pool = "shop" } }]
[pools.shop]
backends = ["10.0.0.1:443", { address = "10.0.0.2:80", bandwidth = "1Mbit/s" }]
send_proxy = "v2"
discover = { file = "files.json" }
"#;
    let told: Vec<String> = complaints(body)
        .iter()
        .map(|complaint| complaint.split(" | ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        told,
        [
            "3:2 `metrics` is not supported yet",
            "11:2 `filters` is not supported yet",
            "13:2 `forwards` is not supported yet",
            "17:1 `sites.shop.passthrough` is not supported yet",
            "19:1 `sites.shop.filters` is not supported yet",
            "21:28 `sites.shop.routes[0].mirror` is not supported yet",
            "23:56 `pools.shop.backends[1].bandwidth` is not supported yet",
            "24:1 `pools.shop.send_proxy` is not supported yet",
            "25:14 `pools.shop.discover.file` is not supported yet",
        ]
    );
}

#[test]
fn defaults_of_reserved_keys_are_harmless() {
    let body = r#"server.accept_proxy_from = []
server.error_pages = "off"
[metrics]
listen = "off"
[tracing]
otlp = "off"
[http3]
alt_svc_probe = "off"
[sites."a.example.com"]
pool = "a"
early_data = false
filters = []
bandwidth = "off"
tls = { client_auth = "off" }
[pools.a]
backends = "10.0.0.1:80"
send_proxy = "off"
bandwidth = "off"
"#;
    assert_eq!(complaints(body), [""; 0]);
}

#[test]
fn a_server_without_ports_is_refused() {
    assert_eq!(
        complaints("server.http = \"off\"\nserver.https = \"off\""),
        [
            "2:8 both `http` and `https` are off | a gateway without a port serves nobody; leave one of them on"
        ]
    );
    assert_eq!(
        complaints("server.http = [80, 80]\nserver.https = 80"),
        ["1:8 the port 80 stands twice", "2:8 port 80 cannot be both an `http` and an `https` port"]
    );
}

#[test]
fn an_unquoted_host_gets_its_own_hint() {
    let body = r#"[sites.www.example.com]
pool = "10.0.0.1:80"
hsst = "off"
[pools.vm.lan]
backends = "10.0.0.1:80"
"#;
    assert_eq!(
        complaints(body),
        [
            "1:1 the dots in `sites.www.example.com` make it a table in a table | quote the name: [sites.\"www.example.com\"]",
            "3:1 unknown key `hsst` in `sites.www.example.com` | did you mean `hsts`?",
            "4:1 the dots in `pools.vm.lan` make it a table in a table | quote the name: [pools.\"vm.lan\"]",
        ]
    );
}

#[test]
fn hosts() {
    assert_eq!(
        complaints("[sites.shop]\nrespond = {}"),
        [
            "1:8 the site `shop` has no `hosts` | write `hosts = \"shop.example.com\"`, or name the table after its host: [sites.\"shop.example.com\"]"
        ]
    );
    assert_eq!(
        complaints(
            "[sites.a]\nhosts = [\"a.example.com\", \"b.example.com:8080\", \"A.example.com\"]\nrespond = {}"
        ),
        [
            "2:27 \"b.example.com:8080\" names a port | hosts have no port; the ports are `http` and `https` of [server]",
            "2:49 the host a.example.com stands twice",
        ]
    );
}

#[test]
fn one_host_may_belong_to_two_sites_on_different_addresses() {
    let sites = |first: &str, second: &str| {
        complaints(&format!(
            r#"server.addresses = ["10.0.0.1", "10.0.0.2"]
[sites.a]
hosts = "x.example.com"
addresses = "{first}"
respond = {{}}
[sites.b]
hosts = "x.example.com"
addresses = "{second}"
respond = {{}}
"#
        ))
    };
    assert_eq!(sites("10.0.0.1", "10.0.0.2"), [""; 0]);
    assert_eq!(sites("10.0.0.1", "10.0.0.1"), ["7:9 the host x.example.com belongs to two sites"]);
    assert_eq!(
        sites("10.0.0.1", "10.0.0.3"),
        ["8:13 10.0.0.3 is none of the addresses of [server] | add it to `server.addresses`"]
    );
}

#[test]
fn a_mistake_in_the_defaults_is_told_once() {
    let body = r#"[defaults.sites]
tls = { cert = "a.crt" }
pool = "x"
[sites."1.example.com"]
respond = {}
[sites."2.example.com"]
respond = {}
"#;
    assert_eq!(
        complaints(body),
        [
            "2:16 `cert` and `key` of a `tls` table go together",
            "3:1 `pool` does not belong into [defaults.sites] | this is each site's own: write it under [sites.NAME]",
        ]
    );
}

/// Asserts what each text is told, and tells of all that differ.
fn each_is_told(told: impl Fn(&str) -> Vec<String>, cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let found = told(text);
        if found != [*expected] {
            wrong.push(format!("{text}\n  is told {found:#?}\n  and not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mistakes_in_routes() {
    let told = |routes: &str| complaints(&format!("{SITE}routes = [\n{routes}\n]"));
    let cases = [
        (
            r#"{ pool = "10.0.0.1:80" }"#,
            "4:1 a route needs `paths` | write `paths = \"/\"` for every path of the site",
        ),
        (
            r#"{ paths = "/a/", pool = "10.0.0.1:80", redirect = { to = "/b" } }"#,
            "4:40 `redirect` is a second action beside `pool`, and there is only one",
        ),
        (
            r#"{ paths = "/a/", redirect = { to = "/{1}" } }"#,
            "4:38 `{1}` is a group of a regular expression | a regular expression begins with `~`: \"~^/v([0-9])/\"",
        ),
        (r#"{ paths = "~^/(a)", rewrite = "/{2}" }"#, "4:33 there is no group 2"),
        (
            r#"{ paths = "/a/", redirect = { to = "/{hots}" } }"#,
            "4:38 there is no variable \"hots\" | did you mean `{host}`?",
        ),
        (
            r#"{ paths = "/a/", respond = { body = '{"a":1}' } }"#,
            "4:38 there is no variable \"\"a\":1\" | a literal brace is written `{{` or `}}`",
        ),
        (r#"{ paths = "/a/", respond = { status = 204, body = "x" } }"#, "4:28 an answer 204 has no body"),
        (
            r#"{ paths = "/a/", redirect = { to = "/b", status = 304 } }"#,
            "4:51 `sites.\"a.example.com\".routes[0].redirect.status` must be 301, 302, 303, 307 or 308",
        ),
        (
            r#"{ paths = "/a/", redirect = { to = "b.example.com" } }"#,
            "4:36 \"b.example.com\" is not where a client can go | write a whole URL such as \"https://example.com{uri}\", or a path from \"/\"",
        ),
        (r#"{ paths = "/a/", strip_prefix = "/b" }"#, "4:33 not every path of this route begins with \"/b\""),
        (
            r#"{ paths = "/a/", strip_prefix = "/a", rewrite = "/" }"#,
            "4:49 `rewrite` writes the whole path, so `strip_prefix` has no effect",
        ),
        (
            r#"{ paths = "/a/", rewrite = "/b", respond = {} }"#,
            "4:28 the path is changed for a VM, and no VM sees this request",
        ),
        (
            r#"{ paths = "/a/", when = { methods = "get" } }"#,
            "4:37 \"get\" is no method; methods are written in capitals | write \"GET\"",
        ),
        (
            r#"{ paths = "/a/", when = { headers = { "x y" = "1" } } }"#,
            "4:39 \"x y\" is not the name of a header field",
        ),
        (
            r#"{ paths = "/a/", when = { client_ips = "10.0.0.1/8" } }"#,
            "4:40 \"10.0.0.1/8\" has bits set beyond its prefix | write \"10.0.0.0/8\" for the network or \"10.0.0.1\" for the one address",
        ),
        (
            r#"{ paths = "/a/", request_headers = "Host: b" }"#,
            "4:36 the gateway writes `host` itself | write `upstream_host = \"...\"` to change what the VM is asked for",
        ),
        (
            r#"{ paths = "/a/", response_headers = "-Transfer-Encoding" }"#,
            "4:37 the gateway writes `transfer-encoding` itself | it follows from the message; remove this edit",
        ),
        (
            r#"{ paths = "/a/", response_headers = "X-A" }"#,
            "4:37 \"X-A\" has no value | \"Name: value\" sets a field, \"+Name: value\" adds one, \"-Name\" removes it",
        ),
        (
            r#"{ paths = "/a/", response_headers = "X-A: a\nX-B: b" }"#,
            "4:37 the value of `x-a` holds a character that no header field may | header fields hold visible characters, spaces and tabs; no line breaks",
        ),
        (
            r#"{ paths = "/a/", split = [{ pool = "10.0.0.1:80", weight = 0 }] }"#,
            "4:26 every weight of this split is 0",
        ),
        (
            r#"{ paths = "/a/", split_on = "request" }"#,
            "4:29 `split_on` says how `split` chooses, and there is none",
        ),
        (
            "{ paths = [\"/a/\", \"=/a\"] },\n{ paths = [\"/a/\", \"=/a\"], pool = \"10.0.0.2:80\" }",
            "5:1 this route can never match | remove it, or move it up or give it a narrower path",
        ),
    ];
    each_is_told(told, &cases);
}

#[test]
fn mistakes_in_the_own_action_of_a_site() {
    let told = |body: &str| complaints(&format!("[sites.\"a.example.com\"]\n{body}"));
    let cases = [
        (
            r#"routes = [{ paths = "/a/" }]"#,
            "2:11 this route does nothing, and the site `a.example.com` has no action of its own | give it one of `pool`, `split`, `redirect` and `respond`",
        ),
        (
            "http3 = false",
            "1:1 the site `a.example.com` does nothing | give it one of `pool`, `split`, `redirect` and `respond`, or `routes`",
        ),
        (
            "routes = []",
            "1:1 the site `a.example.com` does nothing | give it one of `pool`, `split`, `redirect` and `respond`, or `routes`",
        ),
        (
            "respond = {}\nroutes = [{ paths = \"/\", pool = \"10.0.0.1:80\" }]",
            "2:1 the site's own action can never be reached | remove it, or move it up or give it a narrower path",
        ),
        (
            r#"redirect = { to = "/{1}" }"#,
            "2:21 `{1}` is a group of a regular expression, and a site has none | a route with `paths = \"~...\"` has groups",
        ),
    ];
    each_is_told(told, &cases);
}

#[test]
fn names_of_pools() {
    let told = |name: &str| {
        complaints(&format!(
            "[sites.\"a.example.com\"]\npool = \"{name}\"\n[pools.backend]\nbackends = \"10.0.0.1:80\""
        ))
    };
    let cases = [
        ("backned", "2:8 there is no pool `backned` | did you mean `backend`?"),
        ("other", "2:8 there is no pool `other` | the pools are `backend`"),
        ("10.0.0.1", "2:8 there is no pool `10.0.0.1` | an address has a port: \"10.0.0.1:80\""),
    ];
    each_is_told(told, &cases);
    assert_eq!(
        complaints("[sites.\"a.example.com\"]\npool = \"other\""),
        ["2:8 there is no pool `other` | write [pools.other], or the VM's address in its place"]
    );
    assert_eq!(
        complaints("[pools.\"a:80\"]\nbackends = \"10.0.0.1:80\""),
        [
            "1:8 \"a:80\" cannot be the name of a pool | where pools are named, a text with `:` or `/` is an address"
        ]
    );
}

#[test]
fn mistakes_in_pools() {
    let told =
        |pool: &str| complaints(&format!("[sites.\"a.example.com\"]\npool = \"p\"\n[pools.p]\n{pool}"));
    let cases = [
        (
            r#"backends = ["https://10.0.0.1", "10.0.0.2:80"]"#,
            "4:33 the addresses of one pool have one scheme | make two pools of them, and a `split` where both shall answer",
        ),
        (
            "backends = \"http://10.0.0.1\"\nprotocol = \"h2\"",
            "5:12 this protocol is not spoken over `http://` | \"h2\" and \"auto\" need `https://`, \"h2c\" needs `h2c://`, \"h3\" needs `h3://` or `https://`; or leave the scheme out",
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
        (
            "backends = \"https://10.0.0.1\"\ntls = { cert = \"a.crt\" }",
            "5:16 `cert` and `key` of a `tls` table go together",
        ),
        ("backends = []", "4:12 `pools.p.backends` is an empty list"),
        (
            "balance = \"hash\"",
            "3:1 the pool `p` has no `backends` | write `backends = [\"192.168.1.10:8080\"]`",
        ),
        (
            r#"backends = ["10.0.0.1:80", "10.0.0.1:80"]"#,
            "4:28 the backend 10.0.0.1:80 stands twice in this pool | `weight` gives a VM more of the work",
        ),
        (
            "backends = \"10.0.0.1:80\"\nhealth = { interval = \"1s\" }",
            "3:8 the health check of this pool does not say what it probes | write `health = { http = { path = \"/healthz\" } }`, `health = { tcp = {} }` or `health = { grpc = {} }`",
        ),
        (
            "backends = \"10.0.0.1:80\"\nhealth = { grpc = {} }",
            "3:8 gRPC probes need HTTP/2 or HTTP/3, and the pool `p` speaks HTTP/1.1 | write `protocol = \"h2c\"`, or addresses such as \"h2c://192.168.1.10:50051\"",
        ),
        (
            "backends = \"10.0.0.1:80\"\nretry = { on = [\"500\"] }",
            "5:17 `pools.p.retry.on[0]` must be \"connect\", \"reset\", \"timeout\", \"502\", \"503\" or \"504\" | did you mean `502`?",
        ),
        (
            "backends = \"10.0.0.1:80\"\nretry = { budget = \"120%\" }",
            "5:20 \"120%\" is not a share | write a whole number from 0 to 100 and a percent sign: \"50%\"",
        ),
        (
            "backends = \"10.0.0.1:80\"\nhealth = { tcp = {}, http = {} }",
            "5:18 a health check is one of `http`, `tcp` and `grpc`",
        ),
        (
            "backends = \"10.0.0.1:80\"\nbalance = \"round-robin\"",
            "5:11 `pools.p.balance` must be \"round_robin\", \"least_requests\", \"random\", \"ewma\", \"hash\" or \"first\" | did you mean `round_robin`?",
        ),
        (
            "backends = \"unix:/run/vm.sock\"\nprotocol = \"h3\"",
            "4:12 HTTP/3 is not spoken over a unix socket | write \"host:port\", or another `protocol`",
        ),
    ];
    each_is_told(told, &cases);
    let missing = told("backends = \"https://10.0.0.1\"\ntls = { ca = \"no-such.pem\" }");
    assert!(missing[0].starts_with("5:14 /nonexistent/no-such.pem cannot be used"), "{missing:?}");
}

#[test]
fn warnings_do_not_refuse() {
    let body = r#"[defaults.sites]
hsts = { preload = true }
[sites."a.example.com"]
pool = "a"
[pools.a]
backends = ["https://10.0.0.1"]
tls = { verify = false }
hash_on = "path"
[pools.unused]
backends = { address = "10.0.0.1:80", weight = 0 }
"#;
    assert_eq!(
        warnings(body),
        [
            "3:8 browsers will not preload the site `a.example.com` | their lists ask for `include_subdomains = true` and `max_age = \"365d\"` or more",
            "7:18 the certificates of the pool `a` are not verified | anyone on the way can answer for its VMs; `ca = \"...\"` trusts a private authority",
            "8:11 `hash_on` has no effect without `balance = \"hash\"`",
            "9:8 no site uses the pool `unused`",
            "10:24 every backend of the pool `unused` has weight 0: it takes no new work",
        ]
    );
    assert_eq!(
        warnings(&format!(
            "{SITE}routes = [{{ paths = \"/admin/\", when = {{ client_ips = \"10.0.0.0/8\" }}, pool = \"10.0.0.1:80\" }}]"
        )),
        [
            "3:11 other clients reach the same pool all the same | `when` chooses among routes; it does not deny"
        ]
    );
}
