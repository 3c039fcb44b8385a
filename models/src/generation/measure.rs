//! Measuring a decoder and its engine with drawn prompts: how many tokens a second, and how soon the first.
//!
//! Contract: what is measured is what answers questions, but for the texts: prompts are drawn tokens, and answers are as long
//! as they may be. The same settings draw the same prompts. The decoder is loaded once; every run has an engine of its own,
//! so that no run finds what another left.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};
use serde::Serialize;
use turnflow_state::Usage;

use super::burn::{BurnConfig, load};
use super::engine::{GenerationEngine, GenerationLimits, GenerationStats};
use super::sampler::Sampling;
use super::ticket::{Plan, Work};
use crate::decoder::{Slice, StepModel, StepShape};
use crate::engine::SIZE_CLASSES;
use crate::error::ModelError;
use crate::kernels::InstructionChoice;
use crate::queue::Lane;
use crate::weights::ModelHome;

/// Requests of mixed length, all handed in at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationLoad {
    /// How many.
    pub requests: usize,
    /// Shortest and longest prompt, in tokens.
    pub prompt_tokens: (usize, usize),
    /// Shortest and longest answer, in tokens.
    pub answer_tokens: (usize, usize),
    /// What the lengths and prompts are drawn from.
    pub seed: u64,
}

/// How a run went.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationRun {
    /// From the first request to the last answer, in seconds.
    pub seconds: f64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of them, tokens that did not have to be read.
    pub prompt_tokens_shared: u64,
    /// Tokens of answers.
    pub answer_tokens: u64,
    /// Answered tokens a second.
    pub answer_tokens_per_s: f64,
    /// Steps of the decoder.
    pub steps: u64,
    /// Sequences of an average step.
    pub sequences_per_step: f64,
    /// Steps by number of sequences: 1, 2, 3–4, 5–8, 9–16, 17–32, 33–64, 65–128, more.
    pub step_sizes: [u64; SIZE_CLASSES],
    /// Time to each first token, from when its request was handed in, in milliseconds, sorted.
    pub first_token_ms: Vec<f64>,
    /// Sequences whose blocks were taken for others.
    pub preemptions: u64,
}

/// A decoder to be measured.
pub struct GenerationBench {
    model: Lent,
    limits: GenerationLimits,
    /// Bytes of its weights, and of its memory for keys and values.
    bytes: (u64, u64),
}

impl std::fmt::Debug for GenerationBench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationBench").field("shape", &self.model.shape).finish_non_exhaustive()
    }
}

impl GenerationBench {
    /// Loads the checkpoint of a configuration, to compute with these instructions where it runs on the processor.
    ///
    /// # Errors
    /// When it cannot be used, or the processor has not the instructions.
    pub fn open(config: &BurnConfig, home: &ModelHome, instructions: InstructionChoice) -> Result<Self, ModelError> {
        let checkpoint = config.open(home)?;
        let loaded = load(&checkpoint, config, instructions)?;
        Ok(Self { model: Lent::new(loaded.model), limits: config.engine, bytes: loaded.bytes })
    }

    /// Bytes of the decoder's weights, and of its memory for keys and values.
    #[must_use]
    pub const fn bytes(&self) -> (u64, u64) {
        self.bytes
    }

    /// All requests at once, as they are served: sequences join and leave at every step.
    ///
    /// # Errors
    /// When the decoder fails, or the load does not fit it.
    pub fn continuously(&self, load: &GenerationLoad) -> Result<GenerationRun, ModelError> {
        self.run(self.limits, &[&self.plans(load)])
    }

    /// In batches of this size, the next when the last answer of one is complete; 1 for one at a time.
    ///
    /// # Errors
    /// When the decoder fails, or the load does not fit it.
    pub fn in_batches(&self, load: &GenerationLoad, size: usize) -> Result<GenerationRun, ModelError> {
        let plans = self.plans(load);
        self.run(self.limits, &plans.chunks(size.max(1)).collect::<Vec<_>>())
    }

    /// One request after another, whose prompts begin alike and end in something else of `rest` tokens.
    ///
    /// # Errors
    /// When the decoder fails, or the prompts do not fit it.
    pub fn with_prefix(
        &self,
        prefix: usize,
        rest: usize,
        requests: usize,
        share: bool,
    ) -> Result<GenerationRun, ModelError> {
        let mut draws = fastrand::Rng::with_seed(1);
        let start: Vec<u32> = (0..prefix).map(|_| self.token(&mut draws)).collect();
        let plan = |_| {
            let rest = (0..rest).map(|_| self.token(&mut draws));
            plan(start.iter().copied().chain(rest).collect(), 2)
        };
        let plans: Vec<Plan> = (0..requests).map(plan).collect();
        let limits = GenerationLimits { share_prefixes: share, ..self.limits };
        self.run(limits, &plans.chunks(1).collect::<Vec<_>>())
    }

