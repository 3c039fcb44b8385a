//! What is answered anew, in which order, and how often it is tried.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use support::{answer, basis, entry, policy, scope, turn};
use turnflow_operators::message::{Ask, Purpose, QuestionKey, Resolution, Settled};
use turnflow_operators::refresh::{Fallen, Refresh, RefreshLimits, RefreshStats};
use turnflow_operators::shard::{Shard, ShardLimits};
use turnflow_operators::validity::keeper::{Keeper, Proposal};
use turnflow_state::{Answer, ArticleId, CacheEntry, EntryHistory, EntryId};

const LIMITS: RefreshLimits = RefreshLimits { served_min: 1, queue_max: 3, in_flight_max: 1, tries_max: 2 };

fn key(question: &str) -> QuestionKey {
    QuestionKey::new(scope("shop"), question)
}

fn fallen(question: &str, served: u32) -> Fallen {
    Fallen {
        key: key(question),
        question: question.into(),
        vector: [1.0].into(),
        answer: answer("before"),
        origin: turn("c0", "t0", question).key(),
        refreshed: false,
        created_ms: 7,
        served,
    }
}

fn refresh(limits: RefreshLimits) -> Refresh {
    Refresh::new(limits)
}

fn next(refresh: &mut Refresh) -> Option<Box<Ask>> {
    refresh.next(0, |_| false)
}

fn article() -> ArticleId {
    ArticleId::new("a").expect("an id")
}

/// What commit gives out for a question, with an entry when the answer is grounded.
fn resolution(question: &str, answer: Arc<Answer>) -> Resolution {
    let kept = entry(9, scope("shop"), question, Some(vec![1.0]));
    let entry =
        answer.grounded.then(|| Box::new(CacheEntry { answer: answer.clone(), about: Some(article()), ..kept }));
    let origin = turn("c0", "t0", question).key();
    let basis = Some(basis(&[1.0]));
    let question_of = question.to_owned();
    let settled = Settled {
        answer,
        origin,
        refreshed: false,
        question: question_of,
        writer: None,
        cost_micros: 60,
        basis,
        entry,
    };
    Resolution { purpose: Purpose::Refresh, key: key(question), result: Some(settled), failures: 0, error: None }
}

fn answered(refresh: &mut Refresh, question: &str, answer: Arc<Answer>) -> Option<Proposal> {
    refresh.answered(resolution(question, answer), |_| false)
}

#[test]
fn a_question_is_asked_again_as_a_turn_that_nobody_waits_for() {
    let mut refresh = refresh(LIMITS);
    refresh.fell(fallen("Where is it?", 1));
    let ask = next(&mut refresh).expect("popular enough");
    assert_eq!(
        (ask.purpose, ask.key.clone(), ask.turn.key()),
        (Purpose::Refresh, key("where is it"), turn("c0", "t0", "").key())
    );
    assert_eq!((ask.vector.as_deref(), ask.turn.at_ms), (Some(&[1.0][..]), 7));
    assert!(!ask.may_read_cache() && ask.may_write_cache() && !ask.leads && !ask.started);
}

#[test]
fn the_least_popular_is_let_go() {
    let mut refresh = refresh(LIMITS);
    for (question, served) in [("a", 1), ("b", 3), ("c", 0), ("d", 2), ("a", 5), ("e", 3), ("f", 1)] {
        refresh.fell(fallen(question, served));
    }
    let RefreshStats { queued, dropped, .. } = refresh.stats();
    assert_eq!((queued, dropped), (3, 2), "c is not popular enough; d and f found no room");
    for expected in ["a", "b", "e"] {
        let ask = next(&mut refresh).expect("one waits");
        assert_eq!(ask.turn.text, expected);
        assert!(next(&mut refresh).is_none(), "one at a time");
        assert!(
            answered(&mut refresh, expected, Arc::new(Answer { grounded: false, ..(*answer("no")).clone() })).is_none()
        );
    }
    assert!(next(&mut refresh).is_none());
}

#[test]
fn what_a_turn_answered_meanwhile_is_let_go() {
    let mut refresh = refresh(LIMITS);
    refresh.fell(fallen("a", 1));
    refresh.fell(fallen("b", 1));
    let ask = refresh.next(0, |asked| *asked == key("a")).expect("b waits");
    assert_eq!(ask.turn.text, "b");
    assert!(refresh.answered(resolution("b", answer("new")), |asked| *asked == key("b")).is_none());
    let stats = refresh.stats();
    assert_eq!((stats.dropped, stats.answers, stats.refreshed, refresh.pending()), (2, 1, 0, 0));
    assert_eq!((stats.input_tokens, stats.output_tokens, stats.cost_micros), (10, 5, 60), "it was paid for");
}

#[test]
fn an_answer_that_is_as_before_lives_again() {
    for (text, flagged_before, refreshed, unchanged) in
        [("before", false, false, 1), ("after", false, true, 0), ("before", true, true, 1)]
    {
        let mut refresh = refresh(LIMITS);
        refresh.fell(Fallen { refreshed: flagged_before, ..fallen("q", 5) });
        next(&mut refresh).expect("popular enough");
        let proposal = answered(&mut refresh, "q", answer(text)).expect("grounded");
        let entry = proposal.entry.as_ref().expect("to be kept");
        assert_eq!((entry.refreshed, proposal.history.served, proposal.stored), (refreshed, 3, false), "{text}");
        refresh.resolved(&proposal.resolution.expect("to be told"));
        let stats = refresh.stats();
        assert_eq!((stats.refreshed, stats.unchanged, refresh.pending()), (1, unchanged, 0), "{text}");
    }
}

