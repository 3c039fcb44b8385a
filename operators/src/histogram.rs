//! Histogram: how often something took how long, in buckets whose bounds are the same everywhere.
//!
//! Six buckets a decade, with the bounds of the E6 series (IEC 60063): a bucket is half as wide as its lower bound, and a quantile that is
//! read from it is never outside. All are plain counts: histograms can be added, and an earlier state of one can be taken off it.

/// Upper bounds of the buckets, in microseconds, each included: from 0.1 ms to 100 s.
pub const BOUNDS_US: [u64; 37] = bounds();

const fn bounds() -> [u64; 37] {
    const DECADE: [u64; 6] = [100, 150, 220, 330, 470, 680];
    let mut bounds = [0; 37];
    let (mut at, mut unit) = (0, 1);
    while at < bounds.len() {
        bounds[at] = DECADE[at % DECADE.len()] * unit;
        at += 1;
        if at.is_multiple_of(DECADE.len()) {
            unit *= 10;
        }
    }
    bounds
}

/// How often something took how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// How often it took at most as long as each of [`BOUNDS_US`], and longer than the one before; the last: longer than all.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// All that it took, in microseconds.
    pub sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BOUNDS_US.len() + 1], sum_us: 0 }
    }
}

impl Histogram {
    /// Takes in that it took so long, in microseconds.
    pub fn add(&mut self, elapsed_us: u64) {
        self.counts[BOUNDS_US.partition_point(|&bound_us| bound_us < elapsed_us)] += 1;
        self.sum_us = self.sum_us.saturating_add(elapsed_us);
    }

    /// Takes in another one.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own = own.saturating_add(*other));
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How often it happened.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long at most it took in this share of all times, from 0 to 1, in microseconds: as if the times of a bucket were spread
    /// evenly. None when it never happened. What took longer than all bounds counts as the last of them.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        let rank = share.clamp(0.0, 1.0) * count as f64;
        let (mut below, mut from_us) = (0, 0);
        for (&held, &to_us) in self.counts.iter().zip(&BOUNDS_US) {
            if held > 0 && (below + held) as f64 >= rank {
                let part = (rank - below as f64).max(0.0) / held as f64;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two bounds")]
                return Some(from_us + ((to_us - from_us) as f64 * part) as u64);
            }
            (below, from_us) = (below + held, to_us);
        }
        (count > 0).then_some(from_us)
    }

    /// Every number that it is made of.
    pub(crate) fn numbers(&mut self) -> impl Iterator<Item = &mut u64> {
        self.counts.iter_mut().chain([&mut self.sum_us])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_series() {
        assert_eq!(BOUNDS_US[..7], [100, 150, 220, 330, 470, 680, 1_000]);
        assert_eq!(BOUNDS_US[34..], [47_000_000, 68_000_000, 100_000_000]);
        assert!(BOUNDS_US.is_sorted());
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::default();
        for elapsed_us in [0, 100, 101, 100_000_000, 100_000_001, u64::MAX] {
            histogram.add(elapsed_us);
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!(histogram.counts[36..], [1, 2]);
        assert_eq!((histogram.count(), histogram.sum_us), (6, u64::MAX));
    }

    #[test]
    fn quantiles_are_close() {
        assert_eq!(Histogram::default().quantile_us(0.5), None);
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|number| histogram.add(number * 100));
        for (share, exact_us) in [(0.01, 10_000), (0.5, 500_000), (0.95, 950_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let quantile_us = histogram.quantile_us(share).expect("not empty");
            assert!(quantile_us.abs_diff(exact_us) <= exact_us / 100, "{share}: {quantile_us} for {exact_us}");
        }
        let mut late = Histogram::default();
        late.add(u64::MAX);
        assert_eq!(late.quantile_us(0.5), Some(100_000_000));
    }
}
