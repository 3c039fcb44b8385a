//! One phase: a load for a while, and then little of it until things are as before.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use serde::Serialize;
use turnflow_models::EncoderStats;
use turnflow_pipeline::resident_bytes;

use super::generator::{Driven, Generator};
use super::sample::{Class, Sample};
use super::schedule::{Part, Pattern};
use super::seconds::{Recovery, Second};
use super::summary::{Batches, ClassFigures, Quantiles};
use super::target::Target;

/// What the load falls to between the phases, as a share of the capacity.
pub(super) const RECOVERY_LOAD: f64 = 0.2;
/// A turn that is sent so much after it was due counts as sent late, in microseconds.
const SENT_LATE_US: u64 = 10_000;
/// How often the process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The load of a phase.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) multiple: f64,
    /// Turns per second at a multiple of 1.
    pub(super) capacity: f64,
    pub(super) seconds: f64,
    pub(super) recover_seconds: f64,
}

/// What was found in a phase. Its figures are of the turns that were due before the load fell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// The load, as a multiple of the capacity.
    pub multiple: f64,
    /// Turns that were to come per second.
    pub rate_per_s: f64,
    /// How long, in seconds.
    pub seconds: f64,
    /// What became of new turns and of ongoing ones.
    pub classes: [ClassFigures; 2],
    /// How well the generator kept to its schedule.
    pub generator: GeneratorFigures,
    /// Most memory of this process that was in RAM, in bytes, generator included; None where it does not do the work, or the
    /// system does not tell.
    pub resident_bytes_max: Option<u64>,
    /// How large the encoder's batches were; None where that is not known.
    pub encoder_batches: Option<Vec<Batches>>,
    /// When it was as before, after the load had fallen.
    pub recovery: Recovery,
    /// The phase, second by second.
    pub under_load: Vec<Second>,
    /// The time after it, second by second.
    pub after: Vec<Second>,
}

/// How well the generator kept to its schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GeneratorFigures {
    /// By how much turns were sent after they were due. It counts in the times of these turns.
    pub lateness: Option<Quantiles>,
    /// Turns that were sent more than ten milliseconds after they were due.
    pub late: u64,
    /// Turns that were not sent at all, because too many were without an end.
    pub unsent: u64,
}

impl Phase {
    /// Drives one phase to the end of its last turn.
    pub(super) async fn run(generator: Generator, pattern: &Pattern, load: &Load) -> anyhow::Result<(Generator, Self)> {
        let target = generator.target.clone();
        let rate = load.capacity * load.multiple;
        let arrivals = pattern.arrivals(vec![
            Part { rate, seconds: load.seconds },
            Part { rate: load.capacity * RECOVERY_LOAD, seconds: load.recover_seconds },
        ]);
        let before = target.encoder_stats();
        let length = Duration::try_from_secs_f64(load.seconds)?;
        let (driven, seen) = watched(&target, length, generator.open_loop(arrivals, length)).await;
        let (generator, driven) = driven?;
        let encoder_batches = before.zip(seen.encoder).map(|(before, after)| Batches::between(&before, &after));
        let resident_bytes_max = seen.resident_bytes_max;
        let phase = Self { encoder_batches, resident_bytes_max, ..Self::of(driven, load, length)? };
        Ok((generator, phase))
    }

    fn of(driven: Driven, load: &Load, length: Duration) -> anyhow::Result<Self> {
        let Driven { samples, unsent } = driven;
        let recovering = Duration::try_from_secs_f64(load.recover_seconds)?;
        let after = Second::all(&samples, length, recovering);
        let samples: Vec<Sample> = samples.into_iter().filter(|sample| sample.due < length).collect();
        let lateness = || samples.iter().map(|sample| sample.sent_late_us);
        Ok(Self {
            multiple: load.multiple,
            rate_per_s: load.capacity * load.multiple,
            seconds: load.seconds,
            classes: Class::ALL.map(|class| ClassFigures::of(class, &samples, load.seconds)),
            generator: GeneratorFigures {
                lateness: Quantiles::of(lateness()),
                late: lateness().filter(|&late_us| late_us > SENT_LATE_US).count() as u64,
                unsent,
            },
            resident_bytes_max: None,
            encoder_batches: None,
            recovery: Recovery::Unknown("there is nothing to compare with"),
            under_load: Second::all(&samples, Duration::ZERO, length),
            after,
        })
    }

    /// The figures of a class.
    #[must_use]
    pub const fn of_class(&self, class: Class) -> &ClassFigures {
        let [new, ongoing] = &self.classes;
        match class {
            Class::New => new,
            Class::Ongoing => ongoing,
        }
    }

    /// Answers in time per second, of both classes.
    #[must_use]
    pub fn goodput_per_s(&self) -> f64 {
        self.classes.iter().map(|class| class.goodput_per_s).sum()
    }
}

/// What was seen of the process meanwhile.
#[derive(Default)]
struct Seen {
    resident_bytes_max: Option<u64>,
    /// What the encoder had done when the load fell.
    encoder: Option<EncoderStats>,
}

/// Does something, and looks at the process meanwhile; `length` is how long the load takes.
async fn watched<T>(target: &Target, length: Duration, work: impl Future<Output = T>) -> (T, Seen) {
    let mut work = pin!(work);
    let (begin, mut looks, mut seen) = (Instant::now(), tokio::time::interval(LOOK_EVERY), Seen::default());
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            _ = looks.tick() => None,
        };
        if target.is_in_process() {
            seen.resident_bytes_max = seen.resident_bytes_max.max(resident_bytes());
        }
        if seen.encoder.is_none() && (done.is_some() || begin.elapsed() >= length) {
            seen.encoder = target.encoder_stats();
        }
        if let Some(done) = done {
            return (done, seen);
        }
    }
}

#[cfg(test)]
pub(super) mod fixtures {
    use super::super::sample::Outcome;
    use super::super::sample::fixtures::sample;
    use super::*;

    /// A phase of two seconds at a multiple of 100 turns per second, in which every turn takes as long and a class may be
    /// refused; and three seconds after it in which all is well.
    pub(in crate::load) fn phase(multiple: f64, outcomes: [(Class, Outcome, u64); 2]) -> Phase {
        let turns = |from: u64, to: u64, outcomes: [(Class, Outcome, u64); 2]| {
            let gap_ms = (20.0 / multiple) as usize;
            let each = move |at| outcomes.map(|(class, outcome, total_ms)| sample(at, class, outcome, total_ms));
            (from..to).step_by(gap_ms.max(1)).flat_map(each)
        };
        let well = Class::ALL.map(|class| (class, Outcome::Answered, 10));
        let samples = turns(0, 2_000, outcomes).chain(turns(2_000, 5_000, well)).collect();
        let load = Load { multiple, capacity: 100.0, seconds: 2.0, recover_seconds: 3.0 };
        Phase::of(Driven { samples, unsent: 0 }, &load, Duration::from_secs(2)).expect("a length")
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Outcome;
    use super::fixtures::phase;
    use super::*;

    #[test]
    fn a_phase_is_of_the_turns_before_the_load_fell() {
        let found = phase(1.0, [(Class::New, Outcome::Refused, 1), (Class::Ongoing, Outcome::Answered, 20)]);
        let [new, ongoing] = &found.classes;
        assert_eq!((new.offered, new.refused, ongoing.offered, ongoing.answered), (100, 100, 100, 100));
        assert!((found.goodput_per_s() - 50.0).abs() < 1e-9);
        assert_eq!((found.under_load.len(), found.after.len()), (2, 3));
        assert_eq!((found.under_load[1].new.refused, found.after[0].new.refused), (50, 0));
    }
}
