//! Looking at the caches and flushing them while turns are answered, at 1, 2 and 3 workers, with real parts.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::collections::HashSet;

use support::{ask, asked, at_each, cached, config, files, import, tenant, turn};
use turnflow_pipeline::{Listing, Parts, Pipeline, PipelineError, Selection};
use turnflow_state::{ArticleId, CacheLevel, ConversationId, EntryId, Store, TenantId, Turn};

const DELIVERY: &str = "How long does delivery take?";
const GIFTS: &str = "Do gift cards expire?";
const RETURNS: &str = "Can I return an item?";

fn shop() -> Selection {
    Selection::all(tenant())
}

fn about(article: &str) -> Selection {
    shop().article(ArticleId::new(article).expect("valid"))
}

async fn list(pipeline: &Pipeline, selection: Selection) -> Listing {
    pipeline.caches().list(selection, 100).await.expect("listed")
}

/// The questions that are meant, those first that were served most often.
async fn questions(pipeline: &Pipeline, selection: Selection) -> Vec<String> {
    list(pipeline, selection).await.entries.into_iter().map(|entry| entry.question).collect()
}

fn of_other(conversation: &str) -> Turn {
    Turn { tenant: TenantId::new("other").expect("valid"), ..turn(conversation, "1", DELIVERY) }
}

#[test]
fn what_is_cached_is_shown_with_where_it_comes_from() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline| async move {
            cached(&pipeline, "a", GIFTS).await;
            let first = cached(&pipeline, "b", DELIVERY).await;
            ask(&pipeline, "c", DELIVERY).await;
            ask(&pipeline, "d", RETURNS).await;
            asked(&pipeline, of_other("e")).await;
            assert_eq!(questions(&pipeline, shop()).await, [DELIVERY, GIFTS, RETURNS]);
            assert_eq!(questions(&pipeline, about("delivery")).await, [DELIVERY]);
            assert_eq!(questions(&pipeline, shop().text("GIFT  cards")).await, [GIFTS]);
            assert_eq!(questions(&pipeline, about("returns").text("gift")).await, [""; 0]);

            let most = pipeline.caches().list(shop(), 1).await.expect("listed");
            assert_eq!((most.matched, most.entries.len()), (3, 1));
            let entry = &most.entries[0];
            assert_eq!((entry.hits, entry.audits, entry.refreshed, entry.shared), (2, 0, false, true));
            assert_eq!((&entry.answer.text, entry.origin.conversation.as_str()), (&first.text, "b"));
            assert_eq!(entry.rests_on, [ArticleId::new("delivery").expect("valid")]);
            assert_eq!(entry.answer.sources, first.sources);
            assert_eq!(list(&pipeline, shop().entry(entry.id)).await.entries, most.entries);
            assert_eq!(list(&pipeline, shop().entry(EntryId(u64::MAX))).await, Listing::default());
        },
    );
}

#[test]
fn what_is_flushed_is_not_served_again_and_the_rest_is() {
    at_each(
        |config| config.knowledge.chunks_retrieved = 1,
        |pipeline| async move {
            let level =
                async |conversation: &str, question: &str| ask(&pipeline, conversation, question).await.verdict.level;
            let flush = async |selection| pipeline.caches().flush(selection).await.expect("flushed").entries;
            for (conversation, question) in [("a", DELIVERY), ("b", GIFTS), ("c", RETURNS)] {
                cached(&pipeline, conversation, question).await;
            }
            asked(&pipeline, of_other("d")).await;

            let gifts = list(&pipeline, shop().text("gift cards")).await.entries[0].id;
            let watched = pipeline.knowledge().watch();
            assert_eq!(flush(shop().entry(gifts)).await, 1);
            assert!(watched.is_empty(), "no article has changed");
            assert_eq!(flush(shop().entry(gifts)).await, 0);
            assert_eq!(cached(&pipeline, "e", GIFTS).await.verdict.level, CacheLevel::Miss);
            assert_eq!(level("f", DELIVERY).await, CacheLevel::Exact);

            assert_eq!(flush(about("delivery")).await, 1);
            assert_eq!(cached(&pipeline, "g", DELIVERY).await.verdict.level, CacheLevel::Miss);
            assert_eq!(level("h", GIFTS).await, CacheLevel::Exact, "answered anew, and it rests on something else");

            assert_eq!(flush(shop()).await, 3);
            assert_eq!(list(&pipeline, shop()).await, Listing::default());
            assert_eq!(level("i", RETURNS).await, CacheLevel::Miss);
            assert_eq!(level("j", RETURNS).await, CacheLevel::Exact);
            assert_eq!(asked(&pipeline, of_other("k")).await.verdict.level, CacheLevel::Exact, "another tenant's");
        },
    );
}

#[test]
fn without_validity_a_flush_is_as_exact() {
    at_each(
        |config| config.cache.validity = turnflow_pipeline::Validity::Off,
        |pipeline| async move {
            cached(&pipeline, "a", DELIVERY).await;
            assert_eq!(pipeline.caches().flush(shop()).await.expect("flushed").entries, 1);
            assert_eq!(ask(&pipeline, "b", DELIVERY).await.verdict.level, CacheLevel::Miss);
        },
    );
}

