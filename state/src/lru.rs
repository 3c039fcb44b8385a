//! A cache bounded by bytes that forgets what was not used for longest.
//!
//! *Contract*: the weights of what is kept never exceed the bound; when something new does not fit, the least recently
//! used goes first. Every operation takes constant time apart from the evictions it causes.
//!
//! What it does not do: it has no lock, no clock and no idea of what a value weighs: the caller says so.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// No neighbour: the end of the list.
const NONE: usize = usize::MAX;

/// What a cache went through, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Look-ups that found something.
    pub hits: u64,
    /// Look-ups that found nothing.
    pub misses: u64,
    /// Values that had to go for others.
    pub evictions: u64,
    /// Values held now.
    pub entries: usize,
    /// Their weight in bytes.
    pub bytes: usize,
}

/// One value, linked to those that were used just before and just after it.
#[derive(Debug)]
struct Node<K, V> {
    key: K,
    value: V,
    bytes: usize,
    newer: usize,
    older: usize,
}

/// Values by key, bounded by their weight.
#[derive(Debug)]
pub struct BoundedCache<K, V> {
    bytes_max: usize,
    bytes: usize,
    /// Places in `nodes`.
    places: HashMap<K, usize>,
    /// A list threaded through a vector: `None` is a free place.
    nodes: Vec<Option<Node<K, V>>>,
    free: Vec<usize>,
    newest: usize,
    oldest: usize,
    hits: u64,
    misses: u64,
    evictions: u64,
}

impl<K: Clone + Eq + Hash, V> BoundedCache<K, V> {
    /// A cache that holds at most `bytes_max`; 0 makes one that keeps nothing.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            places: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    /// The value of a key; counts as a use of it.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(&place) = self.places.get(key) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        self.unlink(place);
        self.link_newest(place);
        self.nodes[place].as_ref().map(|node| &node.value)
    }

    /// The value of a key, without counting anything.
    #[must_use]
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let place = *self.places.get(key)?;
        self.nodes[place].as_ref().map(|node| &node.value)
    }

    /// Keeps a value that weighs `bytes`, in place of the one that the key had; counts as a use of it.
    ///
    /// A value that weighs more than the whole cache may hold is not kept, and neither is the one it replaces.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes_max - self.bytes < bytes {
            self.take(self.oldest);
            self.evictions += 1;
        }
        let node = Node { key: key.clone(), value, bytes, newer: NONE, older: NONE };
        let place = if let Some(place) = self.free.pop() {
            self.nodes[place] = Some(node);
            place
        } else {
            self.nodes.push(Some(node));
            self.nodes.len() - 1
        };
        self.places.insert(key, place);
        self.bytes += bytes;
        self.link_newest(place);
    }

    /// Takes a value out.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let place = *self.places.get(key)?;
        self.take(place)
    }

    /// Takes everything out. What was counted stays.
    pub fn clear(&mut self) {
        self.places.clear();
        self.nodes.clear();
        self.free.clear();
        self.bytes = 0;
        self.newest = NONE;
        self.oldest = NONE;
    }

    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The weight of all values, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let Self { hits, misses, evictions, bytes, .. } = *self;
        CacheStats { hits, misses, evictions, entries: self.len(), bytes }
    }

    fn take(&mut self, place: usize) -> Option<V> {
        self.unlink(place);
        let node = self.nodes.get_mut(place)?.take()?;
        self.free.push(place);
        self.places.remove(&node.key);
        self.bytes -= node.bytes;
        Some(node.value)
    }

    fn unlink(&mut self, place: usize) {
        let Some((newer, older)) = self.node(place).map(|node| (node.newer, node.older)) else {
            return;
        };
        match self.node(newer) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.node(older) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, place: usize) {
        let older = std::mem::replace(&mut self.newest, place);
        match self.node(older) {
            Some(node) => node.newer = place,
            None => self.oldest = place,
        }
        if let Some(node) = self.node(place) {
            node.newer = NONE;
            node.older = older;
        }
    }

    fn node(&mut self, place: usize) -> Option<&mut Node<K, V>> {
        self.nodes.get_mut(place)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, obviously: newest last.
    struct Reference {
        bytes_max: usize,
        values: Vec<(u8, u32, usize)>,
        evictions: u64,
    }

    impl Reference {
        fn get(&mut self, key: u8) -> Option<u32> {
            let at = self.values.iter().position(|value| value.0 == key)?;
            let value = self.values.remove(at);
            self.values.push(value);
            Some(value.1)
        }

        fn insert(&mut self, key: u8, value: u32, bytes: usize) {
            self.remove(key);
            if bytes > self.bytes_max {
                return;
            }
            while self.bytes() + bytes > self.bytes_max {
                self.values.remove(0);
                self.evictions += 1;
            }
            self.values.push((key, value, bytes));
        }

        fn remove(&mut self, key: u8) -> Option<u32> {
            let at = self.values.iter().position(|value| value.0 == key)?;
            Some(self.values.remove(at).1)
        }

        fn bytes(&self) -> usize {
            self.values.iter().map(|value| value.2).sum()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Get(u8),
        Insert(u8, u32, usize),
        Remove(u8),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..12_u8).prop_map(Step::Get),
            8 => (0..12_u8, any::<u32>(), 0..40_usize).prop_map(|(key, value, bytes)| Step::Insert(key, value, bytes)),
            2 => (0..12_u8).prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_the_obvious(bytes_max in 0..120_usize, steps in steps()) {
            let mut cache = BoundedCache::new(bytes_max);
            let mut reference = Reference { bytes_max, values: Vec::new(), evictions: 0 };
            let (mut hits, mut misses) = (0, 0);
            for step in steps {
                match step {
                    Step::Get(key) => {
                        let expected = reference.get(key);
                        if expected.is_some() { hits += 1 } else { misses += 1 }
                        prop_assert_eq!(cache.get(&key).copied(), expected);
                    }
                    Step::Insert(key, value, bytes) => {
                        reference.insert(key, value, bytes);
                        cache.insert(key, value, bytes);
                    }
                    Step::Remove(key) => prop_assert_eq!(cache.remove(&key), reference.remove(key)),
                    Step::Clear => {
                        reference.values.clear();
                        cache.clear();
                    }
                }
                let (entries, bytes) = (reference.values.len(), reference.bytes());
                let expected = CacheStats { hits, misses, evictions: reference.evictions, entries, bytes };
                prop_assert_eq!(cache.stats(), expected);
                prop_assert!(cache.bytes() <= bytes_max);
                prop_assert!(cache.nodes.len() <= 12, "places are used again");
            }
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = BoundedCache::new(3);
        for name in ["a", "b", "c"] {
            cache.insert(name.to_owned(), name.len(), 1);
        }
        assert!(cache.get("a").is_some() && cache.peek("b").is_some());
        cache.insert("d".to_owned(), 1, 1);
        let kept: Vec<_> = ["a", "b", "c", "d"].into_iter().filter(|name| cache.peek(*name).is_some()).collect();
        assert_eq!(kept, ["a", "c", "d"], "a look without counting is no use");
    }

    #[test]
    fn what_is_too_heavy_is_not_kept_and_evicts_nothing_else() {
        let mut cache = BoundedCache::new(10);
        cache.insert(1, "one", 4);
        cache.insert(2, "two", 4);
        cache.insert(1, "too heavy", 11);
        assert_eq!((cache.peek(&1), cache.peek(&2)), (None, Some(&"two")));
        assert_eq!(cache.stats().evictions, 0);
    }
}
