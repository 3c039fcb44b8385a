//! Audits and customers' judgements: what the workers share of them, and one worker's part in them.
//!
//! A worker asks the hits that it chose again and records what comes of it. What that says of an entry is told to all
//! workers, because only the one that has the entry in its shard can act on it: after one disagreement the entry is no longer
//! served to similar questions, nor loaded after a restart; after two it is thrown away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};
use turnflow_models::Evidence;
use turnflow_operators::audit::{AuditStats, Audits, DISAGREEMENTS_MAX, Finding, Tested};
use turnflow_operators::bound::{BoundLimits, BoundStats, SharedBound};
use turnflow_operators::message::{Purpose, QuestionKey};
use turnflow_operators::validity::keeper::Proposal;
use turnflow_state::{CacheEntry, CacheLevel, TurnKey};

use crate::shared::Shared;
use crate::validity::Driver;
use crate::{Pipeline, PipelineError};

/// Judgements of answers that are not cached yet, or never will be, that a worker remembers.
const EARLY_MAX: usize = 1_024;

/// What the workers are told of an entry.
#[derive(Clone, Debug)]
enum Told {
    /// What was found out about it.
    Tested(Tested),
    /// What a customer says of the answer that a turn made, which may be an entry since.
    Judged { origin: TurnKey, is_good: bool },
}

/// What all workers share of audits.
pub(crate) struct SharedAudits {
    pub(crate) bound: SharedBound,
    /// For each worker, what was found out about entries. Bounded by the audits under way and the judgements on their way in.
    told: Vec<(Sender<Told>, Receiver<Told>)>,
    /// For each worker, audits that wait or are under way.
    pending: Vec<AtomicUsize>,
    /// Counts those who wait for audits to end, and for each worker, how many of them it has heard of.
    rounds: AtomicU64,
    heard: Vec<AtomicU64>,
    stats: Vec<Mutex<AuditStats>>,
}

impl SharedAudits {
    pub(crate) fn new(workers: usize, limits: BoundLimits) -> Self {
        Self {
            bound: SharedBound::new(limits),
            told: (0..workers).map(|_| unbounded()).collect(),
            pending: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            rounds: AtomicU64::new(0),
            heard: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            stats: (0..workers).map(|_| Mutex::default()).collect(),
        }
    }

    /// Tells all workers; they are woken by the caller.
    fn tell(&self, told: &Told) {
        for (sender, _) in &self.told {
            // The receivers live here, so sending cannot fail.
            let _ = sender.send(told.clone());
        }
    }

    pub(crate) fn stats(&self) -> (AuditStats, BoundStats) {
        let mut sum = AuditStats::default();
        self.stats.iter().for_each(|stats| sum.add(*stats.lock().unwrap_or_else(PoisonError::into_inner)));
        (sum, self.bound.lock().stats())
    }
}

impl Shared {
    fn found(&self, question: &QuestionKey, (tenant, tested, sample): Finding) {
        tracing::debug!(question = %question.text, entry = tested.entry.0, agreed = ?tested.agreed, "audited");
        if let Some(sample) = sample {
            self.audits.bound.lock().record(&tenant, sample);
        }
        self.audits.tell(&Told::Tested(tested));
        self.wake();
    }

    /// Waits until the audits of hits that were served before have ended, or were let go; ends when the workers do.
    async fn audited(&self) {
        self.heard_and(|audits| audits.pending.iter().all(|pending| pending.load(Ordering::Acquire) == 0)).await;
        // What the last of them found out is acted on by then.
        self.heard_and(|_| true).await;
    }

    /// Waits until every worker has heard of everything that happened before, and until something holds.
    async fn heard_and(&self, holds: impl Fn(&SharedAudits) -> bool) {
        let round = self.audits.rounds.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        self.until(|| {
            self.audits.heard.iter().all(|heard| heard.load(Ordering::Acquire) >= round) && holds(&self.audits)
        })
        .await;
    }
}

/// One worker's part.
#[derive(Debug)]
pub(crate) struct Auditor {
    /// None when nothing is audited; customers judge all the same.
    audits: Option<Audits>,
    /// What customers said of answers that are not here, oldest first: an answer is heard before it is cached.
    early: VecDeque<(TurnKey, bool)>,
    barred: u64,
    thrown_away: u64,
}

impl Auditor {
    pub(crate) fn new(audits: Option<Audits>) -> Self {
        Self { audits, early: VecDeque::new(), barred: 0, thrown_away: 0 }
    }
}

impl Driver {
    /// Acts on what was found out about entries; gives the round of those who wait that this hears of.
    pub(crate) fn hear(&mut self) -> u64 {
        let shared = self.parts.shared.clone();
        let round = shared.audits.rounds.load(Ordering::Acquire);
        for told in shared.audits.told[self.worker].1.try_iter() {
            match told {
                Told::Tested(tested) => self.act_on(tested),
                Told::Judged { origin, is_good } => {
                    let entry = self.parts.shard.borrow().made_by(&origin);
                    match entry {
                        Some(entry) => self.act_on(Tested { entry, agreed: Some(is_good) }),
                        None => self.auditor.early.push_back((origin, is_good)),
                    }
                }
            }
        }
        let too_many = self.auditor.early.len().saturating_sub(EARLY_MAX);
        self.auditor.early.drain(..too_many);
        round
    }

