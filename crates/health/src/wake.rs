//! Waking a pool whose VMs are switched off: a command is run, and its requests wait for what comes of it.

use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foregate_routing::Wake;
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::standing::Standing;

/// How often a pool that wakes is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Who did not wake is let alone for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// So much of what a command says of its failure is told.
const SAID: u64 = 512;

/// Runs the command and waits for a usable VM, at most as long as the pool says.
pub(crate) async fn rouse(standing: Rc<Standing>, wake: Wake) {
    let pool = standing.pool().name.clone();
    let begun = Instant::now();
    // Somebody may have come up since the request found nobody.
    if !standing.pool().any_usable() {
        tracing::info!(pool = &*pool, command = wake.command.join(" "), "nobody is usable: waking the pool");
        let _probed_often = standing.waking();
        let late = Rc::new(Notify::new());
        tokio::task::spawn_local(run(pool.clone(), wake.command, late.clone()));
        let awake = async {
            while !standing.pool().any_usable() {
                sleep(LOOK).await;
            }
        };
        let woke = timeout(wake.timeout, awake).await.is_ok();
        if !woke {
            late.notify_one();
            let (pool, waited) = (&*pool, wake.timeout);
            tracing::error!(
                pool,
                ?waited,
                "the pool did not wake: requests are turned away, and the next try is in {PAUSE:?} at the earliest"
            );
            standing.pool().alarm().pause();
            sleep(PAUSE).await;
        } else {
            tracing::info!(pool = &*pool, took = ?begun.elapsed(), "the pool is awake");
        }
    }
    standing.pool().alarm().silence();
}

/// Runs the command to its end, and tells if it failed. That ends nothing: the VM may be starting for another reason. It is
/// killed only if it took too long, for it may be what the VM runs in.
async fn run(pool: Arc<str>, command: Box<[Box<str>]>, late: Rc<Notify>) {
    let Some((program, arguments)) = command.split_first() else { return };
    let spawned = Command::new(&**program)
        .args(arguments.iter().map(|argument| &**argument))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let pool = &*pool;
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(pool, program = &**program, %error, "the command that wakes the pool cannot be run");
            return;
        }
    };
    let stderr = child.stderr.take();
    let ended = tokio::select! {
        (said, status) = async { tokio::join!(said(stderr), child.wait()) } => Some((said, status)),
        () = late.notified() => None,
    };
    match ended {
        Some((_, Ok(status))) if status.success() => {
            tracing::debug!(pool, "the command that wakes the pool has ended");
        }
        Some((said, Ok(status))) => {
            tracing::warn!(pool, %status, said, "the command that wakes the pool has failed")
        }
        Some((_, Err(error))) => tracing::warn!(pool, %error, "the command that wakes the pool was lost"),
        None => {
            tracing::warn!(pool, "the command that wakes the pool still runs: it is killed");
            _ = child.kill().await;
        }
    }
}

/// The beginning of what it said, to its end.
async fn said(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut first = Vec::new();
    _ = (&mut stderr).take(SAID).read_to_end(&mut first).await;
    // The rest is read so that the command does not wait for somebody to do so.
    _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    let text = String::from_utf8_lossy(&first);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
