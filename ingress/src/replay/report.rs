//! What a replay found, as a table for people and as JSON for programs.
//!
//! What the labels say of the answers is in [`super::scores`], what edits did in [`super::change_report`].

use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;
use serde::Serialize;
use turnflow_pipeline::RefreshStats;
use turnflow_state::{CacheLevel, Tier};

use super::audit_report::AuditReport;
use super::change_report::ChangeReport;
use super::runner::{Background, Ending, Stop};
use super::scores::Scores;
use super::tally::{Path, Routes, Tally};
use super::timeline::Timeline;

/// Everything a replay found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Turns that ended, well or badly.
    pub turns: u64,
    /// Of them, badly.
    pub errors: u64,
    /// Of them, answered by an earlier run and served again.
    pub answered_before: u64,
    /// Of them, those whose text was made up, because the log has none: what is said of their answers means nothing.
    pub made_up: u64,
    /// Lines that were no turns and were passed over.
    pub lines_skipped: u64,
    /// Why the replay ended before its log did.
    pub stopped_by: Option<String>,
    /// Where the answers came from.
    pub answered_by: AnsweredBy,
    /// Which of two tiers answered, where there are two.
    pub routes: Option<Routes>,
    /// What the caches took off the models.
    pub load_taken_off: LoadTakenOff,
    /// Time that a caller waited, for each way that an answer can take.
    pub latency: Vec<PathLatency>,
    /// The same for all answers from caches together.
    pub latency_of_hits: Option<PathLatency>,
    /// Where in the log the hits were.
    pub timeline: Timeline,
    /// Duration of the replay.
    pub seconds: f64,
    /// Turns that ended per second.
    pub turns_per_second: f64,
    /// How right the answers were, where the log says what would be right.
    pub scores: Option<Scores>,
    /// What the edits of the knowledge base did, when there were any to make.
    pub changes: Option<ChangeReport>,
    /// What of it was answered anew in the background, when anything was.
    pub refresh: Option<RefreshReport>,
    /// Which hits were audited in the background, when any were.
    pub audits: Option<AuditReport>,
}

/// What edits took out of the caches and was answered anew in the background.
#[derive(Debug, Serialize)]
pub struct RefreshReport {
    /// Answers that a tier wrote.
    pub answers: u64,
    /// Of them, those that were kept.
    pub refreshed: u64,
    /// Of these, those that were as before.
    pub unchanged: u64,
    /// Questions that were let go.
    pub dropped: u64,
    /// Hits on answers that were made anew and differ from the first.
    pub hits: u64,
    /// Tokens that the tier read and wrote; part of all that were spent.
    pub tokens_spent: u64,
    /// What they cost, in millionths of the configured currency; part of the cost.
    pub cost_micros: u64,
}

impl RefreshReport {
    fn of(refresh: &RefreshStats, hits: u64) -> Option<Self> {
        let RefreshStats { answers, refreshed, unchanged, dropped, cost_micros, .. } = *refresh;
        let tokens_spent = refresh.input_tokens + refresh.output_tokens;
        let has_any = answers + dropped + hits > 0;
        has_any.then_some(Self { answers, refreshed, unchanged, dropped, hits, tokens_spent, cost_micros })
    }
}

/// Net of what was spent in the background; below 0 when that was more than the caches saved.
fn tokens_share(tally: &Tally, in_background: u64) -> f64 {
    let without_caches = tally.tokens_saved + tally.tokens_spent.saturating_sub(in_background);
    let spent_less = without_caches as f64 - tally.tokens_spent as f64;
    if without_caches == 0 { 0.0 } else { spent_less / without_caches as f64 }
}

/// Where answers came from.
#[derive(Debug, Serialize)]
pub struct AnsweredBy {
    /// The same question, answered before.
    pub exact: u64,
    /// A similar question, answered before.
    pub semantic: u64,
    /// The same question, being answered at that time.
    pub joined: u64,
    /// A tier.
    pub tier: u64,
    /// Of those of tiers, the ones that were not allowed to ask the caches.
    pub bypass: u64,
    /// Those of tiers, by tier.
    pub tiers: Vec<(Tier, u64)>,
}

/// What the caches took off the models.
#[derive(Debug, Serialize)]
pub struct LoadTakenOff {
    /// Share of the answers that asked no tier.
    pub turns_share: f64,
    /// Share of the tokens that tiers would have read and written for turns; what they spent in the background is taken off.
    pub tokens_share: f64,
    /// Tokens that tiers read and wrote, for turns and in the background.
    pub tokens_spent: u64,
    /// Tokens that the answers served again had taken.
    pub tokens_saved: u64,
    /// What the answers cost, in millionths of the configured currency.
    pub cost_micros: u64,
}

