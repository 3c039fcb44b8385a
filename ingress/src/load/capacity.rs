//! How many turns a second are answered when as many are in flight as help: a closed loop with twice as many in each step,
//! until a step is hardly better than the one before, or load decides about turns: what is answered then is answered by another tier, or
//! instead of others.

use std::time::Duration;

use serde::Serialize;

use super::generator::Generator;

/// Turns in flight of the first step and of the last.
const IN_FLIGHT_MIN: usize = 4;
const IN_FLIGHT_MAX: usize = 1_024;
/// Less growth than this, from a step to the next, is none.
const GROWTH_MIN: f64 = 1.05;
/// How long a step takes. The process is warm by then.
const STEP: Duration = Duration::from_secs(4);

/// One step of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Turns in flight.
    pub in_flight: usize,
    /// Turns that were answered, per second.
    pub turns_per_s: f64,
    /// Whether the load was felt: turns were refused, or those who begin got another tier.
    pub was_loaded: bool,
}

/// Measures step by step; what was found is the best of them.
///
/// # Errors
/// When no turn is answered at all.
pub(super) async fn measure(generator: &mut Generator) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    while let Some(in_flight) = next(&steps) {
        let (answered, was_loaded) = generator.closed_loop(in_flight, STEP).await?;
        steps.push(Step { in_flight, turns_per_s: answered as f64 / STEP.as_secs_f64(), was_loaded });
    }
    let why = || generator.failure.get().map_or("none ended in time", String::as_str);
    anyhow::ensure!(best(&steps).is_some_and(|step| step.turns_per_s > 0.0), "no turn was answered: {}", why());
    Ok(steps)
}

/// The step with the most turns per second, of those whose load was not felt, if there are any.
pub(super) fn best(steps: &[Step]) -> Option<Step> {
    let best = |felt: bool| {
        let steps = steps.iter().filter(|step| step.was_loaded == felt);
        steps.copied().max_by(|a, b| a.turns_per_s.total_cmp(&b.turns_per_s))
    };
    best(false).or_else(|| best(true))
}

/// Turns in flight of the next step; None when there is nothing more to find.
fn next(steps: &[Step]) -> Option<usize> {
    let in_flight = match steps {
        [] => return Some(IN_FLIGHT_MIN),
        [.., last] if last.was_loaded => return None,
        [.., before, last] if last.turns_per_s < before.turns_per_s * GROWTH_MIN => return None,
        [.., last] => last.in_flight * 2,
    };
    (in_flight <= IN_FLIGHT_MAX).then_some(in_flight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps with a target that answers `turns_per_s(in_flight)`.
    fn steps(turns_per_s: impl Fn(usize) -> f64) -> Vec<Step> {
        felt(usize::MAX, turns_per_s)
    }

    /// The same with a target that feels the load from so many in flight on.
    fn felt(loaded: usize, turns_per_s: impl Fn(usize) -> f64) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(in_flight) = next(&steps) {
            steps.push(Step { in_flight, turns_per_s: turns_per_s(in_flight), was_loaded: in_flight >= loaded });
        }
        steps
    }

    #[test]
    fn what_is_answered_while_load_decides_is_no_capacity() {
        let found = felt(16, |in_flight| in_flight as f64 * 10.0);
        assert_eq!(best(&found).map(|step| (found.len(), step.in_flight)), Some((3, 8)));
        let found = felt(0, |in_flight| in_flight as f64 * 10.0);
        assert_eq!(best(&found).map(|step| (found.len(), step.was_loaded)), Some((1, true)), "there is no other");
    }

    #[test]
    fn it_is_doubled_until_that_does_not_help() {
        let found = steps(|in_flight| (in_flight as f64 * 10.0).min(200.0));
        assert_eq!(found.iter().map(|step| step.in_flight).collect::<Vec<_>>(), [4, 8, 16, 32, 64]);
        assert!((best(&found).expect("steps").turns_per_s - 200.0).abs() < 1e-9);
        // A step that is worse than the one before is the last, and not the best.
        let found = steps(|in_flight| if in_flight == 16 { 150.0 } else { in_flight as f64 * 20.0 });
        assert_eq!(best(&found).map(|step| (found.len(), step.in_flight)), Some((3, 8)));
        assert_eq!(steps(|in_flight| in_flight as f64).last().map(|step| step.in_flight), Some(IN_FLIGHT_MAX));
    }
}
