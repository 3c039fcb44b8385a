//! Weight matrices, packed for products with few rows and with many.
//!
//! Contract: a product reads every weight from memory once, however many rows there are; what it gives for a row depends on
//! the others by rounding alone. Weights are kept as `f32`, `f16` or `bf16`; sums are always in `f32`.
//!
//! Layout: panels of [`WIDTH`] outputs; in a panel, for each input one line of `WIDTH` weights. The last panel is filled up
//! with zeros. While a panel is multiplied with groups of rows, it comes from the caches, and the next is asked for.
//! Converting 16-bit weights anew for each group costs nothing: it runs beside the sums.

use std::ops::Range;

use half::{bf16, f16};

use super::pool::Pool;
use super::shared::Shared;
use super::simd::{Element, Instructions, Kernel, LANES, Simd};
use super::tile::{Ahead, Line, groups, tile};
use crate::checkpoint::Precision;

/// Vectors of a line.
const VECTORS: usize = 2;
/// Outputs of a panel: with six rows, 15 of AVX2's 16 registers are in use; with all 16, compilers spill.
pub(crate) const WIDTH: usize = VECTORS * LANES;
/// Most rows whose sums fit the registers.
const ROWS: usize = 6;
/// Pieces of work for each thread: enough that one that is held up does not hold up all.
const TASKS_OF_THREAD: usize = 4;

/// Numbers that begin at a cache line.
#[derive(Debug)]
pub(crate) struct Aligned<E> {
    numbers: Vec<E>,
    skip: usize,
    len: usize,
}

impl<E: Element> Aligned<E> {
    pub(crate) fn zeros(len: usize) -> Self {
        const LINE_BYTES: usize = 64;
        let numbers = vec![E::default(); len + LINE_BYTES / size_of::<E>()];
        let skip = numbers.as_ptr().align_offset(LINE_BYTES);
        Self { numbers, skip, len }
    }

    pub(crate) fn all(&self) -> &[E] {
        &self.numbers[self.skip..self.skip + self.len]
    }

    pub(crate) fn all_mut(&mut self) -> &mut [E] {
        &mut self.numbers[self.skip..self.skip + self.len]
    }
}

#[derive(Debug)]
enum Weights {
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    Bf16(Aligned<bf16>),
}

/// A matrix `[outputs, inputs]`, packed.
#[derive(Debug)]
pub(crate) struct Matrix {
    inputs: usize,
    outputs: usize,
    weights: Weights,
}

/// What a product's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// One number for each output.
    Bias(&'a [f32]),
    /// What is there: the product is added.
    There,
    /// Nothing, and each sum goes through the gate beside it.
    Gated,
}

