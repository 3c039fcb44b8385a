//! Flights: a question that is similar to one in flight waits for its answer instead of starting another.
//!
//! Contract: exchanged by scope, so one worker sees all turns of it that missed the caches, in order: of questions that the
//! [policy](crate::policy) would answer alike, one *leads* and the others *follow*, however many workers there are. A turn
//! leads or follows, never both, so nobody waits for a turn that waits. Every turn that leads comes back as exactly one
//! [`Landed`], from the [`Dedupe`] of its question, which hears what became of its answer anyway and says how far it is
//! known to hold. A follower gets it when it held at an epoch of the knowledge base no older than the one that was
//! acknowledged when the follower was admitted: then no change that it may know of made the answer invalid.
//!
//! Where the answer does not serve, one follower leads, of those who read the newest knowledge base the one with the most time, and
//! the others follow it or another one, so that a tier that fails is not stormed; when a tier has failed twice, all of them fail. A question
//! that has no answer in the knowledge base is different: its followers go on at once, each by itself, because the next answer
//! would not serve either, and they would wait in line for nothing.
//!
//! A follower hears the answer while it is [written](crate::audience), and so does who waits at dedupe for a turn that leads or
//! follows here.
//!
//! A follower whose time is up waits no longer.
//!
//! What it does not do: it never lets a turn follow that may not read the caches, nor lead that may not write them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use turnflow_state::{ArticleId, CacheLevel, HitEvidence, ScopeId, Stage as StageName, TurnError, Verdict, dot};

use crate::audience::{Audiences, Listener};
use crate::audit::{Record, Sampler};
use crate::bound::{SharedBound, Strictness};
use crate::clients::Clients;
use crate::deadline::{Earliest, is_late, late, until_us};
use crate::dedupe::Dedupe;
use crate::lookup::reason;
use crate::message::{Ask, Candidate, Ending, Outcome, RequestId, Served, Settled, Step, owner_hash};
use crate::policy::{Policy, Prepared};
use crate::shell::{Mailbox, Stage};

/// Questions in flight that the policy is asked about for one that comes.
const CANDIDATES_MAX: usize = 8;

/// A turn that led has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Landed {
    /// Which turn.
    pub leader: RequestId,
    /// The partition of its question.
    pub scope: ScopeId,
    /// Its answer, with an epoch of the knowledge base at which it held; None when it failed or fell.
    pub result: Option<Settled>,
    /// How often tiers have failed at it.
    pub failures: u8,
    /// What those who follow are told when nobody is to try again.
    pub error: Option<TurnError>,
}

/// What goes to the flights of a scope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToFlights {
    /// A turn that no cache answered.
    Turn(Box<Ask>),
    /// A turn that waits at dedupe for one that leads.
    Listener {
        /// The one that leads.
        leader: RequestId,
        /// The partition of its question.
        scope: ScopeId,
        /// The one that waits.
        listener: Listener,
    },
    /// Word of a turn that led.
    Landed(Box<Landed>),
}

impl ToFlights {
    /// Decides which worker sees it; None for a turn that neither leads nor follows, and may stay where it is.
    #[must_use]
    pub fn owner(&self) -> Option<u64> {
        match self {
            Self::Turn(ask) => ask.may_read_cache().then(|| owner_hash(&ask.key.scope)),
            Self::Listener { scope, .. } => Some(owner_hash(scope)),
            Self::Landed(landed) => Some(owner_hash(&landed.scope)),
        }
    }
}

/// A question in flight that others may follow.
#[derive(Debug)]
struct Flight {
    leader: RequestId,
    text: String,
    vector: Arc<[f32]>,
    about: Option<ArticleId>,
    /// Made when it is first compared.
    prepared: Option<Prepared>,
    followers: Vec<Follower>,
}

impl Flight {
    fn of(ask: &Ask, vector: Arc<[f32]>) -> Self {
        Self {
            leader: ask.request,
            text: ask.turn.text.clone(),
            vector,
            about: ask.about.clone(),
            prepared: None,
            followers: Vec::new(),
        }
    }
}

/// A turn that waits, and what speaks for the answer that it waits for.
#[derive(Debug)]
struct Follower {
    ask: Box<Ask>,
    similarity: f32,
    evidence: HitEvidence,
    /// Under which levels it was decided.
    changes: [u32; 2],
}

