//! A few threads for short blocking work that must not run on a worker: searches and reads.
//!
//! Bounded: a full pool refuses. A panicking job is lost alone; its thread goes on. The threads end when the last
//! handle is dropped, after the jobs that were taken.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Sender, TrySendError, bounded};

use crate::OperatorError;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the threads.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `threads` threads named after `name`, with at most `queue_max` jobs waiting.
    ///
    /// # Errors
    /// [`OperatorError::Thread`] when the system gives no thread.
    pub fn start(name: &str, threads: usize, queue_max: usize) -> Result<Self, OperatorError> {
        let (jobs, waiting) = bounded::<Job>(queue_max);
        for index in 0..threads.max(1) {
            let waiting = waiting.clone();
            let name = format!("{name}-{index}");
            std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    for job in waiting {
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a job panicked; its turn ends with an error");
                        }
                    }
                })
                .map_err(|source| OperatorError::Thread { name, source })?;
        }
        Ok(Self { jobs })
    }

    /// Hands over a job; false when the pool is full or gone, in which case the job is dropped.
    #[must_use]
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}
