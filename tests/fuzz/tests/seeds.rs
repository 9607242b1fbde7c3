//! The fuzz targets, on what the engine begins with and on a few changes to it.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// Which seed it was is told where the test runner shows it.
#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;

use foregate_fuzz::seeds::{self, TARGETS};
use proptest::prelude::*;

/// All files of a target by their names.
fn files(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(seeds::folder(target)).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn the_files_are_those_that_are_made() {
    for seed in seeds::all() {
        let path = seeds::folder(seed.target).join(seed.name);
        let written = std::fs::read(&path).unwrap_or_default();
        assert!(written == seed.bytes, "{} is old: cargo run -p foregate-fuzz --bin seeds", path.display());
    }
}

#[test]
fn every_seed_is_borne() {
    for (target, run) in TARGETS {
        let files = files(target);
        assert!(files.len() >= 10, "{target} has {} seeds", files.len());
        for (name, bytes) in &files {
            eprintln!("{target}/{name}");
            run(bytes);
            // And every beginning of it, of the connection a few.
            let step = if target == "connection" { bytes.len().div_ceil(4).max(1) } else { 1 };
            for end in (0..bytes.len()).step_by(step) {
                run(&bytes[..end]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_borne(bytes: Vec<u8>) {
        for (_, run) in TARGETS {
            run(&bytes);
        }
    }
}
