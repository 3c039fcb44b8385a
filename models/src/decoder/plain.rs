//! The Llama family as a Burn module: runs on any device of Burn, and says what the CPU executor must compute.
//!
//! Contract: with the same weights, logits agree with transformers' (1e-4 relative in f32) and greedy tokens exactly,
//! whichever sequences are in a step and however their blocks lie; between steps of different make-up, sums are rounded
//! differently. Keys and values live in one tensor for each layer, allocated once.
//!
//! In half precision the weights, keys, values and products are f16; the sum that runs through the layers, norms and
//! softmax stay f32, because some models' sums exceed what f16 can hold.
//!
//! Touvron et al. 2023, <https://arxiv.org/abs/2302.13971>; paged keys and values: Kwon et al. 2023,
//! <https://arxiv.org/abs/2309.06180>. What it deliberately does not do: fused attention, or kernels of its own.

use burn::module::Param;
use burn::nn::{Linear, RmsNorm};
use burn::prelude::*;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, IndexingUpdateOp};

use super::pass::{Group, Pass};
use super::{Slice, StepModel, StepShape};
use crate::checkpoint::{DecoderConfig, Precision, Weights};
use crate::error::ModelError;

mod load;

use load::Loader;

/// Added to the scores of places that a token must not see: after the softmax nothing is left of them.
const MASKED: f32 = -1e9;

/// A decoder of the Llama family on a Burn device, with its memory for keys and values.
#[derive(Debug)]
pub struct PlainDecoder {
    model: Llama,
    frequencies: Vec<f64>,
    shape: StepShape,
    /// For each layer its keys and values, each `[blocks × block_tokens, kv_heads × head_size]`.
    memory: Vec<(Tensor<2>, Tensor<2>)>,
    /// Numbers of a key, and of a value, and how they are kept.
    keys: (usize, DType),
    device: Device,
}

/// The decoder's weights.
#[derive(Module, Debug)]
struct Llama {
    embedding: Param<Tensor<2>>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// None where the embedding is the head.
    head: Option<Linear>,
    #[module(skip)]
    half: bool,
}

#[derive(Module, Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_norm: RmsNorm,
    /// Gate and up projection in one product.
    gate_up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Attention {
    /// Queries, keys and values in one product.
    projection: Linear,
    output: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    #[module(skip)]
    rotary: bool,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
    #[module(skip)]
    head_size: usize,
}

/// A pass as tensors.
struct Inputs {
    /// `[rows]`
    tokens: Tensor<1, Int>,
    /// `[rows, 1, head_size]`
    cosines: Tensor<3>,
    /// `[rows, 1, head_size]`, the first half negative.
    sines: Tensor<3>,
    /// `[rows]`
    slots: Tensor<1, Int>,
    groups: Vec<GroupInputs>,
}

struct GroupInputs {
    sequences: usize,
    queries: usize,
    keys: usize,
    /// `[sequences × keys]`
    slots: Tensor<1, Int>,
    /// `[sequences, 1, queries, keys]`, added to the scores.
    mask: Option<Tensor<4>>,
}

