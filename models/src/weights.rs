//! The encoder's files: which they are, where they are kept, and whether they are intact.
//!
//! Contract: [`ensure`] returns an encoder whose every byte was checked, or an error that names the file
//! and what is wrong with it. A file gets its final name only once it is complete and verified, so that a pull
//! that is interrupted, or that runs in two processes at once, leaves nothing half-written.
//!
//! Every start hashes the weights again (about 0.1 s): a truncated or swapped file is an error, never a model that
//! answers nonsense. What it deliberately does not do: fetch anything but the pinned files, or keep several
//! versions. How files are fetched is in `pull.rs`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::bert::BertConfig;
use crate::encoder::EncoderCheckpoint;
use crate::error::{ModelError, chain};
use crate::pull::{self, Progress, WeightSource};

/// The sentence encoder's name, on the hub and on disk.
pub const MODEL_NAME: &str = "all-MiniLM-L6-v2";

/// Largest configuration file accepted, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 64 * 1024;
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// One model's files. A parameter of everything in here, so that tests need no real weights.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) name: &'static str,
    /// The first file marks the folder of an archive that the others are in.
    pub(crate) files: &'static [FileSpec],
}

/// One file of a model.
#[derive(Clone, Debug)]
pub(crate) struct FileSpec {
    pub(crate) name: &'static str,
    pub(crate) check: Check,
}

/// What makes a file intact.
#[derive(Clone, Debug)]
pub(crate) enum Check {
    /// These bytes and no others.
    Exact {
        /// Size in bytes.
        size: u64,
        /// SHA-256 in hexadecimal.
        sha256: &'static str,
    },
    /// A configuration that describes this architecture. Its bytes differ between sources in fields that do not
    /// matter, such as the version of the program that wrote it.
    Architecture(BertConfig),
}

impl FileSpec {
    /// Most bytes that are ever read for this file.
    pub(crate) const fn bytes_max(&self) -> u64 {
        match self.check {
            Check::Exact { size, .. } => size,
            Check::Architecture(_) => CONFIG_BYTES_MAX,
        }
    }
}

const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "config.json";

/// The pinned files of the sentence encoder.
pub(crate) static MINILM: Manifest = Manifest {
    name: MODEL_NAME,
    files: &[
        FileSpec {
            name: WEIGHTS,
            check: Check::Exact {
                size: 90_868_376,
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            },
        },
        FileSpec {
            name: TOKENIZER,
            check: Check::Exact {
                size: 466_247,
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            },
        },
        FileSpec { name: CONFIG, check: Check::Architecture(BertConfig::MINILM) },
    ],
};

/// Where weights are kept: `<root>/models/<model>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelHome {
    root: PathBuf,
}

impl ModelHome {
    /// A home with this root folder, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the sentence encoder.
    #[must_use]
    pub fn model_dir(&self) -> PathBuf {
        self.dir_of(&MINILM)
    }

    /// The folder that is meant by a path, or by the name under which a checkpoint was pulled.
    pub(crate) fn folder_of(&self, model: &Path) -> PathBuf {
        let pulled = || model.to_str().and_then(|name| self.checkpoint_dir(name).ok()).filter(|dir| dir.is_dir());
        if model.is_dir() { model.to_owned() } else { pulled().unwrap_or_else(|| model.to_owned()) }
    }

    pub(crate) fn dir_of(&self, manifest: &Manifest) -> PathBuf {
        self.root.join("models").join(manifest.name)
    }
}

