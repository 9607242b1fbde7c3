//! The gateway under test, as a process with a configuration of its own.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{
    Authority, Client, Dial, Error, Lease, Log, Origin, Process, Reply, Request, Version, eventually, lease,
};

/// The program: `FOREGATE_BIN`, or the one that `cargo build` makes of this source.
pub fn binary() -> &'static Path {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    ONCE.get_or_init(|| {
        if let Some(path) = std::env::var_os("FOREGATE_BIN") {
            return PathBuf::from(path);
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "foregate", "--bin", "foregate"])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "the gateway does not build:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        root.join(target).join("debug/foregate")
    })
}

/// Copies a program. By a process of its own: one that this process has open for writing cannot be run while any thread
/// starts another.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-p").arg(from).arg(to).status().unwrap().success());
}

/// Runs `foregate check` on a file.
pub fn check(config: &Path) -> Output {
    Command::new(binary()).arg("check").arg("--config").arg(config).env("NO_COLOR", "1").output().unwrap()
}

/// Begins a gateway on free ports of 127.0.0.1 that serves TLS, does not redirect to it, and has one worker.
pub fn gateway() -> Builder {
    let server = [("addresses", "[\"127.0.0.1\"]"), ("redirect_to_https", "false"), ("workers", "1")];
    Builder {
        server: server.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        tls: String::new(),
        rest: String::new(),
        first: String::new(),
        flags: Vec::new(),
        copied: None,
        names: Vec::new(),
        certificates: Vec::new(),
        files: Vec::new(),
        env: Vec::new(),
        within: Vec::new(),
        http: true,
        https: true,
    }
}

/// A gateway before it starts.
pub struct Builder {
    server: Vec<(String, String)>,
    tls: String,
    rest: String,
    first: String,
    flags: Vec<String>,
    copied: Option<String>,
    names: Vec<String>,
    certificates: Vec<Vec<String>>,
    files: Vec<(String, String)>,
    env: Vec<(String, String)>,
    within: Vec<String>,
    http: bool,
    https: bool,
}

impl Builder {
    /// A site of this host, all of it served by one VM.
    #[must_use]
    pub fn site(self, host: &str, vm: &Origin) -> Builder {
        let table = format!("[sites.{host:?}]\npool = {:?}\n", vm.address());
        self.named(&[host]).toml(&table)
    }

    /// Hosts the default certificate covers; for sites written as text.
    #[must_use]
    pub fn named(mut self, hosts: &[&str]) -> Builder {
        self.names.extend(hosts.iter().map(|&h| h.to_owned()));
        self
    }

    /// A line before everything else.
    #[must_use]
    pub fn first(mut self, line: &str) -> Builder {
        self.first = format!("{line}\n");
        self
    }

