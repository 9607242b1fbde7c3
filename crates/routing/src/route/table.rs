//! The routes of one site, arranged so that a request looks at the few that can be for its path.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use regex::{Regex, RegexSet, RegexSetBuilder};

use super::{Matched, NotMatched, RequestView, Route, RouteSpec};
use crate::path::PathPattern;
use crate::pool::Pool;
use crate::snapshot::{Lookup, PoolId, lookup};

/// Indices of routes, in the order they are asked.
type Rows = Box<[usize]>;

#[derive(Debug)]
pub(crate) struct RouteTable {
    /// In the order of the file.
    routes: Box<[Route]>,
    whole: Lookup<Whole>,
    /// Different expressions, in the order they first occur in the file.
    regexes: Box<[(Regex, Rows)]>,
    /// All of them at once; none when there is at most one.
    set: Option<RegexSet>,
    /// Different prefixes, sorted by their bytes.
    prefixes: Box<[Prefix]>,
}

/// What is known of a whole path.
#[derive(Debug, Default)]
struct Whole {
    exact: Rows,
    /// The prefix that is this path and a `/`.
    with_slash: Option<usize>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    rows: Rows,
    /// The longest other prefix this one begins with.
    parent: Option<usize>,
}

impl RouteTable {
    pub(crate) fn new(specs: Vec<RouteSpec>, pool: &impl Fn(PoolId) -> Arc<Pool>) -> RouteTable {
        let patterns = Patterns::of(&specs);
        let mut exact: BTreeMap<&str, Rows> = BTreeMap::new();
        let mut regexes = Vec::new();
        let mut prefixes: BTreeMap<&str, Rows> = BTreeMap::new();
        for (pattern, rows) in patterns.in_file_order {
            match pattern {
                PathPattern::Exact(path) => drop(exact.insert(path, rows.into())),
                PathPattern::Regex(regex) => regexes.push((regex.clone(), rows.into())),
                PathPattern::Prefix(prefix) => drop(prefixes.insert(prefix, rows.into())),
            }
        }
        let mut whole: Lookup<Whole> = lookup();
        for (path, rows) in exact {
            whole.entry(path.into()).or_default().exact = rows;
        }
        for (index, prefix) in prefixes.keys().enumerate() {
            // No path is "": the prefix "/" needs no look-up, and most sites have no other.
            if let Some(path) = prefix.strip_suffix('/').filter(|path| !path.is_empty()) {
                whole.entry(path.into()).or_default().with_slash = Some(index);
            }
        }
        let prefixes = link(prefixes);
        let set = set(&regexes);
        let routes = specs.into_iter().map(|spec| Route::new(spec, pool)).collect();
        RouteTable { routes, whole, regexes: regexes.into(), set, prefixes }
    }

    pub(crate) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first candidate whose conditions hold.
    pub(crate) fn find<'s>(&'s self, view: &RequestView<'_>) -> Result<Matched<'s>, NotMatched> {
        let found = self.candidates(view.path, &mut |route, regex| match route.when.holds(view) {
            true => ControlFlow::Break(Matched { route, regex }),
            false => ControlFlow::Continue(()),
        });
        match found {
            ControlFlow::Break(matched) => Ok(matched),
            ControlFlow::Continue(()) => Err(self.refusal(view)),
        }
    }

