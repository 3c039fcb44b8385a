//! The sentence encoder: texts in, vectors of unit length out.
//!
//! Contract: one vector for each text, in the order of the texts, whatever the batching; any text has a vector, the
//! empty one too. Texts beyond the encoder's 256 word pieces are cut. Runs on the caller's thread (and the tensor
//! library's pool); it neither queues nor catches panics: [`EncoderEngine`](crate::EncoderEngine) does.

use std::sync::Arc;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::adapter::{Adapter, AdapterChoice};
use crate::batch::{BatchBudget, plan_batches};
use crate::bert::{Bert, BertConfig};
use crate::error::ModelError;
use crate::tokenizer::{TOKENS_MAX, TextTokenizer};
use crate::weights::ModelFiles;

/// A vector may be this far from unit length before it counts as garbage.
const UNIT_TOLERANCE: f32 = 1e-3;

/// A loaded sentence encoder.
#[derive(Debug)]
pub struct Encoder {
    model: Bert,
    tokenizer: TextTokenizer,
    dimension: usize,
    device: Device,
    adapter: Option<Adapter>,
}

impl Encoder {
    /// Loads weights and vocabulary and encodes one word, so that the first real text finds everything warm.
    ///
    /// # Errors
    /// When a file cannot be read, or tensors, vocabulary and configuration do not fit together; what does not fit
    /// is named.
    pub fn load(files: &ModelFiles) -> Result<Self, ModelError> {
        let config = BertConfig::read(&files.config)?;
        let tokenizer = TextTokenizer::load(&files.tokenizer)?;
        let too_small = |field, found: usize, needed: usize| ModelError::Architecture {
            path: files.config.clone(),
            field,
            found: found.to_string(),
            expected: format!("at least {needed}"),
        };
        if config.vocab_size < tokenizer.vocabulary_size() {
            return Err(too_small("vocab_size", config.vocab_size, tokenizer.vocabulary_size()));
        }
        if config.max_position_embeddings < TOKENS_MAX {
            return Err(too_small("max_position_embeddings", config.max_position_embeddings, TOKENS_MAX));
        }
        let device = Device::flex();
        let model = Bert::load(&config, &files.weights, &device)?;
        let encoder = Self { model, tokenizer, dimension: config.hidden_size, device, adapter: None };
        encoder.encode(&["warm"])?;
        Ok(encoder)
    }

    /// The same encoder with an adapter behind it.
    ///
    /// # Errors
    /// [`ModelError::Dimension`] when it was made for another encoder.
    pub fn adapted(self, choice: AdapterChoice) -> Result<Self, ModelError> {
        let adapter = match choice {
            AdapterChoice::None => None,
            AdapterChoice::Shop => Some(Adapter::shop()),
        };
        match &adapter {
            Some(adapter) if adapter.dimension() != self.dimension => {
                Err(ModelError::Dimension { expected: self.dimension, found: adapter.dimension() })
            }
            _ => Ok(Self { adapter, ..self }),
        }
    }

    /// A vector of unit length for each text, in the order of the texts.
    ///
    /// # Errors
    /// When a text cannot be tokenised, or the model's output is no unit vector.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        let ids = texts.iter().map(|text| self.tokenizer.ids(text)).collect::<Result<Vec<_>, _>>()?;
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let mut vectors: Vec<(usize, Arc<[f32]>)> = Vec::with_capacity(texts.len());
        for batch in plan_batches(&lengths, BatchBudget::DEFAULT) {
            let rows: Vec<&[u32]> = batch.iter().map(|&index| ids[index].as_slice()).collect();
            vectors.extend(batch.into_iter().zip(self.forward(&rows)?));
        }
        vectors.sort_unstable_by_key(|(index, _)| *index);
        Ok(vectors.into_iter().map(|(_, vector)| vector).collect())
    }

    /// Numbers in a vector.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of word pieces of a whole text, without the two that frame it.
    #[must_use]
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.count(text)
    }

    /// The encoder's vocabulary, for counting and cutting.
    #[must_use]
    pub const fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// One pass through the model. `rows` holds the ids of each text.
    ///
    /// # Shapes
    /// `rows`: `batch` rows of any length from 1 to [`TOKENS_MAX`]; output: `batch` vectors of
    /// [`dimension`](Self::dimension) numbers.
    pub(crate) fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        let (batch, longest) = (rows.len(), rows.iter().map(|row| row.len()).max().unwrap_or(0));
        if batch == 0 || longest == 0 {
            return Ok(Vec::new());
        }
        let mut ids = vec![0_i64; batch * longest];
        let mut padding = vec![true; batch * longest];
        for (row, start) in rows.iter().zip((0..).step_by(longest)) {
            for (offset, &id) in row.iter().enumerate() {
                ids[start + offset] = i64::from(id);
                padding[start + offset] = false;
            }
        }
        let padded = padding.contains(&true);
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, longest]), &self.device);
        let padding =
            padded.then(|| Tensor::<2, Bool>::from_data(TensorData::new(padding, [batch, longest]), &self.device));
        let unusable = |reason: String| ModelError::Output { texts: batch, reason };
        let numbers: Vec<f32> =
            self.model.embed(ids, padding).into_data().try_to_vec().map_err(|error| unusable(format!("{error:?}")))?;
        if numbers.len() != batch * self.dimension {
            return Err(unusable(format!("{} numbers, expected {}", numbers.len(), batch * self.dimension)));
        }
        let vectors = numbers.chunks_exact(self.dimension);
        let is_unit = |length: &f32| (length - 1.0).abs() < UNIT_TOLERANCE;
        // A length that is not a number is no unit either.
        if let Some(length) = vectors.clone().map(length).find(|length| !is_unit(length)) {
            return Err(unusable(format!("a vector of length {length}")));
        }
        Ok(match &self.adapter {
            Some(adapter) => vectors.map(|vector| adapter.apply(vector)).collect(),
            None => vectors.map(Arc::from).collect(),
        })
    }
}

fn length(vector: &[f32]) -> f32 {
    crate::vector::dot(vector, vector).sqrt()
}
