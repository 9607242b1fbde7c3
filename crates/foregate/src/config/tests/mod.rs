//! The configuration as a whole: texts in, errors with their places or a snapshot out.

mod errors;
mod failing;
mod files;
mod served;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use foregate_routing::{Action, Policy, Pool, RequestView, Route, Site};
use http::{HeaderMap, Method};

use super::*;

/// The two lines that every text here begins with.
const HEAD: &str = "server.state_dir = \"/nonexistent\"\ntls.self_signed = true\n";

/// A site that does something, for texts that are about something else.
const SITE: &str = "[sites.\"a.example.com\"]\npool = \"10.0.0.1:80\"\n";

fn load_text(body: &str) -> Result<Loaded, Report> {
    load_str("foregate.toml", &format!("{HEAD}{body}"), Path::new("/nonexistent"), None)
}

fn served(body: &str) -> Loaded {
    load_text(body).unwrap_or_else(|report| panic!("{report}"))
}

/// Each error as "LINE:COLUMN message | help", with lines counted from the first of `body`.
fn complaints(body: &str) -> Vec<String> {
    match load_text(body) {
        Ok(_) => Vec::new(),
        Err(report) => report.errors().iter().map(|error| brief(error)).collect(),
    }
}

fn warnings(body: &str) -> Vec<String> {
    served(body).warnings.iter().map(|warning| brief(warning)).collect()
}

fn brief(rendered: &str) -> String {
    let mut out = String::new();
    if let Some(place) =
        rendered.lines().find_map(|line| line.trim_start().strip_prefix("--> foregate.toml:"))
    {
        let (line, column) = place.split_once(':').unwrap();
        let line: usize = line.parse().unwrap();
        out = format!("{}:{column} ", line - HEAD.lines().count());
    }
    let title = rendered.lines().next().unwrap_or_default();
    out.push_str(title.trim_start_matches("error: ").trim_start_matches("warning: "));
    if let Some(help) = rendered.lines().find_map(|line| line.trim_start().strip_prefix("= help: ")) {
        out.push_str(" | ");
        out.push_str(help);
    }
    out
}

fn site<'l>(loaded: &'l Loaded, host: &str) -> &'l Site {
    loaded.live.routing.host(host, Ipv4Addr::LOCALHOST.into()).unwrap().site
}

fn route<'l>(loaded: &'l Loaded, host: &str, path: &str) -> &'l Route {
    let headers = HeaderMap::new();
    let client_ip = IpAddr::from([192, 0, 2, 1]);
    let view = RequestView {
        method: &Method::GET,
        path,
        query: None,
        headers: &headers,
        client_ip,
        client_cert: false,
    };
    site(loaded, host).route(&view).unwrap().route
}

fn policy<'l>(loaded: &'l Loaded, host: &str, path: &str) -> &'l Policy {
    &route(loaded, host, path).policy
}

fn pool_of(route: &Route) -> &Pool {
    match &route.action {
        Action::Pool(pool) => pool,
        other => panic!("not a pool: {other:?}"),
    }
}
