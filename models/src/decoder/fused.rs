//! The Llama family on the CPU, at the speed of its memory: the same decoder as `plain.rs`, on kernels of our own.
//!
//! Contract: with `f32` weights, logits agree with those of [`PlainDecoder`](super::PlainDecoder) to 1e-4 of the largest,
//! and greedy tokens exactly; with all in `f16` to 5e-3, with all in `bf16` to 5e-2. Where the processor multiplies bf16 with bf16, the rows that
//! meet a layer's `bf16` weights are rounded to it as well. All weights are read once in a step, however
//! many tokens are in it. Memory is allocated when the decoder is loaded, and when a step has more tokens than any before.
//!
//! The slices' tokens are the rows of all products, one after the other, prefill and decode alike. The last layer's
//! products and the head have only the rows whose logits are wanted. What it deliberately does not do: run on anything
//! but the CPU.

use super::pass::check;
use super::{Slice, StepModel, StepShape};
use crate::checkpoint::{DecoderConfig, EMBEDDING, FINAL_NORM, HEAD, Numbers, Precision, Weights, layer_tensor};
use crate::error::ModelError;
use crate::kernels::{
    Asking, Finish, Format, HeadShape, Instructions, Matrix, Memory, Narrow, Pool, Start, normalise, rotate,
};

/// A decoder of the Llama family on the CPU, with its memory for keys and values.
#[derive(Debug)]
pub struct FusedDecoder {
    model: Model,
    frequencies: Vec<f64>,
    shape: StepShape,
    memory: Memory,
    pool: Pool,
    rows: Rows,
}

/// How a [`FusedDecoder`] keeps its numbers, and what it computes with.
#[derive(Clone, Copy, Debug)]
pub struct FusedOptions {
    /// Precision of the weights; sums are in f32 always.
    pub weights: Precision,
    /// Precision of keys and values.
    pub kv: Precision,
    /// Threads that compute, the caller's among them.
    pub threads: usize,
    /// The processor's instructions.
    pub instructions: Instructions,
}

impl Default for FusedOptions {
    /// Full precision, all of the processor.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { weights: Precision::F32, kv: Precision::F32, threads, instructions: Instructions::detect() }
    }
}

#[derive(Debug)]
struct Model {
    set: Instructions,
    heads: HeadShape,
    hidden: usize,
    intermediate: usize,
    epsilon: f32,
    /// `[vocabulary, hidden]`; also the head, where there is no other.
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Option<Matrix>,
}

#[derive(Debug)]
struct Layer {
    input_norm: Vec<f32>,
    /// Queries, keys and values.
    qkv: Matrix,
    bias: Option<Vec<f32>>,
    /// Of queries and of keys.
    head_norms: Option<(Vec<f32>, Vec<f32>)>,
    rotary: bool,
    output: Matrix,
    post_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// The numbers of a step, a row for each token.
#[derive(Debug, Default)]
struct Rows {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    context: Vec<f32>,
    wide: Vec<f32>,
    narrow: Narrow,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl FusedDecoder {
    /// Loads a checkpoint's weights and allocates memory for `blocks` blocks of `block_tokens` tokens.
    ///
    /// # Errors
    /// When a tensor is missing or cannot be read, or there are no threads, or not so much memory.
    ///
    /// # Panics
    /// When `blocks` or `block_tokens` is 0.
    pub fn load(
        config: &DecoderConfig,
        weights: &Weights,
        options: FusedOptions,
        blocks: usize,
        block_tokens: usize,
    ) -> Result<Self, ModelError> {
        weights.check(&config.tensors())?;
        Self::build(config, |name| weights.read(name).map(Numbers::into_f32), options, blocks, block_tokens)
    }

    /// Makes a decoder of tensors that `tensor` gives by their Hugging Face names, as [`DecoderConfig::tensors`] lists them.
    ///
    /// # Errors
    /// Those of `tensor`; [`ModelError::Thread`] when there are no threads; [`ModelError::Step`] when the system does not give
    /// the memory for keys and values.
    ///
    /// # Panics
    /// When a tensor has not the right number of numbers, or `blocks` or `block_tokens` is 0.
    pub fn build(
        config: &DecoderConfig,
        tensor: impl FnMut(&str) -> Result<Vec<f32>, ModelError>,
        options: FusedOptions,
        blocks: usize,
        block_tokens: usize,
    ) -> Result<Self, ModelError> {
        assert!(blocks > 0 && block_tokens > 0, "{blocks} blocks of {block_tokens} tokens");
        let heads = heads(config);
        let pool = Pool::start(options.threads.max(1))?;
        // First what may be refused at once.
        let memory = Memory::new(options.kv, heads, config.layers, blocks, block_tokens, pool.threads())?;
        Ok(Self {
            model: Loader { config, heads, options, tensor }.model()?,
            frequencies: config.rotary_frequencies(),
            shape: StepShape {
                blocks,
                block_tokens,
                context_max: config.context_max.min(blocks.saturating_mul(block_tokens)),
                vocabulary: config.vocabulary,
            },
            memory,
            pool,
            rows: Rows::default(),
        })
    }

    /// Memory of one block of keys and values, in bytes. It is more than that of its tokens where `block_tokens` or the size of
    /// a head is no multiple of 16: blocks are filled up to one.
    #[must_use]
    pub const fn block_bytes(config: &DecoderConfig, kv: Precision, block_tokens: usize) -> u64 {
        heads(config).block_bytes(kv, config.layers, block_tokens)
    }

    /// Memory of the matrices that a step reads, in bytes: with memory's bandwidth, the least time of a step.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let layers =
            self.model.layers.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down]);
        layers.chain([self.model.head()]).map(Matrix::bytes).sum()
    }
}

