//! Routes of a site: which paths and conditions, and the one thing done with what they match.

use foregate_routing::{Condition, PathPattern, Respond, Rewrite, SplitOn, Template, TextMatch, When};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::policy::{self, PolicyLayer};
use super::source::{Place, Placed};
use super::value::{self, Location, Misfit};

/// One entry of `routes`, its pools still names.
#[derive(Debug)]
pub(super) struct RouteDraft {
    /// "sites.shop.routes[2]"
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) paths: Vec<Placed<PathPattern>>,
    /// As written, for the names of inline pools.
    pub(super) first_path: String,
    pub(super) when: When,
    /// `None` takes the site's own.
    pub(super) action: Option<Action>,
    pub(super) rewrite: Option<Placed<Rewrite>>,
    pub(super) policy: PolicyLayer,
    /// Whether all of it could be read, so that it is fit to be compared with others.
    pub(super) sound: bool,
}

/// What is done with a request, and where that is written.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) place: Place,
    pub(super) kind: ActionKind,
}

#[derive(Clone, Debug)]
pub(super) enum ActionKind {
    Pool(PoolRef),
    Split { arms: Vec<(PoolRef, u32)>, on: SplitOn },
    Redirect { to: Template, status: StatusCode },
    Respond(Respond),
    /// It was written, and wrong.
    Unreadable,
}

/// Wherever a pool is named: its name, or the addresses of a pool without one.
#[derive(Clone, Debug)]
pub(super) enum PoolRef {
    Named(Placed<String>),
    Inline(Vec<Placed<Location>>),
}

impl RouteDraft {
    pub(super) fn read(value: &Value<'_>) -> Option<RouteDraft> {
        let table = value.table_or("a table such as { paths = \"/\", pool = \"app\" }")?;
        let mark = table.problems().count();
        let (paths, first_path) = read_paths(&table);
        let when = table.table("when").map(read_when).unwrap_or_default();
        let action = Action::read(&table, Some(&paths));
        let rewrite = read_rewrite(&table, &paths);
        if let (Some(rewrite), Some(action)) = (&rewrite, &action)
            && matches!(action.kind, ActionKind::Redirect { .. } | ActionKind::Respond(_))
        {
            let problem = Problem::error(rewrite.place, "the path is changed for a VM, and no VM sees this request");
            table.problem(problem.other(action.place, "answered here"));
        }
        let policy = PolicyLayer::read(&table);
        table.later("filters", Value::is_empty_list);
        table.later("skip_filters", Value::is_empty_list);
        table.never_yet(&["mirror", "queue_priority"]);
        table.later("bandwidth", |value| value.is_word("off"));
        let (name, place) = (table.name().to_owned(), table.place());
        let sound = !paths.is_empty() && table.problems().count() == mark;
        table.finish();
        Some(RouteDraft { name, place, paths, first_path, when, action, rewrite, policy, sound })
    }
}

fn read_paths(table: &Table<'_>) -> (Vec<Placed<PathPattern>>, String) {
    let Some(value) = table.get("paths") else {
        let problem = Problem::error(table.place(), "a route needs `paths`");
        table.problem(problem.help("write `paths = \"/\"` for every path of the site"));
        return (Vec::new(), String::new());
    };
    let mut first = String::new();
    let paths = value.at_least_one(|one| {
        let path = one.parse("a path such as \"/api/\", \"=/exact\" or \"~^/v[0-9]+/\"", |text| {
            if first.is_empty() {
                text.clone_into(&mut first);
            }
            PathPattern::parse(text).map_err(|error| Misfit::new(last_line(&error.to_string())))
        });
        path
    });
    (paths.unwrap_or_default(), first)
}

/// The reason at the end of a many-line message, as regular expressions give them.
fn last_line(message: &str) -> String {
    let last = message.lines().next_back().unwrap_or(message);
    match last.strip_prefix("error: ") {
        Some(reason) => format!("not a regular expression: {reason}"),
        None => last.to_owned(),
    }
}

const ACTIONS: [&str; 4] = ["pool", "split", "redirect", "respond"];

impl Action {
    /// The one action of a site or a route; `None` where none is written. A site has no `paths` of its own.
    pub(super) fn read(table: &Table<'_>, paths: Option<&[Placed<PathPattern>]>) -> Option<Action> {
        let mut written: Vec<(&'static str, Value<'_>)> = Vec::new();
        for key in ACTIONS {
            written.extend(table.get(key).map(|value| (key, value)));
        }
        written.sort_by_key(|(key, _)| table.key_place(key));
        let split_on = table.get("split_on");
        if let (Some(split_on), false) = (&split_on, written.iter().any(|(key, _)| *key == "split")) {
            split_on.problem(Problem::error(split_on.place(), "`split_on` says how `split` chooses, and there is none"));
        }
        let mut written = written.into_iter();
        let (key, value) = written.next()?;
        for (other, _) in written {
            let message = format!("`{other}` is a second action beside `{key}`, and there is only one");
            let problem = Problem::error(table.key_place(other), message);
            table.problem(problem.other(table.key_place(key), "the first one"));
        }
        let kind = match key {
            "pool" => PoolRef::read(&value).map(ActionKind::Pool),
            "split" => read_split(&value, split_on.as_ref()),
            "redirect" => read_redirect(&value, paths),
            _ => read_respond(&value).map(ActionKind::Respond),
        };
        Some(Action { place: table.key_place(key), kind: kind.unwrap_or(ActionKind::Unreadable) })
    }
}

