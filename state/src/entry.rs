//! A cached answer and what it rests on.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{ArticleId, ChunkId, ChunkKey, ContentHash, EntryId, ScopeId, ScoredChunk, Source, Tier, TurnKey, Usage};

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
    /// Whether the bound on tokens cut it off.
    #[serde(default, deserialize_with = "last_flag")]
    pub cut_off: bool,
}

/// A flag at the end of a stored type, which values that were written before it was added do not have: then it is not set.
///
/// # Errors
/// Never.
pub(crate) fn last_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(bool::deserialize(deserializer).unwrap_or_default())
}

/// One retrieved chunk, as the answer saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportChunk {
    /// Which chunk.
    pub id: ChunkId,
    /// Its content.
    pub hash: ContentHash,
}

impl SupportChunk {
    /// The chunk's content in its article, wherever it stands by now.
    #[must_use]
    pub fn key(&self) -> ChunkKey {
        ChunkKey::of(&self.id.tenant, &self.id.article, self.hash)
    }
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
    pub support: Arc<Support>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// The article that the question is clearly about, if it is.
    pub about: Option<ArticleId>,
    /// Whether its answer was made anew since, after a change of the knowledge base; then its sources name what it rests on.
    pub refreshed: bool,
    /// When that turn was said, in milliseconds since 1970.
    pub created_ms: u64,
}

/// What has become of an entry since it was made, as far as it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHistory {
    /// How often it was served.
    pub served: u32,
    /// Audits and customers' judgements of it, with those that said nothing. One that was found wrong is not kept.
    pub tried: u32,
    /// Those that agreed.
    pub agreed: u32,
}

/// What the allocations of an entry cost beyond their contents, in bytes.
const ALLOCATIONS_BYTES: usize = 256;

impl CacheEntry {
    /// What the entry takes in memory, roughly, in bytes: for a cache that is bounded by them.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let Self { question, vector, answer, support, origin, .. } = self;
        let sources: usize =
            answer.sources.iter().map(|source| size_of::<Source>() + source.article_id.as_str().len()).sum();
        let chunks: usize = support
            .chunks
            .iter()
            .map(|chunk| size_of::<SupportChunk>() + chunk.id.tenant.as_str().len() + chunk.id.article.as_str().len())
            .sum();
        let names = origin.tenant.as_str().len() + origin.conversation.as_str().len() + origin.turn.as_str().len();
        size_of::<Self>()
            + size_of::<Answer>()
            + size_of::<Support>()
            + ALLOCATIONS_BYTES
            + question.len()
            + answer.text.len()
            + vector.as_deref().map_or(0, size_of_val)
            + sources
            + chunks
            + names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{chunk, entry, scored};

    #[test]
    fn a_support_holds_all_that_was_retrieved() {
        let found =
            [scored(chunk("a", "x", 0, 1, "one", &[1.0]), 0.9), scored(chunk("a", "y", 2, 1, "two", &[1.0]), 0.4)];
        let full = Support::of(&found, 2, 7);
        assert_eq!((full.kth_score, full.read_epoch), (0.4, 7));
        let keys: Vec<_> = full.chunks.iter().map(SupportChunk::key).collect();
        assert_eq!(keys, found.map(|found| found.chunk.key()));
        assert_eq!(Support::of(&[], 2, 7).kth_score, f32::NEG_INFINITY, "any newer chunk would have been among them");
    }

    #[test]
    fn every_part_of_an_entry_has_weight() {
        let light = entry(EntryId(1), "a", &[1.0, 0.0]);
        let check = |name: &str, heavy: CacheEntry, bytes: usize| {
            assert_eq!(heavy.weight_bytes() - light.weight_bytes(), bytes, "{name}");
        };
        let longer = |text: &str| format!("{text}{}", "x".repeat(100));
        check("question", CacheEntry { question: longer(&light.question), ..light.clone() }, 100);
        check("vector", CacheEntry { vector: Some(vec![0.0; 102].into()), ..light.clone() }, 400);
        let answer = Answer { text: longer(&light.answer.text), ..(*light.answer).clone() };
        check("answer", CacheEntry { answer: answer.into(), ..light.clone() }, 100);
        let mut answer = (*light.answer).clone();
        answer.sources.extend(answer.sources.clone());
        check("source", CacheEntry { answer: answer.into(), ..light.clone() }, size_of::<Source>() + 1);
        let mut support = (*light.support).clone();
        support.chunks.extend(support.chunks.clone());
        check("support", CacheEntry { support: support.into(), ..light.clone() }, size_of::<SupportChunk>() + 2);
        assert!(light.weight_bytes() > size_of::<CacheEntry>());
    }
}
