//! What a request's `Cache-Control` (RFC 9111, section 5.2.1) means for the caches. It can only narrow what they do.
//!
//! `no-cache` has the question answered anew, and `no-store` keeps the answer out of the caches. An answer that was asked for with
//! `no-cache` is kept out as well: who does not trust the caches shall not fill them for others. `max-age` says how old, in seconds, an answer may be.
//! `only-if-cached` takes an answer from a cache or none. What else a request may say speaks of nothing that Turnflow has.

use axum::http::{HeaderMap, header};
use turnflow_pipeline::Wishes;
use turnflow_state::CacheControl;

use super::error::ApiError;

/// Reads the headers of a request.
pub(super) fn control(headers: &HeaderMap) -> Result<(CacheControl, Wishes), ApiError> {
    let (mut reads, mut writes, mut wishes) = (true, true, Wishes::default());
    for value in headers.get_all(header::CACHE_CONTROL) {
        let invalid = |message: String| ApiError::invalid("Cache-Control", message);
        let value = value.to_str().map_err(|_| invalid("the header is not ASCII".to_owned()))?;
        for directive in value.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => reads = false,
                "no-store" => writes = false,
                "only-if-cached" => wishes.only_cached = true,
                "max-age" => {
                    let digits = argument.trim().trim_matches('"');
                    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                        return Err(invalid(format!("max-age={argument}: a number of seconds is expected")));
                    }
                    // More than fits is as long as there is.
                    let age_ms = digits.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1_000);
                    wishes.age_ms_max = Some(wishes.age_ms_max.map_or(age_ms, |before| before.min(age_ms)));
                }
                _ => {}
            }
        }
    }
    let control = match (reads, writes) {
        (false, _) => CacheControl::Bypass,
        (true, false) => CacheControl::ReadOnly,
        (true, true) => CacheControl::Default,
    };
    Ok((control, wishes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_narrow() {
        let check = |values: &[&str], expected: (CacheControl, Option<u64>, bool)| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CACHE_CONTROL, value.parse().expect("a header"));
            }
            let (control, wishes) = control(&headers).expect("valid");
            assert_eq!((control, wishes.age_ms_max, wishes.only_cached), expected, "{values:?}");
        };
        use CacheControl::{Bypass, Default, ReadOnly};
        check(&[], (Default, None, false));
        check(&["no-cache"], (Bypass, None, false));
        check(&["No-Store"], (ReadOnly, None, false));
        check(&["no-cache, no-store"], (Bypass, None, false));
        check(&["max-age=60"], (Default, Some(60_000), false));
        check(&["max-age=60", "max-age=\"5\""], (Default, Some(5_000), false));
        check(&["max-age=99999999999999999999"], (Default, Some(u64::MAX), false));
        check(&["only-if-cached, max-stale=3,, no-transform"], (Default, None, true));
        for bad in ["max-age", "max-age=soon", "max-age=-1"] {
            let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, bad.parse().expect("a header"))]);
            assert!(control(&headers).is_err(), "{bad}");
        }
    }
}
