//! From what was written to what is served: names become pools, drafts become specifications, and whatever
//! can only be seen from above is checked here.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foregate_certs::acme::Plan;
use foregate_edge::Live;
use foregate_routing::{
    ActionSpec, HostPattern, PathPattern, PoolId, PoolSpec, Rewrite, RouteSpec, Secret, SiteSpec,
    SnapshotBuilder, TlsRules, When,
};
use foregate_upstream::Transport;

use super::acme::Acme;
use super::actions::{Action, ActionKind, PoolRef};
use super::certificates::{self, Certificates};
use super::clients::Clients;
use super::diagnostic::{Problem, Problems};
use super::document::Document;
use super::inherit::Layer;
use super::pools::{Around, PoolDraft, PoolLayer};
use super::routes::RouteDraft;
use super::sites::{SiteDraft, SiteLayer};
use super::source::{Place, Placed};
use super::suggest;
use super::value::Location;
use crate::blueprint::Blueprint;
use crate::pair::Pair;
use crate::self_signed::SelfSigned;
use crate::state::StickySecret;

/// What a document without errors compiles to.
pub(super) struct Compiled {
    pub(super) live: Live,
    pub(super) self_signed: Vec<SelfSigned>,
    pub(super) pairs: Vec<Pair>,
    pub(super) plan: Option<Plan>,
    pub(super) sticky: Option<StickySecret>,
    pub(super) blueprint: Blueprint,
}

/// Compiles a document. `None` exactly when an error has been noted.
pub(super) fn compile(
    document: Document,
    previous: Option<&Live>,
    kept: Option<&[Pair]>,
    problems: &Problems,
) -> Option<Compiled> {
    let Document { admin: _, server, tls, site_defaults, pool_defaults, sites, pools } = document;
    let secret = StickySecret::obtain(&server.state_dir);
    let known = secret.as_ref().map_or(Secret([0; 16]), |secret| secret.secret);
    let around = Around { drain: server.settings.timeouts.drain, secret: known };
    let mut assembly = Assembly {
        around,
        sticks: false,
        previous: previous.map(transports).unwrap_or_default(),
        blueprint: Blueprint::default(),
        builder: SnapshotBuilder::new(previous.map(|live| &live.routing)),
        transports: Vec::new(),
        named: HashMap::new(),
        unknown: None,
        defaults: pool_defaults,
        renews: kept.is_some(),
        watched: Vec::new(),
        problems,
    };
    for pool in &pools {
        assembly.add_named(pool);
    }
    let mut layers: Vec<(&SiteDraft, SiteLayer)> = Vec::new();
    let mut clients = Clients::new(previous, kept.is_some(), problems);
    let served = !server.settings.https.is_empty();
    for site in &sites {
        let layer = site.layer.clone().over(&site_defaults);
        if server.addresses_known {
            check_addresses(&layer, &server.settings.addresses, problems);
        }
        let redirect = layer.redirect_to_https.as_ref().or(server.redirect_to_https.as_ref());
        if let Some(written) = redirect.filter(|redirect| redirect.value && !served) {
            warn_of_vain_redirect(written, problems);
        }
        let redirect = redirect.is_none_or(|redirect| redirect.value) && served;
        let hsts = layer.hsts.as_ref().value();
        if hsts.is_some_and(|hsts| hsts.preload_is_vain()) {
            let message = format!("browsers will not preload the site `{}`", site.name.value);
            let problem = Problem::warning(site.name.place, message);
            problems
                .push(problem.help(
                    "their lists ask for `include_subdomains = true` and `max_age = \"365d\"` or more",
                ));
        }
        let rules = TlsRules {
            min_version: layer.tls.min_version.unwrap_or(tls.min_version),
            clients: clients.of(site, &layer, served),
        };
        if !layer.tls.asks_clients() {
            refuse_vain_client_cert(site, problems);
        }
        let spec = SiteSpec {
            name: site.name.value.as_str().into(),
            hosts: site.hosts.iter().map(|host| host.value.clone()).collect(),
            addresses: layer.addresses.as_ref().map(|addresses| addresses.value.clone()),
            http3: layer.http3.unwrap_or(true),
            early_data: layer.early_data.unwrap_or(false),
            redirect_to_https: redirect,
            hsts: hsts.and_then(|hsts| hsts.compile()),
            tls: rules,
            response_headers: layer.policy.clone().compile(server.request_body).response_headers,
            routes: assembly.routes(site, &layer, server.request_body),
        };
        assembly.blueprint.add_site(spec.clone());
        assembly.builder.add_site(spec);
        layers.push((site, layer));
    }
    if let Some(written) = server.redirect_to_https.as_ref().filter(|redirect| redirect.value && !served) {
        warn_of_vain_redirect(written, problems);
    }
    if sites.is_empty() {
        problems.push(Problem::overall("no site: every request is answered 404"));
    }
    refuse_equal_hosts(&layers, problems);
    layers.retain(|(site, _)| !site.passthrough);
    assembly.warn_of_unused();
    let Certificates { store, made: self_signed, mut pairs, plan } =
        certificates::compile(&tls, &layers, &server, kept.unwrap_or_default(), problems);
    pairs.append(&mut assembly.watched);
    let (clients, mut watched) = clients.all();
    pairs.append(&mut watched);
    let sticky = match secret {
        Ok(secret) => assembly.sticks.then_some(secret),
        Err(message) => {
            if assembly.sticks {
                problems.push(Problem::unreadable(message));
            }
            None
        }
    };
    if problems.any_error() {
        return None;
    }
    let transports: Option<Vec<Arc<Transport>>> = assembly.transports.into_iter().collect();
    let live = Live {
        routing: assembly.builder.build(),
        transports: transports?,
        certificates: Arc::new(store),
        clients,
        on_demand: served && tls.acme.as_ref().is_some_and(Acme::is_on_demand),
        settings: Arc::new(server.settings),
    };
    Some(Compiled { live, self_signed, pairs, plan, sticky, blueprint: assembly.blueprint })
}

