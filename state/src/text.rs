//! One text, one key: the normal form under which two questions, or two chunks, count as the same.

use unicode_normalization::UnicodeNormalization;

/// What ends a sentence or a part of one.
const STOPS: [char; 7] = ['.', '!', '?', ',', ';', ':', '…'];

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
    use super::{normalise, normalise_question};

    #[test]
    fn normal_form_of_a_question() {
        let check = |text: &str, expected: &str| {
            assert_eq!(normalise_question(text), expected, "{text:?}");
            assert_eq!(normalise_question(expected), expected, "not idempotent: {text:?}");
        };
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
        let check = |text: &str, expected: &str| {
            assert_eq!(normalise(text), expected, "{text:?}");
            assert_eq!(normalise(expected), expected, "not idempotent: {text:?}");
        };
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
