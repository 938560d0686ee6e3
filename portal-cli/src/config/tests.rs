use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::document::Document;
use super::*;
use crate::cli::ServiceArgs;
use crate::failure::{Exit, Explain as _};

/// A variable that cargo sets for every test, and its value.
const VARIABLE: (&str, &str) = ("CARGO_PKG_NAME", env!("CARGO_PKG_NAME"));

/// A program with a command that has a flag of each sort.
fn program() -> Command {
    Command::new("program")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).global(true))
        .subcommand(
            Command::new("relay")
                .arg(Arg::new("config").long("config"))
                .arg(Arg::new("state_dir").long("state-dir").default_value("usual"))
                .arg(Arg::new("domain").long("domain").env(VARIABLE.0))
                .arg(
                    Arg::new("mtu")
                        .long("mtu")
                        .value_parser(clap::value_parser!(u16).range(1280..=1420)),
                )
                .arg(Arg::new("once").long("once").action(ArgAction::SetTrue))
                .arg(
                    Arg::new("names")
                        .long("name")
                        .action(ArgAction::Append)
                        .value_delimiter(','),
                )
                .arg(Arg::new("access").long("access").value_parser(["open", "granted"])),
        )
}

/// The relay's flags, by file and command line.
fn read(text: &str, args: &[&str]) -> Result<ArgMatches, ConfigError> {
    let document = Document::parse(Path::new("relay.toml"), text)?;
    let (command, _) = with_file(program(), "relay", document)?;
    let matches = command.try_get_matches_from([&["program", "relay"], args].concat());
    Ok(matches.unwrap().subcommand_matches("relay").unwrap().clone())
}

fn one(matches: &ArgMatches, id: &str) -> String {
    matches.get_one::<String>(id).unwrap().clone()
}

#[track_caller]
fn refused(text: &str, said: &str) -> ConfigError {
    let error = read(text, &[]).unwrap_err();
    assert_eq!(error.to_string(), said);
    assert_eq!(error.exit(), Exit::Misuse);
    error
}

#[test]
fn a_file_goes_before_the_usual_value() {
    assert_eq!(one(&read("", &[]).unwrap(), "state_dir"), "usual");
    assert_eq!(one(&read("state-dir = '/a'", &[]).unwrap(), "state_dir"), "/a");
    assert_eq!(one(&read("state_dir = '/a'", &[]).unwrap(), "state_dir"), "/a");
}

