//! Attention within whole sequences: every token sees all tokens of its own, before and after it.
//!
//! Contract: sequences lie one after the other without anything between them, so nothing is computed for padding. What a
//! token gets depends on its own sequence alone. A thread keeps the keys, values and some rows of scores of one head of one
//! sequence at a time: memory for them grows with the longest sequence, never with the batch.
//!
//! Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>.

use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::product::write;
use super::rows::exponentials;
use super::shared::Shared;
use super::simd::{Instructions, Kernel, LANES, ROWS_MAX, Simd};
use super::tile::{Ahead, Tiles, groups};

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
        self.lay_out(tokens);
        self.desk.scores.resize(S::ROWS * stride, 0.0);
        for (first, count) in groups(tokens, S::ROWS) {
            self.score(simd, first, count, stride);
            let mut wholes = [0.0; ROWS_MAX];
            for (scores, whole) in self.desk.scores.chunks_exact_mut(stride).zip(&mut wholes[..count]) {
                *whole = exponentials(simd, &mut scores[..tokens], 1.0 / (self.size as f32).sqrt());
            }
            self.sum(simd, first, &wholes[..count], stride);
        }
    }
}

impl Head<'_> {
    #[inline(always)]
    fn lay_out(&mut self, tokens: usize) {
        let (size, filled) = (self.size, self.size.next_multiple_of(LANES));
        let part = |row: usize, part: usize| &self.rows[(row * 3 + part) * self.width + self.head * size..][..size];
        let Desk { keys, values, .. } = &mut *self.desk;
        keys.resize(tokens.next_multiple_of(LANES) * size, 0.0);
        values.resize(tokens * filled, 0.0);
        for token in 0..tokens {
            let panel = &mut keys[token / LANES * size * LANES..][..size * LANES];
            for (line, number) in panel.as_chunks_mut::<LANES>().0.iter_mut().zip(part(token, 1)) {
                line[token % LANES] = *number;
            }
            for (panel, numbers) in values.chunks_exact_mut(tokens * LANES).zip(part(token, 2).chunks(LANES)) {
                panel[token * LANES..][..numbers.len()].copy_from_slice(numbers);
            }
        }
    }

    /// The products of some queries with the keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, first: usize, count: usize, stride: usize) {
        let rows = &self.rows[first * 3 * self.width + self.head * self.size..];
        let mut sums = [[[0.0; LANES]; 1]; ROWS_MAX];
        let Desk { keys, scores, .. } = &mut *self.desk;
        for (panel, lines) in keys.as_chunks().0.chunks_exact(self.size).enumerate() {
            let tiles = Tiles { rows, stride: 3 * self.width, count, panels: [lines], ahead: Ahead::NONE };
            tiles.run(simd, &mut sums);
            for ([sum], scores) in sums[..count].iter().zip(scores.chunks_exact_mut(stride)) {
                scores[panel * LANES..][..LANES].copy_from_slice(sum);
            }
        }
    }

    /// The values, weighted with the shares.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, first: usize, wholes: &[f32], stride: usize) {
        let mut sums = [[[0.0; LANES]; 1]; ROWS_MAX];
        let Desk { values, scores, .. } = &*self.desk;
        let tokens = self.rows.len() / (3 * self.width);
        for (panel, lines) in values.as_chunks().0.chunks_exact(tokens).enumerate() {
            let tiles = Tiles { rows: scores, stride, count: wholes.len(), panels: [lines], ahead: Ahead::NONE };
            tiles.run(simd, &mut sums);
            let columns = LANES.min(self.size - panel * LANES);
            for (m, ([sum], whole)) in sums.iter().zip(wholes).enumerate() {
                let at = (self.first + first + m) * self.width + self.head * self.size + panel * LANES;
                // SAFETY: the numbers of this head and sequence are written by the task that has both alone.
                let to = unsafe { self.to.slice_mut(at, columns) };
                write(simd, simd.mul(simd.load(sum), simd.splat(1.0 / whole)), to);
            }
        }
    }
}

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod tests;
