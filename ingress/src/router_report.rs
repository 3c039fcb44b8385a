//! Figures about a router as the command line tells them: what it spends for which quality, by source.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use turnflow_models::{Needed, Router, RouterExample, RoutingReport, evaluate_router};

/// How a report calls the turns of all sources together.
const ALL: &str = "all";

/// How good a router is on turns of one source.
#[derive(Debug, PartialEq, Serialize)]
pub struct Routed {
    /// Whose turns.
    pub source: String,
    /// What came of them.
    #[serde(flatten)]
    pub report: RoutingReport,
}

impl Routed {
    /// On the turns of each source, those of all first where there are several: what is told apart between sources alone says
    /// little of what is told apart within one.
    #[must_use]
    pub fn by_source<'a>(router: &Router, turns: impl IntoIterator<Item = (&'a str, RouterExample)>) -> Vec<Self> {
        let mut by_source = BTreeMap::<&str, Vec<RouterExample>>::new();
        for (source, turn) in turns {
            by_source.entry(source).or_default().push(turn);
        }
        let all = (by_source.len() > 1).then(|| (ALL, by_source.values().flatten().cloned().collect::<Vec<_>>()));
        let report = |(source, turns): (&str, Vec<RouterExample>)| {
            Some(Self { source: source.to_owned(), report: evaluate_router(router, &turns)? })
        };
        all.into_iter().chain(by_source).filter_map(report).collect()
    }
}

impl fmt::Display for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, report } = self;
        let (small, large) = (percent(report.small_quality), percent(report.large_quality));
        writeln!(
            f,
            "{source}: {} turns, {small} answered right by the small tier, {large} by the large one",
            report.turns
        )?;
        let closed = report.gap_closed.map_or_else(|| "-".to_owned(), percent);
        let why = if report.gap_closed.is_some() { "" } else { ": an oracle is no better than chance" };
        write!(f, "  closes {closed} of the gap between chance and an oracle{why}")?;
        match report.apgr.zip(report.oracle_apgr) {
            Some((apgr, oracle)) => writeln!(f, "; APGR {apgr:.3}, the oracle's {oracle:.3}, chance's 0.5")?,
            None => writeln!(f, "; APGR -: the large tier is no better than the small one")?,
        }
        for kept in &report.kept {
            writeln!(
                f,
                "  keeping {} of the large tier's quality needs {}; with its own threshold {} are large and {} is kept",
                percent(kept.quality),
                Shares(&kept.needed),
                percent(kept.met.large_share),
                percent(kept.met.quality_kept)
            )?;
        }
        for recovered in &report.recovered {
            writeln!(f, "  recovering {} of the gap needs {}", percent(recovered.gap), Shares(&recovered.needed))?;
        }
        let time = report.decision_time;
        writeln!(f, "  half of the decisions took at most {:.0} µs, 99 of 100 {:.0} µs", time.p50_us, time.p99_us)
    }
}

struct Shares<'a>(&'a Needed);

impl fmt::Display for Shares<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Needed { router, random, oracle } = *self.0;
        write!(f, "{} large turns (chance {}, oracle {})", percent(router), percent(random), percent(oracle))
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use turnflow_models::DecisionTime;

    use super::*;

    #[test]
    fn what_there_is_of_the_gap_is_told_and_why_the_rest_is_not() {
        let told = |gap_closed, apgr: Option<f64>| {
            let report = RoutingReport {
                turns: 10,
                small_quality: 0.6,
                large_quality: 0.6,
                gap_closed,
                apgr,
                oracle_apgr: apgr.map(|apgr| apgr + 0.1),
                kept: Vec::new(),
                recovered: Vec::new(),
                decision_time: DecisionTime::default(),
            };
            let text = Routed { source: "exam".to_owned(), report }.to_string();
            text.lines().nth(1).expect("a second line").trim().to_owned()
        };
        let gap = "of the gap between chance and an oracle";
        assert_eq!(
            told(Some(0.5), Some(0.8)),
            format!("closes 50.0 % {gap}; APGR 0.800, the oracle's 0.900, chance's 0.5")
        );
        assert_eq!(
            told(Some(0.5), None),
            format!("closes 50.0 % {gap}; APGR -: the large tier is no better than the small one")
        );
        assert_eq!(
            told(None, None),
            format!(
                "closes - {gap}: an oracle is no better than chance; APGR -: the large tier is no better than the small one"
            )
        );
    }
}
