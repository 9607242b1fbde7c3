//! `health` of a pool: how its VMs are probed.

use std::ops::RangeInclusive;
use std::time::Duration;

use foregate_routing::{HealthCheck, Probe};

use super::decode::{Table, Value};
use super::diagnostic::{Problem, Problems};
use super::inherit::Layer;
use super::source::Place;
use super::value::{self, Misfit};

/// One layer of a pool's health check.
#[derive(Clone, Debug, Default)]
pub(super) struct HealthLayer {
    probe: Option<ProbeLayer>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u32>,
    fall: Option<u32>,
}

#[derive(Clone, Debug)]
enum ProbeLayer {
    Http(HttpLayer),
    Tcp,
    Grpc(String),
    /// It was written, and wrong.
    Unreadable,
}

#[derive(Clone, Debug, Default)]
struct HttpLayer {
    path: Option<String>,
    status: Option<Vec<RangeInclusive<u16>>>,
    host: Option<String>,
    contains: Option<String>,
}

impl HealthLayer {
    pub(super) fn read(value: &Value<'_>) -> Option<HealthLayer> {
        let table = value.table_or("\"off\" or a table such as { http = { path = \"/healthz\" } }")?;
        let kinds = ["http", "tcp", "grpc"].map(|kind| (kind, table.get(kind)));
        let mut written = kinds.iter().filter_map(|(kind, value)| Some((*kind, value.as_ref()?)));
        let first = written.next();
        if let (Some((_, first)), Some((_, second))) = (first, written.next()) {
            let problem = Problem::error(second.place(), "a health check is one of `http`, `tcp` and `grpc`");
            table.problem(problem.other(first.place(), "there is this already"));
        }
        let probe = first.map(|(kind, value)| match (kind, value.table()) {
            (_, None) => ProbeLayer::Unreadable,
            ("http", Some(http)) => ProbeLayer::Http(read_http(http)),
            ("grpc", Some(grpc)) => {
                let service = grpc.read("service", Value::string);
                grpc.finish();
                ProbeLayer::Grpc(service.map(|service| service.value).unwrap_or_default())
            }
            (_, Some(tcp)) => {
                tcp.finish();
                ProbeLayer::Tcp
            }
        });
        let count = |value: &Value<'_>| value.number(1, 1000, "a number from 1 to 1000");
        let layer = HealthLayer {
            probe,
            interval: table.read("interval", Value::duration),
            timeout: table.read("timeout", Value::duration),
            rise: table.read("rise", count),
            fall: table.read("fall", count),
        };
        table.finish();
        Some(layer)
    }

    pub(super) fn is_grpc(&self) -> bool {
        matches!(self.probe, Some(ProbeLayer::Grpc(_)))
    }

    /// The check after all layers. `place` is the pool's.
    pub(super) fn compile(&self, place: Place, problems: &Problems) -> Option<HealthCheck> {
        let probe = match &self.probe {
            Some(ProbeLayer::Http(http)) => http.compile(),
            Some(ProbeLayer::Tcp) => Probe::Tcp,
            Some(ProbeLayer::Grpc(service)) => Probe::Grpc { service: service.as_str().into() },
            Some(ProbeLayer::Unreadable) => return None,
            None => {
                let problem =
                    Problem::error(place, "the health check of this pool does not say what it probes");
                problems.push(problem.help(
                        "write `health = { http = { path = \"/healthz\" } }`, `health = { tcp = {} }` or `health = { grpc = {} }`",
                    ));
                return None;
            }
        };
        Some(HealthCheck {
            probe,
            interval: self.interval.unwrap_or(Duration::from_secs(5)),
            timeout: self.timeout.unwrap_or(Duration::from_secs(2)),
            rise: self.rise.unwrap_or(2),
            fall: self.fall.unwrap_or(3),
        })
    }
}

fn read_http(table: Table<'_>) -> HttpLayer {
    let path = table.read("path", |value| {
        value.parse("a path such as \"/healthz\"", |text| {
            if text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok() {
                return Ok(text.to_owned());
            }
            Err(Misfit::new(format!("\"{text}\" is not a path"))
                .help("write it from the first slash: \"/healthz\""))
        })
    });
    let status = table.read("status", |value| {
        value.at_least_one(|one| {
            Some(one.parse("a status or a range such as \"200-399\"", value::statuses)?.value)
        })
    });
    let host = table.read("host", |value| {
        value.parse("a host", |text| match text.is_empty() || text.parse::<http::uri::Authority>().is_ok() {
            true => Ok(text.to_owned()),
            false => Err(Misfit::new(format!("\"{text}\" is not a host"))),
        })
    });
    let layer = HttpLayer {
        path: path.map(|path| path.value),
        status,
        host: host.map(|host| host.value),
        contains: table.read("contains", Value::string).map(|text| text.value),
    };
    table.finish();
    layer
}

impl HttpLayer {
    fn compile(&self) -> Probe {
        let unless_empty =
            |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Box::from);
        Probe::Http {
            path: self.path.as_deref().unwrap_or("/").into(),
            status: self.status.clone().unwrap_or_else(|| vec![200..=399]),
            host: unless_empty(&self.host),
            contains: unless_empty(&self.contains),
        }
    }
}

impl Layer for HealthLayer {
    fn over(self, below: &HealthLayer) -> HealthLayer {
        let probe = match (self.probe, &below.probe) {
            // A pool that probes otherwise than the default does not probe both ways.
            (Some(ProbeLayer::Http(upper)), Some(ProbeLayer::Http(lower))) => {
                Some(ProbeLayer::Http(upper.over(lower)))
            }
            (Some(probe), _) => Some(probe),
            (None, probe) => probe.clone(),
        };
        HealthLayer {
            probe,
            interval: self.interval.or(below.interval),
            timeout: self.timeout.or(below.timeout),
            rise: self.rise.or(below.rise),
            fall: self.fall.or(below.fall),
        }
    }
}

impl Layer for HttpLayer {
    fn over(self, below: &HttpLayer) -> HttpLayer {
        HttpLayer {
            path: self.path.or_else(|| below.path.clone()),
            status: self.status.or_else(|| below.status.clone()),
            host: self.host.or_else(|| below.host.clone()),
            contains: self.contains.or_else(|| below.contains.clone()),
        }
    }
}
