//! Clients: who still waits for the answer of a turn, and who has left.
//!
//! A turn that others wait for is not given up before they have left as well: whoever has a turn wait for another one says so to
//! `Clients::join`.

use std::fmt;
use std::rc::Rc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use turnflow_models::Cancel;
use turnflow_state::{TurnError, TurnErrorKind};

use crate::load::Load;
use crate::message::{Ask, Outcome, RequestId};
use crate::shell::Wake;

/// Knows what tells that nobody waits for a turn's answer any more. By default everybody waits to the end.
#[derive(Clone)]
pub struct Clients(Rc<dyn Fn(RequestId) -> Cancel>);

impl Clients {
    /// Clients that may leave.
    #[must_use]
    pub fn new(cancel: impl Fn(RequestId) -> Cancel + 'static) -> Self {
        Self(Rc::new(cancel))
    }

    /// What tells that nobody waits for a turn's answer any more. What is asked in the background, nobody waits for anyway.
    #[must_use]
    pub fn cancel(&self, ask: &Ask) -> Cancel {
        if ask.purpose.is_background() { Cancel::new() } else { (self.0)(ask.request) }
    }

    /// A turn waits for the answer of another one.
    pub(crate) fn join(&self, leader: RequestId, ask: &Ask) {
        (self.0)(leader).joined_by(&self.cancel(ask));
    }
}

/// The end of a turn that nobody waits for any more.
pub(crate) fn abandoned(ask: Box<Ask>) -> Outcome {
    Outcome::failed(ask, TurnError::new(TurnErrorKind::Internal, "nobody waits for the answer"))
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(|_| Cancel::new())
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// Turns that a stage watches and nobody waits for any more. The channel is bounded by the turns that are watched.
#[derive(Debug)]
pub(crate) struct Leavers {
    wake: Wake,
    sender: Sender<RequestId>,
    receiver: Receiver<RequestId>,
}

impl Leavers {
    /// None yet; the stage is woken when somebody leaves.
    pub(crate) fn new(wake: &Wake) -> Self {
        let (sender, receiver) = unbounded();
        Self { wake: wake.clone(), sender, receiver }
    }

    /// Hears when nobody waits for a turn any more, even if the stage does not have it by then.
    pub(crate) fn watch(&self, ask: &Ask, clients: &Clients) {
        let (request, sender, wake) = (ask.request, self.sender.clone(), self.wake.clone());
        clients.cancel(ask).on_cancel(move || {
            // Fails only when the stage is gone with its worker.
            if sender.send(request).is_ok() {
                wake.wake();
            }
        });
    }

    /// The ends of the turns that nobody waits for any more, where they still wait: `remove` takes them out of there.
    pub(crate) fn ends(
        &self,
        load: &Load,
        mut remove: impl FnMut(RequestId) -> Option<Box<Ask>>,
    ) -> impl Iterator<Item = Outcome> {
        self.receiver.try_iter().filter_map(move |request| {
            let ask = remove(request)?;
            load.lock().note_abandoned();
            Some(abandoned(ask))
        })
    }
}
