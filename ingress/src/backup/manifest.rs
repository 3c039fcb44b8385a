//! What a backup says of itself: when it was made, by what, and which files it has, with their lengths and BLAKE3 hashes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Component, Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::BackupError;
use super::files::{sync, walk};

/// The manifest's name in a backup.
pub(super) const MANIFEST_NAME: &str = "turnflow-backup.json";
/// The form of manifest and folder that this build writes and reads.
const FORMAT: u32 = 1;

/// A backup's list of its files.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// Version of Turnflow that made it.
    turnflow: String,
    pub(super) created: Timestamp,
    pub(super) files: Vec<Listed>,
}

/// A file of a backup.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    /// From the backup's folder, with `/` between folders.
    pub(super) path: String,
    bytes: u64,
    blake3: String,
}

impl Manifest {
    /// Of all files that are in a folder.
    pub(super) fn of(folder: &Path, created: Timestamp) -> Result<Self, BackupError> {
        let files = walk(folder)?.into_iter().map(|file| {
            let parts: Vec<_> = file.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            let (bytes, blake3) = measure(&folder.join(&file))?;
            Ok(Listed { path: parts.join("/"), bytes, blake3 })
        });
        let files = files.collect::<Result<_, BackupError>>()?;
        Ok(Self { format: FORMAT, turnflow: env!("CARGO_PKG_VERSION").to_owned(), created, files })
    }

    /// Length of all files, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), BackupError> {
        let path = folder.join(MANIFEST_NAME);
        let text = serde_json::to_string_pretty(self).map_err(|error| unreadable(&path, &error))?;
        let written = File::create_new(&path).and_then(|mut file| writeln!(file, "{text}"));
        written.map_err(BackupError::io("write", &path))?;
        sync(&path)
    }

    /// The manifest of the backup in a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, BackupError> {
        let path = folder.join(MANIFEST_NAME);
        if !path.is_file() {
            return Err(BackupError::NoBackup { path: folder.to_owned() });
        }
        let text = fs::read_to_string(&path).map_err(BackupError::io("read", &path))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|error| unreadable(&path, &error))?;
        if manifest.format != FORMAT {
            return Err(unreadable(&path, &format!("format {}, this build reads {FORMAT}", manifest.format)));
        }
        let is_inside = |path: &str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if let Some(file) = manifest.files.iter().find(|file| !is_inside(&file.path)) {
            return Err(unreadable(&path, &format!("{:?} is not in the backup", file.path)));
        }
        Ok(manifest)
    }

    /// Checks every file, and names the first that is not what it was.
    pub(super) fn verify(&self, folder: &Path) -> Result<(), BackupError> {
        for file in &self.files {
            let path = folder.join(&file.path);
            let damaged = |message: &str| BackupError::Damaged { path: path.clone(), message: message.to_owned() };
            if !path.is_file() {
                return Err(damaged("the file is missing"));
            }
            let (bytes, blake3) = measure(&path)?;
            if bytes != file.bytes {
                return Err(damaged(&format!("the file has {bytes} bytes, not {}", file.bytes)));
            }
            if blake3 != file.blake3 {
                return Err(damaged("the file is not what it was: its BLAKE3 hash differs"));
            }
        }
        Ok(())
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> BackupError {
    BackupError::Manifest { path: path.to_owned(), message: error.to_string() }
}

/// A file's length in bytes, and its hash.
fn measure(path: &Path) -> Result<(u64, String), BackupError> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(|hasher| hasher.count()));
    let bytes = read.map_err(BackupError::io("read", path))?;
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}
