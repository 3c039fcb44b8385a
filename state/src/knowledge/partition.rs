//! One tenant's part of the index: the vector of each content, and the chunk where it is found.
//!
//! *Contract*: what [`Partition::prepare`] accepted can be taken over without failing. A search in the midst of it may
//! see any of what comes and of what goes, but always everything that stays: what moves within its article keeps its
//! vector, and only its place is changed. A content that an article has twice is found once, at its first place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::plan::TenantPlan;
use crate::index::{IndexConfig, VectorIndex};
use crate::{Chunk, ChunkId, ChunkKey, StateError};

/// Vectors put into an index, or taken out, in one go; searches get their turn in between.
const CHANGES_PER_LOCK: usize = 16;
/// Changes link nothing: [`Partition::link_one`] does.
const INDEX: IndexConfig = IndexConfig { links_per_change: 0, ..IndexConfig::DEFAULT };

/// Which chunk has a content. A version is never used twice, so with the chunk's name it tells the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: ChunkId,
    version: u64,
}

impl Place {
    pub(super) fn of(chunk: &Chunk) -> Self {
        Self { id: chunk.id.clone(), version: chunk.version }
    }

    /// Whether this very chunk is meant.
    pub(super) fn is(&self, chunk: &Chunk) -> bool {
        self.version == chunk.version && self.id == chunk.id
    }
}

/// A content that was found.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) score: f32,
}

/// All chunks of a tenant, gathered for a [`Partition`].
#[derive(Default)]
pub(super) struct Gathered {
    vectors: Vec<(ChunkKey, Arc<[f32]>)>,
    places: HashMap<ChunkKey, Place>,
}

impl Gathered {
    /// Adds a chunk; those of an article come in order.
    pub(super) fn add(&mut self, chunk: Chunk) {
        if let Entry::Vacant(vacant) = self.places.entry(chunk.key()) {
            let key = *vacant.key();
            vacant.insert(Place::of(&chunk));
            self.vectors.push((key, chunk.vector));
        }
    }
}

/// A tenant's vectors and where their chunks are.
pub(super) struct Partition(RwLock<Contents>);

struct Contents {
    index: VectorIndex<ChunkKey>,
    places: HashMap<ChunkKey, Place>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Self(RwLock::new(Contents { index: VectorIndex::new(INDEX), places: HashMap::new() }))
    }

    /// A partition of many chunks at once.
    pub(super) fn build(chunks: Gathered) -> Result<Self, StateError> {
        let Gathered { vectors, places } = chunks;
        let index = VectorIndex::build(INDEX, vectors)?;
        Ok(Self(RwLock::new(Contents { index, places })))
    }

    // What a panic may leave behind is checked when it is read: a place that is not right leads to no chunk.
    fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of contents.
    pub(super) fn len(&self) -> usize {
        self.read().index.len()
    }

    /// The nearest contents and where they are, best first.
    pub(super) fn find(&self, query: &[f32], k: usize) -> Result<Vec<Found>, StateError> {
        let contents = self.read();
        let near = contents.index.search(query, k)?;
        let found = near.into_iter().filter_map(|(key, score)| {
            let place = contents.places.get(&key)?.clone();
            Some(Found { place, score })
        });
        Ok(found.collect())
    }

    /// Links a vector that came to the index, while it is searched and changed; `false` when there is none.
    pub(super) fn link_one(&self) -> bool {
        let Some(link) = self.write().index.begin() else { return false };
        link.run();
        self.write().index.finish(&link);
        true
    }

    /// Checks all of a plan, and builds the index anew when it asks for it.
    pub(super) fn prepare(&self, plan: &TenantPlan) -> Result<Option<VectorIndex<ChunkKey>>, StateError> {
        let index = &self.read().index;
        let dimension = index.dimension().or_else(|| plan.inserted.first().map(|(_, vector)| vector.len()));
        for (_, vector) in &plan.inserted {
            index.check(vector)?;
            if let Some(expected) = dimension.filter(|&expected| expected != vector.len()) {
                return Err(StateError::Dimension { expected, found: vector.len() });
            }
        }
        index.changed(&plan.removed, &plan.inserted)
    }

    /// Makes a plan searchable, after [`Partition::prepare`] accepted it and while nothing else is written.
    pub(super) fn take_over(&self, plan: TenantPlan, fresh: Option<VectorIndex<ChunkKey>>) {
        let TenantPlan { removed, inserted, places, .. } = plan;
        if let Some(fresh) = fresh {
            let mut contents = self.write();
            contents.index = fresh;
            contents.places.extend(places);
            for key in &removed {
                contents.places.remove(key);
            }
            return;
        }
        for inserted in inserted.chunks(CHANGES_PER_LOCK) {
            let mut contents = self.write();
            for (key, vector) in inserted {
                let fits = contents.index.insert(*key, Arc::clone(vector));
                debug_assert!(fits.is_ok(), "every vector was checked before anything was written");
                // With the vector, so that a search in between takes no score for another chunk's.
                contents.places.extend(places.get(key).map(|place| (*key, place.clone())));
            }
        }
        // What is left kept its vector.
        self.write().places.extend(places);
        for removed in removed.chunks(CHANGES_PER_LOCK) {
            let mut contents = self.write();
            for key in removed {
                contents.index.remove(key);
                contents.places.remove(key);
            }
        }
    }
}
