//! Reads turns of which two tiers' answers were judged, for fitting and judging a router.
//!
//! A line of JSONL is one of two: `{"prompt", "weak_correct", "strong_correct"}`, a prompt of RouteLLM's kind, with `source` where
//! it has one; and a turn of a labelled log, whose `gold.route_hint` is `simple` where a small tier suffices and `complex` where
//! only a large one answers right. Everything else is ignored.
//!
//! Prompts are about anything, and are never looked up in a knowledge base; turns of a log are about a shop, and are. Sources
//! are named to choose among the turns of logs, and leave prompts alone.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Deserialize;
use turnflow_state::normalise;

use super::{is_wanted, read_rows};

/// A turn and which of two tiers answers it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedTurn {
    /// What was asked.
    pub text: String,
    /// Turns of the conversation before it.
    pub turns_before: u32,
    /// Whether the small tier answers it right.
    pub small_correct: bool,
    /// Whether the large tier answers it right.
    pub large_correct: bool,
    /// Where it comes from, as reports tell it.
    pub source: String,
    /// Whether a knowledge base can say anything of it.
    pub is_of_shop: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Prompt {
        prompt: String,
        weak_correct: bool,
        strong_correct: bool,
        #[serde(default = "prompts")]
        source: String,
    },
    Turn {
        text: String,
        #[serde(default)]
        turn: u32,
        gold: RowGold,
    },
}

#[derive(Deserialize)]
struct RowGold {
    route_hint: Hint,
    #[serde(default = "log")]
    source: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Hint {
    Simple,
    Complex,
}

fn prompts() -> String {
    "prompts".to_owned()
}

fn log() -> String {
    "log".to_owned()
}

/// Reads files, each text once in normal form: what is said of it first counts. `sources`, where any are named, leaves turns of
/// logs from all others out.
///
/// # Errors
/// When a file cannot be read, or the first bad line with file and number.
pub fn read_judged_turns(paths: &[PathBuf], sources: &[String]) -> anyhow::Result<Vec<JudgedTurn>> {
    const EXPECTED: &str =
        "neither a prompt (prompt, weak_correct, strong_correct) nor a turn (text, gold.route_hint: simple or complex)";
    let mut seen = HashSet::new();
    let mut turns = Vec::new();
    read_rows(paths, EXPECTED, |row: Row| {
        let turn = match row {
            Row::Prompt { prompt, weak_correct, strong_correct, source } => JudgedTurn {
                text: prompt,
                turns_before: 0,
                small_correct: weak_correct,
                large_correct: strong_correct,
                // MMLU's subjects are too small to be told apart.
                source: source.split('/').next().unwrap_or_default().to_owned(),
                is_of_shop: false,
            },
            Row::Turn { gold, .. } if !is_wanted(&gold.source, sources) => return,
            Row::Turn { text, turn, gold } => JudgedTurn {
                text,
                turns_before: turn.saturating_sub(1),
                small_correct: gold.route_hint == Hint::Simple,
                large_correct: true,
                source: gold.source,
                is_of_shop: true,
            },
        };
        if seen.insert(normalise(&turn.text)) {
            turns.push(turn);
        }
    })?;
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, sources: &[&str]) -> anyhow::Result<Vec<JudgedTurn>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turns.jsonl");
        std::fs::write(&path, text).unwrap();
        read_judged_turns(&[path], &sources.iter().map(|&source| source.to_owned()).collect::<Vec<_>>())
    }

    const ROWS: &str = concat!(
        r#"{"source": "mmlu/law", "prompt": "Who may sue?", "weak_correct": true, "strong_correct": false, "route": "weak"}"#,
        "\n",
        r#"{"text": "Where is it?", "turn": 3, "gold": {"kind": "kb", "route_hint": "simple", "source": "bitext"}}"#,
        "\n",
        r#"{"text": "where is  IT", "gold": {"route_hint": "complex", "source": "bitext"}}"#,
        "\n",
        r#"{"text": "Compare all pans", "gold": {"route_hint": "complex", "source": "hint3"}}"#,
        "\n",
    );

    #[test]
    fn both_formats_are_read_each_text_once() {
        let turns = read(ROWS, &[]).unwrap();
        let told = |turn: &JudgedTurn| (turn.source.clone(), turn.small_correct, turn.large_correct, turn.turns_before);
        let expected = [
            ("mmlu".to_owned(), true, false, 0),
            ("bitext".to_owned(), true, true, 2),
            ("hint3".to_owned(), false, true, 0),
        ];
        assert_eq!(turns.iter().map(told).collect::<Vec<_>>(), expected);
        assert_eq!(turns.iter().map(|turn| turn.is_of_shop).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn sources_choose_among_the_turns_of_logs() {
        let turns = read(ROWS, &["bitext"]).unwrap();
        assert_eq!(turns.iter().map(|turn| turn.source.as_str()).collect::<Vec<_>>(), ["mmlu", "bitext"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in [
            r#"{"prompt": "a", "weak_correct": true}"#,
            r#"{"text": "a", "gold": {"route_hint": "hard"}}"#,
            r#"{"text": "a", "label": "b"}"#,
            "[]",
        ] {
            let error = read(&format!("{ROWS}{bad}\n"), &[]).unwrap_err().to_string();
            assert!(error.contains("turns.jsonl:5: neither a prompt"), "{error}");
        }
    }
}
