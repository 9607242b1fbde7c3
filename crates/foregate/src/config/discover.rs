//! `discover` of a pool: where its VMs are looked up.

use std::time::Duration;

use foregate_discovery::{Dns, Query};
use foregate_routing::Address;

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::value::{self, Misfit};

const INTERVAL: Duration = Duration::from_secs(30);
const EXPECTED: &str = "a name with a port such as \"build.internal:8080\", or of an SRV record such as \"_http._tcp.build.internal\"";

pub(super) fn read(pool: &Table<'_>) -> Option<Dns> {
    pool.read("discover", |value| {
        let table = value.table_or("a table such as { dns = \"build.internal:8080\" }")?;
        let later = ["file", "proxmox", "libvirt"];
        let other = later.iter().any(|key| table.get(key).is_some());
        table.never_yet(&later);
        let written = table.get("dns");
        let interval = table.read("interval", Value::duration);
        if written.is_none() && !other && !table.misspells(&["dns"]) {
            let problem = Problem::absence(table.place(), "`discover` needs `dns`");
            table.problem(problem.help("write `discover = { dns = \"build.internal:8080\" }`"));
        }
        table.finish();
        let query = written?.parse(EXPECTED, query)?;
        Some(Dns { query: query.value, interval: interval.unwrap_or(INTERVAL) })
    })
}

fn query(text: &str) -> Result<Query, Misfit> {
    if text.starts_with('_') {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        return match text.contains(':') {
            true => Err(Misfit::new(format!("\"{text}\" is a service and needs no port"))
                .help("an SRV record says the port itself")),
            false if text.chars().all(is_plain) && text.matches('.').count() >= 2 => {
                Ok(Query::Services { name: text.into() })
            }
            false => Err(Misfit::new(format!("\"{text}\" is not the name of a service"))
                .help("write it as \"_http._tcp.build.internal\"")),
        };
    }
    match value::location(text) {
        Ok(value::Location { scheme: None, address: Address::Name { host, port } }) => {
            Ok(Query::Addresses { host, port })
        }
        Ok(value::Location { scheme: Some(_), .. }) => {
            Err(Misfit::new(format!("\"{text}\" has a scheme, and a name is looked up"))
                .help("write \"build.internal:8080\", and say the protocol by `protocol`"))
        }
        Ok(_) => Err(Misfit::new(format!("\"{text}\" need not be looked up"))
            .help("write it as one of the pool's `backends`")),
        Err(misfit) => Err(misfit),
    }
}
