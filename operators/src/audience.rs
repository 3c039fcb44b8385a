//! Audience: who else hears the pieces of an answer while a tier writes it.
//!
//! The turns that [follow](crate::flights) another are told its pieces as they come, and first those that came before.
//! Contract: all that is told leaves from [`Generate`](crate::generate::Generate), so that the pieces of a turn keep their
//! order. A listener that has heard anything has heard everything when the answer is complete. One that was told another
//! answer's pieces before is told first that they are void.
//!
//! Flights and generate of one worker share the audiences; nothing of them crosses to another.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use turnflow_state::TurnEvent;

use crate::message::{Ask, Notice, RequestId, ToCommit};
use crate::shell::Mailbox;

/// Whether a listener was told anything.
#[derive(Clone, Debug, Default)]
pub struct Heard(Rc<Cell<bool>>);

impl Heard {
    /// Whether it was.
    #[must_use]
    pub fn anything(&self) -> bool {
        self.0.get()
    }
}

#[derive(Debug)]
struct Listener {
    request: RequestId,
    admitted_us: u64,
    /// Owner of its conversation.
    owner: u64,
    /// Whether what it was told before is void.
    void: bool,
    /// Pieces that it was told.
    told: usize,
    heard: Heard,
}

/// An answer that is being written.
#[derive(Debug, Default)]
struct Audience {
    pieces: Vec<String>,
    listeners: Vec<Listener>,
}

impl Audience {
    fn tell(&mut self, out: &mut Vec<ToCommit>) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.told < self.pieces.len()) {
            let (request, admitted_us, owner) = (listener.request, listener.admitted_us, listener.owner);
            let restart = std::mem::take(&mut listener.void).then_some(TurnEvent::Restart);
            let untold = self.pieces[listener.told..].iter().cloned().map(TurnEvent::Delta);
            let events = restart.into_iter().chain(untold);
            let notice =
                |event| Notice { request, admitted_us, event, beginning: None, read_bytes: 0, repeated: false };
            out.extend(events.map(|event| ToCommit::Piece(notice(event), owner)));
            listener.told = self.pieces.len();
            listener.heard.0.set(true);
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
    pub fn open(&self, leader: RequestId) {
        self.open.borrow_mut().insert(leader, Audience::default());
    }

    /// Has a turn listen to another; None when there is nothing to be heard any more.
    #[must_use]
    pub fn listen(&self, leader: RequestId, ask: &Ask) -> Option<Heard> {
        let mut open = self.open.borrow_mut();
        let audience = open.get_mut(&leader)?;
        let heard = Heard::default();
        audience.listeners.push(Listener {
            request: ask.request,
            admitted_us: ask.admitted_us,
            owner: ask.conversation_owner(),
            void: ask.void,
            told: 0,
            heard: heard.clone(),
        });
        if !audience.pieces.is_empty() {
            self.joined.send(leader);
        }
        Some(heard)
    }

    /// A turn listens to another no more.
    pub(crate) fn leave(&self, leader: RequestId, listener: RequestId) {
        if let Some(audience) = self.open.borrow_mut().get_mut(&leader) {
            audience.listeners.retain(|other| other.request != listener);
        }
    }

    /// The next piece of a turn's answer.
    pub(crate) fn said(&self, leader: RequestId, piece: &str, out: &mut Vec<ToCommit>) {
        if let Some(audience) = self.open.borrow_mut().get_mut(&leader) {
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

    /// What was said so far is void: another answer follows.
    pub(crate) fn restart(&self, leader: RequestId) {
        if let Some(audience) = self.open.borrow_mut().get_mut(&leader) {
            audience.pieces.clear();
            for listener in &mut audience.listeners {
                listener.void |= std::mem::take(&mut listener.told) > 0;
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
