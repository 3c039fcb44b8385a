//! What can go wrong while the stages are set up. What goes wrong with a turn is a `TurnError` and ends that turn.

/// Errors of the stages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// A thread could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        /// The thread's name.
        name: String,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
}
