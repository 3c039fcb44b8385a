//! Prioritise: the queue in front of the tiers.
//!
//! Turns leave in the order in which they came, whatever their [`Class`]; the class is what a later policy may
//! order by. Bounded by admission: no more turns wait here than are in flight.

use std::collections::VecDeque;

use crate::message::Ask;

/// What a turn's place may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The conversation has had an answer before.
    Ongoing,
    /// The conversation begins.
    New,
}

impl Class {
    /// The class of a turn.
    #[must_use]
    pub fn of(ask: &Ask) -> Self {
        if ask.turns_before > 0 { Self::Ongoing } else { Self::New }
    }
}

/// The core: turns that wait for a tier.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Box<Ask>>,
}

impl Queue {
    /// Adds a turn.
    pub fn push(&mut self, ask: Box<Ask>) {
        self.waiting.push_back(ask);
    }

    /// Takes the next turn.
    pub fn pop(&mut self) -> Option<Box<Ask>> {
        self.waiting.pop_front()
    }

    /// Puts back the turn that was taken last.
    pub fn put_back(&mut self, ask: Box<Ask>) {
        self.waiting.push_front(ask);
    }

    /// Turns that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no turn waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
