//! What a change of the knowledge base is told in, and what comes of it.
//!
//! Plain data. What is allowed is decided in `plan`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{ArticleId, ChunkKey, ContentHash, TenantId};

/// One article's part of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct ArticleWrite {
    /// Whose knowledge base.
    pub tenant: TenantId,
    /// Which article.
    pub article: ArticleId,
    /// The version that the article must have now, 0 for an article that is not there; none when any will do.
    pub expected_version: Option<u64>,
    /// What the article is from now on, in place of all that it was; none deletes it.
    pub content: Option<NewContent>,
}

/// An article as it is handed in.
#[derive(Clone, Debug, PartialEq)]
pub struct NewContent {
    /// A short heading.
    pub title: String,
    /// The text that answers are taken from.
    pub body: String,
    /// The shop's own notes.
    pub metadata: BTreeMap<String, String>,
    /// The version it gets, greater than every one the article ever had; the next one when there is none.
    pub version: Option<u64>,
    /// All its chunks, in order.
    pub chunks: Vec<NewChunk>,
}

/// A chunk as it is handed in. Its position is its ordinal; version and epoch are given when it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChunk {
    /// The text, as written.
    pub text: String,
    /// Hash of title and text.
    pub hash: ContentHash,
    /// The encoder's vector of title and text: unit length.
    pub vector: Arc<[f32]>,
}

/// What [`KnowledgeBase::apply`](super::KnowledgeBase::apply) did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The epoch that the change took; the one before when nothing was written.
    pub epoch: u64,
    /// What became of each write, in the order of the writes.
    pub outcomes: Vec<Result<ArticleOutcome, WriteRefused>>,
    /// What was published; empty when nothing was written.
    pub change: KnowledgeChange,
}

/// What a write did to its article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArticleOutcome {
    /// The article's version from now on; that of its deletion when it was deleted.
    pub version: u64,
    /// Whether there was an article before.
    pub existed: bool,
    /// The chunks it has now.
    pub chunks: usize,
    /// Contents that are new to the article, and contents that it lost.
    pub chunks_changed: usize,
}

/// Why a write was left out of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    /// Another write came first.
    #[error("expected {}, found {}", at(*.expected), at(*.current))]
    VersionMismatch {
        /// The version that the writer had seen; 0 for no article.
        expected: u64,
        /// The version that the article has; 0 for no article.
        current: u64,
    },
    /// The version asked for may have been used before.
    #[error("version {given} is not greater than {current}, the last that the article had")]
    VersionNotNewer {
        /// The version asked for.
        given: u64,
        /// The last that the article ever had, counting its deletion.
        current: u64,
    },
    /// There is nothing to delete.
    #[error("the article does not exist")]
    NotFound,
}

fn at(version: u64) -> String {
    if version == 0 { "no article".to_owned() } else { format!("version {version}") }
}

/// What a change means for answers that rest on the knowledge base. A change of looks alone, or of metadata, is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct KnowledgeChange {
    /// The epoch of the change.
    pub epoch: u64,
    /// Contents that came to an article, each once, with their vectors.
    pub added: Vec<(ChunkKey, Arc<[f32]>)>,
    /// Contents that an article lost, each once.
    pub removed: Vec<ChunkKey>,
}

impl KnowledgeChange {
    /// A change that says nothing yet.
    pub(super) const fn empty(epoch: u64) -> Self {
        Self { epoch, added: Vec::new(), removed: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_was_asked_and_what_is_there() {
        let check = |refused: WriteRefused, expected: &str| assert_eq!(refused.to_string(), expected);
        check(WriteRefused::VersionMismatch { expected: 3, current: 5 }, "expected version 3, found version 5");
        check(WriteRefused::VersionMismatch { expected: 0, current: 2 }, "expected no article, found version 2");
        check(WriteRefused::VersionMismatch { expected: 3, current: 0 }, "expected version 3, found no article");
        check(
            WriteRefused::VersionNotNewer { given: 4, current: 4 },
            "version 4 is not greater than 4, the last that the article had",
        );
        check(WriteRefused::NotFound, "the article does not exist");
    }
}
