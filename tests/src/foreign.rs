//! Programs not written here, as clients and as VMs: curl, nginx, Chromium, and Python's packages.
//!
//! A program or package that is not installed fails the test with a sentence that says how to install it;
//! nothing is skipped, for a test that did not run proves nothing.

use std::{
    fs::File,
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Authority, Lease, Process, eventually, lease};

/// The longest a foreign program may take: Chromium alone needs many seconds on a machine that builds.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What a program left behind when it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// Its lines, if it ended well.
    pub fn lines(&self) -> Vec<&str> {
        assert!(self.status.success(), "{self:#?}");
        self.out.lines().collect()
    }
}

/// A running program; it and its children are killed when dropped.
///
/// Its output goes to files, not pipes: nobody has to wait until its grandchildren let go of them.
pub struct Running {
    child: Child,
    folder: TempDir,
    what: String,
    since: Instant,
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        Running { child, folder, what: format!("{command:?}"), since: Instant::now() }
    }

    /// Waits for its end; panics when it runs for longer than [`DEADLINE`].
    pub async fn finish(mut self) -> Finished {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Finished { status, out: self.text("out"), err: self.text("err") };
            }
            let (out, err) = (self.text("out"), self.text("err"));
            assert!(
                self.since.elapsed() < DEADLINE,
                "took longer than {DEADLINE:?}: {}\n--- out\n{out}\n--- err\n{err}",
                self.what
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to end (`SIGTERM`), as somebody does who closes a browser, and waits for that.
    pub async fn terminate(mut self) -> Finished {
        if self.child.try_wait().unwrap().is_none() {
            let _ = kill_process(process(self.child.id()), Signal::TERM);
        }
        self.finish().await
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has printed this many lines, or has ended.
    pub async fn printed(&mut self, lines: usize) -> Vec<String> {
        let deadline = self.since + DEADLINE;
        loop {
            let ended = self.child.try_wait().unwrap().is_some();
            let out = self.text("out");
            if ended || out.matches('\n').count() >= lines {
                return out.lines().map(str::to_owned).collect();
            }
            assert!(Instant::now() < deadline, "{lines} lines were never printed: {}", self.what);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join(name)).unwrap()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it is waited for, its number may be somebody else's.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill_group(self.child.id());
            let _ = self.child.wait();
        }
    }
}

fn kill_group(leader: u32) {
    let _ = kill_process_group(process(leader), Signal::KILL);
}

fn process(id: u32) -> Pid {
    i32::try_from(id).ok().and_then(Pid::from_raw).unwrap()
}

/// Runs a program to its end.
pub async fn finish(command: &mut Command) -> Finished {
    Running::start(command).finish().await
}

/// A command that must be installed; `package` is what Debian calls it.
pub fn program(name: &str, package: &str) -> Command {
    // nginx lives where only root's shell looks.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| {
        panic!("{name} is not installed; on Debian: apt-get install {package} (scripts/check does it)")
    }));
    // A proxy of the machine is no part of the test.
    for variable in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    command
}

/// The Python that has the packages: `FOREGATE_TEST_PYTHON`, or the one `scripts/check` makes, or any.
fn python() -> Command {
    if let Some(path) = std::env::var_os("FOREGATE_TEST_PYTHON") {
        return Command::new(path);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let made = root.join(target).join("check-venv/bin/python");
    if made.is_file() { Command::new(made) } else { program("python3", "python3") }
}

/// A script of `tests/clients`; `say` reads what it prints.
pub fn script(name: &str, arguments: &[&str]) -> Command {
    let mut command = python();
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)).args(arguments);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs a script to its end and returns its last line, which is its result.
pub async fn told(command: &mut Command) -> Value {
    let done = finish(command).await;
    let result = said(done.out.lines().next_back().unwrap_or_default());
    assert!(done.status.success(), "{command:?}\n--- out\n{}\n--- err\n{}", done.out, done.err);
    result.unwrap_or_else(|| panic!("no line of JSON: {done:#?}"))
}

/// What a script says in this line; panics with its own words if a package is missing.
pub fn said(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    if let Some(sentence) = value.get("missing") {
        panic!("{}", sentence.as_str().unwrap_or_default());
    }
    Some(value)
}

/// A folder with the certificate of the test authority in it, for clients that trust a file.
pub struct Trust(TempDir);

impl Trust {
    pub fn new() -> Trust {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), Authority::shared().pem()).unwrap();
        Trust(folder)
    }

    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// A path in the folder, which goes with it.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