impl PlainDecoder {
    /// Loads the weights and allocates memory for `blocks` blocks of `block_tokens` tokens.
    ///
    /// `precision` is that of weights, keys and values: [`Precision::F32`] anywhere, [`Precision::F16`] where the device
    /// computes in it.
    ///
    /// # Errors
    /// When a tensor is missing or cannot be read, or the device does not compute in this precision.
    ///
    /// # Panics
    /// When `blocks` or `block_tokens` is 0, or the device cannot be used: see
    /// [`DeviceChoice::resolve`](crate::DeviceChoice::resolve).
    pub fn load(
        config: &DecoderConfig,
        weights: &Weights,
        device: &Device,
        precision: Precision,
        blocks: usize,
        block_tokens: usize,
    ) -> Result<Self, ModelError> {
        assert!(blocks > 0 && block_tokens > 0, "{blocks} blocks of {block_tokens} tokens");
        weights.check(&config.tensors())?;
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        };
        if precision == Precision::Bf16 || !device.supports_dtype(dtype) {
            let reason = format!("{precision} on a device that does not compute in it");
            return Err(ModelError::Step { reason });
        }
        let model = Loader { config, weights, device, half: precision == Precision::F16 }.llama()?;
        let slots = blocks * block_tokens;
        let keys = (config.kv_heads * config.head_size, dtype);
        let shape = StepShape {
            blocks,
            block_tokens,
            context_max: config.context_max.min(slots),
            vocabulary: config.vocabulary,
        };
        Ok(Self {
            model,
            frequencies: config.rotary_frequencies(),
            shape,
            memory: memory(config.layers, slots, keys, device),
            keys,
            device: device.clone(),
        })
    }

    /// Memory of one block of keys and values, in bytes.
    #[must_use]
    pub const fn block_bytes(config: &DecoderConfig, precision: Precision, block_tokens: usize) -> u64 {
        let of_token = 2 * (config.layers * config.kv_heads * config.head_size) as u64 * precision.bytes();
        of_token.saturating_mul(block_tokens as u64)
    }

    fn inputs(&self, pass: &Pass) -> Inputs {
        let (rows, half) = (pass.tokens.len(), self.frequencies.len());
        let mut cosines = Vec::with_capacity(rows * half * 2);
        let mut sines = Vec::with_capacity(rows * half * 2);
        for &position in &pass.positions {
            let turns = self.frequencies.iter().map(|frequency| (position as f64 * frequency).sin_cos());
            let (sine, cosine): (Vec<f32>, Vec<f32>) = turns.map(|(sine, cosine)| (sine as f32, cosine as f32)).unzip();
            cosines.extend(cosine.iter().chain(&cosine));
            sines.extend(sine.iter().map(|sine| -sine).chain(sine.iter().copied()));
        }
        let rotation = |numbers| self.float(numbers, [rows, 1, half * 2]);
        Inputs {
            tokens: self.places(pass.tokens.iter().map(|&token| token as usize)),
            cosines: rotation(cosines),
            sines: rotation(sines),
            slots: self.places(pass.slots.iter().copied()),
            groups: pass.groups.iter().map(|group| self.group(group)).collect(),
        }
    }

    fn group(&self, group: &Group) -> GroupInputs {
        let &Group { sequences, queries, keys, .. } = group;
        let mask = group.hides().then(|| {
            let row = |&seen: &usize| (0..keys).map(move |place| if place < seen { 0.0 } else { MASKED });
            self.float(group.seen.iter().flat_map(row).collect(), [sequences, 1, queries, keys])
        });
        GroupInputs { sequences, queries, keys, slots: self.places(group.slots.iter().copied()), mask }
    }

    fn places(&self, places: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let places: Vec<i64> = places.map(|place| place as i64).collect();
        let count = places.len();
        Tensor::from_data(TensorData::new(places, [count]), &self.device)
    }

    fn float<const D: usize>(&self, numbers: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(numbers, shape), (&self.device, DType::F32))
    }
}

impl StepModel for PlainDecoder {
    fn shape(&self) -> StepShape {
        self.shape
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let pass = Pass::plan(&self.shape, slices)?;
        if pass.tokens.is_empty() {
            return Ok(());
        }
        let inputs = self.inputs(&pass);
        let mut hidden = self.model.embed(&inputs.tokens);
        for (layer, memory) in self.model.layers.iter().zip(&mut self.memory) {
            hidden = layer.forward(hidden, &inputs, memory, self.model.half);
        }
        if pass.wanted.is_empty() {
            // Nothing is read, so nothing waits for the device either.
            return Ok(());
        }
        let wanted = self.places(pass.wanted.iter().copied());
        let computed = self.model.logits(hidden.select(0, wanted)).try_into_data();
        let failed = |reason: String| ModelError::Step { reason };
        let data = computed.map_err(|error| failed(format!("{error:?}")))?;
        let numbers: Vec<f32> = data.try_to_vec().map_err(|error| failed(format!("{error:?}")))?;
        logits.extend(numbers);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        // The old memory goes first: there may not be room for both.
        let layers = std::mem::take(&mut self.memory).len();
        self.memory = memory(layers, self.shape.blocks * self.shape.block_tokens, self.keys, &self.device);
        Ok(())
    }
}

