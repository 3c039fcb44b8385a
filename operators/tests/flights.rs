//! Similar questions in flight: who leads, who follows, and what becomes of them when the leader lands.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use support::{answer, ask, basis, entry, generate, numbers, scope, turn};
use turnflow_models::{Lane, TierRequest};
use turnflow_operators::Stage;
use turnflow_operators::audience::{Audiences, Listener};
use turnflow_operators::bound::{BoundLimits, SharedBound};
use turnflow_operators::flights::{Flights, Landed, ToFlights};
use turnflow_operators::generate::{Generate, Generated, Generator};
use turnflow_operators::jobs::Report;
use turnflow_operators::message::{
    Ask, Basis, Ending, Notice, Outcome, Purpose, RequestId, Served, Settled, Step, ToCommit, Writer,
};
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::shell::Wake;
use turnflow_state::{Answer, CacheControl, CacheLevel, EntryId, TierSize, TurnError, TurnErrorKind, TurnEvent};

/// Questions agree from a cosine of 0.9 on.
fn flights() -> Flights {
    switched(true)
}

fn switched(enabled: bool) -> Flights {
    heard_by(enabled, Audiences::default())
}

fn heard_by(enabled: bool, audiences: Audiences) -> Flights {
    let clarity = Clarity { relevance_min: 0.5, margin_min: 0.1 };
    let bound = SharedBound::new(BoundLimits { disagreement_max: 0.1, step: 1.0, steps: 3 });
    Flights::new(Arc::new(Policy::new(clarity, 0.9, None, 0.01)), bound, enabled, audiences, Arc::default())
}

/// A turn that dedupe leads, with the vector of an angle.
fn asks(number: u64, text: &str, degrees: f32) -> Box<Ask> {
    let mut ask = ask(number, &number.to_string(), "1", text);
    let radians = degrees.to_radians();
    ask.vector = Some(vec![radians.cos(), radians.sin()].into());
    ask.leads = true;
    ask
}

fn settled(number: u64, answer: Arc<Answer>, valid_at: u64) -> Settled {
    let question = format!("question {number}");
    Settled {
        answer,
        origin: turn(&number.to_string(), "1", &question).key(),
        refreshed: false,
        writer: Some(Writer { request: RequestId { worker: 0, number }, size: TierSize::Large }),
        cost_micros: 0,
        basis: Some(Basis { valid_at, ..basis(&[1.0, 0.0]) }),
        entry: Some(Box::new(entry(number, scope("shop"), &question, None))),
        question,
    }
}

fn lands(flights: &mut Flights, number: u64, result: Option<Settled>) -> Vec<Step> {
    ends(flights, number, result, 0, None)
}

/// A turn that led has ended, perhaps for those who follow as well.
fn ends(
    flights: &mut Flights,
    number: u64,
    result: Option<Settled>,
    failures: u8,
    error: Option<TurnError>,
) -> Vec<Step> {
    let leader = RequestId { worker: 0, number };
    let mut out = Vec::new();
    let landed = Landed { leader, scope: scope("shop"), result, failures, error };
    flights.push(ToFlights::Landed(Box::new(landed)), 9, &mut out);
    out
}

/// At dedupe, a turn waits for one that leads.
fn waits(flights: &mut Flights, number: u64, ask: &Ask) {
    let (leader, listener) = (RequestId { worker: 0, number }, Listener::of(ask));
    let mut out = Vec::new();
    flights.push(ToFlights::Listener { leader, scope: scope("shop"), listener }, 0, &mut out);
    assert!(out.is_empty());
}

fn comes(flights: &mut Flights, ask: Box<Ask>) -> Vec<Step> {
    let mut out = Vec::new();
    flights.push(ToFlights::Turn(ask), 1, &mut out);
    out
}

fn served(step: &Step) -> &Served {
    match step {
        Err(Outcome { ending: Ending::Served(served), .. }) => served,
        other => panic!("{other:?}"),
    }
}

fn goes_on(steps: &[Step]) -> Vec<u64> {
    steps.iter().filter_map(|step| step.as_ref().ok()).map(|ask| ask.request.number).collect()
}

