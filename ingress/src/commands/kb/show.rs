//! What the knowledge base says, in words and as JSON.

use std::fmt;

use serde_json::{Value, json};
use turnflow_state::ArticleId;

use crate::grpc::proto::{Article, FallReason, FallingAnswer, FoundChunk, WatchResponse};
use crate::kb_file::markdown;

/// Characters of a text that are shown where it is not the point.
const SNIPPET_CHARS_MAX: usize = 160;

/// What a change did to chunks and cached answers, or would do.
pub(super) struct Effect<'a> {
    pub(super) chunks_changed: u32,
    pub(super) invalidated: u32,
    /// On a dry run.
    pub(super) would_invalidate: &'a [FallingAnswer],
}

impl fmt::Display for Effect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunks_changed, invalidated, would_invalidate } = self;
        writeln!(f, "{chunks_changed} chunks changed, {invalidated} cached answers invalidated")?;
        would_invalidate.iter().try_for_each(|answer| {
            let (question, reason) = (snippet(&answer.question), reason(answer));
            writeln!(f, "  e{} \"{question}\": {reason}", answer.entry)
        })
    }
}

fn reason(answer: &FallingAnswer) -> &'static str {
    match answer.reason() {
        FallReason::SupportChanged => "a chunk that it rests on changes",
        FallReason::Overtaken => "a new chunk is nearer to the question",
        FallReason::Unspecified => "for a reason that this version does not know",
    }
}

pub(super) fn falling_json(answers: &[FallingAnswer]) -> Value {
    let answer = |answer: &FallingAnswer| {
        let reason = match answer.reason() {
            FallReason::SupportChanged => "support_changed",
            FallReason::Overtaken => "overtaken",
            FallReason::Unspecified => "unknown",
        };
        json!({ "entry": answer.entry, "question": answer.question, "reason": reason })
    };
    answers.iter().map(answer).collect()
}

/// An article in the form in which it can be imported.
pub(super) fn article_json(article: &Article, with_body: bool) -> Value {
    let Article { id, title, body, metadata, version } = article;
    let mut json = json!({ "id": id, "title": title, "version": version, "metadata": metadata });
    if with_body {
        json["body"] = body.as_str().into();
    }
    json
}

/// An article as a Markdown file.
pub(super) fn article_text(article: &Article) -> String {
    let Article { id, title, body, metadata, version } = article.clone();
    match ArticleId::new(&id) {
        Ok(id) => {
            markdown::write(&turnflow_state::Article { id, title, body, metadata, version: version.unwrap_or(0) })
        }
        // No server sends one; what it sent is shown all the same.
        Err(_) => format!("{article:?}\n"),
    }
}

/// An article on one line.
pub(super) fn article_line(article: &Article) -> String {
    format!("{}  v{}  {}\n", article.id, article.version(), snippet(&article.title))
}

pub(super) fn found_json(found: &[FoundChunk]) -> Value {
    let chunk = |hit: &FoundChunk| {
        json!({
            "score": hit.score,
            "article_id": hit.article_id,
            "version": hit.version,
            "chunk": hit.chunk,
            "title": hit.title,
            "text": hit.text,
        })
    };
    found.iter().map(chunk).collect()
}

pub(super) fn found_text(found: &[FoundChunk]) -> String {
    let chunk = |(rank, hit): (usize, &FoundChunk)| {
        let FoundChunk { article_id, chunk, title, text, score, .. } = hit;
        format!("{rank:>2}. {score:.3}  {title} ({article_id}, chunk {chunk})\n    {}\n", snippet(text))
    };
    (1..).zip(found).map(chunk).collect()
}

pub(super) fn change_json(change: &WatchResponse) -> Value {
    let articles = change.articles.iter().map(|article| {
        json!({
            "id": article.id,
            "version": article.version,
            "deleted": article.deleted,
            "chunks_changed": article.chunks_changed,
        })
    });
    json!({
        "epoch": change.epoch,
        "articles": articles.collect::<Value>(),
        "cached_answers_invalidated": change.cached_answers_invalidated,
    })
}

pub(super) fn change_text(change: &WatchResponse) -> String {
    let articles = change.articles.iter().map(|article| {
        let what = if article.deleted { "deleted".to_owned() } else { format!("v{}", article.version) };
        format!("{} {what}, {} chunks changed", article.id, article.chunks_changed)
    });
    let articles = articles.collect::<Vec<_>>().join("; ");
    format!("epoch {}: {articles}; {} cached answers invalidated\n", change.epoch, change.cached_answers_invalidated)
}

/// The beginning of a text, on one line.
pub(super) fn snippet(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SNIPPET_CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}
