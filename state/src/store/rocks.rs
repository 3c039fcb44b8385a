//! The store on RocksDB: one column family per column, a write-ahead log, lz4, bounded memory.
//!
//! *Contract*: see [`KeyValue`]. One process at a time: a second one is refused with the path in the error. A
//! database of another schema version is refused before anything of it is touched. After the first failed write the
//! store only reads.
//!
//! What it does not do: no repair. Memory is bounded by the block cache, the write buffers and the number of open files,
//! each a named constant.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, IteratorMode,
    LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::schema::{self, SCHEMA_KEY, Verdict};
use super::{Batch, Column, ColumnSize, Durability, KEY_BYTES_MAX, KeyValue, Operation, Poison, Visit, prefix_end};
use crate::StateError;

/// Default size of the cache of uncompressed blocks, in bytes.
pub const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Bound on all columns' unflushed writes together, in bytes.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// Bound on the write-ahead log, in bytes: what a start after a crash replays at most.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// Bound on open table files.
const OPEN_FILES_MAX: i32 = 512;
/// Threads for flushes and compactions, at most.
const BACKGROUND_THREADS_MAX: usize = 8;
/// Bits per key of the Bloom filters: about 1 % of the look-ups of an absent key read a block in vain.
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Bytes written before the kernel is asked to write them out, so that a sync finds little left to do.
const BYTES_PER_SYNC: u64 = 1 << 20;
/// RocksDB's own log files that are kept, and the size of each in bytes.
const LOG_FILES_MAX: usize = 4;
const LOG_FILE_BYTES_MAX: usize = 1 << 20;

/// What can be chosen about a store on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Size of the cache of uncompressed blocks, in bytes.
    pub block_cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { block_cache_bytes: BLOCK_CACHE_BYTES }
    }
}

/// Columns on disk.
pub struct RocksStore {
    db: DB,
    path: PathBuf,
    poison: Poison,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Opens the database at `path`, or makes it when there is none.
    ///
    /// # Errors
    /// [`StateError::Schema`] when another version of Turnflow wrote it; [`StateError::Locked`] when another process has it
    /// open; [`StateError::Open`] when it is damaged, or not accessible.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, StateError> {
        check_schema(path)?;
        let db = open_writable(path, options).map_err(|source| open_error(path, source))?;
        let store = Self { db, path: path.to_owned(), poison: Poison::default() };
        if store.db.get_cf(store.family(Column::Meta)?, SCHEMA_KEY).map_err(read_error)?.is_none() {
            let mut batch = Batch::new();
            batch.put(Column::Meta, SCHEMA_KEY, schema::version_text());
            store.write(batch, Durability::Synced)?;
        }
        Ok(store)
    }

    fn family(&self, column: Column) -> Result<&ColumnFamily, StateError> {
        self.db.cf_handle(column.as_str()).ok_or_else(|| StateError::Io {
            action: "find a column of",
            source: format!("no column {:?} at {}", column.as_str(), self.path.display()).into(),
        })
    }

    fn translate(&self, batch: Batch) -> Result<WriteBatch, StateError> {
        let mut writes = WriteBatch::default();
        for operation in batch.into_operations() {
            match operation {
                Operation::Put { column, key, value } => writes.put_cf(self.family(column)?, key, value),
                Operation::Delete { column, key } => writes.delete_cf(self.family(column)?, key),
                Operation::DeletePrefix { column, prefix } => {
                    // RocksDB has no open-ended range: it ends behind the greatest key there can be.
                    let end = prefix_end(&prefix).unwrap_or_else(|| vec![u8::MAX; KEY_BYTES_MAX + 1]);
                    writes.delete_range_cf(self.family(column)?, prefix, end);
                }
            }
        }
        Ok(writes)
    }
}

impl KeyValue for RocksStore {
    fn multi_get(&self, column: Column, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        let family = self.family(column)?;
        // The batched form costs more than it saves for the commonest case, a single key.
        if let [key] = keys {
            return Ok(vec![self.db.get_cf(family, key).map_err(read_error)?]);
        }
        let found = self.db.batched_multi_get_cf(family, keys, false);
        found.into_iter().map(|value| Ok(value.map_err(read_error)?.map(|bytes| bytes.to_vec()))).collect()
    }