impl PoolRef {
    pub(super) fn read(value: &Value<'_>) -> Option<PoolRef> {
        const EXPECTED: &str = "the name of a pool, an address or a list of addresses";
        if value.is_string() {
            let text = value.string()?;
            if !value::looks_like_location(&text.value) {
                return Some(PoolRef::Named(text));
            }
        } else if value.is_table() {
            return value.must_be(EXPECTED);
        }
        value.at_least_one(|one| one.parse(EXPECTED, value::location)).map(PoolRef::Inline)
    }
}

fn read_split(value: &Value<'_>, on: Option<&Value<'_>>) -> Option<ActionKind> {
    let arms = value.at_least_one(|one| {
        let table = one.table_or("a table such as { pool = \"app\", weight = 95 }")?;
        let pool = table.get("pool");
        if pool.is_none() {
            table.problem(Problem::error(table.place(), "an arm of a split needs `pool`"));
        }
        let weight = table.read("weight", |value| value.number::<u32>(0, 1_000_000, "a number from 0 to 1000000"));
        table.finish();
        Some((PoolRef::read(&pool?)?, weight.unwrap_or(1)))
    });
    let on = on.map_or(Some(SplitOn::ClientIp), read_split_on);
    let arms = arms?;
    if arms.iter().all(|(_, weight)| *weight == 0) {
        value.problem(Problem::error(value.place(), "every weight of this split is 0"));
        return None;
    }
    Some(ActionKind::Split { arms, on: on? })
}

fn read_split_on(value: &Value<'_>) -> Option<SplitOn> {
    let parsed = value.parse("\"client_ip\", \"cookie:NAME\", \"header:NAME\" or \"request\"", |text| {
        match text.split_once(':') {
            None if text == "client_ip" => Ok(SplitOn::ClientIp),
            None if text == "request" => Ok(SplitOn::Request),
            Some(("cookie", name)) => Ok(SplitOn::Cookie(cookie_name(name)?.into())),
            Some(("header", name)) => Ok(SplitOn::Header(header_name(name)?)),
            _ => Err(Misfit::new(format!("\"{text}\" is nothing a split can go by"))
                .help("write \"client_ip\", \"cookie:NAME\", \"header:NAME\" or \"request\"")),
        }
    })?;
    Some(parsed.value)
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

fn read_redirect(value: &Value<'_>, paths: Option<&[Placed<PathPattern>]>) -> Option<ActionKind> {
    let table = value.table_or("a table such as { to = \"https://example.com{uri}\", status = 308 }")?;
    let to = table.get("to");
    if to.is_none() {
        table.problem(Problem::error(table.place(), "a redirect needs `to`"));
    }
    let status = table.get("status").map_or(Some(StatusCode::PERMANENT_REDIRECT), |value| {
        const STATUSES: &str = "301, 302, 303, 307 or 308";
        let status = value.number::<u16>(301, 308, STATUSES)?;
        match status {
            301..=303 | 307 | 308 => StatusCode::from_u16(status).ok(),
            _ => {
                value.problem(Problem::error(value.place(), format!("`{}` must be {STATUSES}", value.name())));
                None
            }
        }
    });
    table.finish();
    let to = to?;
    let text = to.template_text()?;
    let absolute = ["http://", "https://", "/", "{"].iter().any(|start| text.value.starts_with(start));
    if !absolute || HeaderValue::from_str(&text.value).is_err() {
        let problem = Problem::error(text.place, format!("\"{}\" is not where a client can go", text.value));
        to.problem(problem.help("write a whole URL such as \"https://example.com{uri}\", or a path from \"/\""));
        return None;
    }
    let template = policy::template(&to, &text)?;
    check_groups(&to, &template, paths)?;
    Some(ActionKind::Redirect { to: template, status: status? })
}

/// `{1}` to `{9}` are groups of a regular expression; each path of the route must have them.
fn check_groups(value: &Value<'_>, template: &Template, paths: Option<&[Placed<PathPattern>]>) -> Option<()> {
    let highest = template.uses_captures();
    if highest == 0 {
        return Some(());
    }
    let place = value.place_of(&format!("{{{highest}}}"));
    let lacking = |path: &PathPattern| match path {
        PathPattern::Regex(regex) => regex.captures_len() <= usize::from(highest),
        PathPattern::Exact(_) | PathPattern::Prefix(_) => true,
    };
    let Some(paths) = paths else {
        let message = format!("`{{{highest}}}` is a group of a regular expression, and a site has none");
        value.problem(Problem::error(place, message).help("a route with `paths = \"~...\"` has groups"));
        return None;
    };
    let Some(path) = paths.iter().find(|path| lacking(&path.value)) else { return Some(()) };
    let problem = match &path.value {
        PathPattern::Regex(regex) => {
            let groups = regex.captures_len().saturating_sub(1);
            Problem::error(place, format!("there is no group {highest}"))
                .other(path.place, format!("this has {groups} group{}", if groups == 1 { "" } else { "s" }))
        }
        _ => Problem::error(place, format!("`{{{highest}}}` is a group of a regular expression"))
            .other(path.place, "this is none")
            .help("a regular expression begins with `~`: \"~^/v([0-9])/\""),
    };
    value.problem(problem);
    None
}

fn read_respond(value: &Value<'_>) -> Option<Respond> {
    let table = value.table_or("a table such as { status = 200, body = \"hello\" }")?;
    let status = table.get("status").map_or(Some(StatusCode::OK), |value| {
        let status = value.number::<u16>(200, 599, "a status from 200 to 599")?;
        StatusCode::from_u16(status).ok()
    });
    let content_type = table.get("content_type").map_or(
        Some(HeaderValue::from_static("text/plain; charset=utf-8")),
        |value| {
            let text = value.parse("a media type", |text| {
                HeaderValue::from_str(text)
                    .ok()
                    .filter(|_| text.contains('/'))
                    .ok_or_else(|| Misfit::new(format!("\"{text}\" is not a media type")))
            });
            text.map(|text| text.value)
        },
    );
    let body = table.get("body").map_or(Some(String::new()), |value| {
        let template = policy::template(&value, &value.template_text()?)?;
        if let Some(text) = template.as_literal() {
            return Some(text.to_owned());
        }
        value.problem(
            Problem::error(value.place(), "variables in the body of an answer are not supported yet")
                .help("a literal brace is written `{{` or `}}`"),
        );
        None
    });
    table.finish();
    let (status, body) = (status?, body?);
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::RESET_CONTENT) && !body.is_empty() {
        value.problem(Problem::error(value.place(), format!("an answer {} has no body", status.as_u16())));
        return None;
    }
    Some(Respond { status, content_type: content_type?, body: body.into() })
}

