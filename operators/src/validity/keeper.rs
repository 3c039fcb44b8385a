//! What becomes of the claims of one worker: pending until the dataflow has looked at them, then kept, until they fall or
//! have to make room.
//!
//! *Contract*: [`Keeper::fall`] takes effect at once, whatever waits to be taken by [`Keeper::take_effects`]. Every proposal
//! with somebody waiting gives exactly one [`Resolution`]: with the answer when it holds, without when it fell.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use turnflow_state::{CacheEntry, ChunkKey, EntryHistory, EntryId, TenantId};

use super::{ClaimChange, Epoch, Invalidated};
use crate::message::{Basis, Resolution};
use crate::refresh::Fallen;
use crate::selection::Selection;
use crate::shard::{Forgotten, Remembered, Shard};

/// An answer that asks to be served to others.
#[derive(Debug)]
pub struct Proposal {
    /// Whose knowledge base it follows from.
    pub tenant: TenantId,
    /// What it follows from.
    pub basis: Basis,
    /// The entry to keep; None when the answer is only for those who wait for it.
    pub entry: Option<Box<CacheEntry>>,
    /// Whether the entry is in the store already.
    pub stored: bool,
    /// What counts as having become of it before.
    pub history: EntryHistory,
    /// What to tell those who wait, if anybody can.
    pub resolution: Option<Resolution>,
}

/// What the keeper wants done.
#[derive(Debug, Default)]
pub struct Effects {
    /// Questions that were answered, or need another answer.
    pub resolved: Vec<Resolution>,
    /// Entries to be written.
    pub kept: Vec<CacheEntry>,
    /// Claims to be withdrawn from the dataflow, with their support.
    pub withdrawn: Vec<(u64, Arc<[ChunkKey]>)>,
    /// Entries to be deleted.
    pub forgotten: Vec<EntryId>,
    /// Those of them that a change made invalid.
    pub fallen: Vec<Fallen>,
}

/// What a keeper has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeeperStats {
    /// Claims that were found outdated when they were put forward.
    pub late: u64,
    /// Cached answers that a change made invalid.
    pub invalidated: u64,
}

enum Claim {
    Pending { since: Epoch, support: Arc<[ChunkKey]>, proposal: Box<Proposal> },
    Kept(EntryId),
}

/// Flushes that a keeper remembers, for answers that were being written when they came. An answer that takes longer than so many
/// more flushes is kept.
const FLUSHES_REMEMBERED_MAX: usize = 256;

/// Cached answers that are cleared up at once when they have fallen: a fraction of a millisecond.
const CLEARED_AT_ONCE: usize = 64;

/// The claims of one worker.
pub struct Keeper {
    shard: Rc<RefCell<Shard>>,
    claims: HashMap<u64, Claim>,
    /// Pending claims in the order in which they were put forward; some of them may have fallen.
    pending: VecDeque<(Epoch, u64)>,
    next: u64,
    effects: Effects,
    /// What fell and is not cleared up, with its claim, by the epoch at which it fell: falls of one epoch may come behind some of the next.
    fallen: BTreeMap<Epoch, Vec<(u64, Remembered)>>,
    stats: KeeperStats,
    /// What was flushed of late, oldest first, with the knowledge base's epoch that the flush took.
    flushed: VecDeque<(Selection, u64)>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("claims", &self.claims.len()).field("pending", &self.pending.len()).finish()
    }
}

impl Keeper {
    /// A keeper of no claims, over the caches of its worker.
    #[must_use]
    pub fn new(shard: Rc<RefCell<Shard>>) -> Self {
        Self {
            shard,
            claims: HashMap::new(),
            pending: VecDeque::new(),
            next: 0,
            effects: Effects::default(),
            fallen: BTreeMap::new(),
            stats: KeeperStats::default(),
            flushed: VecDeque::new(),
        }
    }

