//! The `turnflow` binary: reads the command line, runs the command, and turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use turnflow::cli::{Cli, Command};
use turnflow::failure::{EXIT_UNREAD, EXIT_USAGE, Failure};
use turnflow::say::line;
use turnflow::{commands, telemetry};

fn main() -> ExitCode {
    // A child of this program that tries a GPU out.
    if let Some(code) = turnflow_models::probe_main() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; when even printing fails there is nobody left to tell.
            let _ignored = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let serves = matches!(cli.command, Command::Serve(_));
    let ended = telemetry::start(cli.verbose, cli.log_format, serves).and_then(|telemetry| {
        let ended = commands::run(cli);
        drop(telemetry);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    if failure.exit_code() != EXIT_UNREAD {
        line(format_args!("turnflow: {failure}"));
        if let Some(hint) = failure.hint() {
            line(format_args!("  hint: {hint}"));
        }
    }
    ExitCode::from(failure.exit_code())
}
