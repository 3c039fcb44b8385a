//! The knowledge base: articles as a shop writes them, chunks as the index sees them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ArticleId, TenantId, normalise};

/// An article of a tenant's knowledge base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Article {
    /// Named by the shop.
    pub id: ArticleId,
    /// A short heading.
    pub title: String,
    /// The text that answers are taken from.
    pub body: String,
    /// The shop's own notes: no answer is made from them, and they are part of no hash.
    pub metadata: BTreeMap<String, String>,
    /// Rises with every write of the article, from 1, and is never used twice.
    pub version: u64,
}

/// A chunk's name: the article and the chunk's position in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId {
    /// Whose knowledge base.
    pub tenant: TenantId,
    /// Which article.
    pub article: ArticleId,
    /// Which chunk of it, from 0.
    pub ordinal: u32,
}

/// Hash of a chunk's normalised title and text: equal for chunks that differ in white space or letter case only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentHash([u8; 16]);

impl ContentHash {
    /// Hashes title and text after [`normalise`].
    #[must_use]
    pub fn of(title: &str, text: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(normalise(title).as_bytes());
        hasher.update(&[0]);
        hasher.update(normalise(text).as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(hash)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({:032x})", u128::from_be_bytes(self.0))
    }
}

/// "This article has a chunk of this content": what a cached answer rests on.
///
/// Where in the article the chunk stands is no part of it, so that a paragraph inserted above another one does not
/// change the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkKey(pub u128);

impl ChunkKey {
    /// Hashes the three, each with its length in front, so that no two different triples meet by concatenation.
    #[must_use]
    pub fn of(tenant: &TenantId, article: &ArticleId, content: ContentHash) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [tenant.as_str().as_bytes(), article.as_str().as_bytes(), &content.0] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_be_bytes(key))
    }
}

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkKey({:032x})", self.0)
    }
}

/// A piece of an article, small enough for the encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The chunk's name.
    pub id: ChunkId,
    /// The article's version that the chunk was cut from.
    pub version: u64,
    /// The article's title.
    pub title: String,
    /// The chunk's text, as written.
    pub text: String,
    /// Changes when the content does.
    pub hash: ContentHash,
    /// The encoder's vector of title and text: unit length.
    pub vector: Arc<[f32]>,
    /// The knowledge base's epoch at which this content came to its article.
    pub since: u64,
}

impl Chunk {
    /// What stays the same while the article has this content, wherever it stands.
    #[must_use]
    pub fn key(&self) -> ChunkKey {
        ChunkKey::of(&self.id.tenant, &self.id.article, self.hash)
    }
}

/// A chunk that a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredChunk {
    /// What was found.
    pub chunk: Arc<Chunk>,
    /// Cosine between question and chunk.
    pub score: f32,
}

/// How far reading reaches into what a search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Most chunks.
    pub chunks: usize,
    /// A chunk that scores this much below the best one is not read.
    pub margin: f32,
}

impl Reach {
    /// Leaves what is read of what was found, best first.
    pub fn cut(self, found: &mut Vec<ScoredChunk>) {
        found.truncate(self.chunks);
        if let Some(best) = found.first().map(|best| best.score) {
            found.truncate(found.partition_point(|next| next.score > best - self.margin).max(1));
        }
    }

    /// The score that a chunk has to exceed to be read as well, where these are read: below every cosine when there is room for any. Of two
    /// chunks with one score either may be the one that is found.
    #[must_use]
    pub fn floor(self, read: &[ScoredChunk]) -> f32 {
        let Some((best, last)) = read.first().zip(read.last()) else { return f32::NEG_INFINITY };
        let lowest = best.score - self.margin;
        if read.len() < self.chunks { lowest } else { last.score.next_down().max(lowest) }
    }
}

/// What an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The article.
    pub article_id: ArticleId,
    /// Its version when it was read.
    pub version: u64,
    /// The chunk of it, from 0.
    pub chunk: u32,
}

impl Source {
    /// The chunk as a source.
    #[must_use]
    pub fn of(chunk: &Chunk) -> Self {
        Self { article_id: chunk.id.article.clone(), version: chunk.version, chunk: chunk.id.ordinal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{chunk, id};

    #[test]
    fn chunk_keys_tell_tenant_article_and_content_apart() {
        let content = ContentHash::of("title", "text");
        let key = |tenant: &str, article: &str, content| ChunkKey::of(&id(tenant), &id(article), content);
        let all = [
            key("a", "bc", content),
            key("ab", "c", content),
            key("bc", "a", content),
            key("a", "bc", ContentHash::of("title", "other")),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(all[0], key("a", "bc", content));
    }

    #[test]
    fn place_and_looks_of_a_chunk_are_no_part_of_its_key() {
        let first = chunk("a", "x", 0, 1, "Some text", &[1.0]);
        assert_eq!(first.key(), chunk("a", "x", 7, 3, "some  text.", &[0.5]).key());
        assert_ne!(first.key(), chunk("a", "y", 0, 1, "Some text", &[1.0]).key());
    }
}
