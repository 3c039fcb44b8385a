//! What a run is held against: that overload costs neither throughput, nor those who are being served, nor the time after.

use std::fmt;

use serde::Serialize;

use super::phase::Phase;
use super::sample::Class;

/// Goodput at every overload, as a share of the best.
const GOODPUT_MIN: f64 = 0.9;
/// How much slower ongoing turns may be than at the lowest load, at their p99.
const ONGOING_SLOWER_MAX: f64 = 1.5;
/// How long a refusal may take at its p99, in milliseconds.
const REFUSAL_MS_MAX: f64 = 5.0;
/// How long it may take until it is as before, in seconds.
const RECOVERY_S_MAX: f64 = 10.0;

/// What was wanted of one property, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What is judged.
    pub what: &'static str,
    /// What was found in the worst phase; None when there was nothing to measure.
    pub found: Option<f64>,
    /// The bound.
    pub aim: f64,
    /// Whether the bound is one from below.
    pub at_least: bool,
    /// What the numbers count.
    pub unit: &'static str,
    /// Whether it is as wanted.
    pub holds: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, found, aim, at_least, unit, holds } = self;
        let (mark, sign) = (if *holds { "holds " } else { "missed" }, if *at_least { "≥" } else { "≤" });
        match found {
            Some(found) if found.is_infinite() => write!(f, "{mark}  {what}: never (aim: {sign} {aim}{unit})"),
            Some(found) => write!(f, "{mark}  {what}: {found:.2}{unit} (aim: {sign} {aim}{unit})"),
            None => write!(f, "{mark}  {what}: nothing to measure (aim: {sign} {aim}{unit})"),
        }
    }
}

/// The verdicts on these phases. Those that nothing speaks against hold.
#[must_use]
pub fn verdicts(phases: &[Phase]) -> Vec<Verdict> {
    let lowest = phases.iter().min_by(|a, b| a.multiple.total_cmp(&b.multiple));
    let overloads = || phases.iter().filter(|phase| phase.multiple > 1.0);
    let peak = phases.iter().map(Phase::goodput_per_s).fold(0.0, f64::max);
    let share = |phase: &Phase| if peak > 0.0 { phase.goodput_per_s() / peak } else { 0.0 };
    let ongoing_p99 = |phase: &Phase| Some(phase.of_class(Class::Ongoing).total?.p99_us as f64);
    let normal = lowest.and_then(ongoing_p99);
    // Ongoing turns of which none is answered are as slow as can be.
    let slower = |phase: &Phase| {
        let was_asked = phase.of_class(Class::Ongoing).offered > 0;
        let normal = normal.filter(|_| was_asked)?;
        Some(ongoing_p99(phase).map_or(f64::INFINITY, |p99| p99 / normal))
    };
    let refusals = phases.iter().flat_map(|phase| &phase.classes).filter_map(|class| class.refusal);
    let refusal_ms = refusals.map(|times| times.p99_us as f64 / 1e3);
    let recovery = |phase: &Phase| phase.recovery_s.map_or(f64::INFINITY, |seconds| seconds as f64);
    let recovery = overloads().filter(|phase| !phase.after.is_empty()).map(recovery);
    vec![
        at_least("worst goodput at overload, as a share of the best", "", overloads().map(share), GOODPUT_MIN),
        at_most(
            "p99 of ongoing turns, against the lowest load",
            " x",
            phases.iter().filter_map(slower),
            ONGOING_SLOWER_MAX,
        ),
        at_most("p99 of refusals", " ms", refusal_ms, REFUSAL_MS_MAX),
        at_most("time until it is as before", " s", recovery, RECOVERY_S_MAX),
    ]
}

fn at_least(what: &'static str, unit: &'static str, found: impl Iterator<Item = f64>, aim: f64) -> Verdict {
    let found = found.reduce(f64::min);
    Verdict { what, found, aim, at_least: true, unit, holds: found.is_none_or(|found| found >= aim) }
}

fn at_most(what: &'static str, unit: &'static str, found: impl Iterator<Item = f64>, aim: f64) -> Verdict {
    let found = found.reduce(f64::max);
    Verdict { what, found, aim, at_least: false, unit, holds: found.is_none_or(|found| found <= aim) }
}

#[cfg(test)]
mod tests {
    use super::super::phase::fixtures::phase;
    use super::super::sample::Outcome;
    use super::*;

    fn answered(ms: u64) -> [(Class, Outcome, u64); 2] {
        Class::ALL.map(|class| (class, Outcome::Answered, ms))
    }

    #[test]
    fn the_worst_phase_decides() {
        let mut overload = phase(2.0, [(Class::New, Outcome::Refused, 6), (Class::Ongoing, Outcome::Answered, 16)]);
        overload.recovery_s = Some(4);
        let mut more = phase(5.0, [(Class::New, Outcome::Refused, 4), (Class::Ongoing, Outcome::Answered, 12)]);
        more.recovery_s = None;
        let found = verdicts(&[phase(0.5, answered(10)), overload, more]);
        let numbers: Vec<_> = found.iter().map(|verdict| (verdict.found, verdict.holds)).collect();
        // At twice the capacity 100 ongoing turns a second are answered, at five times it 250.
        assert_eq!(numbers, [(Some(0.4), false), (Some(1.6), false), (Some(6.0), false), (Some(f64::INFINITY), false)]);
        let told = "missed  p99 of ongoing turns, against the lowest load: 1.60 x (aim: ≤ 1.5 x)";
        assert_eq!(found[1].to_string(), told);
    }

    #[test]
    fn what_is_good_enough_holds() {
        let mut overload = phase(2.0, [(Class::New, Outcome::Refused, 5), (Class::Ongoing, Outcome::Answered, 15)]);
        overload.recovery_s = Some(10);
        let found = verdicts(&[phase(0.5, answered(10)), overload]);
        assert!(found.iter().all(|verdict| verdict.holds), "{found:?}");
        let found = verdicts(&[phase(0.5, answered(10))]);
        assert!(found.iter().all(|verdict| verdict.holds), "{found:?}");
        assert_eq!(found[2].to_string(), "holds   p99 of refusals: nothing to measure (aim: ≤ 5 ms)");
    }

    #[test]
    fn ongoing_turns_that_get_nothing_are_no_success() {
        let nothing = Class::ALL.map(|class| (class, Outcome::Refused, 1));
        let found = verdicts(&[phase(0.5, answered(10)), phase(2.0, nothing)]);
        assert_eq!(found[1].found, Some(f64::INFINITY));
        assert_eq!((found[0].found, found[0].holds), (Some(0.0), false));
    }
}