#[test]
fn a_similar_question_waits_and_gets_the_answer() {
    let mut flights = flights();
    assert_eq!(goes_on(&comes(&mut flights, asks(1, "is tea sold loose", 0.0))), [1]);
    assert_eq!(goes_on(&comes(&mut flights, asks(2, "are pans recycled", 60.0))), [2]);
    assert!(comes(&mut flights, asks(3, "do you sell loose tea", 20.0)).is_empty());
    assert_eq!(flights.held(), 1);
    assert!(lands(&mut flights, 2, Some(settled(2, answer("no"), 0))).is_empty(), "nobody follows it");
    let out = lands(&mut flights, 1, Some(settled(1, answer("yes"), 7)));
    assert_eq!((numbers(&out), flights.held()), (vec![3], 0));
    let Served { answer: got, verdict, basis, offer, writer } = served(&out[0]);
    assert_eq!((got.text.as_str(), verdict.level, verdict.entry), ("yes", CacheLevel::Joined, Some(EntryId(1))));
    let similarity = verdict.similarity.expect("a similarity");
    assert!((similarity - 20_f32.to_radians().cos()).abs() < 1e-5, "{similarity}");
    assert_eq!(verdict.evidence.as_ref().expect("evidence").probability.to_bits(), similarity.to_bits());
    assert_eq!(verdict.question.as_deref(), Some("question 1"));
    assert_eq!(verdict.origin.as_ref().expect("an origin").conversation.as_str(), "1");
    assert_eq!(verdict.reason, "a similar question was being answered, and both mention the same");
    assert!(offer.is_none() && writer.is_some_and(|writer| writer.request.number == 1));
    assert_eq!(basis.as_ref().expect("a basis").valid_at, 7, "those who wait for the follower's words may have it too");
    assert!(lands(&mut flights, 1, Some(settled(1, answer("yes"), 7))).is_empty(), "it is in flight no more");
    assert_eq!(goes_on(&comes(&mut flights, asks(4, "do you sell loose tea", 20.0))), [4]);
}

#[test]
fn a_follower_waits_no_longer_than_its_deadline() {
    let audiences = Audiences::default();
    let mut flights = heard_by(true, audiences.clone());
    assert_eq!(goes_on(&comes(&mut flights, asks(1, "tea", 0.0))), [1]);
    let until = |number, deadline_us| Box::new(Ask { deadline_us, ..*asks(number, "tea", 10.0) });
    for (number, deadline_us) in [(2, Some(300)), (3, None), (4, Some(100))] {
        assert!(comes(&mut flights, until(number, deadline_us)).is_empty());
    }
    let mut polled = |now_us| {
        let mut out = Vec::new();
        flights.poll(now_us, &mut out);
        let kind = |step: &Step| match step {
            Err(Outcome { ask, ending: Ending::Failed(error) }) => (ask.request.number, error.kind),
            other => panic!("{other:?}"),
        };
        (out.iter().map(kind).collect::<Vec<_>>(), flights.due_us(), flights.held())
    };
    assert_eq!(polled(100), (vec![], Some(100), 3));
    assert_eq!(polled(101), (vec![(4, TurnErrorKind::Late)], Some(300), 2));
    assert_eq!(polled(301), (vec![(2, TurnErrorKind::Late)], None, 1));
    assert_eq!(numbers(&lands(&mut flights, 1, Some(settled(1, answer("yes"), 0)))), [3]);
}

#[test]
fn the_nearest_is_followed() {
    let mut flights = flights();
    for (number, degrees) in [(1, 0.0), (2, 40.0)] {
        assert_eq!(goes_on(&comes(&mut flights, asks(number, "tea", degrees))), [number]);
    }
    assert!(comes(&mut flights, asks(3, "tea", 22.0)).is_empty(), "both are near enough");
    assert!(lands(&mut flights, 1, Some(settled(1, answer("one"), 0))).is_empty());
    assert_eq!(served(&lands(&mut flights, 2, Some(settled(2, answer("two"), 0)))[0]).answer.text, "two");
}

