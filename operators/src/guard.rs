//! The guard: two texts whose numbers, ids, e-mail addresses, amounts, dates or people's names differ never share an answer,
//! however similar the encoder finds them.
//!
//! Deliberately strict: `$5` and `5 dollars` count as different. A false alarm costs a cache hit; a miss would show
//! a customer another one's order.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use unicode_words::words;

/// What a text mentions that must be equal in a text it shares an answer with, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mentions(Vec<String>);

impl Mentions {
    /// Finds every number, id, amount, address, day and name in a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let words: Vec<&str> = words(text).collect();
        let normal: Vec<String> = words.iter().map(|word| fold(word)).collect();
        // Without a possessive ending.
        let folded: Vec<&str> = normal.iter().map(|word| word.trim_end_matches("'s").trim_end_matches('.')).collect();
        let is_name = names(&words, &folded);
        let mention = |at: usize| {
            let beside_number = || {
                let numbered = |at: usize| folded.get(at).is_some_and(|word| word.contains(char::is_numeric));
                numbered(at + 1) || at.checked_sub(1).is_some_and(numbered)
            };
            let is_month = MONTHS_AND_VERBS.contains(&folded[at]) && beside_number();
            let is_code = at.checked_sub(1).is_some_and(|before| CODED.contains(&folded[before])) && is_code(words[at]);
            let must_agree = is_name[at] || is_month || is_code;
            if must_agree { Some(folded[at].to_owned()) } else { mention(words[at], folded[at]) }
        };
        Self((0..words.len()).filter_map(mention).collect())
    }

    /// Whether the text mentions nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Mentions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("nothing") } else { f.write_str(&self.0.join(" ")) }
    }
}

