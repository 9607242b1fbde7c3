//! What can be asked, and how it is written: method, path, query and body.

use std::time::Duration;

use foregate_routing::Duty;
use http::Method;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::config;
use crate::control::{Request, Terms};

/// What describes it all, for programs.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// What a path and a method stand for.
pub(super) enum Found {
    Document,
    /// What reads the body.
    Request(Read),
}

type Read = Box<dyn FnOnce(&[u8]) -> Result<Request, String>>;

pub(super) enum NotFound {
    Path,
    /// Which there would be.
    Method(String),
}

/// The request of this line.
pub(super) fn find(method: &Method, path: &str, query: Option<&str>) -> Result<Found, NotFound> {
    let parts: Vec<String> = path
        .split('/')
        .skip(1)
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let is = |wanted: Method| method == wanted;
    let plain = |request: Request| Ok(Found::Request(Box::new(|_| Ok(request))));
    let number = |text: &str| text.parse().map_err(|_| NotFound::Path);
    let wrong = |allowed: &str| Err(NotFound::Method(allowed.to_owned()));
    let query = query.unwrap_or_default().to_owned();
    match parts.as_slice() {
        ["openapi.json"] if is(Method::GET) => Ok(Found::Document),
        ["status"] if is(Method::GET) => plain(Request::Status),
        ["sites"] if is(Method::GET) => plain(Request::Sites),
        ["pools"] if is(Method::GET) => plain(Request::Pools),
        ["certificates"] if is(Method::GET) => plain(Request::Certificates),
        ["workers"] if is(Method::GET) => plain(Request::Workers),
        ["connections"] if is(Method::GET) => plain(Request::Connections),
        ["history"] if is(Method::GET) => plain(Request::History),
        ["history", entry] if is(Method::GET) => plain(Request::Entry(number(entry)?)),
        ["diff"] if is(Method::GET) => Ok(Found::Request(Box::new(move |_| {
            let options = Options::of_query(&query, &["from", "to"])?;
            Ok(Request::Diff(options.number("from")?, options.number("to")?))
        }))),
        ["config"] if is(Method::GET) => plain(Request::Config),
        ["config"] if is(Method::PUT) => Ok(Found::Request(Box::new(move |body| {
            let options = Options::of_query(&query, &["save", "force", "confirm", "guard"])?;
            Ok(Request::Put { text: text(body)?, save: options.switch("save")?, terms: options.terms()? })
        }))),
        ["config", "validate"] if is(Method::POST) => {
            Ok(Found::Request(Box::new(|body| Ok(Request::Validate(text(body)?)))))
        }
        ["reload"] if is(Method::POST) => Ok(Found::Request(Box::new(|body| {
            let options = Options::of_body(body, &["force", "confirm", "guard"])?;
            Ok(Request::Reload(options.terms()?))
        }))),
        ["confirm"] if is(Method::POST) => plain(Request::Confirm),
        ["upgrade"] if is(Method::POST) => plain(Request::Upgrade),
        ["rollback"] if is(Method::POST) => Ok(Found::Request(Box::new(|body| {
            let options = Options::of_body(body, &["to"])?;
            Ok(Request::Rollback(options.number("to")?))
        }))),
        ["pools", pool] if is(Method::GET) => plain(Request::Pool((*pool).to_owned())),
        ["pools", pool, "backends", backend, action] => {
            let (pool, backend) = ((*pool).to_owned(), (*backend).to_owned());
            match (*action, is(Method::POST)) {
                ("drain", true) => plain(Request::Duty { pool, backend, duty: Some(Duty::Drain) }),
                ("maintenance", true) => plain(Request::Duty { pool, backend, duty: Some(Duty::Off) }),
                ("undrain", true) => plain(Request::Duty { pool, backend, duty: None }),
                ("weight", true) => Ok(Found::Request(Box::new(|body| {
                    let options = Options::of_body(body, &["weight"])?;
                    let weight = options.number("weight")?.map(u32::try_from).transpose();
                    let weight = weight.map_err(|_| "`weight` is too large".to_owned())?;
                    Ok(Request::Weight { pool, backend, weight })
                }))),
                ("drain" | "maintenance" | "undrain" | "weight", false) => wrong("POST"),
                _ => Err(NotFound::Path),
            }
        }
        ["config"] => wrong("GET, PUT"),
        ["config", "validate"] | ["reload" | "confirm" | "rollback" | "upgrade"] => wrong("POST"),
        [
            "openapi.json" | "status" | "sites" | "pools" | "certificates" | "workers" | "connections"
            | "history" | "diff",
        ]
        | ["history" | "pools", _] => wrong("GET"),
        _ => Err(NotFound::Path),
    }
}

