//! What a pool is told to do when its VMs fail, sleep, or have too much to do.

use std::time::Duration;

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