fn memory(layers: usize, slots: usize, (width, dtype): (usize, DType), device: &Device) -> Vec<(Tensor<2>, Tensor<2>)> {
    let empty = || Tensor::<2>::zeros([slots, width], (device, dtype));
    (0..layers).map(|_| (empty(), empty())).collect()
}

impl Llama {
    /// # Shapes
    /// - `tokens`: `[rows]`
    /// - output: `[rows, hidden]` in f32
    fn embed(&self, tokens: &Tensor<1, Int>) -> Tensor<2> {
        self.embedding.val().select(0, tokens.clone()).cast(DType::F32)
    }

    /// # Shapes
    /// - `hidden`: `[rows, hidden]`
    /// - output: `[rows, vocabulary]` in f32
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let hidden = narrowed(self.norm.forward(hidden), self.half);
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.embedding.val().transpose()),
        };
        logits.cast(DType::F32)
    }
}

impl Layer {
    /// # Shapes
    /// - `hidden`: `[rows, hidden]` in f32; `memory`: keys and values, each `[slots, kv_heads × head_size]`
    /// - output: `[rows, hidden]` in f32
    fn forward(
        &self,
        hidden: Tensor<2>,
        inputs: &Inputs,
        memory: &mut (Tensor<2>, Tensor<2>),
        half: bool,
    ) -> Tensor<2> {
        let normed = narrowed(self.input_norm.forward(hidden.clone()), half);
        let hidden = hidden + self.attention.forward(normed, inputs, memory, half).cast(DType::F32);
        let normed = narrowed(self.post_norm.forward(hidden.clone()), half);
        let gate_up = self.gate_up.forward(normed).cast(DType::F32);
        let width = gate_up.dims()[1] / 2;
        let wide = silu(gate_up.clone().narrow(1, 0, width)) * gate_up.narrow(1, width, width);
        hidden + self.down.forward(narrowed(wide, half)).cast(DType::F32)
    }
}

impl Attention {
    /// # Shapes
    /// - `normed`: `[rows, hidden]`; `memory`: keys and values, each `[slots, kv_heads × head_size]`
    /// - output: `[rows, hidden]`
    fn forward(
        &self,
        normed: Tensor<2>,
        inputs: &Inputs,
        memory: &mut (Tensor<2>, Tensor<2>),
        half: bool,
    ) -> Tensor<2> {
        let [rows, _] = normed.dims();
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let projected = self.projection.forward(normed);
        let part = |start, count, heads| {
            projected.clone().narrow(1, start, count).reshape([rows, heads, self.head_size]).cast(DType::F32)
        };
        let query = self.placed(part(0, queries, self.heads), self.query_norm.as_ref(), inputs);
        let key = self.placed(part(queries, keys, self.kv_heads), self.key_norm.as_ref(), inputs);
        let value = projected.narrow(1, queries + keys, keys);
        let query = narrowed(query.mul_scalar((self.head_size as f64).powf(-0.5)), half);
        let key = narrowed(key, half).reshape([rows, keys]);
        store(&mut memory.0, inputs, key);
        store(&mut memory.1, inputs, value);
        let mut start = 0;
        let mut contexts = Vec::with_capacity(inputs.groups.len());
        for group in &inputs.groups {
            let count = group.sequences * group.queries;
            contexts.push(self.attend(query.clone().narrow(0, start, count), group, memory, half));
            start += count;
        }
        self.output.forward(Tensor::cat(contexts, 0))
    }

    /// Heads of queries or keys: normalised and rotated.
    ///
    /// # Shapes
    /// - `heads` and output: `[rows, heads, head_size]` in f32
    fn placed(&self, heads: Tensor<3>, norm: Option<&RmsNorm>, inputs: &Inputs) -> Tensor<3> {
        let heads = match norm {
            Some(norm) => norm.forward(heads),
            None => heads,
        };
        if !self.rotary {
            return heads;
        }
        let middle = self.head_size / 2;
        let (first, second) = (heads.clone().narrow(2, 0, middle), heads.clone().narrow(2, middle, middle));
        heads * inputs.cosines.clone() + Tensor::cat(vec![second, first], 2) * inputs.sines.clone()
    }

