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
//! Rows lie in blocks, tile by tile, each tile in one cache line. A block is compared with all chunks while it is in the
//! cache.
//!
//! *Contract*: vectors are at most of unit length and all of one dimension.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use pulp::{Arch, WithSimd};
use turnflow_models::AXES;
use turnflow_state::{ChunkKey, dot};

/// Rows of a block: a tile of them and what the cascade keeps of them stay in the nearest cache.
pub(super) const BLOCK: usize = 256;
/// Axes of a tile.
const TILE: usize = 64;
const TILES: usize = AXES / TILE;
const _: () = assert!(AXES.is_multiple_of(TILE), "the tiles hold all the axes that there are");
/// The greatest byte of a row, and the greatest number of a chunk.
const ROW_MAX: f32 = 127.0;
const CHUNK_MAX: f32 = 32_767.0;
/// Half a step, and more than rounding can add to it.
const HALF: f32 = 0.501;
/// More than rounding can amount to in the sums of at most 4,096 products of unit vectors; a bound must exceed the score
/// by less than that before a row is dropped.
const SLACK: f32 = 1e-4;
/// The same in the square of a length.
const SQUARE_SLACK: f64 = 1e-6;

/// Orthonormal axes that vectors are projected onto; without any, the first coordinates serve.
#[derive(Clone, Debug, Default)]
pub struct Axes {
    /// `[AXES * dimension]`, one axis after the other; empty for the first coordinates.
    rows: Arc<[f32]>,
    dimension: usize,
}

impl Axes {
    /// Axes for vectors of a dimension, made orthonormal.
    ///
    /// # Shapes
    /// `rows`: `[AXES * dimension]`, one axis after the other.
    ///
    /// # Panics
    /// When the number of values is another.
    #[must_use]
    pub fn new(rows: &[f32], dimension: usize) -> Self {
        assert_eq!(rows.len(), AXES * dimension, "{AXES} axes of {dimension} numbers");
        let mut axes: Vec<Vec<f64>> = Vec::with_capacity(AXES);
        for row in rows.chunks_exact(dimension) {
            let mut axis: Vec<f64> = row.iter().map(|&number| f64::from(number)).collect();
            // Gram–Schmidt; an axis that depends on the others becomes zero, which bounds nothing and breaks nothing.
            for other in &axes {
                let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
                axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
            let scale = if length > 1e-3 { 1.0 / length } else { 0.0 };
            axis.iter_mut().for_each(|a| *a *= scale);
            axes.push(axis);
        }
        #[expect(clippy::cast_possible_truncation, reason = "numbers between -1 and 1")]
        let rows = axes.iter().flatten().map(|&number| number as f32).collect();
        Self { rows, dimension }
    }

    fn project(&self, vector: &[f32]) -> Projection {
        let mut along = [0.0; AXES];
        if self.dimension == vector.len() && !self.rows.is_empty() {
            for (along, axis) in along.iter_mut().zip(self.rows.chunks_exact(self.dimension)) {
                *along = dot(axis, vector);
            }
        } else {
            let shared = vector.len().min(AXES);
            along[..shared].copy_from_slice(&vector[..shared]);
        }
        let square = |numbers: &[f32]| numbers.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>();
        let mut left = square(vector);
        let rest = std::array::from_fn(|tile| {
            left -= square(&along[tile * TILE..][..TILE]);
            #[expect(clippy::cast_possible_truncation, reason = "a length")]
            let rest = (left.max(0.0) + SQUARE_SLACK).sqrt() as f32;
            rest
        });
        Projection { along, rest }
    }
}

/// A vector along the axes, and the length of what each tile leaves over for those behind it.
struct Projection {
    along: [f32; AXES],
    rest: [f32; TILES],
}

impl Projection {
    /// Each tile in whole steps, at most so many each way, with the step; and what is left over behind it.
    fn tiles<N>(&self, max: f32, to_number: impl Fn(f32) -> N) -> impl Iterator<Item = ([N; TILE], f32, f32)> {
        let (tiles, _) = self.along.as_chunks::<TILE>();
        tiles.iter().zip(self.rest).map(move |(numbers, rest)| {
            let step = numbers.iter().fold(0.0_f32, |most, number| most.max(number.abs())) / max;
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let steps = numbers.map(|number| to_number((number * inverse).round().clamp(-max, max)));
            (steps, step, rest)
        })
    }
}

/// A tile of a chunk.
#[derive(Clone, Debug)]
struct RivalTile {
    steps: [i16; TILE],
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
        let sums = projection.along.as_chunks::<TILE>().0.iter().map(|tile| tile.iter().map(|n| n.abs()).sum::<f32>());
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of 16 bits")]
        let tiles = projection.tiles(CHUNK_MAX, |steps| steps as i16);
        let tiles = tiles.zip(sums).map(|((steps, step, rest), sum)| {
            let beyond = HALF * (sum + step * ROW_MAX * TILE as f32);
            RivalTile { steps, step, beyond, rest }
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
    pub(super) kth_score: f32,
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
        dot(&self.vector, &rival.vector) > self.kth_score && !self.support.contains(&rival.key)
    }
}

/// A tile of a row, in a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct RowTile([i8; TILE]);

/// A tile of all rows.
#[derive(Default)]
struct Column {
    tiles: Vec<RowTile>,
    /// The step of each tile, and the length of what it leaves over.
    measures: Vec<[f32; 2]>,
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows {
    columns: [Column; TILES],
    kth_scores: Vec<f32>,
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
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of 8 bits")]
        let to_byte = |steps| steps as i8;
        for (column, (tile, step, rest)) in
            self.columns.iter_mut().zip(axes.project(&row.vector).tiles(ROW_MAX, to_byte))
        {
            column.tiles.push(RowTile(tile));
            column.measures.push([step, rest]);
        }
        self.kth_scores.push(row.kth_score);
        self.rows.push(row);
    }

