//! A phase second by second, and when it was as before again after too much load.

use std::time::Duration;

use serde::Serialize;

use super::sample::{Class, Outcome, Sample};
use super::summary::Quantiles;

/// It is as before when the median of new turns is at most so many times what it was.
const SLOWER_MAX: f64 = 1.5;
/// And when that holds for so many seconds in a row.
const CALM_SECONDS: usize = 3;

/// What became of the turns that were due in one second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Second {
    /// First turns of conversations.
    pub new: Slice,
    /// Turns of conversations that had an answer.
    pub ongoing: Slice,
}

/// The turns of one class that were due in one second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// Turns that were sent.
    pub offered: u64,
    /// Of them, answered in time.
    pub answered: u64,
    /// Of them, refused.
    pub refused: u64,
    /// Time until the end of an answer, late ones included.
    pub total: Option<Quantiles>,
}

impl Second {
    /// The seconds of a stretch that begins `from` after the phase did. The last one may be cut short.
    #[must_use]
    pub fn all(samples: &[Sample], from: Duration, length: Duration) -> Vec<Self> {
        let mut seconds = vec![Vec::new(); length.as_secs_f64().ceil() as usize];
        for sample in samples {
            let place = sample.due.checked_sub(from).map(|since| since.as_secs() as usize);
            if let Some(second) = place.and_then(|place| seconds.get_mut(place)) {
                second.push(*sample);
            }
        }
        let slice = |samples: &[Sample], class| Slice::of(samples.iter().filter(|sample| sample.class == class));
        let second =
            |samples: &Vec<Sample>| Self { new: slice(samples, Class::New), ongoing: slice(samples, Class::Ongoing) };
        seconds.iter().map(second).collect()
    }

    /// The part of a class.
    #[must_use]
    pub const fn of(&self, class: Class) -> &Slice {
        match class {
            Class::New => &self.new,
            Class::Ongoing => &self.ongoing,
        }
    }

    /// Whether nothing is refused, and new turns are about as fast as they normally are; None where nobody tried.
    fn is_calm(&self, normal_us: u64) -> Option<bool> {
        let is_quick = |times: Quantiles| times.p50_us as f64 <= normal_us as f64 * SLOWER_MAX;
        if self.new.refused + self.ongoing.refused > 0 {
            Some(false)
        } else {
            (self.new.offered > 0).then(|| self.new.total.is_some_and(is_quick))
        }
    }
}

impl Slice {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Self {
        let count = |outcome| samples.clone().filter(|sample| sample.outcome == outcome).count() as u64;
        Self {
            offered: samples.clone().count() as u64,
            answered: count(Outcome::Answered),
            refused: count(Outcome::Refused),
            total: Quantiles::of(samples.filter(|sample| sample.has_answer()).map(|sample| sample.total_us)),
        }
    }
}

/// When it was as before, from the seconds after the load fell. `normal_us` is the median of new turns before, until the end of their
/// answers; None where there is none. Seconds in which nobody tried say nothing, and are passed over.
#[must_use]
pub fn recovery(after: &[Second], normal_us: Option<u64>) -> Recovery {
    let Some(normal_us) = normal_us else { return Recovery::Unknown("no new turns were answered at a load below 1 x") };
    let calm = |(place, second): (usize, &Second)| Some((place, second.is_calm(normal_us)?));
    let calm: Vec<(usize, bool)> = after.iter().enumerate().filter_map(calm).collect();
    if calm.len() < CALM_SECONDS {
        return Recovery::Unknown("new turns came in fewer than 3 seconds of it");
    }
    let row = calm.windows(CALM_SECONDS).find(|row| row.iter().all(|&(_, is_calm)| is_calm));
    row.map_or(Recovery::Never, |row| Recovery::AfterS(row[0].0))
}

/// When it was as before, after the load had fallen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// After so many seconds.
    AfterS(usize),
    /// Not while the load was low.
    Never,
    /// It cannot be told, and why.
    Unknown(&'static str),
}

#[cfg(test)]
mod tests {
    use super::super::sample::fixtures::sample;
    use super::*;

