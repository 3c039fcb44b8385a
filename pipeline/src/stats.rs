//! What a pipeline, its engines and its store are doing.

use std::sync::atomic::Ordering;

use turnflow_models::{EncoderStats, Evidence, GenerationStats, RemoteStats, TierStats};
use turnflow_operators::audit::AuditStats;
use turnflow_operators::bound::BoundStats;
use turnflow_operators::load::{LoadStats, QueueStats};
use turnflow_operators::refresh::RefreshStats;
use turnflow_operators::tally::Tally;
use turnflow_state::{Column, ColumnSize, StateError, TenantId, Tier, TierSize};

use crate::Pipeline;
use crate::dataflow::QUEUES;
use crate::shared::ValidityStats;

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PipelineStats {
    /// Turns admitted and not yet ended.
    pub turns_in_flight: usize,
    /// Of them, those that wait for the answer to a similar question.
    pub turns_following: usize,
    /// The knowledge base's epoch that searches find.
    pub epoch: u64,
    /// The knowledge base's epoch that is acknowledged: nothing is served that a change up to it made invalid.
    pub epoch_acknowledged: u64,
    /// The caches, and what became of what was in them.
    pub validity: ValidityStats,
    /// What is answered anew in the background.
    pub refresh: RefreshStats,
    /// Hits that are answered in full as well, in the background.
    pub audit: AuditStats,
    /// What that means for the policy.
    pub bound: BoundStats,
    /// How loaded it is.
    pub load: LoadStats,
}

/// A queue in front of an engine, of all workers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineQueue {
    /// The tier behind it; None for the encoder.
    pub tier: Option<TierSize>,
    /// What it holds.
    pub stats: QueueStats,
}

/// What the engines did since they were started, and what they hold.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// The encoder.
    pub encoder: EncoderStats,
    /// The tiers, the small one first.
    pub tiers: Vec<TierState>,
}

/// What a tier did, and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct TierState {
    /// Which.
    pub size: TierSize,
    /// Its kind.
    pub tier: Tier,
    /// How its jobs ended.
    pub stats: TierStats,
    /// Its decoder, where it has one in this process.
    pub generation: Option<GenerationStats>,
    /// Its server, where it is behind one.
    pub remote: Option<RemoteStats>,
}

impl Pipeline {
    /// What the pipeline is doing.
    #[must_use]
    pub fn stats(&self) -> PipelineStats {
        let (validity, refresh) = self.0.validity.stats();
        let (audit, bound) = self.0.validity.audits.stats();
        PipelineStats {
            turns_in_flight: self.0.streams.len(),
            turns_following: self.0.following.load(Ordering::Relaxed),
            epoch: self.0.parts.knowledge.epoch(),
            epoch_acknowledged: self.0.validity.acknowledged(),
            validity,
            refresh,
            audit,
            bound,
            load: self.0.load.lock().stats(self.0.clock.now_us()),
        }
    }

    /// What became of each tenant's turns since this was started, in the order of their tenants; None stands for the tenants beyond
    /// [`TALLIES_MAX`](crate::TALLIES_MAX).
    #[must_use]
    pub fn tally(&self) -> Vec<(Option<TenantId>, Tally)> {
        self.0.tallies.read()
    }

    /// What became of one tenant's turns since this was started.
    #[must_use]
    pub fn tally_of(&self, tenant: &TenantId) -> Tally {
        self.0.tallies.of(tenant).read()
    }

    /// The queues in front of the engines that there are.
    #[must_use]
    pub fn queues(&self) -> Vec<EngineQueue> {
        let queues = self.0.load.lock().queues(self.0.clock.now_us());
        // In the order in which a worker's queues are numbered.
        let engines = [None].into_iter().chain(TierSize::ALL.iter().copied().map(Some));
        let of_all_workers = engines.enumerate().map(|(at, tier)| {
            let stats = queues.iter().skip(at).step_by(QUEUES).fold(QueueStats::default(), |sum, queue| QueueStats {
                waiting: sum.waiting + queue.waiting,
                oldest_wait_us: sum.oldest_wait_us.max(queue.oldest_wait_us),
            });
            EngineQueue { tier, stats }
        });
        of_all_workers.filter(|queue| queue.tier.is_none_or(|size| self.has_tier(size))).collect()
    }

    /// What the engines did, and what they hold.
    #[must_use]
    pub fn engines(&self) -> EngineStats {
        let tiers = TierSize::ALL.iter().filter(|&&size| self.has_tier(size)).map(|&size| {
            let tier = self.0.parts.tiers.of(size);
            TierState {
                size,
                tier: tier.tier(),
                stats: tier.stats(),
                generation: tier.generation(),
                remote: tier.remote(),
            }
        });
        EngineStats { encoder: self.0.parts.encoder.stats(), tiers: tiers.collect() }
    }

    /// How many steps above the calibrated level the policy is, for each tenant that was audited and each kind of evidence.
    #[must_use]
    pub fn policy_steps(&self) -> Vec<(TenantId, Evidence, u32)> {
        let steps = self.0.validity.audits.bound.lock().steps();
        let by_evidence = |(tenant, steps): (TenantId, [u32; 2])| {
            Evidence::ALL.map(|evidence| (tenant.clone(), evidence, steps[evidence.index()]))
        };
        steps.into_iter().flat_map(by_evidence).collect()
    }

    /// How much each column of the store holds.
    ///
    /// # Errors
    /// [`StateError`] when the store cannot be read.
    pub fn store_sizes(&self) -> Result<Vec<(Column, ColumnSize)>, StateError> {
        let store = self.0.parts.store.backend();
        Column::ALL.iter().map(|&column| Ok((column, store.size(column)?))).collect()
    }

    /// Whether there is a tier of this size: where there is one tier, it is the large one.
    fn has_tier(&self, size: TierSize) -> bool {
        size == TierSize::Large || self.0.parts.tiers.small.is_some()
    }
}