    /// Removes the row at a place; the last one takes the place, and is returned if there is one.
    pub(super) fn swap_remove(&mut self, at: usize) -> Option<&Row> {
        for column in &mut self.columns {
            column.tiles.swap_remove(at);
            column.measures.swap_remove(at);
        }
        self.kth_scores.swap_remove(at);
        self.rows.swap_remove(at);
        self.rows.get(at)
    }

    /// Shows the rows of some blocks that at least one of the chunks would have been retrieved for, and the chunk's
    /// place among `rivals`; a row may be shown several times.
    ///
    /// The epochs are not looked at.
    pub(super) fn beaten(&self, blocks: Range<usize>, rivals: &[Rival], show: &mut dyn FnMut(&Row, usize)) {
        for block in blocks {
            for (place, rival) in rivals.iter().enumerate() {
                let mut left = Left::new(self.of_blocks(&(block..block + 1)));
                Arch::new().dispatch(Cascade { rows: self, rival, left: &mut left });
                for row in left.rows() {
                    let row = &self.rows[row];
                    if row.would_retrieve(rival) {
                        show(row, place);
                    }
                }
            }
        }
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
        let block = left.first..left.first + left.count;
        let kth_scores = &rows.kth_scores[block.clone()];
        let mut bounds = [0.0_f32; BLOCK];
        for (column, rival) in rows.columns.iter().zip(rival.tiles.iter()) {
            let (tiles, measures) = (&column.tiles[block.clone()], &column.measures[block.clone()]);
            // Each tile is a cache line somewhere else. Asked for without anything to do between, more of them are on their way
            // at once than the loop below can look ahead.
            black_box(left.places[..left.count].iter().fold(0, |met, &place| met | tiles[usize::from(place)].0[0]));
            // Beside those that are read: the next read would wait until it is known where this row's result goes.
            let mut places = [0; BLOCK];
            let mut kept = 0;
            for &place in &left.places[..left.count] {
                let row = usize::from(place);
                let [step, rest] = measures[row];
                bounds[row] += step * (rival.step * product(&tiles[row].0, &rival.steps) + rival.beyond);
                let is_left = bounds[row] + rest * rival.rest + SLACK > kth_scores[row];
                // Without a branch, because nobody could predict it.
                places[kept] = place;
                kept += usize::from(is_left);
            }
            (left.places, left.count) = (places, kept);
        }
    }
}

/// At most 127 · 32,767 · 64, which fits.
#[inline(always)]
fn product(row: &[i8; TILE], rival: &[i16; TILE]) -> f32 {
    let products = row.iter().zip(rival).map(|(&row, &rival)| i32::from(i16::from(row)) * i32::from(rival));
    products.sum::<i32>() as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnflow_state::{ArticleId, ContentHash, TenantId};

    use super::*;

    fn key(number: usize) -> ChunkKey {
        let (tenant, article) = (TenantId::new("t").expect("an id"), ArticleId::new("a").expect("an id"));
        ChunkKey::of(&tenant, &article, ContentHash::of("", &number.to_string()))
    }

    fn unit(mut numbers: Vec<f32>) -> Arc<[f32]> {
        let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt().max(1e-6);
        numbers.iter_mut().for_each(|number| *number /= length);
        numbers.into()
    }

    /// Numbers that fall off, so that the first coordinates say much and the bounds have something to prune.
    fn vectors(count: std::ops::Range<usize>, dimension: usize) -> impl Strategy<Value = Vec<Arc<[f32]>>> {
        let numbers = prop::collection::vec(-1.0_f32..1.0, dimension);
        let vector = numbers.prop_map(|numbers| {
            unit(numbers.iter().enumerate().map(|(at, number)| number / (1.0 + at as f32 * 0.2)).collect())
        });
        prop::collection::vec(vector, count)
    }

    /// Axes that depend on a seed, some of them on each other.
    fn axes(seed: u32, dimension: usize) -> Axes {
        let number = |at: usize| ((at as f32 + seed as f32 * 0.37) * 12.9898).sin() * 43_758.547;
        let numbers: Vec<f32> = (0..AXES * dimension).map(|at| number(at).fract()).collect();
        Axes::new(&numbers, dimension)
    }

    proptest! {
        /// The cascade finds exactly what comparing every row with every chunk finds, whatever the axes, and while rows
        /// come and go.
        #[test]
        fn the_cascade_agrees_with_the_plain_test(
            (rows, rivals, axes, scores, gone) in (1usize..200).prop_flat_map(|dimension| (
                vectors(1..600, dimension),
                vectors(1..10, dimension),
                prop::option::of((0u32..1_000).prop_map(move |seed| axes(seed, dimension))),
                prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -0.5_f32..1.0], 600),
                prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            ))
        ) {
            let axes = axes.unwrap_or_default();
            let rivals: Vec<Rival> =
                rivals.into_iter().enumerate().map(|(at, vector)| Rival::new(&axes, key(at), 1, vector)).collect();
            let mut matrix = Rows::default();
            for (claim, (vector, kth_score)) in (0..).zip(rows.into_iter().zip(scores)) {
                // Some scores are exactly those of a chunk, which does not beat itself, or as close below as can be.
                let score = dot(&vector, &rivals[0].vector);
                let kth_score = [score, score.next_down(), kth_score, kth_score][claim % 4];
                let support: Arc<[ChunkKey]> = if claim % 5 == 0 { [key(1)].into() } else { [].into() };
                matrix.push(&axes, Row { claim: claim as u64, vector, kth_score, valid_at: 0, support });
            }
            for index in gone {
                if matrix.len() > 1 {
                    let at = index.index(matrix.len());
                    matrix.swap_remove(at);
                }
            }
            let mut found = Vec::new();
            matrix.beaten(0..matrix.blocks(), &rivals, &mut |row, rival| found.push((row.claim, rival)));
            found.sort_unstable();
            let mut expected = Vec::new();
            for row in matrix.in_blocks(0..matrix.blocks()) {
                expected.extend((0..rivals.len()).filter(|&at| row.is_beaten(&rivals[at])).map(|at| (row.claim, at)));
            }
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }

