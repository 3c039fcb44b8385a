//! Dedupe: answers a question that was answered before in the same words, and lets identical questions in flight
//! wait for the first of them.
//!
//! Contract: exchanged by question, so one worker sees all turns that ask it. A turn that goes on with
//! [`Ask::leads`] set comes back as exactly one [`Settlement`], with its answer or without. Those who wait do not get the
//! answer at once: they may have been admitted after a change of the knowledge base that it knows nothing of. It is put
//! forward as a [`Proposal`], and comes back as exactly one [`Resolution`]: with it, those who wait get the answer;
//! without, one of them goes on in the leader's place, the one with the most time, unless a tier has failed at the question twice: then all of them fail.
//! One whose time is up meanwhile waits no longer. Nothing crosses a scope, because the scope is part of the key.
//!
//! In [`Boxes::word`] is left for the [flights](crate::flights), who know where an answer is written: who waits, so that they hear it
//! meanwhile, and what became of every turn that led.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use turnflow_state::{CacheLevel, EntryHistory, EntryId, Stage as StageName, TurnKey, Verdict};

use crate::audience::Listener;
use crate::audit::Suspect;
use crate::clients::Clients;
use crate::deadline::{Earliest, is_late, late, take_late, until_us};
use crate::flights::{Landed, ToFlights};
use crate::message::{
    Ask, Ended, Ending, Outcome, Purpose, QuestionKey, RequestId, Resolution, Served, Settled, Settlement, Step,
};
use crate::shard::Shard;
use crate::shell::{Mailbox, Stage};
use crate::validity::keeper::Proposal;

/// A question in flight.
#[derive(Debug)]
struct Flight {
    /// The turn that is on its way.
    leader: RequestId,
    /// Turns that wait for its answer.
    waiting: VecDeque<Box<Ask>>,
    /// How many of them came before it was answered; None until it is.
    joined: Option<usize>,
}

/// The core that decides.
#[derive(Debug)]
pub struct Dedupe {
    shard: Rc<RefCell<Shard>>,
    boxes: Boxes,
    clients: Clients,
    in_flight: HashMap<QuestionKey, Flight>,
    waiting: usize,
    earliest: Earliest,
    exact: bool,
}

/// What dedupe hears from settle and from validity, and what validity hears from both. All of it stays at the worker.
#[derive(Clone, Debug, Default)]
pub struct Boxes {
    /// From settle: turns that led, or whose answer is to be cached, have ended.
    pub settled: Mailbox<Resolution>,
    /// From settle, not to dedupe: questions that were asked in the background have ended.
    pub answered: Mailbox<Resolution>,
    /// From gather, not to dedupe: hits that are to be audited.
    pub suspects: Mailbox<Suspect>,
    /// From settle, not to dedupe: audits that have ended.
    pub audited: Mailbox<Resolution>,
    /// To validity: may this be served to others?
    pub proposals: Mailbox<Proposal>,
    /// From validity: it may, or may not.
    pub resolved: Mailbox<Resolution>,
    /// From dedupe: who waits for turns that lead, and what became of these.
    pub word: Mailbox<ToFlights>,
}

impl Dedupe {
    /// A stage over a shard; `exact: false` switches the response cache off, but not the joining.
    #[must_use]
    pub fn new(shard: Rc<RefCell<Shard>>, boxes: Boxes, exact: bool) -> Self {
        let (clients, in_flight, earliest) = (Clients::default(), HashMap::new(), Earliest::default());
        Self { shard, boxes, clients, in_flight, waiting: 0, earliest, exact }
    }

