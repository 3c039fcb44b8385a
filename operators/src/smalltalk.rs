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

/// Words that greet.
pub(crate) const GREETINGS: &[&str] =
    &["hi", "hello", "hey", "heya", "hiya", "howdy", "greetings", "morning", "afternoon", "evening"];
const THANKS: &[&str] =
    &["thank", "thanks", "thanx", "thx", "tx", "ty", "thankyou", "appreciate", "appreciated", "cheers"];
const FAREWELLS: &[&str] =
    &["bye", "byebye", "goodbye", "goodnight", "farewell", "care", "cya", "ciao", "day", "night", "weekend"];
/// Words that may stand beside them, and say nothing by themselves.
const FILLERS: &str = "a absolutely actually again ah aha all all's alright alrighty am amazing and anyway anyways are asking at \
    awesome back be been best bit brilliant bro buddy bunch catch clarification clarifying cool darling definitely \
    done dude else enough everyone everything excellent fab fabulous fantastic fast finally fine folks for friend \
    glad god good goodness gosh got gotcha great guess guys ha haha hahaha happy have help helpful helping here's \
    hm hmm honestly hope hopefully i i'm i've info information interesting is it it's its just kind kindness later \
    looks lot lots lovely luck ma'am madam magnificent mam man marvellous marvelous mate me million mind moment \
    most much my nah neat needed never nevermind nice no nope now of oh ohh ok okay okey one outstanding pal \
    patience perfect pleasure quick quickest quickly quite really rest set sir sis so sounds splendid super superb \
    sure take sweet team terrific that that'd that'll that's thats the then there think though time to today today's \
    ton tons too totally truly trying u understand very was we we're welcome well whoa will wonderful would wow ya \
    yay yeah yep yes yess you you're you've your yours yup";
/// What is said and asked out of politeness, longer phrases before those that they begin with.
const PHRASES: &[&str] = &[
    "how are you doing",
    "how are you",
    "how are things",
    "how is it going",
    "how's it going",
    "how do you do",
    "what's up",
    "talk to you",
    "see you",
    "see ya",
    "your support",
    "nothing else",
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
        let mut text = text.to_lowercase().replace('’', "'");
        for phrase in PHRASES {
            text = text.replace(&format!("{phrase}?"), " ").replace(phrase, " ");
        }
        // Who asks anything else wants to know.
        if text.contains('?') {
            return None;
        }
        let words = words_of(&text);
        let words = without_name(&words);
        if words.len() > WORDS_MAX {
            return None;
        }
        let is = |kind: &[&str]| words.iter().any(|word| kind.contains(word));
        let belongs = |word: &&str| {
            [GREETINGS, THANKS, FAREWELLS].iter().any(|kind| kind.contains(word))
                || FILLERS.split(' ').any(|filler| filler == *word)
        };
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
            ("hey, what’s up", "hello"),
            ("Thanks for your support", "welcome"),
            ("Thanks so much for your help!", "welcome"),
            ("Amazing, thank you!!", "welcome"),
            ("No, that's all. Take care", "bye"),
            ("thanks, have a nice day", "bye"),
            ("goodbye", "bye"),
            ("Good evening", "hello"),
            ("OK, thanks anyway", "welcome"),
            ("That's all I needed, thank you", "welcome"),
            ("I understand. Thank you and goodbye", "bye"),
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
            "thanks, that is not right",
            "yes please, thank you",
            "thanks, book it",
            "hi, how do I talk to support?",
            "hello, how do I talk to the support team",
            "Hi, how much is it?",
            "Hi, is it good?",
            "thanks, I need more help",
            "hi, how much is this",
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
