//! Makes edits of the knowledge base, one after another, and asks their probes.
//!
//! The feed says when: it hands over an edit as an [`Order`]. Where it wants to wait, it is told once the edit is
//! acknowledged and its probes are answered; on a schedule it does not, and probes are asked beside the next edit. A
//! probe is a turn of a conversation of its own and leaves no cached answer, so that results are the same without probes.

use std::cell::RefCell;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use turnflow_pipeline::{ArticleDraft, Invalidated, Receipt};
use turnflow_state::{CacheControl, Channel, Completion, ConversationId, TenantId, Turn, TurnError, TurnId};

use super::answers::{Answers, last_event};
use super::changes::Changes;
use super::ledger::Ledger;
use super::log::at_ms;
use super::updates::{Edit, Updates};

/// An edit whose time has come.
pub(super) struct Order<'a> {
    pub(super) edit: &'a Edit,
    /// Completed when the edit is acknowledged, its probes are answered and what it took away is answered anew; none for
    /// a feed that goes on at once.
    pub(super) made: Option<oneshot::Sender<()>>,
}

/// Makes the edits of one replay.
pub(super) struct Editor<'a, A> {
    pub(super) answers: &'a A,
    pub(super) tenant: &'a TenantId,
    pub(super) updates: &'a Updates,
    pub(super) ledger: &'a RefCell<Ledger>,
    pub(super) changes: &'a RefCell<Changes>,
}

/// What became of a probe of the edit at this place.
type Answer = (usize, Result<Box<Completion>, TurnError>);

impl<'a, A: Answers> Editor<'a, A> {
    /// Takes orders until nobody can give any. They come in the order of the edits.
    ///
    /// # Errors
    /// When an edit cannot be made.
    pub(super) async fn run(self, mut orders: mpsc::UnboundedReceiver<Order<'a>>) -> anyhow::Result<()> {
        // Tells the probes of this replay from those of another one on the same store.
        let run = Timestamp::now().as_microsecond();
        let mut probes = JoinSet::new();
        for place in 0.. {
            let order = loop {
                tokio::select! {
                    order = orders.recv() => break order,
                    Some(answer) = probes.join_next() => self.count(answer?),
                }
            };
            let Some(Order { edit, made }) = order else { break };
            self.make(edit).await?;
            if self.updates.probes {
                self.ask(place, edit, run, &mut probes).await?;
            }
            if let Some(made) = made {
                self.hear(&mut probes).await?;
                if self.updates.settle {
                    self.answers.refreshed().await;
                }
                // Who waits is gone when the replay was interrupted.
                let _ignored = made.send(());
            }
        }
        self.hear(&mut probes).await
    }

    async fn make(&self, edit: &Edit) -> anyhow::Result<()> {
        let started = Instant::now();
        let invalidated = self.write(edit.draft.clone()).await.with_context(|| {
            format!("cannot make the edit of {}:{}, article {}", self.updates.file, edit.line, edit.draft.id)
        })?;
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.changes.borrow_mut().acknowledge(edit, took_us, &invalidated, &self.ledger.borrow());
        Ok(())
    }

    async fn write(&self, draft: ArticleDraft) -> anyhow::Result<Vec<Invalidated>> {
        let Receipt { outcomes, invalidated, .. } = self.answers.write(self.tenant, vec![draft]).await?;
        outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(invalidated)
    }

    async fn ask(&self, place: usize, edit: &Edit, run: i64, probes: &mut JoinSet<Answer>) -> anyhow::Result<()> {
        for (number, text) in edit.probes.iter().enumerate() {
            let turn = Turn {
                tenant: self.tenant.clone(),
                conversation: ConversationId::new(format!("probe-{run}-{place}-{number}"))?,
                // No turn of a log has such an id: they are numbers.
                id: TurnId::new("probe")?,
                channel: Channel::Api,
                text: text.clone(),
                at_ms: at_ms(edit.at),
                cache_control: CacheControl::ReadOnly,
            };
            match self.answers.submit(turn).await {
                Ok(stream) => drop(probes.spawn(async move { (place, last_event(stream).await) })),
                Err(_) => self.changes.borrow_mut().probe(place, edit, None),
            }
        }
        Ok(())
    }

    /// Waits until every probe is answered.
    async fn hear(&self, probes: &mut JoinSet<Answer>) -> anyhow::Result<()> {
        while let Some(answer) = probes.join_next().await {
            self.count(answer?);
        }
        Ok(())
    }

    fn count(&self, (place, outcome): Answer) {
        if let Some(edit) = self.updates.edits.get(place) {
            self.changes.borrow_mut().probe(place, edit, outcome.ok().as_deref());
        }
    }
}
