//! What the tests of this module share: a tokenizer of bytes, and a small decoder that remembers what it was told.

use std::sync::Arc;

use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::decoder::{Slice, StepModel, StepShape};
use crate::error::ModelError;

/// One token for each byte, and the control tokens of ChatML.
pub(super) fn tokenizer() -> Tokenizer {
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort();
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        alphabet.into_iter().enumerate().map(|(id, letter)| (letter, id.into())).collect();
    let special = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(256, START), special(257, END), special(258, "</s>")],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    Tokenizer::from_bytes(json.to_string()).expect("a tokenizer")
}

pub(super) const START: &str = "<|im_start|>";
pub(super) const END: &str = "<|im_end|>";
pub(super) const VOCABULARY: usize = 259;

/// What a scripted decoder does, besides writing.
pub(super) type Hook = Arc<dyn Fn(&[Slice<'_>]) -> Result<(), ModelError> + Send + Sync>;

/// What comes after a text.
pub(super) type Script = Arc<dyn Fn(&[u32]) -> u32 + Send + Sync>;

/// A decoder whose memory holds, for each place, a digest of all tokens up to it: it refuses to read what was not written by
/// the same tokens, and its logits depend on all of them.
pub(super) struct Remembering {
    shape: StepShape,
    memory: Vec<Option<u64>>,
    pub(super) hook: Hook,
    /// What it wants to write after a digest, if not anything.
    pub(super) script: Option<Script>,
    /// All tokens up to a digest.
    texts: std::collections::HashMap<u64, Vec<u32>>,
}

impl Remembering {
    pub(super) fn new(blocks: usize, block_tokens: usize, context_max: usize, vocabulary: usize) -> Self {
        let shape = StepShape { blocks, block_tokens, context_max, vocabulary };
        let (memory, hook) = (vec![None; blocks * block_tokens], Arc::new(|_: &[Slice<'_>]| Ok(())));
        Self { shape, memory, hook, script: None, texts: std::collections::HashMap::new() }
    }
}

fn digest(before: u64, token: u32) -> u64 {
    (before ^ u64::from(token).wrapping_add(0x9E37_79B9)).wrapping_mul(0x0100_0000_01B3).rotate_left(23)
}

impl StepModel for Remembering {
    fn shape(&self) -> StepShape {
        self.shape
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let size = self.shape.block_tokens;
        (self.hook)(slices)?;
        for slice in slices {
            assert!(!slice.tokens.is_empty() && slice.blocks.len() * size >= slice.position + slice.tokens.len());
            let place = |position: usize| slice.blocks[position / size] as usize * size + position % size;
            let mut before = match slice.position {
                0 => 0,
                position => self.memory[place(position - 1)].expect("written before it is read"),
            };
            let mut text = if slice.position == 0 { Vec::new() } else { self.texts[&before].clone() };
            // Every place before it belongs to the same text.
            let mut seen = 0;
            for (position, &token) in text.iter().enumerate() {
                seen = digest(seen, token);
                assert_eq!(self.memory[place(position)], Some(seen), "position {position} was written by other tokens");
            }
            for (position, &token) in (slice.position..).zip(slice.tokens) {
                before = digest(before, token);
                text.push(token);
                self.memory[place(position)] = Some(before);
                self.texts.entry(before).or_insert_with(|| text.clone());
            }
            if slice.wants_logits {
                let wanted = self.script.as_ref().map(|script| script(&text));
                logits.extend((0..self.shape.vocabulary as u32).map(|token| match wanted {
                    Some(wanted) => f32::from(u8::from(token == wanted)),
                    None => (digest(before, token) >> 40) as f32 / 1e6,
                }));
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        self.memory.fill(None);
        Ok(())
    }
}
