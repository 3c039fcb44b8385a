//! What a run is held against: that overload costs neither throughput, nor those who are being served, nor the time after.

use std::fmt;

use serde::Serialize;

use super::phase::Phase;
use super::sample::Class;
use super::seconds::Recovery;

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
    /// What was found in the worst phase; None when there was nothing to measure, or nothing to compare with.
    pub found: Option<f64>,
    /// The bound.
    pub aim: f64,
    /// Whether the bound is one from below.
    pub at_least: bool,
    /// What the numbers count.
    pub unit: &'static str,
    /// Whether it is as wanted; None where that cannot be told.
    pub holds: Option<bool>,
    /// Why it cannot.
    pub unknown: Option<&'static str>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, found, aim, at_least, unit, holds, unknown } = self;
        let sign = if *at_least { "≥" } else { "≤" };
        let mark = holds.map_or("-     ", |holds| if holds { "holds " } else { "missed" });
        if let Some(why) = unknown {
            return write!(f, "{mark}  {what}: not known, {why} (aim: {sign} {aim}{unit})");
        }
        match found {
            Some(found) if found.is_infinite() => write!(f, "{mark}  {what}: never (aim: {sign} {aim}{unit})"),
            Some(found) => write!(f, "{mark}  {what}: {found:.2}{unit} (aim: {sign} {aim}{unit})"),
            None => write!(f, "{mark}  {what}: nothing to measure (aim: {sign} {aim}{unit})"),
        }
    }
}

/// The phase that overloads are compared with: the lowest load, if it is below 1 x.
pub(super) fn lowest(phases: &[Phase]) -> Option<&Phase> {
    let below = phases.iter().filter(|phase| phase.multiple < 1.0);
    below.min_by(|a, b| a.multiple.total_cmp(&b.multiple))
}

/// The verdicts on these phases. Those that nothing speaks against hold.
#[must_use]
pub fn verdicts(phases: &[Phase]) -> Vec<Verdict> {
    let overloads = || phases.iter().filter(|phase| phase.multiple > 1.0);
    let peak = phases.iter().map(Phase::goodput_per_s).fold(0.0, f64::max);
    let share = |phase: &Phase| if peak > 0.0 { phase.goodput_per_s() / peak } else { 0.0 };
    let goodput =
        at_least("worst goodput at overload, as a share of the best", "", overloads().map(share), GOODPUT_MIN);
    let ongoing = || phases.iter().map(|phase| phase.of_class(Class::Ongoing));
    let refused = at_most("ongoing turns that were refused", "", ongoing().map(|class| class.refused as f64), 0.0);
    let refusals = phases.iter().flat_map(|phase| &phase.classes).filter_map(|class| class.refusal);
    let refusal = at_most("p99 of refusals", " ms", refusals.map(|times| times.p99_us as f64 / 1e3), REFUSAL_MS_MAX);
    vec![goodput, slower(phases), refused, refusal, recovered(phases)]
}

/// How much slower ongoing turns are than at the lowest load. Who gets no answer is as slow as can be.
fn slower(phases: &[Phase]) -> Verdict {
    let p99 = |phase: &Phase| phase.of_class(Class::Ongoing).answered_p99_us.map_or(f64::INFINITY, |p99| p99 as f64);
    let was_asked = |phase: &&Phase| phase.of_class(Class::Ongoing).offered > 0;
    let normal = lowest(phases).filter(was_asked).map(p99);
    let found = phases.iter().filter(was_asked).map(|phase| p99(phase) / normal.unwrap_or(1.0));
    let found = at_most("p99 of ongoing turns, against the lowest load", " x", found, ONGOING_SLOWER_MAX);
    match normal {
        Some(normal) if normal.is_infinite() => found.unknown("too many get no answer there"),
        None if found.found.is_some() => found.unknown("there is no load below 1 x to compare with"),
        _ => found,
    }
}

fn recovered(phases: &[Phase]) -> Verdict {
    let overloads = || phases.iter().filter(|phase| phase.multiple > 1.0 && !phase.after.is_empty());
    let seconds = overloads().filter_map(|phase| match phase.recovery {
        Recovery::AfterS(seconds) => Some(seconds as f64),
        Recovery::Never => Some(f64::INFINITY),
        Recovery::Unknown(_) => None,
    });
    let found = at_most("time until it is as before", " s", seconds, RECOVERY_S_MAX);
    let unknown = overloads().find_map(|phase| match phase.recovery {
        Recovery::Unknown(why) => Some(why),
        Recovery::AfterS(_) | Recovery::Never => None,
    });
    match unknown {
        // What is known to be missed stays so, whatever else is not known.
        Some(why) if found.holds == Some(true) => found.unknown(why),
        _ => found,
    }
}

