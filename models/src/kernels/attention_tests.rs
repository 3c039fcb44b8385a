//! Attention over blocks against the plain way, and the memory that it says it takes.

use proptest::prelude::*;

use super::*;
use crate::kernels::fixtures::{numbers, sets};

/// A sequence: how much of it is in the memory already, how many tokens come now, and whether its logits are wanted.
type Sequence = (usize, usize, bool);

/// Attention the plain way, for one token and head.
fn plain(shape: HeadShape, query: &[f32], head: usize, rows: &[Vec<f32>]) -> Vec<f32> {
    let size = shape.head_size;
    let from = shape.queries() + head / (shape.heads / shape.kv_heads) * size;
    let score = |row: &Vec<f32>| {
        let products = query.iter().zip(&row[from..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
        (products.sum::<f64>() / (size as f64).sqrt()).exp()
    };
    let scores: Vec<f64> = rows.iter().map(score).collect();
    let whole: f64 = scores.iter().sum();
    let value = |at: usize| {
        let at = from + shape.keys() + at;
        (scores.iter().zip(rows).map(|(score, row)| score * f64::from(row[at])).sum::<f64>() / whole) as f32
    };
    (0..size).map(value).collect()
}

fn check(shape: HeadShape, block_tokens: usize, sequences: &[Sequence], precision: Precision, seed: u64) {
    let blocks_of: Vec<usize> = sequences.iter().map(|(past, now, _)| (past + now).div_ceil(block_tokens)).collect();
    let blocks: usize = blocks_of.iter().sum();
    // Sequences take their blocks from the end, so that none lies in order.
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let blocks_of: Vec<Vec<u32>> = blocks_of.iter().map(|count| free.split_off(free.len() - count)).collect();
    let blocks_of: Vec<Vec<u32>> = blocks_of.into_iter().map(|blocks| blocks.into_iter().rev().collect()).collect();
    let rows_of: Vec<Vec<Vec<f32>>> = (0..)
        .zip(sequences)
        .map(|(index, (past, now, _))| {
            let all = numbers((past + now) * shape.all(), seed ^ index);
            all.chunks(shape.all()).map(<[f32]>::to_vec).collect()
        })
        .collect();
    let tokens = vec![0; 100];
    let slices = |now_only: bool| -> Vec<Slice<'_>> {
        let both = sequences.iter().zip(&blocks_of);
        both.map(|(&(past, now, wants_logits), blocks)| {
            let (position, count) = if now_only { (past, now) } else { (0, past) };
            Slice { tokens: &tokens[..count], position, blocks, wants_logits }
        })
        .collect()
    };
    let rows = |now_only: bool| -> Vec<f32> {
        let part = |(rows, (past, ..)): (&Vec<Vec<f32>>, &Sequence)| {
            if now_only { rows[*past..].concat() } else { rows[..*past].concat() }
        };
        rows_of.iter().zip(sequences).flat_map(part).collect()
    };
    let limit = match precision {
        Precision::F32 => 1e-5,
        Precision::F16 => 2e-3,
        Precision::Bf16 => 2e-2,
    };
    for set in sets() {
        let mut pool = Pool::start(2).expect("threads");
        let mut memory = Memory::new(precision, shape, 2, blocks, block_tokens, pool.threads()).expect("memory");
        for layer in [1, 0] {
            memory.store(&mut pool, layer, &slices(false), &rows(false));
            memory.store(&mut pool, layer, &slices(true), &rows(true));
            for asking in [Asking::All, Asking::Wanted] {
                let asked = asked(sequences, asking);
                let queries: Vec<f32> =
                    asked.iter().flat_map(|&(index, place)| rows_of[index][place].clone()).collect();
                let mut found = vec![f32::NAN; asked.len() * shape.queries()];
                memory.attend(&mut pool, set, layer, &slices(true), asking, &queries, &mut found);
                for (&(index, place), found) in asked.iter().zip(found.chunks(shape.queries())) {
                    for (head, found) in found.chunks(shape.head_size).enumerate() {
                        let query = &rows_of[index][place][head * shape.head_size..][..shape.head_size];
                        let expected = plain(shape, query, head, &rows_of[index][..=place]);
                        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                        assert!(apart.clone().all(|apart| apart <= limit), "{index} {place}: {found:?} {expected:?}");
                    }
                }
            }
        }
    }
}

/// The sequence and place of each row.
fn asked(sequences: &[Sequence], asking: Asking) -> Vec<(usize, usize)> {
    let places = |(index, &(past, now, wanted)): (usize, &Sequence)| {
        let from = if asking == Asking::All { past } else { past + now - usize::from(wanted) };
        (from..past + now).map(move |place| (index, place)).collect::<Vec<_>>()
    };
    sequences.iter().enumerate().flat_map(places).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_found_is_what_a_plain_loop_finds(
        kv_heads in 1_usize..4,
        shared in 1_usize..5,
        half_size in 1_usize..20,
        block_tokens in 1_usize..40,
        sequences in prop::collection::vec((0_usize..70, 1_usize..40, any::<bool>()), 1..4),
        precision in prop::sample::select(vec![Precision::F32, Precision::F16, Precision::Bf16]),
        seed: u64,
    ) {
        let shape = HeadShape { heads: kv_heads * shared, kv_heads, head_size: 2 * half_size };
        check(shape, block_tokens, &sequences, precision, seed);
    }
}

#[test]
fn a_block_takes_what_it_is_filled_up_to() {
    let sizes = [(16, 16), (16, 64), (4, 16), (16, 6), (7, 10), (33, 40)];
    for ((block_tokens, head_size), precision) in
        sizes.into_iter().flat_map(|sizes| [Precision::F32, Precision::F16, Precision::Bf16].map(|kept| (sizes, kept)))
    {
        let shape = HeadShape { heads: 6, kv_heads: 3, head_size };
        let (layers, blocks) = (2, 5);
        let memory = Memory::new(precision, shape, layers, blocks, block_tokens, 1).expect("memory");
        let bytes = match &memory.layers {
            Layers::F32(layers) => allocated(layers),
            Layers::F16(layers) => allocated(layers),
            Layers::Bf16(layers) => allocated(layers),
        };
        let of_block = shape.block_bytes(precision, layers, block_tokens);
        assert_eq!(
            bytes as u64,
            of_block * blocks as u64,
            "{block_tokens} tokens of {head_size} numbers in {precision}"
        );
        let filled = block_tokens % WIDTH > 0 || head_size % WIDTH > 0;
        let plain = (2 * layers * shape.keys() * block_tokens) as u64 * precision.bytes();
        assert_eq!(of_block > plain, filled, "{block_tokens} tokens of {head_size} numbers");
    }
}

fn allocated<E: Float>(layers: &[Layer<E>]) -> usize {
    layers.iter().map(|layer| size_of_val(layer.keys.all()) + size_of_val(layer.values.all())).sum()
}

#[test]
fn keys_and_values_are_kept_as_they_are_told_to() {
    let shape = HeadShape { heads: 1, kv_heads: 1, head_size: 2 };
    let mut pool = Pool::start(1).expect("a thread");
    // One bit beyond what bf16 keeps, and a number beyond what f16 can hold.
    let (fine, large) = (1.0 + 2.0_f32.powi(-10), 1e6);
    for (precision, expected) in
        [(Precision::F32, [fine, large]), (Precision::F16, [fine, f32::INFINITY]), (Precision::Bf16, [1.0, 999_424.0])]
    {
        let mut memory = Memory::new(precision, shape, 1, 1, 1, 1).expect("memory");
        let slice = Slice { tokens: &[0], position: 0, blocks: &[0], wants_logits: true };
        let row = [0.0, 0.0, 0.0, 0.0, fine, large];
        memory.store(&mut pool, 0, &[slice], &row);
        let mut found = [0.0; 2];
        memory.attend(&mut pool, Instructions::PORTABLE, 0, &[slice], Asking::All, &row, &mut found);
        assert_eq!(found, expected, "{precision}");
    }
}

#[test]
fn memory_that_the_system_does_not_give_is_an_error() {
    let shape = HeadShape { heads: 2, kv_heads: 1, head_size: 16 };
    let refused = |blocks, block_tokens| {
        Memory::new(Precision::F32, shape, 3, blocks, block_tokens, 1).expect_err("refused").to_string()
    };
    let bytes = 3 * 2 * 16 * 16 * 4_u64 * (1 << 40);
    let expected =
        |bytes| format!("cannot take a step: the system does not give {bytes} bytes of memory for keys and values");
    assert_eq!(refused(1 << 40, 16), expected(bytes));
    assert_eq!(refused(usize::MAX, 16), expected(u64::MAX));
    assert_eq!(refused(1, usize::MAX), expected(u64::MAX));
}
