//! The encoder's engine: one thread that owns the encoder and batches whatever waits.
//!
//! Contract: every job that was taken has its `done` called exactly once, on the engine's thread, even if the model
//! panics; a job that was not taken comes back. Jobs of an earlier lane go first. When the engine becomes free it takes all that waits, up to its
//! budget (natural batching: alone when idle, full batches at a peak), and a job is done as soon as its last
//! text is. A failure hits only the jobs of its batch. Idle, the thread sleeps. With a memo, a text that was encoded
//! before is not encoded again.
//!
//! A [handle](EncoderHandle) puts the encoder's prefix before each text, as its [kind](InputType) demands; the engine knows nothing of that.
//! It deliberately waits for no further company (no batching delay), and drops no job by itself: callers bound
//! their patience.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::{BatchBudget, plan_batches};
use crate::encoder::{Encoder, EncoderConfig};
use crate::error::ModelError;
use crate::memo::Memo;
use crate::prefixes::{InputType, Prefixes};
use crate::queue::{JobQueue, Lane, Lanes, Rejected, caught, notify};
use crate::tokenizer::TextTokenizer;

/// The engine's name in errors and logs.
const ENGINE: &str = "encoder";
/// Most texts of one job.
pub const JOB_TEXTS_MAX: usize = 1024;
/// Classes of batch sizes that are counted apart: 1, 2, 3–4, 5–8 and so on; the last holds everything above.
pub(crate) const SIZE_CLASSES: usize = 9;

/// What a caller of the engine wants to happen: runs on the engine's thread, so it must be short and not block.
pub type EncodeDone = Box<dyn FnOnce(Result<Vec<Arc<[f32]>>, Arc<ModelError>>) + Send>;

/// Texts to encode.
pub struct EncodeJob {
    /// At most [`JOB_TEXTS_MAX`] texts, with their prefixes. A job with more than a batch of them holds up others.
    pub texts: Vec<String>,
    /// Called with one vector for each text, in order.
    pub done: EncodeDone,
}

/// Starts the encoder's thread.
#[derive(Debug)]
pub struct EncoderEngine;

impl EncoderEngine {
    /// Gives the encoder a thread of its own. The thread ends when the last handle is dropped.
    ///
    /// # Errors
    /// [`ModelError::Thread`] when there is none; [`ModelError::Dimension`] when the adapter is for another encoder;
    /// [`ModelError::Prefix`] when a prefix leaves no room for a text.
    pub fn start(encoder: Encoder, config: &EncoderConfig) -> Result<EncoderHandle, ModelError> {
        Self::start_remembering(encoder, config, 0)
    }

    /// The same with a memo of `memo_bytes_max` bytes: each distinct text that fits is encoded once. It pays where the
    /// same texts are sent through several times, as in replays of one log; in serving they seldom are.
    ///
    /// # Errors
    /// As [`EncoderEngine::start`].
    pub fn start_remembering(
        encoder: Encoder,
        config: &EncoderConfig,
        memo_bytes_max: usize,
    ) -> Result<EncoderHandle, ModelError> {
        let prefixes = config.prefixes().or(encoder.prefixes().clone());
        prefixes.check(encoder.tokenizer())?;
        let identity = config.identity_of(encoder.identity(), &prefixes);
        start(encoder.adapted(config.adapter)?, (prefixes, identity), config, memo_bytes_max)
    }
}

/// What the engine needs of a model; tests put others in its place.
pub(crate) trait BatchModel: Send + 'static {
    fn tokenizer(&self) -> &TextTokenizer;
    fn dimension(&self) -> usize;
    /// Encodes rows of ids, in order.
    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError>;
}

impl BatchModel for Encoder {
    fn tokenizer(&self) -> &TextTokenizer {
        self.tokenizer()
    }

    fn dimension(&self) -> usize {
        self.dimension()
    }

    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        self.forward(rows)
    }
}

/// Starts an engine; a model comes with its prefixes, and with what stores are bound to.
pub(crate) fn start(
    model: impl BatchModel,
    (prefixes, identity): (Prefixes, String),
    config: &EncoderConfig,
    memo_bytes_max: usize,
) -> Result<EncoderHandle, ModelError> {
    let budget = BatchBudget {
        tokens_max: config.batch_tokens_max.max(1),
        texts_max: config.batch_texts_max.clamp(1, JOB_TEXTS_MAX),
    };
    let (tokenizer, dimension) = (model.tokenizer().clone(), model.dimension());
    let counters = Arc::new(Counters::default());
    let memo = RefCell::new(Memo::new(memo_bytes_max));
    let engine = Engine { model, budget, counters: Arc::clone(&counters), memo };
    let queue = JobQueue::start(ENGINE, config.queue_max, [move |jobs: &Lanes<EncodeJob>| engine.run(jobs)])?;
    let (prefixes, identity) = (Arc::new(prefixes), identity.into());
    Ok(EncoderHandle { queue, tokenizer, prefixes, identity, dimension, texts_max: budget.texts_max, counters })
}

