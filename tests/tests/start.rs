//! What keeps the gateway from starting: each is told on standard error, with what is wrong, where, and what to
//! do about it, and ends with 1, or with 2 where the configuration itself is at fault.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// What a test cannot try on this machine it says there.
#![allow(clippy::print_stderr)]

use std::{
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use foregate_tests::{
    Authority, binary,
    foreign::{finish, program},
    lease,
};
use rustix::process::geteuid;
use tempfile::TempDir;

/// The configuration of a site without TLS; `server` stands in `[server]`.
fn plain(server: &str) -> String {
    format!("[server]\nhttps = \"off\"\n{server}\n[sites.\"a.test\"]\npool = \"127.0.0.1:9\"\n")
}

/// The same with a certificate of the test authority, for `run` and a folder that `a.crt` and `a.key` are in.
fn secure(server: &str, key: &str) -> String {
    format!(
        "[server]\naddresses = \"127.0.0.1\"\n{server}\n[[tls.certificates]]\ncert = \"a.crt\"\nkey = {key:?}\n\
         [sites.\"a.test\"]\npool = \"127.0.0.1:9\"\n"
    )
}

fn write(folder: &TempDir, text: &str) -> PathBuf {
    let file = folder.path().join("foregate.toml");
    std::fs::write(&file, text).unwrap();
    Authority::shared().write(folder.path(), "a", &["a.test"]);
    file
}

fn run(mut command: Command, config: &Path) -> Command {
    command.arg("run").arg("--config").arg(config);
    command
}

/// Runs it to its end, which must be this exit code with all of these words, and before any listener.
async fn fails(mut command: Command, code: i32, words: &[&str]) {
    let done = finish(&mut command).await;
    assert_eq!(done.status.code(), Some(code), "{command:?}: {done:#?}");
    for word in words {
        assert!(done.err.contains(word), "{command:?}: no {word:?} in {}", done.err);
    }
    assert!(done.out.is_empty(), "{command:?}: {done:#?}");
}

/// The program as somebody without privileges starts it.
fn unprivileged() -> Command {
    if !geteuid().is_root() {
        return Command::new(binary());
    }
    let mut command = program("setpriv", "util-linux");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]).arg(binary());
    command
}

/// The program under this limit on open files, soft and hard.
fn with_files(limit: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(binary());
    command
}

#[tokio::test]
async fn a_port_that_needs_privileges_is_explained() {
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let command = if lowest.trim().parse::<u16>().unwrap() > 80 {
        unprivileged()
    } else {
        // This machine lets everybody have all ports; a network of its own begins with the kernel's rule.
        let alone = |what: &Path| {
            let mut command = program("unshare", "util-linux");
            command.args(["--user", "--net"]).arg(what);
            command
        };
        if !finish(&mut alone(Path::new("true"))).await.status.success() {
            eprintln!("SKIPPED: every port is free for all here, and a network namespace is not allowed");
            return;
        }
        alone(binary())
    };
    let folder = tempfile::tempdir().unwrap();
    let config = write(&folder, &plain("http = 80"));
    let words = [
        "cannot listen on TCP ",
        ":80: no permission for a port below 1024",
        "cap_net_bind_service",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "choose another port as server.http",
    ];
    fails(run(command, &config), 1, &words).await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (taken, free) = (lease(), lease());
    let address = ("127.0.0.1", taken.port);
    let folder = tempfile::tempdir().unwrap();
    let all = |http: u16, https: u16| secure(&format!("http = {http}\nhttps = {https}"), "a.key");
    let words = |kind: &str, key: &str| {
        [
            format!("cannot listen on {kind} 127.0.0.1:{}: the port is taken", taken.port),
            format!("ss -lpn 'sport = :{}'", taken.port),
            format!("choose another port as {key}"),
        ]
    };
    let tcp = TcpListener::bind(address).unwrap();
    for (text, key) in
        [(all(taken.port, free.port), "server.http"), (all(free.port, taken.port), "server.https")]
    {
        let config = write(&folder, &text);
        let words = words("TCP", key);
        fails(run(Command::new(binary()), &config), 1, &words.each_ref().map(String::as_str)).await;
    }
    drop(tcp);
    let _udp = UdpSocket::bind(address).unwrap();
    let config = write(&folder, &all(free.port, taken.port));
    let words = words("UDP", "server.https");
    fails(run(Command::new(binary()), &config), 1, &words.each_ref().map(String::as_str)).await;
}

#[tokio::test]
async fn an_address_of_another_machine_is_named() {
    let (folder, port) = (tempfile::tempdir().unwrap(), lease());
    // RFC 5737: nobody has it.
    let config = write(&folder, &plain(&format!("addresses = \"192.0.2.1\"\nhttp = {}", port.port)));
    let words = ["cannot listen on TCP 192.0.2.1:", "does not have the address", "correct server.addresses"];
    fails(run(Command::new(binary()), &config), 1, &words).await;
}

/// The limit that would do is told, and it does.
#[tokio::test]
async fn too_few_open_files_are_counted() {
    let (folder, port) = (tempfile::tempdir().unwrap(), lease());
    let server =
        |more: &str| plain(&format!("addresses = \"127.0.0.1\"\nhttp = {}\nworkers = 1\n{more}", port.port));
    // Of its own it takes 128, and for each worker six and a socket twice.
    for (limit, more, connections, own, needed) in
        [(200, "", 64, 136, 264), (300, "limits = { connections = 1000 }", 1000, 136, 2136)]
    {
        let config = write(&folder, &server(more));
        let words = [
            format!("the open-file limit of {limit} is too low: {connections} connections"),
            format!("the gateway itself {own};"),
            format!("raise it to at least {needed} (LimitNOFILE="),
            "set a lower server.limits.connections".to_owned(),
        ];
        fails(run(with_files(limit), &config), 1, &words.each_ref().map(String::as_str)).await;
    }
    // Many workers are many files, before anything is bound.
    let config = write(&folder, &server("").replace("workers = 1", "workers = 100"));
    fails(run(with_files(600), &config), 1, &["the gateway itself 928;", "at least 1056 "]).await;

    let config = write(&folder, &server(""));
    let mut gateway = foregate_tests::Process::spawn(&mut run(with_files(264), &config));
    foregate_tests::eventually("it starts with what it asked for", || {
        assert!(gateway.ended().is_none(), "{}", gateway.err.text());
        gateway.out.having(&["listening on "]).pop()
    })
    .await;
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.wait().await.success(), "{}", gateway.err.text());
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(&folder, &secure("", "a.key"));
    let told = "cannot be read: permission denied; let the user that runs foregate read it";
    for (name, words) in [
        ("a.key", &["a.key", told, "foregate.toml:6:7"][..]),
        ("a.crt", &["a.crt", told, "foregate.toml:5:8"]),
        ("foregate.toml", &["foregate.toml", told]),
    ] {
        let file = folder.path().join(name);
        let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o000);
        fails(run(unprivileged(), &config), 2, words).await;
        mode(0o600);
    }
}

#[tokio::test]
async fn a_key_of_another_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(&folder, &secure("", "other.key"));
    Authority::shared().write(folder.path(), "other", &["other.test"]);
    let words = [
        "other.key is not the private key of the certificate",
        "give the key the certificate was made with",
        "foregate.toml:6:7",
    ];
    fails(run(Command::new(binary()), &config), 2, &words).await;
}
