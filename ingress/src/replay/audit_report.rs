//! What a replay tells of the hits that were audited in the background.

use std::fmt;

use serde::Serialize;
use turnflow_pipeline::{AuditStats, BoundStats};

use super::report::{Table, count, percent};

/// Hits on similar questions that were answered in full as well, in the background.
#[derive(Debug, Serialize)]
pub struct AuditReport {
    /// Hits that were answered in full.
    pub made: u64,
    /// Of them, those where both answers agreed.
    pub agreed: u64,
    /// Of them, those where they did not.
    pub disagreed: u64,
    /// Upper confidence bound of the share of hits that disagree, of late.
    pub disagreement_max: f64,
    /// Hits that were served no more, and were compared with what their turns were answered.
    pub overheard: u64,
    /// Audits that were turned away.
    pub dropped: u64,
    /// Entries that were no longer served to similar questions.
    pub barred: u64,
    /// Entries that were thrown away.
    pub thrown_away: u64,
    /// Times that the policy got stricter.
    pub tightenings: u64,
    /// Times that it got looser again.
    pub loosenings: u64,
    /// Tokens that the tier read and wrote; part of all that were spent.
    pub tokens_spent: u64,
    /// What they cost, in millionths of the configured currency; part of the cost.
    pub cost_micros: u64,
}

impl AuditReport {
    pub(super) fn of((audits, bound): &(AuditStats, BoundStats)) -> Option<Self> {
        let AuditStats { agreed, disagreed, overheard, dropped, barred, thrown_away, cost_micros, .. } = *audits;
        let BoundStats { tightenings, loosenings, .. } = *bound;
        (audits.made() + overheard + dropped > 0).then_some(Self {
            made: audits.made(),
            agreed,
            disagreed,
            disagreement_max: bound.disagreement_max(),
            overheard,
            dropped,
            barred,
            thrown_away,
            tightenings,
            loosenings,
            tokens_spent: audits.input_tokens + audits.output_tokens,
            cost_micros,
        })
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Table::default();
        rows.row(
            "hits audited",
            count(self.made),
            format!("{} agreed, {} did not", count(self.agreed), count(self.disagreed)),
        );
        let bound = "of hits disagree at most, of late (95 %)";
        rows.row("", percent(self.disagreement_max), bound);
        rows.row("  tier tokens", count(self.tokens_spent), "spent on them, and counted above");
        rows.row_if(self.overheard, "  compared", "hits that were served no more, with what was answered instead");
        rows.row_if(self.barred, "  barred", "answers no longer served to similar questions");
        rows.row_if(self.thrown_away, "  thrown away", "answers that were found wrong again");
        rows.row_if(self.tightenings, "  stricter", "times that similar hits needed more");
        rows.row_if(self.loosenings, "  looser", "times that they needed less again");
        rows.row_if(self.dropped, "  let go", "for want of room");
        write!(f, "{}", rows.text)
    }
}
