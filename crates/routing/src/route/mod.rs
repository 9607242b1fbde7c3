//! Routes: which requests of a site they are for, what is done with them, and what is sent to the VM.

mod shadow;
mod table;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::path::{PathPattern, normalise_path};
use crate::pool::Pool;
use crate::snapshot::PoolId;
use crate::split::{Split, SplitOn};
use crate::template::{Template, Variables, push_target};
use crate::when::When;

pub use shadow::Shadowed;
pub(crate) use table::RouteTable;

/// What of a request decides on its route and its VM.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    /// As [`normalise_path`] gives it.
    pub path: &'a str,
    /// As sent, without its `?`.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// After PROXY and trusted proxies were heard. May be v4-mapped.
    pub client_ip: IpAddr,
    /// It has shown a certificate that is good by the rules of the site.
    pub client_cert: bool,
}

/// What a route is made of.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// For logs and errors: `sites.shop.routes[2]`.
    pub name: Box<str>,
    pub paths: Vec<PathPattern>,
    pub when: When,
    pub action: ActionSpec,
    pub rewrite: Rewrite,
    pub policy: Policy,
}

/// What is done with a request, pools still by id.
#[derive(Clone, Debug)]
pub enum ActionSpec {
    Pool(PoolId),
    /// Pools and weights: one arm at least, one weight above zero at least.
    Split {
        arms: Vec<(PoolId, u32)>,
        on: SplitOn,
    },
    Redirect {
        to: Template,
        status: StatusCode,
    },
    Respond(Respond),
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Action {
    Pool(Arc<Pool>),
    Split(Split),
    /// To the `Location` this renders.
    Redirect {
        to: Template,
        status: StatusCode,
    },
    Respond(Respond),
}

/// An answer of the gateway's own.
#[derive(Clone, Debug)]
pub struct Respond {
    pub status: StatusCode,
    pub content_type: HeaderValue,
    /// Rendered for each request; variables come from the client and need escaping in HTML and JSON.
    pub body: Template,
}

/// What becomes of the path and query on their way to the VM.
#[derive(Clone, Debug, Default)]
pub enum Rewrite {
    /// They are forwarded as they came.
    #[default]
    None,
    /// These characters are taken from the front of the path; one that ends in `/` is also taken from the
    /// path without it. A path that does not begin so is left alone.
    StripPrefix(Box<str>),
    /// They are replaced. Without a `?` (or `{uri}`) the query of the request is kept.
    To(Template),
}

/// What else holds for the requests of a route: what its site says and it does not override is in it too.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub timeouts: RouteTimeouts,
    /// The largest request body in bytes; none: no limit.
    pub request_body: Option<u64>,
    /// Applied in this order, to the request for the VM.
    pub request_headers: Vec<HeaderEdit>,
    /// Applied in this order, to every response, our own included.
    pub response_headers: Vec<HeaderEdit>,
    pub upstream_host: UpstreamHost,
    /// Who waits for a VM is served before those of less.
    pub queue_priority: i32,
}

/// How long is waited for the VM; none: for ever. The default is the language's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the last byte of the request to the head of the response.
    pub response: Option<Duration>,
    /// Between two reads of a body.
    pub idle: Option<Duration>,
    /// Between two reads of a WebSocket or CONNECT.
    pub tunnel: Option<Duration>,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        RouteTimeouts {
            response: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_mins(5)),
            tunnel: Some(Duration::from_hours(1)),
        }
    }
}

/// A change to the header fields of a message.
#[derive(Clone, Debug)]
pub enum HeaderEdit {
    /// Written `Name: value`.
    Set(HeaderName, Template),
    /// Written `+Name: value`.
    Add(HeaderName, Template),
    /// Written `-Name`.
    Remove(HeaderName),
}

/// What the VM is told as `Host`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHost {
    /// What the client said.
    #[default]
    Preserve,
    /// The VM's own address.
    Backend,
    Literal(HeaderValue),
}

/// A route in a snapshot.
#[derive(Debug)]
pub struct Route {
    pub name: Box<str>,
    pub action: Action,
    pub rewrite: Rewrite,
    pub policy: Policy,
    when: When,
}

impl Route {
    fn new(spec: RouteSpec, pool: &impl Fn(PoolId) -> Arc<Pool>) -> Route {
        let action = match spec.action {
            ActionSpec::Pool(id) => Action::Pool(pool(id)),
            ActionSpec::Split { arms, on } => {
                let arms = arms.into_iter().map(|(id, weight)| (pool(id), weight));
                Action::Split(Split::new(arms, on))
            }
            ActionSpec::Redirect { to, status } => Action::Redirect { to, status },
            ActionSpec::Respond(respond) => Action::Respond(respond),
        };
        let rewrite = match spec.rewrite {
            Rewrite::StripPrefix(prefix) => Rewrite::StripPrefix(normalise_path(&prefix).into()),
            rewrite => rewrite,
        };
        Route { name: spec.name, action, rewrite, policy: spec.policy, when: spec.when }
    }

