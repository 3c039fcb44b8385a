//! Cutting texts: articles into chunks for the index, chunks into sentences for answers.
//!
//! Contract: pieces are substrings of the text, in its order, trimmed and never empty; only white space is lost
//! between them, with one exception that is told at [`sentences`]. Language-neutral except for a list of English
//! abbreviations.

use text_splitter::{ChunkConfig, ChunkSizer, TextSplitter};
use unicode_segmentation::UnicodeSegmentation;

use crate::tokenizer::TextTokenizer;

/// Abbreviations after which a capital letter does not start a sentence, in lower case without the full stop.
const ABBREVIATIONS: &[&str] = &[
    "approx", "art", "cf", "dept", "dr", "e.g", "est", "ext", "fig", "gen", "i.e", "max", "min", "mr", "mrs", "ms",
    "nr", "p", "pp", "prof", "resp", "rev", "sec", "st", "tel", "viz", "vol", "vs",
];
/// Digits of a list item's number: `2024. ` at the start of a line is a year rather than an item.
const LIST_NUMBER_DIGITS_MAX: usize = 3;

impl TextTokenizer {
    /// Cuts a text into chunks of at most `tokens_max` word pieces, at the largest boundary that allows it:
    /// paragraphs, lines, sentences, words, and characters only within a word that is too long.
    #[must_use]
    pub fn cut(&self, text: &str, tokens_max: usize) -> Vec<String> {
        let config = ChunkConfig::new(tokens_max.max(1)).with_sizer(WordPieces(self));
        TextSplitter::new(config).chunks(text).map(str::to_owned).collect()
    }
}

struct WordPieces<'a>(&'a TextTokenizer);

impl ChunkSizer for WordPieces<'_> {
    fn size(&self, chunk: &str) -> usize {
        self.0.count(chunk)
    }
}

/// Cuts a text into sentences.
///
/// A list item (`1.`, `2)`, `-`, `*`, `•` at the start of a line) stays one piece with its marker, whatever it
/// holds. Other lines are pieces of their own, unless a line goes on with a small letter where the one before did
/// not end: such wrapped lines are joined with a space. Sentences end by Unicode's rules (UAX #29), except
/// after abbreviations, initials and quoted questions.
#[must_use]
pub fn sentences(text: &str) -> Vec<String> {
    unwrapped_lines(text)
        .into_iter()
        .flat_map(|line| if is_list_item(&line) { vec![line] } else { sentences_of_line(&line) })
        .collect()
}

