//! What went wrong with a request, in the shape that OpenAI's clients know: `{"error": {"message", "type", "param", "code"}}`.
//!
//! Here is known which HTTP status stands for what.

use std::fmt::Display;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use turnflow_pipeline::{PipelineError, SubmitError};
use turnflow_state::WriteRefused;

use super::reply::{etag, json_text};
use crate::door::{
    Conflict, Exceeded, INTERNAL_MESSAGE, Limit, Refusal, UNAUTHENTICATED_MESSAGE, UNAVAILABLE_MESSAGE, forbidden,
    misspoken, overloaded,
};

/// OpenAI's clients repeat a request after some statuses, unless they are told not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// When to come back, in milliseconds: OpenAI's clients read it before `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// OpenAI's clients do not wait longer than this: they would come back before their time, in milliseconds.
const RETRY_WAIT_MAX_MS: u64 = 60_000;
/// When to come back to a server that is shutting down.
const RETRY_AFTER_SHUTDOWN_MS: u64 = 1_000;

/// Who has to do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Kind {
    /// The request is at fault.
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    /// There is too much at once.
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    /// Its time was too short.
    #[serde(rename = "timeout_error")]
    Timeout,
    /// No cache has an answer.
    #[serde(rename = "cache_error")]
    Cache,
    /// Turnflow is at fault, or shutting down.
    #[serde(rename = "server_error")]
    Server,
}

/// An error as it is told.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) code: &'static str,
    /// When the same request may succeed, in milliseconds, where that is known.
    pub(super) retry_after_ms: Option<u64>,
    /// The version that an article has.
    pub(super) version: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code, retry_after_ms: None, version: None }
    }

    /// The request is at fault, and none of its fields in particular.
    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::InvalidRequest, code, message)
    }

    /// A field of the request is at fault.
    pub(super) fn invalid(param: impl Into<String>, message: impl Display) -> Self {
        let param = param.into();
        let described = Self::bad_request("invalid_value", format!("{param}: {message}"));
        Self { param: Some(param), ..described }
    }

    /// A field asks for what Turnflow does not do.
    pub(super) fn unsupported(param: &str, message: impl Display) -> Self {
        Self { code: "unsupported_value", ..Self::invalid(param, message) }
    }

    /// There is no such thing.
    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Kind::InvalidRequest, code, message)
    }

    /// Turnflow is at fault. The cause has been logged.
    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, "internal", INTERNAL_MESSAGE)
    }

    /// There is too much at once.
    pub(super) fn overloaded(retry_after_ms: u64) -> Self {
        let message = overloaded(retry_after_ms);
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Kind::RateLimit, "overloaded", message);
        Self { retry_after_ms: Some(retry_after_ms), ..error }
    }

    /// The caller has used what it is allowed. The codes are those by which OpenAI's clients know it.
    fn limited(exceeded: &Exceeded) -> Self {
        let code = if exceeded.limit == Limit::Budget { "insufficient_quota" } else { "rate_limit_exceeded" };
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Kind::RateLimit, code, exceeded.to_string());
        Self { retry_after_ms: Some(exceeded.retry_after_ms), ..error }
    }

    /// The error as JSON.
    pub(super) fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Told<'a>,
        }
        #[derive(Serialize)]
        struct Told<'a> {
            message: &'a str,
            r#type: Kind,
            param: Option<&'a str>,
            code: &'a str,
        }
        let Self { kind, message, param, code, .. } = self;
        let body = Body { error: Told { message, r#type: *kind, param: param.as_deref(), code } };
        // Texts are JSON, whatever is in them.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let gateway_timeout = StatusCode::GATEWAY_TIMEOUT;
        match refusal {
            // What a protocol calls the turn is the request here.
            Refusal::Invalid { field: Some(field), message } => {
                Self::invalid(field.strip_prefix("turn.").unwrap_or(&field), message)
            }
            Refusal::Invalid { field: None, message } => Self::bad_request("invalid_value", message),
            Refusal::Overloaded { message, retry_after_ms } => Self { message, ..Self::overloaded(retry_after_ms) },
            Refusal::Limited(exceeded) => Self::limited(&exceeded),
            Refusal::Late { message } => Self::new(gateway_timeout, Kind::Timeout, "deadline_exceeded", message),
            Refusal::Uncached { message } => Self::new(gateway_timeout, Kind::Cache, "not_cached", message),
            Refusal::Unauthenticated => {
                let (status, kind) = (StatusCode::UNAUTHORIZED, Kind::InvalidRequest);
                Self::new(status, kind, "invalid_api_key", UNAUTHENTICATED_MESSAGE)
            }
            Refusal::Forbidden { scope } => {
                Self::new(StatusCode::FORBIDDEN, Kind::InvalidRequest, "missing_scope", forbidden(scope))
            }
            Refusal::Internal => Self::internal(),
            Refusal::Unavailable => {
                let unavailable = StatusCode::SERVICE_UNAVAILABLE;
                let error = Self::new(unavailable, Kind::Server, "unavailable", UNAVAILABLE_MESSAGE);
                Self { retry_after_ms: Some(RETRY_AFTER_SHUTDOWN_MS), ..error }
            }
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        Refusal::from(error).into()
    }
}

impl From<Conflict> for ApiError {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Refusal(refusal) => refusal.into(),
            Conflict::NotFound(article) => {
                Self::not_found("article_not_found", format!("there is no article {article}"))
            }
            Conflict::Version { article, refused, current } => {
                let (status, code) = match refused {
                    WriteRefused::VersionNotNewer { .. } => (StatusCode::CONFLICT, "version_not_newer"),
                    _ => (StatusCode::PRECONDITION_FAILED, "version_mismatch"),
                };
                let message = format!("article {article}: {refused}");
                Self { version: Some(current), ..Self::new(status, Kind::InvalidRequest, code, message) }
            }
        }
    }
}

