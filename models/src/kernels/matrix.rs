//! Weight matrices, packed for products with few rows and with many.
//!
//! Contract: a product of up to 96 rows reads every weight from memory once. With more rows it does so once for each 96, unless the
//! panels of a task stay in a cache, because all blocks of rows that are multiplied with the same panels follow each other. What it
//! gives for a row depends on the others by rounding alone. Weights are kept as `f32`, `f16` or `bf16`, and multiplied and summed
//! in `f32`; or rows and weights are both bf16, to be multiplied two at a time and summed in `f32`.
//!
//! Layout: panels of [`WIDTH`] outputs; in a panel, for each input one line of `WIDTH` weights. The last panel is filled up
//! with zeros. While panels are multiplied with groups of rows, they come from the caches, and the next are asked for.
//! Converting 16-bit weights anew for each group costs nothing: it runs beside the sums.

use half::{bf16, f16};

use super::narrow::Narrow;
use super::pool::Pool;
use super::product::{Finish, Product, Start};
use super::shared::Shared;
use super::simd::{Element, Float, Instructions, LANES, Pair};
use crate::checkpoint::Precision;

/// Outputs of a panel.
pub(crate) const WIDTH: usize = LANES;
/// Pieces of work for each thread: enough that one that is held up does not hold up all.
const TASKS_OF_THREAD: usize = 4;
/// Rows of a piece of work: few enough that they stay in the cache of a processor while they are multiplied.
const ROWS_OF_TASK: usize = 96;

/// Numbers that begin at a cache line.
#[derive(Debug)]
pub(crate) struct Aligned<E> {
    numbers: Vec<E>,
    skip: usize,
    len: usize,
}

impl<E: Copy + Default> Aligned<E> {
    pub(crate) fn zeros(len: usize) -> Self {
        const LINE_BYTES: usize = 64;
        let numbers = vec![E::default(); len + LINE_BYTES / size_of::<E>()];
        let skip = numbers.as_ptr().align_offset(LINE_BYTES);
        Self { numbers, skip, len }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.len * size_of::<E>()
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
    Pairs(Aligned<Pair>),
}

/// How weights are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    Floats(Precision),
    /// In bf16, to be multiplied two at a time with rows that are rounded to bf16.
    Pairs,
}

impl From<Precision> for Format {
    fn from(precision: Precision) -> Self {
        Self::Floats(precision)
    }
}

/// A matrix `[outputs, inputs]`, packed.
#[derive(Debug)]
pub(crate) struct Matrix {
    inputs: usize,
    outputs: usize,
    weights: Weights,
}

impl Matrix {
    /// Packs the rows that `row` gives for each output.
    ///
    /// # Panics
    /// When a row has not `inputs` numbers.
    pub(crate) fn pack<'a>(
        format: impl Into<Format>,
        inputs: usize,
        outputs: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) -> Self {
        let pair = |numbers: &[f32]| Pair::new(numbers[0], numbers.get(1).copied().unwrap_or(0.0));
        let weights = match format.into() {
            Format::Floats(Precision::F32) => Weights::F32(floats(inputs, outputs, row)),
            Format::Floats(Precision::F16) => Weights::F16(floats(inputs, outputs, row)),
            Format::Floats(Precision::Bf16) => Weights::Bf16(floats(inputs, outputs, row)),
            Format::Pairs => Weights::Pairs(packed(inputs, 2, outputs, row, pair)),
        };
        Self { inputs, outputs, weights }
    }

    pub(crate) const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Memory of the weights, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weights {
            Weights::F32(weights) => weights.bytes(),
            Weights::F16(weights) => weights.bytes(),
            Weights::Bf16(weights) => weights.bytes(),
            Weights::Pairs(weights) => weights.bytes(),
        }
    }

    /// Reads back the weights of one output.
    ///
    /// # Shapes
    /// - `to`: `[inputs]`
    ///
    /// # Panics
    /// When they are not kept as floats.
    pub(crate) fn row(&self, output: usize, to: &mut [f32]) {
        match &self.weights {
            Weights::F32(weights) => unpack(weights.all(), self.inputs, output, to),
            Weights::F16(weights) => unpack(weights.all(), self.inputs, output, to),
            Weights::Bf16(weights) => unpack(weights.all(), self.inputs, output, to),
            Weights::Pairs(_) => panic!("rows of pairs are not read back"),
        }
    }

    /// Packs two matrices so that each panel of the one is followed by the same panel of the other.
    ///
    /// # Shapes
    /// - `gate`, `up`: `[width, inputs]`
    pub(crate) fn pack_gated(format: Format, inputs: usize, gate: &[f32], up: &[f32]) -> Self {
        let width = gate.len() / inputs;
        let zeros = vec![0.0; inputs];
        Self::pack(format, inputs, 2 * width.next_multiple_of(WIDTH), |output| {
            let (panel, column) = (output / WIDTH, output % WIDTH);
            let from = if panel % 2 == 0 { gate } else { up };
            from.chunks_exact(inputs).nth(panel / 2 * WIDTH + column).unwrap_or(&zeros)
        })
    }

    /// `to = finish(start + rows · weightsᵀ)`, with a place for the rows as they are narrowed. With a matrix of
    /// [`Matrix::pack_gated`] and [`Finish::Gated`] it is `silu(rows · gateᵀ) · (rows · upᵀ)`, the SwiGLU of Shazeer 2020,
    /// <https://arxiv.org/abs/2002.05202>.
    ///
    /// # Shapes
    /// - `rows`: `[rows, inputs]`
    /// - `to`: `[rows, outputs]`, of a gated product half of them
    pub(crate) fn product(
        &self,
        pool: &mut Pool,
        set: Instructions,
        narrow: &mut Narrow,
        rows: &[f32],
        (start, finish): (Start<'_>, Finish),
        to: &mut [f32],
    ) {
        let count = rows.len() / self.inputs;
        assert_eq!(rows.len(), count * self.inputs, "whole rows");
        let width = if matches!(finish, Finish::Gated) { to.len() / count.max(1) } else { self.outputs };
        assert_eq!(to.len(), count * width, "an output for each row");
        assert!(
            width.next_multiple_of(WIDTH) * finish.panels() == self.outputs.next_multiple_of(WIDTH),
            "gated outputs"
        );
        if let Start::Bias(bias) | Start::ThereAndBias(bias) = start {
            assert_eq!(bias.len(), width, "a bias for each output");
        }
        if count == 0 {
            return;
        }
        let shape = Shape { count, inputs: self.inputs, width, start, finish };
        match &self.weights {
            Weights::F32(weights) => shape.spread(pool, set, rows, weights.all(), to),
            Weights::F16(weights) => shape.spread(pool, set, rows, weights.all(), to),
            Weights::Bf16(weights) => shape.spread(pool, set, rows, weights.all(), to),
            Weights::Pairs(weights) => {
                let pairs = narrow.pairs(pool, set, rows, self.inputs);
                Shape { inputs: self.inputs.div_ceil(2), ..shape }.spread(pool, set, pairs, weights.all(), to);
            }
        }
    }
}

