//! Reads the edits that were made to a knowledge base while a log was recorded, to be made again on the log's clock.
//!
//! One edit per line, as JSON, in order of time:
//!
//! | Field | Meaning |
//! |---|---|
//! | `ts` | when the edit was made, RFC 3339 |
//! | `op` | `update`, `insert`, `restore`, `revert`: the article is as given from now on; `delete`: it is gone |
//! | `kind` | `cosmetic` for an edit that changes no content; any other word is only shown |
//! | `kb_id`, `version` | the article, and the version it gets; the version of a deletion is the store's to choose |
//! | `article` | `title`, `body`; every other text is kept as metadata. None for a deletion |
//! | `affects_kb_ids` | the articles whose answers change with it |
//! | `must_contain`, `must_not_contain` | what answers to its questions say from now on, and what none says any more |
//! | `probes` | questions to ask once it is made |
//!
//! Other fields are ignored. The first bad line ends the reading, so that nothing runs on half the edits.

use std::io::BufRead;
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use turnflow_pipeline::{ArticleDraft, DraftContent};
use turnflow_state::{ArticleId, Limits, normalise};

use crate::lines::{BadLine, Lines, parse_line};

/// The kind of an edit that changes no content.
const COSMETIC: &str = "cosmetic";

/// All edits of a log.
#[derive(Clone, Debug)]
pub struct Updates {
    /// The file's name in messages.
    pub file: Arc<str>,
    /// The edits, in order of time.
    pub edits: Vec<Edit>,
    /// Whether the edits' probes are asked.
    pub probes: bool,
    /// Whether turns wait, at full speed, until what an edit took out of the caches is answered anew.
    pub settle: bool,
}

/// One edit.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Line number in the file, from 1.
    pub line: u64,
    /// When it was made.
    pub at: Timestamp,
    /// What kind of edit it is, in the file's word.
    pub kind: String,
    /// What is written.
    pub draft: ArticleDraft,
    /// Articles whose answers change.
    pub affects: Vec<String>,
    /// What answers to its questions contain from now on.
    pub must_contain: Vec<String>,
    /// What they contain no more.
    pub must_not_contain: Vec<String>,
    /// Questions to ask once it is made.
    pub probes: Vec<String>,
}

impl Edit {
    /// Whether the article says something else from now on.
    #[must_use]
    pub fn changes_content(&self) -> bool {
        self.kind != COSMETIC
    }
}

impl Updates {
    /// Reads all edits from `reader`, which is called `name` in messages.
    ///
    /// # Errors
    /// When reading fails, or a [`BadLine`].
    pub fn read(reader: impl BufRead, name: &str, limits: &Limits) -> anyhow::Result<Self> {
        let mut lines = Lines::new(reader, name);
        let mut edits: Vec<Edit> = Vec::new();
        while let Some(line) = lines.next_line().with_context(|| format!("cannot read {name}"))? {
            let (number, text) = line?;
            let bad = |reason: String| BadLine::new(lines.file(), number, reason);
            let edit = parse_edit(number, &text, limits).map_err(bad)?;
            if let Some(before) = edits.last().filter(|before| before.at > edit.at) {
                let reason = format!("ts {} is before {}, the time of line {}", edit.at, before.at, before.line);
                return Err(bad(reason).into());
            }
            edits.push(edit);
        }
        Ok(Self { file: Arc::clone(lines.file()), edits, probes: true, settle: true })
    }
}

#[derive(Deserialize)]
struct RawEdit {
    ts: String,
    op: Op,
    #[serde(default = "kind_of_edit")]
    kind: String,
    kb_id: String,
    version: u64,
    #[serde(default)]
    article: Option<RawArticle>,
    #[serde(default)]
    affects_kb_ids: Vec<String>,
    #[serde(default)]
    must_contain: Vec<String>,
    #[serde(default)]
    must_not_contain: Vec<String>,
    #[serde(default)]
    probes: Vec<String>,
}

