//! The way in and the way out: places for turns in flight, each tenant's share of them, and the streams that wait for their events.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::Span;
use turnflow_models::Cancel;
use turnflow_operators::message::{Beginning, Notice, Spent, Writer};
use turnflow_operators::tally::TenantTally;
use turnflow_state::{Completion, TenantId, TierSize, TurnErrorKind, TurnEvent, Usage, wait_text};

use crate::span;

/// Why a turn was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The turn itself is at fault.
    #[error("{field}: {message}")]
    Invalid {
        /// Which of its fields.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// No place became free in time, or the tenant has too many in flight.
    #[error("too many turns are in flight, try again in {}", wait_text(*retry_after_ms))]
    Overloaded {
        /// When trying again makes sense, in milliseconds.
        retry_after_ms: u64,
    },
    /// The pipeline is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

impl SubmitError {
    /// What went wrong, as the errors of admitted turns tell it.
    #[must_use]
    pub const fn kind(&self) -> TurnErrorKind {
        match self {
            Self::Invalid { .. } => TurnErrorKind::Invalid,
            Self::Overloaded { .. } => TurnErrorKind::Overloaded,
            Self::ShuttingDown => TurnErrorKind::Unavailable,
        }
    }
}

/// What a turn has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// It was answered. An answer from a cache, of another turn, or that the same turn id was given before costs nothing.
    Known {
        /// What tiers took for it.
        usage: Usage,
        /// What that cost, in millionths of the configured currency.
        micros: u64,
    },
    /// It failed, and what a tier took for it until it was stopped is estimated.
    Failed {
        /// What tiers took for it.
        usage: Usage,
        /// What that cost, in millionths of the configured currency.
        micros: u64,
    },
}

/// Told once what a turn has cost: before its end is, and whether or not anybody waits for that. It is called by a worker, so it must be short and
/// not block. For a turn that is not admitted it is dropped.
pub type OnCost = Box<dyn FnOnce(Cost) + Send>;

/// The events of one turn: `Accepted`, pieces of the answer, and exactly one terminal event.
///
/// What is known of the answer before its end, [`beginning`](Self::beginning) and [`completion`](Self::completion) tell.
#[derive(Debug)]
pub struct TurnStream {
    events: mpsc::UnboundedReceiver<Told>,
    /// Whether a piece was handed out since the last restart.
    told: bool,
    /// The end of an answer that came whole, behind the piece that was made of it.
    end: Option<Box<Completion>>,
    /// What the last piece said of its answer.
    beginning: Option<Beginning>,
    /// The tier that wrote the last piece.
    writer: Option<TierSize>,
    cancel: Cancel,
}

/// An event, what is known of the answer with it, and the tier that writes that.
type Told = (TurnEvent, Option<Beginning>, Option<TierSize>);

impl TurnStream {
    /// The next event; None after the terminal one.
    ///
    /// Cancel-safe. Dropping the stream before its end says that its client does not wait any more. Unless others wait for the same
    /// answer, a turn that waits in a queue is given up then, and a tier that writes token by token stops: the turn fails and is
    /// not written, and the same turn id is answered anew. What any other tier has begun it finishes, and the same turn id finds
    /// its answer.
    pub async fn next(&mut self) -> Option<TurnEvent> {
        if let Some(end) = self.end.take() {
            return Some(TurnEvent::Done(end));
        }
        let (event, beginning, writer) = self.events.recv().await?;
        match event {
            TurnEvent::Delta(_) => (self.told, self.beginning, self.writer) = (true, beginning, writer),
            TurnEvent::Restart => self.told = false,
            TurnEvent::Done(completion) if !self.told && !completion.text.is_empty() => {
                let whole = completion.text.clone();
                self.end = Some(completion);
                return Some(TurnEvent::Delta(whole));
            }
            _ => {}
        }
        Some(event)
    }

    /// How the turn ends, where its only piece was handed out already and its end was not.
    #[must_use]
    pub fn completion(&self) -> Option<&Completion> {
        self.end.as_deref()
    }

    /// What is known of an answer that is being written, from its first piece on; None for a turn that hears the answer to another one.
    #[must_use]
    pub const fn beginning(&self) -> Option<Beginning> {
        self.beginning
    }

    /// The tier that writes the answer, from its first piece on, for this turn or for another one that it hears; None for an answer that comes whole.
    #[must_use]
    pub const fn writer(&self) -> Option<TierSize> {
        self.writer
    }
}

impl Drop for TurnStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// How many turns each tenant has in flight.
#[derive(Debug)]
pub(crate) struct TenantPlaces {
    max: usize,
    taken: Mutex<HashMap<TenantId, usize>>,
}

impl TenantPlaces {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Mutex::default() }
    }

    /// A place for a turn of a tenant, if it has one left.
    pub(crate) fn enter(self: &Arc<Self>, tenant: &TenantId) -> Option<TenantPlace> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(tenant.clone()).or_default();
        (*count < self.max).then(|| {
            *count += 1;
            TenantPlace { places: Arc::clone(self), tenant: tenant.clone() }
        })
    }
}

/// A tenant's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct TenantPlace {
    places: Arc<TenantPlaces>,
    tenant: TenantId,
}

