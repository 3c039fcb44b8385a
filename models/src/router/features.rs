//! What a router reads of a turn besides its vector: cheap numbers, each with a name.
//!
//! Counts are taken as the logarithm of one more than they are, so that one long text does not outweigh all others. The
//! words are English.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_state::{ScoredChunk, normalise};

use crate::cut::sentences;
use crate::verifier::text::{NEGATIONS, words_of};

/// Words that join parts of a question.
const CONJUNCTIONS: &[&str] = &[
    "after",
    "although",
    "and",
    "because",
    "before",
    "both",
    "but",
    "if",
    "or",
    "otherwise",
    "then",
    "unless",
    "while",
];
/// Words that set things against each other.
const COMPARISONS: &[&str] =
    &["better", "compare", "compared", "difference", "different", "less", "more", "most", "than", "versus", "vs"];
/// Words that ask for something to be chosen, named or reckoned, by class.
const WHAT: &[&str] = &["what", "what's", "which"];
const HOW: &[&str] = &["how", "how's"];
const WHY: &[&str] = &["why"];
const WHO: &[&str] = &["when", "where", "where's", "who", "who's", "whom", "whose"];
/// Words that a question begins with whose answer is yes or no.
const YES_OR_NO: &[&str] =
    &["am", "are", "can", "could", "did", "do", "does", "has", "have", "is", "may", "should", "was", "were", "will"];
const MATHS_SIGNS: &str = "+=*/^<>±×÷√∑∫≈≤≥≠π$%";
const CODE_SIGNS: &str = "{}[]`;\\|~_";

/// What retrieval says of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Score of the best chunk: a cosine.
    pub best: f32,
    /// Its lead over the best chunk of any other article.
    pub margin: f32,
}

impl Retrieval {
    /// From what a turn retrieves, best first; None when it retrieves nothing.
    #[must_use]
    pub fn of(found: &[ScoredChunk]) -> Option<Self> {
        let best = found.first()?;
        // Where all are of one article, whatever was not retrieved scores at most as much as the last.
        let other = found.iter().find(|one| one.chunk.id.article != best.chunk.id.article).or(found.last())?;
        Some(Self { best: best.score, margin: best.score - other.score })
    }
}

/// A turn as a router sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterInput<'a> {
    /// What was asked.
    pub text: &'a str,
    /// The encoder's vector of it.
    pub vector: &'a [f32],
    /// What it retrieves; None when nothing was looked up or found.
    pub retrieval: Option<Retrieval>,
    /// Turns of the conversation that were answered before.
    pub turns_before: u32,
    /// Whether it can be understood with earlier turns only. The plain rule goes by it. To a router it says nothing: no judged turn leans,
    /// and such turns go to the large tier before a router is asked. It keeps its place among the numbers that a router
    /// reads, because those that were fitted have an input for it.
    pub leans: bool,
}

/// A turn and which of two tiers answers it right.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterExample {
    /// What was asked.
    pub text: String,
    /// The encoder's vector of it.
    pub vector: Arc<[f32]>,
    /// What it retrieves.
    pub retrieval: Option<Retrieval>,
    /// Turns of the conversation that were answered before.
    pub turns_before: u32,
    /// Whether the small tier answers it right.
    pub small_correct: bool,
    /// Whether the large tier answers it right.
    pub large_correct: bool,
}

impl RouterExample {
    /// What of it a router may see.
    #[must_use]
    pub fn input(&self) -> RouterInput<'_> {
        let Self { text, vector, retrieval, turns_before, .. } = self;
        RouterInput { text, vector, retrieval: *retrieval, turns_before: *turns_before, leans: false }
    }

    /// Whether the large tier is no better.
    #[must_use]
    pub fn small_suffices(&self) -> bool {
        self.small_correct >= self.large_correct
    }
}

/// What the numbers are called, in their order.
pub const ROUTER_FEATURES: [&str; 23] = [
    "words",
    "letters per word",
    "numbers",
    "digits",
    "sentences",
    "lines",
    "question marks",
    "asks what",
    "asks how",
    "asks why",
    "asks who, when or where",
    "asks yes or no",
    "conjunctions",
    "comparisons",
    "signs of maths",
    "signs of code",
    "negation",
    "retrieved something",
    "best retrieved score",
    "lead of the best article",
    "follows other turns",
    "turns before",
    "leans on turns before",
];

