//! The tier that answers with the knowledge base's own sentences.
//!
//! Contract: an answer is made of sentences of the best retrieved article, word for word, in reading order, and where another may be
//! meant as well, of that one too; its sources are the chunks that gave them, best first. When nothing retrieved is close enough to the question it says
//! that it does not know, names no source and is not grounded. The same input gives the same answer.
//!
//! It writes nothing of its own, keeps no history, and reads at most [`SENTENCES_READ_MAX`] sentences.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use turnflow_state::{Answer, BoundedCache, ScoredChunk, Source, Tier, Usage};

use crate::cut::{is_list_item, sentences};
use crate::engine::EncoderHandle;
use crate::error::ModelError;
use crate::prefixes::InputType;
use crate::queue::Lane;
use crate::select::{Bounds, Choice, ReadChunk, ReadSentence, Role, choose};
use crate::vector::dot;

/// Sentences looked at for one answer; those of the worst chunks are ignored beyond it.
pub const SENTENCES_READ_MAX: usize = 256;
/// What a remembered sentence costs besides its text and its numbers, in bytes.
const SENTENCE_OVERHEAD_BYTES: usize = 96;

/// How the extractive tier answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExtractiveConfig {
    /// Most passages of an answer: a sentence, or a list with the line that introduces it.
    pub passages_max: usize,
    /// Least confidence of an answer, from 0 to 1; below it the tier does not know.
    pub confidence_min: f32,
    /// A passage whose cosine to the question is this much below the article's best is left out.
    pub similarity_margin: f32,
    /// Most articles that one answer draws on.
    pub articles_max: usize,
    /// An article whose score is this much below the best one's is left out.
    pub ambiguity_margin: f32,
    /// What the tier says when it does not know.
    pub unknown_text: String,
    /// Memory for sentences and their vectors, in bytes.
    pub memo_bytes_max: usize,
}

impl Default for ExtractiveConfig {
    fn default() -> Self {
        Self {
            passages_max: 4,
            confidence_min: 0.4,
            similarity_margin: 0.25,
            articles_max: 2,
            ambiguity_margin: 0.05,
            unknown_text: "I'm sorry, I don't know the answer to that. Could you put it in other words?".to_owned(),
            memo_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// An answer and the pieces it is streamed in: joined, they are exactly `answer.text`.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The whole answer.
    pub answer: Answer,
    /// One piece for each sentence.
    pub pieces: Vec<String>,
}

/// The extractive tier. Shareable between threads.
#[derive(Debug)]
pub struct Extractive {
    encoder: EncoderHandle,
    config: ExtractiveConfig,
    /// Chunks that were taken apart, by their text.
    memo: Mutex<Memo>,
}

struct Memo(BoundedCache<Arc<str>, Arc<[Sentence]>>);

impl std::fmt::Debug for Memo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memo").field("chunks", &self.0.len()).finish()
    }
}

/// A sentence of a chunk.
struct Sentence {
    text: String,
    role: Role,
    vector: Arc<[f32]>,
    /// Word pieces.
    tokens: u32,
}

/// What is read of a chunk.
struct Part<'a> {
    found: &'a ScoredChunk,
    sentences: Arc<[Sentence]>,
    /// So many of them.
    read: usize,
}

impl Part<'_> {
    fn sentences(&self) -> &[Sentence] {
        &self.sentences[..self.read]
    }
}

impl Extractive {
    /// A tier that encodes sentences with this encoder.
    #[must_use]
    pub fn new(encoder: EncoderHandle, config: ExtractiveConfig) -> Self {
        let memo = Mutex::new(Memo(BoundedCache::new(config.memo_bytes_max)));
        Self { encoder, config, memo }
    }

    /// Answers from the retrieved chunks, best first. Blocks while sentences that are new to it are encoded.
    ///
    /// # Errors
    /// When the question's vector is not the encoder's, or the encoder fails.
    pub fn answer(
        &self,
        question: &str,
        question_vector: &[f32],
        retrieved: &[ScoredChunk],
    ) -> Result<Written, ModelError> {
        let (expected, found) = (self.encoder.dimension(), question_vector.len());
        if expected != found {
            return Err(ModelError::Dimension { expected, found });
        }
        let parts = self.take_apart(retrieved)?;
        let chunks = seen_from(question_vector, &parts);
        let input_tokens =
            parts.iter().flat_map(Part::sentences).fold(0_u32, |sum, read| sum.saturating_add(read.tokens));
        let ExtractiveConfig { passages_max, similarity_margin, articles_max, ambiguity_margin, .. } = self.config;
        let bounds = Bounds { passages_max, margin: similarity_margin, articles_max, ambiguity: ambiguity_margin };
        let usage = Usage { input_tokens: input_tokens.saturating_add(self.tokens_of(question)), output_tokens: 0 };
        Ok(match choose(&chunks, bounds) {
            Some(choice) if choice.score >= self.config.confidence_min => Self::compose(&parts, &choice, usage),
            _ => self.unknown(usage),
        })
    }

