//! An authority that speaks ACME: Pebble, of Let's Encrypt, with a name server that finds every name here.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::foreign::{Running, finish, program};
use crate::ports::{Lease, lease};
use crate::{Authority, Gateway, eventually_async};

/// A running authority; ends when dropped.
pub struct Pebble {
    server: Option<Running>,
    _names: Running,
    directory: Lease,
    management: Lease,
    /// Where the name server is told what to say.
    records: Lease,
    dns: Lease,
    folder: TempDir,
    env: Vec<(String, String)>,
}

impl Pebble {
    /// One that looks for its proofs at this gateway.
    pub async fn start(gw: &Gateway, env: &[(&str, &str)]) -> Pebble {
        let folder = tempfile::tempdir().unwrap();
        let (directory, management, records, dns) = (lease(), lease(), lease(), lease());
        Authority::shared().write(folder.path(), "pebble", &["localhost"]);
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", directory.port),
            "managementListenAddress": format!("127.0.0.1:{}", management.port),
            "certificate": path("pebble.crt"),
            "privateKey": path("pebble.key"),
            "httpPort": gw.http_port(),
            "tlsPort": gw.https_port(),
            "externalAccountBindingRequired": env.iter().any(|(name, _)| *name == "EAB"),
            "externalAccountMACKeys": { "kid-1": EAB_KEY },
        }});
        std::fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        let mut names = program("pebble-challtestsrv", "pebble");
        names.args([
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
        ]);
        names.args(["-dns01", &format!("127.0.0.1:{}", dns.port)]);
        names.args(["-management", &format!("127.0.0.1:{}", records.port)]);
        let names = Running::start(&mut names);
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut pebble =
            Pebble { server: None, _names: names, directory, management, records, dns, folder, env };
        answers(pebble.records.port).await;
        pebble.begin().await;
        pebble
    }

    /// Begins to answer. It remembers nothing.
    pub async fn begin(&mut self) {
        let mut server = program("pebble", "pebble");
        server.args(["-config", &self.folder.path().join("pebble.json").display().to_string()]);
        server.args(["-dnsserver", &format!("127.0.0.1:{}", self.dns.port)]);
        server.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").env("PEBBLE_AUTHZREUSE", "0");
        server.envs(self.env.iter().map(|(name, value)| (name, value)));
        self.server = Some(Running::start(&mut server));
        answers(self.directory.port).await;
        answers(self.management.port).await;
    }

    /// From now on nobody is there.
    pub fn end(&mut self) {
        self.server = None;
    }

    pub fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.directory.port)
    }

    /// The lines of `[tls.acme]` with which a gateway finds it; `ca.pem` is beside its configuration.
    pub fn toml(&self) -> String {
        format!("[tls.acme]\ndirectory = \"{}\"\nca = \"ca.pem\"\n", self.directory())
    }

    /// The root of what it issues just now, in a file.
    pub async fn root(&self) -> PathBuf {
        let file = self.folder.path().join("root.pem");
        let mut curl = self.curl();
        curl.arg(format!("https://localhost:{}/roots/0", self.management.port)).arg("--output").arg(&file);
        assert!(finish(&mut curl).await.status.success());
        file
    }

    /// A program that writes DNS records where the authority looks, and what it did into a file beside it.
    pub fn hook(&self) -> (PathBuf, PathBuf) {
        let (hook, log) = (self.folder.path().join("hook"), self.folder.path().join("hook.log"));
        let url = format!("http://127.0.0.1:{}", self.records.port);
        let text = format!(
            "#!/bin/sh\nset -e\necho \"$@\" >> {log}\n\
             case $1 in\n\
             present) curl -qsSf --noproxy '*' -d \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" {url}/set-txt ;;\n\
             cleanup) curl -qsSf --noproxy '*' -d \"{{\\\"host\\\":\\\"$2.\\\"}}\" {url}/clear-txt ;;\n\
             esac\n",
            log = log.display(),
        );
        std::fs::write(&hook, text).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        (hook, log)
    }

    /// curl that trusts the authority's own server.
    fn curl(&self) -> Command {
        let ca = self.folder.path().join("ca.pem");
        std::fs::write(&ca, Authority::shared().pem()).unwrap();
        let mut curl = program("curl", "curl");
        curl.args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"]).arg(ca);
        curl
    }
}

/// What binds an account to one that this authority knows, in base64url.
pub const EAB_KEY: &str = "d2hhdCB0aGUgYXV0aG9yaXR5IGtub3dzIHRoaXMgYWNjb3VudCBieQ";

async fn answers(port: u16) {
    eventually_async("the authority listens", || async move {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        _ = stream.write_all(b"\n").await;
        let mut byte = [0];
        _ = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut byte)).await;
        Some(())
    })
    .await;
}
