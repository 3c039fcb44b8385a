//! The bound in production: what audits and customers say of similar hits, and how strict the hit policy is for it.
//!
//! A verifier is calibrated once, on questions that it was shown; traffic drifts away from them. So hits are
//! [audited](crate::audit), and here it is decided what follows: for each tenant and kind of [`Evidence`], by how much the
//! policy is stricter than its calibrated level.
//!
//! *The rule.* Each audit is a bet against "at most δ of the hits disagree", δ being [`BoundLimits::disagreement_max`]: the
//! capital is multiplied by the ratio of the outcome's probabilities under a greater rate and under δ. It never falls below
//! its start, so that no long good time has to be made up for first: drift is noticed as soon as it began yesterday. When
//! the capital reaches [`AUDITS_PER_FALSE_ALARM`], the policy gets stricter by one [step](BoundLimits::step), after
//! [`BoundLimits::steps`] of them similar hits of that kind are off. The same bet the other way round, against "at least δ
//! disagree", on what one step less would serve, makes it looser by a step. Every change starts both from nothing.
//!
//! *What it promises.* As long as the rate is on the right side of δ, a wrong change comes at most once in
//! [`AUDITS_PER_FALSE_ALARM`] audits on average, at whatever time one looks. That is what keeps it from flapping. It never
//! waits for ever: a rate that differs from δ makes one of the capitals grow exponentially in the number of audits. These
//! are e-detectors (Shin, Ramdas and Rinaldo 2024, <https://doi.org/10.51387/23-NEJSDS51>) made of the bets of Waudby-Smith
//! and Ramdas (2024, <https://doi.org/10.1093/jrsssb/qkad009>).
//!
//! *What it assumes.* That audits are a fair sample of the hits, given what came before. The first hits of an entry are
//! audited more often than later ones, and what is served no more is always compared, for that costs nothing; these are the
//! riskier ones, so the rate is overstated, not understated. A
//! disagreement is not always an error: what is made in full may be the wrong one. So δ is the share of wrong hits plus the
//! noise of the tier.
//!
//! What it does not do: it does not choose what is audited, it knows no single entry, and it forgets all when the process
//! ends. Shared by all workers; its lock is held for the few operations of one call.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use turnflow_models::{CONFIDENCE, Evidence, upper_bound};
use turnflow_state::{TenantId, TurnKey};

/// A rule that holds is broken at most once in so many audits, on average.
pub const AUDITS_PER_FALSE_ALARM: f64 = 1_000.0;
/// Rates that are bet on against δ, as multiples of it: more than one, because the true one is not known.
const WORSE: [f64; 3] = [1.5, 2.5, 5.0];
const BETTER: [f64; 2] = [0.5, 0.125];
/// Audits of a kind that the reported bound looks back on.
const WINDOW: usize = 512;
/// Turns that a customer's judgement is remembered for, so that it counts once.
const JUDGED_MAX: usize = 4_096;

/// What the controller keeps to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundLimits {
    /// Share of audited hits that may disagree: errors of hits and noise of the tier.
    pub disagreement_max: f64,
    /// By how much one step is stricter, in log odds.
    pub step: f32,
    /// Steps before similar hits are off.
    pub steps: u32,
}

/// How strict the policy is for a tenant, by [`Evidence`]: log odds on top of the calibrated level; infinite switches off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strictness {
    /// What is needed to be served.
    pub extra: [f32; 2],
    /// What one step less would need; the same where there is no less.
    pub trial: [f32; 2],
    /// Counts the changes, so that what was audited under another level can be told.
    pub changes: [u32; 2],
}

impl Strictness {
    /// The calibrated level.
    pub const CALIBRATED: Self = Self { extra: [0.0; 2], trial: [0.0; 2], changes: [0; 2] };
}

/// What is known of one similar hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What the knowledge base said of the two questions.
    pub evidence: Evidence,
    /// Under which level it was decided, from [`Strictness::changes`].
    pub changes: u32,
    /// Whether it was served; false for one that only a step less would have served.
    pub served: bool,
    /// Whether the answer was the right one, as far as can be told.
    pub agreed: bool,
}

