//! Refresh: which cached answers that fell are made anew in the background, and when.
//!
//! An edit makes answers invalid, and the popular ones would be asked for again soon. Their questions queue here, at the
//! worker of their shard, and are asked again as turns that nobody waits for. What comes back is put forward as a claim
//! like every other answer, so it is served only when it follows from the knowledge base as it is by then.
//!
//! Contract: of each question at most one is queued or under way. The queue is bounded and lets go of the least popular
//! first; so many are under way at most. An answer that falls while it is made is made again, a bounded number of times.
//! Where a turn was quicker, its answer stays and the refresh is dropped.
//!
//! An answer that was made anew begins with three quarters of the popularity of the one that fell, so what nobody asks for any more
//! fades after a few edits instead of being kept warm for ever.
//!
//! What it does not do: it serves nothing, and it does not decide what is valid.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_state::{Answer, CacheControl, CacheEntry, Channel, EntryHistory, TurnKey};

use crate::message::{Ask, Purpose, QuestionKey, RequestId, Resolution};
use crate::shard::Remembered;
use crate::validity::keeper::Proposal;

/// The bounds of one worker's refreshes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshLimits {
    /// How often an answer must have been served to be made anew.
    pub served_min: u32,
    /// Questions that may wait.
    pub queue_max: usize,
    /// Questions that may be under way.
    pub in_flight_max: usize,
    /// How often an answer is made that falls each time before it is kept.
    pub tries_max: u32,
}

/// What became of the cached answers that fell and were popular enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshStats {
    /// Questions that wait.
    pub queued: usize,
    /// Questions that are under way.
    pub in_flight: usize,
    /// Answers that were made anew and kept.
    pub refreshed: u64,
    /// Of them, those that were as before.
    pub unchanged: u64,
    /// Questions that were let go: for want of room, because a turn was quicker, because there is no answer any more, or
    /// because it fell too often.
    pub dropped: u64,
    /// Answers that a tier wrote, kept or not.
    pub answers: u64,
    /// Tokens that it read for them.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// What they cost, in millionths of the configured currency.
    pub cost_micros: u64,
}

impl RefreshStats {
    /// Adds another worker's.
    pub fn add(&mut self, other: Self) {
        self.queued += other.queued;
        self.in_flight += other.in_flight;
        self.refreshed += other.refreshed;
        self.unchanged += other.unchanged;
        self.dropped += other.dropped;
        self.answers += other.answers;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cost_micros += other.cost_micros;
    }
}

/// A cached answer that fell: all that it takes to ask again.
#[derive(Clone, Debug)]
pub struct Fallen {
    /// The question as the caches know it.
    pub key: QuestionKey,
    /// As it was asked.
    pub question: String,
    /// Its vector.
    pub vector: Arc<[f32]>,
    /// What was answered.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// Whether the answer had been made anew since.
    pub refreshed: bool,
    /// When that turn was said, in milliseconds since 1970.
    pub created_ms: u64,
    /// How often the answer was served.
    pub served: u32,
}

impl Fallen {
    /// The entry as it falls.
    #[must_use]
    pub fn of(entry: Remembered) -> Self {
        let Remembered { key, question, basis, answer, origin, refreshed, created_ms, served, .. } = entry;
        Self { key, question, vector: basis.vector, answer, origin, refreshed, created_ms, served }
    }

    /// The question, as a turn that nobody waits for.
    fn ask(&self) -> Box<Ask> {
        let TurnKey { tenant, conversation, turn } = self.origin.clone();
        let turn = turnflow_state::Turn {
            tenant,
            conversation,
            id: turn,
            channel: Channel::Api,
            text: self.question.clone(),
            at_ms: self.created_ms,
            cache_control: CacheControl::Default,
        };
        let mut ask = Ask::new(NOBODY, turn, self.key.scope, 0);
        ask.purpose = Purpose::Refresh;
        ask.vector = Some(self.vector.clone());
        Box::new(ask)
    }
}

/// No stream waits, and no look-up is made.
const NOBODY: RequestId = RequestId { worker: 0, number: 0 };

/// A question that is to be answered anew.
#[derive(Debug)]
struct Wanted {
    fallen: Fallen,
    tries: u32,
    /// While it is under way: an epoch of the knowledge base that is not later than the one it reads.
    since: u64,
}

/// Most popular first, then as they came.
type Place = (Reverse<u32>, u64);

/// The core.
#[derive(Debug)]
pub struct Refresh {
    limits: RefreshLimits,
    queue: BTreeMap<Place, Wanted>,
    places: HashMap<QuestionKey, Place>,
    under_way: HashMap<QuestionKey, Wanted>,
    arrivals: u64,
    stats: RefreshStats,
}

impl Refresh {
    /// A core that knows of no question.
    ///
    /// # Panics
    /// When nothing could ever be under way.
    #[must_use]
    pub fn new(limits: RefreshLimits) -> Self {
        assert!(limits.in_flight_max > 0 && limits.tries_max > 0, "a refresh needs a place and a try");
        Self {
            limits,
            queue: BTreeMap::new(),
            places: HashMap::new(),
            under_way: HashMap::new(),
            arrivals: 0,
            stats: RefreshStats::default(),
        }
    }

