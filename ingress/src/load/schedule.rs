//! When turns arrive: in the gaps of a recorded trace, or in those of a Poisson process, scaled to a rate.
//!
//! A schedule depends on nothing that is answered, so that a pipeline that is slow is not asked less. That is what a closed
//! loop does, whose latencies leave out the turns that were never sent ("coordinated omission", Tene 2013).

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

/// Seed of the Poisson process: the same arrivals in every run.
const SEED: u64 = 1;

/// How arrivals are spread.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// At random, each independent of the others.
    Poisson,
    /// Like a recorded trace, which begins anew at its end.
    Trace(Trace),
}

/// Arrivals of a recorded trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Seconds since the first one, in order.
    places: Arc<[f64]>,
    /// Seconds until the first one comes again.
    period: f64,
}

/// A stretch of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Arrivals per second, on average.
    pub rate: f64,
    /// How long it takes, in seconds.
    pub seconds: f64,
}

impl Trace {
    /// The arrivals at these times, in any order. The trace begins anew a mean gap after its last arrival.
    ///
    /// # Errors
    /// When the times have no gaps.
    pub fn new(mut times: Vec<Timestamp>) -> Result<Self, String> {
        times.sort_unstable();
        let (Some(first), Some(last)) = (times.first(), times.last()) else {
            return Err("there is no arrival in it".to_owned());
        };
        let since_first = |time: &Timestamp| time.duration_since(*first).as_secs_f64();
        let span = since_first(last);
        if span <= 0.0 {
            return Err(format!("all its {} arrivals have the same time", times.len()));
        }
        let period = span + span / (times.len() - 1) as f64;
        Ok(Self { places: times.iter().map(since_first).collect(), period })
    }

    /// When the arrival of this number comes, in seconds on the trace's own clock.
    fn place(&self, number: usize) -> f64 {
        let length = self.places.len();
        (number / length) as f64 * self.period + self.places[number % length]
    }

    /// As many arrivals as the rate wants, in the trace's gaps; what they take is stretched to the part's length.
    fn arrivals(self, part: Part) -> impl Iterator<Item = f64> + Send {
        let count = (part.rate * part.seconds).round() as usize;
        let end = self.place(count);
        let scale = if end > 0.0 { part.seconds / end } else { 0.0 };
        (0..count).map(move |number| self.place(number) * scale)
    }
}

impl Pattern {
    /// When turns arrive, since the beginning of the first part, in order.
    pub fn arrivals(&self, parts: Vec<Part>) -> impl Iterator<Item = Duration> + Send + use<> {
        let pattern = self.clone();
        let mut begin = 0.0;
        let each = (SEED..).zip(parts).flat_map(move |(seed, part)| {
            let arrivals: Box<dyn Iterator<Item = f64> + Send> = match &pattern {
                Pattern::Poisson => Box::new(poisson(seed, part)),
                Pattern::Trace(trace) => Box::new(trace.clone().arrivals(part)),
            };
            let offset = begin;
            begin += part.seconds;
            arrivals.map(move |at| offset + at)
        });
        each.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}

/// Arrivals whose gaps are exponentially distributed.
fn poisson(seed: u64, part: Part) -> impl Iterator<Item = f64> + Send {
    let (mut state, mut at) = (seed, 0.0);
    iter::from_fn(move || {
        at -= (1.0 - uniform(&mut state)).ln() / part.rate;
        (at < part.seconds).then_some(at)
    })
}

/// The next number from 0 up to 1 of a SplitMix64 generator (Steele, Lea and Flood 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(seconds: &[i64]) -> Result<Trace, String> {
        Trace::new(seconds.iter().map(|&second| Timestamp::from_second(second).expect("a time")).collect())
    }

    fn seconds(pattern: &Pattern, parts: &[(f64, f64)]) -> Vec<f64> {
        let parts = parts.iter().map(|&(rate, seconds)| Part { rate, seconds }).collect();
        pattern.arrivals(parts).map(|at| at.as_secs_f64()).collect()
    }

    #[test]
    fn a_trace_keeps_its_gaps_at_any_rate_and_wraps_around() {
        // Gaps of 1, 3 and 2 seconds, and 2, their mean, until it begins anew: eight seconds in all.
        let pattern = Pattern::Trace(trace(&[106, 100, 104, 101]).expect("gaps"));
        let close = |found: &[f64], expected: &[f64]| {
            let is_close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(found.len() == expected.len() && is_close, "{found:?} instead of {expected:?}");
        };
        close(&seconds(&pattern, &[(0.5, 8.0)]), &[0.0, 1.0, 4.0, 6.0]);
        // Twice around at four times the rate.
        close(&seconds(&pattern, &[(2.0, 4.0)]), &[0.0, 0.25, 1.0, 1.5, 2.0, 2.25, 3.0, 3.5]);
        // The second part begins where the first ends, whatever came last.
        close(&seconds(&pattern, &[(0.5, 8.0), (1.0, 4.0)]), &[0.0, 1.0, 4.0, 6.0, 8.0, 8.5, 10.0, 11.0]);
        // A part of the trace has the rate that was asked for, not that of the part.
        close(&seconds(&pattern, &[(1.0, 2.0)]), &[0.0, 0.5]);
    }

    #[test]
    fn a_trace_without_gaps_is_none() {
        assert_eq!(trace(&[]), Err("there is no arrival in it".to_owned()));
        assert_eq!(trace(&[7, 7]), Err("all its 2 arrivals have the same time".to_owned()));
        assert!(trace(&[7]).is_err());
    }

    #[test]
    fn a_poisson_process_has_the_rate_and_the_spread() {
        let arrivals = seconds(&Pattern::Poisson, &[(100.0, 100.0), (10.0, 100.0)]);
        assert_eq!(arrivals, seconds(&Pattern::Poisson, &[(100.0, 100.0), (10.0, 100.0)]), "the same each time");
        assert!(arrivals.is_sorted() && arrivals.iter().all(|at| (0.0..200.0).contains(at)));
        let (fast, slow) = arrivals.split_at(arrivals.partition_point(|&at| at < 100.0));
        // Five standard deviations of 10,000 and of 1,000 arrivals.
        assert!(fast.len().abs_diff(10_000) < 500 && slow.len().abs_diff(1_000) < 160, "{} {}", fast.len(), slow.len());
        // The deviation of exponential gaps is their mean.
        let gaps: Vec<f64> = fast.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.1, "{mean} {variance}");
    }

    #[test]
    fn nothing_arrives_where_nothing_should() {
        assert_eq!(seconds(&Pattern::Poisson, &[(0.0, 10.0), (10.0, 0.0)]), [0.0; 0]);
        assert_eq!(seconds(&Pattern::Trace(trace(&[0, 1]).expect("gaps")), &[(0.0, 10.0), (10.0, 0.0)]), [0.0; 0]);
    }
}
