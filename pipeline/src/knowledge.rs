//! The knowledge base as it is written and read while turns are answered.
//!
//! A write cuts articles into chunks, embeds what is new, makes it durable and searchable, and returns when no cached
//! answer that it made invalid is served any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{broadcast, oneshot};
use turnflow_models::{InputType, Lane, to_unit};
use turnflow_operators::validity::Invalidated;
use turnflow_state::{
    Applied, Article, ArticleId, ArticleOutcome, ArticleWrite, Chunk, ContentHash, NewChunk, NewContent, ScoredChunk,
    TenantId, WriteRefused, normalise,
};

use crate::pipeline::Running;
use crate::shared::{Change, ChangeKind, Forecast, Question};
use crate::{Parts, PipelineError};

/// The highest version that can be given. JSON carries none above 2^53 exactly (RFC 8259, section 6), and the versions that count up from it have 2^32 below
/// that.
pub const VERSION_MAX: u64 = (1 << 53) - (1 << 32);

/// An article that is to be written, or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArticleDraft {
    /// Which article.
    pub id: ArticleId,
    /// What it is from now on; None deletes it.
    pub content: Option<DraftContent>,
    /// The version that it must have now: 0 for an article that must not exist, None for any.
    pub expected_version: Option<u64>,
}

/// What an article is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DraftContent {
    /// A short heading.
    pub title: String,
    /// The text that answers are taken from.
    pub body: String,
    /// Anything else that the shop wants to keep with it.
    pub metadata: BTreeMap<String, String>,
    /// The version it gets, at most [`VERSION_MAX`]; None for the next.
    pub version: Option<u64>,
}

impl DraftContent {
    /// Checks the version that is given, if one is.
    ///
    /// # Errors
    /// [`DraftError::Version`] when no article can be given it.
    pub fn check_version(&self) -> Result<(), DraftError> {
        match self.version {
            Some(given) if !(1..=VERSION_MAX).contains(&given) => Err(DraftError::Version { given }),
            _ => Ok(()),
        }
    }
}

/// Why an article was not written, while others were.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// It is larger than the limit.
    #[error("{bytes} bytes of title, body and metadata, at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It has no text.
    #[error("neither title nor body")]
    Empty,
    /// No article can be given its version.
    #[error("{given} is no version, 1 to {VERSION_MAX} can be given, or none")]
    Version {
        /// The version that was given.
        given: u64,
    },
    /// It was named before in the same call.
    #[error("named twice in one call")]
    Twice,
    /// Its version is not as expected.
    #[error(transparent)]
    Refused(#[from] WriteRefused),
}

/// Articles that are ready to be written.
#[derive(Debug)]
pub struct Prepared {
    tenant: TenantId,
    /// What was refused already, by the place of its draft; None for those that remain.
    outcomes: Vec<Option<DraftError>>,
    /// What remains.
    writes: Vec<ArticleWrite>,
}

/// What a write did. It is acknowledged: no turn that is admitted from now on is answered from what it made invalid.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The knowledge base's epoch that it took.
    pub epoch: u64,
    /// What became of each draft, in their order.
    pub outcomes: Vec<Result<ArticleOutcome, DraftError>>,
    /// The cached answers that it made invalid.
    pub invalidated: Vec<Invalidated>,
}

/// A change, as those who watch are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeEvent {
    /// Whose knowledge base.
    pub tenant: TenantId,
    /// The knowledge base's epoch that the change took.
    pub epoch: u64,
    /// What was written.
    pub articles: Vec<ArticleChanged>,
    /// How many cached answers it made invalid.
    pub invalidated: usize,
}

/// An article that was written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArticleChanged {
    /// Which article.
    pub id: ArticleId,
    /// Its version from now on; that of its deletion when it was deleted.
    pub version: u64,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Contents that came or went.
    pub chunks_changed: usize,
}

