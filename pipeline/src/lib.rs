//! Wires the stages of a turn into a dataflow, and validity into another, runs the workers, and hands turns in and events
//! out.
//!
//! [`Pipeline::submit`] admits a turn and returns the [`TurnStream`] of its events; [`Pipeline::start`] puts up the
//! dataflows over the [`Parts`] that the composition root made from a [`Config`]. [`Knowledge`] reads and writes the
//! knowledge base meanwhile.
//!
//! Bounded by admission: a turn takes a place when it is admitted and gives it back with its terminal event, so no
//! queue inside ever holds more than [`Limits::turns_in_flight_max`](turnflow_state::Limits) turns.

mod admission;
mod auditing;
mod bridge;
mod caches;
mod config;
mod conversations;
mod dataflow;
mod error;
#[cfg(test)]
mod history_tests;
mod knowledge;
mod parts;
mod pipeline;
mod reload;
mod resident;
mod shared;
mod span;
mod stats;
mod validity;

pub use admission::{Cost, OnCost, SubmitError, TurnStream};
pub use auditing::Feedback;
pub use caches::{CachedAnswer, Caches, Flushed, LISTED_MAX, Listing};
pub use config::{
    AuditConfig, CacheConfig, CallerLimits, Config, ConfigError, GatewayConfig, GatewayLimits, HttpConfig,
    KnowledgeConfig, OtherModels, ProcessorConfig, RefreshConfig, RoutingConfig, ScopeConfig, Scopes, ServerConfig,
    StorageConfig, SystemMessages, TierConfig, TierKind, TlsConfig, Validity, WorkersConfig,
};
pub use conversations::{Conversations, PAGE_CONVERSATIONS_MAX, Summary};
pub use error::PipelineError;
pub use knowledge::{
    ArticleChanged, ArticleDraft, ChangeEvent, DraftContent, DraftError, Embedded, Knowledge, Prepared, Receipt,
    VERSION_MAX,
};
pub use parts::{Parts, check_chunks, chooser, fitted_with, policy, tier, tiers, verifier};
pub use pipeline::{Pipeline, Submission};
pub use reload::{Change, LIVE, ReloadError};
pub use resident::resident_bytes;
pub use shared::{Forecast, ValidityStats};
pub use stats::{EngineQueue, EngineStats, PipelineStats, TierState};
pub use turnflow_operators::audit::AuditStats;
pub use turnflow_operators::bound::BoundStats;
pub use turnflow_operators::commit::Price;
pub use turnflow_operators::generate::Tiers;
pub use turnflow_operators::guard::Mentions;
pub use turnflow_operators::histogram::{BOUNDS_US, Histogram};
pub use turnflow_operators::load::{LoadLimits, LoadStats, QueueStats};
pub use turnflow_operators::message::{Beginning, Wishes};
pub use turnflow_operators::prioritise::{Order, QueueLimits};
pub use turnflow_operators::refresh::RefreshStats;
pub use turnflow_operators::route::Chooser;
pub use turnflow_operators::selection::Selection;
pub use turnflow_operators::tally::{Account, TALLIES_MAX, Tally};
pub use turnflow_operators::validity::{Fall, Invalidated};
