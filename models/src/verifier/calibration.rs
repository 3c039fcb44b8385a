//! From scores to a bounded error: which score is needed so that at most so many hits are wrong.
//!
//! The scores of questions that training never saw are cut at a fixed series of levels. For a wanted error δ the levels
//! are tried from the strictest down, each by the exact upper confidence bound of Clopper and Pearson (1934,
//! <https://doi.org/10.1093/biomet/26.4.404>) on the error of what it accepts; the last one before the first that fails is
//! taken. Trying a fixed series in order keeps the confidence (Angelopoulos et al. 2021, "Learn then test",
//! <https://arxiv.org/abs/2110.01052>).
//!
//! What it guarantees: with [`CONFIDENCE`], the error of accepted hits is at most δ, for questions drawn as the calibration
//! questions were. Traffic that drifts away from them is not covered; that is what audits are for.

use serde::{Deserialize, Serialize};

/// How sure a bound is.
pub const CONFIDENCE: f64 = 0.95;
/// Levels of log odds, from the strictest down.
const LEVELS: usize = 64;
const STRICTEST: f32 = 14.0;
const STEP: f32 = 0.25;

/// How many of the accepted were wrong, for each level of one class of evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// For each level, strictest first: accepted, and wrong among them.
    levels: Vec<(u32, u32)>,
}

/// What a level promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Least log odds that are accepted.
    pub log_odds_min: f32,
    /// Upper confidence bound of the error among what is accepted.
    pub error_max: f64,
    /// Calibration questions that it accepts.
    pub accepted: u32,
    /// Those of them that were wrong.
    pub wrong: u32,
}

impl Level {
    /// The least [probability] that is accepted.
    #[must_use]
    pub fn probability_min(&self) -> f32 {
        probability(self.log_odds_min)
    }
}

/// Log odds as a probability.
#[must_use]
pub fn probability(log_odds: f32) -> f32 {
    1.0 / (1.0 + (-log_odds).exp())
}

/// A candidate for a question, and the levels at which it is the one that is served: the nearest that is accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Its log odds: it is accepted up to this level.
    pub log_odds: f32,
    /// The highest log odds of the candidates nearer than it: up to this level one of them is served.
    pub covered: f32,
    /// Whether serving it is right.
    pub is_right: bool,
}

impl Calibration {
    /// From all candidates of all questions.
    #[must_use]
    pub fn of(judged: &[Judged]) -> Self {
        let levels = (0..LEVELS).map(|at| {
            let level = log_odds_of(at);
            let served = judged.iter().filter(|one| one.covered < level && level <= one.log_odds);
            let accepted: Vec<bool> = served.map(|one| one.is_right).collect();
            (count(accepted.len()), count(accepted.iter().filter(|is_right| !**is_right).count()))
        });
        Self { levels: levels.collect() }
    }

    /// The loosest level whose error is at most `delta`, with [`CONFIDENCE`]; None when none can be shown to be.
    #[must_use]
    pub fn level(&self, delta: f64) -> Option<Level> {
        let mut best = None;
        for (at, &(accepted, wrong)) in self.levels.iter().enumerate() {
            // Too few to show anything even if all were right: whether a level has enough does not depend on labels.
            if upper_bound(0, accepted, CONFIDENCE) > delta {
                continue;
            }
            let error_max = upper_bound(wrong, accepted, CONFIDENCE);
            if error_max > delta {
                break;
            }
            best = Some(Level { log_odds_min: log_odds_of(at), error_max, accepted, wrong });
        }
        best
    }
}

fn log_odds_of(level: usize) -> f32 {
    STRICTEST - STEP * level as f32
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The upper confidence bound of a rate, after `hits` in `trials` (Clopper and Pearson): the rate at which so few would be
/// seen with a probability of only `1 - confidence`. 1 when there were no trials.
#[must_use]
pub fn upper_bound(hits: u32, trials: u32, confidence: f64) -> f64 {
    if hits >= trials {
        return 1.0;
    }
    let (mut low, mut high) = (f64::from(hits) / f64::from(trials), 1.0);
    // Halving until the interval is as small as a number can be told apart.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if at_most(hits, trials, middle) > 1.0 - confidence { low = middle } else { high = middle }
    }
    high
}

