//! The store in memory: a sorted map per column.
//!
//! For tests and for runs that keep nothing. It honours the same contract as the store on disk except that nothing
//! survives the process, whatever [`Durability`] was asked for. It is not bounded: what is put stays until deleted.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::{Batch, Column, ColumnSize, Durability, KeyValue, Operation, RocksStore, StoreOptions, Visit};
use crate::StateError;

type Columns = BTreeMap<Column, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Columns in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    columns: RwLock<Columns>,
}

impl MemoryStore {
    /// A store that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // A batch is applied without anything that can panic, so a poisoned lock still guards a consistent state.
    fn read(&self) -> RwLockReadGuard<'_, Columns> {
        self.columns.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values whose keys start with `prefix` and are not less than `start`.
fn within<'a>(
    values: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    prefix: &'a [u8],
    start: &'a [u8],
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> {
    // A range that ends before it begins panics, so the end is found by walking.
    let from = (Bound::Included(start.max(prefix)), Bound::Unbounded);
    values.range::<[u8], _>(from).take_while(move |(key, _)| key.starts_with(prefix))
}

impl KeyValue for MemoryStore {
    fn multi_get(&self, column: Column, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        let columns = self.read();
        let values = columns.get(&column);
        Ok(keys.iter().map(|key| values.and_then(|values| values.get(key)).cloned()).collect())
    }

    fn scan_from(&self, column: Column, prefix: &[u8], start: &[u8], visit: &mut Visit<'_>) -> Result<(), StateError> {
        // Copied before it is shown, so that `visit` may use the store.
        let found: Vec<_> = self.read().get(&column).map_or_else(Vec::new, |values| {
            within(values, prefix, start).map(|(key, value)| (key.clone(), value.clone())).collect()
        });
        for (key, value) in found {
            if visit(&key, &value)? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn last_key(&self, column: Column) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.read().get(&column).and_then(|values| values.keys().next_back().cloned()))
    }

    fn size(&self, column: Column) -> Result<ColumnSize, StateError> {
        let columns = self.read();
        let bytes = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.len() + value.len()) as u64;
        let size = |values: &BTreeMap<_, _>| ColumnSize {
            keys: values.len() as u64,
            disk_bytes: 0,
            memory_bytes: values.iter().map(bytes).sum(),
        };
        Ok(columns.get(&column).map(size).unwrap_or_default())
    }

    fn write(&self, batch: Batch, _durability: Durability) -> Result<(), StateError> {
        let mut columns = self.columns.write().unwrap_or_else(PoisonError::into_inner);
        for operation in batch.into_operations() {
            match operation {
                Operation::Put { column, key, value } => {
                    columns.entry(column).or_default().insert(key, value);
                }
                Operation::Delete { column, key } => {
                    columns.entry(column).or_default().remove(&key);
                }
                Operation::DeletePrefix { column, prefix } => {
                    let values = columns.entry(column).or_default();
                    let doomed: Vec<_> = within(values, &prefix, &prefix).map(|(key, _)| key.clone()).collect();
                    for key in doomed {
                        values.remove(&key);
                    }
                }
            }
        }
        Ok(())
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
        let mut batch = Batch::new();
        for (&column, values) in &*self.read() {
            values.iter().for_each(|(key, value)| batch.put(column, key.clone(), value.clone()));
        }
        RocksStore::open(path, &StoreOptions::default())?.write(batch, Durability::Synced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn conforms() {
        conformance::conforms(&MemoryStore::new());
    }
}
