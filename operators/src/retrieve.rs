//! Retrieve: finds the chunks of the knowledge base that a question is about, on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use turnflow_state::{KnowledgeBase, ScoredChunk, Stage as StageName, StateError, TenantId, TurnError, TurnErrorKind};

use crate::jobs::{Came, Jobs, Report};
use crate::message::{Ask, Outcome, Step};
use crate::policy::Clarity;
use crate::pool::Pool;
use crate::shell::{Stage, Wake};

/// What was found, and the knowledge base's epoch before the search: not later than what was read.
pub type Retrieved = Result<(Vec<ScoredChunk>, u64), StateError>;

/// Whatever finds chunks.
pub trait Retriever: 'static {
    /// Takes a search and reports later; false when it is full for now.
    fn retrieve(&self, tenant: TenantId, vector: Arc<[f32]>, report: Report<(), Retrieved>) -> bool;
}

/// Searches a knowledge base on a pool.
#[derive(Clone)]
pub struct PooledRetriever {
    /// What is searched.
    pub knowledge: Arc<KnowledgeBase>,
    /// Where.
    pub pool: Pool,
    /// How many chunks are wanted.
    pub chunks: usize,
}

impl std::fmt::Debug for PooledRetriever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledRetriever").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

impl Retriever for PooledRetriever {
    fn retrieve(&self, tenant: TenantId, vector: Arc<[f32]>, report: Report<(), Retrieved>) -> bool {
        let (knowledge, chunks) = (self.knowledge.clone(), self.chunks);
        self.pool.submit(move || {
            let epoch = knowledge.epoch();
            report.finish(knowledge.search(&tenant, &vector, chunks).map(|found| (found, epoch)));
        })
    }
}

/// The core.
#[derive(Debug)]
pub struct Retrieve<R> {
    retriever: R,
    clarity: Clarity,
    jobs: Jobs<Box<Ask>, (), Retrieved>,
    queue: VecDeque<Box<Ask>>,
}

impl<R: Retriever> Retrieve<R> {
    /// A stage in front of a retriever.
    #[must_use]
    pub fn new(retriever: R, clarity: Clarity, wake: &Wake) -> Self {
        Self { retriever, clarity, jobs: Jobs::new(wake), queue: VecDeque::new() }
    }
}

impl<R: Retriever> Stage for Retrieve<R> {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, _out: &mut Vec<Step>) {
        ask.entered_us = now_us;
        self.queue.push_back(ask);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(came) = self.jobs.next_event() {
            let Came::Last(mut ask, result) = came else { continue };
            ask.left(StageName::Retrieve, now_us);
            match result {
                Some(Ok((retrieved, epoch))) => {
                    ask.about = self.clarity.article(&retrieved);
                    ask.retrieved = retrieved;
                    ask.read_epoch = epoch;
                    out.push(Ok(ask));
                }
                Some(Err(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot search the knowledge base");
                    out.push(Err(unretrieved(ask)));
                }
                None => out.push(Err(unretrieved(ask))),
            }
        }
        let retriever = &self.retriever;
        self.jobs.start_all(&mut self.queue, |ask, report| {
            // Embed gives every turn a vector.
            ask.vector.clone().is_some_and(|vector| retriever.retrieve(ask.turn.tenant.clone(), vector, report))
        });
    }

    fn held(&self) -> usize {
        self.queue.len() + self.jobs.len()
    }

    fn stalled(&self) -> bool {
        !self.queue.is_empty() && self.jobs.is_empty()
    }
}

fn unretrieved(ask: Box<Ask>) -> Outcome {
    Outcome::failed(ask, TurnError::new(TurnErrorKind::Internal, "the knowledge base could not be searched"))
}