/// Whether a line starts with a list marker.
pub(crate) fn is_list_item(line: &str) -> bool {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix(['-', '*', '•', '–', '·']) {
        return rest.starts_with(char::is_whitespace);
    }
    let number = line.bytes().take_while(u8::is_ascii_digit).count();
    let after = line[number..].strip_prefix(['.', ')']);
    (1..=LIST_NUMBER_DIGITS_MAX).contains(&number) && after.is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

fn unwrapped_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut may_go_on = false;
    for line in text.lines().map(str::trim) {
        let goes_on = may_go_on && line.starts_with(char::is_lowercase);
        may_go_on = !line.is_empty() && !line.ends_with(['.', '!', '?', ':', ';', '…']);
        match lines.last_mut() {
            Some(last) if goes_on => {
                last.push(' ');
                last.push_str(line);
            }
            _ if line.is_empty() => {}
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

fn sentences_of_line(line: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    let mut goes_on = false;
    for piece in line.split_sentence_bounds() {
        match sentences.last_mut() {
            Some(last) if goes_on || is_within_quote(last, piece) => last.push_str(piece),
            _ => sentences.push(piece.to_owned()),
        }
        goes_on = sentences.last().is_some_and(|sentence| !is_ended(sentence));
    }
    sentences.retain_mut(|sentence| {
        *sentence = sentence.trim().to_owned();
        !sentence.is_empty()
    });
    sentences
}

/// Whether a question or exclamation is only quoted: `Click "Forgot password?" to start.` is one sentence.
fn is_within_quote(sentence: &str, next: &str) -> bool {
    next.starts_with(char::is_lowercase) && sentence.trim_end().ends_with(['\'', '"', '’', '”', '»', ')', ']'])
}

/// Whether what UAX #29 takes for a sentence is one: not when it ends in an abbreviation or an initial.
fn is_ended(sentence: &str) -> bool {
    let Some(body) = sentence.trim_end().strip_suffix('.') else { return true };
    let last = body.rsplit(|c: char| c.is_whitespace() || "([\"'“‘".contains(c)).next().unwrap_or(body);
    let mut letters = last.chars();
    let is_initial = matches!((letters.next(), letters.next()), (Some(first), None) if first.is_uppercase())
        && body.len() > last.len();
    !is_initial && !ABBREVIATIONS.contains(&last.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::testing::tiny;

    #[test]
    fn sentences_by_table() {
        let check = |text: &str, expected: &[&str]| assert_eq!(sentences(text), expected, "{text:?}");
        check("", &[]);
        check(" \n\n\t", &[]);
        check("One. Two! Three?", &["One.", "Two!", "Three?"]);
        check("No end", &["No end"]);
        check("It costs $1.50. Version 2.0 is out.", &["It costs $1.50.", "Version 2.0 is out."]);
        check("Use a card, e.g. Visa. Or cash.", &["Use a card, e.g. Visa.", "Or cash."]);
        check(
            "Ask Mr. Smith or Dr. Who (i.e. The Doctor). Bye.",
            &["Ask Mr. Smith or Dr. Who (i.e. The Doctor).", "Bye."],
        );
        check("Written by J. R. R. Tolkien. Read it.", &["Written by J. R. R. Tolkien.", "Read it."]);
        check("Click 'Forgot Password?' to start. Done.", &["Click 'Forgot Password?' to start.", "Done."]);
        check("Really? \"Yes!\" She left.", &["Really?", "\"Yes!\"", "She left."]);
        check("Mail help@shop.example. We answer.", &["Mail help@shop.example.", "We answer."]);
        check("See shop.example for more. Thanks.", &["See shop.example for more.", "Thanks."]);
        check("Steps:\n1. Log in\n2. Click. Then wait.\n", &["Steps:", "1. Log in", "2. Click. Then wait."]);
        check("- one\n* two\n• three\n10) four", &["- one", "* two", "• three", "10) four"]);
        check("Title\nBody text. More.", &["Title", "Body text.", "More."]);
        check("A wrapped line that\ngoes on here. End.", &["A wrapped line that goes on here.", "End."]);
        check("1. Log in to\n   your account\n2. Go", &["1. Log in to your account", "2. Go"]);
        check("First.\n\nsecond paragraph", &["First.", "second paragraph"]);
        check(
            "Open Monday to Friday, 9:00 to 18:00. Call +1-555-0142.",
            &["Open Monday to Friday, 9:00 to 18:00.", "Call +1-555-0142."],
        );
        check("营业时间。我们在线。", &["营业时间。", "我们在线。"]);
        check("1999. What a year. 3.5 kg.", &["1999.", "What a year.", "3.5 kg."]);
        check("...", &["..."]);
        // An ellipsis may stand within a sentence: UAX #29 does not end one there.
        check("Wait… What?", &["Wait… What?"]);
    }

    #[test]
    fn list_items_by_table() {
        let check = |line: &str, expected: bool| assert_eq!(is_list_item(line), expected, "{line:?}");
        check("1. x", true);
        check("  12) x", true);
        check("- x", true);
        check("-5 degrees", false);
        check("1.5 litres", false);
        check("2024. A year", false);
        check("", false);
        check("1.", false);
    }

    #[test]
    fn chunks_keep_within_the_bound_and_lose_nothing() {
        let text = "First paragraph, short.\n\nSecond paragraph. It has three sentences. Each is short.\n\n1. a\n2. b";
        for tokens_max in [0, 1, 3, 8, 20, 200] {
            let chunks = tiny().cut(text, tokens_max);
            for chunk in &chunks {
                assert!(tiny().count(chunk) <= tokens_max.max(1), "{tokens_max}: {chunk:?}");
                assert!(!chunk.trim().is_empty());
            }
            let squeezed = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeezed(&chunks.concat()), squeezed(text), "{tokens_max}");
        }
        assert_eq!(tiny().cut(text, 200), [text]);
        assert_eq!(tiny().cut("", 200), Vec::<String>::new());
    }

    #[test]
    fn chunks_end_at_paragraphs_where_they_can() {
        let chunks = tiny().cut("One two three.\n\nFour five six.\n\nSeven.", 7);
        assert_eq!(chunks, ["One two three.", "Four five six.\n\nSeven."]);
    }
}