    /// Takes a proposal; gives the claim to be put forward at this epoch.
    pub fn propose(&mut self, proposal: Proposal, epoch: Epoch) -> ClaimChange {
        let claim = self.next;
        self.next += 1;
        let Basis { vector, support, valid_at } = proposal.basis.clone();
        let keys: Arc<[ChunkKey]> = support.chunks.iter().map(turnflow_state::SupportChunk::key).collect();
        let made = ClaimChange::Made {
            claim,
            tenant: proposal.tenant.clone(),
            vector,
            floor: support.floor,
            valid_at,
            support: keys.clone(),
        };
        self.claims.insert(claim, Claim::Pending { since: epoch, support: keys, proposal: Box::new(proposal) });
        self.pending.push_back((epoch, claim));
        made
    }

    /// A claim is invalid from an epoch on; gives the cached answer that this takes away.
    pub fn fall(&mut self, claim: u64, epoch: Epoch) -> Option<Invalidated> {
        // Evicted meanwhile, or told twice.
        match self.claims.remove(&claim)? {
            Claim::Kept(entry) => {
                let fallen = self.shard.borrow_mut().take(entry)?;
                self.stats.invalidated += 1;
                let invalidated = Invalidated { entry, origin: fallen.origin.clone() };
                self.fallen.entry(epoch).or_default().push((claim, fallen));
                Some(invalidated)
            }
            Claim::Pending { since, support, proposal } => {
                let Proposal { entry, stored, resolution, .. } = *proposal;
                self.effects.withdrawn.push((claim, support));
                self.effects.resolved.extend(resolution.map(Resolution::without_answer));
                if stored {
                    self.effects.forgotten.extend(entry.as_ref().map(|entry| entry.id));
                }
                // What was outdated from the start is no loss of the change that outdated it.
                if since == epoch && !stored {
                    self.stats.late += 1;
                    return None;
                }
                let entry = entry?;
                self.stats.invalidated += 1;
                Some(Invalidated { entry: entry.id, origin: entry.origin })
            }
        }
    }

    /// Keeps the pending claims of the epochs that have passed.
    pub fn pass(&mut self, mut has_passed: impl FnMut(&Epoch) -> bool) {
        while let Some((epoch, claim)) = self.pending.front()
            && has_passed(epoch)
        {
            let claim = *claim;
            self.pending.pop_front();
            if let Some(Claim::Pending { support, proposal, .. }) = self.claims.remove(&claim) {
                self.keep(claim, support, *proposal);
            }
        }
    }

