//! What the source is made of: who may use whom, which licences, and which versions are known to be bad.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(cargo).args(arguments).arg("--locked").current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn metadata() -> &'static Value {
    static ONCE: OnceLock<Value> = OnceLock::new();
    ONCE.get_or_init(|| {
        let text =
            cargo(&["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
        serde_json::from_str(&text).unwrap()
    })
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list"))
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// The packages that are really built. `metadata` alone also lists what a feature would bring that nobody
/// asked for; `tree` knows.
fn built() -> Vec<&'static Value> {
    let target = ["--target", "x86_64-unknown-linux-gnu"];
    let tree =
        cargo(&[&["tree", "--workspace", "--prefix", "none", "--format", "{p}"][..], &target].concat());
    let built: HashSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    assert!(built.len() > 100, "{tree}");
    list(metadata(), "packages")
        .iter()
        .filter(|p| built.contains(&(text(p, "name"), text(p, "version"))))
        .collect()
}

/// The table of architecture.md: which crates a crate may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("foregate-routing", &[]),
    ("foregate-exchange", &[]),
    ("foregate-telemetry", &[]),
    ("foregate-http3", &["foregate-telemetry"]),
    ("foregate-upstream", &["foregate-exchange", "foregate-routing", "foregate-telemetry", "foregate-http3"]),
    (
        "foregate-health",
        &["foregate-exchange", "foregate-routing", "foregate-upstream", "foregate-telemetry"],
    ),
    ("foregate-filters", &["foregate-exchange", "foregate-upstream", "foregate-telemetry"]),
    ("foregate-discovery", &["foregate-routing", "foregate-upstream", "foregate-telemetry"]),
    ("foregate-certs", &["foregate-exchange", "foregate-routing", "foregate-upstream", "foregate-telemetry"]),
    (
        "foregate-edge",
        &[
            "foregate-exchange",
            "foregate-routing",
            "foregate-telemetry",
            "foregate-http3",
            "foregate-upstream",
            "foregate-health",
            "foregate-filters",
            "foregate-certs",
        ],
    ),
];

#[test]
fn lower_layers_never_name_higher_ones() {
    let members: Vec<&str> = list(metadata(), "workspace_members").iter().filter_map(Value::as_str).collect();
    let packages: Vec<&Value> =
        list(metadata(), "packages").iter().filter(|p| members.contains(&text(p, "id"))).collect();
    let ours: Vec<&str> = packages.iter().map(|p| text(p, "name")).collect();
    assert!(ours.contains(&"foregate") && ours.contains(&"foregate-edge"), "{ours:?}");
    for package in &packages {
        let name = text(package, "name");
        let uses: Vec<&str> = list(package, "dependencies")
            .iter()
            .map(|d| text(d, "name"))
            .filter(|d| ours.contains(d))
            .collect();
        let allowed = match LAYERS.iter().find(|(n, _)| *n == name) {
            Some((_, allowed)) => *allowed,
            // The program uses all; benchmarks measure all; the tests of the whole know none of it.
            None if name == "foregate" || name == "foregate-bench" => &ours[..],
            None if name == "foregate-tests" => &[],
            None if name == "foregate-fuzz" => &["foregate-exchange", "foregate-http3"],
            None => panic!("{name} is not in the table of architecture.md, nor in this test"),
        };
        for used in uses {
            assert!(allowed.contains(&used), "{name} must not use {used}");
        }
    }
}

/// Sockets and clocks stay out of the crate that decides.
#[test]
fn routing_is_pure() {
    let packages = list(metadata(), "packages");
    let routing = packages.iter().find(|p| text(p, "name") == "foregate-routing").unwrap();
    for dependency in list(routing, "dependencies").iter().filter(|d| d["kind"].is_null()) {
        let name = text(dependency, "name");
        assert!(
            !["tokio", "hyper", "quinn", "rustls", "socket2", "rustix"].contains(&name),
            "routing uses {name}"
        );
    }
}

