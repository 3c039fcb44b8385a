//! Axes that questions and chunks are projected onto, tile by tile, for the [cascade](super::rows).

use std::sync::Arc;

use turnflow_models::AXES;
use turnflow_state::dot;

/// Axes of a tile.
pub(super) const TILE: usize = 64;
/// Tiles of a vector.
pub(super) const TILES: usize = AXES / TILE;
const _: () = assert!(AXES.is_multiple_of(TILE), "the tiles hold all the axes that there are");
/// More than rounding can amount to in the square of a length.
const SQUARE_SLACK: f64 = 1e-6;

/// Orthonormal axes that vectors are projected onto; without any, the first coordinates serve.
#[derive(Clone, Debug, Default)]
pub struct Axes {
    /// `[AXES * dimension]`, one axis after the other; empty for the first coordinates.
    pub(super) rows: Arc<[f32]>,
    dimension: usize,
}

impl Axes {
    /// Axes for vectors of a dimension, made orthonormal.
    ///
    /// # Shapes
    /// `rows`: `[AXES * dimension]`, one axis after the other.
    ///
    /// # Panics
    /// When the number of values is another.
    #[must_use]
    pub fn new(rows: &[f32], dimension: usize) -> Self {
        assert_eq!(rows.len(), AXES * dimension, "{AXES} axes of {dimension} numbers");
        let mut axes: Vec<Vec<f64>> = Vec::with_capacity(AXES);
        for row in rows.chunks_exact(dimension) {
            let mut axis: Vec<f64> = row.iter().map(|&number| f64::from(number)).collect();
            // Gram–Schmidt; an axis that depends on the others becomes zero, which bounds nothing and breaks nothing.
            for other in &axes {
                let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
                axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
            let scale = if length > 1e-3 { 1.0 / length } else { 0.0 };
            axis.iter_mut().for_each(|a| *a *= scale);
            axes.push(axis);
        }
        #[expect(clippy::cast_possible_truncation, reason = "numbers between -1 and 1")]
        let rows = axes.iter().flatten().map(|&number| number as f32).collect();
        Self { rows, dimension }
    }

    pub(super) fn project(&self, vector: &[f32]) -> Projection {
        let mut along = [0.0; AXES];
        if self.dimension == vector.len() && !self.rows.is_empty() {
            for (along, axis) in along.iter_mut().zip(self.rows.chunks_exact(self.dimension)) {
                *along = dot(axis, vector);
            }
        } else {
            let shared = vector.len().min(AXES);
            along[..shared].copy_from_slice(&vector[..shared]);
        }
        let square = |numbers: &[f32]| numbers.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>();
        let mut left = square(vector);
        let rest = std::array::from_fn(|tile| {
            left -= square(&along[tile * TILE..][..TILE]);
            #[expect(clippy::cast_possible_truncation, reason = "a length")]
            let rest = (left.max(0.0) + SQUARE_SLACK).sqrt() as f32;
            rest
        });
        Projection { along, rest }
    }
}

/// A vector along the axes, and the length of what each tile leaves over for those behind it.
pub(super) struct Projection {
    pub(super) along: [f32; AXES],
    pub(super) rest: [f32; TILES],
}

impl Projection {
    /// Each tile, and what is left over behind it.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (&[f32; TILE], f32)> {
        self.along.as_chunks().0.iter().zip(self.rest)
    }
}

/// Numbers in whole steps.
pub(super) fn in_steps<N>(numbers: &[f32; TILE], step: f32, to_number: impl Fn(f32) -> N) -> [N; TILE] {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    numbers.map(|number| to_number((number * inverse).round()))
}

/// The greatest number, whatever its sign.
pub(super) fn greatest(numbers: &[f32; TILE]) -> f32 {
    numbers.iter().fold(0.0, |most, number| most.max(number.abs()))
}
