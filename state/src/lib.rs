//! What Turnflow talks about and what it keeps.
//!
//! *Domain*: plain types that every crate shares ([`Turn`], [`TurnEvent`], [`Article`], [`Chunk`],
//! [`CacheEntry`], ids and limits). *Stores*: a key-value store with one column per kind, on RocksDB or in
//! memory, behind one trait. *Knowledge base*: articles with versions, changes with epochs, the chunks' vector index
//! and a bounded cache of hot chunks.
//!
//! This is the only crate that knows RocksDB and hnsw_rs. It knows no model: vectors come in as numbers.

mod article;
mod entry;
mod error;
#[cfg(test)]
mod fixtures;
mod ids;
mod index;
mod knowledge;
mod limits;
mod lru;
mod store;
mod text;
mod turn;
mod wait;

pub use article::{Article, Chunk, ChunkId, ChunkKey, ContentHash, Reach, ScoredChunk, Source};
pub use entry::{Answer, CacheEntry, EntryHistory, Support, SupportChunk};
pub use error::StateError;
pub use ids::{ArticleId, ConversationId, EntryId, ID_BYTES_MAX, IdError, ScopeId, TenantId, TurnId, TurnKey};
pub use index::{ExactIndex, HnswIndex, IndexConfig, Key, Link, VectorIndex, dot};
pub use knowledge::{
    Applied, ArticleOutcome, ArticleWrite, KnowledgeBase, KnowledgeChange, KnowledgeStats, NewChunk, NewContent,
    WriteRefused,
};
pub use limits::Limits;
pub use lru::{BoundedCache, CacheStats};
pub use store::{
    BLOCK_CACHE_BYTES, Batch, Column, ColumnSize, Committer, Conversation, Done, Durability, KeyValue, MemoryStore,
    RECENT_TURNS_MAX, RocksStore, Store, StoreBatch, StoreOptions, Visit,
};
pub use text::{normalise, normalise_question, question_of};
pub use turn::{
    CacheControl, CacheLevel, Channel, Completion, Exchange, HitEvidence, HitReason, LoadLevel, RouteEvidence, Stage,
    StageLatencies, Tier, TierSize, Turn, TurnError, TurnErrorKind, TurnEvent, TurnRecord, Usage, Verdict,
};
pub use wait::wait_text;
