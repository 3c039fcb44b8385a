//! Embed: has the encoder engine turn the question into a vector, and never waits for it on the worker.
//!
//! Questions that find the engine full wait here in a [queue](crate::prioritise::Queue), and are offered again when something comes
//! back. A turn whose client leaves meanwhile is given up. Nothing before this stage costs much, so under [load](crate::load) new conversations are refused here.

use std::sync::Arc;

use turnflow_models::{EncoderHandle, InputType, Lane, ModelError};
use turnflow_state::{Stage as StageName, TurnError, TurnErrorKind};

use crate::clients::{Clients, Leavers};
use crate::deadline::late;
use crate::jobs::{Came, Jobs, Report};
use crate::load::{Backlog, Load};
use crate::message::{Ask, Outcome, Step};
use crate::prioritise::{Class, Queue, crowded};
use crate::shell::{Stage, Wake};

/// A question's vector, or why there is none.
pub type Embedded = Result<Arc<[f32]>, Arc<ModelError>>;

/// Whatever turns text into vectors.
pub trait Embedder: 'static {
    /// Takes a text and reports later; false when it is full for now.
    fn embed(&self, lane: Lane, text: String, report: Report<(), Embedded>) -> bool;
}

impl Embedder for EncoderHandle {
    fn embed(&self, lane: Lane, text: String, report: Report<(), Embedded>) -> bool {
        let done = Box::new(move |result: Result<Vec<Arc<[f32]>>, Arc<ModelError>>| {
            // One text in, one vector out; a report dropped without a result counts as lost.
            match result.map(|mut vectors| vectors.pop()) {
                Ok(Some(vector)) => report.finish(Ok(vector)),
                Ok(None) => drop(report),
                Err(error) => report.finish(Err(error)),
            }
        });
        self.submit(lane, InputType::Query, vec![text], done).is_ok()
    }
}

/// The core.
pub struct Embed<E> {
    embedder: E,
    jobs: Jobs<Box<Ask>, (), Embedded>,
    queue: Queue,
    clients: Clients,
    leavers: Leavers,
    load: Load,
    /// Its number among the queues that tell the load.
    number: usize,
    new_served: u64,
}

impl<E: Embedder> Embed<E> {
    /// A stage in front of an embedder, with a queue that has this number for the load.
    #[must_use]
    pub fn new(embedder: E, queue: Queue, load: Load, number: usize, wake: &Wake) -> Self {
        let (jobs, clients, leavers) = (Jobs::new(wake), Clients::default(), Leavers::new(wake));
        Self { embedder, jobs, queue, clients, leavers, load, number, new_served: 0 }
    }

    /// The same for clients that may leave.
    #[must_use]
    pub fn for_clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }
}

impl<E: Embedder> Stage for Embed<E> {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        ask.entered_us = now_us;
        if let Err(retry_after_ms) = self.load.lock().admit(Class::of(&ask), self.number, now_us) {
            return out.push(Err(crowded(ask, retry_after_ms)));
        }
        self.leavers.watch(&ask, &self.clients);
        for ask in self.queue.push(ask) {
            let retry_after_ms = self.load.lock().retry_after_ms();
            out.push(Err(crowded(ask, retry_after_ms)));
        }
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(came) = self.jobs.next_event() {
            let Came::Last(mut ask, result) = came else { continue };
            self.new_served += u64::from(Class::of(&ask) == Class::New);
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
        out.extend(self.leavers.ends(&self.load, |request| self.queue.remove(request)).map(Err));
        out.extend(self.queue.extract_late(now_us).into_iter().map(|ask| Err(late(ask))));
        let mut is_full = false;
        while let Some((lane, ask)) = self.queue.pop(now_us) {
            let embedder = &self.embedder;
            let started = self.jobs.start(ask, |ask, report| embedder.embed(lane, ask.question_in_context(), report));
            if let Err(ask) = started {
                self.queue.put_back(ask);
                is_full = true;
                break;
            }
        }
        let backlog = Backlog { takes_new: true, new_served: self.new_served, is_full, ..self.queue.backlog() };
        self.load.lock().observe(self.number, backlog, now_us);
    }

    fn held(&self) -> usize {
        self.queue.len() + self.jobs.len()
    }

    fn stalled(&self) -> bool {
        !self.queue.is_empty() && self.jobs.is_empty()
    }

    fn due_us(&self) -> Option<u64> {
        self.queue.deadline_us()
    }
}

fn unembedded(ask: Box<Ask>) -> Outcome {
    Outcome::failed(ask, TurnError::new(TurnErrorKind::Internal, "the question could not be encoded"))
}
