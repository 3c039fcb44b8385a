//! A question as the verifier reads it: its words, and what they have in common with another's.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use turnflow_state::{normalise_question, question_of};

/// Words that carry no subject of their own.
const PLAIN: &[&str] = &[
    "a", "about", "am", "an", "and", "any", "are", "as", "at", "be", "been", "by", "can", "could", "did", "do", "does",
    "for", "from", "get", "got", "had", "has", "have", "hello", "help", "hey", "hi", "how", "i", "i'd", "i'll", "i'm",
    "i've", "if", "in", "is", "it", "its", "know", "like", "may", "me", "might", "mine", "my", "need", "of", "on",
    "or", "our", "please", "shall", "should", "some", "that", "the", "there", "these", "this", "those", "to", "try",
    "trying", "u", "ur", "us", "want", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will",
    "with", "would", "you", "your",
];
/// Words that turn a statement round.
pub(crate) const NEGATIONS: &[&str] = &[
    "cannot", "can't", "cant", "couldn't", "didn't", "doesn't", "don't", "dont", "hasn't", "haven't", "isn't",
    "longer", "never", "no", "not", "nothing", "unable", "wasn't", "without", "won't", "wouldn't",
];
/// Words that say what kind of answer is wanted.
const QUESTION_WORDS: &[&str] =
    &["what", "how", "when", "where", "who", "why", "which", "can", "could", "is", "are", "do", "does", "will"];
/// Pairs that turn one question into another.
const OPPOSITES: &[(&str, &str)] = &[
    ("activate", "deactivate"),
    ("add", "remove"),
    ("after", "before"),
    ("buy", "sell"),
    ("buy", "return"),
    ("cancel", "place"),
    ("cancel", "make"),
    ("cancel", "track"),
    ("change", "cancel"),
    ("change", "check"),
    ("close", "open"),
    ("create", "delete"),
    ("create", "remove"),
    ("decrease", "increase"),
    ("disable", "enable"),
    ("domestic", "international"),
    ("down", "up"),
    ("edit", "delete"),
    ("first", "last"),
    ("found", "lost"),
    ("in", "out"),
    ("login", "logout"),
    ("new", "old"),
    ("off", "on"),
    ("pay", "refund"),
    ("receive", "send"),
    ("subscribe", "unsubscribe"),
];

/// What a text asks, in normal form: what a verifier reads of it, and what tells whether it calibrates.
pub(super) fn asked(text: &str) -> String {
    normalise_question(question_of(text))
}

/// How rare words are, from 0 for those that every question has to 1 for those that none has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Rarity(HashMap<u32, f32>);

impl Rarity {
    /// Counts the words of many texts; those in fewer than `texts_min` of them count as never seen.
    pub(super) fn of<'a>(texts: impl ExactSizeIterator<Item = &'a str>, texts_min: u32) -> Self {
        let all = (texts.len().max(2) as f32).ln();
        let mut counts = HashMap::<u32, u32>::new();
        for text in texts {
            let mut words: Vec<u32> = words_of(&asked(text)).map(|word| hash(word.as_bytes())).collect();
            words.sort_unstable();
            words.dedup();
            words.into_iter().for_each(|word| *counts.entry(word).or_default() += 1);
        }
        counts.retain(|_, count| *count >= texts_min);
        Self(counts.into_iter().map(|(word, count)| (word, 1.0 - (count as f32).ln() / all)).collect())
    }

    fn get(&self, word: u32) -> f32 {
        self.0.get(&word).copied().unwrap_or(1.0)
    }
}

/// The words of a question, prepared for comparing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Words {
    /// In the order of the text.
    spoken: Vec<u32>,
    /// Sorted, each once.
    all: Vec<u32>,
    /// Those with a subject, sorted, each once, with their rarity.
    subjects: Vec<(u32, f32)>,
    /// Pieces of three characters, sorted, each once.
    trigrams: Vec<u32>,
    negated: bool,
    question_word: Option<usize>,
    /// Which words of [`OPPOSITES`] it has: a bit for each, the left ones and the right ones.
    left: u32,
    right: u32,
}

const _: () = assert!(OPPOSITES.len() <= 32, "there is a bit for each pair");

/// How many numbers [`Words::compare`] gives.
pub(super) const WORD_FEATURES: usize = 14;

/// What they are called.
pub(super) const WORD_FEATURE_NAMES: [&str; WORD_FEATURES] = [
    "shared words",
    "shared subjects",
    "shared rare subjects",
    "least left over",
    "most left over",
    "rarest word left over",
    "shared spelling",
    "one is negated",
    "opposites",
    "different question words",
    "relative length",
    "length",
    "count of shared subjects",
    "the same words",
];

