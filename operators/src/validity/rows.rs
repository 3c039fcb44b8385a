//! The questions of the cached answers, laid out for one test: which of them would a new chunk have been retrieved for?
//!
//! That is, for which rows `q` with a `k`-th score `s` is `q · c > s`? The test is exact, and decided for nearly all rows
//! on a fraction of their numbers. Rows and chunks are projected onto the same orthonormal axes, 64 of which make a
//! *tile*. A cascade goes from tile to tile and drops a row as soon as an upper bound of its product is not above its
//! score; what is left is decided by the same dot product that retrieval computes. Any axes keep the test exact; good
//! ones, the principal axes of what the encoder makes, drop most rows after one tile or two.
//!
//! *The bound.* Within the tiles that were looked at, a row is kept in bytes: `q = a·k + e`, where no number of `e` exceeds
//! half a step `a`, so that `q · c ≤ a (k · c + |c|₁ / 2)`. A chunk is kept in 16 bits, `c = b·m + f`, and `k · c` exceeds
//! `b (k · m)` by at most half a step `b` times `|k|₁ ≤ 127 · 64`. Between the tiles that were not looked at is at most the
//! product of the lengths that they leave over, by the Cauchy–Schwarz inequality.
//!
//! Rows lie in blocks, tile by tile. The first tile is compared for all rows: there some rows together lie axis by axis, so
//! that one instruction takes an axis of all of them, and products are summed up in 16 bits, each without its last 8. Of the
//! later ones each is a cache line. Most of the time goes by waiting for memory, so what comes next is asked for ahead. A
//! block is compared with all chunks while it is in the cache.
//!
//! *Contract*: vectors are at most of unit length and all of one dimension.

use std::ops::Range;
use std::sync::Arc;

use pulp::{Arch, WithSimd};
use turnflow_models::prefetch;
use turnflow_state::{ChunkKey, dot};

use super::axes::{Axes, TILE, TILES, greatest, in_steps};

/// Rows of a block: a tile of them and what the cascade keeps of them stay in the nearest cache.
pub(super) const BLOCK: usize = 256;
/// Rows that lie together in the first tile.
const GROUP: usize = 32;
const _: () = assert!(BLOCK.is_multiple_of(GROUP), "a block has whole groups");
/// The greatest byte of a row, and the greatest number of a chunk.
const ROW_MAX: f32 = 127.0;
const CHUNK_MAX: f32 = 32_767.0;
/// What a product in the first tile is divided by.
const FIRST_PART: f32 = 256.0;
/// The length of a chunk's first tile, in its steps. That of a row's is at most 127 · 8, so a 256th of their product is at most
/// 32,544. With what rounding can add to it, that fits in 16 bits.
const FIRST_LENGTH: f32 = 8_200.0;
/// By so many rows the last ones are asked for ahead.
const ROWS_AHEAD: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Numbers of 32 bits in it.
const NUMBERS: usize = LINE / 4;
/// Half a step, and more than rounding can add to it.
const HALF: f32 = 0.501;
/// More than rounding can amount to in the sums of at most 4,096 products of unit vectors; a bound must exceed the score
/// by less than that before a row is dropped.
const SLACK: f32 = 1e-4;

/// A tile of a chunk.
#[derive(Clone, Debug)]
struct RivalTile {
    steps: [i16; TILE],
    /// What a sum of products is to be multiplied by.
    step: f32,
    /// What a row's numbers may add to the product that its steps give, in steps of the row.
    beyond: f32,
    rest: f32,
}

/// A chunk that may have been retrieved for some rows.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub(super) key: ChunkKey,
    /// The epoch it came at.
    pub(super) came: u64,
    vector: Arc<[f32]>,
    tiles: Arc<[RivalTile]>,
}

