//! Backups: everything that is kept, as it was at one moment, in a folder that can be copied anywhere and restored from.
//!
//! [`Backups::make`] copies the store and the keys while turns are answered. The store's tables are never changed, so on the same file
//! system the copy is a second name for them, and takes room only when the store has replaced them. What was acknowledged before a
//! backup began is in it. A backup has its name once it is complete and on disk; what was interrupted lies in a folder whose name begins
//! with `.unfinished-`, and may be deleted.
//!
//! [`restore`] puts one in the place of a store. Every file is checked against the manifest first, nothing is overwritten, and the keys
//! that are there stay, so that none which was revoked counts again.
//!
//! The pepper is not in a backup: with the keys' hashes it would be worth stealing. Nor are weights and configuration.

mod files;
mod manifest;
mod restore;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, TryLockError};

use jiff::Timestamp;
use turnflow_pipeline::Config;
use turnflow_state::{StateError, Store};

use self::files::{copy, make_folder, private_folder, sync};
use self::manifest::{MANIFEST_NAME, Manifest};
pub use self::restore::{Restored, restore};
use crate::keys::KeyFiles;

/// Longest name of a backup, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// The store's part of a backup.
const STORE_FOLDER: &str = "store";
/// The keys' part of a backup.
const KEYS_FOLDER: &str = "keys";

/// Makes backups of one store, one at a time.
#[derive(Clone, Debug)]
pub struct Backups {
    store: Store,
    keys: KeyFiles,
    folder: PathBuf,
    busy: Arc<Mutex<()>>,
}

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its name.
    pub name: BackupName,
    /// Its folder.
    pub path: PathBuf,
    /// Number of its files.
    pub files: usize,
    /// Their length together, in bytes.
    pub bytes: u64,
}

/// The name of a backup: letters, digits, `.`, `-` and `_`, and no `.` in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupName(String);

/// Why a backup was not made or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Another one is being made.
    #[error("another backup is being made")]
    Busy,
    /// There is something with this name.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// A folder holds no backup.
    #[error("{path} is no complete backup: it has no {MANIFEST_NAME}")]
    NoBackup {
        /// The folder.
        path: PathBuf,
    },
    /// A backup is not what it was.
    #[error("{path}: {message}")]
    Damaged {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The manifest is none that this build reads.
    #[error("cannot read {path}: {message}")]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
    /// A store is another user's.
    #[error("{path} belongs to user {owner}, and this is user {writer}: do it as that one")]
    Foreign {
        /// The store's folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wants to write.
        writer: u32,
    },
    /// The store could not be copied or opened.
    #[error(transparent)]
    Store(#[from] StateError),
}

impl BackupError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl Backups {
    /// Of this store and these keys, in this folder, which is made with the first backup.
    #[must_use]
    pub fn new(store: Store, keys: KeyFiles, folder: PathBuf) -> Self {
        Self { store, keys, folder, busy: Arc::default() }
    }

    /// Of this store, where the configuration names the folder of backups and the file of keys.
    #[must_use]
    pub fn configured(config: &Config, store: &Store) -> Option<Self> {
        let folder = &config.storage.backup_folder;
        // With no named file it would be beside the store, and where that is nobody knows here.
        let is_known = !folder.as_os_str().is_empty() && !config.gateway.keys.as_os_str().is_empty();
        let keys = is_known.then(|| KeyFiles::new(&config.gateway, Path::new("")).ok()).flatten()?;
        Some(Self::new(store.clone(), keys, folder.clone()))
    }

    /// Makes a backup, called after the time unless it is named. Blocks until it is on disk, which takes as long as to read it once.
    ///
    /// # Errors
    /// [`BackupError`]; what was begun is taken away again.
    pub fn make(&self, name: Option<BackupName>) -> Result<Backup, BackupError> {
        let _alone = match self.busy.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(BackupError::Busy),
            // It guards nothing that a panic could leave half done.
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let now = Timestamp::now();
        let name = name.unwrap_or_else(|| BackupName::of(now));
        let path = self.folder.join(&name.0);
        if path.exists() {
            return Err(BackupError::Exists(path));
        }
        make_folder(&self.folder)?;
        let unfinished = private_folder(".unfinished-", &self.folder)?;
        let manifest = self.fill(unfinished.path(), now)?;
        std::fs::rename(unfinished.path(), &path).map_err(BackupError::io("name the backup", &path))?;
        // It has another name now.
        let _renamed = unfinished.keep();
        sync(&self.folder)?;
        Ok(Backup { name, path, files: manifest.files.len(), bytes: manifest.bytes() })
    }

    fn fill(&self, folder: &Path, now: Timestamp) -> Result<Manifest, BackupError> {
        self.store.checkpoint(&folder.join(STORE_FOLDER))?;
        let keys = folder.join(KEYS_FOLDER);
        make_folder(&keys)?;
        for (file, name) in self.keys.kept().iter().filter(|(file, _)| file.exists()) {
            copy(file, &keys.join(name))?;
        }
        let manifest = Manifest::of(folder, now)?;
        manifest.write(folder)?;
        sync(&keys)?;
        sync(folder)?;
        Ok(manifest)
    }
}

impl BackupName {
    fn of(time: Timestamp) -> Self {
        Self(time.strftime("%Y-%m-%dT%H-%M-%SZ").to_string())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match text {
            "" => Err("a backup's name is empty".to_owned()),
            _ if text.len() > NAME_BYTES_MAX => Err(format!("a backup's name has at most {NAME_BYTES_MAX} bytes")),
            _ if text.starts_with('.') || !text.bytes().all(is_allowed) => {
                Err(format!("{text:?} is no name for a backup: letters, digits, '.', '-' and '_', and no '.' in front"))
            }
            _ => Ok(Self(text.to_owned())),
        }
    }
}
