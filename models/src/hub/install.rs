//! Puts a repository's files in their place, and says what is there.
//!
//! Contract: files are fetched, under names that hold their checksums, into a folder beside their place, and get their final names together,
//! once each is complete and verified. A pull that was interrupted goes on where it stopped; one that finds everything there fetches
//! nothing. What was put there is written down in [`RECORD`], which is the last thing written: a folder that has none, but
//! the traces of a pull, is not complete. Files that only an earlier record names go, even when pulls between ended too early.
//! Two pulls of one repository at once are refused.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::snapshot::{INDEX, Repository, are_sound, is_plain_path};
use super::{Checksum, FilePlace, Hub, RemoteFile};
use crate::error::ModelError;
use crate::pull::Progress;
use crate::weights::{ModelHome, digest};

/// The file that says what a folder holds.
pub(crate) const RECORD: &str = "turnflow.json";
/// The folder of what is not complete.
const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";
/// The names of all files that were put in place since the folder was last complete, and of those that it had then.
const NAMES: &str = "names.json";
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
    /// What a folder holds, as it was written down when it was pulled; None when it came another way.
    ///
    /// # Errors
    /// When the record cannot be read or parsed, or a pull into the folder has not come to its end.
    pub fn read_whole(folder: &Path) -> Result<Option<Self>, ModelError> {
        let read = Self::read(folder)?;
        if read.is_none() && folder.join(PARTIAL).is_dir() {
            let reason = "a pull into this folder has not come to its end: what is there may be of two versions";
            return Err(ModelError::Load { path: folder.to_owned(), reason: reason.to_owned() });
        }
        Ok(read)
    }

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
        let unreadable = |source| ModelError::Parse { path, source };
        match serde_json::from_slice::<Record>(&json) {
            Ok(record) if are_sound(&record.files) => Ok(Some(record.installed(folder))),
            Ok(_) => Err(unreadable("it names files that cannot be in a checkpoint".into())),
            Err(error) => Err(unreadable(Box::new(error))),
        }
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

/// Pulls what a decoder or a sentence encoder needs of a repository. Blocks for as long as it takes; `progress` is called on this thread.
///
/// # Errors
/// When the hub refuses, the repository has no model that could be loaded, the connection breaks off for good, a file is not
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
    fs::remove_dir_all(&partial).map_err(ModelError::io("remove", &partial))?;
    drop(lock);
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
        self.partial.join(format!("{}-{}", file.checksum.as_str(), file.name.replace('/', "-")))
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
        let mut names = self.names_in_place();
        names.extend(record.files.iter().map(|file| file.name.clone()));
        self.write(&names, NAMES, &self.partial.join(NAMES))?;
        let path = self.folder.join(RECORD);
        remove_if_there(&path)?;
        for file in &record.files {
            let (from, to) = (self.partial_of(file), self.folder.join(&file.name));
            if from.exists() {
                if let Some(folder) = to.parent() {
                    fs::create_dir_all(folder).map_err(ModelError::io("create the folder", folder))?;
                }
                fs::rename(&from, &to).map_err(ModelError::io("write", &to))?;
            }
        }
        for name in names.iter().filter(|name| record.files.iter().all(|file| file.name != **name)) {
            remove_if_there(&self.folder.join(name))?;
        }
        self.write(record, RECORD, &path)
    }

    /// Names of files that earlier pulls have put in place, whether they came to their end or not.
    fn names_in_place(&self) -> BTreeSet<String> {
        let recorded = Installed::read(self.folder).ok().flatten().map_or_else(Vec::new, |installed| installed.files);
        // The list is written in one piece, so that it cannot be read only when there is none.
        let listed = fs::read(self.partial.join(NAMES)).ok();
        let listed: Option<Vec<String>> = listed.and_then(|json| serde_json::from_slice(&json).ok());
        let names = listed.unwrap_or_default().into_iter().chain(recorded.into_iter().map(|file| file.name));
        names.filter(|name: &String| is_plain_path(name)).collect()
    }

    /// Writes a value in one piece, by way of a file of this name with a mark.
    fn write(&self, value: &impl Serialize, name: &str, to: &Path) -> Result<(), ModelError> {
        let written = self.partial.join(format!("new-{name}"));
        let json = serde_json::to_vec_pretty(value)
            .map_err(|error| ModelError::Parse { path: to.to_owned(), source: Box::new(error) })?;
        fs::write(&written, json).map_err(ModelError::io("write", &written))?;
        fs::rename(&written, to).map_err(ModelError::io("write", to))
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
