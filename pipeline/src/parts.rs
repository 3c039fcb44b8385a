//! What a pipeline works with: store, knowledge base, encoder, tier.

use std::sync::Arc;

use turnflow_models::{
    AXES, Encoder, EncoderEngine, EncoderHandle, Extractive, ModelFiles, TierEngine, TierHandle, principal_axes,
};
use turnflow_operators::validity::Axes;
use turnflow_state::{KnowledgeBase, Store};

use crate::{Config, PipelineError};

/// Everything a pipeline works with. Made once, by the composition root; clones share it.
#[derive(Clone)]
pub struct Parts {
    /// Where everything is kept.
    pub store: Store,
    /// The articles, as they are searched.
    pub knowledge: Arc<KnowledgeBase>,
    /// Turns text into vectors.
    pub encoder: EncoderHandle,
    /// Writes answers.
    pub tier: TierHandle,
    /// Axes along which questions and chunks are compared first.
    pub axes: Axes,
}

impl Parts {
    /// Loads the encoder and the knowledge base, and starts the engines.
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read, the weights cannot be loaded, or a thread cannot be started.
    pub fn open(config: &Config, store: Store, files: &ModelFiles) -> Result<Self, PipelineError> {
        Self::with_encoder(config, store, EncoderEngine::start(Encoder::load(files)?, config.encoder)?)
    }

    /// The same with an encoder that runs already, so that several pipelines can share it.
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read or a thread cannot be started.
    pub fn with_encoder(config: &Config, store: Store, encoder: EncoderHandle) -> Result<Self, PipelineError> {
        let knowledge = Arc::new(KnowledgeBase::load(store.clone(), config.knowledge.cache_bytes)?);
        let extractive = Extractive::new(encoder.clone(), config.extractive.clone());
        let tier = TierEngine::start(Arc::new(extractive), config.tier)?;
        let axes = axes();
        Ok(Self { store, knowledge, encoder, tier, axes })
    }
}

fn axes() -> Axes {
    let axes = principal_axes();
    Axes::new(&axes, axes.len() / AXES)
}
