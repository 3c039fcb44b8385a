//! The cores, without a dataflow: tables, and property tests against slow and obvious references. The caches are in
//! `caches.rs`.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use support::{answer, ask, basis, generate, numbers, policy, turn};
use turnflow_models::{Lane, ModelError, RemoteFault, TierRequest};
use turnflow_operators::Stage;
use turnflow_operators::audience::Audiences;
use turnflow_operators::audit::Record;
use turnflow_operators::commit::{EntryNumbers, Price};
use turnflow_operators::generate::{Generated, Generator};
use turnflow_operators::jobs::Report;
use turnflow_operators::lookup::{Gather, ToGather};
use turnflow_operators::message::{Ask, Candidate, Ending, Found, Outcome, RequestId, ToCommit};
use turnflow_operators::recall::{Memory, Recall, RecallLimits, Release, leans};
use turnflow_operators::shell::{Mailbox, Wake};
use turnflow_state::{
    CacheLevel, Completion, Conversation, ConversationId, EntryId, HitEvidence, StageLatencies, StateError, TenantId,
    Tier, TierSize, Turn, TurnErrorKind, TurnKey, TurnRecord, Usage, Verdict,
};

fn record(turn: Turn) -> TurnRecord {
    let verdict = Verdict::new(CacheLevel::Miss, "");
    let completion = Completion {
        text: format!("answer to {}", turn.id),
        tier: Tier::Extractive,
        grounded: true,
        sources: Vec::new(),
        usage: Usage::default(),
        cost_micros: 0,
        large_cost_micros: 0,
        verdict,
        latency: StageLatencies::default(),
        total_us: 0,
        cut_off: false,
    };
    TurnRecord { turn, completion }
}

#[derive(Clone, Default)]
struct Remembers(Rc<RefCell<Vec<TurnRecord>>>);

impl Memory for Remembers {
    fn answered(&self, key: &TurnKey) -> Result<Option<TurnRecord>, StateError> {
        Ok(self.0.borrow().iter().find(|record| record.turn.key() == *key).cloned())
    }

    fn conversation(&self, _: &TenantId, id: &ConversationId) -> Result<Option<Conversation>, StateError> {
        let mut conversation = Conversation::default();
        for record in self.0.borrow().iter().filter(|record| record.turn.conversation == *id) {
            conversation.record(record.turn.id.clone());
        }
        Ok((conversation.turns_answered > 0).then_some(conversation))
    }

    fn history(&self, _: &TenantId, id: &ConversationId, turns_max: usize) -> Result<Vec<TurnRecord>, StateError> {
        let records = self.0.borrow();
        let all: Vec<_> = records.iter().filter(|record| record.turn.conversation == *id).cloned().collect();
        Ok(all[all.len().saturating_sub(turns_max)..].to_vec())
    }
}

fn recall(memory: Remembers, per_conversation: usize) -> (Recall<Remembers>, Mailbox<Release>) {
    let releases = Mailbox::default();
    let limits = RecallLimits { turns_per_conversation_max: per_conversation, history_turns_max: 2 };
    (Recall::new(memory, limits, releases.clone()), releases)
}

fn released(conversation: &str) -> Release {
    let Turn { tenant, conversation, .. } = turn(conversation, "any", "any");
    Release((tenant, conversation))
}

#[test]
fn recall_gives_out_one_turn_of_a_conversation_at_a_time() {
    let (mut recall, releases) = recall(Remembers::default(), 8);
    let mut out = Vec::new();
    for (number, conversation) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        recall.push(ask(number, conversation, &number.to_string(), "where is it"), 0, &mut out);
    }
    assert_eq!(numbers(&out), [1, 3]);
    assert_eq!(recall.held(), 2);
    for (conversation, expected) in [("a", vec![2]), ("b", vec![]), ("a", vec![4]), ("a", vec![])] {
        out.clear();
        releases.send(released(conversation));
        recall.poll(5, &mut out);
        assert_eq!(numbers(&out), expected);
    }
    assert_eq!(recall.held(), 0);
    out.clear();
    recall.push(ask(5, "a", "5", "where is it"), 0, &mut out);
    assert_eq!(numbers(&out), [5], "a conversation whose turns have ended is free again");
}