/// Many ask the same few questions while the tenant is flushed again and again. A turn that is admitted after a flush was acknowledged
/// must not be served what a turn asked that ended before the flush began.
#[test]
fn nothing_from_before_a_flush_is_served_after_it() {
    at_each(
        |_| {},
        |pipeline| async move {
            let mut before: HashSet<ConversationId> = HashSet::new();
            for round in 0..30 {
                let ask_all = async |part: &str| {
                    let asking = (0..8).map(|number| {
                        let (pipeline, name) = (pipeline.clone(), format!("{round}-{part}-{number}"));
                        tokio::spawn(async move {
                            let question = [DELIVERY, GIFTS][number % 2];
                            (ConversationId::new(&name).expect("valid"), ask(&pipeline, &name, question).await)
                        })
                    });
                    asking.collect::<Vec<_>>()
                };
                // Some of them are on their way when the flush comes.
                let underway = ask_all("before").await;
                pipeline.caches().flush(shop()).await.expect("flushed");
                for asked in ask_all("after").await {
                    let (_, completion) = asked.await.expect("answered");
                    if let Some(origin) = completion.verdict.origin {
                        let from = &origin.conversation;
                        assert!(!before.contains(from), "round {round}: {from} was flushed");
                    }
                }
                for asked in underway {
                    before.insert(asked.await.expect("answered").0);
                }
                before.extend(
                    (0..8).map(|number| ConversationId::new(format!("{round}-after-{number}")).expect("valid")),
                );
            }
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_flushed_does_not_come_back_with_a_restart() {
    let (config, store) = (config(2), Store::memory());
    let parts = Parts::open(&config, store.clone(), files()).expect("parts");
    let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
    import(&pipeline).await;
    cached(&pipeline, "a", DELIVERY).await;
    cached(&pipeline, "b", GIFTS).await;
    pipeline.caches().flush(shop().text("delivery")).await.expect("flushed");
    // A crash now would find this, and so does another process.
    let mut kept = Vec::new();
    store
        .entries(&mut |entry| {
            kept.push(entry.question);
            std::ops::ControlFlow::Continue(())
        })
        .expect("readable");
    assert_eq!(kept, [GIFTS]);
    pipeline.shutdown().await;
    assert!(matches!(pipeline.caches().flush(shop()).await, Err(PipelineError::ShuttingDown)));
    assert!(matches!(pipeline.caches().list(shop(), 1).await, Err(PipelineError::ShuttingDown)));

    let parts = Parts::open(&config, store, files()).expect("parts");
    let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
    assert_eq!(ask(&pipeline, "c", DELIVERY).await.verdict.level, CacheLevel::Miss);
    assert_eq!(ask(&pipeline, "d", GIFTS).await.verdict.level, CacheLevel::Exact);
    pipeline.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_become_of_an_answer_outlives_a_restart() {
    let (store, config_before) = (Store::memory(), config(2));
    let start = |config| {
        let parts = Parts::open(config, store.clone(), files()).expect("parts");
        Pipeline::start(config, &parts).expect("pipeline")
    };
    let pipeline = start(&config_before);
    import(&pipeline).await;
    cached(&pipeline, "a", DELIVERY).await;
    cached(&pipeline, "b", GIFTS).await;
    ask(&pipeline, "c", GIFTS).await;
    pipeline.feedback(turn("b", "1", GIFTS).key(), true).await.expect("counted");
    let before = list(&pipeline, shop()).await;
    let of_gifts = &before.entries[0];
    assert_eq!((of_gifts.question.as_str(), of_gifts.hits, of_gifts.audits, of_gifts.agreed), (GIFTS, 2, 1, 1));
    pipeline.shutdown().await;

    // Other workers have the entries from now on.
    let pipeline = start(&config(3));
    assert_eq!(list(&pipeline, shop()).await, before);
    ask(&pipeline, "d", GIFTS).await;
    // Written along with what is written anyway.
    cached(&pipeline, "e", RETURNS).await;
    pipeline.caches().flush(shop().text("return")).await.expect("flushed");
    pipeline.shutdown().await;
    let mut hits: Vec<u32> = store.histories().expect("readable").values().map(|history| history.served).collect();
    hits.sort_unstable();
    assert_eq!(hits, [1, 3], "and what was flushed is gone");
}

#[test]
fn conversations_are_found_by_time_and_by_name() {
    at_each(
        |_| {},
        |pipeline| async move {
            for (conversation, id, question) in [("b", "1", DELIVERY), ("a", "1", GIFTS), ("b", "2", RETURNS)] {
                asked(&pipeline, turn(conversation, id, question)).await;
            }
            asked(&pipeline, of_other("c")).await;
            let conversations = pipeline.conversations();
            let ids = |found: Vec<turnflow_pipeline::Summary>| -> Vec<(String, u64, String)> {
                let short = found.into_iter().map(|summary| {
                    let last = summary.last.expect("it has turns").turn.text;
                    (summary.id.to_string(), summary.turns_answered, last)
                });
                short.collect()
            };
            let recent = ids(conversations.recent(&tenant(), 9).await.expect("read"));
            let (a, b) = (("a".into(), 1, GIFTS.into()), ("b".into(), 2, RETURNS.into()));
            assert_eq!(recent, [b.clone(), a.clone()]);
            let first = ids(conversations.list(&tenant(), None, 1).await.expect("read"));
            assert_eq!(first, [a]);
            let after = ConversationId::new("a").expect("valid");
            assert_eq!(ids(conversations.list(&tenant(), Some(&after), 9).await.expect("read")), [b]);
            let turns = conversations.turns(&tenant(), &ConversationId::new("b").expect("valid")).await.expect("read");
            let texts: Vec<_> = turns.iter().map(|record| record.turn.text.as_str()).collect();
            assert_eq!(texts, [DELIVERY, RETURNS]);
        },
    );
}
