//! Tests of the rows: the cascade against the plain test.

use proptest::prelude::*;
use turnflow_models::AXES;
use turnflow_state::{ArticleId, ContentHash, TenantId};

use super::super::axes::Projection;
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
        for (claim, (vector, floor)) in (0..).zip(rows.into_iter().zip(scores)) {
            // Some scores are exactly those of a chunk, which does not beat itself, or as close below as can be.
            let score = dot(&vector, &rivals[0].vector);
            let floor = [score, score.next_down(), floor, floor][claim % 4];
            let support: Arc<[ChunkKey]> = if claim % 5 == 0 { [key(1)].into() } else { [].into() };
            matrix.push(&axes, Row { claim: claim as u64, vector, floor, valid_at: 0, support });
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
        rows.push(&axes, Row { claim: 0, vector: row.clone(), floor: 0.0, valid_at: 0, support: [].into() });
        let (mut bound, mut slack) = (0.0, f64::INFINITY);
        for (at, tile) in rival.tiles.iter().enumerate() {
            let (step, rest, product) = match at.checked_sub(1).map(|at| &rows.later[at]) {
                None => {
                    let FirstColumn { groups, steps, rests } = &rows.first;
                    (steps[0], rests[0], f32::from(sums(&groups[0], &tile.steps, None)[0]))
                }
                Some(Column { tiles, measures }) => {
                    let [step, rest] = measures[0];
                    (step, rest, product(&tiles[0].0, &tile.steps))
                }
            };
            bound += step * (tile.step * product + tile.beyond);
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
