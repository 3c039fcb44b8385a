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

use std::fs::File;
use std::io::Read;
use std::path::Path;

use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::tensor::activation::{gelu, softmax};
use serde::{Deserialize, Serialize};

pub(crate) use self::fused::FusedBert;
pub use self::fused::{ENCODER_THREADS_MAX, EncoderOptions, EncoderPrecision};
use crate::error::ModelError;
use crate::weights::CONFIG_BYTES_MAX;

/// Added to the attention scores of padding: after the softmax nothing is left of them.
const MASKED: f32 = -1e9;
/// Keeps the division by a vector's length defined.
const NORM_MIN: f32 = 1e-12;
/// Problems listed in one error: a foreign file has hundreds.
const PROBLEMS_MAX: usize = 8;

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
    model_type: String,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
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
        let mut json = Vec::new();
        File::open(path)
            .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut json))
            .map_err(ModelError::io("read", path))?;
        let parse = |source: serde_json::Error| ModelError::Parse { path: path.to_owned(), source: Box::new(source) };
        let kind: Kind = serde_json::from_slice(&json).map_err(parse)?;
        let config: Self = serde_json::from_slice(&json).map_err(parse)?;
        let positions = kind.position_embedding_type.as_deref().unwrap_or("absolute");
        expect(path, "model_type", &kind.model_type.as_str(), &"bert")?;
        expect(path, "hidden_act", &kind.hidden_act.as_str(), &"gelu")?;
        expect(path, "position_embedding_type", &positions, &"absolute")?;
        let (heads, size) = (config.num_attention_heads, config.hidden_size);
        if heads == 0 || size == 0 || !size.is_multiple_of(heads) {
            let expected = format!("a divisor of hidden_size {size}");
            let found = heads.to_string();
            return Err(ModelError::Architecture {
                path: path.to_owned(),
                field: "num_attention_heads",
                found,
                expected,
            });
        }
        Ok(config)
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

    fn init(&self, device: &Device) -> Bert {
        let width = self.hidden_size;
        let norm = || LayerNormConfig::new(width).with_epsilon(self.layer_norm_eps).init(device);
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        let table = |rows| EmbeddingConfig::new(rows, width).init(device);
        let layer = |_| Layer {
            attention: Attention {
                query: linear(width, width),
                key: linear(width, width),
                value: linear(width, width),
                dense: linear(width, width),
                layer_norm: norm(),
                heads: self.num_attention_heads,
            },
            intermediate: linear(width, self.intermediate_size),
            output: linear(self.intermediate_size, width),
            layer_norm: norm(),
        };
        Bert {
            embeddings: Embeddings {
                word_embeddings: table(self.vocab_size),
                position_embeddings: table(self.max_position_embeddings),
                token_type_embeddings: table(self.type_vocab_size),
                layer_norm: norm(),
            },
            encoder: Layers { layer: (0..self.num_hidden_layers).map(layer).collect() },
        }
    }
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
    /// Reads the weights of a safetensors file.
    ///
    /// # Errors
    /// [`ModelError::Load`] for a file that is no safetensors file, [`ModelError::Tensors`] for one whose tensors
    /// are missing or of the wrong shape or kind. Tensors that the model has no use for are ignored.
    pub(crate) fn load(config: &BertConfig, weights: &Path, device: &Device) -> Result<Self, ModelError> {
        let mut model = config.init(device);
        // Problems are collected instead of returned at the first, and told by name.
        let mut store = SafetensorsStore::from_file(weights)
            .with_from_adapter(PyTorchToBurnAdapter)
            .with_key_remapping(r"attention\.self\.", "attention.")
            .with_key_remapping(r"attention\.output\.", "attention.")
            .with_key_remapping(r"(intermediate|output)\.dense\.", "$1.")
            .with_key_remapping(r"(layer\.\d+)\.output\.LayerNorm\.", "$1.layer_norm.")
            .with_key_remapping(r"LayerNorm\.", "layer_norm.")
            .allow_partial(true)
            .validate(false);
        let loaded = model
            .load_from(&mut store)
            .map_err(|error| ModelError::Load { path: weights.to_owned(), reason: error.to_string() })?;
        let missing = loaded.missing.iter().map(|(tensor, _)| format!("missing tensor {tensor}"));
        let wrong = loaded.errors.iter().map(ToString::to_string);
        let mut problems: Vec<_> = wrong.chain(missing).collect();
        if problems.is_empty() {
            return Ok(model);
        }
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        if more > 0 {
            problems.truncate(PROBLEMS_MAX);
            problems.push(format!("and {more} more"));
        }
        Err(ModelError::Tensors { path: weights.to_owned(), problems })
    }

    /// One vector for each text: the mean over its real tokens, at unit length.
    ///
    /// # Shapes
    /// - `ids`: `[batch, tokens]`
    /// - `padding`: `[batch, tokens]`, true where there is no token; none when all texts are equally long
    /// - output: `[batch, hidden]`
    pub(crate) fn embed(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<2> {
        let hidden = self.forward(ids, padding.as_ref());
        let [batch, tokens, width] = hidden.dims();
        let mean = match padding {
            Some(padding) => {
                let real = padding.bool_not().float();
                let share = real.clone() / real.sum_dim(1);
                share.reshape([batch, 1, tokens]).matmul(hidden).reshape([batch, width])
            }
            None => hidden.mean_dim(1).reshape([batch, width]),
        };
        let length = (mean.clone() * mean.clone()).sum_dim(1).sqrt().clamp_min(NORM_MIN);
        mean / length
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