/// Who waits at dedupe for a turn that is here or is to come.
#[derive(Debug, Default)]
struct Waiters {
    /// Whose answer is written for that turn: its own, or one that it follows.
    heard: Option<RequestId>,
    listeners: Vec<Listener>,
}

/// The core.
#[derive(Debug)]
pub struct Flights {
    policy: Arc<Policy>,
    bound: SharedBound,
    sampler: Option<Sampler>,
    enabled: bool,
    clients: Clients,
    in_flight: HashMap<ScopeId, Vec<Flight>>,
    following: usize,
    /// By the turn that they wait for, until it has landed.
    waiters: HashMap<RequestId, Waiters>,
    earliest: Earliest,
    audiences: Audiences,
    gauge: Arc<AtomicUsize>,
}

impl Flights {
    /// A stage in which nothing is in flight; `enabled: false` lets every turn pass. The audiences are those of the
    /// worker's generate; the gauge shows to others how many turns follow, over all stages that have it.
    #[must_use]
    pub fn new(
        policy: Arc<Policy>,
        bound: SharedBound,
        enabled: bool,
        audiences: Audiences,
        gauge: Arc<AtomicUsize>,
    ) -> Self {
        let (sampler, clients, in_flight, earliest) = (None, Clients::default(), HashMap::new(), Earliest::default());
        let waiters = HashMap::new();
        Self { policy, bound, sampler, enabled, clients, in_flight, following: 0, waiters, earliest, audiences, gauge }
    }

