//! A tier that can be held up, so that a test decides what happens while an answer is being written.

use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::watch;
use turnflow_models::{Answerer, Extractive, ModelError, TierRequest};
use turnflow_state::Answer;

/// Open or closed, and how often somebody came to it.
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    arrivals: watch::Sender<usize>,
}

impl Gate {
    pub fn open() -> Self {
        Self { open: Mutex::new(true), changed: Condvar::new(), arrivals: watch::Sender::new(0) }
    }

    pub fn set_open(&self, open: bool) {
        *self.open.lock().expect("not poisoned") = open;
        self.changed.notify_all();
    }

    /// Questions that the tier was asked.
    pub fn arrivals(&self) -> usize {
        *self.arrivals.borrow()
    }

    /// Waits until the tier was asked this many questions.
    pub async fn arrived(&self, count: usize) {
        self.arrivals.subscribe().wait_for(|&arrivals| arrivals >= count).await.expect("the gate is alive");
    }

    fn pass(&self) {
        self.arrivals.send_modify(|arrivals| *arrivals += 1);
        let open = self.open.lock().expect("not poisoned");
        drop(self.changed.wait_while(open, |open| !*open).expect("not poisoned"));
    }
}

/// Opens the gate when it is dropped.
pub struct Opener(pub Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.set_open(true);
    }
}

/// The extractive tier behind a gate.
pub struct Gated {
    tier: Extractive,
    gate: Arc<Gate>,
}

impl Gated {
    pub fn new(tier: Extractive, gate: Arc<Gate>) -> Self {
        Self { tier, gate }
    }
}

impl Answerer for Gated {
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        self.gate.pass();
        Answerer::answer(&self.tier, request, on_delta)
    }
}
