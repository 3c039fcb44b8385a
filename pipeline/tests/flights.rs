//! Similar questions at once are answered once, at 1, 2 and 3 workers, with real parts and a tier that waits to be told.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use support::{article, asked, config, delivery, ended, files, import, tenant, turn};
use tokio::sync::{oneshot, watch};
use turnflow_models::{Answerer, Extractive, ModelError, TierEngine, TierRequest};
use turnflow_pipeline::{Config, Cost, Parts, Pipeline, Price, TurnStream};
use turnflow_state::{Answer, CacheControl, CacheLevel, Completion, Store, Turn, TurnEvent, Usage};

/// Ways to ask the same.
const DELIVERY: [&str; 6] = [
    "How long does delivery take?",
    "how long does the delivery take",
    "How long will delivery take?",
    "How long does a delivery take?",
    "how long do deliveries take?",
    "Tell me, how long does delivery take?",
];
/// All of them agree, whichever leads.
const SIMILARITY_MIN: f32 = 0.7;
/// No test takes longer, or somebody waits for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a test at 1, 2 and 3 workers, each with a store of its own and a tier behind a gate that is open.
fn at_each<F: Future<Output = ()>>(adjust: impl Fn(&mut Config), test: impl Fn(Pipeline, Arc<Gate>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for workers in [1, 2, 3] {
        let mut config = config(workers);
        // The plain rule: what is similar does not depend on what the verifier was trained on.
        config.policy.verifier = "none".into();
        config.cache.similarity_min = SIMILARITY_MIN;
        adjust(&mut config);
        let mut parts = Parts::open(&config, Store::memory(), files()).expect("parts");
        let gate = Arc::new(Gate::default());
        let tier = Extractive::new(parts.encoder.clone(), config.extractive.clone());
        parts.tiers.large =
            TierEngine::start(Arc::new(Gated(tier, gate.clone())), config.tier.engine()).expect("threads");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            import(&pipeline).await;
            let bounded = async {
                test(pipeline.clone(), gate.clone()).await;
                pipeline.shutdown().await;
            };
            let result = tokio::time::timeout(PATIENCE, bounded).await;
            // The pipeline waits for what is at the gate, even when the test fails.
            gate.open();
            result.expect("nobody waits for ever");
        });
    }
}

/// What a tier is to do with the questions that come to it.
#[derive(Default)]
struct Orders {
    closed: bool,
    /// So many of them fail.
    failures: usize,
}

/// Holds up a tier while it is closed, and has it fail.
struct Gate {
    orders: Mutex<Orders>,
    changed: Condvar,
    arrivals: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { orders: Mutex::default(), changed: Condvar::new(), arrivals: watch::Sender::new(0) }
    }
}

impl Gate {
    fn close(&self) {
        self.orders.lock().expect("lock").closed = true;
    }

    fn open(&self) {
        self.orders.lock().expect("lock").closed = false;
        self.changed.notify_all();
    }

    fn fail(&self, questions: usize) {
        self.orders.lock().expect("lock").failures = questions;
    }

    /// Questions that have come to it.
    fn arrivals(&self) -> usize {
        *self.arrivals.borrow()
    }

    /// Waits until so many questions have come to it.
    async fn arrived(&self, count: usize) {
        self.arrivals.subscribe().wait_for(|&arrivals| arrivals >= count).await.expect("the gate is alive");
    }
}

/// The extractive tier behind a gate: its first word comes before, the rest after.
struct Gated(Extractive, Arc<Gate>);

impl Answerer for Gated {
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        let answer = Answerer::answer(&self.0, request, &mut |_| {})?;
        let (first, rest) = answer.text.split_at(answer.text.find(' ').unwrap_or_default());
        on_delta(first.to_owned());
        self.1.arrivals.send_modify(|arrivals| *arrivals += 1);
        let orders = self.1.orders.lock().expect("lock");
        let mut orders = self.1.changed.wait_while(orders, |orders| orders.closed).expect("lock");
        if orders.failures > 0 {
            orders.failures -= 1;
            drop(orders);
            panic!("as it was told");
        }
        drop(orders);
        on_delta(rest.to_owned());
        Ok(answer)
    }
}

