//! What VMs say of themselves: on a port of theirs, to whoever connects, in one line (the agent-check protocol of HAProxy).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foregate_routing::{Address, Agent, Duty, Endpoint};
use foregate_upstream::Client;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::dice::{self, Dice};
use crate::standing::Standing;

/// A line is no longer than this.
const LINE: usize = 1024;
/// A VM may take so long to say it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How fast a share follows the load: one report never takes away more than half of it, nor gives more than a quarter.
const SHED: f64 = 0.5;
const REGAIN: f64 = 1.25;

/// Asks one VM again and again; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Polling {
    endpoint: Arc<Endpoint>,
    agent: Agent,
    task: AbortHandle,
}

impl Polling {
    pub(crate) fn start(
        endpoint: &Arc<Endpoint>,
        agent: &Agent,
        standing: &Rc<Standing>,
        gate: &Rc<Semaphore>,
    ) -> Polling {
        let (endpoint, agent) = (endpoint.clone(), agent.clone());
        let task =
            tokio::task::spawn_local(poll(endpoint.clone(), agent.clone(), standing.clone(), gate.clone()));
        Polling { endpoint, agent, task: task.abort_handle() }
    }

    pub(crate) fn goes_on(&self, agent: &Agent) -> bool {
        // As for probes: it ends by itself only if it panicked.
        self.agent == *agent && !self.task.is_finished()
    }

    /// The name of its endpoint's pool.
    pub(crate) fn pool(&self) -> &Arc<str> {
        &self.endpoint.pool
    }

