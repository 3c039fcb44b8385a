//! The tier `burn`: a checkpoint in a folder, opened and run in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::engine::GenerationLimits;
use super::prompt::{Author, PromptConfig};
use super::sampler::Sampling;
use super::writer::{Voice, start};
use crate::checkpoint::{Checkpoint, Precision, digest};
use crate::decoder::{FusedDecoder, FusedOptions, PlainDecoder, Slice, StepModel};
use crate::device::DeviceChoice;
use crate::error::ModelError;
use crate::hub::Installed;
use crate::kernels::InstructionChoice;
use crate::tier::TierHandle;
use crate::weights::ModelHome;

/// Tokens of the first prompt on the CPU, which nobody waits for: memory is touched.
const WARM_UP_TOKENS: usize = 16;

/// How exact a decoder's numbers are kept. It computes in single precision on the CPU whatever they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptPrecision {
    /// Weights as they are in the checkpoint, so that nothing is lost; keys and values in single precision.
    #[default]
    Stored,
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl KeptPrecision {
    fn of(self, stored: Precision) -> Precision {
        match self {
            Self::Stored => stored,
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// Who says how tokens are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingFrom {
    /// The settings.
    #[default]
    Settings,
    /// The checkpoint's `generation_config.json`; the settings' seed all the same.
    Checkpoint,
}

/// Which checkpoint answers, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BurnConfig {
    /// The checkpoint's folder, or the name under which it was pulled, `ORG/NAME`.
    pub model: PathBuf,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Threads of the decoder on the CPU.
    pub threads: usize,
    /// How exact weights are kept on the CPU.
    pub weights: KeptPrecision,
    /// How exact keys and values are kept on the CPU.
    pub kv: KeptPrecision,
    /// Memory for keys and values, in bytes: it is allocated when the tier starts.
    pub kv_bytes_max: u64,
    /// Tokens of one block of that memory.
    pub block_tokens: usize,
    /// Longest time for an answer, its wait included, in milliseconds.
    pub answer_ms_max: u64,
    /// Texts that end an answer, besides the model's own tokens for that.
    pub stop_strings: Vec<String>,
    /// Who says how tokens are chosen.
    pub sampling: SamplingFrom,
    /// The engine.
    pub engine: GenerationLimits,
}

impl BurnConfig {
    /// The checkpoint's folder.
    #[must_use]
    pub fn folder(&self, home: &ModelHome) -> PathBuf {
        home.folder_of(&self.model)
    }

    /// Opens the checkpoint; nothing of its weights is loaded.
    ///
    /// # Errors
    /// When it cannot be used, or a pull has left it in parts.
    pub fn open(&self, home: &ModelHome) -> Result<Checkpoint, ModelError> {
        let folder = self.folder(home);
        Installed::read_whole(&folder)?;
        Checkpoint::open(&folder)
    }
}

/// Opens tiers of this kind.
#[derive(Debug)]
pub struct BurnTier;

impl BurnTier {
    /// Opens the checkpoint, loads it, lets it read a first prompt, and starts its engine. Takes seconds, and more through a GPU, which
    /// has to compile and tune its kernels.
    ///
    /// `home` is where checkpoints are that were pulled; `scope` is the operator's own words
    /// to the model, and the language of the answers; `instructions` are the processor's.
    ///
    /// # Errors
    /// When the checkpoint cannot be used, its logits are not finite, the processor has not the instructions, the memory for keys and values is
    /// too small, or there is no thread.
    pub fn open(
        config: &BurnConfig,
        prompt: &PromptConfig,
        sampling: Sampling,
        scope: (&str, &str),
        home: &ModelHome,
        instructions: InstructionChoice,
    ) -> Result<TierHandle, ModelError> {
        let checkpoint = config.open(home)?;
        let Loaded { mut model, kind, wgpu, .. } = load(&checkpoint, config, instructions)?;
        warm_up(model.as_mut(), if wgpu { config.engine.step_tokens_max } else { WARM_UP_TOKENS }, &checkpoint)?;
        Self::with_decoder((checkpoint, model, &kind), config, prompt, sampling, scope)
    }

    /// The same with a decoder of a checkpoint that is loaded already; its third part says what about it may change an answer.
    ///
    /// # Errors
    /// When the checkpoint's chat template cannot be used, or there is no thread.
    pub fn with_decoder(
        loaded: (Checkpoint, Box<dyn StepModel>, &str),
        config: &BurnConfig,
        prompt: &PromptConfig,
        sampling: Sampling,
        scope: (&str, &str),
    ) -> Result<TierHandle, ModelError> {
        let (mut checkpoint, model, kind) = loaded;
        let dialect = Dialect::of(&mut checkpoint)?;
        let (system_prompt, language) = scope;
        let sampling = match config.sampling {
            SamplingFrom::Settings => sampling,
            SamplingFrom::Checkpoint => checkpoint.generation.sampling(sampling.seed),
        };
        let voice = Voice {
            author: Arc::new(Author::new(prompt.clone(), system_prompt, language)),
            dialect,
            sampling,
            stop_tokens: checkpoint.eos().into(),
            stop_strings: config.stop_strings.clone().into(),
            time_max: Duration::from_millis(config.answer_ms_max),
            model: format!("burn {} {kind}", digest(&checkpoint.folder)?),
        };
        start(model, voice, config.engine)
    }
}

/// A decoder, and what it takes.
pub(super) struct Loaded {
    pub(super) model: Box<dyn StepModel>,
    /// Bytes of its weights, and of its memory for keys and values.
    pub(super) bytes: (u64, u64),
    /// How exact it computes.
    kind: String,
    /// Whether it is reached through wgpu.
    wgpu: bool,
}

/// Loads a checkpoint's decoder for the device of a configuration.
///
/// # Errors
/// When the weights cannot be used, the processor has not the instructions, or the memory for keys and values holds too little.
pub(super) fn load(
    checkpoint: &Checkpoint,
    config: &BurnConfig,
    instructions: InstructionChoice,
) -> Result<Loaded, ModelError> {
    let tried = config.device.resolve()?;
    let (sizes, weights) = (&checkpoint.config, &checkpoint.weights);
    let (weights_kept, kv_kept) = if tried.wgpu {
        let precision = if tried.half { Precision::F16 } else { Precision::F32 };
        (precision, precision)
    } else {
        // Where the checkpoint mixes them, nothing is lost in single precision.
        let stored = if let [one] = weights.precisions()[..] { one } else { Precision::F32 };
        (config.weights.of(stored), config.kv.of(Precision::F32))
    };
    let block_tokens = config.block_tokens;
    let block_bytes = if tried.wgpu {
        PlainDecoder::block_bytes(sizes, kv_kept, block_tokens)
    } else {
        FusedDecoder::block_bytes(sizes, kv_kept, block_tokens)
    };
    let blocks = blocks(config, block_bytes)?;
    let model: Box<dyn StepModel> = if tried.wgpu {
        let decoder = PlainDecoder::load(sizes, weights, &tried.device, weights_kept, blocks, block_tokens)?;
        Box::new(decoder)
    } else {
        let (threads, instructions) = (config.threads, instructions.resolve()?);
        tracing::info!(instructions = instructions.name(), threads, "a decoder computes on the processor");
        let options = FusedOptions { weights: weights_kept, kv: kv_kept, threads, instructions };
        Box::new(FusedDecoder::load(sizes, weights, options, blocks, block_tokens)?)
    };
    let kind = format!("weights {weights_kept}, keys and values {kv_kept}");
    tracing::info!(device = tried.name, kind, blocks, "a checkpoint is loaded");
    let bytes = (sizes.memory(weights_kept, kv_kept).weight_bytes, block_bytes * blocks as u64);
    Ok(Loaded { model, bytes, kind, wgpu: tried.wgpu })
}

/// Blocks of the memory for keys and values.
fn blocks(config: &BurnConfig, block_bytes: u64) -> Result<usize, ModelError> {
    let BurnConfig { kv_bytes_max, block_tokens, .. } = *config;
    match kv_bytes_max / block_bytes.max(1) {
        0 => Err(ModelError::NoBlock { bytes: kv_bytes_max, block_tokens, block_bytes }),
        blocks => Ok(usize::try_from(blocks).unwrap_or(usize::MAX)),
    }
}

/// Reads a prompt of so many tokens in one step, or of as many as fit, and writes one behind it, while nobody waits: a GPU compiles and
/// tunes its kernels for a step of about this size when the first one comes.
fn warm_up(model: &mut dyn StepModel, step_tokens: usize, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let began = Instant::now();
    let shape = model.shape();
    let count = (step_tokens + 1).min(shape.context_max).min(shape.blocks * shape.block_tokens);
    let tokens = vec![0; count];
    let blocks: Vec<u32> = (0..).take(count.div_ceil(shape.block_tokens)).collect();
    let mut logits = Vec::new();
    for (position, tokens) in [(0, &tokens[..count - 1]), (count - 1, &tokens[count - 1..])] {
        if !tokens.is_empty() {
            model.step(&[Slice { tokens, position, blocks: &blocks, wants_logits: true }], &mut logits)?;
        }
    }
    tracing::info!(tokens = count, took_ms = began.elapsed().as_millis(), "a decoder has read a first prompt");
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    let reason = "a first prompt gives logits that are not finite: its numbers are damaged, or too large for the precision that is computed in";
    Err(ModelError::Load { path: checkpoint.folder.clone(), reason: reason.to_owned() })
}

#[cfg(test)]
#[path = "burn_tests.rs"]
mod tests;
