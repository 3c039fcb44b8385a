//! How much memory this process has in RAM, and telling the load of it.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use turnflow_operators::load::Load;
use turnflow_operators::{Clock, OperatorError};

/// How often it is looked at where there is a limit.
const EVERY: Duration = Duration::from_millis(250);

/// Memory of this process that is in RAM, in bytes; None where the system does not tell, as other systems than Linux do not.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Tells the load how much memory the process has, again and again until the sender is dropped.
pub(crate) fn watch(load: Load, clock: Clock) -> Result<Sender<()>, OperatorError> {
    let limit = load.lock().memory_bytes_max();
    match resident_bytes() {
        None => {
            tracing::warn!(
                "load.memory-bytes-max has no effect: the system does not tell what a process has in memory"
            );
        }
        Some(bytes) if bytes > limit => {
            tracing::warn!(bytes, limit, "load.memory-bytes-max is below what the process has in memory at its start");
        }
        Some(_) => {}
    }
    let (watching, watched) = channel();
    let name = "turnflow-memory".to_owned();
    let watch = move || {
        while watched.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            if let Some(bytes) = resident_bytes() {
                load.lock().remember(bytes, clock.now_us());
            }
        }
    };
    let started = std::thread::Builder::new().name(name.clone()).spawn(watch);
    started.map(|_| watching).map_err(|source| OperatorError::Thread { name, source })
}
