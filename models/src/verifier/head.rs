//! The head: numbers of a pair of questions in, the log odds that one answer serves both out.
//!
//! A projection brings questions that mean the same together; a small network judges what is left between them, beside
//! what their words have in common. Trained as a Burn module in [`fit`](super::fit); here it is plain arithmetic, a few
//! microseconds for a pair.

use serde::{Deserialize, Serialize};

use super::text::{WORD_FEATURE_NAMES, WORD_FEATURES};
use crate::vector::{dot, to_unit};

/// Numbers of a projected question.
pub(super) const PROJECTED: usize = 96;
/// Units of the hidden layer.
pub(super) const HIDDEN: usize = 48;
/// Numbers about a pair that have a name: two cosines with their squares, then the words'.
pub(super) const NAMED: usize = 4 + WORD_FEATURES;
/// All numbers about a pair: those with a name, and what the projections differ and agree in.
pub(super) const INPUTS: usize = NAMED + 2 * PROJECTED;
/// Brings what the projections differ and agree in to the size of the others.
const DIFFERENCE_SCALE: f32 = 8.0;
const PRODUCT_SCALE: f32 = 40.0;

/// What the named numbers are called, in their order.
pub(super) fn feature_name(at: usize) -> &'static str {
    match at {
        0 | 1 => "similarity",
        2 | 3 => "similarity of purpose",
        _ => WORD_FEATURE_NAMES.get(at - 4).copied().unwrap_or("purpose"),
    }
}

/// Trained parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Numbers of the encoder's vectors.
    pub(super) dimension: usize,
    /// `[dimension, PROJECTED]`, row by row.
    pub(super) projection: Vec<f32>,
    /// Mean and spread of each input where it was trained: `[INPUTS]` each.
    pub(super) means: Vec<f32>,
    pub(super) spreads: Vec<f32>,
    /// `[INPUTS, HIDDEN]`, row by row, and `[HIDDEN]`.
    pub(super) hidden: Vec<f32>,
    pub(super) hidden_bias: Vec<f32>,
    /// `[HIDDEN]` and one number.
    pub(super) out: Vec<f32>,
    pub(super) out_bias: f32,
}

impl Head {
    /// Whether all parts have their sizes and are finite.
    pub(super) fn is_sound(&self) -> bool {
        let parts = [
            (&self.projection, self.dimension * PROJECTED),
            (&self.means, INPUTS),
            (&self.spreads, INPUTS),
            (&self.hidden, INPUTS * HIDDEN),
            (&self.hidden_bias, HIDDEN),
            (&self.out, HIDDEN),
        ];
        parts.iter().all(|(part, size)| part.len() == *size && part.iter().all(|number| number.is_finite()))
            && self.out_bias.is_finite()
    }

    /// A question's vector in the space where purposes are told apart, of unit length.
    pub(super) fn project(&self, vector: &[f32]) -> Vec<f32> {
        project(&self.projection, vector)
    }

    /// The log odds for a pair's [`inputs`].
    pub(super) fn judge(&self, inputs: &[f32; INPUTS]) -> f32 {
        let mut hidden = self.hidden_bias.clone();
        for (at, input) in inputs.iter().enumerate() {
            let standard = (input - self.means[at]) / self.spreads[at];
            for (sum, weight) in hidden.iter_mut().zip(&self.hidden[at * HIDDEN..(at + 1) * HIDDEN]) {
                *sum += standard * weight;
            }
        }
        let active: Vec<f32> = hidden.into_iter().map(|sum| sum.max(0.0)).collect();
        dot(&active, &self.out) + self.out_bias
    }
}

/// Maps a vector by a matrix of [`PROJECTED`] columns and brings it to unit length.
pub(super) fn project(matrix: &[f32], vector: &[f32]) -> Vec<f32> {
    let mut mapped = vec![0.0; PROJECTED];
    for (number, row) in vector.iter().zip(matrix.chunks_exact(PROJECTED)) {
        mapped.iter_mut().zip(row).for_each(|(sum, weight)| *sum += number * weight);
    }
    to_unit(mapped)
}

/// The numbers about a pair: cosine of the vectors, the projected questions, and what their words have in common.
pub(super) fn inputs(cosine: f32, a: &[f32], b: &[f32], words: &[f32; WORD_FEATURES]) -> [f32; INPUTS] {
    let mut inputs = [0.0; INPUTS];
    let purpose = dot(a, b);
    inputs[..4].copy_from_slice(&[cosine, cosine * cosine, purpose, purpose * purpose]);
    inputs[4..NAMED].copy_from_slice(words);
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        inputs[NAMED + at] = DIFFERENCE_SCALE * (a - b).abs();
        inputs[NAMED + PROJECTED + at] = PRODUCT_SCALE * a * b;
    }
    inputs
}
