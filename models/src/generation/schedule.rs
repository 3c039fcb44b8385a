//! Scheduling: which sequences are in memory, and which tokens a step reads.
//!
//! Contract: `running` is ordered by lane, then by age, and each of its sequences has blocks for all that it has to read but
//! the token that it wrote last. A sequence never waits for one of a later lane, and none gives its blocks
//! to a younger one of its own. A sequence of a turn gives way once. The oldest always goes on, so everything ends. Nothing here blocks.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use turnflow_state::Usage;

use super::blocks::{Blocks, Table};
use super::engine::{GenerationLimits, GenerationStats, Shared};
use super::sampler::Sampler;
use super::ticket::{Ticket, Work};
use crate::decoder::StepShape;
use crate::engine::size_class;
use crate::error::ModelError;
use crate::queue::{Alternation, Lane};

/// A text that is being written.
pub(super) struct Sequence<W> {
    pub(super) ticket: Arc<Ticket<W>>,
    /// Where it stands in line.
    lane: Lane,
    /// The prompt and what was written.
    pub(super) tokens: Vec<u32>,
    prompt: usize,
    /// Tokens that are in its blocks.
    pub(super) computed: usize,
    pub(super) table: Table,
    sampler: Sampler,
    tokens_max: usize,
    stop_tokens: Arc<[u32]>,
    /// Set when it was first admitted.
    is_known: bool,
    /// How it ended, if it did.
    pub(super) end: Option<Result<Usage, ModelError>>,
}

impl<W: Work> Sequence<W> {
    /// Chooses the next token from the model's logits for it; breaks off when the text is complete.
    pub(super) fn write(&mut self, logits: &mut [f32]) -> Result<ControlFlow<Usage>, ModelError> {
        let token = self.sampler.next(&self.tokens, logits)?;
        if self.stop_tokens.contains(&token) {
            return Ok(ControlFlow::Break(self.usage()));
        }
        self.tokens.push(token);
        let is_complete = match self.ticket.work(|work| work.token(token)) {
            Some(flow) => flow?.is_break(),
            None => true,
        };
        let is_long = self.tokens.len() - self.prompt >= self.tokens_max;
        if is_long && !is_complete {
            let told = self.ticket.work(|work| {
                work.cut_off();
                Ok(())
            });
            told.transpose()?;
        }
        Ok(if is_complete || is_long { ControlFlow::Break(self.usage()) } else { ControlFlow::Continue(()) })
    }

    fn usage(&self) -> Usage {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage { input_tokens: count(self.prompt), output_tokens: count(self.tokens.len() - self.prompt) }
    }

    /// Tokens that the model has to read before the next can be chosen.
    const fn unread(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens to read next, of at most `most`: up to the end of a block where it is not up to the end, so that others can go
    /// on from there.
    const fn next_count(&self, most: usize, block_tokens: usize) -> usize {
        if self.unread() <= most {
            return self.unread();
        }
        let over = (self.computed + most) % block_tokens;
        if over < most { most - over } else { most }
    }
}

/// A job that is not in memory.
enum Waiting<W> {
    Fresh(Arc<Ticket<W>>),
    Begun(Box<Sequence<W>>),
}

impl<W> Waiting<W> {
    fn ticket(&self) -> &Arc<Ticket<W>> {
        match self {
            Self::Fresh(ticket) => ticket,
            Self::Begun(sequence) => &sequence.ticket,
        }
    }
}

/// All sequences of an engine.
pub(super) struct Schedule<W> {
    shape: StepShape,
    limits: GenerationLimits,
    shared: Arc<Shared<W>>,
    blocks: Blocks,
    waiting: [VecDeque<Waiting<W>>; Lane::ALL.len()],
    alternation: Alternation,
    pub(super) running: Vec<Sequence<W>>,
    stats: GenerationStats,
}

impl<W: Work> Schedule<W> {
    pub(super) fn new(shape: StepShape, limits: GenerationLimits, shared: Arc<Shared<W>>) -> Self {
        let blocks = Blocks::new(shape.blocks, shape.block_tokens, limits.share_prefixes);
        let (waiting, running) = (Default::default(), Vec::new());
        let (alternation, stats) = (Alternation::default(), GenerationStats::default());
        Self { shape, limits, shared, blocks, waiting, alternation, running, stats }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.iter().all(VecDeque::is_empty)
    }

    pub(super) fn stats(&self) -> GenerationStats {
        let shares = self.blocks.shares();
        GenerationStats {
            prompt_tokens: shares.tokens_asked,
            prompt_tokens_shared: shares.tokens_found,
            blocks_evicted: shares.evicted,
            sequences: self.running.len(),
            blocks: self.blocks.len(),
            blocks_held: self.blocks.len() - self.blocks.available(),
            blocks_kept: self.blocks.kept(),
            ..self.stats
        }
    }

