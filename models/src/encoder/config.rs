//! The encoder's settings: which it is, how it computes, and the bounds of its engine.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::EncoderCheckpoint;
use crate::adapter::AdapterChoice;
use crate::batch::BatchBudget;
use crate::bert::{EncoderOptions, EncoderPrecision};
use crate::error::ModelError;
use crate::hub::Installed;
use crate::kernels::InstructionChoice;
use crate::prefixes::{InputType, Prefixes};
use crate::weights::{MODEL_NAME, ModelHome, verify};

/// Which encoder there is, and the bounds of its engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EncoderConfig {
    /// The name of the encoder that ships, a checkpoint's folder, or the name under which it was pulled, `ORG/NAME`.
    pub model: PathBuf,
    /// Stands before what asks; empty for what the checkpoint says.
    pub query_prefix: String,
    /// Stands before what answers; empty for what the checkpoint says.
    pub passage_prefix: String,
    /// What stands behind the encoder.
    pub adapter: AdapterChoice,
    /// How exact its products are.
    pub precision: EncoderPrecision,
    /// Threads that compute, the engine's among them.
    pub threads: usize,
    /// Jobs that may wait.
    pub queue_max: usize,
    /// Word pieces of one forward pass.
    pub batch_tokens_max: usize,
    /// Texts of one forward pass.
    pub batch_texts_max: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        // Larger batches answer somewhat more texts a second, but who comes waits for the one under way.
        let (queue_max, batch_texts_max) = (16, 8);
        let batch_tokens_max = BatchBudget::DEFAULT.tokens_max;
        let (adapter, EncoderOptions { precision, threads, .. }) = Default::default();
        let (query_prefix, passage_prefix) = Default::default();
        Self {
            model: MODEL_NAME.into(),
            query_prefix,
            passage_prefix,
            adapter,
            precision,
            threads,
            queue_max,
            batch_tokens_max,
            batch_texts_max,
        }
    }
}

impl EncoderConfig {
    /// How the encoder shall compute, with these instructions of the processor.
    #[must_use]
    pub const fn options(&self, instructions: InstructionChoice) -> EncoderOptions {
        EncoderOptions { precision: self.precision, threads: self.threads, instructions }
    }

    /// Whether it is the encoder that ships.
    #[must_use]
    pub fn is_shipped(&self) -> bool {
        self.model == Path::new(MODEL_NAME)
    }

    /// What callers name it by: the name under which it was pulled, or its folder's.
    #[must_use]
    pub fn name(&self) -> String {
        let whole = self.model.to_string_lossy();
        let is_pulled = !self.model.is_dir() && whole.split('/').count() == 2;
        match self.model.file_name() {
            Some(name) if !is_pulled => name.to_string_lossy().into_owned(),
            _ => whole.into_owned(),
        }
    }

    /// The checkpoint's folder.
    #[must_use]
    pub fn folder(&self, home: &ModelHome) -> PathBuf {
        if self.is_shipped() { home.model_dir() } else { home.folder_of(&self.model) }
    }

    /// Opens the checkpoint; nothing of its weights is loaded, and nothing is pulled.
    ///
    /// # Errors
    /// When it is missing or cannot be used, or a pull has left it in parts.
    pub fn open(&self, home: &ModelHome) -> Result<EncoderCheckpoint, ModelError> {
        if self.is_shipped() {
            return verify(home);
        }
        let folder = self.folder(home);
        Installed::read_whole(&folder)?;
        EncoderCheckpoint::open(&folder)
    }

    /// What stores are bound to, and what verifiers and routers are fitted with: all that decides about vectors. The precision is no part
    /// of it, because vectors of one compare with those of the other. Reads another encoder's files than the one's that ships.
    ///
    /// # Errors
    /// As [`EncoderConfig::open`].
    pub fn identity(&self, home: &ModelHome) -> Result<String, ModelError> {
        if self.is_shipped() {
            return Ok(self.identity_of(MODEL_NAME, &self.prefixes()));
        }
        let checkpoint = self.open(home)?;
        Ok(self.identity_of(&checkpoint.identity()?, &self.prefixes().or(checkpoint.prefixes)))
    }

    /// Word pieces of such a text that the encoder reads beside its prefix. Of the one that ships, not every byte is checked.
    ///
    /// # Errors
    /// As [`EncoderConfig::open`]; [`ModelError::Prefix`] when a prefix leaves no room for a text.
    pub fn pieces_max(&self, home: &ModelHome, input: InputType) -> Result<usize, ModelError> {
        let is_shipped = self.is_shipped();
        let opened = if is_shipped { EncoderCheckpoint::shipped(&self.folder(home)) } else { self.open(home) };
        let EncoderCheckpoint { tokenizer, prefixes, .. } = opened?;
        let prefixes = self.prefixes().or(prefixes);
        prefixes.check(&tokenizer)?;
        Ok(prefixes.room(input, &tokenizer))
    }

    pub(crate) fn identity_of(&self, encoder: &str, prefixes: &Prefixes) -> String {
        let named = [("query", &prefixes.query), ("passage", &prefixes.passage)];
        let named = named.into_iter().filter(|(_, prefix)| !prefix.is_empty());
        let prefixes: String = named.map(|(kind, prefix)| format!(", {kind} prefix {prefix:?}")).collect();
        format!("{encoder}{prefixes} with adapter {}", self.adapter)
    }

    pub(crate) fn prefixes(&self) -> Prefixes {
        Prefixes { query: self.query_prefix.clone(), passage: self.passage_prefix.clone() }
    }
}