impl Matrix {
    /// Packs the rows that `row` gives for each output.
    ///
    /// # Panics
    /// When a row has not `inputs` numbers.
    pub(crate) fn pack<'a>(
        precision: Precision,
        inputs: usize,
        outputs: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) -> Self {
        let weights = match precision {
            Precision::F32 => Weights::F32(packed(inputs, outputs, row)),
            Precision::F16 => Weights::F16(packed(inputs, outputs, row)),
            Precision::Bf16 => Weights::Bf16(packed(inputs, outputs, row)),
        };
        Self { inputs, outputs, weights }
    }

    pub(crate) const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Memory of the weights, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let (numbers, bytes) = match &self.weights {
            Weights::F32(weights) => (weights.len, 4),
            Weights::F16(weights) => (weights.len, 2),
            Weights::Bf16(weights) => (weights.len, 2),
        };
        numbers * bytes
    }

    /// Reads back the weights of one output.
    ///
    /// # Shapes
    /// - `to`: `[inputs]`
    pub(crate) fn row(&self, output: usize, to: &mut [f32]) {
        match &self.weights {
            Weights::F32(weights) => unpack(weights.all(), self.inputs, output, to),
            Weights::F16(weights) => unpack(weights.all(), self.inputs, output, to),
            Weights::Bf16(weights) => unpack(weights.all(), self.inputs, output, to),
        }
    }

    /// Packs two matrices so that each panel of the one is followed by the same panel of the other.
    ///
    /// # Shapes
    /// - `gate`, `up`: `[width, inputs]`
    pub(crate) fn pack_gated(precision: Precision, inputs: usize, gate: &[f32], up: &[f32]) -> Self {
        let width = gate.len() / inputs;
        let zeros = vec![0.0; inputs];
        Self::pack(precision, inputs, 2 * width.next_multiple_of(WIDTH), |output| {
            let (panel, column) = (output / WIDTH, output % WIDTH);
            let from = if panel % 2 == 0 { gate } else { up };
            from.chunks_exact(inputs).nth(panel / 2 * WIDTH + column).unwrap_or(&zeros)
        })
    }

    /// `to = start + rows · weightsᵀ`.
    ///
    /// # Shapes
    /// - `rows`: `[rows, inputs]`
    /// - `to`: `[rows, outputs]`
    pub(crate) fn product(&self, pool: &mut Pool, set: Instructions, rows: &[f32], start: Start<'_>, to: &mut [f32]) {
        if let Start::Bias(bias) = start {
            assert_eq!(bias.len(), self.outputs, "a bias for each output");
        }
        self.spread(pool, set, rows, start, self.outputs, to);
    }

    /// With a matrix of [`Matrix::pack_gated`]: `to = silu(rows · gateᵀ) · (rows · upᵀ)`, the SwiGLU of Shazeer 2020,
    /// <https://arxiv.org/abs/2002.05202>.
    ///
    /// # Shapes
    /// - `rows`: `[rows, inputs]`
    /// - `to`: `[rows, width]`
    pub(crate) fn product_gated(&self, pool: &mut Pool, set: Instructions, rows: &[f32], to: &mut [f32]) {
        let width = to.len() / (rows.len() / self.inputs).max(1);
        assert_eq!(self.outputs, 2 * width.next_multiple_of(WIDTH), "gated outputs");
        self.spread(pool, set, rows, Start::Gated, width, to);
    }

    /// Shares the panels out.
    fn spread(&self, pool: &mut Pool, set: Instructions, rows: &[f32], start: Start<'_>, width: usize, to: &mut [f32]) {
        let count = rows.len() / self.inputs;
        assert_eq!(rows.len(), count * self.inputs, "whole rows");
        assert_eq!(to.len(), count * width, "an output for each row");
        let panels = width.div_ceil(WIDTH);
        let of_task = panels.div_ceil(pool.threads() * TASKS_OF_THREAD);
        let to = Shared::new(to);
        pool.run(panels.div_ceil(of_task), &|task, _| {
            let panels = task * of_task..panels.min((task + 1) * of_task);
            let common = Product { rows, inputs: self.inputs, width, panels, start, to };
            match &self.weights {
                Weights::F32(weights) => set.run(Typed { common, weights: weights.all() }),
                Weights::F16(weights) => set.run(Typed { common, weights: weights.all() }),
                Weights::Bf16(weights) => set.run(Typed { common, weights: weights.all() }),
            }
        });
    }
}

fn packed<'a, E: Element>(inputs: usize, outputs: usize, row: impl Fn(usize) -> &'a [f32]) -> Aligned<E> {
    let panels = outputs.div_ceil(WIDTH);
    let mut weights = Aligned::zeros(panels * inputs * WIDTH);
    for output in 0..outputs {
        let numbers = row(output);
        assert_eq!(numbers.len(), inputs, "weights of output {output}");
        let panel = &mut weights.all_mut()[output / WIDTH * inputs * WIDTH..];
        for (line, number) in panel.chunks_exact_mut(WIDTH).zip(numbers) {
            line[output % WIDTH] = E::narrow(*number);
        }
    }
    weights
}

fn unpack<E: Element>(weights: &[E], inputs: usize, output: usize, to: &mut [f32]) {
    let panel = &weights[output / WIDTH * inputs * WIDTH..];
    for (line, number) in panel.chunks_exact(WIDTH).zip(to) {
        *number = line[output % WIDTH].wide();
    }
}

/// A product with some of the panels; of a gated one, with some of the pairs of panels.
struct Product<'a> {
    rows: &'a [f32],
    inputs: usize,
    /// Outputs of a row.
    width: usize,
    panels: Range<usize>,
    start: Start<'a>,
    to: Shared<'a, f32>,
}

struct Typed<'a, E> {
    common: Product<'a>,
    weights: &'a [E],
}