impl Drop for TenantPlace {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

struct Waiting {
    // Unbounded in type, bounded in fact: the pieces of one answer and a terminal event.
    events: mpsc::UnboundedSender<Told>,
    /// The knowledge base's epoch that was acknowledged when it was admitted: it reads nothing older.
    epoch: u64,
    /// Cancelled when the client has left, and whoever waits for the same answer.
    cancel: Cancel,
    /// When its first piece was told that is not void, in microseconds since its admission.
    first_piece_us: Option<u64>,
    /// Who wrote the pieces that it was told, where they are not void.
    writer: Option<Writer>,
    /// Told what it has cost.
    on_cost: OnCost,
    /// Where its end is booked.
    tally: TenantTally,
    /// Ends with it.
    span: Span,
    _places: (OwnedSemaphorePermit, Option<TenantPlace>),
}

impl Waiting {
    /// Takes what it was told back when it does not belong to the answer that comes.
    fn turns_to(&mut self, event: &TurnEvent, writer: Option<Writer>) {
        if !matches!(event, TurnEvent::Delta(_) | TurnEvent::Done(_)) {
            return;
        }
        if std::mem::replace(&mut self.writer, writer).is_some_and(|before| writer != Some(before)) {
            self.first_piece_us = None;
            let _ = self.events.send((TurnEvent::Restart, None, None));
        }
    }

    /// Takes in what is told to it.
    fn hears(&mut self, event: &TurnEvent, writer: Option<Writer>, elapsed_us: u64, repeated: bool) {
        self.turns_to(event, writer);
        match event {
            TurnEvent::Accepted | TurnEvent::Restart => {}
            TurnEvent::Delta(_) => self.first_piece_us = self.first_piece_us.or(Some(elapsed_us)),
            TurnEvent::Done(_) if repeated => self.tally.repeated(),
            TurnEvent::Done(completion) => {
                self.tally.answered(completion, self.first_piece_us.unwrap_or(elapsed_us));
            }
            // It is given up for no other reason.
            TurnEvent::Error(error) if error.kind == TurnErrorKind::Internal && self.cancel.is_cancelled() => {
                self.tally.cancelled();
            }
            TurnEvent::Error(error) => self.tally.failed(error.kind),
        }
    }

    /// Tells its end, and what it has cost: so much, where it failed.
    fn ends(self, event: TurnEvent, spent: Spent, repeated: bool) {
        span::end(&self.span, &event);
        (self.on_cost)(match &event {
            TurnEvent::Done(_) if repeated => Cost::Known { usage: Usage::default(), micros: 0 },
            TurnEvent::Done(answered) => Cost::Known { usage: answered.usage, micros: answered.cost_micros },
            _ => Cost::Failed { usage: spent.usage, micros: spent.micros },
        });
        // The client may have left: that is its right.
        let _ = self.events.send((event, None, None));
    }
}

/// Locks of their own for parts of the numbers, so that admission and delivery seldom meet.
const SHARDS: usize = 16;

/// The streams that wait, by the number of their turn. One for each process.
pub(crate) struct Streams {
    shards: [Mutex<HashMap<u64, Waiting>>; SHARDS],
    next: AtomicU64,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { shards: Default::default(), next: AtomicU64::new(1) }
    }

    /// Opens a stream that holds a place until its terminal event, which is told to the tally, to the span and to whoever is to know the cost.
    pub(crate) fn open(
        &self,
        places: (OwnedSemaphorePermit, Option<TenantPlace>),
        epoch: u64,
        (tally, span, on_cost): (TenantTally, Span, OnCost),
    ) -> (u64, TurnStream) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        // The receiver is right here.
        let _ = sender.send((TurnEvent::Accepted, None, None));
        let cancel = Cancel::new();
        let stream =
            TurnStream { events, told: false, end: None, beginning: None, writer: None, cancel: cancel.clone() };
        let waiting = Waiting {
            events: sender,
            epoch,
            cancel,
            first_piece_us: None,
            writer: None,
            on_cost,
            tally,
            span,
            _places: places,
        };
        self.shard(number).insert(number, waiting);
        (number, stream)
    }

    /// Delivers an event, so many microseconds after its turn was admitted; the terminal one closes the stream and frees the place.
    pub(crate) fn deliver(&self, notice: Notice, elapsed_us: u64) {
        let Notice { request, event, writer, beginning, spent, repeated, .. } = notice;
        let number = request.number;
        let mut shard = self.shard(number);
        if event.is_terminal() {
            let waiting = shard.remove(&number);
            drop(shard);
            debug_assert!(waiting.is_some(), "a second terminal event for turn {number}");
            if let Some(mut waiting) = waiting {
                waiting.hears(&event, writer, elapsed_us, repeated);
                waiting.ends(event, spent, repeated);
            }
        } else if let Some(waiting) = shard.get_mut(&number) {
            waiting.hears(&event, writer, elapsed_us, repeated);
            let _ = waiting.events.send((event, beginning, writer.map(|writer| writer.size)));
        }
    }

    /// What tells that nobody waits for a turn any more. One that has ended is never cancelled.
    pub(crate) fn cancel(&self, number: u64) -> Cancel {
        self.shard(number).get(&number).map(|waiting| waiting.cancel.clone()).unwrap_or_default()
    }

    /// Forgets a stream whose turn never got in.
    pub(crate) fn abandon(&self, number: u64) {
        self.shard(number).remove(&number);
    }

    /// Turns that wait for their terminal event.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// The knowledge base's epoch that the turn admitted longest ago may have read; None when no turn waits.
    pub(crate) fn oldest_epoch(&self) -> Option<u64> {
        let oldest = |shard: &Mutex<HashMap<u64, Waiting>>| lock(shard).values().map(|waiting| waiting.epoch).min();
        self.shards.iter().filter_map(oldest).min()
    }

    fn shard(&self, number: u64) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below SHARDS")]
        lock(&self.shards[(number % SHARDS as u64) as usize])
    }
}

/// A map whose other user panicked between two operations is still a whole map.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
