//! Links new vectors into the graphs of the index, on a thread of its own, so that neither writes nor searches wait for it.
//!
//! *Contract*: [`Linker::look_at`] returns at once. The thread sleeps while there is nothing to link and ends with the
//! knowledge base.
//!
//! What it does not do: it keeps no partition alive, and it promises nothing. A vector that is not linked is scanned.

use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::partition::Partition;
use crate::StateError;

/// Partitions that wait; one more is looked at after its next change.
const QUEUE_MAX: usize = 256;

/// A thread that links.
pub(super) struct Linker(Sender<Weak<Partition>>);

impl Linker {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self, StateError> {
        let (queue, changed) = bounded(QUEUE_MAX);
        std::thread::Builder::new()
            .name("linker".to_owned())
            .spawn(move || run(&changed))
            .map_err(|source| StateError::Io { action: "start the linker of", source: source.into() })?;
        Ok(Self(queue))
    }

    /// Has it look at a partition that was changed.
    pub(super) fn look_at(&self, partition: &Arc<Partition>) {
        let _ = self.0.try_send(Arc::downgrade(partition));
    }
}

fn run(changed: &Receiver<Weak<Partition>>) {
    for partition in changed {
        while partition.upgrade().is_some_and(|partition| partition.link_one()) {}
    }
}
