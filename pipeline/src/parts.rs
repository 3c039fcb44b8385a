//! What a pipeline works with: store, knowledge base, encoder, tier.

use std::path::Path;
use std::sync::Arc;

use turnflow_models::{
    AXES, BurnTier, Encoder, EncoderEngine, EncoderHandle, Extractive, MODEL_NAME, ModelFiles, ModelHome, RemoteTier,
    TierEngine, TierHandle, Verifier, default_home, principal_axes,
};
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::validity::Axes;
use turnflow_state::{KnowledgeBase, Store};

use crate::config::{PolicyConfig, TierKind};
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
    /// Judges similar questions.
    pub policy: Arc<Policy>,
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
        store.bind_encoder(&format!("{MODEL_NAME} with adapter {}", config.encoder.adapter))?;
        let knowledge = Arc::new(KnowledgeBase::load(store.clone(), config.knowledge.cache_bytes)?);
        let tier = tier(config, &encoder)?;
        let (policy, axes) = (Arc::new(policy(config)?), axes());
        Ok(Self { store, knowledge, encoder, tier, policy, axes })
    }
}

/// The tier of a configuration. Loads its model, if it has one, which takes a while.
///
/// # Errors
/// [`PipelineError`] when the model cannot be used or a thread cannot be started.
pub fn tier(config: &Config, encoder: &EncoderHandle) -> Result<TierHandle, PipelineError> {
    let settings = &config.tier;
    Ok(match settings.kind {
        TierKind::Extractive => {
            let extractive = Extractive::new(encoder.clone(), config.extractive.clone());
            TierEngine::start(Arc::new(extractive), settings.engine())?
        }
        TierKind::Burn => {
            let scope = (config.scope.system_prompt.as_str(), config.scope.language.as_str());
            BurnTier::open(
                &settings.burn,
                &settings.prompt,
                settings.sampling,
                scope,
                &ModelHome::new(default_home()?),
            )?
        }
        TierKind::Openai => {
            let (settings, prompt) = (settings.openai.clone(), settings.prompt.clone());
            TierHandle::new(RemoteTier::start(settings, prompt, &config.scope.system_prompt, &config.scope.language)?)
        }
    })
}

/// The hit policy of a configuration.
///
/// # Errors
/// [`PipelineError`] when the verifier's file cannot be read.
pub fn policy(config: &Config) -> Result<Policy, PipelineError> {
    let PolicyConfig { verifier, delta, relevance_min, margin_min } = &config.policy;
    let verifier = match verifier.as_str() {
        "none" => None,
        "shop" => Some(Verifier::shop()),
        path => Some(Verifier::load(Path::new(path))?),
    };
    let clarity = Clarity { relevance_min: *relevance_min, margin_min: *margin_min };
    Ok(Policy::new(clarity, config.cache.similarity_min, verifier.map(Arc::new), *delta))
}

fn axes() -> Axes {
    let axes = principal_axes();
    Axes::new(&axes, axes.len() / AXES)
}