#[test]
fn a_flag_goes_before_the_file() {
    let matches = read(
        "state-dir = '/a'\nname = ['a', 'b']\n",
        &["--state-dir", "/b", "--name", "c"],
    )
    .unwrap();
    assert_eq!(one(&matches, "state_dir"), "/b");
    assert_eq!(matches.get_many::<String>("names").unwrap().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_variable_goes_before_the_file_and_a_flag_before_both() {
    assert_eq!(one(&read("domain = 'file'", &[]).unwrap(), "domain"), VARIABLE.1);
    assert_eq!(
        one(&read("domain = 'file'", &["--domain", "flag"]).unwrap(), "domain"),
        "flag"
    );
}

#[test]
fn values_of_every_sort() {
    let text = "mtu = 1_300\nonce = true\njson = true\nname = ['a', 'b,c']\naccess = \"open\"\n";
    let matches = read(text, &[]).unwrap();
    assert_eq!(matches.get_one::<u16>("mtu"), Some(&1300));
    assert!(matches.get_flag("once") && matches.get_flag("json"));
    assert_eq!(
        matches.get_many::<String>("names").unwrap().collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    let matches = read("mtu = '1300'\nonce = false\nname = 'a'\n", &[]).unwrap();
    assert_eq!(matches.get_one::<u16>("mtu"), Some(&1300));
    assert!(!matches.get_flag("once") && !matches.get_flag("json"));
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let help = |text: &str, said: &str| refused(text, said).help().unwrap();
    let error = "relay.toml, line 2: there is no key \"state-dri\"";
    assert_eq!(help("mtu = 1300\nstate-dri = 'a'", error), "did you mean state-dir?");
    let error = "relay.toml, line 1: there is no key \"acess\"";
    assert_eq!(help("acess = 'open'\nmtuu = 1", error), "did you mean access?");
    let error = "relay.toml, line 1: there is no key \"frobnicate\"";
    assert!(help("frobnicate = 1", error).ends_with("state-dir, domain, mtu, once, name, access, json"));
    // What only makes sense on a command line is unknown here.
    refused("config = 'b.toml'", "relay.toml, line 1: there is no key \"config\"");
    let error = "relay.toml, line 1: there is no key \"domain.name\"";
    assert_eq!(help("\"domain.name\" = 'x'", error), "did you mean domain?");
}

#[test]
fn a_bad_value_is_named_with_what_is_expected() {
    for (text, cause) in [
        ("mtu = 9000", "9000 is not in 1280..=1420"),
        ("mtu = \"wide\"", "invalid digit found in string"),
        ("mtu = 1300.5", "a fraction is nothing it can be"),
        ("mtu = [1300, 1400]", "it takes one value, not a list"),
        ("mtu = true", "it is not something to switch on or off"),
        ("once = \"yes\"", "it is true or false"),
        ("access = \"maybe\"", "it is one of: open, granted"),
        ("name = [1.5]", "a list of such values is nothing it can be"),
        ("domain.a = 1", "a table is nothing it can be"),
    ] {
        let error = read(&format!("\n{text}"), &[]).unwrap_err();
        assert!(matches!(error, ConfigError::Value { .. }), "{text}: {error}");
        let said = error.to_string();
        assert!(
            said.starts_with("relay.toml, line 2: ") && said.ends_with(cause),
            "{text}: {said}"
        );
        assert_eq!(error.exit(), Exit::Misuse);
    }
    refused(
        "\nmtu = 9000",
        "relay.toml, line 2: mtu = 9000: 9000 is not in 1280..=1420",
    );
    refused(
        "state-dir = 'a'\nstate_dir = 'b'",
        "relay.toml, line 2: the key \"state-dir\" is there twice",
    );
}

#[test]
fn broken_toml_is_named_with_its_line() {
    for (text, line) in [
        ("mtu = \n", 1),
        ("\n\nmtu 1300\n", 3),
        ("mtu = 1\nmtu = 2\n", 2),
        ("a = 'x\n", 1),
    ] {
        let error = read(text, &[]).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Broken { line: Some(found), .. } if *found == line),
            "{text:?}: {error:?}"
        );
        assert!(
            error.to_string().starts_with(&format!("relay.toml, line {line}: ")),
            "{error}"
        );
        assert_eq!(error.exit(), Exit::Misuse);
    }
}

#[test]
fn a_file_that_is_not_there_is_a_failure() {
    let error = Document::read(Path::new("/no/such.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "reading the configuration /no/such.toml: there is no such file"
    );
    assert_eq!(error.exit(), Exit::Failed);
}

/// The tables of an agent's file.
fn tables(text: &str) -> Result<Vec<Table>, ConfigError> {
    let document = Document::parse(Path::new("agent.toml"), text)?;
    with_file(Cli::command(), "agent", document).map(|(_, tables)| tables)
}

fn services(text: &str) -> Result<Vec<ServiceArgs>, ConfigError> {
    tables(text)?.iter().map(Table::parse).collect()
}

#[test]
fn tables_are_read_as_flags_of_their_own() {
    let text = "mtu = 1300\n[[service]]\ntarget = '3000'\nname = 'blog'\n\n[[service]]\ntarget = './site'\nhidden = true\n\
                [[service]]\ntarget = 'tcp://22'\nport = 20022\n";
    let read = services(text).unwrap();
    assert_eq!(
        read.iter()
            .map(|service| service.target.to_str().unwrap())
            .collect::<Vec<_>>(),
        ["3000", "./site", "tcp://22"]
    );
    assert_eq!(read[0].name.as_deref(), Some("blog"));
    assert!(read[1].hidden && !read[0].hidden);
    assert_eq!((read[1].port, read[2].port), (None, Some(20022)));
    let inline = services("service = [{ target = '3000' }, { target = 4000 }]").unwrap();
    assert_eq!(inline[1].target, "4000");
}

#[test]
fn tables_with_mistakes() {
    let said = |text: &str| {
        let error = services(text).unwrap_err();
        assert_eq!(error.exit(), Exit::Misuse);
        (error.to_string(), error.help().unwrap_or_default())
    };
    let (error, help) = said("[[service]]\ntarget = '3000'\nnmae = 'x'\n");
    assert_eq!(
        (&*error, &*help),
        ("agent.toml, line 3: there is no key \"nmae\"", "did you mean name?")
    );
    let (error, _) = said("\n[[service]]\nname = 'x'\n");
    assert_eq!(
        error,
        "agent.toml, line 2: the key \"target\" of this [[service]] is missing"
    );
    let (error, help) = said("[[service]]\ntarget = 'tcp://22'\nport = 0\n");
    assert!(
        error.starts_with("agent.toml, line 3: port = 0: 0 is not in 1..=65535"),
        "{error}"
    );
    assert!(help.starts_with("port: The public port"), "{help}");
    let (error, help) = said("[[services]]\ntarget = '3000'\n");
    assert_eq!(
        (&*error, &*help),
        (
            "agent.toml, line 1: there is no table [[services]]",
            "did you mean [[service]]?"
        )
    );
    let (error, help) = said("[service]\ntarget = '3000'\n");
    assert_eq!(
        error,
        "agent.toml, line 1: service is not written as an array of tables"
    );
    assert_eq!(help, "write [[service]], once for each");
    let (error, _) = said("[[service]]\ntarget = '3000'\nid = ''\n");
    assert!(error.starts_with("agent.toml, line 3: id = ''"), "{error}");
}

#[test]
fn what_needs_a_restart_is_named() {
    let given = |values: &[(&str, &str)]| Given {
        values: values
            .iter()
            .map(|&(key, value)| (key.into(), vec![value.into()]))
            .collect(),
        ..Given::default()
    };
    let before = given(&[("domain", "a"), ("access", "open"), ("udp", "1")]);
    assert_eq!(before.needs_restart(&before, &[]), None);
    let after = given(&[("domain", "b"), ("access", "granted"), ("http", "off")]);
    assert_eq!(
        before.needs_restart(&after, &["access"]).unwrap(),
        "this needs a restart to have an effect: domain, http, udp"
    );
    let given = |text: &str| Given {
        tables: with_file(
            Cli::command(),
            "relay",
            Document::parse(Path::new("relay.toml"), text).unwrap(),
        )
        .unwrap()
        .1,
        ..Given::default()
    };
    let before = given("[[peer]]\nname = 'a'\n");
    assert_eq!(
        before.needs_restart(&given("# moved\n[[peer]]\nname = 'a'\n"), &[]),
        None
    );
    for after in [
        "",
        "[[peer]]\nname = 'b'\n",
        "[[peer]]\nname = 'a'\n[[peer]]\nname = 'a'\n",
    ] {
        assert_eq!(
            before.needs_restart(&given(after), &[]).unwrap(),
            "this needs a restart to have an effect: [[peer]]"
        );
    }
}