/// Texts as vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// A vector of unit length for each text.
    pub vectors: Vec<Arc<[f32]>>,
    /// How many word pieces the texts have.
    pub tokens: usize,
}

/// A handle to the knowledge base of a running pipeline.
#[derive(Clone)]
pub struct Knowledge(pub(crate) Arc<Running>);

impl Knowledge {
    /// Writes articles of a tenant in one atomic change, and waits until it is acknowledged: [`Knowledge::prepare`] and
    /// [`Knowledge::apply`] in one.
    ///
    /// # Errors
    /// As those two.
    pub async fn write(&self, tenant: &TenantId, drafts: Vec<ArticleDraft>) -> Result<Receipt, PipelineError> {
        let prepared = self.prepare(tenant, drafts).await?;
        self.apply(prepared).await
    }

    /// Checks articles, cuts them into chunks, and embeds the chunks whose content is new to their article: everything
    /// that takes long. Changes nothing.
    ///
    /// # Errors
    /// [`PipelineError`] when the encoder or the store fails.
    pub async fn prepare(&self, tenant: &TenantId, drafts: Vec<ArticleDraft>) -> Result<Prepared, PipelineError> {
        let (running, tenant) = (self.0.clone(), tenant.clone());
        blocking(move || prepare(&running, tenant, drafts)).await
    }

    /// Writes what was prepared in one atomic change, and waits until it is acknowledged. A draft that is refused does not
    /// stop the others.
    ///
    /// Not cancel-safe: a write whose future is dropped may or may not happen; if it does, it happens whole.
    ///
    /// # Errors
    /// [`PipelineError`] when the store fails, or the pipeline is shutting down. Then nothing was written, unless the
    /// store says that it does not know.
    pub async fn apply(&self, prepared: Prepared) -> Result<Receipt, PipelineError> {
        let gate = self.0.gate().await?;
        let running = self.0.clone();
        let (acknowledge, acknowledged) = oneshot::channel();
        let Prepared { tenant, outcomes, writes } = prepared;
        let apply = move || {
            let _gate = gate;
            let articles: Vec<_> =
                writes.iter().map(|write| (write.article.clone(), write.content.is_none())).collect();
            let mut acknowledge = Some(acknowledge);
            let applied = running.parts.knowledge.apply(writes, &mut |applied: &Applied| {
                let Some(acknowledge) = acknowledge.take() else { return };
                let event = event(&tenant, applied, &articles);
                let (tenant, change) = (tenant.clone(), applied.change.clone());
                let kind = ChangeKind::Articles(event);
                running.validity.submit(Change { tenant, change, kind, acknowledge });
            })?;
            // Searches find it now.
            running.validity.wake();
            drop(acknowledge);
            // Without a word when nothing was written. The workers stay until then, even if nobody waits any more.
            let invalidated = acknowledged.blocking_recv().unwrap_or_default();
            Ok(Receipt { epoch: applied.epoch, outcomes: complete(outcomes, applied.outcomes), invalidated })
        };
        blocking(apply).await
    }

    /// What [`Knowledge::write`] would do, and which cached answers it would make invalid. Changes nothing.
    ///
    /// # Errors
    /// As [`Knowledge::write`].
    pub async fn dry_run(
        &self,
        tenant: &TenantId,
        drafts: Vec<ArticleDraft>,
    ) -> Result<(Vec<Result<ArticleOutcome, DraftError>>, Vec<Forecast>), PipelineError> {
        // The workers stay as long as the gate is held.
        let gate = self.0.gate().await?;
        let (running, tenant) = (self.0.clone(), tenant.clone());
        blocking(move || {
            let _gate = gate;
            let Prepared { tenant, outcomes, writes } = prepare(&running, tenant, drafts)?;
            let applied = running.parts.knowledge.preview(writes)?;
            let (reply, replies) = crossbeam_channel::unbounded();
            let workers = running.validity_workers();
            running.validity.ask(&Question { tenant, change: Arc::new(applied.change), reply });
            let mut forecasts: Vec<Forecast> = replies.iter().take(workers).flatten().collect();
            forecasts.sort_by_key(|forecast| forecast.entry);
            Ok((complete(outcomes, applied.outcomes), forecasts))
        })
        .await
    }

