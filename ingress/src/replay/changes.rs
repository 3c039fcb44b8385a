//! Counts what the edits of a replay did to the caches, and looks for what an edit took out in the answers after it.
//!
//! A cached answer is let go of when *any* of the chunks that were retrieved for it changed, or a new one is nearer than
//! the last of them, whether or not a word of the answer comes from there. That needs no judge of texts, and what it costs
//! is counted here: an answer was dropped *without need* when the label of the turn that it was made for names an article
//! that the edit does not affect.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use turnflow_pipeline::Invalidated;
use turnflow_state::{ArticleId, Completion};

use super::gold::Gold;
use super::ledger::{Ledger, TurnName};
use super::updates::Edit;

/// Cached answers that edits made invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Invalidations {
    /// All of them.
    pub all: u64,
    /// Those made for a turn whose label names an article that the edit does not affect.
    pub without_need: u64,
    /// Those made for a turn without a label, or with one that names no article.
    pub unlabelled: u64,
}

/// Answers to probes, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProbeAnswers {
    /// All of them.
    pub all: u64,
    /// Those that hold what the edit took out.
    pub stale: u64,
    /// Those that were to hold what the edit brought.
    pub to_hold_new: u64,
    /// Of these, those that do not: retrieval or the tier may be at fault, so they are not called stale.
    pub lack_new: u64,
}

/// Probes and their answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// Answered from a cache.
    pub cached: ProbeAnswers,
    /// Answered by a tier.
    pub written: ProbeAnswers,
    /// Not answered.
    pub failed: u64,
}

/// An edit that was made.
#[derive(Clone, Debug, Serialize)]
pub struct MadeEdit {
    /// Its line in the file of edits.
    pub line: u64,
    /// When it was made, on the log's clock.
    pub ts: Timestamp,
    /// The edited article.
    pub article_id: ArticleId,
    /// What kind of edit it is.
    pub kind: String,
    /// Time from writing it until it was acknowledged, embedding what is new included, in microseconds.
    pub acknowledge_us: u64,
    /// What it did to the caches.
    pub invalidated: Invalidations,
    /// What was answered when its probes were asked.
    pub probes: Probes,
}

/// Everything counted.
#[derive(Default)]
pub struct Changes {
    /// The edits that were made: the first ones of those given.
    pub made: Vec<MadeEdit>,
    /// How many were not made: the log ended before their time, or the replay before the log.
    pub not_made: u64,
    /// Hits on turns about an article from which an edit has taken something out.
    pub hits_checked: u64,
    /// Of them, those whose answer still holds it.
    pub stale_by_content: u64,
    /// What the latest edit of an article that changed its content took out.
    taken_out: HashMap<String, Arc<[String]>>,
}

impl Changes {
    /// Notes that an edit was acknowledged.
    pub(super) fn acknowledge(&mut self, edit: &Edit, took_us: u64, invalidated: &[Invalidated], ledger: &Ledger) {
        if edit.changes_content() {
            let texts = edit.must_not_contain.as_slice();
            self.taken_out.insert(edit.draft.id.as_str().to_owned(), texts.into());
        }
        self.made.push(MadeEdit {
            line: edit.line,
            ts: edit.at,
            article_id: edit.draft.id.clone(),
            kind: edit.kind.clone(),
            acknowledge_us: took_us,
            invalidated: Invalidations::of(edit, invalidated, ledger),
            probes: Probes::default(),
        });
    }

    /// What must not be in a cached answer to a turn with this label, when it is asked now.
    pub(super) fn taken_out(&self, gold: Option<&Gold>) -> Option<Arc<[String]>> {
        let texts = self.taken_out.get(gold?.topic.as_deref()?)?;
        (!texts.is_empty()).then(|| Arc::clone(texts))
    }

    /// Looks for what was taken out in the answer to a turn.
    pub(super) fn check(&mut self, completion: &Completion, taken_out: &[String]) {
        if completion.verdict.level.is_hit() {
            self.hits_checked += 1;
            self.stale_by_content += u64::from(taken_out.iter().any(|text| holds(completion, text)));
        }
    }

    /// Counts the edits that were not made, of all there were to make.
    pub(super) fn finish(self, edits: usize) -> Self {
        Self { not_made: edits.saturating_sub(self.made.len()) as u64, ..self }
    }

    /// Counts the answer to a probe of the edit that was made at this place; `None` for one that failed.
    pub(super) fn probe(&mut self, place: usize, edit: &Edit, completion: Option<&Completion>) {
        let Some(made) = self.made.get_mut(place) else { return };
        let Some(completion) = completion else {
            made.probes.failed += 1;
            return;
        };
        let cached = completion.verdict.level.is_hit();
        let answers = if cached { &mut made.probes.cached } else { &mut made.probes.written };
        answers.all += 1;
        answers.stale += u64::from(edit.must_not_contain.iter().any(|text| holds(completion, text)));
        answers.to_hold_new += u64::from(!edit.must_contain.is_empty());
        answers.lack_new += u64::from(edit.must_contain.iter().any(|text| !holds(completion, text)));
    }
}

impl Invalidations {
    fn of(edit: &Edit, invalidated: &[Invalidated], ledger: &Ledger) -> Self {
        let mut counts = Self { all: invalidated.len() as u64, ..Self::default() };
        for Invalidated { origin, .. } in invalidated {
            match TurnName::of_key(origin).and_then(|name| ledger.topic(name)) {
                None => counts.unlabelled += 1,
                Some(topic) => {
                    let is_affected = edit.affects.iter().any(|article| topic.names(article));
                    counts.without_need += u64::from(!is_affected);
                }
            }
        }
        counts
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            without_need: self.without_need + other.without_need,
            unlabelled: self.unlabelled + other.unlabelled,
        }
    }
}

impl ProbeAnswers {
    fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            stale: self.stale + other.stale,
            to_hold_new: self.to_hold_new + other.to_hold_new,
            lack_new: self.lack_new + other.lack_new,
        }
    }
}

impl Probes {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cached: self.cached.plus(other.cached),
            written: self.written.plus(other.written),
            failed: self.failed + other.failed,
        }
    }
}

/// Whether a text is part of an answer, whatever the white space.
fn holds(completion: &Completion, text: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    squeeze(&completion.text).contains(&squeeze(text))
}
