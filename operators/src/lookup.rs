//! Lookup: finds the nearest answered questions of the scope, and decides whether one of them answers this one.
//!
//! The semantic cache is spread over the workers by question, so a look-up asks all of them and keeps the nearest
//! that may be served: [`Lookup`] sends the question to every shard, [`Search`] replies for one shard, and [`Gather`]
//! decides when all have replied. A turn that may not read the cache passes straight through.
//!
//! Whether one of them answers the question is up to the [policy](crate::policy), at the tenant's
//! [strictness](crate::bound). An entry that was found wrong is no candidate. What only one step less would serve is not
//! served, but may be [audited](crate::audit) as the hits are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_state::{CacheLevel, HitEvidence, Stage as StageName, Verdict};

use crate::audit::{Record, Sampler};
use crate::bound::{SharedBound, Strictness};
use crate::message::{Ask, Basis, Candidate, Ending, Found, Outcome, Query, RequestId, Served, Step};
use crate::policy::{Policy, Refusal};
use crate::shard::{Remembered, Shard};
use crate::shell::Stage;

/// Nearest cached questions that are looked at for one query, of those that mention the same, over all shards. The verifier
/// is calibrated with as many.
const CANDIDATES_MAX: usize = 8;
/// Nearest cached questions that a shard finds for one query, whatever they mention.
const FOUND_MAX: usize = 24;

/// What goes to a worker's gathering stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGather {
    /// A turn that waits for replies.
    Turn(Box<Ask>),
    /// A shard's reply.
    Reply(Box<Found>),
}

/// The core that asks: gives out the turn, and the query to be broadcast.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Index of this worker.
    pub worker: u64,
    /// False switches the semantic cache off.
    pub enabled: bool,
    /// Prepares the question.
    pub policy: Arc<Policy>,
    /// Says how strict the policy is.
    pub bound: SharedBound,
}

impl Lookup {
    fn query(&self, ask: &Ask) -> Option<Query> {
        let vector = ask.vector.clone().filter(|_| self.enabled && ask.may_read_cache())?;
        let question = self.policy.prepare(&ask.turn.text, Some(&vector), ask.about.clone());
        let (scope, at_ms) = (ask.key.scope, ask.turn.at_ms);
        let strictness = self.bound.lock().strictness(&ask.turn.tenant);
        let (request, asker, made_since_ms) = (ask.request, self.worker, ask.made_since_ms());
        Some(Query { request, asker, scope, question, vector, at_ms, made_since_ms, strictness })
    }
}

impl Stage for Lookup {
    type Input = Box<Ask>;
    type Output = Result<Box<Ask>, Box<Query>>;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Self::Output>) {
        ask.entered_us = now_us;
        let query = self.query(&ask);
        out.push(Ok(ask));
        out.extend(query.map(|query| Err(Box::new(query))));
    }
}

/// The core that replies for one shard.
#[derive(Debug)]
pub struct Search {
    shard: Rc<RefCell<Shard>>,
}

impl Search {
    /// A stage over a worker's shard.
    #[must_use]
    pub fn new(shard: Rc<RefCell<Shard>>) -> Self {
        Self { shard }
    }
}

impl Stage for Search {
    type Input = Box<Query>;
    type Output = Found;