    fn scan_from(&self, column: Column, prefix: &[u8], start: &[u8], visit: &mut Visit<'_>) -> Result<(), StateError> {
        let mut options = ReadOptions::default();
        // A scan passes once over everything: it must not push what is hot out of the block cache.
        options.fill_cache(false);
        if let Some(end) = prefix_end(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let start = IteratorMode::From(start.max(prefix), Direction::Forward);
        for item in self.db.iterator_cf_opt(self.family(column)?, options, start) {
            let (key, value) = item.map_err(read_error)?;
            if !key.starts_with(prefix) || visit(&key, &value)? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn last_key(&self, column: Column) -> Result<Option<Vec<u8>>, StateError> {
        let mut items = self.db.iterator_cf(self.family(column)?, IteratorMode::End);
        let last = items.next().transpose().map_err(read_error)?;
        Ok(last.map(|(key, _)| key.into_vec()))
    }

    fn size(&self, column: Column) -> Result<ColumnSize, StateError> {
        let family = self.family(column)?;
        let property = |name: &rocksdb::properties::PropName| {
            self.db.property_int_value_cf(family, name).map(Option::unwrap_or_default).map_err(read_error)
        };
        Ok(ColumnSize {
            keys: property(rocksdb::properties::ESTIMATE_NUM_KEYS)?,
            disk_bytes: property(rocksdb::properties::TOTAL_SST_FILES_SIZE)?,
            memory_bytes: property(rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES)?,
        })
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StateError> {
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        let writes = self.translate(batch)?;
        self.poison.guard(|| {
            self.db
                .write_opt(writes, &options)
                .map_err(|source| StateError::Io { action: "write to", source: source.into() })
        })
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
        // What is in memory is written to tables first, so that the copy has no log to replay. Tables are never changed:
        // where they lie on the same file system, the copy is another name for them.
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(path));
        made.map_err(|source| StateError::Checkpoint { path: path.to_owned(), source: source.into() })
    }
}

fn read_error(source: rocksdb::Error) -> StateError {
    StateError::Io { action: "read from", source: source.into() }
}

fn open_error(path: &Path, source: rocksdb::Error) -> StateError {
    // There is no kind of its own for that, only words; which they are depends on who holds the lock.
    let is_locked = ["While lock file", "lock hold by"].iter().any(|words| source.as_ref().contains(words));
    let (path, source) = (path.to_owned(), source.into());
    if is_locked { StateError::Locked { path, source } } else { StateError::Open { path, source } }
}

/// Refuses a database of another schema, reading only.
///
/// The look is taken before the database is opened for writing, because that alone would already add columns and
/// replay the log.
fn check_schema(path: &Path) -> Result<(), StateError> {
    // RocksDB's pointer to the current manifest: without it there is no database.
    if !path.join("CURRENT").exists() {
        return Ok(());
    }
    let options = Options::default();
    let columns = DB::list_cf(&options, path).map_err(|source| open_error(path, source))?;
    let db = DB::open_cf_for_read_only(&options, path, &columns, false).map_err(|source| open_error(path, source))?;
    let version = match db.cf_handle(Column::Meta.as_str()) {
        Some(meta) => db.get_cf(meta, SCHEMA_KEY).map_err(read_error)?,
        None => None,
    };
    // A crash between making the database and writing its version leaves all columns empty.
    let mut is_empty = true;
    for column in columns.iter().filter_map(|name| db.cf_handle(name)) {
        is_empty &= db.iterator_cf(column, IteratorMode::Start).next().is_none();
    }
    match schema::judge(version.as_deref(), is_empty) {
        Verdict::Readable => Ok(()),
        Verdict::Unknown { found } => {
            Err(StateError::Schema { path: path.to_owned(), found, expected: schema::SCHEMA_VERSION })
        }
    }
}

fn open_writable(path: &Path, options: &StoreOptions) -> Result<DB, rocksdb::Error> {
    let threads = std::thread::available_parallelism().map_or(2, NonZero::get).clamp(2, BACKGROUND_THREADS_MAX);
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    database.increase_parallelism(i32::try_from(threads).unwrap_or(2));
    database.set_db_write_buffer_size(WRITE_BUFFER_BYTES);
    database.set_max_total_wal_size(WAL_BYTES_MAX);
    database.set_max_open_files(OPEN_FILES_MAX);
    database.set_bytes_per_sync(BYTES_PER_SYNC);
    database.set_keep_log_file_num(LOG_FILES_MAX);
    database.set_max_log_file_size(LOG_FILE_BYTES_MAX);
    database.set_log_level(LogLevel::Warn);

    // One cache for all columns: its size bounds them together.
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let columns = Column::ALL.iter().map(|column| ColumnFamilyDescriptor::new(column.as_str(), column_options(&cache)));
    DB::open_cf_descriptors(&database, path, columns)
}

fn column_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    // Index and filter blocks count against the cache, or memory would grow with the data.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut column = Options::default();
    column.set_block_based_table_factory(&blocks);
    column.set_compression_type(DBCompressionType::Lz4);
    column.set_write_buffer_size(WRITE_BUFFER_BYTES / 4);
    column
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;
    use crate::store::conformance;

    fn open(path: &Path) -> Result<RocksStore, StateError> {
        RocksStore::open(path, &StoreOptions::default())
    }

    fn files(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
        let entries = std::fs::read_dir(path).expect("folder").map(|entry| entry.expect("entry"));
        entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("file"))).collect()
    }

