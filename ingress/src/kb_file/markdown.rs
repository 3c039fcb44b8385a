//! An article as a Markdown file: notes between two lines `---`, then the text.
//!
//! ```text
//! ---
//! id: returns
//! title: "Returns: how and when"
//! version: 3
//! category: orders
//! ---
//! You can return everything within 30 days.
//! ```
//!
//! All notes are optional. `id`, `title` and `version` are the article's own, others become its metadata. Without a
//! title, the first `# heading` is the title, and then no part of the text. Notes look like YAML but are less: each is one
//! line `name: value`, the value plain or in quotes, and anything nested is an error.

use std::collections::BTreeMap;

use turnflow_pipeline::{ArticleDraft, DraftContent};
use turnflow_state::{Article, ArticleId};

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

fn fault(line: u64, reason: impl Into<String>) -> Fault {
    Fault { line, reason: reason.into() }
}

/// Reads an article; `id_default` is its id if it does not name itself.
///
/// # Errors
/// What is wrong with the file first.
pub fn parse(text: &str, id_default: Option<&str>) -> Result<ArticleDraft, Fault> {
    let (mut notes, rest) = front_matter(text.strip_prefix('\u{feff}').unwrap_or(text))?;
    let (line, id) = match notes.remove("id") {
        Some(Note { line, value }) => (line, value),
        None => (1, id_default.ok_or_else(|| fault(1, "no id, and the file's name is not Unicode"))?.to_owned()),
    };
    let id = ArticleId::new(&id).map_err(|error| fault(line, error.to_string()))?;
    let version = match notes.remove("version") {
        Some(Note { line, value }) => {
            Some(value.parse().map_err(|_| fault(line, format!("version {value:?} is not a number")))?)
        }
        None => None,
    };
    let (title, body) = match notes.remove("title") {
        Some(Note { value, .. }) => (value, rest.to_owned()),
        None => split_heading(rest),
    };
    let metadata = notes.into_iter().map(|(name, note)| (name, note.value)).collect();
    let content = DraftContent { title, body: body.trim().to_owned(), metadata, version };
    Ok(ArticleDraft { id, content: Some(content), expected_version: None })
}

/// Writes an article as [`parse`] reads it.
#[must_use]
pub fn write(article: &Article) -> String {
    let version = article.version.to_string();
    let own = [("id", article.id.as_str()), ("title", &article.title), ("version", &version)];
    let others = article.metadata.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let notes: String =
        own.into_iter().chain(others).map(|(name, value)| format!("{name}: {}\n", quote(value))).collect();
    format!("---\n{notes}---\n{}\n", article.body.trim())
}

struct Note {
    line: u64,
    value: String,
}

/// The notes by name, and the text behind them.
fn front_matter(text: &str) -> Result<(BTreeMap<String, Note>, &str), Fault> {
    let mut notes = BTreeMap::new();
    let mut lines = (1..).zip(text.split_inclusive('\n'));
    let Some((_, first)) = lines.next().filter(|(_, first)| first.trim_end() == "---") else {
        return Ok((notes, text));
    };
    let mut read = first.len();
    for (line, written) in lines {
        read += written.len();
        let written = written.trim_end();
        if written == "---" {
            return Ok((notes, &text[read..]));
        }
        if written.is_empty() || written.starts_with('#') {
            continue;
        }
        let (name, value) = note(written).map_err(|reason| fault(line, reason))?;
        if notes.insert(name.to_owned(), Note { line, value }).is_some() {
            return Err(fault(line, format!("{name} is given twice")));
        }
    }
    Err(fault(1, "the notes that begin here do not end: a line --- is missing"))
}

/// One line `name: value`.
fn note(line: &str) -> Result<(&str, String), String> {
    let nested = || format!("{line:?} is nested, notes are plain: name: value");
    if line.starts_with([' ', '\t']) || line.starts_with("- ") {
        return Err(nested());
    }
    let (name, value) = line.split_once(':').ok_or_else(|| format!("{line:?} is not: name: value"))?;
    if name.trim().is_empty() || !(value.is_empty() || value.starts_with([' ', '\t'])) {
        return Err(format!("{line:?} is not: name: value"));
    }
    let value = value.trim();
    let value = match value.chars().next() {
        Some('"') => serde_json::from_str(value).map_err(|_| format!("{value} is not one text in quotes"))?,
        Some('\'') => single_quoted(value).ok_or_else(|| format!("{value} is not one text in quotes"))?,
        Some('[' | '{' | '|' | '>' | '&' | '*' | '!') => return Err(nested()),
        // A comment, as in YAML.
        _ => value.split(" #").next().unwrap_or(value).trim_end().to_owned(),
    };
    Ok((name.trim(), value))
}

