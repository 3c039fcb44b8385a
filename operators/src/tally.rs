//! Tally: what became of each tenant's turns since the process began, how long they took, what they consumed and cost.
//!
//! What a turn consumed and cost is booked where its answer is written, in commit, since prices are known there; everything else where its
//! end is handed out, since only there it is known when it began, what was heard of it, and whether anybody waits for it. Each tenant's tally is
//! behind a lock of its own, which is held for one addition, or while it is copied. Tallies end with the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use turnflow_state::{CacheLevel, Completion, Stage, TenantId, Tier, TurnErrorKind, Usage};

use crate::histogram::Histogram;

/// Most tenants with a tally of their own, of some six kilobytes each; others share one.
pub const TALLIES_MAX: usize = 4_096;

/// What became of turns. All numbers only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Turns that were answered, by where the answer came from, in the order of [`CacheLevel::ALL`], and by the tier that wrote it, now or when
    /// it was cached, in the order of [`Tier::ALL`]. Small talk is of the tier `scripted`.
    pub answered: [[u64; Tier::ALL.len()]; CacheLevel::ALL.len()],
    /// Turns that were answered with what their turn id was answered before; they count nowhere else.
    pub repeated: u64,
    /// Turns that were not answered or not even admitted, by what went wrong, in the order of [`TurnErrorKind::ALL`].
    pub failed: [u64; TurnErrorKind::ALL.len()],
    /// Turns that were given up because nobody waited for the answer any more.
    pub cancelled: u64,
    /// From admission to the end of the answer, by where it came from.
    pub whole: [Histogram; CacheLevel::ALL.len()],
    /// From admission to the first piece of the answer, by where it came from.
    pub first_piece: [Histogram; CacheLevel::ALL.len()],
    /// In each stage, in the order of [`Stage::ALL`], of the turns that passed it.
    pub stages: [Histogram; Stage::ALL.len()],
    /// What they consumed and cost.
    pub account: Account,
}

/// What turns consumed and cost. Costs are in millionths of the configured currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Tokens that tiers read for them.
    pub input_tokens: u64,
    /// Tokens that tiers wrote for them.
    pub output_tokens: u64,
    /// What that cost.
    pub cost_micros: u64,
    /// What the same tokens would have cost by the large tier alone.
    pub large_cost_micros: u64,
    /// Tokens that tiers had read and written for the answers that caches served.
    pub saved_tokens: u64,
    /// What those would have cost by the large tier.
    pub saved_cost_micros: u64,
    /// What it cost to answer anew and to audit, in the background.
    pub background_cost_micros: u64,
    /// What tiers had read and written for turns that were not answered, estimated.
    pub unanswered_cost_micros: u64,
}

/// What a turn that was answered consumed, and what it did not have to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Consumption {
    /// Tokens for its own answer.
    pub(crate) usage: Usage,
    /// What they cost.
    pub(crate) cost_micros: u64,
    /// What they would have cost by the large tier alone.
    pub(crate) large_cost_micros: u64,
    /// Tokens for the answer of another turn that it was served.
    pub(crate) saved: Usage,
    /// What those would have cost by the large tier.
    pub(crate) saved_cost_micros: u64,
}

impl Tally {
    /// Turns that were answered at a level, by whichever tier.
    #[must_use]
    pub fn answered_at(&self, level: CacheLevel) -> u64 {
        self.answered[level as usize].iter().sum()
    }

