//! What an operator probably did not mean: routes that can never match, and networks that decide nothing.

use super::table::Patterns;
use super::{ActionSpec, RouteSpec};
use crate::path::PathPattern;
use crate::when::When;

/// A path of a route that can never match, because another route with the same path is asked before and
/// holds wherever this one would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// The route that can never match.
    pub route: usize,
    /// Which of its paths.
    pub path: usize,
    /// The route that is always taken instead.
    pub by: usize,
}

impl RouteSpec {
    /// The routes of one site that can never match, by index: one entry for each of their paths, all paths
    /// of a route together, routes in the order of the file. A route with one path that is not caught is not
    /// listed.
    ///
    /// Only equal paths are compared: that an expression or a shorter prefix covers another path is what
    /// falling through is for.
    pub fn shadowed(routes: &[RouteSpec]) -> Vec<Shadowed> {
        let patterns = Patterns::of(routes);
        let mut shadowed = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let caught = route.paths.iter().enumerate().map(|(path, pattern)| {
                let before = patterns.rows(pattern).iter().take_while(|row| **row != index);
                let by = first_implied(routes, before, &route.when)?;
                Some(Shadowed { route: index, path, by })
            });
            shadowed.extend(caught.collect::<Option<Vec<_>>>().unwrap_or_default());
        }
        shadowed
    }

    /// The routes for certain clients, by `client_ips` or `client_cert`, that change nothing, each with the route another
    /// client falls through to: it goes to the same pool. Probably somebody took the condition for access control.
    pub fn same_pool_fall_through(routes: &[RouteSpec]) -> Vec<(usize, usize)> {
        let patterns = Patterns::of(routes);
        let chooses = |when: &When| !when.client_ips.is_empty() || when.client_cert == Some(true);
        let limited = routes.iter().enumerate().filter(|(_, route)| chooses(&route.when));
        limited
            .filter_map(|(index, route)| {
                let ActionSpec::Pool(pool) = &route.action else { return None };
                let client_cert = route.when.client_cert.map(|_| false);
                let from_elsewhere = When { client_ips: Vec::new(), client_cert, ..route.when.clone() };
                let next = route.paths.iter().find_map(|pattern| {
                    let after = after(&patterns, pattern, index);
                    let next = first_implied(routes, &after, &from_elsewhere)?;
                    let other = &routes.get(next)?.action;
                    matches!(other, ActionSpec::Pool(other) if other == pool).then_some(next)
                })?;
                Some((index, next))
            })
            .collect()
    }
}

/// The first of these rows that holds wherever `when` does.
fn first_implied<'a>(
    routes: &[RouteSpec],
    rows: impl IntoIterator<Item = &'a usize>,
    when: &When,
) -> Option<usize> {
    let implied = |row: &&usize| routes.get(**row).is_some_and(|route| route.when.implied_by(when));
    rows.into_iter().find(implied).copied()
}