/// The root folder when nobody names one: `TURNFLOW_HOME`, else `turnflow` in the platform's data folder.
///
/// # Errors
/// [`ModelError::NoHome`] when the user has no home folder.
pub fn default_home() -> Result<PathBuf, ModelError> {
    use etcetera::BaseStrategy as _;
    if let Some(home) = std::env::var_os("TURNFLOW_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    let platform = etcetera::choose_base_strategy().map_err(|_| ModelError::NoHome)?;
    Ok(platform.data_dir().join("turnflow"))
}

/// Makes sure that the encoder's files are there and intact, pulling them from the first source that has them.
///
/// Files that are there but damaged are replaced. Safe to run in several processes at once. Blocks for as long as
/// the download takes; `progress` is called on this thread.
///
/// # Errors
/// [`ModelError::NoSource`], with what is wrong with the present files and what each source said.
pub fn ensure(
    home: &ModelHome,
    sources: &[WeightSource],
    progress: &dyn Fn(Progress<'_>),
) -> Result<EncoderCheckpoint, ModelError> {
    EncoderCheckpoint::shipped(&ensure_manifest(home, &MINILM, sources, progress)?)
}

/// Checks every byte of the encoder's files; pulls nothing.
///
/// # Errors
/// The first file that is missing, of the wrong size, or altered.
pub fn verify(home: &ModelHome) -> Result<EncoderCheckpoint, ModelError> {
    let dir = home.model_dir();
    verify_dir(&dir, &MINILM, &|_| {})?;
    EncoderCheckpoint::shipped(&dir)
}

pub(crate) fn ensure_manifest(
    home: &ModelHome,
    manifest: &Manifest,
    sources: &[WeightSource],
    progress: &dyn Fn(Progress<'_>),
) -> Result<PathBuf, ModelError> {
    let dir = home.dir_of(manifest);
    if let Err(damage) = verify_dir(&dir, manifest, progress) {
        pull_first(&dir, manifest, sources, progress, &damage)?;
    }
    progress(Progress::Ready);
    Ok(dir)
}

fn pull_first(
    dir: &Path,
    manifest: &Manifest,
    sources: &[WeightSource],
    progress: &dyn Fn(Progress<'_>),
    damage: &ModelError,
) -> Result<(), ModelError> {
    let mut failures = Vec::new();
    for source in sources {
        progress(Progress::Trying { source });
        match pull_into_place(dir, manifest, source, progress) {
            Ok(()) => return Ok(()),
            Err(error) => {
                progress(Progress::Failed { source, error: &error });
                failures.push((source.to_string(), chain(&error)));
            }
        }
    }
    Err(ModelError::NoSource { model: manifest.name.to_owned(), found: chain(damage), failures })
}

/// Fetches into a folder beside the target, verifies there, then renames file by file. Two processes that do
/// this at once rename files of equal content over each other.
fn pull_into_place(
    dir: &Path,
    manifest: &Manifest,
    source: &WeightSource,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), ModelError> {
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent).map_err(ModelError::io("create the folder", parent))?;
    let staging = tempfile::Builder::new()
        .prefix(".pull-")
        .tempdir_in(parent)
        .map_err(ModelError::io("create a folder in", parent))?;
    pull::fetch(source, manifest, staging.path(), progress)?;
    verify_dir(staging.path(), manifest, progress)?;
    fs::create_dir_all(dir).map_err(ModelError::io("create the folder", dir))?;
    for file in manifest.files {
        let target = dir.join(file.name);
        fs::rename(staging.path().join(file.name), &target).map_err(ModelError::io("write", target))?;
    }
    Ok(())
}

fn verify_dir(dir: &Path, manifest: &Manifest, progress: &dyn Fn(Progress<'_>)) -> Result<(), ModelError> {
    for file in manifest.files {
        // Sizes first: a missing or truncated file is found before any hashing.
        let path = dir.join(file.name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Err(ModelError::MissingFile { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ModelError::MissingFile { path }),
            Err(error) => return Err(ModelError::io("read", path)(error)),
        };
        if let Check::Exact { size, .. } = file.check
            && metadata.len() != size
        {
            return Err(ModelError::WrongSize { path, expected: size, found: metadata.len() });
        }
    }
    for file in manifest.files {
        progress(Progress::Verifying { file: file.name });
        let path = dir.join(file.name);
        match &file.check {
            Check::Exact { sha256, .. } => {
                let found = digest(Sha256::new(), &path)?;
                if found != *sha256 {
                    let expected = (*sha256).to_owned();
                    return Err(ModelError::WrongChecksum { path, hash: "SHA-256", expected, found });
                }
            }
            Check::Architecture(expected) => BertConfig::read(&path)?.must_equal(expected, &path)?,
        }
    }
    Ok(())
}

/// Hash of what the hasher has taken already and of a file's content, in hexadecimal.
pub(crate) fn digest<D: Digest>(mut hasher: D, path: &Path) -> Result<String, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(ModelError::io("read", path))?;
        if read == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
