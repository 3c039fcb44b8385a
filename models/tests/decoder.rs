//! The decoder against transformers, whose logits and tokens `fixtures/make.py` made.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod fixtures;

use std::time::SystemTime;

use burn::tensor::Device;
use fixtures::{NAMES, difference, greedy, likeliest, open, step};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use turnflow_models::{ChatMessage, Checkpoint, PlainDecoder, Precision, Slice, StepModel};

/// Relative to the largest logit of the row.
const DIFFERENCE_MAX: f32 = 1e-4;
const BLOCKS: usize = 40;
const BLOCK_TOKENS: usize = 8;

fn plain(checkpoint: &Checkpoint) -> PlainDecoder {
    let (config, weights) = (&checkpoint.config, &checkpoint.weights);
    PlainDecoder::load(config, weights, &Device::flex(), Precision::F32, BLOCKS, BLOCK_TOKENS).expect("a decoder")
}

fn in_order() -> Vec<u32> {
    (0..BLOCKS as u32).collect()
}

/// The blocks of the memory in an order that no one would choose.
fn shuffled(seed: u64) -> Vec<u32> {
    let mut blocks = in_order();
    fastrand::Rng::with_seed(seed).shuffle(&mut blocks);
    blocks
}

#[test]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        let (mut model, tokens) = (plain(&checkpoint), reference.tokens());
        let compare = |(&place, expected): (&usize, &Vec<f32>)| {
            difference(&step(&mut model, &tokens[..=place], 0, &in_order()), expected)
        };
        let differences: Vec<f32> = reference.places.iter().zip(&reference.logits).map(compare).collect();
        println!("{name}: {differences:?}");
        assert!(differences.iter().all(|&difference| difference <= DIFFERENCE_MAX), "{name}: {differences:?}");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        let found = greedy(&mut plain(&checkpoint), &reference.prompt, &in_order(), reference.greedy.len());
        assert_eq!(found, reference.greedy, "{name}");
    }
}

/// The texts of a reference.
#[derive(Deserialize)]
struct Texts {
    conversation: Vec<Message>,
    /// The conversation as the template writes it.
    rendered: String,
    /// What the tokens of greedy decoding stand for.
    text: String,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[test]
fn text_becomes_tokens_and_tokens_text_as_in_transformers() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        let json = std::fs::read(fixtures::folder(name).join("reference.json")).expect("a reference");
        let texts: Texts = serde_json::from_slice(&json).expect("texts");
        let message = |it: Message| ChatMessage { role: it.role, content: it.content };
        let messages: Vec<_> = texts.conversation.into_iter().map(message).collect();
        let chat = checkpoint.chat.as_ref().expect("a chat template");
        let render = |count: usize| chat.render(&messages[..count], true, SystemTime::UNIX_EPOCH).expect("rendered");
        assert_eq!(render(messages.len()), texts.rendered, "{name}");
        let encoded = checkpoint.tokenizer.encode_fast(render(2), false).expect("tokens");
        assert_eq!(encoded.get_ids(), reference.prompt, "{name}");
        assert_eq!(checkpoint.tokenizer.decode(&reference.greedy, false).expect("text"), texts.text, "{name}");
        assert_eq!((checkpoint.eos(), checkpoint.generation.top_k), ([2, 0].as_slice(), Some(20)), "{name}");
    }
}

#[test]
fn memory_is_known_before_anything_is_loaded() {
    let (checkpoint, _) = open("llama3");
    let memory = checkpoint.config.memory(Precision::F32, Precision::F16);
    assert_eq!(
        (memory.weight_bytes, checkpoint.weights.precisions()),
        (checkpoint.weights.bytes(), vec![Precision::F32])
    );
    // Two layers, keys and values, two heads of six numbers, two bytes each.
    assert_eq!(memory.kv_bytes_per_token, 2 * 2 * 2 * 6 * 2);
    let (shards, _) = open("llama-shards");
    assert_eq!(shards.config.memory(Precision::F16, Precision::F16).weight_bytes, shards.weights.bytes());
    assert_eq!(shards.weights.precisions(), [Precision::F16, Precision::Bf16]);
}

#[test]
fn tensors_that_are_not_used_do_not_speak_for_the_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixtures::folder("llama3")).expect("files") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).expect("weights");
    let mut tensors = SafeTensors::deserialize(&bytes).expect("weights").tensors();
    let old = TensorView::new(Dtype::F16, vec![3], &[0; 6]).expect("a tensor");
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), old));
    std::fs::write(&file, safetensors::serialize(tensors, None).expect("weights")).expect("written");
    let weights = Checkpoint::open(folder.path()).expect("a checkpoint").weights;
    assert_eq!((weights.precisions(), weights.bytes()), (vec![Precision::F32], open("llama3").0.weights.bytes()));
}

