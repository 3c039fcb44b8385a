//! A slice that several threads write to, each its own parts.

use std::marker::PhantomData;

/// A mutable slice whose parts are handed out without a check that they are apart.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: what is handed out are mutable slices of `T`, which may be used on another thread when `T` may be sent; that no
// two of them overlap is promised by whoever asks for them.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// The `len` items from `at` on.
    ///
    /// # Safety
    /// No other slice of these items may be alive.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "what the type is for; the caller keeps parts apart")]
    pub(crate) unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [T] {
        assert!(len <= self.len && at <= self.len - len, "{at} and {len} more of {}", self.len);
        // SAFETY: in bounds of a slice that is borrowed as long as `'a`, and apart from others by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
