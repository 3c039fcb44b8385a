//! Which cached answers does a new chunk overtake? The part of validity that no key joins.
//!
//! An answer was made from the chunks that were nearest to its question when it was made. A chunk that came later and
//! scores above their floor would have been among them, so the answer no longer follows from the knowledge base.
//! [`TopK`] holds the questions of all claims of one worker and a *window* of recent chunks, and pairs each with each
//! exactly once: a chunk that comes meets the claims that are there, a claim that comes meets the chunks of the window.
//! The window is what makes late answers safe: an answer that was still being written when a chunk came meets it there.
//!
//! *Contract*: [`TopK::begin`] takes everything that happens at one epoch, and [`TopK::work`] finishes it in pieces. The
//! window may forget a chunk once nobody can come who has not seen it; should a claim come that is older than what was
//! forgotten, it counts as overtaken, so a window that forgets too soon costs answers, never their validity.
//!
//! What it does not do: it does not know when an epoch is complete. That is the operator's part.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use turnflow_state::{ChunkKey, TenantId};

use super::axes::Axes;
use super::rows::{BLOCK, Rival, Row, Rows};
use super::{ClaimChange, KnowledgeUpdate};

/// Pairs of a claim and a chunk, in blocks of 256 claims, that [`TopK::work`] looks at in one go: a fraction of a
/// millisecond.
pub const BLOCKS_PER_PIECE: usize = 128;

/// Everything that happened at one epoch.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// To the claims of this worker.
    pub claims: Vec<ClaimChange>,
    /// To the knowledge base.
    pub knowledge: Vec<KnowledgeUpdate>,
}

/// One tenant's claims and recent chunks.
#[derive(Default)]
struct Partition {
    rows: Rows,
    places: HashMap<u64, usize>,
    /// Recent chunks, in the order in which they came.
    window: VecDeque<Rival>,
    /// Chunks that came up to this epoch are no longer in the window.
    forgotten: u64,
}

/// Chunks of one tenant that have yet to meet its claims.
struct Meeting {
    tenant: TenantId,
    rivals: Vec<Rival>,
    /// The next block of claims.
    at: usize,
}

/// The core.
pub struct TopK {
    axes: Axes,
    window_max: usize,
    partitions: HashMap<TenantId, Partition>,
    tenant_of: HashMap<u64, TenantId>,
    meetings: VecDeque<Meeting>,
    /// Claims that meet the window once the meetings are over.
    arrivals: VecDeque<(TenantId, Row)>,
    seen_by_all: u64,
}

impl TopK {
    /// No claims and no chunks; the window holds at most `window_max` chunks of a tenant.
    ///
    /// # Panics
    /// When the window has no room at all.
    #[must_use]
    pub fn new(axes: Axes, window_max: usize) -> Self {
        assert!(window_max > 0, "a window needs room for a chunk");
        Self {
            axes,
            window_max,
            partitions: HashMap::new(),
            tenant_of: HashMap::new(),
            meetings: VecDeque::new(),
            arrivals: VecDeque::new(),
            seen_by_all: 0,
        }
    }

    /// Takes everything that happened at one epoch; [`TopK::work`] is to be called until it is done.
    pub fn begin(&mut self, happened: Happened) {
        debug_assert!(self.is_done(), "one epoch after the other");
        for change in happened.claims {
            match change {
                ClaimChange::Made { claim, tenant, vector, floor, valid_at, support } => {
                    self.arrivals.push_back((tenant, Row { claim, vector, floor, valid_at, support }));
                }
                ClaimChange::Withdrawn { claim } => self.withdraw(claim),
            }
        }
        let mut meetings: HashMap<TenantId, Vec<Rival>> = HashMap::new();
        let mut removed: Vec<(TenantId, ChunkKey)> = Vec::new();
        for update in happened.knowledge {
            match update {
                KnowledgeUpdate::Removed { tenant, key } => removed.push((tenant, key)),
                KnowledgeUpdate::Added { tenant, key, came, vector } => {
                    meetings.entry(tenant).or_default().push(Rival::new(&self.axes, key, came, vector));
                }
                KnowledgeUpdate::SeenByAll { epoch } => self.seen_by_all = self.seen_by_all.max(epoch),
            }
        }
        for (tenant, key) in removed {
            // Of what comes and goes at one epoch only the difference counts. A chunk comes back as a new one.
            if let Some(partition) = self.partitions.get_mut(&tenant) {
                partition.window.retain(|rival| rival.key != key);
            }
        }
        for (tenant, mut rivals) in meetings {
            rivals.sort_by_key(|rival| rival.came);
            let partition = self.partitions.entry(tenant.clone()).or_default();
            partition.window.extend(rivals.iter().cloned());
            self.meetings.push_back(Meeting { tenant, rivals, at: 0 });
        }
    }