    fn push(&mut self, query: Box<Query>, _now_us: u64, out: &mut Vec<Found>) {
        let mut shard = self.shard.borrow_mut();
        let (policy, valid_at) = (shard.policy().clone(), shard.valid_at());
        let mut hit: Option<Judged<'_>> = None;
        let mut withheld: Option<Judged<'_>> = None;
        let Strictness { extra, trial, changes } = query.strictness;
        let mut near_miss = None;
        let mut nearest = Vec::with_capacity(CANDIDATES_MAX);
        for (entry, similarity) in shard.nearest(query.scope, &query.vector, FOUND_MAX, query.at_ms) {
            if entry.created_ms < query.made_since_ms {
                continue;
            }
            if entry.prepared.mentions != query.question.mentions {
                near_miss.get_or_insert((entry, similarity, Some(Refusal::Mentions)));
                continue;
            }
            if nearest.len() == CANDIDATES_MAX {
                break;
            }
            nearest.push(similarity);
            let is_barred = entry.record.disagreed > 0;
            let judge = |extra| policy.judge(&query.question, &entry.prepared, similarity, extra);
            let refusal = match judge(extra) {
                Ok(_) if is_barred => None,
                Ok(evidence) => {
                    hit = Some((entry, similarity, evidence));
                    break;
                }
                Err(refusal) => {
                    if !is_barred
                        && withheld.is_none()
                        && trial != extra
                        && let Ok(evidence) = judge(trial)
                    {
                        withheld = Some((entry, similarity, evidence));
                    }
                    Some(refusal)
                }
            };
            near_miss.get_or_insert((entry, similarity, refusal));
        }
        let made = |(entry, similarity, evidence): Judged<'_>| {
            let reasons = policy.reasons(&query.question, &entry.prepared, similarity);
            candidate(entry, similarity, HitEvidence { reasons, ..evidence }, valid_at, query.at_ms, changes)
        };
        let (hit, withheld) = (hit.map(made), withheld.map(made));
        let near_miss = near_miss.filter(|_| hit.is_none()).map(|(entry, similarity, refusal)| {
            let explain = |refusal| policy.explain(refusal, &query.question, &entry.prepared, similarity);
            let barred = || "its answer was found wrong for another question".to_owned();
            (similarity, refusal.map_or_else(barred, explain))
        });
        if let Some(hit) = &hit {
            shard.served(hit.entry);
        }
        out.push(Found { request: query.request, asker: query.asker, hit, withheld, near_miss, nearest });
    }
}

/// An entry that may serve, or might: with its cosine and what speaks for it.
type Judged<'a> = (&'a Remembered, f32, HitEvidence);

fn candidate(
    entry: &Remembered,
    similarity: f32,
    evidence: HitEvidence,
    valid_at: u64,
    at_ms: u64,
    changes: [u32; 2],
) -> Candidate {
    let Record { agreed, disagreed, .. } = entry.record;
    Candidate {
        entry: entry.id,
        similarity,
        question: entry.question.clone(),
        answer: entry.answer.clone(),
        origin: entry.origin.clone(),
        refreshed: entry.refreshed,
        // Whatever came up to now did not touch it, or it would not be here.
        basis: Basis { valid_at: valid_at.max(entry.basis.valid_at), ..entry.basis.clone() },
        evidence: HitEvidence {
            age_ms: at_ms.saturating_sub(entry.created_ms),
            audits: agreed.saturating_add(disagreed),
            agreed,
            ..evidence
        },
        record: entry.record,
        changes,
    }
}

/// The core that decides when every shard has replied.
#[derive(Debug)]
pub struct Gather {
    shards: usize,
    enabled: bool,
    sampler: Option<Sampler>,
    waiting: HashMap<RequestId, Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    ask: Option<Box<Ask>>,
    replies: usize,
    hit: Option<Candidate>,
    withheld: Option<Candidate>,
    near_miss: Option<(f32, String)>,
    nearest: Vec<f32>,
}

impl Gather {
    /// A stage that expects a reply from each of `shards` workers.
    #[must_use]
    pub fn new(shards: usize, enabled: bool) -> Self {
        assert!(shards > 0, "there is at least one shard");
        Self { shards, enabled, sampler: None, waiting: HashMap::new() }
    }

    /// The same, with some of the hits audited.
    #[must_use]
    pub fn audited(self, sampler: Option<Sampler>) -> Self {
        Self { sampler, ..self }
    }
}

