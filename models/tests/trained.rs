//! The decoder on weights that were trained elsewhere: the story tellers of llama2.c, whose files are converted here.
//!
//! Skipped aloud unless `TURNFLOW_TINY_LLAMA` names a folder with `stories260K.bin` and `tok512.bin`, since these files are
//! not part of the project.
//!
//! The format: <https://github.com/karpathy/llama2.c/blob/master/export.py>, the version without a number.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod aloud;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use burn::tensor::Device;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use turnflow_models::{
    DecoderConfig, FusedDecoder, FusedOptions, PlainDecoder, Precision, Slice, StepModel, Weights, layer_tensor,
};

const BEGIN: u32 = 1;
const BLOCKS: usize = 16;
const BLOCK_TOKENS: usize = 16;

/// A file of numbers, read from the front.
struct Reader(std::vec::IntoIter<[u8; 4]>);

impl Reader {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the file");
        Self(bytes.as_chunks().0.to_vec().into_iter())
    }

    fn size(&mut self) -> usize {
        usize::try_from(i32::from_le_bytes(self.0.next().expect("a number"))).expect("a size")
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        let numbers: Vec<f32> = self.0.by_ref().take(count).map(f32::from_le_bytes).collect();
        assert_eq!(numbers.len(), count, "the file is cut short");
        numbers
    }
}

/// Rows of a head that are rotated together lie side by side there, and half a head apart here.
fn halves(rows: &[f32], width: usize, head_size: usize) -> Vec<f32> {
    let row = |index: usize| &rows[index * width..(index + 1) * width];
    let heads = (0..rows.len() / width).step_by(head_size);
    let order =
        heads.flat_map(|head| (0..2).flat_map(move |half| (0..head_size / 2).map(move |pair| head + 2 * pair + half)));
    order.flat_map(row).copied().collect()
}

/// Writes the checkpoint in the Hugging Face layout.
fn convert(file: &Path, folder: &Path) {
    let mut reader = Reader::open(file);
    let [hidden, wide, layers, heads, kv_heads, vocabulary, context] = std::array::from_fn(|_| reader.size());
    let head_size = hidden / heads;
    let keys = kv_heads * head_size;
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let embedding = reader.floats(vocabulary * hidden);
    tensors.insert("model.embed_tokens.weight".to_owned(), (vec![vocabulary, hidden], embedding));
    // Each part for all layers before the next.
    let parts: [(&str, &[usize]); 9] = [
        ("input_layernorm.weight", &[hidden]),
        ("self_attn.q_proj.weight", &[hidden, hidden]),
        ("self_attn.k_proj.weight", &[keys, hidden]),
        ("self_attn.v_proj.weight", &[keys, hidden]),
        ("self_attn.o_proj.weight", &[hidden, hidden]),
        ("post_attention_layernorm.weight", &[hidden]),
        ("mlp.gate_proj.weight", &[wide, hidden]),
        ("mlp.down_proj.weight", &[hidden, wide]),
        ("mlp.up_proj.weight", &[wide, hidden]),
    ];
    for (part, shape) in parts {
        for layer in 0..layers {
            let numbers = reader.floats(shape.iter().product());
            let rotated = part.contains("q_proj") || part.contains("k_proj");
            let numbers = if rotated { halves(&numbers, hidden, head_size) } else { numbers };
            tensors.insert(layer_tensor(layer, part), (shape.to_vec(), numbers));
        }
    }
    tensors.insert("model.norm.weight".to_owned(), (vec![hidden], reader.floats(hidden)));
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let data: Vec<_> = tensors.iter().map(|(name, (shape, numbers))| (name, shape, bytes(numbers))).collect();
    let views = data.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), data).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(folder.join("model.safetensors"), file).expect("written");
}

/// The pieces of text that tokens stand for.
fn pieces(file: &Path) -> Vec<String> {
    let bytes = std::fs::read(file).expect("the tokenizer");
    let mut rest = &bytes[4..];
    let mut pieces = Vec::new();
    while let Some((_score, after)) = rest.split_first_chunk::<4>() {
        let (length, after) = after.split_first_chunk::<4>().expect("a length");
        let (piece, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        pieces.push(String::from_utf8_lossy(piece).into_owned());
        rest = after;
    }
    pieces
}

/// The likeliest tokens after the first, as text.
fn story(mut model: impl StepModel, pieces: &[String]) -> String {
    let blocks: Vec<u32> = (0..BLOCKS as u32).rev().collect();
    let mut tokens = vec![BEGIN];
    let mut logits = Vec::new();
    while tokens.len() < 200 {
        logits.clear();
        let last = tokens.len() - 1;
        let slice = Slice { tokens: &tokens[last..], position: last, blocks: &blocks, wants_logits: true };
        model.step(&[slice], &mut logits).expect("a step");
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("logits").0;
        tokens.push(u32::try_from(best).expect("a token"));
    }
    tokens[1..].iter().map(|&token| pieces[token as usize].as_str()).collect()
}

fn tells_its_story(source: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    convert(&source.join("stories260K.bin"), folder.path());
    let config = DecoderConfig::read(&folder.path().join("config.json")).expect("a configuration");
    let weights = Weights::open(folder.path()).expect("weights");
    let pieces = pieces(&source.join("tok512.bin"));
    let plain = PlainDecoder::load(&config, &weights, &Device::flex(), Precision::F32, BLOCKS, BLOCK_TOKENS);
    let told = story(plain.expect("a decoder"), &pieces);
    println!("{told}");
    assert!(told.trim_start().starts_with("Once upon a time, there was a little girl named Lily"), "{told}");
    let fused = FusedDecoder::load(&config, &weights, FusedOptions::default(), BLOCKS, BLOCK_TOKENS);
    assert_eq!(story(fused.expect("a decoder"), &pieces), told);
}

fn main() -> ExitCode {
    aloud::run("a_trained_model_tells_its_story", || {
        let source = std::env::var_os("TURNFLOW_TINY_LLAMA").ok_or("TURNFLOW_TINY_LLAMA names no folder")?;
        tells_its_story(Path::new(&source));
        Ok(())
    })
}
