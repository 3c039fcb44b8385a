//! Attention over keys and values that lie in blocks, and the memory that these blocks are in.
//!
//! Contract: [`Memory`] is allocated once. What [`Memory::attend`] gives for a token depends on its query and on the keys and
//! values up to its own place alone, but for rounding: how many rows there are decides how sums are grouped. Query heads that share a key head are rows of one product, so keys are read once
//! for all of them. Scores are as long as the context: 4 bytes for each place, of six rows on each thread.
//!
//! Layout: for each layer and key head, blocks of keys `[tokens / 16][head_size][16]`, so that 16 scores are made at a time,
//! and blocks of values `[head_size / 16][tokens][16]`. Both are filled up to multiples of 16.
//!
//! Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>; Kwon et al. 2023, <https://arxiv.org/abs/2309.06180>.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use super::matrix::Aligned;
use super::pool::Pool;
use super::rows::exponentials;
use super::shared::Shared;
use super::simd::{Float, Instructions, Kernel, LANES, Simd};
use super::tile::{Ahead, Line, groups, tile};
use crate::checkpoint::Precision;
use crate::decoder::Slice;
use crate::error::ModelError;

/// Keys that are scored at a time, and numbers of a value that are summed at a time.
const WIDTH: usize = LANES;
/// Most rows whose sums fit the registers.
const ROWS: usize = 6;
/// Tokens of one piece of work.
const TOKENS_OF_TASK: usize = 16;
/// Fewer rows than this are stored by the caller's thread alone.
const SHARED_ROWS_MIN: usize = 32;

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Heads of keys and values; a divisor of `heads`.
    pub(crate) kv_heads: usize,
    /// Numbers of a head.
    pub(crate) head_size: usize,
}

impl HeadShape {
    /// Numbers of a row of queries.
    pub(crate) const fn queries(&self) -> usize {
        self.heads * self.head_size
    }

    /// Numbers of a row of keys, and of one of values.
    pub(crate) const fn keys(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// Numbers of a row of queries, keys and values.
    pub(crate) const fn all(&self) -> usize {
        self.queries() + 2 * self.keys()
    }

    /// Bytes of a block of `block_tokens` tokens in `layers` layers, what they are filled up with included.
    pub(crate) const fn block_bytes(&self, precision: Precision, layers: usize, block_tokens: usize) -> u64 {
        let of_head = self.key_block(block_tokens).saturating_add(self.value_block(block_tokens));
        (of_head as u64).saturating_mul((self.kv_heads * layers) as u64).saturating_mul(precision.bytes())
    }

    /// Numbers of a block of keys of one head.
    const fn key_block(&self, block_tokens: usize) -> usize {
        block_tokens.div_ceil(WIDTH).saturating_mul(WIDTH * self.head_size)
    }

    /// Numbers of a block of values of one head.
    const fn value_block(&self, block_tokens: usize) -> usize {
        block_tokens.saturating_mul(self.head_size.next_multiple_of(WIDTH))
    }
}

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct Memory {
    shape: HeadShape,
    blocks: usize,
    block_tokens: usize,
    layers: Layers,
    /// Scores, for each thread.
    scores: Vec<Mutex<Vec<f32>>>,
    tasks: Vec<Task>,
}

#[derive(Debug)]
enum Layers {
    F32(Vec<Layer<f32>>),
    F16(Vec<Layer<f16>>),
    Bf16(Vec<Layer<bf16>>),
}

/// For each key head a plane of blocks.
#[derive(Debug)]
struct Layer<E> {
    keys: Aligned<E>,
    values: Aligned<E>,
}

/// One head of keys, and some tokens of a slice.
#[derive(Clone, Copy, Debug)]
struct Task {
    slice: usize,
    head: usize,
    /// The first token's number in its slice, and how many.
    first: usize,
    count: usize,
    /// The row of the first token.
    row: usize,
}

/// Which rows attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// One for each token of each slice, in order.
    All,
    /// One for each slice whose logits are wanted: its last token.
    Wanted,
}

