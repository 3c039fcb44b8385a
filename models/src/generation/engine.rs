//! The engine of a decoder: one thread that owns it and advances all sequences together, step by step.
//!
//! *Continuous batching* (Yu et al. 2022, "Orca"): sequences join and leave at every step. A step reads one token of each
//! sequence that writes, and as much of the prompts of the others as its budget leaves, oldest first, so that a long prompt
//! does not hold up those who stream. *Memory*: a sequence is admitted when there are [blocks](super::blocks) for its
//! prompt; when they run out, the youngest sequence gives its own back and is computed again later. *Lanes*: what somebody
//! waits for goes before what nobody does, and takes its place.
//!
//! Contract: every job that was taken is ended exactly once. Before every step, jobs that nobody waits for any more or that
//! are late are ended and their blocks are free. An error, a panic, or a step that takes [too long](super::ticket) ends
//! the jobs of that step with an error; logits that are no numbers end theirs alone. The others go on, and so does the model;
//! what was kept of prompts is forgotten then, since it may be wrong. What a sequence is made of does not depend on the
//! others, but for the rounding of sums.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Sequence};
use super::ticket::{Ticket, Watch, Work};
use crate::decoder::{Slice, StepModel, StepShape};
use crate::engine::SIZE_CLASSES;
use crate::error::{ModelError, chain};
use crate::queue::{JobQueue, Lane, Lanes, Rejected, caught, notify};

const ENGINE: &str = "generation";

/// Bounds of a generation engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GenerationLimits {
    /// Questions that may wait, in each lane.
    pub queue_max: usize,
    /// Answers written at once.
    pub sequences_max: usize,
    /// Tokens read in one step, those that are being written and those of prompts together.
    pub step_tokens_max: usize,
    /// How long a step may take before its answers are given up, in milliseconds.
    pub step_ms_max: u64,
    /// Whether prompts that begin alike share what was computed for their beginning.
    pub share_prefixes: bool,
}

/// What a generation engine did since it was started, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    /// Steps of the model.
    pub steps: u64,
    /// Those that failed or took too long.
    pub steps_failed: u64,
    /// Sequences in all steps together: divided by the steps, how full they were.
    pub sequences_stepped: u64,
    /// Steps by number of sequences: 1, 2, 3–4, 5–8, 9–16, 17–32, 33–64, 65–128, more.
    pub step_sizes: [u64; SIZE_CLASSES],
    /// Tokens that the model read.
    pub tokens_read: u64,
    /// Tokens that were chosen, those that end an answer included.
    pub tokens_written: u64,
    /// Tokens of prompts that were admitted.
    pub prompt_tokens: u64,
    /// Those of them that did not have to be read, because another prompt had begun alike.
    pub prompt_tokens_shared: u64,
    /// Kept blocks that had to make room.
    pub blocks_evicted: u64,
    /// Sequences whose blocks were taken for others.
    pub preemptions: u64,
    /// Answers that were given up because nobody waited for them any more.
    pub cancelled: u64,
    /// Answers that were given up because they were late.
    pub late: u64,
    /// Sequences that are being written now.
    pub sequences: usize,
    /// Blocks that they hold.
    pub blocks_held: usize,
    /// Blocks that nobody holds and that are kept because a prompt may begin like them.
    pub blocks_kept: usize,
    /// All blocks.
    pub blocks: usize,
}

/// What the callers and the engine's thread share.
pub(super) struct Shared<W> {
    pub(super) watch: Arc<Watch<W>>,
    /// Jobs that wait, by lane: in the queue, or taken from it and not admitted.
    waiting: [AtomicUsize; Lane::ALL.len()],
    stats: Mutex<GenerationStats>,
}

