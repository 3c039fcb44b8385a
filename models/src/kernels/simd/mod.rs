//! Sixteen floats at a time: one trait that the kernels are written against, and what runs it.
//!
//! Contract: a kernel is written once, generic over [`Simd`], and compiled for every set of instructions. Which is used is
//! chosen at run time by [`Instructions`]. Results differ between sets only by rounding: some fuse products and sums.
//!
//! All of a kernel must be inlined into the function that [`Instructions::run`] compiles for its set; hence the
//! `inline(always)` on everything generic over [`Simd`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
mod portable;

use std::array::from_fn;
use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

pub(crate) use self::element::{Element, Float, Pair};
use self::portable::Portable;
use crate::error::ModelError;

/// Floats of a vector.
pub(crate) const LANES: usize = 16;
/// Most rows whose sums stay in registers with any set.
pub(crate) const ROWS_MAX: usize = 12;
/// 1.5 · 2²³: added to a float of moderate size, it leaves the nearest integer in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// Operations on vectors of [`LANES`] floats.
pub(crate) trait Simd: Copy {
    /// Most rows of a product whose sums stay in registers, beside [`Simd::PANELS`] vectors of weights: [`ROWS_MAX`] at most.
    const ROWS: usize;
    /// Vectors of weights that each number of a row is multiplied with at once: 1 or 2.
    const PANELS: usize;
    /// A vector.
    type V: Copy;
    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each two numbers; `b` where one is no number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each two numbers; `b` where one is no number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// 2ⁿ, for `v` = n + [`ROUNDER`] with n in -126..=127.
    fn power_of_two(self, v: Self::V) -> Self::V;

    /// The bits of words that hold two numbers each.
    fn load_words(self, from: &[u32; LANES]) -> Self::V;
    fn splat_word(self, word: u32) -> Self::V;
    /// Rounds each two neighbours to bf16, ties to even.
    fn narrow_pairs(self, v: Self::V, to: &mut [Pair; LANES / 2]);
    /// `sum` plus the products of two numbers of each word: bf16, summed as floats.
    fn dot_pairs(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V;
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The sum of a vector's numbers.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        self.fold(v, |a, b| a + b)
    }

    /// The largest of a vector's numbers.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        // Unlike `f32::max`, this is one instruction.
        self.fold(v, |a, b| if a > b { a } else { b })
    }

    /// Halves of halves, so that a sum's rounding does not depend on the set of instructions.
    #[inline(always)]
    fn fold(self, v: Self::V, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut x = [0.0; LANES];
        self.store(v, &mut x);
        let x: [f32; 8] = from_fn(|i| f(x[i], x[i + 8]));
        let x: [f32; 4] = from_fn(|i| f(x[i], x[i + 4]));
        f(f(x[0], x[2]), f(x[1], x[3]))
    }

    /// eˣ, for x in -87..=88 and clamped to that, to 3e-7 of itself; no number for what is none.
    ///
    /// Splits x into n·ln 2 + r and takes a polynomial of r (Cephes' `expf`).
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.min(self.splat(88.0), self.max(self.splat(-87.0), x));
        let rounded = self.mul_add(x, self.splat(std::f32::consts::LOG2_E), self.splat(ROUNDER));
        let n = self.sub(rounded, self.splat(ROUNDER));
        // ln 2 in two parts, the first exact in products with n.
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.mul_add(self.mul(p, r), r, self.add(r, self.splat(1.0)));
        self.mul(p, self.power_of_two(rounded))
    }

    /// x·Φ(x), the GELU of Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>, to 3e-7 of the larger of 1 and |x|.
    ///
    /// With erf as a quotient of polynomials; the numbers are those of Eigen, <https://eigen.tuxfamily.org>. Beyond 4 it is 1.
    #[inline(always)]
    fn gelu(self, x: Self::V) -> Self::V {
        let z = self.mul(x, self.splat(std::f32::consts::FRAC_1_SQRT_2));
        let z = self.min(self.splat(4.0), self.max(self.splat(-4.0), z));
        let square = self.mul(z, z);
        let mut above = self.splat(-2.726_142_3e-10);
        for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
            above = self.mul_add(above, square, self.splat(c));
        }
        let mut below = self.splat(-1.456_607_2e-5);
        for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
            below = self.mul_add(below, square, self.splat(c));
        }
        let half = self.mul(x, self.splat(0.5));
        self.mul_add(half, self.div(self.mul(z, above), below), half)
    }
}

/// Work that is generic over the set of instructions. Its `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// Whether it has products of pairs, or else needs no instructions for them.
    const PAIRS: bool = false;
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The set of instructions that kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512<true>),
}

impl Instructions {
    /// What every processor has: plain code that the compiler vectorises for the target's baseline.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The best that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All sets that this processor has, the best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            avx512::Avx512::<true>::detect().map(Set::Avx512Bf16),
            avx512::Avx512::<false>::detect().map(Set::Avx512),
            avx2::Avx2::detect().map(Set::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let special = [None];
        special.into_iter().flatten().chain([Set::Portable]).map(Self).collect()
    }

    /// Its name in logs and settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) => "avx512-bf16",
        }
    }

    /// Whether products of bf16 have instructions of their own, without which they are slower than those of floats.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self.name() == "avx512-bf16"
    }

    /// Keeps one thread busy for some milliseconds with products and sums in registers: what the processor can at most. Gives the
    /// number of operations, a fused one counted as two.
    #[must_use]
    pub fn multiply_and_add(self) -> u64 {
        self.run(Busy)
    }

    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(avx2) => avx2.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(avx512) => avx512.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(avx512) => {
                if K::PAIRS {
                    avx512.run(kernel)
                } else {
                    avx512.without_bf16().run(kernel)
                }
            }
        }
    }
}

/// Products and sums that need nothing from memory.
struct Busy;

impl Kernel for Busy {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u64 {
        const ROUNDS: u64 = 2_000_000;
        // As many sums as a product has, because fewer would wait for each other.
        let mut sums = [simd.zero(); 12];
        let (x, shrink) = (simd.splat(1.0), simd.splat(std::hint::black_box(0.5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, shrink, x);
            }
        }
        std::hint::black_box(sums.map(|sum| simd.sum(sum)));
        ROUNDS * 2 * 12 * LANES as u64
    }
}

/// Which set of instructions shall be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstructionChoice {
    /// The best that the processor has.
    #[default]
    Auto,
    /// AVX-512 with products of bf16 (AVX512-BF16).
    Avx512Bf16,
    /// AVX-512.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Plain code.
    Portable,
}

impl InstructionChoice {
    /// The set, if this processor has it.
    ///
    /// # Errors
    /// [`ModelError::Instructions`] when it has not.
    pub fn resolve(self) -> Result<Instructions, ModelError> {
        let available = Instructions::available();
        let wanted = self.to_string();
        let found = available.iter().find(|set| self == Self::Auto || set.name() == wanted);
        found.copied().ok_or_else(|| ModelError::Instructions {
            wanted,
            available: available.iter().map(|set| set.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Display for InstructionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}
