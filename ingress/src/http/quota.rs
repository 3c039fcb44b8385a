//! What callers are told of their limits: `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), on every response to
//! a caller who has any.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use axum::http::{Extensions, HeaderName, HeaderValue};
use axum::response::Response;

use crate::door::{Caller, Limit, Standing};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// What one limit takes in a list, about.
const FIELD_BYTES: usize = 64;

/// Who sent a request, once that is known.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<OnceLock<Caller>>);

impl Known {
    /// A place in a request for who has sent it.
    pub(super) fn in_request(request: &mut Request) -> Self {
        let known = Self::default();
        request.extensions_mut().insert(known.clone());
        known
    }

    /// Tells the limits of whoever sent the request, as they are after it.
    pub(super) fn tell(&self, response: &mut Response) {
        let standings = self.0.get().map(|caller| caller.account().standings()).unwrap_or_default();
        if !standings.is_empty() {
            let fields = [(POLICY, policies(&standings)), (LEFT, left(&standings))];
            let fields = fields.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)));
            response.headers_mut().extend(fields);
        }
    }
}

/// Has the response to a request tell the limits of its caller.
pub(super) fn remember(extensions: &Extensions, caller: &Caller) {
    if let Some(Known(known)) = extensions.get() {
        // A request has one caller, so a second one is the same.
        let _ = known.set(caller.clone());
    }
}

/// Who sent a request, where that is known.
pub(super) fn known(extensions: &Extensions) -> Option<&Caller> {
    extensions.get().and_then(|Known(known)| known.get())
}

/// The limits: quota, its unit where that is not requests, and its window in seconds.
fn policies(standings: &[Standing]) -> String {
    list(standings, |list, Standing { limit, holder, quota, .. }| {
        let more = match limit {
            Limit::Requests => ";w=60",
            Limit::Tokens => ";qu=\"tokens\";w=60",
            Limit::Turns | Limit::Streams => ";qu=\"concurrent-requests\"",
            Limit::Budget => ";qu=\"micros\";w=86400",
        };
        write!(list, "\"{holder}-{}\";q={quota}{more}", limit.as_str())
    })
}

/// What is left of them, and the seconds until all of it is there again.
fn left(standings: &[Standing]) -> String {
    list(standings, |list, Standing { limit, holder, left, until_whole, .. }| match until_whole {
        // Not before its time.
        Some(until) => {
            write!(list, "\"{holder}-{}\";r={left};t={}", limit.as_str(), until.as_millis().div_ceil(1_000))
        }
        None => write!(list, "\"{holder}-{}\";r={left}", limit.as_str()),
    })
}

/// A list of structured fields (RFC 9651), one for each limit.
fn list(standings: &[Standing], describe: impl Fn(&mut String, &Standing) -> std::fmt::Result) -> String {
    let mut list = String::with_capacity(FIELD_BYTES * standings.len());
    for standing in standings {
        if !list.is_empty() {
            list.push_str(", ");
        }
        // A text takes whatever is written to it.
        let _ = describe(&mut list, standing);
    }
    list
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn limits_are_told_as_the_draft_has_it() {
        let standing = |holder, limit, quota, left, until_whole: Option<u64>| Standing {
            holder,
            limit,
            quota,
            left,
            until_whole: until_whole.map(Duration::from_millis),
        };
        let standings = [
            standing("key", Limit::Requests, 60, 59, Some(1_000)),
            standing("key", Limit::Tokens, 10_000, 0, Some(61_001)),
            standing("key", Limit::Turns, 8, 7, None),
            standing("tenant", Limit::Budget, 5_000_000, 4_990_000, Some(3_600_000)),
        ];
        assert_eq!(
            policies(&standings),
            "\"key-requests\";q=60;w=60, \"key-tokens\";q=10000;qu=\"tokens\";w=60, \
             \"key-turns\";q=8;qu=\"concurrent-requests\", \"tenant-budget\";q=5000000;qu=\"micros\";w=86400"
        );
        assert_eq!(
            left(&standings),
            "\"key-requests\";r=59;t=1, \"key-tokens\";r=0;t=62, \"key-turns\";r=7, \"tenant-budget\";r=4990000;t=3600"
        );
    }
}