#[test]
fn who_may_not_follow_goes_on_and_who_may_not_lead_is_not_followed() {
    let bypass = |ask: &mut Ask| ask.turn.cache_control = CacheControl::Bypass;
    let read_only = |ask: &mut Ask| ask.turn.cache_control = CacheControl::ReadOnly;
    let unled = |ask: &mut Ask| ask.leads = false;
    let background = |ask: &mut Ask| ask.purpose = Purpose::Refresh;
    let leaning = |ask: &mut Ask| ask.leans = true;
    let elsewhere = |ask: &mut Ask| ask.key.scope = scope("other");
    let mentioning = |ask: &mut Ask| ask.turn.text = "order 7".into();
    let nothing = |_: &mut Ask| {};
    let check = |name: &str, change: &dyn Fn(&mut Ask), follows: bool, leads: bool| {
        let mut changed = asks(2, "tea", 0.0);
        change(&mut changed);
        let mut after = flights();
        assert_eq!(goes_on(&comes(&mut after, asks(1, "tea", 0.0))), [1]);
        assert_eq!(comes(&mut after, changed.clone()).is_empty(), follows, "{name} follows");
        let mut before = flights();
        assert_eq!(goes_on(&comes(&mut before, changed)), [2]);
        assert_eq!(comes(&mut before, asks(1, "tea", 0.0)).is_empty(), leads, "{name} leads");
    };
    check("a plain turn", &nothing, true, true);
    check("one that bypasses the caches", &bypass, false, false);
    check("one that only reads them", &read_only, true, false);
    check("one whose end dedupe does not hear", &unled, true, false);
    check("one in the background", &background, false, false);
    check("one that leans on its conversation", &leaning, false, false);
    check("one of another scope", &elsewhere, false, false);
    check("one that mentions something else", &mentioning, false, false);
    let mut off = switched(false);
    assert_eq!(goes_on(&comes(&mut off, asks(1, "tea", 0.0))), [1]);
    assert_eq!(goes_on(&comes(&mut off, asks(2, "tea", 0.0))), [2], "it is switched off");
}

#[test]
fn when_the_leader_fails_the_first_leads_and_the_others_are_compared_again() {
    let mut flights = flights();
    comes(&mut flights, asks(1, "tea", 0.0));
    // 2 and 3 are near 1 and each other; 4 is near 1 but not 2; 5 is near 4.
    for (number, degrees) in [(2, -15.0), (3, -5.0), (4, 15.0), (5, 20.0)] {
        assert!(comes(&mut flights, asks(number, "tea", degrees)).is_empty());
    }
    assert_eq!(goes_on(&lands(&mut flights, 1, None)), [2, 4]);
    assert_eq!(flights.held(), 2);
    let out = lands(&mut flights, 2, Some(settled(2, answer("two"), 0)));
    assert_eq!((numbers(&out), served(&out[0]).answer.text.as_str()), (vec![3], "two"));
    assert_eq!(goes_on(&lands(&mut flights, 4, None)), [5], "the next fails as well");
    assert!(lands(&mut flights, 5, None).is_empty() && flights.held() == 0);
}

#[test]
fn an_answer_that_was_not_found_serves_nobody_and_nobody_waits_in_line() {
    let mut flights = flights();
    comes(&mut flights, asks(1, "tea", 0.0));
    (2..5).for_each(|number| assert!(comes(&mut flights, asks(number, "tea", 0.0)).is_empty()));
    let unknown = Arc::new(Answer { grounded: false, ..(*answer("I do not know")).clone() });
    assert_eq!(goes_on(&lands(&mut flights, 1, Some(settled(1, unknown, 0)))), [2, 3, 4]);
    assert_eq!(flights.held(), 0);
    assert!(comes(&mut flights, asks(5, "tea", 0.0)).is_empty(), "they lead like any other");
    assert_eq!(numbers(&lands(&mut flights, 2, Some(settled(2, answer("found"), 0)))), [5]);
}

#[test]
fn an_answer_that_is_older_than_what_a_follower_may_know_is_not_served_to_it() {
    let mut flights = flights();
    let knowing = |number: u64, acknowledged: u64| Box::new(Ask { acknowledged, ..*asks(number, "tea", 0.0) });
    comes(&mut flights, knowing(1, 3));
    for (number, acknowledged) in [(2, 4), (3, 6), (4, 5), (5, 6)] {
        assert!(comes(&mut flights, knowing(number, acknowledged)).is_empty());
    }
    let out = lands(&mut flights, 1, Some(settled(1, answer("five"), 5)));
    assert_eq!((numbers(&out), goes_on(&out)), (vec![2, 4, 3], vec![3]), "3 leads, and 5 follows it");
    assert_eq!(numbers(&lands(&mut flights, 3, Some(settled(3, answer("six"), 6)))), [5]);
}

