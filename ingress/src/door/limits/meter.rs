//! What one key or one tenant has used of its limits. A pure core: it is told the time.

use std::time::Duration;

use super::rate::Rate;
use super::{Amounts, Limit};

/// When to ask again for a place that is taken: nobody knows when it becomes free.
const PLACE_WAIT: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Since the limiter began; it never goes back.
    pub(super) up: Duration,
    /// Since 1970 in UTC.
    pub(super) utc: Duration,
}

/// What is used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    requests: Rate,
    tokens: Rate,
    turns: u64,
    streams: u64,
    day: Day,
}

/// What was spent on one day, which ends at midnight UTC.
#[derive(Clone, Copy, Debug, Default)]
struct Day {
    /// Since 1970.
    number: u64,
    micros: u64,
}

impl Day {
    const fn number_at(now: Moment) -> u64 {
        now.utc.as_secs() / DAY.as_secs()
    }

    /// What was spent today.
    const fn spent(self, now: Moment) -> u64 {
        if self.number == Self::number_at(now) { self.micros } else { 0 }
    }

    fn spend(&mut self, micros: u64, now: Moment) {
        let spent = self.spent(now);
        *self = Self { number: Self::number_at(now), micros: spent.saturating_add(micros) };
    }

    fn until_midnight(now: Moment) -> Duration {
        DAY - Duration::new(now.utc.as_secs() % DAY.as_secs(), now.utc.subsec_nanos())
    }
}

impl Meter {
    /// The limit that keeps a call out for longest, and for how long; None when it may come in.
    pub(super) fn wait(&self, quota: &Amounts, need: &Amounts, now: Moment) -> Option<(Limit, Duration)> {
        // What a turn will cost is not known, so that it needs something of a budget even where its estimate is rounded to nothing.
        let is_needed = |limit| need.of(limit) > 0 || limit == Limit::Budget && need.turns > 0;
        let waits = quota.limits().filter(|&limit| is_needed(limit));
        let waits = waits.map(|limit| (limit, self.wait_for(limit, quota.of(limit), need.of(limit), now)));
        waits.filter(|(_, wait)| !wait.is_zero()).max_by_key(|(_, wait)| *wait)
    }

    fn wait_for(&self, limit: Limit, quota: u64, need: u64, now: Moment) -> Duration {
        let places = |taken: u64| if taken + need > quota { PLACE_WAIT } else { Duration::ZERO };
        match limit {
            Limit::Requests => self.requests.wait(quota, need, now.up),
            Limit::Tokens => self.tokens.wait(quota, need, now.up),
            Limit::Turns => places(self.turns),
            Limit::Streams => places(self.streams),
            // As with a rate, who needs more than a whole day has is let in when nothing is spent.
            Limit::Budget if self.day.spent(now).saturating_add(need.clamp(1, quota)) > quota => {
                Day::until_midnight(now)
            }
            Limit::Budget => Duration::ZERO,
        }
    }

    /// Takes what a call needs, of what is limited.
    pub(super) fn take(&mut self, quota: &Amounts, need: &Amounts, now: Moment) {
        self.spend(quota, need, now);
        self.turns += need.turns;
        self.streams += need.streams;
    }

    /// Gives places back.
    pub(super) fn leave(&mut self, places: &Amounts) {
        // What was taken before there was a limit was not counted.
        self.turns = self.turns.saturating_sub(places.turns);
        self.streams = self.streams.saturating_sub(places.streams);
    }

    /// Charges the rest of what a call has cost, beyond what was taken for it at `then`, or gives back what it has not.
    pub(super) fn settle(&mut self, quota: &Amounts, (taken, then): (&Amounts, Moment), cost: &Amounts, now: Moment) {
        let more = Amounts {
            tokens: cost.tokens.saturating_sub(taken.tokens),
            micros: cost.micros.saturating_sub(taken.micros),
            ..Amounts::default()
        };
        self.spend(quota, &more, now);
        if quota.tokens > 0 {
            self.tokens.give_back(quota.tokens, taken.tokens.saturating_sub(cost.tokens));
        }
        // What was charged on a day that is over is not given back on another.
        if self.day.number == Day::number_at(then) {
            self.day.micros = self.day.micros.saturating_sub(taken.micros.saturating_sub(cost.micros));
        }
    }

    fn spend(&mut self, quota: &Amounts, amounts: &Amounts, now: Moment) {
        if quota.requests > 0 {
            self.requests.take(quota.requests, amounts.requests, now.up);
        }
        if quota.tokens > 0 {
            self.tokens.take(quota.tokens, amounts.tokens, now.up);
        }
        self.day.spend(amounts.micros, now);
    }

