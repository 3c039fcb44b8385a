//! How long to wait before a request is sent again.
//!
//! Exponential backoff with full jitter: the wait is drawn evenly between nothing and a bound that doubles with each attempt. Where the
//! server names a time, that is waited in full, and the drawn time on top, so that those who were told the same time do not
//! come back together. It reads no clock and draws nothing itself.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::{Duration, SystemTime};

/// Longest time that a server may ask for; more is taken for this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait before attempt `attempt` (from 1), for a draw from [0, 1).
pub(crate) fn wait(
    attempt: u32,
    draw: f64,
    first: Duration,
    longest: Duration,
    retry_after: Option<Duration>,
) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    let drawn = doubled.min(longest).mul_f64(draw.clamp(0.0, 1.0));
    retry_after.unwrap_or_default().saturating_add(drawn)
}

/// What the headers `Retry-After-Ms` and `Retry-After` ask for; the latter in seconds or as a date.
pub(crate) fn asked_for(millis: Option<&str>, seconds_or_date: Option<&str>, now: SystemTime) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| *number >= 0.0);
    let bounded = |seconds: f64| Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64()));
    if let Some(millis) = millis.and_then(number) {
        return Some(bounded(millis / 1000.0));
    }
    let text = seconds_or_date?;
    if let Some(seconds) = number(text) {
        return Some(bounded(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_bound_doubles() {
        let bound = |attempt| wait(attempt, 1.0, 100 * MS, 1000 * MS, None).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 6, u32::MAX].map(bound), [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(wait(3, 0.25, 100 * MS, 1000 * MS, None), 100 * MS);
        assert_eq!(wait(3, 0.0, 100 * MS, 1000 * MS, None), Duration::ZERO);
        assert_eq!(wait(1, 0.5, 100 * MS, 1000 * MS, Some(7000 * MS)), 7050 * MS);
    }

    #[test]
    fn what_a_server_asks_for() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (millis, seconds, expected) in [
            (None, None, None),
            (None, Some("3"), Some(3000)),
            (None, Some(" 0.5 "), Some(500)),
            (Some("250"), Some("3"), Some(250)),
            (Some("soon"), Some("3"), Some(3000)),
            (None, Some("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10_000)),
            (None, Some("Sun, 06 Nov 1994 08:49:27 GMT"), Some(0)),
            (None, Some("Fri, 31 Dec 9999 23:59:59 GMT"), Some(86_400_000)),
            (None, Some("1e300"), Some(86_400_000)),
            (None, Some("inf"), Some(86_400_000)),
            (None, Some("-1"), None),
            (None, Some("NaN"), None),
            (None, Some("tomorrow"), None),
        ] {
            let found = asked_for(millis, seconds, now).map(|wait| wait.as_millis());
            assert_eq!(found, expected, "{millis:?} {seconds:?}");
        }
    }
}