/// An edit that does not say what kind it is may change anything.
fn kind_of_edit() -> String {
    "edit".to_owned()
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Op {
    Update,
    Insert,
    Restore,
    Revert,
    Delete,
}

#[derive(Deserialize)]
struct RawArticle {
    id: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: String,
    #[serde(flatten)]
    other: Map<String, Value>,
}

fn parse_edit(line: u64, text: &str, limits: &Limits) -> Result<Edit, String> {
    let raw: RawEdit = parse_line(text)?;
    let at = raw.ts.parse().map_err(|_| format!("ts {:?} is not an RFC 3339 time", raw.ts))?;
    let id = ArticleId::new(&raw.kb_id).map_err(|error| error.to_string())?;
    let content = match (raw.op, raw.article) {
        (Op::Delete, None) => None,
        (Op::Delete, Some(_)) => return Err(format!("deletes article {id}, and gives it too")),
        (_, None) => return Err(format!("no text for article {id}")),
        (_, Some(article)) => Some(content(&id, raw.version, article, limits)?),
    };
    for probe in &raw.probes {
        if probe.trim().is_empty() {
            return Err("empty probe".to_owned());
        }
        if probe.len() > limits.text_bytes_max {
            return Err(format!("probe of {} bytes, at most {} are allowed", probe.len(), limits.text_bytes_max));
        }
    }
    Ok(Edit {
        line,
        at,
        kind: raw.kind,
        draft: ArticleDraft { id, content, expected_version: None },
        affects: raw.affects_kb_ids,
        must_contain: raw.must_contain,
        must_not_contain: raw.must_not_contain,
        probes: raw.probes,
    })
}

fn content(id: &ArticleId, version: u64, article: RawArticle, limits: &Limits) -> Result<DraftContent, String> {
    let RawArticle { id: given, title, body, other } = article;
    if given != id.as_str() {
        return Err(format!("an edit of article {id} gives article {given}"));
    }
    if normalise(&title).is_empty() && normalise(&body).is_empty() {
        return Err(format!("article {id} has neither a title nor a body"));
    }
    let texts = other.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())));
    let metadata: std::collections::BTreeMap<_, _> = texts.collect();
    let notes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = title.len() + body.len() + notes;
    if bytes > limits.article_bytes_max {
        return Err(format!("article {id} of {bytes} bytes, at most {} are allowed", limits.article_bytes_max));
    }
    let content = DraftContent { title, body, metadata, version: Some(version) };
    content.check_version().map_err(|error| format!("article {id}: {error}"))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnflow_pipeline::Config;

    use super::*;

    fn read(text: &str) -> Result<Vec<Edit>, String> {
        let mut limits = Config::defaults().limits;
        (limits.article_bytes_max, limits.text_bytes_max) = (60, 20);
        Updates::read(text.as_bytes(), "u", &limits).map(|updates| updates.edits).map_err(|error| format!("{error:#}"))
    }

    fn update() -> Value {
        json!({
            "seq": 9, "ts": "2026-03-02T09:00:04.5Z", "op": "update", "kind": "fact", "kb_id": "a", "version": 2,
            "article": {"id": "a", "title": "T", "body": "B", "version": 2, "facts": ["x"], "category": "ORDER"},
            "affects_kb_ids": ["a"], "must_contain": ["new"], "must_not_contain": ["old"], "probes": ["why?"],
        })
    }

    #[test]
    fn an_edit_is_read_and_unknown_fields_are_ignored() {
        let mut delete = update();
        (delete["op"], delete["article"]) = (json!("delete"), Value::Null);
        let edits = read(&format!("{}\n\n{delete}", update())).expect("good lines");
        let edit = &edits[0];
        assert_eq!((edit.line, edit.at.as_millisecond(), edit.draft.id.as_str()), (1, 1_772_442_004_500, "a"));
        let content = edit.draft.content.as_ref().expect("an article");
        assert_eq!((content.title.as_str(), content.body.as_str(), content.version), ("T", "B", Some(2)));
        assert_eq!(content.metadata.iter().collect::<Vec<_>>(), [(&"category".to_owned(), &"ORDER".to_owned())]);
        assert_eq!(
            [&edit.affects, &edit.must_contain, &edit.must_not_contain, &edit.probes].map(|texts| texts[0].as_str()),
            ["a", "new", "old", "why?"]
        );
        assert_eq!((edits[1].line, &edits[1].draft.content), (3, &None));
        let mut unnamed = update();
        unnamed.as_object_mut().expect("an object").remove("kind");
        assert!(read(&unnamed.to_string()).expect("no kind is needed")[0].changes_content());
        for op in ["insert", "restore", "revert"] {
            let mut line = update();
            line["op"] = json!(op);
            assert!(read(&line.to_string()).expect(op)[0].draft.content.is_some());
        }
    }

    #[test]
    fn bad_lines_name_line_and_fault() {
        let check = |field: &str, value: Value, expected: &str| {
            let mut line = update();
            line[field] = value;
            let error = read(&format!("{}\n{line}", update())).expect_err(expected);
            assert!(error.starts_with("u:2: ") && error.contains(expected), "{error}");
        };
        check("ts", json!("noon"), "ts \"noon\" is not an RFC 3339 time");
        check("ts", json!("2026-03-02T09:00:04Z"), "is before 2026-03-02T09:00:04.5Z, the time of line 1");
        check("op", json!("move"), "unknown variant `move`, expected one of `update`, `insert`");
        check("op", json!("delete"), "deletes article a, and gives it too");
        check("kind", Value::Null, "invalid type: null");
        check("kb_id", json!(""), "empty article id");
        check("kb_id", json!("b"), "an edit of article b gives article a");
        check("version", json!(0), "article a: 0 is no version");
        check("article", Value::Null, "no text for article a");
        check("article", json!({"id": "a", "title": " "}), "neither a title nor a body");
        check("article", json!({"id": "a", "body": "x".repeat(61)}), "61 bytes, at most 60 are allowed");
        check("probes", json!([" "]), "empty probe");
        check("probes", json!(["x".repeat(21)]), "probe of 21 bytes, at most 20 are allowed");
        assert!(read("{").expect_err("no JSON").starts_with("u:1: "));
    }
}
