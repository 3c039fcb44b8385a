//! Commit: makes a turn and its answer durable, and gives out its end.
//!
//! Contract: exchanged by conversation, to the worker that ordered it. Every outcome that comes in gives out exactly
//! one end: inside a [`Settlement`] when others wait for the answer or it is to be cached, by itself otherwise. An
//! answer's end is given out only after it was written; when it cannot be written, the turn ends with an error and
//! nothing of it is cached. Errors are not written: the same turn id may be tried again. What was asked in the background
//! is no turn of a conversation: nothing is written, and the end goes to the question's shard alone.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use turnflow_state::{
    CacheEntry, Committer, Completion, Conversation, EntryId, Stage as StageName, StateError, Store, StoreBatch, Tier,
    TierSize, Turn, TurnError, TurnErrorKind, TurnEvent, TurnRecord, Usage,
};

use crate::jobs::{Came, Jobs, Report};
use crate::message::{Ask, Ended, Ending, Notice, Outcome, Resolution, Served, Settled, Settlement, Spent, ToCommit};
use crate::shell::{Stage, Wake};
use crate::tally::{Consumption, Tallies};

/// The result of a durable write.
pub type Written = Result<(), Arc<StateError>>;

/// What commit writes to.
pub trait Journal: 'static {
    /// What is known of the turn's conversation.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn conversation(&self, turn: &Turn) -> Result<Option<Conversation>, StateError>;

    /// Writes a batch and reports when it is durable.
    fn write(&self, batch: StoreBatch, report: Report<(), Written>);
}

/// A store whose writes are grouped by a committer.
#[derive(Clone)]
pub struct GroupedJournal {
    /// Read from here.
    pub store: Store,
    /// Written through here.
    pub committer: Arc<Committer>,
}

impl Journal for GroupedJournal {
    fn conversation(&self, turn: &Turn) -> Result<Option<Conversation>, StateError> {
        self.store.conversation(&turn.tenant, &turn.conversation)
    }

    fn write(&self, batch: StoreBatch, report: Report<(), Written>) {
        self.committer.submit(batch, Box::new(move |result| report.finish(result)));
    }
}

/// What a tier's tokens cost, in millionths of the configured currency per million tokens, which is the price of
/// a million tokens in that currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Price {
    /// Of a million tokens read.
    pub input_per_million: f64,
    /// Of a million tokens written.
    pub output_per_million: f64,
}

impl Price {
    /// The cost of a usage, in millionths of the currency.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "prices are checked to be finite and not negative"
    )]
    pub fn cost_micros(&self, usage: Usage) -> u64 {
        // A millionth of the currency per token equals the currency per million tokens.
        (self.input_per_million * f64::from(usage.input_tokens)
            + self.output_per_million * f64::from(usage.output_tokens))
        .round() as u64
    }
}

/// What the tokens of each tier cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prices {
    /// Of the small one.
    pub small: Price,
    /// Of the large one.
    pub large: Price,
}

impl Prices {
    /// Of the tier of a size.
    #[must_use]
    pub const fn of(&self, size: TierSize) -> Price {
        match size {
            TierSize::Small => self.small,
            TierSize::Large => self.large,
        }
    }

    /// The cost of what the tiers took, in the order of [`TierSize::ALL`] and in millionths of the currency.
    #[must_use]
    pub fn cost_micros(&self, used: [Usage; TierSize::ALL.len()]) -> u64 {
        TierSize::ALL.iter().zip(used).map(|(&size, usage)| self.of(size).cost_micros(usage)).sum()
    }
}

/// The prices that hold, which may change while turns are booked; clones share them.
#[derive(Clone, Debug, Default)]
pub struct PriceList(Arc<RwLock<Prices>>);

impl PriceList {
    /// The prices now.
    #[must_use]
    pub fn now(&self) -> Prices {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these hold.
    pub fn set(&self, prices: Prices) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = prices;
    }
}

impl From<Prices> for PriceList {
    fn from(prices: Prices) -> Self {
        Self(Arc::new(RwLock::new(prices)))
    }
}

/// Numbers the entries of one worker: no two workers give the same number.
#[derive(Clone, Copy, Debug)]
pub struct EntryNumbers {
    next: u64,
    step: u64,
}

