//! Who answers: hosts, paths, conditions, and the answers that need no VM.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;

use foregate_tests::{
    Client, Fields, Gateway, GatewayBuilder, Origin, Reply, Request, Version, gateway, get, origin, post,
    request,
};

const GOLDEN: &str = include_str!("golden/routing.txt");

struct Case {
    line: usize,
    request: Request,
    from: String,
    expected: String,
}

fn parse(number: usize, line: &str) -> Case {
    let (left, expected) = line.split_once("->").unwrap_or_else(|| panic!("line {number}: no ->"));
    let mut parts = left.split(" | ");
    let words: Vec<&str> = parts.next().unwrap().split_whitespace().collect();
    let [method, host, target] = words[..] else { panic!("line {number}: METHOD host target") };
    let mut case = Case {
        line: number,
        request: request(method, target).host(host),
        from: "127.0.0.1".to_owned(),
        expected: expected.strip_prefix(' ').unwrap_or_default().trim_start().to_owned(),
    };
    for part in parts {
        match part.trim().strip_prefix("from ") {
            Some(from) => from.clone_into(&mut case.from),
            None => {
                let (name, value) = part.trim().split_once(": ").expect("field: value");
                // Names in capitals exist on HTTP/1.1 alone; there the table's spelling is used.
                case.request.fields.push(name, value);
            }
        }
    }
    case
}

/// Every VM an `@name` of the text refers to, and the text with their addresses.
async fn vms(text: &str) -> (HashMap<String, Origin>, String) {
    let mut vms = HashMap::new();
    let mut out = text.to_owned();
    for name in ["shop", "api", "next", "raw", "exact", "first", "second", "other"] {
        let vm = origin().named(name).start().await;
        out = out.replace(&format!("\"@{name}\""), &format!("{:?}", vm.address()));
        vms.insert(name.to_owned(), vm);
    }
    (vms, out)
}

fn verdict(case: &Case, reply: &Reply, vms: &HashMap<String, Origin>) -> Result<(), String> {
    let (first, rest) = case.expected.split_once(' ').unwrap_or((&case.expected, ""));
    let seen: Vec<(String, String)> = vms
        .values()
        .flat_map(|vm| vm.requests().into_iter().map(|r| (vm.name().to_owned(), r.target)))
        .collect();
    let got = || format!("{} {:?}, at the VMs {seen:?}, body {:?}", reply.status, reply.fields, reply.text());
    let good = if let Ok(status) = first.parse::<u16>() {
        let right = match rest.strip_prefix("= ").or(if rest == "=" { Some("") } else { None }) {
            Some(body) => reply.text() == body.replace("\\n", "\n"),
            None if rest.is_empty() => true,
            None => reply.fields.get("location") == Some(rest),
        };
        reply.status == status && right && seen.is_empty()
    } else {
        let [(vm, target)] = &seen[..] else { return Err(got()) };
        reply.status == 200 && reply.vm() == first && vm == first && (rest == "*" || target == rest)
    };
    if good { Ok(()) } else { Err(got()) }
}

