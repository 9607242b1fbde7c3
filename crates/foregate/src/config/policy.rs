//! What sites and routes say about the exchange with the VM: time-outs, header edits, the body's limit.

use std::time::Duration;

use foregate_routing::{HeaderEdit, Policy, RouteTimeouts, Template, TemplateError, UpstreamHost};
use http::{HeaderName, HeaderValue};

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::inherit::{Layer, Said};
use super::source::Placed;

/// One layer of the policy: of [defaults.sites], a site or a route.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyLayer {
    timeouts: Said<TimeoutsLayer>,
    request_body: Said<u64>,
    request_headers: Said<Vec<HeaderEdit>>,
    response_headers: Said<Vec<HeaderEdit>>,
    upstream_host: Option<UpstreamHost>,
    /// Routes alone have one.
    pub(super) queue_priority: Option<i32>,
}

#[derive(Clone, Debug, Default)]
struct TimeoutsLayer {
    response: Said<Duration>,
    idle: Said<Duration>,
    tunnel: Said<Duration>,
}

impl PolicyLayer {
    pub(super) fn read(table: &Table<'_>) -> PolicyLayer {
        let edits = |key, side: Side| table.said(key, |value| Some(value.each(|one| edit(one, side))));
        PolicyLayer {
            timeouts: table.said("timeouts", read_timeouts),
            request_body: table.said("request_body", Value::size),
            request_headers: edits("request_headers", Side::Request),
            response_headers: edits("response_headers", Side::Response),
            upstream_host: table.read("upstream_host", read_upstream_host),
            queue_priority: None,
        }
    }

    /// The policy after all layers; `request_body` is the limit of the whole gateway.
    pub(super) fn compile(self, request_body: Option<u64>) -> Policy {
        let defaults = RouteTimeouts {
            response: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(5 * 60)),
            tunnel: Some(Duration::from_secs(60 * 60)),
        };
        let timeouts = match self.timeouts {
            Said::Nothing => defaults,
            Said::Off => RouteTimeouts { response: None, idle: None, tunnel: None },
            Said::Value(layer) => RouteTimeouts {
                response: layer.response.value_or(defaults.response),
                idle: layer.idle.value_or(defaults.idle),
                tunnel: layer.tunnel.value_or(defaults.tunnel),
            },
        };
        Policy {
            timeouts,
            request_body: self.request_body.value_or(request_body),
            request_headers: self.request_headers.value().unwrap_or_default(),
            response_headers: self.response_headers.value().unwrap_or_default(),
            upstream_host: self.upstream_host.unwrap_or(UpstreamHost::Preserve),
            queue_priority: self.queue_priority.unwrap_or(0),
        }
    }
}

impl Layer for PolicyLayer {
    fn over(self, below: &PolicyLayer) -> PolicyLayer {
        PolicyLayer {
            timeouts: self.timeouts.over(&below.timeouts),
            request_body: self.request_body.or(below.request_body.clone()),
            request_headers: self.request_headers.or(below.request_headers.clone()),
            response_headers: self.response_headers.or(below.response_headers.clone()),
            upstream_host: self.upstream_host.or_else(|| below.upstream_host.clone()),
            queue_priority: self.queue_priority.or(below.queue_priority),
        }
    }
}

impl Layer for TimeoutsLayer {
    fn over(self, below: &TimeoutsLayer) -> TimeoutsLayer {
        TimeoutsLayer {
            response: self.response.or(below.response.clone()),
            idle: self.idle.or(below.idle.clone()),
            tunnel: self.tunnel.or(below.tunnel.clone()),
        }
    }
}

fn read_timeouts(value: &Value<'_>) -> Option<TimeoutsLayer> {
    let table = value.table()?;
    let layer = TimeoutsLayer {
        response: table.said("response", Value::duration),
        idle: table.said("idle", Value::duration),
        tunnel: table.said("tunnel", Value::duration),
    };
    table.finish();
    Some(layer)
}