impl Words {
    pub(super) fn of(text: &str, rarity: &Rarity) -> Self {
        let text = asked(text);
        let words: Vec<&str> = words_of(&text).collect();
        let spoken: Vec<u32> = words.iter().map(|word| hash(word.as_bytes())).collect();
        let subjects = words.iter().filter(|word| !PLAIN.contains(word)).map(|word| hash(word.as_bytes()));
        let framed: Vec<char> = format!(" {} ", words.join(" ")).chars().collect();
        let mut buffer = [0; 12];
        let trigram = |three: &[char]| {
            let mut at = 0;
            for c in three {
                at += c.encode_utf8(&mut buffer[at..]).len();
            }
            hash(&buffer[..at])
        };
        let has = |word: &str| words.contains(&word);
        let bits = |side: fn(&(&'static str, &'static str)) -> &'static str| {
            OPPOSITES.iter().enumerate().filter(|(_, pair)| has(side(pair))).fold(0, |bits, (at, _)| bits | 1 << at)
        };
        Self {
            all: once(spoken.iter().copied()),
            subjects: once(subjects).into_iter().map(|word| (word, rarity.get(word))).collect(),
            trigrams: once(framed.windows(3).map(trigram)),
            negated: words.iter().any(|word| NEGATIONS.contains(word)),
            question_word: words.iter().find_map(|word| QUESTION_WORDS.iter().position(|known| known == word)),
            left: bits(|pair| pair.0),
            right: bits(|pair| pair.1),
            spoken,
        }
    }

    /// What two questions' words have in common, in the order of [`WORD_FEATURE_NAMES`]; the same whichever is first.
    pub(super) fn compare(&self, other: &Self) -> [f32; WORD_FEATURES] {
        let weigh = |subjects: &[(u32, f32)]| subjects.iter().map(|subject| subject.1).sum::<f32>();
        let is_shared = |subject: &&(u32, f32), with: &Self| with.subjects.iter().any(|other| other.0 == subject.0);
        let shared: Vec<_> = self.subjects.iter().filter(|subject| is_shared(subject, other)).copied().collect();
        let (mine, theirs, both) = (weigh(&self.subjects), weigh(&other.subjects), weigh(&shared));
        let (mine_left, theirs_left) = (mine - both, theirs - both);
        let left_over = |of: &Self, with: &Self| {
            of.subjects.iter().filter(|subject| !is_shared(subject, with)).map(|subject| subject.1).fold(0.0, f32::max)
        };
        let (short, long) = (self.spoken.len().min(other.spoken.len()), self.spoken.len().max(other.spoken.len()));
        let only_mine = (self.left & !other.left, self.right & !other.right);
        let only_theirs = (other.left & !self.left, other.right & !self.right);
        let opposed = (only_mine.0 & only_theirs.1) | (only_mine.1 & only_theirs.0) != 0;
        let subjects = |of: &Self| of.subjects.iter().map(|subject| subject.0).collect::<Vec<_>>();
        let yes = |is: bool| if is { 1.0 } else { 0.0 };
        [
            overlap(&self.all, &other.all),
            overlap(&subjects(self), &subjects(other)),
            both / (mine + theirs - both).max(0.01),
            mine_left.min(theirs_left),
            mine_left.max(theirs_left),
            left_over(self, other).max(left_over(other, self)),
            overlap(&self.trigrams, &other.trigrams),
            yes(self.negated != other.negated),
            yes(opposed),
            yes(self.question_word != other.question_word),
            short as f32 / long.max(1) as f32,
            short.min(40) as f32 / 20.0,
            shared.len() as f32 / 5.0,
            yes(self.spoken == other.spoken),
        ]
    }

    /// What it takes in memory beyond itself, in bytes.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.spoken.len() + self.all.len() + 2 * self.subjects.len() + self.trigrams.len())
    }
}

/// Words of a text in normal form: letters, digits, and apostrophes inside.
pub(crate) fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
}

fn once(words: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut words: Vec<u32> = words.collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// Shared parts of two sorted lists, of all parts (Jaccard).
fn overlap(a: &[u32], b: &[u32]) -> f32 {
    let (mut at, mut with, mut shared) = (0, 0, 0_usize);
    while at < a.len() && with < b.len() {
        match a[at].cmp(&b[with]) {
            std::cmp::Ordering::Less => at += 1,
            std::cmp::Ordering::Greater => with += 1,
            std::cmp::Ordering::Equal => (at, with, shared) = (at + 1, with + 1, shared + 1),
        }
    }
    shared as f32 / (a.len() + b.len() - shared).max(1) as f32
}

/// FNV-1a, which is the same everywhere and always, as what is kept in files must be.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(a: &str, b: &str) -> HashMap<&'static str, f32> {
        let rarity = Rarity::default();
        let numbers = Words::of(a, &rarity).compare(&Words::of(b, &rarity));
        assert_eq!(numbers, Words::of(b, &rarity).compare(&Words::of(a, &rarity)), "{a:?} {b:?}");
        WORD_FEATURE_NAMES.into_iter().zip(numbers).collect()
    }

    #[test]
    fn tells_what_differs() {
        assert_eq!(compare("how do I enable alerts", "how do I disable alerts")["opposites"], 1.0);
        assert_eq!(compare("how do I enable alerts", "how do I enable alerts?")["opposites"], 0.0);
        assert_eq!(compare("it works", "it does not work")["one is negated"], 1.0);
        assert_eq!(compare("Where is my order?", "where is MY order")["the same words"], 1.0);
        assert_eq!(compare("my order where is", "where is my order")["the same words"], 0.0);
        assert_eq!(compare("my order where is", "where is my order")["shared words"], 1.0);
        let apart = compare("cancel the contract", "water the plants");
        assert_eq!((apart["shared subjects"], apart["rarest word left over"]), (0.0, 1.0));
        assert_eq!(compare("", "").len(), WORD_FEATURES);
        assert!(compare("", "a").values().all(|number| number.is_finite()));
    }

    #[test]
    fn common_words_count_little() {
        let texts = ["my order", "my order late", "an order", "order", "a parcel"];
        let rarity = Rarity::of(texts.into_iter(), 2);
        assert!(rarity.get(hash(b"order")) < 0.2);
        assert_eq!(rarity.get(hash(b"parcel")), 1.0, "seen once only");
    }
}
