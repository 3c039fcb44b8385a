//! How fast a log is replayed, and when each of its turns is due.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Fastest and slowest multiple of the log's own clock.
const FACTOR_RANGE: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

/// How fast a log is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as answers come back: a closed loop with a bounded number of turns in flight.
    Max,
    /// On the log's own clock, so many times faster: an open loop, in which a turn comes when its time is there,
    /// whether or not earlier ones were answered.
    Times(f64),
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let factor = match text {
            "max" => return Ok(Self::Max),
            "real" => return Ok(Self::Times(1.0)),
            _ => text.strip_suffix('x').and_then(|number| number.parse::<f64>().ok()),
        };
        match factor {
            Some(factor) if FACTOR_RANGE.contains(&factor) => Ok(Self::Times(factor)),
            Some(_) => {
                Err(format!("a factor between {}x and {}x is possible", FACTOR_RANGE.start(), FACTOR_RANGE.end()))
            }
            None => Err("expected max, real, or a factor such as 10x".to_owned()),
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Times(factor) => write!(f, "{factor}x"),
        }
    }
}

/// Turns the log's clock into ours: the first turn is due at once.
pub(super) struct Schedule {
    factor: f64,
    origin: Option<(Instant, Timestamp)>,
    latest: Duration,
}

impl Schedule {
    pub(super) fn new(factor: f64) -> Self {
        Self { factor, origin: None, latest: Duration::ZERO }
    }

    /// Starts the clock, unless it runs: what is dated `at` is due now.
    pub(super) fn begin(&mut self, at: Timestamp, now: Instant) -> (Instant, Timestamp) {
        *self.origin.get_or_insert((now, at))
    }

    /// When a turn or an edit is due. One that the log dates before an earlier line is due with that line.
    pub(super) fn due(&mut self, at: Timestamp, now: Instant) -> Instant {
        let (start, first) = self.begin(at, now);
        let after_us = at.as_microsecond().saturating_sub(first.as_microsecond());
        let offset = Duration::try_from_secs_f64(after_us as f64 / 1e6 / self.factor).unwrap_or(Duration::ZERO);
        self.latest = self.latest.max(offset);
        start + self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_parsed() {
        let check = |text: &str, expected: Option<Speed>| assert_eq!(text.parse::<Speed>().ok(), expected, "{text}");
        check("max", Some(Speed::Max));
        check("real", Some(Speed::Times(1.0)));
        check("10x", Some(Speed::Times(10.0)));
        check("0.5x", Some(Speed::Times(0.5)));
        for text in ["", "x", "10", "-1x", "0x", "NaNx", "infx", "1e9x", "fast"] {
            check(text, None);
        }
    }

    #[test]
    fn turns_and_edits_are_due_on_the_logs_clock() {
        let start = Instant::now();
        let mut schedule = Schedule::new(10.0);
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        schedule.begin(time("2026-03-02T09:00:00Z"), start);
        schedule.begin(time("2026-03-02T09:00:01Z"), start);
        let mut due_ms = |text: &str| (schedule.due(time(text), start) - start).as_millis();
        assert_eq!(due_ms("2026-03-02T08:00:00Z"), 0, "an edit before the first turn");
        assert_eq!(due_ms("2026-03-02T09:00:00Z"), 0);
        assert_eq!(due_ms("2026-03-02T09:00:05Z"), 500);
        assert_eq!(due_ms("2026-03-02T08:00:00Z"), 500, "never before an earlier line");
        assert_eq!(due_ms("2026-03-02T09:00:10Z"), 1000);
    }
}