    /// Takes in another tenant's, or another process's.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add);
    }

    /// What happened since an earlier state of the same.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.combine(earlier, u64::saturating_sub);
        since
    }

    fn combine(&mut self, other: &Self, combined: impl Fn(u64, u64) -> u64) {
        let mut other = other.clone();
        self.numbers().zip(other.numbers()).for_each(|(own, other)| *own = combined(*own, *other));
    }

    /// Every number that it is made of.
    fn numbers(&mut self) -> impl Iterator<Item = &mut u64> {
        let Self { answered, repeated, failed, cancelled, whole, first_piece, stages, account } = self;
        let Account {
            input_tokens,
            output_tokens,
            cost_micros,
            large_cost_micros,
            saved_tokens,
            saved_cost_micros,
            background_cost_micros,
            unanswered_cost_micros,
        } = account;
        let histograms = whole.iter_mut().chain(first_piece).chain(stages);
        answered
            .as_flattened_mut()
            .iter_mut()
            .chain(failed)
            .chain(histograms.flat_map(Histogram::numbers))
            .chain([repeated, cancelled, input_tokens, output_tokens, cost_micros, large_cost_micros])
            .chain([saved_tokens, saved_cost_micros, background_cost_micros, unanswered_cost_micros])
    }
}

/// One tenant's tally, as those who book share it.
#[derive(Clone, Debug, Default)]
pub struct TenantTally(Arc<Mutex<Tally>>);

impl TenantTally {
    /// Takes in that a turn was answered, and when its first piece was told, in microseconds since its admission.
    pub fn answered(&self, completion: &Completion, first_piece_us: u64) {
        let level = completion.verdict.level as usize;
        self.book(|tally| {
            tally.answered[level][completion.tier as usize] += 1;
            tally.whole[level].add(completion.total_us);
            tally.first_piece[level].add(first_piece_us);
            for (stage, elapsed_us) in completion.latency.iter().filter(|&(_, elapsed_us)| elapsed_us > 0) {
                tally.stages[stage as usize].add(u64::from(elapsed_us));
            }
        });
    }

    /// Takes in that a turn got the answer that its turn id got before.
    pub fn repeated(&self) {
        self.book(|tally| tally.repeated += 1);
    }

    /// Takes in that a turn failed, or was not admitted.
    pub fn failed(&self, kind: TurnErrorKind) {
        self.book(|tally| tally.failed[kind as usize] += 1);
    }

    /// Takes in that a turn was given up because nobody waited for it.
    pub fn cancelled(&self) {
        self.book(|tally| tally.cancelled += 1);
    }

    /// Takes in what an answer consumed.
    pub(crate) fn consumed(&self, consumption: Consumption) {
        let Consumption { usage, cost_micros, large_cost_micros, saved, saved_cost_micros } = consumption;
        self.book(|Tally { account, .. }| {
            account.input_tokens += u64::from(usage.input_tokens);
            account.output_tokens += u64::from(usage.output_tokens);
            account.cost_micros += cost_micros;
            account.large_cost_micros += large_cost_micros;
            account.saved_tokens += u64::from(saved.input_tokens) + u64::from(saved.output_tokens);
            account.saved_cost_micros += saved_cost_micros;
        });
    }

    /// Takes in what was spent in the background.
    pub(crate) fn spent_in_background(&self, cost_micros: u64) {
        self.book(|tally| tally.account.background_cost_micros += cost_micros);
    }

    /// Takes in what was spent on a turn that was not answered.
    pub(crate) fn unanswered(&self, cost_micros: u64) {
        self.book(|tally| tally.account.unanswered_cost_micros += cost_micros);
    }

