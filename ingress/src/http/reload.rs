//! `POST /admin/reload`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use turnflow_pipeline::{Change, ReloadError};

use super::error::{ApiError, Kind};
use super::receive::ForAdmin;
use super::reply::JsonReply;
use super::router::App;
use crate::door::reload;

/// Has the configuration's file read again, and tells what has changed.
pub(super) async fn post(State(app): State<Arc<App>>, _: ForAdmin) -> Result<JsonReply, ApiError> {
    let changes = reload(&app.pipeline, &app.gateway).map_err(|error| refused(&error))?;
    let told = |Change { key, before, after }: Change| json!({ "key": key, "before": before, "after": after });
    Ok(JsonReply(json!({ "changed": changes.into_iter().map(told).collect::<Vec<Value>>() })))
}

fn refused(error: &ReloadError) -> ApiError {
    let code = match error {
        ReloadError::NoFile => "no_configuration",
        ReloadError::Restart(_) => "needs_restart",
        _ => "wrong_configuration",
    };
    ApiError::new(StatusCode::CONFLICT, Kind::InvalidRequest, code, error.to_string())
}
