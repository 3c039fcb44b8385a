//! The process: its store, its memory, and what comes through the door.

use std::fmt;

use prometheus_client::metrics::MetricType;
use turnflow_pipeline::resident_bytes;

use super::Source;
use super::page::Page;

pub(super) fn write(page: &mut Page<'_>, source: &Source) -> fmt::Result {
    store(page, source)?;
    let traffic = &source.traffic;
    page.kept("http_requests", "Requests of HTTP that were answered", MetricType::Counter, traffic.http())?;
    page.kept("grpc_calls", "Calls of gRPC that ended", MetricType::Counter, traffic.grpc())?;
    page.kept("connections", "Open connections", MetricType::Gauge, traffic.connections())?;
    let memory = resident_bytes().map(|bytes| ([], bytes));
    page.gauges("process_resident_bytes", "Memory of the process that is in RAM, where the system tells", memory)?;
    page.gauge("process_start_time_seconds", "When the server started, in seconds since 1970", source.started_s)?;
    page.gauges("build_info", "1, with the version", [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)])
}

fn store(page: &mut Page<'_>, source: &Source) -> fmt::Result {
    let sizes = source.pipeline.store_sizes().unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell how much the store holds");
        Vec::new()
    });
    let keys = sizes.iter().map(|(column, size)| ([("column", column.as_str())], size.keys));
    page.gauges("store_keys", "Keys of a column of the store, estimated", keys)?;
    let disk = sizes.iter().map(|(column, size)| ([("column", column.as_str())], size.disk_bytes));
    page.gauges("store_disk_bytes", "What a column of the store takes on disk, without the log", disk)?;
    let memory = sizes.iter().map(|(column, size)| ([("column", column.as_str())], size.memory_bytes));
    page.gauges("store_memory_bytes", "What of a column of the store is not in a file on disk yet", memory)
}
