//! One worker's side of the dataflow "validity": feeds it, advances its epochs, and acts on what has passed.
//!
//! Epochs advance on demand. Whoever has put something in bumps the process's epoch and wakes the workers; every worker
//! adopts it for all its inputs, so the probe can pass what was put in. An idle process sleeps.
//!
//! The order of things that makes the promise:
//! 1. A change of the knowledge base is in the store before it is put in here, and is acknowledged when the probe has
//!    passed its epoch: by then every worker has taken out what it made invalid.
//! 2. An answer is put in with what it follows from, and is not served to anybody else before the probe has passed its
//!    epoch: by then it has met every change that came before it, and every later one will find it.
//! 3. An entry is written to the store when it is kept. When it falls it is out of sight at once, and deleted after the
//!    change that it fell by was acknowledged, some at a time. Behind the deletions that a change entails, when all
//!    workers have handed them over, the change's epoch is written as *validated*. On a restart everything that came
//!    later is looked at again.
//!
//! What fell and was popular is asked again from here, see [`Refresh`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::Sender;
use timely::dataflow::operators::probe::Handle;
use timely::worker::Worker;
use turnflow_operators::audit::{AuditLimits, Audits};
use turnflow_operators::dedupe::Boxes;
use turnflow_operators::message::{Basis, Purpose, QuestionKey};
use turnflow_operators::refresh::{Refresh, RefreshLimits};
use turnflow_operators::shard::Shard;
use turnflow_operators::validity::keeper::{Effects, Keeper, KeeperStats, Proposal};
use turnflow_operators::validity::{Epoch, Inputs, Inquiry, Invalidated, KnowledgeUpdate, Setup, TopK, validity};
use turnflow_state::{
    CacheEntry, ChunkKey, Committer, EntryHistory, EntryId, KnowledgeBase, KnowledgeChange, StoreBatch, TenantId,
};

use crate::admission::Streams;
use crate::auditing::Auditor;
use crate::bridge::Port;
use crate::shared::{Change, ChangeKind, FIRST_EPOCH, Forecast, Question, Shared, ValidityStats};

/// Entries that an index which is being built takes in between two steps of the worker, when there is other work.
const IMPROVED_WHEN_BUSY: usize = 4;
/// The same when there is none; some milliseconds of work, during which a turn that comes has to wait.
const IMPROVED_WHEN_IDLE: usize = 8;

/// Answers that fell and may wait to be cleared up while a change is on its way.
const OWED_MAX: usize = 4_096;

/// Entries of which is written what has become of them, along with a write of others.
const HISTORIES_PER_WRITE: usize = 256;

/// What an earlier run left, for one worker.
#[derive(Default)]
pub(crate) struct Left {
    pub(crate) entries: Vec<(CacheEntry, EntryHistory)>,
    /// Chunks that are there. At worker 0 only, and so is what follows.
    pub(crate) present: Vec<ChunkKey>,
    /// Those of them that the entries may not have met.
    pub(crate) recent: Vec<KnowledgeUpdate>,
}

/// What a driver works with.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: Rc<RefCell<Shard>>,
    pub(crate) boxes: Boxes,
    pub(crate) committer: Arc<Committer>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) knowledge: Arc<KnowledgeBase>,
    /// Where questions enter that are asked in the background.
    pub(crate) background: Port,
    /// The bounds of what is answered anew, and what a tier's tokens cost; None when nothing is.
    pub(crate) refresh: Option<RefreshLimits>,
    /// The bounds of what is answered in full as well; None when nothing is.
    pub(crate) audit: Option<AuditLimits>,
    /// False serves cached answers whatever becomes of the knowledge base.
    pub(crate) exact: bool,
    #[cfg(test)]
    pub(crate) fault: Fault,
    #[cfg(test)]
    pub(crate) store: turnflow_state::Store,
}

