//! SECURITY.md names the test that holds each claim: they must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_claim_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut known = BTreeSet::new();
    for part in ["core", "portal-cli", "runtime-mio", "runtime-tokio"] {
        collect(&root.join(part), &mut known);
    }
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| {
        let is_rule = line.starts_with("|---") || line.starts_with("| claim");
        line.starts_with('|') && !is_rule
    });
    let (mut claims, mut named) = (0, BTreeSet::new());
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test is named: {row}");
        claims += 1;
        named.extend(tests);
    }
    assert!(claims > 20, "the tables were found");
    let missing: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "there is no test of this name: {missing:?}");
}

/// The names of all functions that stand right behind a `#[test]`, or in a `proptest!`, below a folder.
fn collect(folder: &Path, known: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, known);
            }
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        for behind in source.split("#[test]").skip(1) {
            let name = behind.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            known.extend(name.map(str::to_owned));
        }
    }
}
