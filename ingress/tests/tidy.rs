//! Holds the rules of docs/ARCHITECTURE.md and docs/STYLE.md that a compiler does not: who may import whom, which
//! crate alone knows a library, what the cores must not read, and that every file says what it is for.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The workspace's crates with what each may import of the others.
const IMPORTS: &[(&str, &[&str])] = &[
    ("turnflow-state", &[]),
    ("turnflow-models", &["turnflow-state"]),
    ("turnflow-operators", &["turnflow-models", "turnflow-state"]),
    ("turnflow-pipeline", &["turnflow-models", "turnflow-operators", "turnflow-state"]),
    ("turnflow", &["turnflow-models", "turnflow-operators", "turnflow-pipeline", "turnflow-state"]),
];

/// Libraries that only some crates may know, by the start of their names.
const KNOWN_BY: &[(&str, &[&str])] = &[
    // The benches put a bare server beside ours.
    ("tonic", &["turnflow", "turnflow-benches"]),
    ("prost", &["turnflow", "turnflow-benches"]),
    ("axum", &["turnflow", "turnflow-benches"]),
    ("rocksdb", &["turnflow-state"]),
    ("hnsw_rs", &["turnflow-state"]),
    ("burn", &["turnflow-models"]),
    ("tokenizers", &["turnflow-models"]),
    ("timely", &["turnflow-operators", "turnflow-pipeline"]),
    ("differential-dataflow", &["turnflow-operators", "turnflow-pipeline"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The folders of the workspace's crates.
const CRATES: [&str; 6] = ["state", "models", "operators", "pipeline", "ingress", "benches"];

fn manifest(folder: &str) -> toml::Table {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
    text.parse().expect("TOML")
}

/// What a manifest depends on, of every kind, with how it is written there.
fn declared(manifest: &toml::Table) -> impl Iterator<Item = (&String, &toml::Value)> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .into_iter()
        .filter_map(|section| manifest.get(section).and_then(toml::Value::as_table))
        .flatten()
}

/// Direct dependencies of each crate of the workspace, of every kind, by the crate's name.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    CRATES
        .iter()
        .map(|folder| {
            let manifest = manifest(folder);
            let name = manifest["package"]["name"].as_str().expect("a name").to_owned();
            (name, declared(&manifest).map(|(imported, _)| imported.clone()).collect())
        })
        .collect()
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&entry).expect("UTF-8");
                found.push((entry, text));
            }
        }
    }
    found
}

fn all_sources() -> Vec<(PathBuf, String)> {
    ["state", "models", "operators", "pipeline", "ingress", "benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .collect()
}

/// Lines of code: comments and what follows `#[cfg(test)]` left out.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let shipped = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
    (1..).zip(shipped).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_run_strictly_down() {
    let ours: BTreeSet<_> = dependencies().into_keys().collect();
    for (name, direct) in dependencies() {
        let Some((_, allowed)) = IMPORTS.iter().find(|(known, _)| *known == name) else {
            assert_eq!(name, "turnflow-benches", "a crate that docs/ARCHITECTURE.md does not know");
            continue;
        };
        for imported in direct.iter().filter(|imported| ours.contains(*imported)) {
            assert!(allowed.contains(&imported.as_str()), "{name} must not import {imported}");
        }
    }
}

#[test]
fn libraries_are_known_where_they_belong() {
    for (name, direct) in dependencies() {
        if name == "turnflow-benches" {
            continue;
        }
        for imported in direct {
            for (library, crates) in KNOWN_BY.iter().filter(|(library, _)| imported.starts_with(library)) {
                assert!(crates.contains(&name.as_str()), "{name} must not know {library}, but imports {imported}");
            }
        }
    }
}

#[test]
fn dependencies_are_declared_in_the_workspace() {
    for folder in CRATES {
        let manifest = manifest(folder);
        for (name, value) in declared(&manifest) {
            let inherited = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            assert!(inherited, "{folder}/Cargo.toml declares {name} itself; declare it in the root");
        }
    }
}

#[test]
fn cores_read_no_clock_no_randomness_no_environment() {
    const FORBIDDEN: &[&str] = &["Instant", "SystemTime", "std::env", "rand::", "fastrand", "thread::sleep"];
    for (path, text) in sources("operators/src") {
        if path.ends_with("shell.rs") {
            continue;
        }
        for (number, line) in code(&text) {
            for word in FORBIDDEN {
                assert!(
                    !line.contains(word),
                    "{}:{number} uses {word}; time and seeds come in as data",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn status_codes_stay_at_the_door() {
    const FORBIDDEN: &[&str] = &["StatusCode", "Code::", "tonic::", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"];
    // A client has to know what servers say, and a program how it ends.
    let at_the_door = |path: &std::path::Path| path.ends_with("remote/http.rs");
    for folder in ["state/src", "models/src", "operators/src", "pipeline/src"] {
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| !at_the_door(path)) {
            for (number, line) in code(&text) {
                let line = line.replace("ExitCode::", "");
                for word in FORBIDDEN {
                    assert!(!line.contains(word), "{}:{number} knows {word}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in all_sources() {
        assert!(text.starts_with("//!"), "{} does not open with a module doc", path.display());
    }
}

#[test]
fn nothing_is_left_unfinished_or_skipped() {
    // Spelt apart, so that this file does not find itself.
    let forbidden =
        [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ign", "ore"), concat!("#[al", "low(")];
    for (path, text) in all_sources() {
        for (number, line) in (1..).zip(text.lines()) {
            for word in &forbidden {
                assert!(!line.contains(word), "{}:{number} contains {word}", path.display());
            }
        }
    }
}
