//! The span of a request: what log and traces show of it beside everything that happens for it.

use std::fmt::Display;

use axum::http::HeaderMap;
use tracing::Span;
use tracing::field::{Empty, display};

use crate::telemetry::{joins_trace, sends_traces};

/// Longest text that is taken from a client into the log, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// By what a client finds its request again.
const REQUEST_ID: &str = "x-request-id";
/// In which trace it stands, as W3C's Trace Context has it.
const TRACEPARENT: &str = "traceparent";

/// What asks every few seconds whether a server is well; nobody looks for it in a trace.
const PROBES: [&str; 3] = ["/health", "/ready", "/grpc.health.v1.Health/Check"];

/// The span of a request to a route or method, with what its headers name it; none for [`PROBES`].
pub(crate) fn request(protocol: &'static str, method: &str, headers: &HeaderMap) -> Span {
    if PROBES.contains(&method) {
        return Span::none();
    }
    let method = Some(method).filter(|method| is_plain(method));
    let span = tracing::info_span!(
        "request",
        protocol,
        method,
        request_id = Empty,
        traceparent = Empty,
        status = Empty,
        otel.kind = Empty,
        otel.name = Empty,
        otel.status_code = Empty,
    );
    let named = |name: &str| headers.get(name)?.to_str().ok().filter(|text| is_plain(text));
    if let Some(id) = named(REQUEST_ID) {
        span.record("request_id", id);
    }
    if let Some(trace) = named(TRACEPARENT) {
        span.record("traceparent", trace);
    }
    if sends_traces() {
        joins_trace(&span, headers, method.unwrap_or("unknown"));
    }
    span
}

/// Says in its trace with which status of its protocol a request ended, and whether that is a fault of the server's.
pub(crate) fn ended(span: &Span, status: &dyn Display, is_fault: bool) {
    if !sends_traces() {
        return;
    }
    span.record("status", display(status));
    if is_fault {
        span.record("otel.status_code", "ERROR");
    }
}

/// Whether a text is a name, and nothing that somebody said: short, printable, and without a space.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        let longest = "a".repeat(TEXT_BYTES_MAX);
        for text in ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "7f/3:b", longest.as_str()] {
            assert!(is_plain(text), "{text}");
        }
        for text in ["", "where is my order", "tab\t", "naïve", &format!("{longest}a")] {
            assert!(!is_plain(text), "{text}");
        }
    }
}