/// One worker's driver.
pub(crate) struct Driver {
    pub(crate) parts: Parts,
    pub(crate) worker: usize,
    pub(crate) setup: Setup,
    inputs: Inputs,
    now: Epoch,
    /// Changes that are not acknowledged, in order, with the epoch they were put in at. At worker 0.
    unacknowledged: VecDeque<(Epoch, Change)>,
    /// The knowledge base's epoch of the last change that brought a chunk. At worker 0.
    brought: u64,
    /// What all were told that everybody has seen. At worker 0.
    seen_by_all: u64,
    /// Changes that are acknowledged, and whose deletions may not all be handed over: the epoch they were put in at, and
    /// theirs. At worker 0.
    unvalidated: VecDeque<(Epoch, u64)>,
    /// The knowledge base's epoch that was acknowledged when it was last cleared up.
    cleared_after: u64,
    /// What the keeper had seen when that was last shown.
    shown: KeeperStats,
    /// Questions that are being answered.
    inquiries: VecDeque<(Inquiry, Sender<Vec<Forecast>>)>,
    /// What fell and is to be answered anew.
    pub(crate) refresh: Option<Refresh>,
    /// What was served and is answered in full as well.
    pub(crate) auditor: Auditor,
}

impl Driver {
    /// Puts the dataflow up and takes in what an earlier run left. When it returns, what is still valid of that is cached
    /// at all workers.
    pub(crate) fn put_up(worker: &mut Worker, parts: Parts, topk: TopK, left: Left) -> Self {
        let index = worker.index();
        parts.shared.workers.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(std::thread::current());
        let setup = Setup {
            worker: index as u64,
            keeper: Rc::new(RefCell::new(Keeper::new(parts.shard.clone()))),
            topk: Rc::new(RefCell::new(topk)),
            tally: Rc::default(),
            probe: Handle::new(),
        };
        let mut inputs = Inputs::default();
        worker.dataflow_named::<Epoch, _, _>("validity", |scope| validity(scope, &mut inputs, &setup));
        let acknowledged = parts.shared.acknowledged();
        let refresh = parts.refresh.map(Refresh::new);
        let auditor = Auditor::new(parts.audit.map(Audits::new));
        let mut driver = Self {
            parts,
            worker: index,
            setup,
            inputs,
            now: 0,
            unacknowledged: VecDeque::new(),
            brought: acknowledged,
            seen_by_all: 0,
            unvalidated: VecDeque::new(),
            cleared_after: 0,
            shown: KeeperStats::default(),
            inquiries: VecDeque::new(),
            refresh,
            auditor,
        };
        driver.load(worker, left);
        driver
    }

    fn load(&mut self, worker: &mut Worker, left: Left) {
        left.present.into_iter().for_each(|key| self.inputs.present(key));
        for (entry, history) in left.entries {
            self.propose(of_store(entry, history));
        }
        self.adopt(1);
        left.recent.into_iter().for_each(|update| self.inputs.meet(update));
        self.adopt(FIRST_EPOCH);
        while self.setup.probe.less_than(&FIRST_EPOCH) {
            worker.step_or_park(None);
        }
        // Nobody is told what had become invalid before anybody could ask.
        self.setup.tally.borrow_mut().clear();
        self.turn();
        // What has become of these is kept already.
        self.parts.shard.borrow_mut().take_changed(usize::MAX);
        self.publish_stats();
    }

