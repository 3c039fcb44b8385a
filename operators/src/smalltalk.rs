//! Small talk: a greeting, thanks or a farewell and nothing else gets a fixed reply, without a model.
//!
//! A plain rule: the text is short, every word of it belongs to small talk, and one of them says which kind. "Hello, where
//! is my order?" is not small talk. A name that somebody introduces themselves with may stand at the end.
//!
//! Such replies rest on nothing in the knowledge base: they are cached for the same words alone, and no edit makes them invalid.

use serde::{Deserialize, Serialize};

use crate::recall::words_of;

/// What is said to small talk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SmallTalk {
    /// Whether small talk is told apart.
    pub enabled: bool,
    /// To a greeting.
    pub greeting: String,
    /// To thanks.
    pub thanks: String,
    /// To a farewell.
    pub farewell: String,
}

/// Longest small talk, in words.
const WORDS_MAX: usize = 10;
/// Longest name, in words.
const NAME_WORDS_MAX: usize = 2;

const GREETINGS: &[&str] =
    &["hi", "hello", "hey", "heya", "hiya", "howdy", "greetings", "morning", "afternoon", "evening"];
const THANKS: &[&str] = &["thank", "thanks", "thx", "ty", "thankyou", "appreciate", "appreciated", "cheers"];
const FAREWELLS: &[&str] = &["bye", "goodbye", "farewell", "care", "day", "night", "weekend"];
/// Words that may stand beside them.
const FILLERS: &[&str] = &[
    "a",
    "again",
    "all",
    "alright",
    "amazing",
    "and",
    "are",
    "awesome",
    "back",
    "be",
    "cool",
    "do",
    "doing",
    "everyone",
    "excellent",
    "fine",
    "folks",
    "for",
    "good",
    "great",
    "have",
    "help",
    "helping",
    "how",
    "i",
    "is",
    "it",
    "just",
    "lot",
    "lots",
    "lovely",
    "me",
    "much",
    "my",
    "nice",
    "no",
    "nope",
    "now",
    "of",
    "oh",
    "ok",
    "okay",
    "perfect",
    "really",
    "rest",
    "see",
    "so",
    "sure",
    "take",
    "talk",
    "team",
    "that",
    "that's",
    "thats",
    "the",
    "there",
    "time",
    "to",
    "today",
    "u",
    "very",
    "was",
    "well",
    "will",
    "wonderful",
    "you",
    "you've",
    "your",
    "yours",
    "been",
    "sir",
    "madam",
    "guys",
    "very",
    "today",
    "yes",
    "yep",
    "yeah",
    "super",
    "brilliant",
    "fantastic",
    "helpful",
    "assistance",
    "support",
];
const INTRODUCTIONS: &[&[&str]] =
    &[&["i'm"], &["im"], &["i", "am"], &["my", "name", "is"], &["this", "is"], &["my", "name's"]];

impl SmallTalk {
    /// The reply to a text that is nothing but small talk.
    #[must_use]
    pub fn reply(&self, text: &str) -> Option<&str> {
        if !self.enabled {
            return None;
        }
        let text = turnflow_state::normalise(text);
        let words = words_of(&text);
        let words = without_name(&words);
        if words.len() > WORDS_MAX {
            return None;
        }
        let is = |kind: &[&str]| words.iter().any(|word| kind.contains(word));
        let belongs = |word: &&str| [GREETINGS, THANKS, FAREWELLS, FILLERS].iter().any(|kind| kind.contains(word));
        if !words.iter().all(belongs) {
            return None;
        }
        // Who says thanks and goodbye is leaving.
        if is(FAREWELLS) {
            Some(&self.farewell)
        } else if is(THANKS) {
            Some(&self.thanks)
        } else if is(GREETINGS) {
            Some(&self.greeting)
        } else {
            None
        }
    }
}

/// The words before somebody introduces themselves at the end.
fn without_name<'a, 'b>(words: &'a [&'b str]) -> &'a [&'b str] {
    for introduction in INTRODUCTIONS {
        for at in 0..words.len().saturating_sub(introduction.len()) {
            let (from, named) = (at + introduction.len(), words.len() - at - introduction.len());
            // Without a greeting in front it may be the answer to a question.
            let greets = words[..at].iter().any(|word| GREETINGS.contains(word));
            if greets && words[at..from] == **introduction && named <= NAME_WORDS_MAX {
                return &words[..at];
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Option<String> {
        let texts = ("hello".to_owned(), "welcome".to_owned(), "bye".to_owned());
        let small_talk = SmallTalk { enabled: true, greeting: texts.0, thanks: texts.1, farewell: texts.2 };
        small_talk.reply(text).map(str::to_owned)
    }

    #[test]
    fn small_talk_and_nothing_else() {
        for (text, expected) in [
            ("Hello!", "hello"),
            ("hey there", "hello"),
            ("Good morning :)", "hello"),
            ("Hi, I'm Sarah", "hello"),
            ("Hi how are you?", "hello"),
            ("Thanks so much for your help!", "welcome"),
            ("Amazing, thank you!!", "welcome"),
            ("No, that's all. Take care", "bye"),
            ("thanks, have a nice day", "bye"),
            ("goodbye", "bye"),
        ] {
            assert_eq!(reply(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "Hello, where is my order?",
            "hi I want to cancel",
            "ok",
            "yes please",
            "no",
            "thanks but it is still broken",
            "I'm Sarah",
            "see you in court",
            "hi, I am waiting for three weeks",
            "",
            "that is it",
            "same day delivery",
        ] {
            assert_eq!(reply(text), None, "{text}");
        }
    }
}
