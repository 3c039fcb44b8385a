//! The running pipeline.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{self, Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use timely::WorkerConfig;
use timely::communication::WorkerGuards;
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, Semaphore, watch};
use turnflow_operators::Clock;
use turnflow_operators::commit::{PriceList, Prices};
use turnflow_operators::load::Load;
use turnflow_operators::message::{Ask, QuestionKey, RequestId, Wishes, conversation_owner};
use turnflow_operators::pool::Pool;
use turnflow_operators::tally::{Tallies, TenantTally};
use turnflow_operators::validity::KnowledgeUpdate;
use turnflow_state::{CacheControl, Committer, Exchange, Store, StoreBatch, Tier, TierSize, Turn};

use crate::admission::{Streams, TenantPlace, TenantPlaces};
use crate::bridge::Port;
use crate::caches::Caches;
use crate::config::{Scopes, Validity};
use crate::conversations::{Conversations, Recent};
use crate::dataflow::{Blueprint, QUEUES};
use crate::knowledge::Knowledge;
use crate::resident;
use crate::shared::Shared;
use crate::validity::Left;
use crate::{Config, OnCost, Parts, PipelineError, SubmitError, TurnStream, span};

/// Entry ids that one run may use before they could meet those of the next.
const ENTRY_IDS_PER_RUN: u64 = 1 << 24;

/// A running pipeline. Clones are handles to the same one; it ends with [`shutdown`](Self::shutdown), or when the
/// last handle is dropped, which waits for the turns inside.
#[derive(Clone)]
pub struct Pipeline(pub(crate) Arc<Running>);

pub(crate) struct Running {
    /// As it was at the start.
    pub(crate) config: Config,
    /// As it holds now, where that may differ.
    pub(crate) current: sync::RwLock<Arc<Config>>,
    /// Held while they are read again.
    pub(crate) reloading: Mutex<()>,
    pub(crate) prices: PriceList,
    pub(crate) parts: Parts,
    scopes: Scopes,
    pub(crate) validity: Arc<Shared>,
    /// Which conversations had turns of late.
    pub(crate) recent: Recent,
    /// Lives as long as the workers.
    pub(crate) committer: Weak<Committer>,
    /// Held for reading by every write of the knowledge base; shutting down waits for it.
    pub(crate) writes: Arc<RwLock<()>>,
    pub(crate) clock: Clock,
    ports: Vec<Port>,
    background: Vec<Port>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) following: Arc<AtomicUsize>,
    places: Arc<Semaphore>,
    tenants: Arc<TenantPlaces>,
    pub(crate) tallies: Tallies,
    pub(crate) load: Load,
    /// Keeps memory watched, where there is a limit to it.
    _memory: Option<Mutex<mpsc::Sender<()>>>,
    draining: AtomicBool,
    /// Whether somebody asked for the end.
    drain: watch::Sender<bool>,
    workers: Mutex<Option<WorkerGuards<()>>>,
}

/// A turn, and what its caller wants besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The turn.
    pub turn: Turn,
    /// How long its answer may take; None for as long as it takes.
    pub time_max: Option<Duration>,
    /// What was said before, oldest first, as the client tells it. It counts as long as no turn of the conversation was answered
    /// here: a turn that leans on it gets no cached answer, and its own is not cached.
    pub told: Vec<Exchange>,
    /// What is wanted of the answer.
    pub wishes: Wishes,
}

impl From<Turn> for Submission {
    fn from(turn: Turn) -> Self {
        Self { turn, time_max: None, told: Vec::new(), wishes: Wishes::default() }
    }
}

/// Ends the process when a worker panics: the other workers would wait for it for ever, and everything that was
/// acknowledged is in the store.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                "a dataflow worker panicked; the process ends and recovers from the store when started again"
            );
            std::process::abort();
        }
    }
}

impl Pipeline {
    /// Puts up the dataflows and starts their workers. When it returns, the cached answers of an earlier run that still
    /// follow from the knowledge base are served, and no others.
    ///
    /// # Errors
    /// [`PipelineError`] when the cached answers of an earlier run cannot be read, or a thread cannot be started.
    pub fn start(config: &Config, parts: &Parts) -> Result<Self, PipelineError> {
        Self::start_with(config, parts, |_| {})
    }

