//! The approximate index: a navigable small-world graph (Malkov and Yashunin, <https://arxiv.org/abs/1603.09320>), by
//! the crate `hnsw_rs`.
//!
//! *Contract*: what is found is exact in its scores and never removed; what should be found is found with the recall
//! that the tests demand. The graph itself cannot forget, so a removed or replaced vector becomes a tombstone: it
//! still leads a search on its way but is left out of the results, and a search asks for more in their place. When
//! another graph is to be begun is decided by [`VectorIndex`](super::VectorIndex).
//!
//! Linking a vector takes about a millisecond, so a vector that comes waits aside, where every search looks at it, until
//! somebody has the time: [`HnswIndex::begin_link`], [`Link::run`] without any lock, [`HnswIndex::finish_link`].
//!
//! The distance is our own. Those of `hnsw_rs` assert that no dot product exceeds 1, which rounding alone can break,
//! and need either a nightly compiler or another crate for SIMD. Its filtered search is not used: it goes on through
//! all remaining candidates after it could stop.
//!
//! Vectors are kept once, by the graph. A graph that is built at once is built on all cores, so its links, and
//! with them which far neighbours are missed, can differ between two runs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hnsw_rs::prelude::{Distance, Hnsw, PointId};

use super::dot::dot;
use super::{ExactIndex, IndexConfig, Key, best, check};
use crate::StateError;

/// Layers of the graph, at most: the crate's own bound.
const LAYERS_MAX: usize = 16;
/// Vectors that are linked one after the other before all cores may join in: with none there yet, each core would
/// begin a graph of its own.
const SERIAL_MIN: usize = 256;

/// One minus the cosine of two unit vectors.
#[derive(Clone, Copy, Debug, Default)]
struct UnitDistance;

impl Distance<f32> for UnitDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // Rounding can lift a dot product above 1, but the graph demands distances that are not negative.
        (1.0 - dot(a, b)).max(0.0)
    }
}

type Graph = Hnsw<'static, f32, UnitDistance>;

/// Vectors in a graph, and some that are yet to be linked into it.
pub struct HnswIndex<K> {
    config: IndexConfig,
    dimension: usize,
    graph: Arc<Graph>,
    /// The key of each vector in the graph, by the order of insertion; `None` for a tombstone.
    slots: Vec<Option<K>>,
    by_key: HashMap<K, usize>,
    /// What is not linked yet. No key is here and in the graph.
    fresh: ExactIndex<K>,
    /// Those of `fresh` that are being linked, with the slots they will have.
    linking: HashMap<K, usize>,
}

/// A vector on its way into a graph.
pub struct Link<K> {
    graph: Arc<Graph>,
    key: K,
    slot: usize,
    vector: Vec<f32>,
}

impl<K> Link<K> {
    /// Does what takes long. Searches and changes go on meanwhile.
    pub fn run(&self) {
        self.graph.insert_slice((&self.vector, self.slot));
    }
}

impl<K: Key> HnswIndex<K> {
    /// An empty graph; `vectors_expected` is a hint.
    #[must_use]
    pub fn new(config: &IndexConfig, dimension: usize, vectors_expected: usize) -> Self {
        let graph = Hnsw::new(config.neighbours, vectors_expected, LAYERS_MAX, config.ef_construction, UnitDistance);
        Self {
            config: *config,
            dimension,
            graph: Arc::new(graph),
            slots: Vec::new(),
            by_key: HashMap::new(),
            fresh: ExactIndex::new(),
            linking: HashMap::new(),
        }
    }

    /// An empty graph for vectors that are all yet to be linked.
    pub(super) fn begun(config: &IndexConfig, dimension: usize, fresh: ExactIndex<K>) -> Self {
        let empty = Self::new(config, dimension, fresh.len());
        Self { fresh, ..empty }
    }

    /// A graph of all vectors of `flat`, built on all cores.
    #[must_use]
    pub fn build(config: &IndexConfig, dimension: usize, flat: &ExactIndex<K>) -> Self {
        let mut index = Self::new(config, dimension, flat.len());
        let mut linked: Vec<(&[f32], usize)> = Vec::with_capacity(flat.len());
        for (key, vector) in flat.iter() {
            index.by_key.insert(key.clone(), index.slots.len());
            linked.push((vector, index.slots.len()));
            index.slots.push(Some(key.clone()));
        }
        let parallel = linked.split_off(SERIAL_MIN.min(linked.len()));
        for first in linked {
            index.graph.insert_slice(first);
        }
        index.graph.parallel_insert_slice(&parallel);
        index
    }

    /// Adds a vector, or replaces the one that the key has.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`]; the index is then as it was.
    pub fn insert(&mut self, key: K, vector: &[f32]) -> Result<(), StateError> {
        check(vector, Some(self.dimension))?;
        self.remove(&key);
        self.fresh.insert(key, vector)
    }

    /// Removes a vector; `false` when the key has none.
    pub fn remove(&mut self, key: &K) -> bool {
        // What is being linked becomes a tombstone.
        self.linking.remove(key);
        let Some(slot) = self.by_key.remove(key) else { return self.fresh.remove(key) };
        self.slots[slot] = None;
        true
    }

