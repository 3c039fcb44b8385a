//! Reading the knowledge base's part of the store: articles, their versions, chunks and epochs.
//!
//! A deleted article leaves its last version behind and nothing else, so only [`Store::article_version`] knows it.

use std::ops::ControlFlow;

use super::codec::{chunk_key, decode, key, key_prefix};
use super::{Column, Store};
use crate::{Article, ArticleId, Chunk, ChunkId, StateError, TenantId};

/// Where the epoch of the last change is kept in the `meta` column.
pub(super) const KNOWLEDGE_EPOCH_KEY: &[u8] = b"knowledge-epoch";
/// Where the epoch is kept up to which all cached answers were checked.
pub(super) const VALIDATED_EPOCH_KEY: &[u8] = b"validated-epoch";

impl Store {
    /// An article; `None` when it was deleted or never there.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn article(&self, tenant: &TenantId, article: &ArticleId) -> Result<Option<Article>, StateError> {
        self.get(Column::Articles, key(&[tenant.as_str(), article.as_str()]))
    }

    /// The last version that an article ever had, counting its deletion; 0 when there never was one of this name.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn article_version(&self, tenant: &TenantId, article: &ArticleId) -> Result<u64, StateError> {
        self.number(Column::Versions, &key(&[tenant.as_str(), article.as_str()]))
    }

    /// Shows the articles of a tenant in the order of their ids, until `visit` breaks.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn articles(
        &self,
        tenant: &TenantId,
        visit: &mut dyn FnMut(Article) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.scan(Column::Articles, &key_prefix(&[tenant.as_str()]), visit)
    }

    /// The next articles of a tenant in the order of their ids, `limit` at most: those behind `after`, whether or not
    /// it is there itself, or the first ones.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn articles_after(
        &self,
        tenant: &TenantId,
        after: Option<&ArticleId>,
        limit: usize,
    ) -> Result<Vec<Article>, StateError> {
        let prefix = key_prefix(&[tenant.as_str()]);
        // No id contains a zero byte, so the smallest key behind an article's is that key with one more.
        let start = after.map_or_else(|| prefix.clone(), |after| key_prefix(&[tenant.as_str(), after.as_str()]));
        let mut page = Vec::new();
        if limit == 0 {
            return Ok(page);
        }
        self.backend().scan_from(Column::Articles, &prefix, &start, &mut |key, value| {
            page.push(decode(Column::Articles, key, value)?);
            Ok(if page.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(page)
    }

    /// The number of articles of all tenants. Walks through all of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn count_articles(&self) -> Result<u64, StateError> {
        let mut count = 0;
        self.backend().scan(Column::Articles, b"", &mut |_, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    /// A chunk.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn chunk(&self, chunk: &ChunkId) -> Result<Option<Chunk>, StateError> {
        self.get(Column::Chunks, chunk_key(chunk))
    }

    /// Several chunks at once, in the order asked; `None` where there is none.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn chunks_of(&self, ids: &[ChunkId]) -> Result<Vec<Option<Chunk>>, StateError> {
        let keys: Vec<_> = ids.iter().map(chunk_key).collect();
        self.get_many(Column::Chunks, &keys)
    }

    /// The chunks of an article, in order.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn article_chunks(&self, tenant: &TenantId, article: &ArticleId) -> Result<Vec<Chunk>, StateError> {
        let mut chunks = Vec::new();
        self.scan(Column::Chunks, &key_prefix(&[tenant.as_str(), article.as_str()]), &mut |chunk| {
            chunks.push(chunk);
            ControlFlow::Continue(())
        })?;
        Ok(chunks)
    }

    /// Shows every chunk of every tenant, in the order of their ids, until `visit` breaks.
    ///
    /// # Errors
    /// When the database cannot be read, or a value does not decode.
    pub fn chunks(&self, visit: &mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), StateError> {
        self.scan(Column::Chunks, b"", visit)
    }

    /// The epoch of the last change of any knowledge base; 0 before the first.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn knowledge_epoch(&self) -> Result<u64, StateError> {
        self.number(Column::Meta, KNOWLEDGE_EPOCH_KEY)
    }

    /// The epoch up to which every cached answer that is kept was checked; 0 when none was.
    ///
    /// # Errors
    /// When the database cannot be read, or the value does not decode.
    pub fn validated_epoch(&self) -> Result<u64, StateError> {
        self.number(Column::Meta, VALIDATED_EPOCH_KEY)
    }
}
