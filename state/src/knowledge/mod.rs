//! The served knowledge base: every tenant's chunks, found by their vectors.
//!
//! *Contract*: tenants share nothing. A change is durable before it is searchable, and when [`KnowledgeBase::apply`]
//! has returned, no search finds the old text any more. A found chunk is always the one that its score was computed
//! from, whatever is written meanwhile. When the content of a tenant's articles changes, all cached answers of the
//! tenant are deleted in the same atomic write: the simplest rule under which none of them is ever stale. A change of
//! white space, letter case or metadata alone keeps them.
//!
//! Memory: vectors stay in the index; texts stay in the store, the hot ones in a cache bounded by bytes.
//!
//! What it does not do: it computes no vectors, cuts no articles into chunks, and knows only those cached answers that
//! are in the store when a change is applied. Whoever caches an answer compares the epoch that it was made from.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::plan::{Plan, TenantPlan};
use crate::index::{IndexConfig, VectorIndex};
use crate::{
    Article, ArticleId, BoundedCache, CacheStats, Chunk, ChunkId, ContentHash, Durability, ScoredChunk, StateError,
    Store, TenantId,
};

/// How often a search that met a write under way is tried again before it waits for the write.
const OPTIMISTIC_TRIES: usize = 2;
/// Changes made to an index in one go; searches get their turn in between.
const CHANGES_PER_LOCK: usize = 16;
/// What a cached chunk weighs beyond its texts and its vector, in bytes: the chunk itself and its place in the cache.
const CHUNK_OVERHEAD_BYTES: usize = size_of::<Chunk>() + 128;

/// One change of a knowledge base.
#[derive(Clone, Debug, PartialEq)]
pub enum ArticleChange {
    /// An article with all its chunks, in place of what it was before.
    Put {
        /// Whose knowledge base.
        tenant: TenantId,
        /// The article.
        article: Article,
        /// All its chunks.
        chunks: Vec<Chunk>,
    },
    /// An article is gone.
    Delete {
        /// Whose knowledge base.
        tenant: TenantId,
        /// Which article.
        article: ArticleId,
    },
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplySummary {
    /// Articles that were put.
    pub articles_written: usize,
    /// Articles that were there and are gone.
    pub articles_deleted: usize,
    /// Chunks that are new, gone, or of another content.
    pub chunks_changed: usize,
    /// Cached answers that were deleted because of that.
    pub entries_dropped: usize,
}

/// What a knowledge base holds, and how its cache does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnowledgeStats {
    /// Articles of all tenants.
    pub articles: u64,
    /// Chunks of all tenants.
    pub chunks: usize,
    /// Tenants that have, or had, a chunk.
    pub tenants: usize,
    /// The cache of hot chunks.
    pub cache: CacheStats,
}

/// Which version of a chunk the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    version: u64,
    hash: ContentHash,
}

impl Stamp {
    const fn of(chunk: &Chunk) -> Self {
        Self { version: chunk.version, hash: chunk.hash }
    }
}

type NamedVector = (ChunkId, Arc<[f32]>);

/// One tenant's part of the index.
struct Partition {
    index: VectorIndex<ChunkId>,
    stamps: HashMap<ChunkId, Stamp>,
}

/// A chunk that the index found.
struct Found {
    id: ChunkId,
    score: f32,
    stamp: Stamp,
}

/// The knowledge base of all tenants. Shared between threads as it is.
pub struct KnowledgeBase {
    store: Store,
    partitions: RwLock<HashMap<TenantId, Arc<RwLock<Partition>>>>,
    cache: Mutex<BoundedCache<ChunkId, Arc<Chunk>>>,
    epoch: AtomicU64,
    articles: AtomicU64,
    /// One change at a time.
    writer: Mutex<()>,
    /// Held while store and index differ. Searches pass it by, and wait for it only after they met a difference.
    settled: RwLock<()>,
}

