//! The knowledge base: articles as a shop writes them, chunks as the index sees them.

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
    /// Counts the article's versions, from 1.
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
}

/// A chunk that a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredChunk {
    /// What was found.
    pub chunk: Arc<Chunk>,
    /// Cosine between question and chunk.
    pub score: f32,
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
