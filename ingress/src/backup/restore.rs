//! A backup in the place of a store.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use turnflow_state::{StateError, Store};

use super::files::{check_owner, copy, make_folder, private_folder, sync};
use super::manifest::Manifest;
use super::{BackupError, KEYS_FOLDER, STORE_FOLDER};
use crate::keys::KeyFiles;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made.
    pub created: Timestamp,
    /// Where what was there before lies now.
    pub replaced: Option<PathBuf>,
    /// Whether the keys are the backup's.
    pub took_keys: bool,
}

/// Makes the store in `data`, and the keys where there are none, what they were when the backup in `folder` was made.
///
/// A store that is there is refused, or with `replace` put aside under a name of its own; the keys and the pepper that are in its
/// folder stay. All is checked, copied and opened once before anything is moved, and whoever has a store open keeps it.
///
/// # Errors
/// [`BackupError`]; then all is as it was before.
pub fn restore(folder: &Path, data: &Path, keys: &KeyFiles, replace: bool) -> Result<Restored, BackupError> {
    let manifest = Manifest::read(folder)?;
    manifest.verify(folder)?;
    let is_occupied = fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    if is_occupied && !replace {
        return Err(BackupError::Exists(data.to_owned()));
    }
    check_unused(data)?;
    let beside = data.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(beside)?;
    let unfinished = private_folder(".restoring-", beside)?;
    let fresh = unfinished.path();
    if is_occupied {
        check_owner(data, fresh)?;
    }
    for file in &manifest.files {
        if let Ok(name) = Path::new(&file.path).strip_prefix(STORE_FOLDER) {
            copy(&folder.join(&file.path), &fresh.join(name))?;
        }
    }
    drop(Store::open(fresh)?);
    let (took_keys, outside) = bring_keys(keys, &folder.join(KEYS_FOLDER), data, fresh)?;
    sync(fresh)?;
    check_unused(data)?;
    let replaced = is_occupied.then(|| put_aside(data)).transpose()?;
    if let Err(source) = fs::rename(fresh, data) {
        // As it was. What cannot be undone is where the error does not say, so that it is no worse than before.
        let _ = replaced.map(|aside| fs::rename(aside, data));
        outside.iter().for_each(|file| drop(fs::remove_file(file)));
        return Err(BackupError::io("put the store at", data)(source));
    }
    // It has another name now.
    let _renamed = unfinished.keep();
    sync(beside)?;
    Ok(Restored { created: manifest.created, replaced, took_keys })
}

/// Refuses a store that somebody has open. It is not kept open until it is moved, because it would then be closed under the other's
/// name; one that is damaged does not open, and is why one restores.
fn check_unused(data: &Path) -> Result<(), BackupError> {
    match data.join("CURRENT").exists().then(|| Store::open(data)) {
        Some(Err(error @ StateError::Locked { .. })) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Sees to it that the keys are there once `fresh` is in the place of `data`: those that are there now, or else those of the
/// backup, in `kept`. Says whether it is these, and which files it has made outside of `fresh`.
fn bring_keys(keys: &KeyFiles, kept: &Path, data: &Path, fresh: &Path) -> Result<(bool, Vec<PathBuf>), BackupError> {
    let has_keys = keys.path().exists();
    let inside = |file: &Path| real(file).strip_prefix(real(data)).ok().map(|inside| fresh.join(inside));
    let mut outside = Vec::new();
    for (file, name) in keys.kept() {
        let kept = kept.join(name);
        let from = if has_keys { &file } else { &kept };
        match inside(&file) {
            Some(to) if from.exists() => copy(from, &to)?,
            None if !has_keys && kept.exists() => {
                copy(&kept, &file)?;
                outside.push(file);
            }
            _ => {}
        }
    }
    let pepper = keys.pepper_file();
    if let Some(to) = inside(pepper).filter(|_| pepper.exists()) {
        copy(pepper, &to)?;
    }
    Ok((!has_keys && kept.join(keys.kept()[0].1).exists(), outside))
}

/// A path by which a file is the same as by any other, even if only the folders are there that it is to be in.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().find_map(|folder| Some((folder, folder.canonicalize().ok()?)));
    let real = found.and_then(|(folder, real)| Some(real.join(absolute.strip_prefix(folder).ok()?)));
    real.unwrap_or(absolute)
}

/// Gives a folder another name, and says which.
fn put_aside(data: &Path) -> Result<PathBuf, BackupError> {
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let time = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3fZ");
    let aside = data.with_file_name(format!("{name}.replaced-{time}"));
    fs::rename(data, &aside).map_err(BackupError::io("put aside", data))?;
    Ok(aside)
}
