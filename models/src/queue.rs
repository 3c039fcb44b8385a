//! A bounded queue and the threads that serve it: what the engines have in common.
//!
//! Contract: each lane of a queue holds at most its limit of jobs; handing one in never blocks, and a job that finds no
//! place comes back. A thread that becomes free takes from the first lane that holds a job; but one in eight jobs that begin is of
//! a new conversation while any of those waits. Threads sleep while the queue
//! is empty, serve what is queued after the last handle is dropped, and then end. Panics are the business of
//! whoever runs jobs, with [`caught`].

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased};

use crate::error::ModelError;

/// Where a job stands in line: jobs of an earlier lane are served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Somebody waits for it in a conversation that is under way, or has waited too long.
    Ongoing,
    /// Somebody waits for it.
    New,
    /// Nobody does: it is served only when no job of a turn waits.
    Background,
}

impl Lane {
    /// Every lane, in the order in which they are served.
    pub const ALL: &[Self] = &[Self::Ongoing, Self::New, Self::Background];
}

/// One in so many jobs that begin is of a new conversation while any of those waits, so that they do not starve behind those
/// of conversations under way.
const NEW_EVERY: u32 = 8;

/// Chooses the lane that is served next.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alternation {
    /// Ongoing jobs that began since a new one did, while one waited.
    overtaken: u32,
}

impl Alternation {
    /// The lane that is served next, of those in which somebody waits. It counts as served.
    pub(crate) fn next(&mut self, waits: impl Fn(Lane) -> bool) -> Option<Lane> {
        let new_waits = waits(Lane::New);
        if waits(Lane::Ongoing) && !(new_waits && self.overtaken + 1 >= NEW_EVERY) {
            self.overtaken = if new_waits { self.overtaken + 1 } else { 0 };
            return Some(Lane::Ongoing);
        }
        self.overtaken = 0;
        [Lane::New, Lane::Background].into_iter().find(|&lane| waits(lane))
    }
}

/// The engine's end of a queue.
pub(crate) struct Lanes<J> {
    lanes: [Receiver<J>; Lane::ALL.len()],
    /// Of one thread.
    alternation: Cell<Alternation>,
}

impl<J> Lanes<J> {
    /// The next job that waits; None when none does, or another thread was quicker.
    pub(crate) fn waiting(&self) -> Option<J> {
        let mut alternation = self.alternation.get();
        let next = alternation.next(|lane| !self.lane(lane).is_empty());
        self.alternation.set(alternation);
        next.and_then(|lane| self.lane(lane).try_recv().ok())
    }

    /// Waits for the next job; None when there is none and nobody is left to hand one in.
    pub(crate) fn next(&self) -> Option<J> {
        if let Some(job) = self.waiting() {
            return Some(job);
        }
        // The senders of all lanes are dropped together, and what one still holds is served before it ends.
        let [ongoing, new, background] = &self.lanes;
        select_biased! {
            recv(ongoing) -> job => job.or_else(|_| new.recv()).or_else(|_| background.recv()).ok(),
            recv(new) -> job => job.or_else(|_| ongoing.recv()).or_else(|_| background.recv()).ok(),
            recv(background) -> job => job.or_else(|_| ongoing.recv()).or_else(|_| new.recv()).ok(),
        }
    }

    /// The jobs of one lane alone.
    pub(crate) const fn lane(&self, lane: Lane) -> &Receiver<J> {
        &self.lanes[lane as usize]
    }
}

/// A job that an engine did not take: it comes back whole, none of its callbacks called.
pub struct Rejected<J> {
    /// The job.
    pub job: Box<J>,
    /// Why: [`ModelError::Full`], [`ModelError::TooManyTexts`] or [`ModelError::Stopped`].
    pub error: ModelError,
}

impl<J> fmt::Debug for Rejected<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<J> fmt::Display for Rejected<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<J> std::error::Error for Rejected<J> {}

/// The callers' end of an engine's queue.
pub(crate) struct JobQueue<J> {
    what: &'static str,
    limit: usize,
    lanes: [Sender<J>; Lane::ALL.len()],
}

impl<J> Clone for JobQueue<J> {
    fn clone(&self) -> Self {
        Self { what: self.what, limit: self.limit, lanes: self.lanes.clone() }
    }
}

