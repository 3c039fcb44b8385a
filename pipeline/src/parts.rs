//! What a pipeline works with: store, knowledge base, encoder, tiers.

use std::path::Path;
use std::sync::Arc;

use turnflow_models::{
    AXES, BurnTier, Encoder, EncoderCheckpoint, EncoderEngine, EncoderHandle, Extractive, FittedWith, InputType,
    ModelHome, RemoteTier, Router, TierEngine, TierHandle, Verifier, default_home, principal_axes,
};
use turnflow_operators::generate::Tiers;
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::route::Chooser;
use turnflow_operators::validity::Axes;
use turnflow_state::{KnowledgeBase, Store};

use crate::config::{PolicyConfig, RoutingConfig, TierConfig, TierKind};
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
    /// Write answers.
    pub tiers: Tiers,
    /// Chooses between them; None where there is one.
    pub chooser: Option<Chooser>,
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
    pub fn open(config: &Config, store: Store, encoder: &EncoderCheckpoint) -> Result<Self, PipelineError> {
        let encoder = Encoder::load(encoder, config.encoder.options(config.processor.instructions))?;
        Self::with_encoder(config, store, EncoderEngine::start(encoder, &config.encoder)?)
    }

    /// The same with an encoder that runs already, so that several pipelines can share it.
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read, holds vectors of another encoder, or a thread cannot be started; when chunks may be
    /// longer than what the encoder reads.
    pub fn with_encoder(config: &Config, store: Store, encoder: EncoderHandle) -> Result<Self, PipelineError> {
        check_chunks(config, encoder.pieces_max(InputType::Passage))?;
        store.bind_encoder(encoder.identity())?;
        let knowledge = Arc::new(KnowledgeBase::load(store.clone(), config.knowledge.cache_bytes)?);
        let tiers = tiers(config, &encoder)?;
        let policy = Arc::new(policy(config, encoder.identity())?);
        if !config.encoder.is_shipped() && config.policy.verifier == "none" {
            tracing::warn!(
                similarity_min = %config.cache.similarity_min,
                "no verifier is fitted to this encoder: similar questions share answers by cache.similarity-min alone, and what a \
                 similarity means is another thing with every encoder; `turnflow policy fit` makes a verifier"
            );
        }
        // Any axes do, and those that ship tell little of what another encoder makes.
        let axes = if config.encoder.is_shipped() { axes() } else { Axes::default() };
        let chooser = if config.routing.enabled { Some(chooser(config, encoder.identity())?) } else { None };
        Ok(Self { store, knowledge, encoder, tiers, chooser, policy, axes })
    }

    /// Everything about the tiers that may change an answer: caches are kept apart by it.
    ///
    /// # Errors
    /// [`PipelineError::Model`] when the router's parameters cannot be written down.
    pub fn tiers_identity(&self) -> Result<String, PipelineError> {
        let large = self.tiers.large.identity();
        let Some(small) = &self.tiers.small else { return Ok(large) };
        let router = match &self.chooser {
            Some(Chooser::Trained(router, _)) => router.digest()?,
            Some(Chooser::Plain(_)) | None => String::new(),
        };
        Ok(format!("{large}, {}, {router}", small.identity()))
    }
}

/// Whether an encoder that reads so many word pieces of a passage, beside its prefix, reads chunks to their ends.
///
/// # Errors
/// [`PipelineError::Chunks`] when it does not.
pub const fn check_chunks(config: &Config, most: usize) -> Result<(), PipelineError> {
    match config.knowledge.chunk_tokens_max {
        wanted if wanted > most => Err(PipelineError::Chunks { wanted, most }),
        _ => Ok(()),
    }
}

/// The tiers of a configuration. Loads their models, if they have any, which takes a while.
///
/// # Errors
/// [`PipelineError`] when a model cannot be used or a thread cannot be started.
pub fn tiers(config: &Config, encoder: &EncoderHandle) -> Result<Tiers, PipelineError> {
    let small = config.routing.enabled.then(|| tier(config, &config.small_tier, encoder)).transpose()?;
    Ok(Tiers { large: tier(config, &config.tier, encoder)?, small })
}

