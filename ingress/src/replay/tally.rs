//! Counts what a replay sees, turn by turn, in constant memory.

use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Serialize;
use turnflow_state::{CacheLevel, Completion, Tier, TierSize};

use super::gold::Gold;
use super::ledger::{Judgement, Ledger, TurnName};
use super::results::TurnResult;
use super::runner::Background;
use super::timeline::{Along, Timeline};

/// Longest latency told apart, in microseconds: an hour. Longer ones count as this long.
pub(super) const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Sources of gold rows told apart; rows of further ones count in the total only.
const SOURCES_MAX: usize = 32;

/// The ways an answer can take, which are timed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A cache, a join, a tier, or past the caches.
    Level(CacheLevel),
    /// The same turn, answered in an earlier run.
    Again,
}

impl Path {
    /// Every path, in the order of a report.
    pub const ALL: [Self; 6] = [
        Self::Level(CacheLevel::Exact),
        Self::Level(CacheLevel::Semantic),
        Self::Level(CacheLevel::Joined),
        Self::Level(CacheLevel::Miss),
        Self::Level(CacheLevel::Bypass),
        Self::Again,
    ];

    fn index(self) -> usize {
        Self::ALL.iter().position(|&path| path == self).unwrap_or_default()
    }
}

/// What is counted of a turn beside its result.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// When it was said.
    pub(super) at: Timestamp,
    /// Whether its text was made up.
    pub(super) made_up: bool,
}

/// Hits and their rightness, for rows of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Labelled turns.
    pub turns: u64,
    /// Of them, served from a cache.
    pub hits: u64,
    /// Of the hits, those where the other answer would have been needed.
    pub wrong: u64,
    /// Of the wrong ones, those that were right before the article was edited.
    pub stale: u64,
    /// Of the hits, those where another article would have been needed, whatever its version.
    pub wrong_article: u64,
    /// Hits that cannot be judged, because the turn they were served from is not in the log or has no label.
    pub unjudged: u64,
    /// Turns that an article answers.
    pub article_turns: u64,
    /// Of them, those answered from that article first of all.
    pub article_right: u64,
}

/// Everything counted.
pub struct Tally {
    /// Turns that ended, well or badly.
    pub turns: u64,
    /// Of them, badly.
    pub errors: u64,
    /// Of them, answered by an earlier run and served again.
    pub answered_before: u64,
    /// Of them, those whose text was made up, because the log has none.
    pub made_up: u64,
    /// Of the answers, those in which the tier found something in the knowledge base.
    pub grounded: u64,
    /// Answers of each cache level.
    levels: [u64; CacheLevel::ALL.len()],
    /// Which of two tiers wrote them.
    pub routes: Routes,
    /// Answers that a tier wrote for their turn.
    tiers: [u64; Tier::ALL.len()],
    latencies: Vec<Histogram<u64>>,
    by_time: Timeline,
    by_order: Timeline,
    /// When the first turn was said.
    first: Option<Timestamp>,
    /// What the answers cost, in millionths of the currency.
    pub cost_micros: u64,
    /// Hits on answers that were made anew after an edit.
    pub refreshed: u64,
    /// Tokens that tiers read and wrote, for turns and in the background.
    pub tokens_spent: u64,
    /// Tokens that they would have, had no answer been served twice.
    pub tokens_saved: u64,
    /// Labelled turns of all sources.
    pub all: Score,
    /// Labelled turns by source, in order of first appearance.
    pub sources: Vec<(String, Score)>,
    /// Whether the labels know of edits to the knowledge base.
    pub edited: bool,
    /// How long the replay took.
    pub elapsed: Duration,
}

/// Which of two tiers wrote answers, and what that cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Routes {
    /// Answers of the small one.
    pub small: u64,
    /// Answers of the large one.
    pub large: u64,
    /// Those of the large one for which the small one was asked first.
    pub escalated: u64,
    /// What all of them cost, in millionths of the configured currency.
    pub cost_micros: u64,
    /// What the same tokens would have cost by the large one alone.
    pub large_cost_micros: u64,
}

impl Routes {
    fn count(&mut self, completion: &Completion) {
        let Some(route) = &completion.verdict.route else { return };
        match route.size {
            TierSize::Small => self.small += 1,
            TierSize::Large => self.large += 1,
        }
        self.escalated += u64::from(route.escalated);
        self.cost_micros += completion.cost_micros;
        self.large_cost_micros += completion.large_cost_micros;
    }
}