impl StepModel for FusedDecoder {
    fn shape(&self) -> StepShape {
        self.shape
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        for slice in slices {
            check(&self.shape, slice).map_err(|reason| ModelError::Step { reason })?;
        }
        if slices.is_empty() {
            return Ok(());
        }
        let Self { model, memory, pool, rows, .. } = self;
        rows.begin(model, slices, &self.frequencies);
        let last = model.layers.len() - 1;
        for number in 0..=last {
            let asking = if number == last { Asking::Wanted } else { Asking::All };
            model.layer(pool, memory, rows, slices, number, asking);
        }
        model.logits(pool, rows, logits);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        // The memory is plain numbers, whatever became of the step; the rows are those of the step alone.
        self.rows = Rows::default();
        Ok(())
    }
}

const fn heads(config: &DecoderConfig) -> HeadShape {
    HeadShape { heads: config.heads, kv_heads: config.kv_heads, head_size: config.head_size }
}

impl Rows {
    /// Embeds the tokens, and takes the angles of their places.
    fn begin(&mut self, model: &Model, slices: &[Slice<'_>], frequencies: &[f64]) {
        let count: usize = slices.iter().map(|slice| slice.tokens.len()).sum();
        self.hidden.resize(count * model.hidden, 0.0);
        let tokens = slices.iter().flat_map(|slice| slice.tokens);
        for (&token, row) in tokens.zip(self.hidden.chunks_exact_mut(model.hidden)) {
            model.embedding.row(token as usize, row);
        }
        self.cosines.clear();
        self.sines.clear();
        for position in slices.iter().flat_map(|slice| slice.position..slice.position + slice.tokens.len()) {
            for frequency in frequencies {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                self.cosines.push(cosine as f32);
                self.sines.push(sine as f32);
            }
        }
    }

    /// Drops the rows whose logits are not wanted.
    fn keep_wanted(&mut self, model: &Model, slices: &[Slice<'_>]) {
        let (mut end, mut kept) = (0, 0);
        for slice in slices {
            end += slice.tokens.len();
            if slice.wants_logits {
                let (hidden, qkv) = (model.hidden, model.heads.all());
                self.hidden.copy_within((end - 1) * hidden..end * hidden, kept * hidden);
                self.qkv.copy_within((end - 1) * qkv..end * qkv, kept * qkv);
                kept += 1;
            }
        }
        self.hidden.truncate(kept * model.hidden);
        self.qkv.truncate(kept * model.heads.all());
    }
}

impl Model {
    fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// `normed` becomes the norm of `hidden`.
    fn normalise(&self, pool: &mut Pool, rows: &mut Rows, weights: &[f32]) {
        rows.normed.clone_from(&rows.hidden);
        pool.rows(&mut rows.normed, self.hidden, &|_, row| normalise(self.set, row, weights, self.epsilon));
    }

    fn layer(
        &self,
        pool: &mut Pool,
        memory: &mut Memory,
        rows: &mut Rows,
        slices: &[Slice<'_>],
        number: usize,
        asking: Asking,
    ) {
        let layer = &self.layers[number];
        self.normalise(pool, rows, &layer.input_norm);
        rows.qkv.resize(rows.hidden.len() / self.hidden * self.heads.all(), 0.0);
        let start = layer.bias.as_deref().map_or(Start::Zero, Start::Bias);
        layer.qkv.product(pool, self.set, &mut rows.narrow, &rows.normed, (start, Finish::Plain), &mut rows.qkv);
        self.place(pool, layer, rows);
        memory.store(pool, number, slices, &rows.qkv);
        if asking == Asking::Wanted {
            rows.keep_wanted(self, slices);
        }
        let count = rows.hidden.len() / self.hidden;
        if count == 0 {
            return;
        }
        rows.context.resize(count * self.heads.queries(), 0.0);
        memory.attend(pool, self.set, number, slices, asking, &rows.qkv, &mut rows.context);
        let there = (Start::There, Finish::Plain);
        layer.output.product(pool, self.set, &mut rows.narrow, &rows.context, there, &mut rows.hidden);
        self.normalise(pool, rows, &layer.post_norm);
        rows.wide.resize(count * self.intermediate, 0.0);
        let gated = (Start::Zero, Finish::Gated);
        layer.gate_up.product(pool, self.set, &mut rows.narrow, &rows.normed, gated, &mut rows.wide);
        layer.down.product(pool, self.set, &mut rows.narrow, &rows.wide, there, &mut rows.hidden);
    }

    /// Normalises queries and keys, where the model does, and turns them to their places.
    fn place(&self, pool: &mut Pool, layer: &Layer, rows: &mut Rows) {
        let (size, half) = (self.heads.head_size, self.heads.head_size / 2);
        let (cosines, sines) = (&rows.cosines, &rows.sines);
        if layer.head_norms.is_none() && !layer.rotary {
            return;
        }
        pool.rows(&mut rows.qkv, self.heads.all(), &|row, numbers| {
            let angles = row * half..(row + 1) * half;
            let placed = &mut numbers[..self.heads.queries() + self.heads.keys()];
            for (number, head) in placed.chunks_exact_mut(size).enumerate() {
                if let Some((queries, keys)) = &layer.head_norms {
                    let weights = if number < self.heads.heads { queries } else { keys };
                    normalise(self.set, head, weights, self.epsilon);
                }
                if layer.rotary {
                    rotate(self.set, head, &cosines[angles.clone()], &sines[angles.clone()]);
                }
            }
        });
    }

    fn logits(&self, pool: &mut Pool, rows: &mut Rows, logits: &mut Vec<f32>) {
        self.normalise(pool, rows, &self.norm);
        let (before, count) = (logits.len(), rows.hidden.len() / self.hidden);
        logits.resize(before + count * self.head().outputs(), 0.0);
        let plain = (Start::Zero, Finish::Plain);
        self.head().product(pool, self.set, &mut rows.narrow, &rows.normed, plain, &mut logits[before..]);
    }
}

/// Packs the tensors.
struct Loader<'a, F> {
    config: &'a DecoderConfig,
    heads: HeadShape,
    options: FusedOptions,
    tensor: F,
}

impl<F: FnMut(&str) -> Result<Vec<f32>, ModelError>> Loader<'_, F> {
    fn model(mut self) -> Result<Model, ModelError> {
        let config = self.config;
        Ok(Model {
            set: self.options.instructions,
            heads: self.heads,
            hidden: config.hidden,
            intermediate: config.intermediate,
            epsilon: config.norm_epsilon as f32,
            embedding: self.matrix(EMBEDDING, config.hidden, self.options.weights.into())?,
            layers: (0..config.layers).map(|number| self.layer(number)).collect::<Result<_, _>>()?,
            norm: (self.tensor)(FINAL_NORM)?,
            head: if config.tied {
                None
            } else {
                Some(self.matrix(HEAD, config.hidden, self.options.weights.into())?)
            },
        })
    }

    fn layer(&mut self, number: usize) -> Result<Layer, ModelError> {
        let config = self.config;
        let mut part = |name: &str| (self.tensor)(&layer_tensor(number, name));
        let mut three = |kind: &str| {
            let names = ["q_proj", "k_proj", "v_proj"].map(|name| format!("self_attn.{name}.{kind}"));
            names.iter().map(|name| part(name)).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat())
        };
        let qkv = three("weight")?;
        let bias = if config.qkv_bias { Some(three("bias")?) } else { None };
        let head_norms = if config.qk_norm {
            Some((part("self_attn.q_norm.weight")?, part("self_attn.k_norm.weight")?))
        } else {
            None
        };
        let (gate, up) = (part("mlp.gate_proj.weight")?, part("mlp.up_proj.weight")?);
        let (input_norm, post_norm) = (part("input_layernorm.weight")?, part("post_attention_layernorm.weight")?);
        Ok(Layer {
            input_norm,
            qkv: packed(self.format(), &qkv, config.hidden),
            bias,
            head_norms,
            rotary: config.rotary[number],
            output: self.matrix(
                &layer_tensor(number, "self_attn.o_proj.weight"),
                self.heads.queries(),
                self.format(),
            )?,
            post_norm,
            gate_up: Matrix::pack_gated(self.format(), config.hidden, &gate, &up),
            down: self.matrix(&layer_tensor(number, "mlp.down_proj.weight"), config.intermediate, self.format())?,
        })
    }

    /// How the matrices of the layers are kept. Embedding and head are read row by row, or for few rows.
    fn format(&self) -> Format {
        let FusedOptions { weights, instructions, .. } = self.options;
        if weights == Precision::Bf16 && instructions.has_bf16() { Format::Pairs } else { weights.into() }
    }

    fn matrix(&mut self, name: &str, inputs: usize, format: Format) -> Result<Matrix, ModelError> {
        Ok(packed(format, &(self.tensor)(name)?, inputs))
    }
}

fn packed(format: Format, numbers: &[f32], inputs: usize) -> Matrix {
    Matrix::pack(format, inputs, numbers.len() / inputs, |output| &numbers[output * inputs..][..inputs])
}
