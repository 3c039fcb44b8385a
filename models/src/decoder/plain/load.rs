//! From the tensors of a checkpoint to the module: what is multiplied by the same numbers becomes one matrix.

use burn::module::Param;
use burn::nn::{Linear, RmsNorm};
use burn::prelude::*;
use burn::tensor::DType;
use half::f16;

use super::{Attention, Layer, Llama};
use crate::checkpoint::{DecoderConfig, EMBEDDING, FINAL_NORM, HEAD, Numbers, Weights, layer_tensor};
use crate::error::ModelError;

/// Makes the module from a checkpoint.
pub(super) struct Loader<'a> {
    pub(super) config: &'a DecoderConfig,
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) half: bool,
}

impl Loader<'_> {
    pub(super) fn llama(&self) -> Result<Llama, ModelError> {
        let config = self.config;
        Ok(Llama {
            embedding: Param::from_tensor(self.tensor(&[EMBEDDING], [config.vocabulary, config.hidden], self.half)?),
            layers: (0..config.layers).map(|index| self.layer(index)).collect::<Result<_, _>>()?,
            norm: self.norm(FINAL_NORM, config.hidden)?,
            head: if config.tied { None } else { Some(self.linear(&[HEAD], &[], config.vocabulary, config.hidden)?) },
            half: self.half,
        })
    }

    fn layer(&self, index: usize) -> Result<Layer, ModelError> {
        let &DecoderConfig { hidden, intermediate, heads, kv_heads, head_size, .. } = self.config;
        let names = |parts: &[&str]| -> Vec<_> { parts.iter().map(|part| layer_tensor(index, part)).collect() };
        let norm = |part: &str, size| self.norm(&layer_tensor(index, part), size);
        let linear = |parts: &[&str], outputs, inputs| self.linear(&names(parts), &[], outputs, inputs);
        let biases: &[&str] = if self.config.qkv_bias {
            &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]
        } else {
            &[]
        };
        let weights = names(&["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]);
        let outputs = (heads + 2 * kv_heads) * head_size;
        let head_norm = |part: &str| self.config.qk_norm.then(|| norm(part, head_size)).transpose();
        Ok(Layer {
            input_norm: norm("input_layernorm.weight", hidden)?,
            attention: Attention {
                projection: self.linear(&weights, &names(biases), outputs, hidden)?,
                output: linear(&["self_attn.o_proj.weight"], hidden, heads * head_size)?,
                query_norm: head_norm("self_attn.q_norm.weight")?,
                key_norm: head_norm("self_attn.k_norm.weight")?,
                rotary: self.config.rotary[index],
                heads,
                kv_heads,
                head_size,
            },
            post_norm: norm("post_attention_layernorm.weight", hidden)?,
            gate_up: linear(&["mlp.gate_proj.weight", "mlp.up_proj.weight"], 2 * intermediate, hidden)?,
            down: linear(&["mlp.down_proj.weight"], hidden, intermediate)?,
        })
    }

    /// Several matrices with the same inputs as one, their outputs one after the other.
    fn linear<T: AsRef<str>>(
        &self,
        weights: &[T],
        biases: &[T],
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, ModelError> {
        let weight = Param::from_tensor(self.tensor(weights, [outputs, inputs], self.half)?.transpose());
        let bias = if biases.is_empty() { None } else { Some(self.tensor(biases, [outputs], self.half)?) };
        Ok(Linear { weight, bias: bias.map(Param::from_tensor) })
    }

    fn norm(&self, name: &str, size: usize) -> Result<RmsNorm, ModelError> {
        let gamma = Param::from_tensor(self.tensor(&[name], [size], false)?);
        Ok(RmsNorm { gamma, epsilon: self.config.norm_epsilon })
    }

    fn tensor<T: AsRef<str>, const D: usize>(
        &self,
        names: &[T],
        shape: [usize; D],
        half: bool,
    ) -> Result<Tensor<D>, ModelError> {
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        for name in names {
            match (self.weights.read(name.as_ref())?, half) {
                (Numbers::F16(numbers), true) => narrow.extend(numbers),
                (numbers, true) => narrow.extend(numbers.into_f32().into_iter().map(f16::from_f32)),
                (numbers, false) => wide.extend(numbers.into_f32()),
            }
        }
        Ok(if half {
            Tensor::from_data(TensorData::new(narrow, shape), (self.device, DType::F16))
        } else {
            Tensor::from_data(TensorData::new(wide, shape), (self.device, DType::F32))
        })
    }
}
