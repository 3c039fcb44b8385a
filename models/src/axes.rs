//! The principal axes of the encoder's vectors, for tests that can be decided on a few numbers of a vector.
//!
//! Made by `examples/axes.rs` from 6,000 questions of the Bitext customer-support set (CDLA-Sharing-1.0) and Banking77
//! (CC-BY-4.0). They are 128 directions of a space of 384 and hold no text.

/// How many axes there are.
pub const AXES: usize = 128;

/// The axes, the most telling first.
///
/// # Shapes
/// `[AXES * 384]`, one axis after the other; orthonormal but for rounding.
#[must_use]
pub fn principal_axes() -> Vec<f32> {
    let (numbers, _) = include_bytes!("axes.bin").as_chunks::<4>();
    numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot;

    #[test]
    fn the_axes_are_orthonormal() {
        let axes = principal_axes();
        assert_eq!(axes.len(), AXES * 384);
        for (at, axis) in axes.chunks_exact(384).enumerate() {
            for (other_at, other) in axes.chunks_exact(384).enumerate() {
                let expected = if at == other_at { 1.0 } else { 0.0 };
                assert!((dot(axis, other) - expected).abs() < 1e-5, "axes {at} and {other_at}");
            }
        }
    }
}
