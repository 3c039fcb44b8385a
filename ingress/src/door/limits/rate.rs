//! A rate: so many units a minute, by the generic cell rate algorithm (ITU-T I.371, annex A, as a virtual schedule).
//!
//! What a minute allows may come at once, and grows back evenly. One number is kept: when all of it will be there again. What a call has
//! cost beyond what was taken for it just moves that time, into debt if need be, and whoever comes next waits for it.
//!
//! No clock here: times are told, and count from whenever the teller likes.

use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// What is used of a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rate {
    /// When nothing of it is used any more.
    whole: Duration,
}

impl Rate {
    /// How long until these units are there. Who needs more than a minute has waits until all of it is there, and no longer.
    pub(super) fn wait(self, per_minute: u64, units: u64, now: Duration) -> Duration {
        let whole = self.whole.max(now) + time_of(units.min(per_minute), per_minute);
        whole.saturating_sub(now + MINUTE)
    }

    /// Takes units, whether they are there or not.
    pub(super) fn take(&mut self, per_minute: u64, units: u64, now: Duration) {
        self.whole = self.whole.max(now) + time_of(units, per_minute);
    }

    /// Gives units back that were taken.
    pub(super) fn give_back(&mut self, per_minute: u64, units: u64) {
        self.whole = self.whole.saturating_sub(time_of(units, per_minute));
    }

    /// Units that are there.
    pub(super) fn left(self, per_minute: u64, now: Duration) -> u64 {
        let unused = MINUTE.saturating_sub(self.until_whole(now));
        let units = unused.as_nanos() * u128::from(per_minute) / MINUTE.as_nanos();
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// How long until nothing of it is used.
    pub(super) fn until_whole(self, now: Duration) -> Duration {
        self.whole.saturating_sub(now)
    }
}

/// How long so many units take to grow.
fn time_of(units: u64, per_minute: u64) -> Duration {
    let nanos = MINUTE.as_nanos() * u128::from(units) / u128::from(per_minute.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_minutes_units_may_come_at_once_and_grow_back_evenly() {
        let mut rate = Rate::default();
        for left in (0..60).rev() {
            assert_eq!(rate.wait(60, 1, at(0)), Duration::ZERO);
            rate.take(60, 1, at(0));
            assert_eq!(rate.left(60, at(0)), left);
        }
        assert_eq!((rate.wait(60, 1, at(0)), rate.wait(60, 5, at(0))), (at(1_000), at(5_000)));
        assert_eq!((rate.wait(60, 1, at(400)), rate.left(60, at(999))), (at(600), 0));
        assert_eq!((rate.wait(60, 1, at(1_000)), rate.left(60, at(1_000))), (Duration::ZERO, 1));
        assert_eq!((rate.until_whole(at(0)), rate.left(60, at(90_000))), (MINUTE, 60));
    }

    #[test]
    fn a_debt_is_paid_before_anything_else() {
        let mut rate = Rate::default();
        rate.take(600, 10, at(0));
        rate.take(600, 1_190, at(0));
        assert_eq!((rate.left(600, at(0)), rate.wait(600, 1, at(0))), (0, at(60_100)));
        rate.give_back(600, 300);
        assert_eq!(rate.wait(600, 1, at(0)), at(30_100));
    }

    #[test]
    fn who_needs_more_than_a_minute_has_is_let_in_when_all_is_there() {
        let mut rate = Rate::default();
        assert_eq!(rate.wait(10, 1_000, at(0)), Duration::ZERO);
        rate.take(10, 1, at(0));
        assert_eq!(rate.wait(10, 1_000, at(0)), at(6_000));
    }

    /// The slow, obvious one: a bucket that is filled nanosecond by nanosecond, in parts of a unit so that it counts exactly.
    struct Bucket {
        per_minute: i128,
        level: i128,
    }

    /// Parts of a unit.
    const PARTS: i128 = MINUTE.as_nanos() as i128;

    impl Bucket {
        fn pass(&mut self, time: Duration) {
            self.level += self.per_minute * time.as_nanos() as i128;
            self.level = self.level.min(self.per_minute * PARTS);
        }

        fn wait(&self, units: u64) -> Duration {
            let missing = i128::from(units).min(self.per_minute) * PARTS - self.level;
            Duration::from_nanos(u64::try_from(missing.max(0).div_euclid(self.per_minute)).expect("in range"))
        }
    }

    proptest! {
        #[test]
        fn a_bucket_decides_the_same(
            // So that a unit takes a whole number of nanoseconds.
            per_minute in prop::sample::select(vec![1_u64, 6, 60, 600, 10_000]),
            calls in prop::collection::vec((0_u64..5_000, 0_u64..40, 0_u64..60), 1..200),
        ) {
            let mut bucket = Bucket { per_minute: per_minute.into(), level: i128::from(per_minute) * PARTS };
            let (mut rate, mut now) = (Rate::default(), Duration::ZERO);
            for (pause_ms, estimate, actual) in calls {
                now += at(pause_ms);
                bucket.pass(at(pause_ms));
                let wait = rate.wait(per_minute, estimate, now);
                prop_assert_eq!(wait, bucket.wait(estimate));
                prop_assert_eq!(i128::from(rate.left(per_minute, now)), (bucket.level / PARTS).max(0));
                if wait.is_zero() {
                    rate.take(per_minute, estimate, now);
                    rate.take(per_minute, actual.saturating_sub(estimate), now);
                    rate.give_back(per_minute, estimate.saturating_sub(actual));
                    bucket.level -= i128::from(actual) * PARTS;
                }
            }
        }

        /// No more is taken in any stretch of time than its minutes allow, whatever is charged afterwards.
        #[test]
        fn in_the_long_run_the_rate_holds(
            per_minute in 1_u64..2_000,
            calls in prop::collection::vec((0_u64..2_000, 0_u64..50, 0_u64..200), 1..200),
        ) {
            let (mut rate, mut now, mut taken) = (Rate::default(), Duration::ZERO, 0);
            for (pause_ms, estimate, actual) in calls {
                now += at(pause_ms);
                let wait = rate.wait(per_minute, estimate, now);
                now += wait;
                prop_assert!(rate.wait(per_minute, estimate, now).is_zero(), "the wait that was told is enough");
                rate.take(per_minute, estimate, now);
                match actual.checked_sub(estimate) {
                    Some(rest) => rate.take(per_minute, rest, now),
                    None => rate.give_back(per_minute, estimate - actual),
                }
                taken += actual;
                let allowed = (now + MINUTE).as_nanos() * u128::from(per_minute) / MINUTE.as_nanos();
                prop_assert!(u128::from(taken) <= allowed + u128::from(actual.max(estimate)) + 1, "{} of {}", taken, allowed);
            }
        }
    }
}