    fn keep(&mut self, claim: u64, support: Arc<[ChunkKey]>, proposal: Proposal) {
        let Proposal { basis, entry, stored, history, mut resolution, .. } = proposal;
        // What was made in the background gives way to the answer of a turn.
        let in_background = resolution.as_ref().filter(|resolution| resolution.purpose.is_background());
        if in_background.is_some_and(|resolution| self.shard.borrow().contains(&resolution.key)) {
            self.effects.withdrawn.push((claim, support));
            self.effects.resolved.extend(resolution.map(Resolution::without_answer));
            return;
        }
        match entry {
            None => self.effects.withdrawn.push((claim, support)),
            Some(entry) => {
                let id = entry.id;
                // Kept twice only when it has to be written.
                let unwritten = (!stored).then(|| entry.as_ref().clone());
                let inserted = self.shard.borrow_mut().insert(*entry, claim, basis, support.clone());
                match inserted {
                    Ok(forgotten) => {
                        self.shard.borrow_mut().inherit(id, history);
                        self.claims.insert(claim, Claim::Kept(id));
                        self.effects.kept.extend(unwritten);
                        forgotten.into_iter().for_each(|forgotten| self.forget(forgotten));
                    }
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot remember an answer");
                        self.effects.withdrawn.push((claim, support));
                        self.effects.forgotten.extend(stored.then_some(id));
                    }
                }
            }
        }
        let settled = resolution.as_mut().and_then(|resolution| resolution.result.as_mut());
        if let Some(basis) = settled.and_then(|settled| settled.basis.as_mut()) {
            // Whatever was acknowledged up to now did not touch it.
            basis.valid_at = basis.valid_at.max(self.shard.borrow().valid_at());
        }
        self.effects.resolved.extend(resolution);
    }

    /// Throws a kept entry away, wherever it stands.
    pub fn throw_away(&mut self, entry: EntryId) {
        let forgotten = self.shard.borrow_mut().remove(entry);
        forgotten.into_iter().for_each(|forgotten| self.forget(forgotten));
    }

    /// Throws the answers away that are meant, kept or pending, and those that are still being written: what follows from the
    /// knowledge base as it was before `epoch`. Gives how many cached answers that takes away.
    pub fn flush(&mut self, selection: &Selection, epoch: u64) -> usize {
        let kept: Vec<EntryId> = self.shard.borrow().select(selection).map(|entry| entry.id).collect();
        kept.iter().for_each(|entry| self.throw_away(*entry));
        let is_meant =
            |claim: &Claim| matches!(claim, Claim::Pending { proposal, .. } if selection.has_proposed(proposal));
        let pending: Vec<u64> =
            self.claims.iter().filter(|(_, claim)| is_meant(claim)).map(|(number, _)| *number).collect();
        for claim in pending {
            if let Some(Claim::Pending { support, proposal, .. }) = self.claims.remove(&claim) {
                self.effects.withdrawn.push((claim, support));
                self.refuse(*proposal);
            }
        }
        self.flushed.push_back((selection.clone(), epoch));
        if self.flushed.len() > FLUSHES_REMEMBERED_MAX {
            self.flushed.pop_front();
        }
        kept.len()
    }

    /// Takes a proposal unless it was flushed before it was made; then those who wait for it hear that there is no answer.
    pub fn admit(&mut self, proposal: Proposal) -> Option<Proposal> {
        let is_flushed = |(selection, epoch): &(Selection, u64)| {
            proposal.basis.valid_at < *epoch && selection.has_proposed(&proposal)
        };
        if self.flushed.iter().any(is_flushed) {
            self.refuse(proposal);
            return None;
        }
        Some(proposal)
    }

    fn refuse(&mut self, proposal: Proposal) {
        let Proposal { entry, stored, resolution, .. } = proposal;
        self.effects.resolved.extend(resolution.map(Resolution::without_answer));
        self.effects.forgotten.extend(entry.filter(|_| stored).map(|entry| entry.id));
    }

    fn forget(&mut self, Forgotten { entry, claim, support, .. }: Forgotten) {
        self.claims.remove(&claim);
        self.effects.withdrawn.push((claim, support));
        self.effects.forgotten.push(entry);
    }

    /// Takes what is to be done, including what the caches let go because it was too old. What falls entail comes when their
    /// epoch has passed, because whoever made the change waits for that, and some at a time, because whoever makes the next one
    /// would wait as well.
    pub fn take_effects(&mut self, has_passed: impl Fn(&Epoch) -> bool) -> Effects {
        let expired = self.shard.borrow_mut().take_expired();
        expired.into_iter().for_each(|forgotten| self.forget(forgotten));
        for _ in 0..CLEARED_AT_ONCE {
            let Some(mut first) = self.fallen.first_entry().filter(|first| has_passed(first.key())) else { break };
            let Some((claim, fallen)) = first.get_mut().pop() else { break };
            if first.get().is_empty() {
                first.remove();
            }
            self.shard.borrow_mut().clear_up(&fallen);
            self.effects.withdrawn.push((claim, fallen.support.clone()));
            self.effects.forgotten.push(fallen.id);
            self.effects.fallen.push(Fallen::of(fallen));
        }
        std::mem::take(&mut self.effects)
    }

    /// Cached answers that fell and whose effects are not taken.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.fallen.values().map(Vec::len).sum()
    }

    /// The first epoch at which one of them fell.
    #[must_use]
    pub fn owed_since(&self) -> Option<Epoch> {
        self.fallen.keys().next().copied()
    }

    /// Whether claims wait for the dataflow.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The cached answer behind a claim; None for one that is pending.
    #[must_use]
    pub fn entry_of(&self, claim: u64) -> Option<EntryId> {
        match self.claims.get(&claim)? {
            Claim::Kept(entry) => Some(*entry),
            Claim::Pending { .. } => None,
        }
    }

    /// What it has seen so far.
    #[must_use]
    pub const fn stats(&self) -> KeeperStats {
        self.stats
    }
}