async fn submit(pipeline: &Pipeline, turn: Turn) -> TurnStream {
    pipeline.submit(turn).await.expect("admitted")
}

/// Submits questions, each in a conversation of its own.
async fn submit_all(pipeline: &Pipeline, name: &str, questions: &[&str]) -> Vec<TurnStream> {
    let mut streams = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        streams.push(submit(pipeline, turn(&format!("{name}{number}"), "1", question)).await);
    }
    streams
}

/// Waits until so many turns that are in flight follow others.
async fn following(pipeline: &Pipeline, count: usize) {
    while pipeline.stats().turns_following < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn answers(streams: Vec<TurnStream>) -> Vec<Completion> {
    let mut completions = Vec::new();
    for stream in streams {
        completions.push(ended(stream).await.expect("answered"));
    }
    completions
}

fn levels(completions: &[Completion], level: CacheLevel) -> usize {
    completions.iter().filter(|completion| completion.verdict.level == level).count()
}

#[test]
fn similar_questions_at_once_are_answered_once() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            let mut streams = submit_all(&pipeline, "a", &DELIVERY).await;
            following(&pipeline, DELIVERY.len() - 1).await;
            // The very words of one that follows: they wait for it in their turn.
            streams.extend(submit_all(&pipeline, "b", &DELIVERY).await);
            gate.open();
            let completions = answers(streams).await;
            assert_eq!((gate.arrivals(), levels(&completions, CacheLevel::Miss)), (1, 1));
            assert_eq!(levels(&completions[..DELIVERY.len()], CacheLevel::Joined), DELIVERY.len() - 1);
            let led = completions.iter().find(|completion| !completion.verdict.level.is_hit()).expect("one led");
            for (number, joined) in completions.iter().enumerate().filter(|(_, one)| one.verdict.level.is_hit()) {
                assert_eq!((&joined.text, &joined.sources), (&led.text, &led.sources));
                assert_eq!((joined.usage.input_tokens, joined.usage.output_tokens), (0, 0));
                assert!(joined.verdict.origin.is_some() && joined.verdict.question.is_some(), "{joined:?}");
                if number < DELIVERY.len() {
                    let evidence = joined.verdict.evidence.as_ref().expect("evidence");
                    assert!(
                        joined.verdict.similarity.is_some_and(|similarity| similarity >= SIMILARITY_MIN),
                        "{joined:?}"
                    );
                    assert!(evidence.probability >= SIMILARITY_MIN, "{joined:?}");
                }
            }
            assert_eq!((pipeline.stats().turns_following, pipeline.stats().turns_in_flight), (0, 0));
        },
    );
}

#[test]
fn when_the_leader_fails_the_next_leads_and_when_that_one_fails_all_do() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            for (failures, expected) in [(1, 1), (usize::MAX, 2 * DELIVERY.len())] {
                gate.close();
                gate.fail(failures);
                let before = gate.arrivals();
                let mut streams = submit_all(&pipeline, &format!("a{failures}"), &DELIVERY).await;
                following(&pipeline, DELIVERY.len() - 1).await;
                // In the very words of each as well.
                streams.extend(submit_all(&pipeline, &format!("b{failures}"), &DELIVERY).await);
                gate.open();
                let mut ends = Vec::new();
                for stream in streams {
                    ends.push(ended(stream).await);
                }
                let (failed, tried) = (ends.iter().filter(|end| end.is_err()).count(), gate.arrivals() - before);
                // Who waited in the very words of the first may come too late to fail with the second.
                assert!(failed == expected && (2..=3).contains(&tried), "{failed} failed in {tried} tries");
                gate.fail(0);
                // Takes what is cached away.
                pipeline.knowledge().write(&tenant(), vec![delivery("a while")]).await.expect("written");
            }
        },
    );
}

