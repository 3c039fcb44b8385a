//! What an edit takes out of the cache is answered anew in the background, at 1, 2 and 3 workers, with real parts.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};

use support::{article, ask, cached, config, delete, delivery, ended, files, import, tenant, turn};
use tokio::sync::watch;
use turnflow_models::{Answerer, Extractive, ModelError, TierEngine, TierRequest};
use turnflow_pipeline::{ArticleDraft, Config, Parts, Pipeline};
use turnflow_state::{Answer, CacheLevel, ConversationId, Store};

const QUESTION: &str = "How long does delivery take?";

fn refreshing(workers: usize) -> Config {
    let mut config = config(workers);
    config.refresh.enabled = true;
    config.refresh.served_min = 1;
    config.knowledge.chunks_retrieved = 1;
    // Every question has an entry of its own.
    config.cache.semantic = false;
    config
}

/// Runs a test at 1, 2 and 3 workers, each with a store of its own and a tier behind a gate that is open.
fn at_each<F: Future<Output = ()>>(adjust: impl Fn(&mut Config), test: impl Fn(Pipeline, Store, Arc<Gate>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for workers in [1, 2, 3] {
        let mut config = refreshing(workers);
        adjust(&mut config);
        let mut parts = Parts::open(&config, Store::memory(), files()).expect("parts");
        let gate = Arc::new(Gate::default());
        let tier = Extractive::new(parts.encoder.clone(), config.extractive.clone());
        parts.tiers.large =
            TierEngine::start(Arc::new(Gated(tier, gate.clone())), config.tier.engine()).expect("threads");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            import(&pipeline).await;
            test(pipeline.clone(), parts.store.clone(), gate).await;
            pipeline.shutdown().await;
        });
    }
}

/// Holds up a tier while it is closed.
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    arrivals: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: Mutex::new(false), changed: Condvar::new(), arrivals: watch::Sender::new(0) }
    }
}

impl Gate {
    /// Closes it; gives how many questions had come to it.
    fn close(&self) -> usize {
        *self.closed.lock().expect("lock") = true;
        *self.arrivals.borrow()
    }

    fn open(&self) {
        *self.closed.lock().expect("lock") = false;
        self.changed.notify_all();
    }

    /// Waits until so many questions have come to it.
    async fn arrived(&self, count: usize) {
        self.arrivals.subscribe().wait_for(|&arrivals| arrivals >= count).await.expect("the gate is alive");
    }
}

/// The extractive tier behind a gate.
struct Gated(Extractive, Arc<Gate>);

impl Answerer for Gated {
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        self.1.arrivals.send_modify(|arrivals| *arrivals += 1);
        let closed = self.1.closed.lock().expect("lock");
        drop(self.1.changed.wait_while(closed, |closed| *closed).expect("lock"));
        Answerer::answer(&self.0, request, on_delta)
    }
}

/// Writes an article; gives how many cached answers that made invalid.
async fn write(pipeline: &Pipeline, draft: ArticleDraft) -> usize {
    support::write(pipeline, draft).await.invalidated.len()
}

