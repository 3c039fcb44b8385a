//! A cached answer and what it rests on.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    ArticleId, ChunkId, ChunkKey, ContentHash, EntryId, Reach, ScopeId, ScoredChunk, Source, Tier, TurnKey, Usage,
};

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

/// One chunk that was read, as the answer saw it.
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

/// What makes an entry valid: all chunks that the tier read, not only the cited ones, and the score that a newer chunk
/// would have to exceed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Support {
    /// Every chunk that was read, best first.
    pub chunks: Vec<SupportChunk>,
    /// What a newer chunk would have to exceed, see [`Reach::floor`].
    pub floor: f32,
    /// The knowledge base's epoch when it was read.
    pub read_epoch: u64,
}

impl Support {
    /// The support of an answer that was made from these chunks.
    #[must_use]
    pub fn of(read: &[ScoredChunk], reach: Reach, read_epoch: u64) -> Self {
        let chunks = read.iter().map(|read| SupportChunk { id: read.chunk.id.clone(), hash: read.chunk.hash });
        Self { chunks: chunks.collect(), floor: reach.floor(read), read_epoch }
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
    fn a_support_holds_what_was_read() {
        let found = [("x", "one", 0.9), ("y", "two", 0.75), ("z", "three", 0.4)]
            .map(|(article, text, score)| scored(chunk("a", article, 0, 1, text, &[1.0]), score));
        let check = |what: &str, found: &[ScoredChunk], (chunks, margin): (usize, f32), expected: usize, floor: f32| {
            let (reach, mut read) = (Reach { chunks, margin }, found.to_vec());
            reach.cut(&mut read);
            let support = Support::of(&read, reach, 7);
            assert_eq!((support.floor, support.read_epoch), (floor, 7), "{what}");
            let keys: Vec<_> = support.chunks.iter().map(SupportChunk::key).collect();
            let expected: Vec<_> = found[..expected].iter().map(|found| found.chunk.key()).collect();
            assert_eq!(keys, expected, "{what}");
        };
        check("as many as are wanted, but for ties", &found, (2, 2.0), 2, 0.75_f32.next_down());
        check("all that there are, and room for more", &found, (4, 2.0), 3, 0.9 - 2.0);
        check("what is far below the best is out of reach", &found, (3, 0.25), 2, 0.9 - 0.25);
        check("so is what is as far below as the margin", &found, (3, 0.9 - 0.75), 1, 0.9 - (0.9 - 0.75));
        check("the count is nearer than the margin", &found, (1, 0.25), 1, 0.9_f32.next_down());
        check("the best is read in any case", &found, (3, 0.0), 1, 0.9);
        check("any chunk would have been found", &[], (2, 0.25), 0, f32::NEG_INFINITY);
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
