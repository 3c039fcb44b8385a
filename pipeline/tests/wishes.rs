//! What a caller tells and wants besides its turn: a history, an age, an answer from a cache or none, a tier.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use turnflow_pipeline::{Pipeline, Submission, Wishes};
use turnflow_state::{CacheLevel, Completion, Exchange, TierSize, Turn, TurnError, TurnErrorKind, TurnEvent, Verdict};

use self::support::{asked, at_each, ended, turn};

const QUESTION: &str = "How long does delivery take?";
const LEANING: &str = "And how long with express?";

async fn submitted(pipeline: &Pipeline, submission: Submission) -> Result<Completion, TurnError> {
    ended(pipeline.submit_with(submission).await.expect("admitted")).await
}

fn wanting(turn: Turn, wishes: Wishes) -> Submission {
    Submission { wishes, ..turn.into() }
}

fn told(turn: Turn) -> Submission {
    let before = |question: &str| Exchange { question: question.to_owned(), answer: "Yes.".to_owned() };
    Submission { told: vec![before("Do you sell kettles?"), before(QUESTION)], ..turn.into() }
}

#[test]
fn a_turn_that_leans_on_what_it_is_told_shares_nothing() {
    at_each(
        |_| {},
        |pipeline| async move {
            for conversation in ["a", "b"] {
                let leaning = submitted(&pipeline, told(turn(conversation, "1", LEANING))).await.expect("answered");
                assert_eq!(leaning.verdict.level, CacheLevel::Bypass, "{:?}", leaning.verdict);
                assert!(leaning.verdict.reason.contains("leans"), "{:?}", leaning.verdict);
                assert_eq!(leaning.sources[0].article_id.as_str(), "delivery");
            }
            assert_eq!(asked(&pipeline, turn("c", "1", LEANING)).await.verdict.level, CacheLevel::Miss);
            // What stands alone is cached and served, whatever was told.
            let first = submitted(&pipeline, told(turn("d", "1", QUESTION))).await.expect("answered");
            let again = submitted(&pipeline, told(turn("e", "1", QUESTION))).await.expect("answered");
            assert_eq!([first.verdict.level, again.verdict.level], [CacheLevel::Miss, CacheLevel::Exact]);
            // Once a turn was answered here, what is remembered counts, and not what is told.
            let other = submitted(&pipeline, told(turn("d", "2", "hello"))).await.expect("answered");
            assert!(!other.grounded);
            let stored = pipeline.submit_with(told(turn("f", "1", "How do I clean my kettle?"))).await;
            ended(stored.expect("admitted")).await.expect("answered");
            let leaning = submitted(&pipeline, told(turn("f", "2", "And with what?"))).await.expect("answered");
            assert_eq!(leaning.sources[0].article_id.as_str(), "kettle-care", "{leaning:?}");
        },
    );
}

/// Asks at a time until the answer comes from the cache and is so old: until it is known to hold, others wait for it, or get an older one.
async fn kept(pipeline: &Pipeline, name: &str, at_ms: u64, age_ms: u64) -> Verdict {
    let mut number = 0;
    loop {
        number += 1;
        let turn = Turn { at_ms, ..turn(&format!("{name}{number}"), "1", QUESTION) };
        let verdict = asked(pipeline, turn).await.verdict;
        if verdict.age_ms == Some(age_ms) {
            return verdict;
        }
    }
}

#[test]
fn a_cached_answer_may_be_too_old_or_all_that_is_wanted() {
    at_each(
        |_| {},
        |pipeline| async move {
            let at = |id: &str, at_ms: u64| Turn { at_ms, ..turn(id, "1", QUESTION) };
            let only = Wishes { only_cached: true, ..Wishes::default() };
            let aged = |age_ms_max: u64| Wishes { age_ms_max: Some(age_ms_max), ..Wishes::default() };
            let refused = submitted(&pipeline, wanting(at("a", 0), only)).await.expect_err("nothing is cached");
            assert_eq!(refused.kind, TurnErrorKind::Uncached);
            assert_eq!(asked(&pipeline, at("b", 1_000)).await.verdict.level, CacheLevel::Miss);
            kept(&pipeline, "k", 9_000, 8_000).await;
            let cached = submitted(&pipeline, wanting(at("c", 9_000), only)).await.expect("answered").verdict;
            assert_eq!((cached.level, cached.age_ms), (CacheLevel::Exact, Some(8_000)));
            let fresh = submitted(&pipeline, wanting(at("d", 9_000), aged(8_000))).await.expect("answered").verdict;
            assert_eq!((fresh.level, fresh.age_ms), (CacheLevel::Exact, Some(8_000)));
            let both = Wishes { only_cached: true, ..aged(7_999) };
            let refused = submitted(&pipeline, wanting(at("e", 9_000), both)).await.expect_err("it is too old");
            assert_eq!(refused.kind, TurnErrorKind::Uncached);
            // Its own answer takes the place of the old one.
            let anew = submitted(&pipeline, wanting(at("f", 9_000), aged(7_999))).await.expect("answered").verdict;
            assert_eq!(anew.level, CacheLevel::Miss);
            let younger = kept(&pipeline, "g", 10_000, 1_000).await;
            assert_eq!((younger.level, younger.age_ms), (CacheLevel::Exact, Some(1_000)));
        },
    );
}

#[test]
fn a_tier_that_is_named_passes_the_caches_by() {
    at_each(
        |config| config.routing.enabled = true,
        |pipeline| async move {
            for (id, size) in [("a", TierSize::Small), ("b", TierSize::Large)] {
                let wishes = Wishes { size: Some(size), ..Wishes::default() };
                let answered = submitted(&pipeline, wanting(turn(id, "1", QUESTION), wishes)).await.expect("answered");
                let route = answered.verdict.route.expect("a tier was asked");
                assert_eq!((answered.verdict.level, route.size), (CacheLevel::Bypass, size));
            }
            assert_eq!(asked(&pipeline, turn("c", "1", QUESTION)).await.verdict.level, CacheLevel::Miss);
        },
    );
}

#[test]
fn a_stream_tells_what_is_known_before_the_end() {
    at_each(
        |_| {},
        |pipeline| async move {
            let first_piece = async |id: &str| {
                let mut stream = pipeline.submit_within(turn(id, "1", QUESTION), Some(Duration::from_secs(60))).await;
                let stream = stream.as_mut().expect("admitted");
                assert!(stream.beginning().is_none() && stream.completion().is_none());
                assert_eq!(stream.next().await, Some(TurnEvent::Accepted));
                assert!(matches!(stream.next().await, Some(TurnEvent::Delta(_))));
                let known = (stream.beginning(), stream.completion().map(|completion| completion.verdict.level));
                while stream.next().await.is_some() {}
                known
            };
            let (beginning, completion) = first_piece("a").await;
            let beginning = beginning.expect("a tier has begun");
            assert_eq!((beginning.level, beginning.size, completion), (CacheLevel::Miss, TierSize::Large, None));
            assert_eq!(first_piece("b").await, (None, Some(CacheLevel::Exact)));
        },
    );
}
