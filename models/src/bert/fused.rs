//! The encoder on the CPU, on kernels of our own: the same as the Burn module that it is made from.
//!
//! Contract: vectors are those of the module, with a cosine of 0.99999 or more in [`EncoderPrecision::F32`] and of 0.9999 in
//! [`EncoderPrecision::Bf16`] (of sentences). Texts lie one after the other, without padding; what a vector is depends on the other texts
//! of a pass by rounding alone. Memory is allocated when the executor is made, and when a pass has more tokens than any before.
//!
//! Products have their bias, the GELU and what they are added to in the same pass; weights are packed once.

use burn::nn::{LayerNorm, Linear};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Bert, BertConfig, NORM_MIN, Pooling};
use crate::checkpoint::Precision;
use crate::error::ModelError;
use crate::kernels::{
    Finish, Format, InstructionChoice, Instructions, Matrix, Narrow, Pool, Sequences, Start, add, layer_norm,
};

/// Most threads of the encoder; where more are asked for, there are these.
pub const ENCODER_THREADS_MAX: usize = 256;
/// Tokens of a pass, unless one text has more: few enough that what a layer makes of them is still in the processor's cache
/// when the next needs it.
const PASS_TOKENS: usize = 512;

/// How exact the encoder's products are. Attention, norms and sums are in single precision always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderPrecision {
    /// Single precision.
    #[default]
    F32,
    /// Rows and weights of products are rounded to bf16.
    Bf16,
}

impl std::fmt::Display for EncoderPrecision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// How an encoder computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderOptions {
    /// How exact its products are.
    pub precision: EncoderPrecision,
    /// Threads that compute, the caller's among them.
    pub threads: usize,
    /// The processor's instructions.
    pub instructions: InstructionChoice,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { precision: EncoderPrecision::F32, threads: 2, instructions: InstructionChoice::Auto }
    }
}

/// The encoder, with the memory of a pass.
#[derive(Debug)]
pub(crate) struct FusedBert {
    model: Model,
    sequences: Sequences,
    machine: Machine,
    rows: Rows,
}

/// What a pass runs on.
#[derive(Debug)]
struct Machine {
    pool: Pool,
    set: Instructions,
    narrow: Narrow,
}

#[derive(Debug)]
struct Model {
    hidden: usize,
    words: Vec<f32>,
    /// With those of the only segment added.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    pooling: Pooling,
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values.
    qkv: Dense,
    output: Dense,
    attention_norm: Norm,
    wide: Dense,
    narrow: Dense,
    norm: Norm,
}

