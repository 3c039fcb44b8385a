//! What a run found, as text for a terminal and as JSON.

use std::fmt;

use serde::Serialize;

use super::capacity::Step;
use super::phase::Phase;
use super::seconds::Recovery;
use super::summary::{ClassFigures, Quantiles};
use super::verdict::Verdict;
use crate::replay::grid::Grid;
use crate::replay::report::{count, millis};

const MIB: f64 = 1024.0 * 1024.0;

/// What a run found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// What loads are multiples of.
    pub capacity: Capacity,
    /// Share of the turns that were to go on with a conversation.
    pub ongoing_share: f64,
    /// An answer that takes longer is late, in milliseconds.
    pub slo_ms: u64,
    /// The phases, in their order.
    pub phases: Vec<Phase>,
    /// What that is held against.
    pub verdicts: Vec<Verdict>,
    /// Why the first turn that failed did.
    pub first_failure: Option<String>,
}

/// Turns per second that are answered at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// How many.
    pub turns_per_s: f64,
    /// How it was measured; empty when it was given.
    pub steps: Vec<Step>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.capacity)?;
        writeln!(
            f,
            "{:.0} % of the turns go on with a conversation; an answer is late after {} ms; times count from when a turn was due\n",
            self.ongoing_share * 100.0,
            self.slo_ms
        )?;
        writeln!(f, "{}", self.outcomes())?;
        writeln!(f, "{}", self.times())?;
        for phase in &self.phases {
            writeln!(f, "{phase}")?;
        }
        if let Some(why) = &self.first_failure {
            writeln!(f, "the first turn that failed: {why}")?;
        }
        writeln!(f)?;
        self.verdicts.iter().try_for_each(|verdict| writeln!(f, "{verdict}"))
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capacity: {:.1} turns/s", self.turns_per_s)?;
        let steps: Vec<_> = self
            .steps
            .iter()
            .map(|step| {
                let felt = if step.was_loaded { ", some refused or degraded" } else { "" };
                format!("{:.1} with {} in flight{felt}", step.turns_per_s, step.in_flight)
            })
            .collect();
        if steps.is_empty() { f.write_str(" (given)") } else { write!(f, " ({})", steps.join("; ")) }
    }
}

impl LoadReport {
    /// What became of the turns, by phase and class.
    fn outcomes(&self) -> Grid {
        let row = |class: &ClassFigures| {
            let counts = [class.offered, class.answered, class.late, class.refused, class.failed];
            let counts = counts.into_iter().map(count);
            counts.chain([format!("{:.1}", class.goodput_per_s)]).collect()
        };
        self.grid(&["offered", "in time", "late", "refused", "failed", "goodput/s"], row)
    }

    /// How long it took, by phase and class.
    fn times(&self) -> Grid {
        let row = |class: &ClassFigures| {
            let told = |times: Option<Quantiles>, which: &[fn(&Quantiles) -> u64]| -> Vec<String> {
                which.iter().map(|which| times.as_ref().map_or("–".to_owned(), |times| millis(which(times)))).collect()
            };
            let all: [fn(&Quantiles) -> u64; 4] = [|t| t.p50_us, |t| t.p90_us, |t| t.p99_us, |t| t.max_us];
            [told(class.first_token, &all), told(class.total, &all), told(class.refusal, &all[2..])].concat()
        };
        let head = ["first p50", "p90", "p99", "max", "total p50", "p90", "p99", "max", "refusal p99", "max"];
        self.grid(&head, row)
    }

    /// A row for each class of each phase, as far as it was asked.
    fn grid(&self, head: &[&str], row: impl Fn(&ClassFigures) -> Vec<String>) -> Grid {
        let row = &row;
        let rows = self.phases.iter().flat_map(|phase| {
            let asked = phase.classes.iter().filter(|class| class.offered > 0);
            asked
                .map(move |class| [vec![format!("{} x {}", phase.multiple, class.class.as_str())], row(class)].concat())
        });
        let head = std::iter::once("load").chain(head.iter().copied()).map(str::to_owned).collect();
        Grid { head, rows: rows.collect() }
    }
}

