//! The store: columns of byte strings behind one trait, on RocksDB or in memory.
//!
//! *Contract*: a [`Batch`] is written atomically and in its own order; [`KeyValue::scan`] visits keys in byte order
//! and sees one consistent state; after a failed write nothing is written any more. [`Durability`] names what a
//! finished write survives.
//!
//! What it does not do: no transactions over reads and writes (whoever owns a conversation or an article is its only
//! writer), no expiry, no knowledge of what the bytes mean. That is [`Store`]'s part.

mod articles;
mod batch;
mod codec;
mod committer;
#[cfg(test)]
mod conformance;
mod conversations;
mod memory;
mod rocks;
mod schema;
#[cfg(test)]
mod tests;
mod typed;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

pub use batch::StoreBatch;
pub use committer::{Committer, Done};
pub use memory::MemoryStore;
pub use rocks::{BLOCK_CACHE_BYTES, RocksStore, StoreOptions};
pub use typed::{Conversation, RECENT_TURNS_MAX, Store};

use crate::StateError;

/// Keys and values of one column, in key order, behind one interface.
pub trait KeyValue: Send + Sync {
    /// The values of `keys`, in their order; `None` where there is none.
    ///
    /// # Errors
    /// [`StateError::Io`] when the database cannot be read.
    fn multi_get(&self, column: Column, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError>;

    /// Shows every key that starts with `prefix` and is not less than `start`, with its value, in key order, until
    /// `visit` breaks or fails.
    ///
    /// # Errors
    /// [`StateError::Io`] when the database cannot be read, and whatever `visit` returns.
    fn scan_from(&self, column: Column, prefix: &[u8], start: &[u8], visit: &mut Visit<'_>) -> Result<(), StateError>;

    /// As [`KeyValue::scan_from`], from the first key that starts with `prefix`.
    ///
    /// # Errors
    /// The same.
    fn scan(&self, column: Column, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StateError> {
        self.scan_from(column, prefix, prefix, visit)
    }

    /// The greatest key of a column.
    ///
    /// # Errors
    /// [`StateError::Io`] when the database cannot be read.
    fn last_key(&self, column: Column) -> Result<Option<Vec<u8>>, StateError>;

    /// Writes all of `batch` or nothing of it.
    ///
    /// # Errors
    /// [`StateError::Io`] when the write failed, and [`StateError::Poisoned`] ever after.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StateError>;

    /// Copies everything, as it is at one moment, into a database of its own at `path`, where nothing may be yet. Reads and
    /// writes go on meanwhile.
    ///
    /// # Errors
    /// When the copy cannot be made.
    fn checkpoint(&self, path: &Path) -> Result<(), StateError>;

    /// How much a column holds, as far as that is known without looking at all of it.
    ///
    /// # Errors
    /// [`StateError::Io`] when the database cannot be read.
    fn size(&self, column: Column) -> Result<ColumnSize, StateError>;
}

/// How much a column holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSize {
    /// Keys, which may be an estimate.
    pub keys: u64,
    /// Bytes of it on disk.
    pub disk_bytes: u64,
    /// Bytes of it in memory that are not in a file on disk yet.
    pub memory_bytes: u64,
}

/// What looks at key and value in a scan.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StateError> + 'a;

/// A kind of thing that is kept, apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Column {
    /// Which turns a conversation had last.
    Conversations,
    /// Answered turns.
    Turns,
    /// Articles of the knowledge bases.
    Articles,
    /// The last version of every article there ever was, so that none is used twice.
    Versions,
    /// Chunks of articles, with their vectors.
    Chunks,
    /// Cached answers, without the answer itself.
    Entries,
    /// The answers of [`Column::Entries`].
    Responses,
    /// Small named values, such as what has become of cached answers.
    Keys,
    /// What the database says of itself.
    Meta,
}

impl Column {
    /// Every column, in order of declaration.
    pub const ALL: &[Self] = &[
        Self::Conversations,
        Self::Turns,
        Self::Articles,
        Self::Versions,
        Self::Chunks,
        Self::Entries,
        Self::Responses,
        Self::Keys,
        Self::Meta,
    ];

