//! Generate: has a tier write the answer, streams its pieces, and says what the answer rests on.
//!
//! Turns wait in the [queue](crate::prioritise::Queue) of this stage, because only here it is known when a tier has
//! room; those that nobody waits for in a lane of their own, which the tier serves when no turn waits. An answer
//! that leans on the conversation is not offered to the cache; one that was not found in the knowledge base only for the same words.

use std::sync::Arc;
use std::time::Duration;

use turnflow_models::{Cancel, Lane, ModelError, TierHandle, TierRequest};
use turnflow_state::{
    Answer, CacheEntry, CacheLevel, EntryId, Stage as StageName, Support, Tier, TurnError, TurnErrorKind, TurnEvent,
    Verdict,
};

use crate::audience::Audiences;
use crate::jobs::{Came, Jobs, Report};
use crate::message::{Ask, Basis, Ending, Notice, Outcome, RequestId, Served, ToCommit};
use crate::prioritise::Queue;
use crate::shell::{Stage, Wake};

/// Above every cosine: no new chunk outdates an answer with such a last score.
const NEVER: f32 = 2.0;

/// An answer, or why there is none.
pub type Generated = Result<Answer, ModelError>;

/// Whatever writes answers.
pub trait Generator: 'static {
    /// Takes a request, reports pieces and then the answer; false when it is full for now.
    fn generate(&self, lane: Lane, request: TierRequest, report: Report<String, Generated>) -> bool;
}

impl Generator for TierHandle {
    fn generate(&self, lane: Lane, request: TierRequest, report: Report<String, Generated>) -> bool {
        let pieces = report.pieces();
        let on_delta = Box::new(move |piece| pieces.send(piece));
        self.submit(lane, request, on_delta, Box::new(move |result| report.finish(result))).is_ok()
    }
}

/// Knows who still waits.
pub trait Clients: 'static {
    /// What tells that nobody waits for a turn's answer any more.
    fn cancel(&self, request: RequestId) -> Cancel;
}

/// Everybody waits to the end.
#[derive(Clone, Copy, Debug)]
pub struct Patient;

impl Clients for Patient {
    fn cancel(&self, _: RequestId) -> Cancel {
        Cancel::new()
    }
}

/// The core.
#[derive(Debug)]
pub struct Generate<G, C = Patient> {
    generator: G,
    clients: C,
    chunks_wanted: usize,
    jobs: Jobs<Box<Ask>, String, Generated>,
    queue: Queue,
    audiences: Audiences,
    /// Jobs under way, by lane.
    under_way: [usize; Lane::ALL.len()],
}

impl<G: Generator> Generate<G> {
    /// A stage in front of a tier, for turns whose retrieval wanted `chunks_wanted` chunks, with those who hear their pieces.
    #[must_use]
    pub fn new(generator: G, chunks_wanted: usize, audiences: Audiences, wake: &Wake) -> Self {
        audiences.joined.deliver_to(wake.clone());
        let (jobs, queue) = (Jobs::new(wake), Queue::default());
        Self { generator, clients: Patient, chunks_wanted, jobs, queue, audiences, under_way: Default::default() }
    }

    /// The same for clients that may leave: a tier need not finish what it writes for them.
    pub fn for_clients<C: Clients>(self, clients: C) -> Generate<G, C> {
        let Self { generator, chunks_wanted, jobs, queue, audiences, under_way, .. } = self;
        Generate { generator, clients, chunks_wanted, jobs, queue, audiences, under_way }
    }
}

impl<G: Generator, C: Clients> Generate<G, C> {
    fn start_waiting(&mut self, lane: Lane, now_us: u64, out: &mut Vec<ToCommit>) {
        while let Some(mut ask) = self.queue.pop(lane) {
            let (generator, clients) = (&self.generator, &self.clients);
            let waited_since = ask.entered_us;
            ask.left(StageName::Prioritise, now_us);
            ask.entered_us = now_us;
            if std::mem::take(&mut ask.void) {
                out.push(piece_of(&ask, TurnEvent::Restart));
            }
            let started =
                self.jobs.start(ask, |ask, report| generator.generate(lane, request(ask, clients, now_us), report));
            if let Err(mut ask) = started {
                // Its wait goes on: what was booked above is booked again, in full, when it starts.
                ask.latency.clear(StageName::Prioritise);
                ask.entered_us = waited_since;
                self.queue.put_back(ask);
                break;
            }
            self.under_way[lane as usize] += 1;
        }
    }
}

fn request(ask: &Ask, clients: &impl Clients, now_us: u64) -> TierRequest {
    let (question, vector) = (ask.turn.text.clone(), ask.vector.clone().unwrap_or_default());
    let history = if ask.leans { ask.history.clone() } else { Vec::new() };
    // What is asked in the background, nobody waits for anyway.
    let (cancel, waited_us) = if ask.purpose.is_background() {
        (Cancel::new(), 0)
    } else {
        (clients.cancel(ask.request), now_us.saturating_sub(ask.admitted_us))
    };
    let waited = Duration::from_micros(waited_us);
    TierRequest { history, cancel, waited, ..TierRequest::new(question, vector, ask.retrieved.clone()) }
}

