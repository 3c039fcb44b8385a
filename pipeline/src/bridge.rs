//! The bridge from tokio into a worker: a bounded queue whose first sender after a drain wakes the parked worker.
//!
//! While the load is such that turns are refused, nobody wakes the worker any more: it looks every [`GATHERING`] for as long as turns come. A step of
//! the dataflow costs about as much whether it moves one turn or many, and what refusals do not cost is left for answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::operators::generic::source;
use turnflow_operators::load::Load;
use turnflow_operators::message::Ask;
use turnflow_operators::shell::{Clock, Turns, Wake};
use turnflow_state::LoadLevel;

/// How long turns gather while others are refused.
const GATHERING: Duration = Duration::from_millis(1);

/// One worker's entrance.
#[derive(Clone)]
pub(crate) struct Port(Arc<PortInner>);

struct PortInner {
    sender: Sender<Box<Ask>>,
    receiver: Receiver<Box<Ask>>,
    wake: OnceLock<Wake>,
    closed: AtomicBool,
}

impl Port {
    /// An entrance with room for `room` turns; admission never sends more.
    pub(crate) fn new(room: usize) -> Self {
        let (sender, receiver) = bounded(room);
        Self(Arc::new(PortInner { sender, receiver, wake: OnceLock::new(), closed: AtomicBool::new(false) }))
    }

    /// Hands a turn to the worker; gives it back when there is no room.
    pub(crate) fn send(&self, ask: Box<Ask>) -> Result<(), Box<Ask>> {
        match self.0.sender.try_send(ask) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(ask) | TrySendError::Disconnected(ask)) => Err(ask),
        }
    }

    /// Closes the entrance: the dataflow ends when the turns inside have ended.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // Before the worker has put up its dataflow there is nobody to wake; the source looks for turns when it starts.
        if let Some(wake) = self.0.wake.get() {
            wake.wake();
        }
    }

    /// The stream of what is sent, on the worker that owns this port.
    pub(crate) fn stream<'scope>(&self, scope: Scope<'scope, ()>, load: Load, clock: Clock) -> Turns<'scope, Box<Ask>> {
        let port = self.clone();
        source::<_, CapacityContainerBuilder<Vec<Box<Ask>>>, _, _>(scope, "Bridge", move |capability, info| {
            let wake = Wake::new(scope.worker().sync_activator_for(info.address.to_vec()));
            wake.wake();
            let wake = port.0.wake.get_or_init(|| wake).clone();
            let again = scope.activator_for(info.address);
            let mut capability = Some(capability);
            move |output| {
                wake.disarm();
                // Read before the queue, so that nothing sent before the close is left behind.
                let closed = port.0.closed.load(Ordering::Acquire);
                if let Some(capability) = &capability {
                    let mut turns = port.0.receiver.try_iter().peekable();
                    if turns.peek().is_some() && load.lock().level(clock.now_us()) == LoadLevel::Shedding {
                        wake.arm();
                        again.activate_after(GATHERING);
                    }
                    output.session(capability).give_iterator(turns);
                }
                if closed {
                    capability = None;
                }
            }
        })
    }
}
