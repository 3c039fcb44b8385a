//! The caches of one worker: what is remembered, for how long, and who gets it.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use support::{answer, ask, basis, entry, numbers, policy, scope, turn};
use turnflow_operators::Stage;
use turnflow_operators::audit::Tested;
use turnflow_operators::bound::Strictness;
use turnflow_operators::dedupe::{Boxes, Dedupe, Settle};
use turnflow_operators::flights::ToFlights;
use turnflow_operators::lookup::Search;
use turnflow_operators::message::{
    Ask, Basis, Ended, Ending, Found, Outcome, Purpose, Query, QuestionKey, RequestId, Resolution, Settled, Settlement,
    Step,
};
use turnflow_operators::selection::Selection;
use turnflow_operators::shard::{Forgotten, Shard, ShardLimits};
use turnflow_operators::validity::keeper::{Effects, Keeper, Proposal};
use turnflow_state::{
    Answer, CacheControl, CacheEntry, CacheLevel, EntryHistory, EntryId, TenantId, TurnError, TurnErrorKind, TurnEvent,
};

const UNLIMITED: ShardLimits =
    ShardLimits { bytes_max: usize::MAX, tenant_bytes_max: usize::MAX, ttl_ms: None, similar: true };

fn insert(shard: &mut Shard, entry: CacheEntry) -> Vec<Forgotten> {
    let (claim, basis) = (entry.id.0, basis(entry.vector.as_deref().unwrap_or_default()));
    shard.insert(entry, claim, basis, Arc::new([])).expect("fits")
}

fn shard_of(entries: Vec<CacheEntry>) -> Rc<RefCell<Shard>> {
    let mut shard = Shard::new(UNLIMITED, policy(0.9));
    for entry in entries {
        insert(&mut shard, entry);
    }
    Rc::new(RefCell::new(shard))
}

/// Dedupe and settle, with a keeper that believes everything or nothing.
struct Together {
    dedupe: Dedupe,
    settle: Settle,
    keeper: Keeper,
    boxes: Boxes,
    out: Vec<Step>,
    /// How often tiers have failed at the questions that are settled.
    failures: u8,
    /// Why the next question to be settled is given up for all.
    error: Option<TurnError>,
}

impl Together {
    fn new() -> Self {
        let (shard, boxes) = (shard_of(Vec::new()), Boxes::default());
        Self {
            dedupe: Dedupe::new(shard.clone(), boxes.clone(), true),
            settle: Settle(boxes.clone()),
            keeper: Keeper::new(shard),
            boxes,
            out: Vec::new(),
            failures: 0,
            error: None,
        }
    }