#[test]
fn what_an_edit_takes_away_is_back_before_it_is_asked_for() {
    at_each(
        |_| {},
        |pipeline, store, _| async move {
            cached(&pipeline, "a", QUESTION).await;
            ask(&pipeline, "b", "Do gift cards expire?").await;
            let mut edits = 0;
            for (version, takes) in [(2, "nine days"), (3, "two weeks"), (4, "a month")] {
                assert_eq!(write(&pipeline, delivery(takes)).await, 1);
                edits += 1;
                pipeline.refreshed().await;
                let stats = pipeline.stats();
                assert_eq!((stats.refresh.refreshed, stats.refresh.answers, stats.turns_in_flight), (edits, edits, 0));
                let hit = ask(&pipeline, &format!("c{version}"), QUESTION).await;
                assert_eq!((hit.verdict.level, hit.verdict.refreshed), (CacheLevel::Exact, true), "{hit:?}");
                assert!(hit.text.contains(takes), "{}", hit.text);
                assert_eq!((hit.sources[0].version, hit.usage.output_tokens), (version, 0));
                assert_eq!(hit.verdict.origin.expect("an origin").conversation.as_str(), "a");
            }
            let refresh = pipeline.stats().refresh;
            assert!(refresh.input_tokens > 0 && refresh.output_tokens > 0 && refresh.unchanged == 0, "{refresh:?}");
            let first = ConversationId::new("a").expect("valid");
            let conversation = store.conversation(&tenant(), &first).expect("read").expect("there");
            assert_eq!(conversation.turns_answered, 1, "nothing was written to it");
            // Served by nobody but its own turn.
            write(&pipeline, article("gift-cards", "Gift cards", "Gift cards expire after two years.")).await;
            pipeline.refreshed().await;
            assert_eq!(ask(&pipeline, "d", "Do gift cards expire?").await.verdict.level, CacheLevel::Miss);
        },
    );
}

#[test]
fn edits_in_a_row_leave_the_last() {
    at_each(
        |_| {},
        |pipeline, _, _| async move {
            for question in [QUESTION, "How many days does delivery take?", "what time does delivery take"] {
                cached(&pipeline, &format!("a{}", question.len()), question).await;
            }
            for number in 2..12 {
                write(&pipeline, delivery(&format!("{number} days"))).await;
            }
            pipeline.refreshed().await;
            let hit = ask(&pipeline, "b", QUESTION).await;
            assert!(hit.text.contains("11 days"), "{}", hit.text);
            // Those that fell more often than they are tried are asked for by turns.
            assert!(hit.sources[0].version == 11 && (hit.verdict.refreshed || !hit.verdict.level.is_hit()), "{hit:?}");
        },
    );
}

#[test]
fn an_answer_that_an_edit_does_not_change_lives_again_as_it_was() {
    at_each(
        |config| (config.knowledge.chunks_retrieved, config.knowledge.score_margin) = (5, 2.0),
        |pipeline, _, _| async move {
            cached(&pipeline, "a", QUESTION).await;
            // Among the chunks that were read, but not what was answered from.
            let care = article("kettle-care", "Cleaning a kettle", "Remove lime scale with vinegar.");
            assert_eq!(write(&pipeline, care).await, 1);
            pipeline.refreshed().await;
            let hit = ask(&pipeline, "b", QUESTION).await;
            assert_eq!((hit.verdict.level, hit.verdict.refreshed), (CacheLevel::Exact, false), "{hit:?}");
            assert_eq!((hit.sources[0].version, pipeline.stats().refresh.unchanged), (1, 1));
        },
    );
}

#[test]
fn what_has_no_answer_any_more_is_not_kept() {
    at_each(
        |_| {},
        |pipeline, _, _| async move {
            cached(&pipeline, "a", "Do gift cards expire?").await;
            write(&pipeline, delete("gift-cards")).await;
            pipeline.refreshed().await;
            let stats = pipeline.stats();
            assert_eq!((stats.refresh.dropped, stats.refresh.refreshed, stats.validity.entries), (1, 0, 0));
            assert!(!ask(&pipeline, "b", "Do gift cards expire?").await.grounded);

            // Nor is one that is found elsewhere, before or after its article is deleted: the next turn asks again.
            cached(&pipeline, "c", QUESTION).await;
            let better = article("days", "Delivery", "How long does delivery take? Delivery takes two weeks.");
            assert_eq!(write(&pipeline, better).await, 1);
            pipeline.refreshed().await;
            assert_eq!(cached(&pipeline, "d", QUESTION).await.sources[0].article_id.as_str(), "days");
            assert_eq!(write(&pipeline, delete("days")).await, 1);
            pipeline.refreshed().await;
            let hit = ask(&pipeline, "e", QUESTION).await;
            assert_eq!((hit.verdict.level, hit.sources[0].article_id.as_str()), (CacheLevel::Miss, "delivery"));
        },
    );
}

