//! Values for tests: the smallest that are complete.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{
    Answer, Article, ArticleWrite, CacheControl, CacheEntry, CacheLevel, Channel, Chunk, ChunkId, Completion,
    ContentHash, EntryId, IdError, NewChunk, NewContent, ScopeId, ScoredChunk, Source, StageLatencies, Support,
    SupportChunk, Tier, Turn, TurnKey, TurnRecord, Usage, Verdict,
};

/// Any text id.
pub(crate) fn id<T: TryFrom<String, Error = IdError>>(text: &str) -> T {
    T::try_from(text.to_owned()).expect("valid id")
}

pub(crate) fn turn_key(tenant: &str, conversation: &str, turn: &str) -> TurnKey {
    TurnKey { tenant: id(tenant), conversation: id(conversation), turn: id(turn) }
}

pub(crate) fn record(tenant: &str, conversation: &str, turn: &str) -> TurnRecord {
    let turn = Turn {
        tenant: id(tenant),
        conversation: id(conversation),
        id: id(turn),
        channel: Channel::Web,
        text: format!("question {turn}"),
        at_ms: 1_700_000_000_000,
        cache_control: CacheControl::Default,
    };
    let verdict = Verdict {
        entry: Some(EntryId(7)),
        similarity: Some(0.93),
        origin: Some(turn.key()),
        refreshed: true,
        ..Verdict::new(CacheLevel::Semantic, "similar")
    };
    let completion = Completion {
        text: format!("answer to {}", turn.id),
        tier: Tier::ALL[0],
        grounded: true,
        sources: vec![Source { article_id: id("a"), version: 1, chunk: 0 }],
        usage: Usage::default(),
        cost_micros: 12,
        large_cost_micros: 12,
        verdict,
        latency: StageLatencies::default(),
        total_us: 345,
        cut_off: false,
    };
    TurnRecord { turn, completion }
}

pub(crate) fn title_of(article: &str) -> String {
    format!("title of {article}")
}

pub(crate) fn article(name: &str, version: u64) -> Article {
    let metadata = [("language".to_owned(), "en".to_owned())].into();
    Article { id: id(name), title: title_of(name), body: format!("body {version}"), metadata, version }
}

pub(crate) fn chunk(tenant: &str, article: &str, ordinal: u32, version: u64, text: &str, vector: &[f32]) -> Chunk {
    let title = title_of(article);
    Chunk {
        id: ChunkId { tenant: id(tenant), article: id(article), ordinal },
        version,
        hash: ContentHash::of(&title, text),
        title,
        text: text.to_owned(),
        vector: vector.into(),
        since: version,
    }
}

/// A write of an article with one chunk per text.
pub(crate) fn put<V: AsRef<[f32]>>(tenant: &str, article: &str, texts: &[(&str, V)]) -> ArticleWrite {
    let title = title_of(article);
    let cut = |(text, vector): &(&str, V)| NewChunk {
        text: (*text).to_owned(),
        hash: ContentHash::of(&title, text),
        vector: vector.as_ref().into(),
    };
    let chunks = texts.iter().map(cut).collect();
    let body = texts.iter().map(|(text, _)| *text).collect::<Vec<_>>().join("\n");
    let content = NewContent { title, body, metadata: BTreeMap::new(), version: None, chunks };
    ArticleWrite { tenant: id(tenant), article: id(article), expected_version: None, content: Some(content) }
}

pub(crate) fn delete(tenant: &str, article: &str) -> ArticleWrite {
    ArticleWrite { tenant: id(tenant), article: id(article), expected_version: None, content: None }
}

pub(crate) fn scored(chunk: Chunk, score: f32) -> ScoredChunk {
    ScoredChunk { chunk: Arc::new(chunk), score }
}

pub(crate) fn answer() -> Arc<Answer> {
    let sources = vec![Source { article_id: id("a"), version: 1, chunk: 0 }];
    Arc::new(Answer {
        text: "yes".to_owned(),
        tier: Tier::ALL[0],
        sources,
        usage: Usage::default(),
        grounded: true,
        cut_off: false,
    })
}

pub(crate) fn entry(entry_id: EntryId, tenant: &str, vector: &[f32]) -> CacheEntry {
    let support = Support {
        chunks: vec![SupportChunk {
            id: ChunkId { tenant: id(tenant), article: id("a"), ordinal: 0 },
            hash: ContentHash::of("title", "text"),
        }],
        floor: 0.5,
        read_epoch: 3,
    };
    CacheEntry {
        id: entry_id,
        scope: ScopeId::derive(&id(tenant), &[]),
        question: format!("question {entry_id}"),
        vector: Some(vector.into()),
        answer: answer(),
        support: Arc::new(support),
        origin: turn_key(tenant, "c", "t"),
        about: None,
        refreshed: true,
        created_ms: 1_700_000_000_123,
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Close to normally distributed: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1_u64 << 24) as f32).sum::<f32>() - 6.0
    }

    /// A unit vector in any direction.
    pub(crate) fn unit(&mut self, dimension: usize) -> Vec<f32> {
        self.near(&vec![0.0; dimension], 1.0)
    }

    /// A unit vector near another: `spread` is the length of what is added to it.
    pub(crate) fn near(&mut self, centre: &[f32], spread: f32) -> Vec<f32> {
        let scale = spread / (centre.len() as f32).sqrt();
        let moved: Vec<f32> = centre.iter().map(|number| number + scale * self.normal()).collect();
        let length = moved.iter().map(|number| number * number).sum::<f32>().sqrt();
        moved.iter().map(|number| number / length).collect()
    }
}
