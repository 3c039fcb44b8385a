//! AVX-512: Intel's servers since 2017, with products of bf16 since 2020; AMD since 2022, with them.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32, _mm512_add_ps,
    _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
    _mm512_cvtph_ps, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::transmute;

use half::{bf16, f16};

use super::portable::Portable;
use super::{Kernel, LANES, Pair, Simd};

/// Proof that the processor has AVX-512 F, BW, DQ and VL, and with `BF16` its BF16 as well: made by [`Avx512::detect`]
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        (has && (!BF16 || is_x86_feature_detected!("avx512bf16"))).then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn compiled<K: Kernel>(avx512: Avx512<false>, kernel: K) -> K::Output {
            kernel.run(avx512)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn compiled_with_bf16<K: Kernel>(avx512: Avx512<true>, kernel: K) -> K::Output {
            kernel.run(avx512)
        }
        // SAFETY: `self` is the proof that the processor has these features.
        unsafe { if BF16 { compiled_with_bf16(Avx512(()), kernel) } else { compiled(Avx512(()), kernel) } }
    }

    /// The same without products of bf16.
    #[inline]
    pub(super) const fn without_bf16(self) -> Avx512<false> {
        Avx512(())
    }

    #[inline(always)]
    fn array(self, v: __m512) -> [f32; LANES] {
        let mut numbers = [0.0; LANES];
        self.store(v, &mut numbers);
        numbers
    }
}

// In all methods below: the features are there, because an `Avx512` exists, and those of `BF16` are used only with it. Loads and
// stores go through references to as many numbers as they touch, and need no alignment.
impl<const BF16: bool> Simd for Avx512<BF16> {
    /// With 24 sums of two panels, 27 of 32 registers are in use.
    const ROWS: usize = 12;
    const PANELS: usize = 2;
    type V = __m512;
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; 64 bytes are read from a reference to 64.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; 32 bytes are read from a reference to 32.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; 32 bytes are read from a reference to 32.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves the features; 64 bytes are written to a reference to 64.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn power_of_two(self, v: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(v));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000)))
        }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; 64 bytes are read from a reference to 64.
        unsafe { _mm512_castsi512_ps(_mm512_loadu_si512(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn splat_word(self, word: u32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(word.cast_signed())) }
    }
    #[inline(always)]
    fn narrow_pairs(self, v: __m512, to: &mut [Pair; LANES / 2]) {
        if !BF16 {
            return Portable.narrow_pairs(self.array(v), to);
        }
        // SAFETY: `BF16` proves the feature; 32 bytes are written to a reference to 32; both types are 32 plain bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: `self` proves the features, `BF16` its own; vectors of either kind are 64 plain bytes.
        unsafe {
            if BF16 {
                return _mm512_dpbf16_ps(sum, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b));
            }
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let first = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
            let second = |v| _mm512_castsi512_ps(_mm512_and_si512(v, upper));
            _mm512_fmadd_ps(second(a), second(b), _mm512_fmadd_ps(first(a), first(b), sum))
        }
    }
}
