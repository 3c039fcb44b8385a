//! One text, one key: the normal form under which two questions, or two chunks, count as the same.

use unicode_normalization::UnicodeNormalization;

/// What ends a sentence or a part of one.
const STOPS: [char; 7] = ['.', '!', '?', ',', ';', ':', '…'];

/// What people say before they ask, longer phrases before those that they begin with, and whether they leave out the stop behind it.
const OPENINGS: [(&str, bool); 12] = [
    ("hi there", true),
    ("hi", true),
    ("hello there", true),
    ("hello", true),
    ("hey there", true),
    ("hey", true),
    ("please", true),
    ("greetings", false),
    ("good day", false),
    ("good morning", false),
    ("good afternoon", false),
    ("good evening", false),
];
/// What people say when they have asked, longer phrases before those that they end in.
const CLOSINGS: [&str; 11] = [
    "please",
    "pls",
    "plz",
    "many thanks",
    "thanks",
    "thx",
    "thank you",
    "thanks in advance",
    "thank you in advance",
    "thank you so much",
    "thank you very much",
];
/// After these a closing is what is talked about.
const NAMING: [&str; 10] = ["a", "and", "or", "say", "saying", "says", "the", "with", "word", "words"];
/// Words that a question has at least, without what is polite. Fewer are an exchange of its own: "no" is not "no thanks".
const QUESTION_WORDS_MIN: usize = 4;

/// Normal form of a text: NFC, lower case, white space collapsed, and no punctuation at the end.
///
/// Other punctuation stays, because it can carry the meaning: `1.5` is not `15`, `.5` is not `5`, and `a@b.example` is
/// not `a b example`. So do characters that only look alike in part: `10²` is not `102`. A text of punctuation alone is kept
/// as it is, trimmed.
#[must_use]
pub fn normalise(text: &str) -> String {
    // The minus sign and the hyphen are one: people type whichever they have.
    let folded: String =
        text.nfc().map(|c| if c == '\u{2212}' { '-' } else { c }).flat_map(char::to_lowercase).nfc().collect();
    let trimmed = folded.trim_end_matches(|c: char| c.is_whitespace() || STOPS.contains(&c));
    let kept = if trimmed.is_empty() { folded.trim() } else { trimmed };
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a text asks, for those who look at its meaning: the text without greetings in front and courtesies behind, where enough is
/// left. It knows English ones.
#[must_use]
pub fn question_of(text: &str) -> &str {
    let mut asked = text.trim();
    let before = |asked| OPENINGS.iter().find_map(|&(opening, may_lack_stop)| after(opening, may_lack_stop, asked));
    let behind = |asked| CLOSINGS.iter().find_map(|closing| before_closing(closing, asked));
    while let Some(less) = before(asked).or_else(|| behind(asked)) {
        asked = less;
    }
    let words = asked.split_whitespace().filter(|word| word.contains(char::is_alphanumeric));
    if words.count() < QUESTION_WORDS_MIN { text } else { asked }
}

/// What comes after an opening. Without a stop between them, what follows is no name: "Hello Kitty" is somebody else.
fn after<'a>(opening: &str, may_lack_stop: bool, text: &'a str) -> Option<&'a str> {
    let mut rest = text;
    for word in opening.split(' ') {
        let begins = rest.trim_start();
        let (first, others) = begins.split_at(begins.find(|c: char| !c.is_alphanumeric()).unwrap_or(begins.len()));
        if !first.eq_ignore_ascii_case(word) {
            return None;
        }
        rest = others;
    }
    let unstopped = rest.trim_start_matches(STOPS);
    let asked = unstopped.trim_start();
    let is_apart = asked.len() < unstopped.len() && !asked.is_empty();
    let may_follow = unstopped.len() < rest.len() || (may_lack_stop && !is_capitalised(asked));
    (is_apart && may_follow).then_some(asked)
}

/// Whether a text begins like a name: with a capital letter, and goes on with a small one.
fn is_capitalised(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase)
}