impl Gathered {
    fn add(&mut self, found: Found) {
        self.replies += 1;
        // The smaller id breaks ties, so that the outcome does not depend on which shard replies first.
        let rank = |hit: &Candidate| (hit.similarity, std::cmp::Reverse(hit.entry));
        for (best, found) in [(&mut self.hit, found.hit), (&mut self.withheld, found.withheld)] {
            if let Some(found) = found
                && best.as_ref().is_none_or(|best| rank(&found) > rank(best))
            {
                *best = Some(found);
            }
        }
        self.nearest.extend(found.nearest);
        if let Some(near) = found.near_miss
            && self.near_miss.as_ref().is_none_or(|best| near.0 > best.0)
        {
            self.near_miss = Some(near);
        }
    }

    fn decide(mut self, sampler: Option<&Sampler>, now_us: u64) -> Option<Step> {
        let mut ask = self.ask?;
        // However many shards there are, as many candidates are looked at.
        let is_near =
            |one: &Candidate| self.nearest.iter().filter(|other| **other > one.similarity).count() < CANDIDATES_MAX;
        self.hit = self.hit.filter(is_near);
        self.withheld = self.withheld.filter(is_near);
        if let Some((sampler, considered)) = sampler.zip(self.hit.as_ref().or(self.withheld.as_ref())) {
            sampler.consider(&ask, considered, self.hit.is_some());
        }
        ask.left(StageName::Lookup, now_us);
        let Some(hit) = self.hit else {
            ask.missed = match self.near_miss {
                Some((similarity, reason)) => format!("nearest cached question at {similarity:.3}, but {reason}"),
                None => "no cached question is near".into(),
            };
            return Some(Ok(ask));
        };
        // Nobody needs them any more, and the turn may cross to another worker.
        ask.retrieved = Vec::new();
        let verdict = Verdict {
            level: CacheLevel::Semantic,
            entry: Some(hit.entry),
            similarity: Some(hit.similarity),
            question: Some(hit.question),
            origin: Some(hit.origin),
            refreshed: hit.refreshed,
            reason: reason(&hit.evidence, "was answered before"),
            age_ms: Some(hit.evidence.age_ms),
            evidence: Some(Box::new(hit.evidence)),
            route: None,
        };
        let served = Served { answer: hit.answer, verdict, basis: Some(hit.basis), offer: None, writer: None };
        Some(Err(Outcome { ask, ending: Ending::Served(Box::new(served)) }))
    }
}

/// Why a similar question's answer serves; `how` says what had become of that question.
pub(crate) fn reason(evidence: &HitEvidence, how: &str) -> String {
    let HitEvidence { probability, required, same_article, reasons, .. } = evidence;
    if reasons.is_empty() {
        return format!("a similar question {how}, and both mention the same");
    }
    let article = if *same_article { ", and both are clearly about the same article" } else { "" };
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    format!(
        "one answer serves both with a probability of {probability:.4}, {required:.4} is required{article}: {}",
        reasons.join(", ")
    )
}

impl Stage for Gather {
    type Input = ToGather;
    type Output = Step;

    fn push(&mut self, input: ToGather, now_us: u64, out: &mut Vec<Step>) {
        let request = match &input {
            ToGather::Turn(ask) => ask.request,
            ToGather::Reply(found) => found.request,
        };
        match input {
            ToGather::Turn(mut ask) if !self.enabled || !ask.may_read_cache() => {
                let why = if self.enabled { "no cache was to be read" } else { "the semantic cache is switched off" };
                why.clone_into(&mut ask.missed);
                return out.push(Ok(ask));
            }
            ToGather::Turn(ask) => self.waiting.entry(request).or_default().ask = Some(ask),
            ToGather::Reply(found) => self.waiting.entry(request).or_default().add(*found),
        }
        // Replies may overtake the turn they are about.
        let complete = self.waiting.get(&request).is_some_and(|one| one.ask.is_some() && one.replies == self.shards);
        if complete {
            out.extend(
                self.waiting.remove(&request).and_then(|gathered| gathered.decide(self.sampler.as_ref(), now_us)),
            );
        }
    }

    fn held(&self) -> usize {
        self.waiting.len()
    }
}
