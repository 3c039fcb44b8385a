//! From tokens to text that may be shown: whole characters, without stop strings.
//!
//! Contract: the pieces given out, joined, are the text of all tokens up to the first stop string, and what was given out is
//! never taken back. A token that ends within a character is held until the character is whole; text that may still turn
//! out to be the beginning of a stop string is held until it is known.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::ModelError;

/// What a tokenizer makes of bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';
/// Most of them that a character may be waiting behind; more are bytes that are no text, and are shown as what they are.
const REPLACEMENTS_MAX: usize = 3;

/// Turns the tokens of one answer into text, one by one.
#[derive(Debug)]
pub(crate) struct Detokeniser {
    tokenizer: Arc<Tokenizer>,
    /// The last token that is text by itself, of those before the pending ones: a tokenizer may write the first token of a
    /// text in another way than one that follows.
    context: Option<u32>,
    /// Bytes of its text.
    context_bytes: usize,
    /// The tokens since the last that ended with a character.
    pending: Vec<u32>,
    /// Bytes of their text that were given out.
    given: usize,
}

impl Detokeniser {
    pub(crate) const fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, context: None, context_bytes: 0, pending: Vec::new(), given: 0 }
    }

    /// The text that a token adds.
    ///
    /// # Errors
    /// [`ModelError::Detokenise`] when the tokenizer fails.
    pub(crate) fn push(&mut self, token: u32) -> Result<String, ModelError> {
        if self.is_silent(token) {
            return Ok(String::new());
        }
        self.pending.push(token);
        let text = self.text()?;
        let whole = text.trim_end_matches(REPLACEMENT);
        if whole.len() < text.len() && text[whole.len()..].chars().count() <= REPLACEMENTS_MAX {
            return Ok(self.give(whole));
        }
        let piece = self.give(&text);
        self.settle()?;
        Ok(piece)
    }

    /// The text that is left when no token follows.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn finish(&mut self) -> Result<String, ModelError> {
        let text = self.text()?;
        Ok(self.give(&text))
    }

    fn give(&mut self, text: &str) -> String {
        let piece = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = self.given.max(text.len());
        piece
    }

    /// Begins anew after the pending tokens.
    fn settle(&mut self) -> Result<(), ModelError> {
        let pending = std::mem::take(&mut self.pending);
        self.given = 0;
        if self.take_context(&pending)? || self.context.is_some() {
            return Ok(());
        }
        // Nothing but single bytes yet, which do not stand before others: any text does.
        let any = self.tokenizer.encode("a", false);
        let any = any.map_err(|source| ModelError::Tokenise { bytes: 1, source })?;
        self.take_context(any.get_ids())?;
        Ok(())
    }

    /// Takes the last of some tokens that is text by itself; says whether there is one.
    fn take_context(&mut self, tokens: &[u32]) -> Result<bool, ModelError> {
        for &token in tokens.iter().rev().filter(|&&token| !self.is_byte(token)) {
            let text = self.decode(&[token])?;
            if !text.contains(REPLACEMENT) {
                (self.context, self.context_bytes) = (Some(token), text.len());
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a token is no text: a control token, or none at all.
    fn is_silent(&self, token: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        self.tokenizer.id_to_token(token).is_none_or(|token| added.is_special_token(&token))
    }

    /// Whether a token stands for one byte by its name, as in SentencePiece's vocabularies. Tokenizers read bytes in a row
    /// as one text, and where that is none, all of them as none: what was a character would be lost beside half of another.
    fn is_byte(&self, token: u32) -> bool {
        self.tokenizer.id_to_token(token).is_some_and(|token| token.len() == 6 && token.starts_with("<0x"))
    }

    /// The text of the pending tokens.
    fn text(&self) -> Result<String, ModelError> {
        let tokens: Vec<u32> = self.context.iter().chain(&self.pending).copied().collect();
        let mut text = self.decode(&tokens)?;
        // A decoder that changes what was there before is beyond us; nothing is shown twice at least.
        Ok(text.split_off(text.floor_char_boundary(self.context_bytes)))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        let count = tokens.len();
        self.tokenizer.decode(tokens, true).map_err(|source| ModelError::Detokenise { tokens: count, source })
    }
}

/// Finds the first of some strings in a text that comes in pieces.
#[derive(Debug)]
pub(crate) struct StopStrings {
    strings: Arc<[String]>,
    held: String,
}

impl StopStrings {
    pub(crate) const fn new(strings: Arc<[String]>) -> Self {
        Self { strings, held: String::new() }
    }

    /// What may be shown after another piece, and whether a stop string ended the text there.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let wanted = || self.strings.iter().filter(|string| !string.is_empty());
        let stop = wanted().filter_map(|string| self.held.find(string.as_str())).min();
        if let Some(stop) = stop {
            self.held.truncate(stop);
            return (std::mem::take(&mut self.held), true);
        }
        let kept = wanted().map(|string| common(&self.held, string)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held when no piece follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that `string` begins with, in bytes.
fn common(text: &str, string: &str) -> usize {
    let most = text.len().min(string.len());
    (1..=most).rev().find(|&bytes| text.as_bytes().ends_with(&string.as_bytes()[..bytes])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::fixtures::tokenizer;

    fn shown(text: &str) -> String {
        let tokenizer = Arc::new(tokenizer());
        let ids = tokenizer.encode(text, false).expect("encodes").get_ids().to_vec();
        let mut detokeniser = Detokeniser::new(tokenizer);
        let mut shown: Vec<String> = ids.iter().map(|&id| detokeniser.push(id).expect("decodes")).collect();
        assert!(shown.iter().all(|piece| !piece.contains(REPLACEMENT) || text.contains(REPLACEMENT)));
        shown.push(detokeniser.finish().expect("decodes"));
        shown.concat()
    }

    proptest! {
        #[test]
        fn bytes_become_whole_characters(text in "[^\u{FFFD}]{0,20}") {
            prop_assert_eq!(shown(&text), text);
        }

        #[test]
        fn a_stop_string_is_found_wherever_the_pieces_end(text in "[ab]{0,12}", cuts in proptest::collection::vec(0..4_usize, 12)) {
            let strings: Arc<[String]> = ["abb", "bab", ""].map(str::to_owned).into();
            let expected = strings.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min();
            let mut stops = StopStrings::new(strings);
            let (mut shown, mut rest, mut stopped) = (String::new(), text.as_str(), false);
            for cut in cuts.into_iter().chain([12]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                let (piece, stop) = stops.push(piece);
                shown.push_str(&piece);
                prop_assert!(text.starts_with(&shown));
                if stop {
                    stopped = true;
                    break;
                }
            }
            if !stopped {
                shown.push_str(&stops.finish());
            }
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(shown, &text[..expected.unwrap_or(text.len())]);
        }
    }

    #[test]
    fn what_may_become_a_stop_string_is_held() {
        let mut stops = StopStrings::new(["\nUser:".to_owned()].into());
        let pieces = ["One", " two\nUs", "ed\n", "User", ": three"].map(|piece| stops.push(piece));
        let expected = [("One", false), (" two", false), ("\nUsed", false), ("", false), ("", true)];
        assert_eq!(pieces.each_ref().map(|(text, stop)| (text.as_str(), *stop)), expected);
        assert_eq!(stops.push("\nUse"), (String::new(), false));
        assert_eq!(stops.finish(), "\nUse");
    }

    /// Pieces of words, bytes by their names and a control token, with a decoder of SentencePiece's kind.
    fn sentencepiece(decoder: &serde_json::Value) -> Arc<Tokenizer> {
        let special = serde_json::json!({"id": 0, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        let words = ["</s>", "\u{2581}", "\u{2581}a", "\u{2581}b", "a", "b"].map(str::to_owned);
        let bytes = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>"));
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            words.into_iter().chain(bytes).enumerate().map(|(id, token)| (token, id.into())).collect();
        let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
            "split": false});
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
            "pre_tokenizer": metaspace, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocabulary,
                "merges": [["\u{2581}", "a"], ["\u{2581}", "b"]]},
        });
        Arc::new(Tokenizer::from_bytes(json.to_string()).expect("a tokenizer"))
    }

    /// As Llama 2's and as Mistral's later tokenizers have it.
    fn decoders() -> [Arc<Tokenizer>; 2] {
        let bytes = serde_json::json!({"type": "ByteFallback"});
        let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
            "split": false});
        let spaces = serde_json::json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let llama = serde_json::json!([spaces, bytes, {"type": "Fuse"}, strip]);
        let sequence = |decoders: serde_json::Value| serde_json::json!({"type": "Sequence", "decoders": decoders});
        [sequence(llama), sequence(serde_json::json!([bytes, metaspace]))].map(|decoder| sentencepiece(&decoder))
    }

    proptest! {
        #[test]
        fn spaces_and_characters_survive_control_tokens_and_bytes(text in "[ab \n你🚀]{0,8}", ends in proptest::collection::vec(0..40_usize, 0..4)) {
            for tokenizer in decoders() {
                let mut ids = tokenizer.encode(text.as_str(), false).expect("encodes").get_ids().to_vec();
                for end in &ends {
                    ids.insert(*end.min(&ids.len()), 0);
                }
                let mut detokeniser = Detokeniser::new(Arc::clone(&tokenizer));
                let mut shown: String = ids.iter().map(|&id| detokeniser.push(id).expect("decodes")).collect();
                shown.push_str(&detokeniser.finish().expect("decodes"));
                // Of the spaces before a text, a tokenizer knows one less or more.
                prop_assert_eq!(shown.trim_start_matches(' '), text.trim_start_matches(' '));
            }
        }
    }

    #[test]
    fn a_space_survives_what_is_no_text() {
        for tokenizer in decoders() {
            let id = |token: &str| tokenizer.token_to_id(token).expect("a token");
            let shown = |tokens: &[&str]| {
                let mut detokeniser = Detokeniser::new(Arc::clone(&tokenizer));
                let mut shown: String = tokens.iter().map(|it| detokeniser.push(id(it)).expect("decodes")).collect();
                shown.push_str(&detokeniser.finish().expect("decodes"));
                shown
            };
            assert_eq!(shown(&["\u{2581}a", "</s>", "\u{2581}b"]), "a b");
            assert_eq!(shown(&["</s>", "\u{2581}a", "</s>", "</s>", "\u{2581}b"]), "a b");
            let junk = ["<0xFF>"; REPLACEMENTS_MAX + 1];
            let expected = format!("a{} b", "\u{FFFD}".repeat(junk.len()));
            assert_eq!(shown(&[&["\u{2581}a"], junk.as_slice(), &["\u{2581}b"]].concat()), expected);
            assert_eq!(shown(&[junk.as_slice(), &["\u{2581}b"]].concat()), expected[1..]);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_not_held_for_ever() {
        let tokenizer = Arc::new(tokenizer());
        let lead = tokenizer.encode("é", false).expect("encodes").get_ids()[0];
        let mut detokeniser = Detokeniser::new(tokenizer);
        let pieces: Vec<_> = (0..=REPLACEMENTS_MAX).map(|_| detokeniser.push(lead).expect("decodes")).collect();
        assert!(pieces[..REPLACEMENTS_MAX].iter().all(String::is_empty), "{pieces:?}");
        assert_eq!(pieces[REPLACEMENTS_MAX].chars().count(), REPLACEMENTS_MAX + 1);
    }
}
