//! Cancellation: one who waits tells those who work that nobody waits any more.
//!
//! Contract: cancelled once, cancelled for ever, for all clones. Whoever works either asks between steps or is
//! [called](Cancel::on_cancel), exactly once, on the thread that cancels. Nothing here blocks, and no runtime is assumed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn FnOnce() + Send>;

/// Whether somebody still waits. Clones share it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

impl Cancel {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nobody waits any more. Idempotent.
    pub fn cancel(&self) {
        let hooks = {
            let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.cancelled.store(true, Ordering::Release);
            std::mem::take(&mut *hooks)
        };
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Calls `hook` when it is cancelled, at once if it is already. It must be short, not block and not panic.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn everybody_hears_it_once() {
        let calls = Arc::new(AtomicUsize::new(0));
        let cancel = Cancel::new();
        let count = || {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        cancel.on_cancel(count());
        let clone = cancel.clone();
        assert!(!cancel.is_cancelled() && calls.load(Ordering::Relaxed) == 0);
        clone.cancel();
        clone.cancel();
        assert!(cancel.is_cancelled());
        cancel.on_cancel(count());
        assert_eq!(calls.load(Ordering::Relaxed), 2, "one before, one after");
    }
}