    /// As much as may be read of what was retrieved.
    fn take_apart<'a>(&self, retrieved: &'a [ScoredChunk]) -> Result<Vec<Part<'a>>, ModelError> {
        let (mut left, mut parts) = (SENTENCES_READ_MAX, Vec::with_capacity(retrieved.len()));
        for found in retrieved {
            if left == 0 {
                break;
            }
            let sentences = self.sentences_of(&found.chunk.text)?;
            let read = sentences.len().min(left);
            left -= read;
            parts.push(Part { found, sentences, read });
        }
        Ok(parts)
    }

    /// The sentences of a text, from memory or encoded now; at most [`SENTENCES_READ_MAX`].
    fn sentences_of(&self, text: &str) -> Result<Arc<[Sentence]>, ModelError> {
        let memo = || self.memo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = memo().0.get(text) {
            return Ok(known.clone());
        }
        let mut texts = sentences(text);
        texts.truncate(SENTENCES_READ_MAX);
        // Not under the lock: other answers go on meanwhile, at worst encoding the same chunk twice.
        let vectors = self.encoder.encode_blocking_in(Lane::Ongoing, InputType::Passage, texts.clone());
        let vectors = vectors
            .map_err(|error| Arc::try_unwrap(error).unwrap_or_else(|error| ModelError::Shared { source: error }))?;
        let sentence = |(text, vector): (String, _)| {
            let (role, tokens) = (role_of(&text), self.tokens_of(&text));
            Sentence { text, role, vector, tokens }
        };
        let found: Arc<[Sentence]> = texts.into_iter().zip(vectors).map(sentence).collect();
        let bytes =
            |sentence: &Sentence| sentence.text.len() + size_of_val(&*sentence.vector) + SENTENCE_OVERHEAD_BYTES;
        let bytes = text.len() + found.iter().map(bytes).sum::<usize>();
        memo().0.insert(text.into(), found.clone(), bytes);
        Ok(found)
    }

    fn compose(parts: &[Part<'_>], choice: &Choice, mut usage: Usage) -> Written {
        let mut pieces: Vec<String> = Vec::new();
        let mut last = Role::Sentence;
        let mut article = None;
        for passage in &choice.passages {
            let id = &parts[passage.chunk].found.chunk.id.article;
            let mut is_new_article = article.replace(id).is_some_and(|before| before != id);
            for Sentence { text, role, tokens, .. } in &parts[passage.chunk].sentences[passage.sentences.clone()] {
                let separator = match pieces.is_empty() {
                    true => "",
                    false if std::mem::take(&mut is_new_article) => "\n\n",
                    false => separator(last, *role),
                };
                usage.output_tokens = usage.output_tokens.saturating_add(*tokens);
                pieces.push(format!("{separator}{text}"));
                last = *role;
            }
        }
        let mut by_score: Vec<_> = choice.passages.iter().collect();
        by_score.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut sources: Vec<Source> = Vec::new();
        for source in by_score.into_iter().map(|passage| Source::of(&parts[passage.chunk].found.chunk)) {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        let answer =
            Answer { text: pieces.concat(), tier: Tier::Extractive, sources, usage, grounded: true, cut_off: false };
        Written { answer, pieces }
    }

    fn unknown(&self, mut usage: Usage) -> Written {
        let text = self.config.unknown_text.clone();
        usage.output_tokens = self.tokens_of(&text);
        let pieces = vec![text.clone()];
        Written {
            answer: Answer {
                text,
                tier: Tier::Extractive,
                sources: Vec::new(),
                usage,
                grounded: false,
                cut_off: false,
            },
            pieces,
        }
    }

    fn tokens_of(&self, text: &str) -> u32 {
        u32::try_from(self.encoder.tokenizer().count(text)).unwrap_or(u32::MAX)
    }
}

/// What was read, with the similarities of everything to the question.
fn seen_from(question: &[f32], parts: &[Part<'_>]) -> Vec<ReadChunk> {
    let mut articles = Vec::new();
    let seen = parts.iter().map(|part| {
        let id = &part.found.chunk.id;
        let article = articles.iter().position(|known| *known == &id.article).unwrap_or_else(|| {
            articles.push(&id.article);
            articles.len() - 1
        });
        let sentence = |read: &Sentence| ReadSentence { similarity: dot(question, &read.vector), role: read.role };
        let sentences = part.sentences().iter().map(sentence).collect();
        ReadChunk { article, ordinal: id.ordinal, chunk_similarity: part.found.score, sentences }
    });
    seen.collect()
}

fn role_of(sentence: &str) -> Role {
    if is_list_item(sentence) {
        Role::Item
    } else if sentence.ends_with(':') {
        Role::Introduction
    } else {
        Role::Sentence
    }
}

/// What stands between two sentences: list items keep lines of their own.
const fn separator(last: Role, next: Role) -> &'static str {
    match (last, next) {
        (_, Role::Item) => "\n",
        (Role::Item, _) | (_, Role::Introduction) => "\n\n",
        _ => " ",
    }
}

#[cfg(test)]
#[path = "extractive_tests.rs"]
mod tests;
