//! What `config.json` says of a decoder: its family and its sizes.
//!
//! Contract: a configuration that is read without error describes exactly what the decoders of this crate compute; what
//! they do not (quantised weights, other activations, other scalings of positions) is an error that names the field.
//! A sliding window is not computed: the longest sequence is cut to it, and within it nothing differs.
//!
//! Names and defaults are those of Hugging Face's transformers, of its versions 4 and 5.

use std::f64::consts::TAU;
use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{parse, read_small};
use crate::error::ModelError;

/// The families of checkpoints that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM 1 and 2, TinyLlama.
    Llama,
    /// Mistral 7B.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3 (dense).
    Qwen3,
    /// SmolLM 3.
    SmolLm3,
}

impl Family {
    const ALL: [(&'static str, Self); 5] = [
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("smollm3", Self::SmolLm3),
    ];

    /// Its name in `config.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, family)| *family == self).map_or("unknown", |(name, _)| name)
    }
}

/// How rotary frequencies are stretched for longer texts than the model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// Frequencies are divided by it.
        factor: f64,
    },
    /// Low frequencies only, as Llama 3.1 does.
    Llama3 {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Wavelengths above `original_context_max / low_freq_factor` tokens are low.
        low_freq_factor: f64,
        /// Wavelengths below `original_context_max / high_freq_factor` tokens are high.
        high_freq_factor: f64,
        /// Longest sequence of the first training, in tokens.
        original_context_max: f64,
    },
}

/// A decoder's architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub family: Family,
    /// Numbers in a token's vector.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; a divisor of `heads`.
    pub kv_heads: usize,
    /// Numbers of one head; even.
    pub head_size: usize,
    /// Numbers in the wide part of a layer.
    pub intermediate: usize,
    /// Tokens known: rows of the embedding, and numbers of a row of logits.
    pub vocabulary: usize,
    /// Keeps the division of the normalisation defined.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// For each layer, whether its queries and keys are rotated; where not, a layer knows no positions.
    pub rotary: Vec<bool>,
    /// Whether the projections of queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised, each head by itself, before they are rotated.
    pub qk_norm: bool,
    /// Whether the head that makes logits is the embedding.
    pub tied: bool,
    /// Longest sequence, in tokens.
    pub context_max: usize,
    /// The token that begins a text, if the model has one.
    pub bos: Option<u32>,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
}

/// The fields that are read. All that is not here does not change the computation.
#[derive(Deserialize)]
struct File {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    tie_word_embeddings: Option<bool>,
    quantization_config: Option<Value>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Default, Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// The field's older name. Some files have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// One token or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl From<Ids> for Vec<u32> {
    fn from(ids: Ids) -> Self {
        match ids {
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }
    }
}

impl DecoderConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or describes a model that is not computed here; the field is named.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let json = read_small(path)?;
        // The kind first: a file of another kind lacks fields, and that would be told instead.
        let kind: Value = parse(path, &json)?;
        let kind = kind.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        let family = Family::ALL.iter().find(|(name, _)| *name == kind).map(|(_, family)| *family);
        let known = || Family::ALL.map(|(name, _)| name).join(", ");
        let family = family.ok_or_else(|| refuse(path, "model_type", kind, format!("one of {}", known())))?;
        parse::<File>(path, &json)?.checked(family, path)
    }

    /// Rotary frequencies of a head, in radians a token: `head_size / 2` numbers, the fastest first.
    ///
    /// The pairs that are rotated are `(i, i + head_size / 2)`. Llama 3's rule is that of transformers'
    /// `_compute_llama3_parameters`.
    #[must_use]
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        let frequency = |pair: usize| self.rope_theta.powf(-2.0 * pair as f64 / self.head_size as f64);
        (0..self.head_size / 2).map(frequency).map(|frequency| self.rope_scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_max } => {
                let turns = original_context_max * frequency / TAU;
                // 0 for low frequencies, 1 for high ones, and between them a straight line.
                let share = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }
}

