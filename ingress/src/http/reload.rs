//! `POST /admin/reload`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use turnflow_pipeline::{Change, ReloadError};

use super::error::{ApiError, Kind};
use super::receive::ForOperator;
use super::reply::JsonReply;
use super::router::App;
use super::ui;
use crate::door::{NotReloaded, reload};

/// Has the configuration's file read again, and tells what has changed.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    _: ForOperator,
    headers: HeaderMap,
) -> Result<JsonReply, ApiError> {
    // A page of another site needs no key while there are none, and no permission to send this.
    if headers.contains_key(header::ORIGIN) && !ui::is_own(&headers) {
        let message = "this comes from a page of another site, by its Origin";
        return Err(ApiError::new(StatusCode::FORBIDDEN, Kind::InvalidRequest, "wrong_origin", message));
    }
    let changes = reload(&app.pipeline, &app.gateway).map_err(refused)?;
    let told = |Change { key, before, after }: Change| json!({ "key": key, "before": before, "after": after });
    Ok(JsonReply(json!({ "changed": changes.into_iter().map(told).collect::<Vec<Value>>() })))
}

fn refused(error: NotReloaded) -> ApiError {
    let code = match error {
        NotReloaded::Settings(ReloadError::NoFile) => "no_configuration",
        NotReloaded::Settings(ReloadError::Restart(_)) => "needs_restart",
        NotReloaded::Settings(_) => "wrong_configuration",
        NotReloaded::Tls(_) => "wrong_certificate",
    };
    let message = format!("{:#}", anyhow::Error::from(error));
    ApiError::new(StatusCode::CONFLICT, Kind::InvalidRequest, code, message)
}