    /// Goes on with the epoch for a bounded time; shows the claims that were overtaken, some of them twice. `true` when
    /// the epoch is done.
    pub fn work(&mut self, overtaken: &mut Vec<u64>) -> bool {
        let mut budget = BLOCKS_PER_PIECE;
        while let Some(meeting) = self.meetings.front_mut() {
            let Some(Partition { rows, .. }) = self.partitions.get(&meeting.tenant) else {
                self.meetings.pop_front();
                continue;
            };
            let blocks = (budget / meeting.rivals.len().max(1)).max(1);
            let end = (meeting.at + blocks).min(rows.blocks());
            rows.beaten(meeting.at..end, &meeting.rivals, &mut |row, rival| {
                if meeting.rivals[rival].came > row.valid_at {
                    overtaken.push(row.claim);
                }
            });
            budget = budget.saturating_sub((end - meeting.at) * meeting.rivals.len());
            meeting.at = end;
            if end == rows.blocks() {
                self.meetings.pop_front();
            }
            if budget == 0 && !self.is_done() {
                return false;
            }
        }
        while let Some((tenant, row)) = self.arrivals.pop_front() {
            let met = self.arrive(tenant, row, overtaken);
            budget = budget.saturating_sub(1 + met / BLOCK);
            if budget == 0 {
                break;
            }
        }
        if self.is_done() {
            self.forget();
        }
        self.is_done()
    }

    /// Whether the epoch that began is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.meetings.is_empty() && self.arrivals.is_empty()
    }

    /// Has a claim meet the window; gives the chunks that it met at most.
    fn arrive(&mut self, tenant: TenantId, row: Row, overtaken: &mut Vec<u64>) -> usize {
        let partition = self.partitions.entry(tenant.clone()).or_default();
        // The window is in order of time: once a chunk was seen, so were those before it.
        let mut unseen = partition.window.iter().rev().take_while(|rival| rival.came > row.valid_at);
        if row.valid_at < partition.forgotten || unseen.any(|rival| row.is_beaten(rival)) {
            overtaken.push(row.claim);
        }
        self.tenant_of.insert(row.claim, tenant);
        partition.places.insert(row.claim, partition.rows.len());
        partition.rows.push(&self.axes, row);
        partition.window.len()
    }

    fn withdraw(&mut self, claim: u64) {
        let Some(tenant) = self.tenant_of.remove(&claim) else { return };
        let Some(partition) = self.partitions.get_mut(&tenant) else { return };
        let Some(at) = partition.places.remove(&claim) else { return };
        if let Some(moved) = partition.rows.swap_remove(at) {
            partition.places.insert(moved.claim, at);
        }
    }

    /// Shortens the windows to what somebody may not have seen, and to what they may hold.
    fn forget(&mut self) {
        for partition in self.partitions.values_mut() {
            while let Some(oldest) = partition.window.front() {
                let seen = oldest.came <= self.seen_by_all;
                if !seen && partition.window.len() <= self.window_max {
                    break;
                }
                // Of chunks that came together some may be left, but who has not seen one has not seen the others.
                partition.forgotten = oldest.came;
                partition.window.pop_front();
            }
        }
    }

    /// Goes on with a question for a bounded time; `true` when it is answered. Claims that come or go meanwhile may or may
    /// not be counted in.
    pub fn inquire(&self, inquiry: &mut Inquiry) -> bool {
        let Some(Partition { rows, .. }) = self.partitions.get(&inquiry.tenant) else { return true };
        let blocks = (BLOCKS_PER_PIECE / (inquiry.added.len() + 1)).max(1);
        let end = (inquiry.at + blocks).min(rows.blocks());
        let Inquiry { added, removed, falls, at, .. } = inquiry;
        for row in rows.in_blocks(*at..end) {
            if row.support.iter().any(|key| removed.contains(key)) {
                falls.insert(row.claim, Fall::SupportChanged);
            }
        }
        rows.beaten(*at..end, added, &mut |row, _| {
            falls.entry(row.claim).or_insert(Fall::Overtaken);
        });
        *at = end;
        end >= rows.blocks()
    }

    /// A question: which claims of a tenant would fall if these chunks were removed and those added?
    #[must_use]
    pub fn inquiry(&self, tenant: TenantId, removed: &[ChunkKey], added: &[(ChunkKey, Arc<[f32]>)]) -> Inquiry {
        let rival = |(key, vector): &(ChunkKey, Arc<[f32]>)| Rival::new(&self.axes, *key, u64::MAX, vector.clone());
        Inquiry {
            tenant,
            removed: removed.iter().copied().collect(),
            added: added.iter().map(rival).collect(),
            at: 0,
            falls: BTreeMap::new(),
        }
    }

    /// Claims that are held.
    #[must_use]
    pub fn claims(&self) -> usize {
        self.tenant_of.len()
    }

    /// Chunks in the windows of all tenants.
    #[must_use]
    pub fn window(&self) -> usize {
        self.partitions.values().map(|partition| partition.window.len()).sum()
    }
}

impl std::fmt::Debug for TopK {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopK").field("claims", &self.claims()).field("window", &self.window()).finish_non_exhaustive()
    }
}

/// A question that is being answered.
pub struct Inquiry {
    tenant: TenantId,
    removed: HashSet<ChunkKey>,
    added: Vec<Rival>,
    /// The next block of claims.
    at: usize,
    falls: BTreeMap<u64, Fall>,
}

impl Inquiry {
    /// The claims that would fall, as far as they were looked at, with what would fell them.
    #[must_use]
    pub fn into_falls(self) -> BTreeMap<u64, Fall> {
        self.falls
    }
}

/// Why a claim falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// A chunk that it rests on is another, or gone.
    SupportChanged,
    /// A new chunk would have been retrieved for its question.
    Overtaken,
}