    /// Seconds of three turns each: the times of new turns, in milliseconds; 0 for one that is refused.
    fn seconds(times_ms: &[[u64; 3]]) -> Vec<Second> {
        let turn = |(second, &time_ms): (usize, &u64)| {
            let outcome = if time_ms == 0 { Outcome::Refused } else { Outcome::Answered };
            sample(10_000 + second as u64 * 1_000 + 500, Class::New, outcome, time_ms)
        };
        let turns =
            times_ms.iter().enumerate().flat_map(|(second, times)| times.iter().map(move |time| (second, time)));
        let samples: Vec<_> = turns.map(turn).collect();
        Second::all(&samples, Duration::from_secs(10), Duration::from_secs(times_ms.len() as u64))
    }

    #[test]
    fn turns_belong_to_the_second_in_which_they_were_due() {
        let samples = [
            sample(9_999, Class::New, Outcome::Answered, 1),
            sample(10_000, Class::New, Outcome::Answered, 5_000),
            sample(10_999, Class::Ongoing, Outcome::Refused, 1),
            sample(11_000, Class::Ongoing, Outcome::Late, 9),
            sample(12_500, Class::New, Outcome::Answered, 1),
        ];
        let found = Second::all(&samples, Duration::from_secs(10), Duration::from_millis(1_500));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].new.offered, found[0].new.answered, found[0].ongoing.refused), (1, 1, 1));
        assert_eq!(found[0].new.total.map(|times| times.p50_us), Some(5_000_000), "however long it took");
        assert_eq!((found[1].new.offered, found[1].ongoing.offered, found[1].ongoing.answered), (0, 1, 0));
        assert_eq!(found[1].ongoing.total.map(|times| times.max_us), Some(9_000));
    }

    #[test]
    fn recovery_is_when_new_turns_are_quick_and_none_is_refused() {
        let slow = [20, 40, 40];
        let quick = [15, 15, 100];
        let refusing = [10, 0, 10];
        let check = |times: &[[u64; 3]], expected: Recovery| {
            assert_eq!(recovery(&seconds(times), Some(10_000)), expected, "{times:?}");
        };
        check(&[quick, quick, quick], Recovery::AfterS(0));
        check(&[slow, refusing, quick, quick, quick, slow], Recovery::AfterS(2));
        // It has to last.
        check(&[slow, quick, quick, refusing, quick, quick, quick], Recovery::AfterS(4));
        check(&[slow, quick, quick], Recovery::Never);
        check(&[slow; 5], Recovery::Never);
        // Of a median of 20 ms, the slow ones are not.
        assert_eq!(recovery(&seconds(&[slow; 3]), Some(27_000)), Recovery::AfterS(0));
    }

    #[test]
    fn a_second_without_answers_is_not_calm() {
        let failed = |at| sample(at, Class::New, Outcome::Failed, 1);
        let found = Second::all(&[0, 1_000, 2_000].map(failed), Duration::ZERO, Duration::from_secs(6));
        assert_eq!(recovery(&found, Some(10_000)), Recovery::Never);
    }

    #[test]
    fn what_cannot_be_told_is_not() {
        let turn = |at_ms| sample(at_ms, Class::New, Outcome::Answered, 10);
        let check = |turns: &[u64], expected: fn(Recovery) -> bool| {
            let samples: Vec<_> = turns.iter().map(|&at_ms| turn(at_ms)).collect();
            let found = recovery(&Second::all(&samples, Duration::ZERO, Duration::from_secs(6)), Some(10_000));
            assert!(expected(found), "{turns:?}: {found:?}");
        };
        check(&[], |found| matches!(found, Recovery::Unknown(_)));
        check(&[0, 4_000], |found| matches!(found, Recovery::Unknown(_)));
        // Seconds without new turns say nothing.
        check(&[1_000, 3_000, 5_000], |found| found == Recovery::AfterS(1));
        assert!(matches!(recovery(&[], Some(1)), Recovery::Unknown(_)));
        assert!(matches!(recovery(&seconds(&[[1; 3]; 3]), None), Recovery::Unknown(_)));
    }
}
