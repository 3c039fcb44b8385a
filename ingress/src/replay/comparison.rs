//! The same log under several ways of keeping cached answers in step with the knowledge base, in one table.

use std::fmt;

use serde::Serialize;

use super::report::{Report, count, percent};
use super::scheme::Scheme;

/// Replays of one log.
#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// In the order in which they were run.
    pub runs: Vec<Run>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Run {
    /// What kept cached answers in step.
    pub validity: Scheme,
    /// What came of it.
    pub report: Report,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["hit rate", "wrong/hit", "stale/hit", "stale", "invalidated"];
        let [rate, wrong, stale_share, stale, invalidated] = head;
        writeln!(f, "{:<18}{rate:>11}{wrong:>11}{stale_share:>11}{stale:>9}{invalidated:>13}", "validity")?;
        for Run { validity, report } in &self.runs {
            // Without labels, nobody knows what is wrong.
            let all = report.scores.as_ref().and_then(|scores| scores.parts.first());
            let judged = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
            let rate = percent(all.map_or(report.load_taken_off.turns_share, |all| all.hit_rate));
            let wrong = judged(all.map(|all| percent(all.wrong_per_hit)));
            let stale_share = judged(all.map(|all| percent(all.stale_per_hit)));
            let stale = judged(all.map(|all| count(all.stale)));
            let invalidated = count(report.changes.as_ref().map_or(0, |changes| changes.invalidated.all));
            let name = validity.to_string();
            writeln!(f, "{name:<18}{rate:>11}{wrong:>11}{stale_share:>11}{stale:>9}{invalidated:>13}")?;
        }
        Ok(())
    }
}
