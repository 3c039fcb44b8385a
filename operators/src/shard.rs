//! What one worker remembers of answered questions: exact by text, similar by vector, bounded by bytes and by age.
//!
//! A question belongs to the shard of the worker that its key hashes to, so an exact look-up asks one shard; a
//! similarity search asks all. Scopes share nothing: each has an index of its own. When a tenant, or all of them, hold
//! more bytes than they may, the tenant's, or everybody's, least recently served entry goes. An entry that is older than
//! its time to live is not served any more.
//!
//! Everything in a shard is valid: what is pending or has fallen is not in it. That is the
//! [keeper's](crate::validity::keeper) part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use turnflow_state::{
    Answer, CacheEntry, ChunkKey, EntryHistory, EntryId, IndexConfig, ScopeId, StateError, TenantId, TurnKey,
    VectorIndex,
};

use crate::audit::{Record, Tested};
use crate::message::{Basis, QuestionKey};
use crate::policy::{Policy, Prepared};
use crate::selection::Selection;

/// Graphs are built in [`Shard::improve`], when there is time: thousands of entries of an earlier run come at once.
const INDEX: IndexConfig = IndexConfig { links_per_change: 0, ..IndexConfig::DEFAULT };

/// An entry as the shard keeps it.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The entry.
    pub id: EntryId,
    /// The question as it was asked.
    pub question: String,
    /// The question as the policy sees it.
    pub prepared: Prepared,
    /// The answer.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// Whether its answer was made anew since.
    pub refreshed: bool,
    /// What it follows from.
    pub basis: Basis,
    /// The question as the caches know it.
    pub key: QuestionKey,
    /// When the turn was said, in milliseconds since 1970.
    pub created_ms: u64,
    /// How often it was served.
    pub served: u32,
    /// What audits and customers said of it.
    pub record: Record,
    pub(crate) support: Arc<[ChunkKey]>,
    claim: u64,
    bytes: usize,
    last_served: u64,
}

/// An entry that is no longer remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The entry.
    pub entry: EntryId,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// The claim it was.
    pub claim: u64,
    /// What it rested on.
    pub support: Arc<[ChunkKey]>,
}

/// The bounds of a shard.
#[derive(Clone, Copy, Debug)]
pub struct ShardLimits {
    /// What all entries may take, in bytes.
    pub bytes_max: usize,
    /// What the entries of one tenant may take, in bytes.
    pub tenant_bytes_max: usize,
    /// How long an entry is served, in milliseconds; for ever when it is None.
    pub ttl_ms: Option<u64>,
    /// Whether similar questions are to be found at all.
    pub similar: bool,
}

/// What entries take, and in which order they were served.
#[derive(Debug, Default)]
struct Usage {
    bytes: usize,
    /// Entries by the tick they were last served at: the first is the next to go. Some may have been taken.
    by_last_served: BTreeMap<u64, EntryId>,
}

/// One worker's part of the caches.
pub struct Shard {
    limits: ShardLimits,
    policy: Arc<Policy>,
    entries: HashMap<EntryId, Remembered>,
    by_question: HashMap<QuestionKey, EntryId>,
    by_vector: HashMap<ScopeId, VectorIndex<EntryId>>,
    all: Usage,
    tenants: HashMap<TenantId, Usage>,
    expired: Vec<EntryId>,
    /// Entries of which more has become since it was last taken to be kept.
    changed: HashSet<EntryId>,
    tick: u64,
    valid_at: u64,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("entries", &self.entries.len()).field("limits", &self.limits).finish()
    }
}

impl Shard {
    /// An empty shard, whose questions a policy will judge.
    #[must_use]
    pub fn new(limits: ShardLimits, policy: Arc<Policy>) -> Self {
        Self {
            limits,
            policy,
            entries: HashMap::new(),
            by_question: HashMap::new(),
            by_vector: HashMap::new(),
            all: Usage::default(),
            tenants: HashMap::new(),
            expired: Vec::new(),
            changed: HashSet::new(),
            tick: 0,
            valid_at: 0,
        }
    }

