//! Sends turns: on a schedule whatever becomes of them (an open loop), or a fixed number at once (a closed loop).
//!
//! The open loop is driven by a thread of its own, which sleeps until a turn is due and hands it to a task. It waits for no
//! answer and no place. When [`OUTSTANDING_MAX`] turns are without an end it drops what is due, and counts that.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::customers::{Customers, Opening};
use super::sample::{Sample, Sent};
use super::target::{Ending, Target};

/// Turns without an end at most. More would measure this process's memory.
pub const OUTSTANDING_MAX: usize = 65_536;
/// Openings that are asked at once to fill the pool.
const OPENINGS_AT_ONCE: usize = 32;
/// Openings that may be refused, and the pause after each.
const OPENINGS_REFUSED_MAX: usize = 10_000;
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// Shortest sleep: what is due within it is sent together, late by no more than this, because waking up costs more than sending.
const SLEEP_MIN: Duration = Duration::from_micros(250);
/// Between two looks at what has ended.
const REST: Duration = Duration::from_millis(10);
/// Longest sleep, after which the thread looks whether anybody still listens.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Sends turns to a target.
pub(super) struct Generator {
    pub(super) target: Target,
    pub(super) customers: Customers,
    /// An answer that comes later than this after it was due is late.
    pub(super) slo: Duration,
    /// Why the first turn that failed did.
    pub(super) failure: Arc<OnceLock<String>>,
}

/// What an open loop did.
pub(super) struct Driven {
    /// The turns that were sent, in the order they ended.
    pub(super) samples: Vec<Sample>,
    /// Turns of the load that were not sent, because too many were without an end.
    pub(super) unsent: u64,
}

impl Generator {
    /// Sends a turn at each of these times, and waits for the end of all of them. The load takes as long as `length`; what comes
    /// after it shows how long the recovery takes.
    pub(super) async fn open_loop(
        self,
        arrivals: impl Iterator<Item = Duration> + Send + 'static,
        length: Duration,
    ) -> anyhow::Result<(Self, Driven)> {
        let (sender, mut ended) = mpsc::unbounded_channel(); // bounded by OUTSTANDING_MAX
        let runtime = Handle::current();
        let sending = tokio::task::spawn_blocking(move || self.send_all(arrivals, length, &sender, &runtime));
        let mut samples = Vec::new();
        // None come when the thread and all turns have let go of their ends. Looking at each as it comes would cost as much as sending it.
        while ended.recv_many(&mut samples, OUTSTANDING_MAX).await > 0 {
            tokio::time::sleep(REST).await;
        }
        let (generator, unsent) = sending.await.context("the generator panicked")??;
        Ok((generator, Driven { samples, unsent }))
    }

    fn send_all(
        mut self,
        arrivals: impl Iterator<Item = Duration>,
        length: Duration,
        samples: &mpsc::UnboundedSender<Sample>,
        runtime: &Handle,
    ) -> anyhow::Result<(Self, u64)> {
        let outstanding = Arc::new(Semaphore::new(OUTSTANDING_MAX));
        let (start, mut unsent) = (Instant::now(), 0);
        for due in arrivals {
            sleep_until(start + due, || samples.is_closed());
            if samples.is_closed() {
                break;
            }
            let Ok(place) = Arc::clone(&outstanding).try_acquire_owned() else {
                unsent += u64::from(due < length);
                continue;
            };
            let (class, turn) = self.customers.ask()?;
            let (target, slo, failure) = (self.target.clone(), self.slo, Arc::clone(&self.failure));
            let (samples, sent) = (samples.clone(), Sent { class, start, due, at: Instant::now() });
            runtime.spawn(async move {
                let heard = target.ask(turn).await;
                note(&heard.ending, &failure);
                // Nobody listens when the run was given up.
                let _ignored = samples.send(Sample::of(sent, &heard, slo));
                drop(place);
            });
        }
        Ok((self, unsent))
    }

    /// Keeps so many turns in flight for a time, and tells how many of those that ended in it were answered, and whether load
    /// decided about any: it was refused, or routed when those who begin get another tier.
    pub(super) async fn closed_loop(&mut self, in_flight: usize, length: Duration) -> anyhow::Result<(u64, bool)> {
        let (end, mut turns, mut answered) = (Instant::now() + length, JoinSet::new(), 0);
        let mut was_loaded = false;
        while turns.len() < in_flight {
            self.spawn(&mut turns)?;
        }
        while let Some(ending) = turns.join_next().await {
            let ending = ending.context("a turn panicked")?;
            note(&ending, &self.failure);
            if Instant::now() < end {
                answered += u64::from(matches!(ending, Ending::Answered { .. }));
                was_loaded |= matches!(ending, Ending::Refused | Ending::Answered { is_loaded: true, .. });
                self.spawn(&mut turns)?;
            }
        }
        Ok((answered, was_loaded))
    }

    fn spawn(&mut self, turns: &mut JoinSet<Ending>) -> anyhow::Result<()> {
        let (target, (_, turn)) = (self.target.clone(), self.customers.ask()?);
        turns.spawn(async move { target.ask(turn).await.ending });
        Ok(())
    }

    /// Opens conversations until the pool has so many that were answered.
    ///
    /// # Errors
    /// When as many openings fail as the pool is to have, or none is answered for as long as `patience`.
    pub(super) async fn fill_pool(&mut self, wanted: usize, patience: Duration) -> anyhow::Result<()> {
        let (mut turns, mut failed, mut refused) = (JoinSet::new(), 0, 0);
        let mut answered = Instant::now();
        while self.customers.pool_len() < wanted {
            while turns.len() < OPENINGS_AT_ONCE && self.customers.pool_len() + turns.len() < wanted {
                let (target, opening) = (self.target.clone(), self.customers.open()?);
                turns.spawn(async move { open(&target, opening).await });
            }
            let left = patience.saturating_sub(answered.elapsed());
            let ended = tokio::time::timeout(left, turns.join_next()).await;
            let ended = ended.with_context(|| {
                let pool = self.customers.pool_len();
                let why = if refused > 0 { "they are refused" } else { "none is answered" };
                let why = self.failure.get().map_or(why, String::as_str);
                format!("no conversation could be opened for {patience:?}, and {wanted} are wanted of which there are {pool}: {why}")
            })?;
            match ended.transpose().context("a turn panicked")? {
                Some(Ok(opening)) => {
                    answered = Instant::now();
                    self.customers.join(opening);
                }
                // Conversations are opened as fast as may be: who is refused has to come later.
                Some(Err(Ending::Refused)) if refused < OPENINGS_REFUSED_MAX => {
                    refused += 1;
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                Some(Err(ending)) => {
                    note(&ending, &self.failure);
                    failed += 1;
                    let why = || self.failure.get().map_or("they are refused", String::as_str);
                    anyhow::ensure!(failed < wanted, "conversations cannot be opened: {}", why());
                }
                None => {}
            }
        }
        Ok(())
    }
}

async fn open(target: &Target, opening: Opening) -> Result<Opening, Ending> {
    match target.ask(opening.turn.clone()).await.ending {
        Ending::Answered { .. } => Ok(opening),
        other => Err(other),
    }
}

/// Remembers why a turn failed, if none has before.
fn note(ending: &Ending, failure: &OnceLock<String>) {
    if let Ending::Failed(why) = ending {
        let _earlier = failure.set(why.clone());
    }
}

fn sleep_until(due: Instant, is_over: impl Fn() -> bool) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || is_over() {
            return;
        }
        thread::sleep(left.clamp(SLEEP_MIN, SLEEP_MAX));
    }
}
