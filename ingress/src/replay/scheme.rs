//! What keeps cached answers in step with the knowledge base during a replay, by its name on the command line.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use turnflow_pipeline::{CacheConfig, Validity};

/// Longest time to live, in seconds: ten years.
const TTL_S_MAX: u64 = 10 * 365 * 24 * 3600;

/// A way to keep cached answers in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// No answer is served that no longer follows from the knowledge base.
    Exact,
    /// An answer is served for so many seconds, whatever becomes of the knowledge base.
    Ttl(u64),
    /// An answer is served for ever.
    None,
}

impl Scheme {
    /// Those that are worth comparing.
    pub const COMPARED: [Self; 4] = [Self::Exact, Self::Ttl(60), Self::Ttl(600), Self::None];

    /// Sets the caches to it.
    pub fn configure(self, cache: &mut CacheConfig) {
        (cache.validity, cache.ttl_s) = match self {
            Self::Exact => (Validity::Exact, 0),
            Self::Ttl(ttl_s) => (Validity::Off, ttl_s),
            Self::None => (Validity::Off, 0),
        };
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exact" => Ok(Self::Exact),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("ttl=").and_then(seconds) {
                Some(ttl_s @ 1..=TTL_S_MAX) => Ok(Self::Ttl(ttl_s)),
                Some(_) => Err(format!("a time to live between 1s and {TTL_S_MAX}s is possible")),
                None => Err("expected exact, none, or a time to live such as ttl=60s, ttl=10m or ttl=1h".to_owned()),
            },
        }
    }
}

/// A whole number of seconds, minutes or hours.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(number.parse::<u64>().ok()?.saturating_mul(unit_s))
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Ttl(ttl_s) => write!(f, "ttl={ttl_s}s"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Serialize for Scheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::Config;

    use super::*;

    #[test]
    fn schemes_are_parsed() {
        let check = |text: &str, expected: Option<Scheme>| assert_eq!(text.parse::<Scheme>().ok(), expected, "{text}");
        check("exact", Some(Scheme::Exact));
        check("none", Some(Scheme::None));
        check("ttl=60s", Some(Scheme::Ttl(60)));
        check("ttl=10m", Some(Scheme::Ttl(600)));
        check("ttl=2h", Some(Scheme::Ttl(7200)));
        for text in [
            "",
            "off",
            "ttl",
            "ttl=",
            "ttl=s",
            "ttl=60",
            "ttl=0s",
            "ttl=-1s",
            "ttl=+1s",
            "ttl=1.5h",
            "ttl=1d",
            "ttl=1ä",
            "ttl=99999999999999999999s",
            "ttl=18446744073709551615h",
            "TTL=60s",
        ] {
            check(text, None);
        }
        for scheme in Scheme::COMPARED {
            check(&scheme.to_string(), Some(scheme));
        }
    }

    #[test]
    fn a_scheme_sets_both_settings() {
        let mut cache = Config::defaults().cache;
        for (scheme, expected) in [
            (Scheme::Ttl(60), (Validity::Off, 60)),
            (Scheme::Exact, (Validity::Exact, 0)),
            (Scheme::Ttl(7), (Validity::Off, 7)),
            (Scheme::None, (Validity::Off, 0)),
        ] {
            scheme.configure(&mut cache);
            assert_eq!((cache.validity, cache.ttl_s), expected);
        }
    }
}
