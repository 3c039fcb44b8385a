//! The knowledge base is written while turns are answered, at 1, 2 and 3 workers, with real parts.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use support::{article, articles, asked, at_each, cached, config, delete, ended, files, import, tenant, turn, write};
use tokio::sync::broadcast::error::TryRecvError;
use turnflow_models::InputType;
use turnflow_pipeline::{ArticleDraft, DraftError, Fall, Parts, Pipeline, PipelineError, Validity};
use turnflow_state::{ArticleId, CacheLevel, Store, TenantId, WriteRefused};

const QUESTION: &str = "How long does delivery take?";

#[test]
fn a_changed_article_is_answered_anew_and_the_rest_stays() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline| async move {
            let level = async |conversation: &str, question: &str| {
                asked(&pipeline, turn(conversation, "1", question)).await.verdict.level
            };
            let first = cached(&pipeline, "a", QUESTION).await;
            assert_eq!(level("b", "Do gift cards expire?").await, CacheLevel::Miss);

            let looks = article(
                "delivery",
                "Delivery Times",
                "Delivery takes THREE to five working days.\n\nExpress delivery takes one day.",
            );
            let receipt = write(&pipeline, looks).await;
            assert_eq!((receipt.invalidated.len(), receipt.epoch), (0, 2), "only the looks have changed");
            assert_eq!(level("c", QUESTION).await, CacheLevel::Exact);

            let receipt = write(&pipeline, article("delivery", "Delivery times", "Delivery takes nine days.")).await;
            let origins: Vec<_> = receipt.invalidated.iter().map(|one| one.origin.conversation.as_str()).collect();
            assert_eq!(origins, ["a"]);
            let fresh = cached(&pipeline, "d", QUESTION).await;
            assert_eq!(fresh.verdict.level, CacheLevel::Miss);
            assert!(fresh.text.contains("nine days") && fresh.text != first.text, "{}", fresh.text);
            assert_eq!(fresh.sources[0].version, 3);
            assert_eq!(level("e", "Do gift cards expire?").await, CacheLevel::Exact, "another article");

            // A new article that would be retrieved instead.
            let better = article("days", "Delivery", "How long does delivery take? Delivery takes two weeks.");
            let receipt = write(&pipeline, better).await;
            assert_eq!(receipt.invalidated.len(), 1, "{receipt:?}");
            let fresh = cached(&pipeline, "f", QUESTION).await;
            assert_eq!((fresh.verdict.level, fresh.sources[0].article_id.as_str()), (CacheLevel::Miss, "days"));

            let receipt = write(&pipeline, delete("days")).await;
            assert_eq!(receipt.invalidated.len(), 1);
            let fresh = cached(&pipeline, "g", QUESTION).await;
            assert_eq!((fresh.verdict.level, fresh.sources[0].article_id.as_str()), (CacheLevel::Miss, "delivery"));
            assert_eq!(pipeline.stats().validity.invalidated, 3);
        },
    );
}

#[test]
fn a_paragraph_that_moves_the_others_leaves_them_alone() {
    at_each(
        |config| {
            config.knowledge.chunks_retrieved = 1;
            config.knowledge.chunk_tokens_max = 16;
        },
        |pipeline| async move {
            let rest = "Lime scale in a kettle goes away with citric acid and boiling water.";
            write(&pipeline, article("care", "Care", rest)).await;
            let question = "How does lime scale in a kettle go away?";
            cached(&pipeline, "a", question).await;
            let longer = format!("Silver cutlery is polished with a soft cloth every other month.\n\n{rest}");
            let receipt = write(&pipeline, article("care", "Care", &longer)).await;
            assert_eq!(receipt.invalidated.len(), 0, "{receipt:?}");
            assert_eq!(receipt.outcomes[0].as_ref().expect("written").chunks_changed, 1);
            assert_eq!(asked(&pipeline, turn("b", "1", question)).await.verdict.level, CacheLevel::Exact);
        },
    );
}

