//! Group commit: many waiting batches, one synced write.
//!
//! *Contract*: batches become durable in the order in which they were submitted, each whole or not at all, and every
//! batch is answered exactly once, in that order, after it is durable or known to have failed. After the first failure
//! everything is refused. Dropping the committer writes and answers what still waits.
//!
//! A sync costs the same for one batch as for a hundred, so whatever waits when the disk becomes free goes into the
//! next write: alone when idle, in full groups at a peak. The queue is bounded, and [`Committer::submit`] waits while
//! it is full.
//!
//! What it does not do: it never waits for more batches to come, and it retries nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use super::{Durability, Store, StoreBatch, with_sources};
use crate::StateError;

/// Most batches that share one write.
const GROUP_BATCHES_MAX: usize = 256;
/// Size from which on a group takes no further batch, in bytes.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// What is called once a batch is durable or has failed.
pub type Done = Box<dyn FnOnce(Result<(), Arc<StateError>>) + Send>;

struct Submitted {
    batch: StoreBatch,
    done: Done,
}

/// A thread that writes batches in groups.
#[derive(Debug)]
pub struct Committer {
    // Both are taken on drop only.
    queue: Option<Sender<Submitted>>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread, with room for `queue_max` batches that wait.
    ///
    /// # Errors
    /// [`StateError::Io`] when no thread can be started.
    pub fn start(store: Store, queue_max: usize) -> Result<Self, StateError> {
        let (queue, submitted) = crossbeam_channel::bounded(queue_max.max(1));
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || run(&store, &submitted))
            .map_err(|source| StateError::Io { action: "start the committer of", source: source.into() })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands in a batch; waits while the queue is full.
    ///
    /// `done` is called on the committer's thread and holds up all others: it must be short, and it must not submit.
    pub fn submit(&self, batch: StoreBatch, done: Done) {
        let submitted = Submitted { batch, done };
        let refused = match &self.queue {
            Some(queue) => queue.send(submitted).err().map(|error| error.0),
            None => Some(submitted),
        };
        if let Some(Submitted { done, .. }) = refused {
            done(Err(Arc::new(StateError::Poisoned { reason: "the committer is gone".to_owned() })));
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Without a sender the thread ends as soon as the queue is empty.
        drop(self.queue.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the committer panicked");
        }
    }
}

fn run(store: &Store, submitted: &Receiver<Submitted>) {
    let mut refusal: Option<String> = None;
    while let Ok(first) = submitted.recv() {
        let (batch, waiting) = group(first, submitted);
        let written = match &refusal {
            Some(reason) => Err(StateError::Poisoned { reason: reason.clone() }),
            None => store.write(batch, Durability::Synced),
        };
        if let (Err(error), None) = (&written, &refusal) {
            let reason = with_sources(error);
            tracing::error!(reason, "a write failed, nothing is written any more");
            refusal = Some(reason);
        }
        answer(waiting, written);
    }
}

/// Merges the first batch with whatever waits behind it.
fn group(first: Submitted, submitted: &Receiver<Submitted>) -> (StoreBatch, Vec<Done>) {
    let Submitted { mut batch, done } = first;
    let mut waiting = vec![done];
    while waiting.len() < GROUP_BATCHES_MAX && batch.bytes() < GROUP_BYTES_MAX {
        let Ok(next) = submitted.try_recv() else { break };
        batch.append(next.batch);
        waiting.push(next.done);
    }
    (batch, waiting)
}

fn answer(waiting: Vec<Done>, written: Result<(), StateError>) {
    let written = written.map_err(Arc::new);
    for done in waiting {
        let result = written.clone();
        // A panic in one caller's callback must not leave the other callers without an answer.
        if catch_unwind(AssertUnwindSafe(move || done(result))).is_err() {
            tracing::error!("a callback of the committer panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::{Batch, Column, ColumnSize, KeyValue, MemoryStore, Visit};

    /// Memory that counts its writes, waits for a permit before each, and fails from one of them on.
    struct Scripted {
        memory: MemoryStore,
        writes: AtomicUsize,
        fails_from: usize,
        permits: Receiver<()>,
    }

    impl KeyValue for Scripted {
        fn multi_get(&self, column: Column, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
            self.memory.multi_get(column, keys)
        }
        fn scan_from(
            &self,
            column: Column,
            prefix: &[u8],
            start: &[u8],
            visit: &mut Visit<'_>,
        ) -> Result<(), StateError> {
            self.memory.scan_from(column, prefix, start, visit)
        }
        fn last_key(&self, column: Column) -> Result<Option<Vec<u8>>, StateError> {
            self.memory.last_key(column)
        }
        fn write(&self, batch: Batch, durability: Durability) -> Result<(), StateError> {
            assert_eq!(durability, Durability::Synced);
            // Once the test has dropped its end, writes are free.
            let _ = self.permits.recv();
            let write = self.writes.fetch_add(1, Ordering::SeqCst);
            if write >= self.fails_from {
                return Err(StateError::Io { action: "write to", source: "disk full".into() });
            }
            self.memory.write(batch, durability)
        }
        fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
            self.memory.checkpoint(path)
        }
        fn size(&self, column: Column) -> Result<ColumnSize, StateError> {
            self.memory.size(column)
        }
    }

    fn scripted(fails_from: usize) -> (Arc<Scripted>, Sender<()>) {
        let (permit, permits) = crossbeam_channel::unbounded();
        let writes = AtomicUsize::new(0);
        (Arc::new(Scripted { memory: MemoryStore::new(), writes, fails_from, permits }), permit)
    }

    fn named(name: &str) -> StoreBatch {
        let mut batch = StoreBatch::new();
        batch.put_key_value(name, b"value".to_vec());
        batch
    }

    type Answers = Arc<Mutex<Vec<(usize, Result<(), String>)>>>;

    fn recording(answers: &Answers, number: usize) -> Done {
        let answers = Arc::clone(answers);
        Box::new(move |result| {
            answers.lock().expect("lock").push((number, result.map_err(|error| error.to_string())));
        })
    }

    #[test]
    fn everything_is_durable_and_answered_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let answers = Answers::default();
        let store = Store::open(folder.path()).expect("opens");
        let committer = Committer::start(store.clone(), 8).expect("starts");
        for number in 0..500 {
            let (answers, store) = (Arc::clone(&answers), store.clone());
            let done: Done = Box::new(move |result| {
                assert!(result.is_ok());
                let found = store.key_value(&format!("{number:04}")).expect("reads");
                assert!(found.is_some(), "answered before it was written");
                answers.lock().expect("lock").push((number, Ok(())));
            });
            committer.submit(named(&format!("{number:04}")), done);
        }
        drop(committer);
        let expected: Vec<_> = (0..500).map(|number| (number, Ok(()))).collect();
        assert_eq!(*answers.lock().expect("lock"), expected);
        drop(store);
        let reopened = Store::open(folder.path()).expect("opens again");
        for number in 0..500 {
            assert!(reopened.key_value(&format!("{number:04}")).expect("reads").is_some(), "{number}");
        }
    }

    #[test]
    fn a_later_batch_overrules_an_earlier_one_of_the_same_group() {
        let (backend, permit) = scripted(usize::MAX);
        let committer = Committer::start(Store::from_backend(backend.clone()), 100).expect("starts");
        for value in 0..50_u8 {
            let mut batch = StoreBatch::new();
            batch.put_key_value("name", vec![value]);
            committer.submit(batch, Box::new(|_| ()));
        }
        drop(permit);
        drop(committer);
        let store = Store::from_backend(backend);
        assert_eq!(store.key_value("name").expect("reads"), Some(vec![49]));
    }

    #[test]
    fn what_waits_shares_one_write() {
        let (backend, permit) = scripted(usize::MAX);
        let answers = Answers::default();
        let committer = Committer::start(Store::from_backend(backend.clone()), GROUP_BATCHES_MAX * 2).expect("starts");
        for number in 0..=GROUP_BATCHES_MAX {
            committer.submit(named("name"), recording(&answers, number));
        }
        drop(permit);
        drop(committer);
        // The first write began with what was there, and took until all the rest was waiting.
        assert_eq!(backend.writes.load(Ordering::SeqCst), 2);
        assert_eq!(answers.lock().expect("lock").len(), GROUP_BATCHES_MAX + 1);
    }

    #[test]
    fn a_failure_is_told_to_its_whole_group_and_to_all_later_ones() {
        let (backend, permit) = scripted(1);
        let answers = Answers::default();
        let committer = Committer::start(Store::from_backend(backend.clone()), 100).expect("starts");
        let (first_done, first_answered) = crossbeam_channel::bounded(1);
        committer.submit(named("first"), Box::new(move |result| first_done.send(result.is_ok()).expect("test waits")));
        permit.send(()).expect("committer waits");
        assert!(first_answered.recv().expect("answered"), "the first write succeeds");
        for number in 0..10 {
            committer.submit(named("lost"), recording(&answers, number));
        }
        drop(permit);
        drop(committer);
        let answers = answers.lock().expect("lock");
        assert_eq!(answers.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        let failed = "cannot write to the database";
        let refused = "the database refuses writes since one failed: cannot write to the database: disk full";
        for (number, result) in answers.iter() {
            let text = result.as_ref().expect_err("failed");
            assert!(text == failed || text == refused, "{number}: {text}");
        }
        assert_eq!(answers[0].1.as_ref().expect_err("failed"), failed);
        // After the failed write, none was attempted.
        assert_eq!(backend.writes.load(Ordering::SeqCst), 2);
        let store = Store::from_backend(backend);
        assert!(
            store.key_value("first").expect("reads").is_some() && store.key_value("lost").expect("reads").is_none()
        );
    }

    #[test]
    fn a_panicking_callback_harms_nobody_else() {
        let answers = Answers::default();
        let committer = Committer::start(Store::memory(), 10).expect("starts");
        committer.submit(named("a"), Box::new(|_| panic!("on purpose")));
        committer.submit(named("b"), recording(&answers, 1));
        drop(committer);
        assert_eq!(*answers.lock().expect("lock"), [(1, Ok(()))]);
    }
}