/// A way to the engine; clones share it.
#[derive(Clone)]
pub struct EncoderHandle {
    queue: JobQueue<EncodeJob>,
    tokenizer: TextTokenizer,
    prefixes: Arc<Prefixes>,
    identity: Arc<str>,
    dimension: usize,
    texts_max: usize,
    counters: Arc<Counters>,
}

impl EncoderHandle {
    /// Queues a job; never blocks.
    ///
    /// # Errors
    /// The job itself, when the queue is full, the job has too many texts, or the engine has stopped.
    pub fn submit(
        &self,
        lane: Lane,
        input: InputType,
        texts: Vec<String>,
        done: EncodeDone,
    ) -> Result<(), Rejected<EncodeJob>> {
        let texts = texts.into_iter().map(|text| self.prefixes.apply(input, text)).collect();
        let job = EncodeJob { texts, done };
        if job.texts.len() > JOB_TEXTS_MAX {
            let error = ModelError::TooManyTexts { what: ENGINE, texts: job.texts.len(), limit: JOB_TEXTS_MAX };
            return Err(Rejected { job: Box::new(job), error });
        }
        self.queue.submit(lane, job)
    }

    /// Encodes any number of texts, waiting for a place in the queue and for the vectors. Goes batch by batch, so that
    /// others get their turn in between. Must not be called from a `done`.
    ///
    /// # Errors
    /// What the encoder said to the first batch that failed.
    pub fn encode_blocking(&self, input: InputType, texts: Vec<String>) -> Result<Vec<Arc<[f32]>>, Arc<ModelError>> {
        self.encode_blocking_in(Lane::New, input, texts)
    }

    /// The same in a lane.
    ///
    /// # Errors
    /// As [`EncoderHandle::encode_blocking`].
    pub fn encode_blocking_in(
        &self,
        lane: Lane,
        input: InputType,
        texts: Vec<String>,
    ) -> Result<Vec<Arc<[f32]>>, Arc<ModelError>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut texts = texts.into_iter().map(|text| self.prefixes.apply(input, text)).peekable();
        while texts.peek().is_some() {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            let done: EncodeDone = Box::new(move |result| {
                let _waiter_is_gone = sender.send(result);
            });
            let job = EncodeJob { texts: texts.by_ref().take(self.texts_max).collect(), done };
            self.queue.submit_blocking(lane, job).map_err(|rejected| Arc::new(rejected.error))?;
            let result = receiver.recv().map_err(|_| Arc::new(ModelError::Stopped { what: ENGINE }))?;
            vectors.extend(result?);
        }
        Ok(vectors)
    }

    /// Numbers in a vector.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// What decides about its vectors: two encoders with the same make vectors that can be compared.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Word pieces of such a text that the encoder reads, beside its prefix.
    #[must_use]
    pub fn pieces_max(&self, input: InputType) -> usize {
        self.prefixes.room(input, &self.tokenizer)
    }

    /// The encoder's vocabulary, for counting and cutting on the caller's thread.
    #[must_use]
    pub const fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// What the engine did so far.
    #[must_use]
    pub fn stats(&self) -> EncoderStats {
        self.counters.read()
    }

    /// Jobs that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.queued()
    }
}

impl std::fmt::Debug for EncoderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderHandle").field("queued", &self.queued()).finish_non_exhaustive()
    }
}

/// What the engine did since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderStats {
    /// Forward passes.
    pub batches: u64,
    /// Texts that went through them.
    pub texts: u64,
    /// Word pieces of these texts, without padding.
    pub tokens: u64,
    /// Forward passes that failed.
    pub failed_batches: u64,
    /// Forward passes by number of texts: 1, 2, 3–4, 5–8, 9–16, 17–32, 33–64, 65–128, more.
    pub batch_sizes: [u64; SIZE_CLASSES],
}

#[derive(Default)]
struct Counters {
    texts: AtomicU64,
    tokens: AtomicU64,
    failed_batches: AtomicU64,
    batch_sizes: [AtomicU64; SIZE_CLASSES],
}

