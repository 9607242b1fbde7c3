//! The page of the demo VMs. It stands in `page.html`, with `{{NAME}}` where something is filled in.

use std::fmt::Write as _;

use http::HeaderValue;

use super::vm::{Seen, VMS, Vm};

const TEMPLATE: &str = include_str!("page.html");

/// The page brings its style and script with it and fetches from its own origin only.
pub(super) const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'",
);

pub(super) fn render(vm: Vm, seen: &Seen) -> String {
    let mut rows = String::new();
    for (name, value) in &seen.headers {
        // Writing to a String does not fail.
        let _ = writeln!(rows, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    let mut page = String::with_capacity(TEMPLATE.len() + rows.len());
    let mut rest = TEMPLATE;
    // In one pass, so that nothing a client sent is taken for a place to fill.
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let Some((name, after)) = after.split_once("}}") else { break };
        match name {
            "VM" => page.push_str(vm.name),
            "COLOUR" => page.push_str(vm.colour),
            "PROTOCOL" => page.push_str(seen.protocol),
            "TLS" => page.push_str(if seen.secure { "with TLS" } else { "without TLS" }),
            "REQUEST" => page.push_str(&escape(&format!("{} {}", seen.method, seen.path))),
            "CLIENT" => page.push_str(&escape(&seen.client)),
            "HEADERS" => page.push_str(&rows),
            "COLOURS" => page.push_str(&colours()),
            _ => {}
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

/// All VMs and their colours, for the script.
fn colours() -> String {
    serde_json::Value::Object(VMS.iter().map(|vm| (vm.name.to_owned(), vm.colour.into())).collect())
        .to_string()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