    /// What a group's queries find in their sequences.
    ///
    /// # Shapes
    /// - `query`: `[sequences × queries, heads, head_size]`
    /// - output: `[sequences × queries, heads × head_size]`
    fn attend(&self, query: Tensor<3>, group: &GroupInputs, memory: &(Tensor<2>, Tensor<2>), half: bool) -> Tensor<2> {
        let &GroupInputs { sequences, queries, keys, .. } = group;
        let (heads, kv_heads, size) = (self.heads, self.kv_heads, self.head_size);
        let shared = heads / kv_heads;
        // Query heads that share a key head are rows of one product.
        let query = query.reshape([sequences, queries, kv_heads, shared, size]).permute([0, 2, 3, 1, 4]).reshape([
            sequences,
            kv_heads,
            shared * queries,
            size,
        ]);
        let gather = |memory: &Tensor<2>| {
            memory.clone().select(0, group.slots.clone()).reshape([sequences, keys, kv_heads, size]).swap_dims(1, 2)
        };
        let scores = query.matmul(gather(&memory.0).swap_dims(2, 3)).cast(DType::F32);
        let scores = scores.reshape([sequences, heads, queries, keys]);
        let scores = match &group.mask {
            Some(mask) => scores + mask.clone(),
            None => scores,
        };
        let weights = narrowed(softmax(scores, 3), half).reshape([sequences, kv_heads, shared * queries, keys]);
        weights
            .matmul(gather(&memory.1))
            .reshape([sequences, kv_heads, shared, queries, size])
            .permute([0, 3, 1, 2, 4])
            .reshape([sequences * queries, heads * size])
    }
}

/// Writes rows to their places.
fn store(memory: &mut Tensor<2>, inputs: &Inputs, rows: Tensor<2>) {
    // Taken out meanwhile: a tensor with one owner is written in place. Where that panics it does not come back, and it takes
    // a reset to go on.
    let empty = Tensor::empty([0, 0], (&rows.device(), rows.dtype()));
    let taken = std::mem::replace(memory, empty);
    *memory = taken.select_assign(0, inputs.slots.clone(), rows, IndexingUpdateOp::Assign);
}

fn narrowed<const D: usize>(tensor: Tensor<D>, half: bool) -> Tensor<D> {
    if half { tensor.cast(DType::F16) } else { tensor }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;

    const BLOCK_TOKENS: usize = 4;

    fn step(model: &mut PlainDecoder, tokens: &[u32]) -> Vec<f32> {
        let mut logits = Vec::new();
        let slice = Slice { tokens, position: 0, blocks: &[2, 1], wants_logits: true };
        model.step(&[slice], &mut logits).expect("a step");
        logits
    }

    #[test]
    fn a_model_goes_on_after_a_step_that_panicked() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama3");
        let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
        let (config, weights) = (&checkpoint.config, &checkpoint.weights);
        let model = PlainDecoder::load(config, weights, &Device::flex(), Precision::F32, 3, BLOCK_TOKENS);
        let mut model = model.expect("a decoder");
        let expected = step(&mut model, &[5, 6, 7, 8, 9]);
        let memory = |model: &PlainDecoder| model.memory.iter().map(|(k, v)| (k.dims(), v.dims())).collect::<Vec<_>>();
        let whole = memory(&model);
        // More rows than places: what a device says when it is out of memory, say, is a panic in the same place.
        let pass = Pass::plan(&model.shape, &[Slice { tokens: &[5], position: 0, blocks: &[0], wants_logits: true }]);
        let inputs = model.inputs(&pass.expect("planned"));
        let rows = Tensor::zeros([2, model.keys.0], (&model.device, DType::F32));
        let stored = catch_unwind(AssertUnwindSafe(|| store(&mut model.memory[1].0, &inputs, rows)));
        assert!(stored.is_err() && memory(&model) != whole, "the memory is in parts");
        model.reset().expect("memory");
        assert_eq!(memory(&model), whole);
        let written = |(keys, values): &(Tensor<2>, Tensor<2>)| {
            [keys, values].map(|it| it.clone().abs().sum().into_scalar::<f32>())
        };
        assert!(model.memory.iter().flat_map(written).all(|sum| sum == 0.0), "nothing is left of what was read");
        assert_eq!(step(&mut model, &[5, 6, 7, 8, 9]), expected);
    }
}