    #[test]
    fn conforms() {
        let folder = tempfile::tempdir().expect("folder");
        conformance::conforms(&open(folder.path()).expect("opens"));
    }

    #[test]
    fn what_was_written_is_there_after_opening_again() {
        let folder = tempfile::tempdir().expect("folder");
        for (key, durability) in [("a", Durability::Synced), ("b", Durability::Buffered)] {
            let store = open(folder.path()).expect("opens");
            let mut batch = Batch::new();
            batch.put(Column::Keys, key, "value");
            store.write(batch, durability).expect("writes");
        }
        let store = open(folder.path()).expect("opens");
        let found = store.multi_get(Column::Keys, &[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]).expect("reads");
        assert_eq!(found, [Some(b"value".to_vec()), Some(b"value".to_vec()), None]);
    }

    #[test]
    fn a_checkpoint_is_a_store_as_it_was() {
        let folder = tempfile::tempdir().expect("folder");
        let store = open(folder.path()).expect("opens");
        let write = |key: &str| {
            let mut batch = Batch::new();
            batch.put(Column::Keys, key, "value");
            store.write(batch, Durability::Buffered).expect("writes");
        };
        write("before");
        let copy = folder.path().join("copy");
        store.checkpoint(&copy).expect("copies");
        write("after");
        let error = store.checkpoint(&copy).expect_err("something is there");
        assert!(matches!(&error, StateError::Checkpoint { path, .. } if *path == copy), "{error:?}");
        let found = open(&copy).expect("opens").multi_get(Column::Keys, &[b"before".to_vec(), b"after".to_vec()]);
        assert_eq!(found.expect("reads"), [Some(b"value".to_vec()), None]);
    }

    #[test]
    fn a_second_opening_names_path_and_cause() {
        let folder = tempfile::tempdir().expect("folder");
        let _first = open(folder.path()).expect("opens");
        let error = open(folder.path()).expect_err("locked");
        assert!(matches!(&error, StateError::Locked { path, .. } if path == folder.path()), "{error:?}");
        let text = crate::store::with_sources(&error);
        assert!(text.contains(&folder.path().display().to_string()) && text.contains("lock"), "{text}");
    }

    #[test]
    fn an_unknown_schema_is_refused_and_nothing_touched() {
        let check = |version: Option<&[u8]>, expected: &str| {
            let folder = tempfile::tempdir().expect("folder");
            let store = open(folder.path()).expect("opens");
            let mut batch = Batch::new();
            batch.put(Column::Keys, "something", "kept");
            match version {
                Some(version) => batch.put(Column::Meta, SCHEMA_KEY, version),
                None => batch.delete(Column::Meta, SCHEMA_KEY),
            }
            store.write(batch, Durability::Synced).expect("writes");
            drop(store);
            let before = files(folder.path());
            let error = open(folder.path()).expect_err("refused");
            assert!(matches!(&error, StateError::Schema { found, .. } if found == expected), "{error}");
            assert_eq!(files(folder.path()), before, "refusing {expected:?} changed the database");
        };
        check(Some(b"9"), "9");
        check(Some(b"1"), "1");
        check(Some(b""), "");
        check(Some(b"\xff\x00one"), "\\xff\\x00one");
        check(Some(b" 2"), " 2");
        check(None, "none");
    }

    #[test]
    fn a_database_that_was_never_finished_is_new() {
        let folder = tempfile::tempdir().expect("folder");
        let store = open(folder.path()).expect("opens");
        let mut batch = Batch::new();
        batch.delete(Column::Meta, SCHEMA_KEY);
        store.write(batch, Durability::Synced).expect("writes");
        drop(store);
        let store = open(folder.path()).expect("opens again");
        let version = store.multi_get(Column::Meta, &[SCHEMA_KEY.to_vec()]).expect("reads");
        assert_eq!(version, [Some(schema::version_text())]);
    }

    #[test]
    fn a_path_that_cannot_be_a_database_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "not a folder").expect("writes");
        let error = open(&file).expect_err("not a folder");
        assert!(matches!(&error, StateError::Open { path, .. } if *path == file), "{error:?}");
    }
}
