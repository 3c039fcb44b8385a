//! Reply: hands each event to the stream that waits for it.
//!
//! Contract: exchanged back to the worker that the turn entered at, in whose process the stream lives. Here the
//! clock of admission is known again, so here the total latency is set.

use turnflow_state::TurnEvent;

use crate::message::Notice;
use crate::shell::Stage;

/// Where events go.
pub trait Deliver: 'static {
    /// Delivers an event, so many microseconds after its turn was admitted; a stream that is gone is no error. Must not block.
    fn deliver(&self, notice: Notice, elapsed_us: u64);
}

/// The core.
#[derive(Debug)]
pub struct Reply<D>(pub D);

impl<D: Deliver> Stage for Reply<D> {
    type Input = Notice;
    type Output = ();

    fn push(&mut self, mut notice: Notice, now_us: u64, _out: &mut Vec<()>) {
        let elapsed_us = now_us.saturating_sub(notice.admitted_us);
        if let TurnEvent::Done(completion) = &mut notice.event {
            completion.total_us = elapsed_us;
        }
        self.0.deliver(notice, elapsed_us);
    }
}
