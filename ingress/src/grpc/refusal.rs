//! Why a turn was not answered, as a status of a call or as an event of a stream.
//!
//! Here and in [`conflict`](super::conflict) is known which gRPC code stands for what. What Turnflow itself got wrong goes to the log;
//! the client hears only that it was not to blame.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use turnflow_pipeline::SubmitError;
use turnflow_state::{TurnError, TurnErrorKind, TurnKey};

use super::proto::{self, ErrorKind};

/// When to come back with a turn that found no room, where nobody knows better.
const RETRY_AFTER_SHED_MS: u64 = 1_000;

const INTERNAL_MESSAGE: &str = "the server failed; its log says why";
const UNAVAILABLE_MESSAGE: &str = "the server is shutting down";

/// Why a turn was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The turn is at fault.
    Invalid {
        /// Path from the request to the field at fault, where one field is.
        field: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// Too much at once.
    Overloaded {
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// The caller's own deadline has passed, or would have.
    Late {
        /// How long it was.
        message: String,
    },
    /// Turnflow is at fault. The cause has been logged.
    Internal,
    /// Turnflow is shutting down.
    Unavailable,
}

impl Refusal {
    /// A field of the turn is at fault.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: Some(format!("turn.{field}")), message: message.into() }
    }

    /// An admitted turn failed. Logs what the client shall not see.
    pub(super) fn of_turn(error: TurnError, key: &TurnKey) -> Self {
        match error.kind {
            TurnErrorKind::Invalid => Self::Invalid { field: None, message: error.message },
            TurnErrorKind::Overloaded => {
                Self::Overloaded { retry_after_ms: error.retry_after_ms.unwrap_or(RETRY_AFTER_SHED_MS) }
            }
            TurnErrorKind::Late => Self::Late { message: error.message },
            TurnErrorKind::Unavailable => Self::Unavailable,
            TurnErrorKind::Internal => {
                tracing::error!(conversation = %key.conversation, turn = %key.turn, "turn failed: {error}");
                Self::Internal
            }
        }
    }

    /// The refusal as an event of a stream.
    pub(super) fn into_event(self) -> proto::Error {
        let (kind, message, field, retry_after_ms) = match self {
            Self::Invalid { field, message } => (ErrorKind::Invalid, describe(field.as_deref(), &message), field, None),
            Self::Overloaded { retry_after_ms } => {
                (ErrorKind::Overloaded, overloaded(retry_after_ms), None, Some(retry_after_ms))
            }
            Self::Late { message } => (ErrorKind::Late, message, None, None),
            Self::Internal => (ErrorKind::Internal, INTERNAL_MESSAGE.to_owned(), None, None),
            Self::Unavailable => (ErrorKind::Unavailable, UNAVAILABLE_MESSAGE.to_owned(), None, None),
        };
        proto::Error { kind: kind.into(), message, field, retry_after_ms }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid { field, message } => Self::invalid(field, message),
            SubmitError::Overloaded { retry_after_ms } => Self::Overloaded { retry_after_ms },
            SubmitError::ShuttingDown => Self::Unavailable,
            unknown => {
                tracing::error!("a turn was not admitted: {unknown}");
                Self::Internal
            }
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid { field, message } => {
                let described = describe(field.as_deref(), &message);
                match field {
                    Some(field) => {
                        let details = ErrorDetails::with_bad_request_violation(field, message);
                        Self::with_error_details(Code::InvalidArgument, described, details)
                    }
                    None => Self::invalid_argument(described),
                }
            }
            Refusal::Overloaded { retry_after_ms } => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(retry_after_ms)));
                Self::with_error_details(Code::ResourceExhausted, overloaded(retry_after_ms), details)
            }
            Refusal::Late { message } => Self::deadline_exceeded(message),
            Refusal::Internal => Self::internal(INTERNAL_MESSAGE),
            Refusal::Unavailable => Self::unavailable(UNAVAILABLE_MESSAGE),
        }
    }
}

/// A turn that was to be judged does not exist.
pub(super) fn unknown_turn(turn: &TurnKey) -> Status {
    Status::not_found(format!("conversation {} has no answered turn {}", turn.conversation, turn.turn))
}

/// A client does not read what it is sent.
pub(super) fn slow_reader(wait: Duration) -> Status {
    Status::resource_exhausted(format!("the client made no room for a response within {} ms", wait.as_millis()))
}

/// What is wrong, with the field at fault in front.
pub(super) fn describe(field: Option<&str>, message: &str) -> String {
    field.map_or_else(|| message.to_owned(), |field| format!("{field}: {message}"))
}

fn overloaded(retry_after_ms: u64) -> String {
    format!("too many turns at once; try again in {retry_after_ms} ms")
}