fn read_rewrite(table: &Table<'_>, paths: &[Placed<PathPattern>]) -> Option<Placed<Rewrite>> {
    let strip = table.get("strip_prefix");
    let rewrite = table.get("rewrite");
    if let (Some(strip), Some(rewrite)) = (&strip, &rewrite) {
        let problem = Problem::error(rewrite.place(), "`rewrite` writes the whole path, so `strip_prefix` has no effect");
        table.problem(problem.other(strip.place(), "remove one of the two"));
        return None;
    }
    if let Some(strip) = strip {
        let prefix = strip.string()?;
        let text = prefix.value.trim_end_matches('/');
        if !text.starts_with('/') {
            let problem = Problem::error(prefix.place, format!("\"{}\" is not the beginning of a path", prefix.value));
            table.problem(problem.help("write it from the first slash: \"/api\""));
            return None;
        }
        let covers = |path: &str| path.strip_prefix(text).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let foreign = paths.iter().find(|path| match &path.value {
            PathPattern::Exact(path) | PathPattern::Prefix(path) => !covers(path),
            PathPattern::Regex(_) => false,
        });
        if let Some(path) = foreign {
            let problem = Problem::error(prefix.place, format!("not every path of this route begins with \"{text}\""));
            table.problem(problem.other(path.place, "this does not"));
            return None;
        }
        return Some(Placed::new(Rewrite::StripPrefix(text.into()), prefix.place));
    }
    let rewrite = rewrite?;
    let text = rewrite.template_text()?;
    if !text.value.starts_with(['/', '{']) {
        let problem = Problem::error(text.place, format!("\"{}\" is not a path", text.value));
        table.problem(problem.help("write it from the first slash: \"/{1}\""));
        return None;
    }
    let template = policy::template(&rewrite, &text)?;
    check_groups(&rewrite, &template, Some(paths))?;
    Some(Placed::new(Rewrite::To(template), text.place))
}

fn read_when(table: Table<'_>) -> When {
    let when = When {
        methods: table.read("methods", |value| value.at_least_one(method)).unwrap_or_default(),
        headers: conditions(&table, "headers", |name| header_name(name)),
        cookies: conditions(&table, "cookies", |name| cookie_name(name).map(Box::from)),
        query: conditions(&table, "query", |name| Ok(Box::from(name))),
        client_ips: table
            .read("client_ips", |value| {
                value.at_least_one(|one| Some(one.parse("an address or network", value::network)?.value))
            })
            .unwrap_or_default(),
    };
    table.never_yet(&["client_cert"]);
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
    const EXPECTED: &str = "a text, \"~\" and a regular expression, true (there is one) or false (there is none)";
    if !value.is_string() {
        return value.switch(EXPECTED).map(|there| if there { Condition::Present } else { Condition::Absent });
    }
    let matcher = value.parse(EXPECTED, |text| match text.strip_prefix('~') {
        None => Ok(TextMatch::Equals(text.into())),
        Some(pattern) => regex::Regex::new(pattern)
            .map(TextMatch::Regex)
            .map_err(|error| Misfit::new(last_line(&error.to_string()))),
    })?;
    Some(Condition::Matches(matcher.value))
}
