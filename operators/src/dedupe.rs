//! Dedupe: answers a question that was answered before in the same words, and lets identical questions in flight
//! wait for the first of them.
//!
//! Contract: exchanged by question, so one worker sees all turns that ask it. A turn that goes on with
//! [`Ask::leads`] set comes back as exactly one [`Settlement`], with its answer or without: with it, those who wait
//! get the same answer; without, the first of them goes on in its place. Nothing crosses a scope, because the scope
//! is part of the key.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use turnflow_state::{CacheLevel, EntryId, Stage as StageName, Verdict};

use crate::message::{Ask, Ended, Ending, Outcome, QuestionKey, Resolution, Served, Settled, Settlement, Step};
use crate::shard::Shard;
use crate::shell::{Mailbox, Stage};

/// The core that decides.
#[derive(Debug)]
pub struct Dedupe {
    shard: Rc<RefCell<Shard>>,
    resolutions: Mailbox<Resolution>,
    /// Questions in flight, and the turns that wait for their answers.
    in_flight: HashMap<QuestionKey, VecDeque<Box<Ask>>>,
    waiting: usize,
    exact: bool,
}

impl Dedupe {
    /// A stage over a shard; `exact: false` switches the response cache off, but not the joining.
    #[must_use]
    pub fn new(shard: Rc<RefCell<Shard>>, resolutions: Mailbox<Resolution>, exact: bool) -> Self {
        Self { shard, resolutions, in_flight: HashMap::new(), waiting: 0, exact }
    }

    fn exact_hit(&self, ask: &Ask) -> Option<Box<Served>> {
        if !self.exact {
            return None;
        }
        let mut shard = self.shard.borrow_mut();
        let entry = shard.exact(&ask.key)?;
        Some(Box::new(Served {
            answer: entry.answer.clone(),
            verdict: Verdict {
                level: CacheLevel::Exact,
                entry: Some(entry.id),
                similarity: None,
                question: Some(entry.question.clone()),
                origin: Some(entry.origin.clone()),
                reason: "the same question was answered before".into(),
            },
            offer: None,
            streamed: false,
        }))
    }

    fn resolve(&mut self, resolution: &Resolution, now_us: u64, out: &mut Vec<Step>) {
        let Some(waiting) = self.in_flight.get_mut(&resolution.key) else { return };
        match &resolution.result {
            Some(settled) => {
                let waiting = self.in_flight.remove(&resolution.key).unwrap_or_default();
                self.waiting -= waiting.len();
                out.extend(waiting.into_iter().map(|ask| Err(joined(ask, settled, now_us))));
            }
            None => match waiting.pop_front() {
                Some(mut heir) => {
                    self.waiting -= 1;
                    heir.leads = true;
                    heir.left(StageName::Dedupe, now_us);
                    out.push(Ok(heir));
                }
                None => {
                    self.in_flight.remove(&resolution.key);
                }
            },
        }
    }
}

fn joined(mut ask: Box<Ask>, settled: &Settled, now_us: u64) -> Outcome {
    ask.left(StageName::Dedupe, now_us);
    let verdict = Verdict {
        level: CacheLevel::Joined,
        entry: settled.entry.as_ref().map(|entry| entry.id),
        similarity: None,
        question: Some(settled.question.clone()),
        origin: Some(settled.origin.clone()),
        reason: "the same question was being answered".into(),
    };
    let served = Served { answer: settled.answer.clone(), verdict, offer: None, streamed: false };
    Outcome { ask, ending: Ending::Served(Box::new(served)) }
}

impl Stage for Dedupe {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        ask.entered_us = now_us;
        if !ask.may_read_cache() {
            return out.push(Ok(ask));
        }
        if let Some(served) = self.exact_hit(&ask) {
            return out.push(Err(Outcome { ask, ending: Ending::Served(served) }));
        }
        // A turn that may not write the cache joins others, but nobody waits for it.
        match self.in_flight.get_mut(&ask.key) {
            Some(waiting) => {
                waiting.push_back(ask);
                self.waiting += 1;
            }
            None => {
                if ask.may_write_cache() {
                    ask.leads = true;
                    self.in_flight.insert(ask.key.clone(), VecDeque::new());
                }
                out.push(Ok(ask));
            }
        }
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(resolution) = self.resolutions.take() {
            self.resolve(&resolution, now_us, out);
        }
    }

    fn held(&self) -> usize {
        self.waiting
    }
}

/// The core that takes a settlement at the question's shard: remembers its entry, then lets those who wait go.
///
/// Runs on the worker of the [`Dedupe`] that it reports to. Gives out the end of the turn, so that it is told only when
/// its answer can be served again, and the entries that had to go to make room.
#[derive(Debug)]
pub struct Settle {
    shard: Rc<RefCell<Shard>>,
    resolutions: Mailbox<Resolution>,
}

impl Settle {
    /// A stage over the shard and mailbox of a [`Dedupe`].
    #[must_use]
    pub fn new(shard: Rc<RefCell<Shard>>, resolutions: Mailbox<Resolution>) -> Self {
        Self { shard, resolutions }
    }
}

impl Stage for Settle {
    type Input = Box<Settlement>;
    type Output = Result<Box<Ended>, EntryId>;

    fn push(&mut self, settlement: Box<Settlement>, _now_us: u64, out: &mut Vec<Self::Output>) {
        let Settlement { resolution, leads, ended } = *settlement;
        if let Some(entry) = resolution.result.as_ref().and_then(|settled| settled.entry.as_deref()) {
            match self.shard.borrow_mut().insert(entry.clone()) {
                Ok(forgotten) => out.extend(forgotten.into_iter().map(Err)),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot remember an answer");
                    out.push(Err(entry.id));
                }
            }
        }
        if leads {
            self.resolutions.send(resolution);
        }
        out.push(Ok(ended));
    }
}
