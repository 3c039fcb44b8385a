//! A tier that generates: questions in, prompts to the [engine](super::engine), and its tokens out as text and sources.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use turnflow_state::{Answer, Tier, Usage};

use super::dialect::Dialect;
use super::engine::{GenerationEngine, GenerationLimits, GenerationStats};
use super::prompt::{Author, Reader};
use super::sampler::Sampling;
use super::stops::{Detokeniser, StopStrings};
use super::ticket::{Plan, Work};
use crate::decoder::StepModel;
use crate::error::ModelError;
use crate::queue::{Lane, Rejected};
use crate::tier::{TierBackend, TierCounters, TierHandle, TierJob, TierRequest, TierStats};

/// What a model is asked with, and what ends its answers.
#[derive(Debug)]
pub(crate) struct Voice {
    pub(crate) author: Arc<Author>,
    pub(crate) dialect: Dialect,
    pub(crate) sampling: Sampling,
    /// Tokens that end an answer.
    pub(crate) stop_tokens: Arc<[u32]>,
    /// Texts that end an answer.
    pub(crate) stop_strings: Arc<[String]>,
    /// Longest time for an answer, its wait included.
    pub(crate) time_max: Duration,
    /// Everything that may change an answer, but for the author's part.
    pub(crate) model: String,
}

impl Voice {
    /// Tokens that are left for a prompt of a text of at most `context_max`, beside so long an answer.
    const fn room(context_max: usize, answer_tokens: usize) -> usize {
        context_max.saturating_sub(answer_tokens)
    }

    /// Refuses settings under which no question fits.
    fn check(&self, context_max: usize) -> Result<(), ModelError> {
        let answer = self.author.answer_tokens_max();
        let room = Self::room(context_max, answer);
        let shortest = TierRequest::new("?", Arc::default(), Vec::new());
        match self.author.prompt(&shortest, &self.dialect, room) {
            Err(ModelError::PromptTooLong { .. }) => {
                let prompt = self.author.prompt_tokens_max();
                Err(ModelError::NoRoom { context: context_max, answer, room, prompt })
            }
            other => other.map(drop),
        }
    }
}

/// The tier.
struct Generating {
    engine: GenerationEngine<Writing>,
    voice: Arc<Voice>,
    context_max: usize,
    counters: Arc<TierCounters>,
}

/// Starts a tier that generates.
///
/// # Errors
/// [`ModelError::NoRoom`] when no question fits, [`ModelError::Thread`] when there is no thread for it.
pub(crate) fn start(
    model: Box<dyn StepModel>,
    voice: Voice,
    limits: GenerationLimits,
) -> Result<TierHandle, ModelError> {
    let shape = model.shape();
    let context_max = shape.context_max.min(shape.blocks * shape.block_tokens);
    voice.check(context_max)?;
    let (engine, counters) = (GenerationEngine::start(model, limits)?, Arc::default());
    Ok(TierHandle::new(Generating { engine, voice: Arc::new(voice), context_max, counters }))
}

impl TierBackend for Generating {
    fn tier(&self) -> Tier {
        Tier::Burn
    }

    fn identity(&self) -> String {
        let Voice { author, sampling, stop_strings, model, .. } = self.voice.as_ref();
        format!("{model} {} {sampling:?} {stop_strings:?}", author.identity())
    }

    fn submit(&self, lane: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        let (voice, counters) = (Arc::clone(&self.voice), Arc::clone(&self.counters));
        let job = job.within(voice.time_max);
        let work = Writing { job, voice, counters, context_max: self.context_max, page: None };
        self.engine
            .submit(lane, work)
            .map_err(|rejected| Rejected { job: Box::new(rejected.job.job), error: rejected.error })
    }

    fn stats(&self) -> TierStats {
        self.counters.stats()
    }

    fn queued(&self) -> usize {
        self.engine.queued()
    }

    fn generation(&self) -> Option<GenerationStats> {
        Some(self.engine.stats())
    }
}

/// A question that is being answered.
struct Writing {
    job: TierJob,
    voice: Arc<Voice>,
    counters: Arc<TierCounters>,
    context_max: usize,
    page: Option<Page>,
}

/// What is written so far.
struct Page {
    detokeniser: Detokeniser,
    stops: StopStrings,
    reader: Reader,
    /// Whether a stop string came.
    is_complete: bool,
    /// Whether the bound on tokens ended it.
    is_cut_off: bool,
}

impl Work for Writing {
    fn lapsed(&self, now: Instant) -> Option<ModelError> {
        self.job.lapsed(now)
    }

    fn begin(&mut self) -> Result<Plan, ModelError> {
        let (request, voice) = (&self.job.request, self.voice.as_ref());
        let most = voice.author.answer_tokens_max();
        let tokens_max = request.tokens_max.map_or(most, |wanted| wanted.min(most));
        let room = Voice::room(self.context_max, tokens_max);
        let prompt = voice.author.prompt(request, &voice.dialect, room)?;
        let tokens = voice.dialect.tokens(&prompt.messages, SystemTime::now())?;
        self.page = Some(Page {
            detokeniser: Detokeniser::new(Arc::clone(voice.dialect.tokenizer())),
            stops: StopStrings::new(Arc::clone(&voice.stop_strings)),
            reader: Reader::new(Arc::clone(&voice.author), prompt.shown),
            is_complete: false,
            is_cut_off: false,
        });
        let (sampling, stop_tokens) = (voice.sampling, Arc::clone(&voice.stop_tokens));
        Ok(Plan { prompt: tokens, sampling, tokens_max, stop_tokens })
    }

    fn token(&mut self, token: u32) -> Result<ControlFlow<()>, ModelError> {
        let Some(page) = &mut self.page else { return Ok(ControlFlow::Break(())) };
        let piece = page.detokeniser.push(token)?;
        page.read(&piece).into_iter().for_each(&mut self.job.on_delta);
        Ok(if page.is_complete { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn cut_off(&mut self) {
        if let Some(page) = &mut self.page {
            page.is_cut_off = true;
        }
    }

    fn end(self, result: Result<Usage, ModelError>) {
        let Self { mut job, counters, page, .. } = self;
        let result = result.and_then(|usage| page.ok_or(ModelError::Cancelled)?.finish(usage, &mut job.on_delta));
        counters.ended(&result);
        (job.done)(result);
    }
}

impl Page {
    fn read(&mut self, piece: &str) -> Option<String> {
        let (piece, is_complete) = self.stops.push(piece);
        self.is_complete |= is_complete;
        self.reader.push(&piece)
    }

    /// Gives out what was held, and the answer.
    fn finish(mut self, usage: Usage, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        if !self.is_complete {
            let piece = self.detokeniser.finish()?;
            self.read(&piece).into_iter().for_each(&mut *on_delta);
        }
        if !self.is_complete {
            let held = self.stops.finish();
            self.reader.push(&held).into_iter().for_each(&mut *on_delta);
        }
        let (last, answer) = self.reader.finish(Tier::Burn, usage);
        last.into_iter().for_each(on_delta);
        Ok(Answer { cut_off: self.is_cut_off, ..answer })
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