    /// The same for clients that may leave: a turn goes on while others follow it.
    #[must_use]
    pub fn for_clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }

    /// The same, with some of those that followed audited.
    #[must_use]
    pub fn audited(self, sampler: Option<Sampler>) -> Self {
        Self { sampler, ..self }
    }

    /// Has a turn follow the nearest question in flight whose answer the policy lets serve it, or go on.
    fn arrive(&mut self, ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        let Some(vector) = ask.vector.clone().filter(|_| self.enabled && ask.may_read_cache()) else {
            return self.go_on(ask, now_us, out);
        };
        let flights = self.in_flight.get_mut(&ask.key.scope).map_or(&mut [][..], Vec::as_mut_slice);
        let Strictness { extra, changes, .. } = self.bound.lock().strictness(&ask.turn.tenant);
        match nearest(&self.policy, extra, flights, &ask, &vector) {
            Some((flight, similarity, evidence)) => {
                let (leader, follower) = (flight.leader, ask.request);
                self.clients.join(leader, &ask);
                self.earliest.add(&ask);
                self.audiences.listen(leader, Listener::of(&ask));
                flight.followers.push(Follower { ask, similarity, evidence, changes });
                self.following += 1;
                self.heard_at(leader, follower);
            }
            None => self.go_on(ask, now_us, out),
        }
    }

    /// Lets a turn go on, and others follow it if they may.
    fn go_on(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        // Of a turn that dedupe does not lead nobody would hear the end.
        let leads = ask.leads && ask.may_read_cache() && ask.may_write_cache();
        if let Some(vector) = ask.vector.clone().filter(|_| leads) {
            self.in_flight.entry(ask.key.scope).or_default().push(Flight::of(&ask, vector));
            self.audiences.open(&ask);
            self.heard_at(ask.request, ask.request);
        }
        ask.left(StageName::Lookup, now_us);
        out.push(Ok(ask));
    }

    /// Has those who wait for a turn listen to the answer that is written for it, its own or a leader's.
    fn heard_at(&mut self, leader: RequestId, turn: RequestId) {
        if let Some(waiters) = self.waiters.get_mut(&turn) {
            waiters.heard = Some(leader);
            for listener in &waiters.listeners {
                self.audiences.listen(leader, listener.clone());
            }
        }
    }

    /// Has a turn that waits for another one listen to what is written for that one, now or as soon as something is.
    fn listen(&mut self, turn: RequestId, scope: ScopeId, listener: Listener) {
        let flights = self.in_flight.get(&scope).map_or(&[][..], Vec::as_slice);
        let has = |flight: &&Flight| flight.leader == turn || flight.followers.iter().any(|f| f.ask.request == turn);
        let waiters = self.waiters.entry(turn).or_insert_with(|| {
            let heard = flights.iter().find(has).map(|flight| flight.leader);
            Waiters { heard, listeners: Vec::new() }
        });
        if let Some(leader) = waiters.heard {
            self.audiences.listen(leader, listener.clone());
        }
        waiters.listeners.push(listener);
    }

    fn landed(&mut self, landed: Landed, now_us: u64, out: &mut Vec<Step>) {
        if let Some(Waiters { heard: Some(leader), listeners }) = self.waiters.remove(&landed.leader) {
            // It may have gone without the answer that it followed.
            listeners.iter().for_each(|listener| self.audiences.leave(leader, listener.request));
        }
        // Most of those that end had been answered before they came here.
        let Some(flight) = self.remove(landed.scope, landed.leader) else { return };
        self.following -= flight.followers.len();
        if let Some(error) = landed.error {
            out.extend(flight.followers.into_iter().map(|Follower { mut ask, .. }| {
                ask.left(StageName::Lookup, now_us);
                // Nor are those to try again who wait for its own answer.
                ask.failures = landed.failures;
                Err(Outcome::failed(ask, error.clone()))
            }));
            return;
        }
        let settled = landed.result.and_then(|settled| Some((settled.basis.as_ref()?.valid_at, settled)));
        let is_unanswerable = settled.as_ref().is_some_and(|(_, settled)| !settled.answer.grounded);
        // Where the answer cites another article than the question is about, nothing is clear.
        let about = settled.as_ref().and_then(|(_, settled)| settled.entry.as_ref()?.about.clone());
        let serves = |follower: &Follower| !follower.evidence.same_article || about.is_some();
        let mut others = Vec::new();
        for follower in flight.followers {
            match &settled {
                Some((valid_at, settled))
                    if !is_unanswerable && serves(&follower) && follower.ask.acknowledged <= *valid_at =>
                {
                    if let Some((sampler, followed)) = self.sampler.as_ref().zip(followed(&follower, settled)) {
                        sampler.consider(&follower.ask, &followed, true);
                    }
                    out.push(Err(answered(follower, settled, now_us)));
                }
                _ => {
                    let failures = follower.ask.failures.max(landed.failures);
                    others.push(Box::new(Ask { promised: true, failures, ..*follower.ask }));
                }
            }
        }
        // Who has read the newest knowledge base leads, since an answer from an older one may have fallen already, and of those who has the
        // most time.
        others.sort_by_key(|ask| Reverse((ask.read_epoch, until_us(ask))));
        for ask in others {
            if is_unanswerable { self.go_on(ask, now_us, out) } else { self.arrive(ask, now_us, out) }
        }
    }

    /// Ends the turns that follow and whose time is up.
    fn expire(&mut self, now_us: u64, out: &mut Vec<Step>) {
        if self.earliest.has_passed(now_us) {
            for flight in self.in_flight.values_mut().flatten() {
                for Follower { ask, .. } in flight.followers.extract_if(.., |follower| is_late(&follower.ask, now_us)) {
                    self.audiences.leave(flight.leader, ask.request);
                    self.following -= 1;
                    out.push(Err(late(ask)));
                }
            }
            let followers = self.in_flight.values().flatten().flat_map(|flight| &flight.followers);
            self.earliest = Earliest::of(followers.map(|follower| follower.ask.as_ref()));
        }
    }

    /// Shows how many more or fewer follow than before.
    fn show(&self, before: usize) {
        // Wraps around where there are fewer now.
        self.gauge.fetch_add(self.following.wrapping_sub(before), Ordering::Relaxed);
    }

    fn remove(&mut self, scope: ScopeId, leader: RequestId) -> Option<Flight> {
        let flights = self.in_flight.get_mut(&scope)?;
        let flight = flights.remove(flights.iter().position(|flight| flight.leader == leader)?);
        if flights.is_empty() {
            self.in_flight.remove(&scope);
        }
        Some(flight)
    }
}

/// The nearest flight that answers a question, if one does.
fn nearest<'a>(
    policy: &Policy,
    extra: [f32; 2],
    flights: &'a mut [Flight],
    ask: &Ask,
    vector: &[f32],
) -> Option<(&'a mut Flight, f32, HitEvidence)> {
    let mut near: Vec<(usize, f32)> = flights.iter().map(|flight| dot(&flight.vector, vector)).enumerate().collect();
    near.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    near.truncate(CANDIDATES_MAX);
    if near.is_empty() {
        return None;
    }
    let asked = policy.prepare(&ask.turn.text, Some(vector), ask.about.clone());
    let (at, similarity, evidence) = near.into_iter().find_map(|(at, similarity)| {
        let Flight { text, vector, about, prepared, .. } = &mut flights[at];
        let led = prepared.get_or_insert_with(|| policy.prepare(text, Some(vector), about.clone()));
        let evidence = policy.judge(&asked, led, similarity, extra).ok()?;
        Some((at, similarity, HitEvidence { reasons: policy.reasons(&asked, led, similarity), ..evidence }))
    })?;
    Some((&mut flights[at], similarity, evidence))
}

