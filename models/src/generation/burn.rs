//! The tier `burn`: a checkpoint in a folder, opened and run in this process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::engine::GenerationLimits;
use super::prompt::{Author, PromptConfig};
use super::sampler::Sampling;
use super::writer::{Voice, start};
use crate::checkpoint::{Checkpoint, Precision};
use crate::decoder::{PlainDecoder, Slice, StepModel};
use crate::device::DeviceChoice;
use crate::error::ModelError;
use crate::tier::TierHandle;

/// Of each end of a weights file, so many bytes tell it from others.
const IDENTITY_BYTES: u64 = 1 << 20;
/// Tokens of the first prompt, which nobody waits for: kernels are compiled and memory is touched.
const WARM_UP_TOKENS: usize = 16;

/// Which checkpoint answers, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BurnConfig {
    /// The checkpoint's folder.
    pub model: PathBuf,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Threads of the decoder on the CPU.
    pub threads: usize,
    /// Memory for keys and values, in bytes: it is allocated when the tier starts.
    pub kv_bytes_max: u64,
    /// Tokens of one block of that memory.
    pub block_tokens: usize,
    /// Longest time for an answer, its wait included, in milliseconds.
    pub answer_ms_max: u64,
    /// Texts that end an answer, besides the model's own tokens for that.
    pub stop_strings: Vec<String>,
    /// The engine.
    pub engine: GenerationLimits,
}

/// Opens tiers of this kind.
#[derive(Debug)]
pub struct BurnTier;

impl BurnTier {
    /// Opens the checkpoint, loads it, lets it read a first prompt, and starts its engine. Takes seconds.
    ///
    /// `home` is where a GPU's tuning is kept; `system_prompt` are the operator's own words to the model, and `language` is
    /// that of the answers.
    ///
    /// # Errors
    /// When the checkpoint cannot be used, its memory does not hold a prompt and its answer, or there is no thread.
    pub fn open(
        config: &BurnConfig,
        prompt: &PromptConfig,
        sampling: Sampling,
        scope: (&str, &str),
        home: &Path,
    ) -> Result<TierHandle, ModelError> {
        let mut checkpoint = Checkpoint::open(&config.model)?;
        let dialect = Dialect::of(&mut checkpoint)?;
        let mut model = load(&checkpoint, config, home)?;
        warm_up(model.as_mut())?;
        let (system_prompt, language) = scope;
        let voice = Voice {
            author: Arc::new(Author::new(prompt.clone(), system_prompt, language)),
            dialect,
            sampling,
            stop_tokens: checkpoint.eos().into(),
            stop_strings: config.stop_strings.clone().into(),
            time_max: Duration::from_millis(config.answer_ms_max),
            model: identity(&config.model)?,
        };
        start(model, voice, config.engine)
    }
}

fn load(checkpoint: &Checkpoint, config: &BurnConfig, home: &Path) -> Result<Box<dyn StepModel>, ModelError> {
    let tried = config.device.resolve(home)?;
    let precision = if tried.half { Precision::F16 } else { Precision::F32 };
    let token_bytes = checkpoint.config.memory(precision, precision).kv_bytes_per_token;
    let blocks = config.kv_bytes_max / (token_bytes * config.block_tokens as u64).max(1);
    let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
    if blocks < 2 {
        let reason = format!(
            "{} bytes for keys and values hold {blocks} blocks of {} tokens, at {token_bytes} bytes a token",
            config.kv_bytes_max, config.block_tokens
        );
        return Err(ModelError::Step { reason });
    }
    let (model, weights) = (&checkpoint.config, &checkpoint.weights);
    let decoder = PlainDecoder::load(model, weights, &tried.device, precision, blocks, config.block_tokens)?;
    tracing::info!(device = tried.name, %precision, blocks, "a checkpoint is loaded");
    Ok(Box::new(decoder))
}

fn warm_up(model: &mut dyn StepModel) -> Result<(), ModelError> {
    let shape = model.shape();
    let count = WARM_UP_TOKENS.min(shape.context_max).min(shape.block_tokens);
    let tokens = vec![0; count];
    let mut logits = Vec::new();
    for (position, tokens) in [(0, &tokens[..count - 1]), (count - 1, &tokens[count - 1..])] {
        if !tokens.is_empty() {
            model.step(&[Slice { tokens, position, blocks: &[0], wants_logits: true }], &mut logits)?;
        }
    }
    Ok(())
}

/// A digest of a checkpoint: of its settings and vocabulary in full, of its weights the sizes and both ends of each file.
fn identity(folder: &Path) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    let entries = std::fs::read_dir(folder).map_err(ModelError::io("list", folder))?;
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.retain(|file| {
        let is_weights = file.extension().is_some_and(|end| end == "safetensors");
        is_weights || file.extension().is_some_and(|end| end == "json" || end == "jinja")
    });
    files.sort();
    for path in files {
        let failed = |source| ModelError::Io { action: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hasher.update(format!("{name} {bytes}\n").as_bytes());
        let is_weights = path.extension().is_some_and(|end| end == "safetensors");
        let ends = if is_weights && bytes > 2 * IDENTITY_BYTES { vec![0, bytes - IDENTITY_BYTES] } else { vec![0] };
        let most = if ends.len() > 1 { IDENTITY_BYTES } else { u64::MAX };
        for from in ends {
            file.seek(SeekFrom::Start(from)).map_err(failed)?;
            hasher.update_reader(Read::by_ref(&mut file).take(most)).map_err(failed)?;
        }
    }
    Ok(format!("burn {}", hasher.finalize().to_hex()))
}
