//! The running pipeline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timely::WorkerConfig;
use timely::communication::WorkerGuards;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use turnflow_operators::Clock;
use turnflow_operators::message::{Ask, QuestionKey, RequestId, conversation_owner};
use turnflow_operators::pool::Pool;
use turnflow_state::{CacheEntry, Committer, Turn};

use crate::admission::Streams;
use crate::bridge::Port;
use crate::dataflow::Blueprint;
use crate::{Config, Parts, PipelineError, SubmitError, TurnStream};

/// Entry ids that one run may use before they could meet those of the next.
const ENTRY_IDS_PER_RUN: u64 = 1 << 24;

/// A running pipeline. Clones are handles to the same one; it ends with [`shutdown`](Self::shutdown), or when the
/// last handle is dropped, which waits for the turns inside.
#[derive(Clone)]
pub struct Pipeline(Arc<Running>);

struct Running {
    config: Config,
    clock: Clock,
    ports: Vec<Port>,
    streams: Arc<Streams>,
    places: Arc<Semaphore>,
    draining: AtomicBool,
    workers: Mutex<Option<WorkerGuards<()>>>,
}

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Turns admitted and not yet ended.
    pub turns_in_flight: usize,
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
    /// Puts up the dataflow and starts its workers.
    ///
    /// # Errors
    /// [`PipelineError`] when the cached answers of an earlier run cannot be read, or a thread cannot be started.
    pub fn start(config: &Config, parts: &Parts) -> Result<Self, PipelineError> {
        let threads = config.workers.threads;
        let mut entries: Vec<Vec<CacheEntry>> = (0..threads).map(|_| Vec::new()).collect();
        parts.store.entries(&mut |entry| {
            let owner = QuestionKey::new(entry.scope, &entry.question).owner() % threads as u64;
            #[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
            entries[owner as usize].push(entry);
            std::ops::ControlFlow::Continue(())
        })?;
        let room = config.limits.turns_in_flight_max;
        let ports: Vec<Port> = (0..threads).map(|_| Port::new(room)).collect();
        let (clock, streams) = (Clock::start(), Arc::new(Streams::new()));
        let blueprint = Blueprint {
            config: config.clone(),
            parts: parts.clone(),
            clock,
            ports: ports.clone(),
            streams: streams.clone(),
            committer: Arc::new(Committer::start(parts.store.clone(), config.storage.commit_queue_max)?),
            searchers: Pool::start("turnflow-search", config.workers.search_threads, room)?,
            entries: entries.into_iter().map(Mutex::new).collect(),
            last_entry: parts.store.reserve_entry_ids(ENTRY_IDS_PER_RUN)?,
        };
        let timely = timely::Config {
            communication: if threads == 1 {
                timely::CommunicationConfig::Thread
            } else {
                timely::CommunicationConfig::Process(threads)
            },
            worker: WorkerConfig::default(),
        };
        let workers = timely::execute(timely, move |worker| {
            let _guard = AbortOnPanic;
            let probe = blueprint.put_up(worker);
            while !probe.done() {
                worker.step_or_park(None);
            }
        })
        .map_err(|reason| PipelineError::Workers { workers: threads, reason })?;
        Ok(Self(Arc::new(Running {
            config: config.clone(),
            clock,
            ports,
            streams,
            places: Arc::new(Semaphore::new(room)),
            draining: AtomicBool::new(false),
            workers: Mutex::new(Some(workers)),
        })))
    }

    /// Checks a turn against the limits, waits at most `limits.admission-wait-ms` for a place, and admits it.
    ///
    /// Cancel-safe: a turn whose future is dropped while it waits was not admitted.
    ///
    /// # Errors
    /// [`SubmitError`] when the turn is invalid, no place became free in time, or the pipeline is shutting down.
    pub async fn submit(&self, turn: Turn) -> Result<TurnStream, SubmitError> {
        self.check(&turn)?;
        let wait_ms = self.0.config.limits.admission_wait_ms;
        let place = tokio::time::timeout(Duration::from_millis(wait_ms), self.place()).await;
        let place = place.unwrap_or(Err(SubmitError::Overloaded { retry_after_ms: wait_ms.max(1) }))?;
        self.admit(turn, place)
    }

    /// As [`submit`](Self::submit), but waits for a place as long as it takes.
    ///
    /// # Errors
    /// [`SubmitError`] when the turn is invalid or the pipeline is shutting down.
    pub async fn submit_patiently(&self, turn: Turn) -> Result<TurnStream, SubmitError> {
        self.check(&turn)?;
        let place = self.place().await?;
        self.admit(turn, place)
    }

    /// Takes no new turns, waits until those inside have ended and are written, and ends the workers. Idempotent.
    pub async fn shutdown(&self) {
        self.0.draining.store(true, Ordering::Release);
        // All places free means that no turn is inside, nor on its way in.
        let all = u32::try_from(self.0.config.limits.turns_in_flight_max).unwrap_or(u32::MAX);
        let Ok(_every_place) = self.0.places.acquire_many(all).await else { return };
        self.0.close();
        let running = self.0.clone();
        // Joining the threads blocks, if only for a moment.
        let joined = tokio::task::spawn_blocking(move || running.join()).await;
        debug_assert!(joined.is_ok(), "a worker that panics ends the process");
    }

    /// What the pipeline is doing.
    #[must_use]
    pub fn stats(&self) -> PipelineStats {
        PipelineStats { turns_in_flight: self.0.streams.len() }
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
        if self.0.draining.load(Ordering::Acquire) { Err(SubmitError::ShuttingDown) } else { Ok(place) }
    }

    fn admit(&self, turn: Turn, place: OwnedSemaphorePermit) -> Result<TurnStream, SubmitError> {
        let (number, stream) = self.0.streams.open(place);
        let scope = self.0.config.scope_of(&turn.tenant);
        let worker = conversation_owner(&turn) % self.0.ports.len() as u64;
        #[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
        let (index, worker) = (worker as usize, worker as u32);
        let request = RequestId { worker, number };
        let ask = Box::new(Ask::new(request, turn, scope, self.0.clock.now_us()));
        match self.0.ports[index].send(ask) {
            Ok(()) => Ok(stream),
            Err(_) => {
                // There is room for as many turns as there are places, so this is a defect, not overload.
                self.0.streams.abandon(number);
                Err(SubmitError::Overloaded { retry_after_ms: self.0.config.limits.admission_wait_ms.max(1) })
            }
        }
    }
}

impl Running {
    fn close(&self) {
        for port in &self.ports {
            port.close();
        }
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