    /// A flag of `foregate run`.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Builder {
        self.flags.push(flag.to_owned());
        self
    }

    /// A key of `[server]`; its value in TOML.
    #[must_use]
    pub fn server(mut self, key: &str, value: &str) -> Builder {
        self.server.retain(|(k, _)| k != key);
        self.server.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A line of `[tls]`.
    #[must_use]
    pub fn tls(mut self, line: &str) -> Builder {
        self.tls.push_str(line);
        self.tls.push('\n');
        self
    }

    /// Tables, as text.
    #[must_use]
    pub fn toml(mut self, text: &str) -> Builder {
        self.rest.push_str(text);
        self.rest.push('\n');
        self
    }

    /// A certificate for these names; the first call replaces the one for all `named` hosts.
    #[must_use]
    pub fn certificate(mut self, names: &[&str]) -> Builder {
        self.certificates.push(names.iter().map(|&n| n.to_owned()).collect());
        self
    }

    /// A file beside the configuration.
    #[must_use]
    pub fn file(mut self, name: &str, content: &str) -> Builder {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Builder {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// From a copy of the program in its folder, under this name: a test may put another in its place.
    #[must_use]
    pub fn copied(mut self, name: &str) -> Builder {
        self.copied = Some(name.to_owned());
        self
    }

    /// Started by this program with these arguments: one that executes what follows them.
    #[must_use]
    pub fn within(mut self, command: &[&str]) -> Builder {
        self.within = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Started anew whenever it is killed, as a service manager does. The process is then the only one of
    /// [`successors`](Gateway::successors).
    #[must_use]
    pub fn started_anew(self) -> Builder {
        self.within(&["sh", "-c", "while :; do \"$0\" \"$@\"; [ $? -gt 128 ] || exit; done"])
    }

    /// No TLS and no HTTP/3.
    #[must_use]
    pub fn plain(mut self) -> Builder {
        self.https = false;
        self
    }

    /// No listener without TLS.
    #[must_use]
    pub fn secure(mut self) -> Builder {
        self.http = false;
        self
    }

    fn write(&self, folder: &Path, http: u16, https: u16) -> PathBuf {
        let mut text = format!("{}[server]\n", self.first);
        for (key, value) in &self.server {
            writeln!(text, "{key} = {value}").unwrap();
        }
        for (key, on, port) in [("http", self.http, http), ("https", self.https, https)] {
            if self.server.iter().all(|(k, _)| k != key) {
                let port = if on { port.to_string() } else { "\"off\"".to_owned() };
                writeln!(text, "{key} = {port}").unwrap();
            }
        }
        if self.server.iter().all(|(k, _)| k != "state_dir") {
            writeln!(text, "state_dir = {:?}", folder.join("state").display().to_string()).unwrap();
        }
        if self.https {
            writeln!(text, "[tls]\n{}", self.tls).unwrap();
            let names = [self.names.clone()];
            let wanted = if self.certificates.is_empty() { &names[..] } else { &self.certificates[..] };
            for (number, names) in wanted.iter().enumerate().filter(|(_, names)| !names.is_empty()) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Authority::shared().write(folder, &format!("tls{number}"), &names);
                writeln!(text, "[[tls.certificates]]\ncert = \"tls{number}.crt\"\nkey = \"tls{number}.key\"")
                    .unwrap();
            }
        }
        if !self.rest.contains("[admin]") {
            // Its default would be the same for all that run at a time.
            writeln!(text, "[admin]\nlisten = \"unix:{}\"", folder.join("admin.sock").display()).unwrap();
        }
        text += &self.rest;
        for (name, content) in &self.files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let path = folder.join("foregate.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts it and waits until it listens; panics with what it said when it does not.
    pub async fn start(self) -> Gateway {
        let listeners = usize::from(self.http) + usize::from(self.https);
        // A port can be taken by a stranger between its choice and the gateway's bind.
        for attempt in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let (http, https) = (lease(), lease());
            let config = self.write(folder.path(), http.port, https.port);
            let own = match &self.copied {
                Some(name) => {
                    let copy = folder.path().join(name);
                    copy_program(binary(), &copy);
                    copy
                }
                None => binary().to_owned(),
            };
            let mut command = match self.within.split_first() {
                Some((program, arguments)) => {
                    let mut command = Command::new(program);
                    command.args(arguments).arg(own);
                    command
                }
                None => Command::new(own),
            };
            command.arg("run").arg("--config").arg(&config).args(&self.flags).env("NO_COLOR", "1");
            command.envs(self.env.iter().map(|(k, v)| (k, v)));
            let mut process = Process::spawn(&mut command);
            let up = eventually("the gateway listens or ends", || {
                if process.out.having(&["listening on "]).len() >= listeners {
                    return Some(true);
                }
                process.ended().map(|_| false)
            })
            .await;
            if up {
                return Gateway { process, http, https, folder, config };
            }
            let said = process.err.text();
            let taken = ["in use", "taken"].iter().any(|w| said.contains(w));
            let text = std::fs::read_to_string(&config).unwrap();
            assert!(
                taken && attempt < 5,
                "the gateway does not start:\n{said}\n--- its configuration\n{text}"
            );
        }
        unreachable!("the loop returns or panics")
    }
}

/// A running gateway. When a test fails, what it said is printed.
pub struct Gateway {
    // First, so that it is gone before its ports and its folder are.
    pub process: Process,
    http: Lease,
    https: Lease,
    folder: TempDir,
    config: PathBuf,
}

impl Gateway {
    pub fn http_port(&self) -> u16 {
        self.http.port
    }

    pub fn https_port(&self) -> u16 {
        self.https.port
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Writes its configuration anew, from what it is.
    pub fn edit(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        std::fs::write(&self.config, change(text)).unwrap();
    }

    /// Runs a command of the program against it.
    pub async fn operate(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(binary());
        command.args(arguments).arg("--config").arg(&self.config).env("NO_COLOR", "1");
        command.output().await.unwrap()
    }

    /// The same where it must succeed; returns what it printed.
    pub async fn told(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same where it must fail; returns what it complained of.
    pub async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments).await;
        assert!(!output.status.success(), "{arguments:?} was done");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> &Log {
        &self.process.err
    }

    /// How to reach it under this name.
    pub fn dial(&self, name: &str) -> Dial {
        Dial::loopback(self.http.port, self.https.port, name)
    }

    /// A client with a connection; panics if there is none to be had.
    pub async fn client(&self, version: Version, name: &str) -> Client {
        Client::connect(&self.dial(name), version)
            .await
            .unwrap_or_else(|e| panic!("{version:?} to {name}: {e}"))
    }

    /// One request on a connection of its own.
    pub async fn try_request(&self, version: Version, request: &Request) -> Result<Reply, Error> {
        Client::connect(&self.dial(&request.server_name()), version).await?.send(request).await
    }

    /// One request on a connection of its own, which must be answered.
    pub async fn request(&self, version: Version, request: Request) -> Reply {
        self.try_request(version, &request).await.unwrap_or_else(|e| panic!("{version:?} {request:?}: {e}"))
    }

    /// The processes that took over, one after the other: all that run with its configuration, but the first.
    pub fn successors(&self) -> Vec<Pid> {
        let config = self.config.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let serves = words.clone().any(|word| word == b"run") && words.any(|word| word == config);
            if serves && pid != self.process.id() as i32 {
                found.extend(Pid::from_raw(pid));
            }
        }
        found.sort_by_key(|pid| pid.as_raw_nonzero());
        found
    }

    /// Sends `SIGTERM` and nothing more.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for the end and checks that it is a success.
    pub async fn ended(&mut self) {
        let status = self.process.wait().await;
        assert!(status.success(), "the gateway ended with {status}");
    }

    /// Stops it in good order.
    pub async fn stop(mut self) {
        self.terminate();
        self.ended().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A process that took over is no child of ours.
        for pid in self.successors() {
            _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let config = std::fs::read_to_string(&self.config).unwrap_or_default();
            eprintln!("--- configuration\n{config}\n--- the gateway said\n{}\n---", self.process.err.text());
        }
    }
}
