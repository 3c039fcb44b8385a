//! Tiers: what a model that answers is asked, what may stand behind a [`TierHandle`], and the engine of those that block.
//!
//! Contract of a [`TierBackend`]: every job that was taken has its `done` called exactly once, after its last `on_delta`,
//! even if the tier panics; a job that was not taken comes back. Jobs of a lane start in the order they came in, and those
//! of the background only when no job of a turn waits. How long jobs may wait is decided before they are handed in.
//!
//! The [`TierEngine`] has threads that each write one answer at a time. It does not begin one that is late, and does not interrupt one
//! that was started.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use turnflow_state::{Answer, Exchange, ScoredChunk, Tier};

use crate::cancel::Cancel;
use crate::error::{ModelError, chain};
use crate::extractive::Extractive;
use crate::generation::GenerationStats;
use crate::queue::{JobQueue, Lane, Lanes, Rejected, caught, notify};
use crate::remote::RemoteStats;

/// The engine's name in errors and logs.
const ENGINE: &str = "tier";

/// What a tier answers from.
#[derive(Clone, Debug)]
pub struct TierRequest {
    /// What was asked, as it was said.
    pub question: String,
    /// The earlier turns that the question leans on, oldest first; none when it can be understood by itself.
    pub history: Vec<Exchange>,
    /// The vector of the [question in context](Self::question_in_context): unit length.
    pub vector: Arc<[f32]>,
    /// The knowledge base's chunks for it, best first.
    pub retrieved: Vec<ScoredChunk>,
    /// Most tokens of the answer; None for as many as the tier allows.
    pub tokens_max: Option<usize>,
    /// How long the answer may take, what it has waited included; None for as long as the tier allows.
    pub time_max: Option<Duration>,
    /// How long it has waited already when it is handed in.
    pub waited: Duration,
    /// Tells that nobody waits for the answer any more.
    pub cancel: Cancel,
}

impl TierRequest {
    /// A question that stands by itself, without limits.
    #[must_use]
    pub fn new(question: impl Into<String>, vector: Arc<[f32]>, retrieved: Vec<ScoredChunk>) -> Self {
        Self {
            question: question.into(),
            history: Vec::new(),
            vector,
            retrieved,
            tokens_max: None,
            time_max: None,
            waited: Duration::ZERO,
            cancel: Cancel::new(),
        }
    }

    /// The question with the one before it, where it leans on any: for tiers that know no conversations.
    #[must_use]
    pub fn question_in_context(&self) -> String {
        Exchange::question_in_context(&self.history, &self.question)
    }
}

/// Called with the next piece of an answer, on the engine's thread: must be short and not block.
pub type OnDelta = Box<dyn FnMut(String) + Send>;
/// Called once with the whole answer, on the engine's thread: must be short and not block.
pub type AnswerDone = Box<dyn FnOnce(Result<Answer, ModelError>) + Send>;

/// A question on its way to a tier.
pub struct TierJob {
    /// The question.
    pub request: TierRequest,
    /// When it was asked.
    since: Instant,
    /// When the answer must be complete.
    pub deadline: Option<Instant>,
    /// Hears every piece.
    pub on_delta: OnDelta,
    /// Hears the end.
    pub done: AnswerDone,
}

impl TierJob {
    /// A job that is handed in now.
    #[must_use]
    pub fn new(request: TierRequest, on_delta: OnDelta, done: AnswerDone) -> Self {
        let now = Instant::now();
        let since = now.checked_sub(request.waited).unwrap_or(now);
        let deadline = request.time_max.and_then(|time_max| since.checked_add(time_max));
        Self { request, since, deadline, on_delta, done }
    }

    /// The same with no more time than this since it was asked.
    #[must_use]
    pub fn within(mut self, time_max: Duration) -> Self {
        let limit = self.since.checked_add(time_max);
        if limit.is_some_and(|limit| self.deadline.is_none_or(|deadline| limit < deadline)) {
            (self.deadline, self.request.time_max) = (limit, Some(time_max));
        }
        self
    }

