//! The served knowledge base: every tenant's chunks, found by their vectors.
//!
//! *Contract*: tenants share nothing. A change is durable before it is published, published before it is searchable,
//! and when [`KnowledgeBase::apply`] has returned, no search finds the old text any more. A found chunk is always the
//! one that its score was computed from, whatever is written meanwhile. A search in the midst of a change may or may
//! not see what comes and what goes with it, but always sees what stays. A content that an article has twice is found
//! once, at its first place.
//!
//! Changes are numbered: each that writes anything takes the next *epoch*, which is kept with it, and is published in
//! that order. So whoever remembers the epoch before a search knows which changes the result may lack, and can put it
//! right from what is published. Versions count an article's writes and are never used twice, not even after a
//! deletion.
//!
//! Memory: vectors stay in the index; texts stay in the store, the hot ones in a cache bounded by bytes.
//!
//! What it does not do: it computes no vectors, cuts no articles into chunks, and knows nothing of cached answers. It
//! tells contents by their hashes: whoever hands in the same content again hands in the same vector, for it is not
//! published again.

mod change;
#[cfg(test)]
mod change_tests;
mod linker;
#[cfg(test)]
mod model_tests;
mod partition;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use self::change::{Applied, ArticleOutcome, ArticleWrite, KnowledgeChange, NewChunk, NewContent, WriteRefused};
use self::linker::Linker;
use self::partition::{Found, Gathered, Partition};
use self::plan::Plan;
use crate::{
    BoundedCache, CacheStats, Chunk, ChunkId, Durability, ScoredChunk, StateError, Store, StoreBatch, TenantId,
};

/// How often a search that met a write under way is tried again before it waits for the write.
const OPTIMISTIC_TRIES: usize = 2;
/// What a cached chunk weighs beyond its texts and its vector, in bytes: the chunk itself and its place in the cache.
const CHUNK_OVERHEAD_BYTES: usize = size_of::<Chunk>() + 128;

/// What a knowledge base holds, and how its cache does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnowledgeStats {
    /// Articles of all tenants.
    pub articles: u64,
    /// Chunks of all tenants that can be found: a content that an article has twice counts once.
    pub chunks: usize,
    /// Tenants that have, or had, a chunk.
    pub tenants: usize,
    /// The cache of hot chunks.
    pub cache: CacheStats,
}

/// The knowledge base of all tenants. Shared between threads as it is.
pub struct KnowledgeBase {
    store: Store,
    partitions: RwLock<HashMap<TenantId, Arc<Partition>>>,
    cache: Mutex<BoundedCache<ChunkId, Arc<Chunk>>>,
    epoch: AtomicU64,
    articles: AtomicU64,
    /// One change at a time.
    writer: Mutex<()>,
    linker: Linker,
    /// Held while store and index differ. Searches pass it by, and wait for it only after they met a difference.
    settled: RwLock<()>,
}