    /// Takes a cached answer that fell.
    pub fn fell(&mut self, fallen: Fallen) {
        if fallen.served < self.limits.served_min {
            return;
        }
        match self.under_way.get_mut(&fallen.key) {
            // What is being made meets the change as well, and is made again should it fall by it.
            Some(wanted) => {
                wanted.fallen.served = wanted.fallen.served.max(fallen.served);
                wanted.tries = 0;
            }
            None => self.enqueue(Wanted { fallen, tries: 0, since: 0 }),
        }
    }

    fn enqueue(&mut self, mut wanted: Wanted) {
        if let Some(before) = self.places.get(&wanted.fallen.key).and_then(|place| self.queue.remove(place)) {
            wanted.fallen.served = wanted.fallen.served.max(before.fallen.served);
        }
        let place = (Reverse(wanted.fallen.served), self.arrivals);
        self.arrivals += 1;
        self.places.insert(wanted.fallen.key.clone(), place);
        self.queue.insert(place, wanted);
        if self.queue.len() > self.limits.queue_max
            && let Some((_, least)) = self.queue.pop_last()
        {
            self.places.remove(&least.fallen.key);
            self.stats.dropped += 1;
        }
    }

    /// The next question to be asked, if there is one and a place for it. `acknowledged` is the epoch that the knowledge
    /// base has reached; `is_cached` tells whether a question has a valid answer again.
    pub fn next(&mut self, acknowledged: u64, is_cached: impl Fn(&QuestionKey) -> bool) -> Option<Box<Ask>> {
        while self.under_way.len() < self.limits.in_flight_max {
            let (_, mut wanted) = self.queue.pop_first()?;
            self.places.remove(&wanted.fallen.key);
            if is_cached(&wanted.fallen.key) {
                self.stats.dropped += 1;
                continue;
            }
            let ask = wanted.fallen.ask();
            wanted.since = acknowledged;
            self.under_way.insert(wanted.fallen.key.clone(), wanted);
            return Some(ask);
        }
        None
    }

    /// A question that was asked has an answer, or none; gives the claim to be put forward.
    pub fn answered(
        &mut self,
        mut resolution: Resolution,
        is_cached: impl Fn(&QuestionKey) -> bool,
    ) -> Option<Proposal> {
        let wanted = self.under_way.get(&resolution.key)?;
        let settled = resolution.result.as_mut();
        if let Some(settled) = &settled {
            let usage = settled.answer.usage;
            self.stats.answers += 1;
            self.stats.input_tokens += u64::from(usage.input_tokens);
            self.stats.output_tokens += u64::from(usage.output_tokens);
            self.stats.cost_micros += settled.cost_micros;
        }
        let made = settled.and_then(|settled| Some((settled.basis.clone()?, settled.entry.take()?)));
        // An answer that is not found any more, or in another article only, is for turns to miss: the question may have lost
        // its answer, and what is next to it is no reason to keep it warm.
        let found = made.filter(|(_, entry)| keeps_its_article(&wanted.fallen.answer, &entry.answer));
        let Some((basis, entry)) = found.filter(|_| !is_cached(&resolution.key)) else {
            self.under_way.remove(&resolution.key);
            self.stats.dropped += 1;
            return None;
        };
        // What is as before, versions and all, is the answer of its first turn still.
        let refreshed = wanted.fallen.refreshed || !is_same(&wanted.fallen.answer, &entry.answer);
        Some(Proposal {
            tenant: entry.origin.tenant.clone(),
            basis,
            entry: Some(Box::new(CacheEntry { refreshed, ..*entry })),
            stored: false,
            history: EntryHistory { served: wanted.fallen.served * 3 / 4, ..EntryHistory::default() },
            resolution: Some(resolution),
        })
    }

    /// What became of a claim that was put forward.
    pub fn resolved(&mut self, resolution: &Resolution) {
        let Some(mut wanted) = self.under_way.remove(&resolution.key) else { return };
        match &resolution.result {
            Some(settled) => {
                self.stats.refreshed += 1;
                self.stats.unchanged += u64::from(is_same(&wanted.fallen.answer, &settled.answer));
            }
            None => {
                wanted.tries += 1;
                if wanted.tries < self.limits.tries_max {
                    self.enqueue(wanted);
                } else {
                    self.stats.dropped += 1;
                }
            }
        }
    }

    /// The earliest epoch of the knowledge base that a question under way may have read; None when there is none.
    #[must_use]
    pub fn oldest_epoch(&self) -> Option<u64> {
        self.under_way.values().map(|wanted| wanted.since).min()
    }

    /// Questions that wait or are under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.len() + self.under_way.len()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> RefreshStats {
        RefreshStats { queued: self.queue.len(), in_flight: self.under_way.len(), ..self.stats }
    }
}

/// Whether an answer says the same from the same versions, so that it still is the one of its first turn.
fn is_same(before: &Answer, after: &Answer) -> bool {
    before.text == after.text && before.sources == after.sources
}

/// Whether an answer rests on the article that the one before rested on first, where there was one.
fn keeps_its_article(before: &Answer, after: &Answer) -> bool {
    let [first, now] = [before, after].map(|answer| answer.sources.first().map(|source| &source.article_id));
    first.is_none() || first == now
}
