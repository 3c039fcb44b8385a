//! A product of rows with packed panels: what each task of one computes.

use std::ops::Range;

use super::matrix::WIDTH;
use super::shared::Shared;
use super::simd::{Element, Kernel, ROWS_MAX, Simd};
use super::tile::{Ahead, Line, Tiles, groups};

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// One number for each output.
    Bias(&'a [f32]),
    /// What is there.
    There,
    /// What is there, and one number for each output.
    ThereAndBias(&'a [f32]),
}

/// What is done with the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Plain,
    /// The panels are pairs, and each sum of the second of a pair goes through the gate beside it.
    Gated,
    /// Each sum goes through the GELU.
    Gelu,
}

impl Finish {
    /// Panels of weights for each panel of outputs.
    pub(crate) const fn panels(self) -> usize {
        if matches!(self, Self::Gated) { 2 } else { 1 }
    }
}

/// A block of rows times some panels.
pub(crate) struct Product<'a, E: Element> {
    pub(crate) rows: &'a [E::Input],
    /// Inputs of a row.
    pub(crate) inputs: usize,
    /// Outputs of a row.
    pub(crate) width: usize,
    pub(crate) block: Range<usize>,
    /// Panels of outputs.
    pub(crate) panels: Range<usize>,
    /// All panels of weights.
    pub(crate) lines: &'a [Line<E>],
    pub(crate) start: Start<'a>,
    pub(crate) finish: Finish,
    pub(crate) to: Shared<'a, f32>,
}

impl<E: Element> Kernel for Product<'_, E> {
    const PAIRS: bool = E::PAIRS;
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if S::PANELS == 2 {
            self.side_by_side::<S, 2>(simd);
        } else {
            self.side_by_side::<S, 1>(simd);
        }
    }
}

impl<E: Element> Product<'_, E> {
    /// With `N` panels of weights at once, which are those of `N` panels of outputs, or of a gate and what goes through it.
    #[inline(always)]
    fn side_by_side<S: Simd, const N: usize>(&self, simd: S) {
        let (inputs, of_output) = (self.inputs, self.finish.panels());
        // Panels of outputs that are made at once.
        let step = (N / of_output).max(1);
        for panel in self.panels.clone().step_by(step) {
            let together = step.min(self.panels.end - panel) * of_output;
            let (lines, ahead) = self.lines[panel * of_output * inputs..].split_at(together * inputs);
            let ahead = &ahead[..lines.len().min(ahead.len())];
            let groups = groups(self.block.len(), S::ROWS);
            let passes = groups.len() * together.div_ceil(N);
            for (group, (first, count)) in groups.enumerate() {
                let first = self.block.start + first;
                // With fewer panels at a time than belong together, what goes through a gate comes after it.
                for part in 0..together.div_ceil(N) {
                    // In the place of a panel that there is not is the last one.
                    let at = |n: usize| (part * N + n).min(together - 1);
                    let mut panels = [lines; N];
                    for (n, panel) in panels.iter_mut().enumerate() {
                        *panel = &lines[at(n) * inputs..][..inputs];
                    }
                    let ahead = Ahead::share(ahead, N, group * together.div_ceil(N) + part, passes);
                    let rows = &self.rows[first * inputs..];
                    let mut sums = [[[0.0; WIDTH]; N]; ROWS_MAX];
                    Tiles { rows, stride: inputs, count, panels, ahead }.run(simd, &mut sums);
                    for (m, sums) in sums[..count].iter().enumerate() {
                        self.end(simd, first + m, panel, part, &sums[..N.min(together)]);
                    }
                }
            }
        }
    }

    /// Makes outputs of one row's sums, with one panel or several beside each other.
    #[inline(always)]
    fn end<S: Simd>(&self, simd: S, row: usize, panel: usize, part: usize, sums: &[[f32; WIDTH]]) {
        match (self.finish, sums) {
            (Finish::Gated, [gate, through]) => {
                let gate = silu(simd, simd.load(gate));
                write(simd, simd.mul(gate, simd.load(through)), self.output(row, panel));
            }
            (Finish::Gated, _) => {
                let to = self.output(row, panel);
                let sum = simd.load(&sums[0]);
                let product = if part == 0 { silu(simd, sum) } else { simd.mul(read(simd, to), sum) };
                write(simd, product, to);
            }
            (Finish::Plain | Finish::Gelu, _) => {
                for (panel, sum) in (panel..).zip(sums) {
                    let sum = self.started(simd, row, panel, simd.load(sum));
                    let sum = if self.finish == Finish::Gelu { simd.gelu(sum) } else { sum };
                    write(simd, sum, self.output(row, panel));
                }
            }
        }
    }

    /// A sum with what it is added to.
    #[inline(always)]
    fn started<S: Simd>(&self, simd: S, row: usize, panel: usize, mut sum: S::V) -> S::V {
        let column = panel * WIDTH;
        if let Start::Bias(bias) | Start::ThereAndBias(bias) = self.start {
            sum = simd.add(sum, read(simd, &bias[column..bias.len().min(column + WIDTH)]));
        }
        if let Start::There | Start::ThereAndBias(_) = self.start {
            sum = simd.add(sum, read(simd, self.output(row, panel)));
        }
        sum
    }

    /// A row's outputs of a panel.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the outputs are shared with other tasks, and apart from theirs")]
    fn output(&self, row: usize, panel: usize) -> &mut [f32] {
        let column = panel * WIDTH;
        // SAFETY: the columns of a panel and the rows of a block are touched by the task that has both alone, and by that one
        // after the other.
        unsafe { self.to.slice_mut(row * self.width + column, WIDTH.min(self.width - column)) }
    }
}

/// `x / (1 + e⁻ˣ)`.
#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::V) -> S::V {
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(simd.sub(simd.zero(), x))))
}

/// Reads up to [`WIDTH`] numbers, and zeros for what is missing.
#[inline(always)]
pub(crate) fn read<S: Simd>(simd: S, from: &[f32]) -> S::V {
    if let Some(whole) = from.first_chunk() {
        return simd.load(whole);
    }
    let mut copy = [0.0; WIDTH];
    copy[..from.len()].copy_from_slice(from);
    simd.load(&copy)
}

/// Writes as many numbers as there is place for, [`WIDTH`] at most.
#[inline(always)]
pub(crate) fn write<S: Simd>(simd: S, vector: S::V, to: &mut [f32]) {
    if let Some(whole) = to.first_chunk_mut() {
        simd.store(vector, whole);
        return;
    }
    let mut copy = [0.0; WIDTH];
    simd.store(vector, &mut copy);
    to.copy_from_slice(&copy[..to.len()]);
}