impl<E: Element> Kernel for Typed<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { common, weights } = self;
        let lines: &[Line<E, VECTORS>] = weights.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
        // Lines that belong together: those of a panel, or of a gate's panel and the one beside it.
        let together = if matches!(common.start, Start::Gated) { 2 * common.inputs } else { common.inputs };
        for panel in common.panels.clone() {
            let (lines, ahead) = lines[panel * together..].split_at(together);
            let ahead = &ahead[..together.min(ahead.len())];
            let groups = groups(common.rows.len() / common.inputs, ROWS);
            let passes = groups.len();
            for (group, (first, count)) in groups.enumerate() {
                let ahead = Ahead::share(ahead, group, passes);
                match count {
                    1 => common.group::<S, E, 1, 4>(simd, panel, first, lines, ahead),
                    2 => common.group::<S, E, 2, 2>(simd, panel, first, lines, ahead),
                    3 => common.group::<S, E, 3, 2>(simd, panel, first, lines, ahead),
                    4 => common.group::<S, E, 4, 1>(simd, panel, first, lines, ahead),
                    5 => common.group::<S, E, 5, 1>(simd, panel, first, lines, ahead),
                    _ => common.group::<S, E, ROWS, 1>(simd, panel, first, lines, ahead),
                }
            }
        }
    }
}

impl Product<'_> {
    /// `M` rows, times the lines of a panel or of a pair.
    #[inline(always)]
    fn group<S: Simd, E: Element, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        first: usize,
        lines: &[Line<E, VECTORS>],
        ahead: Ahead<'_, E, VECTORS>,
    ) {
        let mut rows: [&[f32]; M] = [&[]; M];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &self.rows[(first + m) * self.inputs..][..self.inputs];
        }
        let columns = WIDTH.min(self.width - panel * WIDTH);
        // SAFETY: the columns of a panel are touched by the task that has it alone, and by that row by row.
        let output = |m| unsafe { self.to.slice_mut((first + m) * self.width + panel * WIDTH, columns) };
        let mut sums = [[simd.zero(); VECTORS]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            match self.start {
                Start::Zero | Start::Gated => {}
                Start::Bias(bias) => *sums = read(simd, &bias[panel * WIDTH..][..columns]),
                Start::There => *sums = read(simd, output(m)),
            }
        }
        let passes = lines.len() / self.inputs;
        let mut up = [[simd.zero(); VECTORS]; M];
        for (pass, lines) in lines.chunks_exact(self.inputs).enumerate() {
            let ahead = Ahead { lines: Ahead::share(ahead.lines, pass, passes).lines, step: ahead.step };
            let result = tile::<S, E, M, VECTORS, U>(simd, rows, lines, ahead, if pass == 0 { sums } else { up });
            *(if pass == 0 { &mut sums } else { &mut up }) = result;
        }
        if passes > 1 {
            for m in 0..M {
                for n in 0..VECTORS {
                    sums[m][n] = simd.mul(silu(simd, sums[m][n]), up[m][n]);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            write(simd, sums, output(m));
        }
    }
}

/// `x / (1 + e⁻ˣ)`.
#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::V) -> S::V {
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(simd.sub(simd.zero(), x))))
}

/// Reads up to [`WIDTH`] numbers, and zeros for what is missing.
#[inline(always)]
fn read<S: Simd>(simd: S, from: &[f32]) -> [S::V; VECTORS] {
    let mut copy = [0.0; WIDTH];
    let whole = if let Some(whole) = from.first_chunk::<WIDTH>() {
        whole
    } else {
        copy[..from.len()].copy_from_slice(from);
        &copy
    };
    let mut vectors = [simd.zero(); VECTORS];
    for (vector, numbers) in vectors.iter_mut().zip(whole.as_chunks::<LANES>().0) {
        *vector = simd.load(numbers);
    }
    vectors
}

/// Writes as many numbers as there is place for.
#[inline(always)]
fn write<S: Simd>(simd: S, vectors: [S::V; VECTORS], to: &mut [f32]) {
    if let Some(whole) = to.first_chunk_mut::<WIDTH>() {
        for (vector, numbers) in vectors.into_iter().zip(whole.as_chunks_mut::<LANES>().0) {
            simd.store(vector, numbers);
        }
        return;
    }
    let mut copy = [0.0; WIDTH];
    for (vector, numbers) in vectors.into_iter().zip(copy.as_chunks_mut::<LANES>().0) {
        simd.store(vector, numbers);
    }
    to.copy_from_slice(&copy[..to.len()]);
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
