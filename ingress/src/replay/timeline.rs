//! How the share of cached answers moves in the course of a log, in constant memory.
//!
//! A timeline has buckets of equal width. When a turn lies behind the last one, neighbours are joined and every bucket is
//! twice as wide: whatever a log's length, between half of the buckets and all of them are in use.

use serde::Serialize;
use turnflow_state::CacheLevel;

/// Most buckets.
const BUCKETS_MAX: u64 = 64;

/// What a timeline goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Along {
    /// Milliseconds on the log's clock, since its first turn.
    Milliseconds,
    /// Turns, in the log's order.
    Turns,
}

/// Answers by the level that they came from, bucket by bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// What the buckets are counted in.
    pub along: Along,
    /// The width of a bucket.
    pub width: u64,
    /// The buckets, from the first turn on.
    pub buckets: Vec<Bucket>,
}

/// Answers of one stretch of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// All answers.
    pub answers: u64,
    /// Those of the exact cache.
    pub exact: u64,
    /// Those of the semantic cache.
    pub semantic: u64,
    /// Those of the same question in flight.
    pub joined: u64,
}

impl Timeline {
    /// An empty timeline.
    #[must_use]
    pub fn new(along: Along) -> Self {
        let width = match along {
            Along::Milliseconds => 1_000,
            Along::Turns => 1,
        };
        Self { along, width, buckets: Vec::new() }
    }

    /// Counts an answer at a place.
    pub fn count(&mut self, place: u64, level: CacheLevel) {
        while place / self.width >= BUCKETS_MAX {
            self.buckets = self.buckets.chunks(2).map(Bucket::sum).collect();
            self.width *= 2;
        }
        let index = (place / self.width) as usize;
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, Bucket::default());
        }
        let bucket = &mut self.buckets[index];
        bucket.answers += 1;
        match level {
            CacheLevel::Exact => bucket.exact += 1,
            CacheLevel::Semantic => bucket.semantic += 1,
            CacheLevel::Joined => bucket.joined += 1,
            _ => {}
        }
    }
}

impl Bucket {
    fn sum(buckets: &[Self]) -> Self {
        let sum = |part: fn(&Self) -> u64| buckets.iter().map(part).sum();
        Self {
            answers: sum(|b| b.answers),
            exact: sum(|b| b.exact),
            semantic: sum(|b| b.semantic),
            joined: sum(|b| b.joined),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_buckets_are_joined() {
        let mut timeline = Timeline::new(Along::Turns);
        let level = |place: u64| if place.is_multiple_of(3) { CacheLevel::Exact } else { CacheLevel::Miss };
        for place in 0..1_000 {
            timeline.count(place, level(place));
        }
        assert_eq!((timeline.width, timeline.buckets.len()), (16, 63));
        for (index, bucket) in (0..).zip(&timeline.buckets) {
            let places = index * 16..(1_000).min(index * 16 + 16);
            let exact = places.clone().filter(|&place| level(place) == CacheLevel::Exact).count() as u64;
            assert_eq!(*bucket, Bucket { answers: places.end - places.start, exact, ..Bucket::default() });
        }
    }

    #[test]
    fn a_far_place_costs_no_more_memory() {
        let mut timeline = Timeline::new(Along::Milliseconds);
        timeline.count(0, CacheLevel::Joined);
        timeline.count(u64::MAX / 4, CacheLevel::Semantic);
        assert!(timeline.buckets.len() <= BUCKETS_MAX as usize);
        assert_eq!(Bucket::sum(&timeline.buckets), Bucket { answers: 2, semantic: 1, joined: 1, exact: 0 });
    }
}
