//! How good a router is: what it has to spend for a quality, beside chance and beside one that knows the outcome.
//!
//! Turns are sent to the large tier in the order in which the router finds the small one least likely to suffice; *quality* is
//! the share of right answers. Over the share of large turns that is a line from the small tier's quality to the large one's.
//! By chance it is straight. The oracle sends first those that only the large tier answers right, and last those that only the
//! small one does. The measures are those of Ong et al. 2024, "RouteLLM", <https://arxiv.org/abs/2406.18665>, and the share of
//! the way from chance to the oracle.

use std::time::Instant;

use serde::Serialize;

use super::curve::{CurvePoint, Outcome, Target, point};
use super::{Router, RouterExample};

/// Shares of the large tier's quality that are reported.
const QUALITIES: [f64; 3] = [0.9, 0.95, 0.99];
/// Shares of the gap between the tiers that are reported.
const GAPS: [f64; 2] = [0.5, 0.8];
/// Areas and qualities that differ by less are equal.
const ROUNDING: f64 = 1e-9;

/// How good a router is on turns of which both tiers' answers were judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingReport {
    /// How many turns.
    pub turns: usize,
    /// Share of them that the small tier answers right.
    pub small_quality: f64,
    /// Share of them that the large tier answers right.
    pub large_quality: f64,
    /// Area between the router's line and chance's, as a share of that between the oracle's and chance's: 0 for chance, 1 for
    /// the oracle. None where these two are one.
    pub gap_closed: Option<f64>,
    /// RouteLLM's average performance gap recovered: the mean over all shares of large turns of how far quality has come from
    /// the small tier's to the large one's; 0.5 for chance. None where the large tier is no better.
    pub apgr: Option<f64>,
    /// The same of the oracle.
    pub oracle_apgr: Option<f64>,
    /// What it takes to keep so much of the large tier's quality.
    pub kept: Vec<Kept>,
    /// What it takes to recover so much of the gap between the tiers: RouteLLM's call-performance threshold.
    pub recovered: Vec<Recovered>,
    /// How long a decision took.
    pub decision_time: DecisionTime,
}

/// What it takes to keep a share of the large tier's quality.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// The share.
    pub quality: f64,
    /// What it takes on these turns, seen from behind.
    pub needed: Needed,
    /// What the router made of these turns with the probability that it requires by itself for this.
    pub met: CurvePoint,
}

/// What it takes to recover a share of the gap between the tiers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recovered {
    /// The share.
    pub gap: f64,
    /// What it takes on these turns, seen from behind.
    pub needed: Needed,
}

/// Least shares of turns for the large tier with which something is reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Needed {
    /// As the router chooses them.
    pub router: f64,
    /// As chance does.
    pub random: f64,
    /// As one does that knows who is right.
    pub oracle: f64,
}

/// How long a decision took, reading the text included and encoding it not, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DecisionTime {
    /// Half of them took at most so long.
    pub p50_us: f64,
    /// 99 of 100 took at most so long.
    pub p99_us: f64,
}

