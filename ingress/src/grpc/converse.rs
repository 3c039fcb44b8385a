//! One stream of `Converse`: many turns of many conversations.
//!
//! One task reads turns and submits them, in the order they came, so that the turns of a conversation keep it. Each
//! admitted turn has a task of its own that passes its events on; that of a conversation's next turn waits for that of
//! the one before, since tasks do not wake in the order of the events that wake them. A turn holds a place from before it is read until its
//! terminal event is queued, and the next turn is read only into a free place: a client that does not read, or asks
//! faster than it is answered, is held back by flow control.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tonic::{Status, Streaming};
use turnflow_pipeline::{Pipeline, Submission};
use turnflow_state::{ConversationId, Limits, TurnEvent, TurnKey};

use super::convert;
use super::proto::converse_response::Event;
use super::proto::{ConverseRequest, ConverseResponse};
use super::refusal::event_of;
use crate::door::{Admitted, Amounts, Caller, LastWord, Outlet, Refusal, Untold, admit, next_event, now_ms};

/// What goes to the client.
type Answer = Result<ConverseResponse, Status>;

/// One open stream.
pub(super) struct Session {
    pipeline: Pipeline,
    limits: Arc<Limits>,
    caller: Caller,
    out: Outlet<Answer>,
    /// Told when the client has made no room for a response in time.
    slow: Arc<Notify>,
    /// One permit for each turn that may be unanswered.
    places: Arc<Semaphore>,
    places_max: u32,
}

impl Session {
    pub(super) fn new(pipeline: Pipeline, limits: Arc<Limits>, caller: Caller, out: Outlet<Answer>) -> Self {
        let places_max = u32::try_from(limits.turns_per_stream_max).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(places_max as usize));
        Self { pipeline, limits, caller, out, slow: Arc::default(), places, places_max }
    }

    /// Serves the stream to its end: the client's half-close, a broken request, the server's shutdown, or a client
    /// that is gone, does not read, or has a key that counts no more.
    pub(super) async fn run(
        self,
        mut requests: Streaming<ConverseRequest>,
        mut stopping: watch::Receiver<bool>,
        last: Option<LastWord<Answer>>,
    ) {
        let served = async {
            let end = self.read(&mut requests, &mut stopping).await;
            // All places free means that every turn that was read is answered.
            let _all = self.places.acquire_many(self.places_max).await;
            end
        };
        let end = tokio::select! {
            biased;
            () = self.out.closed() => return,
            () = self.caller.ended() => {
                return last.into_iter().for_each(|last| last.say(Err(Refusal::Unauthenticated.into())));
            }
            () = self.slow.notified() => return last.into_iter().for_each(LastWord::too_slow),
            end = served => end,
        };
        if let Err(status) = end {
            // A client that is gone by now needs no status.
            let _ = self.out.tell(Err(status)).await;
        }
    }

    /// Tells the client something; one that does not read is cut off in `run`, and one that is gone is noticed there.
    async fn tell(&self, response: ConverseResponse) {
        if self.out.tell(Ok(response)).await == Err(Untold::Slow) {
            self.slow.notify_one();
        }
    }

    /// Reads and submits turns until the client has no more (`Ok`), sends what is not a turn, or the server stops.
    async fn read(
        &self,
        requests: &mut Streaming<ConverseRequest>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let mut order = Order::new(self.places_max as usize);
        loop {
            // Only the wait for a turn is interrupted: a turn that was read gets its answer.
            let (place, request) = tokio::select! {
                biased;
                _ = stopping.wait_for(|&stopping| stopping) => return Err(Refusal::Unavailable.into()),
                next = self.next(requests) => next?,
            };
            match request {
                Some(request) => self.take(request, place, &mut order).await,
                None => return Ok(()),
            }
        }
    }

    /// A place, and then the turn that takes it.
    async fn next(
        &self,
        requests: &mut Streaming<ConverseRequest>,
    ) -> Result<(Option<OwnedSemaphorePermit>, Option<ConverseRequest>), Status> {
        // No error, no `None`: the semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        Ok((place, requests.message().await?))
    }

    /// Admits one turn, or tells the client why not.
    async fn take(&self, request: ConverseRequest, place: Option<OwnedSemaphorePermit>, order: &mut Order) {
        // Echoed as they came even when they are not valid ids: the client knows its turns by nothing else.
        let (conversation_id, turn_id) = match &request.turn {
            Some(turn) => (turn.conversation_id.clone(), turn.turn_id.clone()),
            None => (String::new(), String::new()),
        };
        match self.admit(request).await {
            Ok((key, events)) => self.begin(key, events, place, order).await,
            Err(refusal) => {
                let event = Some(Event::Error(event_of(refusal)));
                self.tell(ConverseResponse { conversation_id, turn_id, event }).await;
            }
        }
    }

    /// Accepts a turn here, so that turns are accepted in the order they came, and leaves the rest to a task.
    async fn begin(&self, key: TurnKey, mut events: Admitted, place: Option<OwnedSemaphorePermit>, order: &mut Order) {
        // It is there by now: the pipeline promises it as the first event.
        let Some(accepted) = next_event(&mut events, &self.out).await else {
            return;
        };
        debug_assert_eq!(accepted, TurnEvent::Accepted);
        self.tell(convert::converse_event(&key, accepted)).await;
        let (previous, ended) = order.append(&key.conversation);
        let (out, slow) = (self.out.clone(), Arc::clone(&self.slow));
        tokio::spawn(async move {
            if let Some(previous) = previous {
                // An error is the signal: the sender is dropped, never used.
                let _ = previous.await;
            }
            if forward(key, events, out).await == Err(Untold::Slow) {
                slow.notify_one();
            }
            drop((ended, place));
        });
    }

    async fn admit(&self, request: ConverseRequest) -> Result<(TurnKey, Admitted), Refusal> {
        let time_max = convert::time_max(request.turn.as_ref());
        let turn = convert::turn(self.caller.tenant.clone(), request.turn, &self.limits, now_ms())?;
        let key = turn.key();
        // A turn among many counts as a request, as one on its own does.
        let also = Amounts { requests: 1, ..Amounts::default() };
        let events = admit(&self.pipeline, &self.caller, Submission { time_max, ..turn.into() }, also).await?;
        Ok((key, events))
    }
}

