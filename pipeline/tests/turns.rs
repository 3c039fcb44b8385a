//! Turns through the whole pipeline with real parts, at 1, 2 and 3 workers.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::collections::HashSet;

use support::{asked, at_each, config, ended, files, import, turn};
use turnflow_pipeline::{Parts, Pipeline, SubmitError, TurnStream};
use turnflow_state::{CacheControl, CacheLevel, Store, TenantId, Turn, TurnErrorKind};

#[test]
fn answers_come_from_the_article_then_from_the_caches() {
    at_each(
        |config| config.cache.similarity_min = 0.8,
        |pipeline| async move {
            let first = asked(&pipeline, turn("c1", "1", "How long does delivery take?")).await;
            assert_eq!(first.verdict.level, CacheLevel::Miss);
            assert!(first.grounded && first.text.contains("three to five working days"), "{}", first.text);
            assert_eq!(first.sources[0].article_id.as_str(), "delivery");
            assert!(first.usage.output_tokens > 0);

            let exact = asked(&pipeline, turn("c2", "1", "how long does  DELIVERY take")).await;
            assert_eq!(exact.verdict.level, CacheLevel::Exact);
            assert_eq!((&exact.text, &exact.sources), (&first.text, &first.sources));
            assert_eq!(exact.usage.output_tokens, 0);
            let origin = exact.verdict.origin.expect("an origin");
            assert_eq!((origin.conversation.as_str(), origin.turn.as_str()), ("c1", "1"));

            let similar = asked(&pipeline, turn("c3", "1", "how long does the delivery take?")).await;
            assert_eq!(similar.verdict.level, CacheLevel::Semantic, "{:?}", similar.verdict);
            assert_eq!(similar.verdict.question.as_deref(), Some("How long does delivery take?"));
            assert!(similar.verdict.similarity.is_some_and(|cosine| cosine >= 0.8));
            assert_eq!(similar.text, first.text);

            let other = asked(&pipeline, turn("c4", "1", "Do gift cards expire?")).await;
            assert_eq!(other.verdict.level, CacheLevel::Miss);
            assert_eq!(other.sources[0].article_id.as_str(), "gift-cards");
        },
    );
}

#[test]
fn nothing_is_shared_between_texts_that_mention_different_things() {
    at_each(
        |config| config.cache.similarity_min = 0.5,
        |pipeline| async move {
            let pairs = [
                ("where is order KK-1041?", "where is order KK-1042?"),
                ("can I track the parcel to ann@mail.example", "can I track the parcel to bob@mail.example"),
                ("is a gift card of $20 possible", "is a gift card of $30 possible"),
            ];
            for (number, (one, other)) in pairs.into_iter().enumerate() {
                let first = asked(&pipeline, turn(&format!("a{number}"), "1", one)).await;
                assert!(!first.verdict.level.is_hit(), "{one}: {:?}", first.verdict);
                let second = asked(&pipeline, turn(&format!("b{number}"), "1", other)).await;
                assert!(!second.verdict.level.is_hit(), "{other}: {:?}", second.verdict);
                let again = asked(&pipeline, turn(&format!("c{number}"), "1", other)).await;
                assert_eq!(again.verdict.level, CacheLevel::Exact, "{other}");
            }
        },
    );
}

#[test]
fn identical_questions_in_flight_are_answered_once() {
    at_each(
        |_| {},
        |pipeline| async move {
            let mut streams = Vec::new();
            for number in 0..40 {
                let turn = turn(&format!("c{number}"), "1", "Are returns free of charge?");
                streams.push(pipeline.submit(turn).await.expect("admitted"));
            }
            let mut levels = Vec::new();
            let mut texts = HashSet::new();
            for stream in streams {
                let completion = ended(stream).await.expect("answered");
                levels.push(completion.verdict.level);
                texts.insert(completion.text);
            }
            assert_eq!(levels.iter().filter(|level| !level.is_hit()).count(), 1, "{levels:?}");
            assert!(levels.contains(&CacheLevel::Joined), "{levels:?}");
            assert_eq!(texts.len(), 1);
        },
    );
}

#[test]
fn a_turn_id_gets_one_answer() {
    at_each(
        |_| {},
        |pipeline| async move {
            let first = pipeline.submit(turn("c", "t", "Do gift cards expire?")).await.expect("admitted");
            let at_once = pipeline.submit(turn("c", "t", "Do gift cards expire?")).await.expect("admitted");
            let first = ended(first).await.expect("answered");
            let at_once = ended(at_once).await.expect("answered");
            let later = asked(&pipeline, turn("c", "t", "something else altogether")).await;
            for again in [at_once, later] {
                assert_eq!((again.text, again.verdict), (first.text.clone(), first.verdict.clone()));
            }
        },
    );
}

