//! Logs: through `tracing` to stderr, chosen by `TURNFLOW_LOG`, `RUST_LOG` or `-v`.
//!
//! At level info and above no customer's text is logged.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// Starts logging. `verbosity` counts the `-v`.
///
/// # Errors
/// When the environment holds a filter that does not parse.
pub fn start(verbosity: u8) -> Result<(), Failure> {
    let from_environment = |name: &str| {
        let filter = std::env::var(name).ok().filter(|filter| !filter.is_empty())?;
        Some(EnvFilter::try_new(filter).with_context(|| format!("cannot parse the log filter in {name}")))
    };
    let by_flag = || {
        EnvFilter::new(match verbosity {
            0 => "warn,turnflow=info",
            1 => "info,turnflow=debug",
            _ => "debug,turnflow=trace",
        })
    };
    let filter = from_environment("TURNFLOW_LOG").or_else(|| from_environment("RUST_LOG")).transpose();
    let filter = filter.map_err(Failure::usage)?.unwrap_or_else(by_flag);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
