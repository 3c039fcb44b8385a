//! The bounds on what one client may send, in one place.

use serde::{Deserialize, Serialize};

/// Bounds on input. Every one of them is configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    /// Longest text of a turn, in bytes.
    pub text_bytes_max: usize,
    /// Largest gRPC message, in bytes.
    pub message_bytes_max: usize,
    /// Streams that one connection may hold open.
    pub streams_per_connection_max: u32,
    /// Turns that one stream may have unanswered.
    pub turns_per_stream_max: usize,
    /// Turns in flight in the process: admission waits beyond it.
    pub turns_in_flight_max: usize,
    /// Turns in flight of one tenant: more are refused at once.
    pub tenant_turns_in_flight_max: usize,
    /// How long admission waits for a free place before it refuses, in milliseconds.
    pub admission_wait_ms: u64,
    /// Time for the answer to a turn that brings no deadline of its own, in milliseconds; 0 for as long as it takes.
    pub default_deadline_ms: u64,
    /// How long a client may take to make room for the next event before it is cut off, in milliseconds.
    pub reader_wait_ms: u64,
    /// Unanswered turns of one conversation.
    pub turns_per_conversation_max: usize,
    /// Largest article, in bytes of title and body.
    pub article_bytes_max: usize,
}
