//! Encoders of the BERT family against transformers, with the tiny checkpoints that `fixtures/make_encoders.py` made.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use turnflow_models::{
    AdapterChoice, DeviceChoice, Encoder, EncoderCheckpoint, EncoderConfig, EncoderEngine, EncoderOptions,
    EncoderPrecision, InputType, ModelError, ModelHome, dot,
};

const NAMES: [&str; 3] = ["bert-mean", "bert-cls", "bert-part"];
const KINDS: [(InputType, &str); 2] = [(InputType::Query, "query"), (InputType::Passage, "passage")];
/// Least cosine to what transformers computes.
const LIMITS: [(EncoderPrecision, f32); 2] = [(EncoderPrecision::F32, 0.99999), (EncoderPrecision::Bf16, 0.999)];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str) -> EncoderCheckpoint {
    EncoderCheckpoint::open(&folder(name)).expect("a checkpoint")
}

fn texts() -> Vec<String> {
    serde_json::from_str(include_str!("fixtures/encoder-texts.json")).expect("a list of texts")
}

/// What transformers computes, for each text as what asks or answers.
fn reference(name: &str, kind: &str, dimension: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder(name).join("reference.safetensors")).expect("vectors");
    let tensors = SafeTensors::deserialize(&bytes).expect("vectors");
    let tensor = tensors.tensor(kind).expect("vectors");
    let numbers: Vec<f32> = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    numbers.chunks_exact(dimension).map(<[f32]>::to_vec).collect()
}

/// The least cosine of vectors with the reference.
fn least(found: &[Arc<[f32]>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let cosines = found.iter().zip(expected).map(|(found, expected)| dot(found, expected));
    cosines.fold(1.0, |least, cosine| if cosine >= least { least } else { cosine })
}

fn config(name: &str) -> EncoderConfig {
    EncoderConfig { model: folder(name), adapter: AdapterChoice::None, ..EncoderConfig::default() }
}

#[test]
fn vectors_are_those_of_transformers() {
    let device = DeviceChoice::Cpu.resolve().expect("a CPU").device;
    for name in NAMES {
        let checkpoint = open(name);
        let fused = LIMITS.map(|(precision, limit)| {
            let options = EncoderOptions { precision, ..EncoderOptions::default() };
            (precision.to_string(), Encoder::load(&checkpoint, options).expect("an encoder"), limit)
        });
        let plain = Encoder::load_plain(&checkpoint, &device).expect("an encoder");
        let ways = fused.into_iter().chain([("module".to_owned(), plain, LIMITS[0].1)]);
        for (way, encoder, limit) in ways {
            let handle = EncoderEngine::start(encoder, &config(name)).expect("a thread");
            for (kind, named) in KINDS {
                let found = handle.encode_blocking(kind, texts()).expect("vectors");
                let least = least(&found, &reference(name, named, handle.dimension()));
                println!("{name}, {way}, {named}: least cosine {least:.8}");
                assert!(least >= limit, "{name}, {way}, {named}: {least}");
            }
        }
    }
}

#[test]
fn a_prefix_of_the_settings_goes_before_the_checkpoints() {
    let start = |config: &EncoderConfig| {
        let encoder = Encoder::load(&open("bert-part"), EncoderOptions::default()).expect("an encoder");
        EncoderEngine::start(encoder, config)
    };
    let plain = start(&config("bert-part")).expect("a thread");
    let set = EncoderConfig { query_prefix: "query: ".to_owned(), ..config("bert-part") };
    let prefixed = start(&set).expect("a thread");
    let vector = |text: &str, kind| prefixed.encode_blocking(kind, vec![text.to_owned()]).expect("a vector")[0].clone();
    let spelt =
        |text: &str| plain.encode_blocking(InputType::Query, vec![text.to_owned()]).expect("a vector")[0].clone();
    assert_eq!(vector("Where is my order?", InputType::Query), spelt("query: Where is my order?"));
    assert_eq!(vector("Where is my order?", InputType::Passage), spelt("Where is my order?"));
    // What a store is bound to says so, and how long a text may be beside it.
    let home = ModelHome::new("/no/such/home");
    assert_eq!(set.identity(&home).expect("read"), prefixed.identity());
    assert!(prefixed.identity().contains(", query prefix \"query: \" with adapter none"), "{}", prefixed.identity());
    assert_ne!(prefixed.identity(), plain.identity());
    assert_eq!(prefixed.pieces_max(InputType::Query) + 2, prefixed.pieces_max(InputType::Passage));

    let long = EncoderConfig { passage_prefix: "order ".repeat(42), ..config("bert-part") };
    let error = start(&long).expect_err("no room for a text");
    assert!(matches!(error, ModelError::Prefix { input: InputType::Passage, pieces: 42, most: 42 }), "{error}");
}

#[test]
fn an_encoder_is_found_by_folder_and_by_name() {
    let home = tempfile::tempdir().expect("a folder");
    let home = ModelHome::new(home.path());
    let pulled = EncoderConfig { model: "org/tiny".into(), ..config("bert-mean") };
    assert!(matches!(pulled.open(&home), Err(ModelError::MissingFile { .. })));
    let place = home.root().join("models/org");
    std::fs::create_dir_all(&place).expect("made");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder("bert-mean"), place.join("tiny")).expect("linked");
    let by_name = pulled.open(&home).expect("there").identity().expect("read");
    assert_eq!(by_name, open("bert-mean").identity().expect("read"));
    assert_eq!((pulled.name(), config("bert-mean").name()), ("org/tiny".to_owned(), "bert-mean".to_owned()));
}
