//! What became of one turn: who asked, who answered, how it ended, and how long that took since it was due.

use std::time::{Duration, Instant};

use serde::Serialize;
use turnflow_state::TierSize;

use super::target::{Ending, Heard};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The first turn of a conversation.
    New,
    /// A turn of a conversation that had an answer.
    Ongoing,
}

impl Class {
    /// Both, in the order of a report.
    pub const ALL: [Self; 2] = [Self::New, Self::Ongoing];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Ongoing => "ongoing",
        }
    }
}

/// What wrote an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// The small tier.
    SmallTier,
    /// The large tier, or the only one.
    LargeTier,
    /// None was asked: it came from a cache or another turn, or is a fixed reply.
    NoTier,
}

impl Writer {
    /// The tier that was asked last, if one was.
    pub(super) const fn of(size: Option<TierSize>) -> Self {
        match size {
            Some(TierSize::Small) => Self::SmallTier,
            Some(TierSize::Large) => Self::LargeTier,
            None => Self::NoTier,
        }
    }

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SmallTier => "the small tier",
            Self::LargeTier => "the large tier",
            Self::NoTier => "no tier",
        }
    }
}

/// How a turn ended. Every turn that was sent ended in one of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer, in time.
    Answered,
    /// With an answer that came too late.
    Late,
    /// With the advice to try again later.
    Refused,
    /// In any other way.
    Failed,
}

/// One turn that ended. Times count from when the turn was due, not from when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was due, since the beginning of the phase.
    pub due: Duration,
    /// Who asked.
    pub class: Class,
    /// How it ended.
    pub outcome: Outcome,
    /// By how much it was sent late, in microseconds: the generator's own fault.
    pub sent_late_us: u64,
    /// Until the first piece of the answer, or its end where there was no piece, in microseconds.
    pub first_us: u64,
    /// Until its end, in microseconds.
    pub total_us: u64,
    /// What answered, where something did.
    pub writer: Option<Writer>,
}

/// A turn on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) class: Class,
    /// When the phase began.
    pub(super) start: Instant,
    /// When the turn was due, since then.
    pub(super) due: Duration,
    /// When it was sent.
    pub(super) at: Instant,
}

impl Sample {
    /// What was heard of a turn, of which an answer is wanted within `slo`.
    pub(super) fn of(sent: Sent, heard: &Heard, slo: Duration) -> Self {
        let Sent { class, start, due, at } = sent;
        let since_due = |moment: Instant| moment.saturating_duration_since(start + due);
        let total = since_due(heard.end);
        let (outcome, writer) = match &heard.ending {
            Ending::Answered { writer, .. } if total <= slo => (Outcome::Answered, Some(*writer)),
            Ending::Answered { writer, .. } => (Outcome::Late, Some(*writer)),
            Ending::Refused => (Outcome::Refused, None),
            Ending::Failed(_) => (Outcome::Failed, None),
        };
        let (sent_late_us, first_us) = (micros(since_due(at)), micros(since_due(heard.first)));
        Self { due, class, outcome, sent_late_us, first_us, total_us: micros(total), writer }
    }

    /// Whether it was answered, in time or not.
    pub(super) const fn has_answer(&self) -> bool {
        matches!(self.outcome, Outcome::Answered | Outcome::Late)
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Samples that the tests of figures are made from.
#[cfg(test)]
pub(super) mod fixtures {
    use super::*;

    /// A turn that was due so many milliseconds after the beginning, and ended so many after that.
    pub(in crate::load) fn sample(due_ms: u64, class: Class, outcome: Outcome, total_ms: u64) -> Sample {
        let total_us = total_ms * 1_000;
        let writer = matches!(outcome, Outcome::Answered | Outcome::Late).then_some(Writer::LargeTier);
        let due = Duration::from_millis(due_ms);
        Sample { due, class, outcome, sent_late_us: 0, first_us: total_us / 2, total_us, writer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_when_a_turn_was_due() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let slo = ms(100);
        let check = |ending: Ending, end_ms: u64, expected: Outcome| {
            let sent = Sent { class: Class::New, start, due: ms(1_000), at: start + ms(1_030) };
            let heard = Heard { first: start + ms(1_040), end: start + ms(end_ms), ending };
            let sample = Sample::of(sent, &heard, slo);
            assert_eq!(sample.outcome, expected, "{heard:?}");
            assert_eq!((sample.sent_late_us, sample.first_us), (30_000, 40_000));
            assert_eq!(sample.total_us, (end_ms - 1_000) * 1_000);
            assert_eq!(sample.writer.is_some(), sample.has_answer());
        };
        // 30 ms of the 100 had gone before the turn was sent.
        let answered = || Ending::Answered { writer: Writer::SmallTier, is_loaded: false };
        check(answered(), 1_100, Outcome::Answered);
        check(answered(), 1_101, Outcome::Late);
        check(Ending::Refused, 1_050, Outcome::Refused);
        check(Ending::Failed("broken".to_owned()), 1_050, Outcome::Failed);
    }
}