// A lock is poisoned when its holder panicked. What the locks guard here is exchanged whole or checked when it is
// read, so going on is better than failing every later search.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KnowledgeBase {
    /// Reads every tenant's chunks and builds the index.
    ///
    /// # Errors
    /// When the database cannot be read, a value does not decode, or a tenant's vectors differ in length.
    pub fn load(store: Store, chunk_cache_bytes: usize) -> Result<Self, StateError> {
        let mut vectors = HashMap::<TenantId, Vec<NamedVector>>::new();
        let mut stamps = HashMap::<TenantId, HashMap<ChunkId, Stamp>>::new();
        store.chunks(&mut |chunk| {
            let tenant = &chunk.id.tenant;
            stamps.entry(tenant.clone()).or_default().insert(chunk.id.clone(), Stamp::of(&chunk));
            vectors.entry(tenant.clone()).or_default().push((chunk.id.clone(), chunk.vector));
            ControlFlow::Continue(())
        })?;
        let mut partitions = HashMap::new();
        for (tenant, vectors) in vectors {
            let index = VectorIndex::build(IndexConfig::default(), vectors)?;
            let stamps = stamps.remove(&tenant).unwrap_or_default();
            partitions.insert(tenant, Arc::new(RwLock::new(Partition { index, stamps })));
        }
        Ok(Self {
            articles: AtomicU64::new(store.count_articles()?),
            store,
            partitions: RwLock::new(partitions),
            cache: Mutex::new(BoundedCache::new(chunk_cache_bytes)),
            epoch: AtomicU64::new(0),
            writer: Mutex::new(()),
            settled: RwLock::new(()),
        })
    }

    /// The `k` chunks of a tenant that are most similar to the query, best first.
    ///
    /// # Errors
    /// When the database cannot be read, or the query is not of the tenant's dimension or not finite.
    pub fn search(&self, tenant: &TenantId, query: &[f32], k: usize) -> Result<Vec<ScoredChunk>, StateError> {
        let Some(partition) = self.partition(tenant) else {
            return Ok(Vec::new());
        };
        for _ in 0..OPTIMISTIC_TRIES {
            let found = find(&partition, query, k)?;
            let wanted = found.len();
            let chunks = self.fetch(&found)?;
            if chunks.len() == wanted {
                return Ok(chunks);
            }
        }
        // Between a write to the store and the one to the index both differ; here they do not.
        let _settled = read(&self.settled);
        self.fetch(&find(&partition, query, k)?)
    }

    fn partition(&self, tenant: &TenantId) -> Option<Arc<RwLock<Partition>>> {
        read(&self.partitions).get(tenant).cloned()
    }

    /// The bodies of what was found, from the cache or the store; without those that are another version by now.
    fn fetch(&self, found: &[Found]) -> Result<Vec<ScoredChunk>, StateError> {
        let mut bodies = self.cached(found);
        let missing: Vec<usize> = (0..found.len()).filter(|&at| bodies[at].is_none()).collect();
        if !missing.is_empty() {
            let ids: Vec<_> = missing.iter().map(|&at| found[at].id.clone()).collect();
            let stored = self.store.chunks_of(&ids)?;
            let mut cache = lock(&self.cache);
            for (&at, chunk) in missing.iter().zip(stored) {
                let Some(chunk) = chunk.filter(|chunk| Stamp::of(chunk) == found[at].stamp).map(Arc::new) else {
                    continue;
                };
                cache.insert(chunk.id.clone(), Arc::clone(&chunk), weight(&chunk));
                bodies[at] = Some(chunk);
            }
        }
        let scored = found.iter().zip(bodies);
        Ok(scored.filter_map(|(found, body)| body.map(|chunk| ScoredChunk { chunk, score: found.score })).collect())
    }

    fn cached(&self, found: &[Found]) -> Vec<Option<Arc<Chunk>>> {
        let mut cache = lock(&self.cache);
        let bodies = found.iter().map(|found| {
            // A search that was overtaken by a write may have left the older chunk behind.
            if cache.peek(&found.id).is_some_and(|chunk| Stamp::of(chunk) != found.stamp) {
                cache.remove(&found.id);
            }
            cache.get(&found.id).cloned()
        });
        bodies.collect()
    }

    /// Makes changes durable, then searchable. Of several changes of one article the last counts.
    ///
    /// All of them are one atomic write, together with the deletion of the cached answers they make stale. Searches go
    /// on meanwhile.
    ///
    /// # Errors
    /// When a chunk belongs elsewhere or its vector does not fit, nothing is changed. When the write fails, nothing
    /// becomes searchable.
    pub fn apply(&self, changes: Vec<ArticleChange>) -> Result<ApplySummary, StateError> {
        let _writer = lock(&self.writer);
        if changes.is_empty() {
            return Ok(ApplySummary::default());
        }
        let Plan { batch, tenants, summary, articles_added } = Plan::of(&self.store, changes)?;
        let mut ready = Vec::with_capacity(tenants.len());
        for (tenant, plan) in tenants {
            let (partition, is_new) = self
                .partition(&tenant)
                .map_or_else(|| (Arc::new(RwLock::new(Partition::new())), true), |partition| (partition, false));
            // Whatever takes long, and whatever can fail, happens before anything is written.
            let fresh = read(&partition).prepare(&plan)?;
            ready.push((tenant, partition, is_new, plan, fresh));
        }

        let _unsettled = write(&self.settled);
        self.store.write(batch, Durability::Synced)?;
        for (tenant, partition, is_new, plan, fresh) in ready {
            let mut cache = lock(&self.cache);
            for id in plan.removed.iter().chain(plan.stamps.iter().map(|(id, _)| id)) {
                cache.remove(id);
            }
            drop(cache);
            take_over(&partition, plan, fresh)?;
            if is_new {
                write(&self.partitions).insert(tenant, partition);
            }
        }
        self.articles.fetch_add(articles_added as u64, Ordering::Relaxed);
        self.articles.fetch_sub(summary.articles_deleted as u64, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(summary)
    }

    /// Counts the changes applied since the start. An answer made from searches that began at this epoch knows
    /// nothing of any later one.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What it holds, and how its cache does.
    #[must_use]
    pub fn stats(&self) -> KnowledgeStats {
        let partitions: Vec<_> = read(&self.partitions).values().cloned().collect();
        KnowledgeStats {
            articles: self.articles.load(Ordering::Relaxed),
            chunks: partitions.iter().map(|partition| read(partition).index.len()).sum(),
            tenants: partitions.len(),
            cache: lock(&self.cache).stats(),
        }
    }

    /// Where everything is kept.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }
}