impl Rival {
    pub(super) fn new(axes: &Axes, key: ChunkKey, came: u64, vector: Arc<[f32]>) -> Self {
        let projection = axes.project(&vector);
        let tiles = projection.tiles().enumerate().map(|(at, (numbers, rest))| {
            let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
            let step = if at == 0 { length / FIRST_LENGTH } else { greatest(numbers) / CHUNK_MAX };
            #[expect(clippy::cast_possible_truncation, reason = "a whole number of 16 bits, with these steps")]
            let steps = in_steps(numbers, step, |number| number as i16);
            let sum = numbers.iter().map(|number| number.abs()).sum::<f32>();
            let beyond = HALF * (sum + step * ROW_MAX * TILE as f32);
            // In the first tile each product was rounded down.
            let (step, rounded) = if at == 0 { (step * FIRST_PART, TILE as f32) } else { (step, 0.0) };
            RivalTile { steps, step, beyond: beyond + step * rounded, rest }
        });
        Self { key, came, vector, tiles: tiles.collect() }
    }
}

/// A cached answer, as the test sees it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its name at this worker.
    pub(super) claim: u64,
    pub(super) vector: Arc<[f32]>,
    pub(super) floor: f32,
    /// Chunks that came later than this were not seen.
    pub(super) valid_at: u64,
    /// The chunks it rests on.
    pub(super) support: Arc<[ChunkKey]>,
}

impl Row {
    /// Whether a chunk would have been retrieved instead of one of the row's own: the plain test, without a cascade.
    pub(super) fn is_beaten(&self, rival: &Rival) -> bool {
        rival.came > self.valid_at && self.would_retrieve(rival)
    }

    fn would_retrieve(&self, rival: &Rival) -> bool {
        // A search may have found the chunk before its epoch was announced.
        dot(&self.vector, &rival.vector) > self.floor && !self.support.contains(&rival.key)
    }
}

/// The first tile of some rows, axis by axis.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Group([[i8; GROUP]; TILE]);

/// The first tile of all rows.
#[derive(Default)]
struct FirstColumn {
    groups: Vec<Group>,
    /// The step of each row's tile.
    steps: Vec<f32>,
    /// The length of what each row's tile leaves over.
    rests: Vec<f32>,
}

impl FirstColumn {
    fn push(&mut self, tile: &[i8; TILE], step: f32, rest: f32) {
        let at = self.steps.len();
        if at.is_multiple_of(GROUP) {
            self.groups.push(Group([[0; GROUP]; TILE]));
        }
        self.set(at, tile);
        self.steps.push(step);
        self.rests.push(rest);
    }

    fn swap_remove(&mut self, at: usize) {
        self.steps.swap_remove(at);
        self.rests.swap_remove(at);
        let last = self.steps.len();
        let tile = self.groups[last / GROUP].0.map(|rows| rows[last % GROUP]);
        self.set(at, &tile);
        self.groups.truncate(last.div_ceil(GROUP));
    }

    fn set(&mut self, at: usize, tile: &[i8; TILE]) {
        let axes = &mut self.groups[at / GROUP].0;
        axes.iter_mut().zip(tile).for_each(|(rows, &number)| rows[at % GROUP] = number);
    }
}

/// A later tile of a row, in a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct RowTile([i8; TILE]);

