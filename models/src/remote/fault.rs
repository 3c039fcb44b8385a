//! What can go wrong between a remote tier and its server, and what follows from it.
//!
//! A fault is safe to repeat when the server cannot have begun to answer, or has said that it did not. It counts
//! against the server when the server is at fault: one that throttles, or refuses a request, is well.

use std::fmt;
use std::time::Duration;

use turnflow_state::wait_text;

/// Which limit of time was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, TLS included.
    Connect,
    /// From the request to the first token.
    FirstToken,
    /// From a token to the next.
    BetweenTokens,
    /// The whole answer, its wait and all attempts included.
    Total,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection",
            Self::FirstToken => "no first token",
            Self::BetweenTokens => "no further token",
            Self::Total => "no complete answer",
        })
    }
}

/// Why a remote server did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteFault {
    /// No connection came about.
    #[error("cannot connect: {reason}")]
    Connect {
        /// What the operating system, or TLS, said.
        reason: String,
    },
    /// A limit of time was reached.
    #[error("{phase} within {}", wait_text(*limit_ms))]
    Timeout {
        /// Which.
        phase: Phase,
        /// The limit.
        limit_ms: u64,
    },
    /// The server answered with a status other than 200.
    #[error("HTTP status {status}: {message}")]
    Status {
        /// The status.
        status: u16,
        /// The server's words, shortened and without the key.
        message: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection ended before the answer did.
    #[error("the answer broke off: {reason}")]
    BrokenOff {
        /// What was seen.
        reason: String,
    },
    /// What came is not what the protocol says.
    #[error("not the expected protocol: {reason}")]
    Protocol {
        /// What was seen, shortened and without the key.
        reason: String,
    },
    /// The answer, or a line of it, is too long.
    #[error("{what} of more than {limit} bytes")]
    TooLong {
        /// What.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The server reported an error instead of going on.
    #[error("the server reports an error: {message}")]
    Reported {
        /// The server's words, shortened and without the key.
        message: String,
    },
    /// The server withheld the answer, or gave none.
    #[error("no answer: {reason}")]
    Withheld {
        /// The reason that it gave.
        reason: String,
    },
    /// The server failed too often of late: it is not asked.
    #[error("not asked: the server failed {failures} times in a row, next try in {}", wait_text(*retry_ms))]
    Resting {
        /// How often.
        failures: u32,
        /// When it is asked again.
        retry_ms: u64,
    },
}

impl RemoteFault {
    /// Whether the request may be sent again, provided that nothing of an answer was handed out.
    pub(crate) const fn is_safe_to_repeat(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::BrokenOff { .. } => true,
            Self::Timeout { phase, .. } => matches!(phase, Phase::Connect),
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether the server, or the way to it, is at fault.
    pub(crate) const fn counts_against_server(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 500..=599),
            Self::Withheld { .. } | Self::Resting { .. } => false,
            // Too little time was given, which says nothing about the server; the other limits are about it alone.
            Self::Timeout { phase, .. } => !matches!(phase, Phase::Total),
            _ => true,
        }
    }

    /// How long the server asks to be left alone, or is.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Resting { retry_ms, .. } => Some(Duration::from_millis(*retry_ms)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_a_fault() {
        let status = |status| RemoteFault::Status { status, message: String::new(), retry_after: None };
        let timeout = |phase| RemoteFault::Timeout { phase, limit_ms: 1 };
        let reason = String::new;
        for (fault, safe, sick) in [
            (RemoteFault::Connect { reason: reason() }, true, true),
            (RemoteFault::BrokenOff { reason: reason() }, true, true),
            (timeout(Phase::Connect), true, true),
            (timeout(Phase::FirstToken), false, true),
            (timeout(Phase::BetweenTokens), false, true),
            (timeout(Phase::Total), false, false),
            (status(400), false, false),
            (status(401), false, false),
            (status(408), true, false),
            (status(429), true, false),
            (status(500), true, true),
            (status(503), true, true),
            (RemoteFault::Protocol { reason: reason() }, false, true),
            (RemoteFault::TooLong { what: "a line", limit: 1 }, false, true),
            (RemoteFault::Reported { message: reason() }, false, true),
            (RemoteFault::Withheld { reason: reason() }, false, false),
            (RemoteFault::Resting { failures: 1, retry_ms: 1 }, false, false),
        ] {
            assert_eq!((fault.is_safe_to_repeat(), fault.counts_against_server()), (safe, sick), "{fault}");
        }
    }
}
