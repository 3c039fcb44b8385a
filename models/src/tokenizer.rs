//! Texts to word pieces, with the encoder's own vocabulary.
//!
//! Contract: the ids are those that sentence-transformers computes, cut to the encoder's longest input. Truncation
//! and padding of the file itself are ignored: how much is kept is the encoder's affair, and padding is up to
//! the batch. Any text has word pieces, the empty one too. Cheap to clone; safe to share between threads.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use tokenizers::{ModelWrapper, Tokenizer};

use crate::checkpoint::{read_small, refuse};
use crate::error::{Cause, ModelError};

/// Word pieces that frame a text: `[CLS]` and `[SEP]`.
const FRAME: usize = 2;
/// Bytes of a text that are looked at for a vector. 510 word pieces of ordinary text are about 2,000 bytes.
const VECTOR_BYTES_MAX: usize = 64 * 1024;

/// A loaded vocabulary.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    start: u32,
    end: u32,
    tokens_max: usize,
    /// Whether texts are lower-cased before they come to the vocabulary.
    lowers: bool,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`, for inputs of at most `tokens_max` word pieces with the two that frame them.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, splits texts by other means, or its vocabulary has no `[CLS]` and `[SEP]`.
    pub fn load(path: &Path, tokens_max: usize) -> Result<Self, ModelError> {
        let parse = |source: Cause| ModelError::Parse { path: path.to_owned(), source };
        let tokenizer = Self::from_json(&read_small(path)?, tokens_max).map_err(parse)?;
        let found = match tokenizer.inner.get_model() {
            ModelWrapper::WordPiece(_) => return Ok(tokenizer),
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => "Unigram",
        };
        Err(refuse(path, "model.type", found, "WordPiece".to_owned()))
    }

    pub(crate) fn from_json(json: &[u8], tokens_max: usize) -> Result<Self, Cause> {
        let mut inner = Tokenizer::from_bytes(json)?;
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let special = |piece: &str| inner.token_to_id(piece).ok_or_else(|| format!("no word piece {piece}"));
        let (start, end) = (special("[CLS]")?, special("[SEP]")?);
        Ok(Self { inner: Arc::new(inner), start, end, tokens_max, lowers: false })
    }

    /// The same for texts that are lower-cased first, whatever the vocabulary does by itself, or not.
    #[must_use]
    pub(crate) fn lowering(self, lowers: bool) -> Self {
        Self { lowers, ..self }
    }

    fn cased<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.lowers { text.to_lowercase().into() } else { text.into() }
    }

    /// Number of word pieces of a whole text, without the two that frame it; 0 for a text that cannot be split.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.inner.encode_fast(self.cased(text), false).map_or(0, |encoding| encoding.len())
    }

    /// Word pieces of a text that the encoder reads, without the two that frame it.
    #[must_use]
    pub const fn pieces_max(&self) -> usize {
        self.tokens_max.saturating_sub(FRAME)
    }

    /// Ids of a text for the encoder: `[CLS]`, as many word pieces as it reads, `[SEP]`.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let head = &text[..text.floor_char_boundary(VECTOR_BYTES_MAX)];
        let encoding = self
            .inner
            .encode_fast(self.cased(head), false)
            .map_err(|source| ModelError::Tokenise { bytes: head.len(), source })?;
        let kept = encoding.get_ids().iter().copied().take(self.pieces_max());
        Ok(std::iter::once(self.start).chain(kept).chain([self.end]).collect())
    }

    /// One more than the largest id.
    pub(crate) fn vocabulary_size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("vocabulary", &self.inner.get_vocab_size(true)).finish()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A vocabulary of a few words, for tests without weights.

    use super::TextTokenizer;

    /// Longest input.
    pub(crate) const TOKENS_MAX: usize = 256;

    /// Splits at white space and punctuation; every word but `known` is `[UNK]`.
    pub(crate) fn tiny() -> TextTokenizer {
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": { "type": "Lowercase" },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "WordLevel",
                "vocab": { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "known": 4 },
                "unk_token": "[UNK]",
            },
        });
        TextTokenizer::from_json(json.to_string().as_bytes(), TOKENS_MAX).expect("a valid tokenizer")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{TOKENS_MAX, tiny};
    use super::*;

    #[test]
    fn every_text_has_word_pieces() {
        let check = |text: &str, expected: &[u32]| assert_eq!(tiny().ids(text).expect("ids"), expected, "{text:?}");
        check("", &[2, 3]);
        check(" \t\n", &[2, 3]);
        check("KNOWN", &[2, 4, 3]);
        check("what is known?", &[2, 1, 1, 4, 1, 3]);
    }

    #[test]
    fn texts_are_lower_cased_where_the_checkpoint_says_so() {
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "known": 3 }, "unk_token": "[UNK]" },
        });
        let cased = TextTokenizer::from_json(json.to_string().as_bytes(), TOKENS_MAX).expect("a valid tokenizer");
        assert_eq!(cased.ids("Known known").expect("ids"), [1, 0, 3, 2]);
        assert_eq!(cased.lowering(true).ids("Known KNOWN").expect("ids"), [1, 3, 3, 2]);
    }

    #[test]
    fn long_texts_are_cut_to_the_encoder() {
        let text = "known ".repeat(5_000);
        let ids = tiny().ids(&text).expect("ids");
        assert_eq!(ids.len(), TOKENS_MAX);
        assert_eq!((ids[0], ids[1], ids[TOKENS_MAX - 1]), (2, 4, 3));
        assert_eq!(tiny().count(&text), 5_000);
    }

    #[test]
    fn the_byte_bound_does_not_split_a_character() {
        let text = "é".repeat(VECTOR_BYTES_MAX);
        assert_eq!(tiny().ids(&format!("a{text}")).expect("ids").len(), 3);
    }

    #[test]
    fn a_vocabulary_without_frame_is_refused() {
        let json = br#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"[UNK]":0},"unk_token":"[UNK]"}}"#;
        let error = TextTokenizer::from_json(json, TOKENS_MAX).expect_err("no [CLS]");
        assert_eq!(error.to_string(), "no word piece [CLS]");
    }
}
