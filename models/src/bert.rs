//! The BERT encoder of sentence-transformers models, as a Burn module.
//!
//! It is the definition, the loader, and what the CPU's own executor in `bert/fused.rs` is compared with, and it runs on any device.
//!
//! Contract: with the same weights, the vectors agree with the PyTorch model's (cosine of 0.99999 or more), however
//! texts are batched and padded. Loading demands every tensor in its right shape and names those that are not.
//!
//! Devlin et al. 2019, <https://arxiv.org/abs/1810.04805>; pooling: Reimers and Gurevych 2019,
//! <https://arxiv.org/abs/1908.10084>. Inference only: no dropout, no pooler, no segment ids but 0.

mod fused;
mod load;

use std::path::Path;

use burn::nn::{Embedding, LayerNorm, Linear};
use burn::prelude::*;
use burn::tensor::activation::{gelu, softmax};
use serde::{Deserialize, Serialize};

pub(crate) use self::fused::FusedBert;
pub use self::fused::{ENCODER_THREADS_MAX, EncoderOptions, EncoderPrecision};
pub(crate) use self::load::BertWeights;
use self::load::Loader;
use crate::checkpoint::{parse, read_small, refuse};
use crate::error::ModelError;

/// Added to the attention scores of padding: after the softmax nothing is left of them.
const MASKED: f32 = -1e9;
/// Keeps the division by a vector's length defined.
const NORM_MIN: f32 = 1e-12;
/// Sizes above this are mistakes, and products of those below it do not overflow.
const SIZE_MAX: usize = 1 << 24;
/// Largest `layer_norm_eps`: models have a millionth and less, and beside a variance of 1 more would flatten what they say.
const EPSILON_MAX: f64 = 0.1;
/// Most layers; the deepest models have some hundred.
const LAYERS_MAX: usize = 1_000;

/// The architecture, with the names of the Hugging Face `config.json`. Fields that do not change the computation
/// are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Numbers in a token's vector.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads of a layer; they share `hidden_size` evenly.
    pub num_attention_heads: usize,
    /// Numbers in the wide part of a layer.
    pub intermediate_size: usize,
    /// Word pieces known.
    pub vocab_size: usize,
    /// Longest input, in word pieces.
    pub max_position_embeddings: usize,
    /// Segments known; only the first is used.
    pub type_vocab_size: usize,
    /// Keeps the normalisation's division defined.
    pub layer_norm_eps: f64,
}

/// What else of `config.json` must hold for this implementation to be the right one.
#[derive(Deserialize)]
struct Kind {
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// What makes one vector of those of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's, which stands for the text.
    Cls,
    /// The mean of all.
    Mean,
}

impl std::fmt::Display for Pooling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
        })
    }
}

impl BertConfig {
    /// The architecture of all-MiniLM-L6-v2.
    pub const MINILM: Self = Self {
        hidden_size: 384,
        num_hidden_layers: 6,
        num_attention_heads: 12,
        intermediate_size: 1536,
        vocab_size: 30522,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
    };

    /// Reads a `config.json` and checks that this implementation computes what it describes.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or describes another kind of model.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let json = read_small(path)?;
        // The kind first: a file of another kind lacks fields, and that would be told instead.
        expect(path, "model_type", &model_type(path, &json)?.as_str(), &MODEL_TYPE)?;
        let kind: Kind = parse(path, &json)?;
        let positions = kind.position_embedding_type.as_deref().unwrap_or("absolute");
        expect(path, "hidden_act", &kind.hidden_act.as_str(), &"gelu")?;
        expect(path, "position_embedding_type", &positions, &"absolute")?;
        let config: Self = parse(path, &json)?;
        config.check(path)?;
        Ok(config)
    }

    /// Refuses sizes that make no sense.
    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let sizes = [
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX),
            ("intermediate_size", self.intermediate_size, SIZE_MAX),
            ("vocab_size", self.vocab_size, SIZE_MAX),
            ("max_position_embeddings", self.max_position_embeddings, SIZE_MAX),
            ("type_vocab_size", self.type_vocab_size, SIZE_MAX),
        ];
        if let Some((field, size, most)) = sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Err(refuse(path, field, size, format!("1 to {most}")));
        }
        let (heads, hidden) = (self.num_attention_heads, self.hidden_size);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(refuse(path, "num_attention_heads", heads, format!("a divisor of hidden_size {hidden}")));
        }
        // What is not a number lies nowhere.
        if !(0.0..=EPSILON_MAX).contains(&self.layer_norm_eps) {
            return Err(refuse(path, "layer_norm_eps", self.layer_norm_eps, format!("0 to {EPSILON_MAX}")));
        }
        Ok(())
    }

    /// Checks that two architectures are the same, naming the first field that differs.
    pub(crate) fn must_equal(&self, expected: &Self, path: &Path) -> Result<(), ModelError> {
        expect(path, "hidden_size", &self.hidden_size, &expected.hidden_size)?;
        expect(path, "num_hidden_layers", &self.num_hidden_layers, &expected.num_hidden_layers)?;
        expect(path, "num_attention_heads", &self.num_attention_heads, &expected.num_attention_heads)?;
        expect(path, "intermediate_size", &self.intermediate_size, &expected.intermediate_size)?;
        expect(path, "vocab_size", &self.vocab_size, &expected.vocab_size)?;
        expect(path, "max_position_embeddings", &self.max_position_embeddings, &expected.max_position_embeddings)?;
        expect(path, "type_vocab_size", &self.type_vocab_size, &expected.type_vocab_size)?;
        expect(path, "layer_norm_eps", &self.layer_norm_eps, &expected.layer_norm_eps)
    }
}