/// What comes before a closing.
fn before_closing<'a>(closing: &str, text: &'a str) -> Option<&'a str> {
    let mut rest = text.trim_end_matches(STOPS);
    for word in closing.rsplit(' ') {
        let ends = rest.trim_end();
        let before = ends.trim_end_matches(char::is_alphanumeric);
        if !ends[before.len()..].eq_ignore_ascii_case(word) {
            return None;
        }
        rest = before;
    }
    let asked = rest.trim_end();
    let last = asked.rsplit(char::is_whitespace).next().unwrap_or_default();
    let is_apart = asked.len() < rest.len() && !NAMING.iter().any(|naming| last.eq_ignore_ascii_case(naming));
    (is_apart && !asked.is_empty()).then(|| asked.trim_end_matches([',', ';', ':']))
}

/// Normal form of a question: that of its text without the punctuation behind its words, which people set or leave out as they like.
#[must_use]
pub fn normalise_question(text: &str) -> String {
    let text = normalise(text);
    let words: Vec<&str> =
        text.split(' ').map(|word| word.trim_end_matches(STOPS)).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { text } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::{normalise, normalise_question, question_of};

    fn is_normal_form(normal: fn(&str) -> String, text: &str, expected: &str) {
        assert_eq!(normal(text), expected, "{text:?}");
        assert_eq!(normal(expected), expected, "not idempotent: {text:?}");
    }

    #[test]
    fn what_a_text_asks() {
        let check = |text: &str, expected: &str| assert_eq!(question_of(text), expected, "{text:?}");
        check("Hello, where is my order?", "where is my order?");
        check("hi where is my order", "where is my order");
        check("Hi! I need my invoice", "I need my invoice");
        check("hey there I need my invoice", "I need my invoice");
        check("Hi there! Good morning... please where is my order, please. Thank you very much!", "where is my order");
        check("Where is my order? thanks", "Where is my order?");
        check("hey .5 litres cost $1.50 pls", ".5 litres cost $1.50");
        check("HELLO WHERE IS IT NOW PLZ", "WHERE IS IT NOW");
        for whole in [
            "Hello!",
            "no, thanks",
            "no . . . thanks",
            "hi cancel my order",
            "please help me",
            "history of all my orders",
            "Hello Kitty mugs: what are they?",
            "Greetings cards: how much are they?",
            "Good morning tea: do you sell it?",
            "hello.example.com is that your address?",
            "Hi,.5 litres of tea cost how much?",
            "please-note pens come in which colours",
            "Do you have cards that say thank you?",
            "is it the same as in many-thanks",
            "where do I find the card that says thankyou",
            "",
            "  ",
        ] {
            check(whole, whole);
        }
    }

    #[test]
    fn normal_form_of_a_question() {
        let check = |text: &str, expected: &str| is_normal_form(normalise_question, text, expected);
        check("Thanks!  Bye.", "thanks bye");
        check("thanks, bye", "thanks bye");
        check("Hello... where is order #42, please?", "hello where is order #42 please");
        check("1.5 or .5 litres, for $3.20; a@b.example?", "1.5 or .5 litres for $3.20 a@b.example");
        check("10:30?", "10:30");
        check("well ... - no", "well - no");
        check("?!", "?!");
        check("", "");
    }

    #[test]
    fn normal_form() {
        let check = |text: &str, expected: &str| is_normal_form(normalise, text, expected);
        check("  Where is\tmy  ORDER?!  ", "where is my order");
        check("It costs $1.50.", "it costs $1.50");
        check("mail a@b.example, please", "mail a@b.example, please");
        check("Cafe\u{301}", "café");
        check("10² mugs", "10² mugs");
        check("İstanbul", "i̇stanbul");
        check("???", "???");
        check(".5 litre pan!", ".5 litre pan");
        check("\u{2212}5 degrees", "-5 degrees");
        check("", "");
        check("order #42", "order #42");
    }
}