    /// An article, unless it does not exist.
    ///
    /// # Errors
    /// [`PipelineError`] when the store fails.
    pub async fn get(&self, tenant: &TenantId, article: &ArticleId) -> Result<Option<Article>, PipelineError> {
        let (store, tenant, article) = (self.0.parts.store.clone(), tenant.clone(), article.clone());
        blocking(move || Ok(store.article(&tenant, &article)?)).await
    }

    /// At most `limit` articles behind one, in the order of their ids.
    ///
    /// # Errors
    /// [`PipelineError`] when the store fails.
    pub async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&ArticleId>,
        limit: usize,
    ) -> Result<Vec<Article>, PipelineError> {
        let (store, tenant, after) = (self.0.parts.store.clone(), tenant.clone(), after.cloned());
        blocking(move || Ok(store.articles_after(&tenant, after.as_ref(), limit)?)).await
    }

    /// The `k` chunks that are nearest to a query, best first.
    ///
    /// # Errors
    /// [`PipelineError`] when the encoder or the store fails.
    pub async fn search(&self, tenant: &TenantId, query: &str, k: usize) -> Result<Vec<ScoredChunk>, PipelineError> {
        let (parts, tenant, query) = (self.0.parts.clone(), tenant.clone(), query.to_owned());
        blocking(move || {
            let vectors = parts.encoder.encode_blocking(InputType::Query, vec![query])?;
            let Some(vector) = vectors.first() else { return Ok(Vec::new()) };
            Ok(parts.knowledge.search(&tenant, vector, k)?)
        })
        .await
    }

    /// The vectors by which questions and articles are compared, one for each of the texts, which are all of one kind. Turns are served
    /// before this.
    ///
    /// # Errors
    /// [`PipelineError`] when the encoder fails.
    pub async fn embed(&self, input: InputType, texts: Vec<String>) -> Result<Embedded, PipelineError> {
        let encoder = self.0.parts.encoder.clone();
        blocking(move || {
            let tokens = texts.iter().map(|text| encoder.tokenizer().count(text)).sum();
            Ok(Embedded { vectors: encoder.encode_blocking_in(Lane::Background, input, texts)?, tokens })
        })
        .await
    }

    /// The changes from now on, of all tenants. Who falls too far behind misses some, and is told so.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<ChangeEvent>> {
        self.0.validity.watch()
    }

    /// How many articles of all tenants there are, in how many chunks.
    #[must_use]
    pub fn stats(&self) -> turnflow_state::KnowledgeStats {
        self.0.parts.knowledge.stats()
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
) -> Result<T, PipelineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn event(tenant: &TenantId, applied: &Applied, articles: &[(ArticleId, bool)]) -> ChangeEvent {
    let changed = articles.iter().zip(&applied.outcomes).filter_map(|((id, deleted), outcome)| {
        let outcome = outcome.as_ref().ok()?;
        let (version, chunks_changed) = (outcome.version, outcome.chunks_changed);
        Some(ArticleChanged { id: id.clone(), version, deleted: *deleted, chunks_changed })
    });
    ChangeEvent { tenant: tenant.clone(), epoch: applied.epoch, articles: changed.collect(), invalidated: 0 }
}