    /// Does everything that can be done now. `true` when there is more to do, for the dataflow or here.
    pub(crate) fn turn(&mut self) -> bool {
        self.adopt(self.parts.shared.epoch.load(Ordering::Acquire));
        let passed = self.setup.probe.with_frontier(|frontier| frontier.first().copied().unwrap_or(Epoch::MAX));
        let has_questions = self.answer_questions();
        self.show();
        // Before anybody hears of the change that they fell by.
        if self.setup.keeper.borrow().stats() != self.shown {
            self.publish_stats();
        }
        let mut has_new = false;
        if self.worker == 0 {
            self.acknowledge(passed);
            self.validate();
            has_new |= self.forget_seen();
            has_new |= self.take_changes();
        }
        // After the changes were acknowledged: nothing that they made invalid is left in the caches.
        self.parts.shard.borrow_mut().set_valid_at(self.parts.shared.acknowledged());
        let exact = self.parts.exact;
        self.setup.keeper.borrow_mut().pass(|&epoch| !exact || epoch < passed);
        let round = self.hear();
        has_new |= self.act(passed);
        has_new |= self.refresh();
        self.audit(round);
        let handed_over = self.setup.keeper.borrow().owed_since().map_or(passed, |epoch| passed.min(epoch));
        if self.parts.shared.handed_over[self.worker].swap(handed_over, Ordering::AcqRel) != handed_over {
            self.parts.shared.progress.notify_waiters();
        }
        while let Some(proposal) = self.parts.boxes.proposals.take() {
            self.overhear(&proposal);
            self.propose(proposal);
            has_new = true;
        }
        if has_new {
            self.close_epoch();
            self.parts.shard.borrow_mut().improve(IMPROVED_WHEN_BUSY);
            return true;
        }
        let owes = self.setup.keeper.borrow().owed_since().is_some();
        has_questions || owes || self.parts.shard.borrow_mut().improve(IMPROVED_WHEN_IDLE)
    }