impl<G: Generator, C: Clients> Stage for Generate<G, C> {
    type Input = Box<Ask>;
    type Output = ToCommit;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, _out: &mut Vec<ToCommit>) {
        ask.entered_us = now_us;
        self.queue.push(ask);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<ToCommit>) {
        while let Some(came) = self.jobs.next_event() {
            match came {
                Came::Piece(ask, _) if ask.purpose.is_background() => {}
                Came::Piece(ask, piece) => {
                    self.audiences.said(ask.request, &piece, out);
                    out.push(piece_of(ask, TurnEvent::Delta(piece)));
                }
                Came::Last(mut ask, result) => {
                    ask.left(StageName::Generate, now_us);
                    self.audiences.close(ask.request, out);
                    self.under_way[ask.purpose.lane() as usize] -= 1;
                    out.push(ToCommit::End(ended(ask, result, self.chunks_wanted)));
                }
            }
        }
        self.audiences.catch_up(out);
        Lane::ALL.iter().for_each(|&lane| self.start_waiting(lane, now_us, out));
    }

    fn held(&self) -> usize {
        self.queue.len() + self.jobs.len()
    }

    fn stalled(&self) -> bool {
        // What comes back in a lane makes room there, and wakes the stage.
        Lane::ALL.iter().any(|&lane| !self.queue.is_lane_empty(lane) && self.under_way[lane as usize] == 0)
    }
}

fn piece_of(ask: &Ask, event: TurnEvent) -> ToCommit {
    ToCommit::Piece(Notice { request: ask.request, admitted_us: ask.admitted_us, event }, ask.conversation_owner())
}

fn ended(ask: Box<Ask>, result: Option<Generated>, chunks_wanted: usize) -> Outcome {
    match result {
        Some(Ok(answer)) => served(ask, answer, chunks_wanted, true),
        Some(Err(ModelError::Cancelled)) => ungenerated(ask, TurnErrorKind::Internal, "nobody waits for the answer"),
        Some(Err(ModelError::Late { .. })) => {
            ungenerated(ask, TurnErrorKind::Overloaded, "no answer could be written in time")
        }
        Some(Err(ModelError::PromptTooLong { tokens, limit })) => {
            let message =
                format!("the question has too many tokens: with what goes with it {tokens}, at most {limit} fit");
            ungenerated(ask, TurnErrorKind::Invalid, &message)
        }
        Some(Err(error)) if error.is_overload() => {
            ungenerated(ask, TurnErrorKind::Overloaded, "no answer can be written at present")
        }
        // The tier has told the log why.
        Some(Err(_)) => ungenerated(ask, TurnErrorKind::Internal, "no answer could be written"),
        None => ungenerated(ask, TurnErrorKind::Internal, "no answer could be written"),
    }
}

fn ungenerated(ask: Box<Ask>, kind: TurnErrorKind, message: &str) -> Outcome {
    Outcome::failed(ask, TurnError::new(kind, message))
}

/// The end of a turn that was answered afresh, with what its answer rests on: the chunks that were retrieved, of
/// `chunks_wanted`. A scripted answer rests on none, and no chunk can make it invalid.
pub(crate) fn served(mut ask: Box<Ask>, answer: Answer, chunks_wanted: usize, streamed: bool) -> Outcome {
    let answer = Arc::new(answer);
    // Commit needs none of it, and it may cross to another worker.
    let (retrieved, vector) = (std::mem::take(&mut ask.retrieved), ask.vector.take());
    let basis = vector.filter(|_| !ask.leans).map(|vector| Basis {
        vector,
        support: Arc::new(match answer.tier {
            Tier::Scripted => Support { chunks: Vec::new(), kth_score: NEVER, read_epoch: ask.read_epoch },
            _ => Support::of(&retrieved, chunks_wanted, ask.read_epoch),
        }),
        valid_at: ask.read_epoch,
    });
    let cacheable = basis.as_ref().filter(|_| ask.may_write_cache());
    // Where answer and retrieval disagree, nothing is clear.
    let cited = answer.sources.first().map(|source| &source.article_id);
    let about = ask.about.take().filter(|article| cited == Some(article));
    let offer = cacheable.map(|basis| {
        Box::new(CacheEntry {
            // Given at commit, which numbers the entries that are written.
            id: EntryId(0),
            scope: ask.key.scope,
            question: ask.turn.text.clone(),
            vector: Some(basis.vector.clone()),
            answer: answer.clone(),
            support: basis.support.clone(),
            origin: ask.turn.key(),
            about: about.clone(),
            refreshed: false,
            created_ms: ask.turn.at_ms,
        })
    });
    let (level, reason) = if ask.leans {
        (CacheLevel::Bypass, "it leans on earlier turns of the conversation".to_owned())
    } else if ask.may_read_cache() {
        (CacheLevel::Miss, std::mem::take(&mut ask.missed))
    } else {
        (CacheLevel::Bypass, "the caller asked for it".to_owned())
    };
    let verdict = Verdict {
        level,
        entry: None,
        similarity: None,
        question: None,
        origin: None,
        refreshed: false,
        reason,
        evidence: None,
    };
    Outcome { ask, ending: Ending::Served(Box::new(Served { answer, verdict, basis, offer, streamed })) }
}
