//! Deadline: turns that wait for something until their time is up.
//!
//! Turns are looked at only when a deadline may have passed, so that what waits costs nothing meanwhile.

use std::collections::VecDeque;

use turnflow_state::{TurnError, TurnErrorKind, wait_text};

use crate::message::{Ask, Outcome};

/// The earliest deadline of some turns, or one earlier than that: those that have gone are forgotten at the next look.
#[derive(Debug, Default)]
pub(crate) struct Earliest(Option<u64>);

impl Earliest {
    /// Of these turns.
    pub(crate) fn of<'a>(asks: impl Iterator<Item = &'a Ask>) -> Self {
        Self(asks.filter_map(|ask| ask.deadline_us).min())
    }

    /// One more turn waits.
    pub(crate) fn add(&mut self, ask: &Ask) {
        self.0 = self.0.into_iter().chain(ask.deadline_us).min();
    }

    /// Whether a turn may be late at this time.
    pub(crate) fn has_passed(&self, now_us: u64) -> bool {
        self.0.is_some_and(|deadline_us| deadline_us < now_us)
    }

    /// When a turn may be late; None when none has a deadline.
    pub(crate) const fn due_us(&self) -> Option<u64> {
        self.0
    }
}

/// When a turn's time is up; the end of time where it has no deadline.
pub(crate) fn until_us(ask: &Ask) -> u64 {
    ask.deadline_us.unwrap_or(u64::MAX)
}

/// Whether a turn's time is up.
pub(crate) fn is_late(ask: &Ask, now_us: u64) -> bool {
    ask.deadline_us.is_some_and(|deadline_us| deadline_us < now_us)
}

/// Takes out the turns whose time is up.
pub(crate) fn take_late(queue: &mut VecDeque<Box<Ask>>, now_us: u64) -> impl Iterator<Item = Box<Ask>> + use<> {
    let (late, others): (VecDeque<_>, _) = std::mem::take(queue).into_iter().partition(|ask| is_late(ask, now_us));
    *queue = others;
    late.into_iter()
}

/// The end of a turn that cannot be answered before its deadline.
pub(crate) fn late(ask: Box<Ask>) -> Outcome {
    let limit_us = ask.deadline_us.map_or(0, |deadline_us| deadline_us.saturating_sub(ask.admitted_us));
    let message = format!("no answer can be written within its deadline of {}", wait_text(limit_us.div_ceil(1_000)));
    Outcome::failed(ask, TurnError::new(TurnErrorKind::Late, message))
}
