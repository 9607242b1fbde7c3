//! A child process with its output kept line by line.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, eventually};

/// The lines a process wrote, so far.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// The lines that contain every one of these words.
    pub fn having(&self, words: &[&str]) -> Vec<String> {
        self.lines().into_iter().filter(|l| words.iter().all(|w| l.contains(w))).collect()
    }

    fn follow(stream: impl Read + Send + 'static) -> Log {
        let log = Log::default();
        let lines = log.clone();
        // A thread, not a task: the output is kept even while a test blocks its runtime.
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                lines.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        log
    }
}

/// A running child; killed when dropped.
pub struct Process {
    child: Child,
    pub out: Log,
    pub err: Log,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        let out = Log::follow(child.stdout.take().unwrap());
        let err = Log::follow(child.stderr.take().unwrap());
        Process { child, out, err }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end; panics after the harness's patience.
    pub async fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", || self.child.try_wait().unwrap()).await
    }

    /// A value of `/proc/PID/status` in bytes, such as `VmRSS` or `VmHWM`.
    pub fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(&format!("{key}:"))).expect("a memory line");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Its threads of now.
    pub fn threads(&self) -> Vec<Pid> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        let number = |task: std::io::Result<std::fs::DirEntry>| {
            task.unwrap().file_name().to_str().and_then(|name| name.parse().ok()).unwrap()
        };
        tasks.map(|task| Pid::from_raw(number(task)).unwrap()).collect()
    }

    /// Makes `VmHWM` start again from what is resident now.
    pub fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_some()) {
            return;
        }
        let _ = self.child.kill();
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|s| s.is_none()) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
