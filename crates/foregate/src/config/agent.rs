//! `agent` and `wake` of a pool: what VMs say of their load, and what is done when all of them sleep.

use std::time::Duration;

use foregate_routing::{Agent, Wake};

use super::decode::Value;
use super::diagnostic::{Problem, Problems};
use super::inherit::Layer;
use super::source::{Place, Placed};

/// Of a VM that uses more of its processors some work is taken.
const MAX_CPU: u8 = 80;
const INTERVAL: Duration = Duration::from_secs(5);
/// A VM boots within this time, or something is wrong.
const WAKES_WITHIN: Duration = Duration::from_secs(60);

/// One layer of `agent`.
#[derive(Clone, Debug)]
pub(super) struct AgentLayer {
    /// Within: none where it was wrong, which has been told.
    port: Option<Option<u16>>,
    interval: Option<Duration>,
    max_cpu: Option<u8>,
    /// Of the whole table.
    place: Place,
}

impl AgentLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<AgentLayer> {
        let table = value.table_or("\"off\" or a table such as { port = 9707 }")?;
        let layer = AgentLayer {
            port: table.read("port", |value| Some(value.number(1, 65_535, "a port from 1 to 65535"))),
            interval: table.read("interval", Value::duration),
            max_cpu: table.read("max_cpu", super::failing::percent),
            place: table.place(),
        };
        table.finish();
        Some(layer)
    }

    pub(super) fn compile(&self, problems: &Problems) -> Option<Agent> {
        let Some(port) = self.port else {
            let problem = Problem::absence(self.place, "`agent` needs `port`, where the VMs say their load");
            problems.push(problem.help("`foregate agent` listens on 9707: { port = 9707 }"));
            return None;
        };
        Some(Agent {
            port: port?,
            interval: self.interval.unwrap_or(INTERVAL),
            max_cpu: self.max_cpu.unwrap_or(MAX_CPU),
        })
    }
}

impl Layer for AgentLayer {
    fn over(self, below: &AgentLayer) -> AgentLayer {
        AgentLayer {
            port: self.port.or(below.port),
            interval: self.interval.or(below.interval),
            max_cpu: self.max_cpu.or(below.max_cpu),
            place: self.place,
        }
    }
}

/// One layer of `wake`.
#[derive(Clone, Debug)]
pub(super) struct WakeLayer {
    /// As for [`AgentLayer::port`].
    command: Option<Option<Vec<Placed<String>>>>,
    timeout: Option<Duration>,
    place: Place,
}

impl WakeLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<WakeLayer> {
        let table =
            value.table_or("\"off\" or a table such as { command = [\"virsh\", \"start\", \"vm1\"] }")?;
        let layer = WakeLayer {
            command: table.read("command", |value| Some(value.at_least_one(|one| one.string()))),
            timeout: table.read("timeout", Value::duration),
            place: table.place(),
        };
        table.finish();
        Some(layer)
    }

    /// `is_probed`: somebody finds out when a VM is up. `waits`: requests may wait for it.
    pub(super) fn compile(&self, is_probed: bool, waits: bool, problems: &Problems) -> Option<Wake> {
        let Some(command) = &self.command else {
            let problem = Problem::absence(self.place, "`wake` needs `command`, which starts the VMs");
            problems.push(problem.help("a program and its arguments: [\"virsh\", \"start\", \"vm1\"]"));
            return None;
        };
        if !is_probed {
            let message =
                "`wake` needs `health` in the same pool: without probes nobody sees that the VMs are off";
            let problem = Problem::error(self.place, message);
            problems
                .push(problem.help("add `health = { http = { path = \"/healthz\" } }`, or `{ tcp = {} }`"));
            return None;
        }
        if !waits {
            let problem =
                Problem::error(self.place, "`wake` needs a `queue`, where requests wait for the VM");
            problems.push(problem.help("leave `queue` out: by default 1024 requests may wait"));
            return None;
        }
        Some(Wake {
            command: command.as_ref()?.iter().map(|word| word.value.as_str().into()).collect(),
            timeout: self.timeout.unwrap_or(WAKES_WITHIN),
        })
    }
}

impl Layer for WakeLayer {
    fn over(self, below: &WakeLayer) -> WakeLayer {
        WakeLayer {
            command: self.command.or_else(|| below.command.clone()),
            timeout: self.timeout.or(below.timeout),
            place: self.place,
        }
    }
}
