//! How many jobs of a tier may run at once, and the order of those that wait.
//!
//! Contract: a job that enters runs at once, or waits in its lane, or is refused because the lane is full. A slot that becomes
//! free goes to the job that has waited longest in the first lane that has one. A job that stopped waiting takes no place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::queue::{Alternation, Lane};

/// The gate; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    free: usize,
    waiting_max: usize,
    lanes: [VecDeque<oneshot::Sender<Slot>>; Lane::ALL.len()],
    alternation: Alternation,
}

impl Inner {
    fn waiting(&self) -> usize {
        self.lanes.iter().flatten().filter(|waiter| !waiter.is_closed()).count()
    }
}

/// A job's way in.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It may run.
    Now(Slot),
    /// It hears when it may. Dropping the receiver leaves the line.
    Later(oneshot::Receiver<Slot>),
}

impl Gate {
    /// A gate for so many jobs at once and so many that wait in each lane.
    pub(crate) fn new(slots: usize, waiting_max: usize) -> Self {
        let (free, waiting_max) = (slots.max(1), waiting_max.max(1));
        Self(Arc::new(Mutex::new(Inner {
            free,
            waiting_max,
            lanes: Default::default(),
            alternation: Alternation::default(),
        })))
    }

    /// Lets a job in, or gives None when its lane is full.
    pub(crate) fn enter(&self, lane: Lane) -> Option<Entry> {
        let mut inner = self.lock();
        if inner.free > 0 {
            inner.free -= 1;
            return Some(Entry::Now(Slot(self.clone())));
        }
        let waiting_max = inner.waiting_max;
        let waiting = &mut inner.lanes[lane as usize];
        if waiting.len() >= waiting_max {
            waiting.retain(|waiter| !waiter.is_closed());
        }
        if waiting.len() >= waiting_max {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiting.push_back(sender);
        Some(Entry::Later(receiver))
    }

    /// Jobs that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a slot on. One that is sent to a job that has just left comes back here when it is dropped.
    fn pass_on(&self) {
        let mut inner = self.lock();
        let Inner { lanes, alternation, .. } = &mut *inner;
        lanes.iter_mut().for_each(|waiting| waiting.retain(|waiter| !waiter.is_closed()));
        let next = alternation.next(|lane| !lanes[lane as usize].is_empty());
        let next = next.and_then(|lane| lanes[lane as usize].pop_front());
        match next {
            None => inner.free += 1,
            Some(waiter) => {
                drop(inner);
                let _left = waiter.send(Slot(self.clone()));
            }
        }
    }
}

/// Leave to run, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Gate);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(gate: &Gate, lane: Lane) -> oneshot::Receiver<Slot> {
        match gate.enter(lane) {
            Some(Entry::Later(receiver)) => receiver,
            other => panic!("expected to wait, got {other:?}"),
        }
    }

    fn now(gate: &Gate, lane: Lane) -> Slot {
        match gate.enter(lane) {
            Some(Entry::Now(slot)) => slot,
            other => panic!("expected a slot, got {other:?}"),
        }
    }

    #[test]
    fn turns_come_first_and_in_order() {
        let gate = Gate::new(1, 2);
        let slot = now(&gate, Lane::Background);
        let mut background = later(&gate, Lane::Background);
        let [mut first, mut second] = [later(&gate, Lane::New), later(&gate, Lane::New)];
        assert!(gate.enter(Lane::New).is_none(), "the lane is full");
        assert_eq!(gate.waiting(), 3);
        drop(slot);
        let slot = first.try_recv().expect("the first turn");
        assert!(second.try_recv().is_err() && background.try_recv().is_err());
        drop(slot);
        let slot = second.try_recv().expect("the second turn");
        drop(slot);
        drop(background.try_recv().expect("nobody else waits"));
        drop(now(&gate, Lane::New));
        assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn who_leaves_takes_no_place() {
        let gate = Gate::new(1, 2);
        let slot = now(&gate, Lane::New);
        let [left, mut stayed] = [later(&gate, Lane::New), later(&gate, Lane::New)];
        drop(left);
        assert_eq!(gate.waiting(), 1);
        let mut newcomer = later(&gate, Lane::New);
        drop(slot);
        let slot = stayed.try_recv().expect("next in line");
        drop(newcomer.try_recv());
        drop(stayed);
        drop(slot);
        drop(newcomer.try_recv().expect("next in line"));
        // A slot that is lost on the way to one who leaves comes back.
        let slot = now(&gate, Lane::New);
        let waiter = later(&gate, Lane::New);
        drop(slot);
        drop(waiter);
        drop(now(&gate, Lane::New));
    }
}
