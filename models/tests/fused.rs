//! The CPU's own decoder against transformers, and against the plain decoder.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod fixtures;

use burn::tensor::Device;
use fixtures::{NAMES, difference, greedy, open, step};
use turnflow_models::{
    Checkpoint, FusedDecoder, FusedOptions, Instructions, ModelError, PlainDecoder, Precision, Slice, StepModel,
};

/// Relative to the largest logit of the row.
const DIFFERENCE_MAX: f32 = 1e-4;
/// The same with weights, keys and values of 16 bits: the kinds keep 11 and 8 bits of a number.
const HALF_DIFFERENCES_MAX: [(Precision, f32); 2] = [(Precision::F16, 5e-3), (Precision::Bf16, 5e-2)];
const BLOCKS: usize = 40;
const BLOCK_TOKENS: usize = 8;

fn fused(checkpoint: &Checkpoint, options: FusedOptions) -> FusedDecoder {
    FusedDecoder::load(&checkpoint.config, &checkpoint.weights, options, BLOCKS, BLOCK_TOKENS).expect("a decoder")
}

/// All in f32, on one thread and on more than there may be, with the best instructions and without.
fn exact() -> Vec<FusedOptions> {
    let sets = [Instructions::detect(), Instructions::PORTABLE];
    let options = |instructions| {
        [1, 3].map(|threads| FusedOptions { weights: Precision::F32, kv: Precision::F32, threads, instructions })
    };
    sets.into_iter().flat_map(options).collect()
}

fn in_order() -> Vec<u32> {
    (0..BLOCKS as u32).collect()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        let tokens = reference.tokens();
        let exact = exact().into_iter().map(|options| (options, DIFFERENCE_MAX));
        let half =
            HALF_DIFFERENCES_MAX.map(|(half, most)| (FusedOptions { weights: half, kv: half, ..<_>::default() }, most));
        for (options, most) in exact.chain(half) {
            let mut model = fused(&checkpoint, options);
            for (&place, expected) in reference.places.iter().zip(&reference.logits) {
                let difference = difference(&step(&mut model, &tokens[..=place], 0, &in_order()), expected);
                println!("{name}, {options:?}: {difference}");
                assert!(difference <= most, "{name}, {options:?}: {difference} at {place}");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        for options in exact() {
            let found =
                greedy(&mut fused(&checkpoint, options), &reference.prompt, &in_order(), reference.greedy.len());
            assert_eq!(found, reference.greedy, "{name}, {options:?}");
        }
    }
}

/// A sequence, its blocks, and what is in them already.
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    done: usize,
}

#[test]
fn steps_of_any_make_up_give_what_the_plain_decoder_gives() {
    for (seed, name) in (1..).zip(NAMES) {
        let (checkpoint, _) = open(name);
        let (config, weights) = (&checkpoint.config, &checkpoint.weights);
        let plain = PlainDecoder::load(config, weights, &Device::flex(), Precision::F32, BLOCKS, BLOCK_TOKENS);
        let mut plain = plain.expect("a decoder");
        for options in exact() {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut blocks = in_order();
            random.shuffle(&mut blocks);
            let sequence = |blocks: &[u32]| Sequence {
                tokens: (0..blocks.len() * BLOCK_TOKENS).map(|_| random.u32(0..config.vocabulary as u32)).collect(),
                blocks: blocks.to_vec(),
                done: 0,
            };
            let mut sequences: Vec<_> = blocks.chunks(BLOCKS / 4).map(sequence).collect();
            let mut model = fused(&checkpoint, options);
            // A chunk of a prompt, one token, or nothing of each sequence, until all are read.
            while sequences.iter().any(|sequence| sequence.done < sequence.tokens.len()) {
                let counts: Vec<usize> = sequences
                    .iter()
                    .map(|it| [0, 1, 1, random.usize(2..30)][random.usize(..4)].min(it.tokens.len() - it.done))
                    .collect();
                let slices: Vec<_> = sequences
                    .iter()
                    .zip(&counts)
                    .filter(|(_, count)| **count > 0)
                    .map(|(it, count)| Slice {
                        tokens: &it.tokens[it.done..it.done + count],
                        position: it.done,
                        blocks: &it.blocks,
                        wants_logits: random.u8(..4) > 0,
                    })
                    .collect();
                let (mut found, mut expected) = (Vec::new(), Vec::new());
                model.step(&slices, &mut found).expect("a step");
                plain.step(&slices, &mut expected).expect("a step");
                assert_eq!(found.len(), expected.len(), "{name}, seed {seed}");
                for (found, expected) in found.chunks(config.vocabulary).zip(expected.chunks(config.vocabulary)) {
                    let difference = difference(found, expected);
                    assert!(difference <= DIFFERENCE_MAX, "{name}, seed {seed}, {options:?}: {difference}");
                }
                for (sequence, count) in sequences.iter_mut().zip(counts) {
                    sequence.done += count;
                }
            }
        }
    }
}

#[test]
fn what_was_read_is_forgotten_and_read_again() {
    let (checkpoint, reference) = open("qwen3");
    let mut model = fused(&checkpoint, FusedOptions::default());
    let expected = step(&mut model, &reference.prompt, 0, &in_order());
    model.reset().expect("nothing fails");
    assert_eq!(step(&mut model, &reference.prompt, 0, &in_order()), expected);
}

#[test]
fn blocks_take_what_the_decoders_say() {
    let (checkpoint, _) = open("llama3");
    let config = &checkpoint.config;
    let plain = |precision, tokens| PlainDecoder::block_bytes(config, precision, tokens);
    let token_bytes = |precision| config.memory(precision, precision).kv_bytes_per_token;
    assert_eq!(plain(Precision::F16, 5), 5 * token_bytes(Precision::F16));
    // Two layers, two heads of six numbers: keys of 16 tokens for 5, values of 16 numbers for 6.
    assert_eq!(FusedDecoder::block_bytes(config, Precision::F32, 5), 2 * 2 * (16 * 6 + 5 * 16) * 4);
    let options = FusedOptions { kv: Precision::Bf16, ..FusedOptions::default() };
    let error = FusedDecoder::load(config, &checkpoint.weights, options, 1 << 50, BLOCK_TOKENS).expect_err("too much");
    let bytes = FusedDecoder::block_bytes(config, Precision::Bf16, BLOCK_TOKENS) << 50;
    assert_eq!(
        error.to_string(),
        format!("cannot take a step: the system does not give {bytes} bytes of memory for keys and values")
    );
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let (checkpoint, _) = open("llama3");
    let mut model = fused(&checkpoint, FusedOptions::default());
    let refused = |model: &mut FusedDecoder, tokens: &[u32], blocks: &[u32]| {
        let mut logits = vec![1.0];
        let slice = Slice { tokens, position: 0, blocks, wants_logits: true };
        let refused = matches!(model.step(&[slice], &mut logits), Err(ModelError::Step { .. }));
        refused && logits == [1.0]
    };
    assert!(refused(&mut model, &[], &[0]));
    assert!(refused(&mut model, &[u32::MAX], &[0]));
    assert!(refused(&mut model, &[1], &[BLOCKS as u32]));
    assert!(refused(&mut model, &[1; BLOCK_TOKENS + 1], &[0]));
    assert!(!refused(&mut model, &[1; BLOCK_TOKENS + 1], &[0, 1]));
}