impl Memory {
    /// Allocates `layers` layers, of `blocks` blocks of `block_tokens` tokens.
    ///
    /// # Errors
    /// [`ModelError::Step`] when the system does not give so many bytes.
    pub(crate) fn new(
        precision: Precision,
        shape: HeadShape,
        layers: usize,
        blocks: usize,
        block_tokens: usize,
        threads: usize,
    ) -> Result<Self, ModelError> {
        promised(shape.block_bytes(precision, layers, block_tokens).saturating_mul(blocks as u64))?;
        let mut memory = Self {
            shape,
            blocks,
            block_tokens,
            layers: Layers::F32(Vec::new()),
            scores: (0..threads).map(|_| Mutex::new(Vec::new())).collect(),
            tasks: Vec::new(),
        };
        memory.layers = match precision {
            Precision::F32 => Layers::F32(memory.empty(layers)),
            Precision::F16 => Layers::F16(memory.empty(layers)),
            Precision::Bf16 => Layers::Bf16(memory.empty(layers)),
        };
        Ok(memory)
    }

    fn empty<E: Float>(&self, layers: usize) -> Vec<Layer<E>> {
        let planes = self.shape.kv_heads * self.blocks;
        let (keys, values) = (planes * self.key_block(), planes * self.value_block());
        (0..layers).map(|_| Layer { keys: Aligned::zeros(keys), values: Aligned::zeros(values) }).collect()
    }

    const fn key_block(&self) -> usize {
        self.shape.key_block(self.block_tokens)
    }

    const fn value_block(&self) -> usize {
        self.shape.value_block(self.block_tokens)
    }

    /// Keeps the keys and values of all rows.
    ///
    /// # Shapes
    /// - `rows`: `[tokens of all slices, queries + keys + values]`
    ///
    /// # Panics
    /// When a slice has a block that there is not, or too few.
    pub(crate) fn store(&mut self, pool: &mut Pool, layer: usize, slices: &[Slice<'_>], rows: &[f32]) {
        let (key_plane, value_plane) = (self.blocks * self.key_block(), self.blocks * self.value_block());
        let place = Store { shape: self.shape, block_tokens: self.block_tokens, slices, rows };
        match &mut self.layers {
            Layers::F32(layers) => place.all(pool, &mut layers[layer], key_plane, value_plane),
            Layers::F16(layers) => place.all(pool, &mut layers[layer], key_plane, value_plane),
            Layers::Bf16(layers) => place.all(pool, &mut layers[layer], key_plane, value_plane),
        }
    }

    /// What each row's queries find up to its own place.
    ///
    /// # Shapes
    /// - `rows`: `[asking, queries + keys + values]`, of which the queries are read
    /// - `to`: `[asking, queries]`
    ///
    /// # Panics
    /// When a slice has a block that there is not, or too few.
    #[expect(clippy::too_many_arguments, reason = "what attention is made of")]
    pub(crate) fn attend(
        &mut self,
        pool: &mut Pool,
        set: Instructions,
        layer: usize,
        slices: &[Slice<'_>],
        asking: Asking,
        rows: &[f32],
        to: &mut [f32],
    ) {
        let count = self.plan(slices, asking);
        assert_eq!((rows.len(), to.len()), (count * self.shape.all(), count * self.shape.queries()), "rows of queries");
        let to = Shared::new(to);
        pool.run(self.tasks.len(), &|task, thread| {
            let task = self.tasks[task];
            let mut scores = self.scores[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let common = Attend { memory: self, slice: &slices[task.slice], task, rows, to };
            match &self.layers {
                Layers::F32(layers) => set.run(Typed { common, layer: &layers[layer], scores: &mut scores }),
                Layers::F16(layers) => set.run(Typed { common, layer: &layers[layer], scores: &mut scores }),
                Layers::Bf16(layers) => set.run(Typed { common, layer: &layers[layer], scores: &mut scores }),
            }
        });
    }

    /// Plans the tasks, of which no two have a row and a head in common; gives the number of rows.
    fn plan(&mut self, slices: &[Slice<'_>], asking: Asking) -> usize {
        self.tasks.clear();
        let mut row = 0;
        for (index, slice) in slices.iter().enumerate() {
            let length = slice.tokens.len();
            let tokens = match asking {
                Asking::All => 0..length,
                Asking::Wanted => length - usize::from(slice.wants_logits)..length,
            };
            for first in tokens.clone().step_by(TOKENS_OF_TASK) {
                let count = TOKENS_OF_TASK.min(tokens.end - first);
                let task = |head| Task { slice: index, head, first, count, row };
                self.tasks.extend((0..self.shape.kv_heads).map(task));
                row += count;
            }
        }
        row
    }
}

/// Asks the system for all bytes at once and gives them back: what it refuses is an error here, where the allocations that
/// follow would end the process. Nothing is written, so memory that no sequence has used yet is not taken.
fn promised(bytes: u64) -> Result<(), ModelError> {
    let mut probe = Vec::<u8>::new();
    let given = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    // Without this, compilers leave out an allocation that nobody reads, and say that it succeeded.
    std::hint::black_box(&probe);
    if given {
        return Ok(());
    }
    Err(ModelError::Step { reason: format!("the system does not give {bytes} bytes of memory for keys and values") })
}

/// What is stored.
struct Store<'a> {
    shape: HeadShape,
    block_tokens: usize,
    slices: &'a [Slice<'a>],
    rows: &'a [f32],
}

impl Store<'_> {
    fn all<E: Float>(&self, pool: &mut Pool, layer: &mut Layer<E>, key_plane: usize, value_plane: usize) {
        let (keys, values) = (layer.keys.all_mut(), layer.values.all_mut());
        if self.rows.len() < SHARED_ROWS_MIN * self.shape.all() {
            for head in 0..self.shape.kv_heads {
                let keys = &mut keys[head * key_plane..][..key_plane];
                self.head(head, keys, &mut values[head * value_plane..][..value_plane]);
            }
            return;
        }
        let (keys, values) = (Shared::new(keys), Shared::new(values));
        pool.run(self.shape.kv_heads, &|head, _| {
            // SAFETY: each head has a plane of its own, and each task a head.
            let (keys, values) = unsafe {
                (keys.slice_mut(head * key_plane, key_plane), values.slice_mut(head * value_plane, value_plane))
            };
            self.head(head, keys, values);
        });
    }

    fn head<E: Float>(&self, head: usize, keys: &mut [E], values: &mut [E]) {
        let (size, tokens) = (self.shape.head_size, self.block_tokens);
        let (key_block, value_block) = (self.shape.key_block(tokens), self.shape.value_block(tokens));
        let positions = self.slices.iter().flat_map(|slice| {
            (slice.position..slice.position + slice.tokens.len()).map(|position| (slice.blocks, position))
        });
        for ((blocks, position), row) in positions.zip(self.rows.chunks_exact(self.shape.all())) {
            let (block, slot) = (blocks[position / tokens] as usize, position % tokens);
            let from = self.shape.queries() + head * size;
            let (key, value) = (&row[from..][..size], &row[from + self.shape.keys()..][..size]);
            let panel = &mut keys[block * key_block + slot / WIDTH * size * WIDTH..][..size * WIDTH];
            for (line, number) in panel.chunks_exact_mut(WIDTH).zip(key) {
                line[slot % WIDTH] = E::narrow(*number);
            }
            let panels = values[block * value_block..][..value_block].chunks_exact_mut(tokens * WIDTH);
            for (panel, numbers) in panels.zip(value.chunks(WIDTH)) {
                for (to, number) in panel[slot * WIDTH..].iter_mut().zip(numbers) {
                    *to = E::narrow(*number);
                }
            }
        }
    }
}

/// What a task needs.
struct Attend<'a> {
    memory: &'a Memory,
    slice: &'a Slice<'a>,
    task: Task,
    rows: &'a [f32],
    to: Shared<'a, f32>,
}