const COUNTS_AND_DAYS: &[&str] = &[
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
    "second",
    "third",
    "fourth",
    "fifth",
    "half",
    "twice",
    "dozen",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "january",
    "february",
    "april",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
/// Months that are other words too: they count beside a number only.
const MONTHS_AND_VERBS: &[&str] =
    &["march", "may", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
/// What stands before a name.
const TITLES: &[&str] = &["mr", "mrs", "ms", "miss", "mister", "dr", "doctor", "prof", "professor", "sir", "madam"];
/// Phrases that a name follows.
const INTRODUCTIONS: &[&[&str]] = &[
    &["my", "name", "is"],
    &["name's"],
    &["on", "behalf", "of"],
    &["in", "the", "name", "of"],
    &["under", "the", "name"],
    &["under", "the", "name", "of"],
    &["account", "of"],
    &["signed"],
];
/// What a full name follows, which is told by how it is written alone.
const BEFORE_FULL_NAMES: &[&str] = &["from", "of", "by"];
/// Words that follow an introduction and are no name.
const NO_NAMES: &[&str] =
    &["a", "an", "the", "my", "our", "your", "me", "not", "and", "to", "in", "on", "for", "with", "so"];
/// Most words of a name.
const NAME_WORDS_MAX: usize = 2;

/// Which words are of a person's name.
fn names(words: &[&str], folded: &[&str]) -> Vec<bool> {
    let mut is_name = vec![false; folded.len()];
    let mut mark = |from: usize| {
        for at in from..folded.len().min(from + NAME_WORDS_MAX) {
            // A second word is of the name only when it is written like one.
            let goes_on = at == from || words[at].starts_with(char::is_uppercase);
            if !goes_on || NO_NAMES.contains(&folded[at]) || !folded[at].starts_with(char::is_alphabetic) {
                break;
            }
            is_name[at] = true;
        }
    };
    for at in 0..folded.len() {
        let is_before_name = || {
            let name = words.get(at + 1..=at + NAME_WORDS_MAX);
            let is_name = name.is_some_and(|name| name.iter().all(|word| is_capitalised(word)));
            is_name && BEFORE_FULL_NAMES.contains(&words[at]) && !TITLES.contains(&folded[at + 1])
        };
        if TITLES.contains(&folded[at]) || is_before_name() {
            mark(at + 1);
        }
        for introduction in INTRODUCTIONS {
            let ends = at + introduction.len();
            if ends <= folded.len() && introduction.iter().zip(&folded[at..ends]).all(|(word, found)| word == found) {
                mark(ends);
            }
        }
    }
    is_name
}

/// Whether a word is written as names are, and not all in capitals.
fn is_capitalised(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase)
}

/// A word as it is compared: full-width digits are digits, and letter case does not count.
fn fold(word: &str) -> String {
    word.nfkc().collect::<String>().to_lowercase().replace('’', "'")
}

/// What a code of letters alone follows.
const CODED: &[&str] =
    &["code", "voucher", "coupon", "order", "reference", "ref", "ticket", "number", "id", "sku", "model"];
/// Letters of such a code at least: fewer may be an abbreviation.
const CODE_LETTERS_MIN: usize = 4;

/// Whether a word looks like a code of letters alone.
fn is_code(word: &str) -> bool {
    word.chars().count() >= CODE_LETTERS_MIN && word.chars().all(char::is_uppercase)
}

/// The word, given folded too, as far as it must agree; None for a word that may differ.
fn mention(word: &str, folded: &str) -> Option<String> {
    let letters = word.chars().filter(|c| c.is_alphabetic());
    let is_id = word.contains(['-', '_']) && letters.clone().count() >= 3 && letters.clone().all(char::is_uppercase);
    let numbered = folded.chars().any(char::is_numeric);
    let addressed = folded.contains('@') || folded.contains("://") || folded.starts_with("www.") || is_path(folded);
    // "twenty-six", "Mondays".
    let is_counted =
        |part: &str| COUNTS_AND_DAYS.contains(&part.trim_end_matches('s')) || COUNTS_AND_DAYS.contains(&part);
    let counted = folded.split('-').any(is_counted);
    (numbered || addressed || counted || folded.starts_with('#') || is_id)
        .then(|| folded.trim_start_matches('#').to_owned())
}

/// Whether a word is a host with a path, as in `shop.example/returns`.
fn is_path(word: &str) -> bool {
    word.split_once('/').is_some_and(|(host, path)| host.contains('.') && !path.is_empty())
}

mod unicode_words {
    //! Words as people set them apart: by white space, without the brackets and marks around them.

    /// The words of a text. Marks inside a word stay: `a.b@c.example`, `1,000.50`, `KK-48213`.
    pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
        let mark = |c: char| {
            !c.is_alphanumeric() && !matches!(c, '#' | '$' | '€' | '£' | '¥' | '₹' | '%' | '-' | '−' | '+' | '@')
        };
        text.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '[' | ']' | '"' | '“' | '”' | ';'))
            // A full stop in front may begin a number.
            .map(move |word| word.trim_end_matches(mark).trim_start_matches(|c| mark(c) && c != '.'))
            .filter(|word| !word.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Mentions;

    #[test]
    fn what_differs_is_found() {
        let differ = |a: &str, b: &str| assert_ne!(Mentions::of(a), Mentions::of(b), "{a:?} / {b:?}");
        differ("where is order 1234", "where is order 1235");
        differ("where is order #1234?", "where is order");
        differ("status of KK-48213", "status of KK-48214");
        differ("refund of $20.50 please", "refund of $20.60 please");
        differ("I paid 5 € twice", "I paid 5 € once");
        differ("write to ann@mail.example", "write to bob@mail.example");
        differ("two pans", "three pans");
        differ("is 5 of 10 good", "is 10 of 5 good");
        differ("code ABC-DEF", "code ABC-DEG");
        differ("see https://a.example/x", "see https://a.example/y");
        differ("call +1 555 0142", "call +1 555 0143");
        differ("order １２３", "order 124");
        differ("take 10%", "take 10");
        differ("-5 degrees", "5 degrees");
        differ("\u{2212}5 degrees", "5 degrees");
        differ("a .5 litre pan", "a 5 litre pan");
        differ("an invoice from Mr. Jones", "an invoice from mr smith");
        differ("invoices of Dr Ann Lee", "invoices of dr. Ann Low");
        differ("my name is Ann, where is it", "my name is Bob, where is it");
        differ("check invoices from Anna Freeman", "check invoices from david miller");
        differ("the orders of Anna Freeman", "the orders of Anna Miller");
        differ("deliver on Monday", "deliver on Tuesday");
        differ("ordered on 18 march", "ordered on 18 may");
        differ("return twenty-five pans", "return twenty-six pans");
        differ("where is my order ABCDEF", "where is my order ABCDEG");
        differ("see www.shop.example/a", "see www.shop.example/b");
        differ("see shop.example/a", "see shop.example/b");
        differ("monday's delivery", "tuesday's delivery");
        differ("monday’s delivery", "tuesday’s delivery");
        differ("closed on Sundays?", "closed on Mondays?");
        differ("voucher code WELCOME", "voucher code SPRING");
    }

    #[test]
    fn what_agrees_is_not() {
        let agree = |a: &str, b: &str| assert_eq!(Mentions::of(a), Mentions::of(b), "{a:?} / {b:?}");
        agree("where is my order?", "WHERE is the ORDER");
        agree("where is order #1234?", "order 1234, where is it");
        agree("order kk-48213", "my order (KK-48213)!");
        agree("write to Ann@Mail.example.", "ann@mail.example");
        agree("order １２３", "order 123");
        agree("invoice from Mr. Jones", "Mr Jones: his invoice");
        agree("WHERE IS MY PARCEL", "where is my parcel");
        agree("cancel order NOW", "cancel order now");
        agree("the colour of Blue pans", "the colour of blue pans");
        agree("A LIST OF YOUR PANS", "a list of your pans");
        agree("the FAQ and the VAT", "the faq and the vat");
        assert!(Mentions::of("re-order my pre-order and/or wait").is_empty());
        assert!(Mentions::of("you may march on, sir").is_empty());
    }
}
