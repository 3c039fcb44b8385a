//! The store as the rest of the program sees it: turns, articles, chunks and cached answers instead of bytes.
//!
//! [`Store`] reads; what is written is collected in a [`StoreBatch`] first. Articles and chunks are read in `articles`.
//!
//! What it does not do: it caches nothing, and it guards no read-modify-write. A conversation has one owner at a time,
//! and so has a knowledge base.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{
    HISTORY_PREFIX, StoredEntry, corrupt, decode, entry_id, entry_key, history_id, key, number, turn_key,
};
use super::{Batch, Column, Durability, KeyValue, MemoryStore, RocksStore, StoreBatch, StoreOptions};
use crate::{
    CacheEntry, ConversationId, EntryHistory, EntryId, StateError, TenantId, TierSize, TurnId, TurnKey, TurnRecord,
};

/// How many turns a conversation remembers by name. Older ones stay in the store but are no longer history.
pub const RECENT_TURNS_MAX: usize = 32;
/// Whose vectors the store holds.
const ENCODER_KEY: &[u8] = b"encoder";
/// Where the greatest entry id that may have been given is kept.
const RESERVED_KEY: &[u8] = b"entry-ids-reserved";
/// How many cached answers are read at once in a scan.
const ENTRIES_PER_READ: usize = 256;

/// Where a conversation stands. Bounded in size, however long the conversation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// How many of its turns were answered so far.
    pub turns_answered: u64,
    /// The last of them in the order in which they were answered, [`RECENT_TURNS_MAX`] at most.
    pub recent: VecDeque<TurnId>,
    /// The tier that answered the last of them that no cache did.
    pub size: Option<TierSize>,
}

impl Conversation {
    /// Counts an answered turn in and forgets the oldest when there are too many.
    pub fn record(&mut self, turn: TurnId) {
        self.turns_answered += 1;
        self.recent.push_back(turn);
        while self.recent.len() > RECENT_TURNS_MAX {
            self.recent.pop_front();
        }
    }
}

