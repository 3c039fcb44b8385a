//! The adapter: a linear map behind the encoder, which brings what customers of shops mean by different words together.
//!
//! A general encoder puts "track my order" and "cancel my order" close, and "where is my parcel" further away. The map moves
//! every vector a little, questions, chunks and sentences alike, so that everything downstream stays a dot product of unit
//! vectors. `adapter.bin` was made by `examples/adapter.rs`; `docs/VERIFIER.md` is its data card, and says what it costs
//! on questions of another kind.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::vector::to_unit;

/// Which adapter stands behind the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterChoice {
    /// None: the encoder's own vectors.
    None,
    /// The one that ships, for questions to a shop.
    #[default]
    Shop,
}

impl std::fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Shop => "shop",
        })
    }
}

/// A linear map, as a lower triangle: similarities are those of any map with the same product with its transpose.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    dimension: usize,
    /// Row `i` has `i + 1` numbers.
    triangle: Vec<f32>,
}

impl Adapter {
    /// The one that ships, for vectors of 384 numbers.
    #[must_use]
    pub fn shop() -> Self {
        let (numbers, _) = include_bytes!("adapter.bin").as_chunks::<4>();
        let triangle: Vec<f32> = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        // n (n + 1) / 2 numbers.
        Self { dimension: ((8 * triangle.len() + 1).isqrt() - 1) / 2, triangle }
    }

    /// Numbers of the vectors that it maps.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Maps a vector of [`dimension`](Self::dimension) numbers and brings it to unit length.
    #[must_use]
    pub fn apply(&self, vector: &[f32]) -> Arc<[f32]> {
        let mut mapped = vec![0.0; self.dimension];
        let mut rest = self.triangle.as_slice();
        for (at, number) in vector.iter().enumerate() {
            let (row, below) = rest.split_at(at + 1);
            mapped.iter_mut().zip(row).for_each(|(sum, weight)| *sum += number * weight);
            rest = below;
        }
        to_unit(mapped).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::dot;

    #[test]
    fn maps_to_unit_length_and_moves_a_little() {
        let adapter = Adapter::shop();
        assert_eq!(adapter.dimension(), 384);
        let unit = |seed: f32| {
            let raw: Vec<f32> = (0..384).map(|at| (at as f32 * seed).sin()).collect();
            let length = dot(&raw, &raw).sqrt();
            raw.into_iter().map(|number| number / length).collect::<Vec<_>>()
        };
        let (a, b) = (unit(0.7), unit(1.3));
        let (mapped_a, mapped_b) = (adapter.apply(&a), adapter.apply(&b));
        assert!((dot(&mapped_a, &mapped_a) - 1.0).abs() < 1e-5);
        assert!((dot(&mapped_a, &mapped_b) - dot(&a, &b)).abs() < 0.5);
        assert!((dot(&adapter.apply(&a.iter().map(|x| 3.0 * x).collect::<Vec<_>>()), &mapped_a) - 1.0).abs() < 1e-5);
    }
}
