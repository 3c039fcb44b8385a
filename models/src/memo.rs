//! Vectors of texts that were encoded before, by text: for whoever sends the same texts through again and again.
//!
//! Bounded by bytes. When it is full it takes no more and forgets nothing: texts that come round in the same order
//! find in a full memo of the oldest what fits, and in one that lets the oldest go nothing at all.

use std::collections::HashMap;
use std::sync::Arc;

/// What an entry takes beside its text and its numbers, in bytes: two pointers, their counts, and the table's slot.
const ENTRY_BYTES: usize = 96;

/// A bounded memo.
pub(crate) struct Memo {
    vectors: HashMap<String, Arc<[f32]>>,
    bytes: usize,
    bytes_max: usize,
}

impl Memo {
    /// An empty memo of so many bytes; 0 keeps nothing.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { vectors: HashMap::new(), bytes: 0, bytes_max }
    }

    /// The vector of a text, if it is kept.
    pub(crate) fn get(&self, text: &str) -> Option<Arc<[f32]>> {
        self.vectors.get(text).cloned()
    }

    /// Keeps a text's vector if there is room.
    pub(crate) fn keep(&mut self, text: &str, vector: &Arc<[f32]>) {
        let bytes = text.len() + size_of_val::<[f32]>(vector) + ENTRY_BYTES;
        if self.bytes_max - self.bytes >= bytes && !self.vectors.contains_key(text) {
            self.vectors.insert(text.to_owned(), Arc::clone(vector));
            self.bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_first_stays() {
        let vector: Arc<[f32]> = Arc::from([1.0, 2.0]);
        let each = 1 + 8 + ENTRY_BYTES;
        let mut memo = Memo::new(2 * each + 1);
        for text in ["a", "a", "b", "c"] {
            memo.keep(text, &vector);
        }
        let kept = ["a", "b", "c"].map(|text| memo.get(text).is_some());
        assert_eq!((kept, memo.bytes), ([true, true, false], 2 * each));
        let mut none = Memo::new(0);
        none.keep("", &vector);
        assert!(none.get("").is_none());
    }
}
