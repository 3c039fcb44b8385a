//! Figures of a phase: what was offered, what became of it, and how long that took, by class.

use std::collections::BTreeMap;

use serde::Serialize;
use turnflow_models::EncoderStats;

use super::sample::{Class, Outcome, Sample, Writer};

/// How times are spread, in microseconds. A quantile is the smallest time that so many of a hundred do not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Of half of them.
    pub p50_us: u64,
    /// Of 90.
    pub p90_us: u64,
    /// Of 99.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Quantiles {
    /// Of these times; None when there are none.
    pub fn of(times_us: impl Iterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = times_us.collect();
        sorted.sort_unstable();
        let max_us = *sorted.last()?;
        let quantile = |per_cent: usize| sorted[(sorted.len() * per_cent).div_ceil(100) - 1];
        Some(Self { p50_us: quantile(50), p90_us: quantile(90), p99_us: quantile(99), max_us })
    }
}

/// What became of the turns of a class. `offered` is the sum of `answered`, `late`, `refused` and `failed`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Who asked.
    pub class: Class,
    /// Turns that were sent.
    pub offered: u64,
    /// Of them, answered in time.
    pub answered: u64,
    /// Answered too late.
    pub late: u64,
    /// Refused with the advice to try again.
    pub refused: u64,
    /// Ended in any other way.
    pub failed: u64,
    /// Answers in time, for each second of the phase.
    pub goodput_per_s: f64,
    /// Until the first piece of an answer, late ones included.
    pub first_token: Option<Quantiles>,
    /// Until the end of an answer, late ones included.
    pub total: Option<Quantiles>,
    /// Within which 99 of 100 that were sent had their answer, in microseconds; None where more of them got none.
    pub answered_p99_us: Option<u64>,
    /// Until a refusal.
    pub refusal: Option<Quantiles>,
    /// Answers by what wrote them.
    pub writers: BTreeMap<Writer, u64>,
}

impl ClassFigures {
    /// The figures of a class in a phase of so many seconds.
    #[must_use]
    pub fn of(class: Class, samples: &[Sample], seconds: f64) -> Self {
        let of_class = || samples.iter().filter(|sample| sample.class == class);
        let ended = |outcome: Outcome| of_class().filter(move |sample| sample.outcome == outcome);
        let count = |outcome: Outcome| ended(outcome).count() as u64;
        let answers = || of_class().filter(|sample| sample.has_answer());
        let mut writers = BTreeMap::new();
        for writer in answers().filter_map(|sample| sample.writer) {
            *writers.entry(writer).or_default() += 1;
        }
        // Who gets no answer waits for ever.
        let waits = of_class().map(|sample| if sample.has_answer() { sample.total_us } else { u64::MAX });
        let answered_p99_us = Quantiles::of(waits).map(|times| times.p99_us).filter(|&p99_us| p99_us < u64::MAX);
        Self {
            class,
            offered: of_class().count() as u64,
            answered: count(Outcome::Answered),
            late: count(Outcome::Late),
            refused: count(Outcome::Refused),
            failed: count(Outcome::Failed),
            goodput_per_s: count(Outcome::Answered) as f64 / seconds,
            first_token: Quantiles::of(answers().map(|sample| sample.first_us)),
            total: Quantiles::of(answers().map(|sample| sample.total_us)),
            answered_p99_us,
            refusal: Quantiles::of(ended(Outcome::Refused).map(|sample| sample.total_us)),
            writers,
        }
    }
}

/// Forward passes of a model with so many texts, or sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Batches {
    /// How many: a number, or a range of them.
    pub size: String,
    /// How many passes.
    pub passes: u64,
}

impl Batches {
    /// The sizes that occurred between two looks at the encoder.
    #[must_use]
    pub fn between(before: &EncoderStats, after: &EncoderStats) -> Vec<Self> {
        let both = before.batch_sizes.iter().zip(&after.batch_sizes);
        Self::of(&both.map(|(before, after)| after - before).collect::<Vec<_>>())
    }