    /// Acts on what was said of an answer before it was cached.
    pub(crate) fn kept(&mut self, entry: &CacheEntry) {
        let place = self.auditor.early.iter().position(|(origin, _)| *origin == entry.origin);
        if let Some((_, is_good)) = place.and_then(|place| self.auditor.early.remove(place)) {
            self.act_on(Tested { entry: entry.id, agreed: Some(is_good) });
        }
    }

    /// Records what was answered in full, and asks what is next. After everything that answers anew: what waits for that to
    /// end is asked at once when it has.
    pub(crate) fn audit(&mut self, round: u64) {
        let shared = self.parts.shared.clone();
        let Some(audits) = &mut self.auditor.audits else { return self.publish_audits(round) };
        while let Some(suspect) = self.parts.boxes.suspects.take() {
            audits.want(suspect);
        }
        while let Some(resolution) = self.parts.boxes.audited.take() {
            if let Some(finding) = audits.answered(&resolution) {
                shared.found(&resolution.key, finding);
            }
        }
        // What is answered anew goes first, and those that wait when the entrances are closed are dropped.
        let may_ask = self.refresh.as_ref().is_none_or(|refresh| refresh.pending() == 0);
        while may_ask
            && !shared.closed.load(Ordering::Acquire)
            && let Some(ask) = audits.start()
        {
            if self.parts.background.send(ask).is_err() {
                // There is room for as many as may be under way, so this is a defect; nobody waits for it.
                tracing::error!("a hit that was to be answered in full found no place");
            }
        }
        self.publish_audits(round);
    }

    /// Compares an answer that is put forward with the hit that was not served to its turn.
    pub(crate) fn overhear(&mut self, proposal: &Proposal) {
        let of_turn = proposal.resolution.as_ref().filter(|resolution| resolution.purpose == Purpose::Turn);
        let Some((audits, resolution)) = self.auditor.audits.as_mut().zip(of_turn) else { return };
        if let Some(finding) = audits.overhear(resolution) {
            self.parts.shared.found(&resolution.key, finding);
        }
    }

    fn act_on(&mut self, tested: Tested) {
        let Some(record) = self.parts.shard.borrow_mut().tested(tested) else { return };
        if tested.agreed != Some(false) {
            return;
        }
        if record.disagreed < DISAGREEMENTS_MAX {
            self.auditor.barred += 1;
            // Nothing is known of entries after a restart, so this one is not to be there.
            self.store(&[], vec![tested.entry]);
        } else {
            self.auditor.thrown_away += 1;
            self.setup.keeper.borrow_mut().throw_away(tested.entry);
        }
    }

    fn publish_audits(&self, round: u64) {
        let Auditor { audits, barred, thrown_away, .. } = &self.auditor;
        let (pending, stats) =
            audits.as_ref().map_or_else(Default::default, |audits| (audits.pending(), audits.stats()));
        let shared = &self.parts.shared;
        let stats = AuditStats { barred: *barred, thrown_away: *thrown_away, ..stats };
        // Before anybody hears that nothing is left.
        *shared.audits.stats[self.worker].lock().unwrap_or_else(PoisonError::into_inner) = stats;
        let before = shared.audits.pending[self.worker].swap(pending, Ordering::AcqRel);
        // After those that were chosen before the round began are counted.
        let heard = shared.audits.heard[self.worker].swap(round, Ordering::AcqRel);
        if before > pending || heard < round {
            shared.progress.notify_waiters();
        }
    }
}

/// What a customer's judgement was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// There is no such turn, or it has not ended.
    Unknown,
    /// The turn neither was a hit nor could become one for others, so it says nothing of the caches.
    NoHit,
    /// The turn was judged before.
    Repeated,
    /// It counts as evidence.
    Counted,
}

impl Pipeline {
    /// Takes a customer's judgement of a turn. It counts as evidence for the entry that was served or that the turn made, and
    /// where the question was a similar one, for the tenant's bound. Once for each turn, as far as is remembered.
    ///
    /// # Errors
    /// [`PipelineError`] when the turn cannot be read, or the pipeline is shutting down.
    pub async fn feedback(&self, turn: TurnKey, is_good: bool) -> Result<Feedback, PipelineError> {
        let _gate = self.0.gate().await?;
        let store = self.0.parts.store.clone();
        let key = turn.clone();
        let found = match tokio::task::spawn_blocking(move || store.turn(&key)).await {
            Ok(found) => found?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let Some(record) = found else { return Ok(Feedback::Unknown) };
        let verdict = record.completion.verdict;
        let told = match (verdict.entry, verdict.level) {
            (Some(entry), level) if level.is_hit() => Told::Tested(Tested { entry, agreed: Some(is_good) }),
            (_, CacheLevel::Miss) => Told::Judged { origin: turn.clone(), is_good },
            _ => return Ok(Feedback::NoHit),
        };
        let similar = verdict.evidence.map(|evidence| Evidence::of(evidence.same_article));
        let shared = &self.0.validity;
        if !shared.audits.bound.lock().judge(&turn, similar, is_good) {
            return Ok(Feedback::Repeated);
        }
        shared.audits.tell(&told);
        // The worker that has the entry has acted on it when all have heard of it.
        shared.heard_and(|_| true).await;
        Ok(Feedback::Counted)
    }

    /// Waits until the audits of hits that were served before have ended, or were let go. Cancel-safe.
    pub async fn audited(&self) {
        self.0.validity.audited().await;
    }
}
