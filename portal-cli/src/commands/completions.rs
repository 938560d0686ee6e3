//! `portal completions`: what a shell needs to know of the command line.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};
use serde_json::json;

use crate::cli::{Cli, CompletionsArgs, Output};
use crate::report;

/// Runs the command.
pub(crate) fn run(args: &CompletionsArgs, output: Output) {
    let script = script(args.shell);
    report::print_result(
        output,
        script.trim_end(),
        &json!({"shell": args.shell.to_string(), "script": script}),
    );
}

fn script(shell: Shell) -> String {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut command, name, &mut script);
    // Made of texts only.
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_command_and_flag_is_in_every_script() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{} in {shell}", command.get_name());
                for flag in command.get_opts().filter_map(clap::Arg::get_long) {
                    // fish writes `-l relay`.
                    assert!(script.contains(flag), "--{flag} in {shell}");
                }
            }
        }
    }
}
