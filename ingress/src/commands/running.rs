//! What a running server says of itself in its store's folder, so that `check` can tell its ports from those of others.
//!
//! Only the server that has the store open writes the file, and locks it for as long as it serves. The lock ends with the process, however that ends:
//! what a server that was killed has left is not locked, and says nothing.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The file's name, beside those of the store.
const FILE_NAME: &str = "server.json";
/// How often the file is tried that somebody else has locked, and how long between: whoever just looks at it is done by then.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A server that runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Running {
    /// Its process.
    pub(super) pid: u32,
    /// Where it speaks gRPC.
    pub(super) grpc: SocketAddr,
    /// Where it speaks HTTP, if it does.
    pub(super) http: Option<SocketAddr>,
    /// Whether it speaks TLS there.
    pub(super) tls: bool,
}

/// The file of a server that runs, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Announcement {
    path: PathBuf,
    _lock: File,
}

impl Running {
    /// Says it in the folder of the store that this process has open.
    ///
    /// # Errors
    /// When it is no regular file, or cannot be written, or locked within `LOCK_TRIES`.
    pub(super) fn announce(&self, data: &Path) -> io::Result<Announcement> {
        let path = data.join(FILE_NAME);
        require_file(&path)?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
        lock(&file)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(Announcement { path, _lock: file })
    }

    /// The server of the store in a folder; None when none runs.
    pub(super) fn at(data: &Path) -> Option<Self> {
        let path = data.join(FILE_NAME);
        require_file(&path).ok()?;
        let file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => serde_json::from_reader(file).ok(),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// Whether it is why nobody else can listen at an address.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let is_in_the_way = |own: SocketAddr| {
            let is_same_ip = own.ip() == address.ip() || own.ip().is_unspecified() || address.ip().is_unspecified();
            own.port() == address.port() && is_same_ip
        };
        is_in_the_way(self.grpc) || self.http.is_some_and(is_in_the_way)
    }
}

/// Whether a path is a regular file, or nothing yet: to open a pipe waits for somebody at its other end.
fn require_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::other(format!("{} is no regular file; remove it", path.display())))
        }
        _ => Ok(()),
    }
}

/// Locks the file, though somebody may look at it for a moment.
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
    Err(io::Error::other(format!("another process keeps {FILE_NAME} locked")))
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("removing {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn server() -> Running {
        Running { pid: 1, grpc: address("127.0.0.1:7411"), http: Some(address("0.0.0.0:7412")), tls: false }
    }

    #[test]
    fn a_server_is_known_as_long_as_it_runs() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Running::at(dir.path()).is_none());
        let announced = server().announce(dir.path()).expect("written");
        assert_eq!(Running::at(dir.path()).map(|running| running.grpc), Some(server().grpc));
        drop(announced);
        assert!(!dir.path().join(FILE_NAME).exists());
        fs::write(dir.path().join(FILE_NAME), serde_json::to_vec(&server()).expect("JSON")).expect("written");
        assert!(Running::at(dir.path()).is_none(), "whoever left it was killed");
    }

    #[test]
    fn what_is_no_file_or_stays_locked_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(FILE_NAME);
        let refused = || server().announce(dir.path()).expect_err("not written").to_string();
        fs::create_dir(&path).expect("made");
        assert!(refused().contains("is no regular file"));
        fs::remove_dir(&path).expect("removed");
        let looking = File::create(&path).expect("made");
        looking.lock_shared().expect("locked");
        assert_eq!(refused(), "another process keeps server.json locked");
        drop(looking);
        server().announce(dir.path()).expect("written");
    }

    #[test]
    fn an_address_is_taken_by_the_same_one_and_by_all_of_a_port() {
        let taken = ["127.0.0.1:7411", "0.0.0.0:7411", "127.0.0.1:7412", "192.0.2.1:7412"];
        let free = ["192.0.2.1:7411", "127.0.0.1:7413"];
        assert!(taken.iter().all(|at| server().has(address(at))));
        assert!(!free.iter().any(|at| server().has(address(at))));
    }
}
