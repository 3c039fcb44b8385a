//! A rule that needs no training: the small tier answers what is short, asks one thing, and is clearly about one article.

use serde::{Deserialize, Serialize};

use super::features::{RouterInput, count_words, question_marks};
use turnflow_state::TierSize;

use super::Decision;
use crate::verifier::Reason;

/// When the small tier answers: all of it has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlainRule {
    /// Least score of the best chunk that was retrieved: a cosine.
    pub relevance_min: f32,
    /// Least lead of that chunk over the best one of any other article.
    pub margin_min: f32,
    /// Most words of the text.
    pub words_max: usize,
    /// Most questions in the text, counted by their marks.
    pub questions_max: usize,
}

impl Default for PlainRule {
    fn default() -> Self {
        Self { relevance_min: 0.5, margin_min: 0.05, words_max: 30, questions_max: 1 }
    }
}

impl PlainRule {
    /// Which tier is to answer a turn. The reasons are what spoke against the small one, or all when nothing did, each with a
    /// weight of -1 or 1.
    #[must_use]
    pub fn decide(&self, input: &RouterInput<'_>) -> Decision {
        let (words, questions) = (count_words(input.text), question_marks(input.text));
        let (best, margin) = input.retrieval.map_or((0.0, 0.0), |retrieval| (retrieval.best, retrieval.margin));
        let is_found = input.retrieval.is_some();
        let checks = [
            ("leans on turns before", if input.leans { 1.0 } else { 0.0 }, !input.leans),
            ("best retrieved score", best, is_found && best >= self.relevance_min),
            ("lead of the best article", margin, is_found && margin >= self.margin_min),
            ("words", words as f32, words <= self.words_max),
            ("question marks", questions as f32, questions <= self.questions_max),
        ];
        let suffices = checks.iter().all(|(_, _, holds)| *holds);
        let decisive = checks.into_iter().filter(|(_, _, holds)| *holds == suffices);
        let weight = if suffices { 1.0 } else { -1.0 };
        let reasons = decisive.map(|(name, value, _)| Reason { name, value, weight }).collect();
        let size = if suffices { TierSize::Small } else { TierSize::Large };
        Decision { size, probability: None, required: None, reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Retrieval;

    const CLEAR: Option<Retrieval> = Some(Retrieval { best: 0.8, margin: 0.3 });

    #[test]
    fn the_small_tier_answers_when_all_holds() {
        let rule = PlainRule { relevance_min: 0.5, margin_min: 0.1, words_max: 8, questions_max: 1 };
        let asked = |text, retrieval, leans| {
            let decision = rule.decide(&RouterInput { text, vector: &[], retrieval, turns_before: 2, leans });
            (decision.size, decision.reasons.iter().map(|reason| reason.name).collect::<Vec<_>>())
        };
        let against = |reason| (TierSize::Large, vec![reason]);
        let (size, reasons) = asked("How long does delivery take?", CLEAR, false);
        assert_eq!((size, reasons.len()), (TierSize::Small, 5));
        assert_eq!(asked("How long does delivery take", CLEAR, false).0, TierSize::Small, "nobody has to type a mark");
        assert_eq!(asked("And how long?", CLEAR, true), against("leans on turns before"));
        assert_eq!(asked("Where? And when?", CLEAR, false), against("question marks"));
        assert_eq!(asked("a b c d e f g h i", CLEAR, false), against("words"));
        let far = Some(Retrieval { best: 0.49, margin: 0.3 });
        assert_eq!(asked("How long?", far, false), against("best retrieved score"));
        let torn = Some(Retrieval { best: 0.8, margin: 0.09 });
        assert_eq!(asked("How long?", torn, false), against("lead of the best article"));
        let (size, reasons) = asked("How long?", None, false);
        assert_eq!((size, reasons), (TierSize::Large, vec!["best retrieved score", "lead of the best article"]));
        let edge = Some(Retrieval { best: 0.5, margin: 0.1 });
        assert_eq!(asked("a b c d e f g h", edge, false).0, TierSize::Small, "bounds are within");
    }

    #[test]
    fn settings_are_checked() {
        let read = serde_json::from_str::<PlainRule>;
        let all = r#"{"relevance-min": 0.5, "margin-min": 0.05, "words-max": 30, "questions-max": 1}"#;
        assert_eq!(read(all).unwrap(), PlainRule::default());
        let error = read(&all.replace("words-max", "word-max")).unwrap_err().to_string();
        assert!(error.contains("word-max"), "{error}");
    }
}
