//! Load: how loaded the process is, and what follows for turns that begin a conversation.
//!
//! ```text
//! normal ──▶ degraded ──▶ shedding        a level up when the longest wait has been over its limit for hold-ms
//!        ◀──          ◀──                 a level down when all has been calm for calm-ms
//! ```
//!
//! *Degraded*: new conversations get the small tier; those under way keep theirs. *Shedding*: besides, a new conversation is refused where
//! no cache has the words of its question, while turns wait longer in some queue that it would enter than leads into the level below, as estimated from
//! how many wait and how fast they leave; so the engines never run dry, and who is let in is answered soon. Ongoing conversations are never refused here.
//!
//! *Signals*, from every [`Queue`](crate::prioritise::Queue): since when its oldest turn waits, how many wait, how fast those who begin leave, and whether
//! they found an engine full (saturation, as a share of time); and the process's memory. Calm is: the longest wait is below half of what leads into the level,
//! engines are saturated for less than `saturation_max` of the time, memory is below its limit. When calm was
//! an error, so that the level is needed again at once, the next calm has to last twice as long, `calm_ms_max` at most: a load that is just too
//! much does not flap.
//!
//! The controller is plain data and reads no clock; [`Load`] is what the stages of all workers share of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use turnflow_state::{LoadLevel, TierSize};

use crate::prioritise::Class;

/// Over how long saturation and throughput are averaged, in microseconds.
const WINDOW_US: u64 = 1_000_000;
/// How often the averages are brought up to date.
const SAMPLE_US: u64 = 50_000;
/// A queue is taken to move at least so fast, in turns a second.
const SERVED_PER_S_MIN: f64 = 0.1;
/// Shortest and longest time after which a refused turn is told to come back, in milliseconds.
const RETRY_MS: (u64, u64) = (500, 30_000);

/// When levels change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LoadLimits {
    /// Whether anything follows from load.
    pub enabled: bool,
    /// Longest wait in a queue before new conversations get the small tier, in milliseconds.
    pub degraded_wait_ms: u64,
    /// Longest wait before new conversations are refused, in milliseconds.
    pub shedding_wait_ms: u64,
    /// How long a wait must be too long, in milliseconds.
    pub hold_ms: u64,
    /// How long all must be calm, in milliseconds, at first and at most.
    pub calm_ms: u64,
    /// At most.
    pub calm_ms_max: u64,
    /// Share of the time for which turns may find an engine full when a level is left.
    pub saturation_max: f32,
    /// Memory of the process beyond which new conversations are refused, in bytes; 0 for no limit.
    pub memory_bytes_max: u64,
}

/// What one queue tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Whether new conversations enter it under load: those that they do not enter lead no further than to degraded.
    pub takes_new: bool,
    /// Turns that wait.
    pub waiting: usize,
    /// Those of them that begin a conversation.
    pub new_waiting: usize,
    /// Since when the oldest of all does.
    pub oldest_us: Option<u64>,
    /// Turns that begin a conversation and have left the engine behind it, since the beginning.
    pub new_served: u64,
    /// Whether they found the engine full.
    pub is_full: bool,
}

/// What the controller did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadStats {
    /// The level now.
    pub level: LoadLevel,
    /// How often each level was entered, in the order of [`LoadLevel::ALL`].
    pub entered: [u64; LoadLevel::ALL.len()],
    /// Turns that were refused.
    pub refused: u64,
    /// Turns whose client left while they waited in a queue.
    pub abandoned: u64,
    /// Turns that wait.
    pub waiting: usize,
    /// Share of the time for which turns found an engine full.
    pub saturation: f32,
}

/// What one queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Turns that wait.
    pub waiting: usize,
    /// For how long the oldest has, in microseconds.
    pub oldest_wait_us: u64,
}

/// A queue, and how fast it moves.
#[derive(Clone, Copy, Debug, Default)]
struct Tracked {
    now: Backlog,
    /// What was served when the rate was brought up to date.
    new_served: u64,
    new_served_per_s: f64,
}

impl Tracked {
    /// How long a turn that begins a conversation now will wait, in milliseconds: those under way go first, and take their part.
    fn wait_ms(&self) -> f64 {
        let waiting = self.now.new_waiting;
        if waiting == 0 { 0.0 } else { waiting as f64 * 1e3 / self.new_served_per_s.max(SERVED_PER_S_MIN) }
    }
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    limits: LoadLimits,
    queues: Vec<Tracked>,
    memory_bytes: u64,
    level: LoadLevel,
    entered: [u64; LoadLevel::ALL.len()],
    refused: u64,
    abandoned: u64,
    /// Since when the wait is too long for the level, and since when all is calm.
    pressed_us: Option<u64>,
    calm_us: Option<u64>,
    /// How long a calm must last at present, and when the level went down last.
    calm_needed_us: u64,
    eased_us: Option<u64>,
    sampled_us: u64,
    saturation: f32,
    /// When a queue told something last.
    observed_us: u64,
}