#[test]
fn versions_count_up_and_conflicts_are_refused() {
    at_each(
        |_| {},
        |pipeline| async move {
            let knowledge = pipeline.knowledge();
            let expecting = |version: u64, body: &str| ArticleDraft {
                expected_version: Some(version),
                ..article("delivery", "Delivery", body)
            };
            let receipt = knowledge.write(&tenant(), vec![expecting(7, "x")]).await.expect("a receipt");
            let refused = DraftError::Refused(WriteRefused::VersionMismatch { expected: 7, current: 1 });
            assert_eq!((receipt.outcomes, receipt.epoch), (vec![Err(refused)], 1), "nothing was written");

            let mixed = vec![
                article("empty", " ", "\n"),
                expecting(1, "In two days."),
                article("delivery", "Twice", "Twice."),
                delete("nothing"),
                article("huge", "Huge", &"x".repeat(300_000)),
                article("new", "New", "New."),
            ];
            let receipt = knowledge.write(&tenant(), mixed).await.expect("a receipt");
            let outcomes: Vec<_> =
                receipt.outcomes.iter().map(|outcome| outcome.as_ref().map(|done| done.version)).collect();
            let too_large = DraftError::TooLarge { bytes: 300_004, limit: 262_144 };
            assert_eq!(
                outcomes,
                [
                    Err(&DraftError::Empty),
                    Ok(2),
                    Err(&DraftError::Twice),
                    Err(&DraftError::Refused(WriteRefused::NotFound)),
                    Err(&too_large),
                    Ok(1)
                ]
            );
            write(&pipeline, delete("delivery")).await;
            let id = ArticleId::new("delivery").expect("valid");
            assert_eq!(knowledge.get(&tenant(), &id).await.expect("read"), None);
            let restored = write(&pipeline, article("delivery", "Delivery", "In two days.")).await;
            assert_eq!(restored.outcomes[0].as_ref().expect("written").version, 4, "no version is used twice");
            let ids: Vec<_> = knowledge.list(&tenant(), Some(&id), 2).await.expect("read");
            assert_eq!(ids.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["gift-cards", "kettle-care"]);
            let found = knowledge.search(&tenant(), "lime scale in my kettle", 2).await.expect("search");
            assert_eq!((found.len(), found[0].chunk.id.article.as_str()), (2, "kettle-care"));
        },
    );
}

#[test]
fn a_dry_run_foretells_what_a_write_does_and_does_nothing() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 2,
        |pipeline| async move {
            let knowledge = pipeline.knowledge();
            let questions = [QUESTION, "Do gift cards expire?", "Can I return an item?", "Where is my parcel?"];
            for (number, question) in questions.iter().enumerate() {
                cached(&pipeline, &format!("c{number}"), question).await;
            }
            let drafts = || {
                vec![
                    article("delivery", "Delivery times", "Delivery takes nine days."),
                    article("parcel", "Where is my parcel", "Where your parcel is: on its way."),
                    delete("returns"),
                ]
            };
            let (outcomes, forecasts) = knowledge.dry_run(&tenant(), drafts()).await.expect("foretold");
            assert!(outcomes.iter().all(Result::is_ok));
            let again = asked(&pipeline, turn("again", "1", QUESTION)).await;
            assert_eq!(again.verdict.level, CacheLevel::Exact, "nothing has happened");
            let receipt = knowledge.write(&tenant(), drafts()).await.expect("written");
            let mut fell: Vec<_> = receipt.invalidated.iter().map(|one| one.entry).collect();
            fell.sort();
            assert_eq!(forecasts.iter().map(|one| one.entry).collect::<Vec<_>>(), fell);
            assert!(forecasts.iter().any(|one| one.fall == Fall::SupportChanged && one.question == QUESTION));
            assert_eq!(receipt.outcomes, outcomes);
        },
    );
}