/// Checks drafts, cuts them into chunks, and embeds the chunks whose content is new. Blocks.
fn prepare(running: &Running, tenant: TenantId, drafts: Vec<ArticleDraft>) -> Result<Prepared, PipelineError> {
    let (parts, config) = (&running.parts, &running.config);
    let mut outcomes = Vec::with_capacity(drafts.len());
    let mut seen = HashSet::new();
    let mut cut: Vec<(ArticleDraft, Vec<Piece>)> = Vec::new();
    for draft in drafts {
        if let Err(error) = check(&draft, config.limits.article_bytes_max) {
            outcomes.push(Some(error));
        } else if !seen.insert(draft.id.clone()) {
            outcomes.push(Some(DraftError::Twice));
        } else {
            outcomes.push(None);
            let pieces = match &draft.content {
                Some(content) => pieces(parts, &tenant, &draft.id, content, config.knowledge.chunk_tokens_max)?,
                None => Vec::new(),
            };
            cut.push((draft, pieces));
        }
    }
    embed(parts, &mut cut)?;
    let writes = cut.into_iter().map(|(draft, pieces)| {
        let chunks = pieces.into_iter().filter_map(|piece| {
            // Every piece has a vector by now.
            Some(NewChunk { text: piece.text, hash: piece.hash, vector: piece.vector? })
        });
        let chunks = chunks.collect();
        let content = draft.content.map(|DraftContent { title, body, metadata, version }| NewContent {
            title,
            body,
            metadata,
            version,
            chunks,
        });
        let (tenant, expected_version) = (tenant.clone(), draft.expected_version);
        ArticleWrite { tenant, article: draft.id, expected_version, content }
    });
    let writes = writes.collect();
    Ok(Prepared { tenant, outcomes, writes })
}

/// Fills in what became of the drafts that were not refused before.
fn complete(
    outcomes: Vec<Option<DraftError>>,
    written: Vec<Result<ArticleOutcome, WriteRefused>>,
) -> Vec<Result<ArticleOutcome, DraftError>> {
    let mut written = written.into_iter();
    let outcomes = outcomes.into_iter().filter_map(|refused| match refused {
        Some(refused) => Some(Err(refused)),
        None => written.next().map(|outcome| outcome.map_err(DraftError::from)),
    });
    outcomes.collect()
}

fn check(draft: &ArticleDraft, limit: usize) -> Result<(), DraftError> {
    let Some(content) = &draft.content else { return Ok(()) };
    content.check_version()?;
    let DraftContent { title, body, metadata, .. } = content;
    let notes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = title.len() + body.len() + notes;
    if bytes > limit {
        return Err(DraftError::TooLarge { bytes, limit });
    }
    // What has no normal form has no content.
    if normalise(title).is_empty() && normalise(body).is_empty() {
        return Err(DraftError::Empty);
    }
    Ok(())
}

/// A piece of an article on its way to becoming a chunk.
struct Piece {
    text: String,
    hash: ContentHash,
    vector: Option<Arc<[f32]>>,
}

fn pieces(
    parts: &Parts,
    tenant: &TenantId,
    article: &ArticleId,
    content: &DraftContent,
    tokens_max: usize,
) -> Result<Vec<Piece>, PipelineError> {
    let before = parts.store.article_chunks(tenant, article)?;
    let texts = if content.body.trim().is_empty() {
        vec![content.title.clone()]
    } else {
        cut_alike(&before, &content.title, &content.body)
            .unwrap_or_else(|| parts.encoder.tokenizer().cut(&content.body, tokens_max))
    };
    // Chunks whose content is known keep their vectors: only what changed is embedded.
    let known: HashMap<ContentHash, Arc<[f32]>> = before.into_iter().map(|chunk| (chunk.hash, chunk.vector)).collect();
    let piece = |text: String| {
        let hash = ContentHash::of(&content.title, &text);
        Piece { vector: known.get(&hash).cloned(), text, hash }
    };
    Ok(texts.into_iter().map(piece).collect())
}