#[test]
fn what_mentions_something_else_does_not_join() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            let streets: Vec<String> =
                (1..6).map(|street| format!("How long does delivery to street {street} take?")).collect();
            let streets: Vec<&str> = streets.iter().map(String::as_str).collect();
            let mut streams = submit_all(&pipeline, "a", &streets).await;
            let bypass = Turn { cache_control: CacheControl::Bypass, ..turn("bypass", "1", streets[0]) };
            streams.push(submit(&pipeline, bypass).await);
            // The tier takes them one by one, so each is let through before the next comes.
            gate.open();
            let completions = answers(streams).await;
            assert_eq!((gate.arrivals(), levels(&completions, CacheLevel::Joined)), (6, 0));
        },
    );
}

#[test]
fn it_can_be_switched_off() {
    at_each(
        |config| config.cache.join_similar = false,
        |pipeline, gate| async move {
            gate.close();
            let streams = submit_all(&pipeline, "a", &DELIVERY[..2]).await;
            gate.open();
            let completions = answers(streams).await;
            assert_eq!(levels(&completions, CacheLevel::Joined), 0);
        },
    );
}

#[test]
fn whoever_comes_after_an_edit_does_not_get_what_it_made_invalid() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            for (round, takes) in (0..8).map(|round| (round, format!("{} days", round + 10))) {
                // Takes what is cached away.
                pipeline.knowledge().write(&tenant(), vec![delivery("a while")]).await.expect("written");
                let before = gate.arrivals();
                gate.close();
                let early = submit_all(&pipeline, &format!("early{round}-"), &DELIVERY[..2]).await;
                following(&pipeline, 1).await;
                gate.arrived(before + 1).await;
                let receipt = pipeline.knowledge().write(&tenant(), vec![delivery(&takes)]).await.expect("written");
                assert!(receipt.outcomes.iter().all(Result::is_ok));
                let late = submit_all(&pipeline, &format!("late{round}-"), &DELIVERY[2..]).await;
                following(&pipeline, DELIVERY.len() - 1).await;
                gate.open();
                for completion in answers(late).await {
                    assert!(completion.text.contains(&takes), "{completion:?}");
                }
                answers(early).await;
                assert!(asked(&pipeline, turn(&format!("after{round}"), "1", DELIVERY[0])).await.text.contains(&takes));
            }
        },
    );
}

#[test]
fn whoever_comes_after_an_edit_that_changes_nothing_is_answered_with_the_others() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline, gate| async move {
            gate.close();
            let mut streams = submit_all(&pipeline, "early", &DELIVERY[..2]).await;
            gate.arrived(1).await;
            let care = article("kettle-care", "Cleaning a kettle", "Remove lime scale with vinegar.");
            pipeline.knowledge().write(&tenant(), vec![care]).await.expect("written");
            streams.extend(submit_all(&pipeline, "late", &DELIVERY[2..]).await);
            following(&pipeline, DELIVERY.len() - 1).await;
            gate.open();
            let completions = answers(streams).await;
            assert_eq!((gate.arrivals(), levels(&completions, CacheLevel::Joined)), (1, DELIVERY.len() - 1));
        },
    );
}

#[test]
fn shutting_down_answers_those_who_follow() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            let streams = submit_all(&pipeline, "a", &DELIVERY).await;
            following(&pipeline, DELIVERY.len() - 1).await;
            let ending = tokio::spawn({
                let pipeline = pipeline.clone();
                async move { pipeline.shutdown().await }
            });
            gate.open();
            ending.await.expect("it ends");
            assert_eq!(levels(&answers(streams).await, CacheLevel::Joined), DELIVERY.len() - 1);
        },
    );
}

/// Asks, and waits for the first piece of the answer.
async fn begun(pipeline: &Pipeline, turn: Turn) -> (TurnStream, String) {
    let mut stream = submit(pipeline, turn).await;
    let piece = first_piece(&mut stream).await;
    (stream, piece)
}