    pub(crate) fn start_with(
        config: &Config,
        parts: &Parts,
        adjust: impl FnOnce(&mut Blueprint),
    ) -> Result<Self, PipelineError> {
        let threads = config.workers.threads;
        let room = config.limits.turns_in_flight_max;
        let ports: Vec<Port> = (0..threads).map(|_| Port::new(room)).collect();
        let in_background = config.refresh.in_flight_max + config.audit.in_flight_max;
        let background: Vec<Port> = (0..threads).map(|_| Port::new(in_background)).collect();
        let (clock, streams, following) = (Clock::start(), Arc::new(Streams::new()), Arc::new(AtomicUsize::new(0)));
        let knowledge_epoch = parts.knowledge.epoch();
        let validity = Arc::new(Shared::new(threads, knowledge_epoch, &config.knowledge, config.audit.bound_limits()));
        let tallies = Tallies::default();
        let load = Load::new(config.load, threads * QUEUES);
        let prices = PriceList::from(Prices { small: config.small_tier.price, large: config.tier.price });
        let has_limit = config.load.enabled && config.load.memory_bytes_max > 0;
        let memory = has_limit.then(|| resident::watch(load.clone(), clock)).transpose()?;
        let committer = Arc::new(Committer::start(parts.store.clone(), config.storage.commit_queue_max)?);
        let (ready, readiness) = mpsc::channel();
        let mut blueprint = Blueprint {
            config: config.clone(),
            parts: parts.clone(),
            clock,
            ports: ports.clone(),
            background: background.clone(),
            streams: streams.clone(),
            following: following.clone(),
            committer: committer.clone(),
            tallies: tallies.clone(),
            prices: prices.clone(),
            load: load.clone(),
            searchers: Pool::start("turnflow-search", config.workers.search_threads, room)?,
            validity: validity.clone(),
            left: left(parts, threads)?.into_iter().map(Mutex::new).collect(),
            ready: Mutex::new(ready),
            last_entry: parts.store.reserve_entry_ids(ENTRY_IDS_PER_RUN)?,
            #[cfg(test)]
            fault: crate::validity::Fault::None,
        };
        adjust(&mut blueprint);
        let committer_of_workers = Arc::downgrade(&committer);
        let timely = timely::Config {
            communication: if threads == 1 {
                timely::CommunicationConfig::Thread
            } else {
                timely::CommunicationConfig::Process(threads)
            },
            // What a worker waits for comes from threads that want its core meanwhile.
            worker: WorkerConfig::default().idle_spin(Duration::ZERO),
        };
        let workers = timely::execute(timely, move |worker| {
            let _guard = AbortOnPanic;
            blueprint.work(worker);
        })
        .map_err(|reason| PipelineError::Workers { workers: threads, reason })?;
        let is_ready = readiness.iter().take(threads).count() == threads;
        debug_assert!(is_ready, "a worker that panics ends the process");
        if config.cache.validity == Validity::Exact {
            // Behind the deletions of what was no longer valid, which the workers have handed over.
            let mut batch = StoreBatch::new();
            batch.put_validated_epoch(knowledge_epoch);
            committer.submit(batch, Box::new(|_| {}));
        }
        Ok(Self(Arc::new(Running {
            config: config.clone(),
            current: sync::RwLock::new(Arc::new(config.clone())),
            reloading: Mutex::default(),
            prices,
            parts: parts.clone(),
            scopes: config.scopes(&parts.tiers_identity()?),
            validity,
            recent: Recent::default(),
            committer: committer_of_workers,
            writes: Arc::default(),
            clock,
            ports,
            background,
            streams,
            following,
            places: Arc::new(Semaphore::new(room)),
            tenants: Arc::new(TenantPlaces::new(config.limits.tenant_turns_in_flight_max)),
            tallies,
            load,
            _memory: memory.map(Mutex::new),
            draining: AtomicBool::new(false),
            drain: watch::Sender::new(false),
            workers: Mutex::new(Some(workers)),
        })))
    }

    /// The knowledge base, to be read and written while turns are answered.
    #[must_use]
    pub fn knowledge(&self) -> Knowledge {
        Knowledge(self.0.clone())
    }

