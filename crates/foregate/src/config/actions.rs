//! What is done with a request: `pool`, `split`, `redirect` or `respond`, and exactly one of them.

use foregate_routing::{PathPattern, Respond, SplitOn, Template};
use http::{HeaderValue, StatusCode};

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::policy;
use super::source::{Place, Placed};
use super::value::{self, Location, Misfit};
use super::when::{cookie_name, header_name};

/// What is done with a request, and where that is written.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) place: Place,
    pub(super) kind: ActionKind,
}

#[derive(Clone, Debug)]
pub(super) enum ActionKind {
    Pool(PoolRef),
    Split {
        arms: Vec<(PoolRef, u32)>,
        on: SplitOn,
    },
    Redirect {
        to: Template,
        status: StatusCode,
    },
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
            split_on.problem(Problem::error(
                split_on.place(),
                "`split_on` says how `split` chooses, and there is none",
            ));
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
            _ => read_respond(&value, paths).map(ActionKind::Respond),
        };
        Some(Action { place: table.key_place(key), kind: kind.unwrap_or(ActionKind::Unreadable) })
    }

    /// An action whose name has a slip in it. Call it when all other keys of the table are known.
    pub(super) fn misspelt(table: &Table<'_>) -> Option<Action> {
        let action = || Action { place: table.place(), kind: ActionKind::Unreadable };
        table.misspells(&ACTIONS).then(action)
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
        let weight =
            table.read("weight", |value| value.number::<u32>(0, 1_000_000, "a number from 0 to 1000000"));
        if pool.is_none() && !table.misspells(&["pool"]) {
            table.problem(Problem::absence(table.place(), "an arm of a split needs `pool`"));
        }
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

fn read_redirect(value: &Value<'_>, paths: Option<&[Placed<PathPattern>]>) -> Option<ActionKind> {
    let table = value.table_or("a table such as { to = \"https://example.com{uri}\", status = 308 }")?;
    let to = table.get("to");
    if to.is_none() {
        table.problem(Problem::absence(table.place(), "a redirect needs `to`"));
    }
    let status = table.get("status").map_or(Some(StatusCode::PERMANENT_REDIRECT), |value| {
        const STATUSES: &str = "301, 302, 303, 307 or 308";
        let status = value.number::<u16>(301, 308, STATUSES)?;
        match status {
            301..=303 | 307 | 308 => StatusCode::from_u16(status).ok(),
            _ => {
                value
                    .problem(Problem::error(value.place(), format!("`{}` must be {STATUSES}", value.name())));
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
        to.problem(
            problem.help("write a whole URL such as \"https://example.com{uri}\", or a path from \"/\""),
        );
        return None;
    }
    let template = policy::template(&to, &text)?;
    check_groups(&to, &template, paths)?;
    Some(ActionKind::Redirect { to: template, status: status? })
}

/// `{1}` to `{9}` are groups of a regular expression; each path of the route must have them.
pub(super) fn check_groups(
    value: &Value<'_>,
    template: &Template,
    paths: Option<&[Placed<PathPattern>]>,
) -> Option<()> {
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

fn read_respond(value: &Value<'_>, paths: Option<&[Placed<PathPattern>]>) -> Option<Respond> {
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
    let body = table.get("body").map_or(Some(Template::literal("")), |value| {
        let text = value.template_text()?;
        let template = policy::template(&value, &text)?;
        check_groups(&value, &template, paths)?;
        Some(template)
    });
    table.finish();
    let (status, body) = (status?, body?);
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    if bodiless.contains(&status) && body.as_literal() != Some("") {
        value.problem(Problem::error(value.place(), format!("an answer {} has no body", status.as_u16())));
        return None;
    }
    Some(Respond { status, content_type: content_type?, body })
}
