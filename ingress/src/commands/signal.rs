//! The wish that the process end: SIGTERM and SIGINT, or Ctrl-C where there are no signals.

use std::future::Future;

use crate::failure::Failure;

/// Resolves when the process is asked to end. Signals count from the call on, not from the first poll.
///
/// # Errors
/// When no handler can be installed.
#[cfg(unix)]
pub(super) fn shutdown_signal() -> Result<impl Future<Output = ()>, Failure> {
    use anyhow::Context as _;
    use tokio::signal::unix::{SignalKind, signal};
    let handler = |kind: SignalKind| signal(kind).context("cannot handle signals");
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Does something each time that the process gets SIGHUP.
///
/// # Errors
/// When no handler can be installed.
#[cfg(unix)]
pub(super) fn on_hangup(mut act: impl FnMut() + 'static) -> Result<impl Future<Output = ()>, Failure> {
    use anyhow::Context as _;
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle signals")?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            act();
        }
    })
}

/// Does nothing, where there is no such signal.
#[cfg(not(unix))]
pub(super) fn on_hangup(act: impl FnMut() + 'static) -> Result<impl Future<Output = ()>, Failure> {
    drop(act);
    Ok(std::future::pending())
}

/// Resolves when the process is asked to end.
#[cfg(not(unix))]
pub(super) fn shutdown_signal() -> Result<impl Future<Output = ()>, Failure> {
    Ok(async {
        // Without a handler there is nothing to wait for, and the server runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