    /// What is left of a limit.
    pub(super) fn left(&self, limit: Limit, quota: u64, now: Moment) -> u64 {
        match limit {
            Limit::Requests => self.requests.left(quota, now.up),
            Limit::Tokens => self.tokens.left(quota, now.up),
            Limit::Turns => quota.saturating_sub(self.turns),
            Limit::Streams => quota.saturating_sub(self.streams),
            Limit::Budget => quota.saturating_sub(self.day.spent(now)),
        }
    }

    /// How long until all of a limit is there again, where time brings it back.
    pub(super) fn until_whole(&self, limit: Limit, now: Moment) -> Option<Duration> {
        match limit {
            Limit::Requests => Some(self.requests.until_whole(now.up)),
            Limit::Tokens => Some(self.tokens.until_whole(now.up)),
            Limit::Turns | Limit::Streams => None,
            Limit::Budget => Some(Day::until_midnight(now)),
        }
    }

    /// Whether it is as a new one.
    pub(super) fn is_idle(&self, now: Moment) -> bool {
        let rates = [self.requests, self.tokens];
        let has_places = self.turns + self.streams > 0;
        !has_places && self.day.spent(now) == 0 && rates.iter().all(|rate| rate.until_whole(now.up).is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 20_000 * 86_400 + 43_200;

    /// So many seconds after a noon.
    fn at(second: u64) -> Moment {
        Moment { up: Duration::from_secs(second), utc: Duration::from_secs(NOON + second) }
    }

    fn turn(tokens: u64, micros: u64) -> Amounts {
        Amounts { turns: 1, tokens, micros, ..Amounts::default() }
    }

    #[test]
    fn the_longest_wait_decides_and_nothing_is_taken_by_asking() {
        let quota = Amounts { requests: 60, tokens: 600, turns: 1, streams: 0, micros: 50 };
        let mut meter = Meter::default();
        let need = turn(100, 10);
        assert_eq!(meter.wait(&quota, &need, at(0)), None);
        meter.take(&quota, &need, at(0));
        assert_eq!(meter.wait(&quota, &need, at(0)), Some((Limit::Turns, PLACE_WAIT)));
        meter.leave(&need);
        assert_eq!(meter.wait(&quota, &need, at(0)), None);
        meter.settle(&quota, (&need, at(0)), &turn(800, 20), at(0));
        // 200 tokens of debt and the 100 that are needed, at 10 a second.
        assert_eq!(meter.wait(&quota, &need, at(0)), Some((Limit::Tokens, Duration::from_secs(30))));
        assert_eq!(meter.wait(&quota, &Amounts { requests: 1, ..Amounts::default() }, at(0)), None);
        meter.settle(&quota, (&need, at(0)), &turn(100, 41), at(0));
        assert_eq!(meter.wait(&quota, &need, at(0)), Some((Limit::Budget, Duration::from_secs(43_200))));
        assert_eq!(meter.wait(&quota, &need, at(43_200)), None, "the next day");
        assert!(!meter.is_idle(at(43_199)) && meter.is_idle(at(43_200)));
    }

    #[test]
    fn a_turn_whose_estimate_costs_nothing_needs_a_budget_too() {
        let quota = Amounts { micros: 50, ..Amounts::default() };
        let mut meter = Meter::default();
        let need = turn(1, 0);
        meter.take(&quota, &need, at(0));
        assert_eq!(meter.wait(&quota, &need, at(0)), None);
        meter.settle(&quota, (&need, at(0)), &turn(1, 50), at(0));
        assert_eq!(meter.wait(&quota, &need, at(0)), Some((Limit::Budget, Duration::from_secs(43_200))));
        // What is no turn costs no money.
        assert_eq!(meter.wait(&quota, &Amounts { requests: 1, ..Amounts::default() }, at(0)), None);
    }

    #[test]
    fn what_was_charged_yesterday_is_not_given_back_today() {
        let quota = Amounts { micros: 50, ..Amounts::default() };
        let mut meter = Meter::default();
        meter.take(&quota, &turn(1, 40), at(0));
        meter.take(&quota, &turn(1, 10), at(43_200));
        meter.settle(&quota, (&turn(1, 40), at(0)), &turn(1, 0), at(43_201));
        assert_eq!(meter.left(Limit::Budget, 50, at(43_201)), 40);
    }

    #[test]
    fn what_a_call_has_not_cost_comes_back() {
        let quota = Amounts { tokens: 600, micros: 50, ..Amounts::default() };
        let mut meter = Meter::default();
        let need = turn(100, 10);
        meter.take(&quota, &need, at(0));
        assert_eq!((meter.left(Limit::Tokens, 600, at(0)), meter.left(Limit::Budget, 50, at(0))), (500, 40));
        meter.settle(&quota, (&need, at(0)), &Amounts::default(), at(0));
        meter.leave(&need);
        assert_eq!((meter.left(Limit::Tokens, 600, at(0)), meter.left(Limit::Budget, 50, at(0))), (600, 50));
        assert!(meter.is_idle(at(0)));
    }
}