impl Partition {
    fn new() -> Self {
        Self { index: VectorIndex::new(IndexConfig::default()), stamps: HashMap::new() }
    }

    /// Checks all of a plan, and builds the index anew when it asks for it.
    fn prepare(&self, plan: &TenantPlan) -> Result<Option<VectorIndex<ChunkId>>, StateError> {
        let dimension = self.index.dimension().or_else(|| plan.inserted.first().map(|(_, vector)| vector.len()));
        for (_, vector) in &plan.inserted {
            self.index.check(vector)?;
            if let Some(expected) = dimension.filter(|&expected| expected != vector.len()) {
                return Err(StateError::Dimension { expected, found: vector.len() });
            }
        }
        self.index.changed(&plan.removed, &plan.inserted)
    }
}

/// Makes the changes searchable.
fn take_over(
    partition: &RwLock<Partition>,
    plan: TenantPlan,
    fresh: Option<VectorIndex<ChunkId>>,
) -> Result<(), StateError> {
    let stamps: HashMap<ChunkId, Stamp> = plan.stamps.into_iter().collect();
    if let Some(fresh) = fresh {
        let mut partition = write(partition);
        partition.index = fresh;
        for id in &plan.removed {
            partition.stamps.remove(id);
        }
        partition.stamps.extend(stamps);
        return Ok(());
    }
    for removed in plan.removed.chunks(CHANGES_PER_LOCK) {
        let mut partition = write(partition);
        for id in removed {
            partition.index.remove(id);
            partition.stamps.remove(id);
        }
    }
    for inserted in plan.inserted.chunks(CHANGES_PER_LOCK) {
        let mut partition = write(partition);
        for (id, vector) in inserted {
            partition.index.insert(id.clone(), Arc::clone(vector))?;
            // With the vector, so that a search in between sees which version it found.
            partition.stamps.extend(stamps.get_key_value(id).map(|(id, stamp)| (id.clone(), *stamp)));
        }
    }
    // What is left kept its vector and has a new version only.
    write(partition).stamps.extend(stamps);
    Ok(())
}

/// The nearest chunks with the versions they had when they were found.
fn find(partition: &RwLock<Partition>, query: &[f32], k: usize) -> Result<Vec<Found>, StateError> {
    let partition = read(partition);
    let near = partition.index.search(query, k)?;
    let stamped = near.into_iter().filter_map(|(id, score)| {
        let stamp = *partition.stamps.get(&id)?;
        Some(Found { id, score, stamp })
    });
    Ok(stamped.collect())
}

/// What a chunk takes in the cache, in bytes.
fn weight(chunk: &Chunk) -> usize {
    CHUNK_OVERHEAD_BYTES + chunk.title.len() + chunk.text.len() + size_of_val(&*chunk.vector)
}