impl EntryNumbers {
    /// Numbers above `last`, for worker `index` of `peers`.
    #[must_use]
    pub fn new(last: EntryId, index: u64, peers: u64) -> Self {
        assert!(index < peers, "worker {index} of {peers}");
        Self { next: last.0 + 1 + index, step: peers }
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "numbers never end, so this is no iterator")]
    pub fn next(&mut self) -> EntryId {
        let id = EntryId(self.next);
        self.next += self.step;
        id
    }
}

/// A turn whose answer is being written.
#[derive(Debug)]
struct Writing {
    ask: Box<Ask>,
    completion: Box<Completion>,
    settled: Settled,
    /// What it was spared, on a hit.
    saved: Usage,
}

/// The core.
pub struct Commit<J> {
    journal: J,
    prices: PriceList,
    tallies: Tallies,
    numbers: EntryNumbers,
    jobs: Jobs<Writing, (), Written>,
    /// Batches wait here only between `push` and `poll`, so that one activation's writes are handed over together.
    queue: VecDeque<(Writing, StoreBatch)>,
}

impl<J> std::fmt::Debug for Commit<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit").field("under_way", &self.jobs.len()).finish_non_exhaustive()
    }
}

/// What commit gives out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Committed {
    /// A piece of an answer, passed on.
    Piece(Notice),
    /// An end that concerns the question's shard.
    Settle(Box<Settlement>),
    /// An end that concerns nobody else.
    End(Box<Ended>),
}

impl<J: Journal> Commit<J> {
    /// A stage in front of a journal.
    #[must_use]
    pub fn new(journal: J, prices: PriceList, numbers: EntryNumbers, wake: &Wake) -> Self {
        let (tallies, jobs, queue) = (Tallies::default(), Jobs::new(wake), VecDeque::new());
        Self { journal, prices, tallies, numbers, jobs, queue }
    }

    /// The same, which books what turns cost.
    #[must_use]
    pub fn booking(self, tallies: Tallies) -> Self {
        Self { tallies, ..self }
    }

