//! The whole configuration, read but not compiled: all files, their sections and the names in them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use toml::de::DeTable;

use super::admin::{self, Admin};
use super::decode::{Reading, Table, Value};
use super::diagnostic::{Problem, Problems};
use super::http3;
use super::names;
use super::pools::{self, PoolDraft, PoolLayer};
use super::server::Server;
use super::sites::{self, SiteDraft, SiteLayer};
use super::source::{self, Place, Placed, Source};
use super::syntax;
use super::tls::Tls;

#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) admin: Admin,
    pub(super) server: Server,
    pub(super) tls: Tls,
    pub(super) site_defaults: SiteLayer,
    pub(super) pool_defaults: PoolLayer,
    /// In the order of the files.
    pub(super) sites: Vec<SiteDraft>,
    pub(super) pools: Vec<PoolDraft>,
}

/// The files that `include` of the main file names, read.
pub(super) fn included(main: &Source, problems: &Problems) -> Vec<Source> {
    let Some(pattern) = include(main, problems) else { return Vec::new() };
    let paths = match source::matching(&main.folder, &pattern.value) {
        Ok(paths) => paths,
        Err(error) => {
            problems.push(Problem::error(
                pattern.place,
                format!("\"{}\" cannot be listed: {error}", pattern.value),
            ));
            return Vec::new();
        }
    };
    if paths.is_empty() {
        problems.push(Problem::warning(pattern.place, format!("\"{}\" names no file", pattern.value)));
    }
    let mut sources = Vec::new();
    for path in paths.iter().filter(|path| !same_file(path, Path::new(&main.name))) {
        match Source::read(path, sources.len() + 1) {
            Ok(source) => sources.push(source),
            Err(message) => problems.push(Problem::error(pattern.place, message)),
        }
    }
    sources
}

/// Which files the main file includes.
pub(super) fn include(main: &Source, problems: &Problems) -> Option<Placed<String>> {
    // What is wrong with the text itself is said when the whole document is read.
    let (tree, _) = DeTable::parse_recoverable(&main.text);
    let reading = Reading { source: main, problems };
    let root = Table::whole(reading, tree.get_ref());
    root.read("include", Value::string)
}

/// `include = "*.toml"` beside the main file names the main file too.
fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

impl Document {
    /// Reads every file; the first is the main one. `None` where one is not even TOML: what is missing in a
    /// half-read file would only be blamed on its author.
    pub(super) fn read(sources: &[Source], problems: &Problems) -> Option<Document> {
        let mut document = Document::default();
        let mut whole = true;
        for source in sources {
            let (mut tree, mut errors) = DeTable::parse_recoverable(&source.text);
            let mended = syntax::mended(source, &errors);
            if let Some(text) = &mended {
                let (rest, others) = DeTable::parse_recoverable(text);
                tree = rest;
                errors = syntax::together(errors, others);
            }
            let broken = syntax::report(source, tree.get_ref(), &errors, problems);
            let mark = problems.count();
            let root = Table::whole(Reading { source, problems }, tree.get_ref());
            if source.index == 0 {
                document.read_main(root);
            } else {
                document.read_included(root);
            }
            if let Some(broken) = broken {
                whole = false;
                problems.retain_since(mark, |problem| broken.spares(problem));
            }
        }
        document.refuse_equal_names(problems);
        whole.then_some(document)
    }

    fn read_main(&mut self, root: Table<'_>) {
        // Followed before.
        root.get("include");
        if let Some(table) = root.table("server") {
            self.server = Server::read(table);
        }
        if let Some(table) = root.table("http3") {
            self.server.settings.http3 = http3::read(table);
        }
        if let Some(table) = root.table("tls") {
            self.tls = Tls::read(table);
        }
        if let Some(table) = root.table("defaults") {
            if let Some(sites) = table.table("sites") {
                self.site_defaults = SiteLayer::read_defaults(sites);
            }
            if let Some(pools) = table.table("pools") {
                self.pool_defaults = PoolLayer::read_defaults(pools);
            }
            table.finish();
        }
        self.read_names(&root);
        if let Some(table) = root.table("admin") {
            self.admin = admin::read(table);
        }
        root.never_yet(&["access_log"]);
        root.later("metrics", |value| is_only_off(value, "listen"));
        root.later("tracing", |value| is_only_off(value, "otlp"));
        root.finish();
    }

    fn read_included(&mut self, root: Table<'_>) {
        if let Some(table) = root.table("tls") {
            self.tls.read_included(table);
        }
        self.read_names(&root);
        root.misplaced(
            &["include", "server", "admin", "metrics", "http3", "defaults", "access_log", "tracing"],
            "an included file holds only sites, pools, filters, forwards and tls.certificates; this belongs into the main file",
        );
        root.finish();
    }

    fn read_names(&mut self, root: &Table<'_>) {
        if let Some(table) = root.table("sites") {
            self.sites.extend(names::read(&table, &sites::TABLES).into_iter().map(SiteDraft::read));
        }
        if let Some(table) = root.table("pools") {
            self.pools.extend(names::read(&table, &pools::TABLES).into_iter().map(PoolDraft::read));
        }
        root.never_yet(&["filters", "forwards"]);
    }

    /// Within one file TOML itself refuses a name that stands twice.
    fn refuse_equal_names(&mut self, problems: &Problems) {
        unique(&mut self.sites, "site", |site| &site.name, problems);
        unique(&mut self.pools, "pool", |pool| &pool.name, problems);
    }
}

fn unique<T>(list: &mut Vec<T>, kind: &str, name: impl Fn(&T) -> &Placed<String>, problems: &Problems) {
    let mut seen: HashMap<String, Place> = HashMap::new();
    list.retain(|item| {
        let name = name(item);
        let Some(first) = seen.get(&name.value) else {
            seen.insert(name.value.clone(), name.place);
            return true;
        };
        let problem = Problem::error(name.place, format!("the {kind} `{}` stands twice", name.value));
        problems.push(problem.other(*first, "here first"));
        false
    });
}

fn is_only_off(value: &Value<'_>, key: &'static str) -> bool {
    let Some(table) = value.is_table().then(|| value.table()).flatten() else { return false };
    table.entries().iter().all(|(name, value)| name.value == key && value.is_word("off"))
}
