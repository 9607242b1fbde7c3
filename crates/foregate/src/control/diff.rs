//! What is different between two configurations, in the words of the configuration: `pool api: vm2 weight 1 -> 3`.

use toml::{Table, Value};

use crate::config::File;

/// One step to a place in a configuration.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    /// The entry of a list that is called so.
    Entry(String),
}

/// One line for each difference, in the order of the files.
pub(crate) fn diff(before: &[File], after: &[File]) -> Vec<String> {
    let mut comparison = Comparison::default();
    comparison.tables(&whole(before), &whole(after));
    comparison.lines
}

/// The files as one, as they are served. What is not TOML is nothing.
fn whole(files: &[File]) -> Table {
    let mut whole = Table::new();
    for file in files {
        let table: Table = file.text.parse().unwrap_or_default();
        merge(&mut whole, table);
    }
    whole
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (Some(Value::Array(known)), Value::Array(more)) => known.extend(more),
            (_, value) => _ = into.insert(key, value),
        }
    }
}

#[derive(Default)]
struct Comparison {
    at: Vec<Step>,
    lines: Vec<String>,
}

impl Comparison {
    fn tables(&mut self, before: &Table, after: &Table) {
        let new = after.keys().filter(|key| !before.contains_key(*key));
        for key in before.keys().chain(new) {
            self.within(Step::Key(key.clone()), |one| one.values(before.get(key), after.get(key)));
        }
    }

    fn values(&mut self, before: Option<&Value>, after: Option<&Value>) {
        match (before, after) {
            (Some(before), Some(after)) if before == after => {}
            (Some(Value::Table(before)), Some(Value::Table(after))) => self.tables(before, after),
            (Some(Value::Array(before)), Some(Value::Array(after))) => {
                if before.iter().chain(after).any(Value::is_table) {
                    self.entries(before, after);
                } else {
                    self.lists(before, after);
                }
            }
            // A table that comes or goes is told by what is in it, but for those that have a name.
            (None, Some(Value::Table(after))) if !self.is_named() => self.tables(&Table::new(), after),
            (Some(Value::Table(before)), None) if !self.is_named() => self.tables(before, &Table::new()),
            (None, Some(_)) if self.is_named() => self.tell(": added"),
            (Some(_), None) if self.is_named() => self.tell(": removed"),
            (before, after) => {
                let said =
                    |value: Option<&Value>| value.map_or_else(|| "(default)".to_owned(), Value::to_string);
                self.tell(&format!(" {} -> {}", said(before), said(after)));
            }
        }
    }

    /// Lists whose entries have names, or something that can stand for one.
    fn entries(&mut self, before: &[Value], after: &[Value]) {
        let (before, after) = (named(before), named(after));
        let order = |of: &[(String, Table)], other: &[(String, Table)]| -> Vec<String> {
            let shared = |name: &&String| other.iter().any(|(known, _)| known == *name);
            of.iter().map(|(name, _)| name).filter(shared).cloned().collect()
        };
        if order(&before, &after) != order(&after, &before) {
            self.tell(": another order");
        }
        let find = |list: &[(String, Table)], name: &str| {
            list.iter().find(|(known, _)| known == name).map(|(_, table)| Value::Table(table.clone()))
        };
        let new = after.iter().filter(|(name, _)| find(&before, name).is_none());
        for (name, _) in before.iter().chain(new) {
            let (old, new) = (find(&before, name), find(&after, name));
            self.within(Step::Entry(name.clone()), |one| one.values(old.as_ref(), new.as_ref()));
        }
    }

    fn lists(&mut self, before: &[Value], after: &[Value]) {
        let went = before.iter().filter(|value| !after.contains(value)).map(|value| format!("-{value}"));
        let came = after.iter().filter(|value| !before.contains(value)).map(|value| format!("+{value}"));
        let changes: Vec<String> = came.chain(went).collect();
        match changes.is_empty() {
            true => self.tell(": another order"),
            false => self.tell(&format!(" {}", changes.join(" "))),
        }
    }

    fn within(&mut self, step: Step, compare: impl FnOnce(&mut Comparison)) {
        self.at.push(step);
        compare(self);
        self.at.pop();
    }

    /// Whether what stands here has a name, so that it comes and goes as a whole.
    fn is_named(&self) -> bool {
        match self.at.as_slice() {
            [.., Step::Entry(_)] => true,
            [Step::Key(section), Step::Key(_)] => {
                ["sites", "pools", "filters", "forwards"].contains(&section.as_str())
            }
            _ => false,
        }
    }

