//! The remote tier: a thread that streams answers, the line before it, and what it counts.
//!
//! All connections live on one thread with a runtime of its own, which ends when the last handle is gone and the jobs that it took
//! are done. A job's callbacks are called there.

use std::future::{Future, pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use turnflow_state::{Answer, Tier};

use super::RemoteConfig;
use super::breaker::{Breaker, BreakerLimits, BreakerState, Held, Pass};
use super::fault::{Phase, RemoteFault};
use super::gate::{Entry, Gate};
use super::http::{Limit, Question, Server};
use super::retry;
use super::wire::{Body, Finish, LimitField, Reply, StreamOptions, tokens_of};
use crate::error::{ModelError, chain};
use crate::generation::{Author, Measure, Prompt, PromptConfig, Reader};
use crate::queue::{Lane, Rejected, caught, notify};
use crate::tier::{OnDelta, TierBackend, TierCounters, TierJob, TierRequest, TierStats};

/// The engine's name in errors and logs.
const ENGINE: &str = "remote tier";
/// What marks a message's beginning and end, in tokens: an estimate.
const MESSAGE_TOKENS: usize = 8;

/// A tier whose model is behind a server.
pub struct RemoteTier {
    jobs: mpsc::UnboundedSender<Work>,
    shared: Arc<Shared>,
}

/// A job and its place in line, which bounds how many there are.
struct Work {
    job: TierJob,
    entry: Entry,
}

struct Shared {
    config: RemoteConfig,
    server: Server,
    author: Arc<Author>,
    breaker: Breaker,
    gate: Gate,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    ended: TierCounters,
    in_flight: AtomicUsize,
    retries: AtomicU64,
    usage_estimated: AtomicU64,
    refused: AtomicU64,
}

/// How a remote tier is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// How jobs ended.
    pub ended: TierStats,
    /// Jobs that are being answered now.
    pub in_flight: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// Whether the server is asked.
    pub breaker: BreakerState,
    /// How often the server was left alone because it kept failing.
    pub breaker_opened: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Answers whose usage the server did not tell: it is estimated, at four bytes a token.
    pub usage_estimated: u64,
    /// Answers in which the model declined to answer.
    pub refused: u64,
}

/// Looks at a remote tier without keeping it alive.
#[derive(Clone)]
pub struct RemoteHealth(Arc<Shared>);