fn read_upstream_host(value: &Value<'_>) -> Option<UpstreamHost> {
    let text = value.text("\"preserve\", \"backend\" or a host", super::reference::Braces::Text)?;
    match text.value.as_str() {
        "preserve" => return Some(UpstreamHost::Preserve),
        "backend" => return Some(UpstreamHost::Backend),
        _ => {}
    }
    let host: Option<http::uri::Authority> = text.value.parse().ok();
    let host = host.filter(|host| !host.as_str().contains('@'));
    let Some(literal) = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) else {
        let problem = Problem::error(text.place, format!("\"{}\" is not a host", text.value));
        value.problem(
            problem.help("write \"preserve\", \"backend\", or the very name to send, such as \"app.lan\""),
        );
        return None;
    };
    Some(UpstreamHost::Literal(literal))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// "Name: value" sets, "+Name: value" adds, "-Name" removes.
fn edit(value: &Value<'_>, side: Side) -> Option<HeaderEdit> {
    let text = value.template_text()?;
    let wrong = |message: String, help: &str| {
        value.problem(Problem::error(text.place, message).help(help));
        None
    };
    const SHAPE: &str = "\"Name: value\" sets a field, \"+Name: value\" adds one, \"-Name\" removes it";
    let (sign, rest) = match text.value.split_at_checked(1) {
        Some((sign @ ("+" | "-"), rest)) => (sign, rest),
        _ => ("", text.value.as_str()),
    };
    let (name, content) = match rest.split_once(':') {
        Some((name, content)) => (name, Some(content.trim())),
        None => (rest, None),
    };
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return wrong(format!("\"{name}\" is not the name of a header field"), SHAPE);
    };
    if let Some(advice) = owned_by_the_gateway(&name, side) {
        return wrong(format!("the gateway writes `{name}` itself"), advice);
    }
    let content = match (sign, content) {
        ("-", None) => return Some(HeaderEdit::Remove(name)),
        ("-", Some(_)) => {
            return wrong("a field is removed by its name alone".to_owned(), SHAPE);
        }
        (_, None) => return wrong(format!("\"{rest}\" has no value"), SHAPE),
        (_, Some(content)) => content,
    };
    if HeaderValue::from_str(content).is_err() {
        return wrong(
            format!("the value of `{name}` holds a character that no header field may"),
            "header fields hold visible characters, spaces and tabs; no line breaks",
        );
    }
    let template = template(value, &Placed::new(content.to_owned(), text.place))?;
    Some(if sign == "+" { HeaderEdit::Add(name, template) } else { HeaderEdit::Set(name, template) })
}

/// Fields whose meaning is the message's framing or its connection, and what to do instead of editing them.
fn owned_by_the_gateway(name: &HeaderName, side: Side) -> Option<&'static str> {
    const FRAMING: &str = "it follows from the message; remove this edit";
    const HOP: &str = "it belongs to one connection and never passes the gateway; remove this edit";
    match (name.as_str(), side) {
        ("host", Side::Request) => Some("write `upstream_host = \"...\"` to change what the VM is asked for"),
        ("content-length" | "transfer-encoding" | "trailer", _) => Some(FRAMING),
        ("connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade" | "http2-settings", _) => {
            Some(HOP)
        }
        ("alt-svc", Side::Response) => {
            Some("the section [http3] says what is advertised, and `http3 = false` takes a site out")
        }
        _ => None,
    }
}

/// Compiles a string with `{variables}`, and says where a wrong one stands.
pub(super) fn template(value: &Value<'_>, text: &Placed<String>) -> Option<Template> {
    let error = match Template::parse(&text.value) {
        Ok(template) => return Some(template),
        Err(error) => error,
    };
    const BRACES: &str = "a literal brace is written `{{` or `}}`";
    let (place, help) = match &error {
        TemplateError::Unknown { name, suggestion: Some(word) } => {
            (value.place_of(&format!("{{{name}}}")), format!("did you mean `{{{word}}}`?"))
        }
        TemplateError::Unknown { name, .. } => (value.place_of(&format!("{{{name}}}")), BRACES.to_owned()),
        _ => (text.place, BRACES.to_owned()),
    };
    value.problem(Problem::error(place, error.to_string()).help(help));
    None
}