impl<J: Send + 'static> JobQueue<J> {
    /// Starts a thread for each runner, which gets the engine's end of the queue.
    pub(crate) fn start<R>(
        what: &'static str,
        limit: usize,
        runners: impl IntoIterator<Item = R>,
    ) -> Result<Self, ModelError>
    where
        R: FnOnce(&Lanes<J>) + Send + 'static,
    {
        let limit = limit.max(1);
        let lanes: [(Sender<J>, Receiver<J>); Lane::ALL.len()] = std::array::from_fn(|_| bounded(limit));
        for (number, run) in runners.into_iter().enumerate() {
            let lanes = lanes.each_ref().map(|(_, jobs)| jobs.clone());
            let lanes = Lanes { lanes, alternation: Cell::default() };
            std::thread::Builder::new()
                .name(format!("{what}-{number}"))
                .spawn(move || run(&lanes))
                .map_err(|source| ModelError::Thread { what, source })?;
        }
        Ok(Self { what, limit, lanes: lanes.map(|(hand_in, _)| hand_in) })
    }

    /// Hands in a job, or gives it back at once.
    pub(crate) fn submit(&self, lane: Lane, job: J) -> Result<(), Rejected<J>> {
        self.lanes[lane as usize].try_send(job).map_err(|refused| match refused {
            TrySendError::Full(job) => {
                Rejected { job: Box::new(job), error: ModelError::Full { what: self.what, limit: self.limit } }
            }
            TrySendError::Disconnected(job) => self.stopped(job),
        })
    }

    /// Hands in a job, waiting for a place.
    pub(crate) fn submit_blocking(&self, lane: Lane, job: J) -> Result<(), Rejected<J>> {
        self.lanes[lane as usize].send(job).map_err(|refused| self.stopped(refused.0))
    }

    /// Jobs that wait.
    pub(crate) fn queued(&self) -> usize {
        self.lanes.iter().map(Sender::len).sum()
    }

    fn stopped(&self, job: J) -> Rejected<J> {
        Rejected { job: Box::new(job), error: ModelError::Stopped { what: self.what } }
    }
}

/// Runs something that may panic, and makes an error of the panic. What it touched must not be trusted afterwards.
pub(crate) fn caught<T>(what: &'static str, run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(ModelError::Panicked { what, message: message_of(panic.as_ref()) }))
}

/// Calls a caller's callback. One that panics is logged: the engine goes on.
pub(crate) fn notify(what: &'static str, callback: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(callback)) {
        tracing::error!(engine = what, message = message_of(panic.as_ref()), "a callback panicked");
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let (gate, wait) = crossbeam_channel::bounded::<()>(0);
        let (seen, served) = crossbeam_channel::unbounded();
        let runner = move |jobs: &Lanes<u32>| {
            while let Some(job) = jobs.next() {
                seen.send(job).expect("the test listens");
                let _closed = wait.recv();
            }
        };
        let queue = JobQueue::start("test", 2, [runner]).expect("a thread");
        queue.submit(Lane::New, 1).expect("free");
        assert_eq!(served.recv(), Ok(1));
        queue.submit(Lane::Background, 10).expect("free");
        queue.submit(Lane::Background, 11).expect("free");
        queue.submit(Lane::New, 2).expect("free");
        queue.submit(Lane::New, 3).expect("free");
        assert_eq!(queue.queued(), 4);
        queue.submit(Lane::Ongoing, 20).expect("free");
        for (lane, job) in [(Lane::New, 4), (Lane::Background, 12)] {
            let rejected = queue.submit(lane, job).expect_err("full");
            assert_eq!((*rejected.job, rejected.to_string().as_str()), (job, "the queue of test is full: 2 jobs wait"));
        }
        // What was taken is served even though nobody can hand in anything any more.
        drop(queue);
        drop(gate);
        assert_eq!(
            served.iter().collect::<Vec<_>>(),
            [20, 2, 3, 10, 11],
            "who has waited longest for a conversation comes first, who nobody waits for last"
        );
    }

    #[test]
    fn a_lane_is_served_whichever_is_empty() {
        let (seen, served) = crossbeam_channel::unbounded();
        let runner = move |jobs: &Lanes<u32>| {
            while let Some(job) = jobs.next() {
                seen.send(job).expect("the test listens");
            }
        };
        let queue = JobQueue::start("test", 2, [runner]).expect("a thread");
        for (job, lane) in [Lane::Background, Lane::New, Lane::Ongoing, Lane::New].into_iter().enumerate() {
            queue.submit(lane, job as u32).expect("free");
            assert_eq!(served.recv(), Ok(job as u32), "a thread that sleeps wakes for each");
        }
        drop(queue);
        assert_eq!(served.recv(), Err(crossbeam_channel::RecvError), "the thread has ended");
    }

    #[test]
    fn new_jobs_do_not_starve() {
        let mut alternation = Alternation::default();
        let lanes: Vec<_> = (0..24).map(|_| alternation.next(|lane| lane != Lane::Background)).collect();
        let new: Vec<_> = (0..24).filter(|&at| lanes[at] == Some(Lane::New)).collect();
        assert_eq!(new, [7, 15, 23]);
        assert_eq!(alternation.next(|lane| lane == Lane::Background), Some(Lane::Background));
        assert_eq!(alternation.next(|_| false), None);
        // Who comes when nobody else waited is owed nothing for that.
        (0..20).for_each(|_| assert_eq!(alternation.next(|lane| lane == Lane::Ongoing), Some(Lane::Ongoing)));
        assert_eq!(alternation.next(|lane| lane != Lane::Background), Some(Lane::Ongoing));
    }

    #[test]
    fn panics_become_errors() {
        let error = caught("a test", || -> Result<(), _> { panic!("number {}", 7) }).expect_err("a panic");
        assert_eq!(error.to_string(), "panic in a test: number 7");
        notify("test", || panic!("not passed on"));
    }
}