impl Tally {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            turns: 0,
            errors: 0,
            answered_before: 0,
            made_up: 0,
            grounded: 0,
            levels: [0; CacheLevel::ALL.len()],
            routes: Routes::default(),
            tiers: [0; Tier::ALL.len()],
            latencies: Path::ALL.iter().filter_map(|_| Histogram::new_with_max(LATENCY_US_MAX, 3).ok()).collect(),
            by_time: Timeline::new(Along::Milliseconds),
            by_order: Timeline::new(Along::Turns),
            first: None,
            cost_micros: 0,
            refreshed: 0,
            tokens_spent: 0,
            tokens_saved: 0,
            all: Score::default(),
            sources: Vec::new(),
            edited: false,
            elapsed: Duration::ZERO,
        }
    }

    /// Answers that came from a level.
    #[must_use]
    pub fn level(&self, level: CacheLevel) -> u64 {
        self.levels[level as usize]
    }

    /// Answers that a tier wrote for their turn.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> u64 {
        self.tiers[tier as usize]
    }

    /// Answers that were another turn's.
    #[must_use]
    pub fn hits(&self) -> u64 {
        CacheLevel::ALL.iter().filter(|level| level.is_hit()).map(|&level| self.level(level)).sum()
    }

    /// Times of a path, in microseconds.
    #[must_use]
    pub fn latency(&self, path: Path) -> Option<&Histogram<u64>> {
        self.latencies.get(path.index())
    }

    /// Times of all hits, in microseconds.
    #[must_use]
    pub fn latency_of_hits(&self) -> Option<Histogram<u64>> {
        let mut hits = Histogram::new_with_max(LATENCY_US_MAX, 3).ok()?;
        for path in Path::ALL.into_iter().filter(|path| matches!(path, Path::Level(level) if level.is_hit())) {
            hits.add(self.latency(path)?).ok()?;
        }
        Some(hits)
    }

    /// Where in the log the hits were: along its clock, or by the order of its turns when it has none.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        if self.by_time.buckets.len() > 1 { &self.by_time } else { &self.by_order }
    }

    pub(super) fn count(&mut self, result: &TurnResult, moment: Moment, gold: Option<&Gold>, ledger: &mut Ledger) {
        if let Ok(completion) = &result.outcome {
            let level = completion.verdict.level;
            let since = moment.at.as_millisecond() - self.first.get_or_insert(moment.at).as_millisecond();
            self.by_time.count(u64::try_from(since).unwrap_or_default(), level);
            self.by_order.count(self.turns, level);
        }
        self.made_up += u64::from(moment.made_up);
        self.turns += 1;
        self.answered_before += u64::from(result.answered_before);
        match &result.outcome {
            Err(_) => self.errors += 1,
            Ok(completion) => self.count_answer(result, completion, ledger),
        }
        if let Some(gold) = gold {
            self.edited |= gold.edited;
            let completion = result.outcome.as_deref().ok();
            self.all.count(completion, gold, ledger);
            if let Some(score) = self.source(gold.source.as_deref().unwrap_or("unnamed")) {
                score.count(completion, gold, ledger);
            }
        }
    }

    pub(super) fn finish(&mut self, ledger: &mut Ledger, in_background: Background, elapsed: Duration) {
        (self.tokens_spent, self.tokens_saved) = ledger.tokens();
        self.tokens_spent += in_background.tokens;
        self.cost_micros += in_background.cost_micros;
        self.elapsed = elapsed;
    }

    fn count_answer(&mut self, result: &TurnResult, completion: &Completion, ledger: &mut Ledger) {
        let level = completion.verdict.level;
        self.levels[level as usize] += 1;
        self.grounded += u64::from(completion.grounded);
        self.cost_micros += completion.cost_micros;
        if level.is_hit() {
            self.refreshed += u64::from(completion.verdict.refreshed);
            if let Some(origin) = completion.verdict.origin.as_ref().and_then(TurnName::of_key) {
                ledger.save(origin);
            }
        } else {
            self.tiers[completion.tier as usize] += 1;
            self.routes.count(completion);
        }
        let path = if result.answered_before { Path::Again } else { Path::Level(level) };
        if let Some(latencies) = self.latencies.get_mut(path.index()) {
            latencies.saturating_record(result.total_us);
        }
    }

    fn source(&mut self, name: &str) -> Option<&mut Score> {
        let index = self.sources.iter().position(|(known, _)| known == name);
        if index.is_none() && self.sources.len() < SOURCES_MAX {
            self.sources.push((name.to_owned(), Score::default()));
            return self.sources.last_mut().map(|(_, score)| score);
        }
        index.map(|index| &mut self.sources[index].1)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Judgement {
    /// What an answer says that was made anew is told by the versions that it names, not by its first turn.
    fn anew(self, gold: &Gold, completion: &Completion) -> Self {
        if gold.article.is_none() {
            return self;
        }
        let content_right = self.article_right && gold.is_named_by(&completion.sources);
        Self { content_right, stale: self.article_right && !content_right, ..self }
    }
}

impl Score {
    fn count(&mut self, completion: Option<&Completion>, gold: &Gold, ledger: &Ledger) {
        self.turns += 1;
        if let Some(needed) = &gold.article {
            self.article_turns += 1;
            let cited = completion.and_then(|completion| completion.sources.first());
            self.article_right += u64::from(cited.is_some_and(|source| source.article_id.as_str() == needed));
        }
        let Some(completion) = completion.filter(|completion| completion.verdict.level.is_hit()) else { return };
        let verdict = &completion.verdict;
        self.hits += 1;
        let origin = verdict.origin.as_ref().and_then(TurnName::of_key);
        match origin.and_then(|origin| ledger.judge(gold.keys, origin)) {
            None => self.unjudged += 1,
            Some(judgement) => {
                let judgement = if verdict.refreshed { judgement.anew(gold, completion) } else { judgement };
                self.wrong += u64::from(!judgement.content_right);
                self.stale += u64::from(judgement.stale);
                self.wrong_article += u64::from(!judgement.article_right);
            }
        }
    }
}