#[derive(Debug)]
struct Dense {
    weights: Matrix,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Norm {
    weights: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

/// The numbers of a pass, a row for each token.
#[derive(Debug, Default)]
struct Rows {
    tokens: Vec<(u32, usize)>,
    /// Where each text begins, and where the last ends.
    starts: Vec<usize>,
    hidden: Vec<f32>,
    qkv: Vec<f32>,
    context: Vec<f32>,
    wide: Vec<f32>,
}

impl FusedBert {
    /// Packs the module's weights, and starts the threads.
    ///
    /// # Errors
    /// [`ModelError::Instructions`] when the processor has not those that are asked for, [`ModelError::Thread`] when there are no
    /// threads, [`ModelError::Module`] when the module's numbers cannot be read.
    pub(crate) fn new(module: &Bert, config: &BertConfig, options: EncoderOptions) -> Result<Self, ModelError> {
        let set = options.instructions.resolve()?;
        let pool = Pool::start(options.threads.clamp(1, ENCODER_THREADS_MAX))?;
        let model = Packing { config, precision: options.precision }.model(module)?;
        let heads = config.num_attention_heads;
        let sequences = Sequences::new(heads, config.hidden_size / heads, pool.threads());
        let EncoderOptions { precision, threads, .. } = options;
        tracing::info!(instructions = set.name(), %precision, threads, "the encoder is ready");
        if precision == EncoderPrecision::Bf16 && !set.has_bf16() {
            tracing::warn!(
                instructions = set.name(),
                %precision,
                "this processor has no products of bf16, f32 is faster on it"
            );
        }
        let machine = Machine { pool, set, narrow: Narrow::default() };
        Ok(Self { model, sequences, machine, rows: Rows::default() })
    }

    /// One vector for each text, at unit length: its first token's, or the mean over its tokens.
    ///
    /// # Shapes
    /// - `texts`: ids of each text, not empty
    /// - `to`: `[texts, hidden]`
    ///
    /// # Panics
    /// When an id or a text's length is beyond the module's tables.
    pub(crate) fn embed(&mut self, texts: &[&[u32]], to: &mut [f32]) {
        let (mut texts, mut to) = (texts, to);
        while !texts.is_empty() {
            let mut tokens = 0;
            let count = texts.iter().take_while(|text| {
                tokens += text.len();
                tokens <= PASS_TOKENS
            });
            let (now, later) = texts.split_at(count.count().max(1));
            let (vectors, rest) = to.split_at_mut(now.len() * self.model.hidden);
            self.pass(now, vectors);
            (texts, to) = (later, rest);
        }
    }

    fn pass(&mut self, texts: &[&[u32]], to: &mut [f32]) {
        let Self { model, sequences, machine, rows } = self;
        rows.begin(texts);
        model.embed(machine, rows);
        for layer in &model.layers {
            layer.forward(machine, sequences, rows);
        }
        for (bounds, to) in rows.starts.windows(2).zip(to.chunks_exact_mut(model.hidden)) {
            let tokens = &rows.hidden[bounds[0] * model.hidden..bounds[1] * model.hidden];
            let pooled = match model.pooling {
                Pooling::Cls => 1,
                Pooling::Mean => tokens.len() / model.hidden,
            };
            to.fill(0.0);
            tokens.chunks_exact(model.hidden).take(pooled).for_each(|row| add(machine.set, to, row));
            // The mean's length is what it is divided by, so the number of tokens does not matter.
            let length = crate::vector::dot(to, to).sqrt().max(NORM_MIN);
            to.iter_mut().for_each(|x| *x /= length);
        }
    }
}

impl Rows {
    fn begin(&mut self, texts: &[&[u32]]) {
        self.tokens.clear();
        self.starts.clear();
        self.starts.push(0);
        for text in texts {
            self.tokens.extend(text.iter().copied().zip(0..));
            self.starts.push(self.tokens.len());
        }
    }
}

impl Machine {
    /// Makes as many numbers as the product has.
    fn product(&mut self, dense: &Dense, rows: &[f32], start: Start<'_>, finish: Finish, to: &mut [f32]) {
        let Self { pool, set, narrow } = self;
        dense.weights.product(pool, *set, narrow, rows, (start, finish), to);
    }

    fn normalise(&mut self, norm: &Norm, rows: &mut [f32]) {
        let set = self.set;
        self.pool.rows(rows, norm.weights.len(), &|_, row| norm.apply(set, row));
    }
}

impl Norm {
    fn apply(&self, set: Instructions, row: &mut [f32]) {
        layer_norm(set, row, &self.weights, &self.bias, self.epsilon);
    }
}

impl Model {
    /// Words, positions and segment, normalised.
    fn embed(&self, machine: &mut Machine, rows: &mut Rows) {
        let (width, set) = (self.hidden, machine.set);
        let tokens = &rows.tokens;
        rows.hidden.resize(tokens.len() * width, 0.0);
        machine.pool.rows(&mut rows.hidden, width, &|token, row| {
            let (id, position) = tokens[token];
            row.copy_from_slice(&self.words[id as usize * width..][..width]);
            add(set, row, &self.positions[position * width..][..width]);
            self.norm.apply(set, row);
        });
    }
}

impl Layer {
    fn forward(&self, machine: &mut Machine, sequences: &Sequences, rows: &mut Rows) {
        let Rows { tokens, starts, hidden, qkv, context, wide } = rows;
        let count = tokens.len();
        qkv.resize(count * self.qkv.bias.len(), 0.0);
        machine.product(&self.qkv, hidden, Start::Bias(&self.qkv.bias), Finish::Plain, qkv);
        context.resize(hidden.len(), 0.0);
        sequences.attend(&mut machine.pool, machine.set, starts, qkv, context);
        machine.product(&self.output, context, Start::ThereAndBias(&self.output.bias), Finish::Plain, hidden);
        machine.normalise(&self.attention_norm, hidden);
        wide.resize(count * self.wide.bias.len(), 0.0);
        machine.product(&self.wide, hidden, Start::Bias(&self.wide.bias), Finish::Gelu, wide);
        machine.product(&self.narrow, wide, Start::ThereAndBias(&self.narrow.bias), Finish::Plain, hidden);
        machine.normalise(&self.norm, hidden);
    }
}

/// Packs a module.
struct Packing<'a> {
    config: &'a BertConfig,
    precision: EncoderPrecision,
}

impl Packing<'_> {
    fn model(&self, module: &Bert) -> Result<Model, ModelError> {
        let embeddings = &module.embeddings;
        let hidden = self.config.hidden_size;
        let mut positions = numbers(embeddings.position_embeddings.weight.val())?;
        let segments = numbers(embeddings.token_type_embeddings.weight.val())?;
        for position in positions.chunks_exact_mut(hidden) {
            position.iter_mut().zip(&segments).for_each(|(x, segment)| *x += segment);
        }
        Ok(Model {
            hidden,
            words: numbers(embeddings.word_embeddings.weight.val())?,
            positions,
            norm: self.norm(&embeddings.layer_norm)?,
            layers: module.encoder.layer.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
            pooling: module.pooling,
        })
    }

