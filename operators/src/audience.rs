//! Audience: who else hears the pieces of an answer while a tier writes it.
//!
//! Turns that wait for another one's answer, in [`Dedupe`](crate::dedupe::Dedupe) or in [`Flights`](crate::flights), are told its
//! pieces as they come, and first those that came before. Contract: all that is told leaves from
//! [`Generate`](crate::generate::Generate), so that the pieces of a turn keep their order. A listener that has heard anything has
//! heard everything when the answer is complete. Nobody hears what is written from a knowledge base older than the one that was
//! acknowledged when its turn was admitted: that may be stale to it, and it waits until the whole answer is known to hold.
//!
//! What is told names its [`Writer`]. An answer may come to nothing after all and another one follow: whoever hands out the events
//! takes back what another writer told.
//!
//! Flights and generate of one worker share the audiences; nothing of them crosses to another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use turnflow_state::TurnEvent;

use crate::message::{Ask, Notice, RequestId, Spent, ToCommit, Writer};
use crate::shell::Mailbox;

/// A turn that listens to the answer of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where its events go.
    pub request: RequestId,
    /// When it was admitted, in microseconds on the clock of the process it entered.
    pub admitted_us: u64,
    /// Owner of its conversation.
    pub owner: u64,
    /// The knowledge base's epoch that was acknowledged then: it hears nothing older.
    pub acknowledged: u64,
}

impl Listener {
    /// A turn that waits.
    #[must_use]
    pub fn of(ask: &Ask) -> Self {
        let Ask { request, admitted_us, acknowledged, .. } = *ask;
        Self { request, admitted_us, owner: ask.conversation_owner(), acknowledged }
    }
}

/// An answer that is being written.
#[derive(Debug)]
struct Audience {
    /// The epoch of the knowledge base that it is written from.
    read_epoch: u64,
    /// Who writes it, from the first piece on.
    writer: Option<Writer>,
    pieces: Vec<String>,
    /// With how many pieces each was told.
    listeners: Vec<(Listener, usize)>,
}

impl Audience {
    fn tell(&mut self, out: &mut Vec<ToCommit>) {
        let Self { writer, pieces, listeners, .. } = self;
        for (listener, told) in listeners {
            let (request, admitted_us) = (listener.request, listener.admitted_us);
            out.extend(pieces[*told..].iter().map(|piece| {
                let event = TurnEvent::Delta(piece.clone());
                let (writer, beginning, spent) = (*writer, None, Spent::default());
                let notice = Notice { request, admitted_us, event, writer, beginning, spent, repeated: false };
                ToCommit::Piece(notice, listener.owner)
            }));
            *told = pieces.len();
        }
    }
}

/// The audiences of one worker, by the turn whose answer is being written. Bounded by the turns in flight and the pieces
/// of their answers.
#[derive(Clone, Debug, Default)]
pub struct Audiences {
    open: Rc<RefCell<HashMap<RequestId, Audience>>>,
    /// Turns that somebody began to listen to in the middle.
    pub(crate) joined: Mailbox<RequestId>,
}

impl Audiences {
    /// Lets others listen to a turn, from now to the end of its answer.
    pub fn open(&self, ask: &Ask) {
        let read_epoch = ask.read_epoch;
        let audience = Audience { read_epoch, writer: None, pieces: Vec::new(), listeners: Vec::new() };
        self.open.borrow_mut().insert(ask.request, audience);
    }

    /// Has a turn listen to another; false when it may not, or when there is nothing to be heard any more.
    pub fn listen(&self, leader: RequestId, listener: Listener) -> bool {
        let mut open = self.open.borrow_mut();
        let current = open.get_mut(&leader).filter(|audience| audience.read_epoch >= listener.acknowledged);
        let Some(audience) = current else { return false };
        if audience.listeners.iter().all(|(other, _)| other.request != listener.request) {
            audience.listeners.push((listener, 0));
        }
        if !audience.pieces.is_empty() {
            self.joined.send(leader);
        }
        true
    }

    /// A turn listens to another no more.
    pub(crate) fn leave(&self, leader: RequestId, listener: RequestId) {
        if let Some(audience) = self.open.borrow_mut().get_mut(&leader) {
            audience.listeners.retain(|(other, _)| other.request != listener);
        }
    }

    /// The next piece of an answer. What another tier wrote before is void.
    pub(crate) fn said(&self, writer: Writer, piece: &str, out: &mut Vec<ToCommit>) {
        if let Some(audience) = self.open.borrow_mut().get_mut(&writer.request) {
            if audience.writer.replace(writer).is_some_and(|before| before != writer) {
                audience.pieces.clear();
                audience.listeners.iter_mut().for_each(|(_, told)| *told = 0);
            }
            audience.pieces.push(piece.to_owned());
            audience.tell(out);
        }
    }

    /// Tells those who began to listen in the middle what came before.
    pub(crate) fn catch_up(&self, out: &mut Vec<ToCommit>) {
        while let Some(leader) = self.joined.take() {
            if let Some(audience) = self.open.borrow_mut().get_mut(&leader) {
                audience.tell(out);
            }
        }
    }

    /// No piece follows.
    pub(crate) fn close(&self, leader: RequestId, out: &mut Vec<ToCommit>) {
        if let Some(mut audience) = self.open.borrow_mut().remove(&leader) {
            audience.tell(out);
        }
    }
}