impl RemoteHealth {
    /// How the tier is doing.
    #[must_use]
    pub fn stats(&self) -> RemoteStats {
        let Shared { breaker, gate, counters, .. } = &*self.0;
        let (state, breaker_opened) = breaker.state();
        RemoteStats {
            ended: counters.ended.stats(),
            in_flight: counters.in_flight.load(Ordering::Relaxed),
            queued: gate.waiting(),
            breaker: state,
            breaker_opened,
            retries: counters.retries.load(Ordering::Relaxed),
            usage_estimated: counters.usage_estimated.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for RemoteHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

impl RemoteTier {
    /// Starts the tier's thread; the server is first asked when a job comes. `system_prompt` is the operator's own words to the
    /// model, which may be empty, and `language` that of the answers.
    ///
    /// # Errors
    /// When a setting is wrong, the key or a certificate cannot be read, or there is no thread.
    pub fn start(
        config: RemoteConfig,
        prompt: PromptConfig,
        system_prompt: &str,
        language: &str,
    ) -> Result<Self, ModelError> {
        config.check().map_err(|wrong| ModelError::Endpoint { reason: wrong.to_string() })?;
        let no_thread = |source| ModelError::Thread { what: ENGINE, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let limits =
            BreakerLimits { failures: config.breaker_failures, rest: Duration::from_millis(config.breaker_rest_ms) };
        let shared = Arc::new(Shared {
            server: Server::new(&config)?,
            author: Arc::new(Author::new(prompt, system_prompt, language)),
            breaker: Breaker::new(limits),
            gate: Gate::new(config.in_flight_max, config.queue_max),
            counters: Counters::default(),
            config,
        });
        let (jobs, mut taken) = mpsc::unbounded_channel();
        let serving = Arc::clone(&shared);
        let serve = move || {
            runtime.block_on(serve(&serving, &mut taken));
            // A name that is still being looked up must not hold up the end.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("remote".to_owned()).spawn(serve).map_err(no_thread)?;
        Ok(Self { jobs, shared })
    }

    /// A view of how the tier is doing.
    #[must_use]
    pub fn health(&self) -> RemoteHealth {
        RemoteHealth(Arc::clone(&self.shared))
    }
}

impl std::fmt::Debug for RemoteTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteTier").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl TierBackend for RemoteTier {
    fn tier(&self) -> Tier {
        Tier::Openai
    }

    fn identity(&self) -> String {
        let RemoteConfig { base_url, model, temperature, top_p, seed, .. } = &self.shared.config;
        let author = self.shared.author.identity();
        format!("{} {base_url} {model} {temperature:?} {top_p:?} {seed:?} {author}", Tier::Openai)
    }

    fn submit(&self, lane: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        let Some(entry) = self.shared.gate.enter(lane) else {
            let error = ModelError::Full { what: ENGINE, limit: self.shared.config.queue_max };
            return Err(Rejected { job: Box::new(job), error });
        };
        // What a job may take is no more than what an answer may.
        self.jobs
            .send(Work { job: job.within(self.shared.config.total()), entry })
            .map_err(|refused| Rejected { job: Box::new(refused.0.job), error: ModelError::Stopped { what: ENGINE } })
    }

    fn stats(&self) -> TierStats {
        self.shared.counters.ended.stats()
    }

    fn queued(&self) -> usize {
        self.shared.gate.waiting()
    }

    fn remote(&self) -> Option<RemoteStats> {
        Some(self.health().stats())
    }
}

/// Runs jobs until no more can come and all are done.
async fn serve(shared: &Arc<Shared>, jobs: &mut mpsc::UnboundedReceiver<Work>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            work = jobs.recv() => match work {
                Some(work) => drop(running.spawn(run(Arc::clone(shared), work))),
                None => break,
            },
            Some(_ended) = running.join_next() => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn run(shared: Arc<Shared>, work: Work) {
    let Work { mut job, entry } = work;
    let (cancel, cancelled) = oneshot::channel();
    job.request.cancel.on_cancel(move || {
        let _already_ended = cancel.send(());
    });
    let result = {
        let cancelled = async {
            if cancelled.await.is_err() {
                pending::<()>().await;
            }
        };
        let deadline = job.deadline;
        let TierJob { request, on_delta, .. } = &mut job;
        let answering = std::pin::pin!(without_panic(shared.wait_and_answer(entry, request, deadline, on_delta)));
        tokio::select! {
            biased;
            () = cancelled => Err(ModelError::Cancelled),
            result = answering => result,
        }
        // Whatever was under way ends here: its connection is closed and its slot is free before anybody is told.
    };
    shared.counters.ended.ended(&result);
    notify(ENGINE, || (job.done)(result));
}

/// The future, whose panics are errors.
fn without_panic<'a, T: 'a>(
    work: impl Future<Output = Result<T, ModelError>> + Send + 'a,
) -> impl Future<Output = Result<T, ModelError>> + Send + 'a {
    let mut work = Box::pin(work);
    poll_fn(move |context| match caught(ENGINE, || Ok(work.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
}

/// Counts a job as under way.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Measures texts for a model whose vocabulary is not known here.
struct Estimate;

impl Measure for Estimate {
    fn tokens(&self, text: &str) -> Result<usize, ModelError> {
        Ok(tokens_of(text.len()))
    }

    fn around_prompt(&self) -> usize {
        2 * MESSAGE_TOKENS
    }

    fn around_exchange(&self) -> usize {
        2 * MESSAGE_TOKENS
    }
}

impl Shared {
    async fn wait_and_answer(
        &self,
        entry: Entry,
        request: &TierRequest,
        deadline: Option<Instant>,
        on_delta: &mut OnDelta,
    ) -> Result<Answer, ModelError> {
        let total = match deadline {
            Some(deadline) => Limit::until(deadline, request.time_max.unwrap_or_default()),
            None => Limit::after(self.config.total(), Phase::Total),
        };
        let _slot = match entry {
            Entry::Now(slot) => slot,
            Entry::Later(slot) => {
                let slot = total.bound(slot).await.map_err(|fault| self.failed(fault))?;
                slot.map_err(|_| ModelError::Stopped { what: ENGINE })?
            }
        };
        // The slot may come from a job that the same customer gave up, before this one has heard of it.
        if request.cancel.is_cancelled() {
            return Err(ModelError::Cancelled);
        }
        let _in_flight = InFlight::new(&self.counters.in_flight);
        let prompt = self.author.prompt(request, &Estimate, usize::MAX)?;
        let question = self.question(request, &prompt)?;
        let mut reader = Reader::new(Arc::clone(&self.author), prompt.shown);
        let read = &mut |piece: String| {
            if let Some(piece) = reader.push(&piece) {
                on_delta(piece);
            }
        };
        let reply = self.attempts(question, total, read).await.map_err(|fault| self.failed(fault))?;
        self.count(&reply);
        let (last, mut answer) = reader.finish(Tier::Openai, reply.usage);
        last.into_iter().for_each(on_delta);
        answer.cut_off = reply.finish == Finish::Length;
        if reply.finish == Finish::Refused {
            answer.grounded = false;
            answer.sources.clear();
        }
        Ok(answer)
    }

    fn question(&self, request: &TierRequest, prompt: &Prompt) -> Result<Question, ModelError> {
        let config = &self.config;
        let most = self.author.answer_tokens_max();
        let limit = request.tokens_max.map_or(most, |limit| limit.min(most));
        let limit_in = |field| (config.limit_field == field).then_some(limit);
        let body = Body {
            model: &config.model,
            messages: &prompt.messages,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens: limit_in(LimitField::MaxTokens),
            max_completion_tokens: limit_in(LimitField::MaxCompletionTokens),
            temperature: config.temperature,
            top_p: config.top_p,
            seed: config.seed,
        };
        let unwritable = |error| ModelError::Endpoint { reason: format!("the request cannot be written: {error}") };
        let body = serde_json::to_vec(&body).map_err(unwritable)?.into();
        Ok(Question { body, prompt_bytes: prompt.messages.iter().map(|message| message.content.len()).sum() })
    }

    /// Asks until there is an answer, or none is to be expected.
    async fn attempts(
        &self,
        question: Question,
        total: Limit,
        on_delta: &mut (dyn FnMut(String) + Send),
    ) -> Result<Reply, RemoteFault> {
        let [first, longest] = [self.config.retry_wait_ms, self.config.retry_wait_ms_max].map(Duration::from_millis);
        let mut has_spoken = false;
        let mut attempt = 1;
        loop {
            let mut on_delta = |piece| {
                has_spoken = true;
                on_delta(piece);
            };
            let fault = match self.attempt(question.clone(), total, &mut on_delta).await {
                Ok(reply) => return Ok(reply),
                Err(fault) => fault,
            };
            let wait = retry::wait(attempt, fastrand::f64(), first, longest, fault.retry_after());
            if has_spoken || !fault.is_safe_to_repeat() || attempt > self.config.retries_max || wait >= total.left() {
                return Err(fault);
            }
            tracing::warn!(
                fault = chain(&fault),
                attempt,
                wait_ms = wait.as_millis(),
                "a remote server is asked again"
            );
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn attempt(
        &self,
        question: Question,
        total: Limit,
        on_delta: &mut (dyn FnMut(String) + Send),
    ) -> Result<Reply, RemoteFault> {
        let pass = self.pass(total).await?;
        let result = self.server.ask(question, total, &|| pass.spoke(), on_delta).await;
        match &result {
            Err(fault) if fault.counts_against_server() => pass.failed(Instant::now()),
            // Too little time was given: that says nothing about the server.
            Err(RemoteFault::Timeout { .. }) => drop(pass),
            _ => pass.did_well(),
        }
        result
    }

    /// Leave to ask the server. Waits while another request tries whether it is well again, as long as a first token may take.
    async fn pass(&self, total: Limit) -> Result<Pass, RemoteFault> {
        let first_token = Duration::from_millis(self.config.first_token_ms_max);
        let limit = Limit::after(first_token, Phase::FirstToken).sooner(total);
        loop {
            let changed = self.breaker.changed();
            match self.breaker.admit(Instant::now()) {
                Ok(pass) => return Ok(pass),
                Err(Held::Resting(fault)) => return Err(fault),
                Err(Held::Probing) => limit.bound(changed).await?,
            }
        }
    }

    fn count(&self, reply: &Reply) {
        let count = |counter: &AtomicU64, happened: bool| counter.fetch_add(u64::from(happened), Ordering::Relaxed);
        let earlier = count(&self.counters.usage_estimated, reply.usage_is_estimate);
        if reply.usage_is_estimate && earlier == 0 {
            tracing::warn!(server = self.config.base_url, "a remote server tells no usage: it is estimated");
        }
        count(&self.counters.refused, reply.finish == Finish::Refused);
    }

    fn failed(&self, fault: RemoteFault) -> ModelError {
        match fault {
            RemoteFault::Timeout { phase: Phase::Total, limit_ms } => ModelError::Late { limit_ms: limit_ms.into() },
            source => ModelError::Remote { server: self.config.base_url.clone(), source },
        }
    }
}