/// A bet on several alternatives at once; the capital is their average.
#[derive(Clone, Debug)]
struct Bet<const N: usize> {
    rates: [f64; N],
    capital: [f64; N],
}

impl<const N: usize> Bet<N> {
    fn new(disagreement_max: f64, multiples: [f64; N]) -> Self {
        // A rate beyond what is possible is moved to between δ and 1.
        let rate = |multiple: f64| (disagreement_max * multiple).min(f64::midpoint(disagreement_max, 1.0));
        Self { rates: multiples.map(rate), capital: [1.0; N] }
    }

    /// Takes an audit; whether the capital is enough by now.
    fn take(&mut self, agreed: bool, disagreement_max: f64) -> bool {
        for (capital, rate) in self.capital.iter_mut().zip(self.rates) {
            let ratio = if agreed { (1.0 - rate) / (1.0 - disagreement_max) } else { rate / disagreement_max };
            *capital = capital.max(1.0) * ratio;
        }
        self.capital.iter().sum::<f64>() / N as f64 >= AUDITS_PER_FALSE_ALARM
    }
}

/// What is known of one tenant's hits of one kind.
#[derive(Clone, Debug)]
struct Kind {
    step: u32,
    changes: u32,
    worse: Bet<3>,
    better: Bet<2>,
    /// Whether the latest served hits agreed, oldest first.
    recent: VecDeque<bool>,
}

impl Kind {
    fn new(limits: &BoundLimits) -> Self {
        let delta = limits.disagreement_max;
        let (worse, better) = (Bet::new(delta, WORSE), Bet::new(delta, BETTER));
        Self { step: 0, changes: 0, worse, better, recent: VecDeque::new() }
    }

    fn change(&mut self, step: u32, limits: &BoundLimits) {
        *self = Self { step, changes: self.changes + 1, ..Self::new(limits) };
    }
}

/// What the controllers did, and what they know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundStats {
    /// Times that the policy got stricter for a tenant and kind.
    pub tightenings: u64,
    /// Times that it got looser again.
    pub loosenings: u64,
    /// Tenants and kinds whose similar hits are off.
    pub switched_off: u64,
    /// Served hits that were audited or judged lately, at the present levels.
    pub recent: u64,
    /// Those of them that disagreed.
    pub recent_disagreed: u64,
    /// Turns that a customer found good.
    pub judged_good: u64,
    /// Turns that a customer found wrong.
    pub judged_wrong: u64,
}

impl BoundStats {
    /// Upper confidence bound of the share of served hits that disagree, of late (Clopper and Pearson, 95 %); 1 when nothing is
    /// known.
    #[must_use]
    pub fn disagreement_max(&self) -> f64 {
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        upper_bound(count(self.recent_disagreed), count(self.recent), CONFIDENCE)
    }
}

/// The controllers of all tenants. A few kilobytes for each tenant that was audited.
#[derive(Debug)]
pub struct Bound {
    limits: BoundLimits,
    tenants: HashMap<TenantId, [Kind; 2]>,
    judged: HashSet<TurnKey>,
    /// The same, oldest first.
    judged_order: VecDeque<TurnKey>,
    stats: BoundStats,
}

impl Bound {
    /// Controllers that know nothing: the policy stands at its calibrated level.
    ///
    /// # Panics
    /// When the share that may disagree is not between 0 and 1.
    #[must_use]
    pub fn new(limits: BoundLimits) -> Self {
        assert!(limits.disagreement_max > 0.0 && limits.disagreement_max < 1.0, "a share between 0 and 1");
        Self {
            limits,
            tenants: HashMap::new(),
            judged: HashSet::new(),
            judged_order: VecDeque::new(),
            stats: BoundStats::default(),
        }
    }