#[test]
fn turns_of_a_conversation_are_answered_in_order() {
    at_each(
        |_| {},
        |pipeline| async move {
            let questions = ["Do gift cards expire?", "How do I clean my kettle?", "How long does delivery take?"];
            // A conversation of each length up to 10: what comes last in one is in the middle of another.
            let mut conversations: Vec<Vec<TurnStream>> = (0..10).map(|_| Vec::new()).collect();
            let mut number = 0;
            for at in 0..10 {
                for (length, streams) in conversations.iter_mut().enumerate().skip(at) {
                    let text = format!("{} I ask {}", questions[number % 3], "now ".repeat(number % 5));
                    let turn = turn(&format!("c{length}"), &number.to_string(), &text);
                    streams.push(pipeline.submit(turn).await.expect("admitted"));
                    number += 1;
                }
            }
            let mut waiting = tokio::task::JoinSet::new();
            for (length, mut streams) in conversations.into_iter().enumerate() {
                waiting.spawn(async move {
                    // When tasks run says nothing of when answers came: by the last one's end, all others have ended.
                    ended(streams.pop().expect("at least one")).await.expect("answered");
                    for stream in streams {
                        let end = tokio::time::timeout(std::time::Duration::ZERO, ended(stream)).await;
                        end.unwrap_or_else(|_| panic!("conversation {length} out of order")).expect("answered");
                    }
                });
            }
            let mut count = 0;
            while let Some(joined) = waiting.join_next().await {
                joined.expect("in order");
                count += 1;
            }
            assert_eq!((count, number), (10, 55));
        },
    );
}

#[test]
fn cache_control_is_kept() {
    at_each(
        |_| {},
        |pipeline| async move {
            let with = |conversation: &str, cache_control| Turn {
                cache_control,
                ..turn(conversation, "1", "How do I remove lime scale from a kettle?")
            };
            let levels = [
                ("a", CacheControl::ReadOnly, CacheLevel::Miss),
                ("b", CacheControl::Bypass, CacheLevel::Bypass),
                ("c", CacheControl::Default, CacheLevel::Miss),
                ("d", CacheControl::ReadOnly, CacheLevel::Exact),
                ("e", CacheControl::Bypass, CacheLevel::Bypass),
                ("f", CacheControl::Default, CacheLevel::Exact),
            ];
            for (conversation, control, expected) in levels {
                let completion = asked(&pipeline, with(conversation, control)).await;
                assert_eq!(completion.verdict.level, expected, "{conversation} {control}");
            }
        },
    );
}

#[test]
fn what_is_not_known_is_said_and_cached_for_the_same_words() {
    at_each(
        |_| {},
        |pipeline| async move {
            for (conversation, text, level) in [
                ("a", "Who won the chess championship in Reykjavik?", CacheLevel::Miss),
                ("b", "who won the chess championship in Reykjavik", CacheLevel::Exact),
                ("c", "Who has won the chess championship in Reykjavik?", CacheLevel::Miss),
            ] {
                let completion = asked(&pipeline, turn(conversation, "1", text)).await;
                assert!(!completion.grounded && completion.sources.is_empty(), "{}", completion.text);
                assert_eq!(completion.verdict.level, level, "{text}");
            }
        },
    );
}

#[test]
fn a_turn_that_leans_on_the_conversation_shares_nothing() {
    at_each(
        |_| {},
        |pipeline| async move {
            for (conversation, topic, article) in
                [("a", "Do you sell gift cards?", "gift-cards"), ("b", "Can I return an item?", "returns")]
            {
                asked(&pipeline, turn(conversation, "1", topic)).await;
                let follow_up = asked(&pipeline, turn(conversation, "2", "and what does it cost?")).await;
                assert_eq!(follow_up.verdict.level, CacheLevel::Bypass);
                assert_eq!(follow_up.sources.first().map(|source| source.article_id.as_str()), Some(article));
            }
        },
    );
}

#[test]
fn tenants_share_nothing() {
    at_each(
        |_| {},
        |pipeline| async move {
            asked(&pipeline, turn("c", "1", "Do gift cards expire?")).await;
            let mut elsewhere = turn("c", "1", "Do gift cards expire?");
            elsewhere.tenant = TenantId::new("other").expect("valid");
            let completion = asked(&pipeline, elsewhere).await;
            assert_eq!(completion.verdict.level, CacheLevel::Miss);
            assert!(!completion.grounded, "the other tenant has no articles: {}", completion.text);
        },
    );
}