    /// Its conditions beside the path.
    pub fn when(&self) -> &When {
        &self.when
    }
}

/// The route that was found for a request.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'s> {
    pub route: &'s Route,
    /// The expression that found it, if one did.
    regex: Option<&'s regex::Regex>,
}

/// No route answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotMatched {
    /// None is for this path and these conditions: 404.
    NoRoute,
    /// One would be, were it not for the method: 405 with these in `Allow`.
    Method { allow: Vec<Method> },
}

/// The groups of the expression that matched a path: nine at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Captures<'a> {
    groups: [&'a str; 9],
    len: usize,
}

impl<'a> Captures<'a> {
    /// For [`Variables::captures`]: the first is `{1}`; a group that took no part is "".
    pub fn as_slice(&self) -> &[&'a str] {
        self.groups.get(..self.len).unwrap_or_default()
    }
}

impl Matched<'_> {
    /// The groups in `path`, which must be the normalised path that was matched. Empty when no expression
    /// matched, or it has no groups. Runs the expression again: ask once per request.
    pub fn captures<'a>(&self, path: &'a str) -> Captures<'a> {
        let mut captures = Captures::default();
        let regex = self.regex.filter(|regex| regex.captures_len() > 1);
        let Some(found) = regex.and_then(|regex| regex.captures(path)) else { return captures };
        for (group, slot) in found.iter().skip(1).zip(&mut captures.groups) {
            *slot = group.map_or("", |group| group.as_str());
            captures.len += 1;
        }
        captures
    }

    /// The path and query to ask the VM for: the original bytes, unless the route strips or rewrites them. A
    /// changed target always begins with `/` and holds nothing that a request line cannot carry.
    ///
    /// A prefix is stripped from the original bytes when the path was normal; else from the normalised copy,
    /// which is then what the VM sees of the path.
    pub fn target<'a>(&self, original: &'a str, variables: &Variables<'_>) -> Cow<'a, str> {
        match &self.route.rewrite {
            Rewrite::None => Cow::Borrowed(original),
            Rewrite::StripPrefix(prefix) => strip(original, prefix),
            Rewrite::To(template) => Cow::Owned(rewrite(template, original, variables)),
        }
    }
}

/// Path, and query with its `?`.
fn split_query(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

fn strip<'a>(original: &'a str, prefix: &str) -> Cow<'a, str> {
    let (path, query) = split_query(original);
    let normal = normalise_path(path);
    let rest = match prefix.strip_suffix('/') {
        Some(bare) => normal.strip_prefix(bare).filter(|rest| rest.is_empty() || rest.starts_with('/')),
        None => normal.strip_prefix(prefix),
    };
    let Some(rest) = rest else { return Cow::Borrowed(original) };
    if normal == path
        && rest.starts_with('/')
        && let Some(tail) = original.get(path.len() - rest.len()..)
    {
        return Cow::Borrowed(tail);
    }
    let slash = if rest.starts_with('/') { "" } else { "/" };
    Cow::Owned([slash, rest, query].concat())
}