impl From<PipelineError> for ApiError {
    fn from(error: PipelineError) -> Self {
        Conflict::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_text(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(retry_after_ms) = self.retry_after_ms {
            // Not before its time: rounded up to the second that the header can tell.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1_000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(retry_after_ms));
            if retry_after_ms > RETRY_WAIT_MAX_MS {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // The same request would meet the same end.
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(version) = self.version {
            headers.insert(header::ETAG, etag(version));
        }
        // Who shows errors in another way finds it there.
        response.extensions_mut().insert(self);
        response
    }
}

/// The whole response to who speaks no TLS where that is spoken.
pub(super) fn without_tls() -> Vec<u8> {
    let error = ApiError::bad_request("tls_required", "this port speaks TLS, so call it with https://");
    misspoken("application/json", &error.body())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use turnflow_state::{ArticleId, ConversationId, TenantId, TurnError, TurnId, TurnKey};

    use super::*;

    #[test]
    fn errors_have_openais_shape_and_the_right_status() {
        let check = |error: ApiError, status: u16, expected: Value| {
            let body: Value = serde_json::from_str(&error.body()).expect("JSON");
            assert_eq!((error.status.as_u16(), body), (status, json!({ "error": expected })));
        };
        let error = |kind: &str, code: &str, param: Value, message: &str| json!({ "message": message, "type": kind, "param": param, "code": code });
        let invalid = Refusal::Invalid { field: Some("turn.text".into()), message: "empty".into() };
        check(invalid.into(), 400, error("invalid_request_error", "invalid_value", json!("text"), "text: empty"));
        let message = "too many turns at once; try again in 1.5 s";
        let overloaded = ApiError::from(SubmitError::Overloaded { retry_after_ms: 1_500 });
        check(overloaded.clone(), 429, error("rate_limit_error", "overloaded", Value::Null, message));
        let headers = overloaded.into_response();
        assert_eq!(headers.headers()[header::RETRY_AFTER], "2");
        let key = TurnKey {
            tenant: TenantId::new("t").expect("valid id"),
            conversation: ConversationId::new("c").expect("valid id"),
            turn: TurnId::new("1").expect("valid id"),
        };
        let resting = ApiError::from(Refusal::of_turn(TurnError::overloaded("it rests", 100_000), &key));
        check(resting.clone(), 429, error("rate_limit_error", "overloaded", Value::Null, "it rests"));
        assert_eq!(resting.into_response().headers()[header::RETRY_AFTER], "100");
        let late = Refusal::Late { message: "late".into() };
        check(late.into(), 504, error("timeout_error", "deadline_exceeded", Value::Null, "late"));
        let uncached = Refusal::Uncached { message: "none".into() };
        check(uncached.into(), 504, error("cache_error", "not_cached", Value::Null, "none"));
        let code = "invalid_api_key";
        let unauthenticated = ApiError::from(Refusal::Unauthenticated);
        let expected = error("invalid_request_error", code, Value::Null, UNAUTHENTICATED_MESSAGE);
        check(unauthenticated.clone(), 401, expected);
        assert_eq!(unauthenticated.into_response().headers()[header::WWW_AUTHENTICATE], "Bearer");
        let message = "the key does not have the scope kb";
        let forbidden = Refusal::Forbidden { scope: "kb" };
        check(forbidden.into(), 403, error("invalid_request_error", "missing_scope", Value::Null, message));
        check(Refusal::Internal.into(), 500, error("server_error", "internal", Value::Null, INTERNAL_MESSAGE));
        check(Refusal::Unavailable.into(), 503, error("server_error", "unavailable", Value::Null, UNAVAILABLE_MESSAGE));
    }

    #[test]
    fn a_version_that_is_not_as_expected_is_told() {
        let article = ArticleId::new("a").expect("valid id");
        let refused = WriteRefused::VersionMismatch { expected: 3, current: 5 };
        let error = ApiError::from(Conflict::of_draft(&article, refused.into()));
        assert_eq!((error.status, error.code), (StatusCode::PRECONDITION_FAILED, "version_mismatch"));
        assert_eq!(error.into_response().headers()[header::ETAG], "\"5\"");
    }
}
