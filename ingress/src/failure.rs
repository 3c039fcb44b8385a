//! How a command ends badly: an error with its causes, an exit code, and where possible a hint on what to do.

use std::fmt;
use std::io;

/// Exit code of a command that failed.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of bad usage or configuration, after BSD's `EX_USAGE`.
pub const EXIT_USAGE: u8 = 64;

/// Exit code of a command whose output nobody reads any more: what shells tell of one that SIGPIPE ended.
pub const EXIT_UNREAD: u8 = 128 + 13;

/// Nobody reads the output any more. There is nobody to tell, so that the command just ends.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub struct Unread;

/// What became of writing the output.
///
/// # Errors
/// [`Unread`], or that stdout cannot be written.
pub fn written(result: io::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unread.into(),
        _ => anyhow::Error::from(error).context("cannot write standard output"),
    })
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    exit_code: u8,
    hint: Option<String>,
}

impl Failure {
    /// The user asked for something that cannot be meant, or configured it.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit_code: EXIT_USAGE, hint: None }
    }

    /// The same failure with a hint on what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let exit_code = if error.is::<Unread>() { EXIT_UNREAD } else { EXIT_FAILURE };
        Self { error, exit_code, hint: None }
    }
}

impl fmt::Display for Failure {
    /// The error and its causes on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}