    /// Counts a step that read so many tokens of each sequence in it.
    pub(super) fn stepped(&mut self, counts: impl ExactSizeIterator<Item = usize>, failed: bool) {
        self.stats.steps += 1;
        self.stats.steps_failed += u64::from(failed);
        self.stats.sequences_stepped += counts.len() as u64;
        self.stats.step_sizes[size_class(counts.len())] += 1;
        self.stats.tokens_read += counts.sum::<usize>() as u64;
    }

    /// A job has come.
    pub(super) fn arrive(&mut self, ticket: Arc<Ticket<W>>) {
        self.waiting[ticket.lane as usize].push_back(Waiting::Fresh(ticket));
    }

    /// Ends the jobs that must not go on, and frees their blocks.
    pub(super) fn drop_lapsed(&mut self, now: Instant) {
        for sequence in &mut self.running {
            if sequence.ticket.is_ended() {
                // The watch has told and counted it.
                sequence.end = Some(Err(ModelError::Cancelled));
            } else if let Some(error) = sequence.ticket.lapsed(now) {
                let (tokens, blocks) = (sequence.tokens.len() - sequence.prompt, sequence.table.blocks.len());
                tracing::info!(tokens, blocks, reason = %error, "an answer is given up, and its blocks are free");
                self.stats.count(&error);
                sequence.end = Some(Err(error));
            }
        }
        self.remove_ended();
        for &lane in Lane::ALL {
            let waiting = std::mem::take(&mut self.waiting[lane as usize]);
            for one in waiting {
                let Some(error) = one.ticket().lapsed(now) else {
                    self.waiting[lane as usize].push_back(one);
                    continue;
                };
                tracing::debug!(reason = %error, "a question that waits is given up");
                if !one.ticket().is_ended() {
                    self.stats.count(&error);
                }
                self.shared.watch.end(one.ticket(), Err(error));
                if matches!(one, Waiting::Fresh(_)) {
                    self.shared.left(lane);
                }
            }
        }
    }

    /// Takes out of memory what has ended, and tells it.
    pub(super) fn remove_ended(&mut self) {
        for sequence in self.running.extract_if(.., |sequence| sequence.end.is_some()) {
            let Sequence { ticket, mut table, end, .. } = sequence;
            self.blocks.release(&mut table);
            self.shared.watch.end(&ticket, end.unwrap_or(Err(ModelError::Cancelled)));
        }
    }

    /// Lets nobody go on from what is in memory of others: it may be wrong.
    pub(super) fn distrust(&mut self) {
        self.blocks.forget();
    }

    /// Has all that go on be computed again, in an empty memory.
    pub(super) fn begin_again(&mut self) {
        while !self.running.is_empty() {
            self.preempt_last();
        }
        self.blocks.forget();
    }

    /// Ends everything that was taken, and forgets what is in memory.
    pub(super) fn give_up(&mut self, error: &Arc<ModelError>) {
        self.running.clear();
        self.shared.watch.end_all(|| ModelError::Shared { source: Arc::clone(error) });
        self.blocks = Blocks::new(self.shape.blocks, self.shape.block_tokens, self.limits.share_prefixes);
    }

    /// Takes into memory what there is room for, in order.
    pub(super) fn admit(&mut self) {
        loop {
            let mut alternation = self.alternation;
            let Some(lane) = alternation.next(|lane| !self.waiting[lane as usize].is_empty()) else { return };
            let Some(waiting) = self.waiting[lane as usize].pop_front() else { return };
            let begun = match waiting {
                Waiting::Begun(sequence) => Some(sequence),
                Waiting::Fresh(ticket) => self.begin(ticket),
            };
            let Some(sequence) = begun else { continue };
            if let Err(sequence) = self.place(sequence) {
                self.waiting[lane as usize].push_front(Waiting::Begun(sequence));
                // Nothing overtakes it, and it is the next again.
                return;
            }
            self.alternation = alternation;
        }
    }