    /// The sizes that occurred, of the passes of each class of sizes.
    #[must_use]
    pub fn of(passes: &[u64]) -> Vec<Self> {
        // Each class ends at a power of two, and the last one takes what is above.
        let last = passes.len().saturating_sub(1);
        let size = |class: usize| match class {
            0 | 1 => format!("{}", class + 1),
            _ if class == last => format!("more than {}", 1_u64 << (class - 1)),
            _ => format!("{} to {}", (1_u64 << (class - 1)) + 1, 1_u64 << class),
        };
        let all = passes.iter().enumerate().map(|(class, &passes)| Self { size: size(class), passes });
        all.filter(|batches| batches.passes > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::fixtures::sample;
    use super::*;

    #[test]
    fn quantiles_are_times_that_occurred() {
        assert_eq!(Quantiles::of(std::iter::empty()), None);
        let expected = |p50_us, p90_us, p99_us, max_us| Some(Quantiles { p50_us, p90_us, p99_us, max_us });
        assert_eq!(Quantiles::of([7].into_iter()), expected(7, 7, 7, 7));
        assert_eq!(Quantiles::of((1..=100).rev()), expected(50, 90, 99, 100));
        assert_eq!(Quantiles::of(1..=1_000), expected(500, 900, 990, 1_000));
        assert_eq!(Quantiles::of(1..=3), expected(2, 3, 3, 3));
    }

    #[test]
    fn every_turn_counts_once_in_its_class() {
        let samples = [
            sample(0, Class::New, Outcome::Answered, 10),
            sample(1, Class::New, Outcome::Answered, 30),
            sample(2, Class::New, Outcome::Late, 3_000),
            sample(3, Class::New, Outcome::Refused, 2),
            sample(4, Class::New, Outcome::Failed, 900),
            sample(5, Class::Ongoing, Outcome::Answered, 20),
        ];
        let new = ClassFigures::of(Class::New, &samples, 4.0);
        assert_eq!((new.offered, new.answered, new.late, new.refused, new.failed), (5, 2, 1, 1, 1));
        assert!((new.goodput_per_s - 0.5).abs() < 1e-9);
        let (total, first) = (new.total.expect("answers"), new.first_token.expect("answers"));
        assert_eq!((total.p50_us, total.max_us), (30_000, 3_000_000), "late answers are answers, failures none");
        assert_eq!((first.p50_us, first.max_us), (15_000, 1_500_000));
        assert_eq!(new.refusal.map(|times| (times.p99_us, times.max_us)), Some((2_000, 2_000)));
        assert_eq!(new.writers, BTreeMap::from([(Writer::LargeTier, 3)]));
        assert_eq!(new.answered_p99_us, None, "two of five got none");
        let ongoing = ClassFigures::of(Class::Ongoing, &samples, 4.0);
        assert_eq!((ongoing.offered, ongoing.answered, ongoing.refusal), (1, 1, None));
        assert_eq!(ongoing.answered_p99_us, Some(20_000));
    }

    #[test]
    fn who_gets_no_answer_counts_as_slow_as_can_be() {
        let turns = |failed: u64| {
            let outcome = move |at| if at < failed { Outcome::Failed } else { Outcome::Answered };
            let samples: Vec<_> = (0..200).map(|at| sample(at, Class::Ongoing, outcome(at), 10)).collect();
            ClassFigures::of(Class::Ongoing, &samples, 1.0).answered_p99_us
        };
        assert_eq!([turns(0), turns(2), turns(3)], [Some(10_000), Some(10_000), None]);
    }

    #[test]
    fn batches_are_those_of_the_phase_by_their_sizes() {
        let before = EncoderStats { batch_sizes: [5, 4, 3, 2, 1, 0, 0, 0, 0], ..EncoderStats::default() };
        let after = EncoderStats { batch_sizes: [6, 4, 5, 2, 4, 0, 0, 0, 9], ..EncoderStats::default() };
        let found: Vec<_> =
            Batches::between(&before, &after).into_iter().map(|batches| (batches.size, batches.passes)).collect();
        let expected = [("1", 1), ("3 to 4", 2), ("9 to 16", 3), ("more than 128", 9)];
        assert_eq!(found, expected.map(|(size, passes)| (size.to_owned(), passes)));
    }
}
