//! The encoder against sentence-transformers, whose vectors `reference/make.py` made.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod support;

use std::sync::Arc;

use turnflow_models::dot;

const COSINE_MIN: f32 = 0.99999;

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

fn compare(way: &str, texts: &[String], expected: &[Vec<f32>], found: &[Arc<[f32]>]) {
    assert_eq!(found.len(), expected.len());
    let cosines: Vec<f32> = expected.iter().zip(found).map(|(expected, found)| dot(expected, found)).collect();
    for (text, &cosine) in texts.iter().zip(&cosines) {
        assert!(cosine >= COSINE_MIN, "{way}: cosine {cosine} for {text:?}");
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
    compare("all at once", &texts, &expected, &together);
    let alone: Vec<_> = borrowed.iter().flat_map(|text| encoder.encode(&[text]).expect("a vector")).collect();
    compare("one by one", &texts, &expected, &alone);
    assert!(encoder.encode(&[]).expect("nothing").is_empty());
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
