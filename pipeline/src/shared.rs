//! What the workers of "validity" share with each other and with those who write, ask and wait.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::sync::{Notify, broadcast, oneshot};
use turnflow_operators::bound::BoundLimits;
use turnflow_operators::refresh::RefreshStats;
use turnflow_operators::validity::{Epoch, Fall, Invalidated};
use turnflow_state::{EntryId, KnowledgeChange, TenantId};

use crate::auditing::SharedAudits;
use crate::caches::{Flush, Look};
use crate::config::KnowledgeConfig;
use crate::knowledge::ChangeEvent;

/// A change that is in the store and asks to be taken into account.
pub(crate) struct Change {
    pub(crate) tenant: TenantId,
    pub(crate) change: KnowledgeChange,
    pub(crate) kind: ChangeKind,
    pub(crate) acknowledge: oneshot::Sender<Vec<Invalidated>>,
}

/// What a change is of.
pub(crate) enum ChangeKind {
    /// Of articles: what to tell those who watch, completed when it is acknowledged.
    Articles(ChangeEvent),
    /// Of the caches alone, and nobody is told.
    Flush(Arc<Flush>),
}

/// A change that is only thought of.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) tenant: TenantId,
    pub(crate) change: Arc<KnowledgeChange>,
    pub(crate) reply: Sender<Vec<Forecast>>,
}

/// A cached answer that a change would make invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The entry.
    pub entry: EntryId,
    /// The question as it was asked.
    pub question: String,
    /// What would happen to it.
    pub fall: Fall,
}

/// A channel for each worker.
type ForEach<T> = Vec<(Sender<T>, Receiver<T>)>;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) epoch: AtomicU64,
    /// The knowledge base's epoch that is acknowledged: nothing is served that a change up to it made invalid.
    pub(crate) acknowledged: AtomicU64,
    /// The knowledge base's epoch of the last change that was put in line; searches may not find it yet.
    pub(crate) submitted: AtomicU64,
    pub(crate) workers: Mutex<Vec<Option<Thread>>>,
    pub(crate) changes: (Sender<Change>, Receiver<Change>),
    pub(crate) questions: ForEach<Question>,
    /// For each worker, what is to be flushed. Bounded by the changes in line.
    pub(crate) flushes: ForEach<Arc<Flush>>,
    /// For each worker, who wants to see what is cached.
    pub(crate) looks: ForEach<Look>,
    pub(crate) watchers: broadcast::Sender<Arc<ChangeEvent>>,
    pub(crate) stats: Vec<Mutex<(ValidityStats, RefreshStats)>>,
    /// For each worker, the epoch before which everything that fell was handed over to be deleted.
    pub(crate) handed_over: Vec<AtomicU64>,
    /// For each worker, the earliest epoch of the knowledge base that a question asked in the background may have read.
    pub(crate) background_epochs: Vec<AtomicU64>,
    /// For each worker, questions that are to be answered anew.
    pub(crate) refreshing: Vec<AtomicUsize>,
    /// Told when one of the workers has handed something over, or has less to answer anew.
    pub(crate) progress: Notify,
    pub(crate) audits: SharedAudits,
    pub(crate) closed: AtomicBool,
}

/// What one worker's part of the caches holds, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValidityStats {
    /// Entries cached.
    pub entries: usize,
    /// What they take, in bytes.
    pub bytes: usize,
    /// Recent chunks that a late answer may have to be compared with.
    pub recent_chunks: usize,
    /// Answers that were outdated when they came.
    pub late: u64,
    /// Cached answers that a change made invalid.
    pub invalidated: u64,
}

/// Where the dataflow begins. What an earlier run left is put in before: at epoch 0 the entries and the chunks that are
/// there, at epoch 1 those of the chunks that the entries have yet to meet.
pub(crate) const FIRST_EPOCH: Epoch = 2;

impl Shared {
    pub(crate) fn new(workers: usize, knowledge_epoch: u64, knowledge: &KnowledgeConfig, bound: BoundLimits) -> Self {
        Self {
            epoch: AtomicU64::new(FIRST_EPOCH),
            acknowledged: AtomicU64::new(knowledge_epoch),
            submitted: AtomicU64::new(knowledge_epoch),
            workers: Mutex::new(vec![None; workers]),
            changes: bounded(knowledge.writes_waiting_max),
            questions: (0..workers).map(|_| unbounded()).collect(),
            flushes: (0..workers).map(|_| unbounded()).collect(),
            looks: (0..workers).map(|_| unbounded()).collect(),
            watchers: broadcast::Sender::new(knowledge.events_kept_max),
            stats: (0..workers).map(|_| Mutex::default()).collect(),
            handed_over: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            background_epochs: (0..workers).map(|_| AtomicU64::new(u64::MAX)).collect(),
            refreshing: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            progress: Notify::new(),
            audits: SharedAudits::new(workers, bound),
            closed: AtomicBool::new(false),
        }
    }

    /// Puts a change in line; waits while the line is full. Changes are put in line in the order of their epochs.
    pub(crate) fn submit(&self, change: Change) {
        // Before anything can fall by it.
        self.submitted.store(change.change.epoch, Ordering::Release);
        // The receiver lives here, so sending cannot fail.
        let _ = self.changes.0.send(change);
        self.wake();
    }

    /// Asks all workers; as many replies come as there are workers.
    pub(crate) fn ask(&self, question: &Question) {
        for (sender, _) in &self.questions {
            let _ = sender.send(question.clone());
        }
        self.wake();
    }

    pub(crate) fn watch(&self) -> broadcast::Receiver<Arc<ChangeEvent>> {
        self.watchers.subscribe()
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> (ValidityStats, RefreshStats) {
        let (mut sum, mut refresh) = (ValidityStats::default(), RefreshStats::default());
        for stats in &self.stats {
            let (stats, refreshing) = *stats.lock().unwrap_or_else(PoisonError::into_inner);
            refresh.add(refreshing);
            sum.entries += stats.entries;
            sum.bytes += stats.bytes;
            // The windows of all workers hold the same chunks.
            sum.recent_chunks = sum.recent_chunks.max(stats.recent_chunks);
            sum.late += stats.late;
            sum.invalidated += stats.invalidated;
        }
        (sum, refresh)
    }

    /// Waits until nothing is left to be answered anew that fell before; ends when the workers do.
    pub(crate) async fn refreshed(&self) {
        // A worker has handed over what fell when it has queued what of it is to be answered anew.
        self.handed_over_and(|| self.refreshing.iter().all(|pending| pending.load(Ordering::Acquire) == 0)).await;
    }

    /// Waits until all workers have handed over the deletion of what acknowledged changes made invalid, and until something
    /// holds; ends when the workers do.
    pub(crate) async fn handed_over_and(&self, holds: impl Fn() -> bool) {
        // What an acknowledged change made invalid fell before this epoch.
        let epoch = self.epoch.load(Ordering::Acquire);
        self.until(|| self.handed_over.iter().all(|met| met.load(Ordering::Acquire) >= epoch) && holds()).await;
    }

    /// Waits until something holds that the workers' progress brings about; ends when the workers do.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let progress = self.progress.notified();
            if holds() || self.closed.load(Ordering::Acquire) {
                return;
            }
            progress.await;
        }
    }

    /// Lets the workers end once nothing waits.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.progress.notify_waiters();
        self.wake();
    }

    pub(crate) fn wake(&self) {
        // A worker that is not parked finds the token when it is about to park, and looks again.
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            worker.unpark();
        }
    }
}
