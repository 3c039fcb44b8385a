//! The controller of load: when levels change, and who is refused.

#![expect(clippy::cast_precision_loss, reason = "small numbers; a test may fail loudly")]

use proptest::prelude::*;
use turnflow_operators::load::{Backlog, Controller, LoadLimits};
use turnflow_operators::prioritise::Class;
use turnflow_state::LoadLevel;

const LIMITS: LoadLimits = LoadLimits {
    enabled: true,
    degraded_wait_ms: 500,
    shedding_wait_ms: 1_500,
    hold_ms: 100,
    calm_ms: 1_000,
    calm_ms_max: 4_000,
    saturation_max: 0.9,
    memory_bytes_max: 0,
};

/// A controller, its clock, and what its one queue has served.
struct Rig {
    controller: Controller,
    now_ms: u64,
    served: u64,
}

impl Rig {
    fn new(limits: LoadLimits) -> Self {
        Self { controller: Controller::new(limits, 1), now_ms: 10_000, served: 0 }
    }

    /// For some time, so many wait, the oldest for so long, and turns leave at a rate in each second.
    fn passes(&mut self, ms: u64, waiting: usize, wait_ms: u64, served_per_s: u64) -> LoadLevel {
        for _ in 0..ms / 10 {
            self.now_ms += 10;
            self.served += served_per_s * self.now_ms / 1_000 - served_per_s * (self.now_ms - 10) / 1_000;
            let oldest_us = (waiting > 0).then(|| self.now_ms.saturating_sub(wait_ms) * 1_000);
            let backlog = Backlog {
                takes_new: true,
                waiting,
                new_waiting: waiting,
                oldest_us,
                new_served: self.served,
                is_full: waiting > 0,
            };
            self.controller.observe(0, backlog, self.now_ms * 1_000);
        }
        self.level()
    }

    fn level(&mut self) -> LoadLevel {
        self.controller.level(self.now_ms * 1_000)
    }

    fn admits(&mut self, class: Class) -> bool {
        self.controller.admit(class, 0, self.now_ms * 1_000).is_ok()
    }
}

#[test]
fn levels_go_up_after_a_hold_and_down_after_a_calm_one_at_a_time() {
    let mut rig = Rig::new(LIMITS);
    assert_eq!(rig.passes(3_000, 20, 400, 50), LoadLevel::Normal);
    assert_eq!(rig.passes(90, 40, 600, 50), LoadLevel::Normal, "not long enough");
    assert_eq!(rig.passes(20, 40, 600, 50), LoadLevel::Degraded);
    assert_eq!(rig.passes(5_000, 40, 1_400, 50), LoadLevel::Degraded, "neither calm nor too long");
    assert_eq!(rig.passes(120, 90, 1_600, 50), LoadLevel::Shedding);
    assert_eq!(
        rig.passes(5_000, 90, 300, 50),
        LoadLevel::Shedding,
        "an engine is full all the time, so it is not calm"
    );
    assert_eq!(rig.passes(1_000, 0, 0, 50), LoadLevel::Shedding);
    assert_eq!(rig.passes(300, 0, 0, 50), LoadLevel::Degraded);
    assert_eq!(rig.passes(700, 0, 0, 50), LoadLevel::Degraded);
    assert_eq!(rig.passes(400, 0, 0, 50), LoadLevel::Normal);
    assert_eq!(rig.controller.stats(rig.now_ms * 1_000).entered, [1, 2, 1]);
}

#[test]
fn a_calm_that_was_an_error_has_to_last_longer_the_next_time() {
    let mut rig = Rig::new(LIMITS);
    let mut calms = Vec::new();
    for _ in 0..5 {
        assert_eq!(rig.passes(200, 40, 600, 50), LoadLevel::Degraded);
        let mut calm = 0;
        while rig.passes(10, 0, 0, 50) != LoadLevel::Normal {
            calm += 10;
        }
        calms.push(calm);
    }
    assert!(calms.windows(2).all(|pair| pair[0] <= pair[1]), "{calms:?}");
    assert!(calms[0] < 1_500 && (3_900..4_500).contains(&calms[4]), "from calm-ms to calm-ms-max: {calms:?}");
    // Long after, it begins anew.
    rig.passes(10_000, 0, 0, 50);
    rig.passes(200, 40, 600, 50);
    assert_eq!(rig.passes(1_600, 0, 0, 50), LoadLevel::Normal);
}

#[test]
fn only_who_begins_is_refused_and_only_while_too_many_wait() {
    let mut rig = Rig::new(LIMITS);
    rig.passes(1_000, 200, 1_000, 50);
    assert!(rig.admits(Class::New), "degraded is not shedding");
    rig.passes(1_000, 200, 2_000, 50);
    assert_eq!(rig.level(), LoadLevel::Shedding);
    assert_eq!(Class::ALL.iter().map(|&class| rig.admits(class)).collect::<Vec<_>>(), [true, true, false]);
    // 50 leave in a second: 20 of them are served within half a second, 30 are not.
    for (waiting, admits) in [(20, true), (30, false)] {
        rig.passes(50, waiting, 300, 50);
        assert_eq!((rig.level(), rig.admits(Class::New)), (LoadLevel::Shedding, admits), "{waiting} wait");
    }
    assert_eq!(rig.controller.stats(rig.now_ms * 1_000).refused, 2);
}

