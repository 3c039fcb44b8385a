//! The questions of the cached answers, laid out for one test: which of them would a new chunk have been retrieved for?
//!
//! That is, for which rows `q` with a `k`-th score `s` is `q · c > s`? The test is exact, and decided for most rows on a
//! fraction of their numbers. Rows and chunks are projected onto the same orthonormal axes; what the projections leave
//! over is bounded by the Cauchy–Schwarz inequality: `q · c ≤ q₁ · c₁ + |q₂| |c₂|`, where 1 is the part within some of
//! the axes and 2 the rest. A cascade looks at 32, 64 and 128 axes and drops a row as soon as the bound is not above its
//! score; what is left is decided by the same dot product that retrieval computes. Any axes keep the test exact; good
//! ones, the principal axes of what the encoder makes, leave little to decide.
//!
//! The first 32 axes lie in blocks of 16 rows, axis by axis, so that a scan is one stream of multiplications without sums
//! across lanes; several chunks share one pass.
//!
//! *Contract*: vectors are at most of unit length and all of one dimension.

use std::sync::Arc;

use pulp::{Arch, WithSimd};
use turnflow_state::{ChunkKey, dot};

/// Rows of a block.
pub(super) const LANES: usize = 16;
/// Axes of the first stage of the cascade.
const FIRST: usize = 32;
/// Axes that the second stage adds.
const SECOND: usize = 32;
/// Axes that the third stage adds.
const THIRD: usize = 64;
const AXES: usize = FIRST + SECOND + THIRD;
const _: () = assert!(AXES == turnflow_models::AXES, "the cascade looks at all the axes that there are");
/// Chunks that share a pass over the rows.
pub(super) const CHUNKS_PER_PASS: usize = 4;
/// More than rounding can amount to in the sums of at most 4,096 products of unit vectors; a bound must exceed the score
/// by less than that before a row is dropped.
const SLACK: f32 = 1e-4;

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
        let whole = square(vector);
        #[expect(clippy::cast_possible_truncation, reason = "numbers between 0 and 1")]
        let rest = |axes: usize| (whole - square(&along[..axes])).max(0.0).sqrt() as f32;
        Projection { along, rest: [rest(FIRST), rest(FIRST + SECOND), rest(AXES)] }
    }
}

/// A vector along the axes, and the length of what each stage of the cascade leaves over.
#[derive(Clone, Debug)]
struct Projection {
    along: [f32; AXES],
    rest: [f32; 3],
}

/// A chunk that may have been retrieved for some rows.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub(super) key: ChunkKey,
    /// The epoch it came at.
    pub(super) came: u64,
    vector: Arc<[f32]>,
    projection: Box<Projection>,
}