fn rewrite(template: &Template, original: &str, variables: &Variables<'_>) -> String {
    let mut target = String::with_capacity(original.len() + 32);
    template.render_target(variables, &mut target);
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if !template.holds_query() {
        let (_, query) = split_query(original);
        push_target(&mut target, query, true);
    } else if target.ends_with('?') && target.find('?') == Some(target.len() - 1) {
        // `/x?{query}` of a request without one.
        target.pop();
    }
    target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables<'a>(query: Option<&'a str>, captures: &'a [&'a str]) -> Variables<'a> {
        Variables {
            client_ip: "10.0.0.9".parse().unwrap(),
            host: "shop.test",
            wildcard: None,
            path: "/orig",
            query,
            scheme: "https",
            request_id: "r1",
            client_cert: None,
            captures,
        }
    }

    fn route(rewrite: Rewrite) -> Route {
        let respond = Respond {
            status: StatusCode::OK,
            content_type: HeaderValue::from_static("text/plain"),
            body: Template::literal(""),
        };
        let spec = RouteSpec {
            name: "r".into(),
            paths: vec![],
            when: When::default(),
            action: ActionSpec::Respond(respond),
            rewrite,
            policy: Policy::default(),
        };
        Route::new(spec, &|_| Arc::new(Pool::missing()))
    }

    fn stripped(prefix: &str, original: &str) -> String {
        let route = route(Rewrite::StripPrefix(prefix.into()));
        Matched { route: &route, regex: None }.target(original, &variables(None, &[])).into_owned()
    }

    fn rewritten(template: &str, original: &str, captures: &[&str]) -> String {
        let route = route(Rewrite::To(Template::parse(template).unwrap()));
        let query = original.split_once('?').map(|(_, query)| query);
        Matched { route: &route, regex: None }.target(original, &variables(query, captures)).into_owned()
    }

    #[test]
    fn without_a_rewrite_the_bytes_are_the_clients() {
        let route = route(Rewrite::None);
        let matched = Matched { route: &route, regex: None };
        for original in ["/a//%2e%2E/b%2fc?x=%zz", "*", "/"] {
            let target = matched.target(original, &variables(None, &[]));
            assert!(matches!(target, Cow::Borrowed(same) if same == original));
        }
    }

    #[test]
    fn prefixes_are_stripped() {
        for (prefix, original, target) in [
            ("/api", "/api/x?y=1", "/x?y=1"),
            ("/api", "/api", "/"),
            ("/api", "/api?y", "/?y"),
            ("/api", "/api/", "/"),
            ("/api", "/apis", "/s"),
            ("/api/", "/api/x", "/x"),
            ("/api/", "/api", "/"),
            ("/api/", "/apis", "/apis"),
            ("/api", "/other?x", "/other?x"),
            ("/api", "/api/a%2Fb%7E", "/a%2Fb~"),
            ("/api", "/api/a%2Fb", "/a%2Fb"),
            ("/api", "//api//x?a//b", "/x?a//b"),
            ("/api", "/x/../api/y", "/y"),
            ("/api", "/%61pi/%41", "/A"),
            ("/", "/x", "/x"),
            ("/%61pi", "/api/x", "/x"),
            ("/api", "*", "*"),
        ] {
            assert_eq!(stripped(prefix, original), target, "{prefix} {original}");
        }
        let route = route(Rewrite::StripPrefix("/api".into()));
        let target = Matched { route: &route, regex: None }.target("/api/x?y", &variables(None, &[]));
        assert!(matches!(target, Cow::Borrowed("/x?y")), "the usual case copies nothing");
    }

    #[test]
    fn targets_are_rewritten() {
        for (template, original, captures, target) in [
            ("/{2}?version={1}", "/v1/a/b?x=1", &["1", "a/b"][..], "/a/b?version=1"),
            ("/{1}", "/v1?x=1", &["y"], "/y?x=1"),
            ("/x?{query}&y=2", "/a?x=1", &[], "/x?x=1&y=2"),
            ("/x?{query}", "/a", &[], "/x"),
            ("/x?", "/a?drop=me", &[], "/x"),
            ("/x", "/a", &[], "/x"),
            ("{1}", "/a", &["b"], "/b"),
            ("", "/a?q", &[], "/?q"),
            ("/p{uri}", "/a?q=1", &[], "/p/orig?q=1"),
            ("/{1}", "/a", &["x y\r\nEvil: 1"], "/x%20y%0D%0AEvil:%201"),
            ("/ü {host}", "/a", &[], "/%C3%BC%20shop.test"),
            ("/{9}", "/a", &["x"], "/"),
        ] {
            assert_eq!(rewritten(template, original, captures), target, "{template} {original}");
        }
    }

    #[test]
    fn groups_are_taken_from_the_normalised_path() {
        let route = route(Rewrite::None);
        let regex = regex::Regex::new("^/v([0-9])(x)?/(.*)").unwrap();
        let matched = Matched { route: &route, regex: Some(&regex) };
        assert_eq!(matched.captures("/v2/a/b").as_slice(), ["2", "", "a/b"]);
        assert!(Matched { route: &route, regex: None }.captures("/v2/a").as_slice().is_empty());
        let many = regex::Regex::new(&"(.)".repeat(12)).unwrap();
        let matched = Matched { route: &route, regex: Some(&many) };
        assert_eq!(matched.captures("/23456789abc").as_slice().concat(), "/23456789");
    }

    #[test]
    fn the_default_timeouts_are_the_languages() {
        let timeouts = RouteTimeouts::default();
        assert_eq!(timeouts.response, Some(Duration::from_secs(60)));
        assert_eq!(timeouts.idle, Some(Duration::from_secs(300)));
        assert_eq!(timeouts.tunnel, Some(Duration::from_secs(3600)));
    }

    proptest! {
        #[test]
        fn a_changed_target_is_a_target(
            path in "/[a-c/.%2eE]{0,10}",
            query in prop::option::of("[a-c=&?%/]{0,6}"),
            template in "(\\{1\\}|\\{query\\}|\\{uri\\}|[a /?\\r\\n#ü]){0,5}",
            capture in "\\PC{0,6}",
        ) {
            let original = match &query {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            let target = rewritten(&template, &original, &[&capture]);
            prop_assert!(target.starts_with('/'));
            prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
            let target = stripped("/a", &original);
            prop_assert!(target.starts_with('/'));
            let kept = target.split_once('?').map(|(_, query)| query.to_owned());
            prop_assert_eq!(kept, query);
        }
    }
}