    /// Works until nothing waits, then lets go of the dataflow.
    pub(crate) fn finish(mut self, worker: &mut Worker) {
        loop {
            let has_new = self.turn();
            let closed = self.parts.shared.closed.load(Ordering::Acquire);
            let waits = self.setup.keeper.borrow().is_waiting() || !self.unacknowledged.is_empty();
            if closed && !waits && self.parts.shared.changes.1.is_empty() {
                break;
            }
            if has_new {
                worker.step()
            } else {
                worker.step_or_park(None)
            };
        }
        drop(std::mem::take(&mut self.inputs));
        while !self.setup.probe.done() {
            worker.step_or_park(None);
        }
        // What other workers' last changes made fall here.
        loop {
            let Effects { kept, forgotten, .. } = self.setup.keeper.borrow_mut().take_effects(|_| true);
            self.store(&kept, forgotten);
            if self.setup.keeper.borrow().owed_since().is_none() {
                break;
            }
        }
        loop {
            let mut batch = StoreBatch::new();
            self.put_histories(&mut batch);
            if batch.is_empty() {
                break;
            }
            self.write(batch);
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        #[cfg(test)]
        let proposal = self.parts.fault.trusting(proposal, &self.parts.store);
        let Some(proposal) = self.setup.keeper.borrow_mut().admit(proposal) else { return };
        let change = self.setup.keeper.borrow_mut().propose(proposal, self.now);
        if self.parts.exact {
            self.inputs.claim(self.setup.worker, change);
        }
        #[cfg(test)]
        if self.parts.fault == Fault::ServePending {
            self.setup.keeper.borrow_mut().pass(|_| true);
        }
    }

    /// Does what the keeper wants done, now that epochs have passed.
    fn act(&mut self, passed: Epoch) -> bool {
        // Clearing up waits for a change that is on its way, and no change waits for more than a little of it.
        let acknowledged = self.parts.shared.acknowledged();
        let is_awaited = self.parts.shared.submitted.load(Ordering::Acquire) > acknowledged;
        let mut keeper = self.setup.keeper.borrow_mut();
        let can_wait = is_awaited && self.cleared_after == acknowledged && keeper.owed() <= OWED_MAX;
        if !can_wait {
            self.cleared_after = acknowledged;
        }
        let effects = keeper.take_effects(|&epoch| epoch < passed && !can_wait);
        drop(keeper);
        let Effects { resolved, kept, withdrawn, forgotten, fallen } = effects;
        let has_new = self.parts.exact && !withdrawn.is_empty();
        if self.parts.exact {
            for (claim, support) in &withdrawn {
                self.inputs.withdraw(self.setup.worker, *claim, support);
            }
        }
        for resolution in resolved {
            match (resolution.purpose, &mut self.refresh) {
                (Purpose::Refresh, Some(refresh)) => refresh.resolved(&resolution),
                _ => self.parts.boxes.resolved.send(resolution),
            }
        }
        if let Some(refresh) = &mut self.refresh {
            fallen.into_iter().for_each(|fallen| refresh.fell(fallen));
        }
        if !(withdrawn.is_empty() && kept.is_empty()) {
            self.publish_stats();
        }
        self.store(&kept, forgotten);
        // After the entries are written: one that was found wrong is deleted again.
        kept.iter().for_each(|entry| self.kept(entry));
        has_new
    }

    /// Puts forward what was answered anew, and asks what is next.
    fn refresh(&mut self) -> bool {
        let Some(refresh) = &mut self.refresh else { return false };
        let (shared, shard) = (&self.parts.shared, &self.parts.shard);
        let is_cached = |key: &QuestionKey| shard.borrow().contains(key);
        let answered = std::iter::from_fn(|| self.parts.boxes.answered.take());
        let proposals: Vec<_> = answered.filter_map(|answered| refresh.answered(answered, is_cached)).collect();
        // What is asked before searches find the change that it fell by would fall again. Those that wait when the entrances
        // are closed are dropped.
        let is_searchable = self.parts.knowledge.epoch() >= shared.submitted.load(Ordering::Acquire);
        while is_searchable
            && !shared.closed.load(Ordering::Acquire)
            && let Some(ask) = refresh.next(shared.acknowledged(), is_cached)
        {
            if self.parts.background.send(ask).is_err() {
                // There is room for as many as may be under way, so this is a defect; the question is asked by a turn again.
                tracing::error!("a question that was to be answered anew found no place");
            }
        }
        shared.background_epochs[self.worker].store(refresh.oldest_epoch().unwrap_or(u64::MAX), Ordering::Release);
        let (pending, stats) = (refresh.pending(), refresh.stats());
        // Before anybody hears that nothing is left.
        shared.stats[self.worker].lock().unwrap_or_else(PoisonError::into_inner).1 = stats;
        if shared.refreshing[self.worker].swap(pending, Ordering::AcqRel) > pending {
            shared.progress.notify_waiters();
        }
        let has_new = !proposals.is_empty();
        proposals.into_iter().for_each(|proposal| self.propose(proposal));
        has_new
    }

    pub(crate) fn store(&self, kept: &[CacheEntry], forgotten: Vec<EntryId>) {
        let mut batch = StoreBatch::new();
        for entry in kept {
            if let Err(error) = batch.put_entry(entry) {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot write a cached answer");
            }
        }
        forgotten.into_iter().for_each(|entry| batch.delete_entry(entry));
        // No hit is worth a write of its own.
        if !batch.is_empty() {
            self.put_histories(&mut batch);
        }
        self.write(batch);
    }

    fn put_histories(&self, batch: &mut StoreBatch) {
        for (entry, history) in self.parts.shard.borrow_mut().take_changed(HISTORIES_PER_WRITE) {
            if let Err(error) = batch.put_history(entry, history) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot write what became of a cached answer"
                );
            }
        }
    }

    fn write(&self, batch: StoreBatch) {
        if batch.is_empty() {
            return;
        }
        self.parts.committer.submit(
            batch,
            Box::new(|result| {
                if let Err(error) = result {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot write the cached answers");
                }
            }),
        );
        // Waiting for room there parks this thread, and may have used up the token of a wake-up that came meanwhile.
        std::thread::current().unpark();
    }

    fn publish_stats(&mut self) {
        let shard = self.parts.shard.borrow();
        self.shown = self.setup.keeper.borrow().stats();
        let KeeperStats { late, invalidated } = self.shown;
        let stats = ValidityStats {
            entries: shard.len(),
            bytes: shard.bytes(),
            recent_chunks: self.setup.topk.borrow().window(),
            late,
            invalidated,
        };
        self.parts.shared.stats[self.worker].lock().unwrap_or_else(PoisonError::into_inner).0 = stats;
    }

    /// Puts in the changes that wait, each at an epoch of its own, so that what it made invalid can be told apart.
    fn take_changes(&mut self) -> bool {
        let mut has_new = false;
        while let Ok(change) = self.parts.shared.changes.1.try_recv() {
            if has_new {
                self.close_epoch();
            }
            has_new = true;
            #[cfg(test)]
            if self.parts.fault == Fault::AcknowledgeEarly {
                self.acknowledge_early(change);
                continue;
            }
            if let ChangeKind::Flush(flush) = &change.kind {
                self.parts.shared.tell_flush(flush);
                // A worker may have come to a later epoch before it was told: the flush belongs to one that none has come to yet.
                self.adopt(self.parts.shared.epoch.load(Ordering::Acquire));
            } else if self.parts.exact {
                self.put_in(&change.tenant, &change.change);
            }
            self.unacknowledged.push_back((self.now, change));
        }
        has_new
    }

    fn put_in(&mut self, tenant: &TenantId, change: &KnowledgeChange) {
        for &key in &change.removed {
            self.inputs.knowledge(KnowledgeUpdate::Removed { tenant: tenant.clone(), key });
        }
        for (key, vector) in &change.added {
            let (tenant, vector) = (tenant.clone(), vector.clone());
            self.inputs.knowledge(KnowledgeUpdate::Added { tenant, key: *key, came: change.epoch, vector });
            self.brought = change.epoch;
        }
    }

    /// Acknowledges the changes whose epochs have passed and that searches find.
    fn acknowledge(&mut self, passed: Epoch) {
        let searched = self.parts.knowledge.epoch();
        while let Some((epoch, change)) = self.unacknowledged.front()
            && (*epoch < passed || !self.parts.exact && matches!(change.kind, ChangeKind::Articles(_)))
            && change.change.epoch <= searched
            && let Some((epoch, change)) = self.unacknowledged.pop_front()
        {
            // What fell at an earlier epoch fell by an earlier change, which was told.
            let tallied = std::mem::take(&mut *self.setup.tally.borrow_mut());
            let (due, later): (Vec<_>, Vec<_>) = tallied.into_iter().partition(|(fell, _)| *fell <= epoch);
            *self.setup.tally.borrow_mut() = later;
            self.parts.shared.acknowledged.store(change.change.epoch, Ordering::Release);
            self.unvalidated.push_back((epoch, change.change.epoch));
            tell(&self.parts.shared, change, due.into_iter().map(|(_, invalidated)| invalidated).collect());
        }
    }

    /// Writes the epoch of the last change whose deletions all workers have handed over. Behind them, because what is
    /// handed over is written in order.
    fn validate(&mut self) {
        let handed_over = self.parts.shared.handed_over.iter().map(|epoch| epoch.load(Ordering::Acquire)).min();
        let mut validated = None;
        while let Some(&(epoch, of_change)) = self.unvalidated.front()
            && handed_over.is_some_and(|handed_over| epoch < handed_over)
        {
            self.unvalidated.pop_front();
            validated = Some(of_change);
        }
        // Without validity nothing was compared with anything.
        if let Some(validated) = validated.filter(|_| self.parts.exact) {
            let mut batch = StoreBatch::new();
            batch.put_validated_epoch(validated);
            self.write(batch);
        }
    }

    #[cfg(test)]
    fn acknowledge_early(&mut self, change: Change) {
        let (tenant, outdating) = (change.tenant.clone(), change.change.clone());
        self.parts.shared.acknowledged.store(change.change.epoch, Ordering::Release);
        tell(&self.parts.shared, change, Vec::new());
        // Wrong at any speed; this makes sure that somebody can be quick enough to see it.
        std::thread::sleep(std::time::Duration::from_millis(5));
        self.put_in(&tenant, &outdating);
    }

    /// Tells all which chunks everybody has seen, when that is news and there are such chunks.
    fn forget_seen(&mut self) -> bool {
        if self.brought <= self.seen_by_all {
            return false;
        }
        let acknowledged = self.parts.shared.acknowledged();
        let in_background = self.parts.shared.background_epochs.iter().map(|oldest| oldest.load(Ordering::Acquire));
        let read = in_background.chain(self.parts.streams.oldest_epoch());
        let seen = read.fold(acknowledged, u64::min);
        if seen <= self.seen_by_all {
            return false;
        }
        // A turn that has ended may have put an answer forward at an epoch that this worker has not adopted yet.
        self.adopt(self.parts.shared.epoch.load(Ordering::Acquire));
        self.inputs.knowledge(KnowledgeUpdate::SeenByAll { epoch: seen });
        self.seen_by_all = seen;
        true
    }

    /// Goes on with the questions for a bounded time; `true` when there are more.
    fn answer_questions(&mut self) -> bool {
        let topk = self.setup.topk.borrow();
        for Question { tenant, change, reply } in self.parts.shared.questions[self.worker].1.try_iter() {
            self.inquiries.push_back((topk.inquiry(tenant, &change.removed, &change.added), reply));
        }
        let Some((inquiry, _)) = self.inquiries.front_mut() else { return false };
        if topk.inquire(inquiry)
            && let Some((inquiry, reply)) = self.inquiries.pop_front()
        {
            let (keeper, shard) = (self.setup.keeper.borrow(), self.parts.shard.borrow());
            let forecasts = inquiry.into_falls().into_iter().filter_map(|(claim, fall)| {
                let entry = shard.get(keeper.entry_of(claim)?)?;
                Some(Forecast { entry: entry.id, question: entry.question.clone(), fall })
            });
            // Who asked may have gone.
            let _ = reply.send(forecasts.collect());
        }
        !self.inquiries.is_empty()
    }

    /// Ends the current epoch, for all workers.
    fn close_epoch(&mut self) {
        let next = self.now + 1;
        if self.parts.shared.epoch.fetch_max(next, Ordering::AcqRel) < next {
            self.parts.shared.wake();
        }
        self.adopt(self.parts.shared.epoch.load(Ordering::Acquire));
    }

    fn adopt(&mut self, epoch: Epoch) {
        if epoch > self.now {
            // The probe passes no epoch at which there was a flush before every worker has come here.
            self.flush();
            self.now = epoch;
            self.inputs.advance_to(epoch);
        }
    }
}

