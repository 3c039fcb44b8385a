//! A circuit breaker: a server that keeps failing is left alone for a while.
//!
//! Contract: closed, every request may go. After so many failures in a row it opens, and none may. After a rest it is half
//! open: one request may go, the probe, and others wait for what comes of it. At its first token the breaker closes, else it opens
//! again; until an answer has ended well, one more failure opens it. What comes of requests that began in an earlier state does not count. It reads no clock.
//!
//! Source: M. Nygard, "Release It!", the chapter on stability patterns.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::fault::RemoteFault;

/// Whether a server is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    #[default]
    Closed,
    /// It rests.
    Open,
    /// One request tries whether it is well again.
    HalfOpen,
}

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BreakerLimits {
    /// Failures in a row that open it.
    pub(crate) failures: u32,
    /// How long the server rests.
    pub(crate) rest: Duration,
}

/// The breaker of one server; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    inner: Arc<Mutex<Inner>>,
    /// Told when something has come of a request.
    changed: Arc<Notify>,
}

/// Why a request may not go now.
#[derive(Debug)]
pub(crate) enum Held {
    /// The server rests.
    Resting(RemoteFault),
    /// Another request is trying whether it is well again.
    Probing,
}

#[derive(Debug)]
struct Inner {
    limits: BreakerLimits,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// Goes up with each change of state, so that what comes late can be told.
    generation: u64,
    opened: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(limits: BreakerLimits) -> Self {
        let inner = Inner { limits, state: State::Closed, failures: 0, generation: 0, opened: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::default() }
    }

    /// Asks whether a request may go at `now`.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass, Held> {
        let mut inner = self.lock();
        if let State::Open { until } = inner.state
            && now >= until
        {
            inner.change(State::HalfOpen { probing: false });
        }
        match &mut inner.state {
            State::Open { until } => {
                let wait = until.saturating_duration_since(now);
                let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                return Err(Held::Resting(RemoteFault::Resting { failures: inner.failures, retry_ms }));
            }
            State::HalfOpen { probing: true } => return Err(Held::Probing),
            State::HalfOpen { probing } => *probing = true,
            State::Closed => {}
        }
        Ok(Pass { breaker: self.clone(), generation: inner.generation, is_told: false })
    }

    /// Comes when something has come of a request since this was called.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The state, and how often the breaker has opened.
    pub(crate) fn state(&self) -> (BreakerState, u64) {
        let inner = self.lock();
        let state = match inner.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        };
        (state, inner.opened)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what comes of a request, unless it began in an earlier state, and wakes those who wait for that.
    fn take(&self, generation: u64, what: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        if inner.generation == generation {
            what(&mut inner);
        }
        drop(inner);
        self.changed.notify_waiters();
    }
}

impl Inner {
    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let is_probe = matches!(self.state, State::HalfOpen { .. });
        if is_probe || self.failures >= self.limits.failures {
            // A rest beyond the end of time is no rest; it cannot be configured either.
            let until = now.checked_add(self.limits.rest).unwrap_or(now);
            self.change(State::Open { until });
            self.opened += 1;
        }
    }

    fn did_well(&mut self) {
        self.failures = 0;
        if matches!(self.state, State::HalfOpen { .. }) {
            self.change(State::Closed);
        }
    }
}

/// Leave to send one request. Dropped without a word, the request says nothing about the server.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Breaker,
    generation: u64,
    is_told: bool,
}

impl Pass {
    /// The server has begun to answer. A probe lets the others go: an answer may take long.
    pub(crate) fn spoke(&self) {
        self.breaker.take(self.generation, |inner| {
            if matches!(inner.state, State::HalfOpen { .. }) {
                // Not another generation: what the probe comes to counts still.
                inner.state = State::Closed;
            }
        });
    }

    /// The server did well.
    pub(crate) fn did_well(self) {
        self.tell(Inner::did_well);
    }

