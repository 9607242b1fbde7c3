//! What does it cost to find out who should answer? Host look-up, route match with few and with many
//! routes, a pick by each balancer, and all of it together as for one request.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up may stop")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "likewise")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use foregate_routing::{
    Action, ActionSpec, Address, Balance, HostPattern, MemberSpec, PathPattern, Policy, PoolId, PoolSpec,
    RequestView, Rewrite, RouteSpec, SiteSpec, Snapshot, SnapshotBuilder, State, TlsRules, TlsVersion, When,
    normalise_host, normalise_path,
};
use http::{HeaderMap, Method};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn pool(balance: Balance, members: u8) -> PoolSpec {
    let member = |n: u8| MemberSpec {
        name: format!("vm{n}").into(),
        address: Address::Ip(([10, 0, 0, n], 8080).into()),
        weight: 1 + u32::from(n % 3),
        tier: 0,
        max_requests: None,
    };
    PoolSpec { balance, ..PoolSpec::new(balance.to_string(), (0..members).map(member).collect()) }
}

fn route(path: &str, pool: PoolId) -> RouteSpec {
    RouteSpec {
        name: path.into(),
        paths: vec![PathPattern::parse(path).expect("a path")],
        when: When::default(),
        action: ActionSpec::Pool(pool),
        rewrite: Rewrite::None,
        policy: Policy::default(),
    }
}

fn site(hosts: &[&str], routes: Vec<RouteSpec>) -> SiteSpec {
    SiteSpec {
        name: hosts[0].into(),
        hosts: hosts.iter().map(|host| HostPattern::parse(host).expect("a host")).collect(),
        addresses: None,
        http3: true,
        early_data: false,
        redirect_to_https: true,
        hsts: None,
        tls: TlsRules::open(TlsVersion::V1_3),
        response_headers: Vec::new(),
        routes,
    }
}

/// A thousand sites; those that are measured have `routes` routes: for ten, seven prefixes and one exact path
/// and, if wanted, one expression, and at last `/`.
fn snapshot(routes: usize, expressions: bool) -> Snapshot {
    let mut builder = SnapshotBuilder::new(None);
    let pool = builder.add_pool(pool(Balance::RoundRobin, 8));
    let paths = (0..routes - 1).map(|n| match n % 10 {
        3 => format!("=/exact/{n}/index.html"),
        7 if expressions => format!("~^/regex/{n}/([0-9]+)/"),
        _ => format!("/service/{n}/"),
    });
    let table: Vec<RouteSpec> = paths.chain(["/".to_owned()]).map(|path| route(&path, pool)).collect();
    builder.add_site(site(&["shop.example.com", "*.shop.example.com"], table));
    for n in 0..999 {
        builder.add_site(site(&[&format!("site{n}.example.com")], vec![route("/", pool)]));
    }
    builder.build()
}

fn hosts(c: &mut Criterion) {
    let snapshot = snapshot(10, true);
    let mut group = c.benchmark_group("host");
    for (name, authority) in
        [("exact", "shop.example.com:8443"), ("wildcard", "eu.shop.example.com"), ("none", "a.b.c")]
    {
        group.bench_function(name, |b| {
            b.iter(|| {
                let host = normalise_host(black_box(authority)).unwrap();
                snapshot.host(&host, LOCAL).map(|found| found.site.http3)
            });
        });
    }
}

fn routes(c: &mut Criterion) {
    let headers = HeaderMap::new();
    for (kind, expressions) in [("route", false), ("route_with_regexes", true)] {
        let mut group = c.benchmark_group(kind);
        for routes in [10, 1_000] {
            let snapshot = snapshot(routes, expressions);
            let site = &snapshot.sites()[0];
            let last = routes - 2;
            let mut paths = vec![
                ("exact", format!("/exact/{}/index.html", routes - 7)),
                ("prefix", format!("/service/{last}/users/42/orders")),
                ("root", "/favicon.ico".to_owned()),
            ];
            if expressions {
                paths.push(("regex", format!("/regex/{}/42/x", routes - 3)));
            }
            for (name, path) in paths {
                let id = BenchmarkId::new(name, routes);
                group.bench_with_input(id, &path, |b, path| {
                    b.iter(|| {
                        let path = normalise_path(black_box(path));
                        let view = RequestView {
                            method: &Method::GET,
                            path: &path,
                            query: None,
                            headers: &headers,
                            client_ip: LOCAL,
                            client_cert: false,
                        };
                        site.route(&view).map(|found| std::ptr::from_ref(found.route)).unwrap()
                    });
                });
            }
        }
    }
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for balance in Balance::ALL {
        for (state, members, down) in [("8", 8, false), ("8_one_down", 8, true), ("100", 100, false)] {
            let mut builder = SnapshotBuilder::new(None);
            let id = builder.add_pool(pool(balance, members));
            let snapshot = builder.build();
            let pool = snapshot.pool(id).unwrap();
            if down {
                pool.members()[2].endpoint.vitals.set_state(State::Down);
            }
            // Some load, so that nobody takes the way for idle members.
            let _held: Vec<_> = (0..1_000_u64).map(|n| pool.pick(spread(n), &[], spread(!n), n)).collect();
            group.bench_function(BenchmarkId::new(balance.name(), state), |b| {
                let mut n = 0_u64;
                b.iter(|| {
                    n += 1;
                    pool.pick(spread(n), &[], spread(!n), n).map(|pick| pick.index)
                });
            });
        }
    }
}

fn request(c: &mut Criterion) {
    let headers = HeaderMap::new();
    let mut group = c.benchmark_group("request");
    for routes in [10, 1_000] {
        let snapshot = snapshot(routes, true);
        let target = format!("/service/{}/users/42/orders", routes - 2);
        group.bench_with_input(BenchmarkId::new("host_route_pick", routes), &target, |b, target| {
            let mut n = 0_u64;
            b.iter(|| {
                n += 1;
                let host = normalise_host(black_box("shop.example.com")).unwrap();
                let site = snapshot.host(&host, LOCAL).unwrap().site;
                let path = normalise_path(black_box(target));
                let client_ip = Ipv4Addr::from(u32::try_from(n % 65_536).unwrap()).into();
                let view = RequestView {
                    method: &Method::GET,
                    path: &path,
                    query: None,
                    headers: &headers,
                    client_ip,
                    client_cert: false,
                };
                let Ok(found) = site.route(&view) else { return None };
                let Action::Pool(pool) = &found.route.action else { return None };
                pool.pick(pool.key(&view), &[], spread(n), n).map(|pick| pick.index)
            });
        });
    }
}

/// A cheap stand-in for the caller's random numbers.
fn spread(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n ^ (n >> 29)
}

criterion_group!(match_pick, hosts, routes, picks, request);
criterion_main!(match_pick);
