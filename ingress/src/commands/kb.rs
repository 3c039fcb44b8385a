//! `kb import` and `kb search`.

use serde_json::json;
use turnflow_pipeline::search_knowledge;

use super::{Context, open};
use crate::cli::{KbImportArgs, KbSearchArgs};
use crate::failure::Failure;
use crate::kb_file::read_articles;

/// Characters of a chunk that a search result shows.
const SNIPPET_CHARS_MAX: usize = 160;

pub(super) fn import(context: &Context, args: &KbImportArgs) -> Result<(), Failure> {
    // The file first: a bad line must not cost the opening of store and model.
    let articles = read_articles(&args.file, &context.config.limits)?;
    let store = open::store(context, &context.data_dir(args.store.data.as_ref())?)?;
    let parts = open::parts(context, store)?;
    let summary = open::import(context, &parts, &args.tenant, articles)?;
    let json = json!({
        "articles": summary.articles,
        "chunks": summary.chunks,
        "chunks_changed": summary.chunks_changed,
        "entries_dropped": summary.entries_dropped,
    });
    let text = format!(
        "imported {} articles in {} chunks; {} chunks changed, {} cached answers dropped\n",
        summary.articles, summary.chunks, summary.chunks_changed, summary.entries_dropped
    );
    context.print(&json, text)
}

pub(super) fn search(context: &Context, args: &KbSearchArgs) -> Result<(), Failure> {
    if args.query.trim().is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("empty query")));
    }
    let store = open::store(context, &context.data_dir(args.store.data.as_ref())?)?;
    let parts = open::parts(context, store)?;
    let found = search_knowledge(&parts, &args.tenant, &args.query, args.k.into())?;
    if found.is_empty() {
        eprintln!("nothing found: is there a knowledge base for tenant {}? turnflow kb import FILE", args.tenant);
    }
    let mut text = String::new();
    let mut results = Vec::with_capacity(found.len());
    for (rank, hit) in found.iter().enumerate() {
        let chunk = &hit.chunk;
        let (article, ordinal) = (chunk.id.article.as_str(), chunk.id.ordinal);
        let snippet = snippet(&chunk.text);
        text += &format!(
            "{:>2}. {:.3}  {} ({article}, chunk {ordinal})\n    {snippet}\n",
            rank + 1,
            hit.score,
            chunk.title
        );
        results.push(json!({
            "score": hit.score,
            "article_id": article,
            "version": chunk.version,
            "chunk": ordinal,
            "title": chunk.title,
            "text": chunk.text,
        }));
    }
    context.print(&results, text)
}

/// The beginning of a text, on one line.
fn snippet(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SNIPPET_CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}