    /// Why nothing was found. A second look, so that the first one collects nothing.
    #[cold]
    fn refusal(&self, view: &RequestView<'_>) -> NotMatched {
        let mut allow = Vec::new();
        let ControlFlow::Continue(()) = self.candidates::<Infallible>(view.path, &mut |route, _| {
            if route.when.others_hold(view) {
                for method in &route.when.methods {
                    if !allow.contains(method) {
                        allow.push(method.clone());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        if allow.is_empty() { NotMatched::NoRoute } else { NotMatched::Method { allow } }
    }

    /// Shows all routes that are for this path to `visit`, in the order they are asked, until it breaks.
    fn candidates<'s, B>(
        &'s self,
        path: &str,
        visit: &mut impl FnMut(&'s Route, Option<&'s Regex>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut each = |rows: &'s Rows, regex: Option<&'s Regex>| {
            rows.iter().filter_map(|index| self.routes.get(*index)).try_for_each(|route| visit(route, regex))
        };
        let whole = self.whole.get(path);
        if let Some(whole) = whole {
            each(&whole.exact, None)?;
        }
        match &self.set {
            // Whether any matches is known without an allocation, and mostly none does.
            Some(set) if set.is_match(path) => {
                let matches = set.matches(path);
                for (regex, rows) in matches.iter().filter_map(|index| self.regexes.get(index)) {
                    each(rows, Some(regex))?;
                }
            }
            Some(_) => {}
            None => {
                for (regex, rows) in self.regexes.iter().filter(|(regex, _)| regex.is_match(path)) {
                    each(rows, Some(regex))?;
                }
            }
        }
        // All prefixes of "/api" are ancestors of "/api/".
        let mut at = whole.and_then(|whole| whole.with_slash).or_else(|| self.longest_prefix(path));
        while let Some(prefix) = at.and_then(|at| self.prefixes.get(at)) {
            each(&prefix.rows, None)?;
            at = prefix.parent;
        }
        ControlFlow::Continue(())
    }

    /// All texts that begin with a prefix stand together behind it in the order of bytes. So every prefix of
    /// the path is the last text not greater than the path, or an ancestor of that one.
    fn longest_prefix(&self, path: &str) -> Option<usize> {
        let mut at = self.prefixes.partition_point(|prefix| *prefix.text <= *path).checked_sub(1);
        while let Some(prefix) = at.and_then(|at| self.prefixes.get(at)) {
            if path.starts_with(&*prefix.text) {
                return at;
            }
            at = prefix.parent;
        }
        None
    }
}

/// Turns sorted prefixes into the table with parents.
fn link(sorted: BTreeMap<&str, Rows>) -> Box<[Prefix]> {
    // The chain of the last one and its ancestors.
    let mut chain: Vec<(usize, &str)> = Vec::new();
    let mut prefixes = Vec::with_capacity(sorted.len());
    for (index, (text, rows)) in sorted.into_iter().enumerate() {
        chain.truncate(chain.iter().take_while(|(_, ancestor)| text.starts_with(ancestor)).count());
        prefixes.push(Prefix { text: text.into(), rows, parent: chain.last().map(|(index, _)| *index) });
        chain.push((index, text));
    }
    prefixes.into()
}

/// All expressions at once. Each was compiled alone under the usual limit; together they may be larger. Where
/// the set cannot be made they are asked one by one.
fn set(regexes: &[(Regex, Rows)]) -> Option<RegexSet> {
    const LIMIT: usize = 1 << 30;
    (regexes.len() > 1)
        .then(|| {
            RegexSetBuilder::new(regexes.iter().map(|(regex, _)| regex.as_str()))
                .size_limit(LIMIT)
                .build()
                .ok()
        })
        .flatten()
}

/// The different paths of some routes.
pub(super) struct Patterns<'r> {
    /// Each where it first occurs, with its routes in the order they are asked.
    pub(super) in_file_order: Vec<(&'r PathPattern, Vec<usize>)>,
    /// By [`PathPattern::identity`], the place in the list.
    pub(super) places: HashMap<(u8, &'r str), usize>,
}

impl<'r> Patterns<'r> {
    pub(super) fn of(routes: &'r [RouteSpec]) -> Patterns<'r> {
        let mut in_file_order: Vec<(&PathPattern, Vec<usize>)> = Vec::new();
        let mut places = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            for pattern in &route.paths {
                let place = *places.entry(pattern.identity()).or_insert(in_file_order.len());
                match in_file_order.get_mut(place) {
                    // A route may name a path twice.
                    Some((_, rows)) if rows.last() == Some(&index) => {}
                    Some((_, rows)) => rows.push(index),
                    None => in_file_order.push((pattern, vec![index])),
                }
            }
        }
        for (_, rows) in &mut in_file_order {
            // Stable: among routes with as many conditions the order of the file stays.
            rows.sort_by_key(|index| Reverse(routes.get(*index).map(|route| route.when.keys())));
        }
        Patterns { in_file_order, places }
    }

    /// The routes with this very path, in the order they are asked.
    pub(super) fn rows(&self, pattern: &PathPattern) -> &[usize] {
        let place = self.places.get(&pattern.identity());
        place.and_then(|place| self.in_file_order.get(*place)).map_or(&[], |(_, rows)| rows)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::{ActionSpec, Condition, Policy, Respond, Rewrite, Template, TextMatch, When, normalise_path};

    fn route(name: &str, paths: &[&str], when: When) -> RouteSpec {
        let respond = Respond {
            status: StatusCode::OK,
            content_type: HeaderValue::from_static("text/plain"),
            body: Template::literal(""),
        };
        RouteSpec {
            name: name.into(),
            paths: paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect(),
            when,
            action: ActionSpec::Respond(respond),
            rewrite: Rewrite::None,
            policy: Policy::default(),
        }
    }

    fn table(specs: Vec<RouteSpec>) -> RouteTable {
        RouteTable::new(specs, &|_| Arc::new(Pool::missing()))
    }

    /// Routes named after their paths.
    fn by_paths(paths: &[&str]) -> RouteTable {
        table(paths.iter().map(|path| route(path, &[path], When::default())).collect())
    }

    fn view<'a>(method: &'a Method, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView {
            method,
            path,
            query: None,
            headers,
            client_ip: [10, 0, 0, 1].into(),
            client_cert: false,
        }
    }

    fn found<'t>(table: &'t RouteTable, path: &str) -> &'t str {
        let headers = HeaderMap::new();
        table
            .find(&view(&Method::GET, &normalise_path(path), &headers))
            .map_or("-", |found| &found.route.name)
    }

    fn header(name: &str, value: &str) -> When {
        let asked = Condition::Matches(TextMatch::Equals(value.into()));
        When { headers: vec![(name.parse().unwrap(), asked)], ..When::default() }
    }

    fn methods(list: &[Method]) -> When {
        When { methods: list.to_vec(), ..When::default() }
    }

    #[test]
    fn exact_then_regex_then_longest_prefix() {
        let table =
            by_paths(&["/", "/api/", "/api/v1", "~^/api/x", "~x$", "=/api/x", "/docs", "/api/v1/deep/"]);
        for (path, route) in [
            ("/api/x", "=/api/x"),
            ("/api/xy", "~^/api/x"),
            ("/docs/x", "~x$"),
            ("/api/y", "/api/"),
            ("/api", "/api/"),
            ("/api/", "/api/"),
            ("/apis", "/"),
            ("/api/v1", "/api/v1"),
            ("/api/v10", "/api/v1"),
            ("/api/v1/deep", "/api/v1/deep/"),
            ("/api/v1/deeper", "/api/v1"),
            ("/documents", "/"),
            ("/docs.html", "/docs"),
            ("/%61pi/y", "/api/"),
            ("//api/./y", "/api/"),
            ("/api/../docs", "/docs"),
            ("/api%2Fy", "/"),
            ("/", "/"),
            ("", "/"),
            ("*", "-"),
        ] {
            assert_eq!(found(&table, path), route, "{path}");
        }
    }

    #[test]
    fn regexes_are_asked_in_the_order_of_the_file() {
        assert_eq!(found(&by_paths(&["~^/a", "~^/ab"]), "/abc"), "~^/a");
        assert_eq!(found(&by_paths(&["~^/ab", "~^/a"]), "/abc"), "~^/ab");
        assert_eq!(found(&by_paths(&["~^/b"]), "/abc"), "-");
        // One expression on two routes is one path: the one with more conditions first, at the first place.
        let table = table(vec![
            route("plain", &["~^/a"], When::default()),
            route("between", &["~^/ab"], When::default()),
            route("more", &["~^/a"], methods(&[Method::GET])),
        ]);
        assert_eq!(found(&table, "/abc"), "more");
    }

    #[test]
    fn more_conditions_first_and_a_failed_one_falls_through() {
        let table = table(vec![
            route("root", &["/"], When::default()),
            route("api", &["/api/"], header("x-a", "1")),
            route("api, both", &["/api/"], When { methods: vec![Method::GET], ..header("x-a", "1") }),
            route("api, again", &["/api/"], header("x-a", "1")),
            route("exact", &["=/api/"], header("x-b", "1")),
            route("regex", &["~api"], header("x-c", "1")),
        ]);
        let ask = |method: Method, names: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.insert(*name, HeaderValue::from_static("1"));
            }
            table.find(&view(&method, "/api/", &headers)).map(|found| found.route.name.to_string()).unwrap()
        };
        assert_eq!(ask(Method::GET, &["x-a", "x-b", "x-c"]), "exact");
        assert_eq!(ask(Method::GET, &["x-a", "x-c"]), "regex");
        assert_eq!(ask(Method::GET, &["x-a"]), "api, both");
        assert_eq!(ask(Method::POST, &["x-a"]), "api");
        assert_eq!(ask(Method::GET, &[]), "root");
    }

    #[test]
    fn one_route_may_have_several_paths() {
        let table = table(vec![route("r", &["=/old", "=/older", "/x/", "/x/", "~y"], When::default())]);
        for path in ["/old", "/older", "/x", "/x/1", "/cry"] {
            assert_eq!(found(&table, path), "r");
        }
        assert_eq!(found(&table, "/oldest"), "-");
        let headers = HeaderMap::new();
        assert!(table.find(&view(&Method::GET, "/cry", &headers)).unwrap().regex.is_some());
        assert!(table.find(&view(&Method::GET, "/old", &headers)).unwrap().regex.is_none());
        assert_eq!(table.routes().len(), 1);
    }

    #[test]
    fn a_method_is_to_blame_only_when_nothing_else_is() {
        let refusing = table(vec![
            route("get", &["/a/"], methods(&[Method::GET, Method::HEAD])),
            route("put", &["/"], methods(&[Method::PUT, Method::GET])),
            route("canary", &["/a/"], When { methods: vec![Method::PATCH], ..header("x-a", "1") }),
        ]);
        let headers = HeaderMap::new();
        let refused = |method: &Method, path: &str| refusing.find(&view(method, path, &headers)).unwrap_err();
        let allow = vec![Method::GET, Method::HEAD, Method::PUT];
        assert_eq!(refused(&Method::POST, "/a/b"), NotMatched::Method { allow });
        assert_eq!(
            refused(&Method::POST, "/b"),
            NotMatched::Method { allow: vec![Method::PUT, Method::GET] }
        );
        assert_eq!(refused(&Method::POST, "*"), NotMatched::NoRoute);
        let only = table(vec![route("r", &["/"], header("x-a", "1"))]);
        assert_eq!(only.find(&view(&Method::GET, "/", &headers)).unwrap_err(), NotMatched::NoRoute);
    }

    #[test]
    fn a_thousand_routes() {
        let paths: Vec<String> = (0..1_000)
            .map(|n| match n % 10 {
                0 => format!("=/exact/{n}"),
                1 => format!("~^/regex/{n}$"),
                _ => format!("/prefix/{n}/"),
            })
            .collect();
        let table = by_paths(&paths.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found(&table, "/exact/990"), "=/exact/990");
        assert_eq!(found(&table, "/regex/991"), "~^/regex/991$");
        assert_eq!(found(&table, "/prefix/999/x"), "/prefix/999/");
        assert_eq!(found(&table, "/prefix/1000/x"), "-");
    }

    /// The order as the language says it, looking at every path of every route.
    fn naive(specs: &[RouteSpec], view: &RequestView<'_>) -> Result<usize, NotMatched> {
        let mut regexes: Vec<&str> = Vec::new();
        let mut candidates = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            for pattern in &spec.paths {
                let fewer = usize::MAX - spec.when.keys();
                let (rank, within) = match pattern {
                    PathPattern::Exact(path) if **path == *view.path => (0, 0),
                    PathPattern::Regex(regex) => {
                        let at =
                            regexes.iter().position(|known| *known == regex.as_str()).unwrap_or_else(|| {
                                regexes.push(regex.as_str());
                                regexes.len() - 1
                            });
                        if !regex.is_match(view.path) {
                            continue;
                        }
                        (1, at)
                    }
                    PathPattern::Prefix(prefix)
                        if view.path.starts_with(&**prefix) || format!("{}/", view.path) == **prefix =>
                    {
                        (2, usize::MAX - prefix.len())
                    }
                    _ => continue,
                };
                candidates.push((rank, within, fewer, index));
            }
        }
        candidates.sort_unstable();
        let indices = candidates.iter().map(|(.., index)| *index);
        if let Some(index) = indices.clone().find(|index| specs[*index].when.holds(view)) {
            return Ok(index);
        }
        let mut allow = Vec::new();
        for index in indices {
            let when = &specs[index].when;
            if (When { methods: vec![], ..when.clone() }).holds(view) {
                for method in &when.methods {
                    if !allow.contains(method) {
                        allow.push(method.clone());
                    }
                }
            }
        }
        Err(if allow.is_empty() { NotMatched::NoRoute } else { NotMatched::Method { allow } })
    }

    fn any_path() -> impl Strategy<Value = String> {
        prop_oneof!["=/[ab]{0,2}(/[ab]?)?", "~\\^?/?[ab]{1,2}\\$?", "/[ab]{0,3}", "/([ab]{1,2}/){0,3}",]
    }

    fn any_when() -> impl Strategy<Value = When> {
        (prop::sample::subsequence(vec![Method::GET, Method::POST], 0..2), any::<bool>(), any::<bool>())
            .prop_map(|(methods, one, other)| {
                let mut headers = header("x-a", "1").headers;
                headers.extend(header("x-b", "1").headers);
                let mut keep = [one, other].into_iter();
                headers.retain(|_| keep.next().unwrap());
                When { methods, headers, ..When::default() }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn the_table_agrees_with_the_naive_order(
            routes in prop::collection::vec((prop::collection::vec(any_path(), 1..4), any_when()), 0..12),
            path in "/[ab]{0,2}(/[ab]{0,2}){0,3}",
            post in any::<bool>(),
            named in prop::sample::subsequence(vec!["x-a", "x-b"], 0..=2),
        ) {
            let specs: Vec<_> = routes
                .iter()
                .enumerate()
                .map(|(n, (paths, when))| {
                    let paths: Vec<_> = paths.iter().map(|path| normal_pattern(path)).collect();
                    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
                    route(&n.to_string(), &paths, when.clone())
                })
                .collect();
            let mut headers = HeaderMap::new();
            for name in named {
                headers.insert(name, HeaderValue::from_static("1"));
            }
            let path = normalise_path(&path).into_owned();
            let method = if post { Method::POST } else { Method::GET };
            let view = view(&method, &path, &headers);
            let expected = naive(&specs, &view);
            let table = table(specs);
            let found = table.find(&view).map(|found| found.route.name.parse::<usize>().unwrap());
            prop_assert_eq!(found, expected);
        }

        // What is called shadowed is never taken.
        #[test]
        fn the_shadowed_never_match(
            routes in prop::collection::vec((prop::collection::vec("=?/[ab]?/?", 1..3), any_when()), 0..10),
            path in "/[ab]?/?",
            post in any::<bool>(),
            named in prop::sample::subsequence(vec!["x-a", "x-b"], 0..=2),
        ) {
            let specs: Vec<_> = routes
                .iter()
                .map(|(paths, when)| {
                    let paths: Vec<_> = paths.iter().map(|path| normal_pattern(path)).collect();
                    route("r", &paths.iter().map(String::as_str).collect::<Vec<_>>(), when.clone())
                })
                .collect();
            let mut headers = HeaderMap::new();
            for name in named {
                headers.insert(name, HeaderValue::from_static("1"));
            }
            let method = if post { Method::POST } else { Method::GET };
            let path = normalise_path(&path).into_owned();
            if let Ok(found) = naive(&specs, &view(&method, &path, &headers)) {
                prop_assert!(RouteSpec::shadowed(&specs).iter().all(|shadowed| shadowed.route != found));
            }
        }
    }

    fn normal_pattern(text: &str) -> String {
        if text.starts_with('~') {
            return text.to_owned();
        }
        let (sign, path) = text.split_at(usize::from(text.starts_with('=')));
        format!("{sign}{}", normalise_path(path))
    }
}
