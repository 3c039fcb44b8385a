//! Turnflow's models: the sentence encoder on Burn, its weights, its engine, and the extractive answerer.
//!
//! *Weights*: [`ensure`] pulls and verifies files. *Encoder*: [`Encoder`] makes vectors, [`TextTokenizer`] counts and
//! cuts. *Engines*: [`EncoderEngine`] batches what waits, [`TierEngine`] answers; both are bounded, own their
//! threads, and answer by callback. *Tiers*: [`Extractive`] answers with the knowledge base's own sentences.
//! *Routing*: a [`Router`] decides whether a small tier suffices.
//! *Decoders*: [`Checkpoint`] reads a model in the Hugging Face layout, [`PlainDecoder`] runs it on the device that a
//! [`DeviceChoice`] resolves to.
//!
//! This is the only crate that knows Burn. It knows no dataflow, no store and no protocol: chunks and vectors come
//! in as data.

mod adapter;
mod axes;
mod batch;
mod bert;
mod cancel;
mod checkpoint;
mod contrast;
mod cut;
mod decoder;
mod device;
mod encoder;
mod engine;
mod error;
mod extractive;
mod generation;
mod hub;
mod kernels;
mod memo;
mod network;
mod prefixes;
mod pull;
mod queue;
mod remote;
mod router;
mod secret;
mod select;
mod split;
mod tier;
mod tokenizer;
mod vector;
mod verifier;
mod weights;
mod whole;

pub use adapter::{Adapter, AdapterChoice};
pub use axes::{AXES, principal_axes};
pub use batch::{BATCH_TOKENS_MAX, BatchBudget, plan_batches};
pub use bert::{BertConfig, ENCODER_THREADS_MAX, EncoderOptions, EncoderPrecision, Pooling};
pub use cancel::Cancel;
pub use checkpoint::{
    ChatMessage, ChatTemplate, Checkpoint, DecoderConfig, EMBEDDING, FINAL_NORM, Family, GenerationConfig, HEAD,
    Memory, Numbers, Precision, RopeScaling, TensorSpec, Weights, layer_tensor,
};
pub use contrast::{ContrastOptions, train_map};
pub use cut::sentences;
pub use decoder::{FusedDecoder, FusedOptions, PlainDecoder, Slice, StepModel, StepShape};
pub use device::{DeviceChoice, TriedDevice, probe_main};
pub use encoder::{Encoder, EncoderCheckpoint, EncoderConfig};
pub use engine::{EncodeDone, EncodeJob, EncoderEngine, EncoderHandle, EncoderStats, JOB_TEXTS_MAX};
pub use error::ModelError;
pub use extractive::{Extractive, ExtractiveConfig, SENTENCES_READ_MAX, Written};
pub use generation::{
    BurnConfig, BurnTier, GenerationBench, GenerationLimits, GenerationLoad, GenerationRun, GenerationStats,
    KeptPrecision, PromptConfig, Sampling, SamplingFrom,
};
pub use hub::{Hub, Installed, InstalledFile, install, installed};
pub use kernels::{InstructionChoice, Instructions, prefetch};
pub use prefixes::{InputType, PREFIX_BYTES_MAX, Prefixes};
pub use pull::{Progress, WeightSource};
pub use queue::{Lane, Rejected};
pub use remote::{
    BreakerState, LimitField, Phase, RemoteConfig, RemoteFault, RemoteHealth, RemoteStats, RemoteTier, WrongSetting,
};
pub use router::{
    CurvePoint, Decision, DecisionTime, Kept, Needed, PlainRule, ROUTER_FEATURES, Recovered, Retrieval, Router,
    RouterExample, RouterFitOptions, RouterFitReport, RouterInput, RoutingReport, Target, evaluate_router, fit_router,
};
pub use secret::Secret;
pub use tier::{
    AnswerDone, Answerer, OnDelta, TierBackend, TierEngine, TierEngineConfig, TierHandle, TierJob, TierRequest,
    TierStats,
};
pub use tokenizer::TextTokenizer;
pub use vector::{dot, to_unit};
pub use verifier::{
    CONFIDENCE, Calibration, Comparison, Evidence, FitOptions, FitReport, FitStage, FittedWith, Level, PairExample,
    Profile, QuestionExample, Reason, Verifier, fit, is_held_out, probability, upper_bound,
};
pub use weights::{MODEL_NAME, ModelHome, default_home, ensure, verify};
