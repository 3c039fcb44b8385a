//! Tickets: the one end of each job, whoever tells it, and the watch over steps that do not come back.
//!
//! Contract: a ticket's work is ended exactly once. The engine ends it, or the watch does: when a step of the model takes
//! longer than its limit, the watch ends the turns of that batch, and as long as the step lasts those that lapse meanwhile.
//!
//! What a watch cannot do is take the thread back that is stuck in the model. The engine goes on when the step returns, with
//! what it gave thrown away. If it never does, nothing is generated until the process is started again; those who wait are told
//! when their time is over, those for whom there is no place at once, and the log says so.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use turnflow_state::Usage;

use super::sampler::Sampling;
use crate::error::ModelError;
use crate::queue::{Lane, caught, notify};

/// How often a watch looks for jobs that lapse while a step is stuck.
const STUCK_TICK: Duration = Duration::from_millis(50);
const ENGINE: &str = "generation";

/// What is to be generated.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The tokens to go on from, at least one.
    pub(crate) prompt: Vec<u32>,
    /// How tokens are chosen.
    pub(crate) sampling: Sampling,
    /// Most tokens to be generated.
    pub(crate) tokens_max: usize,
    /// Tokens that end the text and do not belong to it.
    pub(crate) stop_tokens: Arc<[u32]>,
}

/// A job of the engine: all of it is called on the engine's thread, but an early end.
pub(crate) trait Work: Send + 'static {
    /// Why it must not go on, if it must not. Called before every step.
    fn lapsed(&self, now: Instant) -> Option<ModelError>;

    /// Called once, when the engine turns to it. May take milliseconds.
    fn begin(&mut self) -> Result<Plan, ModelError>;

    /// The next token; it breaks off when the text is complete.
    fn token(&mut self, token: u32) -> Result<ControlFlow<()>, ModelError>;

    /// So many tokens are there that no other may follow, though the text is not complete. Nothing follows but the end.
    fn cut_off(&mut self) {}

    /// Nothing follows. Called exactly once.
    fn end(self, result: Result<Usage, ModelError>);
}

/// A job, until it is ended.
#[derive(Debug)]
pub(crate) struct Ticket<W> {
    pub(crate) number: u64,
    pub(crate) lane: Lane,
    work: Mutex<Option<W>>,
}

impl<W: Work> Ticket<W> {
    /// Whether it is ended.
    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.work).is_none()
    }

    /// Takes the work back: it is not ended here.
    pub(crate) fn take(&self) -> Option<W> {
        lock(&self.work).take()
    }

    /// Why it must not go on, if it must not: one that is ended, nobody waits for.
    pub(crate) fn lapsed(&self, now: Instant) -> Option<ModelError> {
        lock(&self.work).as_ref().map_or(Some(ModelError::Cancelled), |work| work.lapsed(now))
    }

    /// Works on it; a panic is an error. None when it is ended.
    pub(crate) fn work<T>(&self, run: impl FnOnce(&mut W) -> Result<T, ModelError>) -> Option<Result<T, ModelError>> {
        lock(&self.work).as_mut().map(|work| caught(ENGINE, || run(work)))
    }
}

/// A step that is under way.
struct Step<W> {
    number: u64,
    began: Instant,
    batch: Vec<Arc<Ticket<W>>>,
}

struct State<W> {
    /// Every ticket that was not ended.
    open: HashMap<u64, Arc<Ticket<W>>>,
    tickets: u64,
    steps: u64,
    step: Option<Step<W>>,
    /// Whether the watch waits to be woken.
    asleep: bool,
    closed: bool,
}

/// The tickets of an engine, and the step that is under way.
pub(crate) struct Watch<W> {
    state: Mutex<State<W>>,
    changed: Condvar,
    step_max: Duration,
}

