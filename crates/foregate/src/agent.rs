//! `foregate agent`: runs within a VM and says in one line, to whoever connects, how busy it is.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::{interval, timeout};

use crate::cli::{Exit, complain, say};
use crate::run::{Signals, failed};

/// How often the processors are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What was seen so many looks ago is compared with: long enough for a peak to be no news, short enough to follow a load.
const LOOKS: usize = 5;
/// Whoever asks takes a line within this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// No state is longer.
const STATE: usize = 200;

#[derive(Args, Debug)]
pub(crate) struct Flags {
    /// Where to listen; the port is the one of `agent` in the pool
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9707")]
    listen: SocketAddr,
    /// A file whose first line is said too: `drain`, `maint`, `down # reason`, `50%`; without the file it is `up`
    #[arg(long, value_name = "PATH", default_value = "/run/foregate-agent/state")]
    state: PathBuf,
}

pub(crate) fn main(flags: &Flags) -> Exit {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format_args!("it cannot start: {error}")),
    };
    runtime.block_on(serve(flags))
}

async fn serve(flags: &Flags) -> Exit {
    let mut load = Load::default();
    if let Err(error) = load.look() {
        return failed(format_args!("/proc/stat cannot be read: {error}"));
    }
    let signals = Signals::new();
    let bound = match TcpListener::bind(flags.listen).await {
        // A machine without IPv6.
        Err(_) if flags.listen.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, flags.listen.port())).await
        }
        bound => bound,
    };
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => {
            let address = flags.listen;
            return failed(format_args!("{address} cannot be listened on: {error}; --listen names another"));
        }
    };
    let mut signals = match signals {
        Ok(signals) => signals,
        Err(error) => return failed(format_args!("signals cannot be waited for: {error}")),
    };
    if let Ok(address) = listener.local_addr() {
        say(format_args!("listening on tcp {address}"));
    }
    let mut look = interval(LOOK);
    let mut complained = false;
    loop {
        tokio::select! {
            // One after the other: whoever asks costs no memory.
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match state(&flags.state) {
                    Ok(state) => {
                        complained = false;
                        let line = line(&state, load.busy());
                        _ = timeout(PATIENCE, answer(stream, &line)).await;
                    }
                    // Saying "up" might be the opposite of what is written there; nothing is said, once aloud.
                    Err(error) if !std::mem::replace(&mut complained, true) => {
                        let file = flags.state.display();
                        complain(format_args!("foregate: {file} cannot be read, and nothing is said: {error}"));
                    }
                    Err(_) => {}
                },
                // Out of files, perhaps: it would fail again at once.
                Err(_) => tokio::time::sleep(LOOK).await,
            },
            _ = look.tick() => {
                // What was read a second ago will do.
                _ = load.look();
            }
            _ = signals.next() => return Exit::Done,
        }
    }
}

async fn answer(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await
}

/// What the operator has written into the file; nothing where there is none.
fn state(file: &Path) -> io::Result<String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let first = text.lines().next().unwrap_or_default().trim();
    Ok(first.chars().filter(|c| !c.is_control()).take(STATE).collect())
}

/// The state with the load; what stands behind `#` is the last of a line.
fn line(state: &str, busy: f64) -> String {
    let (words, reason) =
        state.split_once('#').map_or((state, None), |(words, reason)| (words, Some(reason)));
    let words = Some(words.trim()).filter(|words| !words.is_empty()).unwrap_or("up");
    let reason = reason.map(|reason| format!(" # {}", reason.trim())).unwrap_or_default();
    format!("{words} cpu={:.0}%{reason}\n", busy * 100.0)
}

/// How busy all processors together were lately.
#[derive(Default)]
struct Load(Vec<Ticks>);

/// Since the system started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    all: u64,
    idle: u64,
}

impl Load {
    fn look(&mut self) -> io::Result<()> {
        let now = ticks(&fs::read_to_string("/proc/stat")?).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "it does not begin with the processors")
        })?;
        if self.0.len() > LOOKS {
            self.0.remove(0);
        }
        self.0.push(now);
        Ok(())
    }

    fn busy(&self) -> f64 {
        let (Some(before), Some(now)) = (self.0.first(), self.0.last()) else { return 0.0 };
        let all = now.all.saturating_sub(before.all);
        let idle = now.idle.saturating_sub(before.idle).min(all);
        if all == 0 { 0.0 } else { (all - idle) as f64 / all as f64 }
    }
}

/// The first line of /proc/stat. Time that the hypervisor gave to others counts as busy: the VM could not have it.
fn ticks(stat: &str) -> Option<Ticks> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    // user nice system idle iowait irq softirq steal; what follows is counted in user and nice already.
    let numbers: Vec<u64> = numbers.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = numbers.get(3)? + numbers.get(4).unwrap_or(&0);
    Some(Ticks { all: numbers.iter().sum(), idle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_what_was_not_idle_lately() {
        let stat = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n";
        assert_eq!(ticks(stat), Some(Ticks { all: 1000, idle: 850 }));
        assert_eq!(ticks("cpu  1 2 3 4 5 6 7 8 9 10"), Some(Ticks { all: 36, idle: 9 }));
        assert_eq!(ticks("cpu0 1 2 3 4"), None);
        assert_eq!(ticks("cpu  1 2 x 4"), None);
        let at = |all, idle| Ticks { all, idle };
        assert_eq!(Load(vec![at(1000, 850), at(1100, 870)]).busy(), 0.8);
        assert_eq!(Load(vec![at(1000, 850)]).busy(), 0.0);
        assert_eq!(Load(Vec::new()).busy(), 0.0);
        let mut load = Load::default();
        (0..20).for_each(|_| load.look().unwrap());
        assert_eq!(load.0.len(), LOOKS + 1);
    }

    #[test]
    fn a_state_that_cannot_be_read_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        assert_eq!(state(&file).unwrap(), "");
        fs::write(&file, b"drain # caf\xe9\nup\n").unwrap();
        assert_eq!(state(&file).unwrap(), "drain # caf\u{fffd}");
        assert!(state(folder.path()).is_err());
    }

    #[test]
    fn a_line_says_what_is_wanted_and_how_busy_it_is() {
        assert_eq!(line("", 0.374), "up cpu=37%\n");
        assert_eq!(line("drain", 1.0), "drain cpu=100%\n");
        assert_eq!(line("down # the disk is full", 0.0), "down cpu=0% # the disk is full\n");
        assert_eq!(line("# nothing", 0.0), "up cpu=0% # nothing\n");
    }
}