#[test]
fn a_checkpoint_that_does_not_fit_says_where() {
    let refused = |file: &str, change: &dyn Fn(String) -> Option<String>| {
        let copy = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(fixtures::folder("llama-shards")).expect("files") {
            let path = entry.expect("a file").path();
            std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("copied");
        }
        let path = copy.path().join(file);
        match change(std::fs::read_to_string(&path).expect("a text")) {
            Some(text) => std::fs::write(path, text).expect("written"),
            None => std::fs::remove_file(path).expect("removed"),
        }
        let error = Checkpoint::open(copy.path()).expect_err("refused").to_string();
        error.replace(&format!("{}/", copy.path().display()), "")
    };
    let replaced = |file: &str, from: &'static str, to: &'static str| {
        refused(file, &move |text: String| {
            assert!(text.contains(from), "{text}");
            Some(text.replace(from, to))
        })
    };
    assert_eq!(refused("tokenizer.json", &|_| None), "missing file tokenizer.json");
    assert_eq!(refused("tokenizer.json", &|_| Some("{}".to_owned())), "cannot parse tokenizer.json");
    assert_eq!(refused("model.safetensors.index.json", &|_| None), "missing file model.safetensors");
    let wrong = "weights in model.safetensors.index.json do not fit the model: ";
    let error = replaced("config.json", "\"intermediate_size\": 32", "\"intermediate_size\": 48");
    let expected = "tensor model.layers.0.mlp.gate_proj.weight has shape [32, 24], expected [48, 24]; ";
    assert!(error.starts_with(&format!("{wrong}{expected}")), "{error}");
    let error = replaced("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let expected = "missing tensor model.layers.2.input_layernorm.weight of shape [24]; ";
    assert!(error.starts_with(&format!("{wrong}{expected}")) && error.ends_with("; and 1 more"), "{error}");
    let error = replaced("config.json", "\"model_type\": \"llama\"", "\"model_type\": \"qwen2\"");
    assert!(error.contains("missing tensor model.layers.1.self_attn.v_proj.bias of shape [12]"), "{error}");
    let error = replaced("tokenizer.json", "\"<|im_end|>\":2", "\"<|im_end|>\":2,\"beyond\":288");
    assert_eq!(error, "config.json has vocab_size 288, expected at least 289, for the tokenizer's tokens");
}

/// A sequence that is read, and continued with the likeliest tokens, beside others.
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    /// Tokens that are in the blocks.
    done: usize,
    /// The logits after so many tokens.
    rows: Vec<(usize, Vec<f32>)>,
}

impl Sequence {
    fn new(tokens: &[u32], blocks: Vec<u32>, done: usize) -> Self {
        Self { tokens: tokens.to_vec(), blocks, done, rows: Vec::new() }
    }
}

/// One step of so many tokens of each sequence; none of those that are away.
fn advance(model: &mut PlainDecoder, sequences: &mut [Sequence], counts: &[usize]) {
    let mut taking: Vec<_> = sequences.iter_mut().zip(counts).filter(|(_, count)| **count > 0).collect();
    let slices: Vec<_> = taking
        .iter()
        .map(|(sequence, count)| Slice {
            tokens: &sequence.tokens[sequence.done..sequence.done + **count],
            position: sequence.done,
            blocks: &sequence.blocks,
            wants_logits: true,
        })
        .collect();
    let mut logits = Vec::new();
    model.step(&slices, &mut logits).expect("a step");
    let rows = logits.chunks(model.shape().vocabulary);
    assert_eq!(rows.len(), taking.len());
    for (row, (sequence, count)) in rows.zip(&mut taking) {
        sequence.done += **count;
        sequence.rows.push((sequence.done, row.to_vec()));
        if sequence.done == sequence.tokens.len() {
            sequence.tokens.push(likeliest(row));
        }
    }
}

#[test]
fn a_sequence_beside_others_goes_on_as_if_alone() {
    for name in NAMES {
        let (checkpoint, reference) = open(name);
        let (mut model, blocks, prompt) = (plain(&checkpoint), shuffled(7), &reference.prompt);
        let backwards: Vec<u32> = prompt.iter().rev().copied().collect();
        // The second shares the first five blocks of the first, and never computes them.
        let shared = [&blocks[..5], &blocks[15..25]].concat();
        let mut sequences = [
            Sequence::new(prompt, blocks[..15].to_vec(), 0),
            Sequence::new(prompt, shared, 5 * BLOCK_TOKENS),
            Sequence::new(&backwards, blocks[25..].to_vec(), 0),
        ];
        let length = prompt.len();
        for counts in [[16, 0, 0], [24, 0, 1], [7, 9, 30], [length - 47, length - 49, length - 31]] {
            advance(&mut model, &mut sequences, &counts);
        }
        for round in 1..reference.greedy.len() {
            // The third leaves and comes back.
            advance(&mut model, &mut sequences, &[1, 1, usize::from(round % 3 > 0)]);
        }
        assert_eq!(sequences[0].tokens, reference.tokens(), "{name}");
        assert_eq!(sequences[1].tokens, reference.tokens(), "{name}");
        compare_with_alone(name, &checkpoint, &sequences);
    }
}

fn compare_with_alone(name: &str, checkpoint: &Checkpoint, sequences: &[Sequence]) {
    let mut alone = plain(checkpoint);
    for sequence in sequences {
        for (done, row) in &sequence.rows {
            let expected = step(&mut alone, &sequence.tokens[..*done], 0, &in_order());
            let difference = difference(row, &expected);
            assert!(difference <= DIFFERENCE_MAX, "{name}: {difference} after {done} tokens");
        }
    }
}

#[test]
fn what_a_block_held_before_leaves_no_trace() {
    let (checkpoint, reference) = open("llama3");
    let (mut used, mut fresh) = (plain(&checkpoint), plain(&checkpoint));
    let _longer = step(&mut used, &reference.tokens(), 0, &in_order());
    let (used, fresh) = (&mut used, &mut fresh);
    assert_eq!(step(used, &[5, 6, 7], 0, &[0]), step(fresh, &[5, 6, 7], 0, &[0]));
    // Steps without wanted logits give none, and steps without slices do nothing.
    let mut logits = Vec::new();
    used.step(&[Slice { tokens: &[8], position: 3, blocks: &[0], wants_logits: false }], &mut logits).expect("a step");
    used.step(&[], &mut logits).expect("no step");
    assert!(logits.is_empty());
    let expected = step(fresh, &[5, 6, 7, 8, 9], 0, &[0]);
    assert!(difference(&step(used, &[9], 4, &[0]), &expected) <= DIFFERENCE_MAX);
}