/// The probability of at most `hits` in `trials` at a rate (binomial).
fn at_most(hits: u32, trials: u32, rate: f64) -> f64 {
    if rate >= 1.0 {
        return 0.0;
    }
    // Summed in logarithms, since single terms may be smaller than any number.
    let odds = (rate / (1.0 - rate)).ln();
    let mut term = f64::from(trials) * (1.0 - rate).ln();
    let mut sum = term.exp();
    for k in 0..hits {
        term += (f64::from(trials - k) / f64::from(k + 1)).ln() + odds;
        sum += term.exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_tables() {
        // The "rule of three", and textbook values of the one-sided 95 % bound.
        for (hits, trials, expected) in [(0, 299, 0.009_969), (0, 10, 0.258_87), (1, 10, 0.394_16), (5, 100, 0.102_25)]
        {
            let bound = upper_bound(hits, trials, 0.95);
            assert!((bound - expected).abs() < 2e-5, "{hits} of {trials}: {bound}");
        }
        assert_eq!(upper_bound(0, 0, 0.95), 1.0);
        assert_eq!(upper_bound(3, 3, 0.95), 1.0);
    }

    /// The one candidate of a question.
    fn only(log_odds: f32, is_right: bool) -> Judged {
        Judged { log_odds, covered: f32::NEG_INFINITY, is_right }
    }

    #[test]
    fn the_nearest_that_is_accepted_counts() {
        // The nearer candidate is wrong and less likely: it is served where both are accepted, the other one above.
        let nearer = Judged { log_odds: 3.0, covered: f32::NEG_INFINITY, is_right: false };
        let other = Judged { log_odds: 5.0, covered: 3.0, is_right: true };
        let Calibration { levels } = Calibration::of(&[nearer, other]);
        let at = |log_odds: f32| levels[((STRICTEST - log_odds) / STEP) as usize];
        assert_eq!([at(5.25), at(5.0), at(3.25), at(3.0)], [(0, 0), (1, 0), (1, 0), (1, 1)]);
    }

    #[test]
    fn the_loosest_level_that_holds_is_taken() {
        // Wrong ones lie below 2, a tenth of what is there; above, all is right.
        let judged: Vec<Judged> = (0..4_000)
            .map(|at| {
                let log_odds = at as f32 / 1_000.0;
                only(log_odds, log_odds > 2.0 || at % 10 != 0)
            })
            .collect();
        let calibration = Calibration::of(&judged);
        let strict = calibration.level(0.002).unwrap();
        assert!(strict.log_odds_min >= 2.0 && strict.wrong == 0, "{strict:?}");
        let loose = calibration.level(0.03).unwrap();
        assert!(loose.log_odds_min < 2.0 && loose.error_max <= 0.03, "{loose:?}");
        assert!(calibration.level(0.000_1).is_none(), "so few cannot show so little");
        assert!(Calibration::of(&[]).level(0.5).is_none());
    }

    #[test]
    fn the_promise_is_kept() {
        // Many calibrations from one distribution: the true error of the level taken passes δ in at most 5 % of them, and a bit.
        let error_at = |log_odds: f32| 0.5 / (1.0 + f64::from(log_odds).exp());
        let mut random = fastrand::Rng::with_seed(11);
        let (delta, rounds) = (0.02, 300);
        let mut broken = 0;
        for _ in 0..rounds {
            let judged: Vec<Judged> = (0..3_000)
                .map(|_| {
                    let log_odds = 8.0 * random.f32() - 1.0;
                    only(log_odds, random.f64() >= error_at(log_odds))
                })
                .collect();
            let Some(level) = Calibration::of(&judged).level(delta) else { continue };
            let accepted: Vec<f64> = (0..1_000)
                .map(|at| level.log_odds_min + (7.0 - level.log_odds_min) * at as f32 / 1_000.0)
                .map(error_at)
                .collect();
            if accepted.iter().sum::<f64>() / accepted.len() as f64 > delta {
                broken += 1;
            }
        }
        assert!(broken <= rounds / 12, "{broken} of {rounds}");
    }
}
