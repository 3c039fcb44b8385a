//! Audits: which similar hits are answered in full as well, in the background, and what that says of them.
//!
//! A share of the hits, and the first ones of each entry until it is trusted, are asked again as turns that nobody waits
//! for. What comes back is compared with what was served, counted, and thrown away: an audit is told to nobody, written to
//! no conversation and cached nowhere. [`bound`](crate::bound) decides what follows for the policy.
//!
//! *Who.* Whether a hit belongs to the share is decided by a hash of its turn's name and the entry: fair, and the same in
//! every run.
//!
//! *What is served no more.* A hit that only one step less strictness would serve costs nothing to audit: its turn is answered in
//! full anyway, and that answer is what it is compared with.
//!
//! *Agreement.* Both answers rest on the same article first, and the chunk that one cites first is among those that the
//! other cites, by content. Their words may differ. An answer in full that was not found, that cites nothing, or that was
//! made from a knowledge base that has changed since the hit, says nothing.
//!
//! Contract: of each question at most one audit waits or is under way. The queue is bounded and turns away what comes when it
//! is full; so many are under way at most; and they wait behind turns and behind what is answered anew.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_models::Evidence;
use turnflow_state::{Answer, ChunkId, ContentHash, EntryId, Source, Support, TenantId};

use crate::bound::Sample;
use crate::message::{Ask, Candidate, Purpose, QuestionKey, RequestId, Resolution, Settled, owner_hash};
use crate::shell::Mailbox;

/// The bounds of one worker's audits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditLimits {
    /// Share of the similar hits that are audited, from 0 to 1.
    pub share: f64,
    /// Audits after which no more than the share of an entry's hits is audited.
    pub trusted_after: u32,
    /// Audits that may wait.
    pub queue_max: usize,
    /// Audits that may be under way.
    pub in_flight_max: usize,
}

/// What became of the audits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStats {
    /// Audits that wait.
    pub queued: usize,
    /// Audits that are under way.
    pub in_flight: usize,
    /// Hits that were answered in full, and agreed.
    pub agreed: u64,
    /// Hits that were answered in full, and disagreed.
    pub disagreed: u64,
    /// Audits that said nothing.
    pub undecided: u64,
    /// Hits that were served no more, and were compared with what their turns were answered.
    pub overheard: u64,
    /// Audits that were turned away because the queue was full, or because the question was being audited.
    pub dropped: u64,
    /// Tokens that a tier read for them.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// What they cost, in millionths of the configured currency.
    pub cost_micros: u64,
    /// Entries that are no longer served to similar questions.
    pub barred: u64,
    /// Entries that were thrown away.
    pub thrown_away: u64,
}

impl AuditStats {
    /// Adds another worker's.
    pub fn add(&mut self, other: Self) {
        self.queued += other.queued;
        self.in_flight += other.in_flight;
        self.agreed += other.agreed;
        self.disagreed += other.disagreed;
        self.undecided += other.undecided;
        self.overheard += other.overheard;
        self.dropped += other.dropped;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cost_micros += other.cost_micros;
        self.barred += other.barred;
        self.thrown_away += other.thrown_away;
    }

    /// Audits that were made.
    #[must_use]
    pub const fn made(&self) -> u64 {
        self.agreed + self.disagreed + self.undecided
    }
}

/// What is known of one entry from audits and customers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Audits and judgements, with those that said nothing.
    pub tried: u32,
    /// Those that agreed.
    pub agreed: u32,
    /// Those that disagreed.
    pub disagreed: u32,
}

/// What an audit, or a customer, says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tested {
    /// The entry.
    pub entry: EntryId,
    /// Whether its answer was the right one; None when that cannot be told.
    pub agreed: Option<bool>,
}

/// A hit that is to be audited.
#[derive(Clone, Debug)]
pub struct Suspect {
    ask: Box<Ask>,
    entry: EntryId,
    answer: Arc<Answer>,
    support: Arc<Support>,
    /// The epoch of the knowledge base at which it was served.
    valid_at: u64,
    tried: u32,
    is_sampled: bool,
    sample: Sample,
}

/// Whose hit it was, what its audit says of the entry, and of the policy if it says anything.
pub type Finding = (TenantId, Tested, Option<Sample>);

impl Suspect {
    fn compared(self, in_full: Option<&Settled>) -> Finding {
        let agreed = in_full.and_then(|settled| {
            let basis = settled.basis.as_ref().filter(|basis| basis.valid_at == self.valid_at)?;
            agrees((&self.answer, &self.support), (&settled.answer, &basis.support))
        });
        let sample = agreed.map(|agreed| Sample { agreed, ..self.sample });
        (self.ask.turn.tenant, Tested { entry: self.entry, agreed }, sample)
    }
}

/// Chooses the hits that are audited, where they are decided.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// The bounds.
    pub limits: AuditLimits,
    /// Where what was chosen goes.
    pub suspects: Mailbox<Suspect>,
}

impl Sampler {
    /// Considers a hit on a similar question; `served` is false for one that the policy serves no more.
    pub fn consider(&self, ask: &Ask, hit: &Candidate, served: bool) {
        let turn = &ask.turn;
        let is_sampled = is_sampled(&(&turn.tenant, &turn.conversation, &turn.id, hit.entry), self.limits.share);
        let is_wanted = is_sampled || !served || hit.record.tried < self.limits.trusted_after;
        let (true, Some(vector)) = (is_wanted, &ask.vector) else {
            return;
        };
        // A scripted answer rests on nothing that could be compared.
        if hit.answer.sources.is_empty() {
            return;
        }
        let evidence = Evidence::of(hit.evidence.same_article);
        let sample = Sample { evidence, changes: hit.changes[evidence.index()], served, agreed: false };
        let mut audit = Ask::new(NOBODY, turn.clone(), ask.key.scope, 0);
        audit.purpose = Purpose::Audit;
        audit.vector = Some(vector.clone());
        self.suspects.send(Suspect {
            ask: Box::new(audit),
            entry: hit.entry,
            answer: hit.answer.clone(),
            support: hit.basis.support.clone(),
            valid_at: hit.basis.valid_at,
            tried: hit.record.tried,
            is_sampled,
            sample,
        });
    }
}

