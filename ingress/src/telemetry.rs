//! Logs: through `tracing` to stderr, chosen by `TURNFLOW_LOG`, `RUST_LOG` or `-v`, as text or as a JSON object for each line.
//!
//! At level info and above no customer's text is logged. What belongs to a request is logged within its span, which has the id and the trace that
//! the client named; at level debug every turn has a span as well, with the time that it took in each stage. With the feature `otlp` these spans go
//! to a collector of traces too, where the environment names one.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use axum::http::HeaderMap;
use tracing::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::LogFormat;
use crate::failure::Failure;

/// Whether traces are sent.
static SENDS_TRACES: AtomicBool = AtomicBool::new(false);

/// Logs and traces; when it is dropped, the last spans go out.
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    _exporter: Option<otlp::Exporter>,
}

/// Starts logging and, for what `serves`, sending traces where the environment names a collector. `verbosity` counts the `-v`.
///
/// # Errors
/// When the environment holds a filter that does not parse, or a collector's address.
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is sent"))]
pub fn start(verbosity: u8, format: LogFormat, serves: bool) -> Result<Telemetry, Failure> {
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
    // It would complain on stderr that stderr cannot be written, and panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = match format {
        LogFormat::Pretty => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let logs = tracing_subscriber::registry();
    #[cfg(feature = "otlp")]
    let (_exporter, logs) = {
        let started = if serves { otlp::start().map_err(Failure::usage)? } else { None };
        SENDS_TRACES.store(started.is_some(), Ordering::Relaxed);
        let (exporter, spans) = started.unzip();
        (exporter, logs.with(spans))
    };
    logs.with(lines.with_filter(filter)).init();
    Ok(Telemetry {
        #[cfg(feature = "otlp")]
        _exporter,
    })
}

/// Whether traces are sent: what is only told there need not be found out otherwise.
pub(crate) fn sends_traces() -> bool {
    SENDS_TRACES.load(Ordering::Relaxed)
}

/// Puts the span of a request that called `method` into the trace that its headers name.
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "there are no traces to join"))]
pub(crate) fn joins_trace(span: &Span, headers: &HeaderMap, method: &str) {
    #[cfg(feature = "otlp")]
    otlp::joins(span, headers, method);
}
