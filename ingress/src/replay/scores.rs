//! How right the answers were, where the log has gold labels: hits are judged by the rules of [`super::gold`].
//!
//! `wrong_per_hit` counts a hit as right when the turn whose answer was served needed the same answer;
//! `wrong_per_hit_kb_ignored` when it needed the same article, in whatever version. A hit that is wrong only because of
//! the version is `stale`. A hit whose origin has no label counts in none of them.

use std::fmt;

use serde::Serialize;

use super::report::{count, percent, share};
use super::tally::{Score, Tally};

/// How right the answers were.
#[derive(Debug, Serialize)]
pub struct Scores {
    /// Whether versions of articles with different content were told apart.
    pub versions_told_apart: bool,
    /// The labels know of edits that neither the replay nor the scoring applied: all versions count as one.
    pub edits_not_applied: bool,
    /// All labelled turns first, then those of each source.
    pub parts: Vec<PartScore>,
}

/// How right the answers to some of the turns were.
#[derive(Debug, Serialize)]
pub struct PartScore {
    /// Where the labelled turns come from.
    pub source: String,
    /// Labelled turns.
    pub turns: u64,
    /// Of them, served from a cache.
    pub hits: u64,
    /// Hits per turn.
    pub hit_rate: f64,
    /// Wrong hits per hit.
    pub wrong_per_hit: f64,
    /// Hits that were right before an edit.
    pub stale: u64,
    /// The same per hit.
    pub stale_per_hit: f64,
    /// Wrong hits per hit, whatever the article's version.
    pub wrong_per_hit_kb_ignored: f64,
    /// Hits that could not be judged.
    pub hits_unjudged: u64,
    /// Answers from the right article, per turn that an article answers; `null` without such turns.
    pub right_article_on_kb_turns: Option<f64>,
}

impl Scores {
    pub(super) fn of(tally: &Tally, versions_told_apart: bool) -> Self {
        let sources = tally.sources.iter().map(|(name, score)| PartScore::of(name, score));
        Self {
            versions_told_apart,
            edits_not_applied: tally.edited && !versions_told_apart,
            parts: std::iter::once(PartScore::of("all", &tally.all)).chain(sources).collect(),
        }
    }

    /// Wrong hits per hit of a part, as a report shows it.
    #[must_use]
    pub fn wrong_per_hit(&self, part: &PartScore) -> f64 {
        // Without the edits nobody knows which versions differ, so all versions of an article count as one.
        if self.edits_not_applied { part.wrong_per_hit_kb_ignored } else { part.wrong_per_hit }
    }
}

impl PartScore {
    fn of(source: &str, score: &Score) -> Self {
        Self {
            source: source.to_owned(),
            turns: score.turns,
            hits: score.hits,
            hit_rate: share(score.hits, score.turns),
            wrong_per_hit: share(score.wrong, score.hits),
            stale: score.stale,
            stale_per_hit: share(score.stale, score.hits),
            wrong_per_hit_kb_ignored: share(score.wrong_article, score.hits),
            hits_unjudged: score.unjudged,
            right_article_on_kb_turns: (score.article_turns > 0)
                .then(|| share(score.article_right, score.article_turns)),
        }
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["turns", "hits", "hit rate", "wrong/hit", "stale", "right article"];
        let [turns, hits, rate, wrong, stale, article] = head;
        writeln!(f, "{:<18}{turns:>9}{hits:>9}{rate:>11}{wrong:>11}{stale:>9}{article:>15}", "gold labels")?;
        for part in &self.parts {
            let article = part.right_article_on_kb_turns.map_or_else(|| "–".to_owned(), percent);
            let [rate, wrong] = [part.hit_rate, self.wrong_per_hit(part)].map(percent);
            let [turns, hits, stale] = [part.turns, part.hits, part.stale].map(count);
            writeln!(f, "{:<18}{turns:>9}{hits:>9}{rate:>11}{wrong:>11}{stale:>9}{article:>15}", part.source)?;
        }
        let unjudged = self.parts.first().map_or(0, |all| all.hits_unjudged);
        if unjudged > 0 {
            writeln!(f, "{} hits were served from turns without a label and are not judged", count(unjudged))?;
        }
        if self.edits_not_applied {
            writeln!(
                f,
                "the labels know of edits to the knowledge base that were not replayed: all versions of an article count as one"
            )?;
        }
        Ok(())
    }
}
