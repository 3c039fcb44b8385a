//! Why a call was not answered, whichever way it came.
//!
//! What Turnflow itself got wrong goes to the log; the client hears only that it was not to blame. Which code of a protocol stands for
//! what is known in `grpc` and in `http`.

use std::time::Duration;

use turnflow_pipeline::{DraftError, PipelineError, SubmitError};
use turnflow_state::{ArticleId, TurnError, TurnErrorKind, TurnKey, WriteRefused, wait_text};

use super::limits::Exceeded;

/// When to come back with a turn that found no room, where nobody knows better.
const RETRY_AFTER_SHED_MS: u64 = 1_000;

pub(crate) const INTERNAL_MESSAGE: &str = "the server failed; its log says why";
pub(crate) const UNAUTHENTICATED_MESSAGE: &str = "a valid key is needed, in the header Authorization: Bearer KEY";
pub(crate) const UNAVAILABLE_MESSAGE: &str = "the server is shutting down";

/// Why a turn was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The turn is at fault.
    Invalid {
        /// Path from the request to the field at fault, where one field is.
        field: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// Too much at once.
    Overloaded {
        /// Of what, and when to try again.
        message: String,
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// The caller has used what it is allowed.
    Limited(Exceeded),
    /// The caller's own deadline has passed, or would have.
    Late {
        /// How long it was.
        message: String,
    },
    /// No cache has an answer, and the caller wanted no other.
    Uncached {
        /// Why none serves.
        message: String,
    },
    /// There is no valid key. What is wrong with it has been logged: callers all hear the same.
    Unauthenticated,
    /// The key is not for that.
    Forbidden {
        /// What it would have to be for.
        scope: &'static str,
    },
    /// Turnflow is at fault. The cause has been logged.
    Internal,
    /// Turnflow is shutting down.
    Unavailable,
}

impl Refusal {
    /// A field of the turn is at fault.
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: Some(format!("turn.{field}")), message: message.into() }
    }

    /// An admitted turn failed. Logs what the client shall not see.
    pub(crate) fn of_turn(error: TurnError, key: &TurnKey) -> Self {
        match error.kind {
            TurnErrorKind::Invalid => Self::Invalid { field: None, message: error.message },
            TurnErrorKind::Overloaded => {
                let retry_after_ms = error.retry_after_ms.unwrap_or(RETRY_AFTER_SHED_MS);
                Self::Overloaded { message: error.message, retry_after_ms }
            }
            TurnErrorKind::Late => Self::Late { message: error.message },
            TurnErrorKind::Uncached => Self::Uncached { message: error.message },
            TurnErrorKind::Unavailable => Self::Unavailable,
            TurnErrorKind::Internal => {
                tracing::error!(conversation = %key.conversation, turn = %key.turn, "turn failed: {error}");
                Self::Internal
            }
        }
    }
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        Self::Limited(exceeded)
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid { field, message } => Self::invalid(field, message),
            SubmitError::Overloaded { retry_after_ms } => {
                Self::Overloaded { message: overloaded(retry_after_ms), retry_after_ms }
            }
            SubmitError::ShuttingDown => Self::Unavailable,
            unknown => {
                tracing::error!("a turn was not admitted: {unknown}");
                Self::Internal
            }
        }
    }
}

/// Why the knowledge base was not read or written as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// What every call can be refused for.
    Refusal(Refusal),
    /// The article's version is not as it should be.
    Version {
        /// Which article.
        article: ArticleId,
        /// What was asked, and what is there.
        refused: WriteRefused,
        /// The version that is there.
        current: u64,
    },
    /// There is no such article.
    NotFound(ArticleId),
}

impl Conflict {
    /// A field of the request is at fault.
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Refusal::Invalid { field: Some(field.to_owned()), message: message.into() }.into()
    }

    /// An article was not written.
    pub(crate) fn of_draft(article: &ArticleId, error: DraftError) -> Self {
        match error {
            DraftError::Refused(WriteRefused::NotFound) => Self::NotFound(article.clone()),
            DraftError::Refused(
                refused @ (WriteRefused::VersionMismatch { current, .. }
                | WriteRefused::VersionNotNewer { current, .. }),
            ) => Self::Version { article: article.clone(), refused, current },
            other => Self::invalid("article", other.to_string()),
        }
    }
}

impl From<Refusal> for Conflict {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<PipelineError> for Conflict {
    fn from(error: PipelineError) -> Self {
        Self::Refusal(match error {
            PipelineError::ShuttingDown => Refusal::Unavailable,
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "the knowledge base failed");
                Refusal::Internal
            }
        })
    }
}

/// What is wrong, with the field at fault in front.
pub(crate) fn describe(field: Option<&str>, message: &str) -> String {
    field.map_or_else(|| message.to_owned(), |field| format!("{field}: {message}"))
}

pub(crate) fn overloaded(retry_after_ms: u64) -> String {
    format!("too many turns at once; try again in {}", wait_text(retry_after_ms))
}

/// What a client hears whose key is not for what it wants.
pub(crate) fn forbidden(scope: &str) -> String {
    format!("the key does not have the scope {scope}")
}

/// What a client hears that does not read what it is sent.
pub(crate) fn slow_reader(wait: Duration) -> String {
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    format!("the client made no room for a response within {}", wait_text(ms))
}