impl Rival {
    pub(super) fn new(axes: &Axes, key: ChunkKey, came: u64, vector: Arc<[f32]>) -> Self {
        let projection = Box::new(axes.project(&vector));
        Self { key, came, vector, projection }
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

/// What the first stage reads of 16 rows.
#[derive(Clone)]
struct Block {
    /// `[axis][row]`
    first: [[f32; LANES]; FIRST],
    /// Length of what the first stage leaves over.
    rest: [f32; LANES],
    kth_score: [f32; LANES],
}

/// What the later stages read of one row.
#[derive(Clone)]
struct Later {
    second: [f32; SECOND],
    third: [f32; THIRD],
    rest: [f32; 2],
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows {
    blocks: Vec<Block>,
    later: Vec<Later>,
    rows: Vec<Row>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn in_blocks(&self, blocks: std::ops::Range<usize>) -> impl Iterator<Item = &Row> {
        let end = (blocks.end * LANES).min(self.rows.len());
        self.rows[(blocks.start * LANES).min(end)..end].iter()
    }

    /// Blocks of rows, the unit that [`Rows::beaten`] scans in.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Adds a row at the end.
    pub(super) fn push(&mut self, axes: &Axes, row: Row) {
        let at = self.rows.len();
        if at.is_multiple_of(LANES) {
            // Lanes without a row have a score that nothing beats.
            let empty = Block { first: [[0.0; LANES]; FIRST], rest: [0.0; LANES], kth_score: [f32::INFINITY; LANES] };
            self.blocks.push(empty);
        }
        let Projection { along, rest } = axes.project(&row.vector);
        let (block, lane) = (&mut self.blocks[at / LANES], at % LANES);
        for (axis, along) in block.first.iter_mut().zip(along) {
            axis[lane] = along;
        }
        block.rest[lane] = rest[0];
        block.kth_score[lane] = row.kth_score;
        let mut later = Later { second: [0.0; SECOND], third: [0.0; THIRD], rest: [rest[1], rest[2]] };
        later.second.copy_from_slice(&along[FIRST..FIRST + SECOND]);
        later.third.copy_from_slice(&along[FIRST + SECOND..]);
        self.later.push(later);
        self.rows.push(row);
    }

    /// Removes the row at a place; the last one takes the place, and is returned if there is one.
    pub(super) fn swap_remove(&mut self, at: usize) -> Option<&Row> {
        let last = self.rows.len() - 1;
        let (from, from_lane, to, to_lane) = (last / LANES, last % LANES, at / LANES, at % LANES);
        for axis in 0..FIRST {
            self.blocks[to].first[axis][to_lane] = self.blocks[from].first[axis][from_lane];
        }
        self.blocks[to].rest[to_lane] = self.blocks[from].rest[from_lane];
        self.blocks[to].kth_score[to_lane] = self.blocks[from].kth_score[from_lane];
        self.blocks[from].kth_score[from_lane] = f32::INFINITY;
        if from_lane == 0 {
            self.blocks.pop();
        }
        self.later.swap_remove(at);
        self.rows.swap_remove(at);
        self.rows.get(at)
    }

    /// Shows the rows of some blocks that at least one of the chunks would have been retrieved for, and the chunk's
    /// place among `rivals`; a row may be shown several times.
    ///
    /// The epochs are not looked at.
    pub(super) fn beaten(&self, blocks: std::ops::Range<usize>, rivals: &[Rival], show: &mut dyn FnMut(&Row, usize)) {
        let mut done = 0;
        while done < rivals.len() {
            let some = &rivals[done..(done + CHUNKS_PER_PASS).min(rivals.len())];
            let mut survivors = Vec::new();
            let (rows, blocks) = (self, blocks.clone());
            Arch::new().dispatch(Cascade { rows, blocks, rivals: some, survivors: &mut survivors });
            for (at, rival) in survivors {
                let row = &self.rows[at];
                if row.would_retrieve(&some[rival]) {
                    show(row, done + rival);
                }
            }
            done += some.len();
        }
    }
}

/// The stages that can only drop rows. What survives is `(row, place among rivals)`.
struct Cascade<'a> {
    rows: &'a Rows,
    blocks: std::ops::Range<usize>,
    rivals: &'a [Rival],
    survivors: &'a mut Vec<(usize, usize)>,
}

impl WithSimd for Cascade<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { rows, blocks, rivals, survivors } = self;
        // As many chunks at a time as have room in the registers beside the rows.
        if let Ok(rivals) = <&[Rival; CHUNKS_PER_PASS]>::try_from(rivals) {
            scan(rows, blocks, rivals, 0, survivors);
        } else {
            for (place, rival) in rivals.iter().enumerate() {
                scan(rows, blocks.clone(), std::array::from_ref(rival), place, survivors);
            }
        }
    }
}