    fn layer(&self, layer: &super::Layer) -> Result<Layer, ModelError> {
        let attention = &layer.attention;
        Ok(Layer {
            qkv: self.dense(&[&attention.query, &attention.key, &attention.value])?,
            output: self.dense(&[&attention.dense])?,
            attention_norm: self.norm(&attention.layer_norm)?,
            wide: self.dense(&[&layer.intermediate])?,
            narrow: self.dense(&[&layer.output])?,
            norm: self.norm(&layer.layer_norm)?,
        })
    }

    /// Packs some layers with the same inputs, one after the other.
    fn dense(&self, parts: &[&Linear]) -> Result<Dense, ModelError> {
        let (mut weights, mut bias, mut inputs) = (Vec::new(), Vec::new(), 0);
        for part in parts {
            let matrix = part.weight.val();
            let outputs;
            [inputs, outputs] = matrix.dims();
            weights.extend(numbers(matrix.transpose())?);
            match &part.bias {
                Some(part) => bias.extend(numbers(part.val())?),
                None => bias.resize(bias.len() + outputs, 0.0),
            }
        }
        let row = |output: usize| &weights[output * inputs..][..inputs];
        let weights = match self.precision {
            EncoderPrecision::F32 => Matrix::pack(Precision::F32, inputs, bias.len(), row),
            EncoderPrecision::Bf16 => Matrix::pack(Format::Pairs, inputs, bias.len(), row),
        };
        Ok(Dense { weights, bias })
    }

    fn norm(&self, module: &LayerNorm) -> Result<Norm, ModelError> {
        let weights = numbers(module.gamma.val())?;
        let bias = module.beta.as_ref().map(|beta| numbers(beta.val())).transpose()?;
        let bias = bias.unwrap_or_else(|| vec![0.0; weights.len()]);
        Ok(Norm { weights, bias, epsilon: self.config.layer_norm_eps as f32 })
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, ModelError> {
    tensor.into_data().try_to_vec().map_err(|error| ModelError::Module { reason: format!("{error:?}") })
}
