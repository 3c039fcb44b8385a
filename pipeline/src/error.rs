//! What can go wrong while a pipeline is set up or its knowledge base is filled.

use std::sync::Arc;

use turnflow_models::ModelError;
use turnflow_operators::OperatorError;
use turnflow_state::StateError;

/// Errors of the pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The store, the index or the knowledge base failed.
    #[error("the store failed")]
    State(#[from] StateError),
    /// A write that others waited with failed.
    #[error("the store failed")]
    Commit(#[source] Arc<StateError>),
    /// A model failed.
    #[error("a model failed")]
    Model(#[from] ModelError),
    /// A model failed on an engine's thread.
    #[error("a model failed")]
    Engine(#[from] Arc<ModelError>),
    /// A stage could not be set up.
    #[error("a stage cannot be set up")]
    Operator(#[from] OperatorError),
    /// A verifier was calibrated under other settings, so what it promises is not known.
    #[error(
        "policy.verifier = {verifier:?} was fitted with {fitted}, not {found}: set that back, fit a verifier with `turnflow policy fit`, or set policy.verifier = \"none\""
    )]
    Verifier {
        /// Which verifier.
        verifier: String,
        /// What differs, and what it was when the verifier was fitted.
        fitted: String,
        /// What it is.
        found: String,
    },
    /// The ends of chunks would not be encoded.
    #[error(
        "knowledge.chunk-tokens-max = {wanted} is more than the {most} word pieces that the encoder reads beside its passage prefix: lower it"
    )]
    Chunks {
        /// The longest chunk, in word pieces.
        wanted: usize,
        /// What the encoder reads.
        most: usize,
    },
    /// A router was trained with another encoder, so that it says nothing of this one's vectors.
    #[error(
        "routing.router = {router:?} was trained with the encoder {fitted}, not {found}: set [encoder] back, train a router with `turnflow router train`, or set routing.router = \"plain\""
    )]
    Router {
        /// Which router.
        router: String,
        /// The encoder that it was trained with.
        fitted: String,
        /// The encoder that there is.
        found: String,
    },
    /// The workers could not be started.
    #[error("cannot start {workers} workers: {reason}")]
    Workers {
        /// How many were wanted.
        workers: usize,
        /// What the dataflow engine said.
        reason: String,
    },
    /// The pipeline takes nothing more.
    #[error("shutting down")]
    ShuttingDown,
}
