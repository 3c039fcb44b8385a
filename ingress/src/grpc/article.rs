//! Requests to the knowledge base to drafts, and what it says to responses.
//!
//! As in [`convert`](super::convert), requests are checked field by field, so that a client hears which one is at fault.

use turnflow_pipeline::{ArticleDraft, ChangeEvent, DraftContent, Fall, Forecast};
use turnflow_state::{Article, ScoredChunk};

use super::proto;
use crate::door::{self, Conflict};

/// What a response may list, in bytes; whatever goes beyond it is left out. One thing is always listed.
const LISTED_BYTES_MAX: usize = 1024 * 1024;

/// Checks an article that is to be written. Its size is the pipeline's business.
pub(super) fn draft(article: Option<proto::Article>, expected_version: Option<u64>) -> Result<ArticleDraft, Conflict> {
    let Some(proto::Article { id, title, body, metadata, version }) = article else {
        return Err(Conflict::invalid("article", "missing"));
    };
    door::draft("article.", &id, DraftContent { title, body, metadata, version }, expected_version)
}

/// An article as it is read.
pub(super) fn article(article: Article, with_body: bool) -> proto::Article {
    let Article { id, title, body, metadata, version } = article;
    let body = if with_body { body } else { String::new() };
    proto::Article { id: id.into(), title, body, metadata, version: Some(version) }
}

/// Chunks that a search found, best first.
pub(super) fn found(chunks: Vec<ScoredChunk>) -> Vec<proto::FoundChunk> {
    let chunks = chunks.into_iter().map(|ScoredChunk { chunk, score }| proto::FoundChunk {
        article_id: chunk.id.article.to_string(),
        version: chunk.version,
        chunk: chunk.id.ordinal,
        title: chunk.title.clone(),
        text: chunk.text.clone(),
        score,
    });
    listed(chunks)
}

/// Cached answers that a change would make invalid.
pub(super) fn falling(forecasts: Vec<Forecast>) -> Vec<proto::FallingAnswer> {
    listed(forecasts.into_iter().map(|Forecast { entry, question, fall }| {
        let reason = match fall {
            Fall::SupportChanged => proto::FallReason::SupportChanged,
            Fall::Overtaken => proto::FallReason::Overtaken,
        };
        proto::FallingAnswer { entry: entry.0, question, reason: reason.into() }
    }))
}

/// A change, as those who watch are told.
pub(super) fn change(event: &ChangeEvent) -> proto::WatchResponse {
    let articles = event.articles.iter().map(|article| proto::ArticleChange {
        id: article.id.to_string(),
        version: article.version,
        deleted: article.deleted,
        chunks_changed: count(article.chunks_changed),
    });
    proto::WatchResponse {
        epoch: event.epoch,
        articles: articles.collect(),
        cached_answers_invalidated: count(event.invalidated),
    }
}

/// As much as a response may list.
fn listed<M: prost::Message>(messages: impl Iterator<Item = M>) -> Vec<M> {
    let mut room = Room::default();
    messages.take_while(|message| room.takes(message)).collect()
}

/// What a response may still list.
#[derive(Default)]
pub(super) struct Room {
    used: usize,
}

impl Room {
    /// Whether there is room for one more. The first always finds some.
    pub(super) fn takes(&mut self, message: &impl prost::Message) -> bool {
        let is_first = self.used == 0;
        self.used += message.encoded_len().max(1);
        is_first || self.used <= LISTED_BYTES_MAX
    }
}

/// A number for the wire.
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::VERSION_MAX;

    use super::*;
    use crate::door::Refusal;

    #[test]
    fn articles_are_checked_field_by_field() {
        let check = |change: &dyn Fn(&mut proto::Article), expected: Option<(&str, &str)>| {
            let mut article = proto::Article { id: "a".into(), title: "T".into(), ..proto::Article::default() };
            change(&mut article);
            let refused = draft(Some(article), None).err().map(|conflict| match conflict {
                Conflict::Refusal(Refusal::Invalid { field, message }) => (field.unwrap_or_default(), message),
                other => panic!("{other:?}"),
            });
            let refused = refused.as_ref().map(|(field, message)| (field.as_str(), message.as_str()));
            assert_eq!(refused, expected);
        };
        check(&|_| {}, None);
        check(&|article| article.body = "a\tb\r\nc".into(), None);
        check(&|article| article.id = String::new(), Some(("article.id", "empty article id")));
        let bell = "contains a control character at byte 1";
        check(&|article| article.title = "T\u{7}".into(), Some(("article.title", bell)));
        check(&|article| article.body = "T\u{7}".into(), Some(("article.body", bell)));
        check(&|article| drop(article.metadata.insert("n".into(), "v\u{7}".into())), Some(("article.metadata", bell)));
        check(&|article| drop(article.metadata.insert("n\u{7}".into(), "v".into())), Some(("article.metadata", bell)));
        check(
            &|article| drop(article.metadata.insert(String::new(), "v".into())),
            Some(("article.metadata", "empty name")),
        );
        check(&|article| article.version = Some(VERSION_MAX), None);
        for version in [0, VERSION_MAX + 1, u64::MAX] {
            let told = format!("{version} is no version, 1 to 9007194959773696 can be given, or none");
            check(&|article| article.version = Some(version), Some(("article.version", &told)));
        }
        assert_eq!(draft(None, None), Err(Conflict::invalid("article", "missing")));
    }

    #[test]
    fn a_response_lists_what_it_has_room_for_and_at_least_one() {
        let text = |bytes: usize| "x".repeat(bytes);
        assert_eq!(listed([text(2 * LISTED_BYTES_MAX), text(1)].into_iter()).len(), 1);
        assert_eq!(listed((0..5).map(|_| text(LISTED_BYTES_MAX / 4))).len(), 3);
        assert_eq!(listed((0..5).map(|_| text(10))).len(), 5);
    }
}
