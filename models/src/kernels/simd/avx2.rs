//! AVX2, FMA and F16C: Intel since 2013, AMD since 2015. A vector is two registers.

use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use half::{bf16, f16};

use super::portable::Portable;
use super::{Kernel, LANES, Pair, Simd};

/// Floats of a register.
const HALF: usize = LANES / 2;

/// Proof that the processor has AVX2, FMA and F16C: made by [`Avx2::detect`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(avx2: Avx2, kernel: K) -> K::Output {
            kernel.run(avx2)
        }
        // SAFETY: `self` is the proof that the processor has these features.
        unsafe { compiled(self, kernel) }
    }

    /// The numbers of both registers, for what is not worth instructions of its own.
    #[inline(always)]
    fn array(self, v: [__m256; 2]) -> [f32; LANES] {
        let mut numbers = [0.0; LANES];
        self.store(v, &mut numbers);
        numbers
    }
}

/// The two halves of as many numbers as a vector has.
#[inline(always)]
fn halves<T>(from: &[T; LANES]) -> [&[T; HALF]; 2] {
    let [first, second] = from.as_chunks().0 else { unreachable!("a vector has two halves") };
    [first, second]
}

#[inline(always)]
fn zip(a: [__m256; 2], b: [__m256; 2], f: impl Fn(__m256, __m256) -> __m256) -> [__m256; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

// In all methods below: the features are there, because an `Avx2` exists. Loads and stores go through references to
// as many numbers as they touch, and need no alignment.
impl Simd for Avx2 {
    /// With twelve sums of two panels' halves, 15 of 16 registers are in use; with all 16, compilers spill.
    const ROWS: usize = 6;
    const PANELS: usize = 1;
    type V = [__m256; 2];
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        // SAFETY: `self` proves the features; 32 bytes are read from a reference to 32.
        halves(from).map(|half| unsafe { _mm256_loadu_ps(half.as_ptr()) })
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        // SAFETY: `self` proves the features; 16 bytes are read from a reference to 16.
        halves(from).map(|half| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(half.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        // SAFETY: `self` proves the features; 16 bytes are read from a reference to 16.
        halves(from).map(|half| unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(half.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        for (half, to) in v.into_iter().zip(to.as_chunks_mut::<HALF>().0) {
            // SAFETY: `self` proves the features; 32 bytes are written to a reference to 32.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), half) }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        zip(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn power_of_two(self, v: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        v.map(|v| unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(v));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
        })
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::V {
        // SAFETY: `self` proves the features; 32 bytes are read from a reference to 32.
        halves(from).map(|half| unsafe { _mm256_castsi256_ps(_mm256_loadu_si256(half.as_ptr().cast())) })
    }
    #[inline(always)]
    fn splat_word(self, word: u32) -> Self::V {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_castsi256_ps(_mm256_set1_epi32(word.cast_signed())); 2] }
    }
    #[inline(always)]
    fn narrow_pairs(self, v: Self::V, to: &mut [Pair; LANES / 2]) {
        Portable.narrow_pairs(self.array(v), to);
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: `self` proves the features.
        let first =
            |v: Self::V| v.map(|v| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v))) });
        // SAFETY: `self` proves the features.
        let second = |v: Self::V| {
            v.map(|v| unsafe {
                let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), upper))
            })
        };
        self.mul_add(second(a), second(b), self.mul_add(first(a), first(b), sum))
    }
}
