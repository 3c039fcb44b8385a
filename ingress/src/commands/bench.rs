//! `bench`: measures what this machine can do.

mod generate;
mod load;

use super::Context;
use crate::cli::BenchCommand;
use crate::failure::Failure;

pub(super) fn run(context: &Context, command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Generate(args) => generate::run(context, args),
        BenchCommand::Load(args) => load::run(context, args),
    }
}
