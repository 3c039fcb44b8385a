//! Folders and files, with errors that name them, and nothing said to be done before it is on disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::BackupError;

/// Makes a folder, and those that it is to be in.
pub(super) fn make_folder(path: &Path) -> Result<(), BackupError> {
    fs::create_dir_all(path).map_err(BackupError::io("make the folder", path))
}

/// Copies a file, with who may read it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
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
