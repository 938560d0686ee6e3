//! The program is killed at every step of writing its state, and what it finds afterwards is whole.
//!
//! strace kills it on its way into the n-th call of one sort, for n from 1 on until it gets to its end alive. Between two
//! of these calls nothing on the disk changes, so every state in which a crash can leave the disk is seen. What the
//! kernel makes of a write that a power cut interrupts is left to fsync.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Ended, Portal, eventually, free_port, run};

/// The calls that change files or come before or after one that does.
const STEPS: [&str; 10] = [
    "mkdir",
    "openat",
    "flock",
    "unlink",
    "write",
    "fsync",
    "fchown",
    "linkat",
    "rename",
    "ftruncate",
];

/// No command has so many of one sort.
const MOST: u32 = 200;

/// Whether strace is there and may trace; says so if not.
fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let works = traced.is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: no strace here (apt-get install strace), or it may not trace");
    }
    works
}

/// Where the program is to be killed: on its way into the `number`-th call of this sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    step: &'static str,
    number: u32,
}

impl Cut {
    fn args(self) -> Vec<String> {
        let Self { step, number } = self;
        let inject = format!("inject={step}:signal=KILL:when={number}");
        [
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={step}"),
            "-e",
            &inject,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

fn was_killed(ended: &Ended) -> bool {
    ended.status.signal() == Some(9)
}

/// A portal command that is killed at a cut.
fn run_cut(home: &Path, cut: Cut, args: &[&str]) -> Ended {
    let mut command = Command::new("strace");
    command.args(cut.args()).arg(env!("CARGO_BIN_EXE_portal")).args(args);
    Portal::spawn(with_pipes(command, home)).wait()
}

/// A relay that is killed at a cut of those calls only that concern one of `files`, the temporary ones beside them or
/// their directory; the others are counted no more than made.
fn start_cut(home: &Path, cut: Cut, files: &[PathBuf], args: &[&str]) -> Portal {
    let mut script = String::from("set --");
    for file in files {
        let (folder, name) = (
            file.parent().unwrap().display(),
            file.file_name().unwrap().to_str().unwrap(),
        );
        script += &format!(" -P {folder}/{name} -P {folder}");
        for number in 0..4 {
            // The shell's id becomes the program's: strace steps aside.
            script += &format!(" -P {folder}/.{name}.$$-{number}.tmp");
        }
    }
    script += &format!(
        "\nexec strace -D {} \"$@\" {} {}",
        cut.args().join(" "),
        env!("CARGO_BIN_EXE_portal"),
        args.join(" ")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    Portal::spawn(with_pipes(command, home))
}

fn with_pipes(mut command: Command, home: &Path) -> Command {
    command
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `attempt` with one cut after the other, for each step until it gets to its end alive. Returns the cuts that hit.
fn cut_everywhere(mut attempt: impl FnMut(Cut) -> bool) -> Vec<Cut> {
    let mut hit = Vec::new();
    for step in STEPS {
        let first_alive = (1..MOST).find(|&number| {
            let cut = Cut { step, number };
            let killed = attempt(cut);
            hit.extend(killed.then_some(cut));
            !killed
        });
        assert!(first_alive.is_some(), "{step}: no end after {MOST} of them");
    }
    hit
}

#[track_caller]
fn assert_hit(cuts: &[Cut], steps: &[&str]) {
    for step in steps {
        assert!(
            cuts.iter().any(|cut| cut.step == *step),
            "never cut at {step}: {cuts:?}"
        );
    }
}

/// What is beside the files that have names of their own.
fn leftovers(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

/// A relay on this state directory starts and says so.
#[track_caller]
fn assert_a_relay_starts(home: &Path, state: &Path, udp: &str) -> String {
    let relay = Portal::start(home, &relay_args(state.to_str().unwrap(), udp));
    let uri = relay.line();
    let ended = relay.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    uri
}

fn relay_args<'a>(state: &'a str, udp: &'a str) -> Vec<&'a str> {
    let args = [
        "relay",
        "--domain",
        "localhost",
        "--udp",
        udp,
        "--http",
        "127.0.0.1:0",
        "--https",
        "off",
        "--access",
        "open",
        "--state-dir",
        state,
    ];
    args.to_vec()
}

#[test]
fn grants_are_the_old_or_the_new_ones_whole() {
    if !can_trace() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let key = |byte: u8| portal_core::identity::PublicKey::from_bytes([byte; 32]).to_string();
    let grant = |state: &str, key: &str| run(home, &["grant", key, "--name", "blog", "--state-dir", state]);
    let model = home.join("model");
    let file = |state: &Path| fs::read_to_string(state.join("grants.toml")).unwrap();
    assert!(grant(model.to_str().unwrap(), &key(1)).status.success());
    let old = file(&model);
    assert!(grant(model.to_str().unwrap(), &key(2)).status.success());
    let new = file(&model);
    assert_ne!(old, new);

    let udp = format!("127.0.0.1:{}", free_port());
    let (mut attempts, mut found_old, mut found_new) = (0, 0, 0);
    let cuts = cut_everywhere(|cut| {
        attempts += 1;
        let state = home.join(format!("state-{attempts}"));
        let name = state.to_str().unwrap();
        fs::create_dir(&state).unwrap();
        fs::write(state.join("grants.toml"), &old).unwrap();
        let ended = run_cut(home, cut, &["grant", &key(2), "--name", "blog", "--state-dir", name]);
        let found = file(&state);
        match was_killed(&ended) {
            true if found == old => found_old += 1,
            true => {
                assert_eq!(found, new, "after {cut:?}");
                found_new += 1;
            }
            false => assert_eq!(found, new, "uncut: {}", ended.err),
        }
        let killed = was_killed(&ended);
        if killed {
            assert_a_relay_starts(home, &state, &udp);
            assert!(grant(name, &key(2)).status.success());
            assert_eq!(file(&state), new, "granted again after {cut:?}");
            assert_eq!(leftovers(&state), [""; 0], "after {cut:?}");
        }
        killed
    });
    assert_hit(&cuts, &["openat", "flock", "unlink", "write", "fsync", "rename"]);
    assert!(found_old >= 5 && found_new >= 2, "{found_old} old, {found_new} new");
    eprintln!(
        "{} cuts: {found_old} left the old grants, {found_new} the new ones",
        cuts.len()
    );
}

#[test]
fn a_key_file_is_whole_or_not_there() {
    if !can_trace() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (mut attempts, mut absent, mut whole) = (0, 0, 0);
    let cuts = cut_everywhere(|cut| {
        attempts += 1;
        let path = home.join(format!("{attempts}.key"));
        let name = path.to_str().unwrap();
        let killed = was_killed(&run_cut(home, cut, &["key", "new", name]));
        if path.exists() {
            whole += u32::from(killed);
            let shown = run(home, &["key", "show", name]);
            assert_eq!(shown.status.code(), Some(0), "after {cut:?}: {}", shown.err);
        } else {
            assert!(killed, "no key: {cut:?}");
            absent += 1;
            let made = run(home, &["key", "new", name]);
            assert_eq!(made.status.code(), Some(0), "after {cut:?}: {}", made.err);
        }
        killed
    });
    assert_hit(&cuts, &["openat", "unlink", "write", "fsync", "linkat"]);
    assert!(absent >= 4 && whole >= 2, "{absent} absent, {whole} whole");
}

#[test]
fn a_relays_own_key_is_whole_or_made_again() {
    if !can_trace() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let udp = format!("127.0.0.1:{}", free_port());
    let (mut attempts, mut absent, mut whole) = (0, 0, 0);
    let cuts = cut_everywhere(|cut| {
        attempts += 1;
        let state = home.join(format!("state-{attempts}"));
        let args = relay_args(state.to_str().unwrap(), &udp);
        let key = state.join("relay.key");
        let relay = start_cut(home, cut, std::slice::from_ref(&key), &args);
        let killed = match relay.try_line() {
            Some(_) => was_killed(&relay.stop()),
            None => was_killed(&relay.wait()),
        };
        let before = fs::read(&key).ok();
        if killed {
            whole += u32::from(before.is_some());
            absent += u32::from(before.is_none());
        }
        let first = assert_a_relay_starts(home, &state, &udp);
        let after = fs::read(&key).unwrap();
        assert!(before.is_none_or(|before| before == after), "another key after {cut:?}");
        assert_eq!(assert_a_relay_starts(home, &state, &udp), first);
        assert_eq!(leftovers(&state), [""; 0], "after {cut:?}");
        killed
    });
    assert_hit(&cuts, &["openat", "unlink", "write", "fsync", "linkat"]);
    assert!(absent >= 4 && whole >= 2, "{absent} absent, {whole} whole");
}

#[test]
fn what_a_relay_remembers_is_the_old_or_the_new_whole() {
    if !can_trace() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let udp = format!("127.0.0.1:{}", free_port());
    let (relay_key, agent_key) = (home.join("relay.key"), home.join("agent.key"));
    let made = run(home, &["key", "new", relay_key.to_str().unwrap()]);
    let public: portal_core::identity::PublicKey = made.out.trim().parse().unwrap();
    let uri = format!("portal://{}@{udp}", public.url_safe());
    let other = portal_core::identity::PublicKey::from_bytes([9; 32]);
    let old_bindings = format!("[\n{{\"name\":{{\"name\":\"old\",\"key\":\"{other}\"}}}}\n]\n");
    let old_agents = format!("[\n{{\"key\":\"{other}\",\"remote\":\"127.0.0.1:9\"}}\n]\n");

    let (mut attempts, mut found_old, mut found_new) = (0, 0, 0);
    let cuts = cut_everywhere(|cut| {
        attempts += 1;
        let state = home.join(format!("state-{attempts}"));
        fs::create_dir(&state).unwrap();
        fs::copy(&relay_key, state.join("relay.key")).unwrap();
        let files = [state.join("bindings.json"), state.join("agents.json")];
        fs::write(&files[0], &old_bindings).unwrap();
        fs::write(&files[1], &old_agents).unwrap();
        let args = relay_args(state.to_str().unwrap(), &udp);
        let relay = start_cut(home, cut, &files, &args);
        let mut killed = relay.try_line().is_none();
        if !killed {
            let expose = ["expose", "3000", "--relay", &uri, "--name", "new", "--key"];
            let agent = Portal::start(home, &[&expose[..], &[agent_key.to_str().unwrap()]].concat());
            eventually("the end of the relay, or of its writing", || {
                let text = |file: &Path| fs::read_to_string(file).unwrap_or_default();
                let written = text(&files[0]).contains("\"new\"") && text(&files[1]).lines().count() == 4;
                if relay.has_ended() || (written && leftovers(&state).is_empty()) {
                    return Ok(());
                }
                Err((text(&files[0]), text(&files[1])))
            });
            agent.kill();
            // If it is killed at the very last step, that may take a moment.
            std::thread::sleep(std::time::Duration::from_millis(100));
            killed = relay.has_ended();
        }
        if killed {
            assert!(was_killed(&relay.wait()), "{cut:?}");
        } else {
            // Nothing is new, so it ends without writing.
            killed = was_killed(&relay.stop());
        }
        let bindings = fs::read_to_string(&files[0]).unwrap();
        let parsed: Vec<serde_json::Value> =
            serde_json::from_str(&bindings).unwrap_or_else(|error| panic!("{error} after {cut:?}: {bindings}"));
        assert_eq!(
            parsed.iter().filter(|binding| binding["name"]["name"] == "old").count(),
            1,
            "{bindings}"
        );
        assert!(
            bindings == old_bindings || parsed.len() == 2,
            "{bindings} after {cut:?}"
        );
        let agents = fs::read_to_string(&files[1]).unwrap();
        let known: Vec<serde_json::Value> =
            serde_json::from_str(&agents).unwrap_or_else(|error| panic!("{error} after {cut:?}: {agents}"));
        assert!(agents == old_agents || known.len() == 2, "{agents} after {cut:?}");
        if killed {
            found_old += u32::from(parsed.len() == 1) + u32::from(known.len() == 1);
            found_new += u32::from(parsed.len() == 2) + u32::from(known.len() == 2);
        }
        assert_a_relay_starts(home, &state, &udp);
        assert_eq!(leftovers(&state), [""; 0], "after {cut:?}");
        killed
    });
    assert_hit(&cuts, &["openat", "unlink", "write", "fsync", "rename"]);
    assert!(found_old >= 8 && found_new >= 4, "{found_old} old, {found_new} new");
    eprintln!("{} cuts: {found_old} old files, {found_new} new ones", cuts.len());
}
