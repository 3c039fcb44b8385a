//! Traces for a collector: the spans of requests and turns, and of every stage of a turn, as OpenTelemetry's protocol carries them over gRPC (OTLP).
//!
//! It is configured by the variables that OpenTelemetry names, and exports where `OTEL_EXPORTER_OTLP_ENDPOINT` says so. Spans wait in a queue of
//! bounded length (`OTEL_BSP_MAX_QUEUE_SIZE`); what finds no place there is dropped and counted in the log, and no turn waits for a collector.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use axum::http::{HeaderMap, Uri};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};
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

/// Numbers that the library reads, and the greatest that makes sense: spans, or milliseconds.
const NUMBERS: [(&str, u64); 6] = [
    ("OTEL_BSP_MAX_QUEUE_SIZE", 1 << 20),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1 << 20),
    ("OTEL_BSP_SCHEDULE_DELAY", 3_600_000),
    ("OTEL_BSP_EXPORT_TIMEOUT", 3_600_000),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", 3_600_000),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", 3_600_000),
];
/// What decides which traces are sent, as OpenTelemetry names it.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

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

/// An exporter whose failures are told once, and once more when they are over.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    fails: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        match (&sent, self.fails.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "spans do not reach the collector, and are dropped"),
            (Ok(()), true) => tracing::info!("spans reach the collector again"),
            _ => {}
        }
        // It has been told.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
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
    if !is_wanted()? {
        return Ok(None);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build()?;
    let exporter = {
        let _entered = runtime.enter();
        SpanExporter::builder().with_tonic().build()
    };
    let exporter = Told { exporter: exporter.context("cannot send traces")?, fails: AtomicBool::new(false) };
    let mut resource = Resource::builder();
    let is_named = |name: &str| variable(name).map(|value| value.is_some_and(|value| value.contains("service.name=")));
    if variable("OTEL_SERVICE_NAME")?.is_none() && !is_named("OTEL_RESOURCE_ATTRIBUTES")? {
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

/// Whether the environment names a collector, in a way that can be followed. The library would pass over what it cannot read.
fn is_wanted() -> anyhow::Result<bool> {
    let is = |name: &str, word: &str| {
        Ok::<_, anyhow::Error>(variable(name)?.is_some_and(|value| value.eq_ignore_ascii_case(word)))
    };
    if is("OTEL_SDK_DISABLED", "true")? || is("OTEL_TRACES_EXPORTER", "none")? {
        return Ok(false);
    }
    let Some((name, endpoint)) = for_traces("ENDPOINT")? else { return Ok(false) };
    // It may hold a password, and is not repeated.
    let is_address = endpoint.parse::<Uri>().is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    ensure!(is_address, "{name} is no address such as http://127.0.0.1:4317");
    if let Some((name, protocol)) = for_traces("PROTOCOL")?.filter(|(_, protocol)| protocol != "grpc") {
        bail!("{name} is {protocol:?}, and traces are sent over \"grpc\" alone: a collector takes it at port 4317");
    }
    for (name, most) in NUMBERS {
        let Some(value) = variable(name)? else { continue };
        let is_within = value.parse().is_ok_and(|number: u64| (1..=most).contains(&number));
        ensure!(is_within, "{name} is {value:?}, and a number from 1 to {most} is taken");
    }
    if let Some(sampler) = variable("OTEL_TRACES_SAMPLER")? {
        ensure!(
            SAMPLERS.contains(&sampler.as_str()),
            "OTEL_TRACES_SAMPLER is {sampler:?}, and not one of {SAMPLERS:?}"
        );
    }
    if let Some(share) = variable("OTEL_TRACES_SAMPLER_ARG")? {
        let is_share = share.parse().is_ok_and(|share: f64| (0.0..=1.0).contains(&share));
        ensure!(is_share, "OTEL_TRACES_SAMPLER_ARG is {share:?}, and a share from 0 to 1 is taken");
    }
    Ok(true)
}

/// A variable of the exporter for traces, or else for everything that is exported, and its value.
fn for_traces(name: &str) -> anyhow::Result<Option<(String, String)>> {
    for name in [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")] {
        if let Some(value) = variable(&name)? {
            return Ok(Some((name, value)));
        }
    }
    Ok(None)
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
    // A span that no filter lets through has nothing to put there.
    if span.set_parent(parent).is_ok() {
        span.record("otel.kind", "server").record("otel.name", method);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    /// The state that others keep with a trace may hold anything: it is not passed on.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).filter(|_| key == "traceparent")?.to_str().ok()
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
