//! Routes of a site: which paths and conditions, and how the path is changed for the VM.

use foregate_routing::{PathPattern, Rewrite, When};

use super::actions::{self, Action, ActionKind};
use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::policy::{self, PolicyLayer};
use super::source::{Place, Placed};
use super::value::Misfit;
use super::when;

/// One entry of `routes`, its pools still names.
#[derive(Debug)]
pub(super) struct RouteDraft {
    /// `sites.shop.routes[2]`
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

impl RouteDraft {
    pub(super) fn read(value: &Value<'_>) -> Option<RouteDraft> {
        let table = value.table_or("a table such as { paths = \"/\", pool = \"app\" }")?;
        let mark = table.problems().count();
        let (paths, first_path) = read_paths(&table);
        let when = table.table("when").map(when::read).unwrap_or_default();
        let mut action = Action::read(&table, Some(&paths));
        let rewrite = read_rewrite(&table, &paths);
        if let (Some(rewrite), Some(action)) = (&rewrite, &action)
            && matches!(action.kind, ActionKind::Redirect { .. } | ActionKind::Respond(_))
        {
            let problem =
                Problem::error(rewrite.place, "the path is changed for a VM, and no VM sees this request");
            table.problem(problem.other(action.place, "answered here"));
        }
        let mut policy = PolicyLayer::read(&table);
        policy.queue_priority =
            table.read("queue_priority", |value| value.number(-1000, 1000, "a number from -1000 to 1000"));
        table.later("filters", Value::is_empty_list);
        table.later("skip_filters", Value::is_empty_list);
        table.never_yet(&["mirror"]);
        table.later("bandwidth", |value| value.is_word("off"));
        let (name, place) = (table.name().to_owned(), table.place());
        if table.get("paths").is_none() && !table.misspells(&["paths"]) {
            let problem = Problem::absence(table.place(), "a route needs `paths`");
            table.problem(problem.help("write `paths = \"/\"` for every path of the site"));
        }
        action = action.or_else(|| Action::misspelt(&table));
        let sound = !paths.is_empty() && table.problems().count() == mark;
        table.finish();
        Some(RouteDraft { name, place, paths, first_path, when, action, rewrite, policy, sound })
    }
}

fn read_paths(table: &Table<'_>) -> (Vec<Placed<PathPattern>>, String) {
    let Some(value) = table.get("paths") else { return (Vec::new(), String::new()) };
    let mut first = String::new();
    let paths = value.at_least_one(|one| {
        one.parse("a path such as \"/api/\", \"=/exact\" or \"~^/v[0-9]+/\"", |text| {
            if first.is_empty() {
                text.clone_into(&mut first);
            }
            PathPattern::parse(text).map_err(|error| Misfit::new(last_line(&error.to_string())))
        })
    });
    (paths.unwrap_or_default(), first)
}

/// The reason at the end of a many-line message, as regular expressions give them.
pub(super) fn last_line(message: &str) -> String {
    let last = message.lines().next_back().unwrap_or(message);
    match last.strip_prefix("error: ") {
        Some(reason) => format!("not a regular expression: {reason}"),
        None => last.to_owned(),
    }
}

fn read_rewrite(table: &Table<'_>, paths: &[Placed<PathPattern>]) -> Option<Placed<Rewrite>> {
    let strip = table.get("strip_prefix");
    let rewrite = table.get("rewrite");
    if let (Some(strip), Some(rewrite)) = (&strip, &rewrite) {
        let problem = Problem::error(
            rewrite.place(),
            "`rewrite` writes the whole path, so `strip_prefix` has no effect",
        );
        table.problem(problem.other(strip.place(), "remove one of the two"));
        return None;
    }
    if let Some(strip) = strip {
        let prefix = strip.string()?;
        let text = prefix.value.trim_end_matches('/');
        if !text.starts_with('/') {
            let problem =
                Problem::error(prefix.place, format!("\"{}\" is not the beginning of a path", prefix.value));
            table.problem(problem.help("write it from the first slash: \"/api\""));
            return None;
        }
        let covers =
            |path: &str| path.strip_prefix(text).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let foreign = paths.iter().find(|path| match &path.value {
            PathPattern::Exact(path) | PathPattern::Prefix(path) => !covers(path),
            PathPattern::Regex(_) => false,
        });
        if let Some(path) = foreign {
            let problem =
                Problem::error(prefix.place, format!("not every path of this route begins with \"{text}\""));
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
    actions::check_groups(&rewrite, &template, Some(paths))?;
    Some(Placed::new(Rewrite::To(template), text.place))
}
