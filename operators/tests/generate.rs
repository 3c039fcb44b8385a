//! The stage in front of the tiers: what it hands over, gives up, asks again, and tells.

#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use support::{answer, ask, settings};
use turnflow_models::{Cancel, Lane, ModelError, RemoteFault, TierRequest};
use turnflow_operators::Stage;
use turnflow_operators::audience::{Audiences, Listener};
use turnflow_operators::clients::Clients;
use turnflow_operators::generate::{Generate, GenerateSettings, Generated, Generator};
use turnflow_operators::jobs::Report;
use turnflow_operators::load::Load;
use turnflow_operators::message::{Ask, Ending, Outcome, Purpose, Served, ToCommit};
use turnflow_operators::shell::Wake;
use turnflow_state::{Answer, RouteEvidence, Stage as StageName, TierSize, TurnErrorKind, TurnEvent, Usage};

/// A job that a tier has.
type Job = (TierSize, Lane, Report<String, Generated>);

/// Tiers that take so many jobs in each lane, and answer when the test says so.
#[derive(Clone, Default)]
struct Asked {
    jobs: Rc<RefCell<Vec<Job>>>,
    room: Rc<Cell<[usize; 3]>>,
}

impl Generator for Asked {
    fn generate(&self, size: TierSize, lane: Lane, _: TierRequest, report: Report<String, Generated>) -> bool {
        let mut room = self.room.get();
        let Some(left) = room[lane as usize].checked_sub(1) else { return false };
        room[lane as usize] = left;
        self.room.set(room);
        self.jobs.borrow_mut().push((size, lane, report));
        true
    }
}

/// A stage, and what it told.
struct Rig {
    stage: Generate<Asked>,
    tiers: Asked,
    audiences: Audiences,
    out: Vec<ToCommit>,
}

/// Runs a test with a stage whose tiers have room for everything.
fn with(settings: GenerateSettings, test: impl FnOnce(Rig) + Send + Sync + 'static) {
    timely::execute_directly(move |worker| {
        let wake = Wake::new(worker.sync_activator_for(vec![0]));
        let tiers = Asked::default();
        tiers.room.set([100; 3]);
        let audiences = Audiences::default();
        let stage = Generate::new(tiers.clone(), settings, Load::ignored(), audiences.clone(), &wake);
        test(Rig { stage, tiers, audiences, out: Vec::new() });
    });
}

impl Rig {
    /// A turn for a tier comes at a time, in milliseconds.
    fn comes(&mut self, number: u64, size: TierSize, at_ms: u64, adjust: impl FnOnce(&mut Ask)) {
        let mut ask = ask(number, &format!("c{number}"), "1", "Where is my parcel?");
        (ask.size, ask.admitted_us) = (size, at_ms * 1_000);
        ask.route = Some(Box::new(RouteEvidence {
            size,
            reason: "chosen".into(),
            probability: None,
            load: turnflow_state::LoadLevel::Normal,
            escalated: false,
        }));
        adjust(&mut ask);
        self.stage.push(ask, at_ms * 1_000, &mut self.out);
        self.polled(at_ms);
    }

    fn polled(&mut self, at_ms: u64) {
        self.stage.poll(at_ms * 1_000, &mut self.out);
    }

    /// The job that was handed over first ends at a time.
    fn ends(&mut self, result: Result<Answer, ModelError>, at_ms: u64) {
        let (_, _, report) = self.tiers.jobs.borrow_mut().remove(0);
        report.finish(result);
        self.polled(at_ms);
    }

    fn says(&mut self, text: &str, at_ms: u64) {
        self.tiers.jobs.borrow()[0].2.pieces().send(text.to_owned());
        self.polled(at_ms);
    }

    /// What was handed over and has not ended.
    fn with_tiers(&self) -> Vec<(TierSize, Lane)> {
        self.tiers.jobs.borrow().iter().map(|(size, lane, _)| (*size, *lane)).collect()
    }

