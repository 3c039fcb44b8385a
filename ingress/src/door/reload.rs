//! Settings that change while the server runs, whoever asks for it: a signal or an operator.

use turnflow_pipeline::{Change, Pipeline, ReloadError};

use super::{Gateway, TlsError};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReloaded {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] ReloadError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Reads the configuration's file again, and the files of TLS; has what differs hold from now on, and logs what that is, or why nothing
/// changed.
///
/// # Errors
/// [`NotReloaded`]; then nothing has changed.
pub(crate) fn reload(pipeline: &Pipeline, gateway: &Gateway) -> Result<Vec<Change>, NotReloaded> {
    let reloaded = read_again(pipeline, gateway);
    match &reloaded {
        Ok(changes) if changes.is_empty() => tracing::info!("the configuration was read again: nothing has changed"),
        Ok(changes) => {
            for Change { key, before, after } in changes {
                tracing::info!(key, before, after, "a setting has changed");
            }
        }
        Err(error) => {
            let error: &dyn std::error::Error = error;
            tracing::error!(error, "the configuration was read again, and not used");
        }
    }
    reloaded
}

fn read_again(pipeline: &Pipeline, gateway: &Gateway) -> Result<Vec<Change>, NotReloaded> {
    let mut renewed = None;
    let mut changes = pipeline.reload_with(|config| {
        renewed = gateway.tls().map(|tls| tls.renew(&config.server.tls)).transpose()?.flatten();
        Ok::<_, NotReloaded>(())
    })?;
    gateway.limit(&pipeline.config());
    changes.extend(renewed);
    Ok(changes)
}