impl Verdict {
    fn unknown(self, why: &'static str) -> Self {
        Self { found: None, holds: None, unknown: Some(why), ..self }
    }
}

fn at_least(what: &'static str, unit: &'static str, found: impl Iterator<Item = f64>, aim: f64) -> Verdict {
    let found = found.reduce(f64::min);
    Verdict {
        what,
        found,
        aim,
        at_least: true,
        unit,
        holds: Some(found.is_none_or(|found| found >= aim)),
        unknown: None,
    }
}

fn at_most(what: &'static str, unit: &'static str, found: impl Iterator<Item = f64>, aim: f64) -> Verdict {
    let found = found.reduce(f64::max);
    Verdict {
        what,
        found,
        aim,
        at_least: false,
        unit,
        holds: Some(found.is_none_or(|found| found <= aim)),
        unknown: None,
    }
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
        overload.recovery = Recovery::AfterS(4);
        let mut more = phase(5.0, [(Class::New, Outcome::Refused, 4), (Class::Ongoing, Outcome::Answered, 12)]);
        more.recovery = Recovery::Never;
        let found = verdicts(&[phase(0.5, answered(10)), overload, more]);
        let numbers: Vec<_> = found.iter().map(|verdict| (verdict.found, verdict.holds)).collect();
        // At twice the capacity 100 ongoing turns a second are answered, at five times it 250.
        let missed = [0.4, 1.6, 6.0, f64::INFINITY].map(|found| (Some(found), Some(false)));
        assert_eq!([&numbers[..2], &numbers[3..]].concat(), missed);
        assert_eq!(numbers[2], (Some(0.0), Some(true)), "no ongoing turn was refused");
        let told = "missed  p99 of ongoing turns, against the lowest load: 1.60 x (aim: ≤ 1.5 x)";
        assert_eq!(found[1].to_string(), told);
    }

    #[test]
    fn what_is_good_enough_holds() {
        let mut overload = phase(2.0, [(Class::New, Outcome::Refused, 5), (Class::Ongoing, Outcome::Answered, 15)]);
        overload.recovery = Recovery::AfterS(10);
        let found = verdicts(&[phase(0.5, answered(10)), overload]);
        assert!(found.iter().all(|verdict| verdict.holds == Some(true)), "{found:?}");
        let found = verdicts(&[phase(0.5, answered(10))]);
        assert!(found.iter().all(|verdict| verdict.holds == Some(true)), "{found:?}");
        assert_eq!(found[3].to_string(), "holds   p99 of refusals: nothing to measure (aim: ≤ 5 ms)");
    }

    #[test]
    fn ongoing_turns_that_get_nothing_are_no_success() {
        let nothing = Class::ALL.map(|class| (class, Outcome::Refused, 1));
        let found = verdicts(&[phase(0.5, answered(10)), phase(2.0, nothing)]);
        assert_eq!(found[1].found, Some(f64::INFINITY));
        assert_eq!((found[0].found, found[0].holds), (Some(0.0), Some(false)));
        assert_eq!((found[2].found, found[2].holds), (Some(200.0), Some(false)));
    }

    #[test]
    fn what_cannot_be_compared_is_not_judged() {
        let mut overload = phase(2.0, answered(15));
        overload.recovery = Recovery::Unknown("nobody came");
        let found = verdicts(&[phase(1.0, answered(10)), overload.clone()]);
        let told = "-       p99 of ongoing turns, against the lowest load: not known, there is no load below 1 x to compare with \
                    (aim: ≤ 1.5 x)";
        assert_eq!(found[1].to_string(), told);
        assert_eq!((found[4].holds, found[4].unknown), (None, Some("nobody came")));
        let nothing = [(Class::New, Outcome::Answered, 10), (Class::Ongoing, Outcome::Failed, 10)];
        let found = verdicts(&[phase(0.5, nothing), overload]);
        assert_eq!((found[1].holds, found[1].unknown), (None, Some("too many get no answer there")));
    }
}
