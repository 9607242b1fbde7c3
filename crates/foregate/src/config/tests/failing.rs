//! What a pool is told to do when its VMs fail, sleep, or have too much to do.

use std::time::Duration;

use foregate_discovery::{Found, Target};
use foregate_routing::{Agent, Hedge, Wake};

use super::*;

#[test]
fn it_comes_from_every_layer() {
    let body = r#"[defaults.pools]
slow_start = "30s"
agent = { port = 9707, interval = "2s" }
wake = { command = ["virsh", "start", "vm1"] }
retry = { hedge_after = "p95" }
health = { tcp = {} }
[sites.a]
hosts = "a.example.com"
pool = ["10.0.0.1:80"]
routes = [{ paths = "/own/", pool = "own" }, { paths = "/off/", pool = "off" }]
[pools.own]
backends = "10.0.0.3:80"
agent = { max_cpu = "50%" }
wake = { timeout = "5m" }
retry = { hedge_after = "80ms" }
[pools.off]
backends = "unix:/run/vm.sock"
slow_start = "off"
agent = "off"
wake = "off"
retry = { hedge_after = "off" }
"#;
    let loaded = served(body);
    let pool = |path: &str| pool_of(route(&loaded, "a.example.com", path));
    let seconds = Duration::from_secs;
    let agent = Agent { port: 9707, interval: seconds(2), max_cpu: 80 };
    let wake = Wake { command: ["virsh", "start", "vm1"].map(Box::from).into(), timeout: seconds(60) };
    assert_eq!((&pool("/").agent, &pool("/").wake), (&Some(agent.clone()), &Some(wake.clone())));
    assert_eq!(pool("/").retry.hedge, Some(Hedge::P95));
    assert_eq!(pool("/own/").agent, Some(Agent { max_cpu: 50, ..agent }));
    assert_eq!(pool("/own/").wake, Some(Wake { timeout: seconds(300), ..wake }));
    assert_eq!(pool("/own/").retry.hedge, Some(Hedge::After(Duration::from_millis(80))));
    assert_eq!((&pool("/off/").agent, &pool("/off/").wake, pool("/off/").retry.hedge), (&None, &None, None));
}

#[test]
fn what_is_wrong_with_it_is_told() {
    let body = r#"[sites.a]
hosts = "a.example.com"
pool = "a"
[pools.a]
backends = ["10.0.0.1:80", "unix:/run/vm.sock"]
slow_start = "soon"
agent = { port = 0 }
wake = { command = "true" }
retry = { hedge_after = "p99" }
[pools.b]
backends = "10.0.0.1:80"
agent = {}
wake = { timeout = "5s" }
[pools.c]
backends = ["10.0.0.1:80", "unix:/run/vm.sock"]
agent = { port = 9707, max_cpu = "lots" }
wake = { command = [] }
health = { tcp = {} }
[pools.d]
backends = ["10.0.0.1:80", "unix:/run/vm.sock"]
agent = 9707
wake = ["true"]
"#;
    let no_network = "an agent is asked over the network, and this backend is a unix socket | write `agent = \"off\"` in this pool";
    assert_eq!(
        complaints(body),
        [
            &format!("5:28 {no_network}"),
            "6:14 \"soon\" is not a duration | a duration is a whole number and a unit: \"250ms\", \"5s\", \"3m\", \"24h\", \"365d\"",
            "7:18 `pools.a.agent.port` must be a port from 1 to 65535",
            "8:8 `wake` needs `health` in the same pool: without probes nobody sees that the VMs are off | add `health = { http = { path = \"/healthz\" } }`, or `{ tcp = {} }`",
            "9:25 \"p99\" is no time to wait | \"off\", \"p95\" or a duration such as \"80ms\"",
            "12:9 `agent` needs `port`, where the VMs say their load | `foregate agent` listens on 9707: { port = 9707 }",
            "13:8 `wake` needs `command`, which starts the VMs | a program and its arguments: [\"virsh\", \"start\", \"vm1\"]",
            &format!("15:28 {no_network}"),
            "16:34 \"lots\" is not a share | write a whole number from 0 to 100 and a percent sign: \"50%\"",
            "17:20 `pools.c.wake.command` is an empty list",
            "21:9 `pools.d.agent` must be \"off\" or a table such as { port = 9707 }, not an integer",
            "22:8 `pools.d.wake` must be \"off\" or a table such as { command = [\"virsh\", \"start\", \"vm1\"] }, not a list",
        ]
    );
}

#[test]
fn the_secret_of_sticky_cookies_is_there_only_where_it_is_used() {
    assert!(served(SITE).sticky.is_none());
    let loaded =
        served("[sites.\"a.example.com\"]\npool = \"a\"\n[pools.a]\nbackends = \"10.0.0.1:80\"\nsticky = {}");
    assert!(loaded.sticky.is_some());
    assert!(!format!("{loaded:?}").contains(&format!("{:?}", loaded.sticky.unwrap().secret.0)));
}

