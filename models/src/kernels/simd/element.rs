//! What weights are kept as, and how they are multiplied.
//!
//! Weights of 32 and 16 bits are multiplied with floats. [`Pair`]s are multiplied two at a time, with rows that are narrowed as
//! well.

use half::{bf16, f16};

use super::{LANES, Simd};

/// A kind of weight.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// Whether it is a pair, see [`Kernel::PAIRS`](super::Kernel::PAIRS).
    const PAIRS: bool;
    /// What a row has for such a weight.
    type Input: Copy + Send + Sync;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V;
    fn splat<S: Simd>(simd: S, x: Self::Input) -> S::V;
    /// `x * weights + sum`.
    fn mul_add<S: Simd>(simd: S, x: S::V, weights: S::V, sum: S::V) -> S::V;
}

/// A weight that is one float, though perhaps kept in fewer bits.
pub(crate) trait Float: Copy + Default + Send + Sync + 'static {
    fn narrow(x: f32) -> Self;
    fn wide(self) -> f32;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V;
}

impl<F: Float> Element for F {
    const PAIRS: bool = false;
    type Input = f32;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        <F as Float>::load(simd, from)
    }
    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: f32) -> S::V {
        simd.splat(x)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, x: S::V, weights: S::V, sum: S::V) -> S::V {
        simd.mul_add(x, weights, sum)
    }
}

impl Float for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load(from)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load_f16(from)
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load_bf16(from)
    }
}

/// Two bf16 in a word, the first in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pair(pub(crate) u32);

impl Pair {
    #[inline(always)]
    pub(crate) fn new(first: f32, second: f32) -> Self {
        let half = |x| u32::from(bf16::from_f32(x).to_bits());
        Self(half(first) | half(second) << 16)
    }
}

impl Element for Pair {
    const PAIRS: bool = true;
    type Input = Self;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        // SAFETY: a `Pair` is a `u32`, so as many of them are too.
        simd.load_words(unsafe { &*std::ptr::from_ref(from).cast() })
    }
    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::V {
        simd.splat_word(x.0)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, x: S::V, weights: S::V, sum: S::V) -> S::V {
        simd.dot_pairs(x, weights, sum)
    }
}