impl fmt::Display for Phase {
    /// What is not told by class.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x ({:.1} turns/s for {} s):", self.multiple, self.rate_per_s, self.seconds)?;
        if let Some(times) = &self.generator.lateness {
            write!(f, " sent late by {} at p99", millis(times.p99_us))?;
        }
        let (late, unsent) = (self.generator.late, self.generator.unsent);
        if late + unsent > 0 {
            write!(f, ", generator-late: {} sent more than 10 ms late and {} not sent", count(late), count(unsent))?;
        }
        if let Some(bytes) = self.resident_bytes_max {
            write!(f, "; resident {:.0} MiB at most", bytes as f64 / MIB)?;
        }
        match self.recovery {
            Recovery::AfterS(seconds) => write!(f, "; as before after {seconds} s")?,
            Recovery::Never => write!(f, "; not as before after {} s", self.after.len())?,
            Recovery::Unknown(why) => write!(f, "; not known when it was as before: {why}")?,
        }
        for class in self.classes.iter().filter(|class| class.offered > 0) {
            let writers = class.writers.iter().map(|(by, answers)| format!("{} by {}", count(*answers), by.as_str()));
            let without =
                [(class.refused, "refused"), (class.failed, "failed")].into_iter().filter(|(turns, _)| *turns > 0);
            let without = without.map(|(turns, how)| format!("{} {how}", count(turns)));
            let all: Vec<_> = writers.chain(without).collect();
            write!(f, "\n  {} turns: {}", class.class.as_str(), all.join(", "))?;
        }
        if let Some(batches) = self.encoder_batches.as_ref().filter(|batches| !batches.is_empty()) {
            let batches = batches.iter().map(|batch| format!("{} of {}", count(batch.passes), batch.size));
            write!(f, "\n  encoder batches by texts: {}", batches.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::phase::fixtures::phase;
    use super::super::sample::{Class, Outcome};
    use super::super::verdict::verdicts;
    use super::*;

    #[test]
    fn the_text_tells_every_phase_and_class() {
        let mut overload = phase(2.0, [(Class::New, Outcome::Refused, 3), (Class::Ongoing, Outcome::Answered, 20)]);
        overload.generator.unsent = 7;
        overload.resident_bytes_max = Some(200 << 20);
        overload.recovery = Recovery::Never;
        let phases = vec![phase(0.5, Class::ALL.map(|class| (class, Outcome::Answered, 10))), overload];
        let report = LoadReport {
            capacity: Capacity {
                turns_per_s: 100.0,
                steps: vec![Step { in_flight: 8, turns_per_s: 100.0, was_loaded: true }],
            },
            ongoing_share: 0.5,
            slo_ms: 2_000,
            verdicts: verdicts(&phases),
            phases,
            first_failure: Some("internal: broken".to_owned()),
        };
        let text = report.to_string();
        for expected in [
            "capacity: 100.0 turns/s (100.0 with 8 in flight, some refused or degraded)",
            "0.5 x new",
            "2 x ongoing",
            "generator-late: 0 sent more than 10 ms late and 7 not sent",
            "resident 200 MiB at most",
            "not as before after 3 s",
            "the first turn that failed: internal: broken",
            "not known when it was as before: there is nothing to compare with",
            "new turns: 200 refused",
            "ongoing turns: 200 by the large tier",
            "holds   p99 of refusals: 3.00 ms (aim: ≤ 5 ms)",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        let row = text.lines().find(|line| line.starts_with("2 x new")).expect("a row");
        assert_eq!(row.split_whitespace().skip(3).collect::<Vec<_>>(), ["200", "0", "0", "200", "0", "0.0"]);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["phases"][1]["classes"][0]["refused"], 200);
        assert_eq!(json["phases"][1]["classes"][1]["writers"]["large-tier"], 200);
    }
}
