//! Nearest neighbours among unit vectors: a flat scan while there are few, a graph when there are many.
//!
//! *Contract*: scores are exact dot products of the query with what is stored, which for unit vectors is the cosine.
//! Results come best first, equal scores in the order of their keys. A removed key is never found again. Which keys are
//! found is exact up to [`IndexConfig::flat_max`] vectors and approximate beyond. That vectors have unit length is the
//! caller's part; that they are finite and of one length is checked.
//!
//! Nothing that takes long is done while the index is served. A vector that comes to a graph is scanned at first, and
//! linked by each change or by whoever has the time: [`VectorIndex::advance`], or [`VectorIndex::begin`] where others must
//! not wait. Another graph is built the same way: the old one, or the scan, answers until all vectors are linked. So a
//! change takes a bounded time, whatever the size, at the price of holding vectors up to three times while it lasts. Who
//! has many at once uses [`VectorIndex::build`] or [`VectorIndex::changed`], which use all cores.
//!
//! What it does not do: it keeps nothing on disk and has no locks. Whoever shares it wraps it.

mod dot;
mod exact;
mod hnsw;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

pub use dot::dot;
pub use exact::ExactIndex;
pub use hnsw::{HnswIndex, Link};

use crate::StateError;

/// What a key must be able to do.
pub trait Key: Clone + Eq + Hash + Ord {}
impl<K: Clone + Eq + Hash + Ord> Key for K {}

/// How an index trades time for recall. The defaults reach the recall that the tests demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndexConfig {
    /// Neighbours of a vector in each upper layer of the graph, twice that in the lowest: `M` of Malkov and Yashunin,
    /// <https://arxiv.org/abs/1603.09320>. From 2 to 256.
    pub neighbours: usize,
    /// Candidates kept while a vector is linked into the graph.
    pub ef_construction: usize,
    /// Candidates kept while the graph is searched, at least.
    pub ef_search: usize,
    /// Most vectors that are scanned one by one. A scan of 2,000 vectors of 384 numbers is as fast as a search of the
    /// graph, and exact.
    pub flat_max: usize,
    /// Share of removed vectors among all in the graph at which it is built anew.
    pub tombstone_share_max: f32,
    /// Vectors that each change links, more than come with it so that another graph gets done. With 0 that is left to whoever has the time, unless more than `flat_max` wait.
    pub links_per_change: usize,
}

impl IndexConfig {
    /// The defaults, where a constant is wanted.
    pub const DEFAULT: Self = Self {
        neighbours: 16,
        ef_construction: 200,
        ef_search: 64,
        flat_max: 2_000,
        tombstone_share_max: 0.3,
        links_per_change: 5,
    };
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The graph is given up again when fewer than `flat_max` divided by this are left, so that an index whose size goes up
/// and down around the threshold is not rebuilt each time.
const HYSTERESIS: usize = 2;
/// Changes are made aside when there are more of them than vectors divided by this.
const ASIDE_SHARE: usize = 8;
/// A graph beside which more than `flat_max` divided by this are scanned is served first, before another one is built.
const FRESH_SHARE: usize = 2;
/// Vectors that a change links when more wait than it is good for a search: more than come with it.
const LINKS_WHEN_BEHIND: usize = 2;

/// Vectors by key, searched by similarity.
pub struct VectorIndex<K> {
    config: IndexConfig,
    regime: Regime<K>,
    /// A graph under construction: all vectors, most of them yet to be linked.
    moving: Option<HnswIndex<K>>,
}

enum Regime<K> {
    Flat(ExactIndex<K>),
    Graph(HnswIndex<K>),
}

impl<K: Key> VectorIndex<K> {
    /// An index that holds nothing. Its first vector fixes the length of all.
    ///
    /// # Panics
    /// When `config` has fewer than 2 or more than 256 neighbours, or a share that is not between 0 and 1.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        assert!((2..=256).contains(&config.neighbours), "neighbours: {}, from 2 to 256", config.neighbours);
        let share = config.tombstone_share_max;
        assert!((0.0..1.0).contains(&share), "tombstone_share_max: {share}, from 0 up to 1");
        Self { config, regime: Regime::Flat(ExactIndex::new()), moving: None }
    }

