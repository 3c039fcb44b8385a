//! A cached answer and what it rests on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ChunkId, ContentHash, EntryId, ScopeId, ScoredChunk, Source, Tier, TurnKey, Usage};

/// An answer as a tier wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// The tier that wrote it.
    pub tier: Tier,
    /// Where it comes from, best first.
    pub sources: Vec<Source>,
    /// What writing it consumed.
    pub usage: Usage,
    /// Whether the tier found an answer; `false` when it said that it does not know.
    pub grounded: bool,
}

/// One retrieved chunk, as the answer saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportChunk {
    /// Which chunk.
    pub id: ChunkId,
    /// Its content.
    pub hash: ContentHash,
}

/// What makes an entry valid: all retrieved chunks, not only the cited ones, and the score that a newer chunk
/// would have to beat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Support {
    /// Every retrieved chunk, best first.
    pub chunks: Vec<SupportChunk>,
    /// Score of the last of them; below every cosine when fewer than `k` chunks exist.
    pub kth_score: f32,
    /// The knowledge base's epoch when it was read.
    pub read_epoch: u64,
}

impl Support {
    /// The support of an answer made from these chunks when `k` were asked for.
    #[must_use]
    pub fn of(retrieved: &[ScoredChunk], k: usize, read_epoch: u64) -> Self {
        let chunks = retrieved.iter().map(|found| SupportChunk { id: found.chunk.id.clone(), hash: found.chunk.hash });
        let kth_score = if retrieved.len() < k {
            f32::NEG_INFINITY
        } else {
            retrieved.last().map_or(f32::NEG_INFINITY, |last| last.score)
        };
        Self { chunks: chunks.collect(), kth_score, read_epoch }
    }
}

/// A question that was answered, ready to answer it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The entry's name.
    pub id: EntryId,
    /// The partition it belongs to.
    pub scope: ScopeId,
    /// The question as it was asked.
    pub question: String,
    /// The question's vector: unit length. None when it was never embedded.
    pub vector: Option<Arc<[f32]>>,
    /// The answer.
    pub answer: Arc<Answer>,
    /// What the answer rests on.
    pub support: Support,
    /// The turn that was answered first.
    pub origin: TurnKey,
}
