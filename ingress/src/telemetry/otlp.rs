//! Traces for a collector: the spans of requests and turns, and of every stage of a turn, as OpenTelemetry's protocol carries them over gRPC (OTLP).
//!
//! It is configured by the variables that OpenTelemetry names, and exports where `OTEL_EXPORTER_OTLP_ENDPOINT` says so. Spans wait in a queue of
//! bounded length (`OTEL_BSP_MAX_QUEUE_SIZE`); what finds no place there is dropped and counted in the log, and no turn waits for a collector.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Runtime;
use tracing::dispatcher::get_default;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Id, Record};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetrySpanExt as _, get_otel_context};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// What this process is called among others, unless `OTEL_SERVICE_NAME` says otherwise.
const SERVICE: &str = "turnflow";
/// Longest that the process waits at its end for the collector to take the last spans.
const FLUSH_WAIT: Duration = Duration::from_secs(5);

/// What sends the spans; the last ones go out when it is dropped.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    /// Drives the connection to the collector.
    _runtime: Runtime,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_WAIT) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// The exporter and the layer that feeds it; None where the environment names no collector.
///
/// # Errors
/// When a variable has a value that cannot be followed, naming it.
pub(super) fn start<S>() -> anyhow::Result<Option<(Exporter, impl Layer<S>)>>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let Some(endpoint) = endpoint()? else { return Ok(None) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build()?;
    let exporter = {
        let _entered = runtime.enter();
        SpanExporter::builder().with_tonic().build()
    };
    let exporter = exporter.with_context(|| format!("cannot send traces to {endpoint}"))?;
    let mut resource = Resource::builder();
    if variable("OTEL_SERVICE_NAME")?.is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer(SERVICE);
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer.clone())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false);
    // Spans alone: what a log line says stays in the log.
    let ours = || {
        filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with(SERVICE))
            .with_max_level_hint(LevelFilter::DEBUG)
    };
    Ok(Some((
        Exporter { provider, _runtime: runtime },
        spans.with_filter(ours()).and_then(Stages(tracer).with_filter(ours())),
    )))
}

/// Where the collector is, as its exporter will read it; None where there is none or it is switched off.
fn endpoint() -> anyhow::Result<Option<String>> {
    let is = |name: &str, word: &str| {
        Ok::<_, anyhow::Error>(variable(name)?.is_some_and(|value| value.eq_ignore_ascii_case(word)))
    };
    if is("OTEL_SDK_DISABLED", "true")? || is("OTEL_TRACES_EXPORTER", "none")? {
        return Ok(None);
    }
    let Some(endpoint) = for_traces("ENDPOINT")? else { return Ok(None) };
    if let Some(protocol) = for_traces("PROTOCOL")?.filter(|protocol| protocol != "grpc") {
        bail!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol:?}, and traces are sent over \"grpc\" alone: a collector takes it at port 4317"
        );
    }
    Ok(Some(endpoint))
}

/// What a variable of the exporter is for traces, or else for everything that is exported.
fn for_traces(name: &str) -> anyhow::Result<Option<String>> {
    let own = variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))?;
    if own.is_some() { Ok(own) } else { variable(&format!("OTEL_EXPORTER_OTLP_{name}")) }
}

/// An empty variable is as one that is not there.
fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(anyhow!("{name} is not UTF-8")),
    }
}

/// Puts a request's span into the trace that its client named (W3C's Trace Context), and names it for those who look at traces.
pub(super) fn joins(span: &Span, headers: &HeaderMap, method: &str) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Without an exporter there is nothing to join.
    if span.set_parent(parent).is_ok() {
        span.record("otel.kind", "server").record("otel.name", method);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

/// Gives a turn's span a child for each of its stages, and the status of a failure. Stages tell how long they took and not when they began, so they
/// are laid end to end from the turn's beginning.
struct Stages(SdkTracer);

/// When the next stage of a turn began.
struct Next(SystemTime);

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Stages {
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(|span| span.name() == "turn") else { return };
        let Some(turn) = get_default(|dispatch| get_otel_context(id, dispatch)) else { return };
        let mut said = Said::default();
        values.record(&mut said);
        if said.failed {
            turn.span().set_status(Status::error(""));
        }
        let Some((name, took)) = said.took else { return };
        if name == "total" {
            span.extensions_mut().replace(Next(SystemTime::now() - took));
            return;
        }
        let begun = {
            let mut extensions = span.extensions_mut();
            let Some(next) = extensions.get_mut::<Next>() else { return };
            let begun = next.0;
            next.0 += took;
            begun
        };
        let stage = self.0.span_builder(name).with_start_time(begun);
        self.0.build_with_context(stage, &turn).end_with_timestamp(begun + took);
    }
}

/// What is recorded of a turn.
#[derive(Default)]
struct Said {
    took: Option<(&'static str, Duration)>,
    failed: bool,
}

impl Visit for Said {
    fn record_u64(&mut self, field: &Field, value: u64) {
        // A stage that took no time was passed by.
        if let Some(name) = field.name().strip_suffix("_us").filter(|_| value > 0) {
            self.took = Some((name, Duration::from_micros(value)));
        }
    }

    fn record_debug(&mut self, field: &Field, _: &dyn std::fmt::Debug) {
        self.failed |= field.name() == "error";
    }
}