    /// Why the job must not go on at `now`, if it must not: nobody waits for it, or it is too late.
    #[must_use]
    pub fn lapsed(&self, now: Instant) -> Option<ModelError> {
        if self.request.cancel.is_cancelled() {
            return Some(ModelError::Cancelled);
        }
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        late.then(|| ModelError::Late { limit_ms: self.request.time_max.map_or(0, |limit| limit.as_millis()) })
    }
}

/// What stands behind a [`TierHandle`]: takes jobs, and answers them on threads of its own.
pub trait TierBackend: Send + Sync + 'static {
    /// What kind of tier it is.
    fn tier(&self) -> Tier;

    /// Everything about the model and how it is asked that may change an answer: caches are kept apart by it.
    fn identity(&self) -> String;

    /// Takes a job; never blocks. What it must do for a job that was taken stands at the top of this module.
    ///
    /// # Errors
    /// The job itself, when its lane is full or the tier has stopped.
    fn submit(&self, lane: Lane, job: TierJob) -> Result<(), Rejected<TierJob>>;

    /// What the tier did so far.
    fn stats(&self) -> TierStats;

    /// Jobs that wait.
    fn queued(&self) -> usize;

    /// What its decoder did, where it has one in this process.
    fn generation(&self) -> Option<GenerationStats> {
        None
    }

    /// How its server does, where it is behind one.
    fn remote(&self) -> Option<RemoteStats> {
        None
    }
}

/// A way to a tier; clones share it. The tier ends when the last one is dropped, after the jobs that it took.
#[derive(Clone)]
pub struct TierHandle(Arc<dyn TierBackend>);

impl TierHandle {
    /// A handle of this tier.
    #[must_use]
    pub fn new(backend: impl TierBackend) -> Self {
        Self(Arc::new(backend))
    }

    /// What kind of tier it is.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.0.tier()
    }

    /// Everything about the tier that may change an answer.
    #[must_use]
    pub fn identity(&self) -> String {
        self.0.identity()
    }

    /// Hands in a question; never blocks.
    ///
    /// # Errors
    /// The job itself, when its lane is full or the tier has stopped.
    pub fn submit(
        &self,
        lane: Lane,
        request: TierRequest,
        on_delta: OnDelta,
        done: AnswerDone,
    ) -> Result<(), Rejected<TierJob>> {
        self.0.submit(lane, TierJob::new(request, on_delta, done))
    }

    /// What the tier did so far.
    #[must_use]
    pub fn stats(&self) -> TierStats {
        self.0.stats()
    }

    /// Jobs that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.0.queued()
    }

    /// What its decoder did, where it has one in this process.
    #[must_use]
    pub fn generation(&self) -> Option<GenerationStats> {
        self.0.generation()
    }

    /// How its server does, where it is behind one.
    #[must_use]
    pub fn remote(&self) -> Option<RemoteStats> {
        self.0.remote()
    }
}

impl std::fmt::Debug for TierHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tier, queued) = (self.tier(), self.queued());
        f.debug_struct("TierHandle").field("tier", &tier).field("queued", &queued).finish_non_exhaustive()
    }
}

/// What a tier did since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Answers written.
    pub answered: u64,
    /// Those of them that the bound on tokens cut off.
    pub cut_off: u64,
    /// Questions on which the tier failed, or for which there was not enough time.
    pub failed: u64,
    /// Questions that nobody waited for any more.
    pub cancelled: u64,
}

/// Counts how jobs end.
#[derive(Debug, Default)]
pub(crate) struct TierCounters {
    answered: AtomicU64,
    cut_off: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
}

