//! What every way into Turnflow shares, gRPC and HTTP alike: connections and TLS, who calls and how much they may do, what is
//! checked of what they send, why they are refused, and how events get to a client that may be slow.
//!
//! Knows no protocol's codes.

mod acceptor;
mod admit;
mod articles;
mod check;
mod connection;
mod gateway;
mod limits;
mod outlet;
mod refusal;
mod reload;
mod ring;
mod tls;
mod trace;
mod traffic;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use self::acceptor::{Acceptor, Held, Patience, Socket, Terms, close, misspoken};
pub(crate) use self::admit::{Admitted, admit, estimate};
pub(crate) use self::articles::{article_id, draft, write};
pub(crate) use self::check::{OWN_CONVERSATION, conversation, text};
pub(crate) use self::gateway::Caller;
pub use self::gateway::Gateway;
pub(crate) use self::limits::{Amounts, Exceeded, Limit, Standing};
pub(crate) use self::outlet::{CutOff, LastWord, Outlet, Untold, next_event};
pub(crate) use self::refusal::{
    Conflict, INTERNAL_MESSAGE, Refusal, UNAUTHENTICATED_MESSAGE, UNAVAILABLE_MESSAGE, describe, forbidden, overloaded,
    slow_reader,
};
pub(crate) use self::reload::{NotReloaded, reload};
pub use self::tls::TlsError;
pub(crate) use self::tls::{certificate_until, certificates, private_key, read};
pub(crate) use self::trace::{ended as request_ended, request as request_span};
pub(crate) use self::traffic::{Open, Traffic};

/// The tenant of every client, as long as there are no keys.
pub const TENANT_DEFAULT: &str = "default";

/// The time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