/// In single quotes a quote is written twice, and nothing else is special.
fn single_quoted(value: &str) -> Option<String> {
    let inner = value.strip_prefix('\'')?.strip_suffix('\'')?;
    let plain = inner.replace("''", "");
    (!plain.contains('\'')).then(|| inner.replace("''", "'"))
}

/// A value in quotes, unless it says the same without.
fn quote(value: &str) -> String {
    let plain = note(&format!("x: {value}")).is_ok_and(|(_, read)| read == value) && !value.contains(['\n', '\r']);
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// The first heading of the first level, and the text without it. A heading in a block of code is none.
fn split_heading(text: &str) -> (String, String) {
    let mut fence: Option<&str> = None;
    let mut read = 0;
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            _ => {}
        }
        if let Some(heading) = line.strip_prefix("# ").filter(|_| fence.is_none()) {
            let title = heading.trim().trim_end_matches('#').trim_end().to_owned();
            return (title, format!("{}{}", &text[..read], &text[read + line.len()..]));
        }
        read += line.len();
    }
    (String::new(), text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> DraftContent {
        parse(text, Some("folder/page")).expect("a good page").content.expect("content")
    }

    #[test]
    fn titles_come_from_notes_or_from_the_first_heading() {
        let check = |text: &str, title: &str, body: &str| {
            let content = content(text);
            assert_eq!((content.title.as_str(), content.body.as_str()), (title, body), "{text:?}");
        };
        check("# Returns\n\nWithin 30 days.\n", "Returns", "Within 30 days.");
        check("Hello.\n# Returns #\r\nWithin 30 days.", "Returns", "Hello.\nWithin 30 days.");
        check("```\n# no heading\n~~~\n```\n# Yes\nbody", "Yes", "```\n# no heading\n~~~\n```\nbody");
        check("## Second level\nbody", "", "## Second level\nbody");
        check("---\ntitle: Given\n---\n# Kept\nbody", "Given", "# Kept\nbody");
        check("\u{feff}---\r\ntitle: Windows\r\n---\r\nbody\r\n", "Windows", "body");
        check("body\n---\nmore", "", "body\n---\nmore");
    }

    #[test]
    fn notes_are_read_as_written() {
        let text = "---\n# a comment\nid: other\n\nversion: 3\nplain: a: b # why\nempty:\ndouble: \"a \\\"b\\\" # c\"\nsingle: 'it''s'\n---\nx";
        let draft = parse(text, None).expect("a good page");
        assert_eq!(draft.id.as_str(), "other");
        let content = draft.content.expect("content");
        assert_eq!(content.version, Some(3));
        let expected = [("double", "a \"b\" # c"), ("empty", ""), ("plain", "a: b"), ("single", "it's")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(content.metadata, BTreeMap::from(expected));
        assert_eq!(parse("x", Some("folder/page")).expect("a good page").id.as_str(), "folder/page");
    }

    #[test]
    fn faults_are_named_with_their_line() {
        let check = |text: &str, line: u64, reason: &str| {
            let fault = parse(text, Some("page")).expect_err(text);
            assert!(fault.line == line && fault.reason.contains(reason), "{text:?}: {fault:?}");
        };
        check("---\ntags:\n  - a\n---\n", 3, "nested");
        check("---\ntags:\n- a\n---\n", 3, "nested");
        check("---\ntags: [a, b]\n---\n", 2, "nested");
        check("---\ntext: |\n---\n", 2, "nested");
        check("---\nid: a\n\nid: b\n---\n", 4, "given twice");
        check("---\nid\n---\n", 2, "is not: name: value");
        check("---\nid:a\n---\n", 2, "is not: name: value");
        check("---\ntitle: \"open\n---\n", 2, "not one text in quotes");
        check("---\ntitle: 'a' b'\n---\n", 2, "not one text in quotes");
        check("---\nversion: two\n---\n", 2, "not a number");
        check("---\ntitle: T\nid: \"\"\n---\n", 3, "empty article id");
        check("---\ntitle: T\n", 1, "do not end");
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        for value in
            ["plain", "a: b", " padded ", "#", "a # b", "two\nlines", "\"quoted\"", "it's", "'", "[x]", "", "—"]
        {
            let article = Article {
                id: ArticleId::new("folder/page").expect("valid id"),
                title: value.to_owned(),
                body: "# A heading\n\nand text".to_owned(),
                metadata: BTreeMap::from([("note".to_owned(), value.to_owned())]),
                version: 7,
            };
            let text = write(&article);
            let read = parse(&text, None).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
            let content = read.content.expect("content");
            assert_eq!((read.id, content.version), (article.id, Some(7)));
            assert_eq!(
                (content.title, content.body, content.metadata),
                (article.title, article.body, article.metadata)
            );
        }
    }
}
