//! Changes to the store, in its own terms.
//!
//! A [`StoreBatch`] keeps together what must not come apart: an answered turn and its conversation, an article and its
//! chunks, a cached entry and its answer. It is written by [`Store::write`](super::Store::write)
//! or by a [`Committer`](super::Committer), atomically.
//!
//! What it does not do: it reads nothing.

use serde::Serialize;

use super::articles::{KNOWLEDGE_EPOCH_KEY, VALIDATED_EPOCH_KEY};
use super::codec::{StoredEntry, chunk_key, encode, entry_key, history_key, key, key_prefix, turn_key};
use super::{Batch, Column, Conversation};
use crate::{Article, ArticleId, CacheEntry, Chunk, ChunkId, EntryHistory, EntryId, StateError, TenantId, TurnRecord};

/// Changes that happen together, in order.
#[derive(Clone, Debug, Default)]
pub struct StoreBatch {
    pub(super) batch: Batch,
}

impl StoreBatch {
    /// A batch that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the batch changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The number of puts and deletes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// The size of all keys and values, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Adds the changes of `later` behind those of this batch.
    pub fn append(&mut self, later: Self) {
        self.batch.append(later.batch);
    }

    fn put<T: Serialize>(&mut self, column: Column, key: Vec<u8>, value: &T) -> Result<(), StateError> {
        self.batch.put(column, key, encode(column, value)?);
        Ok(())
    }

    /// Keeps an answered turn, and where its conversation stands after it.
    ///
    /// # Errors
    /// [`StateError::Encode`].
    pub fn put_turn(&mut self, record: &TurnRecord, conversation: &Conversation) -> Result<(), StateError> {
        let turn = record.turn.key();
        let of_conversation = key(&[turn.tenant.as_str(), turn.conversation.as_str()]);
        self.put(Column::Turns, turn_key(&turn), record)?;
        self.put(Column::Conversations, of_conversation, conversation)
    }

    /// Keeps an article with its chunks and its version, in place of the article and all the chunks that it had.
    ///
    /// # Errors
    /// [`StateError::ForeignChunk`] when a chunk is another article's or tenant's; [`StateError::Encode`]. The batch
    /// is then to be thrown away.
    pub fn put_article(&mut self, tenant: &TenantId, article: &Article, chunks: &[Chunk]) -> Result<(), StateError> {
        if let Some(foreign) = chunks.iter().find(|chunk| chunk.id.tenant != *tenant || chunk.id.article != article.id)
        {
            let ChunkId { tenant: owner, article: of, ordinal } = &foreign.id;
            return Err(StateError::ForeignChunk {
                chunk: format!("{owner}/{of}/{ordinal}"),
                article: format!("{tenant}/{}", article.id),
            });
        }
        self.delete_article(tenant, &article.id, article.version);
        self.put(Column::Articles, key(&[tenant.as_str(), article.id.as_str()]), article)?;
        chunks.iter().try_for_each(|chunk| self.put(Column::Chunks, chunk_key(&chunk.id), chunk))
    }

    /// Deletes an article with its chunks. Of it remains the version of its deletion.
    pub fn delete_article(&mut self, tenant: &TenantId, article: &ArticleId, version: u64) {
        let name = key(&[tenant.as_str(), article.as_str()]);
        self.batch.put(Column::Versions, name.clone(), version.to_be_bytes());
        self.batch.delete(Column::Articles, name);
        self.batch.delete_prefix(Column::Chunks, key_prefix(&[tenant.as_str(), article.as_str()]));
    }

    /// Keeps the epoch of the change that this batch is.
    pub(crate) fn put_knowledge_epoch(&mut self, epoch: u64) {
        self.batch.put(Column::Meta, KNOWLEDGE_EPOCH_KEY, epoch.to_be_bytes());
    }

    /// Keeps the epoch up to which every cached answer that is kept was checked.
    pub fn put_validated_epoch(&mut self, epoch: u64) {
        self.batch.put(Column::Meta, VALIDATED_EPOCH_KEY, epoch.to_be_bytes());
    }

    /// Keeps a cached answer.
    ///
    /// # Errors
    /// [`StateError::Encode`].
    pub fn put_entry(&mut self, entry: &CacheEntry) -> Result<(), StateError> {
        let CacheEntry { id, scope, question, vector, answer, support, origin, about, refreshed, created_ms } =
            entry.clone();
        let stored = StoredEntry { scope, question, vector, support, origin, about, refreshed, created_ms };
        self.put(Column::Entries, entry_key(id), &stored)?;
        self.put(Column::Responses, entry_key(id), &answer)
    }

    /// Keeps what has become of a cached answer.
    ///
    /// # Errors
    /// [`StateError::Encode`].
    pub fn put_history(&mut self, id: EntryId, history: EntryHistory) -> Result<(), StateError> {
        self.put(Column::Keys, history_key(id), &history)
    }

    /// Deletes a cached answer, and what has become of it.
    pub fn delete_entry(&mut self, id: EntryId) {
        self.batch.delete(Column::Keys, history_key(id));
        self.batch.delete(Column::Entries, entry_key(id));
        self.batch.delete(Column::Responses, entry_key(id));
    }

    /// Keeps a small named value.
    pub fn put_key_value(&mut self, name: &str, value: Vec<u8>) {
        self.batch.put(Column::Keys, name, value);
    }

    /// Deletes a small named value.
    pub fn delete_key_value(&mut self, name: &str) {
        self.batch.delete(Column::Keys, name);
    }
}