#[inline(always)]
fn scan<const N: usize>(
    rows: &Rows,
    blocks: std::ops::Range<usize>,
    rivals: &[Rival; N],
    first_place: usize,
    survivors: &mut Vec<(usize, usize)>,
) {
    for at in blocks {
        let block = &rows.blocks[at];
        let mut sums = [[0.0_f32; LANES]; N];
        for (axis, numbers) in block.first.iter().enumerate() {
            for (sum, rival) in sums.iter_mut().zip(rivals) {
                let along = rival.projection.along[axis];
                for lane in 0..LANES {
                    sum[lane] += numbers[lane] * along;
                }
            }
        }
        for (place, (sum, rival)) in sums.iter().zip(rivals).enumerate() {
            let rest = rival.projection.rest[0];
            let mut kept = 0_u32;
            for (lane, sum) in sum.iter().enumerate() {
                let bound = sum + block.rest[lane] * rest;
                kept |= u32::from(bound + SLACK > block.kth_score[lane]) << lane;
            }
            while kept != 0 {
                let lane = kept.trailing_zeros() as usize;
                kept &= kept - 1;
                let row = at * LANES + lane;
                if survives(&rows.later[row], rival, sum[lane], block.kth_score[lane]) {
                    survivors.push((row, first_place + place));
                }
            }
        }
    }
}

#[inline(always)]
fn survives(row: &Later, rival: &Rival, first: f32, kth_score: f32) -> bool {
    let Projection { along, rest } = &*rival.projection;
    let second = first + sum_of_products(&row.second, &along[FIRST..FIRST + SECOND]);
    if second + row.rest[0] * rest[1] + SLACK <= kth_score {
        return false;
    }
    let third = second + sum_of_products(&row.third, &along[FIRST + SECOND..]);
    third + row.rest[1] * rest[2] + SLACK > kth_score
}

// Inlined into callers that are compiled for more than the baseline.
#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum()
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

    proptest! {
        /// The cascade finds exactly what comparing every row with every chunk finds, whatever the axes, and while rows
        /// come and go.
        #[test]
        fn the_cascade_agrees_with_the_plain_test(
            (rows, rivals, axes, scores, gone) in (1usize..200).prop_flat_map(|dimension| (
                vectors(1..60, dimension),
                vectors(1..10, dimension),
                prop::option::of(prop::collection::vec(-1.0_f32..1.0, AXES * dimension)
                    .prop_map(move |numbers| Axes::new(&numbers, dimension))),
                prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -0.5_f32..1.0], 60),
                prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            ))
        ) {
            let axes = axes.unwrap_or_default();
            let rivals: Vec<Rival> =
                rivals.into_iter().enumerate().map(|(at, vector)| Rival::new(&axes, key(at), 1, vector)).collect();
            let mut matrix = Rows::default();
            for (claim, (vector, kth_score)) in (0..).zip(rows.into_iter().zip(scores)) {
                // Some scores are exactly those of a chunk, which does not beat itself.
                let kth_score = if claim % 3 == 0 { dot(&vector, &rivals[0].vector) } else { kth_score };
                let support: Arc<[ChunkKey]> = if claim % 5 == 0 { [key(1)].into() } else { [].into() };
                matrix.push(&axes, Row { claim, vector, kth_score, valid_at: 0, support });
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
    }

    #[test]
    fn axes_become_orthonormal() {
        let dimension = 150;
        let numbers: Vec<f32> =
            (0..AXES * dimension).map(|at| ((at as f32 * 12.9898).sin() * 43_758.547).fract()).collect();
        let axes = Axes::new(&numbers, dimension);
        let vector = unit((0..dimension).map(|at| (at as f32).cos()).collect());
        let Projection { along, rest } = axes.project(&vector);
        let length: f32 = along.iter().map(|number| number * number).sum();
        assert!((length + rest[2] * rest[2] - 1.0).abs() < 1e-4 && rest[0] >= rest[1] && rest[1] >= rest[2]);
        for (at, axis) in axes.rows.chunks_exact(dimension).enumerate() {
            for other in axes.rows.chunks_exact(dimension).take(at) {
                assert!(dot(axis, other).abs() < 1e-5);
            }
            assert!((dot(axis, axis) - 1.0).abs() < 1e-5);
        }
    }
}
