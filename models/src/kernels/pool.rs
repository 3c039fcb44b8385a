//! A few threads that work on one thing together, many times a second.
//!
//! Contract: [`Pool::run`] calls a function once for each task, on the caller's thread and the pool's, and returns when all
//! calls have ended. Tasks are claimed in order, one by one, so a thread that is held up delays only the task that it has.
//! Between two runs the threads wait for a moment without sleeping, because the next run usually follows at once; then they
//! sleep until there is one. A panic in a task is handed on to the caller after the others have ended; the pool goes on.
//!
//! A thread that wakes up late finds the run closed and is not waited for.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use super::shared::Shared;
use crate::error::ModelError;

/// Turns of the waiting loop before a thread sleeps: some tens of microseconds.
const SPINS_MAX: u32 = 1_000;
/// In the state: the run is open, threads may join it.
const OPEN: u64 = 1 << 16;
/// In the state: counts runs, so that no thread joins one twice.
const RUN: u64 = 1 << 17;
/// In the state: the threads of the pool that are in the run.
const INSIDE: u64 = OPEN - 1;

/// A task's function: called with the number of the task and the number of the thread.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that work together. The caller of [`Pool::run`] is the first of them.
#[derive(Debug)]
pub(crate) struct Pool {
    common: Arc<Common>,
    threads: Vec<JoinHandle<()>>,
}

struct Common {
    /// [`INSIDE`], [`OPEN`], and above them the number of the run.
    state: AtomicU64,
    /// Written only by the caller, while no run is open and no thread is inside.
    job: UnsafeCell<Option<Job>>,
    /// The next task that nobody has claimed.
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

#[derive(Clone)]
struct Job {
    work: *const Work<'static>,
    tasks: usize,
    caller: Thread,
}

// SAFETY: all fields but `job` are `Sync` by themselves. `job` is written by `run` alone, which has the pool to itself
// (`&mut self`), while the state is closed with nobody inside; it is read only by threads that are inside. Entering is a
// compare-and-swap that acquires what `run` released when it opened the state, and leaving releases to the caller, who
// waits for the last to leave. The pointer in it is to a `Sync` function.
unsafe impl Sync for Common {}
// SAFETY: as above; the pointer may be sent, because what it points to is `Sync` and outlives the run.
unsafe impl Send for Common {}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `threads - 1` threads; they end when the pool is dropped.
    ///
    /// # Errors
    /// [`ModelError::Thread`] when there are none.
    pub(crate) fn start(threads: usize) -> Result<Self, ModelError> {
        let common = Arc::new(Common {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { common, threads: Vec::new() };
        for number in 1..threads {
            let common = Arc::clone(&pool.common);
            let thread = std::thread::Builder::new()
                .name(format!("kernel-{number}"))
                .spawn(move || common.serve(number))
                .map_err(|source| ModelError::Thread { what: "kernels", source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads that work, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work(task, thread)` for every task below `tasks`; no two calls at once have the same `thread`.
    ///
    /// # Panics
    /// With the first panic of a call.
    pub(crate) fn run(&mut self, tasks: usize, work: &Work<'_>) {
        if self.threads.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|task| work(task, 0));
            return;
        }
        let common = &*self.common;
        // SAFETY: only the lifetime is changed. No thread touches the function after this call has returned: the run is
        // closed and left by all before that, on every path.
        let work: *const Work<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        let job = Job { work, tasks, caller: std::thread::current() };
        // SAFETY: the state is closed and nobody is inside, see `Common`.
        unsafe { *common.job.get() = Some(job.clone()) };
        common.next.store(0, Ordering::Relaxed);
        let run = (common.state.load(Ordering::Relaxed) & !(OPEN | INSIDE)).wrapping_add(RUN);
        common.state.store(run | OPEN, Ordering::Release);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        common.work_on(&job, 0);
        common.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0;
        while common.state.load(Ordering::Acquire) & INSIDE != 0 {
            wait(&mut spins);
        }
        let panic = common.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work(row, numbers)` for every row of a matrix; with little to do, on the caller's thread alone.
    ///
    /// # Shapes
    /// - `matrix`: `[rows, width]`
    pub(crate) fn rows(&mut self, matrix: &mut [f32], width: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let rows = matrix.len() / width;
        let matrix = Shared::new(matrix);
        // SAFETY: each row belongs to one call.
        self.each_row(rows, width, &|row| work(row, unsafe { matrix.slice_mut(row * width, width) }));
    }

    /// Calls `work(row)` for as many rows, of `width` numbers each; with little to do, on the caller's thread alone.
    pub(crate) fn each_row(&mut self, rows: usize, width: usize, work: &(dyn Fn(usize) + Sync)) {
        /// Below so many numbers, other threads are not worth their call.
        const SHARED_MIN: usize = 8192;
        if rows * width < SHARED_MIN {
            (0..rows).for_each(work);
            return;
        }
        let of_task = rows.div_ceil(self.threads() * 4);
        self.run(rows.div_ceil(of_task), &|task, _| {
            (task * of_task..rows.min((task + 1) * of_task)).for_each(work);
        });
    }
}

/// Waits a moment, and sleeps after some of them until the thread is woken.
fn wait(spins: &mut u32) {
    if *spins < SPINS_MAX {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::park();
    }
}

impl Common {
    /// A thread of the pool.
    fn serve(&self, number: usize) {
        let (mut seen, mut spins) = (0, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Relaxed);
            let run = state & !(OPEN | INSIDE);
            if run == seen || state & OPEN == 0 {
                wait(&mut spins);
                continue;
            }
            if self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            (seen, spins) = (run, 0);
            // SAFETY: this thread is inside, see `Common`.
            let job = unsafe { (*self.job.get()).clone() };
            if let Some(job) = job {
                self.work_on(&job, number);
                // After this the caller may be gone; its handle is this thread's own.
                let before = self.state.fetch_sub(1, Ordering::Release);
                if before & INSIDE == 1 {
                    job.caller.unpark();
                }
            }
        }
    }

    /// Claims tasks until there are none.
    fn work_on(&self, job: &Job, number: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    return;
                }
                // SAFETY: the function lives until `run` returns, and that waits for this thread.
                unsafe { (*job.work)(task, number) };
            }
        }));
        if let Err(panic) = result {
            // No task is begun any more.
            self.next.store(job.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // Tasks' panics are caught, so there is none to tell of.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
