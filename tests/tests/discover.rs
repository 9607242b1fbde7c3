//! VMs that are found by DNS while the gateway runs.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Command;

use foregate_tests::{
    Version, binary,
    foreign::{script, told},
    gateway, get, origin,
};
use serde_json::json;

/// The hosts file knows this name everywhere, so this needs no DNS server.
#[tokio::test]
async fn a_name_of_the_hosts_file_is_a_vm() {
    let vm = origin().named("a").start().await;
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\ndiscover = {{ dns = \"localhost:{}\" }}\n",
        vm.port()
    );
    let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for _ in 0..6 {
            let reply = client.send(&get("/")).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
        }
    }
    gw.stop().await;
}

/// In a network namespace with a DNS server, VMs that come and go, and a DNS server that fails.
#[tokio::test]
async fn vms_come_and_go_and_no_request_is_lost() {
    let inside = script("discover.py", &[binary().to_str().unwrap()]);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount"]).arg(inside.get_program()).args(inside.get_args());
    let told = told(&mut command).await;
    let well = |names: &[&str]| json!([names, [200]]);
    assert_eq!(told["first"], well(&["11", "12"]), "who asks first finds them: {told}");
    assert_eq!(told["nobody"], json!(503), "{told}");
    assert_eq!(told["more"], well(&["11", "12", "13"]), "{told}");
    assert_eq!(told["stuck"], json!([true, true]), "who was there keeps its clients: {told}");
    assert_eq!(told["less"], well(&["12", "13"]), "{told}");
    assert_eq!(told["slow"], json!([[200, 30], [200, 30]]), "what it had begun it ended: {told}");
    assert_eq!(told["broken"], well(&["12", "13"]), "{told}");
    assert_eq!((&told["tier 0"], &told["tier 1"]), (&well(&["11"]), &well(&["12"])), "{told}");
    assert_eq!((&told["failed"], &told["exit"]), (&json!([]), &json!(0)), "{told}");
    let log = told["log"].to_string();
    for words in [
        "backends found",
        "came=\\\"127.0.0.13:8080\\\"",
        "went=\\\"127.0.0.11:8080\\\"",
        "those found last go on",
        "the backends of the pool are not found",
        "there is no such name",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
}
