//! The wish that the process end: SIGTERM and SIGINT, or Ctrl-C where there are no signals; and SIGHUP.

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

/// SIGHUP, which does not end the process once this is there; none where there are no signals.
pub(super) struct Hangups {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangups {
    /// Those that come from now on. To be called within a runtime.
    ///
    /// # Errors
    /// When no handler can be installed.
    #[cfg(unix)]
    pub(super) fn new() -> Result<Self, Failure> {
        use anyhow::Context as _;
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { signal: signal(SignalKind::hangup()).context("cannot handle signals")? })
    }

    /// Does something for those that came, and each time that one comes.
    #[cfg(unix)]
    pub(super) async fn each(mut self, mut act: impl FnMut()) {
        while self.signal.recv().await.is_some() {
            act();
        }
    }

    /// None.
    #[cfg(not(unix))]
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {})
    }

    /// Waits for ever.
    #[cfg(not(unix))]
    pub(super) async fn each(self, act: impl FnMut()) {
        drop(act);
        std::future::pending().await
    }
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
