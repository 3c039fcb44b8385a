//! A refusal as a status of a call or as an event of a stream.
//!
//! Here and in [`conflict`](super::conflict) is known which gRPC code stands for what.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt};
use turnflow_state::TurnKey;

use super::proto::{self, ErrorKind};
use crate::door::{
    CutOff, Exceeded, INTERNAL_MESSAGE, Refusal, UNAUTHENTICATED_MESSAGE, UNAVAILABLE_MESSAGE, describe, forbidden,
    slow_reader,
};

/// The refusal as an event of a stream.
pub(super) fn event_of(refusal: Refusal) -> proto::Error {
    let (kind, message, field, retry_after_ms) = match refusal {
        Refusal::Invalid { field, message } => (ErrorKind::Invalid, describe(field.as_deref(), &message), field, None),
        Refusal::Overloaded { message, retry_after_ms } => (ErrorKind::Overloaded, message, None, Some(retry_after_ms)),
        Refusal::Limited(exceeded) => (ErrorKind::Limited, exceeded.to_string(), None, Some(exceeded.retry_after_ms)),
        Refusal::Late { message } => (ErrorKind::Late, message, None, None),
        // Nobody can ask for that over gRPC.
        Refusal::Uncached { message } => (ErrorKind::Invalid, message, None, None),
        // These are the end of a stream, and no event of it.
        Refusal::Unauthenticated => (ErrorKind::Invalid, UNAUTHENTICATED_MESSAGE.to_owned(), None, None),
        Refusal::Forbidden { scope } => (ErrorKind::Invalid, forbidden(scope), None, None),
        Refusal::Internal => (ErrorKind::Internal, INTERNAL_MESSAGE.to_owned(), None, None),
        Refusal::Unavailable => (ErrorKind::Unavailable, UNAVAILABLE_MESSAGE.to_owned(), None, None),
    };
    proto::Error { kind: kind.into(), message, field, retry_after_ms }
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
            Refusal::Overloaded { message, retry_after_ms } => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(retry_after_ms)));
                Self::with_error_details(Code::ResourceExhausted, message, details)
            }
            Refusal::Limited(exceeded) => limited(&exceeded),
            Refusal::Late { message } => Self::deadline_exceeded(message),
            Refusal::Uncached { message } => Self::failed_precondition(message),
            Refusal::Unauthenticated => Self::unauthenticated(UNAUTHENTICATED_MESSAGE),
            Refusal::Forbidden { scope } => Self::permission_denied(forbidden(scope)),
            Refusal::Internal => Self::internal(INTERNAL_MESSAGE),
            Refusal::Unavailable => Self::unavailable(UNAVAILABLE_MESSAGE),
        }
    }
}

/// Which limit, whose, how much it is, and when to come back.
fn limited(exceeded: &Exceeded) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(exceeded.retry_after_ms)));
    details.set_quota_failure(vec![QuotaViolation {
        quota_metric: exceeded.limit.as_str().to_owned(),
        quota_value: i64::try_from(exceeded.quota).unwrap_or(i64::MAX),
        ..QuotaViolation::new(exceeded.holder.to_string(), exceeded.allowed())
    }]);
    Status::with_error_details(Code::ResourceExhausted, exceeded.to_string(), details)
}

/// A turn that was to be judged does not exist.
pub(super) fn unknown_turn(turn: &TurnKey) -> Status {
    Status::not_found(format!("conversation {} has no answered turn {}", turn.conversation, turn.turn))
}

impl<R: Send + 'static> CutOff for Result<R, Status> {
    fn too_slow(wait: Duration) -> Self {
        Err(Status::resource_exhausted(slow_reader(wait)))
    }
}