async fn first_piece(stream: &mut TurnStream) -> String {
    assert_eq!(stream.next().await, Some(TurnEvent::Accepted));
    match stream.next().await {
        Some(TurnEvent::Delta(piece)) => piece,
        other => panic!("expected a piece, got {other:?}"),
    }
}

/// The rest of a stream: its pieces, after the last restart, whether there was one, and the end.
async fn rest(mut stream: TurnStream) -> (Vec<String>, bool, Result<Completion, String>) {
    let (mut pieces, mut restarted) = (Vec::new(), false);
    loop {
        match stream.next().await.expect("a terminal event") {
            TurnEvent::Accepted => {}
            TurnEvent::Delta(piece) => pieces.push(piece),
            TurnEvent::Restart => {
                assert!(!restarted, "void twice");
                restarted = true;
                pieces.clear();
            }
            TurnEvent::Done(completion) => return (pieces, restarted, Ok(*completion)),
            TurnEvent::Error(error) => return (pieces, restarted, Err(error.message)),
        }
    }
}

#[test]
fn whoever_follows_hears_the_same_pieces_as_they_come() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            let (leader, first) = begun(&pipeline, turn("a", "1", DELIVERY[0])).await;
            // While the tier waits at the gate: what came before is told to those who come now.
            let (follower, told) = begun(&pipeline, turn("b", "1", DELIVERY[1])).await;
            assert_eq!((told, pipeline.stats().turns_following), (first.clone(), 1));
            gate.open();
            let (led, followed) = (rest(leader).await, rest(follower).await);
            assert_eq!((&followed.0, followed.1, led.1), (&led.0, false, false));
            let completion = followed.2.expect("answered");
            assert_eq!(completion.verdict.level, CacheLevel::Joined);
            assert_eq!(completion.text, first + &followed.0.concat());
        },
    );
}

#[test]
fn whoever_asks_in_the_same_words_hears_the_same_pieces_as_they_come() {
    for joins in [true, false] {
        at_each(
            |config| config.cache.join_similar = joins,
            |pipeline, gate| async move {
                gate.close();
                let (leader, first) = begun(&pipeline, turn("a", "1", DELIVERY[0])).await;
                let mut streams = vec![begun(&pipeline, turn("b", "1", DELIVERY[0])).await];
                if joins {
                    // Who waits for a turn that follows hears what that one hears.
                    streams.push(begun(&pipeline, turn("c", "1", DELIVERY[1])).await);
                    streams.push(begun(&pipeline, turn("d", "1", DELIVERY[1])).await);
                }
                gate.open();
                let (led, restarted, _) = rest(leader).await;
                assert!(!restarted);
                for (stream, told) in streams {
                    let (pieces, restarted, end) = rest(stream).await;
                    assert_eq!((&told, &pieces, restarted), (&first, &led, false));
                    let completion = end.expect("answered");
                    assert_eq!(
                        (completion.verdict.level, completion.text),
                        (CacheLevel::Joined, told + &pieces.concat())
                    );
                }
                assert_eq!(gate.arrivals(), 1);
            },
        );
    }
}

#[test]
fn when_the_leader_fails_what_it_said_is_taken_back() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            gate.fail(1);
            let (leader, _) = begun(&pipeline, turn("a", "1", DELIVERY[0])).await;
            let (second, _) = begun(&pipeline, turn("b", "1", DELIVERY[1])).await;
            let (third, _) = begun(&pipeline, turn("c", "1", DELIVERY[2])).await;
            let (same, _) = begun(&pipeline, turn("d", "1", DELIVERY[0])).await;
            gate.open();
            assert!(rest(leader).await.2.is_err());
            let mut levels = Vec::new();
            for stream in [second, third, same] {
                let (pieces, restarted, end) = rest(stream).await;
                let completion = end.expect("answered");
                assert!(restarted, "{completion:?}");
                assert_eq!(pieces.concat(), completion.text);
                levels.push(completion.verdict.level);
            }
            // The one with the most time leads: the last, where its word comes in time, or else the third.
            assert!(levels[0].is_hit() && levels.iter().filter(|level| !level.is_hit()).count() == 1, "{levels:?}");
        },
    );
}