/// Time that a caller waited.
#[derive(Debug, Serialize)]
pub struct PathLatency {
    /// The way the answer took.
    pub path: &'static str,
    /// Answers that took it.
    pub turns: u64,
    /// Half of them were faster, in microseconds.
    pub p50_us: u64,
    /// 95 of 100 were faster, in microseconds.
    pub p95_us: u64,
    /// 99 of 100 were faster, in microseconds.
    pub p99_us: u64,
    /// The slowest, in microseconds.
    pub max_us: u64,
    /// Times in microseconds that the shares [`SHARES`] of the answers were not slower than.
    pub distribution_us: Vec<u64>,
}

/// Shares of answers whose times are told in a [`PathLatency::distribution_us`].
pub const SHARES: [f64; 17] =
    [0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0];

impl Report {
    /// Sums up a replay. `versions_told_apart` says whether scoring knew the edits.
    #[must_use]
    pub fn of(ending: &Ending, versions_told_apart: bool) -> Self {
        let tally = &ending.tally;
        let (hits, answers) = (tally.hits(), tally.turns - tally.errors);
        let seconds = tally.elapsed.as_secs_f64();
        Self {
            turns: tally.turns,
            errors: tally.errors,
            answered_before: tally.answered_before,
            made_up: tally.made_up,
            lines_skipped: ending.lines_skipped,
            stopped_by: ending.stop.as_ref().map(Stop::to_string),
            answered_by: AnsweredBy::of(tally),
            routes: (tally.routes.small > 0).then_some(tally.routes),
            load_taken_off: LoadTakenOff {
                turns_share: share(hits, answers),
                tokens_share: tokens_share(tally, Background::of(&ending.refresh, &ending.audits.0).tokens),
                tokens_spent: tally.tokens_spent,
                tokens_saved: tally.tokens_saved,
                cost_micros: tally.cost_micros,
            },
            latency: Path::ALL
                .into_iter()
                .filter_map(|path| PathLatency::of(path_name(path), tally.latency(path)?))
                .collect(),
            latency_of_hits: tally.latency_of_hits().and_then(|times| PathLatency::of("hits", &times)),
            timeline: tally.timeline().clone(),
            seconds,
            turns_per_second: if seconds > 0.0 { tally.turns as f64 / seconds } else { 0.0 },
            scores: (tally.all.turns > 0).then(|| Scores::of(tally, versions_told_apart)),
            changes: ending.changes.as_ref().map(ChangeReport::of),
            refresh: RefreshReport::of(&ending.refresh, tally.refreshed),
            audits: AuditReport::of(&ending.audits),
        }
    }
}

impl AnsweredBy {
    fn of(tally: &Tally) -> Self {
        let bypass = tally.level(CacheLevel::Bypass);
        Self {
            exact: tally.level(CacheLevel::Exact),
            semantic: tally.level(CacheLevel::Semantic),
            joined: tally.level(CacheLevel::Joined),
            tier: tally.level(CacheLevel::Miss) + bypass,
            bypass,
            tiers: Tier::ALL.iter().map(|&tier| (tier, tally.tier(tier))).filter(|&(_, turns)| turns > 0).collect(),
        }
    }
}

impl PathLatency {
    fn of(path: &'static str, latencies: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| latencies.value_at_quantile(quantile);
        (!latencies.is_empty()).then(|| Self {
            path,
            turns: latencies.len(),
            p50_us: at(0.5),
            p95_us: at(0.95),
            p99_us: at(0.99),
            max_us: latencies.max(),
            distribution_us: SHARES.map(at).to_vec(),
        })
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLine(bad) => write!(f, "{bad}"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::ShuttingDown => f.write_str("the pipeline shut down"),
        }
    }
}

