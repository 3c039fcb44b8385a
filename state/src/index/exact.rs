//! The exact index: every vector is looked at.
//!
//! Vectors lie one behind the other in one allocation, which is what makes a scan fast; a removed one is replaced by
//! the last. It is what small indexes use, and the reference that the graph is measured against.

use std::collections::{HashMap, HashSet};

use super::dot::dot_rows;
use super::{Key, best, check};
use crate::StateError;

/// Vectors in one matrix.
#[derive(Clone, Debug)]
pub struct ExactIndex<K> {
    dimension: Option<usize>,
    /// Row `i` belongs to `keys[i]`.
    matrix: Vec<f32>,
    keys: Vec<K>,
    rows: HashMap<K, usize>,
}

impl<K: Key> Default for ExactIndex<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Key> ExactIndex<K> {
    /// An index that holds nothing. Its first vector fixes the length of all.
    #[must_use]
    pub fn new() -> Self {
        Self { dimension: None, matrix: Vec::new(), keys: Vec::new(), rows: HashMap::new() }
    }

    /// Adds a vector, or replaces the one that the key has.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`]; the index is then as it was.
    pub fn insert(&mut self, key: K, vector: &[f32]) -> Result<(), StateError> {
        check(vector, self.dimension)?;
        self.dimension = Some(vector.len());
        if let Some(&row) = self.rows.get(&key) {
            self.matrix[row * vector.len()..][..vector.len()].copy_from_slice(vector);
        } else {
            self.matrix.extend_from_slice(vector);
            self.rows.insert(key.clone(), self.keys.len());
            self.keys.push(key);
        }
        Ok(())
    }

    /// Removes a vector; `false` when the key has none.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(row) = self.rows.remove(key) else { return false };
        let dimension = self.dimension.unwrap_or_default();
        self.keys.swap_remove(row);
        let last = self.keys.len() * dimension;
        // When the row is the last one itself, it is copied onto itself.
        self.matrix.copy_within(last.., row * dimension);
        self.matrix.truncate(last);
        if let Some(moved) = self.keys.get(row) {
            self.rows.insert(moved.clone(), row);
        }
        true
    }

    /// The `k` keys whose vectors are most similar to `query`, with their cosines, best first.
    ///
    /// # Errors
    /// [`StateError::Dimension`] and [`StateError::NonFinite`].
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(K, f32)>, StateError> {
        check(query, self.dimension)?;
        let mut found = Vec::with_capacity(self.keys.len());
        let mut keys = self.keys.iter();
        dot_rows(query, &self.matrix, &mut |score| found.extend(keys.next().map(|key| (key, score))));
        Ok(best(found, k))
    }

    /// Whether the key has a vector.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    /// The key's vector.
    #[must_use]
    pub fn vector(&self, key: &K) -> Option<&[f32]> {
        let dimension = self.dimension?;
        self.rows.get(key).map(|row| &self.matrix[row * dimension..][..dimension])
    }

    /// The number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no vector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The length of every vector; `None` before the first.
    #[must_use]
    pub const fn dimension(&self) -> Option<usize> {
        self.dimension
    }

    /// Every key with its vector.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &[f32])> + '_ {
        self.keys.iter().zip(self.matrix.chunks_exact(self.dimension.unwrap_or(1)))
    }

    /// A copy that lacks some keys.
    pub(super) fn without(&self, gone: &HashSet<&K>) -> Self {
        let mut copy = self.clone();
        for key in gone {
            copy.remove(key);
        }
        copy
    }
}
