//! What a log's gold labels say about two turns: may they share an answer? For scoring only, never fed to the pipeline.
//!
//! A label names the `kind` of a turn and what a right answer depends on. From it come two keys, and a hit is right
//! when the turn that was asked and the turn whose answer was served have equal keys:
//!
//! | `kind` | content key | article key |
//! |---|---|---|
//! | `kb` | article, content of its version, entities when personal | article, entities when personal |
//! | `no_article` | article that would be needed, normalised text | article that would be needed, entities when personal |
//! | any other | kind, normalised text | kind, normalised text |
//!
//! *Content* is the strict reading (the wrong-hit rate of a report); *article* ignores that a knowledge base was edited
//! while the log was recorded. Which versions of an article have equal content is told by the edits themselves
//! ([`Edits`]); without them the knowledge base is taken as constant, as it is in a replay that applies no edits.
//! A text is normalised here as the labels were made: lower case, every run of characters other than letters, digits
//! and `_` a space. That is coarser than what the caches use, on purpose: the judge shares no code with the judged.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;
use std::num::NonZeroU32;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use unicode_normalization::char::is_combining_mark;

use crate::lines::{BadLine, Lines, parse_line};

/// Longest name of an article or source that is kept, in bytes; a longer one names nothing that exists.
const NAME_BYTES_MAX: usize = 128;

/// The keys of one labelled turn, hashed: a log of millions of turns is scored in a few bytes each.
///
/// 32 bits are enough: keys are only compared pairwise, one pair per hit, so a million hits make a false equality
/// with a probability of 1 in 4,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoldKeys {
    /// Equal when the same answer, with the same content, is right for both.
    pub content: NonZeroU32,
    /// Equal when the same article is right for both, in whatever version.
    pub article: NonZeroU32,
}

/// What scoring needs to know of a turn's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gold {
    /// Decides which hits are right.
    pub keys: GoldKeys,
    /// Where the row comes from; scores are told apart by it.
    pub source: Option<String>,
    /// The article that answers the turn, when one does.
    pub article: Option<String>,
    /// Whether the label names a version after the first.
    pub edited: bool,
}

/// A label as it is written in a log.
#[derive(Deserialize)]
struct RawGold {
    kind: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    kb_id: Option<String>,
    #[serde(default)]
    kb_version: Option<u64>,
    #[serde(default)]
    personal: bool,
    #[serde(default)]
    entities: Vec<(String, Value)>,
}

impl Gold {
    /// Reads a label; `None` when it does not say the turn's kind in the way scoring needs it.
    #[must_use]
    pub fn read(label: Value, text: &str, edits: Option<&Edits>) -> Option<Self> {
        let raw: RawGold = serde_json::from_value(label).ok()?;
        let entities = raw.personal.then(|| sorted_entities(&raw.entities));
        let version = raw.kb_version.unwrap_or(1);
        let article = ("kb", &raw.kb_id, &entities);
        let keys = match raw.kind.as_str() {
            "kb" => {
                let content = edits.map(|edits| edits.content_version(raw.kb_id.as_deref().unwrap_or(""), version));
                GoldKeys { content: key((article, content)), article: key(article) }
            }
            "no_article" => {
                GoldKeys { content: key(("no_article", &raw.kb_id, normalise(text))), article: key(article) }
            }
            kind => {
                let same = key(("text", kind, normalise(text)));
                GoldKeys { content: same, article: same }
            }
        };
        let bounded = |name: &String| name.len() <= NAME_BYTES_MAX;
        let article = raw.kb_id.filter(|_| raw.kind == "kb").filter(bounded);
        Some(Self { keys, source: raw.source.filter(bounded), article, edited: version > 1 })
    }
}

fn sorted_entities(entities: &[(String, Value)]) -> Vec<(String, String)> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut sorted: Vec<_> = entities.iter().map(|(name, value)| (name.clone(), plain(value).to_lowercase())).collect();
    sorted.sort();
    sorted
}

fn key(parts: impl Hash) -> NonZeroU32 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    NonZeroU32::new(u32::from_le_bytes([a, b, c, d])).unwrap_or(NonZeroU32::MIN)
}

/// The labels' normal form of a text.
fn normalise(text: &str) -> String {
    // Letters and digits as the labels' maker counted them: combining marks are neither.
    let is_word = |c: char| c == '_' || (c.is_alphanumeric() && !is_combining_mark(c));
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { text.trim().to_owned() } else { words.join(" ") }
}

/// Which versions of the articles differ in content, from a file of knowledge base edits.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    content_versions: HashMap<(String, u64), u64>,
}

#[derive(Deserialize)]
struct RawEdit {
    op: String,
    kind: String,
    kb_id: String,
    version: u64,
}