    fn plans(&self, load: &GenerationLoad) -> Vec<Plan> {
        let mut draws = fastrand::Rng::with_seed(load.seed);
        let mut between = |(least, most): (usize, usize)| draws.usize(least.max(1)..=most.max(least.max(1)));
        let lengths: Vec<_> =
            (0..load.requests).map(|_| (between(load.prompt_tokens), between(load.answer_tokens))).collect();
        let plan =
            |(prompt, answer): (usize, usize)| plan((0..prompt).map(|_| self.token(&mut draws)).collect(), answer);
        lengths.into_iter().map(plan).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a vocabulary's size fits")]
    fn token(&self, draws: &mut fastrand::Rng) -> u32 {
        draws.u32(0..self.model.shape.vocabulary as u32)
    }

    fn run(&self, limits: GenerationLimits, batches: &[&[Plan]]) -> Result<GenerationRun, ModelError> {
        let queue_max = batches.iter().map(|batch| batch.len()).max().unwrap_or(1);
        let engine = GenerationEngine::start(Box::new(self.model.clone()), GenerationLimits { queue_max, ..limits })?;
        let began = Instant::now();
        let mut first_token_ms = Vec::new();
        let mut usage = (0, 0);
        for batch in batches {
            let (told, ends) = unbounded();
            for plan in *batch {
                let probe = Probe { plan: plan.clone(), began: Instant::now(), first_ms: None, told: told.clone() };
                engine.submit(Lane::New, probe).map_err(|rejected| rejected.error)?;
            }
            drop(told);
            for (result, first_ms) in &ends {
                let used = result?;
                usage = (usage.0 + u64::from(used.input_tokens), usage.1 + u64::from(used.output_tokens));
                first_token_ms.extend(first_ms);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        first_token_ms.sort_by(f64::total_cmp);
        let stats = engine.stats();
        let GenerationStats { steps, sequences_stepped, step_sizes, prompt_tokens_shared, preemptions, .. } = stats;
        Ok(GenerationRun {
            seconds,
            prompt_tokens: usage.0,
            prompt_tokens_shared,
            answer_tokens: usage.1,
            answer_tokens_per_s: usage.1 as f64 / seconds,
            steps,
            sequences_per_step: sequences_stepped as f64 / steps.max(1) as f64,
            step_sizes,
            first_token_ms,
            preemptions,
        })
    }
}

fn plan(prompt: Vec<u32>, tokens_max: usize) -> Plan {
    Plan { prompt, sampling: Sampling::GREEDY, tokens_max, stop_tokens: Arc::default() }
}

/// How a request ended, and after how many milliseconds its first token came.
type Ended = (Result<Usage, ModelError>, Option<f64>);

struct Probe {
    plan: Plan,
    began: Instant,
    first_ms: Option<f64>,
    told: Sender<Ended>,
}

impl Work for Probe {
    fn lapsed(&self, _now: Instant) -> Option<ModelError> {
        None
    }

    fn begin(&mut self) -> Result<Plan, ModelError> {
        Ok(self.plan.clone())
    }

    fn token(&mut self, _token: u32) -> Result<ControlFlow<()>, ModelError> {
        self.first_ms.get_or_insert_with(|| self.began.elapsed().as_secs_f64() * 1e3);
        Ok(ControlFlow::Continue(()))
    }

    fn end(self, result: Result<Usage, ModelError>) {
        // Who measures has given up when nobody listens.
        let _ = self.told.send((result, self.first_ms));
    }
}

/// A decoder that one engine after another uses.
#[derive(Clone)]
struct Lent {
    model: Arc<Mutex<Box<dyn StepModel>>>,
    shape: StepShape,
}

impl Lent {
    fn new(model: Box<dyn StepModel>) -> Self {
        let shape = model.shape();
        Self { model: Arc::new(Mutex::new(model)), shape }
    }
}

impl StepModel for Lent {
    fn shape(&self) -> StepShape {
        self.shape
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner).step(slices, logits)
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner).reset()
    }
}