impl File {
    fn checked(self, family: Family, path: &Path) -> Result<DecoderConfig, ModelError> {
        self.check(family, path)?;
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads {heads}");
            return Err(refuse(path, "num_key_value_heads", kv_heads, expected));
        }
        let head_size = self.head_dim.unwrap_or(self.hidden_size / heads);
        if head_size == 0 || head_size > SIZE_MAX || !head_size.is_multiple_of(2) {
            return Err(refuse(path, "head_dim", head_size, "an even number".to_owned()));
        }
        let default_theta = if family == Family::SmolLm3 { 2_000_000.0 } else { 10_000.0 };
        let (rope_theta, rope_scaling) = self.rope(default_theta, path)?;
        Ok(DecoderConfig {
            family,
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_size,
            intermediate: self.intermediate_size,
            vocabulary: self.vocab_size,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            rotary: self.rotary(family, path)?,
            qkv_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            tied: self.tie_word_embeddings.unwrap_or(family == Family::SmolLm3),
            context_max: self.context_max(family),
            // A list is not a token that begins texts.
            bos: self.bos_token_id.and_then(|ids| if let Ids::One(id) = ids { Some(id) } else { None }),
            eos: self.eos_token_id.map(Vec::from).unwrap_or_default(),
        })
    }

    /// Refuses what is not computed, and sizes that make no sense.
    fn check(&self, family: Family, path: &Path) -> Result<(), ModelError> {
        let refuse = |field, found: &str, expected: &str| refuse(path, field, found, expected.to_owned());
        debug_assert_eq!(self.model_type, family.name());
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        if activation != "silu" {
            return Err(refuse("hidden_act", activation, "silu"));
        }
        if let Some(quantised) = &self.quantization_config {
            let method = quantised.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(refuse("quantization_config", method, "weights in f32, f16 or bf16"));
        }
        // Qwen 2 has its three biases without saying so; no other is computed.
        if self.attention_bias && family != Family::Qwen2 {
            return Err(refuse("attention_bias", "true", "false"));
        }
        if self.mlp_bias {
            return Err(refuse("mlp_bias", "true", "false"));
        }
        let sizes = [
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX),
            ("num_attention_heads", self.num_attention_heads, SIZE_MAX),
            ("intermediate_size", self.intermediate_size, SIZE_MAX),
            ("vocab_size", self.vocab_size, SIZE_MAX),
            ("max_position_embeddings", self.max_position_embeddings, SIZE_MAX),
        ];
        match sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            Some((field, size, most)) => Err(refuse(field, &size.to_string(), &format!("1 to {most}"))),
            None => Ok(()),
        }
    }

    fn context_max(&self, family: Family) -> usize {
        let windowed = self.use_sliding_window.unwrap_or(family == Family::Mistral);
        let window = self.sliding_window.filter(|window| windowed && *window > 0);
        self.max_position_embeddings.min(window.unwrap_or(usize::MAX))
    }

    fn rotary(&self, family: Family, path: &Path) -> Result<Vec<bool>, ModelError> {
        let layers = self.num_hidden_layers;
        if family != Family::SmolLm3 {
            return Ok(vec![true; layers]);
        }
        if let Some(flags) = &self.no_rope_layers {
            if flags.len() != layers {
                let expected = format!("one number for each of {layers} layers");
                return Err(refuse(path, "no_rope_layers", format!("{} numbers", flags.len()).as_str(), expected));
            }
            // Whatever the field's name says: 1 is a layer that is rotated.
            return Ok(flags.iter().map(|&flag| flag != 0).collect());
        }
        let interval = self.no_rope_layer_interval.unwrap_or(4).max(1);
        Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect())
    }

    fn rope(&self, default_theta: f64, path: &Path) -> Result<(f64, RopeScaling), ModelError> {
        let none = Rope::default();
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&none);
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(default_theta);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(refuse(path, "rope_theta", theta, "a number above 0".to_owned()));
        }
        let part = rope.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(1.0);
        if part != 1.0 {
            return Err(refuse(path, "partial_rotary_factor", part, "1".to_owned()));
        }
        let factor = |field: &'static str, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(refuse(path, field, value, "a number above 0".to_owned())),
            None => Err(refuse(path, field, "nothing", "a number above 0".to_owned())),
        };
        let scaling = match rope.rope_type.as_ref().or(rope.older_type.as_ref()).map_or("default", String::as_str) {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor("rope_scaling.factor", rope.factor)? },
            "llama3" => {
                let low_freq_factor = factor("rope_scaling.low_freq_factor", rope.low_freq_factor)?;
                let high_freq_factor = factor("rope_scaling.high_freq_factor", rope.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("more than low_freq_factor {low_freq_factor}");
                    return Err(refuse(path, "rope_scaling.high_freq_factor", high_freq_factor, expected));
                }
                RopeScaling::Llama3 {
                    factor: factor("rope_scaling.factor", rope.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context_max: factor(
                        "rope_scaling.original_max_position_embeddings",
                        rope.original_max_position_embeddings,
                    )?,
                }
            }
            other => {
                return Err(refuse(path, "rope_scaling.rope_type", other, "default, linear or llama3".to_owned()));
            }
        };
        Ok((theta, scaling))
    }
}

/// Sizes above this are mistakes, and products of those below it do not overflow.
const SIZE_MAX: usize = 1 << 24;
/// Most layers; the deepest models have some hundred.
const LAYERS_MAX: usize = 1_000;

/// Longest value that an error repeats, in characters.
const TOLD_MAX: usize = 100;

pub(crate) fn refuse(path: &Path, field: &'static str, found: impl Display, expected: String) -> ModelError {
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(TOLD_MAX) {
        found.replace_range(end.., "…");
    }
    ModelError::Architecture { path: path.to_owned(), field, found, expected }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
