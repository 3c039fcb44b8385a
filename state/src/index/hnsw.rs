//! The approximate index: a navigable small-world graph (Malkov and Yashunin, <https://arxiv.org/abs/1603.09320>), by
//! the crate `hnsw_rs`.
//!
//! *Contract*: what is found is exact in its scores and never removed; what should be found is found with the recall
//! that the tests demand. The graph itself cannot forget, so a removed or replaced vector becomes a tombstone: it
//! still leads a search on its way but is left out of the results, and a search asks for more in their place. When
//! another graph is to be begun is decided by [`VectorIndex`](super::VectorIndex).
//!
//! The distance is our own. Those of `hnsw_rs` assert that no dot product exceeds 1, which rounding alone can break,
//! and need either a nightly compiler or another crate for SIMD. Its filtered search is not used: it goes on through
//! all remaining candidates after it could stop.
//!
//! Vectors are kept once, by the graph. A graph that is built at once is built on all cores, so its links, and
//! with them which far neighbours are missed, can differ between two runs.

use std::collections::{HashMap, HashSet};

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

/// Vectors in a graph.
pub struct HnswIndex<K> {
    config: IndexConfig,
    dimension: usize,
    graph: Hnsw<'static, f32, UnitDistance>,
    /// The key of each vector in the graph, by the order of insertion; `None` for a tombstone.
    slots: Vec<Option<K>>,
    by_key: HashMap<K, usize>,
}

impl<K: Key> HnswIndex<K> {
    /// An empty graph; `vectors_expected` is a hint.
    #[must_use]
    pub fn new(config: &IndexConfig, dimension: usize, vectors_expected: usize) -> Self {
        let graph = Hnsw::new(config.neighbours, vectors_expected, LAYERS_MAX, config.ef_construction, UnitDistance);
        Self { config: *config, dimension, graph, slots: Vec::new(), by_key: HashMap::new() }
    }

    /// A graph of all vectors of `flat`, built on all cores.
    #[must_use]
    pub fn build(config: &IndexConfig, dimension: usize, flat: &ExactIndex<K>) -> Self {
        let mut index = Self::new(config, dimension, flat.len());
        let mut linked: Vec<(&[f32], usize)> = Vec::with_capacity(flat.len());
        for (key, vector) in flat.iter() {
            linked.push((vector, index.claim(key.clone())));
        }
        let parallel = linked.split_off(SERIAL_MIN.min(linked.len()));
        for first in linked {
            index.graph.insert_slice(first);
        }
        index.graph.parallel_insert_slice(&parallel);
        index
    }

    /// Takes the next slot for a key.
    fn claim(&mut self, key: K) -> usize {
        let slot = self.slots.len();
        if let Some(old) = self.by_key.insert(key.clone(), slot) {
            self.slots[old] = None;
        }
        self.slots.push(Some(key));
        slot
    }

    /// Adds a vector, or replaces the one that the key has.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`]; the index is then as it was.
    pub fn insert(&mut self, key: K, vector: &[f32]) -> Result<(), StateError> {
        check(vector, Some(self.dimension))?;
        let slot = self.claim(key);
        self.graph.insert_slice((vector, slot));
        Ok(())
    }

    /// Removes a vector; `false` when the key has none.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(slot) = self.by_key.remove(key) else {
            return false;
        };
        self.slots[slot] = None;
        true
    }

    /// The `k` keys whose vectors are most similar to `query`, with their cosines, best first.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(K, f32)>, StateError> {
        check(query, Some(self.dimension))?;
        let wanted = k.min(self.len());
        if wanted == 0 {
            return Ok(Vec::new());
        }
        // As many more as there are tombstones on average; more still where they lie close together.
        let mut asked = self.with_tombstones(self.config.ef_search.max(k));
        loop {
            let near = self.graph.search(query, asked, asked);
            let live: Vec<_> =
                near.iter().filter_map(|point| self.slots[point.d_id].as_ref().map(|key| (key, point.p_id))).collect();
            if live.len() >= wanted {
                return Ok(best(self.scores(query, live), k));
            }
            // A search that returned less than asked for has seen all that can be reached from where it began.
            if near.len() < asked {
                return Ok(self.scan(query, k));
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
        (live * self.slots.len()).div_ceil(self.len().max(1)).min(self.slots.len())
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
        self.by_key.contains_key(key)
    }

    /// A copy of the key's vector. Walks through the graph: not for frequent use.
    #[must_use]
    pub fn vector(&self, key: &K) -> Option<Vec<f32>> {
        let slot = *self.by_key.get(key)?;
        let mut points = self.graph.get_point_indexation().into_iter();
        points.find(|point| point.get_origin_id() == slot).map(|point| point.get_v().to_vec())
    }

    /// The number of vectors, without tombstones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is no vector but tombstones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
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

    /// All vectors but those of some keys, out of the graph.
    pub(super) fn to_flat(&self, without: &HashSet<&K>) -> ExactIndex<K> {
        let mut flat = ExactIndex::new();
        // The crate's iterator does not bear an empty graph.
        if self.slots.is_empty() {
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
