//! What comes through the door: connections and requests, counted by what became of them.
//!
//! Labels come from routes and services that there are, never from what a client sends.

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// The value of a label that stands for all that is not known.
const UNKNOWN: &str = "unknown";

/// Labels with their values.
type Labels<const N: usize> = [(&'static str, String); N];
/// A number for each set of labels.
type ByLabels<const N: usize, M> = Family<Labels<N>, M>;

/// What came through the door since the process began, and what is open; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Traffic {
    http: ByLabels<3, Counter>,
    grpc: ByLabels<3, Counter>,
    connections: ByLabels<1, Gauge>,
}

impl Traffic {
    /// A request of HTTP was answered; `route` as it is registered, None when it is none.
    pub(crate) fn answered(&self, method: &'static str, route: Option<&str>, status: u16) {
        let route = route.unwrap_or(UNKNOWN).to_owned();
        let labels = [("method", method.to_owned()), ("route", route), ("status", status.to_string())];
        self.http.get_or_create(&labels).inc();
    }

    /// A call of gRPC ended; `path` names service and method, None when there is no such method.
    pub(crate) fn ended(&self, path: Option<&str>, code: String) {
        let name = path.and_then(|path| path.trim_start_matches('/').split_once('/'));
        let (service, method) = name.unwrap_or((UNKNOWN, UNKNOWN));
        let labels = [("service", service.to_owned()), ("method", method.to_owned()), ("code", code)];
        self.grpc.get_or_create(&labels).inc();
    }

    /// A connection was opened, and is until this is dropped.
    pub(crate) fn opened(&self, protocol: &'static str) -> Open {
        let gauge = self.connections.get_or_create_owned(&[("protocol", protocol.to_owned())]);
        gauge.inc();
        Open(gauge)
    }

    pub(crate) const fn http(&self) -> &ByLabels<3, Counter> {
        &self.http
    }

    pub(crate) const fn grpc(&self) -> &ByLabels<3, Counter> {
        &self.grpc
    }

    pub(crate) const fn connections(&self) -> &ByLabels<1, Gauge> {
        &self.connections
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").finish_non_exhaustive()
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