/// The routes that are asked after this one on requests for its path, as far as can be told from the path:
/// what other expressions match is not asked.
fn after(patterns: &Patterns<'_>, pattern: &PathPattern, route: usize) -> Vec<usize> {
    let same = patterns.rows(pattern).iter().skip_while(|row| **row != route).skip(1).copied();
    let mut after: Vec<usize> = same.collect();
    if let PathPattern::Exact(path) = pattern {
        for (other, rows) in &patterns.in_file_order {
            if matches!(other, PathPattern::Regex(regex) if regex.is_match(path)) {
                after.extend(rows);
            }
        }
    }
    let mut prefixes: Vec<(&str, &[usize])> = Vec::new();
    for (other, rows) in &patterns.in_file_order {
        let PathPattern::Prefix(prefix) = other else { continue };
        let covers = match pattern {
            PathPattern::Exact(path) => {
                path.starts_with(&**prefix) || prefix.strip_suffix('/') == Some(&**path)
            }
            PathPattern::Prefix(path) => path.starts_with(&**prefix) && path != prefix,
            PathPattern::Regex(_) => **prefix == *"/",
        };
        if covers {
            prefixes.push((prefix, rows));
        }
    }
    prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    after.extend(prefixes.into_iter().flat_map(|(_, rows)| rows));
    after
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::{Condition, Policy, PoolSpec, Rewrite, SnapshotBuilder, TextMatch};

    fn route(paths: &[&str], when: When, pool: usize) -> RouteSpec {
        // Ids are given by builders alone.
        let mut builder = SnapshotBuilder::new(None);
        let pools = (0..=pool).map(|n| builder.add_pool(PoolSpec::new(n.to_string(), Vec::new())));
        RouteSpec {
            name: paths.concat().into(),
            paths: paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect(),
            when,
            action: ActionSpec::Pool(pools.last().unwrap()),
            rewrite: Rewrite::None,
            policy: Policy::default(),
        }
    }

    fn methods(list: &[Method]) -> When {
        When { methods: list.to_vec(), ..When::default() }
    }

    fn header(value: &str) -> When {
        let asked = Condition::Matches(TextMatch::Equals(value.into()));
        When { headers: vec![("x-canary".parse().unwrap(), asked)], ..When::default() }
    }

    fn ips(list: &[&str]) -> When {
        When { client_ips: list.iter().map(|net| net.parse().unwrap()).collect(), ..When::default() }
    }

    fn shadowed(routes: &[RouteSpec]) -> Vec<(usize, usize, usize)> {
        RouteSpec::shadowed(routes).into_iter().map(|s| (s.route, s.path, s.by)).collect()
    }

    #[test]
    fn the_same_path_twice() {
        for path in ["/", "=/a", "~^/a"] {
            let twice = [route(&[path], When::default(), 0), route(&[path], When::default(), 1)];
            assert_eq!(shadowed(&twice), [(1, 0, 0)], "{path}");
        }
        let kinds = ["/a", "=/a", "~/a", "/a/"].map(|path| route(&[path], When::default(), 0));
        assert!(shadowed(&kinds).is_empty());
    }

    #[test]
    fn every_path_must_be_caught() {
        let routes = [
            route(&["/a", "/b"], When::default(), 0),
            route(&["/a", "/c"], When::default(), 0),
            route(&["/c", "/b"], header("1"), 0),
            route(&["/c", "/b"], When::default(), 0),
        ];
        // The second has /c to itself; the third has more conditions and comes first.
        assert_eq!(shadowed(&routes), [(3, 0, 1), (3, 1, 0)]);
    }

    #[test]
    fn conditions_count() {
        let get = methods(&[Method::GET]);
        let either = methods(&[Method::GET, Method::POST]);
        assert!(shadowed(&[route(&["/"], get.clone(), 0), route(&["/"], either.clone(), 0)]).is_empty());
        assert_eq!(shadowed(&[route(&["/"], either, 0), route(&["/"], get.clone(), 0)]), [(1, 0, 0)]);
        assert!(shadowed(&[route(&["/"], header("1"), 0), route(&["/"], header("2"), 0)]).is_empty());
        assert_eq!(shadowed(&[route(&["/"], header("1"), 0), route(&["/"], header("1"), 0)]), [(1, 0, 0)]);
        // The one without conditions stands first in the file, but is asked last.
        assert!(shadowed(&[route(&["/"], When::default(), 0), route(&["/"], get, 0)]).is_empty());
        let nets = [route(&["/"], ips(&["10.0.0.0/8"]), 0), route(&["/"], ips(&["10.1.0.0/16"]), 0)];
        assert_eq!(shadowed(&nets), [(1, 0, 0)]);
    }

    #[test]
    fn a_route_does_not_shadow_itself() {
        assert!(shadowed(&[route(&["/a", "/a"], When::default(), 0)]).is_empty());
        assert!(shadowed(&[route(&[], When::default(), 0)]).is_empty());
    }

    #[test]
    fn networks_that_decide_nothing() {
        let office = ips(&["10.0.0.0/8"]);
        let fall = RouteSpec::same_pool_fall_through;
        for path in ["/", "/admin/", "/admin", "=/admin", "~^/admin"] {
            let routes = [route(&["/"], When::default(), 0), route(&[path], office.clone(), 0)];
            assert_eq!(fall(&routes), [(1, 0)], "{path}");
            let routes = [route(&["/"], When::default(), 1), route(&[path], office.clone(), 0)];
            assert!(fall(&routes).is_empty(), "{path}");
        }
        // Caught between by another pool.
        let routes = [
            route(&["/admin/"], office.clone(), 0),
            route(&["/admin/"], header("1"), 0),
            route(&["/adm"], When::default(), 1),
            route(&["/"], When::default(), 0),
        ];
        assert!(fall(&routes).is_empty());
        let routes = [
            route(&["=/admin"], office.clone(), 0),
            route(&["~adm"], When::default(), 1),
            route(&["/admin/"], When::default(), 0),
        ];
        assert!(fall(&routes).is_empty());
        let both = When { headers: header("1").headers, ..office };
        let routes = [route(&["=/admin"], both, 0), route(&["/admin/"], header("1"), 0)];
        assert_eq!(fall(&routes), [(0, 1)]);
        assert!(fall(&[route(&["/"], ips(&["10.0.0.0/8"]), 0)]).is_empty());
    }
}
