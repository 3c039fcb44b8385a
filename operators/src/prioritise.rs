//! Prioritise: the queue in front of the tiers.
//!
//! There are two lanes, and the tier serves the one of the background only when no turn waits. In its lane a turn leaves in
//! the order in which it came, whatever its [`Class`]; the class is what a later policy may order by. Bounded by
//! admission: no more turns wait here than are in flight, and no more of the background than it may have under way.

use std::collections::VecDeque;

use turnflow_models::Lane;

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
    lanes: [VecDeque<Box<Ask>>; Lane::ALL.len()],
}

impl Queue {
    /// Adds a turn.
    pub fn push(&mut self, ask: Box<Ask>) {
        self.lanes[ask.purpose.lane() as usize].push_back(ask);
    }

    /// Takes the next turn of a lane.
    pub fn pop(&mut self, lane: Lane) -> Option<Box<Ask>> {
        self.lanes[lane as usize].pop_front()
    }

    /// Puts back the turn that was taken last.
    pub fn put_back(&mut self, ask: Box<Ask>) {
        self.lanes[ask.purpose.lane() as usize].push_front(ask);
    }

    /// Turns that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Whether no turn waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no turn waits in a lane.
    #[must_use]
    pub fn is_lane_empty(&self, lane: Lane) -> bool {
        self.lanes[lane as usize].is_empty()
    }
}
