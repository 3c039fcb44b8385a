//! A run: fill the pool, measure the capacity, drive one phase after the other, and judge.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::capacity;
use super::customers::Customers;
use super::generator::Generator;
use super::phase::{Load, Phase};
use super::report::{Capacity, LoadReport};
use super::sample::Class;
use super::schedule::Pattern;
use super::seconds::recovery;
use super::target::Target;
use super::verdict::{lowest, verdicts};

/// Conversations of the pool while the capacity is measured, and most of them afterwards.
const POOL_MIN: usize = 128;
const POOL_MAX: usize = 16_384;

/// What is done in a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How arrivals are spread.
    pub pattern: Pattern,
    /// The loads, as multiples of the capacity.
    pub multiples: Vec<f64>,
    /// How long each load takes, in seconds.
    pub seconds: f64,
    /// How long the little load after it takes, in seconds.
    pub recover_seconds: f64,
    /// Turns per second at a multiple of 1; measured when it is not given.
    pub capacity: Option<f64>,
    /// An answer that takes longer is late.
    pub slo: Duration,
    /// For how long no conversation may be answered while the pool is filled.
    pub patience: Duration,
}

/// Drives the load of a plan. `tell` hears what is being done.
///
/// # Errors
/// When no turn is answered before the load begins, or conversations cannot be opened.
pub async fn run(target: Target, customers: Customers, plan: &Plan, tell: impl Fn(&str)) -> anyhow::Result<LoadReport> {
    let ongoing_share = customers.ongoing_share();
    let failure = Arc::new(OnceLock::new());
    let mut generator = Generator { target, customers, slo: plan.slo, failure: Arc::clone(&failure) };
    if ongoing_share > 0.0 {
        generator.fill_pool(POOL_MIN, plan.patience).await?;
    }
    let capacity = match plan.capacity {
        Some(turns_per_s) => Capacity { turns_per_s, steps: Vec::new() },
        None => {
            tell("measuring the capacity");
            let steps = capacity::measure(&mut generator).await?;
            Capacity { turns_per_s: capacity::best(&steps).map_or(0.0, |step| step.turns_per_s), steps }
        }
    };
    tell(&capacity.to_string());
    let highest = plan.multiples.iter().copied().fold(0.0, f64::max);
    let pool = pool_len(capacity.turns_per_s * highest * ongoing_share, plan.slo);
    tell(&format!("opening conversations until {pool} can go on"));
    generator.fill_pool(pool, plan.patience).await?;
    let mut phases = Vec::new();
    for &multiple in &plan.multiples {
        let (seconds, recover_seconds) = (plan.seconds, plan.recover_seconds);
        let load = Load { multiple, capacity: capacity.turns_per_s, seconds, recover_seconds };
        tell(&format!("{multiple} x: {:.1} turns/s for {seconds} s", load.capacity * multiple));
        let phase;
        (generator, phase) = Phase::run(generator, &plan.pattern, &load).await?;
        phases.push(phase);
    }
    compare_with_lowest(&mut phases);
    Ok(LoadReport {
        capacity,
        ongoing_share,
        slo_ms: u64::try_from(plan.slo.as_millis()).unwrap_or(u64::MAX),
        verdicts: verdicts(&phases),
        phases,
        first_failure: failure.get().cloned(),
    })
}

/// As many conversations as are asked while one of them may wait for its answer, so that none asks again before.
fn pool_len(ongoing_per_s: f64, slo: Duration) -> usize {
    let wanted = (ongoing_per_s * slo.as_secs_f64()).ceil() as usize;
    wanted.min(POOL_MAX)
}

/// Tells when new turns were as fast as at the lowest load again.
fn compare_with_lowest(phases: &mut [Phase]) {
    let normal = lowest(phases).and_then(|phase| phase.of_class(Class::New).total);
    for phase in phases {
        phase.recovery = recovery(&phase.after, normal.map(|times| times.p50_us));
    }
}

#[cfg(test)]
mod tests {
    use super::super::phase::fixtures::phase;
    use super::super::sample::Outcome;
    use super::super::seconds::Recovery;
    use super::*;

    #[test]
    fn recovery_is_measured_against_the_lowest_load_wherever_it_comes() {
        let at = |multiple, ms| phase(multiple, Class::ALL.map(|class| (class, Outcome::Answered, ms)));
        // After each phase turns take 10 ms.
        let mut phases = [at(2.0, 500), at(0.5, 7)];
        compare_with_lowest(&mut phases);
        assert_eq!(phases.map(|phase| phase.recovery), [Recovery::AfterS(0); 2]);
        let mut phases = [at(2.0, 500), at(0.5, 6)];
        compare_with_lowest(&mut phases);
        assert_eq!(phases.map(|phase| phase.recovery), [Recovery::Never; 2]);
        let mut phases = [at(2.0, 500), at(1.0, 7)];
        compare_with_lowest(&mut phases);
        assert!(
            phases.iter().all(|phase| matches!(phase.recovery, Recovery::Unknown(_))),
            "nothing was as it normally is"
        );
    }

    #[test]
    fn a_conversation_has_time_to_be_answered() {
        assert_eq!(pool_len(500.0, Duration::from_secs(2)), 1_000);
        assert_eq!(pool_len(1e9, Duration::from_secs(2)), POOL_MAX);
        assert_eq!(pool_len(0.0, Duration::from_secs(2)), 0);
    }
}