    /// The server is at fault.
    pub(crate) fn failed(self, now: Instant) {
        self.tell(|inner| inner.failed(now));
    }

    fn tell(mut self, what: impl FnOnce(&mut Inner)) {
        self.is_told = true;
        self.breaker.take(self.generation, what);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        self.breaker.take(self.generation, |inner| {
            if let State::HalfOpen { probing } = &mut inner.state {
                *probing = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(10);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerLimits { failures: 3, rest: REST }), Instant::now())
    }

    fn open(breaker: &Breaker, now: Instant) {
        (0..3).for_each(|_| breaker.admit(now).expect("closed").failed(now));
        assert_eq!(breaker.state().0, BreakerState::Open);
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let (breaker, now) = breaker();
        for _ in 0..5 {
            breaker.admit(now).expect("closed").failed(now);
            breaker.admit(now).expect("closed").failed(now);
            breaker.admit(now).expect("closed").did_well();
        }
        assert_eq!(breaker.state(), (BreakerState::Closed, 0), "two failures between successes are not three in a row");
        open(&breaker, now);
        let Err(Held::Resting(told)) = breaker.admit(now + Duration::from_secs(4)) else { panic!("it rests") };
        assert_eq!(told.to_string(), "not asked: the server failed 3 times in a row, next try in 6 s");
    }

    #[test]
    fn one_probe_decides() {
        let (breaker, now) = breaker();
        open(&breaker, now);
        let probe = breaker.admit(now + REST).expect("the probe");
        assert_eq!(breaker.state().0, BreakerState::HalfOpen);
        assert!(matches!(breaker.admit(now + REST), Err(Held::Probing)), "one probe at a time");
        drop(probe);
        let probe = breaker.admit(now + REST).expect("the first one said nothing: another may try");
        probe.failed(now + REST);
        assert_eq!(breaker.state(), (BreakerState::Open, 2));
        breaker.admit(now + REST + REST / 2).expect_err("it rests again");
        breaker.admit(now + REST * 2).expect("the probe").did_well();
        assert_eq!(breaker.state(), (BreakerState::Closed, 2));
        let all: Vec<_> = (0..5).map(|_| breaker.admit(now + REST * 2).expect("closed")).collect();
        all.into_iter().for_each(Pass::did_well);
    }

    #[test]
    fn a_probe_that_speaks_closes_it() {
        let (breaker, now) = breaker();
        open(&breaker, now);
        let probe = breaker.admit(now + REST).expect("the probe");
        probe.spoke();
        assert_eq!(breaker.state().0, BreakerState::Closed);
        breaker.admit(now + REST).expect("the others go while the probe is answered").spoke();
        probe.failed(now + REST);
        assert_eq!(breaker.state(), (BreakerState::Open, 2), "it broke off: one failure is enough");
        let probe = breaker.admit(now + REST * 2).expect("the probe");
        probe.spoke();
        probe.did_well();
        for _ in 0..2 {
            let pass = breaker.admit(now + REST * 2).expect("closed");
            pass.spoke();
            pass.failed(now + REST * 2);
        }
        assert_eq!(breaker.state().0, BreakerState::Closed, "it is as it was");
        let pass = breaker.admit(now + REST * 2).expect("closed");
        pass.spoke();
        pass.failed(now + REST * 2);
        assert_eq!(breaker.state().0, BreakerState::Open, "first tokens make up for no failure");
    }

    #[test]
    fn what_comes_late_does_not_count() {
        let (breaker, now) = breaker();
        let [early, earlier] = [breaker.admit(now).expect("closed"), breaker.admit(now).expect("closed")];
        open(&breaker, now);
        early.did_well();
        assert_eq!(breaker.state().0, BreakerState::Open);
        let probe = breaker.admit(now + REST).expect("the probe");
        earlier.failed(now + REST);
        assert_eq!(breaker.state().0, BreakerState::HalfOpen);
        probe.did_well();
        assert_eq!(breaker.state().0, BreakerState::Closed);
    }
}