/// Whether something belongs to a share of all that is like it.
fn is_sampled(name: &impl std::hash::Hash, share: f64) -> bool {
    (owner_hash(name) as f64) < share * u64::MAX as f64
}

/// No stream waits, and no look-up is made.
const NOBODY: RequestId = RequestId { worker: 0, number: 0 };

/// The core.
#[derive(Debug)]
pub struct Audits {
    limits: AuditLimits,
    queue: VecDeque<QuestionKey>,
    /// Those that wait and those that are under way.
    suspects: HashMap<QuestionKey, Suspect>,
    /// Hits that were not served and whose turns are being answered, oldest first. Some of these never are.
    withheld: VecDeque<Suspect>,
    stats: AuditStats,
}

impl Audits {
    /// A core that knows of no hit.
    ///
    /// # Panics
    /// When nothing could ever be under way.
    #[must_use]
    pub fn new(limits: AuditLimits) -> Self {
        assert!(limits.in_flight_max > 0, "an audit needs a place");
        let (queue, suspects, withheld) = (VecDeque::new(), HashMap::new(), VecDeque::new());
        Self { limits, queue, suspects, withheld, stats: AuditStats::default() }
    }

    /// Takes a hit that is to be audited, if there is room.
    pub fn want(&mut self, suspect: Suspect) {
        if !suspect.sample.served {
            self.withheld.push_back(suspect);
            if self.withheld.len() > self.limits.queue_max {
                self.withheld.pop_front();
            }
            return;
        }
        let of_entry = self.suspects.values().filter(|other| other.entry == suspect.entry).count();
        if !suspect.is_sampled && suspect.tried as usize + of_entry >= self.limits.trusted_after as usize {
            return;
        }
        let key = suspect.ask.key.clone();
        if self.queue.len() >= self.limits.queue_max || self.suspects.contains_key(&key) {
            self.stats.dropped += 1;
            return;
        }
        self.suspects.insert(key.clone(), suspect);
        self.queue.push_back(key);
    }

    /// The next question to be asked, if there is one and a place for it.
    pub fn start(&mut self) -> Option<Box<Ask>> {
        if self.in_flight() >= self.limits.in_flight_max {
            return None;
        }
        let key = self.queue.pop_front()?;
        Some(self.suspects.get(&key)?.ask.clone())
    }

    /// A question that was asked has an answer, or none; gives what it says of the entry, and of the policy.
    pub fn answered(&mut self, resolution: &Resolution) -> Option<Finding> {
        let suspect = self.suspects.remove(&resolution.key)?;
        let settled = resolution.result.as_ref();
        if let Some(settled) = settled {
            let usage = settled.answer.usage;
            self.stats.input_tokens += u64::from(usage.input_tokens);
            self.stats.output_tokens += u64::from(usage.output_tokens);
            self.stats.cost_micros += settled.cost_micros;
        }
        let found = suspect.compared(settled);
        match found.1.agreed {
            Some(true) => self.stats.agreed += 1,
            Some(false) => self.stats.disagreed += 1,
            None => self.stats.undecided += 1,
        }
        Some(found)
    }

    /// A turn's question has an answer; gives what that says of the hit that was not served to it, if there was one.
    pub fn overhear(&mut self, resolution: &Resolution) -> Option<Finding> {
        let place = self.withheld.iter().position(|suspect| suspect.ask.key == resolution.key)?;
        let suspect = self.withheld.remove(place)?;
        self.stats.overheard += 1;
        Some(suspect.compared(resolution.result.as_ref()))
    }

    fn in_flight(&self) -> usize {
        self.suspects.len() - self.queue.len()
    }

    /// Audits that wait or are under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.suspects.len()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> AuditStats {
        AuditStats { queued: self.queue.len(), in_flight: self.in_flight(), ..self.stats }
    }
}

/// Disagreements that throw an entry away; one keeps it from similar questions.
pub const DISAGREEMENTS_MAX: u32 = 2;

/// Whether two answers, each with its support, say the same; None when that cannot be told.
#[must_use]
pub fn agrees(served: (&Answer, &Support), in_full: (&Answer, &Support)) -> Option<bool> {
    let (Some(a), Some(b)) = (served.0.sources.first(), in_full.0.sources.first()) else { return None };
    if !in_full.0.grounded || in_full.0.cut_off {
        return None;
    }
    if a.article_id != b.article_id {
        return Some(false);
    }
    let cites = |(answer, support): (&Answer, &Support), first: ContentHash| {
        answer.sources.iter().any(|source| source.article_id == a.article_id && content(source, support) == Some(first))
    };
    let (first_a, first_b) = (content(a, served.1)?, content(b, in_full.1)?);
    Some(cites(in_full, first_a) || cites(served, first_b))
}

/// The content of a cited chunk. Positions and versions may differ where the text does not.
fn content(source: &Source, support: &Support) -> Option<ContentHash> {
    let is_cited = |id: &ChunkId| id.article == source.article_id && id.ordinal == source.chunk;
    support.chunks.iter().find(|chunk| is_cited(&chunk.id)).map(|chunk| chunk.hash)
}
