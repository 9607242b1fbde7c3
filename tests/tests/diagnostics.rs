//! What is written down of QUIC and TLS when the environment asks for it, and that nothing is otherwise.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{path::Path, process::Command};

use foregate_tests::{Gateway, GatewayBuilder, Version, binary, gateway, get, origin};
use serde_json::Value;

/// Its connection would be written down too.
const NO_PROBE: &str = "[http3]\nalt_svc = \"always\"";

async fn asked_over(versions: &[Version], builder: GatewayBuilder) -> Gateway {
    let gw = builder.start().await;
    for version in versions {
        assert_eq!(gw.request(*version, get("/")).await.status, 200, "{version:?}");
    }
    gw
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).map(|entries| entries.map(|e| e.unwrap().path()).collect()).unwrap_or_default()
}

#[tokio::test]
async fn qlog_has_a_file_for_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("qlog");
    let vm = origin().start().await;
    let builder =
        gateway().site("shop.test", &vm).toml(NO_PROBE).env("FOREGATE_QLOG_DIR", logs.to_str().unwrap());
    let gw = asked_over(&[Version::H3, Version::H2, Version::H3], builder).await;
    assert_eq!(gw.log().having(&["WARN", "FOREGATE_QLOG_DIR is set"]).len(), 1, "{}", gw.log().text());
    gw.stop().await;
    let files = files(&logs);
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        // A JSON text sequence (RFC 7464): each record begins with RS.
        let text = std::fs::read_to_string(&file).unwrap();
        let records: Vec<Value> = text
            .split('\u{1e}')
            .filter(|record| !record.trim().is_empty())
            .map(|record| serde_json::from_str(record).unwrap_or_else(|e| panic!("{e}: {record}")))
            .collect();
        assert!(records[0]["qlog_version"].is_string(), "{}", records[0]);
        let received = records
            .iter()
            .filter(|r| r["name"] == "quic:packet_received" || r["name"] == "transport:packet_received");
        assert!(received.count() > 1, "{text}");
    }
}

#[tokio::test]
async fn qlog_can_be_kept_to_some_clients() {
    let folder = tempfile::tempdir().unwrap();
    let vm = origin().start().await;
    for (peers, count) in [("192.0.2.0/24, 2001:db8::1", 0), ("127.0.0.1", 1)] {
        let logs = folder.path().join(count.to_string());
        let builder = gateway()
            .site("shop.test", &vm)
            .toml(NO_PROBE)
            .env("FOREGATE_QLOG_DIR", logs.to_str().unwrap())
            .env("FOREGATE_QLOG_PEERS", peers);
        asked_over(&[Version::H3], builder).await.stop().await;
        assert_eq!(files(&logs).len(), count, "{peers}");
    }
}

#[tokio::test]
async fn keys_are_written_where_wireshark_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let vm = origin().start().await;
    let builder =
        gateway().site("shop.test", &vm).toml(NO_PROBE).env("SSLKEYLOGFILE", keys.to_str().unwrap());
    let gw = asked_over(&[Version::H1Tls, Version::H3], builder).await;
    assert_eq!(gw.log().having(&["WARN", "SSLKEYLOGFILE is set"]).len(), 1, "{}", gw.log().text());
    gw.stop().await;
    let text = std::fs::read_to_string(&keys).unwrap();
    let secrets = text.lines().filter(|line| line.starts_with("SERVER_TRAFFIC_SECRET_0 "));
    assert_eq!(secrets.count(), 2, "{text}");
}

#[test]
fn a_variable_that_cannot_be_used_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("foregate.toml");
    std::fs::write(&config, "server.https = \"off\"\nserver.http = 8080\n[sites.all]\nhosts = \"*\"\nrespond = { status = 200 }\n").unwrap();
    let cases = [
        ("/dev/null/qlog", "", "FOREGATE_QLOG_DIR: the folder /dev/null/qlog cannot be used"),
        (
            folder.path().to_str().unwrap(),
            "10.0.0.0/99",
            "FOREGATE_QLOG_PEERS: \"10.0.0.0/99\" is no address",
        ),
    ];
    for (dir, peers, sentence) in cases {
        let mut command = Command::new(binary());
        command.args(["run", "--config", config.to_str().unwrap()]);
        let output =
            command.env("FOREGATE_QLOG_DIR", dir).env("FOREGATE_QLOG_PEERS", peers).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(sentence), "{said}");
    }
}
