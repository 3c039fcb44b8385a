//! What the edits of a replay did, as a table for people and as JSON for programs.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::changes::{Changes, Invalidations, MadeEdit, ProbeAnswers, Probes};
use super::report::{Table, count, millis, percent, share};
use super::tally::LATENCY_US_MAX;

/// Edits that are shown one by one; JSON has all of them.
const EDITS_SHOWN_MAX: usize = 3;

/// What the edits did.
#[derive(Debug, Serialize)]
pub struct ChangeReport {
    /// Edits made.
    pub edits: u64,
    /// Edits that were not: the log ended before their time, or the replay before the log.
    pub edits_not_made: u64,
    /// Cached answers that they made invalid.
    pub invalidated: Invalidations,
    /// Time from writing an edit until it was acknowledged; `null` without edits.
    pub acknowledge: Option<AcknowledgeLatency>,
    /// Hits on turns about an article from which an edit had taken something out.
    pub hits_checked: u64,
    /// Of them, those whose answer still held it.
    pub stale_by_content: u64,
    /// Answers to the edits' probes.
    pub probes: Probes,
    /// The edits one by one.
    pub by_edit: Vec<MadeEdit>,
}

/// Time until edits were acknowledged.
#[derive(Debug, Serialize)]
pub struct AcknowledgeLatency {
    /// Half of them were faster, in microseconds.
    pub p50_us: u64,
    /// 95 of 100 were faster, in microseconds.
    pub p95_us: u64,
    /// 99 of 100 were faster, in microseconds.
    pub p99_us: u64,
    /// The slowest, in microseconds.
    pub max_us: u64,
}

impl ChangeReport {
    /// Sums up what the edits did.
    #[must_use]
    pub fn of(changes: &Changes) -> Self {
        let made = &changes.made;
        Self {
            edits: made.len() as u64,
            edits_not_made: changes.not_made,
            invalidated: made.iter().map(|edit| edit.invalidated).fold(Invalidations::default(), Invalidations::plus),
            acknowledge: AcknowledgeLatency::of(made),
            hits_checked: changes.hits_checked,
            stale_by_content: changes.stale_by_content,
            probes: made.iter().map(|edit| edit.probes).fold(Probes::default(), Probes::plus),
            by_edit: made.clone(),
        }
    }

    /// The edits that made most answers invalid, most first.
    fn largest(&self) -> impl Iterator<Item = &MadeEdit> {
        let mut edits: Vec<_> = self.by_edit.iter().filter(|edit| edit.invalidated.all > 0).collect();
        edits.sort_by_key(|edit| std::cmp::Reverse(edit.invalidated.all));
        edits.into_iter().take(EDITS_SHOWN_MAX)
    }
}

impl AcknowledgeLatency {
    fn of(made: &[MadeEdit]) -> Option<Self> {
        let mut times = Histogram::<u64>::new_with_max(LATENCY_US_MAX, 3).ok()?;
        made.iter().for_each(|edit| times.saturating_record(edit.acknowledge_us));
        let at = |quantile| times.value_at_quantile(quantile);
        (!times.is_empty()).then(|| Self { p50_us: at(0.5), p95_us: at(0.95), p99_us: at(0.99), max_us: times.max() })
    }
}

impl fmt::Display for ChangeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Table::default();
        rows.row("edits made", count(self.edits), "");
        rows.row_if(self.edits_not_made, "  not made", "their time did not come");
        if let Some(AcknowledgeLatency { p50_us, p95_us, p99_us, max_us }) = self.acknowledge {
            let [p95, p99, max] = [p95_us, p99_us, max_us].map(millis);
            rows.row("  acknowledged", millis(p50_us), format!("p50; p95 {p95}, p99 {p99}, slowest {max}"));
        }
        let Invalidations { all, without_need, unlabelled } = self.invalidated;
        rows.row("invalidated", count(all), "cached answers");
        for edit in self.largest() {
            let remark = format!("by line {}, {} ({})", edit.line, edit.article_id, edit.kind);
            rows.row("", count(edit.invalidated.all), remark);
        }
        rows.row_if(without_need, "  without need", &percent(share(without_need, all)));
        rows.row_if(unlabelled, "  unlabelled", "made for turns whose label names no article");
        let checked = format!("of {} hits on edited articles hold what was taken out", count(self.hits_checked));
        rows.row("stale by content", count(self.stale_by_content), checked);
        let Probes { cached, written, failed } = self.probes;
        for (name, answers) in [("probes, cached", cached), ("probes, tier", written)] {
            rows.row_if(answers.all, name, &probe_remark(answers));
        }
        rows.row_if(failed, "probes, failed", "");
        f.write_str(&rows.text)
    }
}

fn probe_remark(answers: ProbeAnswers) -> String {
    let ProbeAnswers { stale, to_hold_new, lack_new, .. } = answers;
    let [stale, lack_new, to_hold_new] = [stale, lack_new, to_hold_new].map(count);
    format!("{stale} stale; {lack_new} of {to_hold_new} lack the new text")
}
