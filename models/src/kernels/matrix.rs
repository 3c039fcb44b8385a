//! Weight matrices, packed for products with few rows and with many.
//!
//! Contract: a product reads every weight from memory once, however many rows there are; what it gives for a row does not
//! depend on the others, but for rounding. Weights are kept as `f32`, `f16` or `bf16`; sums are always in `f32`.
//!
//! Layout: panels of [`WIDTH`] outputs; in a panel, for each input one line of `WIDTH` weights. The last panel is filled up
//! with zeros. A block of a panel that fits the first-level cache is multiplied with all rows before the next is read
//! (Goto and van de Geijn 2008, <https://doi.org/10.1145/1356052.1356053>).

use std::ops::Range;

use half::{bf16, f16};

use super::pool::Pool;
use super::shared::Shared;
use super::simd::{Element, Instructions, Kernel, LANES, Simd};
use super::tile::{Line, groups, tile};
use crate::checkpoint::Precision;

/// Vectors of a line.
const VECTORS: usize = 2;
/// Outputs of a panel: with six rows, 15 of AVX2's 16 registers are in use; with all 16, compilers spill.
pub(crate) const WIDTH: usize = VECTORS * LANES;
/// Most rows whose sums fit the registers.
const ROWS: usize = 6;
/// Most inputs of a block of a panel: 24 KiB in `f32`.
const BLOCK: usize = 384;
/// From so many rows on, a block is converted to `f32` once instead of once for each group of rows.
const WIDEN_ROWS: usize = 24;
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

    /// `to = start + rows · weightsᵀ`.
    ///
    /// # Shapes
    /// - `rows`: `[rows, inputs]`
    /// - `to`: `[rows, outputs]`
    pub(crate) fn product(&self, pool: &mut Pool, set: Instructions, rows: &[f32], start: Start<'_>, to: &mut [f32]) {
        self.spread(pool, set, rows, start, to, 1, &|_, _| {});
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

    /// With a matrix of [`Matrix::pack_gated`]: `to = silu(rows · gateᵀ) · (rows · upᵀ)`.
    ///
    /// # Shapes
    /// - `rows`: `[rows, inputs]`
    /// - `both`: `[rows, outputs]`, written in between
    /// - `to`: `[rows, width]`
    pub(crate) fn product_gated(
        &self,
        pool: &mut Pool,
        set: Instructions,
        rows: &[f32],
        both: &mut [f32],
        to: &mut [f32],
    ) {
        let count = rows.len() / self.inputs;
        let width = to.len() / count;
        let to = Shared::new(to);
        self.spread(pool, set, rows, Start::Zero, both, 2, &|both, panels| {
            let pairs = panels.start / 2..panels.end / 2;
            for row in 0..count {
                for pair in pairs.clone() {
                    let columns = WIDTH.min(width - pair * WIDTH);
                    // SAFETY: only the task of these panels touches their columns, and it is done with them.
                    let (sums, gated) = unsafe {
                        (
                            both.slice_mut(row * self.outputs + pair * 2 * WIDTH, 2 * WIDTH),
                            to.slice_mut(row * width + pair * WIDTH, columns),
                        )
                    };
                    let (gate, up) = sums.split_at(WIDTH);
                    set.run(Gate { gate, up, to: gated });
                }
            }
        });
    }

    /// Shares the panels out as tasks of whole multiples of `unit` panels, each followed by `after`.
    #[expect(clippy::too_many_arguments, reason = "what a product is made of")]
    fn spread(
        &self,
        pool: &mut Pool,
        set: Instructions,
        rows: &[f32],
        start: Start<'_>,
        to: &mut [f32],
        unit: usize,
        after: &(dyn Fn(&Shared<'_, f32>, Range<usize>) + Sync),
    ) {
        let count = rows.len() / self.inputs;
        assert_eq!(rows.len(), count * self.inputs, "whole rows");
        assert_eq!(to.len(), count * self.outputs, "an output for each row");
        if let Start::Bias(bias) = start {
            assert_eq!(bias.len(), self.outputs, "a bias for each output");
        }
        let units = self.outputs.div_ceil(WIDTH * unit);
        let of_task = units.div_ceil(pool.threads() * TASKS_OF_THREAD) * unit;
        let to = Shared::new(to);
        let panels = self.outputs.div_ceil(WIDTH);
        pool.run(panels.div_ceil(of_task), &|task, _| {
            let panels = task * of_task..panels.min((task + 1) * of_task);
            let common = Panels { rows, inputs: self.inputs, outputs: self.outputs, panels: panels.clone(), start, to };
            match &self.weights {
                Weights::F32(weights) => set.run(Typed { common, weights: weights.all() }),
                Weights::F16(weights) => set.run(Typed { common, weights: weights.all() }),
                Weights::Bf16(weights) => set.run(Typed { common, weights: weights.all() }),
            }
            after(&to, panels);
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

/// A product with some of the panels.
struct Panels<'a> {
    rows: &'a [f32],
    inputs: usize,
    outputs: usize,
    panels: Range<usize>,
    start: Start<'a>,
    to: Shared<'a, f32>,
}

struct Typed<'a, E> {
    common: Panels<'a>,
    weights: &'a [E],
}

impl<E: Element> Kernel for Typed<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { common, weights } = self;
        let lines: &[Line<E, VECTORS>] = weights.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
        let rows = common.rows.len() / common.inputs;
        // Rows that are all in registers at once need no block to stay in the cache.
        let block = if rows <= ROWS { common.inputs } else { BLOCK };
        let mut wide = [[[0.0; LANES]; VECTORS]; BLOCK];
        for panel in common.panels.clone() {
            for (first, inputs) in groups(common.inputs, block) {
                let (block, ahead) = lines[panel * common.inputs + first..].split_at(inputs);
                let place = Place { panel, first };
                let ahead = &ahead[..inputs.min(ahead.len())];
                if size_of::<E>() == size_of::<f32>() || rows < WIDEN_ROWS {
                    common.block(simd, place, block, ahead);
                    continue;
                }
                for (wide, line) in wide.iter_mut().zip(block) {
                    for n in 0..VECTORS {
                        simd.store(E::load(simd, &line[n]), &mut wide[n]);
                    }
                }
                common.block(simd, place, &wide[..inputs], ahead);
            }
        }
    }
}

/// Where a block is: its panel, and the first of its inputs.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    first: usize,
}

impl Panels<'_> {
    /// All rows, times one block.
    #[inline(always)]
    fn block<S: Simd, E: Element, A>(&self, simd: S, place: Place, lines: &[Line<E, VECTORS>], ahead: &[A]) {
        for (first, count) in groups(self.rows.len() / self.inputs, ROWS) {
            let ahead = if first == 0 { ahead } else { &[] };
            match count {
                1 => self.group::<S, E, A, 1, 4>(simd, place, lines, ahead, first),
                2 => self.group::<S, E, A, 2, 2>(simd, place, lines, ahead, first),
                3 => self.group::<S, E, A, 3, 2>(simd, place, lines, ahead, first),
                4 => self.group::<S, E, A, 4, 1>(simd, place, lines, ahead, first),
                5 => self.group::<S, E, A, 5, 1>(simd, place, lines, ahead, first),
                _ => self.group::<S, E, A, ROWS, 1>(simd, place, lines, ahead, first),
            }
        }
    }

    /// `M` rows, times one block.
    #[inline(always)]
    fn group<S: Simd, E: Element, A, const M: usize, const U: usize>(
        &self,
        simd: S,
        place: Place,
        lines: &[Line<E, VECTORS>],
        ahead: &[A],
        first: usize,
    ) {
        let mut rows: [&[f32]; M] = [&[]; M];
        for m in 0..M {
            rows[m] = &self.rows[(first + m) * self.inputs + place.first..][..lines.len()];
        }
        let columns = WIDTH.min(self.outputs - place.panel * WIDTH);
        // SAFETY: the columns of a panel are touched by the task that has it alone, and by that row by row.
        let output = |m| unsafe { self.to.slice_mut((first + m) * self.outputs + place.panel * WIDTH, columns) };
        let mut sums = [[simd.zero(); VECTORS]; M];
        for m in 0..M {
            match self.start {
                _ if place.first > 0 => sums[m] = read(simd, output(m)),
                Start::Zero => {}
                Start::Bias(bias) => sums[m] = read(simd, &bias[place.panel * WIDTH..][..columns]),
                Start::There => sums[m] = read(simd, output(m)),
            }
        }
        let sums = tile::<S, E, A, M, VECTORS, U>(simd, rows, lines, ahead, sums);
        for m in 0..M {
            write(simd, sums[m], output(m));
        }
    }
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

/// `to = silu(gate) · up`, the part of SwiGLU after its products (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gate, up) = (read(simd, self.gate), read(simd, self.up));
        let mut gated = gate;
        for n in 0..VECTORS {
            let below = simd.add(simd.splat(1.0), simd.exp(simd.sub(simd.zero(), gate[n])));
            gated[n] = simd.mul(simd.div(gate[n], below), up[n]);
        }
        write(simd, gated, self.to);
    }
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