    /// The column's name on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conversations => "conversations",
            Self::Turns => "turns",
            Self::Articles => "articles",
            Self::Versions => "versions",
            Self::Chunks => "chunks",
            Self::Entries => "entries",
            Self::Responses => "responses",
            Self::Keys => "keys",
            Self::Meta => "meta",
        }
    }
}

/// What a finished write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A loss of power: the log was forced to the disk before the write returned.
    Synced,
    /// The death of the process, `kill -9` included, but not a loss of power.
    Buffered,
}

/// Longest key, in bytes: three ids with their separators are 386.
const KEY_BYTES_MAX: usize = 1_024;

/// One step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Put { column: Column, key: Vec<u8>, value: Vec<u8> },
    Delete { column: Column, key: Vec<u8> },
    DeletePrefix { column: Column, prefix: Vec<u8> },
}

/// Puts and deletes that happen together, in order: a later one overrules an earlier one of the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    operations: Vec<Operation>,
    bytes: usize,
}

impl Batch {
    /// A batch that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of a key.
    pub fn put(&mut self, column: Column, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        debug_assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
        self.bytes += key.len() + value.len();
        self.operations.push(Operation::Put { column, key, value });
    }

    /// Removes a key, if it is there.
    pub fn delete(&mut self, column: Column, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.operations.push(Operation::Delete { column, key });
    }

    /// Removes every key that starts with `prefix`.
    pub fn delete_prefix(&mut self, column: Column, prefix: impl Into<Vec<u8>>) {
        let prefix = prefix.into();
        self.bytes += prefix.len();
        self.operations.push(Operation::DeletePrefix { column, prefix });
    }

    /// Adds the steps of `later` behind the steps of this batch.
    pub fn append(&mut self, later: Self) {
        self.bytes += later.bytes;
        self.operations.extend(later.operations);
    }

    /// The number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether the batch changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The size of all keys and values, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_operations(self) -> Vec<Operation> {
        self.operations
    }
}

/// The first key behind all keys that start with `prefix`; `None` when there is no such key.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Remembers the first failed write. What is on disk after it is unknown, so nothing may be written on top.
#[derive(Debug, Default)]
pub(crate) struct Poison(OnceLock<String>);

impl Poison {
    /// Runs `write` unless an earlier one failed; a failure is remembered for good.
    pub(crate) fn guard(&self, write: impl FnOnce() -> Result<(), StateError>) -> Result<(), StateError> {
        if let Some(reason) = self.0.get() {
            return Err(StateError::Poisoned { reason: reason.clone() });
        }
        write().inspect_err(|error| {
            // Only the first reason is kept: the later ones are consequences.
            self.0.get_or_init(|| with_sources(error));
        })
    }
}

/// An error and its sources on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn prefixes_end_where_the_next_key_begins() {
        let check = |prefix: &[u8], expected: Option<&[u8]>| {
            assert_eq!(prefix_end(prefix).as_deref(), expected, "{prefix:?}");
        };
        check(b"a\0", Some(b"a\x01"));
        check(b"a\xff\xff", Some(b"b"));
        check(b"\xff\xff", None);
        check(b"", None);
    }

    #[test]
    fn a_failed_write_poisons_for_good() {
        let poison = Poison::default();
        let failure = || StateError::Io { action: "write to", source: "disk full".into() };
        assert!(poison.guard(|| Ok(())).is_ok());
        assert!(matches!(poison.guard(|| Err(failure())), Err(StateError::Io { .. })));
        let refused = poison.guard(|| panic!("a poisoned store must not write")).expect_err("poisoned");
        assert_eq!(
            refused.to_string(),
            "the database refuses writes since one failed: cannot write to the database: disk full"
        );
    }

    #[test]
    fn names_of_columns_are_unique() {
        let names: std::collections::BTreeSet<_> = Column::ALL.iter().map(|column| column.as_str()).collect();
        assert_eq!(names.len(), Column::ALL.len());
    }
}