/// The named numbers of a turn, in the order of [`ROUTER_FEATURES`].
pub(super) fn features(input: &RouterInput<'_>) -> [f32; ROUTER_FEATURES.len()] {
    let text = input.text;
    // People's keyboards make either apostrophe.
    let spoken = normalise(&text.replace('\u{2019}', "'"));
    let words: Vec<&str> = words_of(&spoken).collect();
    let letters: usize = words.iter().map(|word| word.chars().filter(|c| c.is_alphabetic()).count()).sum();
    let of = |known: &[&str]| words.iter().filter(|word| known.contains(word)).count();
    let signs = |known: &str| log(text.chars().filter(|&c| known.contains(c)).count());
    let retrieval = input.retrieval.unwrap_or(Retrieval { best: 0.0, margin: 0.0 });
    let asks = Asked::of(&words);
    [
        log(words.len()),
        letters as f32 / words.len().max(1) as f32,
        log(text.split_whitespace().filter(|word| word.contains(|c: char| c.is_numeric())).count()),
        log(text.chars().filter(|c| c.is_numeric()).count()),
        log(sentences(text).len()),
        log(text.lines().filter(|line| !line.trim().is_empty()).count()),
        log(question_marks(text)),
        yes(asks == Asked::What),
        yes(asks == Asked::How),
        yes(asks == Asked::Why),
        yes(asks == Asked::Who),
        yes(asks == Asked::YesOrNo),
        log(of(CONJUNCTIONS)),
        log(of(COMPARISONS)),
        signs(MATHS_SIGNS),
        signs(CODE_SIGNS),
        yes(of(NEGATIONS) > 0),
        yes(input.retrieval.is_some()),
        retrieval.best,
        retrieval.margin,
        yes(input.turns_before > 0),
        (input.turns_before as f32).ln_1p(),
        yes(input.leans),
    ]
}

/// How many words a text has.
pub(super) fn count_words(text: &str) -> usize {
    words_of(&normalise(text)).count()
}

/// How many questions end in a text: marks that are doubled for emphasis count once.
pub(super) fn question_marks(text: &str) -> usize {
    let is_mark = |c: char| matches!(c, '?' | '？' | '؟' | '‽');
    text.split(|c| !is_mark(c) && c != '!').filter(|run| run.contains(is_mark)).count()
}

/// What kind of answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    What,
    How,
    Why,
    Who,
    YesOrNo,
    Nothing,
}

impl Asked {
    /// The first word that asks decides, wherever it stands: "can you tell me how" asks how.
    fn of(words: &[&str]) -> Self {
        let class = |word: &&str| {
            let classes = [(WHAT, Self::What), (HOW, Self::How), (WHY, Self::Why), (WHO, Self::Who)];
            classes.into_iter().find(|(known, _)| known.contains(word)).map(|(_, class)| class)
        };
        let begins = words.first().is_some_and(|first| YES_OR_NO.contains(first));
        let otherwise = if begins { Self::YesOrNo } else { Self::Nothing };
        words.iter().find_map(class).unwrap_or(otherwise)
    }
}

fn log(count: usize) -> f32 {
    (count as f32).ln_1p()
}

