//! The operator's own program that writes DNS records: `PROGRAM ARGUMENTS... present NAME VALUE`, and afterwards `cleanup`.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Trouble;

/// Records take their time to get to all servers of a zone, and the program waits for that.
const TIME: Duration = Duration::from_secs(5 * 60);
/// So much of what it writes is repeated.
const SAID: usize = 500;

/// A record that is written, and then removed.
#[derive(Debug)]
pub(super) struct Record {
    hook: Vec<String>,
    name: String,
    value: String,
}

impl Record {
    pub(super) fn new(hook: &[String], host: &str, value: String) -> Record {
        Record { hook: hook.to_vec(), name: format!("_acme-challenge.{host}"), value }
    }

    pub(super) async fn present(&self) -> Result<(), Trouble> {
        run(&self.hook, "present", &self.name, &self.value).await
    }

    pub(super) async fn clean_up(self) {
        if let Err(trouble) = run(&self.hook, "cleanup", &self.name, &self.value).await {
            tracing::warn!(record = self.name, "{trouble}");
        }
    }
}

async fn run(hook: &[String], what: &str, name: &str, value: &str) -> Result<(), Trouble> {
    let Some((program, arguments)) = hook.split_first() else {
        return Err(Trouble::new("`dns_hook` is empty"));
    };
    let mut command = Command::new(program);
    command.args(arguments).args([what, name, value]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = timeout(TIME, command.output()).await;
    let reason = match output {
        Ok(Ok(output)) if output.status.success() => return Ok(()),
        Ok(Ok(output)) => {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(SAID).collect();
            format!("ended with {}: {said}", output.status)
        }
        Ok(Err(error)) => format!("cannot be run: {error}"),
        Err(_) => format!("was killed after {TIME:?}"),
    };
    Err(Trouble::new(format!("dns_hook `{program} {what} {name}` {reason}")))
}