/// What a replay of turns without text is good for.
pub const MADE_UP: &str = "the log has none: it is load only, and what is said of the content of answers means nothing";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers = self.turns - self.errors;
        let mut rows = Table::default();
        rows.row(
            "turns",
            count(self.turns),
            format!("in {:.1} s, {:.0} per second", self.seconds, self.turns_per_second),
        );
        rows.row_if(self.answered_before, "  answered before", "by an earlier run, served again");
        rows.row_if(self.errors, "  failed", "");
        rows.row_if(self.lines_skipped, "lines skipped", "");
        rows.row_if(self.made_up, "texts made up", MADE_UP);
        let by = &self.answered_by;
        for (name, turns) in
            [("exact cache", by.exact), ("semantic cache", by.semantic), ("joined in flight", by.joined)]
        {
            rows.row(name, count(turns), percent(share(turns, answers)));
        }
        for &(tier, turns) in &by.tiers {
            rows.row(&format!("{tier} tier"), count(turns), percent(share(turns, answers)));
        }
        if let Some(Routes { small, large, escalated, cost_micros, large_cost_micros }) = self.routes {
            let escalated = format!("{}, {} of them after the small one", count(large), count(escalated));
            rows.row("small tier", count(small), format!("the large one {escalated}"));
            if large_cost_micros > 0 {
                let saved = 1.0 - cost_micros as f64 / large_cost_micros as f64;
                let detail = "of what the same tokens cost by the large tier alone".to_owned();
                rows.row("  saved by routing", percent(saved), detail);
            }
        }
        let load = &self.load_taken_off;
        rows.row("load taken off", percent(load.turns_share), "of the answers asked no tier".to_owned());
        let detail =
            format!("of the tier tokens: {} saved, {} spent", count(load.tokens_saved), count(load.tokens_spent));
        rows.row("", percent(load.tokens_share), detail);
        write!(f, "{}", rows.text)?;
        self.write_latency(f)?;
        if let Some(scores) = &self.scores {
            write!(f, "\n{scores}")?;
        }
        if let Some(changes) = &self.changes {
            write!(f, "\n{changes}")?;
        }
        if let Some(refresh) = &self.refresh {
            write!(f, "\n{refresh}")?;
        }
        if let Some(audits) = &self.audits {
            write!(f, "\n{audits}")?;
        }
        match &self.stopped_by {
            Some(reason) => writeln!(f, "\nstopped before the end of the log: {reason}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RefreshReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Table::default();
        let kept = format!("{} kept, of them {} as before", count(self.refreshed), count(self.unchanged));
        rows.row("answered anew", count(self.answers), kept);
        rows.row("  hits on them", count(self.hits), "");
        rows.row("  tier tokens", count(self.tokens_spent), "spent on them, and counted above");
        rows.row_if(self.dropped, "  let go", "");
        write!(f, "{}", rows.text)
    }
}

impl Report {
    fn write_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.latency.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{:<18}{:>9}{:>11}{:>11}{:>11}", "latency", "turns", "p50", "p95", "p99")?;
        for path in &self.latency {
            let [p50, p95, p99] = [path.p50_us, path.p95_us, path.p99_us].map(millis);
            writeln!(f, "{:<18}{:>9}{p50:>11}{p95:>11}{p99:>11}", path.path, count(path.turns))?;
        }
        Ok(())
    }
}

/// Rows of a name, a number and a remark.
#[derive(Default)]
pub(super) struct Table {
    pub(super) text: String,
}

impl Table {
    pub(super) fn row(&mut self, name: &str, number: impl fmt::Display, remark: impl fmt::Display) {
        let row = format!("{name:<18}{number:>9}  {remark}");
        let _infallible = writeln!(self.text, "{}", row.trim_end());
    }

    pub(super) fn row_if(&mut self, number: u64, name: &str, remark: &str) {
        if number > 0 {
            self.row(name, count(number), remark);
        }
    }
}

/// A path's name in reports.
#[must_use]
pub fn path_name(path: Path) -> &'static str {
    match path {
        Path::Level(CacheLevel::Miss) => "tier",
        Path::Level(level) => level.as_str(),
        Path::Again => "answered before",
    }
}

/// `part` of `whole`; 0 of nothing is 0.
#[must_use]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A share as a percentage with one decimal; two below 1 %, where they matter.
#[must_use]
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 1.0 { format!("{percent:.2} %") } else { format!("{percent:.1} %") }
}

/// A number with commas between its thousands.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds or seconds, in three digits or so.
#[must_use]
pub fn millis(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
        assert_eq!([0.0, 0.004, 0.01, 0.5].map(percent), ["0.0 %", "0.40 %", "1.0 %", "50.0 %"]);
        assert_eq!([40, 9_999, 10_000, 1_500_000].map(millis), ["0.04 ms", "10.00 ms", "10 ms", "1.5 s"]);
        assert_eq!((share(1, 4), share(3, 0)), (0.25, 0.0));
    }
}
