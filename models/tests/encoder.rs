//! The encoder against sentence-transformers, whose vectors `reference/make.py` made.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod support;

use std::sync::Arc;

use turnflow_models::{
    DeviceChoice, Encoder, EncoderOptions, EncoderPrecision, InstructionChoice, Instructions, ModelError, dot,
};

const COSINE_MIN: f32 = 0.99999;
/// Longest input of the encoder that ships, in word pieces.
const TOKENS_MAX: usize = 256;
const BF16_COSINE_MIN: f32 = 0.9999;
/// Least cosine of texts of random words to the vectors of the module, and most by which a number of a vector may differ beside
/// other texts: sums of another order differ in their last digits, which rounding then makes more of.
const LIMITS: [(EncoderPrecision, f32, f32); 2] =
    [(EncoderPrecision::F32, COSINE_MIN, 1e-5), (EncoderPrecision::Bf16, 0.9995, 3e-3)];
const CHOICES: [InstructionChoice; 4] =
    [InstructionChoice::Avx512Bf16, InstructionChoice::Avx512, InstructionChoice::Avx2, InstructionChoice::Portable];

fn reference() -> (Vec<String>, Vec<Vec<f32>>) {
    let texts: Vec<String> = serde_json::from_str(include_str!("reference/sentences.json")).expect("a list of texts");
    let numbers: Vec<f32> = include_bytes!("reference/vectors.bin")
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    let vectors: Vec<Vec<f32>> = numbers.chunks_exact(384).map(<[f32]>::to_vec).collect();
    assert_eq!((texts.len(), vectors.len()), (50, 50));
    (texts, vectors)
}

fn compare(way: &str, texts: &[String], expected: &[Vec<f32>], found: &[Arc<[f32]>], cosine_min: f32) {
    assert_eq!(found.len(), expected.len());
    let cosines: Vec<f32> = expected.iter().zip(found).map(|(expected, found)| dot(expected, found)).collect();
    for (text, &cosine) in texts.iter().zip(&cosines) {
        assert!(cosine >= cosine_min, "{way}: cosine {cosine} for {text:?}");
    }
    println!("{way}: least cosine {:.8}", cosines.iter().copied().fold(f32::MAX, f32::min));
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let encoder = support::encoder();
    assert_eq!(encoder.dimension(), 384);
    let (texts, expected) = reference();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = encoder.encode(&borrowed).expect("vectors");
    compare("all at once", &texts, &expected, &together, COSINE_MIN);
    let alone: Vec<_> = borrowed.iter().flat_map(|text| encoder.encode(&[text]).expect("a vector")).collect();
    compare("one by one", &texts, &expected, &alone, COSINE_MIN);
    assert!(encoder.encode(&[]).expect("nothing").is_empty());
    let options = EncoderOptions { precision: EncoderPrecision::Bf16, ..EncoderOptions::default() };
    let narrow = Encoder::load(&support::files(), options).expect("an encoder");
    compare("bf16", &texts, &expected, &narrow.encode(&borrowed).expect("vectors"), BF16_COSINE_MIN);
}

#[test]
fn word_pieces_are_counted_in_full() {
    let encoder = support::encoder();
    let check = |text: &str, expected: usize| assert_eq!(encoder.count_tokens(text), expected, "{text:?}");
    check("", 0);
    check("where is my order?", 5);
    check(&"order ".repeat(1_000), 1_000);
}

#[test]
fn an_article_is_cut_into_chunks_that_fit() {
    let encoder = support::encoder();
    let step = "Open the settings, choose your address and confirm the change with the code that we send you.";
    let article = format!("{}\n\n1. Log in\n2. Click\n\n{}", [step; 12].join(" "), [step; 9].join("\n"));
    let chunks = encoder.tokenizer().cut(&article, 200);
    assert!(chunks.len() >= 2);
    for chunk in &chunks {
        assert!(encoder.count_tokens(chunk) <= 200, "{chunk:?}");
        assert!(chunk.ends_with(['.', 'k']), "cut at the end of a sentence: {chunk:?}");
    }
}

/// Every way in which this processor encodes, and its limits.
fn ways() -> impl Iterator<Item = (EncoderOptions, f32, f32)> {
    let choices = CHOICES.into_iter().filter(|choice| choice.resolve().is_ok());
    choices.flat_map(|instructions| {
        LIMITS.map(|(precision, cosine, apart)| (EncoderOptions { precision, instructions, threads: 2 }, cosine, apart))
    })
}

/// Texts of random words and lengths, short ones more often.
fn random_texts(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = || {
        let most = *random.choice(&[3, 14, 60, TOKENS_MAX]).expect("a choice");
        let length = random.usize(2..=most);
        std::iter::once(101).chain((2..length).map(|_| random.u32(1000..30_000))).chain([102]).collect()
    };
    (0..count).map(|_| text()).collect()
}

#[test]
fn batches_of_any_make_up_give_what_the_module_gives() {
    let device = DeviceChoice::Cpu.resolve().expect("a CPU").device;
    let plain = Encoder::load_plain(&support::files(), &device).expect("an encoder");
    let batches: Vec<_> = [1, 3, 9].into_iter().zip(1..).map(|(count, seed)| random_texts(count, seed)).collect();
    let expected: Vec<Vec<_>> = batches
        .iter()
        .map(|texts| texts.iter().map(|text| plain.forward(&[text]).expect("a vector")[0].clone()).collect())
        .collect();
    for (options, cosine_min, apart_max) in ways() {
        let encoder = Encoder::load(&support::files(), options).expect("an encoder");
        let (mut least, mut most) = (1.0_f32, 0.0_f32);
        for (texts, expected) in batches.iter().zip(&expected) {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let found = encoder.forward(&texts).expect("vectors");
            assert_eq!(found.len(), texts.len());
            for ((found, expected), text) in found.iter().zip(expected).zip(&texts) {
                let alone = encoder.forward(&[text]).expect("a vector");
                let apart = found.iter().zip(&*alone[0]).map(|(a, b)| (a - b).abs());
                (least, most) = (least.min(dot(found, expected)), apart.fold(most, f32::max));
            }
        }
        println!("{options:?}: least cosine {least:.8}, {most:.8} apart at most beside others");
        assert!(least >= cosine_min && most <= apart_max, "{options:?}: cosine {least}, {most} apart");
    }
}

#[test]
fn instructions_that_are_not_there_are_refused() {
    let has: Vec<&str> = Instructions::available().iter().map(|set| set.name()).collect();
    for choice in CHOICES {
        match choice.resolve() {
            Ok(set) => assert_eq!(set.name(), choice.to_string()),
            Err(error @ ModelError::Instructions { .. }) => {
                assert!(!has.contains(&choice.to_string().as_str()), "{error}");
                assert!(error.to_string().contains("portable"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(InstructionChoice::Auto.resolve().expect("a set"), Instructions::detect());
}
