//! What stands before a text when it is encoded.
//!
//! Some encoders were trained to tell what asks from what answers it: a question comes with one prefix, a passage with another. Two
//! questions are compared with the question's prefix on both. Encoders that make no such difference have neither.

/// What a text is to the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// It asks: a customer's question, a search.
    Query,
    /// It answers: a piece of an article, its title, a sentence.
    Passage,
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
