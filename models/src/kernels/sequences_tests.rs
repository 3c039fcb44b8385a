//! Attention in sequences against the plain way.

use proptest::prelude::*;

use super::*;
use crate::kernels::fixtures::{numbers, sets};

/// The plain way, in f64: `[tokens, queries]` of one sequence.
fn plain(rows: &[f32], heads: usize, size: usize) -> Vec<f64> {
    let width = heads * size;
    let part = |row: &[f32], part: usize, head: usize| {
        row[part * width + head * size..][..size].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for row in rows.chunks_exact(3 * width) {
        for head in 0..heads {
            let query = part(row, 0, head);
            let score = |row: &[f32]| {
                let products = query.iter().zip(part(row, 1, head)).map(|(q, k)| q * k);
                (products.sum::<f64>() / (size as f64).sqrt()).exp()
            };
            let shares: Vec<f64> = rows.chunks_exact(3 * width).map(score).collect();
            let whole: f64 = shares.iter().sum();
            let values: Vec<Vec<f64>> = rows.chunks_exact(3 * width).map(|row| part(row, 2, head)).collect();
            let sum = |at: usize| shares.iter().zip(&values).map(|(share, value)| share / whole * value[at]).sum();
            found.extend((0..size).map(sum).collect::<Vec<f64>>());
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tokens_see_their_own_sequence(
        lengths in prop::collection::vec(1_usize..50, 0..5),
        heads in 1_usize..4, size in 1_usize..40, threads in 1_usize..4, seed: u64,
    ) {
        let mut pool = Pool::start(threads).expect("threads");
        let starts: Vec<usize> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| { *end += length; Some(*end) }))
            .collect();
        let (width, tokens) = (heads * size, lengths.iter().sum::<usize>());
        let rows: Vec<f32> = numbers(tokens * 3 * width, seed).iter().map(|x| x * 3.0).collect();
        let expected: Vec<f64> = starts
            .windows(2)
            .flat_map(|bounds| plain(&rows[bounds[0] * 3 * width..bounds[1] * 3 * width], heads, size))
            .collect();
        for set in sets() {
            let sequences = Sequences::new(heads, size, pool.threads());
            // Twice, because what is left of the first must not matter.
            for _ in 0..2 {
                let mut found = vec![f32::NAN; tokens * width];
                sequences.attend(&mut pool, set, &starts, &rows, &mut found);
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{}: {found}, not {expected}", set.name());
                }
            }
        }
    }
}