impl Edits {
    /// Reads edits in order of time; those of kind `cosmetic` change no content.
    ///
    /// # Errors
    /// When reading fails, or a [`BadLine`].
    pub fn read(reader: impl BufRead, name: &str) -> anyhow::Result<Self> {
        let mut lines = Lines::new(reader, name);
        let mut current: HashMap<String, u64> = HashMap::new();
        let mut edits = Self::default();
        while let Some(line) = lines.next_line().with_context(|| format!("cannot read {name}"))? {
            let (number, text) = line?;
            let edit: RawEdit = parse_line(&text).map_err(|reason| BadLine::new(lines.file(), number, reason))?;
            if edit.op == "delete" {
                continue;
            }
            let content = current.entry(edit.kb_id.clone()).or_insert(1);
            if edit.kind != "cosmetic" {
                *content = edit.version;
            }
            edits.content_versions.insert((edit.kb_id, edit.version), *content);
        }
        Ok(edits)
    }

    /// The version in which an article got the content that it has in `version`.
    fn content_version(&self, article: &str, version: u64) -> u64 {
        self.content_versions.get(&(article.to_owned(), version)).copied().unwrap_or(version)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(label: Value, text: &str) -> GoldKeys {
        Gold::read(label, text, None).expect("a label").keys
    }

    #[test]
    fn normal_form_of_labels() {
        let check = |text: &str, expected: &str| assert_eq!(normalise(text), expected, "{text:?}");
        check("  Where's my ORDER?!  ", "where s my order");
        check("order_no #42", "order_no 42");
        check("?!", "?!");
        check(" ", "");
        check("नमस्ते ", "नमस त");
        check("2× 6’0”", "2 6 0");
    }

    #[test]
    fn who_may_share_an_answer() {
        let kb = |id: &str, version: u64, personal: bool, entity: &str| json!({"kind": "kb", "kb_id": id, "kb_version": version, "personal": personal, "entities": [["id", entity]]});
        let plain =
            |kind: &str, id: Option<&str>| json!({"kind": kind, "kb_id": id, "personal": false, "entities": []});
        // (label and text of one turn, of the other, equal content, equal article)
        let table = [
            (kb("a", 1, false, "7"), "x", kb("a", 1, false, "8"), "y", true, true),
            (kb("a", 1, true, "7"), "x", kb("a", 1, true, "8"), "x", false, false),
            (kb("a", 1, true, "Ann"), "x", kb("a", 1, true, "ANN"), "y", true, true),
            (kb("a", 1, true, "7"), "x", kb("a", 1, false, "7"), "x", false, false),
            (kb("a", 1, false, ""), "x", kb("b", 1, false, ""), "x", false, false),
            (kb("a", 1, false, ""), "x", kb("a", 2, false, ""), "x", true, true),
            (plain("no_article", Some("a")), "Hi you", plain("no_article", Some("a")), "hi, you!", true, true),
            (plain("no_article", Some("a")), "hi", plain("no_article", Some("a")), "ho", false, true),
            (plain("no_article", Some("a")), "hi", kb("a", 3, false, ""), "hi", false, true),
            (plain("chitchat", None), "Hello!", plain("chitchat", None), "hello", true, true),
            (plain("chitchat", None), "hello", plain("out_of_scope", None), "hello", false, false),
            (plain("account_lookup", None), "my balance", plain("account_lookup", None), "My balance?", true, true),
            (plain("context_dependent", None), "and then?", plain("context_dependent", None), "and now?", false, false),
            (plain("product_question", None), "is it red", plain("product_question", None), "Is it red", true, true),
        ];
        for (a, text_a, b, text_b, content, article) in table {
            let case = format!("{a} {text_a:?} / {b} {text_b:?}");
            let (a, b) = (keys(a, text_a), keys(b, text_b));
            assert_eq!((a.content == b.content, a.article == b.article), (content, article), "{case}");
        }
    }

    #[test]
    fn edits_tell_versions_apart_unless_cosmetic() {
        let file = r#"{"op":"update","kind":"cosmetic","kb_id":"a","version":2}
            {"op":"update","kind":"fact","kb_id":"a","version":3}
            {"op":"delete","kind":"delete","kb_id":"a","version":4}
            {"op":"update","kind":"cosmetic","kb_id":"a","version":5}"#;
        let edits = Edits::read(file.as_bytes(), "e.jsonl").expect("edits");
        let content = |version: u64| {
            let label = json!({"kind": "kb", "kb_id": "a", "kb_version": version, "personal": false, "entities": []});
            Gold::read(label, "x", Some(&edits)).expect("a label").keys.content
        };
        assert_eq!(content(1), content(2));
        assert_ne!(content(2), content(3));
        assert_eq!(content(3), content(5));
        let error = Edits::read("{}".as_bytes(), "e.jsonl").expect_err("no fields");
        assert_eq!(error.to_string(), "e.jsonl:1: missing field `op` (column 2)");
    }

    #[test]
    fn labels_without_a_kind_do_not_score() {
        assert_eq!(Gold::read(json!({"agent_before": ""}), "x", None), None);
        assert_eq!(Gold::read(json!(5), "x", None), None);
    }
}
