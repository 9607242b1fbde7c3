//! Answers as people read them.

use std::fmt::Write as _;

use serde_json::Value;

/// Lines of cells, each column as wide as it must be.
#[derive(Default)]
struct Columns(Vec<Vec<String>>);

impl Columns {
    fn line(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.0.push(cells.into_iter().map(Into::into).collect());
    }

    fn show(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for line in &self.0 {
            for (column, cell) in line.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut text = String::new();
        for line in &self.0 {
            let mut shown = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                // Writing to a String does not fail.
                _ = write!(shown, "{cell:width$}  ");
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A value as a word.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

pub(super) fn status(value: &Value) -> String {
    let mut text = String::new();
    if let Some(difference) = at(value, "/configuration/differs_from_file").as_str() {
        _ = writeln!(text, "running is not the file: {difference}");
    }
    if let Some(seconds) = at(value, "/configuration/confirm_within_s").as_u64() {
        _ = writeln!(text, "waits for `foregate confirm`, and goes back in {seconds} s without it");
    }
    if let Some(why) = at(value, "/configuration/goes_back").as_str() {
        _ = writeln!(
            text,
            "goes back to the configuration before: {why}; the log says what keeps it from that"
        );
    }
    for what in list(at(value, "/configuration/waits_for_restart")) {
        _ = writeln!(text, "waits for a restart: {}", word(what));
    }
    if let Some(seconds) = at(value, "/predecessor_drains_s").as_u64() {
        _ = writeln!(text, "the process before this one drains, for at most {seconds} s");
    }
    for said in list(at(value, "/overrides")) {
        let place = format!("{}/{}", word(at(said, "/pool")), word(at(said, "/backend")));
        for key in ["duty", "weight"] {
            let what = at(said, &format!("/{key}"));
            if !what.is_null() {
                let what = if key == "weight" { format!("weight {}", word(what)) } else { word(what) };
                _ = writeln!(text, "override: {place} {what}, by {}", word(at(said, "/by")));
            }
        }
    }
    let mut columns = Columns::default();
    let (file, number) = (word(at(value, "/configuration/file")), word(at(value, "/configuration/number")));
    columns.line(["state".to_owned(), word(at(value, "/state"))]);
    columns.line([
        "version".to_owned(),
        format!("{}, process {}", word(at(value, "/version")), word(at(value, "/pid"))),
    ]);
    columns.line(["since".to_owned(), word(at(value, "/started"))]);
    columns.line(["configuration".to_owned(), format!("{number}, from {file}")]);
    for (index, listener) in list(at(value, "/listeners")).iter().enumerate() {
        columns.line([if index == 0 { "listens on" } else { "" }.to_owned(), word(listener)]);
    }
    let connections = format!(
        "{} of at most {}",
        word(at(value, "/connections/open")),
        word(at(value, "/connections/limit"))
    );
    columns.line(["connections".to_owned(), connections]);
    columns.line(["sites".to_owned(), word(at(value, "/sites"))]);
    let pools =
        format!("{}, {} of them usable", word(at(value, "/pools/all")), word(at(value, "/pools/usable")));
    columns.line(["pools".to_owned(), pools]);
    columns.line(["workers".to_owned(), word(at(value, "/workers"))]);
    text + &columns.show()
}

pub(super) fn sites(value: &Value) -> String {
    let mut columns = Columns::default();
    columns.line(["SITE", "HOSTS", "ROUTE", "ACTION"]);
    for site in list(value) {
        let hosts: Vec<String> = list(at(site, "/hosts")).iter().map(word).collect();
        for (index, route) in list(at(site, "/routes")).iter().enumerate() {
            let action = at(route, "/action").as_object().and_then(|action| action.iter().next());
            let action = action.map_or_else(String::new, |(kind, what)| match what {
                Value::Bool(_) => kind.clone(),
                Value::Array(pools) => {
                    format!("{kind} {}", pools.iter().map(word).collect::<Vec<_>>().join(", "))
                }
                what => format!("{kind} {}", word(what)),
            });
            let first = index == 0;
            columns.line([
                if first { word(at(site, "/name")) } else { String::new() },
                if first { hosts.join(" ") } else { String::new() },
                word(at(route, "/name")),
                action,
            ]);
        }
    }
    columns.show()
}

pub(super) fn pools(value: &Value) -> String {
    let mut columns = Columns::default();
    columns.line(["BACKEND", "ADDRESS", "STATE", "WEIGHT", "REQUESTS", "LATENCY", "REASON"]);
    list(value).iter().for_each(|pool| add_pool(&mut columns, pool));
    columns.show()
}

pub(super) fn pool(value: &Value) -> String {
    pools(&Value::Array(vec![value.clone()]))
}

fn add_pool(columns: &mut Columns, pool: &Value) {
    for backend in list(at(pool, "/backends")) {
        let mut state = word(at(backend, "/state"));
        if at(backend, "/set_aside") == &Value::Bool(true) {
            state.push_str(", set aside");
        }
        match at(backend, "/duty").as_str() {
            Some("work") | None => {}
            Some(duty) => state = format!("{state}, {duty}"),
        }
        let overridden =
            if at(backend, "/weight_overridden") == &Value::Bool(true) { " (override)" } else { "" };
        let latency = at(backend, "/latency_ms").as_f64().filter(|latency| *latency > 0.0);
        columns.line([
            format!("{}/{}", word(at(pool, "/name")), word(at(backend, "/name"))),
            word(at(backend, "/address")),
            state,
            format!("{}{overridden}", word(at(backend, "/weight"))),
            word(at(backend, "/requests")),
            latency.map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1} ms")),
            word(at(backend, "/reason")),
        ]);
    }
}

/// The names of all backends, each with its pool's.
pub(super) fn backends(pools: &Value) -> Vec<(String, String)> {
    let of = |pool: &Value| {
        let name = word(at(pool, "/name"));
        list(at(pool, "/backends"))
            .iter()
            .map(|one| (name.clone(), word(at(one, "/name"))))
            .collect::<Vec<_>>()
    };
    list(pools).iter().flat_map(of).collect()
}

/// Those of whom an operator has said something.
pub(super) fn overridden(status: &Value) -> Vec<(String, String)> {
    let of = |said: &Value| (word(at(said, "/pool")), word(at(said, "/backend")));
    list(at(status, "/overrides")).iter().map(of).collect()
}

/// How a pool is after something was said of a backend; of one that has gone, that it was done.
pub(super) fn instructed(value: &Value) -> String {
    if at(value, "/done").is_null() { pool(value) } else { done(value) }
}

pub(super) fn connections(value: &Value) -> String {
    format!("{} clients are connected, of at most {}\n", word(at(value, "/open")), word(at(value, "/limit")))
}

pub(super) fn workers(value: &Value) -> String {
    let mut columns = Columns::default();
    columns.line(["WORKER", "REQUESTS"]);
    for worker in list(value) {
        columns.line([word(at(worker, "/number")), word(at(worker, "/requests"))]);
    }
    columns.show()
}

/// The files, one after the other; what is between them are comments.
pub(super) fn config(value: &Value) -> String {
    let file =
        |file: &Value| format!("# {}\n{}\n", word(at(file, "/name")), word(at(file, "/text")).trim_end());
    list(at(value, "/files")).iter().map(file).collect()
}

pub(super) fn certificates(value: &Value) -> String {
    let mut columns = Columns::default();
    columns.line(["SHOWN FOR", "ISSUER", "UNTIL", "DAYS LEFT", "RENEWED BY", "SHA-256"]);
    for certificate in list(value) {
        let shown_for: Vec<String> = list(at(certificate, "/shown_for")).iter().map(word).collect();
        // Known only where it can be read.
        let known = |path: &str| match at(certificate, path) {
            Value::Null => "?".to_owned(),
            value => word(value),
        };
        let renewed_by = match (word(at(certificate, "/source")).as_str(), at(certificate, "/cert")) {
            ("acme", _) => match (at(certificate, "/order/next"), at(certificate, "/order/trouble")) {
                (Value::Null, _) => "ACME, being ordered".to_owned(),
                (next, Value::Null) => format!("ACME, on {}", word(next)),
                (next, trouble) => format!("ACME, again on {}: {}", word(next), word(trouble)),
            },
            (_, Value::Null) => "the gateway".to_owned(),
            (_, file) => format!("whoever writes {}", word(file)),
        };
        let names: Vec<String> = list(at(certificate, "/names")).iter().map(word).collect();
        columns.line([
            match shown_for.is_empty() {
                true => format!("(none yet for {})", names.join(" ")),
                false => shown_for.join(" "),
            },
            common_name(&known("/issuer")).to_owned(),
            known("/not_after"),
            known("/expires_in_days"),
            renewed_by,
            known("/sha256"),
        ]);
    }
    columns.show()
}

/// The common name of a distinguished name, or all of it.
fn common_name(name: &str) -> &str {
    name.split(", ").find_map(|part| part.strip_prefix("CN=")).unwrap_or(name)
}

pub(super) fn change(value: &Value) -> String {
    let mut text = format!("configuration {} is served\n", word(at(value, "/number")));
    for line in list(at(value, "/changes")) {
        _ = writeln!(text, "  {}", word(line));
    }
    for what in list(at(value, "/waits_for_restart")) {
        _ = writeln!(text, "waits for a restart: {}", word(what));
    }
    if let Some(seconds) = at(value, "/confirm_within_s").as_u64() {
        _ = writeln!(text, "goes back in {seconds} s unless `foregate confirm` comes");
    }
    text
}

pub(super) fn done(value: &Value) -> String {
    word(at(value, "/done"))
}

pub(super) fn history(value: &Value) -> String {
    let mut columns = Columns::default();
    columns.line(["NUMBER", "TIME", "HOW", "BY", ""]);
    for entry in list(value) {
        let is = |key: &str| at(entry, key) == &Value::Bool(true);
        let mut notes = Vec::new();
        notes.extend(is("/running").then_some("is served"));
        notes.extend(is("/refused").then_some("was rolled back"));
        notes.extend((!is("/intact")).then_some("NOT AS IT WAS WRITTEN"));
        let cell = |key: &str| word(at(entry, key));
        columns.line([cell("/number"), cell("/time"), cell("/how"), cell("/by"), notes.join(", ")]);
    }
    columns.show()
}

pub(super) fn diff(value: &Value) -> String {
    let mut text = format!("{} -> {}\n", word(at(value, "/before")), word(at(value, "/after")));
    let changes = list(at(value, "/changes"));
    if changes.is_empty() {
        text.push_str("  no difference\n");
    }
    for line in changes {
        _ = writeln!(text, "  {}", word(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_begins_with_what_an_operator_must_know() {
        let value = json!({
            "state": "serving", "version": "1", "pid": 7, "started": "2026-01-01T00:00:00Z",
            "configuration": {
                "file": "/etc/f.toml", "number": 3, "differs_from_file": "one difference",
                "confirm_within_s": 59, "waits_for_restart": ["server.workers 1 -> 2"],
            },
            "overrides": [{ "pool": "api", "backend": "vm1", "duty": "drain", "weight": 2, "by": "uid 0" }],
            "listeners": ["http://a", "https://b"], "connections": { "open": 1, "limit": 2 },
            "sites": 1, "pools": { "all": 1, "usable": 1 }, "workers": 2,
        });
        let text = status(&value);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "running is not the file: one difference");
        assert_eq!(lines[1], "waits for `foregate confirm`, and goes back in 59 s without it");
        assert_eq!(lines[2], "waits for a restart: server.workers 1 -> 2");
        assert_eq!(lines[3], "override: api/vm1 drain, by uid 0");
        assert_eq!(lines[4], "override: api/vm1 weight 2, by uid 0");
        assert_eq!(lines[5], "state          serving");
        assert_eq!(lines[10], "               https://b");
    }

    #[test]
    fn a_backend_is_one_line() {
        let pool = json!({ "name": "api", "backends": [{
            "name": "vm1", "address": "10.0.0.1:80", "state": "up", "duty": "drain", "set_aside": true, "weight": 3,
            "weight_overridden": true, "requests": 4, "latency_ms": 1.25, "reason": "said so",
        }] });
        let text = super::pool(&pool);
        assert_eq!(
            text.lines()
                .nth(1)
                .unwrap()
                .split("  ")
                .filter(|cell| !cell.is_empty())
                .map(str::trim)
                .collect::<Vec<_>>(),
            ["api/vm1", "10.0.0.1:80", "up, set aside, drain", "3 (override)", "4", "1.2 ms", "said so"]
        );
        assert_eq!(backends(&json!([pool])), [("api".to_owned(), "vm1".to_owned())]);
    }
}