    /// Nobody asks any more, so what was said is over.
    pub(crate) fn retire(self, standing: Option<&Standing>) {
        self.task.abort();
        self.endpoint.vitals.ask_share(1.0);
        match standing {
            Some(standing) if standing.has(&self.endpoint) => {
                standing.order(&self.endpoint, Duty::Work, &"its agent is asked no more")
            }
            // Who is no member any more may be draining, and goes on with that.
            _ => {}
        }
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks soon after the start and then every interval, and does what it is told.
async fn poll(endpoint: Arc<Endpoint>, agent: Agent, standing: Rc<Standing>, gate: Rc<Semaphore>) {
    let Some(address) = beside(&endpoint.address, agent.port) else { return };
    let (client, mut dice) = (Client::default(), Dice::new());
    let patience = PATIENCE.min(agent.interval);
    let mut cpu_share = 1.0;
    let mut silent = false;
    sleep(dice::scale(Duration::from_millis(500).min(agent.interval), dice.roll())).await;
    loop {
        // It is never closed.
        let turn = gate.acquire().await;
        let begun = Instant::now();
        let heard = match timeout(patience, client.hear(&address, LINE)).await {
            Ok(Ok(line)) => Report::read(&String::from_utf8_lossy(&line)),
            Ok(Err(failure)) => Err(failure.to_string()),
            Err(_) => Err(format!("no line within {patience:?}")),
        };
        drop(turn);
        let pool = &*endpoint.pool;
        match heard {
            Ok(report) => {
                if std::mem::take(&mut silent) {
                    tracing::info!(pool, %address, "agent answers again");
                }
                if let Some(cpu) = report.cpu {
                    cpu_share = shed(cpu_share, cpu, f64::from(agent.max_cpu) / 100.0);
                    if cpu * 100.0 > f64::from(agent.max_cpu) && endpoint.vitals.doubt() {
                        standing.clone().doubt(endpoint.clone());
                    }
                } else {
                    cpu_share = 1.0;
                }
                endpoint.vitals.ask_share(report.share.unwrap_or(1.0).min(cpu_share));
                standing.order(&endpoint, report.duty, &report.reason);
            }
            // A program that reports load is not the program that serves: what it said last holds.
            Err(reason) if !std::mem::replace(&mut silent, true) => {
                tracing::warn!(pool, %address, reason, "agent does not answer: what it said last holds");
            }
            Err(_) => {}
        }
        sleep(dice.jittered(agent.interval).saturating_sub(begun.elapsed())).await;
    }
}

/// The same machine, at another port.
fn beside(address: &Address, port: u16) -> Option<Address> {
    match address {
        Address::Ip(address) => {
            let mut address = *address;
            address.set_port(port);
            Some(Address::Ip(address))
        }
        Address::Name { host, .. } => Some(Address::Name { host: host.clone(), port }),
        // The configuration allows none.
        Address::Unix(_) => None,
    }
}

/// The next share of a VM that uses so much of its processors: in proportion, since half of the work is taken for half
/// of the load.
fn shed(share: f64, cpu: f64, most: f64) -> f64 {
    let factor = (most / cpu.max(0.01)).clamp(SHED, REGAIN);
    // What no report takes it below.
    (share * factor).clamp(1.0 / 16.0, 1.0)
}

/// One line, understood.
#[derive(Debug, PartialEq)]
struct Report {
    duty: Duty,
    /// The part of its weight it asks for.
    share: Option<f64>,
    /// The part of its processors it uses.
    cpu: Option<f64>,
    /// Why, in its own words.
    reason: String,
}

impl Report {
    /// Each line stands for itself: what is not in it does not hold any more.
    fn read(line: &str) -> Result<Report, String> {
        let line = line.lines().next().unwrap_or_default();
        let (words, reason) = line.split_once('#').unwrap_or((line, ""));
        let mut report = Report { duty: Duty::Work, share: None, cpu: None, reason: printable(reason) };
        let mut understood = false;
        for word in words.split([' ', ',', '\t', '\r']).filter(|word| !word.is_empty()) {
            let word = word.to_ascii_lowercase();
            let percent = |text: &str| {
                let number: f64 = text.strip_suffix('%')?.parse().ok()?;
                (0.0..=1000.0).contains(&number).then_some(number / 100.0)
            };
            match word.as_str() {
                "up" | "ready" => {}
                "drain" if report.duty != Duty::Off => report.duty = Duty::Drain,
                "drain" => {}
                "maint" | "down" | "fail" | "failed" | "stopped" => report.duty = Duty::Off,
                _ => match (percent(&word), word.strip_prefix("cpu=").and_then(percent)) {
                    (Some(0.0), _) if report.duty == Duty::Work => report.duty = Duty::Drain,
                    (Some(share), _) => report.share = Some(share),
                    (None, Some(cpu)) => report.cpu = Some(cpu),
                    // HAProxy knows `maxconn:30` and may learn more.
                    (None, None) => continue,
                },
            }
            understood = true;
        }
        if report.reason.is_empty() {
            report.reason = format!("its agent says \"{}\"", printable(words));
        }
        match understood {
            true => Ok(report),
            false => Err(format!("\"{}\" says nothing an agent may say", printable(line))),
        }
    }
}

/// What strangers say is written into a log.
fn printable(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Duty, Option<f64>, Option<f64>) {
        let report = Report::read(line).unwrap();
        (report.duty, report.share, report.cpu)
    }

    #[test]
    fn lines_are_read_as_haproxy_reads_them() {
        assert_eq!(read("up\n"), (Duty::Work, None, None));
        assert_eq!(read("ready"), (Duty::Work, None, None));
        assert_eq!(read("up 80%\r\n"), (Duty::Work, Some(0.8), None));
        assert_eq!(read("75%"), (Duty::Work, Some(0.75), None));
        assert_eq!(read("0%"), (Duty::Drain, None, None), "weight 0 is no new work");
        assert_eq!(read("drain, 50%"), (Duty::Drain, Some(0.5), None));
        assert_eq!(read("maint"), (Duty::Off, None, None));
        assert_eq!(read("cpu=83%"), (Duty::Work, None, Some(0.83)));
        assert_eq!(read("UP cpu=12.5% maxconn:30"), (Duty::Work, None, Some(0.125)));
        assert_eq!(read("up\ndown"), (Duty::Work, None, None), "one line");
        for down in ["down", "fail", "failed", "stopped", "drain down", "down drain"] {
            assert_eq!(read(down).0, Duty::Off, "{down}");
        }
    }

    #[test]
    fn its_reason_is_told_and_cannot_write_into_the_log_what_it_likes() {
        let reason = |line: &str| Report::read(line).unwrap().reason;
        assert_eq!(reason("down # the disk is full"), "the disk is full");
        assert_eq!(reason("drain 10%"), "its agent says \"drain 10%\"");
        assert_eq!(reason("down # \u{1b}[31mred\u{7}"), "[31mred");
        assert!(reason(&format!("down #{}", "x".repeat(900))).len() <= 120);
    }

    #[test]
    fn what_is_no_report_is_none() {
        for line in ["", "\n", "# up", "HTTP/1.1 400 Bad Request", "-5%", "cpu=lots", "nan%", "5000%"] {
            assert!(Report::read(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_share_follows_the_load_to_where_it_fits() {
        // Its load is what it is given: at its full share it would use 160 %.
        let mut share = 1.0;
        for _ in 0..20 {
            share = shed(share, f64::min(1.6 * share, 1.0), 0.8);
        }
        assert!((share - 0.5).abs() < 0.01, "{share}");
        // The work goes elsewhere, and it regains what it had.
        for _ in 0..20 {
            share = shed(share, 0.1, 0.8);
        }
        assert_eq!(share, 1.0);
        assert_eq!((0..50).fold(1.0, |share, _| shed(share, 1.0, 0.01)), 1.0 / 16.0, "never nothing");
        assert_eq!(shed(0.5, 0.0, 0.8), 0.625);
    }
}
