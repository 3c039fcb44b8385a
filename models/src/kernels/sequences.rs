//! Attention within whole sequences: every token sees all tokens of its own, before and after it.
//!
//! Contract: sequences lie one after the other without anything between them, so nothing is computed for padding. What a
//! token gets depends on its own sequence alone. A thread keeps the keys, values and some rows of scores of one head of one
//! sequence at a time: memory for them grows with the longest sequence, never with the batch.
//!
//! Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>.

use std::array::from_fn;
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::product::{read, write};
use super::rows::exponentials;
use super::shared::Shared;
use super::simd::{Instructions, Kernel, LANES, ROWS_MAX, Simd};
use super::tile::{Ahead, Line, Sums, Tiles, groups};

/// Pieces of work for each thread.
const TASKS_OF_THREAD: usize = 8;

/// Attention of some heads, and what threads need for it.
#[derive(Debug)]
pub(crate) struct Sequences {
    heads: usize,
    head_size: usize,
    /// For each thread.
    desks: Vec<Mutex<Desk>>,
}

/// One head of one sequence, laid out for products.
#[derive(Debug, Default)]
struct Desk {
    /// `[tokens / 16][head_size][16]`.
    keys: Vec<f32>,
    /// `[head_size / 16][tokens][16]`.
    values: Vec<f32>,
    /// `[rows][tokens]`, each row filled up to whole vectors.
    scores: Vec<f32>,
}

impl Sequences {
    pub(crate) fn new(heads: usize, head_size: usize, threads: usize) -> Self {
        Self { heads, head_size, desks: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// What each token finds in its sequence.
    ///
    /// # Shapes
    /// - `starts`: where each sequence begins, and where the last ends
    /// - `rows`: `[tokens, queries + keys + values]`
    /// - `to`: `[tokens, queries]`
    ///
    /// # Panics
    /// When there are not so many rows.
    pub(crate) fn attend(&self, pool: &mut Pool, set: Instructions, starts: &[usize], rows: &[f32], to: &mut [f32]) {
        let width = self.heads * self.head_size;
        let tokens = starts.last().copied().unwrap_or(0);
        assert_eq!((rows.len(), to.len()), (tokens * 3 * width, tokens * width), "rows of all tokens");
        assert!(starts.is_sorted(), "sequences one after the other");
        let pieces = starts.len().saturating_sub(1) * self.heads;
        let of_task = pieces.div_ceil(pool.threads() * TASKS_OF_THREAD).max(1);
        let to = Shared::new(to);
        pool.run(pieces.div_ceil(of_task), &|task, thread| {
            let mut desk = self.desks[thread].lock().unwrap_or_else(PoisonError::into_inner);
            for piece in task * of_task..pieces.min((task + 1) * of_task) {
                let (sequence, head) = (piece / self.heads, piece % self.heads);
                let (first, end) = (starts[sequence], starts[sequence + 1]);
                let rows = &rows[first * 3 * width..end * 3 * width];
                set.run(Head { rows, width, size: self.head_size, head, first, to, desk: &mut desk });
            }
        });
    }
}

/// One head of one sequence.
struct Head<'a> {
    /// Of the sequence.
    rows: &'a [f32],
    /// Numbers of a row of queries.
    width: usize,
    /// Numbers of a head.
    size: usize,
    head: usize,
    /// The sequence's first token.
    first: usize,
    to: Shared<'a, f32>,
    desk: &'a mut Desk,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let tokens = self.rows.len() / (3 * self.width);
        let stride = tokens.next_multiple_of(LANES);
        self.lay_out(simd, tokens);
        self.desk.scores.resize(S::ROWS * stride, 0.0);
        for (first, count) in groups(tokens, S::ROWS) {
            self.score(simd, first, count, stride);
            let mut wholes = [0.0; ROWS_MAX];
            for (scores, whole) in self.desk.scores.chunks_exact_mut(stride).zip(&mut wholes[..count]) {
                // Nothing is seen behind the last token.
                scores[tokens..].fill(f32::NEG_INFINITY);
                *whole = exponentials(simd, scores, 1.0 / (self.size as f32).sqrt());
            }
            self.sum(simd, first, &wholes[..count], stride);
        }
    }
}