#[test]
fn vms_are_looked_up_by_what_is_written() {
    let body = r#"[sites.a]
hosts = "a.example.com"
pool = "a"
routes = [{ paths = "/b/", pool = "b" }]
[pools.a]
discover = { dns = "build.internal:8080" }
backends = [{ address = "10.0.0.9:80", tier = 1 }]
[pools.b]
discover = { dns = "_http._tcp.build.internal", interval = "5m" }
"#;
    let loaded = served(body);
    let looked_up: Vec<_> = loaded.blueprint.looked_up().collect();
    let (seconds, query) = (Duration::from_secs, |at: usize| looked_up[at].1.query.to_string());
    assert_eq!((query(0), looked_up[0].1.interval), ("build.internal:8080".to_owned(), seconds(30)));
    assert_eq!((query(1), looked_up[1].1.interval), ("_http._tcp.build.internal".to_owned(), seconds(300)));
    assert_eq!(pool_of(route(&loaded, "a.example.com", "/")).members().len(), 1);
    assert_eq!(served(SITE).blueprint.looked_up().count(), 0, "nobody is looked up");
}

#[test]
fn what_is_found_takes_part_and_what_is_written_stays() {
    let body = r#"[sites.a]
hosts = "a.example.com"
pool = "a"
[pools.a]
discover = { dns = "build.internal:8080" }
backends = [{ address = "10.0.0.9:80", name = "spare", tier = 1 }]
"#;
    let mut loaded = served(body);
    let mut blueprint = std::mem::take(&mut loaded.blueprint);
    let target = |address: &str, weight, tier| Target { address: address.parse().unwrap(), weight, tier };
    let found = |members| Found { pool: "a".into(), members };
    let shown = |live: &Live| {
        let members = live.routing.pools()[0].members();
        members.iter().map(|one| format!("{} {} {}", one.name, one.weight, one.tier)).collect::<Vec<_>>()
    };
    blueprint.take_in(&found(vec![target("10.0.0.1:8080", 3, 0), target("10.0.0.9:80", 1, 0)]));
    let mut overrides = crate::control::Overrides::default();
    let first = blueprint.next(&loaded.live, &overrides);
    assert_eq!(shown(&first), ["spare 1 1", "10.0.0.1:8080 3 0"]);
    let id = first.routing.pools()[0].members()[1].endpoint.id;
    blueprint.take_in(&found(vec![target("10.0.0.1:8080", 1, 0), target("10.0.0.2:8080", 1, 0)]));
    let second = blueprint.next(&first, &overrides);
    assert_eq!(shown(&second), ["spare 1 1", "10.0.0.1:8080 1 0", "10.0.0.2:8080 1 0"]);
    assert_eq!(second.routing.pools()[0].members()[1].endpoint.id, id, "it is the same VM");
    overrides.set_weight("a", "10.0.0.2:8080", Some(7), "an operator");
    overrides.set_weight("a", "spare", Some(0), "an operator");
    let third = blueprint.next(&second, &overrides);
    assert_eq!(shown(&third), ["spare 0 1", "10.0.0.1:8080 1 0", "10.0.0.2:8080 7 0"]);
    let headers = HeaderMap::new();
    let view = RequestView {
        method: &Method::GET,
        path: "/",
        query: None,
        headers: &headers,
        client_ip: Ipv4Addr::LOCALHOST.into(),
        client_cert: false,
    };
    let site = second.routing.host("a.example.com", Ipv4Addr::LOCALHOST.into()).unwrap().site;
    let matched = site.route(&view).unwrap();
    assert_eq!(pool_of(matched.route).members().len(), 3, "routes lead to them");
    assert!(std::sync::Arc::ptr_eq(&second.transports[0], &loaded.live.transports[0]));
}

#[test]
fn a_look_up_that_cannot_be_is_told() {
    let lines = [
        "discover = \"build.internal:80\"",
        "discover = {}",
        "discover = { dns = \"build.internal\" }",
        "discover = { dns = \"10.0.0.1:80\" }",
        "discover = { dns = \"h2c://build.internal:80\" }",
        "discover = { dns = \"_http._tcp.build.internal:80\" }",
        "discover = { dns = \"_http\" }",
        "discover = { dsn = \"build.internal:80\" }",
    ];
    let told = lines.map(|line| {
        complaints(&format!("[sites.a]\nhosts = \"a.example.com\"\npool = \"a\"\n[pools.a]\n{line}\n"))
            .join(" & ")
    });
    assert_eq!(
        told,
        [
            "5:12 `pools.a.discover` must be a table such as { dns = \"build.internal:8080\" }, not a string",
            "5:12 `discover` needs `dns` | write `discover = { dns = \"build.internal:8080\" }`",
            "5:20 \"build.internal\" has no port | write \"build.internal:80\" or whichever port the VM serves",
            "5:20 \"10.0.0.1:80\" need not be looked up | write it as one of the pool's `backends`",
            "5:20 \"h2c://build.internal:80\" has a scheme, and a name is looked up | write \"build.internal:8080\", and say the protocol by `protocol`",
            "5:20 \"_http._tcp.build.internal:80\" is a service and needs no port | an SRV record says the port itself",
            "5:20 \"_http\" is not the name of a service | write it as \"_http._tcp.build.internal\"",
            "5:14 unknown key `dsn` in `pools.a.discover` | did you mean `dns`?",
        ]
    );
}
