//! What happened in every second of late, for the tenants whose overview somebody looks at.
//!
//! A second is taken down while somebody looks, and for [`WATCH_FOR`] after that, so that an idle server sleeps. At most
//! [`WATCHED_MAX`] tenants are watched and [`SECONDS_MAX`] seconds remembered of each, some 700 bytes a second.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};
use turnflow_pipeline::{Histogram, Pipeline, Tally};
use turnflow_state::{CacheLevel, LoadLevel, TenantId};

use crate::door::now_ms;

/// Tenants that are watched at once.
const WATCHED_MAX: usize = 16;
/// Seconds that are remembered.
pub(super) const SECONDS_MAX: usize = 600;
/// How long a tenant is watched after somebody looked.
const WATCH_FOR: Duration = Duration::from_secs(600);

/// What happened in one second.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Second {
    /// When it ended, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// Turns that were answered, in the order of [`CacheLevel::ALL`].
    pub(super) answered: [u64; CacheLevel::ALL.len()],
    /// Turns that were not.
    pub(super) failed: u64,
    /// How long answers from the caches took.
    pub(super) hits: Histogram,
    /// How long the others took.
    pub(super) rest: Histogram,
    /// Turns inside, of all tenants.
    pub(super) in_flight: usize,
    /// Those of them that waited in a queue.
    pub(super) waiting: usize,
    /// How loaded the server was.
    pub(super) load: LoadLevel,
}

/// Takes the seconds down.
#[derive(Default)]
pub(in crate::http) struct Live {
    watched: Mutex<HashMap<TenantId, Watched>>,
    looked: Notify,
}

struct Watched {
    seconds: VecDeque<Second>,
    before: Tally,
    looked: Instant,
}

impl Live {
    /// The seconds behind a time, of a tenant that is watched from now on; oldest first.
    pub(super) fn look(&self, pipeline: &Pipeline, tenant: &TenantId, after_ms: u64) -> Vec<Second> {
        let mut all = self.lock();
        if !all.contains_key(tenant) {
            if all.len() == WATCHED_MAX {
                let longest = all.iter().min_by_key(|(_, watched)| watched.looked).map(|(tenant, _)| tenant.clone());
                longest.and_then(|tenant| all.remove(&tenant));
            }
            let (seconds, before) = (VecDeque::new(), pipeline.tally_of(tenant));
            all.insert(tenant.clone(), Watched { seconds, before, looked: Instant::now() });
            self.looked.notify_one();
        }
        let Some(watched) = all.get_mut(tenant) else { return Vec::new() };
        watched.looked = Instant::now();
        watched.seconds.iter().filter(|second| second.at_ms > after_ms).cloned().collect()
    }

    /// Takes down every second until the server stops.
    pub(in crate::http) async fn run(self: Arc<Self>, pipeline: Pipeline, mut stopping: watch::Receiver<bool>) {
        let taking_down = async {
            loop {
                self.looked.notified().await;
                let mut seconds = interval(Duration::from_secs(1));
                seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
                // The first is now.
                seconds.tick().await;
                while !self.lock().is_empty() {
                    seconds.tick().await;
                    self.take_down(&pipeline);
                }
            }
        };
        tokio::select! {
            () = taking_down => {}
            _ = stopping.wait_for(|&stopping| stopping) => {}
        }
    }

    fn take_down(&self, pipeline: &Pipeline) {
        let (stats, at_ms) = (pipeline.stats(), now_ms());
        let mut all = self.lock();
        all.retain(|_, watched| watched.looked.elapsed() < WATCH_FOR);
        for (tenant, Watched { seconds, before, .. }) in all.iter_mut() {
            let now = pipeline.tally_of(tenant);
            let since = now.since(before);
            *before = now;
            let (mut hits, mut rest) = (Histogram::default(), Histogram::default());
            for (level, took) in CacheLevel::ALL.iter().zip(&since.whole) {
                if level.is_hit() { hits.merge(took) } else { rest.merge(took) }
            }
            let answered = std::array::from_fn(|level| since.answered_at(CacheLevel::ALL[level]));
            let (in_flight, waiting, load) = (stats.turns_in_flight, stats.load.waiting, stats.load.level);
            let failed = since.failed.iter().sum();
            seconds.push_back(Second { at_ms, answered, failed, hits, rest, in_flight, waiting, load });
            if seconds.len() > SECONDS_MAX {
                seconds.pop_front();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
