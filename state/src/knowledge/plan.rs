//! What a set of changes means for the store, the index and the cached answers, worked out before any of it happens.
//!
//! It reads the store and writes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{ApplySummary, ArticleChange, Stamp};
use crate::{Article, ArticleId, Chunk, ChunkId, StateError, Store, StoreBatch, TenantId};

/// All of it.
pub(super) struct Plan {
    /// For the store.
    pub(super) batch: StoreBatch,
    /// For the index.
    pub(super) tenants: BTreeMap<TenantId, TenantPlan>,
    pub(super) summary: ApplySummary,
    /// Articles that were not there before.
    pub(super) articles_added: usize,
}

/// What becomes of one tenant's part of the index.
#[derive(Default)]
pub(super) struct TenantPlan {
    /// Chunks that are gone.
    pub(super) removed: Vec<ChunkId>,
    /// Chunks with a vector that they did not have before.
    pub(super) inserted: Vec<(ChunkId, Arc<[f32]>)>,
    /// The versions of all chunks that were written.
    pub(super) stamps: Vec<(ChunkId, Stamp)>,
    /// Chunks that are new, gone, or of another content.
    chunks_changed: usize,
}

impl Plan {
    /// Compares the changes with what is stored.
    pub(super) fn of(store: &Store, changes: Vec<ArticleChange>) -> Result<Self, StateError> {
        let mut plan = Self {
            batch: StoreBatch::new(),
            tenants: BTreeMap::new(),
            summary: ApplySummary::default(),
            articles_added: 0,
        };
        for ((tenant, article), content) in last_of_each(changes) {
            plan.add(store, &tenant, &article, content)?;
        }
        for (tenant, part) in &plan.tenants {
            plan.summary.chunks_changed += part.chunks_changed;
            if part.chunks_changed > 0 {
                plan.summary.entries_dropped += plan.batch.delete_all_entries(store, Some(tenant))?;
            }
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        store: &Store,
        tenant: &TenantId,
        article: &ArticleId,
        content: Option<(Article, Vec<Chunk>)>,
    ) -> Result<(), StateError> {
        let was_there = store.article(tenant, article)?.is_some();
        let old = store.article_chunks(tenant, article)?;
        let chunks = match content {
            Some((article, chunks)) => {
                self.batch.put_article(tenant, &article, &chunks)?;
                self.summary.articles_written += 1;
                self.articles_added += usize::from(!was_there);
                chunks
            }
            None => {
                self.batch.delete_article(tenant, article);
                self.summary.articles_deleted += usize::from(was_there);
                Vec::new()
            }
        };
        self.tenants.entry(tenant.clone()).or_default().compare(old, chunks);
        Ok(())
    }
}

impl TenantPlan {
    fn compare(&mut self, old: Vec<Chunk>, new: Vec<Chunk>) {
        let mut old: HashMap<u32, Chunk> = old.into_iter().map(|chunk| (chunk.id.ordinal, chunk)).collect();
        // Of two chunks with one ordinal the store keeps the last, and so must the index.
        let new: BTreeMap<u32, Chunk> = new.into_iter().map(|chunk| (chunk.id.ordinal, chunk)).collect();
        for chunk in new.into_values() {
            let before = old.remove(&chunk.id.ordinal);
            self.chunks_changed += usize::from(before.as_ref().is_none_or(|before| before.hash != chunk.hash));
            self.stamps.push((chunk.id.clone(), Stamp::of(&chunk)));
            if before.is_none_or(|before| before.vector != chunk.vector) {
                self.inserted.push((chunk.id, chunk.vector));
            }
        }
        self.chunks_changed += old.len();
        self.removed.extend(old.into_values().map(|chunk| chunk.id));
    }
}

type Contents = BTreeMap<(TenantId, ArticleId), Option<(Article, Vec<Chunk>)>>;

/// The last change of each article; `None` for a deletion.
fn last_of_each(changes: Vec<ArticleChange>) -> Contents {
    let named = changes.into_iter().map(|change| match change {
        ArticleChange::Put { tenant, article, chunks } => ((tenant, article.id.clone()), Some((article, chunks))),
        ArticleChange::Delete { tenant, article } => ((tenant, article), None),
    });
    named.collect()
}
