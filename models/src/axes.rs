//! The principal axes of the encoder's vectors, for tests that can be decided on a few numbers of a vector.
//!
//! Made by `examples/axes.rs` from 4,864 questions of the Bitext customer-support set (CDLA-Sharing-1.0), 1,500 of Banking77
//! (CC-BY-4.0) and 1,500 prompts of RouteLLM (Apache-2.0). They are a turn of the space, in 16 bits each, and hold no text.

/// How many axes there are: all of the encoder's space.
pub const AXES: usize = 384;
/// The whole number that stands for 1.
const ONE: f32 = 32_767.0;

/// The axes, the most telling first.
///
/// # Shapes
/// `[AXES * 384]`, one axis after the other; orthonormal up to 0.001.
#[must_use]
pub fn principal_axes() -> Vec<f32> {
    let (numbers, _) = include_bytes!("axes.bin").as_chunks::<2>();
    numbers.iter().map(|&bytes| f32::from(i16::from_le_bytes(bytes)) / ONE).collect()
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
                assert!((dot(axis, other) - expected).abs() < 1e-3, "axes {at} and {other_at}");
            }
        }
    }
}
