//! Metrics: everything that is counted, as Prometheus reads it. `docs/METRICS.md` says what each means.
//!
//! Nothing is counted here but what comes through the [door](crate::door). The stages, engines and stores count for themselves, and when a scrape
//! comes their numbers are read: so a scrape costs what it reads, and no turn pays for it. That is why there is no recorder that every turn would
//! have to call, as the facade `metrics` has it, but a collector.
//!
//! Labels have few values each. Tenants are told apart up to [`TENANTS_SHOWN_MAX`]; latencies are not told by tenant.

mod caches;
mod engines;
mod page;
mod process;
mod turns;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::registry::Registry;
use turnflow_pipeline::Pipeline;
use turnflow_state::TenantId;

use self::page::Page;
use crate::door::Traffic;

/// Most tenants with series of their own: whoever comes first. The others share the series without a tenant's name.
const TENANTS_SHOWN_MAX: usize = 100;
/// What every name begins with.
const PREFIX: &str = "turnflow";
/// The media type of the text.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one server; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Registry>);

impl Metrics {
    /// Those of a pipeline, and of what comes to it.
    pub(crate) fn new(pipeline: Pipeline, traffic: Traffic, started_s: u64) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Source { pipeline, traffic, started_s, shown: Mutex::default() }));
        Self(Arc::new(registry))
    }

    /// The text that Prometheus reads. Reads the store, so it may block for a moment.
    ///
    /// # Errors
    /// When a number is beyond what the format holds.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// Where the numbers are read.
struct Source {
    pipeline: Pipeline,
    traffic: Traffic,
    /// When the server started, in seconds since 1970.
    started_s: u64,
    /// Tenants with series of their own. Nobody leaves, so that no counter ever falls.
    shown: Mutex<BTreeSet<TenantId>>,
}

impl Source {
    /// The label of each tenant, which is empty for those that are not told apart.
    fn labels<'t>(&self, tenants: impl Iterator<Item = Option<&'t TenantId>>) -> Vec<&'t str> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let label = |tenant: Option<&'t TenantId>| {
            let tenant = tenant?;
            if shown.len() < TENANTS_SHOWN_MAX && !shown.contains(tenant) {
                shown.insert(tenant.clone());
            }
            shown.contains(tenant).then_some(tenant.as_str())
        };
        tenants.map(label).map(Option::unwrap_or_default).collect()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let page = &mut Page::new(encoder);
        let stats = self.pipeline.stats();
        turns::write(page, self, &stats)?;
        caches::write(page, self, &stats)?;
        engines::write(page, self)?;
        process::write(page, self)
    }
}
