//! `GET /metrics`, and what is seen of every request: it is counted, and what happens for it is logged within its span.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::Span;

use super::error::ApiError;
use super::receive::ForOperator;
use super::router::App;
use crate::door::{Traffic, request_ended, request_span};
use crate::metrics::CONTENT_TYPE;

/// `GET /metrics`. It waits for no place of other work, so that it tells of overload as well.
pub(super) async fn get(State(app): State<Arc<App>>, _: ForOperator) -> Result<Response, ApiError> {
    let metrics = app.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(Ok(text)) => Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()),
        Ok(Err(_)) | Err(_) => {
            tracing::error!("the metrics cannot be written");
            Err(ApiError::internal())
        }
    }
}

/// What is known of a request before it is answered.
pub(super) struct Seen {
    /// What happens for it is logged within.
    pub(super) span: Span,
    method: &'static str,
    route: Option<MatchedPath>,
}

impl Seen {
    pub(super) fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let name = route.as_ref().map_or("unknown", MatchedPath::as_str);
        let span = request_span("http", name, request.headers());
        Self { span, method: name_of(request.method()), route }
    }

    /// Counts it, and ends its span.
    pub(super) fn answered(&self, traffic: &Traffic, status: StatusCode) {
        request_ended(&self.span, &status.as_u16(), status.is_server_error());
        traffic.answered(self.method, self.route.as_ref().map(MatchedPath::as_str), status.as_u16());
    }
}

/// A client may send any word for a method.
fn name_of(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    known.into_iter().find(|name| *name == method.as_str()).unwrap_or("other")
}
