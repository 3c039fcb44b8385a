//! Rows and weights of fewer bits, which are multiplied several at a time.
//!
//! *Pairs*: rows and weights are rounded to bf16 and multiplied two at a time; sums are in `f32`. *Quads*: rows and weights are
//! rounded to 255 steps, of each row and of each output apart, up to their largest number; four are multiplied at a time, and
//! summed as integers without any rounding. Both run with every set of instructions, but are faster than `f32` only
//! with those that are made for it.

use super::matrix::{Aligned, WIDTH, packed};
use super::pool::Pool;
use super::product::{Scaling, read};
use super::shared::Shared;
use super::simd::{Instructions, Kernel, LANES, Pair, Quad, Simd, ZERO_POINT};

/// Steps from zero to the largest number of a row or an output.
const STEPS: f32 = 127.0;

/// A place for rows, which is used again.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    pairs: Vec<Pair>,
    quads: Vec<Quad>,
    scales: Vec<f32>,
}

impl Narrow {
    /// Rows as bf16, filled up to whole words with zeros.
    ///
    /// # Shapes
    /// - `rows`: `[rows, width]`
    /// - output: `[rows, width / 2]`
    pub(crate) fn pairs(&mut self, pool: &mut Pool, set: Instructions, rows: &[f32], width: usize) -> &[Pair] {
        let (count, words) = (rows.len() / width, width.div_ceil(2));
        self.pairs.resize(count * words, Pair::default());
        let pairs = Shared::new(&mut self.pairs);
        pool.each_row(count, width, &|row| {
            // SAFETY: each row belongs to one task.
            let to = unsafe { pairs.slice_mut(row * words, words) };
            set.run(ToPairs { from: &rows[row * width..][..width], to });
        });
        &self.pairs
    }

    /// Rows as integers of 8 bits, filled up to whole words, and what one step of each is.
    ///
    /// # Shapes
    /// - `rows`: `[rows, width]`
    /// - output: `[rows, width / 4]` and `[rows]`
    pub(crate) fn quads(
        &mut self,
        pool: &mut Pool,
        set: Instructions,
        rows: &[f32],
        width: usize,
    ) -> (&[Quad], &[f32]) {
        let (count, words) = (rows.len() / width, width.div_ceil(4));
        self.quads.resize(count * words, Quad::default());
        self.scales.resize(count, 0.0);
        let (quads, scales) = (Shared::new(&mut self.quads), Shared::new(&mut self.scales));
        pool.each_row(count, width, &|row| {
            // SAFETY: each row belongs to one task.
            let (to, scale) = unsafe { (quads.slice_mut(row * words, words), scales.slice_mut(row, 1)) };
            scale[0] = set.run(ToQuads { from: &rows[row * width..][..width], to });
        });
        (&self.quads, &self.scales)
    }
}

/// Weights as integers.
#[derive(Debug)]
pub(crate) struct Quads {
    pub(crate) weights: Aligned<Quad>,
    /// What a step of each output is.
    scales: Vec<f32>,
    /// Takes back what [`ZERO_POINT`] adds to the sums of each output: the bits of integers.
    starts: Vec<f32>,
}

impl Quads {
    /// Packs the rows that `row` gives for each output.
    pub(crate) fn pack<'a>(inputs: usize, outputs: usize, row: impl Fn(usize) -> &'a [f32]) -> Self {
        let filled = outputs.next_multiple_of(WIDTH);
        let (mut scales, mut starts) = (vec![0.0; filled], vec![0.0; filled]);
        let integer = |scale: f32, x: f32| if scale > 0.0 { (x / scale).round_ties_even() as i8 } else { 0 };
        for output in 0..outputs {
            let numbers = row(output);
            let scale = numbers.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / STEPS;
            let sum: i32 = numbers.iter().map(|x| i32::from(integer(scale, *x))).sum();
            (scales[output], starts[output]) = (scale, f32::from_bits((-ZERO_POINT * sum).cast_unsigned()));
        }
        let weights = packed(inputs, 4, outputs, row, |output, numbers| {
            let mut bytes = [0; 4];
            for (byte, x) in bytes.iter_mut().zip(numbers) {
                *byte = integer(scales[output], *x).cast_unsigned();
            }
            Quad(u32::from_le_bytes(bytes))
        });
        Self { weights, scales, starts }
    }

    pub(crate) fn scaling<'a>(&'a self, rows: &'a [f32]) -> Scaling<'a> {
        Scaling { rows, outputs: &self.scales, starts: &self.starts }
    }
}

struct ToPairs<'a> {
    from: &'a [f32],
    to: &'a mut [Pair],
}

impl Kernel for ToPairs<'_> {
    const DOT: bool = true;
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (words, rest) = self.to.as_chunks_mut::<{ LANES / 2 }>();
        let (vectors, last) = self.from.as_chunks::<LANES>();
        for (to, vector) in words.iter_mut().zip(vectors) {
            simd.narrow_pairs(simd.load(vector), to);
        }
        let mut copy = [Pair::default(); LANES / 2];
        simd.narrow_pairs(read(simd, last), &mut copy);
        rest.copy_from_slice(&copy[..rest.len()]);
    }
}

struct ToQuads<'a> {
    from: &'a [f32],
    to: &'a mut [Quad],
}

impl Kernel for ToQuads<'_> {
    /// What one step is.
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (vectors, last) = self.from.as_chunks::<LANES>();
        let last = read(simd, last);
        let size = |v| simd.max(v, simd.sub(simd.zero(), v));
        let largest = vectors.iter().fold(size(last), |largest, v| simd.max(size(simd.load(v)), largest));
        let scale = simd.largest(largest) / STEPS;
        let steps = simd.splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        let (words, rest) = self.to.as_chunks_mut::<{ LANES / 4 }>();
        for (to, vector) in words.iter_mut().zip(vectors) {
            simd.narrow_quads(simd.mul(simd.load(vector), steps), to);
        }
        let mut copy = [Quad::default(); LANES / 4];
        simd.narrow_quads(simd.mul(last, steps), &mut copy);
        rest.copy_from_slice(&copy[..rest.len()]);
        scale
    }
}