impl Head<'_> {
    #[inline(always)]
    fn lay_out<S: Simd>(&mut self, simd: S, tokens: usize) {
        let (size, filled) = (self.size, self.size.next_multiple_of(LANES));
        let part = |row: usize, part: usize| &self.rows[(row * 3 + part) * self.width + self.head * size..][..size];
        let Desk { keys, values, .. } = &mut *self.desk;
        keys.resize(tokens.next_multiple_of(LANES) * size, 0.0);
        values.resize(tokens * filled, 0.0);
        for (panel, lines) in keys.as_chunks_mut::<LANES>().0.chunks_exact_mut(size).enumerate() {
            // A few tokens at a time, because a number alone is stored as slowly as they are together.
            for first in (0..LANES).step_by(4) {
                // In the places behind the last token is its key once more.
                let tokens: [&[f32]; 4] = from_fn(|n| part((panel * LANES + first + n).min(tokens - 1), 1));
                for (number, line) in lines.iter_mut().enumerate() {
                    line[first..first + 4].copy_from_slice(&tokens.map(|token| token[number]));
                }
            }
        }
        for (panel, lines) in values.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens).enumerate() {
            for (token, line) in lines.iter_mut().enumerate() {
                let numbers = &part(token, 2)[panel * LANES..];
                simd.store(read(simd, &numbers[..LANES.min(numbers.len())]), line);
            }
        }
    }

    /// The products of some queries with the keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, first: usize, count: usize, stride: usize) {
        let rows = &self.rows[first * 3 * self.width + self.head * self.size..];
        let queries = Rows { rows, stride: 3 * self.width, count };
        let Desk { keys, scores, .. } = &mut *self.desk;
        let mut sums = [[[0.0; LANES]; 2]; ROWS_MAX];
        for (pair, panels) in keys.as_chunks().0.chunks(2 * self.size).enumerate() {
            let count = queries.times(simd, panels, self.size, &mut sums);
            for (sums, scores) in sums.iter().zip(scores.chunks_exact_mut(stride).take(queries.count)) {
                let scores = &mut scores.as_chunks_mut().0[2 * pair..][..count];
                scores.iter_mut().zip(sums).for_each(|(scores, sums)| *scores = *sums);
            }
        }
    }

    /// The values, weighted with the shares.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, first: usize, wholes: &[f32], stride: usize) {
        let Desk { values, scores, .. } = &*self.desk;
        let tokens = self.rows.len() / (3 * self.width);
        let shares = Rows { rows: scores, stride, count: wholes.len() };
        let mut sums = [[[0.0; LANES]; 2]; ROWS_MAX];
        for (pair, panels) in values.as_chunks().0.chunks(2 * tokens).enumerate() {
            let count = shares.times(simd, panels, tokens, &mut sums);
            for (m, (sums, whole)) in sums.iter().zip(wholes).enumerate() {
                for (panel, sum) in (2 * pair..).zip(&sums[..count]) {
                    let columns = LANES.min(self.size - panel * LANES);
                    let at = (self.first + first + m) * self.width + self.head * self.size + panel * LANES;
                    // SAFETY: the numbers of this head and sequence are written by the task that has both alone.
                    let to = unsafe { self.to.slice_mut(at, columns) };
                    write(simd, simd.mul(simd.load(sum), simd.splat(1.0 / whole)), to);
                }
            }
        }
    }
}

/// Some rows that are multiplied with panels.
struct Rows<'a> {
    rows: &'a [f32],
    stride: usize,
    count: usize,
}

impl Rows<'_> {
    /// The sums of one panel or two of so many lines each; gives how many there are.
    #[inline(always)]
    fn times<S: Simd>(&self, simd: S, panels: &[Line<f32>], lines: usize, sums: &mut Sums<2>) -> usize {
        let &Self { rows, stride, count } = self;
        let (first, second) = panels.split_at(lines);
        if S::PANELS == 2 && !second.is_empty() {
            Tiles { rows, stride, count, panels: [first, second], ahead: Ahead::NONE }.run(simd, sums);
            return 2;
        }
        let mut of_panel = [[[0.0; LANES]; 1]; ROWS_MAX];
        for (n, panel) in panels.chunks_exact(lines).enumerate() {
            Tiles { rows, stride, count, panels: [panel], ahead: Ahead::NONE }.run(simd, &mut of_panel);
            for (sums, [sum]) in sums.iter_mut().zip(&of_panel) {
                sums[n] = *sum;
            }
        }
        panels.len() / lines
    }
}

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod tests;
