//! Hits on similar questions are answered in full as well, in the background, at 1 and 2 workers, with real parts.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::future::Future;
use std::time::Duration;

use support::{ask, config, files, import, tenant, turn};
use turnflow_pipeline::{Config, Feedback, Parts, Pipeline};
use turnflow_state::{CacheLevel, Completion, ConversationId, Store, TurnKey};

const QUESTION: &str = "How long does delivery take?";
const SIMILAR: &str = "How many days does delivery take?";
const OTHER: &str = "Do gift cards expire?";

/// Everything is similar to everything, and the first hits of an entry are audited.
fn auditing(workers: usize) -> Config {
    let mut config = config(workers);
    config.policy.verifier = "none".into();
    config.cache.similarity_min = 0.0;
    config.audit.enabled = true;
    config.audit.share = 0.0;
    config.audit.trusted_after = 2;
    config
}

/// Runs a test at 1 and 2 workers, each with a store of its own, which another pipeline can be started on.
fn at_each<F: Future<Output = ()>>(adjust: impl Fn(&mut Config), test: impl Fn(Pipeline, Config, Parts) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for workers in [1, 2] {
        let mut config = auditing(workers);
        adjust(&mut config);
        let parts = Parts::open(&config, Store::memory(), files()).expect("parts");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            import(&pipeline).await;
            test(pipeline.clone(), config, parts).await;
            pipeline.shutdown().await;
        });
    }
}

fn key(conversation: &str) -> TurnKey {
    turn(conversation, "1", "any").key()
}

fn level(completion: &Completion) -> CacheLevel {
    completion.verdict.level
}

/// Asks, and waits until an answer that was made for it is in the cache: the next question may be quicker.
async fn ask_and_keep(pipeline: &Pipeline, conversation: &str, question: &str) -> Completion {
    let before = pipeline.stats().validity.entries;
    let answered = ask(pipeline, conversation, question).await;
    let kept = async {
        while level(&answered) == CacheLevel::Miss && pipeline.stats().validity.entries <= before {
            tokio::task::yield_now().await;
        }
    };
    // Where it takes the place of another one, there are no more than before.
    drop(tokio::time::timeout(Duration::from_secs(1), kept).await);
    answered
}

#[test]
fn the_first_hits_of_an_entry_are_answered_in_full_and_nobody_hears_of_it() {
    at_each(
        |_| {},
        |pipeline, _, parts| async move {
            let first = ask_and_keep(&pipeline, "a", QUESTION).await;
            assert_eq!(level(&first), CacheLevel::Miss);
            for (number, audited) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
                let hit = ask_and_keep(&pipeline, &format!("b{number}"), SIMILAR).await;
                assert_eq!((level(&hit), hit.text.as_str()), (CacheLevel::Semantic, first.text.as_str()), "{hit:?}");
                let evidence = hit.verdict.evidence.expect("a similar hit has evidence");
                assert_eq!((evidence.audits, evidence.agreed), (number.min(2), number.min(2)));
                pipeline.audited().await;
                let audit = pipeline.stats().audit;
                assert_eq!((audit.made(), audit.agreed, audit.queued, audit.in_flight), (audited, audited, 0, 0));
            }
            let stats = pipeline.stats();
            assert!(stats.audit.input_tokens > 0 && stats.audit.output_tokens > 0, "{stats:?}");
            assert_eq!(
                (stats.validity.entries, stats.bound.recent, stats.bound.recent_disagreed),
                (1, 2, 0),
                "{stats:?}"
            );
            let conversation = ConversationId::new("b0").expect("valid");
            let conversation = parts.store.conversation(&tenant(), &conversation).expect("read").expect("there");
            assert_eq!(conversation.turns_answered, 1, "nothing was written to it");
            let mut entries = 0;
            let count = &mut |_| {
                entries += 1;
                std::ops::ControlFlow::Continue(())
            };
            parts.store.entries(count).expect("read");
            assert_eq!(entries, 1, "nothing was cached");
        },
    );
}

#[test]
fn an_answer_that_an_audit_finds_wrong_keeps_to_its_own_words() {
    at_each(
        |_| {},
        |pipeline, config, parts| async move {
            ask_and_keep(&pipeline, "a", QUESTION).await;
            let wrong = ask_and_keep(&pipeline, "b", OTHER).await;
            assert_eq!(level(&wrong), CacheLevel::Semantic, "everything is similar: {wrong:?}");
            pipeline.audited().await;
            let audit = pipeline.stats().audit;
            assert_eq!((audit.disagreed, audit.barred, audit.thrown_away), (1, 1, 0), "{audit:?}");
            let right = ask_and_keep(&pipeline, "c", OTHER).await;
            assert_eq!(level(&right), CacheLevel::Miss, "{right:?}");
            assert!(right.text.contains("never expire") && !wrong.text.contains("never expire"), "{right:?}");
            assert_eq!(level(&ask_and_keep(&pipeline, "d", QUESTION).await), CacheLevel::Exact);
            pipeline.shutdown().await;
            let again = Pipeline::start(&config, &parts).expect("pipeline");
            assert_eq!(again.stats().validity.entries, 1, "what is known of the other is lost, so it is gone");
            assert_eq!(level(&ask(&again, "e", OTHER).await), CacheLevel::Exact);
            again.shutdown().await;
        },
    );
}