#[test]
fn what_is_too_far_from_a_question_to_be_read_makes_no_answer_invalid() {
    for (margin, falls) in [(0.15, false), (2.0, true)] {
        at_each(
            |config| {
                config.knowledge.chunks_retrieved = 8;
                config.knowledge.score_margin = margin;
            },
            |pipeline| async move {
                cached(&pipeline, "a", QUESTION).await;
                let far = vec![
                    article("kettle-care", "Kettle care", "Lime scale comes off with vinegar."),
                    article("opening", "Opening hours", "We are open from nine to five."),
                ];
                let receipt = pipeline.knowledge().write(&tenant(), far).await.expect("written");
                assert_eq!(!receipt.invalidated.is_empty(), falls, "{margin}");
                let expected = if falls { CacheLevel::Miss } else { CacheLevel::Exact };
                assert_eq!(asked(&pipeline, turn("b", "1", QUESTION)).await.verdict.level, expected, "{margin}");
            },
        );
    }
}

#[test]
fn another_tenants_articles_touch_nothing() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline| async move {
            let other = TenantId::new("other").expect("valid");
            cached(&pipeline, "a", QUESTION).await;
            let theirs =
                vec![article("delivery", "How long does delivery take?", "How long does delivery take? Long.")];
            let receipt = pipeline.knowledge().write(&other, theirs.clone()).await.expect("written");
            assert_eq!(receipt.invalidated, []);
            let foretold = pipeline.knowledge().dry_run(&other, theirs).await.expect("foretold");
            assert_eq!(foretold.1, []);
            assert_eq!(asked(&pipeline, turn("b", "1", QUESTION)).await.verdict.level, CacheLevel::Exact);
        },
    );
}

#[test]
fn an_answer_without_any_support_dies_with_the_first_article() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let config = config(2);
    let parts = Parts::open(&config, Store::memory(), files()).expect("parts");
    let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
    runtime.block_on(async {
        // Nothing is known, so nothing is cached, and those who wait for the answer are told only when it still holds.
        let first = asked(&pipeline, turn("a", "1", QUESTION)).await;
        assert!(!first.grounded);
        import(&pipeline).await;
        assert!(asked(&pipeline, turn("b", "1", QUESTION)).await.grounded);
        pipeline.shutdown().await;
    });
}

#[test]
fn watchers_are_told_of_every_change() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline| async move {
            let mut events = pipeline.knowledge().watch();
            cached(&pipeline, "a", QUESTION).await;
            write(&pipeline, article("delivery", "Delivery times", "Delivery takes nine days.")).await;
            write(&pipeline, delete("tracking")).await;
            let event = events.recv().await.expect("told");
            assert_eq!((event.epoch, event.invalidated, event.tenant.clone()), (2, 1, tenant()));
            let changed = &event.articles[0];
            assert_eq!((changed.id.as_str(), changed.version, changed.deleted), ("delivery", 2, false));
            let event = events.recv().await.expect("told");
            assert_eq!((event.epoch, event.articles[0].deleted), (3, true));
            assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
        },
    );
}

#[test]
fn without_validity_answers_live_until_they_are_too_old() {
    at_each(
        |config| {
            config.cache.validity = Validity::Off;
            config.cache.ttl_s = 60;
        },
        |pipeline| async move {
            let at =
                |conversation: &str, at_ms: u64| turnflow_state::Turn { at_ms, ..turn(conversation, "1", QUESTION) };
            asked(&pipeline, at("a", 1_000)).await;
            let receipt = write(&pipeline, article("delivery", "Delivery times", "Delivery takes nine days.")).await;
            assert_eq!(receipt.invalidated, []);
            let stale = asked(&pipeline, at("b", 60_999)).await;
            assert_eq!(stale.verdict.level, CacheLevel::Exact, "as everybody else does it");
            let fresh = asked(&pipeline, at("c", 61_000)).await;
            assert!(fresh.verdict.level == CacheLevel::Miss && fresh.text.contains("nine days"), "{fresh:?}");
        },
    );
}

#[test]
fn nothing_is_written_once_it_shuts_down() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let config = config(2);
    let parts = Parts::open(&config, Store::memory(), files()).expect("parts");
    let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
    runtime.block_on(async {
        import(&pipeline).await;
        pipeline.shutdown().await;
        let refused = pipeline.knowledge().write(&tenant(), articles()).await;
        assert!(matches!(refused, Err(PipelineError::ShuttingDown)), "{refused:?}");
    });
}

