//! The head: numbers of a pair of questions in, the log odds that one answer serves both out.
//!
//! A projection brings questions that mean the same together; a small [network](crate::network) judges what is left
//! between them, beside what their words have in common. Trained in [`fit`](super::fit); here it is plain arithmetic, a
//! few microseconds for a pair.

use serde::{Deserialize, Serialize};

use super::text::{WORD_FEATURE_NAMES, WORD_FEATURES};
use crate::network::Network;
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
    /// From all numbers about a pair to log odds.
    pub(super) network: Network,
}

impl Head {
    /// Whether all parts have their sizes and are finite.
    pub(super) fn is_sound(&self) -> bool {
        self.projection.len() == self.dimension * PROJECTED
            && self.projection.iter().all(|number| number.is_finite())
            && self.network.is_sound(INPUTS, HIDDEN)
    }

    /// A question's vector in the space where purposes are told apart, of unit length.
    pub(super) fn project(&self, vector: &[f32]) -> Vec<f32> {
        project(&self.projection, vector)
    }

    /// The log odds for a pair's [`inputs`].
    pub(super) fn judge(&self, inputs: &[f32; INPUTS]) -> f32 {
        self.network.judge(inputs)
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