// A lock is poisoned when its holder panicked. What the locks guard here is exchanged whole or checked when it is
// read, so going on is better than failing every later search. Changes alone end with a panic in the midst of one.
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
    /// When the database cannot be read, a value does not decode, a tenant's vectors differ in length, or no thread can be
    /// started.
    pub fn load(store: Store, chunk_cache_bytes: usize) -> Result<Self, StateError> {
        let mut tenants = HashMap::<TenantId, Gathered>::new();
        store.chunks(&mut |chunk| {
            tenants.entry(chunk.id.tenant.clone()).or_default().add(chunk);
            ControlFlow::Continue(())
        })?;
        let mut partitions = HashMap::new();
        for (tenant, chunks) in tenants {
            partitions.insert(tenant, Arc::new(Partition::build(chunks)?));
        }
        Ok(Self {
            articles: AtomicU64::new(store.count_articles()?),
            epoch: AtomicU64::new(store.knowledge_epoch()?),
            store,
            partitions: RwLock::new(partitions),
            cache: Mutex::new(BoundedCache::new(chunk_cache_bytes)),
            writer: Mutex::new(()),
            linker: Linker::start()?,
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
            let found = partition.find(query, k)?;
            let wanted = found.len();
            let chunks = self.fetch(&found)?;
            if chunks.len() == wanted {
                return Ok(chunks);
            }
        }
        // Between a write to the store and the one to the index both differ; here they do not.
        let _settled = read(&self.settled);
        self.fetch(&partition.find(query, k)?)
    }

    fn partition(&self, tenant: &TenantId) -> Option<Arc<Partition>> {
        read(&self.partitions).get(tenant).cloned()
    }

    /// The bodies of what was found, from the cache or the store; without those that are another version by now.
    fn fetch(&self, found: &[Found]) -> Result<Vec<ScoredChunk>, StateError> {
        let mut bodies = self.cached(found);
        let missing: Vec<usize> = (0..found.len()).filter(|&at| bodies[at].is_none()).collect();
        if !missing.is_empty() {
            let ids: Vec<_> = missing.iter().map(|&at| found[at].place.id.clone()).collect();
            let stored = self.store.chunks_of(&ids)?;
            let mut cache = lock(&self.cache);
            for (&at, chunk) in missing.iter().zip(stored) {
                let Some(chunk) = chunk.filter(|chunk| found[at].place.is(chunk)).map(Arc::new) else {
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
            if cache.peek(&found.place.id).is_some_and(|chunk| !found.place.is(chunk)) {
                cache.remove(&found.place.id);
            }
            cache.get(&found.place.id).cloned()
        });
        bodies.collect()
    }

    /// Makes a change durable, publishes it, and makes it searchable. Searches go on meanwhile.
    ///
    /// A write that is refused leaves the others alone; all that are not refused are one atomic write to the store and
    /// one epoch. `publish` is called once when anything is written, and not at all otherwise: after the store has the
    /// change, before a search can find it, and in the order of the epochs. It holds up all other changes, and
    /// searches that meet this one, so it must be short and neither search nor apply.
    ///
    /// # Errors
    /// [`StateError::NamedTwice`] when an article is named more than once; [`StateError::Dimension`] and
    /// [`StateError::NonFinite`] when a vector does not fit; [`StateError::Poisoned`] when an earlier change broke off
    /// half-way, because `publish` panicked; and when the database cannot be read or written. Nothing is then published
    /// or searchable, and nothing is written unless the write itself failed.
    pub fn apply(&self, writes: Vec<ArticleWrite>, publish: &mut dyn FnMut(&Applied)) -> Result<Applied, StateError> {
        let _writer = lock(&self.writer);
        let current = self.epoch();
        let Plan { batch, tenants, outcomes, change, articles_added, articles_deleted } =
            Plan::of(&self.store, writes, current + 1)?;
        if batch.is_empty() {
            return Ok(Applied { epoch: current, outcomes, change: KnowledgeChange::empty(current) });
        }
        let mut ready = Vec::with_capacity(tenants.len());
        for (tenant, plan) in tenants {
            let (partition, is_new) = self
                .partition(&tenant)
                .map_or_else(|| (Arc::new(Partition::new()), true), |partition| (partition, false));
            // Whatever takes long, and whatever can fail, happens before anything is written.
            let fresh = partition.prepare(&plan)?;
            ready.push((tenant, partition, is_new, plan, fresh));
        }

        let _unsettled = self.settled.write().map_err(|_| StateError::Poisoned {
            reason: "an earlier change of the knowledge base broke off half-way".to_owned(),
        })?;
        self.store.write(batch, Durability::Synced)?;
        let applied = Applied { epoch: change.epoch, outcomes, change };
        publish(&applied);
        for (tenant, partition, is_new, plan, fresh) in ready {
            self.forget(&plan.overwritten);
            partition.take_over(plan, fresh);
            self.linker.look_at(&partition);
            if is_new {
                write(&self.partitions).insert(tenant, partition);
            }
        }
        self.articles.fetch_add(articles_added, Ordering::Relaxed);
        self.articles.fetch_sub(articles_deleted, Ordering::Relaxed);
        self.epoch.store(applied.epoch, Ordering::Release);
        Ok(applied)
    }

    /// Takes an epoch for something that changes no article. `publish` is called as [`KnowledgeBase::apply`] calls it.
    ///
    /// # Errors
    /// When the epoch cannot be written. Then nothing is published.
    pub fn take_epoch(&self, publish: &mut dyn FnMut(u64)) -> Result<u64, StateError> {
        let _writer = lock(&self.writer);
        let epoch = self.epoch() + 1;
        let mut batch = StoreBatch::new();
        batch.put_knowledge_epoch(epoch);
        self.store.write(batch, Durability::Synced)?;
        publish(epoch);
        self.epoch.store(epoch, Ordering::Release);
        Ok(epoch)
    }

    /// What [`KnowledgeBase::apply`] would do now. Changes nothing.
    ///
    /// # Errors
    /// [`StateError::NamedTwice`] when an article is named more than once, and when the database cannot be read.
    pub fn preview(&self, writes: Vec<ArticleWrite>) -> Result<Applied, StateError> {
        let _writer = lock(&self.writer);
        let epoch = self.epoch() + 1;
        let Plan { outcomes, change, .. } = Plan::of(&self.store, writes, epoch)?;
        Ok(Applied { epoch, outcomes, change })
    }

    fn forget(&self, chunks: &[ChunkId]) {
        let mut cache = lock(&self.cache);
        for id in chunks {
            cache.remove(id);
        }
    }

    /// The number of the last change that can be searched, counted over all starts. A search that begins after this
    /// was read sees every change up to it, and may see parts of later ones.
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
            chunks: partitions.iter().map(|partition| partition.len()).sum(),
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

/// What a chunk takes in the cache, in bytes.
fn weight(chunk: &Chunk) -> usize {
    CHUNK_OVERHEAD_BYTES + chunk.title.len() + chunk.text.len() + size_of_val(&*chunk.vector)
}
