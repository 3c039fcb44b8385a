//! Reads labelled questions and pairs of questions, for fitting and judging a verifier.
//!
//! A line of JSONL is one of three: `{"text", "label"}`, a question and the name of its answer; a turn of a labelled log,
//! whose label is the article in `gold.kb_id`; and `{"a", "b", "same_answer"}`, two questions and whether one answer serves
//! both. `source` and `kind`, where they are given, are told apart in reports, and labels of two sources
//! say nothing about each other. Everything else is ignored.

pub mod routing;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use turnflow_state::normalise_question;

use crate::lines::{BadLine, Lines, parse_line};

/// Questions and pairs, each text once.
#[derive(Debug, Default)]
pub struct Examples {
    /// The texts, each once in normal form.
    pub texts: Vec<String>,
    /// The label of each text, where it has one.
    pub labels: Vec<Option<Label>>,
    /// Pairs of places in `texts`.
    pub pairs: Vec<Pair>,
    /// Lines that were read, those that were left out included.
    pub lines: usize,
    places: HashMap<String, usize>,
}

/// The name of an answer.
#[derive(Clone, Debug)]
pub struct Label {
    /// Means the same in all rows of its source, and nothing in those of others.
    pub name: String,
    /// Where the row comes from.
    pub source: String,
}

/// Two questions.
#[derive(Clone, Debug)]
pub struct Pair {
    /// One, by its place.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// Whether one answer serves both.
    pub same: bool,
    /// Where it comes from.
    pub source: String,
    /// What kind of pair it is.
    pub kind: String,
    /// Whether the answer depends on who asks.
    pub personal: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Pair {
        a: String,
        b: String,
        same_answer: bool,
        #[serde(default)]
        source: String,
        #[serde(default)]
        kind: String,
        #[serde(default)]
        personal: bool,
    },
    Question {
        text: String,
        label: String,
        #[serde(default)]
        source: String,
    },
    Turn {
        text: String,
        gold: RowGold,
    },
}

#[derive(Deserialize)]
struct RowGold {
    kind: String,
    #[serde(default)]
    kb_id: Option<String>,
    #[serde(default)]
    source: String,
}

/// Whether a row's source is among those that were named; all are when none was.
fn is_wanted(source: &str, named: &[String]) -> bool {
    named.is_empty() || named.iter().any(|name| name == source)
}

/// Reads the rows of files, one of a few formats each, and counts them.
///
/// # Errors
/// When a file cannot be read, or the first row that is not what was `expected`, with file and number.
fn read_rows<R: DeserializeOwned>(paths: &[PathBuf], expected: &str, mut take: impl FnMut(R)) -> anyhow::Result<usize> {
    let mut count = 0;
    for path in paths {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let mut lines = Lines::new(BufReader::new(file), &name);
        while let Some(line) = lines.next_line().with_context(|| format!("cannot read {name}"))? {
            let (number, line) = line?;
            take(parse_line(&line).map_err(|_| BadLine::new(lines.file(), number, expected))?);
            count += 1;
        }
    }
    Ok(count)
}

impl Examples {
    /// Reads files; `sources`, where any are named, leaves the rows of all others out.
    ///
    /// # Errors
    /// When a file cannot be read, or the first bad line with file and number.
    pub fn read(paths: &[PathBuf], sources: &[String]) -> anyhow::Result<Self> {
        const EXPECTED: &str =
            "neither a question (text, label), nor a labelled turn (text, gold), nor a pair (a, b, same_answer)";
        let mut examples = Self::default();
        let wanted = |source: &str| is_wanted(source, sources);
        examples.lines = read_rows(paths, EXPECTED, |row: Row| match row {
            Row::Pair { a, b, same_answer, source, kind, personal } if wanted(&source) => {
                let (a, b) = (examples.place(&a), examples.place(&b));
                examples.pairs.push(Pair { a, b, same: same_answer, source, kind, personal });
            }
            Row::Question { text, label, source } if wanted(&source) => {
                examples.label(&text, Label { name: label, source });
            }
            Row::Turn { text, gold: RowGold { kind, kb_id: Some(name), source } }
                if kind == "kb" && wanted(&source) =>
            {
                examples.label(&text, Label { name, source });
            }
            _ => {}
        })?;
        Ok(examples)
    }

    /// Texts without labels.
    #[must_use]
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a String>) -> Self {
        let mut examples = Self::default();
        for text in texts {
            examples.place(text);
        }
        examples
    }

    fn place(&mut self, text: &str) -> usize {
        *self.places.entry(normalise_question(text)).or_insert_with(|| {
            self.texts.push(text.to_owned());
            self.labels.push(None);
            self.texts.len() - 1
        })
    }

    /// A text that has a label already keeps it.
    fn label(&mut self, text: &str, label: Label) {
        let place = self.place(text);
        self.labels[place].get_or_insert(label);
    }
}