fn transports(live: &Live) -> HashMap<Arc<str>, Arc<Transport>> {
    let names = live.routing.pools().iter().map(|pool| pool.name.clone());
    names.zip(live.transports.iter().cloned()).collect()
}

/// The snapshot in the making, and the pools that can be named so far.
struct Assembly<'p> {
    around: Around,
    /// Some pool keeps clients by a cookie.
    sticks: bool,
    /// By the pool's name, what its VMs were spoken to by so far.
    previous: HashMap<Arc<str>, Arc<Transport>>,
    blueprint: Blueprint,
    builder: SnapshotBuilder,
    /// Index is that of the pool; `None` where an error was noted.
    transports: Vec<Option<Arc<Transport>>>,
    named: HashMap<String, NamedPool>,
    /// Stands in for every pool that does not exist, so that its route can be looked at all the same.
    unknown: Option<PoolId>,
    defaults: PoolLayer,
    /// Nothing but files has changed.
    renews: bool,
    /// The files that the transports have read.
    watched: Vec<Pair>,
    problems: &'p Problems,
}

struct NamedPool {
    id: PoolId,
    place: Place,
    used: Cell<bool>,
}

/// The inline pools of one site: equal lists of addresses are one pool.
type InlinePools = Vec<(Vec<Location>, PoolId)>;