        /// After every tile the bound is above the product, and after the last one not by much.
        #[test]
        fn the_bound_holds_after_every_tile(
            (row, chunk, axes) in (1usize..500).prop_flat_map(|dimension| (
                vectors(1..2, dimension),
                vectors(1..2, dimension),
                prop::option::of((0u32..1_000).prop_map(move |seed| axes(seed, dimension))),
            )),
            is_own in any::<bool>(),
        ) {
            let axes = axes.unwrap_or_default();
            let row = row[0].clone();
            let chunk = if is_own { row.clone() } else { chunk[0].clone() };
            let exact: f64 = row.iter().zip(chunk.iter()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let rival = Rival::new(&axes, key(0), 1, chunk);
            let mut rows = Rows::default();
            rows.push(&axes, Row { claim: 0, vector: row.clone(), kth_score: 0.0, valid_at: 0, support: [].into() });
            let (mut bound, mut slack) = (0.0, f64::INFINITY);
            for (column, tile) in rows.columns.iter().zip(rival.tiles.iter()) {
                let [step, rest] = column.measures[0];
                bound += step * (tile.step * product(&column.tiles[0].0, &tile.steps) + tile.beyond);
                slack = f64::from(bound + rest * tile.rest + SLACK) - exact;
                prop_assert!(slack > 0.0, "{slack} below");
            }
            // Without axes, what lies behind the first coordinates is never looked at.
            prop_assert!(slack < 0.1 || row.len() > AXES, "{slack} above");
        }
    }

    #[test]
    fn axes_become_orthonormal() {
        let dimension = 400;
        let axes = axes(0, dimension);
        let vector = unit((0..dimension).map(|at| (at as f32).cos()).collect());
        let Projection { along, rest } = axes.project(&vector);
        let length: f32 = along.iter().map(|number| number * number).sum();
        assert!((length + rest[TILES - 1] * rest[TILES - 1] - 1.0).abs() < 1e-4 && rest.is_sorted_by(|a, b| a >= b));
        for (at, axis) in axes.rows.chunks_exact(dimension).enumerate() {
            for other in axes.rows.chunks_exact(dimension).take(at) {
                assert!(dot(axis, other).abs() < 1e-5);
            }
            assert!((dot(axis, axis) - 1.0).abs() < 1e-5);
        }
    }
}