/// A later tile of all rows.
#[derive(Default)]
struct Column {
    tiles: Vec<RowTile>,
    /// The step of each tile, and the length of what it leaves over.
    measures: Vec<[f32; 2]>,
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows {
    first: FirstColumn,
    later: [Column; TILES - 1],
    floors: Vec<f32>,
    rows: Vec<Row>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn in_blocks(&self, blocks: Range<usize>) -> impl Iterator<Item = &Row> {
        self.rows[self.of_blocks(&blocks)].iter()
    }

    fn of_blocks(&self, blocks: &Range<usize>) -> Range<usize> {
        let end = (blocks.end * BLOCK).min(self.rows.len());
        (blocks.start * BLOCK).min(end)..end
    }

    /// Blocks of rows, the unit that [`Rows::beaten`] scans in.
    pub(super) fn blocks(&self) -> usize {
        self.rows.len().div_ceil(BLOCK)
    }

    /// Adds a row at the end.
    pub(super) fn push(&mut self, axes: &Axes, row: Row) {
        let projection = axes.project(&row.vector);
        for (at, (numbers, rest)) in projection.tiles().enumerate() {
            let step = greatest(numbers) / ROW_MAX;
            #[expect(clippy::cast_possible_truncation, reason = "a whole number of 8 bits, with this step")]
            let tile = in_steps(numbers, step, |number| number as i8);
            match at.checked_sub(1).map(|at| &mut self.later[at]) {
                None => self.first.push(&tile, step, rest),
                Some(column) => {
                    column.tiles.push(RowTile(tile));
                    column.measures.push([step, rest]);
                }
            }
        }
        self.floors.push(row.floor);
        self.rows.push(row);
    }

    /// Removes the row at a place; the last one takes the place, and is returned if there is one.
    pub(super) fn swap_remove(&mut self, at: usize) -> Option<&Row> {
        self.first.swap_remove(at);
        for column in &mut self.later {
            column.tiles.swap_remove(at);
            column.measures.swap_remove(at);
        }
        self.floors.swap_remove(at);
        self.rows.swap_remove(at);
        self.rows.get(at)
    }

    /// Shows the rows of some blocks that at least one of the chunks would have been retrieved for, and the chunk's
    /// place among `rivals`; a row may be shown several times.
    ///
    /// The epochs are not looked at.
    pub(super) fn beaten(&self, blocks: Range<usize>, rivals: &[Rival], show: &mut dyn FnMut(&Row, usize)) {
        let mut left_over = Vec::new();
        for block in blocks {
            for (place, rival) in rivals.iter().enumerate() {
                let mut left = Left::new(self.of_blocks(&(block..block + 1)));
                Arch::new().dispatch(Cascade { rows: self, rival, left: &mut left });
                left_over.extend(left.rows().map(|row| (&self.rows[row], place)));
            }
        }
        for (at, &(row, place)) in left_over.iter().enumerate() {
            if let Some((later, _)) = left_over.get(at + ROWS_AHEAD) {
                later.vector.iter().step_by(NUMBERS).for_each(prefetch);
            }
            if row.would_retrieve(&rivals[place]) {
                show(row, place);
            }
        }
    }

    /// Drops rows of a block, all of which are left, by their first tile, and bounds the product of the others.
    #[inline(always)]
    fn drop_by_first(&self, rival: &RivalTile, left: &mut Left, bounds: &mut [f32; BLOCK]) {
        let Self { first: FirstColumn { groups, steps, rests }, later, floors, .. } = self;
        let mut kept = 0;
        let groups_left = left.count.div_ceil(GROUP);
        for (group, bounds) in bounds.as_chunks_mut::<GROUP>().0.iter_mut().enumerate().take(groups_left) {
            let row = left.first + group * GROUP;
            let sums = sums(&groups[row / GROUP], &rival.steps, groups.get((row + BLOCK) / GROUP));
            for ahead in [steps, rests, floors].iter().filter_map(|numbers| numbers.get(row + BLOCK..)) {
                ahead.iter().take(GROUP).step_by(NUMBERS).for_each(prefetch);
            }
            let (steps, rests) = (lanes(&steps[row..], 0.0), lanes(&rests[row..], 0.0));
            // A group may not be full.
            let floors = lanes(&floors[row..], f32::INFINITY);
            let mut is_left = [false; GROUP];
            for lane in 0..GROUP {
                bounds[lane] = steps[lane] * (rival.step * f32::from(sums[lane]) + rival.beyond);
                is_left[lane] = bounds[lane] + rests[lane] * rival.rest + SLACK > floors[lane];
            }
            for (lane, is_left) in is_left.into_iter().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "a block is small")]
                let place = (group * GROUP + lane) as u16;
                left.places[kept] = place;
                kept += usize::from(is_left);
                prefetch(&later[0].tiles[if is_left { row + lane } else { row }]);
            }
        }
        left.count = kept;
    }

    /// Drops rows of a block that are left by a later tile, and adds its part to the bounds of the others.
    #[inline(always)]
    fn drop_by_later(&self, at: usize, rival: &RivalTile, left: &mut Left, bounds: &mut [f32; BLOCK]) {
        let Self { later, floors, rows, .. } = self;
        let Column { tiles, measures } = &later[at];
        // Beside those that are read: the next read would wait until it is known where this row's result goes.
        let mut places = [0; BLOCK];
        let mut kept = 0;
        for &place in &left.places[..left.count] {
            let (bound, row) = (&mut bounds[usize::from(place)], left.first + usize::from(place));
            let [step, rest] = measures[row];
            *bound += step * (rival.step * product(&tiles[row].0, &rival.steps) + rival.beyond);
            let is_left = *bound + rest * rival.rest + SLACK > floors[row];
            // Without a branch, because nobody could predict it.
            places[kept] = place;
            kept += usize::from(is_left);
            let next = if is_left { row } else { left.first };
            match later.get(at + 1) {
                Some(column) => prefetch(&column.tiles[next]),
                None => prefetch(&rows[next]),
            }
        }
        (left.places, left.count) = (places, kept);
    }
}