/// A tier that does what it is told, by the number of its job.
#[derive(Clone, Default)]
struct Told(Rc<RefCell<Vec<Report<String, Generated>>>>);

impl Generator for Told {
    fn generate(&self, _: TierSize, _: Lane, _: TierRequest, report: Report<String, Generated>) -> bool {
        self.0.borrow_mut().push(report);
        true
    }
}

impl Told {
    fn says(&self, job: usize, text: &str) {
        self.0.borrow()[job].pieces().send(text.to_owned());
    }
}

/// Runs a test with flights, a tier, and the stage in front of it, whose turns they hear.
fn with_a_tier(test: impl FnOnce(Flights, Told, Generate<Told>) + Send + Sync + 'static) {
    timely::execute_directly(move |worker| {
        let (audiences, tier) = (Audiences::default(), Told::default());
        let generate = generate(tier.clone(), audiences.clone(), &Wake::new(worker.sync_activator_for(vec![0])));
        test(heard_by(true, audiences), tier, generate);
    });
}

/// What was told, by turn: pieces, with the turn that each was written for.
fn told(out: &mut Vec<ToCommit>) -> Vec<(u64, String)> {
    let piece = |to: ToCommit| match to {
        ToCommit::Piece(Notice { request, writer: Some(writer), event: TurnEvent::Delta(text), .. }, _) => {
            Some((request.number, format!("{}{text}", writer.request.number)))
        }
        ToCommit::Piece(other, _) => panic!("{other:?}"),
        ToCommit::End(_) => None,
    };
    out.drain(..).filter_map(piece).collect()
}

#[test]
fn followers_hear_what_the_tier_says() {
    with_a_tier(|mut flights, tier, mut generate| {
        let mut out = Vec::new();
        let read = |number: u64, acknowledged: u64, read_epoch: u64| {
            Box::new(Ask { acknowledged, read_epoch, ..*asks(number, "tea", 0.0) })
        };
        let of_first = |number: u64| (number, "1a".to_owned());
        for step in comes(&mut flights, read(1, 3, 3)) {
            generate.push(step.expect("leads"), 0, &mut out);
        }
        assert!(comes(&mut flights, read(2, 3, 3)).is_empty());
        generate.poll(0, &mut out);
        tier.says(0, "a");
        generate.poll(0, &mut out);
        assert_eq!(told(&mut out), [of_first(2), of_first(1)]);
        assert!(comes(&mut flights, read(3, 3, 4)).is_empty(), "hears what came before");
        assert!(comes(&mut flights, read(4, 4, 4)).is_empty(), "knows of something newer than what is read there");
        generate.poll(0, &mut out);
        assert_eq!(told(&mut out), [of_first(3)]);
        drop(tier.0.borrow_mut().remove(0));
        generate.poll(0, &mut out);
        assert!(told(&mut out).is_empty() && generate.held() == 0);

        let mut heirs = lands(&mut flights, 1, None);
        assert_eq!(goes_on(&heirs), [3], "it has read the newest, and came before 4");
        let heir = heirs.remove(0).expect("goes on");
        generate.push(heir, 0, &mut out);
        generate.poll(0, &mut out);
        tier.says(0, "b");
        tier.says(0, "c");
        generate.poll(0, &mut out);
        let heard = told(&mut out);
        let of = |number: u64| heard.iter().filter(|(to, _)| *to == number).map(|(_, text)| text.as_str()).collect();
        let (second, third, fourth): (String, String, String) = (of(2), of(3), of(4));
        assert_eq!((second.as_str(), third.as_str(), fourth.as_str()), ("3b3c", "3b3c", "3b3c"));
        tier.0.borrow_mut().remove(0).finish(Ok((*answer("bc")).clone()));
        generate.poll(0, &mut out);
        assert_eq!(numbers(&lands(&mut flights, 3, Some(settled(3, answer("bc"), 4)))).len(), 2);
    });
}

