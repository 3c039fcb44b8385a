//! Settings that change while the server runs, whoever asks for it: a signal or an admin.

use turnflow_pipeline::{Change, Pipeline, ReloadError};

use super::Gateway;

/// Reads the configuration's file again, has what differs hold from now on, and logs what that is, or why nothing changed.
///
/// # Errors
/// [`ReloadError`]; then nothing has changed.
pub(crate) fn reload(pipeline: &Pipeline, gateway: &Gateway) -> Result<Vec<Change>, ReloadError> {
    let reloaded = pipeline.reload();
    if reloaded.is_ok() {
        gateway.limit(&pipeline.config());
    }
    match &reloaded {
        Ok(changes) if changes.is_empty() => tracing::info!("the configuration was read again: nothing has changed"),
        Ok(changes) => {
            for Change { key, before, after } in changes {
                tracing::info!(key, before, after, "a setting has changed");
            }
        }
        Err(error) => tracing::error!("the configuration was read again, and not used: {error}"),
    }
    reloaded
}
