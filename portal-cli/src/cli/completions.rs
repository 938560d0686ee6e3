//! `portal completions`.

use clap::Args;
use clap_complete::Shell;

/// Shown below the help of `portal completions`.
pub(super) const EXAMPLES: &str = "\
Examples:
  portal completions bash > ~/.local/share/bash-completion/completions/portal
  portal completions zsh > ~/.zfunc/_portal       with fpath+=(~/.zfunc) before compinit in ~/.zshrc
  portal completions fish > ~/.config/fish/completions/portal.fish
  portal completions elvish >> ~/.config/elvish/rc.elv
  portal completions powershell >> $PROFILE";

/// `portal completions`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell that reads it
    pub(crate) shell: Shell,
}