#[test]
fn what_was_not_kept_in_step_is_looked_at_again_by_the_next_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for validity in [Validity::Off, Validity::Off, Validity::Exact] {
        let mut config = config(1);
        config.knowledge.chunks_retrieved = 1;
        config.cache.validity = validity;
        let parts = Parts::open(&config, Store::open(folder.path()).expect("a store"), files()).expect("parts");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            if parts.knowledge.epoch() == 0 {
                import(&pipeline).await;
                cached(&pipeline, "a", QUESTION).await;
                let better = article("days", "Delivery", "How long does delivery take? Delivery takes two weeks.");
                write(&pipeline, better).await;
            }
            let level = asked(&pipeline, turn(&format!("{validity:?}"), "1", QUESTION)).await.verdict.level;
            let expected = if validity == Validity::Exact { CacheLevel::Miss } else { CacheLevel::Exact };
            // The same turn id again gets the same answer, which tells nothing.
            assert!(level == expected, "{validity:?}: {level}");
            pipeline.shutdown().await;
        });
    }
}

#[test]
fn a_restart_serves_what_still_holds_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let start = |workers: usize| {
        let mut config = config(workers);
        config.knowledge.chunks_retrieved = 1;
        let parts = Parts::open(&config, Store::open(folder.path()).expect("a store"), files()).expect("parts");
        (Pipeline::start(&config, &parts).expect("pipeline"), parts)
    };
    let (pipeline, parts) = start(2);
    runtime.block_on(async {
        import(&pipeline).await;
        for (conversation, question) in [("a", QUESTION), ("b", "Do gift cards expire?"), ("c", "Where is my parcel?")]
        {
            cached(&pipeline, conversation, question).await;
        }
        pipeline.shutdown().await;
    });
    drop(pipeline);
    let before = parts.store.entry_ids(None).expect("reads");
    assert_eq!(before.len(), 3);
    // Changes that reach the store and nothing else, as if the process had died right after: one that replaces an
    // article, and one that brings an article which would be retrieved instead of another.
    let knowledge = &parts.knowledge;
    let question = vec!["Where is my parcel?".into()];
    let vector = parts.encoder.encode_blocking(InputType::Query, question).expect("encodes").remove(0);
    let text = |text: &str| turnflow_state::NewContent {
        title: "New".into(),
        body: text.into(),
        metadata: Default::default(),
        version: None,
        chunks: vec![turnflow_state::NewChunk {
            text: text.into(),
            hash: turnflow_state::ContentHash::of("New", text),
            vector: vector.clone(),
        }],
    };
    let write = |id: &str, body: &str| turnflow_state::ArticleWrite {
        tenant: tenant(),
        article: ArticleId::new(id).expect("valid"),
        expected_version: None,
        content: Some(text(body)),
    };
    knowledge
        .apply(
            vec![
                write("delivery", "Delivery takes nine days."),
                write("parcel", "Open the order history to see where your parcel is."),
            ],
            &mut |_| {},
        )
        .expect("applies");
    drop(parts);

    let (pipeline, parts) = start(3);
    runtime.block_on(async {
        assert_eq!(pipeline.stats().validity.entries, 1);
        let levels = [
            ("d", QUESTION, CacheLevel::Miss),
            ("e", "Do gift cards expire?", CacheLevel::Exact),
            ("f", "Where is my parcel?", CacheLevel::Miss),
        ];
        for (conversation, question, expected) in levels {
            let stream = pipeline.submit(turn(conversation, "1", question)).await.expect("admitted");
            assert_eq!(ended(stream).await.expect("answered").verdict.level, expected, "{question}");
        }
        pipeline.shutdown().await;
    });
    drop(pipeline);
    drop(parts);
    let store = Store::open(folder.path()).expect("a store");
    assert_eq!(store.validated_epoch().expect("reads"), store.knowledge_epoch().expect("reads"));
    let after = store.entry_ids(None).expect("reads");
    assert_eq!(before.iter().filter(|id| after.contains(id)).count(), 1, "those that fell are deleted");
}