    fn ended(&mut self, outcome: Outcome, out: &mut Vec<Committed>) {
        let Outcome { ask, ending } = outcome;
        match ending {
            Ending::Failed(error) => out.push(self.failed(&ask, error)),
            Ending::Repeated(record) => {
                let completion = Box::new(Completion { latency: ask.latency, ..record.completion });
                let ended = Ended::new(&ask, TurnEvent::Done(completion), None);
                out.push(Committed::End(Box::new(Ended { repeated: true, ..*ended })));
            }
            Ending::Served(served) if ask.purpose.is_background() => {
                let cost_micros = self.prices.now().cost_micros(ask.used);
                self.tallies.of(&ask.turn.tenant).spent_in_background(cost_micros);
                let settled = self.settled(&ask, *served, cost_micros);
                out.push(end(&ask, None, Some(settled), None));
            }
            Ending::Served(served) => {
                let saved = if served.verdict.level.is_hit() { served.answer.usage } else { Usage::default() };
                match self.prepare(&ask, *served) {
                    Ok((completion, settled, batch)) => {
                        self.queue.push_back((Writing { ask, completion, settled, saved }, batch));
                    }
                    Err(error) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "cannot prepare a turn for the store"
                        );
                        out.push(self.failed(&ask, unwritten()));
                    }
                }
            }
        }
    }

    fn failed(&self, ask: &Ask, error: TurnError) -> Committed {
        let spent = Spent { usage: ask.used(), micros: self.prices.now().cost_micros(ask.used) };
        if spent != Spent::default() {
            self.tallies.of(&ask.turn.tenant).unanswered(spent.micros);
        }
        let of_others = ask.is_hopeless().then(|| error.clone());
        let ended = || Box::new(Ended { spent, ..*Ended::new(ask, TurnEvent::Error(error), None) });
        let ended = (!ask.purpose.is_background()).then(ended);
        end(ask, ended, None, of_others)
    }

    fn prepare(&mut self, ask: &Ask, served: Served) -> Result<(Box<Completion>, Settled, StoreBatch), StateError> {
        let (answer, verdict) = (served.answer.clone(), served.verdict.clone());
        let asked_a_tier = !verdict.level.is_hit();
        let usage = if asked_a_tier { answer.usage } else { Usage::default() };
        // Read once: a reload in between must not mix prices.
        let prices = self.prices.now();
        let cost_micros = prices.cost_micros(ask.used);
        let settled = self.settled(ask, served, cost_micros);
        let completion = Completion {
            text: answer.text.clone(),
            tier: answer.tier,
            grounded: answer.grounded,
            sources: answer.sources.clone(),
            usage: ask.used(),
            cost_micros,
            // It alone would not have asked the small one first.
            large_cost_micros: prices.large.cost_micros(usage),
            verdict,
            latency: ask.latency,
            total_us: ask.latency.iter().map(|(_, elapsed_us)| u64::from(elapsed_us)).sum(),
            cut_off: answer.cut_off,
        };
        let mut conversation = self.journal.conversation(&ask.turn)?.unwrap_or_default();
        conversation.record(ask.turn.id.clone());
        if asked_a_tier && answer.tier != Tier::Scripted {
            conversation.size = Some(ask.size);
        }
        let mut batch = StoreBatch::new();
        batch.put_turn(&TurnRecord { turn: ask.turn.clone(), completion: completion.clone() }, &conversation)?;
        Ok((Box::new(completion), settled, batch))
    }

    /// What the question's shard hears of an answer.
    fn settled(&mut self, ask: &Ask, served: Served, cost_micros: u64) -> Settled {
        let Served { answer, verdict, basis, offer, writer } = served;
        Settled {
            answer,
            origin: verdict.origin.unwrap_or_else(|| ask.turn.key()),
            refreshed: verdict.refreshed,
            question: verdict.question.unwrap_or_else(|| ask.turn.text.clone()),
            writer,
            cost_micros,
            basis,
            entry: offer.map(|entry| Box::new(CacheEntry { id: self.numbers.next(), ..*entry })),
        }
    }

    fn written(&mut self, writing: Writing, result: Option<Written>, now_us: u64, out: &mut Vec<Committed>) {
        let Writing { mut ask, mut completion, settled, saved } = writing;
        match result {
            Some(Ok(())) => {
                ask.left(StageName::Commit, now_us);
                completion.latency = ask.latency;
                self.tallies.of(&ask.turn.tenant).consumed(Consumption {
                    usage: completion.usage,
                    cost_micros: completion.cost_micros,
                    large_cost_micros: completion.large_cost_micros,
                    saved,
                    saved_cost_micros: self.prices.now().large.cost_micros(saved),
                });
                let ended = Ended::new(&ask, TurnEvent::Done(completion), settled.writer);
                out.push(end(&ask, Some(ended), Some(settled), None));
            }
            Some(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot write a turn");
                out.push(self.failed(&ask, unwritten()));
            }
            None => out.push(self.failed(&ask, unwritten())),
        }
    }
}

/// The end of a turn, which its question's shard hears of where that concerns others; it has none where nobody waits.
fn end(ask: &Ask, ended: Option<Box<Ended>>, result: Option<Settled>, error: Option<TurnError>) -> Committed {
    let is_cached = result.as_ref().is_some_and(|settled| settled.entry.is_some());
    match ended {
        Some(ended) if !ask.leads && !is_cached => Committed::End(ended),
        ended => {
            let resolution =
                Resolution { purpose: ask.purpose, key: ask.key.clone(), result, failures: ask.failures, error };
            Committed::Settle(Box::new(Settlement { resolution, ended }))
        }
    }
}

fn unwritten() -> TurnError {
    TurnError::new(TurnErrorKind::Internal, "the answer could not be written")
}

impl<J: Journal> Stage for Commit<J> {
    type Input = ToCommit;
    type Output = Committed;

    fn push(&mut self, input: ToCommit, now_us: u64, out: &mut Vec<Committed>) {
        match input {
            ToCommit::Piece(notice, _) => out.push(Committed::Piece(notice)),
            ToCommit::End(mut outcome) => {
                outcome.ask.entered_us = now_us;
                self.ended(outcome, out);
            }
        }
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Committed>) {
        while let Some(came) = self.jobs.next_event() {
            if let Came::Last(writing, result) = came {
                self.written(writing, result, now_us, out);
            }
        }
        let journal = &self.journal;
        for (writing, batch) in self.queue.drain(..) {
            // A journal always takes a batch, so the item never comes back.
            let _ = self.jobs.start(writing, |_, report| {
                journal.write(batch, report);
                true
            });
        }
    }

    fn held(&self) -> usize {
        self.jobs.len()
    }
}