#[test]
fn recall_lets_no_turn_wait_longer_than_its_deadline() {
    let (mut recall, releases) = recall(Remembers::default(), 8);
    let mut out = Vec::new();
    for (number, deadline_us) in [(1, Some(50)), (2, Some(300)), (3, Some(100)), (4, None)] {
        let ask = ask(number, "a", &number.to_string(), "where is it");
        recall.push(Box::new(Ask { deadline_us, ..*ask }), 0, &mut out);
    }
    out.clear();
    assert_eq!(recall.due_us(), Some(100), "the first does not wait");
    recall.poll(101, &mut out);
    match &out[..] {
        [Err(Outcome { ask, ending: Ending::Failed(error) })] => {
            assert_eq!((ask.request.number, error.kind), (3, TurnErrorKind::Late));
            assert!(!ask.started, "it must not release the conversation");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((recall.due_us(), recall.held()), (Some(300), 2));
    for expected in [2, 4] {
        out.clear();
        releases.send(released("a"));
        recall.poll(200, &mut out);
        assert_eq!(numbers(&out), [expected]);
    }
}

#[test]
fn recall_answers_a_turn_id_again() {
    let memory = Remembers::default();
    let (mut recall, releases) = recall(memory.clone(), 8);
    let mut out = Vec::new();
    recall.push(ask(1, "a", "t", "hello"), 0, &mut out);
    recall.push(ask(2, "a", "t", "other words"), 0, &mut out);
    assert_eq!(numbers(&out), [1], "the repeat waits for the first to be answered");
    memory.0.borrow_mut().push(record(turn("a", "t", "hello")));
    out.clear();
    releases.send(released("a"));
    recall.poll(0, &mut out);
    match &out[..] {
        [Err(Outcome { ending: Ending::Repeated(record), ask })] => {
            assert_eq!(record.completion.text, "answer to t");
            assert!(ask.started);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn recall_refuses_a_conversation_that_asks_too_much() {
    let (mut recall, _) = recall(Remembers::default(), 2);
    let mut out = Vec::new();
    for number in 1..=3 {
        recall.push(ask(number, "a", &number.to_string(), "hello"), 0, &mut out);
    }
    match &out[..] {
        [Ok(first), Err(Outcome { ask, ending: Ending::Failed(error) })] => {
            assert_eq!((first.request.number, ask.request.number), (1, 3));
            assert!(!ask.started, "it must not release the conversation");
            assert_eq!(error.kind, TurnErrorKind::Overloaded);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn recall_loads_history_for_a_turn_that_leans() {
    let memory = Remembers::default();
    for id in ["1", "2", "3"] {
        memory.0.borrow_mut().push(record(turn("a", id, &format!("question {id}"))));
    }
    let (mut recall, releases) = recall(memory, 8);
    let mut out = Vec::new();
    recall.push(ask(1, "a", "4", "and how long does that take?"), 0, &mut out);
    recall.push(ask(2, "a", "5", "Where can I see my invoices from last year?"), 0, &mut out);
    recall.push(ask(3, "new", "1", "and how long does that take?"), 0, &mut out);
    releases.send(released("a"));
    recall.poll(0, &mut out);
    let seen: Vec<_> = out.into_iter().map(|step| step.expect("goes on")).collect();
    let questions: Vec<_> = seen[0].history.iter().map(|before| before.question.as_str()).collect();
    assert_eq!(questions, ["question 2", "question 3"], "oldest first, bounded");
    assert_eq!(seen[0].question_in_context(), "question 3\nand how long does that take?");
    assert!(!seen[0].may_read_cache() && !seen[0].may_write_cache());
    assert!(!seen[1].leans, "the first turn of a conversation has nothing to lean on");
    assert!(!seen[2].leans && seen[2].history.is_empty() && seen[2].turns_before == 3);
}

#[test]
fn what_leans() {
    let check = |text: &str, expected: bool| assert_eq!(leans(text), expected, "{text:?}");
    check("And how long does that take?", true);
    check("what about Canada", true);
    check("is it free too?", true);
    check("Yes.", true);
    check("no, the other order", true);
    check("Sounds good!", true);
    check("Thanks, and how long does that take?", true);
    check("how long until it's here?", true);
    check("How much?", true);
    check("3", true);
    check("Friday, around 6 pm", true);
    check("two days ago", true);
    check("at half past six", true);
    check("my order number is 4711", true);
    check("I dont know", true);
    check("Alexis", true);
    check("My name is Jane Doe", true);
    check("More details, please", true);
    check("I don't remember.", true);
    check("Thanks, that is all. Bye!", false);
    check("Hello?", false);
    check("track order 353895564846", false);
    check("refund policy", false);
    check("Refund?", false);
    check("my order", false);
    check("I'm locked out", false);
    check("I'm not happy with my order", false);
    check("Thanks, how do I return a kettle?", false);
    check("No thanks", false);
    check("How do I return a kettle?", false);
    check("is it possible to get refunds", false);
    check("android app for orders", false);
    check("I ordered a kettle last week and it arrived broken, who can help me with that", false);
    check("", false);
}

#[test]
fn gather_waits_for_every_shard_in_any_order() {
    let candidate = |entry: u64, similarity: f32| Candidate {
        entry: EntryId(entry),
        similarity,
        question: "q".into(),
        answer: answer("a"),
        origin: turn("a", "1", "q").key(),
        refreshed: false,
        basis: basis(&[1.0]),
        evidence: HitEvidence::by_similarity(similarity),
        record: Record::default(),
        changes: [0; 2],
    };
    let reply = |hit: Option<Candidate>, near_miss: Option<(f32, String)>| {
        let request = RequestId { worker: 0, number: 1 };
        ToGather::Reply(Box::new(Found { request, asker: 0, hit, withheld: None, near_miss, nearest: Vec::new() }))
    };
    let asked = || ToGather::Turn(ask(1, "a", "1", "q"));
    let replies = || {
        [
            reply(Some(candidate(5, 0.96)), None),
            reply(Some(candidate(4, 0.98)), None),
            reply(Some(candidate(3, 0.98)), None),
        ]
    };
    for turn_at in 0..=3 {
        let mut inputs: VecDeque<_> = replies().into();
        inputs.insert(turn_at, asked());
        let mut gather = Gather::new(3, true);
        let mut out = Vec::new();
        let last = inputs.pop_back().expect("four");
        for input in inputs {
            gather.push(input, 0, &mut out);
        }
        assert!(out.is_empty() && gather.held() == 1);
        gather.push(last, 0, &mut out);
        assert_eq!(gather.held(), 0);
        match &out[..] {
            [Err(Outcome { ending: Ending::Served(served), .. })] => {
                assert_eq!(served.verdict.entry, Some(EntryId(3)), "ties go to the smaller id");
                assert_eq!(served.verdict.level, CacheLevel::Semantic);
            }
            other => panic!("{other:?}"),
        }
    }
    // Eight nearer ones that may not be served leave no place, in whichever shard they are.
    let served_beside = |nearer: usize| {
        let mut gather = Gather::new(2, true);
        let mut out = Vec::new();
        gather.push(asked(), 0, &mut out);
        gather.push(reply(Some(candidate(5, 0.96)), None), 0, &mut out);
        let request = RequestId { worker: 0, number: 1 };
        let nearest = vec![0.97; nearer];
        let found = Found { request, asker: 0, hit: None, withheld: None, near_miss: None, nearest };
        gather.push(ToGather::Reply(Box::new(found)), 0, &mut out);
        out[0].is_err()
    };
    assert_eq!([7, 8].map(served_beside), [true, false]);

    let mut gather = Gather::new(1, true);
    let mut out = Vec::new();
    gather.push(asked(), 0, &mut out);
    gather.push(reply(None, Some((0.91, "0.95 is required".into()))), 0, &mut out);
    assert_eq!(out[0].as_ref().expect("goes on").missed, "nearest cached question at 0.910, but 0.95 is required");
}

/// A tier that fails, and remembers how long it was waited for.
#[derive(Clone)]
struct Fails(Rc<RefCell<Option<ModelError>>>, Rc<RefCell<Vec<Duration>>>);

impl Generator for Fails {
    fn generate(&self, _: TierSize, _: Lane, request: TierRequest, report: Report<String, Generated>) -> bool {
        self.1.borrow_mut().push(request.waited);
        report.finish(Err(self.0.take().expect("asked once")));
        true
    }
}

#[test]
fn a_tier_that_fails_is_told_by_whose_fault_it_is() {
    timely::execute_directly(|worker| {
        let remote = |source| ModelError::Remote { server: "s".to_owned(), source };
        let status = |status, retry_s: Option<u64>| RemoteFault::Status {
            status,
            message: String::new(),
            retry_after: retry_s.map(Duration::from_secs),
        };
        let resting = |retry_ms| remote(RemoteFault::Resting { failures: 5, retry_ms });
        for (error, expected, retry_after_ms) in [
            (ModelError::PromptTooLong { tokens: 9, limit: 8 }, TurnErrorKind::Invalid, None),
            (ModelError::Late { limit_ms: 1 }, TurnErrorKind::Overloaded, None),
            (resting(9), TurnErrorKind::Overloaded, Some(500)),
            (resting(7_000), TurnErrorKind::Overloaded, Some(7_000)),
            (remote(status(429, None)), TurnErrorKind::Overloaded, None),
            (remote(status(429, Some(100))), TurnErrorKind::Overloaded, Some(100_000)),
            (remote(status(503, Some(86_400))), TurnErrorKind::Overloaded, Some(3_600_000)),
            (remote(status(500, Some(100))), TurnErrorKind::Internal, None),
            (ModelError::Cancelled, TurnErrorKind::Internal, None),
        ] {
            let words = error.to_string();
            let tier = Fails(Rc::new(RefCell::new(Some(error))), Rc::default());
            let wake = Wake::new(worker.sync_activator_for(vec![0]));
            let mut generate = generate(tier.clone(), Audiences::default(), &wake);
            let mut out = Vec::new();
            generate.push(Box::new(Ask { admitted_us: 40, ..*ask(1, "c", "1", "a question") }), 50, &mut out);
            (0..2).for_each(|_| generate.poll(70, &mut out));
            let [ToCommit::End(Outcome { ending: Ending::Failed(told), .. })] = out.as_slice() else {
                panic!("{words}: {out:?}")
            };
            assert_eq!((told.kind, told.retry_after_ms), (expected, retry_after_ms), "{words}");
            assert_eq!(*tier.1.borrow(), [Duration::from_micros(30)], "since it was admitted");
        }
    });
}

#[test]
fn policy_names_its_reason() {
    let policy = policy(0.95);
    let judge = |a: &str, b: &str, similarity: f32| {
        let [a, b] = [a, b].map(|text| policy.prepare(text, None, None));
        let judged = policy.judge(&a, &b, similarity, [0.0; 2]).map(drop);
        judged.map_err(|refusal| policy.explain(refusal, &a, &b, similarity))
    };
    assert_eq!(judge("a", "b", 0.95), Ok(()));
    assert_eq!(judge("a", "b", 0.94), Err("0.95 is required".into()));
    assert_eq!(judge("order 1", "order", 1.0), Err("this one mentions 1, that one nothing".into()));
}

#[test]
fn entry_numbers_of_workers_never_meet() {
    let take = |mut numbers: EntryNumbers| (0..50).map(|_| numbers.next()).collect::<Vec<_>>();
    for last in [EntryId(0), EntryId(41)] {
        let mut all: Vec<_> = (0..3).flat_map(|index| take(EntryNumbers::new(last, index, 3))).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all[0] > last);
    }
}

#[test]
fn price_of_tokens() {
    let price = Price { input_per_million: 2.0, output_per_million: 8.0 };
    assert_eq!(price.cost_micros(Usage { input_tokens: 1000, output_tokens: 100 }), 2800);
    assert_eq!(Price::default().cost_micros(Usage { input_tokens: 1000, output_tokens: 100 }), 0);
}

proptest! {
    /// Whatever order turns and releases come in, recall keeps each conversation's order and never has two of its
    /// turns under way.
    #[test]
    fn recall_agrees_with_queues(operations in prop::collection::vec((any::<bool>(), 0u8..4), 1..100)) {
        let (mut recall, releases) = recall(Remembers::default(), usize::MAX);
        let mut queues: HashMap<u8, VecDeque<u64>> = HashMap::new();
        let mut out = Vec::new();
        for (number, (is_turn, which)) in (1u64..).zip(operations) {
            let conversation = format!("c{which}");
            let queue = queues.entry(which).or_default();
            out.clear();
            let expected = if is_turn {
                queue.push_back(number);
                recall.push(ask(number, &conversation, &number.to_string(), "hello"), 0, &mut out);
                (queue.len() == 1).then_some(number)
            } else if queue.pop_front().is_some() {
                releases.send(released(&conversation));
                recall.poll(0, &mut out);
                queue.front().copied()
            } else {
                None
            };
            prop_assert_eq!(numbers(&out), expected.into_iter().collect::<Vec<_>>());
            let waiting: usize = queues.values().map(|queue| queue.len().saturating_sub(1)).sum();
            prop_assert_eq!(recall.held(), waiting);
        }
    }
}
