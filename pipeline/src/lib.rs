//! Wires the stages of a turn into a dataflow, runs the workers, and hands turns in and events out.
//!
//! [`Pipeline::submit`] admits a turn and returns the [`TurnStream`] of its events; [`Pipeline::start`] puts up the
//! dataflow over the [`Parts`] that the composition root made from a [`Config`].
//!
//! Bounded by admission: a turn takes a place when it is admitted and gives it back with its terminal event, so no
//! queue inside ever holds more than [`Limits::turns_in_flight_max`](turnflow_state::Limits) turns.

mod admission;
mod bridge;
mod config;
mod dataflow;
mod error;
mod import;
mod parts;
mod pipeline;

pub use admission::{SubmitError, TurnStream};
pub use config::{
    CacheConfig, Config, ConfigError, KnowledgeConfig, PriceConfig, ScopeConfig, ServerConfig, StorageConfig,
    WorkersConfig,
};
pub use error::PipelineError;
pub use import::{ImportSummary, import_articles, retain_articles, search_knowledge};
pub use parts::Parts;
pub use pipeline::{Pipeline, PipelineStats};