    /// Begins to link a vector; `None` when nothing waits for it. Several may be under way.
    pub fn begin_link(&mut self) -> Option<Link<K>> {
        if self.slots.len() < SERIAL_MIN && !self.linking.is_empty() {
            return None;
        }
        let (key, vector) = self.fresh.iter().find(|(key, _)| !self.linking.contains_key(key))?;
        let (key, vector, slot) = (key.clone(), vector.to_vec(), self.slots.len());
        self.slots.push(None);
        self.linking.insert(key.clone(), slot);
        Some(Link { graph: Arc::clone(&self.graph), key, slot, vector })
    }

    /// Takes a vector over that was linked, unless the key has another by now or none.
    pub fn finish_link(&mut self, link: &Link<K>) {
        if Arc::ptr_eq(&self.graph, &link.graph) && self.linking.get(&link.key) == Some(&link.slot) {
            self.linking.remove(&link.key);
            self.fresh.remove(&link.key);
            self.slots[link.slot] = Some(link.key.clone());
            self.by_key.insert(link.key.clone(), link.slot);
        }
    }

    /// The number of vectors that are yet to be linked.
    #[must_use]
    pub fn unlinked(&self) -> usize {
        self.fresh.len()
    }

    /// The `k` keys whose vectors are most similar to `query`, with their cosines, best first.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(K, f32)>, StateError> {
        check(query, Some(self.dimension))?;
        let mut found = self.search_graph(query, k);
        if !self.fresh.is_empty() {
            let fresh = self.fresh.search(query, k)?;
            found = best(found.iter().chain(&fresh).map(|(key, score)| (key, *score)).collect(), k);
        }
        Ok(found)
    }

    fn search_graph(&self, query: &[f32], k: usize) -> Vec<(K, f32)> {
        let wanted = k.min(self.by_key.len());
        if wanted == 0 {
            return Vec::new();
        }
        // As many more as there are tombstones on average; more still where they lie close together.
        let mut asked = self.with_tombstones(self.config.ef_search.max(k));
        loop {
            let near = self.graph.search(query, asked, asked);
            let live: Vec<_> =
                near.iter().filter_map(|point| self.slots[point.d_id].as_ref().map(|key| (key, point.p_id))).collect();
            if live.len() >= wanted {
                return best(self.scores(query, live), k);
            }
            // A search that returned less than asked for has seen all that can be reached from where it began.
            if near.len() < asked {
                return self.scan(query, k);
            }
            asked *= 2;
        }
    }

    /// Looks at every vector: for when the graph falls apart and too few can be reached.
    fn scan(&self, query: &[f32], k: usize) -> Vec<(K, f32)> {
        let points = self.graph.get_point_indexation().into_iter();
        let scored = points.filter_map(|point| {
            let key = self.slots[point.get_origin_id()].as_ref()?;
            Some((key, dot(query, point.get_v())))
        });
        best(scored.collect(), k)
    }

    /// How many to ask for so that about `live` of them are no tombstones.
    fn with_tombstones(&self, live: usize) -> usize {
        (live * self.slots.len()).div_ceil(self.by_key.len().max(1)).min(self.slots.len())
    }

    fn scores<'a>(&self, query: &[f32], found: Vec<(&'a K, PointId)>) -> Vec<(&'a K, f32)> {
        let points = self.graph.get_point_indexation();
        let scored = found.into_iter().filter_map(|(key, point)| {
            let vector = points.get_point_data(&point)?;
            Some((key, dot(query, &vector)))
        });
        scored.collect()
    }

    /// Whether the key has a vector.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.by_key.contains_key(key) || self.fresh.contains(key)
    }

    /// A copy of the key's vector. Walks through the graph: not for frequent use.
    #[must_use]
    pub fn vector(&self, key: &K) -> Option<Vec<f32>> {
        let Some(slot) = self.by_key.get(key).copied() else { return self.fresh.vector(key).map(<[f32]>::to_vec) };
        let mut points = self.graph.get_point_indexation().into_iter();
        points.find(|point| point.get_origin_id() == slot).map(|point| point.get_v().to_vec())
    }

    /// The number of vectors, without tombstones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len() + self.fresh.len()
    }

    /// Whether there is no vector but tombstones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of removed vectors that the graph still holds.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.slots.len() - self.by_key.len()
    }

    /// The length of every vector.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// All vectors but those of some keys.
    pub(super) fn to_flat(&self, without: &HashSet<&K>) -> ExactIndex<K> {
        let mut flat = self.fresh.without(without);
        // The crate's iterator does not bear an empty graph.
        if self.by_key.is_empty() {
            return flat;
        }
        for point in self.graph.get_point_indexation() {
            let Some(key) = &self.slots[point.get_origin_id()] else {
                continue;
            };
            if !without.contains(key) {
                let inserted = flat.insert(key.clone(), point.get_v());
                debug_assert!(inserted.is_ok(), "the graph holds checked vectors only");
            }
        }
        flat
    }
}
