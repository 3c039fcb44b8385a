//! Cancellation: one who waits tells those who work that nobody waits any more.
//!
//! Contract: cancelled once, cancelled for ever, for all clones. Whoever works either asks between steps or is
//! [called](Cancel::on_cancel), exactly once, on the thread that cancels. Where [others](Cancel::joined_by) wait for the same work, it
//! is not cancelled before they have left as well. Nothing here blocks, and no runtime is assumed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Hook = Box<dyn FnOnce() + Send>;

/// Whether somebody still waits. Clones share it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    waits: Mutex<Waits>,
}

#[derive(Default)]
struct Waits {
    /// Whether the one whose work it is has left.
    has_left: bool,
    /// Others who wait for it.
    others: usize,
    hooks: Vec<Hook>,
}

impl Cancel {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whoever had this done waits no more. Idempotent.
    pub fn cancel(&self) {
        self.leaves(|waits| waits.has_left = true);
    }

    /// Somebody else waits for the same work, until `other` is cancelled. What is cancelled already stays so.
    pub fn joined_by(&self, other: &Self) {
        self.waits().others += 1;
        let joined = self.clone();
        other.on_cancel(move || joined.leaves(|waits| waits.others -= 1));
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Calls `hook` when it is cancelled, at once if it is already. It must be short, not block and not panic.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut waits = self.waits();
        if self.is_cancelled() {
            drop(waits);
            hook();
        } else {
            waits.hooks.push(Box::new(hook));
        }
    }

    fn leaves(&self, leave: impl FnOnce(&mut Waits)) {
        let hooks = {
            let mut waits = self.waits();
            leave(&mut waits);
            if !waits.has_left || waits.others > 0 {
                return;
            }
            self.0.cancelled.store(true, Ordering::Release);
            std::mem::take(&mut waits.hooks)
        };
        hooks.into_iter().for_each(|hook| hook());
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn it_is_not_cancelled_while_others_wait() {
        let [cancel, other, third] = [(); 3].map(|()| Cancel::new());
        cancel.joined_by(&other);
        other.joined_by(&third);
        cancel.cancel();
        other.cancel();
        cancel.cancel();
        assert!(
            !cancel.is_cancelled() && !other.is_cancelled(),
            "the third waits for the second, and so for the first"
        );
        third.cancel();
        assert!(cancel.is_cancelled() && other.is_cancelled());
        cancel.joined_by(&Cancel::new());
        assert!(cancel.is_cancelled(), "for ever");
        let (cancel, gone) = (Cancel::new(), other);
        cancel.joined_by(&gone);
        cancel.cancel();
        assert!(cancel.is_cancelled(), "whoever has left does not wait");
    }
}
