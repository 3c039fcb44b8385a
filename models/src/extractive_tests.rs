//! The extractive tier with an encoder that sees only how many known words a text has.

use turnflow_state::{ArticleId, Chunk, ChunkId, ContentHash, TenantId};

use super::*;
use crate::encoder::EncoderConfig;
use crate::engine::{self, BatchModel};
use crate::tokenizer::TextTokenizer;
use crate::tokenizer::testing::tiny;

/// The vector points from "no word known" (x) to "all words known" (y).
struct Share(TextTokenizer);

const KNOWN: u32 = 4;

impl BatchModel for Share {
    fn tokenizer(&self) -> &TextTokenizer {
        &self.0
    }

    fn dimension(&self) -> usize {
        2
    }

    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        let vector = |row: &&[u32]| {
            let known = row.iter().filter(|&&id| id == KNOWN).count() as f32 / (row.len() - 2).max(1) as f32;
            let angle = known * std::f32::consts::FRAC_PI_2;
            Arc::from([angle.cos(), angle.sin()])
        };
        Ok(rows.iter().map(vector).collect())
    }
}

const QUESTION: [f32; 2] = [0.0, 1.0];

fn tier(config: ExtractiveConfig) -> (Extractive, EncoderHandle) {
    let handle = engine::start(Share(tiny()), Default::default(), &EncoderConfig::default(), 0).expect("a thread");
    (Extractive::new(handle.clone(), config), handle)
}

fn found(article: &str, ordinal: u32, title: &str, text: &str, score: f32) -> ScoredChunk {
    let id = ChunkId {
        tenant: TenantId::new("shop").expect("an id"),
        article: ArticleId::new(article).expect("an id"),
        ordinal,
    };
    let chunk = Chunk {
        id,
        version: 3,
        title: title.to_owned(),
        text: text.to_owned(),
        hash: ContentHash::of(title, text),
        vector: Arc::from(QUESTION),
        since: 1,
    };
    ScoredChunk { chunk: Arc::new(chunk), score }
}

fn source(article: &str, chunk: u32) -> Source {
    Source { article_id: ArticleId::new(article).expect("an id"), version: 3, chunk }
}

#[test]
fn answers_by_table() {
    let (tier, _) = tier(ExtractiveConfig::default());
    let check = |retrieved: &[ScoredChunk], text: &str, sources: &[Source], pieces: usize| {
        let written = tier.answer("known?", &QUESTION, retrieved).expect("an answer");
        assert_eq!(written.answer.text, text);
        assert_eq!(written.answer.sources, sources);
        assert_eq!(written.pieces.concat(), written.answer.text);
        assert_eq!(written.pieces.len(), pieces);
        assert_eq!(written.answer.tier, Tier::Extractive);
        assert_eq!(written.answer.grounded, !sources.is_empty());
    };
    let unknown = ExtractiveConfig::default().unknown_text;
    check(&[], &unknown, &[], 1);
    check(&[found("a", 0, "x", "Nothing here.", 0.1)], &unknown, &[], 1);
    check(&[found("a", 0, "known", "", 0.9)], &unknown, &[], 1);
    // Sentences that have nothing to do with the question are left out, the others keep their order.
    let text = "Known known. Nothing at all here. Known known known.";
    check(&[found("a", 0, "known", text, 0.8)], "Known known. Known known known.", &[source("a", 0)], 2);
    // A list stays a list, with the line before it.
    let text = "Blah blah blah.\n\nKnown known:\n\n1. Known known\n2. blah blah\n\nKnown known known.";
    let expected = "Known known:\n1. Known known\n2. blah blah\n\nKnown known known.";
    check(&[found("a", 0, "known", text, 0.8)], expected, &[source("a", 0)], 4);
    // Only what contributed is a source, the best first, whatever was retrieved first.
    let retrieved = [
        found("b", 0, "x", "Blah known blah blah.", 0.55),
        found("a", 1, "known", "Known known known.", 0.7),
        found("a", 0, "known", "Known known.", 0.8),
    ];
    check(&retrieved, "Known known. Known known known.", &[source("a", 0), source("a", 1)], 2);
    // Where two articles are about as near, both answer.
    let retrieved = [found("a", 0, "x", "Known known.", 0.8), found("b", 2, "y", "Known known known.", 0.78)];
    check(&retrieved, "Known known.\n\nKnown known known.", &[source("a", 0), source("b", 2)], 2);
}

#[test]
fn chunks_are_taken_apart_once() {
    let (tier, encoder) = tier(ExtractiveConfig::default());
    let retrieved = [found("a", 0, "known", "Known known. Blah blah.", 0.8)];
    let first = tier.answer("known?", &QUESTION, &retrieved).expect("an answer");
    assert_eq!(encoder.stats().texts, 2, "two sentences");
    // The same text in another place is known; written otherwise it is another text.
    let copy = [found("b", 7, "KNOWN", "Known known. Blah blah.", 0.8)];
    let second = tier.answer("known?", &QUESTION, &copy).expect("an answer");
    assert_eq!((encoder.stats().texts, second.answer.sources.as_slice()), (2, &[source("b", 7)][..]));
    assert_eq!((&first.answer.text, first.answer.usage), (&second.answer.text, second.answer.usage));
    assert_eq!(first.answer.usage, Usage { input_tokens: 2 + 3 + 3, output_tokens: 3 });
    let other = [found("b", 7, "known", "KNOWN  known. Blah blah.", 0.8)];
    let third = tier.answer("known?", &QUESTION, &other).expect("an answer");
    assert_eq!((encoder.stats().texts, third.answer.text.as_str()), (4, "KNOWN  known."));
}

#[test]
fn without_memory_it_still_answers() {
    let (tier, encoder) = tier(ExtractiveConfig { memo_bytes_max: 0, ..ExtractiveConfig::default() });
    let retrieved = [found("a", 0, "known", "Known known.", 0.8)];
    for round in 1..=2 {
        let written = tier.answer("known?", &QUESTION, &retrieved).expect("an answer");
        assert_eq!(written.answer.text, "Known known.");
        assert_eq!(encoder.stats().texts, round);
    }
}

#[test]
fn what_is_read_is_bounded() {
    let (tier, encoder) = tier(ExtractiveConfig::default());
    let text: String = (0..SENTENCES_READ_MAX).map(|number| format!("Known {number}.\n")).collect();
    let retrieved =
        [0, 1].map(|ordinal| found("a", ordinal, "known", &text.replace("Known", &format!("Known{ordinal}")), 0.8));
    tier.answer("known?", &QUESTION, &retrieved).expect("an answer");
    assert_eq!(encoder.stats().texts as usize, SENTENCES_READ_MAX);
}

#[test]
fn a_foreign_vector_is_refused() {
    let (tier, _) = tier(ExtractiveConfig::default());
    let error = tier.answer("known?", &[1.0], &[]).expect_err("too short");
    assert_eq!(error.to_string(), "a vector of 1 numbers where 2 are expected");
}