    /// Remembers an answered question; returns what was forgotten for it, which may be the entry itself when it is larger
    /// than the shard.
    ///
    /// # Errors
    /// [`StateError::Dimension`] when the vector does not fit the others of its scope; then nothing is remembered.
    pub fn insert(
        &mut self,
        entry: CacheEntry,
        claim: u64,
        basis: Basis,
        support: Arc<[ChunkKey]>,
    ) -> Result<Vec<Forgotten>, StateError> {
        let key = QuestionKey::new(entry.scope, &entry.question);
        let weight = entry.weight_bytes();
        // What was not found may be found in other words, and what was cut off may be said in time.
        let is_good = entry.answer.grounded && !entry.answer.cut_off;
        let shared = entry.vector.filter(|_| self.limits.similar && is_good);
        let prepared = self.policy.prepare(&entry.question, shared.as_deref(), entry.about);
        let bytes = weight + prepared.bytes();
        if let Some(vector) = shared {
            let index = self.by_vector.entry(entry.scope).or_insert_with(|| VectorIndex::new(INDEX));
            index.insert(entry.id, vector)?;
        }
        let replaced = self.by_question.get(&key).copied();
        let mut forgotten: Vec<Forgotten> = replaced.and_then(|id| self.remove(id)).into_iter().collect();
        self.tick += 1;
        let tenant = entry.origin.tenant.clone();
        for usage in [&mut self.all, self.tenants.entry(tenant.clone()).or_default()] {
            usage.bytes += bytes;
            usage.by_last_served.insert(self.tick, entry.id);
        }
        self.by_question.insert(key.clone(), entry.id);
        let remembered = Remembered {
            id: entry.id,
            prepared,
            question: entry.question,
            answer: entry.answer,
            origin: entry.origin,
            refreshed: entry.refreshed,
            basis,
            key,
            created_ms: entry.created_ms,
            served: 0,
            record: Record::default(),
            claim,
            support,
            bytes,
            last_served: self.tick,
        };
        self.entries.insert(entry.id, remembered);
        while let Some(oldest) = self.over_limit(&tenant) {
            forgotten.extend(self.remove(oldest));
        }
        Ok(forgotten)
    }

    /// The entry that has to go, if one has.
    fn over_limit(&self, tenant: &TenantId) -> Option<EntryId> {
        let own = self.tenants.get(tenant).filter(|usage| usage.bytes > self.limits.tenant_bytes_max);
        let all = Some(&self.all).filter(|usage| usage.bytes > self.limits.bytes_max);
        // Some may have been taken.
        own.or(all)?.by_last_served.values().find(|id| self.entries.contains_key(id)).copied()
    }

    /// Forgets an entry; None when it was not there.
    pub fn remove(&mut self, id: EntryId) -> Option<Forgotten> {
        let entry = self.take(id)?;
        self.clear_up(&entry);
        let Remembered { origin, claim, support, .. } = entry;
        Some(Forgotten { entry: id, origin, claim, support })
    }

    /// Takes an entry away so that nobody is served it any more, and no more than that, to be fast: it is to be cleared up later. None
    /// when it was not there.
    pub(crate) fn take(&mut self, id: EntryId) -> Option<Remembered> {
        let entry = self.entries.remove(&id)?;
        let tenant = self.tenants.get_mut(&entry.origin.tenant);
        [Some(&mut self.all), tenant].into_iter().flatten().for_each(|usage| usage.bytes -= entry.bytes);
        Some(entry)
    }

    /// Removes what is left of an entry that was taken.
    pub(crate) fn clear_up(&mut self, entry: &Remembered) {
        let Remembered { id, key, origin: TurnKey { tenant, .. }, last_served, .. } = entry;
        self.changed.remove(id);
        self.all.by_last_served.remove(last_served);
        if let Some(usage) = self.tenants.get_mut(tenant) {
            usage.by_last_served.remove(last_served);
            if usage.by_last_served.is_empty() {
                self.tenants.remove(tenant);
            }
        }
        if self.by_question.get(key) == Some(id) {
            self.by_question.remove(key);
        }
        if let Some(index) = self.by_vector.get_mut(&key.scope) {
            index.remove(id);
            if index.is_empty() {
                self.by_vector.remove(&key.scope);
            }
        }
    }

    /// The answer to exactly this question, asked at a time in milliseconds; marks it as served.
    pub fn exact(&mut self, key: &QuestionKey, at_ms: u64) -> Option<&Remembered> {
        let id = *self.by_question.get(key)?;
        if self.is_expired(self.entries.get(&id)?, at_ms) {
            self.expired.push(id);
            return None;
        }
        self.served(id)
    }

    /// The entries of the scope whose questions are nearest to a vector, nearest first, with their cosines; without those
    /// that are too old at a time in milliseconds.
    #[must_use]
    pub fn nearest(&mut self, scope: ScopeId, vector: &[f32], k: usize, at_ms: u64) -> Vec<(&Remembered, f32)> {
        let Some(index) = self.by_vector.get(&scope) else { return Vec::new() };
        let found = index.search(vector, k).unwrap_or_else(|error| {
            // Entries of a scope come from one encoder, so this is a defect; a miss is the safe answer to it.
            tracing::error!(error = &error as &dyn std::error::Error, "cannot search the semantic cache");
            Vec::new()
        });
        let mut near = Vec::with_capacity(found.len());
        for (id, cosine) in found {
            let Some(entry) = self.entries.get(&id) else { continue };
            if self.is_expired(entry, at_ms) {
                self.expired.push(id);
            } else {
                near.push((entry, cosine));
            }
        }
        near
    }