    /// An index of all `items` at once: much faster than one by one, because a graph is built on all cores. The last
    /// vector of a key counts.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    ///
    /// # Panics
    /// As [`VectorIndex::new`].
    pub fn build(config: IndexConfig, items: impl IntoIterator<Item = (K, Arc<[f32]>)>) -> Result<Self, StateError> {
        let Self { config, .. } = Self::new(config);
        let mut flat = ExactIndex::new();
        for (key, vector) in items {
            flat.insert(key, &vector)?;
        }
        Ok(Self { config, regime: Regime::of(flat, &config), moving: None })
    }

    /// Adds a vector, or replaces the one that the key has.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`]; the index is then as it was.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand vectors over; how they are kept is not their concern"
    )]
    pub fn insert(&mut self, key: K, vector: Arc<[f32]>) -> Result<(), StateError> {
        match &mut self.regime {
            Regime::Flat(flat) => flat.insert(key.clone(), &vector),
            Regime::Graph(graph) => graph.insert(key.clone(), &vector),
        }?;
        if let Some(moving) = &mut self.moving {
            moving.insert(key, &vector)?;
        }
        self.renew();
        Ok(())
    }

    /// Removes a vector; `false` when the key has none.
    pub fn remove(&mut self, key: &K) -> bool {
        let removed = match &mut self.regime {
            Regime::Flat(flat) => flat.remove(key),
            Regime::Graph(graph) => graph.remove(key),
        };
        if let Some(moving) = &mut self.moving {
            moving.remove(key);
        }
        self.renew();
        removed
    }

    fn renew(&mut self) {
        if !self.is_exact() && self.len() < self.config.flat_max / HYSTERESIS {
            self.regime = Regime::Flat(self.to_flat(&HashSet::new()));
            self.moving = None;
        }
        let behind = if self.scanned() > self.config.flat_max { LINKS_WHEN_BEHIND } else { 0 };
        let links = self.config.links_per_change.max(behind);
        if links > 0 {
            self.advance(links);
        }
    }

    /// The vectors that a search scans beside the graph.
    fn scanned(&self) -> usize {
        match &self.regime {
            Regime::Flat(_) => 0,
            Regime::Graph(graph) => graph.unlinked(),
        }
    }

    /// Begins a new graph when size or tombstones ask for it, and links some vectors. `true` when there is more to link.
    ///
    /// For whoever has time to spare: the index answers the same before, in between and after, only faster in the end.
    pub fn advance(&mut self, links: usize) -> bool {
        for _ in 0..links {
            let Some(link) = self.begin() else { return false };
            link.run();
            self.finish(&link);
        }
        self.moving.is_some() || self.scanned() > 0
    }

    /// Begins to link a vector; `None` when there is none. A step of [`VectorIndex::advance`] for whoever shares the index:
    /// what takes long is [`Link::run`], and needs no access to it.
    pub fn begin(&mut self) -> Option<Link<K>> {
        if self.moving.is_none() && self.is_graph_due() {
            let moving = |dimension| HnswIndex::begun(&self.config, dimension, self.to_flat(&HashSet::new()));
            self.moving = self.dimension().map(moving);
        }
        let is_behind = self.scanned() > self.config.flat_max / FRESH_SHARE;
        match (&mut self.regime, &mut self.moving) {
            (Regime::Graph(graph), None) => graph.begin_link(),
            (Regime::Graph(graph), Some(_)) if is_behind => graph.begin_link(),
            (_, moving) => moving.as_mut()?.begin_link(),
        }
    }

    /// Takes over what was linked, whatever has become of the index and the vector meanwhile.
    pub fn finish(&mut self, link: &Link<K>) {
        if let Regime::Graph(graph) = &mut self.regime {
            graph.finish_link(link);
        }
        if let Some(mut moving) = self.moving.take() {
            moving.finish_link(link);
            if moving.unlinked() == 0 {
                self.regime = Regime::Graph(moving);
            } else {
                self.moving = Some(moving);
            }
        }
    }

    /// Whether another graph would serve better than what serves now.
    fn is_graph_due(&self) -> bool {
        match &self.regime {
            Regime::Flat(flat) => flat.len() > self.config.flat_max,
            Regime::Graph(graph) => {
                let share = graph.tombstones() as f32 / (graph.len() + graph.tombstones()).max(1) as f32;
                share > self.config.tombstone_share_max
            }
        }
    }

    fn to_flat(&self, without: &HashSet<&K>) -> ExactIndex<K> {
        match &self.regime {
            Regime::Flat(flat) => flat.without(without),
            Regime::Graph(graph) => graph.to_flat(without),
        }
    }

    /// The index as it would be after these changes, when they are so many that it is better built anew; `None` when
    /// they are better made in place.
    ///
    /// Building takes long. Whoever shares an index calls this while others still search the old one, and needs to
    /// keep them out only for the exchange.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn changed(&self, removed: &[K], inserted: &[(K, Arc<[f32]>)]) -> Result<Option<Self>, StateError> {
        let is_graph = !self.is_exact() || self.len() + inserted.len() > self.config.flat_max;
        let is_much = (removed.len() + inserted.len()) * ASIDE_SHARE > self.len();
        if !(is_graph && is_much) {
            return Ok(None);
        }
        let gone: HashSet<&K> = removed.iter().collect();
        let mut flat = self.to_flat(&gone);
        for (key, vector) in inserted {
            flat.insert(key.clone(), vector)?;
        }
        Ok(Some(Self { config: self.config, regime: Regime::of(flat, &self.config), moving: None }))
    }

    /// The `k` keys whose vectors are most similar to `query`, with their cosines, best first.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(K, f32)>, StateError> {
        match &self.regime {
            Regime::Flat(flat) => flat.search(query, k),
            Regime::Graph(graph) => graph.search(query, k),
        }
    }

    /// Whether the key has a vector.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        match &self.regime {
            Regime::Flat(flat) => flat.contains(key),
            Regime::Graph(graph) => graph.contains(key),
        }
    }

    /// A copy of the key's vector.
    #[must_use]
    pub fn vector(&self, key: &K) -> Option<Vec<f32>> {
        match &self.regime {
            Regime::Flat(flat) => flat.vector(key).map(<[f32]>::to_vec),
            Regime::Graph(graph) => graph.vector(key),
        }
    }

    /// The number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.regime {
            Regime::Flat(flat) => flat.len(),
            Regime::Graph(graph) => graph.len(),
        }
    }

    /// Whether there is no vector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of every vector; `None` before the first.
    #[must_use]
    pub fn dimension(&self) -> Option<usize> {
        match &self.regime {
            Regime::Flat(flat) => flat.dimension(),
            Regime::Graph(graph) => Some(graph.dimension()),
        }
    }

    /// Whether results are exact now.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        matches!(self.regime, Regime::Flat(_))
    }

    /// Checks that a vector could be inserted.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn check(&self, vector: &[f32]) -> Result<(), StateError> {
        check(vector, self.dimension())
    }
}