/// What a product is like.
#[derive(Clone, Copy)]
struct Shape<'a> {
    count: usize,
    /// Inputs of a row, or words of them.
    inputs: usize,
    /// Outputs of a row.
    width: usize,
    start: Start<'a>,
    finish: Finish,
}

impl Shape<'_> {
    /// Shares blocks of rows and of panels out; those of the same panels follow each other.
    fn spread<E: Element>(self, pool: &mut Pool, set: Instructions, rows: &[E::Input], weights: &[E], to: &mut [f32]) {
        let Self { count, inputs, width, start, finish } = self;
        let panels = width.div_ceil(WIDTH);
        // An even number, because some sets take two at once.
        let of_task = panels.div_ceil(pool.threads() * TASKS_OF_THREAD).next_multiple_of(2);
        let blocks = count.div_ceil(ROWS_OF_TASK);
        let to = Shared::new(to);
        pool.run(panels.div_ceil(of_task) * blocks, &|task, _| {
            let (part, block) = (task / blocks, task % blocks);
            let panels = part * of_task..panels.min((part + 1) * of_task);
            let block = block * ROWS_OF_TASK..count.min((block + 1) * ROWS_OF_TASK);
            let lines = weights.as_chunks::<LANES>().0;
            set.run(Product { rows, inputs, width, block, panels, lines, start, finish, to });
        });
    }
}

fn floats<'a, E: Float>(inputs: usize, outputs: usize, row: impl Fn(usize) -> &'a [f32]) -> Aligned<E> {
    packed(inputs, 1, outputs, row, |numbers| E::narrow(numbers[0]))
}

/// Packs rows; `word` makes a weight of an output's `together` numbers, or fewer at the end.
fn packed<'a, E: Element>(
    inputs: usize,
    together: usize,
    outputs: usize,
    row: impl Fn(usize) -> &'a [f32],
    word: impl Fn(&[f32]) -> E,
) -> Aligned<E> {
    let (panels, words) = (outputs.div_ceil(WIDTH), inputs.div_ceil(together));
    let mut weights = Aligned::zeros(panels * words * WIDTH);
    for output in 0..outputs {
        let numbers = row(output);
        assert_eq!(numbers.len(), inputs, "weights of output {output}");
        let panel = &mut weights.all_mut()[output / WIDTH * words * WIDTH..];
        for (line, numbers) in panel.chunks_exact_mut(WIDTH).zip(numbers.chunks(together)) {
            line[output % WIDTH] = word(numbers);
        }
    }
    weights
}

fn unpack<E: Float>(weights: &[E], inputs: usize, output: usize, to: &mut [f32]) {
    let panel = &weights[output / WIDTH * inputs * WIDTH..];
    for (line, number) in panel.chunks_exact(WIDTH).zip(to) {
        *number = line[output % WIDTH].wide();
    }
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
