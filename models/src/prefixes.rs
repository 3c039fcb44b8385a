//! What stands before a text when it is encoded.
//!
//! Some encoders were trained to tell what asks from what answers it: a question comes with one prefix, a passage with another. Two
//! questions are compared with the question's prefix on both. Encoders that make no such difference have neither.

use crate::error::ModelError;
use crate::tokenizer::TextTokenizer;

/// Longest prefix, in bytes, whether a checkpoint or a setting says it; the longest in use have some hundred.
pub const PREFIX_BYTES_MAX: usize = 1024;

/// What a text is to the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// It asks: a customer's question, a search.
    Query,
    /// It answers: a piece of an article, its title, a sentence.
    Passage,
}

impl std::fmt::Display for InputType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Passage => "passage",
        })
    }
}

/// The prefixes of an encoder, each empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// Before what asks.
    pub query: String,
    /// Before what answers.
    pub passage: String,
}

impl Prefixes {
    /// These, and another's where one of these is empty.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let either = |own: String, other: String| if own.is_empty() { other } else { own };
        Self { query: either(self.query, other.query), passage: either(self.passage, other.passage) }
    }

    /// The prefix of such a text.
    #[must_use]
    pub fn of(&self, input: InputType) -> &str {
        match input {
            InputType::Query => &self.query,
            InputType::Passage => &self.passage,
        }
    }

    /// Word pieces of such a text that an encoder with this vocabulary reads beside its prefix.
    pub(crate) fn room(&self, input: InputType, tokenizer: &TextTokenizer) -> usize {
        tokenizer.pieces_max().saturating_sub(tokenizer.count(self.of(input)))
    }

    /// Refuses prefixes that leave no room for a text.
    pub(crate) fn check(&self, tokenizer: &TextTokenizer) -> Result<(), ModelError> {
        match [InputType::Query, InputType::Passage].into_iter().find(|input| self.room(*input, tokenizer) == 0) {
            None => Ok(()),
            Some(input) => {
                let (pieces, most) = (tokenizer.count(self.of(input)), tokenizer.pieces_max());
                Err(ModelError::Prefix { input, pieces, most })
            }
        }
    }

    /// A text as the encoder reads it.
    pub(crate) fn apply(&self, input: InputType, text: String) -> String {
        match self.of(input) {
            "" => text,
            prefix => format!("{prefix}{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stands_before_its_kind_of_text() {
        let of_checkpoint = Prefixes { query: "query: ".to_owned(), passage: "passage: ".to_owned() };
        let set = Prefixes { query: "Q: ".to_owned(), passage: String::new() };
        let check = |prefixes: &Prefixes, query: &str, passage: &str| {
            assert_eq!(prefixes.apply(InputType::Query, "a".to_owned()), query);
            assert_eq!(prefixes.apply(InputType::Passage, "a".to_owned()), passage);
        };
        check(&Prefixes::default(), "a", "a");
        check(&of_checkpoint, "query: a", "passage: a");
        check(&set.or(of_checkpoint), "Q: a", "passage: a");
    }
}
