//! `when` of a route: what else must hold beside the path.

use foregate_routing::{Condition, TextMatch, When};
use http::{HeaderName, Method};

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::routes::last_line;
use super::value::{self, Misfit};

pub(super) fn read(table: Table<'_>) -> When {
    let when = When {
        methods: table.read("methods", |value| value.at_least_one(method)).unwrap_or_default(),
        headers: conditions(&table, "headers", header_name),
        cookies: conditions(&table, "cookies", |name| cookie_name(name).map(Box::from)),
        query: conditions(&table, "query", |name| Ok(Box::from(name))),
        client_ips: table
            .read("client_ips", |value| {
                value.at_least_one(|one| Some(one.parse("an address or network", value::network)?.value))
            })
            .unwrap_or_default(),
        client_cert: table.read("client_cert", Value::bool),
    };
    table.finish();
    when
}

fn method(value: &Value<'_>) -> Option<Method> {
    let method = value.parse("a method such as \"GET\"", |text| {
        let upper = text.to_ascii_uppercase();
        if upper != text {
            let misfit = Misfit::new(format!("\"{text}\" is no method; methods are written in capitals"));
            return Err(misfit.help(format!("write \"{upper}\"")));
        }
        Method::from_bytes(text.as_bytes()).map_err(|_| Misfit::new(format!("\"{text}\" is not a method")))
    })?;
    Some(method.value)
}

/// A table of names and what is asked of each: a text, "~" and a regular expression, or true and false.
fn conditions<N>(
    table: &Table<'_>,
    key: &'static str,
    name: impl Fn(&str) -> Result<N, Misfit>,
) -> Vec<(N, Condition)> {
    let Some(table) = table.table(key) else { return Vec::new() };
    let mut conditions = Vec::new();
    for (written, value) in table.entries() {
        let name = match name(written.value) {
            Ok(name) => name,
            Err(misfit) => {
                table.problem(Problem::misfit(written.place, misfit));
                continue;
            }
        };
        conditions.extend(condition(&value).map(|condition| (name, condition)));
    }
    conditions
}

fn condition(value: &Value<'_>) -> Option<Condition> {
    const EXPECTED: &str =
        "a text, \"~\" and a regular expression, true (there is one) or false (there is none)";
    if !value.is_string() {
        return value
            .switch(EXPECTED)
            .map(|there| if there { Condition::Present } else { Condition::Absent });
    }
    let matcher = value.parse(EXPECTED, |text| match text.strip_prefix('~') {
        None => Ok(TextMatch::Equals(text.into())),
        Some(pattern) => regex::Regex::new(pattern)
            .map(TextMatch::Regex)
            .map_err(|error| Misfit::new(last_line(&error.to_string()))),
    })?;
    Some(Condition::Matches(matcher.value))
}

pub(super) fn header_name(name: &str) -> Result<HeaderName, Misfit> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Misfit::new(format!("\"{name}\" is not the name of a header field")))
}

/// Cookie names are tokens (RFC 6265, section 4.1.1), and so are header names.
pub(super) fn cookie_name(name: &str) -> Result<&str, Misfit> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(_) => Ok(name),
        Err(_) => Err(Misfit::new(format!("\"{name}\" is not the name of a cookie"))),
    }
}
