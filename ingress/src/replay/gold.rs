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
//! ([`ContentVersions`]); without them the knowledge base is taken as constant, as it is in a replay that makes no edits.
//! A wrong hit with equal article keys is *stale*: it was right before an edit.
//! A text is normalised here as the labels were made: lower case, every run of characters other than letters, digits
//! and `_` a space. That is coarser than what the caches use, on purpose: the judge shares no code with the judged.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use turnflow_state::Source;
use unicode_normalization::char::is_combining_mark;

use super::updates::Edit;

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
    /// The article that the label names, if it names one.
    pub topic: Option<Topic>,
}

/// An article that a label names: a hash of its id, whose lowest bit tells whether a version of it answers the turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(NonZeroU32);

impl Topic {
    fn of(article: &str, is_answer: bool) -> Self {
        let hash = key(("topic", article)).get() & !1 | u32::from(is_answer);
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }

    /// Whether the label names this article.
    #[must_use]
    pub fn names(self, article: &str) -> bool {
        self == Self::of(article, self.is_answer())
    }

    /// Whether a version of the article answers the turn.
    #[must_use]
    pub fn is_answer(self) -> bool {
        self.0.get() & 1 == 1
    }
}

/// What scoring needs to know of a turn's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gold {
    /// Decides which hits are right.
    pub keys: GoldKeys,
    /// Where the row comes from; scores are told apart by it.
    pub source: Option<String>,
    /// The article that the label names: one that answers the turn, or would if it existed.
    pub topic: Option<String>,
    /// The article that answers the turn, when one does.
    pub article: Option<String>,
    /// The versions of it that say what the turn needs; empty when versions are not told apart.
    pub versions: Arc<[u64]>,
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
    /// Whether an answer from these sources rests on the article that answers the turn, in a version that says what it needs.
    #[must_use]
    pub fn is_named_by(&self, sources: &[Source]) -> bool {
        let is_right = |source: &Source| {
            self.article.as_deref() == Some(source.article_id.as_str()) && self.versions.contains(&source.version)
        };
        sources.iter().any(is_right)
    }

    /// Reads a label; `None` when it does not say the turn's kind in the way scoring needs it.
    #[must_use]
    pub fn read(label: Value, text: &str, versions: Option<&ContentVersions>) -> Option<Self> {
        let raw: RawGold = serde_json::from_value(label).ok()?;
        let entities = raw.personal.then(|| sorted_entities(&raw.entities));
        let version = raw.kb_version.unwrap_or(1);
        let is_answer = raw.kind == "kb";
        let article = ("kb", &raw.kb_id, &entities);
        let (content, article) = match raw.kind.as_str() {
            "kb" => {
                let id = raw.kb_id.as_deref().unwrap_or_default();
                let content = versions.map(|versions| versions.content_version(id, version));
                (key((article, content)), key(article))
            }
            "no_article" => (key(("no_article", &raw.kb_id, normalise(text))), key(article)),
            kind => {
                let same = key(("text", kind, normalise(text)));
                (same, same)
            }
        };
        let bounded = |name: &String| name.len() <= NAME_BYTES_MAX;
        let topic = raw.kb_id.filter(bounded);
        let keys = GoldKeys { content, article, topic: topic.as_deref().map(|id| Topic::of(id, is_answer)) };
        let article = topic.clone().filter(|_| is_answer);
        let versions = versions.zip(article.as_deref()).map(|(all, id)| all.saying_the_same(id, version));
        let source = raw.source.filter(bounded);
        Some(Self { keys, source, topic, article, versions: versions.unwrap_or_default(), edited: version > 1 })
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

/// Which versions of the articles have the same content, by the edits that made them.
#[derive(Clone, Debug, Default)]
pub struct ContentVersions {
    /// The version in which an article got the content of a version.
    content: HashMap<(String, u64), u64>,
    /// All versions with the content that an article got in a version.
    equal: HashMap<(String, u64), Arc<[u64]>>,
}

impl ContentVersions {
    /// Follows edits in order of time; a cosmetic one changes no content.
    #[must_use]
    pub fn of(edits: &[Edit]) -> Self {
        let mut current: HashMap<&str, u64> = HashMap::new();
        let mut versions = HashMap::new();
        let mut equal: HashMap<_, Vec<u64>> = HashMap::new();
        for edit in edits {
            let Some(version) = edit.draft.content.as_ref().and_then(|content| content.version) else { continue };
            let id = edit.draft.id.as_str();
            let content = current.entry(id).or_insert(1);
            if edit.changes_content() {
                *content = version;
            }
            versions.insert((id.to_owned(), version), *content);
            equal.entry((id.to_owned(), *content)).or_insert_with(|| vec![*content]).push(version);
        }
        let equal = equal.into_iter().map(|(content, versions)| (content, versions.into())).collect();
        Self { content: versions, equal }
    }

    /// The versions of an article that have the content of `version`.
    fn saying_the_same(&self, article: &str, version: u64) -> Arc<[u64]> {
        let content = self.content_version(article, version);
        self.equal.get(&(article.to_owned(), content)).cloned().unwrap_or_else(|| [content].into())
    }

    /// The version in which an article got the content that it has in `version`.
    fn content_version(&self, article: &str, version: u64) -> u64 {
        self.content.get(&(article.to_owned(), version)).copied().unwrap_or(version)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;
    use turnflow_pipeline::{ArticleDraft, DraftContent};
    use turnflow_state::ArticleId;

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
        let edit = |kind: &str, version: Option<u64>| Edit {
            line: 1,
            at: Timestamp::UNIX_EPOCH,
            kind: kind.to_owned(),
            draft: ArticleDraft {
                id: ArticleId::new("a").expect("an id"),
                content: version.map(|_| DraftContent { version, ..DraftContent::default() }),
                expected_version: None,
            },
            affects: Vec::new(),
            must_contain: Vec::new(),
            must_not_contain: Vec::new(),
            probes: Vec::new(),
        };
        let edits = [edit("cosmetic", Some(2)), edit("fact", Some(3)), edit("delete", None), edit("cosmetic", Some(5))];
        let versions = ContentVersions::of(&edits);
        let content = |version: u64| {
            let label = json!({"kind": "kb", "kb_id": "a", "kb_version": version, "personal": false, "entities": []});
            Gold::read(label, "x", Some(&versions)).expect("a label").keys.content
        };
        assert_eq!(content(1), content(2));
        assert_ne!(content(2), content(3));
        assert_eq!(content(3), content(5));
    }

    #[test]
    fn a_topic_is_the_article_that_a_label_names() {
        let topic = |kind: &str, id: Option<&str>| keys(json!({"kind": kind, "kb_id": id}), "x").topic;
        let (answered, missing) = (topic("kb", Some("a")), topic("no_article", Some("a")));
        for (topic, is_answer) in [(answered, true), (missing, false)] {
            let topic = topic.expect("names an article");
            assert_eq!((topic.names("a"), topic.names("b"), topic.is_answer()), (true, false, is_answer));
        }
        assert_eq!(topic("chitchat", None), None);
    }

    #[test]
    fn labels_without_a_kind_do_not_score() {
        assert_eq!(Gold::read(json!({"agent_before": ""}), "x", None), None);
        assert_eq!(Gold::read(json!(5), "x", None), None);
    }
}