impl<K: Key> Regime<K> {
    /// What suits the number of vectors.
    fn of(flat: ExactIndex<K>, config: &IndexConfig) -> Self {
        match flat.dimension() {
            Some(dimension) if flat.len() > config.flat_max => Self::Graph(HnswIndex::build(config, dimension, &flat)),
            _ => Self::Flat(flat),
        }
    }
}

/// Checks length and numbers of a vector or query. Without a dimension to go by, every length but 0 will do.
fn check(vector: &[f32], dimension: Option<usize>) -> Result<(), StateError> {
    let expected = dimension.unwrap_or(vector.len().max(1));
    if vector.len() != expected {
        Err(StateError::Dimension { expected, found: vector.len() })
    } else if vector.iter().all(|number| number.is_finite()) {
        Ok(())
    } else {
        Err(StateError::NonFinite)
    }
}

/// Keeps the best `k` of `found`, best first, equal scores in the order of their keys.
fn best<'a, K: Key + 'a>(mut found: Vec<(&'a K, f32)>, k: usize) -> Vec<(K, f32)> {
    let order = |a: &(&K, f32), b: &(&K, f32)| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0));
    if k == 0 {
        return Vec::new();
    }
    if found.len() > k {
        found.select_nth_unstable_by(k - 1, order);
        found.truncate(k);
    }
    found.sort_unstable_by(order);
    found.into_iter().map(|(key, score)| (key.clone(), score)).collect()
}
