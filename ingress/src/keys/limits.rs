//! Limits of one key: those of its own, which go before the configured ones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use turnflow_pipeline::CallerLimits;

/// The names of all limits.
const NAMES: &str = "requests-per-minute, tokens-per-minute, turns-in-flight, streams, budget-per-day";

/// What a key has of its own; the rest is as configured in `[gateway.limits.key]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct KeyLimits {
    /// Requests a minute; 0 for no limit, here and below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens read and written for it in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Turns that are being answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns_in_flight: Option<u32>,
    /// Streams that are open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
    /// What it may cost on a day of UTC, in the configured currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_per_day: Option<f64>,
}

impl KeyLimits {
    /// The key's limits, where these are the configured ones.
    #[must_use]
    pub fn over(&self, configured: CallerLimits) -> CallerLimits {
        CallerLimits {
            requests_per_minute: self.requests_per_minute.unwrap_or(configured.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.unwrap_or(configured.tokens_per_minute),
            turns_in_flight: self.turns_in_flight.unwrap_or(configured.turns_in_flight),
            streams: self.streams.unwrap_or(configured.streams),
            budget_per_day: self.budget_per_day.unwrap_or(configured.budget_per_day),
        }
    }

    /// Whether the key has none of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn set(&mut self, name: &str, number: &str) -> Result<(), String> {
        let expected = |what: &str| format!("{name}={number}: expected {what}, 0 for no limit");
        let whole = |limit: &mut Option<u32>| match number.parse() {
            Ok(number) => Ok(limit.replace(number).is_some()),
            Err(_) => Err(expected(&format!("a whole number up to {}", u32::MAX))),
        };
        let was_set = match name {
            "requests-per-minute" => whole(&mut self.requests_per_minute),
            "tokens-per-minute" => whole(&mut self.tokens_per_minute),
            "turns-in-flight" => whole(&mut self.turns_in_flight),
            "streams" => whole(&mut self.streams),
            "budget-per-day" => match number.parse() {
                Ok(number) => Ok(self.budget_per_day.replace(number).is_some()),
                Err(_) => Err(expected("a number such as 2.50")),
            },
            _ => Err(format!("there is no limit {name:?}, expected one of {NAMES}")),
        };
        if was_set? { Err(format!("{name} is given twice")) } else { Ok(()) }
    }

    /// Checks what makes sense.
    ///
    /// # Errors
    /// Names the limit that does not.
    pub fn check(&self) -> Result<(), String> {
        self.over(CallerLimits::default()).check().map_err(|(name, message)| format!("{name}: {message}"))
    }
}

impl FromStr for KeyLimits {
    type Err = String;

    /// Reads `NAME=NUMBER,NAME=NUMBER`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for pair in text.split(',') {
            let (name, number) = pair.split_once('=').ok_or_else(|| format!("{pair:?}: expected NAME=NUMBER"))?;
            limits.set(name.trim(), number.trim())?;
        }
        limits.check()?;
        Ok(limits)
    }
}

impl fmt::Display for KeyLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = toml::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&lines.trim_end().replace(" = ", "=").replace('\n', ","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        let limits: KeyLimits = "requests-per-minute=60, budget-per-day=5".parse().expect("limits");
        let expected = KeyLimits { requests_per_minute: Some(60), budget_per_day: Some(5.0), ..KeyLimits::default() };
        assert_eq!(limits, expected);
        assert_eq!(limits.to_string(), "requests-per-minute=60,budget-per-day=5.0");
        assert_eq!(limits.to_string().parse(), Ok(limits));
        let check = |text: &str, expected: &str| {
            let error = text.parse::<KeyLimits>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("requests=60", "there is no limit \"requests\", expected one of requests-per-minute, tokens-per-minute");
        check("streams=-1", "streams=-1: expected a whole number up to 4294967295, 0 for no limit");
        check("streams=2, streams=3", "streams is given twice");
        check("streams", "\"streams\": expected NAME=NUMBER");
        check("streams=1,", "\"\": expected NAME=NUMBER");
        check("budget-per-day=much", "budget-per-day=much: expected a number such as 2.50, 0 for no limit");
        check("budget-per-day=-1", "budget-per-day: must be");
        check("budget-per-day=nan", "budget-per-day: must be");
    }

    #[test]
    fn a_keys_own_limits_go_before_the_configured_ones() {
        let configured = CallerLimits { requests_per_minute: 9, streams: 2, ..CallerLimits::default() };
        let own: KeyLimits = "streams=0,tokens-per-minute=5".parse().expect("limits");
        assert_eq!(own.over(configured), CallerLimits { streams: 0, tokens_per_minute: 5, ..configured });
        assert!(!own.is_empty() && KeyLimits::default().is_empty());
    }
}
