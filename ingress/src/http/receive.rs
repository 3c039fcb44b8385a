//! Reads requests: who calls, and what they send, with an error that says where it is wrong.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use turnflow_pipeline::HttpConfig;
use turnflow_state::wait_text;

use super::error::{ApiError, Kind};
use super::quota;
use super::router::App;
use crate::door::{Caller, Refusal};
use crate::keys::Scope;
use crate::object::Object;

/// Who calls to chat.
pub(super) struct ForChat(pub(super) Caller);

impl FromRequestParts<Arc<App>> for ForChat {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        caller(parts, app, Scope::Chat).map(Self)
    }
}

/// Who calls about the knowledge base.
pub(super) struct ForKb(pub(super) Caller);

impl FromRequestParts<Arc<App>> for ForKb {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        caller(parts, app, Scope::Kb).map(Self)
    }
}

/// Who calls about the server as a whole.
pub(super) struct ForOperator;

impl FromRequestParts<Arc<App>> for ForOperator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        caller(parts, app, Scope::Operator).map(|_| Self)
    }
}

/// Who calls, unless the server takes no requests any more, or the caller has sent too many.
fn caller(parts: &Parts, app: &App, scope: Scope) -> Result<Caller, ApiError> {
    if app.is_stopping() {
        return Err(Refusal::Unavailable.into());
    }
    let caller = app.gateway.caller(&parts.headers, scope)?;
    quota::remember(&parts.extensions, &caller);
    caller.request()?;
    Ok(caller)
}

/// The body of a request, read from JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        Received::from_request(request, app).await.map(|Received { body, .. }| Self(body))
    }
}

/// The same with the headers of the request.
pub(super) struct Received<T> {
    pub(super) headers: HeaderMap,
    pub(super) body: T,
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Received<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // A page in a browser cannot send JSON to another site without asking first, so this keeps such pages out as well.
        if !is_json(request.headers()) {
            let message = "the body has to be JSON, with the header Content-Type: application/json";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, Kind::InvalidRequest, "unsupported_media_type", message));
        }
        let (parts, body) = request.into_parts();
        let body = read(body, &app.config.http).await?;
        if let Some(caller) = quota::known(&parts.extensions) {
            // A body may take its time, and a key may end meanwhile.
            caller.check()?;
        }
        Ok(Self { headers: parts.headers, body: parse(&body)? })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

/// Reads a body within its bounds of size and time.
pub(super) async fn read(body: Body, config: &HttpConfig) -> Result<Bytes, ApiError> {
    let wait = Duration::from_millis(config.body_wait_ms);
    let collected = Limited::new(body, config.body_bytes_max).collect();
    match tokio::time::timeout(wait, collected).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is too large, at most {} bytes are allowed", config.body_bytes_max);
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Kind::InvalidRequest, "body_too_large", message))
        }
        Ok(Err(error)) => Err(ApiError::bad_request("broken_body", format!("the body broke off: {error}"))),
        Err(_) => {
            let message = format!("the body was not complete within {}", wait_text(config.body_wait_ms));
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, Kind::InvalidRequest, "body_too_slow", message))
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // Where something is wrong costs more to know than all the rest, and is asked when something is.
    serde_json::from_slice(body).map(|Object(parsed)| parsed).or_else(|_| parse_with_places(body))
}

/// The same with errors that say where they are.
fn parse_with_places<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(parsed) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        if !error.is_data() {
            return ApiError::bad_request("invalid_json", format!("the body is not JSON: {error}"));
        }
        invalid_at(&path, &error)
    })?;
    match json.end() {
        Ok(()) => Ok(parsed),
        Err(error) => Err(ApiError::bad_request("invalid_json", format!("the body is not JSON: {error}"))),
    }
}

/// The parameters behind a path's question mark.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
        .map_err(|error| invalid_at(&error.path().to_string(), error.inner()))
}

/// What is wrong with the field at a path. One that is unknown, missing or there twice is named by the error, not by the path.
fn invalid_at(path: &str, error: &dyn Display) -> ApiError {
    let message = error.to_string();
    let is_named = ["unknown field", "missing field", "duplicate field"].iter().any(|what| message.starts_with(what));
    match (path, message.split('`').nth(1).filter(|_| is_named)) {
        (".", None) => ApiError::bad_request("invalid_value", message),
        (".", Some(field)) => ApiError::invalid(field, &message),
        (path, Some(field)) if !path.ends_with(field) => ApiError::invalid(format!("{path}.{field}"), &message),
        (path, _) => ApiError::invalid(path, &message),
    }
}

/// The last part of a path.
pub(super) struct Id(pub(super) String);

impl FromRequestParts<Arc<App>> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        path.map(|Path(id)| Self(id)).map_err(|error| ApiError::invalid("id", error.body_text()))
    }
}

/// A header's value as text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes());
    text.map(Some).map_err(|_| ApiError::invalid(name, "the header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Form {
        #[expect(dead_code, reason = "only its errors matter")]
        list: Vec<u8>,
        #[serde(default)]
        #[expect(dead_code, reason = "only its errors matter")]
        of_forms: Vec<Object<Form>>,
    }

    #[test]
    fn an_error_says_where_it_is() {
        let check = |body: &str, param: Option<&str>, expected: &str| {
            let error = parse::<Form>(body.as_bytes()).expect_err(body);
            assert_eq!(error.param.as_deref(), param, "{body}");
            assert!(error.message.contains(expected), "{body}: {}", error.message);
        };
        check("{\"list\": [1,\n 2,, 3]}", None, "not JSON: expected value at line 2 column 4");
        check("", None, "not JSON: EOF while parsing a value at line 1 column 0");
        check("{\"list\": [1]} x", None, "not JSON: trailing characters at line 1 column 15");
        check("{\"list\": [1, \"x\"]}", Some("list[1]"), "list[1]: invalid type: string \"x\", expected u8 at line 1");
        check("{}", Some("list"), "list: missing field `list`");
        check("[[1]]", None, "invalid type: sequence, expected an object at line 1 column 0");
        check("\"list\"", None, "invalid type: string \"list\", expected an object");
        let nested = "{\"list\": [], \"of_forms\": [{\"list\": []}, [[1]]]}";
        check(nested, Some("of_forms[1]"), "of_forms[1]: invalid type: sequence, expected an object");
        assert!(parse::<Form>(b"{\"list\": [], \"more\": 1}").is_ok());
    }

    #[test]
    fn an_error_says_which_parameter_it_is() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parameters {
            limit: usize,
        }
        let check = |address: &str, param: &str, expected: &str| {
            let error = query::<Parameters>(&address.parse().expect("an address")).expect_err(address);
            assert_eq!(error.param.as_deref(), Some(param), "{address}");
            assert!(error.message.contains(expected), "{address}: {}", error.message);
        };
        check("/?limit=many", "limit", "limit: invalid digit");
        check("/?limit=1&limit=2", "limit", "duplicate field");
        check("/?limit=1&top=2", "top", "unknown field `top`, expected `limit`");
        check("/", "limit", "missing field");
        assert_eq!(query::<Parameters>(&Uri::from_static("/?limit=%31")).expect("a number").limit, 1);
    }

    #[test]
    fn only_json_is_taken() {
        let check = |value: Option<&str>, expected: bool| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CONTENT_TYPE, value.parse().expect("a header"));
            }
            assert_eq!(is_json(&headers), expected, "{value:?}");
        };
        check(Some("application/json"), true);
        check(Some("Application/JSON; charset=utf-8"), true);
        check(Some("text/plain"), false);
        check(Some("application/jsonx"), false);
        check(None, false);
    }
}
