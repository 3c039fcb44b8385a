//! Puts a repository's files in their place, and says what is there.
//!
//! Contract: files are fetched, under names that hold their checksums, into a folder beside their place, and get their final names together,
//! once each is complete and verified. A pull that was interrupted goes on where it stopped; one that finds everything there fetches
//! nothing. What was put there is written down in [`RECORD`], which is the last thing written: a folder without it is not
//! complete. Two pulls of one repository at once are refused.

use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::snapshot::{INDEX, Repository};
use super::{Checksum, FilePlace, Hub, RemoteFile};
use crate::error::ModelError;
use crate::pull::Progress;
use crate::weights::{ModelHome, digest};

/// The file that says what a folder holds.
pub(crate) const RECORD: &str = "turnflow.json";
/// The folder of what is not complete.
const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// A checkpoint that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// `ORG/NAME`.
    pub repository: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it was.
    pub commit: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its files.
    pub files: Vec<InstalledFile>,
}

/// A file of a checkpoint that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledFile {
    /// Its name.
    pub name: String,
    /// Its size on the hub, in bytes.
    pub size: u64,
    checksum: Checksum,
}

#[derive(Serialize, Deserialize)]
struct Record {
    repository: String,
    revision: String,
    commit: String,
    files: Vec<RemoteFile>,
}

impl Installed {
    /// What a folder holds, as it was written down when it was pulled; None when it was not, or not to the end.
    ///
    /// # Errors
    /// When the record cannot be read or parsed.
    pub fn read(folder: &Path) -> Result<Option<Self>, ModelError> {
        let path = folder.join(RECORD);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ModelError::io("open", path)(error)),
        };
        let mut json = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut json).map_err(ModelError::io("read", &path))?;
        let record: Record =
            serde_json::from_slice(&json).map_err(|error| ModelError::Parse { path, source: Box::new(error) })?;
        Ok(Some(record.installed(folder)))
    }

    /// What its files take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Checks that every file is there in its right size.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_sizes(&self) -> Result<(), ModelError> {
        self.files.iter().try_for_each(|file| check_size(&self.folder.join(&file.name), file.size))
    }

    /// Checks every byte of every file.
    ///
    /// # Errors
    /// The first file that is not as it was on the hub.
    pub fn verify(&self, progress: &dyn Fn(Progress<'_>)) -> Result<(), ModelError> {
        self.check_sizes()?;
        self.files.iter().try_for_each(|file| {
            progress(Progress::Verifying { file: &file.name });
            verify_file(&self.folder.join(&file.name), file.size, &file.checksum)
        })
    }
}

impl Record {
    fn installed(self, folder: &Path) -> Installed {
        let file = |RemoteFile { name, size, checksum }| InstalledFile { name, size, checksum };
        let files = self.files.into_iter().map(file).collect();
        let Self { repository, revision, commit, .. } = self;
        Installed { repository, revision, commit, folder: folder.to_owned(), files }
    }
}

impl ModelHome {
    /// The folder of a checkpoint from the hub.
    ///
    /// # Errors
    /// [`ModelError::HubName`] when the name is not of the form `ORG/NAME`.
    pub fn checkpoint_dir(&self, repository: &str) -> Result<PathBuf, ModelError> {
        Ok(self.root().join("models").join(Repository::parse(repository)?.as_str()))
    }
}

/// The checkpoints that were pulled, in order of their names. Those that cannot be read are passed over.
///
/// # Errors
/// When the folder of all models cannot be read.
pub fn installed(home: &ModelHome) -> Result<Vec<Installed>, ModelError> {
    let mut found = Vec::new();
    for organisation in folders_in(&home.root().join("models"))? {
        for folder in folders_in(&organisation)? {
            match Installed::read(&folder) {
                Ok(installed) => found.extend(installed),
                Err(error) => tracing::warn!(error = crate::error::chain(&error), "a model is passed over"),
            }
        }
    }
    found.sort_by(|a, b| a.repository.cmp(&b.repository));
    Ok(found)
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(ModelError::io("read", folder)(error)),
    }
}