impl Assembly<'_> {
    fn add(&mut self, pool: &PoolDraft) -> PoolId {
        let layer = pool.layer.clone().over(&self.defaults);
        let previous = self.previous.get(pool.name.value.as_str());
        let Assembly { renews, watched, problems, .. } = self;
        let transport = super::transport::compile(pool, &layer, previous, *renews, watched, problems);
        self.transports.push(transport);
        let spec = pool.compile(&layer, &self.around, self.problems);
        self.sticks |= spec.sticky.is_some();
        self.blueprint.add_pool(spec.clone(), pool.discover.clone());
        self.builder.add_pool(spec)
    }

    fn add_named(&mut self, pool: &PoolDraft) {
        let id = self.add(pool);
        let named = NamedPool { id, place: pool.name.place, used: Cell::new(false) };
        self.named.insert(pool.name.value.clone(), named);
    }

    fn pool(&mut self, pool: &PoolRef, name: &str, inline: &mut InlinePools) -> PoolId {
        let locations = match pool {
            PoolRef::Named(name) => return self.find(name),
            PoolRef::Inline(locations) => locations,
        };
        let wanted: Vec<Location> = locations.iter().map(|location| location.value.clone()).collect();
        if let Some((_, id)) = inline.iter().find(|(known, _)| *known == wanted) {
            return *id;
        }
        // An endpoint is known by its pool's name and its address: the name must be unique and last.
        let base = format!("sites.{name}");
        let taken = |name: &String, assembly: &Self| assembly.named.contains_key(name);
        let mut unique = base.clone();
        let mut count = 1;
        while taken(&unique, self) {
            count += 1;
            unique = format!("{base}#{count}");
        }
        let place = locations.first().map_or(Place { file: 0, start: 0, end: 0 }, |first| first.place);
        let draft = PoolDraft::inline(Placed::new(unique.clone(), place), locations.clone(), self.problems);
        let id = self.add(&draft);
        self.named.insert(unique, NamedPool { id, place, used: Cell::new(true) });
        inline.push((wanted, id));
        id
    }

    fn find(&mut self, name: &Placed<String>) -> PoolId {
        if let Some(pool) = self.named.get(&name.value) {
            pool.used.set(true);
            return pool.id;
        }
        let mut known: Vec<&str> =
            self.named.keys().map(String::as_str).filter(|known| !known.starts_with("sites.")).collect();
        known.sort_unstable();
        let problem = Problem::error(name.place, format!("there is no pool `{}`", name.value));
        let bare = name.value.parse::<IpAddr>().is_ok() || name.value.contains('.');
        let problem = match suggest::nearest(&name.value, known.iter().copied()) {
            Some(word) => problem.suggest(Some(word)),
            None if bare => problem.help(format!("an address has a port: \"{}:80\"", name.value)),
            None if known.is_empty() => {
                problem.help(format!("write [pools.{}], or the VM's address in its place", name.value))
            }
            None => problem.help(format!("the pools are {}", suggest::quoted(&known))),
        };
        self.problems.push(problem);
        let Self { unknown, builder, transports, .. } = self;
        *unknown.get_or_insert_with(|| {
            transports.push(None);
            builder.add_pool(PoolSpec::new("", Vec::new()))
        })
    }

    fn action(&mut self, action: &Action, name: &str, inline: &mut InlinePools) -> Option<ActionSpec> {
        Some(match &action.kind {
            ActionKind::Pool(pool) => ActionSpec::Pool(self.pool(pool, name, inline)),
            ActionKind::Split { arms, on } => ActionSpec::Split {
                arms: arms.iter().map(|(pool, weight)| (self.pool(pool, name, inline), *weight)).collect(),
                on: on.clone(),
            },
            ActionKind::Redirect { to, status } => ActionSpec::Redirect { to: to.clone(), status: *status },
            ActionKind::Respond(respond) => ActionSpec::Respond(respond.clone()),
            ActionKind::Unreadable => return None,
        })
    }

    /// The routes of a site, its own action among them as the one for `/`.
    fn routes(&mut self, site: &SiteDraft, layer: &SiteLayer, request_body: Option<u64>) -> Vec<RouteSpec> {
        let mut inline = InlinePools::new();
        let name = &site.name.value;
        let own = site.action.as_ref().and_then(|action| self.action(action, name, &mut inline));
        let mut specs: Vec<RouteSpec> = Vec::new();
        let mut places: Vec<Place> = Vec::new();
        let mut own_is_used = false;
        for route in &site.routes {
            let action = match &route.action {
                Some(action) => self.action(action, &format!("{name}{}", route.first_path), &mut inline),
                None => {
                    own_is_used = true;
                    self.own_action(site, own.as_ref(), route)
                }
            };
            let Some(action) = action.filter(|_| route.sound) else { continue };
            specs.push(RouteSpec {
                name: route.name.as_str().into(),
                paths: route.paths.iter().map(|path| path.value.clone()).collect(),
                when: route.when.clone(),
                action,
                rewrite: route.rewrite.as_ref().map_or(Rewrite::None, |rewrite| rewrite.value.clone()),
                policy: route.policy.clone().over(&layer.policy).compile(request_body),
            });
            places.push(route.place);
        }
        let routed = specs.len();
        if let (Some(action), Some(written)) = (own, &site.action) {
            specs.push(RouteSpec {
                name: format!("sites.{name}").into(),
                paths: vec![PathPattern::Prefix("/".into())],
                when: When::default(),
                action,
                rewrite: Rewrite::None,
                policy: layer.policy.clone().compile(request_body),
            });
            places.push(written.place);
        }
        let own = (specs.len() > routed).then_some(routed);
        self.check_order(&mut specs, &places, own, own_is_used);
        specs
    }

    fn own_action(
        &self,
        site: &SiteDraft,
        own: Option<&ActionSpec>,
        route: &RouteDraft,
    ) -> Option<ActionSpec> {
        if site.action.is_none() && !site.passthrough {
            let message = format!(
                "this route does nothing, and the site `{}` has no action of its own",
                site.name.value
            );
            let problem = Problem::error(route.place, message);
            self.problems.push(problem.help("give it one of `pool`, `split`, `redirect` and `respond`"));
        }
        own.cloned()
    }

    /// Refuses routes that can never match, and warns of `when` taken for access control. `own` is the index
    /// of the site's own action.
    fn check_order(
        &self,
        specs: &mut Vec<RouteSpec>,
        places: &[Place],
        own: Option<usize>,
        own_is_used: bool,
    ) {
        let mut shadowed = RouteSpec::shadowed(specs);
        if let Some(own) = own.filter(|own| own_is_used && shadowed.iter().any(|one| one.route == *own)) {
            // Routes without an action of their own use it, so it is not written in vain.
            specs.truncate(own);
            shadowed.retain(|one| one.route != own);
        }
        // Told per path, and one place is enough.
        shadowed.dedup_by_key(|one| one.route);
        for one in shadowed {
            let (Some(place), Some(by)) = (places.get(one.route), places.get(one.by)) else { continue };
            let what = match own {
                Some(own) if own == one.route => "the site's own action can never be reached",
                _ => "this route can never match",
            };
            let problem = Problem::error(*place, what).other(*by, "this takes every request first");
            self.problems.push(problem.help("remove it, or move it up or give it a narrower path"));
        }
        for (route, next) in RouteSpec::same_pool_fall_through(specs) {
            let (Some(place), Some(next)) = (places.get(route), places.get(next)) else { continue };
            let problem = Problem::warning(*place, "other clients reach the same pool all the same");
            self.problems.push(
                problem.other(*next, "by this route").help("`when` chooses among routes; it does not deny"),
            );
        }
    }

    fn warn_of_unused(&self) {
        for (name, pool) in self.named.iter().filter(|(_, pool)| !pool.used.get()) {
            let problem = Problem::warning(pool.place, format!("no site uses the pool `{name}`"));
            self.problems.push(problem);
        }
    }
}

