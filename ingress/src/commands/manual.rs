//! `completions` and `man`: what shells and readers need to know of the command line, made from its definition.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::{Failure, written};

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "turnflow", &mut script);
    Ok(written(std::io::Write::write_all(&mut std::io::stdout().lock(), &script))?)
}

/// Writes `turnflow.1`, and a page for each command.
pub(super) fn man(folder: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    Ok(written.with_context(|| format!("cannot write manual pages to {}", folder.display()))?)
}