    /// What was told since: pieces, with the tier that wrote them, and ends.
    fn told(&mut self) -> Vec<(u64, String)> {
        let told = |told: ToCommit| match told {
            ToCommit::Piece(notice, _) => {
                let (Some(writer), TurnEvent::Delta(text)) = (notice.writer, notice.event) else { panic!("a piece") };
                (notice.request.number, format!("{}: {text}", writer.size.as_str()))
            }
            ToCommit::End(Outcome { ask, ending: Ending::Served(served) }) => {
                (ask.request.number, served.answer.text.clone())
            }
            ToCommit::End(Outcome { ask, ending: Ending::Failed(error) }) => {
                (ask.request.number, error.kind.to_string())
            }
            ToCommit::End(other) => panic!("{other:?}"),
        };
        self.out.drain(..).map(told).collect()
    }

    /// The one end that was told.
    fn ended(&mut self) -> (Box<Ask>, Box<Served>) {
        let ends: Vec<_> = self.out.drain(..).filter(|told| matches!(told, ToCommit::End(_))).collect();
        match <[ToCommit; 1]>::try_from(ends) {
            Ok([ToCommit::End(Outcome { ask, ending: Ending::Served(served) })]) => (ask, served),
            other => panic!("{other:?}"),
        }
    }
}

fn unknown() -> Answer {
    Answer { grounded: false, ..(*answer("I don't know.")).clone() }
}

fn said(told: &[(u64, &str)]) -> Vec<(u64, String)> {
    told.iter().map(|(number, text)| (*number, (*text).to_owned())).collect()
}

#[test]
fn what_the_small_tier_said_is_void_when_the_large_one_is_asked_for_followers_too() {
    with(settings(), |mut rig| {
        let leader = ask(1, "c1", "1", "?");
        rig.audiences.open(&leader);
        rig.comes(1, TierSize::Small, 0, |_| {});
        assert!(rig.audiences.listen(leader.request, Listener::of(&ask(2, "c2", "1", "?"))), "it is being answered");
        rig.says("I don't", 1);
        assert_eq!(rig.told(), said(&[(2, "small: I don't"), (1, "small: I don't")]));
        rig.ends(Ok(unknown()), 2);
        assert_eq!(rig.with_tiers(), [(TierSize::Large, Lane::Ongoing)], "it has waited already");
        assert_eq!(rig.told(), said(&[]));
        rig.says("At home.", 3);
        assert_eq!(rig.told(), said(&[(2, "large: At home."), (1, "large: At home.")]), "by another writer");
        rig.ends(Ok((*answer("At home.")).clone()), 9);
        let (ask, served) = rig.ended();
        assert_eq!(served.answer.text, "At home.");
        let route = served.verdict.route.expect("a tier answered");
        assert_eq!(
            (route.size, route.escalated, route.reason.as_str()),
            (TierSize::Large, true, "the small tier found no answer")
        );
        assert_eq!(ask.used, [Usage { input_tokens: 10, output_tokens: 5 }; 2], "both tiers have read it");
        assert_eq!(ask.latency.get(StageName::Generate), 9_000);
        assert_eq!(rig.stage.held(), 0);
    });
}

#[test]
fn a_small_tier_that_fails_before_it_said_anything_is_not_noticed() {
    with(settings(), |mut rig| {
        rig.comes(1, TierSize::Small, 0, |_| {});
        rig.ends(Err(ModelError::Step { reason: "broken".into() }), 1);
        assert_eq!(rig.told(), said(&[]));
        rig.ends(Ok((*answer("At home.")).clone()), 2);
        assert_eq!(rig.told(), said(&[(1, "At home.")]));
    });
}

