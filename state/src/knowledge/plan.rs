//! What a change means for the store, the index and those who listen, worked out before any of it happens.
//!
//! It reads the store and writes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::change::{ArticleOutcome, ArticleWrite, KnowledgeChange, NewChunk, NewContent, WriteRefused};
use super::partition::Place;
use crate::{Article, ArticleId, Chunk, ChunkId, ChunkKey, StateError, Store, StoreBatch, TenantId};

/// All of it.
pub(super) struct Plan {
    /// For the store; empty when all writes were refused.
    pub(super) batch: StoreBatch,
    /// For the index.
    pub(super) tenants: BTreeMap<TenantId, TenantPlan>,
    /// For the writers.
    pub(super) outcomes: Vec<Result<ArticleOutcome, WriteRefused>>,
    /// For those who listen.
    pub(super) change: KnowledgeChange,
    /// Articles that were not there before.
    pub(super) articles_added: u64,
    /// Articles that were there and are gone.
    pub(super) articles_deleted: u64,
}

/// What becomes of one tenant's part of the index.
#[derive(Default)]
pub(super) struct TenantPlan {
    /// Contents that are gone.
    pub(super) removed: Vec<ChunkKey>,
    /// Contents with a vector that they did not have before.
    pub(super) inserted: Vec<(ChunkKey, Arc<[f32]>)>,
    /// Where all contents of the written articles are found from now on.
    pub(super) places: HashMap<ChunkKey, Place>,
    /// Chunks that are not what they were.
    pub(super) overwritten: Vec<ChunkId>,
}

impl Plan {
    /// Compares the writes with what is stored. If any is allowed, they become the change of this epoch.
    pub(super) fn of(store: &Store, writes: Vec<ArticleWrite>, epoch: u64) -> Result<Self, StateError> {
        none_twice(&writes)?;
        let mut plan = Self {
            batch: StoreBatch::new(),
            tenants: BTreeMap::new(),
            outcomes: Vec::with_capacity(writes.len()),
            change: KnowledgeChange::empty(epoch),
            articles_added: 0,
            articles_deleted: 0,
        };
        for write in writes {
            let outcome = plan.add(store, write)?;
            plan.outcomes.push(outcome);
        }
        if !plan.batch.is_empty() {
            plan.batch.put_knowledge_epoch(epoch);
        }
        Ok(plan)
    }

    fn add(&mut self, store: &Store, write: ArticleWrite) -> Result<Result<ArticleOutcome, WriteRefused>, StateError> {
        let current = store.article(&write.tenant, &write.article)?.map_or(0, |article| article.version);
        let last = store.article_version(&write.tenant, &write.article)?;
        let version = match next_version(&write, current, last) {
            Ok(version) => version,
            Err(refused) => return Ok(Err(refused)),
        };
        let ArticleWrite { tenant, article: id, content, .. } = write;
        let old = store.article_chunks(&tenant, &id)?;
        let existed = current > 0;
        let new = match content {
            Some(NewContent { title, body, metadata, chunks, .. }) => {
                let article = Article { id, title, body, metadata, version };
                let new = place(&tenant, &article, chunks, &old, self.change.epoch);
                self.batch.put_article(&tenant, &article, &new)?;
                self.articles_added += u64::from(!existed);
                new
            }
            None => {
                self.batch.delete_article(&tenant, &id, version);
                self.articles_deleted += 1;
                Vec::new()
            }
        };
        let chunks_changed = self.compare(tenant, &old, &new);
        Ok(Ok(ArticleOutcome { version, existed, chunks: new.len(), chunks_changed }))
    }

    /// Adds what an article gained, lost and kept; returns how much it gained and lost.
    fn compare(&mut self, tenant: TenantId, old: &[Chunk], new: &[Chunk]) -> usize {
        let (before, after) = (by_content(old), by_content(new));
        let plan = self.tenants.entry(tenant).or_default();
        let mut changed = 0;
        for (key, chunk) in in_order(&after) {
            let was = before.get(&key);
            if was.is_none() {
                changed += 1;
                self.change.added.push((key, Arc::clone(&chunk.vector)));
            }
            if was.is_none_or(|was| was.vector != chunk.vector) {
                plan.inserted.push((key, Arc::clone(&chunk.vector)));
            }
            plan.places.insert(key, Place::of(chunk));
        }
        for (key, _) in in_order(&before).into_iter().filter(|(key, _)| !after.contains_key(key)) {
            changed += 1;
            self.change.removed.push(key);
            plan.removed.push(key);
        }
        plan.overwritten.extend(old.iter().map(|chunk| chunk.id.clone()));
        changed
    }
}

/// Refuses writes of which it would be unclear which one counts.
fn none_twice(writes: &[ArticleWrite]) -> Result<(), StateError> {
    let mut named = BTreeSet::<(&TenantId, &ArticleId)>::new();
    match writes.iter().find(|write| !named.insert((&write.tenant, &write.article))) {
        Some(twice) => Err(StateError::NamedTwice { article: format!("{}/{}", twice.tenant, twice.article) }),
        None => Ok(()),
    }
}

/// The version that a write leads to, when the article is at `current` and never had a version above `last`.
fn next_version(write: &ArticleWrite, current: u64, last: u64) -> Result<u64, WriteRefused> {
    if let Some(expected) = write.expected_version.filter(|&expected| expected != current) {
        return Err(WriteRefused::VersionMismatch { expected, current });
    }
    // At the greatest number there is, an article can still be deleted but not be written any more.
    let next = last.saturating_add(1);
    match &write.content {
        None if current == 0 => Err(WriteRefused::NotFound),
        None => Ok(next),
        Some(content) => match content.version.unwrap_or(next) {
            given if given > last => Ok(given),
            given => Err(WriteRefused::VersionNotNewer { given, current: last }),
        },
    }
}

/// Gives chunks their places, and to those whose content is among the old ones the epoch it came with.
fn place(tenant: &TenantId, article: &Article, chunks: Vec<NewChunk>, old: &[Chunk], epoch: u64) -> Vec<Chunk> {
    let since: HashMap<_, _> = old.iter().map(|chunk| (chunk.hash, chunk.since)).collect();
    let placed = (0..).zip(chunks).map(|(ordinal, NewChunk { text, hash, vector })| Chunk {
        id: ChunkId { tenant: tenant.clone(), article: article.id.clone(), ordinal },
        version: article.version,
        title: article.title.clone(),
        text,
        hash,
        vector,
        since: since.get(&hash).copied().unwrap_or(epoch),
    });
    placed.collect()
}

/// Each content of an article once, at its first place.
fn by_content(chunks: &[Chunk]) -> HashMap<ChunkKey, &Chunk> {
    // Collected from the back, because of two with one key the later one is kept.
    chunks.iter().rev().map(|chunk| (chunk.key(), chunk)).collect()
}

/// The contents in the order of their places, so that the same change is told in the same words every time.
fn in_order<'a>(contents: &HashMap<ChunkKey, &'a Chunk>) -> Vec<(ChunkKey, &'a Chunk)> {
    let mut contents: Vec<_> = contents.iter().map(|(&key, &chunk)| (key, chunk)).collect();
    contents.sort_unstable_by_key(|(_, chunk)| chunk.id.ordinal);
    contents
}
