//! The core is pure: it depends on no runtime, and its sources name nothing of the operating system.

#![expect(
    clippy::disallowed_methods,
    reason = "it looks at the sources, and is no part of the core"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that would bring sockets, clocks or threads of their own.
const RUNTIMES: [&str; 9] = [
    "tokio",
    "mio",
    "async-std",
    "smol",
    "async-io",
    "polling",
    "quinn-udp",
    "socket2",
    "hyper",
];

/// What no line of the core's code may name. Clippy forbids calls of the same; this also sees imports and types.
const IMPURE: [&str; 12] = [
    "Instant::now",
    "SystemTime",
    "OsRng",
    "thread_rng",
    "getrandom",
    "std::fs",
    "std::env::",
    "std::thread",
    "std::process",
    "TcpStream",
    "UdpSocket::",
    "async fn",
];

#[test]
fn no_runtime_is_among_the_dependencies() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            "portal-core",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    assert!(
        tree.contains("boringtun") && tree.contains("smoltcp"),
        "not the tree that was meant:\n{tree}"
    );
    for runtime in RUNTIMES {
        let named = tree.lines().any(|line| line.split(' ').next() == Some(runtime));
        assert!(!named, "{runtime} is a dependency of the core");
    }
}

#[test]
fn no_source_names_what_belongs_to_a_runtime() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(sources.len() > 20, "only {} sources were found", sources.len());
    for path in sources {
        let text = std::fs::read_to_string(&path).expect("a source can be read");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for word in IMPURE {
                assert!(
                    !line.contains(word),
                    "{}:{} names {word}: {line}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