    /// Has a job say what it wants. None when it is ended.
    fn begin(&self, ticket: Arc<Ticket<W>>) -> Option<Box<Sequence<W>>> {
        let limit = self.shape.context_max.min(self.blocks.len() * self.shape.block_tokens);
        self.shared.left(ticket.lane);
        let plan = ticket.work(|work| {
            let plan = work.begin()?;
            let tokens = plan.prompt.len();
            // One token has to fit behind it.
            if (1..limit).contains(&tokens) {
                Ok(plan)
            } else {
                Err(ModelError::PromptTooLong { tokens, limit: limit - 1 })
            }
        })?;
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                self.shared.watch.end(&ticket, Err(error));
                return None;
            }
        };
        Some(Box::new(Sequence {
            lane: ticket.lane,
            ticket,
            prompt: plan.prompt.len(),
            computed: 0,
            table: Table::default(),
            sampler: Sampler::new(plan.sampling),
            tokens_max: plan.tokens_max.clamp(1, limit - plan.prompt.len()),
            tokens: plan.prompt,
            stop_tokens: plan.stop_tokens,
            is_known: false,
            end: None,
        }))
    }

    /// Gives a sequence blocks for all of its tokens, and those of later lanes have to yield to it, the youngest first. A turn yields
    /// once: then it counts as one of a conversation under way, which it is.
    fn place(&mut self, mut sequence: Box<Sequence<W>>) -> Result<(), Box<Sequence<W>>> {
        let lane = sequence.lane;
        loop {
            let found = self.blocks.find(&mut sequence.table, &sequence.tokens);
            let needed = self.blocks.needed(sequence.tokens.len()) - sequence.table.blocks.len();
            // One block for each of the others, so that this one is not the next to be preempted.
            let fits = self.blocks.available() >= needed + self.running.len();
            if fits && self.running.len() < self.limits.sequences_max {
                let taken = (0..needed).all(|_| self.blocks.take(&mut sequence.table));
                debug_assert!(taken, "{needed} blocks are available");
                sequence.computed = found * self.shape.block_tokens;
                self.note(&mut sequence);
                let place = self.running.partition_point(|other| other.rank() < sequence.rank());
                self.running.insert(place, *sequence);
                return Ok(());
            }
            self.blocks.release(&mut sequence.table);
            let yields = self.running.last().is_some_and(|last| last.lane > lane);
            if !yields {
                return Err(sequence);
            }
            self.preempt_last();
        }
    }

    fn note(&mut self, sequence: &mut Sequence<W>) {
        if !std::mem::replace(&mut sequence.is_known, true) {
            self.blocks.count(sequence.prompt, sequence.computed);
        }
    }

    /// Takes the blocks of the youngest sequence of the last lane: it will be computed again.
    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        tracing::debug!(tokens = sequence.tokens.len(), "a sequence makes room");
        self.stats.preemptions += 1;
        self.blocks.release(&mut sequence.table);
        sequence.computed = 0;
        if sequence.lane == Lane::New {
            sequence.lane = Lane::Ongoing;
        }
        self.waiting[sequence.lane as usize].push_front(Waiting::Begun(Box::new(sequence)));
    }

    /// What the next step reads: places in `running`, with the number of tokens of each, at least 1.
    pub(super) fn plan(&mut self) -> Vec<(usize, usize)> {
        self.make_room();
        let block_tokens = self.shape.block_tokens;
        let writing = self.running.iter().filter(|sequence| sequence.unread() == 1).count();
        let mut left = self.limits.step_tokens_max.saturating_sub(writing);
        let mut planned = Vec::with_capacity(self.running.len());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.unread() > 1 && left > 0 {
                // Another prompt that begins alike may have been read in the meantime.
                if sequence.computed == sequence.table.tokens_chained(block_tokens) {
                    let found = self.blocks.find(&mut sequence.table, &sequence.tokens) * block_tokens;
                    sequence.computed += found;
                    // What is found of an answer that is computed again is nobody's prompt.
                    if sequence.tokens.len() == sequence.prompt {
                        self.blocks.count(0, found);
                    }
                }
                let count = sequence.next_count(left, block_tokens);
                left -= count;
                planned.push((index, count));
            } else if sequence.unread() == 1 {
                planned.push((index, 1));
            }
        }
        planned
    }

    /// Sees to it that whoever writes has a block for the next token; the youngest make room.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let has_room = self.blocks.needed(sequence.tokens.len()) <= sequence.table.blocks.len();
            if has_room || self.blocks.take(&mut sequence.table) {
                index += 1;
            } else {
                self.preempt_last();
            }
        }
    }

    /// Takes in that the model has read tokens of a sequence. Whether it has read all.
    pub(super) fn read(&mut self, index: usize, count: usize) -> bool {
        let sequence = &mut self.running[index];
        sequence.computed += count;
        self.blocks.publish(&mut sequence.table, &sequence.tokens, sequence.computed);
        let is_whole = sequence.unread() == 0;
        self.stats.tokens_written += u64::from(is_whole);
        is_whole
    }
}

impl<W> Sequence<W> {
    fn rank(&self) -> (usize, u64) {
        (self.lane as usize, self.ticket.number)
    }
}

impl GenerationStats {
    fn count(&mut self, error: &ModelError) {
        match error {
            ModelError::Late { .. } => self.late += 1,
            _ => self.cancelled += 1,
        }
    }
}