impl<W> Shared<W> {
    /// A job of a lane waits no more.
    pub(super) fn left(&self, lane: Lane) {
        self.waiting[lane as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// A way to the engine. It ends when this is dropped, after the jobs that it took.
pub(crate) struct GenerationEngine<W> {
    queue: JobQueue<Arc<Ticket<W>>>,
    queue_max: usize,
    shared: Arc<Shared<W>>,
}

impl<W: Work> GenerationEngine<W> {
    /// Starts the engine's thread and its watch.
    ///
    /// # Errors
    /// [`ModelError::Thread`] when there are none.
    pub(crate) fn start(model: Box<dyn StepModel>, limits: GenerationLimits) -> Result<Self, ModelError> {
        let watch = Watch::start(Duration::from_millis(limits.step_ms_max))?;
        let shape = model.shape();
        let stats = Mutex::new(GenerationStats { blocks: shape.blocks, ..GenerationStats::default() });
        let shared = Arc::new(Shared { watch, waiting: Default::default(), stats });
        let mut engine = Engine {
            model,
            shape,
            schedule: Schedule::new(shape, limits, Arc::clone(&shared)),
            shared: Arc::clone(&shared),
            logits: Vec::new(),
        };
        let queue_max = limits.queue_max.max(1);
        let runner = move |jobs: &Lanes<Arc<Ticket<W>>>| engine.run(jobs);
        let queue = JobQueue::start(ENGINE, queue_max, [runner]).inspect_err(|_| shared.watch.close())?;
        Ok(Self { queue, queue_max, shared })
    }

    /// Hands in a job; never blocks.
    ///
    /// # Errors
    /// The job itself, when its lane is full or the engine has stopped.
    pub(crate) fn submit(&self, lane: Lane, work: W) -> Result<(), Rejected<W>> {
        let waiting = &self.shared.waiting[lane as usize];
        let place = |count: usize| (count < self.queue_max).then_some(count + 1);
        if waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, place).is_err() {
            if self.shared.watch.is_stuck() {
                // There may never be a place again.
                notify(ENGINE, || work.end(Err(self.shared.watch.stuck())));
                return Ok(());
            }
            let error = ModelError::Full { what: ENGINE, limit: self.queue_max };
            return Err(Rejected { job: Box::new(work), error });
        }
        let ticket = self.shared.watch.open(lane, work);
        let Err(rejected) = self.queue.submit(lane, ticket) else { return Ok(()) };
        self.shared.left(lane);
        self.shared.watch.forget(&rejected.job);
        // One that lapsed in between was ended, and counts as taken.
        let Some(work) = rejected.job.take() else { return Ok(()) };
        Err(Rejected { job: Box::new(work), error: rejected.error })
    }

    /// Jobs that wait.
    pub(crate) fn queued(&self) -> usize {
        self.shared.waiting.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    pub(crate) fn stats(&self) -> GenerationStats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Engine<W: Work> {
    model: Box<dyn StepModel>,
    shape: StepShape,
    schedule: Schedule<W>,
    shared: Arc<Shared<W>>,
    logits: Vec<f32>,
}

impl<W: Work> Engine<W> {
    /// Serves jobs until no handle and no job is left.
    fn run(&mut self, jobs: &Lanes<Arc<Ticket<W>>>) {
        loop {
            if self.schedule.is_idle() {
                match jobs.next() {
                    Some(ticket) => self.schedule.arrive(ticket),
                    None => break,
                }
            }
            for &lane in Lane::ALL {
                jobs.lane(lane).try_iter().for_each(|ticket| self.schedule.arrive(ticket));
            }
            // What is left of a defect of the engine itself.
            let turned = caught(ENGINE, || {
                self.turn();
                Ok(())
            });
            if let Err(error) = turned {
                tracing::error!(error = chain(&error), "the engine failed, and begins anew");
                self.schedule.give_up(&Arc::new(error));
            }
            self.publish_stats();
        }
        self.shared.watch.close();
    }

    fn publish_stats(&self) {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.schedule.stats();
    }

    fn turn(&mut self) {
        self.schedule.drop_lapsed(Instant::now());
        self.schedule.admit();
        let planned = self.schedule.plan();
        if planned.is_empty() {
            return;
        }
        let result = self.step(&planned);
        let has_panicked = matches!(result, Err(ModelError::Panicked { .. }));
        self.schedule.stepped(planned.iter().map(|&(_, count)| count), result.is_err());
        match result {
            Ok(()) => self.advance(&planned),
            Err(error) => {
                tracing::error!(sequences = planned.len(), error = chain(&error), "a step failed");
                let error = Arc::new(error);
                for &(index, _) in &planned {
                    self.schedule.running[index].end = Some(Err(ModelError::Shared { source: Arc::clone(&error) }));
                }
                self.schedule.distrust();
            }
        }
        // Whoever hears an end finds it counted.
        self.publish_stats();
        self.schedule.remove_ended();
        if has_panicked {
            self.reset();
        }
    }

    /// Begins with an empty memory: after a panic nobody knows what is in it.
    fn reset(&mut self) {
        self.schedule.begin_again();
        if let Err(error) = caught("a decoder", || self.model.reset()) {
            tracing::error!(error = chain(&error), "a model's memory could not be made anew");
        }
    }

    fn step(&mut self, planned: &[(usize, usize)]) -> Result<(), ModelError> {
        let running = &self.schedule.running;
        let slices: Vec<Slice<'_>> = planned.iter().map(|&(index, count)| running[index].slice(count)).collect();
        let wanted = slices.iter().filter(|slice| slice.wants_logits).count();
        self.logits.clear();
        self.shared.watch.begin_step(planned.iter().map(|&(index, _)| Arc::clone(&running[index].ticket)).collect());
        let (model, logits) = (&mut self.model, &mut self.logits);
        let result = caught("a decoder", || model.step(&slices, logits));
        self.shared.watch.end_step().and(result)?;
        if self.logits.len() == wanted * self.shape.vocabulary {
            return Ok(());
        }
        Err(ModelError::Logits { reason: "there are not as many as the vocabulary has tokens" })
    }

    /// Takes in what a step gave.
    fn advance(&mut self, planned: &[(usize, usize)]) {
        let mut rows = self.logits.chunks_exact_mut(self.shape.vocabulary);
        for &(index, count) in planned {
            let is_whole = self.schedule.read(index, count);
            let sequence = &mut self.schedule.running[index];
            let Some(row) = is_whole.then(|| rows.next()).flatten() else { continue };
            match sequence.write(row) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(usage)) => sequence.end = Some(Ok(usage)),
                Err(error) => {
                    let is_wrong = matches!(error, ModelError::Logits { .. });
                    sequence.end = Some(Err(error));
                    if is_wrong {
                        self.schedule.distrust();
                    }
                }
            }
        }
    }
}

impl<W: Work> Sequence<W> {
    /// The next tokens for the model.
    fn slice(&self, count: usize) -> Slice<'_> {
        let until = self.computed + count;
        Slice {
            tokens: &self.tokens[self.computed..until],
            position: self.computed,
            blocks: &self.table.blocks,
            wants_logits: until == self.tokens.len(),
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