/// A tier with the settings of one of a configuration's. Loads its model, if it has one.
///
/// # Errors
/// [`PipelineError`] when the model cannot be used or a thread cannot be started.
pub fn tier(config: &Config, settings: &TierConfig, encoder: &EncoderHandle) -> Result<TierHandle, PipelineError> {
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
                config.processor.instructions,
            )?
        }
        TierKind::Openai => {
            let (settings, prompt) = (settings.openai.clone(), settings.prompt.clone());
            TierHandle::new(RemoteTier::start(settings, prompt, &config.scope.system_prompt, &config.scope.language)?)
        }
    })
}

/// What chooses between the tiers of a configuration, with an encoder of this identity.
///
/// # Errors
/// [`PipelineError`] when the router's file cannot be read, or it was fitted with another encoder.
pub fn chooser(config: &Config, encoder: &str) -> Result<Chooser, PipelineError> {
    let RoutingConfig { router: name, target, plain, .. } = &config.routing;
    let router = match name.as_str() {
        "plain" => return Ok(Chooser::Plain(*plain)),
        "shop" => Router::shop(),
        path => Router::load(Path::new(path))?,
    };
    let (fitted, found) = (router.encoder().to_owned(), encoder.to_owned());
    if fitted == found {
        Ok(Chooser::Trained(Arc::new(router), *target))
    } else {
        Err(PipelineError::Router { router: name.clone(), fitted, found })
    }
}

/// The hit policy of a configuration, with an encoder of this identity.
///
/// # Errors
/// [`PipelineError`] when the verifier's file cannot be read, or the verifier was fitted under other settings.
pub fn policy(config: &Config, encoder: &str) -> Result<Policy, PipelineError> {
    let PolicyConfig { delta, relevance_min, margin_min, .. } = config.policy;
    let clarity = Clarity { relevance_min, margin_min };
    Ok(Policy::new(clarity, config.cache.similarity_min, verifier(config, encoder)?.map(Arc::new), delta))
}

/// The verifier of a configuration, with an encoder of this identity; None when a plain rule stands in for it.
///
/// # Errors
/// [`PipelineError`] when its file cannot be read, or it was fitted under other settings.
pub fn verifier(config: &Config, encoder: &str) -> Result<Option<Verifier>, PipelineError> {
    let name = &config.policy.verifier;
    let verifier = match name.as_str() {
        "none" => return Ok(None),
        "shop" => Verifier::shop(),
        path => Verifier::load(Path::new(path))?,
    };
    check_fitted_with(name, verifier.fitted_with(), &fitted_with(config, encoder))?;
    Ok(Some(verifier))
}

/// What a verifier that is fitted under a configuration, with an encoder of this identity, is fitted with.
#[must_use]
pub fn fitted_with(config: &Config, encoder: &str) -> FittedWith {
    let PolicyConfig { relevance_min, margin_min, .. } = config.policy;
    FittedWith { encoder: encoder.to_owned(), relevance_min, margin_min }
}

fn check_fitted_with(verifier: &str, fitted: &FittedWith, found: &FittedWith) -> Result<(), PipelineError> {
    let settings = [
        ("the encoder ", fitted.encoder.clone(), found.encoder.clone()),
        ("policy.relevance-min = ", fitted.relevance_min.to_string(), found.relevance_min.to_string()),
        ("policy.margin-min = ", fitted.margin_min.to_string(), found.margin_min.to_string()),
    ];
    match settings.into_iter().find(|(_, fitted, found)| fitted != found) {
        None => Ok(()),
        Some((setting, fitted, found)) => {
            Err(PipelineError::Verifier { verifier: verifier.to_owned(), fitted: format!("{setting}{fitted}"), found })
        }
    }
}

fn axes() -> Axes {
    let axes = principal_axes();
    Axes::new(&axes, axes.len() / AXES)
}
