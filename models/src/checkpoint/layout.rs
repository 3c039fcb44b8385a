//! Which tensors a decoder has, by their Hugging Face names, and how much memory they take.
//!
//! Contract: the names and shapes are those of transformers' `state_dict`. Matrices are `[outputs, inputs]`.

use super::config::DecoderConfig;
use super::weights::Precision;

/// One tensor that a decoder needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its sizes, the outermost first.
    pub shape: Vec<usize>,
}

/// Memory that a decoder needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its weights, in bytes.
    pub weight_bytes: u64,
    /// Keys and values of one token in all layers, in bytes.
    pub kv_bytes_per_token: u64,
}

/// Name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the norm before the head.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of the head, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

impl DecoderConfig {
    /// Every tensor that the decoder needs: the embedding, the layers in order, the last norm, and a head that is not
    /// tied.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut specs = vec![spec(EMBEDDING.to_owned(), &[self.vocabulary, self.hidden])];
        for layer in 0..self.layers {
            let parts = self.layer_tensors();
            specs.extend(parts.into_iter().map(|(part, shape)| spec(layer_tensor(layer, part), &shape)));
        }
        specs.push(spec(FINAL_NORM.to_owned(), &[self.hidden]));
        if !self.tied {
            specs.push(spec(HEAD.to_owned(), &[self.vocabulary, self.hidden]));
        }
        specs
    }

    /// Memory with weights, and keys and values, of these precisions.
    #[must_use]
    pub fn memory(&self, weights: Precision, kv: Precision) -> Memory {
        let count = |spec: &TensorSpec| spec.shape.iter().map(|&size| size as u64).product::<u64>();
        let numbers: u64 = self.tensors().iter().map(count).sum();
        let kv_numbers = 2 * (self.layers * self.kv_heads * self.head_size) as u64;
        Memory { weight_bytes: numbers * weights.bytes(), kv_bytes_per_token: kv_numbers * kv.bytes() }
    }

    fn layer_tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, wide) = (self.hidden, self.intermediate);
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let mut parts = vec![
            ("input_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![queries, hidden]),
            ("self_attn.k_proj.weight", vec![keys, hidden]),
            ("self_attn.v_proj.weight", vec![keys, hidden]),
            ("self_attn.o_proj.weight", vec![hidden, queries]),
            ("post_attention_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![wide, hidden]),
            ("mlp.up_proj.weight", vec![wide, hidden]),
            ("mlp.down_proj.weight", vec![hidden, wide]),
        ];
        if self.qkv_bias {
            parts.push(("self_attn.q_proj.bias", vec![queries]));
            parts.push(("self_attn.k_proj.bias", vec![keys]));
            parts.push(("self_attn.v_proj.bias", vec![keys]));
        }
        if self.qk_norm {
            parts.push(("self_attn.q_norm.weight", vec![self.head_size]));
            parts.push(("self_attn.k_norm.weight", vec![self.head_size]));
        }
        parts
    }
}

/// Name of a layer's tensor, such as `mlp.up_proj.weight`.
#[must_use]
pub fn layer_tensor(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}