impl Default for Trust {
    fn default() -> Self {
        Trust::new()
    }
}

/// curl, which finds every host name at 127.0.0.1 on these ports and trusts the test authority alone.
pub fn curl(ports: &[u16], trust: &Trust) -> Command {
    let mut command = program("curl", "curl");
    // First, or it is too late for the user's own settings.
    command.arg("-q").args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "100"]);
    command.arg("--cacert").arg(trust.ca());
    for port in ports {
        command.arg("--resolve").arg(format!("*:{port}:127.0.0.1"));
    }
    command
}

/// What curl tells of one transfer.
#[derive(Debug)]
pub struct Transfer {
    /// Of `--write-out %{json}`: `http_code`, `http_version`, `size_upload`, ...
    pub report: Value,
    /// Every head it received, one after the other.
    pub head: String,
    pub body: Vec<u8>,
    /// What `--verbose` writes.
    pub trace: String,
}

impl Transfer {
    pub fn status(&self) -> u64 {
        self.report["http_code"].as_u64().unwrap()
    }

    pub fn version(&self) -> &str {
        self.report["http_version"].as_str().unwrap()
    }

    /// The fields of the last head, names in lower case.
    pub fn field(&self, name: &str) -> Option<String> {
        let head = self.head.trim_end().rsplit("\r\n\r\n").next().unwrap();
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

/// Lets curl do one transfer, which must succeed in curl's eyes.
pub async fn transfer(curl: &mut Command, arguments: &[&str]) -> Transfer {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    curl.args(["--write-out", "%{json}\n"]).arg("--output").arg(file("body"));
    curl.arg("--dump-header").arg(file("head")).args(arguments);
    let done = finish(curl).await;
    assert!(done.status.success(), "{curl:?}: {}\n{}", done.status, done.err);
    let read = |name: &str| std::fs::read(file(name)).unwrap_or_default();
    Transfer {
        report: serde_json::from_str(done.out.trim()).unwrap(),
        head: String::from_utf8_lossy(&read("head")).into_owned(),
        body: read("body"),
        trace: done.err,
    }
}

/// An nginx as a VM: master and worker, as it runs everywhere, with its own folder and port.
///
/// It answers `/healthz` and, anything else, the files of its folder `www`; `/name` is its name.
pub struct Nginx {
    process: Option<Process>,
    folder: TempDir,
    lease: Lease,
}

impl Nginx {
    pub async fn start(name: &str) -> Nginx {
        let (folder, lease) = (tempfile::tempdir().unwrap(), lease());
        let www = folder.path().join("www");
        std::fs::create_dir(&www).unwrap();
        // Root's worker becomes nobody otherwise, who may not enter the folder.
        let user = if geteuid().is_root() { "user root;" } else { "" };
        let text = format!(
            "daemon off; {user} worker_processes 1; pid nginx.pid; error_log stderr notice;
             events {{ worker_connections 256; }}
             http {{
               access_log access.log;
               client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
               uwsgi_temp_path uwsgi; scgi_temp_path scgi;
               types {{ text/plain txt; }} default_type application/octet-stream;
               server {{
                 listen 127.0.0.1:{};
                 root {};
                 location = /healthz {{ access_log off; return 200 well; }}
                 location = /name {{ return 200 {name}; }}
               }}
             }}",
            lease.port,
            www.display()
        );
        std::fs::write(folder.path().join("nginx.conf"), text).unwrap();
        let mut nginx = Nginx { process: None, folder, lease };
        nginx.up().await;
        nginx
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.lease.port)
    }

    /// Where its files are.
    pub fn www(&self) -> PathBuf {
        self.folder.path().join("www")
    }

    /// The requests it answered, without probes, as its access log tells them.
    pub fn served(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().count()
    }

    /// Starts it (again) and waits until it listens.
    pub async fn up(&mut self) {
        let mut command = program("nginx", "nginx-light");
        command.arg("-p").arg(self.folder.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
        let process = self.process.insert(Process::spawn(command.process_group(0)));
        let port = self.lease.port;
        eventually("nginx listens", || {
            assert!(process.ended().is_none(), "nginx does not start:\n{}", process.err.text());
            TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
        })
        .await;
    }

    /// `SIGKILL` to all of it, as a VM that is switched off.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take()
            && process.ended().is_none()
        {
            kill_group(process.id());
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}