/// The kind that this implementation is of, in `config.json`.
const MODEL_TYPE: &str = "bert";

/// What kind of model a `config.json` describes.
fn model_type(path: &Path, json: &[u8]) -> Result<String, ModelError> {
    let config: serde_json::Value = parse(path, json)?;
    Ok(config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("missing").to_owned())
}

/// Whether a folder's `config.json` describes a model of this kind.
pub(crate) fn is_bert(folder: &Path) -> bool {
    let path = folder.join("config.json");
    read_small(&path).and_then(|json| model_type(&path, &json)).is_ok_and(|kind| kind == MODEL_TYPE)
}

fn expect<T: PartialEq + ToString>(
    path: &Path,
    field: &'static str,
    found: &T,
    expected: &T,
) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_string(), expected.to_string());
    Err(ModelError::Architecture { path: path.to_owned(), field, found, expected })
}

/// The encoder. Field names follow the checkpoint's, which keeps the list of renamed tensors short.
#[derive(Module, Debug)]
pub(crate) struct Bert {
    embeddings: Embeddings,
    encoder: Layers,
    #[module(skip)]
    pooling: Pooling,
}

#[derive(Module, Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Layers {
    layer: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Linear,
    output: Linear,
    layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    layer_norm: LayerNorm,
    #[module(skip)]
    heads: usize,
}

impl Bert {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn load(
        config: &BertConfig,
        source: &BertWeights,
        pooling: Pooling,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Loader { config, source, device }.bert(pooling)
    }

    /// One vector for each text, at unit length: its first token's, or the mean over its real tokens.
    ///
    /// # Shapes
    /// - `ids`: `[batch, tokens]`
    /// - `padding`: `[batch, tokens]`, true where there is no token; none when all texts are equally long
    /// - output: `[batch, hidden]`
    pub(crate) fn embed(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<2> {
        let hidden = self.forward(ids, padding.as_ref());
        let [batch, tokens, width] = hidden.dims();
        let pooled = match (self.pooling, padding) {
            (Pooling::Cls, _) => hidden.narrow(1, 0, 1).reshape([batch, width]),
            (Pooling::Mean, Some(padding)) => {
                let real = padding.bool_not().float();
                let share = real.clone() / real.sum_dim(1);
                share.reshape([batch, 1, tokens]).matmul(hidden).reshape([batch, width])
            }
            (Pooling::Mean, None) => hidden.mean_dim(1).reshape([batch, width]),
        };
        let length = (pooled.clone() * pooled.clone()).sum_dim(1).sqrt().clamp_min(NORM_MIN);
        pooled / length
    }

    /// The last layer's output for each token.
    ///
    /// # Shapes
    /// - `ids`: `[batch, tokens]`, `padding`: `[batch, tokens]`
    /// - output: `[batch, tokens, hidden]`
    fn forward(&self, ids: Tensor<2, Int>, padding: Option<&Tensor<2, Bool>>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let bias = padding.map(|padding| padding.clone().float().mul_scalar(MASKED).reshape([batch, 1, 1, tokens]));
        let embedded = self.embeddings.forward(ids);
        self.encoder.layer.iter().fold(embedded, |hidden, layer| layer.forward(hidden, bias.as_ref()))
    }
}

impl Embeddings {
    /// # Shapes
    /// - `ids`: `[batch, tokens]`
    /// - output: `[batch, tokens, hidden]`
    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let position = self.position_embeddings.weight.val().narrow(0, 0, tokens).unsqueeze::<3>();
        let segment = self.token_type_embeddings.weight.val().narrow(0, 0, 1).unsqueeze::<3>();
        self.layer_norm.forward(self.word_embeddings.forward(ids) + (position + segment))
    }
}

impl Layer {
    /// # Shapes
    /// - `hidden`: `[batch, tokens, hidden]`, `bias`: `[batch, 1, 1, tokens]`
    /// - output: `[batch, tokens, hidden]`
    fn forward(&self, hidden: Tensor<3>, bias: Option<&Tensor<4>>) -> Tensor<3> {
        let attended = self.attention.forward(hidden, bias);
        let wide = gelu(self.intermediate.forward(attended.clone()));
        self.layer_norm.forward(self.output.forward(wide) + attended)
    }
}

impl Attention {
    /// # Shapes
    /// - `hidden`: `[batch, tokens, hidden]`, `bias`: `[batch, 1, 1, tokens]`, added to the scores of each query
    /// - output: `[batch, tokens, hidden]`
    fn forward(&self, hidden: Tensor<3>, bias: Option<&Tensor<4>>) -> Tensor<3> {
        let [batch, tokens, width] = hidden.dims();
        let head_width = width / self.heads;
        let split = |linear: &Linear| {
            linear.forward(hidden.clone()).reshape([batch, tokens, self.heads, head_width]).swap_dims(1, 2)
        };
        let (query, key, value) = (split(&self.query), split(&self.key), split(&self.value));
        let scores = query.matmul(key.swap_dims(2, 3)).div_scalar((head_width as f32).sqrt());
        let scores = match bias {
            Some(bias) => scores + bias.clone(),
            None => scores,
        };
        let context = softmax(scores, 3).matmul(value).swap_dims(1, 2).reshape([batch, tokens, width]);
        self.layer_norm.forward(self.dense.forward(context) + hidden)
    }
}

#[cfg(test)]
#[path = "bert_tests.rs"]
mod tests;