fn text(body: &[u8]) -> Result<String, String> {
    String::from_utf8(body.to_vec()).map_err(|_| "the body must be a configuration: TOML in UTF-8".to_owned())
}

/// What stands in a query, or in a body of JSON.
struct Options(Vec<(String, Value)>);

impl Options {
    fn of_query(query: &str, known: &[&str]) -> Result<Options, String> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            (key.to_owned(), Value::String(percent_decode_str(value).decode_utf8_lossy().into_owned()))
        });
        Options(pairs.collect()).only(known)
    }

    /// None at all is no option.
    fn of_body(body: &[u8], known: &[&str]) -> Result<Options, String> {
        if body.trim_ascii().is_empty() {
            return Ok(Options(Vec::new()));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Options(object.into_iter().collect()).only(known),
            Ok(_) => Err("the body must be a JSON object".to_owned()),
            Err(error) => Err(format!("the body must be a JSON object: {error}")),
        }
    }

    fn only(self, known: &[&str]) -> Result<Options, String> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((unknown, _)) => Err(format!("there is no `{unknown}` here; there is {}", known.join(", "))),
            None => Ok(self),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    fn terms(&self) -> Result<Terms, String> {
        let (force, guard) = (self.switch("force")?, self.switch("guard")?);
        let confirm = self.duration("confirm")?;
        if guard && confirm.is_none() {
            return Err("`guard` goes with `confirm`: for how long is it to be watched?".to_owned());
        }
        Ok(Terms { force, confirm, guard })
    }

    fn switch(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(_) => Err(format!("`{key}` must be true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64(),
        };
        number.map(Some).ok_or_else(|| format!("`{key}` must be a number"))
    }

    fn duration(&self, key: &str) -> Result<Option<Duration>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let duration = value.as_str().and_then(config::duration).filter(|duration| !duration.is_zero());
        duration.map(Some).ok_or_else(|| format!("`{key}` must be a time such as \"60s\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, target: &str, body: &str) -> Result<Request, String> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        match find(&method, path, query) {
            Ok(Found::Request(read)) => read(body.as_bytes()),
            Ok(Found::Document) => Err("the document".to_owned()),
            Err(NotFound::Path) => Err("no path".to_owned()),
            Err(NotFound::Method(allowed)) => Err(format!("only {allowed}")),
        }
    }

    #[test]
    fn the_document_and_the_routes_are_one() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let mut count = 0;
        for (path, item) in paths {
            let concrete = path.replace("{number}", "1").replace("{pool}", "a").replace("{backend}", "b");
            for method in [Method::GET, Method::PUT, Method::POST] {
                let written = item.get(method.as_str().to_ascii_lowercase()).is_some();
                let found =
                    !matches!(find(&method, &concrete, None), Err(NotFound::Method(_) | NotFound::Path));
                assert_eq!(written, found, "{method} {path}");
                count += usize::from(found);
            }
        }
        // One more route is one more line in the document.
        assert_eq!(count, 22);
    }

    #[test]
    fn names_may_hold_anything() {
        let drain = read(Method::POST, "/pools/sites.a.test%2Fapi/backends/10.0.0.1%3A80/drain", "").unwrap();
        let Request::Duty { pool, backend, duty: Some(Duty::Drain) } = drain else { panic!("{drain:?}") };
        assert_eq!((pool.as_str(), backend.as_str()), ("sites.a.test/api", "10.0.0.1:80"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (method, target, body, complaint) in [
            (Method::POST, "/reload", "{\"confirm\": \"soon\"}", "`confirm` must be a time"),
            (Method::POST, "/reload", "{\"confirm\": \"0s\"}", "`confirm` must be a time"),
            (Method::POST, "/reload", "{\"forc\": true}", "there is no `forc`"),
            (Method::POST, "/reload", "{\"guard\": true}", "`guard` goes with `confirm`"),
            (Method::POST, "/reload", "[]", "must be a JSON object"),
            (Method::POST, "/rollback", "{\"to\": -1}", "`to` must be a number"),
            (Method::POST, "/pools/a/backends/b/weight", "{\"weight\": 4294967296}", "too large"),
            (Method::POST, "/pools/a/backends/b/eject", "", "no path"),
            (Method::GET, "/pools/a/backends/b/drain", "", "only POST"),
            (Method::PUT, "/config?save=yes", "", "`save` must be true or false"),
            (Method::DELETE, "/config", "", "only GET, PUT"),
            (Method::GET, "/history/x", "", "no path"),
            (Method::GET, "/diff?from=x", "", "`from` must be a number"),
            (Method::GET, "/", "", "no path"),
        ] {
            let said = read(method.clone(), target, body).unwrap_err();
            assert!(said.contains(complaint), "{method} {target}: {said}");
        }
    }
}
