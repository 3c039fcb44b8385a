//! The keys that callers need: who they are, what they may do, and the file that holds them.
//!
//! A key is `tf_`, eight characters that name it, `_`, and 256 random bits. It is shown once, when it is made; what is kept is what
//! it allows, and a hash of it under a secret of the server. The command line writes the file, and servers follow it, see
//! [`Gateway`](crate::door::Gateway): nothing else is shared, so that keys can be made and revoked while a server runs, or before one
//! does.

mod file;
mod limits;
mod record;
mod secret;

pub(crate) use self::file::Stamp;
pub use self::file::{KeyFiles, NewKey};
pub use self::limits::KeyLimits;
pub use self::record::{KeyId, KeyRecord, KeyState, Scope};
pub use self::secret::{Key, PEPPER_ENV, Pepper, PepperId, key_id};

use std::io;
use std::path::PathBuf;

/// Why keys could not be read or changed. Never holds the text of a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
    /// A line of the file is no key.
    #[error("{path}:{line}: {message}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// There are keys, and nothing to compare them with.
    #[error("there are keys, but {path}, the secret that they are hashed with, is not there")]
    PepperMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The secret is another one than that which keys were hashed with.
    #[error("key {key} was hashed with another secret than the one in {place}, so that it would fit nobody")]
    PepperWrong {
        /// One such key.
        key: KeyId,
        /// Where the secret was read.
        place: String,
    },
    /// The secret that keys are hashed with is none.
    #[error("{place}: a secret of at least {bytes_least} bytes is expected")]
    PepperShort {
        /// Where it was read.
        place: String,
        /// How long it has to be.
        bytes_least: usize,
    },
    /// There is no such key.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// A key that is not valid any more cannot be rotated.
    #[error("key {id} is {state}")]
    NotValid {
        /// Which key.
        id: KeyId,
        /// What became of it.
        state: KeyState,
    },
    /// Whoever reads the file could not read what took its place.
    #[error(
        "{path} belongs to user {owner}, and would belong to user {writer}; run this as the user that the server runs as"
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who would write it.
        writer: u32,
    },
    /// There were keys once, and to go on without any would let everybody in.
    #[error(
        "there were keys, as {log} tells, but {path} has none; bring it back, or remove both to go on without keys"
    )]
    Gone {
        /// Where the keys should be.
        path: PathBuf,
        /// What tells of them.
        log: PathBuf,
    },
    /// There are as many as there may be.
    #[error("there are {0} keys, and no more are allowed")]
    TooMany(usize),
    /// A time is further away than there are years.
    #[error("the time is out of range")]
    Time(#[from] jiff::Error),
    /// The operating system has no randomness.
    #[error("the operating system gives no random bits: {0}")]
    Random(String),
    /// The file cannot be followed.
    #[error("cannot start the thread that follows the keys")]
    Thread(#[source] io::Error),
}
