//! Fills the knowledge base: cuts articles into chunks, embeds what is new, and writes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use turnflow_state::{Article, ArticleChange, ArticleId, Chunk, ChunkId, ContentHash, ScoredChunk, TenantId};

use crate::{Config, Parts, PipelineError};

/// Articles that are embedded and written together.
const BATCH_ARTICLES: usize = 64;

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// Articles written.
    pub articles: usize,
    /// Chunks they were cut into.
    pub chunks: usize,
    /// Chunks whose content is new or gone.
    pub chunks_changed: usize,
    /// Cached answers that had to go.
    pub entries_dropped: usize,
}

/// Cuts, embeds and writes articles, and drops cached answers whose knowledge changed. Blocks.
///
/// Each batch of articles is written atomically. `progress` is told how many articles are done.
///
/// # Errors
/// [`PipelineError`] at the first article that is empty or too large, before anything is written; or when the
/// encoder or the store fails, in which case the batches before stay written.
pub fn import_articles(
    parts: &Parts,
    config: &Config,
    tenant: &TenantId,
    articles: Vec<Article>,
    progress: &mut dyn FnMut(usize),
) -> Result<ImportSummary, PipelineError> {
    for article in &articles {
        check(article, config.limits.article_bytes_max)?;
    }
    let mut summary = ImportSummary::default();
    let mut waiting = articles.into_iter();
    loop {
        let batch: Vec<Article> = waiting.by_ref().take(BATCH_ARTICLES).collect();
        if batch.is_empty() {
            return Ok(summary);
        }
        summary.articles += batch.len();
        let changes = embed(parts, config, tenant, batch)?;
        summary.chunks += changes.iter().map(chunks_of).sum::<usize>();
        let applied = parts.knowledge.apply(changes)?;
        summary.chunks_changed += applied.chunks_changed;
        summary.entries_dropped += applied.entries_dropped;
        progress(summary.articles);
    }
}

/// Removes the articles of a tenant that are not among `kept`, and the cached answers that may rest on them. Blocks.
/// Returns how many were removed.
///
/// # Errors
/// [`PipelineError`] when the store fails.
pub fn retain_articles(parts: &Parts, tenant: &TenantId, kept: &HashSet<ArticleId>) -> Result<usize, PipelineError> {
    let mut removed = Vec::new();
    parts.store.articles(tenant, &mut |article| {
        if !kept.contains(&article.id) {
            removed.push(ArticleChange::Delete { tenant: tenant.clone(), article: article.id });
        }
        std::ops::ControlFlow::Continue(())
    })?;
    let count = removed.len();
    if count > 0 {
        parts.knowledge.apply(removed)?;
    }
    Ok(count)
}

/// Embeds a query and searches the knowledge base. Blocks.
///
/// # Errors
/// [`PipelineError`] when the encoder or the store fails.
pub fn search_knowledge(
    parts: &Parts,
    tenant: &TenantId,
    query: &str,
    k: usize,
) -> Result<Vec<ScoredChunk>, PipelineError> {
    let vectors = parts.encoder.encode_blocking(vec![query.to_owned()])?;
    let Some(vector) = vectors.first() else { return Ok(Vec::new()) };
    Ok(parts.knowledge.search(tenant, vector, k)?)
}

fn check(article: &Article, limit: usize) -> Result<(), PipelineError> {
    let bytes = article.title.len() + article.body.len();
    if bytes > limit {
        return Err(PipelineError::ArticleTooLarge { id: article.id.clone(), bytes, limit });
    }
    if article.title.trim().is_empty() && article.body.trim().is_empty() {
        return Err(PipelineError::ArticleEmpty { id: article.id.clone() });
    }
    Ok(())
}

fn chunks_of(change: &ArticleChange) -> usize {
    match change {
        ArticleChange::Put { chunks, .. } => chunks.len(),
        ArticleChange::Delete { .. } => 0,
    }
}

/// A piece of an article on its way to becoming a chunk.
struct Piece {
    text: String,
    hash: ContentHash,
    vector: Option<Arc<[f32]>>,
}

fn embed(
    parts: &Parts,
    config: &Config,
    tenant: &TenantId,
    articles: Vec<Article>,
) -> Result<Vec<ArticleChange>, PipelineError> {
    let mut cut: Vec<(Article, Vec<Piece>)> = Vec::with_capacity(articles.len());
    for article in articles {
        // Chunks whose content is known keep their vectors: only what changed is embedded.
        let known: HashMap<ContentHash, Arc<[f32]>> = parts
            .store
            .article_chunks(tenant, &article.id)?
            .into_iter()
            .map(|chunk| (chunk.hash, chunk.vector))
            .collect();
        let texts = if article.body.trim().is_empty() {
            vec![article.title.clone()]
        } else {
            parts.encoder.tokenizer().cut(&article.body, config.knowledge.chunk_tokens_max)
        };
        let piece = |text: String| {
            let hash = ContentHash::of(&article.title, &text);
            Piece { vector: known.get(&hash).cloned(), text, hash }
        };
        let pieces = texts.into_iter().map(piece).collect();
        cut.push((article, pieces));
    }
    let mut unknown: Vec<(&str, &mut Piece)> = Vec::new();
    for (article, pieces) in &mut cut {
        unknown.extend(
            pieces.iter_mut().filter(|piece| piece.vector.is_none()).map(|piece| (article.title.as_str(), piece)),
        );
    }
    if !unknown.is_empty() {
        let texts = unknown.iter().map(|(title, piece)| format!("{title}\n{}", piece.text)).collect();
        let vectors = parts.encoder.encode_blocking(texts)?;
        for ((_, piece), vector) in unknown.into_iter().zip(vectors) {
            piece.vector = Some(vector);
        }
    }
    Ok(cut.into_iter().map(|(article, pieces)| change(tenant, article, pieces)).collect())
}

fn change(tenant: &TenantId, article: Article, pieces: Vec<Piece>) -> ArticleChange {
    let chunks = (0..).zip(pieces).filter_map(|(ordinal, piece)| {
        Some(Chunk {
            id: ChunkId { tenant: tenant.clone(), article: article.id.clone(), ordinal },
            version: article.version,
            title: article.title.clone(),
            text: piece.text,
            hash: piece.hash,
            // Every piece has a vector by now.
            vector: piece.vector?,
        })
    });
    let chunks = chunks.collect();
    ArticleChange::Put { tenant: tenant.clone(), article, chunks }
}