#[test]
fn a_customer_who_finds_an_answer_wrong_stops_it() {
    at_each(
        |config| config.audit.enabled = false,
        |pipeline, _, _| async move {
            let judged = async |conversation: &str, is_good: bool| {
                pipeline.feedback(key(conversation), is_good).await.expect("read")
            };
            ask_and_keep(&pipeline, "a", QUESTION).await;
            assert_eq!(level(&ask_and_keep(&pipeline, "b", SIMILAR).await), CacheLevel::Semantic);
            assert_eq!(judged("nobody", false).await, Feedback::Unknown);
            assert_eq!(judged("a", true).await, Feedback::Counted, "what it made is a hit for others");
            assert_eq!(judged("b", true).await, Feedback::Counted);
            let hit = ask_and_keep(&pipeline, "c", SIMILAR).await;
            let evidence = hit.verdict.evidence.expect("a similar hit has evidence");
            assert_eq!((hit.verdict.level, evidence.audits, evidence.agreed), (CacheLevel::Semantic, 2, 2));
            assert_eq!(judged("c", false).await, Feedback::Counted);
            assert_eq!(judged("c", false).await, Feedback::Repeated);
            let missed = ask_and_keep(&pipeline, "d", SIMILAR).await;
            assert_eq!(level(&missed), CacheLevel::Miss, "{missed:?}");
            assert_eq!(level(&ask_and_keep(&pipeline, "e", QUESTION).await), CacheLevel::Exact);
            assert_eq!(judged("e", false).await, Feedback::Counted);
            let stats = pipeline.stats();
            assert_eq!((stats.audit.barred, stats.audit.thrown_away), (1, 1), "{stats:?}");
            assert_eq!((stats.bound.judged_good, stats.bound.judged_wrong), (2, 2), "{stats:?}");
            assert_eq!((stats.bound.recent, stats.bound.recent_disagreed), (2, 1), "one was on the same words");
            // It is similar to what was answered since, but not its own any more.
            assert_ne!(level(&ask_and_keep(&pipeline, "f", QUESTION).await), CacheLevel::Exact);
        },
    );
}

#[test]
fn an_answer_that_is_found_wrong_at_once_is_not_served_to_similar_questions() {
    at_each(
        |config| config.audit.enabled = false,
        |pipeline, _, _| async move {
            ask_and_keep(&pipeline, "a", QUESTION).await;
            assert_eq!(pipeline.feedback(key("a"), false).await.expect("read"), Feedback::Counted);
            assert_eq!(level(&ask_and_keep(&pipeline, "b", QUESTION).await), CacheLevel::Exact, "it is cached by now");
            assert_eq!(pipeline.stats().audit.barred, 1);
            assert_eq!(level(&ask_and_keep(&pipeline, "c", SIMILAR).await), CacheLevel::Miss);
        },
    );
}

#[test]
fn too_many_wrong_hits_switch_similar_ones_off() {
    at_each(
        |config| config.audit.disagreement_max = 0.01,
        |pipeline, _, _| async move {
            let mut round = 0;
            while pipeline.stats().bound.tightenings == 0 {
                round += 1;
                assert!(round < 20, "{:?}", pipeline.stats());
                // Each answer is served once for what it does not answer; then the question gets an answer of its own.
                for (at, question) in [QUESTION, OTHER].into_iter().enumerate() {
                    let question = format!("{question} {}", "now ".repeat(round));
                    ask_and_keep(&pipeline, &format!("{round}-{at}"), &question).await;
                    pipeline.audited().await;
                }
            }
            let stats = pipeline.stats();
            assert!(stats.audit.disagreed >= 4 && stats.bound.loosenings == 0, "{stats:?}");
            let withheld = ask_and_keep(&pipeline, "withheld", "How can I return an item?").await;
            assert_eq!(level(&withheld), CacheLevel::Miss, "{withheld:?}");
            // What would be served with one step less is compared with the turn's own answer, before that is kept.
            let compared = pipeline.stats().audit.overheard;
            let tracked = ask_and_keep(&pipeline, "tracked", "Where can I see my parcel?").await;
            assert_eq!(level(&tracked), CacheLevel::Miss, "{tracked:?}");
            assert_eq!(level(&ask_and_keep(&pipeline, "again", "Where can I see my parcel?").await), CacheLevel::Exact);
            let audit = pipeline.stats().audit;
            assert_eq!((audit.overheard, audit.queued, audit.in_flight), (compared + 1, 0, 0), "{audit:?}");
        },
    );
}

#[test]
fn audits_that_wait_do_not_hold_up_the_end() {
    at_each(
        |config| config.audit.share = 1.0,
        |pipeline, _, _| async move {
            ask_and_keep(&pipeline, "a", QUESTION).await;
            for number in 0..20 {
                let question = format!("{SIMILAR} {}", "now ".repeat(number));
                ask_and_keep(&pipeline, &format!("b{number}"), &question).await;
            }
            pipeline.shutdown().await;
            let audit = pipeline.stats().audit;
            assert!(audit.made() <= 20, "{audit:?}");
        },
    );
}