impl TierCounters {
    /// Counts and logs the end of a job, before it is told.
    pub(crate) fn ended(&self, result: &Result<Answer, ModelError>) {
        let counter = match result {
            Ok(answer) => {
                self.cut_off.fetch_add(u64::from(answer.cut_off), Ordering::Relaxed);
                &self.answered
            }
            Err(ModelError::Cancelled) => &self.cancelled,
            Err(error) if error.is_expected() => {
                tracing::warn!(error = chain(error), "a tier gave no answer");
                &self.failed
            }
            Err(error) => {
                tracing::error!(error = chain(error), "a tier failed");
                &self.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> TierStats {
        TierStats {
            answered: self.answered.load(Ordering::Relaxed),
            cut_off: self.cut_off.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
        }
    }
}

/// A model that answers one question at a time, and blocks meanwhile.
pub trait Answerer: Send + Sync + 'static {
    /// Answers, handing out the text piece by piece. The pieces joined are the answer's text. May block.
    ///
    /// # Errors
    /// When the model fails; the pieces handed out so far are void.
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError>;
}

impl Answerer for Extractive {
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        let written = Self::answer(self, &request.question_in_context(), &request.vector, &request.retrieved)?;
        written.pieces.into_iter().for_each(on_delta);
        Ok(written.answer)
    }
}

/// Bounds of a tier's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TierEngineConfig {
    /// Jobs that may wait, in each lane.
    pub queue_max: usize,
    /// Answers written at once.
    pub threads: usize,
}

impl Default for TierEngineConfig {
    fn default() -> Self {
        Self { queue_max: 4, threads: 1 }
    }
}

/// Starts the threads of a tier that blocks.
#[derive(Debug)]
pub struct TierEngine;

impl TierEngine {
    /// Starts the threads. They end when the last handle is dropped.
    ///
    /// # Errors
    /// [`ModelError::Thread`] when there are none.
    pub fn start(answerer: Arc<dyn Answerer>, config: TierEngineConfig) -> Result<TierHandle, ModelError> {
        let counters = Arc::new(TierCounters::default());
        let answered = Arc::clone(&counters);
        let runners = (0..config.threads.max(1)).map(move |_| {
            let (answerer, counters) = (Arc::clone(&answerer), Arc::clone(&answered));
            move |jobs: &Lanes<TierJob>| {
                std::iter::from_fn(|| jobs.next()).for_each(|job| run(answerer.as_ref(), &counters, job));
            }
        });
        Ok(TierHandle::new(Blocking { queue: JobQueue::start(ENGINE, config.queue_max, runners)?, counters }))
    }
}

fn run(answerer: &dyn Answerer, counters: &TierCounters, job: TierJob) {
    // Whoever has left gets an answer all the same; whoever came too late does not.
    let late = job.lapsed(Instant::now()).filter(|error| matches!(error, ModelError::Late { .. }));
    let TierJob { request, mut on_delta, done, .. } = job;
    let result = late.map_or_else(|| caught(ENGINE, || answerer.answer(&request, &mut on_delta)), Err);
    counters.ended(&result);
    notify(ENGINE, || done(result));
}

/// Threads that each run an [`Answerer`]. What is handed in is answered, whether somebody still waits for it or not, unless it is too late.
struct Blocking {
    queue: JobQueue<TierJob>,
    counters: Arc<TierCounters>,
}

impl TierBackend for Blocking {
    fn tier(&self) -> Tier {
        Tier::Extractive
    }

    fn identity(&self) -> String {
        Tier::Extractive.to_string()
    }

    fn submit(&self, lane: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        self.queue.submit(lane, job)
    }

    fn stats(&self) -> TierStats {
        self.counters.stats()
    }

    fn queued(&self) -> usize {
        self.queue.queued()
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};
    use turnflow_state::Usage;

    use super::*;

    /// Repeats the question's words as deltas; panics and fails on demand; waits at the gate before each answer.
    struct Parrot {
        gate: Receiver<()>,
    }

