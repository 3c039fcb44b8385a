//! Folders and files, with errors that name them, and nothing said to be done before it is on disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::BackupError;

/// Makes a folder, and those that it is to be in.
pub(super) fn make_folder(path: &Path) -> Result<(), BackupError> {
    fs::create_dir_all(path).map_err(BackupError::io("make the folder", path))
}

/// Makes a folder for what is not finished, which only its owner may read, and which is gone when it is dropped.
pub(super) fn private_folder(prefix: &str, parent: &Path) -> Result<TempDir, BackupError> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.prefix(prefix).tempdir_in(parent).map_err(BackupError::io("make a folder in", parent))
}

/// Refuses a folder of another user than the one who made `own`: what is written there would be nothing to its owner.
pub(super) fn check_owner(folder: &Path, own: &Path) -> Result<(), BackupError> {
    #[cfg(unix)]
    {
        let owner = |path: &Path| {
            let about = fs::metadata(path).map_err(BackupError::io("read", path));
            about.map(|about| std::os::unix::fs::MetadataExt::uid(&about))
        };
        let (owner, writer) = (owner(folder)?, owner(own)?);
        if owner != writer {
            return Err(BackupError::Foreign { path: folder.to_owned(), owner, writer });
        }
    }
    #[cfg(not(unix))]
    let _ = (folder, own);
    Ok(())
}

/// Copies a file, with who may read it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    to.parent().map_or(Ok(()), make_folder)?;
    fs::copy(from, to).map_err(BackupError::io("copy", from))?;
    sync(to)
}

/// Returns when a file, or what a folder says is in it, is on disk.
pub(super) fn sync(path: &Path) -> Result<(), BackupError> {
    if cfg!(unix) || path.is_file() {
        File::open(path).and_then(|file| file.sync_all()).map_err(BackupError::io("write", path))?;
    }
    Ok(())
}

/// The files in a folder and the folders in it, in the order of their paths from there.
pub(super) fn walk(root: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(BackupError::io("read", &folder))? {
            let path = entry.map_err(BackupError::io("read", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}