#[test]
fn nobody_is_to_try_again_after_a_second_failure_and_no_other_end() {
    with(settings(), |mut rig| {
        let broken = || ModelError::Step { reason: "broken".into() };
        let mut check = |before: u8, deadline_us: Option<u64>, error: ModelError, is_hopeless: bool| {
            // It has waited already, for an answer that fell or that a tier failed at.
            rig.comes(1, TierSize::Large, 0, |ask| {
                (ask.promised, ask.failures, ask.deadline_us) = (true, before, deadline_us);
            });
            rig.ends(Err(error), 1);
            let Some(ToCommit::End(Outcome { ask, .. })) = rig.out.pop() else { panic!("it has ended") };
            assert_eq!(ask.is_hopeless(), is_hopeless);
        };
        check(0, None, broken(), false);
        check(1, None, broken(), true);
        check(1, None, ModelError::Late { limit_ms: 1 }, true);
        check(1, Some(1_000), ModelError::Late { limit_ms: 1 }, false);
        check(1, None, ModelError::Cancelled, false);
        // The large tier in place of the small one.
        rig.comes(1, TierSize::Small, 2, |_| {});
        rig.ends(Err(broken()), 2);
        rig.ends(Err(broken()), 3);
        let Some(ToCommit::End(Outcome { ask, .. })) = rig.out.pop() else { panic!("it has ended") };
        assert_eq!((ask.failures, ask.is_hopeless()), (1, false));
    });
}

#[test]
fn a_tier_that_is_stopped_before_its_first_word_has_read_and_one_that_fails_has_not() {
    with(GenerateSettings { escalate: false, ..settings() }, |mut rig| {
        let broken = ModelError::Step { reason: "broken".into() };
        for (error, times) in [(ModelError::Cancelled, 1), (ModelError::Late { limit_ms: 1 }, 1), (broken, 0)] {
            rig.comes(1, TierSize::Large, 0, |_| {});
            rig.ends(Err(error), 1);
            let Some(ToCommit::End(Outcome { ask, .. })) = rig.out.pop() else { panic!("it has ended") };
            assert_eq!(ask.used(), Usage::estimated(times * ask.turn.text.len(), 0));
        }
    });
}

#[test]
fn the_large_tier_is_not_asked_for_what_it_was_spared_nor_by_who_left_nor_twice() {
    with(settings(), |mut rig| {
        rig.comes(1, TierSize::Small, 0, |ask| ask.degraded = true);
        rig.ends(Ok(unknown()), 1);
        let (ask, served) = rig.ended();
        assert!(!served.answer.grounded && served.offer.is_none() && ask.degraded, "and it is not kept");
        rig.comes(2, TierSize::Small, 2, |_| {});
        rig.ends(Err(ModelError::Cancelled), 3);
        assert_eq!(rig.told(), said(&[(2, "internal")]));
        rig.comes(3, TierSize::Small, 4, |ask| ask.deadline_us = Some(5_000));
        rig.ends(Err(ModelError::Late { limit_ms: 1 }), 5);
        assert_eq!(rig.told(), said(&[(3, "late")]));
        rig.comes(4, TierSize::Small, 6, |_| {});
        rig.ends(Ok(Answer { cut_off: true, ..(*answer("At")).clone() }), 7);
        rig.ends(Ok(unknown()), 8);
        assert_eq!(rig.told(), said(&[(4, "!"), (4, "I don't know.")][1..]));
    });
    with(GenerateSettings { escalate: false, ..settings() }, |mut rig| {
        rig.comes(1, TierSize::Small, 0, |_| {});
        rig.ends(Ok(unknown()), 1);
        assert_eq!(rig.told(), said(&[(1, "I don't know.")]));
    });
}

#[test]
fn whose_time_was_up_is_told_apart() {
    with(settings(), |mut rig| {
        let late = || Err(ModelError::Late { limit_ms: 60_000 });
        rig.comes(1, TierSize::Large, 0, |ask| ask.deadline_us = Some(300_000_000));
        rig.ends(late(), 60_000);
        assert_eq!(rig.told(), said(&[(1, "overloaded")]), "the tier's own limit");
        rig.comes(2, TierSize::Large, 100_000, |ask| ask.deadline_us = Some(110_000_000));
        rig.ends(late(), 110_000);
        assert_eq!(rig.told(), said(&[(2, "late")]), "the caller's");
    });
}