/// A condition that no client can fulfil.
fn refuse_vain_client_cert(site: &SiteDraft, problems: &Problems) {
    for route in site.routes.iter().filter(|route| route.when.client_cert == Some(true)) {
        let problem = Problem::error(route.place, "this route can never match");
        let problem = problem.other(site.name.place, "this site asks no client for a certificate");
        problems.push(problem.help(
            "give the site `tls = { client_ca = \"clients.pem\", client_auth = \"optional\" }`, or remove `client_cert`",
        ));
    }
}

fn warn_of_vain_redirect(written: &Placed<bool>, problems: &Problems) {
    let message = "`redirect_to_https` has no effect while `https` is off";
    problems.push(Problem::warning(written.place, message).help("remove it, or give `https` a port"));
}

/// A site's addresses are among those of the server, or under one of its wildcards.
fn check_addresses(layer: &SiteLayer, server: &[IpAddr], problems: &Problems) {
    let Some(addresses) = &layer.addresses else { return };
    for address in &addresses.value {
        let under =
            |own: &IpAddr| own == address || (own.is_unspecified() && own.is_ipv4() == address.is_ipv4());
        if !server.iter().any(under) {
            let message = format!("{address} is none of the addresses of [server]");
            problems.push(Problem::error(addresses.place, message).help("add it to `server.addresses`"));
        }
    }
}

/// One host belongs to one site, wherever both sites exist.
fn refuse_equal_hosts(sites: &[(&SiteDraft, SiteLayer)], problems: &Problems) {
    let mut seen: HashMap<&HostPattern, Vec<(&SiteLayer, Place)>> = HashMap::new();
    for (site, layer) in sites {
        for host in &site.hosts {
            let others = seen.entry(&host.value).or_default();
            if let Some((_, first)) = others.iter().find(|(other, _)| share_an_address(layer, other)) {
                let problem =
                    Problem::error(host.place, format!("the host {} belongs to two sites", host.value));
                problems.push(problem.other(*first, "here first"));
            }
            others.push((layer, host.place));
        }
    }
}

fn share_an_address(one: &SiteLayer, other: &SiteLayer) -> bool {
    match (&one.addresses, &other.addresses) {
        (Some(one), Some(other)) => one.value.iter().any(|address| other.value.contains(address)),
        _ => true,
    }
}
