//! From log odds to probabilities that can be believed: Platt's sigmoid (Platt 1999), fitted by Newton's method with
//! backtracking (Lin, Lin and Weng 2007, <https://doi.org/10.1007/s10994-007-5018-6>) on turns that training never saw.
//!
//! Platt's rather than an isotonic step function: two numbers are fitted well by a few hundred turns, and turns that scored
//! differently keep different probabilities, so that any share of them can be cut off.

use serde::{Deserialize, Serialize};

use crate::verifier::probability;

const STEPS_MAX: usize = 100;
/// Keeps Newton's equations solvable.
const RIDGE: f64 = 1e-12;
/// The slope of the loss below which it is at its lowest.
const FLAT: f64 = 1e-9;
const HALVINGS_MAX: usize = 30;

/// The sigmoid. It never falls: what scores higher is not less likely.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Platt {
    slope: f32,
    offset: f32,
}

impl Platt {
    /// From log odds and whether it held.
    #[expect(clippy::cast_possible_truncation, reason = "from the arithmetic of fitting to that of serving")]
    pub(super) fn of(judged: &[(f32, bool)]) -> Self {
        let held = judged.iter().filter(|(_, holds)| *holds).count() as f64;
        let failed = judged.len() as f64 - held;
        // Neither is taken as certain, so that a perfect split does not ask for an infinite slope.
        let targets = [1.0 / (failed + 2.0), (held + 1.0) / (held + 2.0)];
        let points: Vec<(f64, f64)> =
            judged.iter().map(|(x, holds)| (f64::from(*x), targets[usize::from(*holds)])).collect();
        let (slope, offset) = newton(&points);
        if slope > 0.0 {
            return Self { slope: slope as f32, offset: offset as f32 };
        }
        // The scores say nothing: everything is as likely as the average.
        let mean = points.iter().map(|(_, target)| target).sum::<f64>() / points.len().max(1) as f64;
        Self { slope: 0.0, offset: if points.is_empty() { 0.0 } else { (mean / (1.0 - mean)).ln() as f32 } }
    }

    /// The probability for log odds.
    pub(super) fn probability(&self, log_odds: f32) -> f32 {
        probability(self.slope * log_odds + self.offset)
    }

    /// How much of a difference in log odds is left of it.
    pub(super) const fn slope(&self) -> f32 {
        self.slope
    }

    pub(super) fn is_sound(&self) -> bool {
        self.slope >= 0.0 && self.slope.is_finite() && self.offset.is_finite()
    }
}

/// Slope and offset with the least cross entropy, which has one lowest place.
fn newton(points: &[(f64, f64)]) -> (f64, f64) {
    let loss = |slope: f64, offset: f64| -> f64 {
        let one = |(x, target): &(f64, f64)| {
            let z = slope * x + offset;
            z.max(0.0) - z * target + (-z.abs()).exp().ln_1p()
        };
        points.iter().map(one).sum()
    };
    let (mut slope, mut offset) = (0.0, 0.0);
    let mut lowest = loss(slope, offset);
    for _ in 0..STEPS_MAX {
        let (mut to_slope, mut to_offset) = (0.0, 0.0);
        let (mut ss, mut so, mut oo) = (RIDGE, 0.0, RIDGE);
        for (x, target) in points {
            let p = 1.0 / (1.0 + (-(slope * x + offset)).exp());
            let bend = p * (1.0 - p);
            (to_slope, to_offset) = (to_slope + (p - target) * x, to_offset + p - target);
            (ss, so, oo) = (ss + bend * x * x, so + bend * x, oo + bend);
        }
        if to_slope.abs().max(to_offset.abs()) < FLAT {
            break;
        }
        let determinant = ss * oo - so * so;
        let step = ((oo * to_slope - so * to_offset) / determinant, (ss * to_offset - so * to_slope) / determinant);
        let mut size = 1.0;
        let lower = (0..HALVINGS_MAX).find_map(|_| {
            let next = (slope - size * step.0, offset - size * step.1);
            size /= 2.0;
            let found = loss(next.0, next.1);
            (found < lowest).then_some((next, found))
        });
        let Some((next, found)) = lower else { break };
        ((slope, offset), lowest) = (next, found);
    }
    (slope, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores that hold as often as a sigmoid of this slope and offset says.
    fn drawn(slope: f32, offset: f32) -> Vec<(f32, bool)> {
        let mut random = fastrand::Rng::with_seed(2);
        let one = |_| {
            let x = 6.0 * random.f32() - 3.0;
            (x, random.f32() < probability(slope * x + offset))
        };
        (0..20_000).map(one).collect()
    }

    #[test]
    fn finds_the_sigmoid_that_it_was_drawn_from() {
        for (slope, offset) in [(1.0, 0.0), (0.4, 1.5), (2.5, -1.0)] {
            let platt = Platt::of(&drawn(slope, offset));
            assert!((platt.slope - slope).abs() < 0.1 * slope && (platt.offset - offset).abs() < 0.15, "{platt:?}");
        }
    }

    #[test]
    fn never_falls() {
        for slope in [2.0, 0.1, 0.0, -0.1, -2.0] {
            let platt = Platt::of(&drawn(slope, 0.5));
            let told: Vec<f32> = (-40..=40).map(|at| platt.probability(at as f32)).collect();
            assert!(told.is_sorted() && told.iter().all(|p| (0.0..=1.0).contains(p)), "{slope}: {told:?}");
        }
        let useless = Platt::of(&drawn(-2.0, 0.0));
        assert_eq!(useless.slope, 0.0);
        assert!((useless.probability(5.0) - 0.5).abs() < 0.05, "the average: {useless:?}");
    }

    #[test]
    fn few_and_one_sided_turns_stay_finite() {
        let split: Vec<(f32, bool)> = (0..20).map(|at| (at as f32 - 9.5, at >= 10)).collect();
        for judged in [&split[..], &split[..5], &split[..1], &[], &[(1.0, true), (1.0, false)]] {
            assert!(Platt::of(judged).is_sound(), "{judged:?}");
        }
        let platt = Platt::of(&split);
        assert!(platt.probability(9.5) > 0.85 && platt.probability(-9.5) < 0.15, "{platt:?}");
    }
}