/// Passes the events of an accepted turn on, up to its terminal event.
async fn forward(key: TurnKey, mut events: Admitted, out: Outlet<Answer>) -> Result<(), Untold> {
    while let Some(event) = next_event(&mut events, &out).await {
        let ended = event.is_terminal();
        out.tell(Ok(convert::converse_event(&key, event))).await?;
        if ended {
            break;
        }
    }
    Ok(())
}

/// The last turn of each conversation on this stream, as the signal of its end.
struct Order {
    last: HashMap<ConversationId, oneshot::Receiver<()>>,
    /// No more turns than this are without an end.
    open_max: usize,
}

impl Order {
    fn new(open_max: usize) -> Self {
        Self { last: HashMap::new(), open_max }
    }

    /// Appends a turn to its conversation: the end of the turn before, and its own end, which dropping signals.
    fn append(&mut self, conversation: &ConversationId) -> (Option<oneshot::Receiver<()>>, oneshot::Sender<()>) {
        // A stream may see any number of conversations. All but `open_max` of them have ended by now, so that this
        // halves the map at least, and costs little per turn.
        if self.last.len() >= 2 * self.open_max {
            self.last.retain(|_, ended| matches!(ended.try_recv(), Err(TryRecvError::Empty)));
        }
        let (ended, end) = oneshot::channel();
        (self.last.insert(conversation.clone(), end), ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_a_conversation_are_chained() {
        let [a, b] = ["a", "b"].map(|id| ConversationId::new(id).expect("valid id"));
        let mut order = Order::new(4);
        let (previous, first) = order.append(&a);
        assert!(previous.is_none());
        assert!(order.append(&b).0.is_none());
        let mut previous = order.append(&a).0.expect("there is a turn before");
        assert_eq!(previous.try_recv(), Err(TryRecvError::Empty));
        drop(first);
        assert_eq!(previous.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn ended_conversations_are_forgotten() {
        let mut order = Order::new(4);
        let conversation = |n: usize| ConversationId::new(format!("c{n}")).expect("valid id");
        let (_, open) = order.append(&conversation(0));
        for n in 1..1_000 {
            drop(order.append(&conversation(n)));
            assert!(order.last.len() <= 8);
        }
        let mut previous = order.append(&conversation(0)).0.expect("the first turn is open");
        assert_eq!(previous.try_recv(), Err(TryRecvError::Empty));
        drop(open);
    }
}