/// Everything that is kept. A clone is another handle to the same store.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn KeyValue>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store on disk, or makes it.
    ///
    /// # Errors
    /// [`StateError::Schema`] when another version of Turnflow wrote it; [`StateError::Locked`] when another process has it
    /// open; [`StateError::Open`] when it is damaged, or not accessible.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        Self::open_with(path, &StoreOptions::default())
    }

    /// As [`Store::open`], with options.
    ///
    /// # Errors
    /// The same.
    pub fn open_with(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, StateError> {
        Ok(Self::from_backend(Arc::new(RocksStore::open(path.as_ref(), options)?)))
    }

    /// A store that is gone when its last handle is.
    #[must_use]
    pub fn memory() -> Self {
        Self::from_backend(Arc::new(MemoryStore::new()))
    }

    /// A store on any backend.
    #[must_use]
    pub fn from_backend(backend: Arc<dyn KeyValue>) -> Self {
        Self { backend }
    }

    /// The bytes below.
    #[must_use]
    pub fn backend(&self) -> &dyn KeyValue {
        self.backend.as_ref()
    }

    /// Writes all of `batch` or nothing of it.
    ///
    /// # Errors
    /// [`StateError::Io`] when the write failed, and [`StateError::Poisoned`] ever after.
    pub fn write(&self, batch: StoreBatch, durability: Durability) -> Result<(), StateError> {
        self.backend.write(batch.batch, durability)
    }

    /// Copies everything, as it is at one moment, into a store of its own at `path`, where nothing may be yet. Reads and
    /// writes go on meanwhile.
    ///
    /// # Errors
    /// When the copy cannot be made.
    pub fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
        self.backend.checkpoint(path)
    }

    pub(super) fn get<T: DeserializeOwned>(&self, column: Column, key: Vec<u8>) -> Result<Option<T>, StateError> {
        Ok(self.get_many(column, &[key])?.pop().flatten())
    }

    pub(super) fn get_many<T: DeserializeOwned>(
        &self,
        column: Column,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<T>>, StateError> {
        let values = self.backend.multi_get(column, keys)?;
        let decoded =
            keys.iter().zip(values).map(|(key, value)| value.map(|value| decode(column, key, &value)).transpose());
        decoded.collect()
    }

    pub(super) fn scan<T: DeserializeOwned>(
        &self,
        column: Column,
        prefix: &[u8],
        visit: &mut dyn FnMut(T) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.backend.scan(column, prefix, &mut |key, value| Ok(visit(decode(column, key, value)?)))
    }

    /// A number that is kept as it is, 0 when it is absent.
    pub(super) fn number(&self, column: Column, key: &[u8]) -> Result<u64, StateError> {
        let value = self.backend.multi_get(column, &[key.to_vec()])?.pop().flatten();
        value.map_or(Ok(0), |value| number(column, key, &value))
    }

    /// An answered turn.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn turn(&self, turn: &TurnKey) -> Result<Option<TurnRecord>, StateError> {
        self.get(Column::Turns, turn_key(turn))
    }

    /// Where a conversation stands; `None` when none of its turns was answered yet.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn conversation(
        &self,
        tenant: &TenantId,
        conversation: &ConversationId,
    ) -> Result<Option<Conversation>, StateError> {
        self.get(Column::Conversations, key(&[tenant.as_str(), conversation.as_str()]))
    }

    /// The last `turns_max` answered turns of a conversation, oldest first; at most [`RECENT_TURNS_MAX`].
    ///
    /// One look-up for a conversation that is new, two reads for any other.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn history(
        &self,
        tenant: &TenantId,
        conversation: &ConversationId,
        turns_max: usize,
    ) -> Result<Vec<TurnRecord>, StateError> {
        let Some(Conversation { recent, .. }) = self.conversation(tenant, conversation)? else {
            return Ok(Vec::new());
        };
        let asked = recent.iter().skip(recent.len().saturating_sub(turns_max));
        let keys: Vec<_> = asked.map(|turn| key(&[tenant.as_str(), conversation.as_str(), turn.as_str()])).collect();
        Ok(self.get_many(Column::Turns, &keys)?.into_iter().flatten().collect())
    }

    /// A cached answer.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn entry(&self, id: EntryId) -> Result<Option<CacheEntry>, StateError> {
        let Some(stored) = self.get::<StoredEntry>(Column::Entries, entry_key(id))? else {
            return Ok(None);
        };
        let answer = self.get(Column::Responses, entry_key(id))?;
        Ok(answer.map(|answer| stored.with_answer(id, answer)))
    }

    /// Shows every cached answer of every tenant by ascending id, until `visit` breaks.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn entries(&self, visit: &mut dyn FnMut(CacheEntry) -> ControlFlow<()>) -> Result<(), StateError> {
        let mut waiting = Vec::with_capacity(ENTRIES_PER_READ);
        let mut flow = ControlFlow::Continue(());
        self.scan_entries(&mut |id, stored| {
            waiting.push((id, stored));
            if waiting.len() == ENTRIES_PER_READ {
                flow = self.show_entries(&mut waiting, visit)?;
            }
            Ok(flow)
        })?;
        if flow.is_continue() {
            // Nothing is left to break off.
            let _last = self.show_entries(&mut waiting, visit)?;
        }
        Ok(())
    }

    fn scan_entries(
        &self,
        visit: &mut dyn FnMut(EntryId, StoredEntry) -> Result<ControlFlow<()>, StateError>,
    ) -> Result<(), StateError> {
        self.backend.scan(Column::Entries, b"", &mut |key, value| {
            let not_an_id = || corrupt(Column::Entries, key, postcard::Error::DeserializeBadEncoding);
            visit(entry_id(key).ok_or_else(not_an_id)?, decode(Column::Entries, key, value)?)
        })
    }

    /// Reads the answers of `waiting`, shows the entries, and leaves `waiting` empty.
    fn show_entries(
        &self,
        waiting: &mut Vec<(EntryId, StoredEntry)>,
        visit: &mut dyn FnMut(CacheEntry) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StateError> {
        let keys: Vec<_> = waiting.iter().map(|(id, _)| entry_key(*id)).collect();
        let answers = self.get_many(Column::Responses, &keys)?;
        for ((id, stored), answer) in waiting.drain(..).zip(answers) {
            // Both columns are written in one batch: an answer is missing only when the entry was deleted meanwhile.
            let Some(answer) = answer else { continue };
            if visit(stored.with_answer(id, answer)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What has become of cached answers, as far as it was kept.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn histories(&self) -> Result<HashMap<EntryId, EntryHistory>, StateError> {
        let mut histories = HashMap::new();
        self.backend.scan(Column::Keys, HISTORY_PREFIX.as_bytes(), &mut |key, value| {
            let not_an_id = || corrupt(Column::Keys, key, postcard::Error::DeserializeBadEncoding);
            histories.insert(history_id(key).ok_or_else(not_an_id)?, decode(Column::Keys, key, value)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(histories)
    }

    /// The ids of all cached answers, or of those that stem from one tenant's turns, ascending. Walks through all.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn entry_ids(&self, tenant: Option<&TenantId>) -> Result<Vec<EntryId>, StateError> {
        let mut ids = Vec::new();
        self.scan_entries(&mut |id, stored| {
            if tenant.is_none_or(|tenant| stored.origin.tenant == *tenant) {
                ids.push(id);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ids)
    }

    /// The greatest id among the cached answers that are kept now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn max_entry_id(&self) -> Result<Option<EntryId>, StateError> {
        Ok(self.backend.last_key(Column::Entries)?.and_then(|key| entry_id(&key)))
    }

    /// Reserves the next `count` entry ids, durably: no later call gives one of them again, not even after their
    /// entries were deleted. Returns the id before the first of them.
    ///
    /// # Errors
    /// When the database cannot be read or written, or the last reservation does not decode.
    pub fn reserve_entry_ids(&self, count: u64) -> Result<EntryId, StateError> {
        let reserved = EntryId(self.number(Column::Meta, RESERVED_KEY)?);
        let last = reserved.max(self.max_entry_id()?.unwrap_or(EntryId(0)));
        let mut batch = Batch::new();
        batch.put(Column::Meta, RESERVED_KEY, last.0.saturating_add(count).to_be_bytes().to_vec());
        self.backend.write(batch, Durability::Synced)?;
        Ok(last)
    }

    /// Has the store keep to the encoder that its vectors are of: the first that is named, since vectors of two encoders
    /// cannot be compared.
    ///
    /// # Errors
    /// [`StateError::Encoder`] when it holds another's, and when the database cannot be read or written.
    pub fn bind_encoder(&self, name: &str) -> Result<(), StateError> {
        if self.check_encoder(name)? {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put(Column::Meta, ENCODER_KEY, name.as_bytes().to_vec());
        self.backend.write(batch, Durability::Synced)
    }

    /// Whether it keeps to this encoder already; false when it keeps to none yet.
    ///
    /// # Errors
    /// [`StateError::Encoder`] when it holds another's, and when the database cannot be read.
    pub fn check_encoder(&self, name: &str) -> Result<bool, StateError> {
        let stored = self.backend.multi_get(Column::Meta, &[ENCODER_KEY.to_vec()])?.pop().flatten();
        match stored {
            None => Ok(false),
            Some(stored) if stored == name.as_bytes() => Ok(true),
            Some(stored) => {
                let stored = String::from_utf8_lossy(&stored).into_owned();
                Err(StateError::Encoder { stored, wanted: name.to_owned() })
            }
        }
    }

    /// A small named value.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn key_value(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.backend.multi_get(Column::Keys, &[name.as_bytes().to_vec()])?.pop().flatten())
    }

    /// Shows every small named value in the order of the names, until `visit` breaks.
    ///
    /// # Errors
    /// When the database cannot be read, or a name is not UTF-8.
    pub fn key_values(&self, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) -> Result<(), StateError> {
        self.backend.scan(Column::Keys, b"", &mut |name, value| {
            let name = std::str::from_utf8(name)
                .map_err(|_| corrupt(Column::Keys, name, postcard::Error::DeserializeBadUtf8))?;
            Ok(visit(name, value))
        })
    }
}