fn yes(is: bool) -> f32 {
    if is { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use turnflow_state::{ArticleId, Chunk, ChunkId, ContentHash, TenantId};

    use super::*;

    fn asked(text: &str) -> RouterInput<'_> {
        RouterInput { text, vector: &[], retrieval: None, turns_before: 0, leans: false }
    }

    fn named(input: &RouterInput<'_>) -> HashMap<&'static str, f32> {
        let numbers = features(input);
        assert!(numbers.iter().all(|number| number.is_finite()), "{:?}", input.text);
        ROUTER_FEATURES.into_iter().zip(numbers).collect()
    }

    /// The count behind a number.
    fn count(text: &str, name: &str) -> f32 {
        (named(&asked(text))[name].exp() - 1.0).round()
    }

    #[test]
    fn retrieval_leads_over_other_articles() {
        let found = |article: &str, score: f32| {
            let tenant = TenantId::new("t").unwrap();
            let id = ChunkId { tenant, article: ArticleId::new(article).unwrap(), ordinal: 0 };
            let (title, text) = (String::new(), String::new());
            let (hash, vector) = (ContentHash::of("", ""), Arc::new([]));
            ScoredChunk { chunk: Arc::new(Chunk { id, version: 1, title, text, hash, vector, since: 0 }), score }
        };
        let of = |found: &[ScoredChunk]| Retrieval::of(found).map(|Retrieval { best, margin }| (best, margin));
        assert_eq!(of(&[found("a", 0.75), found("a", 0.7), found("b", 0.5)]), Some((0.75, 0.25)));
        assert_eq!(
            of(&[found("a", 0.75), found("a", 0.5)]),
            Some((0.75, 0.25)),
            "others may score as much as the last"
        );
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn names_are_told_apart() {
        let names: HashSet<_> = ROUTER_FEATURES.into_iter().collect();
        assert_eq!(names.len(), ROUTER_FEATURES.len());
    }

    #[test]
    fn counts_of_tricky_texts() {
        let check = |text: &str, name: &str, expected: f32| assert_eq!(count(text, name), expected, "{name}: {text:?}");
        check("", "words", 0.0);
        check("???", "words", 0.0);
        check("¿Dónde está mi pedido?", "words", 4.0);
        check("Josh buys a house for $80,000 and puts in $50,000.", "numbers", 2.0);
        check("Josh buys a house for $80,000 and puts in $50,000.", "digits", 10.0);
        check("order #42", "numbers", 1.0);
        check("Dr. Who e.g. is one. Is it?", "sentences", 2.0);
        check("Where is it??? Why?!", "question marks", 2.0);
        check("Stop! Now!!", "question marks", 0.0);
        check("Where is it?? And when?", "question marks", 2.0);
        check("what is it\n\nA. this\nB. that", "lines", 3.0);
        check("if a and b or c then", "conjunctions", 4.0);
        check("andes orchid", "conjunctions", 0.0);
        check("is A better than B", "comparisons", 2.0);
        check("solve x^2 + 3 = 7", "signs of maths", 3.0);
        check("let a = [1, 2];", "signs of code", 3.0);
    }

    #[test]
    fn classes_of_questions() {
        let classes = |text: &str| {
            let numbers = named(&asked(text));
            let mut is: Vec<_> = ROUTER_FEATURES.into_iter().filter(|name| name.starts_with("asks")).collect();
            is.retain(|name| numbers[name] == 1.0);
            is
        };
        for (text, expected) in [
            ("Can you tell me how to pay?", Some("asks how")),
            ("Can I pay by card?", Some("asks yes or no")),
            ("Which of these is it", Some("asks what")),
            ("WHERE is my order", Some("asks who, when or where")),
            ("tell me why", Some("asks why")),
            ("track my order", None),
            ("I can pay", None),
            ("", None),
        ] {
            assert_eq!(classes(text), expected.into_iter().collect::<Vec<_>>(), "{text:?}");
        }
    }

    #[test]
    fn negation_retrieval_and_history() {
        for text in ["it does not work", "it doesn't work", "it doesn\u{2019}t work", "without a receipt"] {
            assert_eq!(named(&asked(text))["negation"], 1.0, "{text}");
        }
        assert_eq!(named(&asked("a note about knots"))["negation"], 0.0);
        let alone = named(&asked("and that?"));
        assert_eq!(
            [alone["retrieved something"], alone["best retrieved score"], alone["follows other turns"]],
            [0.0; 3]
        );
        let retrieval = Some(Retrieval { best: 0.7, margin: 0.2 });
        let later = named(&RouterInput { retrieval, turns_before: 3, leans: true, ..asked("and that?") });
        assert_eq!(
            [later["retrieved something"], later["follows other turns"], later["leans on turns before"]],
            [1.0; 3]
        );
        assert_eq!([later["best retrieved score"], later["lead of the best article"]], [0.7, 0.2]);
        assert!((later["turns before"] - 4.0_f32.ln()).abs() < 1e-6);
    }
}
