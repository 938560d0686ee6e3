//! Completions, as the shells themselves read them.

mod common;

use std::process::Command;

use common::run;

#[test]
fn bash_takes_the_script_and_completes_by_it() {
    let home = tempfile::tempdir().unwrap();
    let ended = run(home.path(), &["completions", "bash"]);
    assert_eq!((ended.status.code(), ended.err.as_str()), (Some(0), ""));
    let script = home.path().join("portal.bash");
    std::fs::write(&script, &ended.out).unwrap();
    let bash = |args: &[&str]| {
        let output = Command::new("bash")
            .args(["--noprofile", "--norc"])
            .args(args)
            .output()
            .expect("bash runs");
        let (out, err) = (output.stdout, output.stderr);
        let (out, err) = (
            String::from_utf8_lossy(&out).into_owned(),
            String::from_utf8_lossy(&err).into_owned(),
        );
        assert!(output.status.success() && err.is_empty(), "{err}");
        out
    };
    bash(&["-n", script.to_str().unwrap()]);

    // What bash does when Tab is pressed.
    let complete = |words: &[&str]| -> Vec<String> {
        let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let press = format!(
            "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _portal portal \"${{COMP_WORDS[COMP_CWORD]}}\" \
             \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1
        );
        bash(&["-c", &press]).lines().map(str::to_owned).collect()
    };
    let commands = complete(&["portal", ""]);
    for command in [
        "expose",
        "agent",
        "relay",
        "key",
        "grant",
        "revoke",
        "wg-conf",
        "completions",
        "help",
    ] {
        assert!(
            commands.iter().any(|found| found == command),
            "{command} in {commands:?}"
        );
    }
    assert_eq!(complete(&["portal", "exp"]), ["expose"]);
    assert_eq!(complete(&["portal", "relay", "--dom"]), ["--domain"]);
    assert_eq!(complete(&["portal", "key", "n"]), ["new"]);
    assert_eq!(complete(&["portal", "relay", "--access", "gr"]), ["granted"]);
    assert_eq!(complete(&["portal", "completions", "z"]), ["zsh"]);
}

#[test]
fn every_shell_has_its_script_and_others_are_named() {
    let home = tempfile::tempdir().unwrap();
    for (shell, beginning) in [
        ("bash", "_portal()"),
        ("zsh", "#compdef portal"),
        ("fish", "# Print an optspec"),
        ("elvish", "\nuse builtin;"),
        ("powershell", "\nusing namespace System.Management.Automation"),
    ] {
        let ended = run(home.path(), &["completions", shell]);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
        assert!(ended.out.starts_with(beginning), "{shell}: {:.80}", ended.out);
    }
    let ended = run(home.path(), &["--json", "completions", "zsh"]);
    let json: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert!(
        json["script"].as_str().unwrap().starts_with("#compdef portal"),
        "{json}"
    );

    let ended = run(home.path(), &["completions", "csh"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        ended.err.contains("csh") && ended.err.contains("elvish"),
        "{}",
        ended.err
    );
}