#[tokio::test]
async fn the_golden_table() {
    let (config, table) = GOLDEN.split_once("--------\n").expect("a line of dashes");
    let config: String =
        config.lines().skip_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    let first = GOLDEN.lines().position(|l| l == "--------").unwrap() + 2;
    let cases: Vec<Case> = table
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'))
        .map(|(i, l)| parse(first + i, l))
        .collect();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let (vms, config) = vms(&config).await;
    let names = [
        "shop.test",
        "*.shop.test",
        "exact.shop.test",
        "a.b.shop.test",
        "routed.test",
        "www.test",
        "plain.test",
        "*.wild.test",
        "wild.test",
        "elsewhere.test",
        "xshop.test",
        "127.0.0.1",
    ];
    let gw = gateway().named(&names).tls("default_certificate = \"shop.test\"").toml(&config).start().await;

    let mut wrong = Vec::new();
    for version in Version::ALL {
        let mut clients: HashMap<(String, String), Client> = HashMap::new();
        for case in &cases {
            let mut request = case.request.clone();
            if !version.is_h1() {
                request.fields =
                    Fields(request.fields.0.into_iter().map(|(n, v)| (n.to_lowercase(), v)).collect());
            }
            let host = request.host.rsplit_once(':').map_or(request.host.as_str(), |(h, _)| h);
            let name = host.trim_end_matches('.').to_lowercase();
            let key = (name.clone(), case.from.clone());
            if !clients.contains_key(&key) {
                let dial = gw.dial(&name).from(&case.from);
                clients.insert(key.clone(), Client::connect(&dial, version).await.unwrap());
            }
            vms.values().for_each(Origin::forget);
            let result = match clients[&key].send(&request).await {
                Ok(reply) => verdict(case, &reply, &vms),
                Err(e) => Err(e.to_string()),
            };
            if let Err(got) = result {
                wrong.push(format!(
                    "routing.txt:{} over {version:?}: {} {} {} -> {}\n    got {got}",
                    case.line, request.method, request.host, request.target, case.expected
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
    gw.stop().await;
}

#[tokio::test]
async fn an_unknown_host_is_404_and_reaches_no_vm() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).certificate(&["shop.test", "other.test"]).start().await;
    for version in Version::ALL {
        for host in ["other.test", "a.shop.test", "test", "shop.test.other.test"] {
            // All on a connection for a name that exists, which is how a wrong name gets this far.
            let reply = gw.client(version, "other.test").await.send(&get("/").host(host)).await.unwrap();
            let covered = host == "other.test" || !version.tls();
            assert_eq!(reply.status, if covered { 404 } else { 421 }, "{version:?} {host}");
        }
    }
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

/// RFC 9110, section 7.4: a client that coalesces connections wrongly is sent to a new one.
#[tokio::test]
async fn misdirected_requests_are_421() {
    let (a, b) = (origin().named("a").start().await, origin().named("b").start().await);
    let strict =
        format!("[sites.\"old.test\"]\npool = {:?}\ntls = {{ min_version = \"1.2\" }}\n", b.address());
    let gw = gateway()
        .certificate(&["a.test", "too.test", "old.test"])
        .certificate(&["b.test"])
        .site("a.test", &a)
        .site("b.test", &b)
        .site("too.test", &b)
        .toml(&strict)
        .start()
        .await;
    for version in [Version::H1Tls, Version::H2, Version::H3] {
        let client = gw.client(version, "a.test").await;
        for (host, status) in
            [("a.test", 200), ("b.test", 421), ("too.test", 200), ("old.test", 421), ("no.test", 421)]
        {
            let reply = client.send(&get("/").host(host)).await.unwrap();
            assert_eq!(reply.status, status, "{version:?} {host}");
        }
    }
    assert!(b.requests().iter().all(|r| r.host == "too.test"));
    // Without TLS there is no certificate that could be the wrong one.
    for host in ["a.test", "b.test", "old.test"] {
        assert_eq!(gw.request(Version::H1, get("/").host(host)).await.status, 200, "{host}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn plain_http_is_redirected_where_there_is_a_certificate() {
    let vm = origin().start().await;
    let opted_out = format!("[sites.\"out.test\"]\npool = {:?}\nredirect_to_https = false\n", vm.address());
    let gw = gateway()
        .server("redirect_to_https", "true")
        .certificate(&["shop.test", "out.test"])
        .site("shop.test", &vm)
        .toml(&opted_out)
        .start()
        .await;
    let to = format!("https://shop.test:{}/a/../%2F?x=y", gw.https_port());
    for version in [Version::H1, Version::H2c] {
        let reply = gw.request(version, get("/a/../%2F?x=y")).await;
        assert_eq!((reply.status, reply.field("location")), (308, to.as_str()), "{version:?}");
        // The port a client names is that of the plain listener, and the host's case is not the file's.
        let reply = gw.request(version, get("/a/../%2F?x=y").host("Shop.test:8080")).await;
        assert_eq!(
            (reply.status, reply.field("location").to_lowercase()),
            (308, to.to_lowercase()),
            "{version:?}"
        );
        assert_eq!(gw.request(version, get("/").host("out.test")).await.status, 200, "{version:?}");
    }
    for version in [Version::H1Tls, Version::H2, Version::H3] {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
    }
    gw.stop().await;
}

/// Only the method was wrong: RFC 9110, section 15.5.6, wants the right ones named.
#[tokio::test]
async fn a_path_whose_routes_want_other_methods_is_405() {
    let vm = origin().start().await;
    let site = format!(
        "[sites.\"shop.test\"]\nroutes = [{{ paths = \"/get/\", when = {{ methods = [\"GET\", \"HEAD\"] }}, pool = {:?} }}]\n",
        vm.address()
    );
    let gw = gateway().named(&["shop.test"]).toml(&site).start().await;
    for version in Version::ALL {
        let reply = gw.request(version, post("/get/x", "body")).await;
        assert_eq!(reply.status, 405, "{version:?}");
        assert!(
            reply.fields.lists("allow", "GET") && reply.fields.lists("allow", "HEAD"),
            "{version:?}: {reply:?}"
        );
        assert_eq!(gw.request(version, post("/other", "body")).await.status, 404, "{version:?}");
    }
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

/// Answers of the gateway's own come in the form asked for, with the id that is also in the log.
#[tokio::test]
async fn own_answers_follow_accept_and_carry_the_request_id() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).certificate(&["shop.test", "no.test"]).start().await;
    for version in Version::ALL {
        for (accept, kind) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
            ("application/json", "application/json"),
            ("*/*", "text/plain"),
            ("text/plain", "text/plain"),
        ] {
            let reply = gw.request(version, get("/").host("no.test").field("accept", accept)).await;
            assert_eq!(reply.status, 404, "{version:?} {accept}");
            assert!(
                reply.field("content-type").starts_with(kind),
                "{version:?} {accept}: {:?}",
                reply.fields
            );
            let id = reply.fields.get("x-request-id").unwrap_or_default().to_owned();
            assert!(!id.is_empty() && reply.text().contains(&id), "{version:?} {accept}: {reply:?}");
        }
        let bare = gw.request(version, get("/").host("no.test")).await;
        assert!(bare.field("content-type").starts_with("text/plain"), "{version:?}: {:?}", bare.fields);
    }
    gw.stop().await;
}

/// "Values of headers, redirects and answers may also hold" what is known of the request.
#[tokio::test]
async fn answers_and_redirects_hold_variables() {
    let site = "[sites.shop]\nhosts = [\"shop.test\", \"*.shop.test\"]\nroutes = [\n\
        { paths = \"=/body\", respond = { status = 200, body = \"{client_ip} {scheme} {host} {path} {query} {uri}\" } },\n\
        { paths = \"=/go\", redirect = { to = \"{scheme}://{host.1}.test{uri}&from={client_ip}\", status = 303 } },\n]\n";
    let gw = gateway().named(&["shop.test", "*.shop.test"]).toml(site).start().await;
    for version in Version::ALL {
        let scheme = if version.tls() { "https" } else { "http" };
        let reply = gw.request(version, get("/go?a=b").host("eu.shop.test")).await;
        let to = format!("{scheme}://eu.test/go?a=b&from=127.0.0.1");
        assert_eq!((reply.status, reply.field("location")), (303, to.as_str()), "{version:?}");
        let reply = gw.request(version, get("/body?a=b")).await;
        assert_eq!(reply.text(), format!("127.0.0.1 {scheme} shop.test /body a=b /body?a=b"), "{version:?}");
    }
    gw.stop().await;
}

fn split(on: &str, stay: &Origin, next: &Origin) -> GatewayBuilder {
    let pools = format!(
        "[sites.\"shop.test\"]\nsplit = [{{ pool = {:?}, weight = 75 }}, {{ pool = {:?}, weight = 25 }}]\nsplit_on = {on:?}\n",
        stay.address(),
        next.address()
    );
    gateway().named(&["shop.test"]).toml(&pools)
}

async fn two_vms() -> (Origin, Origin) {
    (origin().named("stay").start().await, origin().named("next").start().await)
}

/// Three quarters and one quarter of 400, with four standard deviations of room.
fn is_a_quarter(next: usize, of: usize) -> bool {
    let (mean, deviation) = (of as f64 * 0.25, (of as f64 * 0.25 * 0.75).sqrt());
    (next as f64 - mean).abs() <= 4.0 * deviation
}

#[tokio::test]
async fn split_by_header_is_stable_and_in_proportion() {
    let (stay, next) = two_vms().await;
    let gw = split("header:x-user", &stay, &next).start().await;
    let mut homes: HashMap<String, String> = HashMap::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for user in 0..400 {
            let user = format!("user-{user}");
            let reply = client.send(&get("/").field("x-user", &user)).await.unwrap();
            let home = homes.entry(user.clone()).or_insert_with(|| reply.vm().to_owned());
            assert_eq!(home, reply.vm(), "{version:?} {user}");
        }
    }
    let moved = homes.values().filter(|vm| *vm == "next").count();
    assert!(is_a_quarter(moved, homes.len()), "{moved} of {}", homes.len());
    gw.stop().await;
}

#[tokio::test]
async fn split_by_client_address_is_stable() {
    let (stay, next) = two_vms().await;
    let gw = split("client_ip", &stay, &next).start().await;
    let mut homes: HashMap<String, String> = HashMap::new();
    for version in [Version::H1, Version::H2, Version::H3] {
        for last in 1..60 {
            let from = format!("127.0.3.{last}");
            let client = Client::connect(&gw.dial("shop.test").from(&from), version).await.unwrap();
            let reply = client.send(&get("/")).await.unwrap();
            let home = homes.entry(from.clone()).or_insert_with(|| reply.vm().to_owned());
            assert_eq!(home, reply.vm(), "{version:?} {from}");
        }
    }
    assert!(homes.values().any(|vm| vm == "next") && homes.values().any(|vm| vm == "stay"));
    gw.stop().await;
}

#[tokio::test]
async fn split_by_cookie_sets_it_once_and_then_follows_it() {
    let (stay, next) = two_vms().await;
    let gw = split("cookie:lab", &stay, &next).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let mut met = HashMap::new();
        for _ in 0..40 {
            let first = client.send(&get("/")).await.unwrap();
            let set = first.fields.all("set-cookie");
            let [set] = set[..] else { panic!("{version:?}: one cookie expected in {:?}", first.fields) };
            assert!(set.starts_with("lab="), "{version:?}: {set}");
            let pair = set.split(';').next().unwrap();
            let again = client.send(&get("/").field("cookie", &format!("a=b; {pair}"))).await.unwrap();
            assert_eq!(again.vm(), first.vm(), "{version:?}");
            assert!(!again.fields.has("set-cookie"), "{version:?}: {:?}", again.fields);
            *met.entry(first.vm().to_owned()).or_insert(0) += 1;
        }
        assert_eq!(met.len(), 2, "{version:?}: {met:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn split_by_request_is_in_proportion() {
    let (stay, next) = two_vms().await;
    let gw = split("request", &stay, &next).start().await;
    let client = gw.client(Version::H2, "shop.test").await;
    for _ in 0..400 {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    }
    assert!(is_a_quarter(next.requests().len(), 400), "{}", next.requests().len());
    gw.stop().await;
}

/// A site with `addresses` exists there and nowhere else.
#[tokio::test]
async fn a_site_may_live_on_some_addresses_only() {
    let vm = origin().start().await;
    let table = format!("[sites.\"inner.test\"]\npool = {:?}\naddresses = [\"127.0.0.2\"]\n", vm.address());
    let gw: Gateway = gateway()
        .server("addresses", "[\"127.0.0.1\", \"127.0.0.2\"]")
        .certificate(&["inner.test", "outer.test"])
        .site("outer.test", &vm)
        .toml(&table)
        .start()
        .await;
    for version in Version::ALL {
        for (address, host, status) in [
            ("127.0.0.1", "outer.test", 200),
            ("127.0.0.2", "outer.test", 200),
            ("127.0.0.1", "inner.test", 404),
            ("127.0.0.2", "inner.test", 200),
        ] {
            let mut dial = gw.dial("outer.test");
            dial.http.set_ip(address.parse().unwrap());
            dial.https.set_ip(address.parse().unwrap());
            let client = Client::connect(&dial, version).await.unwrap();
            let reply = client.send(&get("/").host(host)).await.unwrap();
            assert_eq!(reply.status, status, "{version:?} {host} at {address}");
        }
    }
    gw.stop().await;
}