impl Controller {
    /// A controller for so many queues, none of which has told anything.
    #[must_use]
    pub fn new(limits: LoadLimits, queues: usize) -> Self {
        Self {
            limits,
            queues: vec![Tracked::default(); queues],
            memory_bytes: 0,
            level: LoadLevel::Normal,
            entered: Default::default(),
            refused: 0,
            abandoned: 0,
            pressed_us: None,
            calm_us: None,
            calm_needed_us: limits.calm_ms.saturating_mul(1_000),
            eased_us: None,
            sampled_us: 0,
            saturation: 0.0,
            observed_us: 0,
        }
    }

    /// What a queue holds now; the level may change by it.
    pub fn observe(&mut self, queue: usize, backlog: Backlog, now_us: u64) {
        self.queues[queue].now = backlog;
        self.bring_up_to(now_us);
        self.observed_us = now_us;
    }

    /// A turn left a queue because its client did.
    pub const fn note_abandoned(&mut self) {
        self.abandoned += 1;
    }

    /// What the process holds in memory.
    pub fn remember(&mut self, memory_bytes: u64, now_us: u64) {
        self.memory_bytes = memory_bytes;
        self.judge(now_us);
    }

    /// Whether a turn of this class may wait in a queue; if not, after how many milliseconds it may come back.
    ///
    /// # Errors
    /// The milliseconds.
    pub fn admit(&mut self, class: Class, queue: usize, now_us: u64) -> Result<(), u64> {
        self.bring_up_to(now_us);
        let admits = self.level < LoadLevel::Shedding || class != Class::New;
        if admits || (!self.is_memory_full() && self.wait_ms() < self.limits.degraded_wait_ms as f64) {
            // Of those that come together, each is the next to wait.
            self.queues[queue].now.waiting += 1;
            self.queues[queue].now.new_waiting += usize::from(class == Class::New);
            return Ok(());
        }
        self.refused += 1;
        Err(self.retry_after_ms())
    }

    /// Memory of the process beyond which new conversations are refused, in bytes.
    #[must_use]
    pub const fn memory_bytes_max(&self) -> u64 {
        self.limits.memory_bytes_max
    }

    /// After how many milliseconds a turn that finds no place may come back: when those that wait are answered.
    #[must_use]
    pub fn retry_after_ms(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped, and not negative")]
        let wait_ms = self.wait_ms() as u64;
        wait_ms.clamp(RETRY_MS.0, RETRY_MS.1)
    }

    /// The level now.
    pub fn level(&mut self, now_us: u64) -> LoadLevel {
        self.bring_up_to(now_us);
        self.level
    }

    /// What was done so far.
    pub fn stats(&mut self, now_us: u64) -> LoadStats {
        self.bring_up_to(now_us);
        LoadStats {
            level: self.level,
            entered: self.entered,
            refused: self.refused,
            abandoned: self.abandoned,
            waiting: self.waiting(),
            saturation: self.saturation,
        }
    }

    /// What every queue holds, in the order of their numbers.
    #[must_use]
    pub fn queues(&self, now_us: u64) -> Vec<QueueStats> {
        let stats = |Tracked { now, .. }: &Tracked| QueueStats {
            waiting: now.waiting,
            oldest_wait_us: now.oldest_us.map_or(0, |oldest_us| now_us.saturating_sub(oldest_us)),
        };
        self.queues.iter().map(stats).collect()
    }

    fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.now.waiting).sum()
    }

    /// How long a turn that begins a conversation will wait in the slowest queue that it enters.
    fn wait_ms(&self) -> f64 {
        self.queues.iter().filter(|queue| queue.now.takes_new).map(Tracked::wait_ms).fold(0.0, f64::max)
    }

    /// For how long the oldest turn has waited, where it counts towards leaving or keeping a level.
    fn oldest_wait_us(&self, level: LoadLevel, now_us: u64) -> u64 {
        let counts = |queue: &&Tracked| level == LoadLevel::Normal || queue.now.takes_new;
        let oldest_us = self.queues.iter().filter(counts).filter_map(|queue| queue.now.oldest_us).min();
        oldest_us.map_or(0, |oldest_us| now_us.saturating_sub(oldest_us))
    }

    /// Takes in that time has passed. Where nothing comes, nobody else tells that all is calm.
    fn bring_up_to(&mut self, now_us: u64) {
        self.sample(now_us);
        self.judge(now_us);
    }

    fn is_memory_full(&self) -> bool {
        self.limits.memory_bytes_max > 0 && self.memory_bytes > self.limits.memory_bytes_max
    }

    /// The wait that leads from a level to the next, in microseconds.
    const fn limit_us(&self, level: LoadLevel) -> u64 {
        match level {
            LoadLevel::Normal => self.limits.degraded_wait_ms.saturating_mul(1_000),
            LoadLevel::Degraded | LoadLevel::Shedding => self.limits.shedding_wait_ms.saturating_mul(1_000),
        }
    }

    fn sample(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.sampled_us);
        if passed_us < SAMPLE_US {
            return;
        }
        self.sampled_us = now_us;
        let share = (passed_us as f64 / WINDOW_US as f64).min(1.0);
        for Tracked { now, new_served, new_served_per_s } in &mut self.queues {
            let served = now.new_served.saturating_sub(std::mem::replace(new_served, now.new_served));
            *new_served_per_s += share * (served as f64 * 1e6 / passed_us as f64 - *new_served_per_s);
        }
        let is_full = self.queues.iter().any(|queue| queue.now.is_full);
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let share = share as f32;
        self.saturation += share * (f32::from(u8::from(is_full)) - self.saturation);
    }

    fn judge(&mut self, now_us: u64) {
        if !self.limits.enabled {
            return;
        }
        let wait_us = self.oldest_wait_us(self.level, now_us);
        if self.is_memory_full() {
            self.calm_us = None;
            if self.level < LoadLevel::Shedding {
                self.enter(LoadLevel::Shedding, wait_us, now_us);
            }
            return;
        }
        if self.level < LoadLevel::Shedding && wait_us > self.limit_us(self.level) {
            self.calm_us = None;
            let since_us = *self.pressed_us.get_or_insert(now_us);
            if now_us.saturating_sub(since_us) >= self.limits.hold_ms.saturating_mul(1_000) {
                self.enter(self.level.up(), wait_us, now_us);
            }
            return;
        }
        self.pressed_us = None;
        let below = self.level.down();
        let is_calm = self.level > LoadLevel::Normal
            && self.oldest_wait_us(below, now_us) <= self.limit_us(below) / 2
            && self.saturation < self.limits.saturation_max;
        // What was calm when it was last looked at has been since.
        let observed_us = self.observed_us;
        if !is_calm {
            self.calm_us = None;
        } else if now_us.saturating_sub(*self.calm_us.get_or_insert(observed_us)) >= self.calm_needed_us {
            self.eased_us = Some(now_us);
            self.enter(self.level.down(), wait_us, now_us);
        }
    }

    fn enter(&mut self, level: LoadLevel, wait_us: u64, now_us: u64) {
        let (least_us, most_us) =
            (self.limits.calm_ms.saturating_mul(1_000), self.limits.calm_ms_max.saturating_mul(1_000));
        if level > self.level {
            let eased_us = self.eased_us.map_or(u64::MAX, |eased_us| now_us.saturating_sub(eased_us));
            self.calm_needed_us = if eased_us <= self.calm_needed_us { self.calm_needed_us * 2 } else { least_us };
            self.calm_needed_us = self.calm_needed_us.clamp(least_us, most_us.max(least_us));
        }
        let (wait_ms, waiting, memory_bytes) = (wait_us / 1_000, self.waiting(), self.memory_bytes);
        let (saturation, before) = (self.saturation, self.level);
        if level > before {
            tracing::warn!(%before, %level, wait_ms, waiting, saturation, memory_bytes, "load has grown");
        } else {
            tracing::info!(%before, %level, wait_ms, waiting, saturation, memory_bytes, "load has fallen");
        }
        self.level = level;
        self.entered[level as usize] += 1;
        (self.pressed_us, self.calm_us) = (None, None);
    }
}

/// The controller as the stages of all workers share it.
#[derive(Clone, Debug)]
pub struct Load(Arc<Mutex<Controller>>);

impl Load {
    /// A controller for so many queues.
    #[must_use]
    pub fn new(limits: LoadLimits, queues: usize) -> Self {
        Self(Arc::new(Mutex::new(Controller::new(limits, queues))))
    }

    /// One that lets everything pass.
    #[must_use]
    pub fn ignored() -> Self {
        let limits = LoadLimits {
            enabled: false,
            degraded_wait_ms: 0,
            shedding_wait_ms: 0,
            hold_ms: 0,
            calm_ms: 0,
            calm_ms_max: 0,
            saturation_max: 1.0,
            memory_bytes_max: 0,
        };
        Self::new(limits, TierSize::ALL.len())
    }

    /// The controller, for as long as the guard is held: a moment.
    pub fn lock(&self) -> MutexGuard<'_, Controller> {
        // Whoever panicked with it between two writes left numbers that mend themselves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