    /// What it keeps.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.parts.store
    }

    /// What is cached, to be looked at and flushed.
    #[must_use]
    pub fn caches(&self) -> Caches {
        Caches(self.0.clone())
    }

    /// The conversations that are kept, to be looked at.
    #[must_use]
    pub fn conversations(&self) -> Conversations {
        Conversations(self.0.clone())
    }

    /// Asks for the end: no turn is admitted from now on, and [`drained`](Self::drained) resolves. Those who serve shut down then.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.drain.send_replace(true);
    }

    /// Resolves when [`drain`](Self::drain) was called. Cancel-safe.
    pub async fn drained(&self) {
        // The sender lives as long as this handle.
        drop(self.0.drain.subscribe().wait_for(|&asked| asked).await);
    }

    /// Checks a turn against the limits, waits at most `limits.admission-wait-ms` for a place, and admits it.
    ///
    /// Cancel-safe: a turn whose future is dropped while it waits was not admitted.
    ///
    /// # Errors
    /// [`SubmitError`] when the turn is invalid, its tenant has too many in flight, no place became free in time, or the pipeline
    /// is shutting down.
    pub async fn submit(&self, turn: Turn) -> Result<TurnStream, SubmitError> {
        self.submit_within(turn, None).await
    }

    /// As [`submit`](Self::submit), for a caller who needs the answer within this time, or else within
    /// `limits.default-deadline-ms`: where it cannot be written in time, it is not begun, and the turn ends with an error.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn submit_within(&self, turn: Turn, time_max: Option<Duration>) -> Result<TurnStream, SubmitError> {
        self.submit_with(Submission { time_max, ..turn.into() }).await
    }

    /// As [`submit_within`](Self::submit_within), for a caller who wants more than that.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn submit_with(&self, submission: Submission) -> Result<TurnStream, SubmitError> {
        self.submit_at_cost(submission, Box::new(|_| {})).await
    }

    /// As [`submit_with`](Self::submit_with), for a caller who is to know what the turn has cost, however its stream ends.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn submit_at_cost(&self, submission: Submission, on_cost: OnCost) -> Result<TurnStream, SubmitError> {
        let tally = self.0.tallies.of(&submission.turn.tenant);
        self.admitted(submission, on_cost, &tally).await.inspect_err(|error| tally.failed(error.kind()))
    }

    async fn admitted(
        &self,
        submission: Submission,
        on_cost: OnCost,
        tally: &TenantTally,
    ) -> Result<TurnStream, SubmitError> {
        let (turn, time_max) = (&submission.turn, submission.time_max);
        self.check(turn)?;
        let began = Instant::now();
        let (wait_ms, default_ms) = (self.0.config.limits.admission_wait_ms, self.config().limits.default_deadline_ms);
        let time_max = time_max.or((default_ms > 0).then_some(Duration::from_millis(default_ms)));
        let overloaded = || SubmitError::Overloaded { retry_after_ms: self.0.load.lock().retry_after_ms() };
        let tenant = self.0.tenants.enter(&submission.turn.tenant).ok_or_else(overloaded)?;
        let patience = Duration::from_millis(wait_ms).min(time_max.unwrap_or(Duration::MAX));
        let place = tokio::time::timeout(patience, self.place()).await.unwrap_or_else(|_| Err(overloaded()))?;
        let time_max = time_max.map(|time_max| time_max.saturating_sub(began.elapsed()));
        self.admit(Submission { time_max, ..submission }, (place, Some(tenant)), on_cost, tally)
    }

    /// As [`submit`](Self::submit), but waits for a place and for the answer as long as it takes, and whatever its tenant has in flight.
    ///
    /// # Errors
    /// [`SubmitError`] when the turn is invalid or the pipeline is shutting down.
    pub async fn submit_patiently(&self, turn: Turn) -> Result<TurnStream, SubmitError> {
        let tally = self.0.tallies.of(&turn.tenant);
        let admitted = async {
            self.check(&turn)?;
            let place = self.place().await?;
            self.admit(turn.into(), (place, None), Box::new(|_| {}), &tally)
        };
        admitted.await.inspect_err(|error| tally.failed(error.kind()))
    }

    /// Takes no new turns and no changes of the knowledge base, waits until those inside have ended and are written, and
    /// ends the workers. Idempotent.
    pub async fn shutdown(&self) {
        self.0.draining.store(true, Ordering::Release);
        // All places free means that no turn is inside, nor on its way in.
        let all = u32::try_from(self.0.config.limits.turns_in_flight_max).unwrap_or(u32::MAX);
        let Ok(_every_place) = self.0.places.acquire_many(all).await else { return };
        let _no_write = self.0.writes.write().await;
        self.0.close();
        let running = self.0.clone();
        // Joining the threads blocks, if only for a moment.
        let joined = tokio::task::spawn_blocking(move || running.join()).await;
        debug_assert!(joined.is_ok(), "a worker that panics ends the process");
    }

    /// The kind of the tier of a size: of the only one, where there is one.
    #[must_use]
    pub fn tier_of(&self, size: TierSize) -> Tier {
        self.0.parts.tiers.of(size).tier()
    }

    /// Waits until what fell by changes that were acknowledged before is answered anew, or let go. Cancel-safe.
    pub async fn refreshed(&self) {
        self.0.validity.refreshed().await;
    }

    fn check(&self, turn: &Turn) -> Result<(), SubmitError> {
        let limit = self.0.config.limits.text_bytes_max;
        let invalid = |message| Err(SubmitError::Invalid { field: "text", message });
        if turn.text.trim().is_empty() {
            invalid("is empty".into())
        } else if turn.text.len() > limit {
            invalid(format!("has {} bytes, at most {limit} are allowed", turn.text.len()))
        } else {
            Ok(())
        }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, SubmitError> {
        let place = self.0.places.clone().acquire_owned().await.map_err(|_| SubmitError::ShuttingDown)?;
        // Asked after the place was taken: shutdown waits for all places before it closes the entrances.
        if self.0.is_draining() { Err(SubmitError::ShuttingDown) } else { Ok(place) }
    }

    fn admit(
        &self,
        submission: Submission,
        places: (OwnedSemaphorePermit, Option<TenantPlace>),
        on_cost: OnCost,
        tally: &TenantTally,
    ) -> Result<TurnStream, SubmitError> {
        let Submission { mut turn, time_max, told: history, wishes } = submission;
        turn.cache_control = allowed(turn.cache_control, wishes);
        self.0.recent.note(&turn.tenant, &turn.conversation);
        let acknowledged = self.0.validity.acknowledged();
        let (number, stream) = self.0.streams.open(places, acknowledged, (tally.clone(), span::of(&turn), on_cost));
        let scope = self.0.scopes.of(&turn.tenant);
        let worker = conversation_owner(&turn) % self.0.ports.len() as u64;
        #[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
        let (index, worker) = (worker as usize, worker as u32);
        let request = RequestId { worker, number };
        let now_us = self.0.clock.now_us();
        let time_us = |time_max: Duration| u64::try_from(time_max.as_micros()).unwrap_or(u64::MAX);
        let deadline_us = time_max.map(|time_max| now_us.saturating_add(time_us(time_max)));
        let asked = Ask::new(request, turn, scope, now_us);
        let ask = Box::new(Ask { acknowledged, deadline_us, history, wishes, ..asked });
        match self.0.ports[index].send(ask) {
            Ok(()) => Ok(stream),
            Err(_) => {
                // There is room for as many turns as there are places, so this is a defect, not overload.
                self.0.streams.abandon(number);
                Err(SubmitError::Overloaded { retry_after_ms: self.0.load.lock().retry_after_ms() })
            }
        }
    }
}