/// Cuts a text where it was cut before, if it differs from what it was in white space and letter case only: white space
/// decides where a text is cut, but an edit of white space must not change what the chunks say.
fn cut_alike(before: &[Chunk], title: &str, body: &str) -> Option<Vec<String>> {
    let mut rest = body.trim_start();
    let mut texts = Vec::with_capacity(before.len());
    for chunk in before {
        let mut wanted = chunk.text.chars().filter(|c| !c.is_whitespace()).count();
        let mut end = 0;
        for (at, c) in rest.char_indices() {
            if wanted == 0 {
                break;
            }
            end = at + c.len_utf8();
            wanted -= usize::from(!c.is_whitespace());
        }
        let text = &rest[..end];
        if wanted > 0 || ContentHash::of(title, text) != chunk.hash {
            return None;
        }
        texts.push(text.to_owned());
        rest = rest[end..].trim_start();
    }
    (rest.is_empty() && !texts.is_empty()).then_some(texts)
}

/// Share of the title in a chunk's vector. The title says best what an article is about: the right article comes first for 80 % of
/// labelled questions to a shop instead of 74 %.
const TITLE_SHARE: f32 = 0.4;

/// A chunk's vector: its title's and its text's, brought to unit length.
fn mixed(title: &[f32], text: &[f32]) -> Arc<[f32]> {
    let sum = title.iter().zip(text).map(|(title, text)| TITLE_SHARE * title + (1.0 - TITLE_SHARE) * text);
    to_unit(sum.collect()).into()
}

fn embed(parts: &Parts, cut: &mut [(ArticleDraft, Vec<Piece>)]) -> Result<(), PipelineError> {
    let mut unknown: Vec<(&str, &mut Piece)> = Vec::new();
    for (draft, pieces) in cut {
        let title = draft.content.as_ref().map_or("", |content| content.title.as_str());
        unknown.extend(pieces.iter_mut().filter(|piece| piece.vector.is_none()).map(|piece| (title, piece)));
    }
    if !unknown.is_empty() {
        let titles: BTreeSet<&str> =
            unknown.iter().map(|(title, _)| *title).filter(|title| !title.is_empty()).collect();
        let texts = unknown.iter().map(|(title, piece)| format!("{title}\n{}", piece.text));
        let texts = texts.chain(titles.iter().map(ToString::to_string)).collect();
        let mut vectors = parts.encoder.encode_blocking(InputType::Passage, texts)?;
        let of_titles = vectors.split_off(unknown.len());
        let of_titles: HashMap<&str, Arc<[f32]>> = titles.into_iter().zip(of_titles).collect();
        for ((title, piece), vector) in unknown.into_iter().zip(vectors) {
            piece.vector = Some(of_titles.get(title).map_or_else(|| vector.clone(), |title| mixed(title, &vector)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use turnflow_state::ChunkId;

    use super::*;

    #[test]
    fn a_text_is_cut_as_before_only_when_nothing_but_its_looks_has_changed() {
        let chunk = |ordinal: u32, text: &str| Chunk {
            id: ChunkId {
                tenant: TenantId::new("t").expect("an id"),
                article: ArticleId::new("a").expect("an id"),
                ordinal,
            },
            version: 1,
            title: "Delivery".into(),
            text: text.into(),
            hash: ContentHash::of("Delivery", text),
            vector: Arc::new([]),
            since: 0,
        };
        let before = [chunk(0, "We deliver\nfast."), chunk(1, "Ask us!")];
        let check = |body: &str, expected: Option<&[&str]>| {
            let texts = cut_alike(&before, "Delivery", body);
            assert_eq!(
                texts.as_deref(),
                expected.map(|texts| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>()).as_deref(),
                "{body:?}"
            );
        };
        check("We deliver\nfast.\n\nAsk us!", Some(&["We deliver\nfast.", "Ask us!"]));
        check("  WE  DELIVER fast.\nAsk  us!\n", Some(&["WE  DELIVER fast.", "Ask  us!"]));
        check("Wedeliver fast. Ask us!", None);
        check("We deliver slow. Ask us!", None);
        check("We deliver fast.", None);
        check("We deliver fast. Ask us! Now.", None);
        check("", None);
        assert_eq!(cut_alike(&before, "Other", "We deliver\nfast.\n\nAsk us!"), None);
        assert_eq!(cut_alike(&[], "Delivery", ""), None);
    }
}
