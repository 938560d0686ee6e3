//! `portal key`: makes and shows keys. What is printed is always the public half.

use serde_json::json;

use crate::cli::{KeyCommand, Output};
use crate::failure::Failure;
use crate::{keyfile, report};

/// Runs the command.
pub(crate) fn run(command: &KeyCommand, output: Output) -> Result<(), Failure> {
    let (secret, file) = match command {
        KeyCommand::New { file } => (keyfile::create(file)?, file),
        KeyCommand::Show { file } => (keyfile::load(file)?, file),
    };
    let key = secret.public_key();
    report::print_result(
        output,
        &key.to_string(),
        &json!({"key": key, "file": file.to_string_lossy()}),
    );
    Ok(())
}