#[test]
fn what_is_wrong_or_too_much_is_refused() {
    at_each(
        |config| {
            config.limits.text_bytes_max = 100;
            config.limits.turns_per_conversation_max = 3;
        },
        |pipeline| async move {
            for (text, expected) in [
                (String::new(), "is empty"),
                (" \n".into(), "is empty"),
                ("x".repeat(101), "has 101 bytes, at most 100 are allowed"),
            ] {
                match pipeline.submit(turn("c", "1", &text)).await {
                    Err(SubmitError::Invalid { field: "text", message }) => assert_eq!(message, expected),
                    other => panic!("{other:?}"),
                }
            }
            let mut streams = Vec::new();
            for number in 0..6 {
                streams.push(
                    pipeline
                        .submit(turn("busy", &number.to_string(), "Do gift cards expire?"))
                        .await
                        .expect("admitted"),
                );
            }
            let mut refused = 0;
            for stream in streams {
                match ended(stream).await {
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind, TurnErrorKind::Overloaded, "{error}");
                        refused += 1;
                    }
                }
            }
            assert!(refused <= 3, "the first three fit");
            asked(&pipeline, turn("busy", "later", "Are returns free?")).await;
        },
    );
}

#[test]
fn admission_is_bounded_and_recovers() {
    at_each(
        |config| {
            config.limits.turns_in_flight_max = 2;
            config.limits.admission_wait_ms = 1;
        },
        |pipeline| async move {
            let mut admitted = Vec::new();
            let mut refused = 0;
            for number in 0..50 {
                match pipeline
                    .submit(turn(&format!("c{number}"), "1", &format!("how do I clean kettle number {number}")))
                    .await
                {
                    Ok(stream) => admitted.push(stream),
                    Err(SubmitError::Overloaded { retry_after_ms }) => {
                        assert!(retry_after_ms > 0);
                        refused += 1;
                    }
                    Err(other) => panic!("{other:?}"),
                }
                assert!(pipeline.stats().turns_in_flight <= 2);
            }
            assert!(refused > 0, "two places cannot hold fifty turns");
            for stream in admitted {
                ended(stream).await.expect("answered");
            }
            asked(&pipeline, turn("after", "1", "Do gift cards expire?")).await;
        },
    );
}

#[test]
fn shutdown_answers_what_was_admitted_and_refuses_the_rest() {
    at_each(
        |_| {},
        |pipeline| async move {
            let mut streams = Vec::new();
            for number in 0..30 {
                let text = format!("How long does delivery take to street {number}?");
                streams.push(pipeline.submit(turn(&format!("c{number}"), "1", &text)).await.expect("admitted"));
            }
            pipeline.shutdown().await;
            assert!(matches!(pipeline.submit(turn("late", "1", "hello")).await, Err(SubmitError::ShuttingDown)));
            for stream in streams {
                ended(stream).await.expect("answered");
            }
            assert_eq!(pipeline.stats().turns_in_flight, 0);
        },
    );
}

#[test]
fn a_dropped_stream_is_answered_all_the_same() {
    at_each(
        |_| {},
        |pipeline| async move {
            drop(pipeline.submit(turn("c", "1", "Do gift cards expire?")).await.expect("admitted"));
            let again = asked(&pipeline, turn("c", "1", "Do gift cards expire?")).await;
            assert_eq!(again.verdict.level, CacheLevel::Miss, "the first answer, not a second one");
        },
    );
}

#[test]
fn everything_survives_a_restart_with_another_number_of_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let question = "How long does delivery take?";
    let mut first = None;
    for workers in [1, 3, 2] {
        let config = config(workers);
        let store = Store::open(folder.path()).expect("a store");
        let parts = Parts::open(&config, store, files()).expect("parts");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            if first.is_none() {
                import(&pipeline).await;
            }
            let same_turn = asked(&pipeline, turn("c", "1", question)).await;
            let same_words = asked(&pipeline, turn(&format!("c{workers}"), "1", question)).await;
            assert_eq!(same_words.verdict.level, CacheLevel::Exact);
            let first = first.get_or_insert_with(|| same_turn.clone());
            assert_eq!(same_turn.verdict, first.verdict);
            assert_eq!((&same_turn.text, &same_words.text), (&first.text, &first.text));
            pipeline.shutdown().await;
        });
    }
}

/// More questions than a tier can hold: those refused must wait quietly and be answered all the same.
#[test]
fn a_full_tier_is_waited_for() {
    at_each(
        |config| {
            config.tier.queue_max = 1;
            config.encoder.queue_max = 1;
            config.cache.semantic = false;
        },
        |pipeline| async move {
            let mut streams = Vec::new();
            for number in 0..40 {
                let text = format!("How long does delivery to street {number} take?");
                streams.push(pipeline.submit(turn(&format!("c{number}"), "1", &text)).await.expect("admitted"));
            }
            for stream in streams {
                ended(stream).await.expect("answered");
            }
        },
    );
}