#[test]
fn an_edit_takes_back_what_was_said_before_it_and_lets_nobody_hear_it_after() {
    at_each(
        |_| {},
        |pipeline, gate| async move {
            gate.close();
            let (leader, first) = begun(&pipeline, turn("a", "1", DELIVERY[0])).await;
            let (early, told) = begun(&pipeline, turn("b", "1", DELIVERY[1])).await;
            assert_eq!(told, first);
            let draft = article("delivery", "Delivery times", "Our delivery takes nine days.");
            pipeline.knowledge().write(&tenant(), vec![draft]).await.expect("written");
            let late = submit(&pipeline, turn("c", "1", DELIVERY[2])).await;
            following(&pipeline, 2).await;
            gate.open();
            assert!(rest(leader).await.2.expect("answered").text.starts_with(&first), "it was admitted before");
            for (stream, was_told) in [(early, true), (late, false)] {
                let (pieces, restarted, end) = rest(stream).await;
                let completion = end.expect("answered");
                assert!(completion.text.contains("nine days"), "{completion:?}");
                assert_eq!((pieces.concat(), restarted), (completion.text, was_told));
            }
        },
    );
}

/// Has a turn begin to be answered. Gives back its stream, its first piece, and what will tell its cost.
async fn begun_at_cost(pipeline: &Pipeline, turn: Turn) -> (TurnStream, String, oneshot::Receiver<Cost>) {
    let (tell, cost) = oneshot::channel();
    let on_cost = Box::new(move |cost| tell.send(cost).expect("the test waits"));
    let mut stream = pipeline.submit_at_cost(turn.into(), on_cost).await.expect("admitted");
    let piece = first_piece(&mut stream).await;
    (stream, piece, cost)
}

#[test]
fn what_a_turn_has_cost_is_told_though_its_client_has_left() {
    const PRICE: Price = Price { input_per_million: 3.0, output_per_million: 15.0 };
    at_each(
        |config| config.tier.price = PRICE,
        |pipeline, gate| async move {
            gate.close();
            let (leader, _, led) = begun_at_cost(&pipeline, turn("a", "1", DELIVERY[0])).await;
            let (follower, _, followed) = begun_at_cost(&pipeline, turn("b", "1", DELIVERY[1])).await;
            drop(leader);
            gate.open();
            assert_eq!(rest(follower).await.2.expect("answered").verdict.level, CacheLevel::Joined);
            let Cost::Known { usage, .. } = led.await.expect("told") else { panic!("it was answered") };
            assert!(usage.input_tokens > 0 && usage.output_tokens > 0, "{usage:?}");
            assert_eq!(followed.await, Ok(Cost::Known { usage: Usage::default(), micros: 0 }));

            gate.fail(1);
            let bypass = Turn { cache_control: CacheControl::Bypass, ..turn("c", "1", DELIVERY[0]) };
            let (stream, piece, failed) = begun_at_cost(&pipeline, bypass).await;
            drop(stream);
            let Cost::Failed { usage: used, micros } = failed.await.expect("told") else { panic!("it failed") };
            let of_texts = Usage::estimated(DELIVERY[0].len(), piece.len());
            assert!(used.input_tokens > of_texts.input_tokens, "the articles are read as well: {used:?}");
            assert_eq!(used.output_tokens, of_texts.output_tokens);
            let unanswered: u64 = pipeline.tally().iter().map(|(_, tally)| tally.account.unanswered_cost_micros).sum();
            assert_eq!([micros, unanswered], [PRICE.cost_micros(used); 2]);
        },
    );
}