    fn tell(&mut self, what: &str) {
        let (place, rest) = match self.at.as_slice() {
            [Step::Key(section), Step::Key(name), rest @ ..] if section == "pools" => {
                (format!("pool {name}"), rest)
            }
            [Step::Key(section), Step::Key(name), rest @ ..] if section == "sites" => {
                (format!("site {name}"), rest)
            }
            [Step::Key(defaults), Step::Key(of), rest @ ..] if defaults == "defaults" => {
                (format!("defaults of {of}"), rest)
            }
            [Step::Key(section), rest @ ..] => (section.clone(), rest),
            _ => (String::new(), &[][..]),
        };
        let mut words = String::new();
        for (index, step) in rest.iter().enumerate() {
            match step {
                // The backends of a pool are what one thinks of anyway.
                Step::Key(key) if key == "backends" && index + 1 < rest.len() => {}
                Step::Key(key) if key == "routes" && index + 1 < rest.len() => words.push_str("route"),
                Step::Key(key) => {
                    let after_key = index > 0 && matches!(rest.get(index - 1), Some(Step::Key(_)));
                    words.push_str(if words.is_empty() {
                        ""
                    } else if after_key {
                        "."
                    } else {
                        " "
                    });
                    words.push_str(key);
                }
                Step::Entry(name) => {
                    words.push_str(if words.is_empty() { "" } else { " " });
                    words.push_str(name);
                }
            }
        }
        let line = match (words.as_str(), what.strip_prefix(':')) {
            ("", Some(what)) => format!("{place}:{what}"),
            ("", None) => format!("{place}:{what}"),
            (words, Some(what)) => format!("{place}: {words}{what}"),
            (words, None) => format!("{place}: {words}{what}"),
        };
        self.lines.push(line);
    }
}

/// Each entry with its name: what it calls itself, else what it is about, else its place.
fn named(list: &[Value]) -> Vec<(String, Table)> {
    let mut named: Vec<(String, Table)> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let table = match value {
            Value::Table(table) => table.clone(),
            // A backend may be written as its address alone.
            other => Table::from_iter([("address".to_owned(), other.clone())]),
        };
        let name =
            ["name", "address", "paths", "cert", "pool"].iter().find_map(|key| table.get(*key)).map(plain);
        let mut name = name.unwrap_or_else(|| format!("#{}", index + 1));
        if named.iter().any(|(known, _)| *known == name) {
            name = format!("{name} (#{})", index + 1);
        }
        named.push((name, table));
    }
    named
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(before: &str, after: &str) -> Vec<String> {
        let file = |text: &str| [File { name: "foregate.toml".to_owned(), text: text.to_owned() }];
        diff(&file(before), &file(after))
    }

    #[test]
    fn differences_are_told_in_the_words_of_the_configuration() {
        let before = r#"
            [server]
            https = 443
            limits = { connections = 100 }
            [sites.shop]
            hosts = ["a.test", "b.test"]
            routes = [{ paths = "/api/", pool = "api" }, { paths = ["/x", "/y"], pool = "api" }]
            [pools.api]
            backends = [{ address = "10.0.0.1:80", name = "vm1" }, { address = "10.0.0.2:80", name = "vm2", weight = 1 }, "10.0.0.3:80"]
            [pools.old]
            backends = ["10.0.0.9:80"]
        "#;
        let after = r#"
            [server]
            https = [443, 8443]
            limits = { connections = 200, connections_per_ip = 5 }
            [sites.shop]
            hosts = ["b.test", "c.test"]
            routes = [{ paths = ["/x", "/y"], pool = "api" }, { paths = "/api/", pool = "api", timeouts = { response = "5s" } }]
            [pools.api]
            balance = "random"
            backends = [{ address = "10.0.0.1:80", name = "vm1", weight = 2 }, { address = "10.0.0.2:80", name = "vm2", weight = 3 }, "10.0.0.4:80"]
            [pools.new]
            backends = ["10.0.0.9:80"]
        "#;
        assert_eq!(
            between(before, after),
            [
                "pool api: vm1 weight (default) -> 2",
                "pool api: vm2 weight 1 -> 3",
                "pool api: 10.0.0.3:80 removed",
                "pool api: 10.0.0.4:80 added",
                "pool api: balance (default) -> \"random\"",
                "pool old: removed",
                "pool new: added",
                "server: https 443 -> [443, 8443]",
                "server: limits.connections 100 -> 200",
                "server: limits.connections_per_ip (default) -> 5",
                "site shop: hosts +\"c.test\" -\"a.test\"",
                "site shop: routes another order",
                "site shop: route /api/ timeouts.response (default) -> \"5s\"",
            ]
        );
        assert_eq!(between(before, before), [""; 0]);
    }

    #[test]
    fn files_are_compared_as_one() {
        let file = |name: &str, text: &str| File { name: name.to_owned(), text: text.to_owned() };
        let one = [file("a", "[pools.a]\nbackends = [\"1\"]\n[pools.b]\nbackends = [\"2\"]")];
        let two = [
            file("a", "include = \"b\"\n[pools.a]\nbackends = [\"1\"]"),
            file("b", "[pools.b]\nbackends = [\"2\", \"3\"]"),
        ];
        assert_eq!(diff(&one, &two), ["pool b: backends +\"3\"", "include: (default) -> \"b\""]);
    }
}
