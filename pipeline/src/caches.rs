//! What is cached, for those who run a server: the answers of a tenant with where they come from, and a flush.
//!
//! A flush is a change of the knowledge base that changes no article: it takes an epoch, every worker throws away what is meant
//! before the dataflow passes it, and it is acknowledged after that. So it holds for answers that were being written meanwhile,
//! for turns that wait for one, and, since the deletions are on disk by then, after a crash.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;
use turnflow_operators::selection::Selection;
use turnflow_operators::shard::{Remembered, Shard};
use turnflow_state::{Answer, ArticleId, EntryId, KnowledgeChange, StateError, StoreBatch, TurnKey};

use crate::PipelineError;
use crate::knowledge::blocking;
use crate::pipeline::Running;
use crate::shared::{Change, ChangeKind, Shared};
use crate::validity::Driver;

/// Most cached answers that one look shows.
pub const LISTED_MAX: usize = 1_000;

/// A cached answer.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedAnswer {
    /// The entry.
    pub id: EntryId,
    /// The question as it was asked.
    pub question: String,
    /// The answer, with its sources.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// Whether the answer was made anew since, after a change of the knowledge base.
    pub refreshed: bool,
    /// When that turn was said, in milliseconds since 1970.
    pub created_ms: u64,
    /// How often it was served, and what counts as that of the answer that it replaced.
    pub hits: u32,
    /// Audits and judgements of customers.
    pub audits: u32,
    /// Those of them that agreed.
    pub agreed: u32,
    /// Those that disagreed.
    pub disagreed: u32,
    /// Whether similar questions get it as well.
    pub shared: bool,
    /// The articles that it rests on, those whose chunks were retrieved for it, best first.
    pub rests_on: Vec<ArticleId>,
    /// The knowledge base's epoch that was read for it.
    pub read_epoch: u64,
}

impl CachedAnswer {
    fn of(entry: &Remembered, shard: &Shard) -> Self {
        let mut rests_on: Vec<ArticleId> = Vec::new();
        for chunk in &entry.basis.support.chunks {
            if !rests_on.contains(&chunk.id.article) {
                rests_on.push(chunk.id.article.clone());
            }
        }
        Self {
            id: entry.id,
            question: entry.question.clone(),
            answer: entry.answer.clone(),
            origin: entry.origin.clone(),
            refreshed: entry.refreshed,
            created_ms: entry.created_ms,
            hits: entry.served,
            audits: entry.record.tried,
            agreed: entry.record.agreed,
            disagreed: entry.record.disagreed,
            shared: shard.is_shared(entry),
            rests_on,
            read_epoch: entry.basis.support.read_epoch,
        }
    }
}

/// Cached answers that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// How many are meant.
    pub matched: usize,
    /// Those that were served most often, newest first among equals.
    pub entries: Vec<CachedAnswer>,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// Cached answers that are gone.
    pub entries: usize,
    /// The knowledge base's epoch that it took.
    pub epoch: u64,
}

/// A handle to the caches of a running pipeline.
#[derive(Clone)]
pub struct Caches(pub(crate) Arc<Running>);

impl Caches {
    /// The cached answers that are meant: how many, and at most `limit` of them, [`LISTED_MAX`] in all. Every worker looks at
    /// all that it has, a few milliseconds for a hundred thousand.
    ///
    /// # Errors
    /// [`PipelineError::ShuttingDown`].
    pub async fn list(&self, selection: Selection, limit: usize) -> Result<Listing, PipelineError> {
        // The workers stay as long as the gate is held.
        let gate = self.0.gate().await?;
        let running = self.0.clone();
        let limit = limit.min(LISTED_MAX);
        blocking(move || {
            let _gate = gate;
            let (reply, replies) = crossbeam_channel::unbounded();
            running.validity.look(&Look { selection: Arc::new(selection), limit, reply });
            let mut listing = Listing::default();
            for found in replies.iter().take(running.validity_workers()) {
                listing.matched += found.matched;
                listing.entries.extend(found.entries);
            }
            listing.entries.sort_by_key(|entry| (Reverse(entry.hits), Reverse(entry.id)));
            listing.entries.truncate(limit);
            Ok(listing)
        })
        .await
    }

