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
    /// The tokens since the last but one that ended with a character.
    tokens: Vec<u32>,
    /// Those of them up to the last such one. The text of what follows may depend on them: a tokenizer may write the first
    /// token of a text in another way.
    known: usize,
    /// Bytes of their text that were given out.
    given: usize,
}

impl Detokeniser {
    pub(crate) const fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, tokens: Vec::new(), known: 0, given: 0 }
    }

    /// The text that a token adds.
    ///
    /// # Errors
    /// [`ModelError::Detokenise`] when the tokenizer fails.
    pub(crate) fn push(&mut self, token: u32) -> Result<String, ModelError> {
        self.tokens.push(token);
        let text = self.text()?;
        let whole = text.trim_end_matches(REPLACEMENT);
        if whole.len() == text.len() {
            let piece = self.give(&text);
            self.tokens.drain(..self.known);
            (self.known, self.given) = (self.tokens.len(), self.text()?.len());
            Ok(piece)
        } else if text[whole.len()..].chars().count() > REPLACEMENTS_MAX {
            let piece = self.give(&text);
            (self.tokens, self.known, self.given) = (Vec::new(), 0, 0);
            Ok(piece)
        } else {
            Ok(self.give(whole))
        }
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

    fn text(&self) -> Result<String, ModelError> {
        let tokens = self.tokens.len();
        self.tokenizer.decode(&self.tokens, true).map_err(|source| ModelError::Detokenise { tokens, source })
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