/// Judges a router on turns that it should not have been fitted to; None when there are none.
#[must_use]
pub fn evaluate_router(router: &Router, examples: &[RouterExample]) -> Option<RoutingReport> {
    let mut times_us = Vec::with_capacity(examples.len());
    let mut outcomes = Vec::with_capacity(examples.len());
    for example in examples {
        let begun = Instant::now();
        let decision = router.decide(&example.input(), Target::Quality(QUALITIES[0]));
        times_us.push(begun.elapsed().as_secs_f64() * 1e6);
        let RouterExample { small_correct, large_correct, .. } = *example;
        outcomes.push(Outcome { probability: decision.probability.unwrap_or_default(), small_correct, large_correct });
    }
    times_us.sort_by(f64::total_cmp);
    let quantile = |percent: usize| times_us.get((times_us.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    let decision_time = DecisionTime { p50_us: quantile(50)?, p99_us: quantile(99)? };
    Some(report(&outcomes, &|target| router.curve.required(target), decision_time))
}

/// From outcomes, and what is `required` for a target.
fn report(outcomes: &[Outcome], required: &dyn Fn(Target) -> f32, decision_time: DecisionTime) -> RoutingReport {
    let [router, oracle] = [Line::of_router(outcomes), Line::of_oracle(outcomes)];
    let (small, large) = router.ends();
    let random = Line(vec![(0.0, small), (1.0, large)]);
    let needed = |quality: f64| Needed {
        router: router.share_at(quality),
        random: random.share_at(quality),
        oracle: oracle.share_at(quality),
    };
    let share_of = |part: f64, whole: f64| (whole > ROUNDING).then(|| part / whole);
    let kept = QUALITIES.map(|quality| Kept {
        quality,
        needed: needed(quality * large),
        met: point(outcomes, required(Target::Quality(quality))),
    });
    let recovered = GAPS.map(|gap| Recovered { gap, needed: needed(small + gap * (large - small)) });
    RoutingReport {
        turns: outcomes.len(),
        small_quality: small,
        large_quality: large,
        gap_closed: share_of(router.area() - random.area(), oracle.area() - random.area()),
        apgr: share_of(router.area() - small, large - small),
        oracle_apgr: share_of(oracle.area() - small, large - small),
        kept: kept.into(),
        recovered: recovered.into(),
        decision_time,
    }
}

/// Quality over the share of large turns: places from share 0 to share 1, and straight lines between them.
struct Line(Vec<(f64, f64)>);

impl Line {
    /// In the order of probability; turns that are as likely come in any order, so the line between them is straight.
    fn of_router(outcomes: &[Outcome]) -> Self {
        let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
        sorted.sort_by(|a, b| a.probability.total_cmp(&b.probability));
        let alike = sorted.chunk_by(|a, b| a.probability.total_cmp(&b.probability).is_eq());
        Self::of(outcomes, alike.map(|turns| (turns.len(), turns.iter().map(|turn| gain(turn)).sum())))
    }

    fn of_oracle(outcomes: &[Outcome]) -> Self {
        let group = |wanted: i64| {
            let turns = outcomes.iter().filter(|outcome| gain(outcome) == wanted).count();
            (turns, wanted * i64::try_from(turns).unwrap_or(i64::MAX))
        };
        Self::of(outcomes, [1, 0, -1].into_iter().map(group))
    }

    /// From groups of turns, in the order in which they go to the large tier, with the answers that each makes right.
    fn of(outcomes: &[Outcome], groups: impl Iterator<Item = (usize, i64)>) -> Self {
        let all = outcomes.len().max(1) as f64;
        let small_right = outcomes.iter().filter(|outcome| outcome.small_correct).count();
        let (mut large, mut gained) = (0, 0);
        let mut places = vec![(0.0, small_right as f64 / all)];
        for (turns, more) in groups {
            (large, gained) = (large + turns, gained + more);
            places.push((large as f64 / all, (small_right as f64 + gained as f64) / all));
        }
        Self(places)
    }

    /// Quality without and with nothing but the large tier.
    fn ends(&self) -> (f64, f64) {
        let quality = |place: Option<&(f64, f64)>| place.map_or(0.0, |(_, quality)| *quality);
        (quality(self.0.first()), quality(self.0.last()))
    }

    fn area(&self) -> f64 {
        self.0.windows(2).map(|ends| (ends[1].0 - ends[0].0) * f64::midpoint(ends[0].1, ends[1].1)).sum()
    }

    /// The least share at which a quality is reached; 1 where it is not.
    fn share_at(&self, quality: f64) -> f64 {
        let wanted = quality - ROUNDING;
        if self.ends().0 >= wanted {
            return 0.0;
        }
        let reaches = self.0.windows(2).find(|ends| ends[1].1 >= wanted);
        reaches.map_or(1.0, |ends| {
            let [(from, low), (to, high)] = [ends[0], ends[1]];
            from + (to - from) * ((quality - low) / (high - low)).clamp(0.0, 1.0)
        })
    }
}

/// What the large tier adds for a turn: an answer that is right, nothing, or one that is wrong.
fn gain(outcome: &Outcome) -> i64 {
    i64::from(outcome.large_correct) - i64::from(outcome.small_correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten turns by probability: the small tier is right where there is an s, the large one where there is an l.
    const TURNS: [&str; 10] = ["l", "l", "s", "l", "sl", "l", "sl", "", "sl", "sl"];

    fn outcomes(probability: impl Fn(usize) -> f32) -> Vec<Outcome> {
        let one = |(at, who): (usize, &&str)| Outcome {
            probability: probability(at),
            small_correct: who.contains('s'),
            large_correct: who.contains('l'),
        };
        TURNS.iter().enumerate().map(one).collect()
    }

    fn judge(outcomes: &[Outcome]) -> RoutingReport {
        report(outcomes, &|_| 0.35, DecisionTime::default())
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn areas_are_those_of_a_hand_made_example() {
        let judged = judge(&outcomes(|at| at as f32 / 10.0));
        assert!(close(judged.small_quality, 0.5) && close(judged.large_quality, 0.8), "{judged:?}");
        // Right answers after 0 to 10 large turns: 5 6 7 6 7 7 8 8 8 8 8, so the area is 71.5 / 100; chance has 65 / 100, and
        // the oracle, 5 6 7 8 9 9 9 9 9 9 8, has 81.5 / 100.
        assert!(close(judged.gap_closed.unwrap(), 6.5 / 16.5), "{judged:?}");
        assert!(close(judged.apgr.unwrap(), 21.5 / 30.0) && close(judged.oracle_apgr.unwrap(), 31.5 / 30.0));
        // 90 % of 8 are 7.2: between 5 and 6 large turns; 2.2 of the 3 that the large tier adds, or of the oracle's first 4.
        let ninety = judged.kept[0].needed;
        assert!(
            close(ninety.router, 0.52) && close(ninety.random, 2.2 / 3.0) && close(ninety.oracle, 0.22),
            "{ninety:?}"
        );
        // Half of the gap is 1.5 answers.
        let half = judged.recovered[0].needed;
        assert!(close(half.router, 0.15) && close(half.random, 0.5) && close(half.oracle, 0.15), "{half:?}");
        // What it requires itself, 0.35, sends four turns to the large tier.
        let met = judged.kept[0].met;
        assert!(close(met.large_share, 0.4) && close(met.quality_kept, 7.0 / 8.0), "{met:?}");
    }

    #[test]
    fn an_oracle_closes_the_gap_and_its_opposite_opens_it() {
        let knowing = |sign: f32| {
            let gains = outcomes(|_| 0.0).iter().map(|turn| gain(turn) as f32).collect::<Vec<_>>();
            judge(&outcomes(|at| 0.5 - sign * gains[at] / 4.0)).gap_closed.unwrap()
        };
        assert!(close(knowing(1.0), 1.0), "{}", knowing(1.0));
        assert!(close(knowing(-1.0), -1.0), "{}", knowing(-1.0));
        assert!(close(judge(&outcomes(|_| 0.5)).gap_closed.unwrap(), 0.0), "what tells nothing apart is chance");
    }

    #[test]
    fn where_the_tiers_are_alike_there_is_no_gap() {
        let alike = [Outcome { probability: 0.5, small_correct: true, large_correct: true }; 3];
        let judged = judge(&alike);
        assert_eq!((judged.gap_closed, judged.apgr, judged.oracle_apgr), (None, None, None));
        assert!(judged.kept.iter().all(|kept| kept.needed == Needed { router: 0.0, random: 0.0, oracle: 0.0 }));
        let worse = [Outcome { probability: 0.5, small_correct: true, large_correct: false }; 3];
        assert_eq!(judge(&worse).apgr, None, "the large tier is no better");
    }
}