#[test]
fn an_edit_while_it_is_made_is_never_stale() {
    for tries_max in [1, 3] {
        at_each(
            |config| config.refresh.tries_max = tries_max,
            |pipeline, _, gate| async move {
                cached(&pipeline, "a", QUESTION).await;
                let before = gate.close();
                write(&pipeline, delivery("nine days")).await;
                gate.arrived(before + 1).await;
                let stats = pipeline.stats();
                assert_eq!((stats.turns_in_flight, stats.refresh.in_flight), (0, 1), "nobody waits for it");
                write(&pipeline, delivery("two weeks")).await;
                gate.open();
                pipeline.refreshed().await;
                let refresh = pipeline.stats().refresh;
                let hit = ask(&pipeline, "b", QUESTION).await;
                assert!(hit.text.contains("two weeks"), "{}", hit.text);
                let (level, counts) = match tries_max {
                    1 => (CacheLevel::Miss, (1, 0, 1)),
                    _ => (CacheLevel::Exact, (2, 1, 0)),
                };
                assert_eq!((refresh.answers, refresh.refreshed, refresh.dropped), counts);
                assert_eq!(hit.verdict.level, level);
            },
        );
    }
}

#[test]
fn a_turn_that_asks_meanwhile_is_answered_as_ever() {
    at_each(
        |_| {},
        |pipeline, _, gate| async move {
            cached(&pipeline, "a", QUESTION).await;
            let before = gate.close();
            write(&pipeline, delivery("nine days")).await;
            gate.arrived(before + 1).await;
            let stream = pipeline.submit(turn("b", "1", QUESTION)).await.expect("admitted");
            gate.open();
            let completion = ended(stream).await.expect("answered");
            assert!(completion.text.contains("nine days"), "{}", completion.text);
            pipeline.refreshed().await;
            assert_eq!(pipeline.stats().validity.entries, 1, "one answer to one question");
            let hit = ask(&pipeline, "c", QUESTION).await;
            assert!(hit.verdict.level == CacheLevel::Exact && hit.text.contains("nine days"), "{hit:?}");
        },
    );
}

#[test]
fn shutting_down_lets_go_of_what_waits() {
    at_each(
        |_| {},
        |pipeline, _, gate| async move {
            let questions =
                [QUESTION, "How many days does delivery take?", "what time does delivery take", "delivery?"];
            for question in questions {
                cached(&pipeline, &format!("c{}", question.len()), question).await;
            }
            let before = gate.close();
            write(&pipeline, delivery("nine days")).await;
            gate.arrived(before + 1).await;
            let waits = pipeline.clone();
            let waiting = tokio::spawn(async move { waits.refreshed().await });
            let ending = tokio::spawn({
                let pipeline = pipeline.clone();
                async move { pipeline.shutdown().await }
            });
            waiting.await.expect("the workers end");
            gate.open();
            ending.await.expect("it ends");
            let refresh = pipeline.stats().refresh;
            assert!(refresh.answers < questions.len() as u64, "not all of them were asked: {refresh:?}");
        },
    );
}

#[test]
fn a_restart_remembers_what_was_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for workers in [1, 3, 2] {
        let config = refreshing(workers);
        let parts = Parts::open(&config, Store::open(folder.path()).expect("a store"), files()).expect("parts");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            if parts.knowledge.epoch() == 0 {
                import(&pipeline).await;
                cached(&pipeline, "a", QUESTION).await;
                write(&pipeline, delivery("nine days")).await;
                pipeline.refreshed().await;
            }
            let hit = ask(&pipeline, &format!("w{workers}"), QUESTION).await;
            assert_eq!((hit.verdict.level, hit.verdict.refreshed), (CacheLevel::Exact, true), "{hit:?}");
            assert!(hit.text.contains("nine days") && hit.sources[0].version == 2, "{hit:?}");
            pipeline.shutdown().await;
        });
    }
}