struct Typed<'a, E> {
    common: Attend<'a>,
    layer: &'a Layer<E>,
    scores: &'a mut Vec<f32>,
}

impl<E: Float> Kernel for Typed<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { common, layer, scores } = self;
        let shape = &common.memory.shape;
        for (first, count) in groups(common.task.count * (shape.heads / shape.kv_heads), ROWS) {
            match count {
                1 => common.group::<S, E, 1, 4>(simd, layer, scores, first),
                2 => common.group::<S, E, 2, 2>(simd, layer, scores, first),
                3 => common.group::<S, E, 3, 2>(simd, layer, scores, first),
                4 => common.group::<S, E, 4, 1>(simd, layer, scores, first),
                5 => common.group::<S, E, 5, 1>(simd, layer, scores, first),
                _ => common.group::<S, E, ROWS, 1>(simd, layer, scores, first),
            }
        }
    }
}

impl Attend<'_> {
    /// `M` rows of one head of keys: a row is a token and one of the query heads that share the head.
    #[inline(always)]
    fn group<S: Simd, E: Float, const M: usize, const U: usize>(
        &self,
        simd: S,
        layer: &Layer<E>,
        scores: &mut Vec<f32>,
        first: usize,
    ) {
        let (shape, task) = (&self.memory.shape, &self.task);
        let (size, shared) = (shape.head_size, shape.heads / shape.kv_heads);
        let token = |m| (first + m) / shared;
        let head = |m| task.head * shared + (first + m) % shared;
        let seen = |m| self.slice.position + task.first + token(m) + 1;
        let longest = seen(M - 1);
        // The last block's scores may reach beyond its tokens.
        let stride = longest.next_multiple_of(self.memory.block_tokens) + WIDTH;
        if scores.len() < M * stride {
            scores.resize(ROWS * stride, 0.0);
        }
        let mut queries: [&[f32]; M] = [&[]; M];
        for (m, query) in queries.iter_mut().enumerate() {
            *query = &self.rows[(task.row + token(m)) * shape.all() + head(m) * size..][..size];
        }
        self.score::<S, E, M, U>(simd, layer, queries, scores, stride, longest);
        let mut shares: [&[f32]; M] = [&[]; M];
        let mut wholes = [0.0; M];
        for (m, row) in scores.chunks_exact_mut(stride).take(M).enumerate() {
            row[seen(m)..longest].fill(0.0);
            wholes[m] = exponentials(simd, &mut row[..seen(m)], 1.0 / (size as f32).sqrt());
        }
        for (share, row) in shares.iter_mut().zip(scores.chunks_exact(stride)) {
            *share = row;
        }
        for panel in 0..size.div_ceil(WIDTH) {
            let columns = panel * WIDTH..size.min((panel + 1) * WIDTH);
            let sums = self.sum::<S, E, M, U>(simd, layer, shares, panel, longest);
            for m in 0..M {
                let at = (task.row + token(m)) * shape.queries() + head(m) * size + columns.start;
                // SAFETY: this row and head belong to this task alone.
                let to = unsafe { self.to.slice_mut(at, columns.len()) };
                let mut numbers = [0.0; WIDTH];
                simd.store(simd.mul(sums[m], simd.splat(1.0 / wholes[m])), &mut numbers);
                to.copy_from_slice(&numbers[..columns.len()]);
            }
        }
    }

    /// The products of the queries with the keys.
    #[inline(always)]
    fn score<S: Simd, E: Float, const M: usize, const U: usize>(
        &self,
        simd: S,
        layer: &Layer<E>,
        queries: [&[f32]; M],
        scores: &mut [f32],
        stride: usize,
        longest: usize,
    ) {
        let (memory, tokens) = (self.memory, self.memory.block_tokens);
        for (number, lines) in self.blocks(layer.keys.all(), memory.key_block(), longest).enumerate() {
            for (panel, lines) in lines.chunks_exact(memory.shape.head_size).enumerate() {
                if number * tokens + panel * WIDTH >= longest {
                    break;
                }
                let sums = tile::<S, E, M, 1, U>(simd, queries, [lines], Ahead::NONE, [[simd.zero(); 1]; M]);
                for m in 0..M {
                    let to = &mut scores[m * stride + number * tokens + panel * WIDTH..];
                    if let Some(to) = to.first_chunk_mut() {
                        simd.store(sums[m][0], to);
                    }
                }
            }
        }
    }

    /// One panel of the values, weighted with the shares.
    #[inline(always)]
    fn sum<S: Simd, E: Float, const M: usize, const U: usize>(
        &self,
        simd: S,
        layer: &Layer<E>,
        shares: [&[f32]; M],
        panel: usize,
        longest: usize,
    ) -> [S::V; M] {
        let (memory, tokens) = (self.memory, self.memory.block_tokens);
        let mut sums = [[simd.zero(); 1]; M];
        for (number, lines) in self.blocks(layer.values.all(), memory.value_block(), longest).enumerate() {
            let places = tokens.min(longest - number * tokens);
            let mut rows: [&[f32]; M] = [&[]; M];
            for m in 0..M {
                rows[m] = &shares[m][number * tokens..][..places];
            }
            sums = tile::<S, E, M, 1, U>(simd, rows, [&lines[panel * tokens..][..places]], Ahead::NONE, sums);
        }
        sums.map(|[sum]| sum)
    }

    /// The sequence's blocks that hold its first `longest` places, of this task's head.
    #[inline(always)]
    fn blocks<'b, E: Float>(
        &'b self,
        plane: &'b [E],
        block_numbers: usize,
        longest: usize,
    ) -> impl Iterator<Item = &'b [Line<E>]> {
        let memory = self.memory;
        let plane = &plane[self.task.head * memory.blocks * block_numbers..][..memory.blocks * block_numbers];
        let blocks: Range<usize> = 0..longest.div_ceil(memory.block_tokens);
        self.slice.blocks[blocks]
            .iter()
            .map(move |&block| plane[block as usize * block_numbers..][..block_numbers].as_chunks::<LANES>().0)
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