    /// The same for clients that may leave: a turn goes on while others wait for its answer.
    #[must_use]
    pub fn for_clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }

    /// Questions in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn exact_hit(&self, ask: &Ask) -> Option<Box<Served>> {
        if !self.exact {
            return None;
        }
        let mut shard = self.shard.borrow_mut();
        if shard.find(&ask.key)?.created_ms < ask.made_since_ms() {
            return None;
        }
        let entry = shard.exact(&ask.key, ask.turn.at_ms)?;
        let same = same_question(CacheLevel::Exact, Some(entry.id), &entry.question, &entry.origin, entry.refreshed);
        let verdict = Verdict { age_ms: Some(ask.turn.at_ms.saturating_sub(entry.created_ms)), ..same };
        Some(Box::new(Served { answer: entry.answer.clone(), verdict, basis: None, offer: None, writer: None }))
    }
    /// A turn that led has ended: asks whether those who wait may have its answer, if there is an answer and anybody to
    /// have it.
    fn settle(&mut self, resolution: Resolution, now_us: u64, out: &mut Vec<Step>) {
        let flight = self.in_flight.get_mut(&resolution.key);
        let is_awaited = flight.as_ref().is_some_and(|flight| !flight.waiting.is_empty());
        let settled = resolution.result.as_ref();
        let Some((basis, entry)) = settled.and_then(|settled| Some((settled.basis.clone()?, settled.entry.clone())))
        else {
            return self.resolve(resolution.without_answer(), now_us, out);
        };
        if entry.is_none() && !is_awaited {
            return self.resolve(resolution.without_answer(), now_us, out);
        }
        if let Some(flight) = flight {
            flight.joined = Some(flight.waiting.len());
        }
        // The scope derives from the tenant, so everybody who waits is of the tenant of the turn that led.
        let Some(tenant) = settled.map(|settled| settled.origin.tenant.clone()) else { return };
        let resolution = Some(resolution);
        let history = EntryHistory::default();
        self.boxes.proposals.send(Proposal { tenant, basis, entry, stored: false, history, resolution });
    }

    /// Ends the turns that wait and whose time is up.
    fn expire(&mut self, now_us: u64, out: &mut Vec<Step>) {
        if self.earliest.has_passed(now_us) {
            let before = out.len();
            for Flight { waiting, joined, .. } in self.in_flight.values_mut() {
                if let Some(joined) = joined {
                    *joined -= waiting.iter().take(*joined).filter(|ask| is_late(ask, now_us)).count();
                }
                out.extend(take_late(waiting, now_us).map(|ask| Err(late(ask))));
            }
            self.waiting -= out.len() - before;
            self.earliest = Earliest::of(self.in_flight.values().flat_map(|flight| &flight.waiting).map(Box::as_ref));
        }
    }

    fn resolve(&mut self, resolution: Resolution, now_us: u64, out: &mut Vec<Step>) {
        if let Some(Flight { leader, .. }) = self.in_flight.get(&resolution.key) {
            let (leader, scope) = (*leader, resolution.key.scope);
            let Resolution { result, failures, error, .. } = resolution.clone();
            self.boxes.word.send(ToFlights::Landed(Box::new(Landed { leader, scope, result, failures, error })));
        }
        match resolution.result {
            Some(settled) => {
                let Some(Flight { waiting, joined, .. }) = self.in_flight.remove(&resolution.key) else { return };
                self.waiting -= waiting.len();
                let joined = joined.unwrap_or(waiting.len());
                if let Some(entry) = &settled.entry {
                    let mut shard = self.shard.borrow_mut();
                    for _ in &waiting {
                        shard.served(entry.id);
                    }
                }
                out.extend(waiting.into_iter().enumerate().map(|(place, ask)| {
                    let level = if place < joined { CacheLevel::Joined } else { CacheLevel::Exact };
                    Err(answered(ask, level, &settled, now_us))
                }));
            }
            None => {
                if let Some(error) = resolution.error {
                    let Some(Flight { waiting, .. }) = self.in_flight.remove(&resolution.key) else { return };
                    self.waiting -= waiting.len();
                    out.extend(waiting.into_iter().map(|mut ask| {
                        ask.left(StageName::Dedupe, now_us);
                        Err(Outcome::failed(ask, error.clone()))
                    }));
                    return;
                }
                let Some(flight) = self.in_flight.get_mut(&resolution.key) else { return };
                flight.joined = None;
                // Who has the most time: of two that have little, each would fail.
                let most = (0..).zip(&flight.waiting).max_by_key(|(place, ask)| (until_us(ask), Reverse(*place)));
                let place = most.map(|(place, _)| place);
                match place.and_then(|place| flight.waiting.remove(place)) {
                    Some(mut heir) => {
                        self.waiting -= 1;
                        (heir.leads, heir.promised, heir.failures) = (true, true, resolution.failures);
                        flight.leader = heir.request;
                        for ask in &flight.waiting {
                            self.clients.join(heir.request, ask);
                            listen(&self.boxes.word, heir.request, ask);
                        }
                        heir.left(StageName::Dedupe, now_us);
                        out.push(Ok(heir));
                    }
                    None => {
                        self.in_flight.remove(&resolution.key);
                    }
                }
            }
        }
    }
}