#[test]
fn there_is_one_crypto_provider() {
    let names: Vec<&str> = built().iter().map(|p| text(p, "name")).collect();
    assert!(names.contains(&"aws-lc-rs"), "the tree has no TLS at all");
    for other in ["ring", "openssl", "openssl-sys", "native-tls", "rustls-pemfile"] {
        assert!(!names.contains(&other), "{other} is in the tree");
    }
}

const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "CC0-1.0",
    "MPL-2.0",
    "OpenSSL",
    "CDLA-Permissive-2.0",
    "0BSD",
    "Unlicense",
    "BSL-1.0",
];

/// Whether an SPDX expression can be satisfied from the list: every part of an AND, one part of an OR.
fn acceptable(expression: &str) -> bool {
    let expression = expression.trim();
    // "MIT/Apache-2.0" is the old way to write OR.
    let any = split_outside(expression, &[" OR ", "/"]);
    if any.len() > 1 {
        return any.iter().any(|part| acceptable(part));
    }
    let all = split_outside(expression, &[" AND "]);
    if all.len() > 1 {
        return all.iter().all(|part| acceptable(part));
    }
    match expression.strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(within) => acceptable(within),
        None => LICENCES.contains(&expression),
    }
}

/// Splits at words that stand outside of brackets.
fn split_outside<'e>(expression: &'e str, words: &[&str]) -> Vec<&'e str> {
    let (mut depth, mut begin, mut parts) = (0_i32, 0, Vec::new());
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0
            && at >= begin
            && let Some(word) = words.iter().find(|w| expression[at..].starts_with(**w))
        {
            parts.push(&expression[begin..at]);
            begin = at + word.len();
        }
    }
    parts.push(&expression[begin..]);
    parts
}

#[test]
fn licence_expressions_are_understood() {
    for good in
        ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND ISC", "ISC AND (Apache-2.0 OR ISC)"]
    {
        assert!(acceptable(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND AGPL-3.0", ""] {
        assert!(!acceptable(bad), "{bad}");
    }
}

#[test]
fn every_licence_is_one_we_may_ship() {
    let bad: Vec<String> = built()
        .iter()
        .filter(|p| !acceptable(text(p, "license")))
        .map(|p| format!("{} {}: {:?}", text(p, "name"), text(p, "version"), text(p, "license")))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// From crates.md: below these there are known advisories.
const FLOORS: &[(&str, [u64; 3])] = &[
    ("quinn-proto", [0, 11, 15]),
    ("h2", [0, 4, 16]),
    ("rustls-webpki", [0, 103, 13]),
    ("hickory-proto", [0, 26, 1]),
    ("hickory-resolver", [0, 26, 1]),
    ("tracing-subscriber", [0, 3, 20]),
    ("lru", [0, 18, 2]),
    ("bcrypt", [0, 19, 2]),
    ("time", [0, 3, 47]),
];

#[test]
fn nothing_is_older_than_its_last_advisory() {
    let mut found = BTreeMap::new();
    for package in built() {
        let Some((name, floor)) = FLOORS.iter().find(|(n, _)| *n == text(package, "name")) else { continue };
        let version = text(package, "version").split(['-', '+']).next().unwrap();
        let parts: Vec<u64> = version.split('.').map(|p| p.parse().unwrap()).collect();
        assert!(parts.as_slice() >= floor.as_slice(), "{name} {version} is below {floor:?}");
        found.insert(*name, version.to_owned());
    }
    assert!(found.contains_key("h2") && found.contains_key("quinn-proto"), "{found:?}");
}

/// Every package of ours takes part in the workspace's lints.
#[test]
fn every_package_takes_the_workspace_lints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for package in list(metadata(), "workspace_members").iter().filter_map(Value::as_str) {
        let found = list(metadata(), "packages").iter().find(|p| text(p, "id") == package).unwrap();
        let manifest = std::fs::read_to_string(text(found, "manifest_path")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package} in {}", root.display());
    }
}