/// Pulls what a decoder needs of a repository. Blocks for as long as it takes; `progress` is called on this thread.
///
/// # Errors
/// When the hub refuses, the repository has no decoder that could be loaded, the connection breaks off for good, a file is not
/// what the hub says, or the disk is full.
pub fn install(
    hub: &Hub,
    home: &ModelHome,
    repository: &str,
    revision: &str,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Installed, ModelError> {
    let name = Repository::parse(repository)?;
    let unusable = |reason: String| ModelError::HubContent { repository: repository.to_owned(), reason };
    let folder = home.checkpoint_dir(repository)?;
    let partial = folder.join(PARTIAL);
    fs::create_dir_all(&partial).map_err(ModelError::io("create the folder", &partial))?;
    let lock = lock(&partial.join(LOCK), repository)?;

    let snapshot = hub.snapshot(&name, revision)?;
    let staging = Staging { hub, repository, commit: &snapshot.commit, folder: &folder, partial: &partial, progress };
    let mut files = snapshot.settings().map_err(unusable)?;
    files.iter().try_for_each(|file| staging.fetch(file))?;
    let index = files.iter().find(|file| file.name == INDEX).map(|file| staging.content(file)).transpose()?;
    let weights = snapshot.weights(index.as_deref()).map_err(unusable)?;
    weights.iter().try_for_each(|file| staging.fetch(file))?;
    files.extend(weights);

    let record = Record {
        repository: repository.to_owned(),
        revision: revision.to_owned(),
        commit: snapshot.commit.clone(),
        files,
    };
    staging.put_in_place(&record)?;
    drop(lock);
    fs::remove_dir_all(&partial).map_err(ModelError::io("remove", &partial))?;
    progress(Progress::Ready);
    Ok(record.installed(&folder))
}

fn lock(path: &Path, repository: &str) -> Result<File, ModelError> {
    let file = File::create(path).map_err(ModelError::io("write", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ModelError::HubContent {
            repository: repository.to_owned(),
            reason: "it is being pulled by another process".to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(ModelError::io("lock", path)(error)),
    }
}

/// A pull under way.
struct Staging<'a> {
    hub: &'a Hub,
    repository: &'a str,
    commit: &'a str,
    folder: &'a Path,
    partial: &'a Path,
    progress: &'a dyn Fn(Progress<'_>),
}

impl Staging<'_> {
    fn partial_of(&self, file: &RemoteFile) -> PathBuf {
        self.partial.join(format!("{}-{}", file.checksum.as_str(), file.name))
    }

    /// Fetches a file that is not in its place already, and verifies it.
    fn fetch(&self, file: &RemoteFile) -> Result<(), ModelError> {
        let RemoteFile { name, size, checksum } = file;
        let verifying = || (self.progress)(Progress::Verifying { file: name });
        let partial = self.partial_of(file);
        let in_place = self.folder.join(name);
        if check_size(&in_place, *size).is_ok() {
            verifying();
            if verify_file(&in_place, *size, checksum).is_ok() {
                // What an earlier pull left half-done must not take its place.
                return remove_if_there(&partial);
            }
        }
        let place = FilePlace { repository: self.repository, revision: self.commit, file: name };
        let bytes = |done| (self.progress)(Progress::Bytes { file: name, done, total: *size });
        if check_size(&partial, *size).is_err() {
            self.hub.download(&place, *size, &partial, &bytes)?;
        }
        verifying();
        verify_file(&partial, *size, checksum).inspect_err(|_| {
            // To go on from it would fail for ever.
            let _next_pull_tells = remove_if_there(&partial);
        })
    }

    /// The content of a small file that was fetched.
    fn content(&self, file: &RemoteFile) -> Result<Vec<u8>, ModelError> {
        let partial = self.partial_of(file);
        let path = if partial.exists() { partial } else { self.folder.join(&file.name) };
        fs::read(&path).map_err(ModelError::io("read", path))
    }

    /// Gives every file its final name. While that goes on the folder has no record.
    fn put_in_place(&self, record: &Record) -> Result<(), ModelError> {
        let before = Installed::read(self.folder).ok().flatten();
        let path = self.folder.join(RECORD);
        remove_if_there(&path)?;
        for file in &record.files {
            let (from, to) = (self.partial_of(file), self.folder.join(&file.name));
            if from.exists() {
                fs::rename(&from, &to).map_err(ModelError::io("write", &to))?;
            }
        }
        let gone = before.iter().flat_map(|before| &before.files);
        for file in gone.filter(|file| record.files.iter().all(|new| new.name != file.name)) {
            let path = self.folder.join(&file.name);
            remove_if_there(&path)?;
        }
        let json = serde_json::to_vec_pretty(record)
            .map_err(|error| ModelError::Parse { path: path.clone(), source: Box::new(error) })?;
        let written = self.partial.join(RECORD);
        fs::write(&written, json).map_err(ModelError::io("write", &written))?;
        fs::rename(&written, &path).map_err(ModelError::io("write", &path))
    }
}

fn remove_if_there(path: &Path) -> Result<(), ModelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ModelError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn check_size(path: &Path, expected: u64) -> Result<(), ModelError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == expected => Ok(()),
        Ok(metadata) => Err(ModelError::WrongSize { path: path.to_owned(), expected, found: metadata.len() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ModelError::MissingFile { path: path.to_owned() })
        }
        Err(error) => Err(ModelError::io("read", path)(error)),
    }
}

fn verify_file(path: &Path, size: u64, checksum: &Checksum) -> Result<(), ModelError> {
    check_size(path, size)?;
    let (hash, expected, found) = match checksum {
        Checksum::Sha256(expected) => ("SHA-256", expected, digest(Sha256::new(), path)?),
        Checksum::GitBlob(expected) => {
            ("SHA-1", expected, digest(Sha1::new().chain_update(format!("blob {size}\0")), path)?)
        }
    };
    if found == *expected {
        return Ok(());
    }
    Err(ModelError::WrongChecksum { path: path.to_owned(), hash, expected: expected.clone(), found })
}
