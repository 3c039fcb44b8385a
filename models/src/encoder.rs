//! The sentence encoder: texts in, vectors of unit length out.
//!
//! Contract: one vector for each text, in the order of the texts, whatever the batching; any text has a vector, the
//! empty one too. Texts beyond the encoder's longest input are cut. It puts no prefix before a text: the engine's handle does. Runs on the caller's thread and on those of its own
//! pool, or of the tensor library's; it neither queues nor catches panics: [`EncoderEngine`](crate::EncoderEngine) does.

mod checkpoint;
mod config;

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::adapter::{Adapter, AdapterChoice};
use crate::batch::{BatchBudget, plan_batches};
use crate::bert::{Bert, EncoderOptions, FusedBert};
use crate::error::ModelError;
use crate::prefixes::Prefixes;
use crate::tokenizer::TextTokenizer;

pub use self::checkpoint::EncoderCheckpoint;
pub use self::config::EncoderConfig;

/// A vector may be this far from unit length before it counts as garbage.
const UNIT_TOLERANCE: f32 = 1e-3;

/// A loaded sentence encoder.
#[derive(Debug)]
pub struct Encoder {
    executor: Executor,
    tokenizer: TextTokenizer,
    dimension: usize,
    /// What its checkpoint says of itself.
    identity: String,
    prefixes: Prefixes,
    adapter: Option<Adapter>,
}

/// What computes vectors.
#[derive(Debug)]
enum Executor {
    /// The CPU's own. One pass at a time, because they share its memory and threads; an engine has no more anyway.
    Fused(Mutex<FusedBert>),
    /// The Burn module.
    Plain(Bert, Device),
}

impl Encoder {
    /// Loads a checkpoint's weights onto the CPU and encodes one word, so that the first real text finds everything warm.
    ///
    /// # Errors
    /// When a file cannot be read. When the processor has not the instructions that are asked for, or there are no threads.
    pub fn load(checkpoint: &EncoderCheckpoint, options: EncoderOptions) -> Result<Self, ModelError> {
        let EncoderCheckpoint { config, weights, pooling, .. } = checkpoint;
        let module = Bert::load(config, weights, *pooling, &Device::flex())?;
        Self::with(checkpoint, Executor::Fused(Mutex::new(FusedBert::new(&module, config, options)?)))
    }

    /// The same as a module of the tensor library, on any of its devices: slower on the CPU, and what [`Encoder::load`] is compared
    /// with.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load_plain(checkpoint: &EncoderCheckpoint, device: &Device) -> Result<Self, ModelError> {
        let EncoderCheckpoint { config, weights, pooling, .. } = checkpoint;
        let module = Bert::load(config, weights, *pooling, device)?;
        Self::with(checkpoint, Executor::Plain(module, device.clone()))
    }

    fn with(checkpoint: &EncoderCheckpoint, executor: Executor) -> Result<Self, ModelError> {
        let encoder = Self {
            executor,
            tokenizer: checkpoint.tokenizer.clone(),
            dimension: checkpoint.config.hidden_size,
            identity: checkpoint.identity()?,
            prefixes: checkpoint.prefixes.clone(),
            adapter: None,
        };
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

    /// What decides about its vectors, prefixes and adapter aside.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What its makers have stand before texts.
    #[must_use]
    pub const fn prefixes(&self) -> &Prefixes {
        &self.prefixes
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
    /// `rows`: `batch` rows of any length from 1 to the longest input; output: `batch` vectors of
    /// [`dimension`](Self::dimension) numbers.
    ///
    /// # Errors
    /// When the model's output is no unit vector.
    ///
    /// # Panics
    /// When a row is longer than that, or has an id that is not in the vocabulary.
    pub fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        let unusable = |reason: String| ModelError::Output { texts: rows.len(), reason };
        let numbers = match &self.executor {
            Executor::Fused(bert) => {
                let mut numbers = vec![0.0; rows.len() * self.dimension];
                bert.lock().unwrap_or_else(PoisonError::into_inner).embed(rows, &mut numbers);
                numbers
            }
            Executor::Plain(bert, device) => padded(bert, device, rows).map_err(unusable)?,
        };
        if numbers.len() != rows.len() * self.dimension {
            return Err(unusable(format!("{} numbers, expected {}", numbers.len(), rows.len() * self.dimension)));
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

/// One pass through the module, with rows filled up to the longest.
fn padded(model: &Bert, device: &Device, rows: &[&[u32]]) -> Result<Vec<f32>, String> {
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
    let is_padded = padding.contains(&true);
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, longest]), device);
    let padding = is_padded.then(|| Tensor::<2, Bool>::from_data(TensorData::new(padding, [batch, longest]), device));
    model.embed(ids, padding).into_data().try_to_vec().map_err(|error| format!("{error:?}"))
}

fn length(vector: &[f32]) -> f32 {
    crate::vector::dot(vector, vector).sqrt()
}