impl Counters {
    fn count(&self, texts: usize, tokens: usize, failed: bool) {
        self.texts.fetch_add(texts as u64, Ordering::Relaxed);
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.failed_batches.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.batch_sizes[size_class(texts)].fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> EncoderStats {
        let batch_sizes = self.batch_sizes.each_ref().map(|count| count.load(Ordering::Relaxed));
        EncoderStats {
            batches: batch_sizes.iter().sum(),
            texts: self.texts.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
            failed_batches: self.failed_batches.load(Ordering::Relaxed),
            batch_sizes,
        }
    }
}

/// The class of a number of texts, or of sequences: each ends at a power of two, and the last one takes what is above.
pub(crate) fn size_class(size: usize) -> usize {
    let class = size.max(1).next_power_of_two().ilog2() as usize;
    class.min(SIZE_CLASSES - 1)
}

struct Engine<M> {
    model: M,
    budget: BatchBudget,
    counters: Arc<Counters>,
    /// Borrowed by the engine's thread alone, and never while the model runs.
    memo: RefCell<Memo>,
}

/// A job on its way: finished once `done` is gone.
struct Pending {
    done: Option<EncodeDone>,
    vectors: Vec<Option<Arc<[f32]>>>,
    missing: usize,
}

/// One text of a job.
struct Row {
    job: usize,
    text: usize,
    said: String,
    ids: Vec<u32>,
}

/// What is worked on at once.
#[derive(Default)]
struct Take {
    jobs: Vec<Pending>,
    rows: Vec<Row>,
    tokens: usize,
}

impl<M: BatchModel> Engine<M> {
    fn run(&self, jobs: &Lanes<EncodeJob>) {
        while let Some(first) = jobs.next() {
            let mut take = self.gather(first, jobs);
            let lengths: Vec<usize> = take.rows.iter().map(|row| row.ids.len()).collect();
            for batch in plan_batches(&lengths, self.budget) {
                self.encode(&mut take, &batch);
            }
        }
    }

    /// Takes what waits until a batch is full; the job that fills it may overflow into batches of its own.
    fn gather(&self, first: EncodeJob, jobs: &Lanes<EncodeJob>) -> Take {
        let mut take = Take::default();
        let mut next = Some(first);
        while let Some(job) = next {
            self.add(&mut take, job);
            let full = take.rows.len() >= self.budget.texts_max || take.tokens >= self.budget.tokens_max;
            next = if full { None } else { jobs.waiting() };
        }
        take
    }

    fn add(&self, take: &mut Take, EncodeJob { texts, done }: EncodeJob) {
        let tokenizer = self.model.tokenizer();
        let memo = self.memo.borrow();
        let vectors: Vec<_> = texts.iter().map(|text| memo.get(text)).collect();
        let unknown: Vec<_> = texts.into_iter().enumerate().filter(|&(text, _)| vectors[text].is_none()).collect();
        let ids = caught("the tokenizer", || {
            unknown.iter().map(|(_, said)| tokenizer.ids(said)).collect::<Result<Vec<_>, _>>()
        });
        match ids {
            Err(error) => notify(ENGINE, || done(Err(Arc::new(error)))),
            Ok(ids) if ids.is_empty() => notify(ENGINE, || done(Ok(vectors.into_iter().flatten().collect()))),
            Ok(ids) => {
                let job = take.jobs.len();
                take.jobs.push(Pending { done: Some(done), vectors, missing: ids.len() });
                take.tokens += ids.iter().map(Vec::len).sum::<usize>();
                take.rows.extend(unknown.into_iter().zip(ids).map(|((text, said), ids)| Row { job, text, said, ids }));
            }
        }
    }

    /// One forward pass, and the end of every job that waited for it.
    fn encode(&self, take: &mut Take, batch: &[usize]) {
        let Take { jobs, rows, .. } = take;
        let rows: Vec<&Row> =
            batch.iter().map(|&index| &rows[index]).filter(|row| jobs[row.job].done.is_some()).collect();
        if rows.is_empty() {
            return;
        }
        let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        let result = caught("the encoder", || self.forward(&ids));
        self.counters.count(ids.len(), ids.iter().map(|ids| ids.len()).sum(), result.is_err());
        match result {
            Ok(vectors) => {
                let mut memo = self.memo.borrow_mut();
                for (row, vector) in rows.into_iter().zip(vectors) {
                    memo.keep(&row.said, &vector);
                    jobs[row.job].put(row.text, vector);
                }
            }
            Err(error) => {
                tracing::error!(texts = ids.len(), error = crate::error::chain(&error), "a batch failed");
                let error = Arc::new(error);
                for row in rows {
                    jobs[row.job].finish(Err(Arc::clone(&error)));
                }
            }
        }
    }

    fn forward(&self, ids: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        let vectors = self.model.forward(ids)?;
        if vectors.len() == ids.len() {
            return Ok(vectors);
        }
        Err(ModelError::Output { texts: ids.len(), reason: format!("{} vectors", vectors.len()) })
    }
}

impl Pending {
    fn put(&mut self, text: usize, vector: Arc<[f32]>) {
        self.vectors[text] = Some(vector);
        self.missing -= 1;
        if self.missing == 0 {
            let vectors = std::mem::take(&mut self.vectors).into_iter().flatten().collect();
            self.finish(Ok(vectors));
        }
    }

    fn finish(&mut self, result: Result<Vec<Arc<[f32]>>, Arc<ModelError>>) {
        if let Some(done) = self.done.take() {
            notify(ENGINE, || done(result));
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