impl<W: Work> Watch<W> {
    /// Starts a watch; its thread ends when it is [closed](Self::close).
    pub(crate) fn start(step_max: Duration) -> Result<Arc<Self>, ModelError> {
        let (open, asleep, closed) = (HashMap::new(), false, false);
        let state = Mutex::new(State { open, tickets: 0, steps: 0, step: None, asleep, closed });
        let watch = Arc::new(Self { state, changed: Condvar::new(), step_max });
        let watching = Arc::clone(&watch);
        std::thread::Builder::new()
            .name(format!("{ENGINE}-watch"))
            .spawn(move || watching.run())
            .map_err(|source| ModelError::Thread { what: ENGINE, source })?;
        Ok(watch)
    }

    /// A ticket for a job.
    pub(crate) fn open(&self, lane: Lane, work: W) -> Arc<Ticket<W>> {
        let mut state = lock(&self.state);
        state.tickets += 1;
        let ticket = Arc::new(Ticket { number: state.tickets, lane, work: Mutex::new(Some(work)) });
        state.open.insert(ticket.number, Arc::clone(&ticket));
        ticket
    }

    /// Forgets a ticket whose job was not taken.
    pub(crate) fn forget(&self, ticket: &Ticket<W>) {
        lock(&self.state).open.remove(&ticket.number);
    }

    /// Ends a job, unless it was ended before.
    pub(crate) fn end(&self, ticket: &Ticket<W>, result: Result<Usage, ModelError>) {
        self.forget(ticket);
        if let Some(work) = ticket.take() {
            notify(ENGINE, || work.end(result));
        }
    }

    /// A step with these turns begins.
    pub(crate) fn begin_step(&self, batch: Vec<Arc<Ticket<W>>>) {
        let mut state = lock(&self.state);
        state.steps += 1;
        state.step = Some(Step { number: state.steps, began: Instant::now(), batch });
        if state.asleep {
            self.changed.notify_all();
        }
    }

    /// The step is over. The time that it took too long, if it did.
    pub(crate) fn end_step(&self) -> Result<(), ModelError> {
        let step = lock(&self.state).step.take();
        let took = step.map_or(Duration::ZERO, |step| step.began.elapsed());
        if took < self.step_max { Ok(()) } else { Err(self.stuck()) }
    }

    /// Ends the watch, and whatever job is left.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
        self.end_all(|| ModelError::Stopped { what: ENGINE });
    }

    /// Ends all jobs that are not ended.
    pub(crate) fn end_all(&self, error: impl Fn() -> ModelError) {
        let open: Vec<_> = lock(&self.state).open.values().cloned().collect();
        open.iter().for_each(|ticket| self.end(ticket, Err(error())));
    }

    /// Whether the step that is under way takes too long.
    pub(crate) fn is_stuck(&self) -> bool {
        lock(&self.state).step.as_ref().is_some_and(|step| step.began.elapsed() >= self.step_max)
    }

    /// What is told of a step that takes too long.
    pub(crate) fn stuck(&self) -> ModelError {
        ModelError::Stuck { limit_ms: u64::try_from(self.step_max.as_millis()).unwrap_or(u64::MAX) }
    }

    fn run(&self) {
        let mut told = 0;
        let mut state = lock(&self.state);
        while !state.closed {
            let Some(step) = &mut state.step else {
                state.asleep = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
                continue;
            };
            let left = self.step_max.saturating_sub(step.began.elapsed());
            if !left.is_zero() {
                state = self.wait(state, left);
                continue;
            }
            let batch = std::mem::take(&mut step.batch);
            if told != step.number {
                told = step.number;
                let limit_ms = self.step_max.as_millis();
                tracing::error!(
                    turns = batch.len(),
                    limit_ms,
                    "a step of a model is stuck; nothing is generated until it returns"
                );
            }
            let open: Vec<_> = state.open.values().cloned().collect();
            drop(state);
            batch.iter().for_each(|ticket| self.end(ticket, Err(self.stuck())));
            let now = Instant::now();
            for ticket in open {
                if let Some(error) = ticket.lapsed(now) {
                    self.end(&ticket, Err(error));
                }
            }
            state = self.wait(lock(&self.state), STUCK_TICK);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<W>>, time: Duration) -> MutexGuard<'a, State<W>> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What is kept here is whole between two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