#[test]
fn a_refused_turn_may_come_back_when_those_that_wait_are_served() {
    let mut rig = Rig::new(LIMITS);
    rig.passes(10_000, 500, 2_000, 50);
    let retry_ms = rig.controller.admit(Class::New, 0, rig.now_ms * 1_000).expect_err("refused");
    assert!((9_000..=11_000).contains(&retry_ms), "500 at 50 a second, not {retry_ms} ms");
    rig.passes(10_000, 500, 2_000, 0);
    assert_eq!(rig.controller.retry_after_ms(), 30_000, "bounded");
}

#[test]
fn after_a_silence_nothing_is_left_of_a_peak() {
    let mut rig = Rig::new(LIMITS);
    assert_eq!(rig.passes(5_000, 200, 2_000, 50), LoadLevel::Shedding);
    rig.passes(10, 0, 0, 50);
    // Nobody comes, and nobody looks.
    rig.now_ms += 3_600_000;
    assert!(rig.admits(Class::New));
    assert_eq!(rig.level(), LoadLevel::Normal);
}

#[test]
fn turns_that_come_together_count_before_the_queue_tells_of_them() {
    let mut rig = Rig::new(LIMITS);
    rig.passes(2_000, 200, 2_000, 50);
    rig.passes(50, 0, 0, 50);
    assert_eq!(rig.level(), LoadLevel::Shedding);
    let admitted = (0..500).filter(|_| rig.admits(Class::New)).count();
    assert!((20..=30).contains(&admitted), "half a second's worth, not {admitted}");
}

#[test]
fn a_queue_that_new_conversations_do_not_enter_sheds_none() {
    let mut controller = Controller::new(LIMITS, 2);
    for ms in 0..5_000_u64 {
        let waits = |waiting, wait_ms: u64, takes_new| Backlog {
            takes_new,
            waiting,
            oldest_us: (waiting > 0).then(|| ms.saturating_sub(wait_ms) * 1_000),
            new_waiting: waiting,
            new_served: ms / 20,
            is_full: waiting > 0,
        };
        controller.observe(0, waits(0, 0, true), ms * 1_000);
        controller.observe(1, waits(300, 4_000, false), ms * 1_000);
    }
    assert_eq!(controller.level(5_000_000), LoadLevel::Degraded);
    assert!(controller.admit(Class::New, 0, 5_000_000).is_ok());
}

#[test]
fn memory_sheds_at_once_and_only_while_it_is_full() {
    let mut rig = Rig::new(LoadLimits { memory_bytes_max: 1_000, ..LIMITS });
    rig.passes(1_000, 0, 0, 50);
    rig.controller.remember(1_001, rig.now_ms * 1_000);
    assert_eq!(rig.level(), LoadLevel::Shedding);
    assert!(!rig.admits(Class::New) && rig.admits(Class::Ongoing), "nobody waits, and there is no room all the same");
    rig.passes(5_000, 0, 0, 50);
    assert_eq!(rig.level(), LoadLevel::Shedding);
    rig.controller.remember(900, rig.now_ms * 1_000);
    assert_eq!(rig.passes(3_000, 0, 0, 50), LoadLevel::Normal);
}

#[test]
fn switched_off_it_refuses_nobody() {
    let mut rig = Rig::new(LoadLimits { enabled: false, memory_bytes_max: 1, ..LIMITS });
    rig.controller.remember(100, 0);
    assert_eq!(rig.passes(10_000, 500, 9_000, 0), LoadLevel::Normal);
    assert!(rig.admits(Class::New));
}

/// A server of this many turns a second, to which ongoing and new turns come; gives what was served of the second half, as a share
/// of what could have been, and the longest wait of it in milliseconds.
fn simulated(capacity_per_s: f64, new_per_s: f64, ongoing_per_s: f64) -> (f64, f64) {
    let mut controller = Controller::new(LIMITS, 1);
    let (mut queue, mut served, mut credit) = (std::collections::VecDeque::new(), 0_u64, 0.0_f64);
    let (mut new, mut ongoing, mut half, mut longest) = (0.0_f64, 0.0_f64, 0_u64, 0.0_f64);
    for ms in 0..60_000_u64 {
        new += new_per_s / 1e3;
        ongoing += ongoing_per_s / 1e3;
        while ongoing >= 1.0 {
            ongoing -= 1.0;
            queue.push_front(ms);
        }
        while new >= 1.0 {
            new -= 1.0;
            if controller.admit(Class::New, 0, ms * 1_000).is_ok() {
                queue.push_back(ms);
            }
        }
        credit = (credit + capacity_per_s / 1e3).min(2.0);
        if credit >= 1.0
            && let Some(since) = queue.pop_front()
        {
            credit -= 1.0;
            served += 1;
            if ms >= 30_000 {
                half += 1;
                longest = longest.max((ms - since) as f64);
            }
        }
        let oldest_us = queue.iter().min().map(|since| since * 1_000);
        let backlog = Backlog {
            takes_new: true,
            waiting: queue.len(),
            new_waiting: queue.len(),
            oldest_us,
            new_served: served,
            is_full: !queue.is_empty(),
        };
        controller.observe(0, backlog, ms * 1_000);
    }
    (half as f64 / (capacity_per_s * 30.0), longest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However much comes, the engine is kept busy, and who is let in does not wait much longer than what leads into shedding.
    #[test]
    fn an_overloaded_engine_stays_busy_and_waits_stay_bounded(times in 1.5..10.0_f64, capacity in 20.0..200.0_f64) {
        let (busy, longest_ms) = simulated(capacity, capacity * times, 0.0);
        prop_assert!(busy >= 0.9, "{busy}");
        prop_assert!(longest_ms <= 2_500.0, "{longest_ms}");
    }
}