/// The answer that a follower gets, as a hit on a similar question.
fn followed(follower: &Follower, settled: &Settled) -> Option<Candidate> {
    let entry = settled.entry.as_ref()?;
    Some(Candidate {
        entry: entry.id,
        similarity: follower.similarity,
        question: settled.question.clone(),
        answer: settled.answer.clone(),
        origin: settled.origin.clone(),
        refreshed: settled.refreshed,
        basis: settled.basis.clone()?,
        evidence: follower.evidence.clone(),
        // Nothing is known of what was written just now.
        record: Record::default(),
        changes: follower.changes,
    })
}

fn answered(follower: Follower, settled: &Settled, now_us: u64) -> Outcome {
    let Follower { mut ask, similarity, evidence, .. } = follower;
    ask.left(StageName::Lookup, now_us);
    // Nobody needs them any more, and the turn may cross to another worker.
    ask.retrieved = Vec::new();
    let verdict = Verdict {
        entry: settled.entry.as_ref().map(|entry| entry.id),
        similarity: Some(similarity),
        question: Some(settled.question.clone()),
        origin: Some(settled.origin.clone()),
        refreshed: settled.refreshed,
        age_ms: Some(0),
        ..Verdict::new(CacheLevel::Joined, reason(&evidence, "was being answered"))
    };
    let verdict = Verdict { evidence: Some(Box::new(evidence)), ..verdict };
    let basis = settled.basis.clone();
    let (answer, writer) = (settled.answer.clone(), settled.writer);
    let served = Served { answer, verdict, basis, offer: None, writer };
    Outcome { ask, ending: Ending::Served(Box::new(served)) }
}

impl Stage for Flights {
    type Input = ToFlights;
    type Output = Step;

    fn push(&mut self, input: ToFlights, now_us: u64, out: &mut Vec<Step>) {
        let before = self.following;
        match input {
            ToFlights::Turn(mut ask) => {
                ask.entered_us = now_us;
                self.arrive(ask, now_us, out);
            }
            ToFlights::Listener { leader, scope, listener } => self.listen(leader, scope, listener),
            ToFlights::Landed(landed) => self.landed(*landed, now_us, out),
        }
        self.show(before);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        let before = self.following;
        self.expire(now_us, out);
        self.show(before);
    }

    fn held(&self) -> usize {
        self.following
    }

    fn due_us(&self) -> Option<u64> {
        self.earliest.due_us()
    }
}

/// Dedupe together with its word for the [`Flights`] of a scope: of every turn that waits, and of every turn that led and has ended.
#[derive(Debug)]
pub struct Announce {
    dedupe: Dedupe,
    word: Mailbox<ToFlights>,
    steps: Vec<Step>,
}

impl Announce {
    /// A stage around a dedupe that leaves its word in the box.
    #[must_use]
    pub fn new(dedupe: Dedupe, word: Mailbox<ToFlights>) -> Self {
        Self { dedupe, word, steps: Vec::new() }
    }

    fn give_out(&mut self, out: &mut Vec<<Self as Stage>::Output>) {
        out.extend(self.steps.drain(..).map(Ok));
        out.extend(std::iter::from_fn(|| self.word.take()).map(Err));
    }
}

impl Stage for Announce {
    type Input = Box<Ask>;
    type Output = Result<Step, ToFlights>;

    fn push(&mut self, ask: Box<Ask>, now_us: u64, out: &mut Vec<Self::Output>) {
        self.dedupe.push(ask, now_us, &mut self.steps);
        self.give_out(out);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Self::Output>) {
        self.dedupe.poll(now_us, &mut self.steps);
        self.give_out(out);
    }

    /// Turns that wait, and turns that led and whose end is to be told.
    fn held(&self) -> usize {
        self.dedupe.held() + self.dedupe.in_flight()
    }

    fn due_us(&self) -> Option<u64> {
        self.dedupe.due_us()
    }
}