    fn ask(&mut self, number: u64, question: &str) -> Vec<Step> {
        self.dedupe.push(ask(number, &number.to_string(), "1", question), number, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn settle(&mut self, question: &str, result: Option<(u64, Arc<Answer>)>) -> Vec<Step> {
        let key = QuestionKey::new(scope("shop"), question);
        let result = result.map(|(id, answer)| Settled {
            answer,
            origin: turn("a", "1", question).key(),
            refreshed: false,
            question: question.into(),
            writer: None,
            cost_micros: 0,
            basis: Some(basis(&[1.0])),
            entry: Some(Box::new(entry(id, scope("shop"), question, Some(vec![1.0])))),
        });
        let ended = Ended::new(&ask(1, "a", "1", question), TurnEvent::Accepted, None);
        let mut told = Vec::new();
        let (failures, error) = (self.failures, self.error.take());
        let resolution = Resolution { purpose: Purpose::Turn, key, result, failures, error };
        self.settle.push(Box::new(Settlement { resolution, ended: Some(ended) }), 0, &mut told);
        assert_eq!(told.len(), 1, "the turn that led does not wait for the others");
        self.dedupe.poll(0, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn judge(&mut self, holds: bool) -> (Vec<Step>, Effects) {
        while let Some(proposal) = self.boxes.proposals.take() {
            self.keeper.propose(proposal, 1);
        }
        if !holds {
            (0..10).for_each(|claim| assert_eq!(self.keeper.fall(claim, 1), None, "it was never served"));
        }
        self.keeper.pass(|_| true);
        let mut effects = self.keeper.take_effects(|_| true);
        effects.resolved.drain(..).for_each(|resolution| self.boxes.resolved.send(resolution));
        self.dedupe.poll(9, &mut self.out);
        (std::mem::take(&mut self.out), effects)
    }
}

fn verdict_of(step: &Step) -> CacheLevel {
    match step {
        Err(Outcome { ending: Ending::Served(served), .. }) => served.verdict.level,
        other => panic!("{other:?}"),
    }
}

#[test]
fn dedupe_serves_the_same_words_in_the_same_scope_only() {
    let shard = shard_of(vec![entry(1, scope("shop"), "Where is my order?", None)]);
    let mut dedupe = Dedupe::new(shard, Boxes::default(), true);
    let mut out = Vec::new();
    dedupe.push(ask(1, "a", "1", "  where is MY order"), 0, &mut out);
    assert_eq!(verdict_of(&out[0]), CacheLevel::Exact);
    let mut elsewhere = ask(2, "a", "2", "where is my order");
    elsewhere.key = QuestionKey::new(scope("other"), &elsewhere.turn.text);
    dedupe.push(elsewhere, 0, &mut out);
    assert!(out[1].is_ok(), "another scope is another world");
    let mut bypass = ask(3, "a", "3", "where is my order");
    bypass.turn.cache_control = CacheControl::Bypass;
    dedupe.push(bypass, 0, &mut out);
    assert!(out[2].as_ref().is_ok_and(|ask| !ask.leads));
}

#[test]
fn dedupe_has_those_who_wait_hear_the_turn_that_leads() {
    let mut all = Together::new();
    let heard = |boxes: &Boxes| -> Vec<(u64, u64)> {
        let word = std::iter::from_fn(|| boxes.word.take());
        word.filter_map(|to| match to {
            ToFlights::Listener { leader, listener, .. } => Some((leader.number, listener.request.number)),
            ToFlights::Landed(_) | ToFlights::Turn(_) => None,
        })
        .collect()
    };
    (1..4).for_each(|number| drop(all.ask(number, "is tea sold loose?")));
    assert_eq!(heard(&all.boxes), [(1, 2), (1, 3)]);
    assert_eq!(numbers(&all.settle("is tea sold loose?", None)), [2], "the first of them leads");
    assert_eq!(heard(&all.boxes), [(2, 3)]);
}

#[test]
fn dedupe_has_the_one_with_the_most_time_try_again() {
    let mut all = Together::new();
    drop(all.ask(1, "is tea sold loose?"));
    for (number, deadline_us) in [(2, Some(5)), (3, Some(7)), (4, Some(7)), (5, Some(6))] {
        let ask = Box::new(Ask { deadline_us, ..*ask(number, &number.to_string(), "1", "is tea sold loose?") });
        all.dedupe.push(ask, 1, &mut all.out);
    }
    assert_eq!(numbers(&all.settle("is tea sold loose?", None)), [3]);
}

#[test]
fn dedupe_lets_nobody_try_again_where_that_is_hopeless() {
    let mut all = Together::new();
    (1..4).for_each(|number| drop(all.ask(number, "is tea sold loose?")));
    all.error = Some(TurnError::new(TurnErrorKind::Internal, "no answer could be written"));
    let out = all.settle("is tea sold loose?", None);
    assert_eq!((numbers(&out), all.dedupe.held(), all.dedupe.in_flight()), (vec![2, 3], 0, 0));
    assert!(out.iter().all(|step| matches!(step, Err(Outcome { ending: Ending::Failed(_), .. }))), "{out:?}");
}

#[test]
fn dedupe_answers_identical_questions_once() {
    let mut all = Together::new();
    let led = all.ask(1, "is tea sold loose?");
    assert!(led[0].as_ref().is_ok_and(|ask| ask.leads));
    assert!(all.ask(2, "is tea sold loose?").is_empty() && all.ask(3, "Is tea sold loose").is_empty());
    assert_eq!(all.dedupe.held(), 2);
    assert!(all.settle("is tea sold loose?", Some((7, answer("yes")))).is_empty(), "nobody has looked at it yet");
    assert!(all.ask(4, "is tea sold loose?").is_empty(), "an answer that is pending is not served");
    let (out, effects) = all.judge(true);
    assert_eq!(numbers(&out), [2, 3, 4]);
    let levels: Vec<_> = out.iter().map(verdict_of).collect();
    assert_eq!(levels, [CacheLevel::Joined, CacheLevel::Joined, CacheLevel::Exact], "the last came after the answer");
    assert_eq!(effects.kept.len(), 1);
    assert_eq!(all.dedupe.held(), 0);
    assert_eq!(verdict_of(&all.ask(5, "Is tea sold loose")[0]), CacheLevel::Exact);
}

#[test]
fn who_waits_for_the_same_question_waits_no_longer_than_its_deadline() {
    let mut all = Together::new();
    all.ask(1, "q");
    for (number, deadline_us) in [(2, Some(100)), (3, None), (4, Some(300))] {
        let ask = Box::new(Ask { deadline_us, ..*ask(number, &number.to_string(), "1", "q") });
        all.dedupe.push(ask, number, &mut all.out);
    }
    all.settle("q", Some((7, answer("yes"))));
    all.ask(5, "q");
    assert_eq!(all.dedupe.due_us(), Some(100));
    all.dedupe.poll(101, &mut all.out);
    match &all.out[..] {
        [Err(Outcome { ask, ending: Ending::Failed(error) })] => {
            assert_eq!((ask.request.number, error.kind), (2, TurnErrorKind::Late));
        }
        other => panic!("{other:?}"),
    }
    all.out.clear();
    assert_eq!((all.dedupe.due_us(), all.dedupe.held()), (Some(300), 3));
    let (out, _) = all.judge(true);
    assert_eq!(numbers(&out), [3, 4, 5]);
    let levels: Vec<_> = out.iter().map(verdict_of).collect();
    assert_eq!(levels, [CacheLevel::Joined, CacheLevel::Joined, CacheLevel::Exact], "the last came after the answer");
}

#[test]
fn those_who_wait_do_not_get_an_answer_that_fell() {
    let mut all = Together::new();
    all.ask(1, "q");
    all.ask(2, "q");
    all.ask(3, "q");
    assert!(all.settle("q", Some((7, answer("old")))).is_empty());
    let (out, effects) = all.judge(false);
    assert_eq!(numbers(&out), [2], "the first who waits answers it anew");
    assert!(out[0].as_ref().is_ok_and(|ask| ask.leads) && effects.kept.is_empty());
    assert_eq!(all.keeper.stats().late, 1);
    assert!(all.settle("q", Some((8, answer("new")))).is_empty());
    let (out, effects) = all.judge(true);
    assert_eq!(numbers(&out), [3]);
    assert_eq!((verdict_of(&out[0]), effects.kept[0].id), (CacheLevel::Joined, EntryId(8)));
}

#[test]
fn whoever_comes_after_an_answer_fell_does_not_join_those_who_got_it() {
    let mut all = Together::new();
    all.ask(1, "q");
    all.ask(2, "q");
    all.settle("q", Some((7, answer("old"))));
    while let Some(proposal) = all.boxes.proposals.take() {
        all.keeper.propose(proposal, 1);
    }
    all.keeper.pass(|_| true);
    all.keeper.take_effects(|_| true).resolved.into_iter().for_each(|resolution| all.boxes.resolved.send(resolution));
    // Before dedupe hears that the answer holds, a change takes it away again, and is acknowledged.
    assert!(all.keeper.fall(0, 5).is_some());
    let out = all.ask(3, "q");
    assert_eq!(numbers(&out), [2, 3]);
    assert_eq!(verdict_of(&out[0]), CacheLevel::Joined);
    assert!(out[1].as_ref().is_ok_and(|ask| ask.leads), "it is answered anew");
}

#[test]
fn dedupe_has_an_heir_when_the_first_fails() {
    let mut all = Together::new();
    for number in 1..=3 {
        all.ask(number, "q");
    }
    for (failures, expected) in [(0, vec![2]), (1, vec![3]), (1, vec![])] {
        all.failures = failures;
        let out = all.settle("q", None);
        assert_eq!(numbers(&out), expected);
        let leads = |step: &Step| step.as_ref().is_ok_and(|ask| ask.leads && ask.failures == failures);
        assert!(out.iter().all(leads), "it knows of the failures before it: {out:?}");
    }
    assert_eq!(numbers(&all.ask(4, "q")), [4], "after all have failed the question is free again");
}

#[test]
fn dedupe_lets_a_reader_join_but_not_lead() {
    let mut dedupe = Dedupe::new(shard_of(Vec::new()), Boxes::default(), true);
    let reader = |number: u64| {
        let mut ask = ask(number, &number.to_string(), "1", "q");
        ask.turn.cache_control = CacheControl::ReadOnly;
        ask
    };
    let mut out = Vec::new();
    dedupe.push(reader(1), 0, &mut out);
    dedupe.push(ask(2, "2", "1", "q"), 0, &mut out);
    dedupe.push(reader(3), 0, &mut out);
    let leads: Vec<_> = out.iter().map(|step| step.as_ref().expect("goes on").leads).collect();
    assert_eq!(leads, [false, true]);
    assert_eq!(dedupe.held(), 1);
}

#[test]
fn a_kept_answer_that_falls_is_gone_at_once() {
    let shard = shard_of(Vec::new());
    let mut keeper = Keeper::new(shard.clone());
    let entry = entry(1, scope("shop"), "q", Some(vec![1.0]));
    let (tenant, origin) = (entry.origin.tenant.clone(), entry.origin.clone());
    let entry = Some(Box::new(entry));
    let history = EntryHistory::default();
    keeper.propose(Proposal { tenant, basis: basis(&[1.0]), entry, stored: false, history, resolution: None }, 1);
    keeper.pass(|&epoch| epoch < 1);
    assert!(shard.borrow().is_empty() && keeper.is_waiting(), "pending");
    keeper.pass(|&epoch| epoch < 2);
    assert_eq!((shard.borrow().len(), keeper.entry_of(0)), (1, Some(EntryId(1))));
    let invalidated = keeper.fall(0, 5).expect("it was served");
    assert_eq!((invalidated.entry, invalidated.origin), (EntryId(1), origin));
    assert!(shard.borrow().is_empty());
    assert_eq!(keeper.fall(0, 5), None, "it falls once");
    let effects = keeper.take_effects(|_| true);
    assert_eq!((effects.forgotten, effects.withdrawn.len()), (vec![EntryId(1)], 1));
}

/// Has a keeper keep an answer to the question of a number, which is also its entry's.
fn keeps(keeper: &mut Keeper, id: u64) {
    let entry = entry(id, scope("shop"), &format!("question {id}"), Some(vec![1.0]));
    let (tenant, history) = (entry.origin.tenant.clone(), EntryHistory::default());
    let entry = Some(Box::new(entry));
    keeper.propose(Proposal { tenant, basis: basis(&[1.0]), entry, stored: false, history, resolution: None }, 1);
    keeper.pass(|_| true);
}

#[test]
fn what_falls_entail_comes_bit_by_bit_when_their_epoch_has_passed() {
    let shard = shard_of(Vec::new());
    let mut keeper = Keeper::new(shard.clone());
    (0..200).for_each(|id| keeps(&mut keeper, id));
    assert_eq!(keeper.take_effects(|_| true).kept.len(), 200);
    (0..200).for_each(|claim| drop(keeper.fall(claim, 5).expect("it was served")));
    let key = |id: u64| QuestionKey::new(scope("shop"), &format!("question {id}"));
    {
        let mut shard = shard.borrow_mut();
        assert_eq!((shard.len(), shard.bytes()), (0, 0));
        assert!(!shard.contains(&key(7)) && shard.exact(&key(7), 0).is_none());
        assert!(shard.nearest(scope("shop"), &[1.0], 4, 0).is_empty());
    }
    keeps(&mut keeper, 200);
    let before = keeper.take_effects(|&epoch| epoch < 5);
    assert_eq!((before.kept.len(), before.forgotten.len(), keeper.owed_since()), (1, 0, Some(5)));
    let mut forgotten = Vec::new();
    while keeper.owed() > 0 {
        let effects = keeper.take_effects(|&epoch| epoch < 6);
        assert!(effects.withdrawn.len() == effects.fallen.len() && effects.fallen.len() < 200, "some at a time");
        forgotten.extend(effects.forgotten);
    }
    forgotten.sort();
    assert!(forgotten.into_iter().eq((0..200).map(EntryId)));
    assert!(shard.borrow().len() == 1 && shard.borrow_mut().exact(&key(200), 0).is_some());
}

#[test]
fn what_fell_first_is_cleared_up_first_whatever_came_first() {
    let mut keeper = Keeper::new(shard_of(Vec::new()));
    (0..3).for_each(|id| keeps(&mut keeper, id));
    // Of the falls of an epoch some come behind those of the next.
    for (claim, epoch) in [(0, 5), (1, 6), (2, 5)] {
        keeper.fall(claim, epoch).expect("it was served");
    }
    let cleared = |keeper: &mut Keeper, passed: u64| {
        let mut forgotten = keeper.take_effects(|&epoch| epoch < passed).forgotten;
        forgotten.sort();
        (forgotten, keeper.owed(), keeper.owed_since())
    };
    assert_eq!((keeper.owed(), keeper.owed_since()), (3, Some(5)));
    assert_eq!(cleared(&mut keeper, 6), (vec![EntryId(0), EntryId(2)], 1, Some(6)));
    assert_eq!(cleared(&mut keeper, 7), (vec![EntryId(1)], 0, None));
}

#[test]
fn what_fell_takes_nobodys_place() {
    let three =
        shard_of((0..3).map(|id| entry(id, scope("shop"), &format!("question {id}"), Some(vec![1.0]))).collect());
    let limits = ShardLimits { bytes_max: three.borrow().bytes(), ..UNLIMITED };
    let shard = Rc::new(RefCell::new(Shard::new(limits, policy(0.9))));
    let mut keeper = Keeper::new(shard.clone());
    (0..3).for_each(|id| keeps(&mut keeper, id));
    keeper.fall(0, 5).expect("it was served");
    // Not cleared up yet, it is neither in the way nor the next to go.
    (3..5).for_each(|id| keeps(&mut keeper, id));
    let is_there = |id: u64| shard.borrow().get(EntryId(id)).is_some();
    assert_eq!([0, 1, 2, 3, 4].map(is_there), [false, false, true, true, true]);
    let mut forgotten = keeper.take_effects(|_| true).forgotten;
    forgotten.sort();
    assert_eq!(forgotten, [EntryId(0), EntryId(1)]);
}

#[test]
fn a_flush_takes_what_is_kept_what_is_pending_and_what_is_being_written() {
    let shard = shard_of(Vec::new());
    let mut keeper = Keeper::new(shard.clone());
    let proposal = |id: u64, question: &str, valid_at: u64| {
        let entry = entry(id, scope("shop"), question, Some(vec![1.0]));
        let (tenant, basis) = (entry.origin.tenant.clone(), Basis { valid_at, ..basis(&[1.0]) });
        let history = EntryHistory::default();
        Proposal { tenant, basis, entry: Some(Box::new(entry)), stored: false, history, resolution: None }
    };
    for (id, question) in [(1, "kept"), (2, "kept too"), (3, "something else")] {
        keeper.propose(proposal(id, question, 4), 1);
    }
    keeper.pass(|_| true);
    keeper.propose(proposal(4, "kept soon", 4), 2);
    let tenant = proposal(0, "", 0).tenant;
    assert_eq!(keeper.flush(&Selection::all(tenant.clone()).text("Kept"), 5), 2);
    keeper.pass(|_| true);
    let questions: Vec<_> =
        shard.borrow().select(&Selection::all(tenant)).map(|entry| entry.question.clone()).collect();
    assert_eq!(questions, ["something else"]);
    let Effects { mut forgotten, withdrawn, .. } = keeper.take_effects(|_| true);
    forgotten.sort();
    assert_eq!((forgotten, withdrawn.len()), (vec![EntryId(1), EntryId(2)], 3));
    let admitted = |keeper: &mut Keeper, question, valid_at| keeper.admit(proposal(5, question, valid_at)).is_some();
    assert!(!admitted(&mut keeper, "kept late", 4), "it was made before the flush");
    assert!(admitted(&mut keeper, "kept anew", 5) && admitted(&mut keeper, "another", 4));
}

/// A unit vector at an angle, so that cosines are easy to say.
fn at(degrees: f32) -> Vec<f32> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    vec![cos, sin]
}

fn found_by(shard: &Rc<RefCell<Shard>>, text: &str, degrees: f32) -> Found {
    let mut search = Search::new(shard.clone());
    let request = RequestId { worker: 0, number: 1 };
    let question = shard.borrow().policy().prepare(text, None, None);
    let (scope, vector, strictness) = (scope("shop"), at(degrees).into(), Strictness::CALIBRATED);
    let query = Query { request, asker: 0, scope, question, vector, at_ms: 0, made_since_ms: 0, strictness };
    let mut out = Vec::new();
    search.push(Box::new(query), 0, &mut out);
    out.pop().expect("one reply to one query")
}

#[test]
fn search_serves_the_nearest_that_mentions_the_same() {
    let shop = scope("shop");
    let shard = shard_of(vec![
        entry(1, shop, "where is order 41", Some(at(0.0))),
        entry(2, shop, "where is order 42", Some(at(10.0))),
        entry(3, shop, "where is my order", Some(at(2.0))),
        entry(4, scope("other"), "where is order 42", Some(at(0.0))),
    ]);
    let hit = |found: &Found| found.hit.as_ref().map(|hit| hit.entry.0);
    assert_eq!(hit(&found_by(&shard, "order 42, where?", 0.0)), Some(2), "a nearer one mentions another order");
    assert_eq!(hit(&found_by(&shard, "my order where?", 0.0)), Some(3));
    let none = found_by(&shard, "where is order 43", 0.0);
    assert_eq!(hit(&none), None);
    let (similarity, reason) = none.near_miss.expect("the nearest is named");
    assert!(similarity > 0.999 && reason.contains("43") && reason.contains("41"), "{reason}");
    assert_eq!(hit(&found_by(&shard, "order 42", 60.0)), None, "too far");
}

#[test]
fn a_hit_holds_at_the_epoch_that_the_shard_is_known_to_be_valid_at() {
    let shard = shard_of(vec![entry(1, scope("shop"), "q", Some(at(0.0)))]);
    shard.borrow_mut().set_valid_at(42);
    let hit = found_by(&shard, "q", 0.0).hit.expect("near");
    assert_eq!(hit.basis.valid_at, 42);
}

#[test]
fn what_is_not_kept_of_an_entry_takes_no_place_of_what_is() {
    const EACH: u64 = 64;
    let entries = (0..2 * EACH).map(|id| entry(id, scope("t"), &format!("question {id}"), None)).collect();
    let shard = shard_of(entries);
    let mut shard = shard.borrow_mut();
    for id in 0..2 * EACH {
        shard.tested(Tested { entry: EntryId(id), agreed: Some(id < EACH) }).expect("it is there");
    }
    let kept: BTreeSet<EntryId> = std::iter::from_fn(|| Some(shard.take_changed(1)).filter(|batch| !batch.is_empty()))
        .flatten()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(kept, (0..EACH).map(EntryId).collect());
}

#[test]
fn an_answer_that_is_too_old_is_not_served() {
    let mut shard = Shard::new(ShardLimits { ttl_ms: Some(100), ..UNLIMITED }, policy(0.9));
    insert(&mut shard, entry(50, scope("shop"), "q", Some(at(0.0))));
    let key = QuestionKey::new(scope("shop"), "q");
    assert!(shard.exact(&key, 149).is_some());
    assert_eq!(shard.nearest(scope("shop"), &at(1.0), 5, 149).len(), 1);
    assert!(shard.take_expired().is_empty());
    assert_eq!(shard.nearest(scope("shop"), &at(1.0), 5, 150).len(), 0);
    assert!(shard.exact(&key, 150).is_none());
    let expired = shard.take_expired();
    assert_eq!(expired.iter().map(|forgotten| forgotten.entry).collect::<Vec<_>>(), [EntryId(50)]);
    assert!(shard.is_empty());
}

#[test]
fn a_tenant_that_is_full_makes_room_for_itself_only() {
    let one = entry(11, scope("shop"), "question 1", None);
    let bytes = one.weight_bytes();
    let mut shard =
        Shard::new(ShardLimits { tenant_bytes_max: 2 * bytes, bytes_max: 3 * bytes, ..UNLIMITED }, policy(0.9));
    let mut other = entry(10, scope("other"), "question 9", None);
    other.origin.tenant = TenantId::new("othr").expect("an id");
    insert(&mut shard, other.clone());
    insert(&mut shard, one);
    insert(&mut shard, entry(12, scope("shop"), "question 2", None));
    let gone = insert(&mut shard, entry(13, scope("shop"), "question 3", None));
    assert_eq!(gone.iter().map(|forgotten| forgotten.entry.0).collect::<Vec<_>>(), [11], "the tenant's own oldest");
    other.id = EntryId(20);
    other.question = "question 8".into();
    let gone = insert(&mut shard, other);
    assert_eq!(gone.iter().map(|forgotten| forgotten.entry.0).collect::<Vec<_>>(), [10], "everybody's oldest");
    assert_eq!(shard.bytes(), 3 * bytes);
    let huge = entry(4, scope("shop"), &"x".repeat(4 * bytes), None);
    let gone = insert(&mut shard, huge);
    assert!(gone.iter().any(|forgotten| forgotten.entry == EntryId(4)), "what is too large itself is not kept");
    assert!(shard.bytes() <= 3 * bytes);
}

/// The reference of a shard: a list, least recently served first.
#[derive(Default)]
struct ListShard(Vec<(u64, String)>);

impl ListShard {
    fn touch(&mut self, at: usize) -> u64 {
        let one = self.0.remove(at);
        let id = one.0;
        self.0.push(one);
        id
    }

    fn insert(&mut self, id: u64, question: &str, max: usize) {
        self.0.retain(|(_, known)| known != question);
        if self.0.len() == max {
            self.0.remove(0);
        }
        self.0.push((id, question.into()));
    }
}

proptest! {
    /// A shard agrees with a plain list on what it remembers, and tells everything that it forgets.
    #[test]
    fn shard_agrees_with_a_list(max in 1usize..6, operations in prop::collection::vec((0u8..3, 0u64..8), 1..80)) {
        let bytes = entry(0, scope("shop"), "question 1", Some(at(0.0))).weight_bytes();
        // Answers and turns name their entries, whose numbers have up to two digits.
        let mut shard = Shard::new(ShardLimits { bytes_max: max * (bytes + 2), ..UNLIMITED }, policy(0.9));
        let mut list = ListShard::default();
        let mut alive: BTreeMap<u64, String> = BTreeMap::new();
        for (next, (operation, choice)) in operations.into_iter().enumerate() {
            let question = format!("question {choice}");
            let key = QuestionKey::new(scope("shop"), &question);
            match operation {
                0 => {
                    let id = next as u64;
                    let degrees = choice as f32 * 20.0;
                    for gone in insert(&mut shard, entry(id, scope("shop"), &question, Some(at(degrees)))) {
                        prop_assert!(alive.remove(&gone.entry.0).is_some());
                        prop_assert_eq!(gone.claim, gone.entry.0);
                    }
                    alive.insert(id, question.clone());
                    list.insert(id, &question, max);
                }
                1 => {
                    let expected = list.0.iter().position(|(_, known)| *known == question).map(|at| list.touch(at));
                    prop_assert_eq!(shard.exact(&key, 0).map(|entry| entry.id.0), expected);
                }
                _ => {
                    let id = list.0.iter().find(|(_, known)| *known == question).map(|(id, _)| *id);
                    if let Some(id) = id {
                        prop_assert!(shard.remove(EntryId(id)).is_some());
                        alive.remove(&id);
                        list.0.retain(|(known, _)| *known != id);
                    }
                }
            }
            let mut expected: Vec<u64> = list.0.iter().map(|(id, _)| *id).collect();
            expected.sort_unstable();
            prop_assert_eq!(alive.keys().copied().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(shard.len(), expected.len());
            let near = shard.nearest(scope("shop"), &at(30.0), 100, 0);
            let mut near: Vec<u64> = near.iter().map(|(entry, _)| entry.id.0).collect();
            near.sort_unstable();
            prop_assert_eq!(near, expected);
        }
    }
}
