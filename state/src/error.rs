//! What can go wrong with what is kept.

use std::path::PathBuf;

/// Errors of stores, index and knowledge base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The database could not be opened.
    #[error("cannot open the database at {path}")]
    Open {
        /// Where it is.
        path: PathBuf,
        /// RocksDB's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process has the database open, or this one has.
    #[error("the database at {path} is in use")]
    Locked {
        /// Where it is.
        path: PathBuf,
        /// RocksDB's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database was written by another version of Turnflow.
    #[error("the database at {path} has schema version {found}, this build reads version {expected}")]
    Schema {
        /// Where it is.
        path: PathBuf,
        /// What it says of itself.
        found: String,
        /// What this build understands.
        expected: u32,
    },
    /// The vectors in the database are another encoder's.
    #[error("the database holds vectors of {stored}, not of {wanted}")]
    Encoder {
        /// Whose they are.
        stored: String,
        /// Whose are expected.
        wanted: String,
    },
    /// A read or write failed.
    #[error("cannot {action} the database")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// RocksDB's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database could not be copied.
    #[error("cannot copy the database to {path}")]
    Checkpoint {
        /// Where to.
        path: PathBuf,
        /// RocksDB's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A write failed earlier, so that what is on disk is unknown; nothing is written any more.
    #[error("the database refuses writes since one failed: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// A stored value does not decode.
    #[error("cannot decode a value of column {column}, key {key}")]
    Corrupt {
        /// Which column.
        column: &'static str,
        /// The key, escaped.
        key: String,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// A vector of the wrong length.
    #[error("a vector of {found} numbers where {expected} are expected")]
    Dimension {
        /// Length expected.
        expected: usize,
        /// Length found.
        found: usize,
    },
    /// A vector that holds infinity or not-a-number.
    #[error("a vector holds a number that is not finite")]
    NonFinite,
    /// A chunk that was handed in with an article it does not belong to.
    #[error("chunk {chunk} does not belong to article {article}")]
    ForeignChunk {
        /// The chunk's full name.
        chunk: String,
        /// The article's full name.
        article: String,
    },
    /// One change that names an article more than once.
    #[error("article {article} is named more than once in one change")]
    NamedTwice {
        /// The article's full name.
        article: String,
    },
    /// A value could not be encoded for a column.
    #[error("cannot encode a value for column {column}")]
    Encode {
        /// Which column.
        column: &'static str,
        /// What the encoder said.
        #[source]
        source: postcard::Error,
    },
}
