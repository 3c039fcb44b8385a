//! A bounded queue and the threads that serve it: what the engines have in common.
//!
//! Contract: a queue holds at most its limit of jobs; handing one in never blocks, and a job that finds no place comes
//! back. Threads sleep while the queue is empty, serve what is queued after the last handle is dropped, and
//! then end. Panics are the business of whoever runs jobs, with [`caught`].

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::error::ModelError;

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
    sender: Sender<J>,
}

impl<J> Clone for JobQueue<J> {
    fn clone(&self) -> Self {
        Self { what: self.what, limit: self.limit, sender: self.sender.clone() }
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
        R: FnOnce(&Receiver<J>) + Send + 'static,
    {
        let limit = limit.max(1);
        let (sender, receiver) = crossbeam_channel::bounded(limit);
        for (number, run) in runners.into_iter().enumerate() {
            let receiver = receiver.clone();
            std::thread::Builder::new()
                .name(format!("{what}-{number}"))
                .spawn(move || run(&receiver))
                .map_err(|source| ModelError::Thread { what, source })?;
        }
        Ok(Self { what, limit, sender })
    }

    /// Hands in a job, or gives it back at once.
    pub(crate) fn submit(&self, job: J) -> Result<(), Rejected<J>> {
        self.sender.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(job) => {
                Rejected { job: Box::new(job), error: ModelError::Full { what: self.what, limit: self.limit } }
            }
            TrySendError::Disconnected(job) => self.stopped(job),
        })
    }

    /// Hands in a job, waiting for a place.
    pub(crate) fn submit_blocking(&self, job: J) -> Result<(), Rejected<J>> {
        self.sender.send(job).map_err(|refused| self.stopped(refused.0))
    }

    /// Jobs that wait.
    pub(crate) fn queued(&self) -> usize {
        self.sender.len()
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
        let runner = move |jobs: &Receiver<u32>| {
            while let Ok(job) = jobs.recv() {
                seen.send(job).expect("the test listens");
                let _closed = wait.recv();
            }
        };
        let queue = JobQueue::start("test", 2, [runner]).expect("a thread");
        queue.submit(1).expect("free");
        assert_eq!(served.recv(), Ok(1));
        queue.submit(2).expect("free");
        queue.submit(3).expect("free");
        assert_eq!(queue.queued(), 2);
        let rejected = queue.submit(4).expect_err("full");
        assert_eq!((*rejected.job, rejected.to_string().as_str()), (4, "the queue of test is full: 2 jobs wait"));
        // What was taken is served even though nobody can hand in anything any more.
        drop(queue);
        drop(gate);
        assert_eq!(served.iter().collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn panics_become_errors() {
        let error = caught("a test", || -> Result<(), _> { panic!("number {}", 7) }).expect_err("a panic");
        assert_eq!(error.to_string(), "panic in a test: number 7");
        notify("test", || panic!("not passed on"));
    }
}