    fn is_expired(&self, entry: &Remembered, at_ms: u64) -> bool {
        self.limits.ttl_ms.is_some_and(|ttl_ms| at_ms >= entry.created_ms.saturating_add(ttl_ms))
    }

    /// Forgets the entries that were found too old.
    pub fn take_expired(&mut self) -> Vec<Forgotten> {
        let expired = std::mem::take(&mut self.expired);
        expired.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Works on what makes the search for similar questions faster, by so many entries; `true` when there is more to do.
    pub fn improve(&mut self, entries: usize) -> bool {
        let mut has_more = false;
        for index in self.by_vector.values_mut() {
            has_more |= index.advance(entries);
        }
        has_more
    }

    /// Marks an entry as served, which keeps it longer and makes it more popular.
    pub fn served(&mut self, id: EntryId) -> Option<&Remembered> {
        let entry = self.entries.get_mut(&id)?;
        self.tick += 1;
        for usage in [Some(&mut self.all), self.tenants.get_mut(&entry.origin.tenant)].into_iter().flatten() {
            usage.by_last_served.remove(&entry.last_served);
            usage.by_last_served.insert(self.tick, id);
        }
        entry.last_served = self.tick;
        entry.served = entry.served.saturating_add(1);
        self.changed.insert(id);
        Some(entry)
    }

    /// The entry that a turn made, if it is here. Looks at all of them.
    #[must_use]
    pub fn made_by(&self, turn: &TurnKey) -> Option<EntryId> {
        self.entries.values().find(|entry| entry.origin == *turn).map(|entry| entry.id)
    }

    /// Notes what an audit or a customer said of an entry; None when it is not here.
    pub fn tested(&mut self, Tested { entry, agreed }: Tested) -> Option<Record> {
        let record = &mut self.entries.get_mut(&entry)?.record;
        self.changed.insert(entry);
        record.tried = record.tried.saturating_add(1);
        match agreed {
            Some(true) => record.agreed = record.agreed.saturating_add(1),
            Some(false) => record.disagreed = record.disagreed.saturating_add(1),
            None => {}
        }
        Some(*record)
    }

    /// Has this count as having become of an entry before.
    pub fn inherit(&mut self, id: EntryId, history: EntryHistory) {
        let Some(entry) = self.entries.get_mut(&id).filter(|_| history != EntryHistory::default()) else { return };
        entry.served = entry.served.saturating_add(history.served);
        entry.record.tried = entry.record.tried.saturating_add(history.tried);
        entry.record.agreed = entry.record.agreed.saturating_add(history.agreed);
        self.changed.insert(id);
    }

    /// What has become of entries, of so many at most, where that has changed since it was last taken; fewer when there are no more. One that was
    /// found wrong is not kept any more, and neither is what has become of it.
    pub fn take_changed(&mut self, max: usize) -> Vec<(EntryId, EntryHistory)> {
        let changed = self.changed.extract_if(|_| true).filter_map(|id| self.entries.get(&id));
        let kept = changed.filter(|entry| entry.record.disagreed == 0).map(|entry| {
            let Record { tried, agreed, .. } = entry.record;
            (entry.id, EntryHistory { served: entry.served, tried, agreed })
        });
        kept.take(max).collect()
    }

    /// The entry of exactly this question, without marking it as served.
    #[must_use]
    pub fn find(&self, key: &QuestionKey) -> Option<&Remembered> {
        self.entries.get(self.by_question.get(key)?)
    }

    /// Whether a question has an answer.
    #[must_use]
    pub fn contains(&self, key: &QuestionKey) -> bool {
        self.find(key).is_some()
    }

    /// An entry, without marking it as served.
    #[must_use]
    pub fn get(&self, id: EntryId) -> Option<&Remembered> {
        self.entries.get(&id)
    }

    /// The entries that are meant, in no order. Looks at all of them.
    pub fn select<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = &'a Remembered> {
        self.entries.values().filter(|entry| selection.has(entry))
    }

    /// Whether an entry may be served to similar questions as well.
    #[must_use]
    pub fn is_shared(&self, entry: &Remembered) -> bool {
        let index = self.by_vector.get(&entry.key.scope);
        entry.record.disagreed == 0 && index.is_some_and(|index| index.contains(&entry.id))
    }

    /// The epoch of the knowledge base up to which everything here is known to be valid.
    #[must_use]
    pub const fn valid_at(&self) -> u64 {
        self.valid_at
    }

    /// Notes that everything here is valid at an epoch of the knowledge base.
    pub fn set_valid_at(&mut self, epoch: u64) {
        self.valid_at = self.valid_at.max(epoch);
    }

    /// What judges the questions.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Entries remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the entries take, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.all.bytes
    }
}
