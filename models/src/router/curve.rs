//! What routing costs and keeps: quality over the share of turns that go to the large tier.
//!
//! A router sends the turns that it finds the small tier least likely to suffice for to the large one; how many of them is a
//! matter of the probability that is required. [`Curve`] holds, for a series of such probabilities, what came of them on the
//! turns that calibrate. A target is met by the cheapest of them that met it there: an estimate, not a bound.

use serde::{Deserialize, Serialize};

/// Steps of a curve, even in the share of turns.
const STEPS: usize = 40;
/// Required where all turns go to the large tier: no probability reaches it.
const NEVER: f32 = 2.0;
/// Shares of counts are equal when they differ by less.
const ROUNDING: f64 = 1e-9;

/// What is wanted of routing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Keep this share of the large tier's quality, at the least cost.
    Quality(f64),
    /// Send at most this share of turns to the large tier, for the most quality.
    LargeShare(f64),
}

/// How a turn came out: what was told of it, and who answered it right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) probability: f32,
    pub(super) small_correct: bool,
    pub(super) large_correct: bool,
}

/// What came of one required probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The least probability with which a turn goes to the small tier; more than 1 where none does.
    pub required: f32,
    /// Share of turns that went to the large tier.
    pub large_share: f64,
    /// Right answers, as a share of those that the large tier alone would have given.
    pub quality_kept: f64,
}

/// From no turn for the large tier to all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Curve(Vec<CurvePoint>);

impl Curve {
    /// From the turns that calibrate.
    pub(super) fn of(outcomes: &[Outcome]) -> Self {
        let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
        sorted.sort_by(|a, b| a.probability.total_cmp(&b.probability));
        let of_step = |step: usize| {
            let required = match step * sorted.len() / STEPS {
                0 => 0.0,
                large => sorted.get(large).map_or(NEVER, |outcome| outcome.probability),
            };
            point(outcomes, required)
        };
        let mut points: Vec<CurvePoint> = (0..=STEPS).map(of_step).collect();
        points.dedup_by(|later, former| later.large_share <= former.large_share);
        Self(points)
    }

    pub(super) fn points(&self) -> &[CurvePoint] {
        &self.0
    }

    /// The least probability with which a turn goes to the small tier.
    pub(super) fn required(&self, target: Target) -> f32 {
        let found = match target {
            Target::LargeShare(share) => self.0.iter().rev().find(|point| point.large_share <= share + ROUNDING),
            // Where it dips below the target again, what lies before the dip was luck.
            Target::Quality(quality) => {
                self.0.iter().rev().take_while(|point| point.quality_kept >= quality - ROUNDING).last()
            }
        };
        let otherwise = if matches!(target, Target::LargeShare(_)) { 0.0 } else { NEVER };
        found.map_or(otherwise, |point| point.required)
    }

    /// Whether it leads from none to all, and nothing in it is out of order.
    pub(super) fn is_sound(&self) -> bool {
        let is_finite =
            |p: &CurvePoint| p.required.is_finite() && p.large_share.is_finite() && p.quality_kept.is_finite();
        self.0.first().is_some_and(|first| first.required == 0.0)
            && self.0.last().is_some_and(|last| last.required == NEVER)
            && self.0.iter().all(is_finite)
            && self.0.is_sorted_by(|a, b| a.required <= b.required && a.large_share < b.large_share)
    }
}

/// What comes of a required probability.
pub(super) fn point(outcomes: &[Outcome], required: f32) -> CurvePoint {
    let to_large = |outcome: &&Outcome| outcome.probability < required;
    let large = outcomes.iter().filter(to_large).count();
    let right = outcomes.iter().filter(|o| if to_large(o) { o.large_correct } else { o.small_correct }).count();
    let large_right = outcomes.iter().filter(|outcome| outcome.large_correct).count();
    CurvePoint {
        required,
        large_share: large as f64 / outcomes.len().max(1) as f64,
        quality_kept: right as f64 / large_right.max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns whose probability is what it says, and that the large tier always answers.
    fn honest(count: usize, seed: u64) -> Vec<Outcome> {
        let mut random = fastrand::Rng::with_seed(seed);
        let one = |_| {
            let probability = random.f32();
            Outcome { probability, small_correct: random.f32() < probability, large_correct: true }
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn targets_are_kept_on_turns_like_those_that_calibrate() {
        let curve = Curve::of(&honest(4_000, 1));
        assert!(curve.is_sound());
        assert!(curve.points().len() > 30, "{}", curve.points().len());
        let others = honest(4_000, 2);
        for quality in [0.6, 0.8, 0.9, 0.95, 0.99] {
            let got = point(&others, curve.required(Target::Quality(quality)));
            assert!(got.quality_kept > quality - 0.03, "{quality}: {got:?}");
            // Sending the share s with the lowest probabilities keeps 1 - (1 - s)² / 2: no more is spent than needed.
            let needed = 1.0 - (2.0 * (1.0 - quality)).sqrt();
            assert!(got.large_share < needed + 0.06, "{quality}: {got:?}, {needed} is needed");
        }
        for share in [0.0, 0.05, 0.3, 0.5, 0.99, 1.0] {
            let got = point(&others, curve.required(Target::LargeShare(share)));
            assert!((got.large_share - share).abs() < 0.06, "{share}: {got:?}");
        }
    }

    #[test]
    fn targets_at_the_ends() {
        let curve = Curve::of(&honest(500, 3));
        assert_eq!(curve.required(Target::Quality(1.5)), NEVER, "more than the large tier gives");
        assert_eq!(curve.required(Target::Quality(0.0)), 0.0);
        assert_eq!(curve.required(Target::LargeShare(1.0)), NEVER);
        assert_eq!(curve.required(Target::LargeShare(-1.0)), 0.0);
        assert_eq!(
            curve.required(Target::Quality(f64::NAN)),
            NEVER,
            "what cannot be compared costs, and risks nothing"
        );
    }

    #[test]
    fn where_nothing_is_told_apart_it_is_all_or_nothing() {
        let same = |at: u32| Outcome { probability: 0.7, small_correct: at.is_multiple_of(2), large_correct: true };
        let curve = Curve::of(&(0..100).map(same).collect::<Vec<_>>());
        assert_eq!(curve.points().iter().map(|point| point.large_share).collect::<Vec<_>>(), [0.0, 1.0]);
        assert_eq!(curve.required(Target::LargeShare(0.9)), 0.0, "at most so many");
        assert_eq!(curve.required(Target::Quality(0.9)), NEVER);
    }
}
