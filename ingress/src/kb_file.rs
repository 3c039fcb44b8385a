//! Reads a knowledge base from a JSONL file: one article per line with `id`, and `title` or `body` or both.
//!
//! `version` counts the article's versions and is 1 when it is missing; other fields are ignored. The first bad line
//! ends the reading: half a knowledge base answers worse than an error message.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use turnflow_state::{Article, ArticleId, Limits};

use crate::lines::{BadLine, Lines, parse_line};

/// Reads all articles of a file.
///
/// # Errors
/// When the file cannot be read, or a [`BadLine`] naming file and line.
pub fn read_articles(path: &Path, limits: &Limits) -> anyhow::Result<Vec<Article>> {
    let file = File::open(path).with_context(|| format!("cannot open the knowledge base {}", path.display()))?;
    parse_articles(BufReader::new(file), &path.display().to_string(), limits)
}

/// Reads all articles from `reader`, which is called `name` in messages.
///
/// # Errors
/// As [`read_articles`].
pub fn parse_articles(reader: impl BufRead, name: &str, limits: &Limits) -> anyhow::Result<Vec<Article>> {
    let mut lines = Lines::new(reader, name);
    let mut articles = Vec::new();
    let mut first_lines: HashMap<ArticleId, u64> = HashMap::new();
    while let Some(line) = lines.next_line().with_context(|| format!("cannot read {name}"))? {
        let (number, text) = line?;
        let bad = |reason: String| BadLine::new(lines.file(), number, reason);
        let article = parse_article(&text, limits).map_err(bad)?;
        if let Some(first) = first_lines.insert(article.id.clone(), number) {
            return Err(bad(format!("article {} was already given on line {first}", article.id)).into());
        }
        articles.push(article);
    }
    anyhow::ensure!(!articles.is_empty(), "{name} holds no articles");
    Ok(articles)
}

#[derive(Deserialize)]
struct RawArticle {
    id: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    version: Option<u64>,
}

fn parse_article(text: &str, limits: &Limits) -> Result<Article, String> {
    let raw: RawArticle = parse_line(text)?;
    let id = ArticleId::new(&raw.id).map_err(|error| error.to_string())?;
    let (title, body) = (raw.title.unwrap_or_default(), raw.body.unwrap_or_default());
    let bytes = title.len() + body.len();
    if title.trim().is_empty() && body.trim().is_empty() {
        return Err(format!("article {id} has neither a title nor a body"));
    }
    if bytes > limits.article_bytes_max {
        return Err(format!("article {id} of {bytes} bytes, at most {} are allowed", limits.article_bytes_max));
    }
    match raw.version.unwrap_or(1) {
        0 => Err(format!("article {id} has version 0, versions count from 1")),
        version => Ok(Article { id, title, body, version }),
    }
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::Config;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, u64)>, String> {
        let mut limits = Config::defaults().limits;
        limits.article_bytes_max = 40;
        let articles = parse_articles(text.as_bytes(), "kb.jsonl", &limits).map_err(|error| format!("{error:#}"))?;
        Ok(articles.into_iter().map(|article| (article.id.to_string(), article.version)).collect())
    }

    #[test]
    fn articles_and_their_faults() {
        let check = |text: &str, expected: Result<&[(&str, u64)], &str>| {
            let expected = expected
                .map(|articles| articles.iter().map(|&(id, version)| (id.to_owned(), version)).collect::<Vec<_>>())
                .map_err(str::to_owned);
            assert_eq!(read(text), expected, "{text}");
        };
        check(r#"{"id":"a","title":"T"}"#, Ok(&[("a", 1)]));
        check(
            "{\"id\":\"a\",\"body\":\"B\",\"version\":7,\"facts\":[1]}\n\n{\"id\":\"b\",\"title\":\"T\"}\n",
            Ok(&[("a", 7), ("b", 1)]),
        );
        check(r#"{"title":"T"}"#, Err("kb.jsonl:1: missing field `id` (column 13)"));
        check(r#"{"id":"","title":"T"}"#, Err("kb.jsonl:1: empty article id"));
        check(r#"{"id":"a","title":" "}"#, Err("kb.jsonl:1: article a has neither a title nor a body"));
        check(
            r#"{"id":"a","title":"T","version":0}"#,
            Err("kb.jsonl:1: article a has version 0, versions count from 1"),
        );
        check(
            "{\"id\":\"a\",\"title\":\"T\"}\n{\"id\":\"a\",\"title\":\"U\"}",
            Err("kb.jsonl:2: article a was already given on line 1"),
        );
        check(
            &format!("{{\"id\":\"a\",\"body\":\"{}\"}}", "x".repeat(41)),
            Err("kb.jsonl:1: article a of 41 bytes, at most 40 are allowed"),
        );
        check("\n\n", Err("kb.jsonl holds no articles"));
    }
}
