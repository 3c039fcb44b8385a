//! Checkpoints of decoders in the Hugging Face layout: a folder with `config.json`, weights and a tokenizer. Those of encoders are
//! in `encoder/checkpoint.rs`, and read their files by the same means.
//!
//! Contract: reads, never writes, and fetches nothing. What does not fit is an error that names the file and the field
//! or tensor in it. Opening reads settings, vocabulary and the headers of the weights; the weights themselves are read
//! by the decoder that is made from them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::error::{Cause, ModelError};
use crate::hub::RECORD;

mod chat;
mod config;
mod generation;
mod layout;
mod weights;

pub use chat::{ChatMessage, ChatTemplate};
pub(crate) use config::refuse;
pub use config::{DecoderConfig, Family, RopeScaling};
pub use generation::GenerationConfig;
pub use layout::{EMBEDDING, FINAL_NORM, HEAD, Memory, TensorSpec, layer_tensor};
pub use weights::{Numbers, Precision, Weights};

/// Largest file of settings accepted, in bytes; vocabularies of a quarter of a million tokens take 20 MB.
const SETTINGS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A checkpoint, opened and checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// What it computes.
    pub config: DecoderConfig,
    /// Where its weights are; every tensor is there, in its right shape, and no other.
    pub weights: Weights,
    /// Its vocabulary; no token is beyond the configuration's.
    pub tokenizer: Arc<Tokenizer>,
    /// How a conversation becomes text, if it was trained on conversations.
    pub chat: Option<ChatTemplate>,
    /// How its makers suggest to sample from it.
    pub generation: GenerationConfig,
}

impl Checkpoint {
    /// Opens the checkpoint in a folder.
    ///
    /// # Errors
    /// When a file is missing, cannot be read or parsed, or does not fit the others; the file is named, and the field or
    /// tensor in it.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let config = DecoderConfig::read(&path)?;
        let (mut weights, tensors) = (Weights::open(folder)?, config.tensors());
        weights.check(&tensors)?;
        weights.keep(&tensors);
        let tokenizer = tokenizer(&folder.join("tokenizer.json"))?;
        let ids = tokenizer.get_vocab(true).into_values();
        let needed = ids.max().map_or(0, |id| id as usize + 1);
        if config.vocabulary < needed {
            return Err(ModelError::Architecture {
                path,
                field: "vocab_size",
                found: config.vocabulary.to_string(),
                expected: format!("at least {needed}, for the tokenizer's tokens"),
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
            config,
            weights,
            tokenizer: Arc::new(tokenizer),
            chat: ChatTemplate::open(folder)?,
            generation: GenerationConfig::read(&folder.join("generation_config.json"))?,
        })
    }

    /// The tokens that end an answer: those of `generation_config.json`, else those of `config.json`.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        if self.generation.eos.is_empty() { &self.config.eos } else { &self.generation.eos }
    }
}

fn tokenizer(path: &Path) -> Result<Tokenizer, ModelError> {
    let unusable = |source: Cause| ModelError::Parse { path: path.to_owned(), source };
    let mut tokenizer = Tokenizer::from_bytes(read_small(path)?).map_err(unusable)?;
    // How long a text may be is up to whoever asks.
    tokenizer.with_truncation(None).map_err(unusable)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The bytes of a small file.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, ModelError> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(SETTINGS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(ModelError::io("read", path))?;
    if bytes.len() as u64 > SETTINGS_BYTES_MAX {
        let reason = format!("it has more than {SETTINGS_BYTES_MAX} bytes");
        return Err(ModelError::Load { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, ModelError> {
    File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ModelError::MissingFile { path: path.to_owned() },
        _ => ModelError::io("open", path)(error),
    })
}

/// A digest of what is in a checkpoint's folder, in hexadecimal: of its settings, vocabulary and weights.
pub(crate) fn digest(folder: &Path) -> Result<String, ModelError> {
    let entries = std::fs::read_dir(folder).map_err(ModelError::io("list", folder))?;
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.retain(|file| {
        let is_kind = file.extension().is_some_and(|end| end == "safetensors" || end == "json" || end == "jinja");
        // How it was pulled changes no answer.
        is_kind && file.file_name().is_some_and(|name| name != RECORD)
    });
    files.sort();
    digest_of(files.iter().map(PathBuf::as_path))
}

/// A digest of files, by their names and what is in them, in hexadecimal.
pub(crate) fn digest_of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        let bytes = file.metadata().map_err(ModelError::io("read", path))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{name} {bytes}\n").as_bytes());
        hasher.update_reader(file).map_err(ModelError::io("read", path))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

pub(crate) fn parse<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(json).map_err(|source| ModelError::Parse { path: path.to_owned(), source: Box::new(source) })
}