/// What a turn allows the caches to do, given what its caller wants.
fn allowed(cache_control: CacheControl, wishes: Wishes) -> CacheControl {
    match cache_control {
        // An answer by a tier that the policy would not have chosen is no answer for others, nor are theirs for it.
        _ if wishes.size.is_some() => CacheControl::Bypass,
        // Nobody may wait for a turn that may end without an answer.
        CacheControl::Default if wishes.only_cached => CacheControl::ReadOnly,
        as_asked => as_asked,
    }
}

/// What an earlier run left, for each worker.
fn left(parts: &Parts, workers: usize) -> Result<Vec<Left>, PipelineError> {
    let mut left: Vec<Left> = (0..workers).map(|_| Left::default()).collect();
    let mut histories = parts.store.histories()?;
    parts.store.entries(&mut |entry| {
        let owner = QuestionKey::new(entry.scope, &entry.question).owner() % workers as u64;
        #[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
        let of_owner = &mut left[owner as usize].entries;
        let history = histories.remove(&entry.id).unwrap_or_default();
        of_owner.push((entry, history));
        ControlFlow::Continue(())
    })?;
    let validated = parts.store.validated_epoch()?;
    let mut keys = HashSet::new();
    parts.store.chunks(&mut |chunk| {
        let key = chunk.key();
        // An article may say the same twice.
        if keys.insert(key) {
            left[0].present.push(key);
            if chunk.since > validated {
                let (tenant, came, vector) = (chunk.id.tenant, chunk.since, chunk.vector);
                left[0].recent.push(KnowledgeUpdate::Added { tenant, key, came, vector });
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(left)
}

impl Running {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Keeps the workers from ending as long as it is held.
    pub(crate) async fn gate(&self) -> Result<OwnedRwLockReadGuard<()>, PipelineError> {
        let gate = self.writes.clone().read_owned().await;
        // Asked after the gate was taken: shutdown waits for all of them.
        if self.is_draining() { Err(PipelineError::ShuttingDown) } else { Ok(gate) }
    }

    pub(crate) fn validity_workers(&self) -> usize {
        self.ports.len()
    }

    fn close(&self) {
        for port in self.ports.iter().chain(&self.background) {
            port.close();
        }
        self.validity.close();
    }

    fn join(&self) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(workers) = workers {
            for result in workers.join() {
                debug_assert!(result.is_ok(), "a worker that panics ends the process");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
        self.join();
    }
}
