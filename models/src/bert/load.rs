//! From the tensors of a checkpoint to the module.
//!
//! Contract: tensors have the names of transformers' `BertModel`, all of them with `bert.` before or none. What the encoder has no use for,
//! such as the pooler or the head of a masked language model, is ignored; what belongs to a layer is not. Numbers of any precision are read as `f32`, and lose nothing.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::prelude::*;

use super::{Attention, Bert, BertConfig, Embeddings, Layer, Layers, Pooling};
use crate::checkpoint::{Precision, TensorSpec, Weights};
use crate::error::ModelError;

/// Stands before all names where the encoder is a part of a larger model.
const PREFIX: &str = "bert.";
const WORDS: &str = "embeddings.word_embeddings";
const POSITIONS: &str = "embeddings.position_embeddings";
const SEGMENTS: &str = "embeddings.token_type_embeddings";
const EMBEDDING_NORM: &str = "embeddings.LayerNorm";
/// Stands before the names of all that belongs to a layer.
const LAYERS: &str = "encoder.layer.";

/// Where the tensors of an encoder are; each is there, in its right shape.
#[derive(Clone, Debug)]
pub(crate) struct BertWeights {
    weights: Weights,
    prefix: &'static str,
}

impl BertWeights {
    /// Reads the headers of a folder's weights.
    ///
    /// # Errors
    /// As [`Weights::open`]; [`ModelError::Tensors`] when tensors are missing or of the wrong shape or kind, naming them,
    /// or there are more layers than the configuration says.
    pub(crate) fn open(config: &BertConfig, folder: &Path) -> Result<Self, ModelError> {
        let mut weights = Weights::open(folder)?;
        let prefix = if weights.has(&format!("{PREFIX}{WORDS}.weight")) { PREFIX } else { "" };
        weights.choose(&tensors(config, prefix), &format!("{prefix}{LAYERS}"))?;
        Ok(Self { weights, prefix })
    }

    /// As [`Weights::check_finite`].
    pub(crate) fn check_finite(&self) -> Result<(), ModelError> {
        self.weights.check_finite()
    }

    /// How the numbers are stored, each kind once.
    pub(crate) fn precisions(&self) -> Vec<Precision> {
        self.weights.precisions()
    }

    /// The files that the tensors are in.
    pub(crate) fn files(&self) -> BTreeSet<&Path> {
        self.weights.files()
    }

    /// Bytes of the tensors on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.weights.bytes()
    }
}

/// The linear maps of a layer, with their outputs and inputs.
fn linear_maps(config: &BertConfig) -> [(&'static str, usize, usize); 6] {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    [
        ("attention.self.query", hidden, hidden),
        ("attention.self.key", hidden, hidden),
        ("attention.self.value", hidden, hidden),
        ("attention.output.dense", hidden, hidden),
        ("intermediate.dense", wide, hidden),
        ("output.dense", hidden, wide),
    ]
}

/// Every tensor that the encoder needs.
fn tensors(config: &BertConfig, prefix: &str) -> Vec<TensorSpec> {
    let hidden = config.hidden_size;
    let mut specs = Vec::new();
    let mut add = |name: &str, part: &str, shape: &[usize]| {
        specs.push(TensorSpec { name: format!("{prefix}{name}.{part}"), shape: shape.to_vec() });
    };
    let tables =
        [(WORDS, config.vocab_size), (POSITIONS, config.max_position_embeddings), (SEGMENTS, config.type_vocab_size)];
    for (table, rows) in tables {
        add(table, "weight", &[rows, hidden]);
    }
    add(EMBEDDING_NORM, "weight", &[hidden]);
    add(EMBEDDING_NORM, "bias", &[hidden]);
    for layer in 0..config.num_hidden_layers {
        for (part, outputs, inputs) in linear_maps(config) {
            add(&layer_part(layer, part), "weight", &[outputs, inputs]);
            add(&layer_part(layer, part), "bias", &[outputs]);
        }
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add(&layer_part(layer, norm), "weight", &[hidden]);
            add(&layer_part(layer, norm), "bias", &[hidden]);
        }
    }
    specs
}

fn layer_part(layer: usize, part: &str) -> String {
    format!("{LAYERS}{layer}.{part}")
}

/// Makes the module.
pub(super) struct Loader<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) source: &'a BertWeights,
    pub(super) device: &'a Device,
}

impl Loader<'_> {
    pub(super) fn bert(&self, pooling: Pooling) -> Result<Bert, ModelError> {
        let config = self.config;
        Ok(Bert {
            embeddings: Embeddings {
                word_embeddings: self.table(WORDS, config.vocab_size)?,
                position_embeddings: self.table(POSITIONS, config.max_position_embeddings)?,
                token_type_embeddings: self.table(SEGMENTS, config.type_vocab_size)?,
                layer_norm: self.norm(EMBEDDING_NORM)?,
            },
            encoder: Layers {
                layer: (0..config.num_hidden_layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
            },
            pooling,
        })
    }

    fn layer(&self, layer: usize) -> Result<Layer, ModelError> {
        let [query, key, value, dense, intermediate, output] = linear_maps(self.config);
        let linear = |map| self.linear(layer, map);
        Ok(Layer {
            attention: Attention {
                query: linear(query)?,
                key: linear(key)?,
                value: linear(value)?,
                dense: linear(dense)?,
                layer_norm: self.norm(&layer_part(layer, "attention.output.LayerNorm"))?,
                heads: self.config.num_attention_heads,
            },
            intermediate: linear(intermediate)?,
            output: linear(output)?,
            layer_norm: self.norm(&layer_part(layer, "output.LayerNorm"))?,
        })
    }

    fn linear(&self, layer: usize, (part, outputs, inputs): (&str, usize, usize)) -> Result<Linear, ModelError> {
        let name = layer_part(layer, part);
        let weight = self.tensor(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), [outputs])?;
        Ok(Linear { weight: Param::from_tensor(weight.transpose()), bias: Some(Param::from_tensor(bias)) })
    }

    fn table(&self, name: &str, rows: usize) -> Result<Embedding, ModelError> {
        let weight = self.tensor(&format!("{name}.weight"), [rows, self.config.hidden_size])?;
        Ok(Embedding { weight: Param::from_tensor(weight) })
    }

    fn norm(&self, name: &str) -> Result<LayerNorm, ModelError> {
        let width = self.config.hidden_size;
        let mut norm = LayerNormConfig::new(width).with_epsilon(self.config.layer_norm_eps).init(self.device);
        norm.gamma = Param::from_tensor(self.tensor(&format!("{name}.weight"), [width])?);
        norm.beta = Some(Param::from_tensor(self.tensor(&format!("{name}.bias"), [width])?));
        Ok(norm)
    }

    fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>, ModelError> {
        let BertWeights { weights, prefix } = self.source;
        let numbers = weights.read(&format!("{prefix}{name}"))?.into_f32();
        Ok(Tensor::from_data(TensorData::new(numbers, shape), self.device))
    }
}