/// Has a turn hear the answer that it waits for as it is written.
fn listen(word: &Mailbox<ToFlights>, leader: RequestId, ask: &Ask) {
    word.send(ToFlights::Listener { leader, scope: ask.key.scope, listener: Listener::of(ask) });
}

fn answered(mut ask: Box<Ask>, level: CacheLevel, settled: &Settled, now_us: u64) -> Outcome {
    ask.left(StageName::Dedupe, now_us);
    let entry = settled.entry.as_ref().map(|entry| entry.id);
    let verdict = same_question(level, entry, &settled.question, &settled.origin, settled.refreshed);
    let (answer, writer) = (settled.answer.clone(), settled.writer);
    let served = Served { answer, verdict, basis: None, offer: None, writer };
    Outcome { ask, ending: Ending::Served(Box::new(served)) }
}

fn same_question(
    level: CacheLevel,
    entry: Option<EntryId>,
    question: &str,
    origin: &TurnKey,
    refreshed: bool,
) -> Verdict {
    let reason = match level {
        CacheLevel::Joined => "the same question was being answered",
        _ => "the same question was answered before",
    };
    Verdict {
        entry,
        question: Some(question.to_owned()),
        origin: Some(origin.clone()),
        refreshed,
        // Written just now, where nobody knows better.
        age_ms: Some(0),
        ..Verdict::new(level, reason)
    }
}

impl Stage for Dedupe {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        // First those who waited before: an answer that was kept for them may have fallen since, and whoever comes now must
        // not join them.
        self.poll(now_us, out);
        ask.entered_us = now_us;
        if !ask.may_read_cache() {
            return out.push(Ok(ask));
        }
        if let Some(served) = self.exact_hit(&ask) {
            return out.push(Err(Outcome { ask, ending: Ending::Served(served) }));
        }
        // A turn that may not write the cache joins others, but nobody waits for it.
        match self.in_flight.get_mut(&ask.key) {
            Some(flight) => {
                self.clients.join(flight.leader, &ask);
                self.earliest.add(&ask);
                listen(&self.boxes.word, flight.leader, &ask);
                flight.waiting.push_back(ask);
                self.waiting += 1;
            }
            None => {
                if ask.may_write_cache() {
                    ask.leads = true;
                    let flight = Flight { leader: ask.request, waiting: VecDeque::new(), joined: None };
                    self.in_flight.insert(ask.key.clone(), flight);
                }
                out.push(Ok(ask));
            }
        }
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(settled) = self.boxes.settled.take() {
            self.settle(settled, now_us, out);
        }
        while let Some(resolution) = self.boxes.resolved.take() {
            self.resolve(resolution, now_us, out);
        }
        self.expire(now_us, out);
    }

    fn held(&self) -> usize {
        self.waiting
    }

    fn due_us(&self) -> Option<u64> {
        self.earliest.due_us()
    }
}

/// The core that takes a settlement at the question's worker, and tells the [`Dedupe`] there, or whoever asked in the
/// background.
///
/// Gives out the end of the turn, so that it is told only after its answer was put forward: whoever asks the same again
/// after hearing the end finds it pending or kept. A question that was asked in the background ends here.
#[derive(Debug)]
pub struct Settle(pub Boxes);

impl Stage for Settle {
    type Input = Box<Settlement>;
    type Output = Box<Ended>;

    fn push(&mut self, settlement: Box<Settlement>, _now_us: u64, out: &mut Vec<Self::Output>) {
        let Settlement { resolution, ended } = *settlement;
        match resolution.purpose {
            Purpose::Turn => self.0.settled.send(resolution),
            Purpose::Refresh => self.0.answered.send(resolution),
            Purpose::Audit => self.0.audited.send(resolution),
        }
        out.extend(ended);
    }
}
