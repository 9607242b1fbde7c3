//! `outlier`, `retry` and `queue` of a pool: what follows when requests to its VMs fail, or are too many.

use std::time::Duration;

use foregate_routing::{Cause, Hedge, Outlier, QueueSpec, Retry};
use http::StatusCode;

use super::decode::Value;
use super::inherit::{Layer, Said};
use super::value::{self, Misfit};

/// One layer of `outlier`.
#[derive(Clone, Debug, Default)]
pub(super) struct OutlierLayer {
    consecutive_failures: Option<u32>,
    eject: Option<Duration>,
    max_ejected: Option<u8>,
    probe_after: Said<Duration>,
}

impl OutlierLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<OutlierLayer> {
        let table =
            value.table_or("\"off\" or a table such as { consecutive_failures = 5, eject = \"30s\" }")?;
        let layer = OutlierLayer {
            consecutive_failures: table.read("consecutive_failures", |value| {
                value.number(1, 1_000_000, "a number from 1 to 1000000")
            }),
            eject: table.read("eject", Value::duration),
            max_ejected: table.read("max_ejected", percent),
            probe_after: table.said("probe_after", Value::duration),
        };
        table.finish();
        Some(layer)
    }

    fn compile(self) -> Outlier {
        let usual = Outlier::default();
        Outlier {
            consecutive_failures: self.consecutive_failures.unwrap_or(usual.consecutive_failures),
            eject: self.eject.unwrap_or(usual.eject),
            max_ejected: self.max_ejected.unwrap_or(usual.max_ejected),
            probe_after: self.probe_after.value_or(usual.probe_after),
        }
    }
}

/// What a pool does after all layers.
pub(super) fn outlier(said: &Said<OutlierLayer>) -> Option<Outlier> {
    said.clone().value_or(Some(OutlierLayer::default())).map(OutlierLayer::compile)
}

impl Layer for OutlierLayer {
    fn over(self, below: &OutlierLayer) -> OutlierLayer {
        OutlierLayer {
            consecutive_failures: self.consecutive_failures.or(below.consecutive_failures),
            eject: self.eject.or(below.eject),
            max_ejected: self.max_ejected.or(below.max_ejected),
            probe_after: self.probe_after.or(below.probe_after.clone()),
        }
    }
}

/// One layer of `retry`.
#[derive(Clone, Debug, Default)]
pub(super) struct RetryLayer {
    attempts: Option<u32>,
    on: Option<Vec<Cause>>,
    budget: Said<u8>,
    hedge: Said<Hedge>,
}

impl RetryLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<RetryLayer> {
        let causes = [
            ("connect", Cause::Connect),
            ("reset", Cause::Reset),
            ("timeout", Cause::Timeout),
            ("502", Cause::Status(StatusCode::BAD_GATEWAY)),
            ("503", Cause::Status(StatusCode::SERVICE_UNAVAILABLE)),
            ("504", Cause::Status(StatusCode::GATEWAY_TIMEOUT)),
        ];
        let table =
            value.table_or("\"off\" or a table such as { attempts = 2, on = [\"connect\", \"reset\"] }")?;
        let layer = RetryLayer {
            attempts: table.read("attempts", |value| value.number(0, 10, "a number from 0 to 10")),
            on: table.read("on", |value| value.at_least_one(|one| one.one_of(&causes))),
            budget: table.said("budget", percent),
            hedge: table.said("hedge_after", hedge),
        };
        table.finish();
        Some(layer)
    }

    fn compile(self) -> Retry {
        let usual = Retry::default();
        Retry {
            attempts: self.attempts.unwrap_or(usual.attempts),
            on: self.on.map_or(usual.on, Box::from),
            budget: self.budget.value_or(usual.budget),
            hedge: self.hedge.value(),
        }
    }
}

/// What a pool does after all layers.
pub(super) fn retry(said: &Said<RetryLayer>) -> Retry {
    match said.clone().value_or(Some(RetryLayer::default())) {
        Some(layer) => layer.compile(),
        None => Retry { attempts: 0, ..Retry::default() },
    }
}

impl Layer for RetryLayer {
    fn over(self, below: &RetryLayer) -> RetryLayer {
        RetryLayer {
            attempts: self.attempts.or(below.attempts),
            on: self.on.or_else(|| below.on.clone()),
            budget: self.budget.or(below.budget.clone()),
            hedge: self.hedge.or(below.hedge.clone()),
        }
    }
}

/// One layer of `queue`.
#[derive(Clone, Debug, Default)]
pub(super) struct QueueLayer {
    length: Option<usize>,
    timeout: Said<Duration>,
}

impl QueueLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<QueueLayer> {
        let table = value.table_or("\"off\" or a table such as { length = 1024, timeout = \"5s\" }")?;
        let layer = QueueLayer {
            length: table.read("length", |value| value.number(0, 1_000_000, "a number from 0 to 1000000")),
            timeout: table.said("timeout", Value::duration),
        };
        table.finish();
        Some(layer)
    }
}

/// What a pool does after all layers.
pub(super) fn queue(said: &Said<QueueLayer>) -> QueueSpec {
    let usual = QueueSpec::default();
    match said.clone().value_or(Some(QueueLayer::default())) {
        Some(layer) => QueueSpec {
            length: layer.length.unwrap_or(usual.length),
            timeout: layer.timeout.value_or(usual.timeout),
        },
        None => QueueSpec { length: 0, ..usual },
    }
}

impl Layer for QueueLayer {
    fn over(self, below: &QueueLayer) -> QueueLayer {
        QueueLayer { length: self.length.or(below.length), timeout: self.timeout.or(below.timeout.clone()) }
    }
}

const HEDGES: &str = "\"off\", \"p95\" or a duration such as \"80ms\"";

fn hedge(value: &Value<'_>) -> Option<Hedge> {
    if value.is_word("p95") {
        return Some(Hedge::P95);
    }
    let time = |text: &str| {
        let time = value::duration(text).ok().filter(|time| !time.is_zero());
        let misfit = || Misfit::new(format!("\"{text}\" is no time to wait")).help(HEDGES);
        time.map(Hedge::After).ok_or_else(misfit)
    };
    value.parse(HEDGES, time).map(|hedge| hedge.value)
}

pub(super) fn percent(value: &Value<'_>) -> Option<u8> {
    value.parse("a share such as \"50%\"", value::percent).map(|percent| percent.value)
}