    impl Answerer for Parrot {
        fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
            let _open = self.gate.recv();
            match request.question.as_str() {
                "panic" => panic!("as asked"),
                "fail" => return Err(ModelError::NoHome),
                _ => {}
            }
            request.question.split_inclusive(' ').for_each(|word| on_delta(word.to_owned()));
            let text = request.question.clone();
            Ok(Answer {
                text,
                tier: Tier::Extractive,
                sources: vec![],
                usage: Usage::default(),
                grounded: true,
                cut_off: false,
            })
        }
    }

    fn request(question: &str) -> TierRequest {
        TierRequest::new(question, Arc::from([1.0]), vec![])
    }

    fn submit(handle: &TierHandle, lane: Lane, question: &str) -> Result<Receiver<String>, Rejected<TierJob>> {
        let (events, heard) = unbounded();
        let deltas = events.clone();
        let on_delta = Box::new(move |piece: String| deltas.send(piece).expect("the test listens"));
        let done = Box::new(move |result: Result<Answer, ModelError>| {
            let end = result.map_or_else(|error| format!("error: {error}"), |answer| format!("done: {}", answer.text));
            events.send(end).expect("the test listens");
        });
        handle.submit(lane, request(question), on_delta, done).map(|()| heard)
    }

    #[test]
    fn every_job_ends_once_and_in_order() {
        let (open, gate) = unbounded();
        let handle = TierEngine::start(Arc::new(Parrot { gate }), TierEngineConfig::default()).expect("threads");
        let heard: Vec<_> =
            ["two words", "panic", "fail", "on"].map(|q| submit(&handle, Lane::New, q).expect("free")).into();
        drop(open);
        let heard: Vec<Vec<String>> = heard.into_iter().map(|events| events.iter().collect()).collect();
        assert_eq!(heard[0], ["two ", "words", "done: two words"]);
        assert_eq!(heard[1], ["error: panic in tier: as asked"]);
        assert_eq!(heard[2], [format!("error: {}", ModelError::NoHome)]);
        assert_eq!(heard[3], ["on", "done: on"]);
        assert_eq!(handle.stats(), TierStats { answered: 2, failed: 2, ..TierStats::default() });
    }

    #[test]
    fn a_turn_overtakes_what_nobody_waits_for() {
        let (open, gate) = unbounded();
        let (arrived, arrivals) = unbounded();
        struct Told(Parrot, crossbeam_channel::Sender<String>);
        impl Answerer for Told {
            fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
                self.1.send(request.question.clone()).expect("the test listens");
                self.0.answer(request, on_delta)
            }
        }
        let tier = Told(Parrot { gate }, arrived);
        let handle = TierEngine::start(Arc::new(tier), TierEngineConfig::default()).expect("threads");
        let mut heard = vec![submit(&handle, Lane::Background, "first").expect("free")];
        assert_eq!(arrivals.recv().as_deref(), Ok("first"), "an idle tier makes nobody wait");
        for (lane, question) in [
            (Lane::Background, "second"),
            (Lane::New, "turn"),
            (Lane::Background, "third"),
            (Lane::New, "another turn"),
        ] {
            heard.push(submit(&handle, lane, question).expect("free"));
        }
        drop(open);
        heard.iter().for_each(|events| assert!(events.iter().last().is_some_and(|end| end.starts_with("done"))));
        assert_eq!(arrivals.try_iter().collect::<Vec<_>>(), ["turn", "another turn", "second", "third"]);
    }

    #[test]
    fn what_a_question_has_waited_counts() {
        let job = |time_max: Option<u64>, waited: u64| {
            let time_max = time_max.map(Duration::from_secs);
            let request = TierRequest { time_max, waited: Duration::from_secs(waited), ..request("?") };
            TierJob::new(request, Box::new(drop), Box::new(drop))
        };
        let is_late = |job: TierJob| matches!(job.lapsed(Instant::now()), Some(ModelError::Late { .. }));
        assert!(is_late(job(Some(60), 61)) && !is_late(job(Some(60), 1)));
        assert!(is_late(job(None, 61).within(Duration::from_secs(60))));
        assert!(!is_late(job(None, 1).within(Duration::from_secs(60))));
        assert!(is_late(job(Some(60), 61).within(Duration::from_secs(120))), "the shorter limit holds");
    }

    #[test]
    fn a_full_tier_gives_the_job_back() {
        let (open, gate) = unbounded();
        let config = TierEngineConfig { queue_max: 1, threads: 1 };
        let handle = TierEngine::start(Arc::new(Parrot { gate }), config).expect("threads");
        let mut taken = Vec::new();
        let rejected = loop {
            match submit(&handle, Lane::New, "again") {
                Ok(heard) => taken.push(heard),
                Err(rejected) => break rejected,
            }
        };
        assert!(taken.len() <= 2, "one is written, one waits");
        assert_eq!(rejected.job.request.question, "again");
        assert!(matches!(rejected.error, ModelError::Full { limit: 1, .. }));
        drop(open);
        for heard in taken {
            assert_eq!(heard.iter().last().as_deref(), Some("done: again"));
        }
    }
}