#[test]
fn a_wait_is_booked_whole_however_often_a_tier_was_full() {
    with(settings(), |mut rig| {
        rig.tiers.room.set([0, 0, 0]);
        rig.comes(1, TierSize::Small, 0, |_| {});
        (1..5).for_each(|ms| rig.polled(ms));
        rig.tiers.room.set([0, 1, 0]);
        rig.polled(7);
        rig.ends(Ok(unknown()), 10);
        (11..15).for_each(|ms| rig.polled(ms));
        rig.tiers.room.set([1, 0, 0]);
        rig.polled(20);
        rig.ends(Ok((*answer("At home.")).clone()), 25);
        let (ask, _) = rig.ended();
        assert_eq!(ask.latency.get(StageName::Prioritise), 17_000, "7 ms and 10 ms");
        assert_eq!(ask.latency.get(StageName::Generate), 8_000, "3 ms and 5 ms");
    });
}

#[test]
fn what_a_busy_tier_is_too_slow_for_is_not_begun_but_an_idle_one_is_tried() {
    with(settings(), |mut rig| {
        rig.comes(1, TierSize::Large, 0, |_| {});
        rig.ends(Ok((*answer("slow")).clone()), 10_000);
        assert_eq!(rig.told(), said(&[(1, "slow")]));
        rig.comes(2, TierSize::Large, 10_000, |ask| ask.deadline_us = Some(11_000_000));
        assert_eq!(rig.with_tiers().len(), 1, "it may have become faster");
        rig.comes(3, TierSize::Large, 10_000, |ask| ask.deadline_us = Some(11_000_000));
        assert_eq!(rig.told(), said(&[(3, "late")]));
        rig.ends(Ok((*answer("fast")).clone()), 10_100);
        rig.comes(4, TierSize::Large, 10_200, |_| {});
        rig.comes(5, TierSize::Large, 10_200, |ask| ask.deadline_us = Some(11_000_000));
        assert_eq!(rig.with_tiers().len(), 2, "as fast as of late it can be done");
        // A failure is no answer, however fast.
        rig.ends(Err(ModelError::Step { reason: "broken".into() }), 10_201);
        rig.comes(6, TierSize::Large, 10_201, |ask| ask.deadline_us = Some(10_250_000));
        assert_eq!(rig.told().last(), Some(&(6, "late".to_owned())));
    });
}

#[test]
fn it_asks_again_by_itself_where_nothing_of_its_own_will_come_back() {
    with(settings(), |mut rig| {
        rig.tiers.room.set([0, 1, 0]);
        rig.comes(1, TierSize::Large, 0, |_| {});
        assert!(!rig.stage.stalled(), "it was taken");
        rig.comes(2, TierSize::Large, 1, |_| {});
        assert!(!rig.stage.stalled(), "the first comes back in the same lane");
        rig.comes(3, TierSize::Large, 2, |ask| ask.turns_before = 1);
        assert!(rig.stage.stalled(), "others have filled the lane of those who go on");
        rig.tiers.room.set([1, 0, 0]);
        rig.polled(3);
        assert_eq!(rig.with_tiers()[1], (TierSize::Large, Lane::Ongoing));
    });
}

#[test]
fn who_finds_no_place_is_told_when_to_come_back() {
    let few = support::QUEUE;
    let few = turnflow_operators::prioritise::QueueLimits { turns_max: 1, ..few };
    with(GenerateSettings { queue: few, ..settings() }, |mut rig| {
        rig.tiers.room.set([0, 0, 0]);
        rig.comes(1, TierSize::Large, 0, |_| {});
        rig.audiences.open(&ask(2, "c2", "1", "?"));
        rig.comes(2, TierSize::Large, 1, |_| {});
        let [ToCommit::End(Outcome { ask, ending: Ending::Failed(error) })] = rig.out.as_slice() else {
            panic!("{:?}", rig.out)
        };
        assert_eq!((ask.request.number, error.kind), (2, TurnErrorKind::Overloaded));
        assert!(error.retry_after_ms.is_some_and(|ms| ms > 0));
        assert!(!rig.audiences.listen(ask.request, Listener::of(ask)), "there is nothing to be heard of it");
    });
}