fn tell(shared: &Shared, change: Change, invalidated: Vec<Invalidated>) {
    let Change { kind, acknowledge, .. } = change;
    // Nobody may be watching, and who wrote may have gone.
    if let ChangeKind::Articles(mut event) = kind {
        event.invalidated = invalidated.len();
        let _ = shared.watchers.send(Arc::new(event));
    }
    let _ = acknowledge.send(invalidated);
}

/// What an earlier run cached.
fn of_store(entry: CacheEntry, history: EntryHistory) -> Proposal {
    let basis = Basis {
        vector: entry.vector.clone().unwrap_or_default(),
        support: entry.support.clone(),
        valid_at: entry.support.read_epoch,
    };
    let tenant = entry.origin.tenant.clone();
    Proposal { tenant, basis, entry: Some(Box::new(entry)), stored: true, history, resolution: None }
}

/// Wrong schemes, to show that the tests would notice them.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// A change is acknowledged when it is put in.
    AcknowledgeEarly,
    /// An answer is served before the dataflow has looked at it.
    ServePending,
    /// An answer counts as made from the knowledge base of the moment in which it is put forward.
    TrustLate,
}

#[cfg(test)]
impl Fault {
    fn trusting(self, mut proposal: Proposal, store: &turnflow_state::Store) -> Proposal {
        if self == Self::TrustLate {
            let mut support = proposal.basis.support.as_ref().clone();
            support.chunks.retain(|chunk| {
                let stored = store.chunk(&chunk.id).expect("a store that can be read");
                stored.is_some_and(|stored| stored.hash == chunk.hash)
            });
            proposal.basis.support = Arc::new(support);
            proposal.basis.valid_at = u64::MAX;
        }
        proposal
    }
}