    fn book(&self, book: impl FnOnce(&mut Tally)) {
        // Whoever panicked with it between two additions left numbers, if not all of a turn's.
        book(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The tally now.
    #[must_use]
    pub fn read(&self) -> Tally {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The tallies of all tenants; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tallies(Arc<Mutex<HashMap<Option<TenantId>, TenantTally>>>);

impl Tallies {
    /// A tenant's tally: its own, or that of the tenants beyond [`TALLIES_MAX`].
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> TenantTally {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = Some(tenant.clone());
        let has_room = tallies.len() < TALLIES_MAX || tallies.contains_key(&name);
        tallies.entry(name.filter(|_| has_room)).or_default().clone()
    }

    /// The tallies now, in the order of their tenants; None, the first, stands for the tenants beyond [`TALLIES_MAX`].
    #[must_use]
    pub fn read(&self) -> Vec<(Option<TenantId>, Tally)> {
        let shared: Vec<_> = {
            let tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            tallies.iter().map(|(tenant, tally)| (tenant.clone(), tally.clone())).collect()
        };
        let mut tallies: Vec<_> = shared.into_iter().map(|(tenant, tally)| (tenant, tally.read())).collect();
        tallies.sort_by(|(a, _), (b, _)| a.cmp(b));
        tallies
    }
}

#[cfg(test)]
mod tests {
    use turnflow_state::{StageLatencies, Verdict};

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("an id")
    }

    /// A turn that was answered at this level in 1 ms, half of which it was embedded.
    fn completion(level: CacheLevel) -> Completion {
        let verdict = Verdict::new(level, "");
        let mut latency = StageLatencies::default();
        latency.add(Stage::Embed, 500);
        Completion {
            text: String::new(),
            tier: Tier::Burn,
            grounded: true,
            sources: Vec::new(),
            usage: Usage::default(),
            cost_micros: 0,
            large_cost_micros: 0,
            verdict,
            latency,
            total_us: 1_000,
            cut_off: false,
        }
    }

    #[test]
    fn a_tally_tells_what_became_of_turns_and_since_when() {
        let tallies = Tallies::default();
        let (a, b) = (tallies.of(&tenant("a")), tallies.of(&tenant("b")));
        b.answered(&completion(CacheLevel::Miss), 400);
        let earlier = b.read();
        for _ in 0..2 {
            tallies.clone().of(&tenant("b")).answered(&completion(CacheLevel::Exact), 1_000);
        }
        b.repeated();
        b.cancelled();
        a.failed(TurnErrorKind::Late);
        let usage = Usage { input_tokens: 100, output_tokens: 10 };
        b.consumed(Consumption { usage, cost_micros: 7, large_cost_micros: 70, ..Consumption::default() });
        b.consumed(Consumption { saved: usage, saved_cost_micros: 5, ..Consumption::default() });
        b.spent_in_background(3);
        b.unanswered(2);

        let read = tallies.read();
        let [(first, of_a), (second, of_b)] = &read[..] else { panic!("{read:?}") };
        assert_eq!((first, second), (&Some(tenant("a")), &Some(tenant("b"))), "in the order of their names");
        assert_eq!(of_a, &Tally { failed: [0, 0, 1, 0, 0, 0], ..Tally::default() });
        assert_eq!((of_b.answered_at(CacheLevel::Miss), of_b.answered_at(CacheLevel::Exact)), (1, 2));

        let since = of_b.since(&earlier);
        assert_eq!((since.answered_at(CacheLevel::Miss), since.answered[0][Tier::Burn as usize]), (0, 2));
        assert_eq!((since.repeated, since.cancelled), (1, 1));
        assert_eq!((since.whole[0].count(), since.whole[0].sum_us, since.first_piece[0].sum_us), (2, 2_000, 2_000));
        assert_eq!(since.stages.map(|stage| stage.count()), [0, 0, 2, 0, 0, 0, 0, 0]);
        let account = Account {
            input_tokens: 100,
            output_tokens: 10,
            cost_micros: 7,
            large_cost_micros: 70,
            saved_tokens: 110,
            saved_cost_micros: 5,
            background_cost_micros: 3,
            unanswered_cost_micros: 2,
        };
        assert_eq!(since.account, account);
        let mut sum = earlier;
        sum.add(&since);
        assert_eq!(&sum, of_b);
    }

    #[test]
    fn tenants_beyond_the_most_share_one_tally() {
        let tallies = Tallies::default();
        for number in 0..TALLIES_MAX + 2 {
            tallies.of(&tenant(&format!("t{number}"))).cancelled();
        }
        // Who has one keeps it.
        tallies.of(&tenant("t0")).cancelled();
        let read = tallies.read();
        assert_eq!(read.len(), TALLIES_MAX + 1);
        assert_eq!((&read[0].0, read[0].1.cancelled), (&None, 2));
        let first = read.iter().find(|(name, _)| *name == Some(tenant("t0")));
        assert_eq!(first.map(|(_, tally)| tally.cancelled), Some(2));
    }
}