#[test]
fn an_answer_that_falls_while_it_is_made_is_tried_again_a_few_times() {
    let fails = |refresh: &mut Refresh| {
        next(refresh).expect("to be tried");
        refresh.resolved(&resolution("q", answer("late")).without_answer());
    };
    let mut refresh = refresh(LIMITS);
    refresh.fell(fallen("q", 1));
    fails(&mut refresh);
    assert_eq!(refresh.stats().queued, 1);
    fails(&mut refresh);
    assert_eq!((refresh.pending(), refresh.stats().dropped), (0, 1));
    // A turn's answer to the same falls while it is under way: a new reason, new tries, and still one at a time.
    refresh.fell(fallen("q", 1));
    fails(&mut refresh);
    next(&mut refresh).expect("to be tried");
    refresh.fell(fallen("q", 4));
    assert_eq!((refresh.stats().queued, refresh.stats().in_flight), (0, 1));
    refresh.resolved(&resolution("q", answer("late")).without_answer());
    fails(&mut refresh);
    assert_eq!((refresh.pending(), refresh.stats().dropped), (0, 2));
    // A tier that fails is not asked again.
    refresh.fell(fallen("q", 1));
    next(&mut refresh).expect("popular enough");
    assert!(refresh.answered(resolution("q", answer("x")).without_answer(), |_| false).is_none());
    assert_eq!((refresh.pending(), refresh.stats().dropped), (0, 3));
}

#[test]
fn the_oldest_epoch_is_that_of_what_is_under_way() {
    let mut refresh = refresh(RefreshLimits { in_flight_max: 2, ..LIMITS });
    assert_eq!(refresh.oldest_epoch(), None);
    refresh.fell(fallen("a", 1));
    refresh.fell(fallen("b", 1));
    refresh.next(3, |_| false).expect("a");
    refresh.next(5, |_| false).expect("b");
    assert_eq!(refresh.oldest_epoch(), Some(3));
    refresh.resolved(&resolution("a", answer("new")));
    assert_eq!(refresh.oldest_epoch(), Some(5));
}

#[test]
fn a_keeper_tells_how_popular_it_was_and_a_turns_answer_comes_first() {
    let limits = ShardLimits { bytes_max: usize::MAX, tenant_bytes_max: usize::MAX, ttl_ms: None, similar: true };
    let shard = Rc::new(RefCell::new(Shard::new(limits, policy(0.9))));
    let mut keeper = Keeper::new(shard.clone());
    let propose = |keeper: &mut Keeper, id: u64, purpose: Purpose, served: u32| {
        let entry = CacheEntry { about: Some(article()), ..entry(id, scope("shop"), "q", Some(vec![1.0])) };
        let (tenant, basis) = (entry.origin.tenant.clone(), basis(&[1.0]));
        let resolution = Some(Resolution { purpose, ..resolution("q", answer("x")) });
        let history = EntryHistory { served, ..EntryHistory::default() };
        let proposal = Proposal { tenant, basis, entry: Some(Box::new(entry)), stored: false, history, resolution };
        keeper.propose(proposal, id);
        keeper.pass(|_| true);
        keeper.take_effects()
    };
    assert_eq!(propose(&mut keeper, 1, Purpose::Turn, 0).kept.len(), 1);
    let effects = propose(&mut keeper, 2, Purpose::Refresh, 0);
    assert!(effects.kept.is_empty() && effects.resolved[0].result.is_none() && effects.withdrawn.len() == 1);
    assert_eq!(shard.borrow_mut().exact(&key("q"), 0).map(|entry| entry.id), Some(EntryId(1)));
    keeper.fall(0, 5).expect("it was served");
    let fell = keeper.take_effects().fallen;
    assert_eq!(fell.iter().map(|fell| fell.served).collect::<Vec<_>>(), [1]);
    assert_eq!(propose(&mut keeper, 3, Purpose::Refresh, 7).kept.len(), 1);
    shard.borrow_mut().served(EntryId(3));
    keeper.fall(2, 6).expect("it was served");
    assert_eq!(keeper.take_effects().fallen[0].served, 8, "what it had before counts");
    assert_eq!(propose(&mut keeper, 4, Purpose::Turn, 0).kept.len(), 1);
    keeper.fall(3, 7).expect("it was there");
    assert_eq!(keeper.take_effects().fallen[0].served, 0, "nobody was served");
}

proptest! {
    /// The queue agrees with a plain map: the most popular of the questions that fell leave first, and no more wait than may.
    #[test]
    fn the_queue_agrees_with_a_map(falls in prop::collection::vec((0u8..8, 1u32..6), 0..60), queue_max in 1usize..6) {
        let mut refresh = refresh(RefreshLimits { queue_max, ..LIMITS });
        let mut reference: BTreeMap<String, (u32, usize)> = BTreeMap::new();
        for (place, (which, served)) in falls.into_iter().enumerate() {
            let question = format!("q{which}");
            refresh.fell(fallen(&question, served));
            let before = reference.get(&question).map_or(0, |(served, _)| *served);
            reference.insert(question, (served.max(before), place));
            if reference.len() > queue_max {
                let least = reference.iter().min_by_key(|(_, (served, place))| (*served, std::cmp::Reverse(*place)));
                let least = least.expect("too many").0.clone();
                reference.remove(&least);
            }
        }
        let mut expected: Vec<_> = reference.into_iter().collect();
        expected.sort_by_key(|(_, (served, place))| (std::cmp::Reverse(*served), *place));
        for (question, _) in expected {
            prop_assert_eq!(&next(&mut refresh).expect("one waits").turn.text, &question);
            refresh.resolved(&resolution(&question, answer("new")));
        }
        prop_assert!(next(&mut refresh).is_none());
    }
}