    /// Throws away the cached answers that are meant. When it returns, none of them is served any more, not even after a crash, nor
    /// is one that was being written when it was called.
    ///
    /// Not cancel-safe: a flush whose future is dropped may or may not happen.
    ///
    /// # Errors
    /// [`PipelineError`] when the store fails, or the pipeline is shutting down. Then it may have happened in part.
    pub async fn flush(&self, selection: Selection) -> Result<Flushed, PipelineError> {
        let gate = self.0.gate().await?;
        let running = self.0.clone();
        let (acknowledge, acknowledged) = oneshot::channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let epoch = blocking(move || {
            let tenant = selection.tenant.clone();
            let mut acknowledge = Some(acknowledge);
            let epoch = running.parts.knowledge.take_epoch(&mut |epoch| {
                let Some(acknowledge) = acknowledge.take() else { return };
                let change = KnowledgeChange { epoch, added: Vec::new(), removed: Vec::new() };
                let flush = Flush { selection: selection.clone(), epoch, count: counted.clone() };
                let (tenant, kind) = (tenant.clone(), ChangeKind::Flush(Arc::new(flush)));
                running.validity.submit(Change { tenant, change, kind, acknowledge });
            })?;
            // It counts as searchable now.
            running.validity.wake();
            // The workers stay until then.
            acknowledged.blocking_recv().map_err(|_| PipelineError::ShuttingDown)?;
            Ok(epoch)
        })
        .await?;
        self.0.validity.handed_over_and(|| true).await;
        self.written().await?;
        drop(gate);
        Ok(Flushed { entries: count.load(Ordering::Acquire), epoch })
    }

    /// Waits until everything is on disk that was handed over before.
    async fn written(&self) -> Result<(), PipelineError> {
        let committer = self.0.committer.upgrade().ok_or(PipelineError::ShuttingDown)?;
        let (done, written) = oneshot::channel();
        blocking(move || {
            committer.submit(StoreBatch::new(), Box::new(|result| drop(done.send(result))));
            Ok(())
        })
        .await?;
        let lost = |_| StateError::Poisoned { reason: "the committer is gone".to_owned() };
        written.await.map_err(lost)?.map_err(PipelineError::Commit)
    }
}

/// What is to be flushed.
pub(crate) struct Flush {
    selection: Selection,
    /// The knowledge base's epoch that it took.
    epoch: u64,
    /// Cached answers that are gone.
    count: Arc<AtomicUsize>,
}

/// Somebody who wants to see what is cached.
#[derive(Clone)]
pub(crate) struct Look {
    selection: Arc<Selection>,
    limit: usize,
    reply: Sender<Listing>,
}

impl Shared {
    /// Tells all workers what to flush; they have done so before the dataflow passes the epoch that its caller closes next.
    pub(crate) fn tell_flush(&self, flush: &Arc<Flush>) {
        for (sender, _) in &self.flushes {
            // The receivers live here, so sending cannot fail.
            let _ = sender.send(flush.clone());
        }
    }

    /// Asks all workers; as many replies come as there are workers.
    fn look(&self, look: &Look) {
        for (sender, _) in &self.looks {
            let _ = sender.send(look.clone());
        }
        self.wake();
    }
}

impl Driver {
    /// Throws away what this worker was told to.
    pub(crate) fn flush(&mut self) {
        let shared = self.parts.shared.clone();
        for flush in shared.flushes[self.worker].1.try_iter() {
            let count = self.setup.keeper.borrow_mut().flush(&flush.selection, flush.epoch);
            flush.count.fetch_add(count, Ordering::AcqRel);
        }
    }

    /// Shows what is cached to those who want to see it.
    pub(crate) fn show(&self) {
        for Look { selection, limit, reply } in self.parts.shared.looks[self.worker].1.try_iter() {
            let shard = self.parts.shard.borrow();
            let mut meant: Vec<&Remembered> = shard.select(&selection).collect();
            let matched = meant.len();
            let order = |entry: &&Remembered| (Reverse(entry.served), Reverse(entry.id));
            if matched > limit {
                meant.select_nth_unstable_by_key(limit, order);
                meant.truncate(limit);
            }
            let entries = meant.into_iter().map(|entry| CachedAnswer::of(entry, &shard)).collect();
            // Who asked may have gone.
            let _ = reply.send(Listing { matched, entries });
        }
    }
}
