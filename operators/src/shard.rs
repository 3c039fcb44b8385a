//! What one worker remembers of answered questions: exact by text, similar by vector, bounded by count.
//!
//! A question belongs to the shard of the worker that its key hashes to, so an exact look-up asks one shard; a
//! similarity search asks all. Scopes share nothing: each has an index of its own. When full, the least recently
//! served entry goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use turnflow_state::{Answer, CacheEntry, EntryId, ScopeId, StateError, TurnKey, VectorIndex};

use crate::guard::Mentions;
use crate::message::QuestionKey;

/// An entry as the shard keeps it. Its vector is in the index only.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The entry.
    pub id: EntryId,
    /// The question as it was asked.
    pub question: String,
    /// What the question mentions that a question it answers must mention too.
    pub mentions: Mentions,
    /// The answer.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    key: QuestionKey,
    last_served: u64,
}

/// One worker's part of the caches.
pub struct Shard {
    entries_max: usize,
    entries: HashMap<EntryId, Remembered>,
    by_question: HashMap<QuestionKey, EntryId>,
    by_vector: HashMap<ScopeId, VectorIndex<EntryId>>,
    /// Entries by the tick they were last served at: the first is the next to go.
    by_last_served: BTreeMap<u64, EntryId>,
    tick: u64,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("entries", &self.entries.len()).field("entries_max", &self.entries_max).finish()
    }
}

impl Shard {
    /// An empty shard with room for `entries_max` entries.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        assert!(entries_max > 0, "a cache needs room for an entry");
        Self {
            entries_max,
            entries: HashMap::new(),
            by_question: HashMap::new(),
            by_vector: HashMap::new(),
            by_last_served: BTreeMap::new(),
            tick: 0,
        }
    }

    /// Remembers an answered question; returns what was forgotten for it.
    ///
    /// # Errors
    /// [`StateError::Dimension`] when the vector does not fit the others of its scope; then nothing is remembered.
    pub fn insert(&mut self, entry: CacheEntry) -> Result<Vec<EntryId>, StateError> {
        let key = QuestionKey::new(entry.scope, &entry.question);
        if let Some(vector) = entry.vector {
            self.by_vector
                .entry(entry.scope)
                .or_insert_with(|| VectorIndex::new(Default::default()))
                .insert(entry.id, vector)?;
        }
        let mut forgotten: Vec<EntryId> = self.by_question.get(&key).copied().into_iter().collect();
        while self.entries.len() - forgotten.len() >= self.entries_max {
            let oldest = self.by_last_served.values().find(|id| !forgotten.contains(id)).copied();
            forgotten.extend(oldest);
        }
        for id in &forgotten {
            self.remove(*id);
        }
        self.tick += 1;
        self.by_last_served.insert(self.tick, entry.id);
        self.by_question.insert(key.clone(), entry.id);
        let remembered = Remembered {
            id: entry.id,
            mentions: Mentions::of(&entry.question),
            question: entry.question,
            answer: entry.answer,
            origin: entry.origin,
            key,
            last_served: self.tick,
        };
        self.entries.insert(entry.id, remembered);
        Ok(forgotten)
    }

    /// Forgets an entry; false when it was not there.
    pub fn remove(&mut self, id: EntryId) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        self.by_last_served.remove(&entry.last_served);
        if self.by_question.get(&entry.key) == Some(&id) {
            self.by_question.remove(&entry.key);
        }
        if let Some(index) = self.by_vector.get_mut(&entry.key.scope) {
            index.remove(&id);
            if index.is_empty() {
                self.by_vector.remove(&entry.key.scope);
            }
        }
        true
    }

    /// The answer to exactly this question; marks it as served.
    pub fn exact(&mut self, key: &QuestionKey) -> Option<&Remembered> {
        let id = *self.by_question.get(key)?;
        self.served(id)
    }

    /// The entries of the scope whose questions are nearest to a vector, nearest first, with their cosines.
    #[must_use]
    pub fn nearest(&self, scope: ScopeId, vector: &[f32], k: usize) -> Vec<(&Remembered, f32)> {
        let Some(index) = self.by_vector.get(&scope) else { return Vec::new() };
        match index.search(vector, k) {
            Ok(found) => found.into_iter().filter_map(|(id, cosine)| Some((self.entries.get(&id)?, cosine))).collect(),
            Err(error) => {
                // Entries of a scope come from one encoder, so this is a defect; a miss is the safe answer to it.
                tracing::error!(error = &error as &dyn std::error::Error, "cannot search the semantic cache");
                Vec::new()
            }
        }
    }

    /// Marks an entry as served, which keeps it longer.
    pub fn served(&mut self, id: EntryId) -> Option<&Remembered> {
        let entry = self.entries.get_mut(&id)?;
        self.tick += 1;
        self.by_last_served.remove(&entry.last_served);
        self.by_last_served.insert(self.tick, id);
        entry.last_served = self.tick;
        Some(entry)
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
}