/// The rows of a block that a cascade has not dropped.
struct Left {
    /// The first row of the block.
    first: usize,
    /// Places of those left, ascending; the first `count`.
    places: [u16; BLOCK],
    count: usize,
}

impl Left {
    fn new(block: Range<usize>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a block is small")]
        let places = std::array::from_fn(|place| place as u16);
        Self { first: block.start, places, count: block.len() }
    }

    fn rows(&self) -> impl Iterator<Item = usize> {
        self.places[..self.count].iter().map(|&place| self.first + usize::from(place))
    }
}

/// Drops rows that a chunk would not have been retrieved for.
struct Cascade<'a> {
    rows: &'a Rows,
    rival: &'a Rival,
    left: &'a mut Left,
}

impl WithSimd for Cascade<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { rows, rival, left } = self;
        let [first, later @ ..] = &*rival.tiles else { return };
        let bounds = &mut [0.0; BLOCK];
        rows.drop_by_first(first, left, bounds);
        later.iter().enumerate().for_each(|(at, rival)| rows.drop_by_later(at, rival, left, bounds));
    }
}

/// A 256th of the products of a chunk with each row of a group, while those of `ahead` are asked for.
#[inline(always)]
fn sums(group: &Group, rival: &[i16; TILE], ahead: Option<&Group>) -> [i16; GROUP] {
    let mut sums = [0_i16; GROUP];
    for (axis, (rows, &rival)) in group.0.iter().zip(rival).enumerate() {
        if let Some(ahead) = ahead.filter(|_| axis.is_multiple_of(LINE / GROUP)) {
            prefetch(&ahead.0[axis]);
        }
        for (sum, &row) in sums.iter_mut().zip(rows) {
            // The upper half of a product of 16 bits each, for which there is an instruction.
            *sum = sum.wrapping_add(((i32::from(i16::from(row) << 8) * i32::from(rival)) >> 16) as i16);
        }
    }
    sums
}

/// The first numbers, filled up where there are not as many.
#[inline(always)]
fn lanes(numbers: &[f32], filler: f32) -> [f32; GROUP] {
    numbers.first_chunk().copied().unwrap_or_else(|| {
        let mut lanes = [filler; GROUP];
        lanes[..numbers.len()].copy_from_slice(numbers);
        lanes
    })
}

/// At most 127 · 32,767 · 64, which fits.
#[inline(always)]
fn product(row: &[i8; TILE], rival: &[i16; TILE]) -> f32 {
    let products = row.iter().zip(rival).map(|(&row, &rival)| i32::from(i16::from(row)) * i32::from(rival));
    products.sum::<i32>() as f32
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
