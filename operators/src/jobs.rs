//! Work that a stage hands to another thread: which item waits for which job, and what came back.
//!
//! The item stays in the stage; only a number and a [`Report`] cross to the other thread. A report that is
//! dropped unfinished, by a panic or a lost queue, says so, so that no turn waits for ever.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::shell::Wake;

/// What came back for a job.
#[derive(Debug)]
pub enum Event<P, R> {
    /// Something on the way; more follows.
    Piece(P),
    /// The result. The last event of a job.
    Finished(R),
    /// The job was lost with the thread that had it. The last event of a job.
    Lost,
}

/// The items whose jobs are under way. The channel is bounded by the jobs, each of which sends a bounded number
/// of pieces.
#[derive(Debug)]
pub struct Jobs<T, P, R> {
    wake: Wake,
    sender: Sender<(u64, Event<P, R>)>,
    receiver: Receiver<(u64, Event<P, R>)>,
    under_way: HashMap<u64, T>,
    next: u64,
}

impl<T, P, R> Jobs<T, P, R> {
    /// No jobs; the stage is woken when an event arrives.
    #[must_use]
    pub fn new(wake: &Wake) -> Self {
        let (sender, receiver) = unbounded();
        Self { wake: wake.clone(), sender, receiver, under_way: HashMap::new(), next: 0 }
    }

    /// Starts a job: `hand_over` gives the report to the other thread, or returns false when that is full, in
    /// which case the item comes back.
    ///
    /// # Errors
    /// The item, when it was not taken.
    pub fn start(&mut self, item: T, hand_over: impl FnOnce(&T, Report<P, R>) -> bool) -> Result<(), T> {
        let number = self.next;
        self.next += 1;
        let fate = Arc::new(AtomicU8::new(OFFERED));
        let (sender, wake) = (self.sender.clone(), self.wake.clone());
        let report = Report { number, sender, wake, fate: fate.clone(), finished: false };
        if !hand_over(&item, report) {
            return Err(item);
        }
        self.under_way.insert(number, item);
        // Lost already, before it was known to be taken: the report has left saying so to us.
        if fate.swap(TAKEN, Ordering::AcqRel) == LOST {
            send(&self.sender, &self.wake, number, Event::Lost);
        }
        Ok(())
    }

    /// Starts jobs for the items of a queue, in order, until one is not taken.
    pub fn start_all(&mut self, queue: &mut VecDeque<T>, mut hand_over: impl FnMut(&T, Report<P, R>) -> bool) {
        while let Some(item) = queue.pop_front() {
            if let Err(item) = self.start(item, &mut hand_over) {
                queue.push_front(item);
                break;
            }
        }
    }

    /// The next event with its item, if one has come: a piece lends the item, the last event hands it back.
    pub fn next_event(&mut self) -> Option<Came<'_, T, P, R>> {
        let (number, event) = self.receiver.try_recv().ok()?;
        match event {
            Event::Piece(piece) => self.under_way.get(&number).map(|item| Came::Piece(item, piece)),
            Event::Finished(result) => self.under_way.remove(&number).map(|item| Came::Last(item, Some(result))),
            Event::Lost => self.under_way.remove(&number).map(|item| Came::Last(item, None)),
        }
    }

    /// Jobs under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether no job is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

/// An event and the item it is about.
#[derive(Debug)]
pub enum Came<'a, T, P, R> {
    /// A piece; the item stays under way.
    Piece(&'a T, P),
    /// The end, with the result, or None when the job was lost.
    Last(T, Option<R>),
}

/// What became of a report. Only one that was taken and then dropped unfinished is a lost job: one that comes back with
/// a refusal must not wake the stage, or it would offer the item again at once, for ever.
const OFFERED: u8 = 0;
const TAKEN: u8 = 1;
const LOST: u8 = 2;

/// How a job reports back, from whatever thread it is on.
#[derive(Debug)]
pub struct Report<P, R> {
    number: u64,
    sender: Sender<(u64, Event<P, R>)>,
    wake: Wake,
    fate: Arc<AtomicU8>,
    finished: bool,
}

impl<P, R> Report<P, R> {
    /// A way to send pieces while somebody else holds the report.
    #[must_use]
    pub fn pieces(&self) -> Pieces<P, R> {
        Pieces { number: self.number, sender: self.sender.clone(), wake: self.wake.clone() }
    }

    /// Ends the job.
    pub fn finish(mut self, result: R) {
        self.finished = true;
        send(&self.sender, &self.wake, self.number, Event::Finished(result));
    }
}

impl<P, R> Drop for Report<P, R> {
    fn drop(&mut self) {
        if !self.finished && self.fate.swap(LOST, Ordering::AcqRel) == TAKEN {
            send(&self.sender, &self.wake, self.number, Event::Lost);
        }
    }
}

/// Sends pieces of a job's result.
#[derive(Debug)]
pub struct Pieces<P, R> {
    number: u64,
    sender: Sender<(u64, Event<P, R>)>,
    wake: Wake,
}

impl<P, R> Pieces<P, R> {
    /// Sends one piece.
    pub fn send(&self, piece: P) {
        send(&self.sender, &self.wake, self.number, Event::Piece(piece));
    }
}

fn send<P, R>(sender: &Sender<(u64, Event<P, R>)>, wake: &Wake, number: u64, event: Event<P, R>) {
    // Fails only when the stage is gone with its worker; then nobody waits for the event.
    if sender.send((number, event)).is_ok() {
        wake.wake();
    }
}