#[test]
fn whose_client_leaves_is_given_up_while_it_waits_unless_others_wait_for_it() {
    timely::execute_directly(move |worker| {
        let wake = Wake::new(worker.sync_activator_for(vec![0]));
        let (tiers, load, audiences) = (Asked::default(), Load::ignored(), Audiences::default());
        let clients: Vec<Cancel> = (0..5).map(|_| Cancel::new()).collect();
        let known = clients.clone();
        let known = Clients::new(move |request| known[usize::try_from(request.number).expect("small")].clone());
        let stage = Generate::new(tiers.clone(), settings(), load.clone(), audiences.clone(), &wake);
        let mut rig = Rig { stage: stage.for_clients(known), tiers, audiences, out: Vec::new() };
        (1..4).for_each(|number| rig.comes(number, TierSize::Large, number, |_| {}));
        rig.comes(0, TierSize::Large, 4, |ask| ask.purpose = Purpose::Refresh);
        // The fourth waits for the third.
        clients[3].joined_by(&clients[4]);
        clients.iter().take(4).filter(|client| !std::ptr::eq(*client, &clients[1])).for_each(Cancel::cancel);
        rig.polled(9);
        assert_eq!((rig.told(), rig.stage.held()), (said(&[(2, "internal")]), 3));
        clients[4].cancel();
        rig.polled(10);
        assert_eq!((rig.told(), rig.stage.held()), (said(&[(3, "internal")]), 2));
        assert_eq!(load.lock().stats(10_000).abandoned, 2);
        // Who has left by the time it comes does not wait at all.
        rig.comes(2, TierSize::Small, 11, |_| {});
        assert_eq!((rig.told(), rig.with_tiers().len()), (said(&[(2, "internal")]), 0));
    });
}

#[test]
fn a_small_tier_with_too_much_to_do_sends_nothing_to_the_large_one_under_load() {
    let limits = || turnflow_operators::load::LoadLimits {
        enabled: true,
        degraded_wait_ms: 10,
        shedding_wait_ms: 1_000_000,
        hold_ms: 0,
        calm_ms: 1_000_000,
        calm_ms_max: 1_000_000,
        saturation_max: 1.0,
        memory_bytes_max: 0,
    };
    let busy = || {
        let fault = RemoteFault::Status { status: 429, message: String::new(), retry_after: None };
        Err(ModelError::Remote { server: "s".to_owned(), source: fault })
    };
    timely::execute_directly(move |worker| {
        let wake = Wake::new(worker.sync_activator_for(vec![0]));
        let (tiers, load, audiences) = (Asked::default(), Load::new(limits(), 2), Audiences::default());
        tiers.room.set([100; 3]);
        let stage = Generate::new(tiers.clone(), settings(), load.clone(), audiences.clone(), &wake);
        let mut rig = Rig { stage, tiers, audiences, out: Vec::new() };
        rig.comes(1, TierSize::Small, 0, |_| {});
        rig.ends(busy(), 1);
        assert_eq!(rig.with_tiers(), [(TierSize::Large, Lane::Ongoing)], "the large one has time");
        rig.ends(Ok((*answer("At home.")).clone()), 2);
        rig.out.clear();
        rig.tiers.room.set([0; 3]);
        rig.comes(2, TierSize::Small, 3, |_| {});
        rig.polled(50);
        rig.polled(51);
        assert_eq!(load.lock().level(52_000), turnflow_state::LoadLevel::Degraded);
        rig.tiers.room.set([100; 3]);
        rig.polled(53);
        rig.ends(busy(), 54);
        assert_eq!((rig.with_tiers().len(), rig.told()), (0, said(&[(2, "overloaded")])));
    });
}
