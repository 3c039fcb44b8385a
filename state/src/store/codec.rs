//! How ids become keys and how values become bytes.
//!
//! Values are encoded with postcard, which carries neither names nor types: a change of any stored type is a change of
//! the schema, but for a flag at its end. Keys are ids joined by a zero byte, which no id contains, so that everything of a tenant, a conversation
//! or an article is one range of keys; numbers in keys are big-endian, so that byte order is their order.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Column;
use crate::{Answer, ArticleId, CacheEntry, ChunkId, EntryId, ScopeId, StateError, Support, TurnKey};

/// A cached answer as it is kept: without its id, which is the key, and without the answer, which is a column of its
/// own so that entries can be walked through without reading every text.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredEntry {
    pub(super) scope: ScopeId,
    pub(super) question: String,
    pub(super) vector: Option<Arc<[f32]>>,
    pub(super) support: Arc<Support>,
    pub(super) origin: TurnKey,
    pub(super) about: Option<ArticleId>,
    pub(super) refreshed: bool,
    pub(super) created_ms: u64,
}

impl StoredEntry {
    pub(super) fn with_answer(self, id: EntryId, answer: Arc<Answer>) -> CacheEntry {
        let Self { scope, question, vector, support, origin, about, refreshed, created_ms } = self;
        CacheEntry { id, scope, question, vector, answer, support, origin, about, refreshed, created_ms }
    }
}

/// Joins ids with the zero byte that none of them contains.
pub(super) fn key(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// What the keys below these ids start with.
pub(super) fn key_prefix(parts: &[&str]) -> Vec<u8> {
    let mut prefix = key(parts);
    prefix.push(0);
    prefix
}

pub(super) fn turn_key(turn: &TurnKey) -> Vec<u8> {
    key(&[turn.tenant.as_str(), turn.conversation.as_str(), turn.turn.as_str()])
}

pub(super) fn chunk_key(chunk: &ChunkId) -> Vec<u8> {
    let mut key = key_prefix(&[chunk.tenant.as_str(), chunk.article.as_str()]);
    key.extend(chunk.ordinal.to_be_bytes());
    key
}

pub(super) fn entry_key(id: EntryId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

/// The id in a key of `entries`; `None` for a key that is none.
pub(super) fn entry_id(key: &[u8]) -> Option<EntryId> {
    key.try_into().ok().map(|bytes| EntryId(u64::from_be_bytes(bytes)))
}

/// Before the ids in the names of what has become of entries.
pub(super) const HISTORY_PREFIX: &str = "history/";

pub(super) fn history_key(id: EntryId) -> Vec<u8> {
    format!("{HISTORY_PREFIX}{:016x}", id.0).into_bytes()
}

/// The id in such a name; `None` for a name that is none.
pub(super) fn history_id(key: &[u8]) -> Option<EntryId> {
    let digits = std::str::from_utf8(key).ok()?.strip_prefix(HISTORY_PREFIX)?;
    u64::from_str_radix(digits, 16).ok().map(EntryId)
}

/// A number that was kept big-endian.
pub(super) fn number(column: Column, key: &[u8], value: &[u8]) -> Result<u64, StateError> {
    let bytes = value.try_into().map_err(|_| corrupt(column, key, postcard::Error::DeserializeBadEncoding))?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn encode<T: Serialize>(column: Column, value: &T) -> Result<Vec<u8>, StateError> {
    postcard::to_stdvec(value).map_err(|source| StateError::Encode { column: column.as_str(), source })
}

pub(super) fn decode<T: DeserializeOwned>(column: Column, key: &[u8], value: &[u8]) -> Result<T, StateError> {
    postcard::from_bytes(value).map_err(|source| corrupt(column, key, source))
}

pub(super) fn corrupt(column: Column, key: &[u8], source: postcard::Error) -> StateError {
    StateError::Corrupt { column: column.as_str(), key: key.escape_ascii().to_string(), source }
}