#[test]
fn whoever_waits_at_dedupe_hears_what_is_written_for_the_turn_that_leads_or_for_the_one_that_it_follows() {
    with_a_tier(|mut flights, tier, mut generate| {
        let mut out = Vec::new();
        // Before the turn that leads has come here, and after.
        waits(&mut flights, 1, &asks(11, "tea", 0.0));
        let leader = comes(&mut flights, asks(1, "tea", 0.0)).remove(0).expect("leads");
        generate.push(leader, 0, &mut out);
        waits(&mut flights, 1, &asks(12, "tea", 0.0));
        // For one that follows, and for one that is to follow.
        assert!(comes(&mut flights, asks(2, "teas", 5.0)).is_empty());
        waits(&mut flights, 2, &asks(21, "teas", 5.0));
        waits(&mut flights, 3, &asks(31, "the tea", 5.0));
        assert!(comes(&mut flights, asks(3, "the tea", 5.0)).is_empty());
        // It knows of something newer than what the answer is written from.
        waits(&mut flights, 1, &Ask { acknowledged: 1, ..*asks(13, "tea", 0.0) });
        generate.poll(0, &mut out);
        tier.says(0, "a");
        generate.poll(0, &mut out);
        let mut heard = told(&mut out);
        heard.sort();
        let all = [1, 2, 3, 11, 12, 21, 31].map(|number| (number, "1a".to_owned()));
        assert_eq!(heard, all);

        // The turn that they wait for has gone: what it followed is not for them any more.
        lands(&mut flights, 2, None);
        tier.says(0, "b");
        generate.poll(0, &mut out);
        assert!(told(&mut out).iter().all(|(number, _)| *number != 21));
    });
}

#[test]
fn when_nobody_is_to_try_again_those_who_follow_fail_as_well() {
    let mut flights = flights();
    comes(&mut flights, asks(1, "tea", 0.0));
    assert!(comes(&mut flights, asks(2, "teas", 5.0)).is_empty());
    let error = TurnError::new(TurnErrorKind::Internal, "no answer could be written");
    match &ends(&mut flights, 1, None, 2, Some(error.clone()))[..] {
        [Err(Outcome { ending: Ending::Failed(failed), ask })] => {
            assert_eq!((failed, ask.request.number), (&error, 2));
            assert!(ask.is_hopeless(), "nor are those to try again who wait for its own answer");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(flights.held(), 0);
}

#[test]
fn who_leads_after_another_knows_how_often_tiers_have_failed() {
    for failures in [0, 1] {
        let mut flights = flights();
        comes(&mut flights, asks(1, "tea", 0.0));
        assert!(comes(&mut flights, asks(2, "teas", 5.0)).is_empty());
        match &ends(&mut flights, 1, None, failures, None)[..] {
            [Ok(ask)] => assert_eq!((ask.leads, ask.failures), (true, failures)),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    /// Whatever comes and lands in whatever way: every turn is given out once, nobody who waits is forgotten, and whoever
    /// leads does not wait.
    #[test]
    fn nobody_waits_for_ever(steps in prop::collection::vec((any::<bool>(), 0u8..12, 0u8..3), 1..80)) {
        let mut flights = flights();
        let (mut leading, mut waiting) = (BTreeSet::new(), HashMap::new());
        let take = |out: Vec<Step>, leading: &mut BTreeSet<u64>, waiting: &mut HashMap<u64, ()>| {
            for step in out {
                match step {
                    Ok(ask) => {
                        waiting.remove(&ask.request.number);
                        assert!(leading.insert(ask.request.number), "given out twice");
                    }
                    Err(outcome) => assert!(waiting.remove(&outcome.ask.request.number).is_some(), "it did not wait"),
                }
            }
        };
        let land = |flights: &mut Flights, leading: &mut BTreeSet<u64>, waiting: &mut HashMap<u64, ()>, how: u8| {
            let Some(number) = leading.pop_first() else { return };
            let unknown = Arc::new(Answer { grounded: false, ..(*answer("I do not know")).clone() });
            let result = match how {
                0 => Some(settled(number, answer("yes"), 0)),
                1 => Some(settled(number, unknown, 0)),
                _ => None,
            };
            take(lands(flights, number, result), leading, waiting);
        };
        for (number, (is_turn, angle, how)) in (1u64..).zip(steps) {
            if is_turn {
                waiting.insert(number, ());
                take(comes(&mut flights, asks(number, "tea", f32::from(angle) * 30.0)), &mut leading, &mut waiting);
            } else {
                land(&mut flights, &mut leading, &mut waiting, how);
            }
            prop_assert_eq!(flights.held(), waiting.len());
        }
        while !leading.is_empty() {
            land(&mut flights, &mut leading, &mut waiting, 2);
        }
        prop_assert!(waiting.is_empty() && flights.held() == 0);
    }
}