    /// How strict the policy is for a tenant.
    #[must_use]
    pub fn strictness(&self, tenant: &TenantId) -> Strictness {
        let Some(kinds) = self.tenants.get(tenant) else { return Strictness::CALIBRATED };
        Strictness {
            extra: [0, 1].map(|at| self.extra(kinds[at].step)),
            trial: [0, 1].map(|at| self.extra(kinds[at].step.saturating_sub(1))),
            changes: [0, 1].map(|at| kinds[at].changes),
        }
    }

    fn extra(&self, step: u32) -> f32 {
        if step > self.limits.steps { f32::INFINITY } else { self.limits.step * step as f32 }
    }

    /// Takes what is known of a hit. One that was decided under another level than the present one tells nothing of it.
    pub fn record(&mut self, tenant: &TenantId, sample: Sample) {
        let limits = self.limits;
        let kinds = self.tenants.entry(tenant.clone()).or_insert_with(|| [0, 1].map(|_| Kind::new(&limits)));
        let kind = &mut kinds[sample.evidence.index()];
        if sample.changes != kind.changes {
            return;
        }
        if sample.served {
            kind.recent.push_back(sample.agreed);
            if kind.recent.len() > WINDOW {
                kind.recent.pop_front();
            }
        }
        if sample.served && kind.worse.take(sample.agreed, limits.disagreement_max) && kind.step <= limits.steps {
            kind.change(kind.step + 1, &limits);
            self.stats.tightenings += 1;
            tracing::warn!(
                %tenant,
                evidence = %sample.evidence,
                step = kind.step,
                "audits find too many hits that disagree; similar hits need more from now on"
            );
        } else if kind.step > 0 && kind.better.take(sample.agreed, limits.disagreement_max) {
            kind.change(kind.step - 1, &limits);
            self.stats.loosenings += 1;
            tracing::info!(%tenant, evidence = %sample.evidence, step = kind.step, "similar hits need less again");
        }
    }

    /// Takes a customer's judgement of a turn; false when it was taken before, as far as is remembered. `similar` tells the
    /// kind of the hit, when it was on a similar question.
    pub fn judge(&mut self, turn: &TurnKey, similar: Option<Evidence>, is_good: bool) -> bool {
        if !self.judged.insert(turn.clone()) {
            return false;
        }
        self.judged_order.push_back(turn.clone());
        if self.judged_order.len() > JUDGED_MAX
            && let Some(oldest) = self.judged_order.pop_front()
        {
            self.judged.remove(&oldest);
        }
        *(if is_good { &mut self.stats.judged_good } else { &mut self.stats.judged_wrong }) += 1;
        if let Some(evidence) = similar {
            let changes = self.strictness(&turn.tenant).changes[evidence.index()];
            self.record(&turn.tenant, Sample { evidence, changes, served: true, agreed: is_good });
        }
        true
    }

    /// How many steps above the calibrated level the policy is, for each tenant that was audited and each kind of evidence.
    #[must_use]
    pub fn steps(&self) -> Vec<(TenantId, [u32; 2])> {
        let steps = |kinds: &[Kind; 2]| [kinds[0].step, kinds[1].step];
        self.tenants.iter().map(|(tenant, kinds)| (tenant.clone(), steps(kinds))).collect()
    }

    /// What the controllers did, and what they know.
    #[must_use]
    pub fn stats(&self) -> BoundStats {
        let mut stats = self.stats;
        for kind in self.tenants.values().flatten() {
            stats.switched_off += u64::from(kind.step > self.limits.steps);
            stats.recent += kind.recent.len() as u64;
            stats.recent_disagreed += kind.recent.iter().filter(|agreed| !**agreed).count() as u64;
        }
        stats
    }
}

/// The controllers as the workers share them.
#[derive(Clone, Debug)]
pub struct SharedBound(Arc<Mutex<Bound>>);

impl SharedBound {
    /// Controllers to be shared.
    #[must_use]
    pub fn new(limits: BoundLimits) -> Self {
        Self(Arc::new(Mutex::new(Bound::new(limits))))
    }

    /// The controllers, locked; to be let go at once.
    pub fn lock(&self) -> MutexGuard<'_, Bound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
