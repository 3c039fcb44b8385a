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
        match (report.gap_closed, report.apgr, report.oracle_apgr) {
            (Some(gap_closed), Some(apgr), Some(oracle)) => writeln!(
                f,
                "  closes {} of the gap between chance and an oracle; APGR {apgr:.3}, the oracle's {oracle:.3}, chance's 0.5",
                percent(gap_closed)
            )?,
            _ => writeln!(f, "  no gap to close: the large tier is no better, or never alone in being right")?,
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
