//! The same log under several settings, in one table.

use std::fmt;

use serde::Serialize;

use super::grid::Grid;
use super::report::{MADE_UP, PathLatency, Report, count, millis, percent};
use super::scores::PartScore;
use super::sweep::Variable;

/// Replays of one log.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// What tells the settings apart.
    #[serde(flatten)]
    pub variable: Variable,
    /// What encoding texts took before the first of them; `null` when every replay encodes for itself.
    pub warm_up: Option<WarmUp>,
    /// In the order in which they were run.
    pub runs: Vec<Run>,
}

/// The replay before the first, which only fills the memory for vectors of texts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WarmUp {
    /// Texts that were encoded.
    pub texts_encoded: u64,
    /// How long it took.
    pub seconds: f64,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Run {
    /// The setting's name.
    pub setting: String,
    /// Its value, if it is a number.
    pub value: Option<f64>,
    /// Texts that were encoded for it, the knowledge base's included; `null` when each replay has its own encoder.
    pub texts_encoded: Option<u64>,
    /// What came of it.
    pub report: Report,
}

/// What is said of latency when the encoder's work was done before.
pub const ENCODED_BEFORE: &str =
    "texts were encoded before the first setting was tried, so latency is without the encoder's work";

impl Run {
    /// Hits per turn: of those with a label where there are any, or of all.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        self.labelled().map_or(self.report.load_taken_off.turns_share, |all| all.hit_rate)
    }

    /// Scores of all labelled turns; `None` without labels, when nobody knows what is wrong.
    #[must_use]
    pub fn labelled(&self) -> Option<&PartScore> {
        self.report.scores.as_ref()?.parts.first()
    }

    /// Latency of misses; `None` without any.
    #[must_use]
    pub fn latency_of_misses(&self) -> Option<&PathLatency> {
        self.report.latency.iter().find(|path| path.path == "tier")
    }

    /// Hits that were wrong, per hit, of a part.
    #[must_use]
    pub fn wrong_per_hit(&self, part: &PartScore) -> f64 {
        self.report.scores.as_ref().map_or(0.0, |scores| scores.wrong_per_hit(part))
    }
}

impl Comparison {
    /// The sources of labelled turns, in order of first appearance.
    #[must_use]
    pub fn sources(&self) -> Vec<&str> {
        let mut sources = Vec::new();
        for part in self.runs.iter().filter_map(|run| run.report.scores.as_ref()).flat_map(|scores| &scores.parts) {
            if part.source != "all" && !sources.contains(&part.source.as_str()) {
                sources.push(&part.source);
            }
        }
        sources
    }

    /// One row for each setting.
    #[must_use]
    pub fn overview(&self) -> Grid {
        let head = [
            &self.variable.key,
            "hit rate",
            "wrong/hit",
            "stale/hit",
            "stale",
            "invalidated",
            "tokens off",
            "cost",
            "hits p50",
            "p95",
            "misses p50",
            "p95",
        ];
        Grid { head: head.map(str::to_owned).to_vec(), rows: self.runs.iter().map(overview_of).collect() }
    }

    /// One row for each setting, with a hit rate and wrong hits for each source; `None` where there is one source at most.
    #[must_use]
    pub fn by_source(&self) -> Option<Grid> {
        let sources = self.sources();
        let mut head = vec!["by gold source".to_owned()];
        for source in &sources {
            head.extend([format!("{source}: hit rate"), "wrong/hit".to_owned()]);
        }
        let row = |run: &Run| {
            let mut row = vec![run.setting.clone()];
            for source in &sources {
                let parts = run.report.scores.iter().flat_map(|scores| &scores.parts);
                let part = parts.skip(1).find(|part| part.source == *source);
                row.push(judged(part.map(|part| percent(part.hit_rate))));
                row.push(judged(part.map(|part| percent(run.wrong_per_hit(part)))));
            }
            row
        };
        (sources.len() > 1).then(|| Grid { head, rows: self.runs.iter().map(row).collect() })
    }

    /// What a reader has to know of the figures.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(WarmUp { texts_encoded, seconds }) = self.warm_up {
            let texts = count(texts_encoded);
            remarks.push(format!("{texts} {ENCODED_BEFORE} ({seconds:.1} s)"));
        }
        let more = self.runs.iter().filter_map(|run| run.texts_encoded).max().unwrap_or_default();
        if more > 0 {
            let why = "they came up under a setting for the first time, or did not fit into replay.memo-bytes-max";
            remarks.push(format!("up to {} texts were encoded during a replay all the same: {why}", count(more)));
        }
        if let Some(report) = self.runs.first().map(|run| &run.report).filter(|report| report.made_up > 0) {
            remarks.push(format!("{} texts are made up: {MADE_UP}", count(report.made_up)));
        }
        remarks
    }
}

fn overview_of(run: &Run) -> Vec<String> {
    let report = &run.report;
    let all = run.labelled();
    let load = &report.load_taken_off;
    let latency = |latency: Option<&PathLatency>| {
        [latency.map(|path| millis(path.p50_us)), latency.map(|path| millis(path.p95_us))].map(judged)
    };
    let mut row = vec![
        run.setting.clone(),
        percent(run.hit_rate()),
        judged(all.map(|all| percent(run.wrong_per_hit(all)))),
        judged(all.map(|all| percent(all.stale_per_hit))),
        judged(all.map(|all| count(all.stale))),
        count(report.changes.as_ref().map_or(0, |changes| changes.invalidated.all)),
        percent(load.tokens_share),
        money(load.cost_micros),
    ];
    row.extend(latency(report.latency_of_hits.as_ref()));
    row.extend(latency(run.latency_of_misses()));
    row
}

/// An amount in the configured currency.
#[must_use]
pub fn money(micros: u64) -> String {
    format!("{:.4}", micros as f64 / 1e6)
}

/// What stands where nobody can tell.
fn judged(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".to_owned())
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.overview())?;
        if let Some(by_source) = self.by_source() {
            write!(f, "\n{by_source}")?;
        }
        for remark in self.remarks() {
            writeln!(f, "\n{remark}")?;
        }
        Ok(())
    }
}
