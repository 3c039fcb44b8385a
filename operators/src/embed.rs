//! Embed: has the encoder engine turn the question into a vector, and never waits for it on the worker.
//!
//! Questions that find the engine full queue here, in order, and are offered again when something comes back.

use std::collections::VecDeque;
use std::sync::Arc;

use turnflow_models::{EncoderHandle, ModelError};
use turnflow_state::{Stage as StageName, TurnError, TurnErrorKind};

use crate::jobs::{Came, Jobs, Report};
use crate::message::{Ask, Outcome, Step};
use crate::shell::{Stage, Wake};

/// A question's vector, or why there is none.
pub type Embedded = Result<Arc<[f32]>, Arc<ModelError>>;

/// Whatever turns text into vectors.
pub trait Embedder: 'static {
    /// Takes a text and reports later; false when it is full for now.
    fn embed(&self, text: String, report: Report<(), Embedded>) -> bool;
}

impl Embedder for EncoderHandle {
    fn embed(&self, text: String, report: Report<(), Embedded>) -> bool {
        let done = Box::new(move |result: Result<Vec<Arc<[f32]>>, Arc<ModelError>>| {
            // One text in, one vector out; a report dropped without a result counts as lost.
            match result.map(|mut vectors| vectors.pop()) {
                Ok(Some(vector)) => report.finish(Ok(vector)),
                Ok(None) => drop(report),
                Err(error) => report.finish(Err(error)),
            }
        });
        self.submit(vec![text], done).is_ok()
    }
}

/// The core.
pub struct Embed<E> {
    embedder: E,
    jobs: Jobs<Box<Ask>, (), Embedded>,
    queue: VecDeque<Box<Ask>>,
}

impl<E: Embedder> Embed<E> {
    /// A stage in front of an embedder.
    #[must_use]
    pub fn new(embedder: E, wake: &Wake) -> Self {
        Self { embedder, jobs: Jobs::new(wake), queue: VecDeque::new() }
    }
}

impl<E: Embedder> Stage for Embed<E> {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, _out: &mut Vec<Step>) {
        ask.entered_us = now_us;
        self.queue.push_back(ask);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(came) = self.jobs.next_event() {
            let Came::Last(mut ask, result) = came else { continue };
            ask.left(StageName::Embed, now_us);
            match result {
                Some(Ok(vector)) => {
                    ask.vector = Some(vector);
                    out.push(Ok(ask));
                }
                Some(Err(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot embed a question");
                    out.push(Err(unembedded(ask)));
                }
                None => out.push(Err(unembedded(ask))),
            }
        }
        let embedder = &self.embedder;
        self.jobs.start_all(&mut self.queue, |ask, report| embedder.embed(ask.question_in_context(), report));
    }

    fn held(&self) -> usize {
        self.queue.len() + self.jobs.len()
    }

    fn stalled(&self) -> bool {
        !self.queue.is_empty() && self.jobs.is_empty()
    }
}

fn unembedded(ask: Box<Ask>) -> Outcome {
    Outcome::failed(ask, TurnError::new(TurnErrorKind::Internal, "the question could not be encoded"))
}
