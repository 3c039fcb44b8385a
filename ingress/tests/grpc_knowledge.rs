//! The knowledge base over gRPC while turns are answered: what is written counts at once, what still follows stays
//! cached, and every refusal says why.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use turnflow::grpc::CURRENT_VERSION_KEY;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::import_response::Outcome;
use turnflow::grpc::proto::knowledge_base_client::KnowledgeBaseClient;
use turnflow::grpc::proto::{
    Article, CacheLevel, DeleteRequest, DeleteResponse, Done, FallReason, GetRequest, ImportRequest, ListRequest,
    RefusalKind, SearchRequest, UpsertRequest, UpsertResponse, WatchRequest,
};

use self::support::{TestServer, ask, bounded, turn};

const QUESTION: &str = "How long does the battery of the Brightside lantern last?";

fn lantern(hours: u32) -> Article {
    article(
        "lantern",
        "Brightside lantern: battery",
        &format!("The battery of the Brightside lantern lasts {hours} hours."),
    )
}

fn article(id: &str, title: &str, body: &str) -> Article {
    Article { id: id.to_owned(), title: title.to_owned(), body: body.to_owned(), ..Article::default() }
}

fn put(article: Article) -> UpsertRequest {
    UpsertRequest { article: Some(article), expected_version: None, dry_run: false }
}

fn delete_request(id: &str) -> DeleteRequest {
    DeleteRequest { id: id.to_owned(), expected_version: None, dry_run: false }
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Articles,
    Cache,
}

/// A customer who asks each question in a conversation of its own, and a shop that writes.
struct Scene {
    server: TestServer,
    customer: ConversationsClient<Channel>,
    shop: KnowledgeBaseClient<Channel>,
    asked: u32,
}

impl Scene {
    async fn new(workers: usize) -> Self {
        let server = TestServer::start(|config| config.workers.threads = workers).await;
        let (customer, shop) = (server.client().await, server.knowledge().await);
        Self { server, customer, shop, asked: 0 }
    }

    async fn ask(&mut self, question: &str) -> (Origin, Done) {
        self.asked += 1;
        let turn = turn(&format!("c{}", self.asked), "1", question);
        let done = ask(&mut self.customer, turn).await.expect("answered");
        let from = match done.verdict.as_ref().expect("a verdict").level() {
            // Right after the first answer, its being cached may still be under way.
            CacheLevel::Exact | CacheLevel::Joined => Origin::Cache,
            CacheLevel::Miss => Origin::Articles,
            other => panic!("{other:?}: {done:?}"),
        };
        (from, done)
    }

    /// Asks and checks where the answer comes from and, of an answer about the lantern, how many hours it says.
    async fn expect(&mut self, from: Origin, hours: u32) {
        let (found, done) = self.ask(QUESTION).await;
        assert!(done.grounded && done.text.contains(&format!("{hours} hours")), "{done:?}");
        assert_eq!(found, from, "{done:?}");
    }

    async fn upsert(&mut self, article: Article) -> UpsertResponse {
        self.shop.upsert(put(article)).await.expect("written").into_inner()
    }

    async fn delete(&mut self, id: &str) -> DeleteResponse {
        self.shop.delete(delete_request(id)).await.expect("deleted").into_inner()
    }
}

async fn a_write_counts_at_once(workers: usize) {
    let mut scene = Scene::new(workers).await;
    let first = scene.upsert(lantern(40)).await;
    assert_eq!((first.version, first.chunks, first.chunks_changed), (1, 1, 1));
    scene.expect(Origin::Articles, 40).await;
    scene.expect(Origin::Cache, 40).await;

    // Looks alone change nothing that an answer could rest on.
    let mut cosmetic = lantern(40);
    cosmetic.body = cosmetic.body.replace("battery", "  BATTERY\n");
    let second = scene.upsert(cosmetic).await;
    assert_eq!((second.version, second.chunks_changed, second.cached_answers_invalidated), (2, 0, 0));
    assert!(second.epoch > first.epoch);
    scene.expect(Origin::Cache, 40).await;

    let third = scene.upsert(lantern(55)).await;
    assert_eq!((third.version, third.chunks_changed, third.cached_answers_invalidated), (3, 2, 1));
    scene.expect(Origin::Articles, 55).await;
    scene.expect(Origin::Cache, 55).await;

    let deleted = scene.delete("lantern").await;
    assert_eq!((deleted.version, deleted.chunks_changed, deleted.cached_answers_invalidated), (4, 1, 1));
    let (from, done) = scene.ask(QUESTION).await;
    assert!(from == Origin::Articles && !done.text.contains("55 hours"), "{done:?}");
    assert!(done.sources.iter().all(|source| source.article_id != "lantern"), "{done:?}");

    // It comes back with a version that it never had, and overtakes the answer that was given without it.
    let back = scene.upsert(lantern(70)).await;
    assert_eq!((back.version, back.chunks_changed), (5, 1));
    scene.expect(Origin::Articles, 70).await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_counts_at_once_and_what_still_follows_stays_cached() {
    for workers in 1..=3 {
        bounded(a_write_counts_at_once(workers)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing_and_tells_exactly_what_would_fall() {
    bounded(async {
        let questions = [
            "How long does standard delivery take?",
            "What does express delivery cost?",
            "Do you ship to Canada?",
            "Can I return something I have already used?",
            QUESTION,
        ];
        let mut scene = Scene::new(2).await;
        scene.upsert(lantern(40)).await;
        let mut entries = BTreeMap::new();
        for question in questions {
            scene.ask(question).await;
            let (from, done) = scene.ask(question).await;
            assert_eq!(from, Origin::Cache, "{done:?}");
            entries.insert(done.verdict.and_then(|verdict| verdict.entry).expect("a cached answer"), question);
        }
        let before = scene.shop.get(GetRequest { id: "delivery-times".to_owned() }).await.expect("there").into_inner();
        let mut edited = before.article.clone().expect("an article");
        (edited.version, edited.body) = (None, edited.body.replace("3 to 5", "4 to 6"));
        let request = UpsertRequest { dry_run: true, ..put(edited) };
        let forecast = scene.shop.upsert(request.clone()).await.expect("forecast").into_inner();
        assert_eq!((forecast.epoch, forecast.version), (0, 2));
        assert_eq!(forecast.cached_answers_invalidated as usize, forecast.would_invalidate.len());
        let falling: Vec<_> = forecast.would_invalidate.iter().map(|answer| answer.entry).collect();
        assert!(!falling.is_empty() && falling.len() < questions.len(), "{forecast:?}");
        for answer in &forecast.would_invalidate {
            assert_eq!(entries.get(&answer.entry).copied(), Some(answer.question.as_str()));
            assert_ne!(answer.reason(), FallReason::Unspecified);
        }
        let standard = forecast.would_invalidate.iter().find(|answer| answer.question == questions[0]);
        assert_eq!(standard.map(|answer| answer.reason()), Some(FallReason::SupportChanged), "{forecast:?}");

        // Nothing has changed, and a deletion is told as well.
        let after = scene.shop.get(GetRequest { id: "delivery-times".to_owned() }).await.expect("there").into_inner();
        assert_eq!(after, before);
        for question in questions {
            assert_eq!(scene.ask(question).await.0, Origin::Cache, "{question}");
        }
        let deletion = DeleteRequest { dry_run: true, ..delete_request("lantern") };
        let deletion = scene.shop.delete(deletion).await.expect("forecast").into_inner();
        assert_eq!((deletion.version, deletion.epoch), (2, 0));
        assert!(deletion.would_invalidate.iter().any(|answer| answer.question == QUESTION), "{deletion:?}");

        let real = scene.shop.upsert(UpsertRequest { dry_run: false, ..request }).await.expect("written").into_inner();
        let told = |response: &UpsertResponse| {
            (response.version, response.chunks, response.chunks_changed, response.cached_answers_invalidated)
        };
        assert_eq!(told(&real), told(&forecast));
        assert!(real.epoch > 0 && real.would_invalidate.is_empty());
        for (entry, question) in entries {
            let expected = if falling.contains(&entry) { Origin::Articles } else { Origin::Cache };
            assert_eq!(scene.ask(question).await.0, expected, "{question}");
        }
        scene.server.stop().await;
    })
    .await;
}

fn check_conflict(status: &Status, expected: &[&str], current: u64) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    for words in expected {
        assert!(status.message().contains(words), "{:?} does not say {words:?}", status.message());
    }
    let told = status.metadata().get(CURRENT_VERSION_KEY).and_then(|version| version.to_str().ok());
    assert_eq!(told, Some(current.to_string().as_str()));
    let details = status.get_details_precondition_failure().expect("google.rpc.PreconditionFailure");
    let [violation] = details.violations.as_slice() else { panic!("{details:?}") };
    assert_eq!(violation.subject, "lantern");
    assert!(violation.description.contains(&format!("version {current}")), "{violation:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_versions_are_refused_and_tell_the_current_one() {
    bounded(async {
        let mut scene = Scene::new(1).await;
        let expecting =
            |version: u64, article: Article| UpsertRequest { expected_version: Some(version), ..put(article) };
        let mut shop = scene.server.knowledge().await;
        let status = shop.upsert(expecting(1, lantern(40))).await.expect_err("not there");
        check_conflict(&status, &["lantern", "expected version 1", "found no article"], 0);
        shop.upsert(expecting(0, lantern(40))).await.expect("it must not be there");
        let status = shop.upsert(expecting(0, lantern(41))).await.expect_err("there");
        check_conflict(&status, &["expected no article", "found version 1"], 1);
        shop.upsert(expecting(1, Article { version: Some(7), ..lantern(42) })).await.expect("version 1 is there");

        // Of two who saw the same version, one writes.
        let (mut one, mut other) = (scene.server.knowledge().await, scene.server.knowledge().await);
        let (one, other) = tokio::join!(one.upsert(expecting(7, lantern(43))), other.upsert(expecting(7, lantern(44))));
        let refused = if one.is_ok() { other.map(drop) } else { one.map(drop) };
        check_conflict(&refused.expect_err("one of them"), &["expected version 7", "found version 8"], 8);

        let status = shop.upsert(put(Article { version: Some(8), ..lantern(45) })).await.expect_err("used");
        check_conflict(&status, &["version 8 is not greater than 8"], 8);
        let stale = DeleteRequest { expected_version: Some(7), ..delete_request("lantern") };
        check_conflict(&shop.delete(stale).await.expect_err("stale"), &["expected version 7", "found version 8"], 8);
        let dry = UpsertRequest { dry_run: true, ..expecting(7, lantern(46)) };
        check_conflict(&shop.upsert(dry).await.expect_err("stale"), &["expected version 7"], 8);

        scene.delete("lantern").await;
        for status in [
            shop.delete(delete_request("lantern")).await.map(drop).expect_err("gone"),
            shop.get(GetRequest { id: "lantern".to_owned() }).await.map(drop).expect_err("gone"),
        ] {
            assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no article lantern"));
        }
        scene.server.stop().await;
    })
    .await;
}

fn check_violation<T: std::fmt::Debug>(response: Result<T, Status>, field: &str, reason: &str) {
    let status = response.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains(field) && status.message().contains(reason), "{status:?}");
    let details = status.get_details_bad_request().expect("google.rpc.BadRequest");
    let fields: Vec<_> = details.field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field]);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_name_the_field() {
    bounded(async {
        let server = TestServer::start(|config| config.limits.article_bytes_max = 1_000).await;
        let mut shop = server.knowledge().await;
        let long = "x".repeat(129);
        let with_note = |name: &str, value: &str| Article {
            metadata: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..lantern(1)
        };
        for (article, field, reason) in [
            (article("", "T", "B"), "article.id", "empty"),
            (article(&long, "T", "B"), "article.id", "129 bytes"),
            (article("a\nb", "T", "B"), "article.id", "control character"),
            (article("a", "T\u{0}", "B"), "article.title", "control character"),
            (article("a", "T", "B\u{7}"), "article.body", "control character"),
            (with_note("n", "\u{1b}"), "article.metadata", "control character"),
            (with_note("", "v"), "article.metadata", "empty"),
            (Article { version: Some(0), ..lantern(1) }, "article.version", "0 is no version"),
            (
                Article { version: Some(u64::MAX), ..lantern(1) },
                "article.version",
                "1 to 9007194959773696 can be given",
            ),
            (article("a", " ", "\n"), "article", "neither title nor body"),
            (article("a", "T", &"x".repeat(1_000)), "article", "1001 bytes"),
        ] {
            check_violation(shop.upsert(put(article)).await, field, reason);
        }
        check_violation(shop.upsert(UpsertRequest::default()).await, "article", "missing");
        let too_large = put(article("a", "T", &"x".repeat(100_000)));
        assert_eq!(shop.upsert(too_large).await.expect_err("too large").code(), Code::OutOfRange);
        check_violation(shop.delete(delete_request("")).await, "id", "empty");
        check_violation(shop.get(GetRequest { id: long.clone() }).await, "id", "129 bytes");
        let page = ListRequest::default();
        check_violation(shop.list(ListRequest { page_size: 1_001, ..page.clone() }).await, "page_size", "1001");
        check_violation(shop.list(ListRequest { page_token: long, ..page }).await, "page_token", "129 bytes");
        let search = |query: &str, k: u32| SearchRequest { query: query.to_owned(), k };
        check_violation(shop.search(search(" \n", 1)).await, "query", "empty");
        check_violation(shop.search(search("\u{0}", 1)).await, "query", "control character");
        check_violation(shop.search(search(&"x".repeat(8_193), 1)).await, "query", "8193 bytes");
        check_violation(shop.search(search("delivery", 0)).await, "k", "1 to 100");
        check_violation(shop.search(search("delivery", 101)).await, "k", "1 to 100");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn articles_are_listed_page_by_page_and_searched() {
    bounded(async {
        let mut scene = Scene::new(1).await;
        let note = BTreeMap::from([("category".to_owned(), "lamps".to_owned())]);
        scene.upsert(Article { metadata: note.clone(), ..lantern(40) }).await;
        let all = scene.shop.list(ListRequest::default()).await.expect("listed").into_inner();
        assert!(all.articles.is_sorted_by(|a, b| a.id < b.id) && all.next_page_token.is_empty());
        assert!(all.articles.iter().all(|article| article.body.is_empty() && article.version.is_some()));
        let count = all.articles.len();
        assert!(count > 40);
        for page_size in [1, 7, count as u32 - 1, count as u32] {
            let (mut page_token, mut pages, mut found) = (String::new(), 0, Vec::new());
            loop {
                let request = ListRequest { page_size, page_token, with_body: false };
                let page = scene.shop.list(request).await.expect("listed").into_inner();
                assert!(!page.articles.is_empty() && page.articles.len() <= page_size as usize);
                pages += 1;
                found.extend(page.articles);
                if page.next_page_token.is_empty() {
                    break;
                }
                assert_eq!(found.last().map(|article| &article.id), Some(&page.next_page_token));
                page_token = page.next_page_token;
            }
            assert_eq!((found == all.articles, pages), (true, count.div_ceil(page_size as usize)), "{page_size}");
        }
        // A token need not be an article that is still there.
        let request = ListRequest { page_size: 1, page_token: "lanter".to_owned(), with_body: true };
        let page = scene.shop.list(request).await.expect("listed").into_inner();
        assert_eq!(page.articles, [Article { metadata: note, version: Some(1), ..lantern(40) }]);

        let request = SearchRequest { query: QUESTION.to_owned(), k: 3 };
        let found = scene.shop.search(request).await.expect("found").into_inner().chunks;
        assert_eq!(found.len(), 3);
        assert!(found.is_sorted_by(|a, b| a.score >= b.score), "{found:?}");
        let best = &found[0];
        assert_eq!((best.article_id.as_str(), best.version, best.chunk), ("lantern", 1, 0));
        assert!(best.text.contains("40 hours") && best.title == lantern(40).title, "{best:?}");
        scene.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_writes_what_is_good_and_tells_what_is_not_in_order() {
    bounded(async {
        let mut scene = Scene::new(1).await;
        scene.upsert(lantern(40)).await;
        scene.expect(Origin::Articles, 40).await;
        scene.expect(Origin::Cache, 40).await;
        let good = |article: Article| ImportRequest { article: Some(article), expected_version: None };
        let requests = [
            good(article("lid", "Lids", "Every lid of a pan fits the pan of the same size.")),
            good(article("", "No name", "Nobody knows which article this is.")),
            ImportRequest { expected_version: Some(9), ..good(lantern(41)) },
            good(lantern(55)),
            ImportRequest { article: None, expected_version: None },
            good(Article { version: Some(1), ..lantern(56) }),
            // Named again: the later one counts, however they are written together.
            good(article("lid", "Lids", "Lids fit pans of the same series only.")),
            good(article("whisk", "", " ")),
        ];
        let mut responses = scene.shop.import(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        let (mut heard, mut invalidated) = (Vec::new(), 0);
        while let Some(response) = responses.message().await.expect("the stream ends well") {
            assert_eq!(response.index, heard.len() as u64);
            heard.push(match response.outcome.expect("an outcome") {
                Outcome::Written(written) => {
                    assert!(written.epoch > 0 && written.chunks == 1);
                    invalidated += written.cached_answers_invalidated;
                    (response.id, Ok(written.version))
                }
                Outcome::Refused(refused) => {
                    (response.id, Err((refused.kind(), refused.field.unwrap_or_default(), refused.current_version)))
                }
            });
        }
        use RefusalKind::{Invalid, VersionMismatch, VersionNotNewer};
        let invalid = |field: &str| Err((Invalid, field.to_owned(), None));
        let expected = [
            ("lid", Ok(1)),
            ("", invalid("article.id")),
            ("lantern", Err((VersionMismatch, String::new(), Some(1)))),
            ("lantern", Ok(2)),
            ("", invalid("article")),
            ("lantern", Err((VersionNotNewer, String::new(), Some(2)))),
            ("lid", Ok(2)),
            ("whisk", invalid("article")),
        ];
        assert_eq!(heard, expected.map(|(id, outcome)| (id.to_owned(), outcome)));
        assert_eq!(invalidated, 1);
        scene.expect(Origin::Articles, 55).await;
        let lid = scene.shop.get(GetRequest { id: "lid".to_owned() }).await.expect("there").into_inner().article;
        assert!(lid.is_some_and(|lid| lid.body.contains("same series only")));
        scene.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_is_told_every_change_of_the_shop() {
    bounded(async {
        let mut scene = Scene::new(2).await;
        let mut watcher = scene.server.knowledge().await;
        // Answered before anything has happened.
        let mut changes = watcher.watch(WatchRequest {}).await.expect("watching").into_inner();
        let mut heard = async || changes.message().await.expect("open").expect("a change");

        let written = scene.upsert(lantern(40)).await;
        let change = heard().await;
        assert_eq!((change.epoch, change.cached_answers_invalidated), (written.epoch, 0));
        scene.expect(Origin::Articles, 40).await;
        scene.expect(Origin::Cache, 40).await;
        let written = scene.upsert(lantern(55)).await;
        let change = heard().await;
        assert_eq!((change.epoch, change.cached_answers_invalidated), (written.epoch, 1));
        let [article] = change.articles.as_slice() else { panic!("{change:?}") };
        assert_eq!((article.id.as_str(), article.version, article.deleted), ("lantern", 2, false));
        assert_eq!(article.chunks_changed, 2);

        // What is refused is no change.
        let stale = UpsertRequest { expected_version: Some(1), ..put(lantern(60)) };
        scene.shop.upsert(stale).await.expect_err("stale");
        let deleted = scene.delete("lantern").await;
        let change = heard().await;
        assert_eq!((change.epoch, change.articles[0].version, change.articles[0].deleted), (deleted.epoch, 3, true));

        // The server is told to stop, and all streams end.
        let (send, requests) = mpsc::channel(1);
        let mut responses = scene.shop.import(ReceiverStream::new(requests)).await.expect("opened").into_inner();
        send.send(ImportRequest { article: Some(lantern(70)), expected_version: None }).await.expect("open");
        assert!(responses.message().await.expect("open").is_some(), "what was read is written");
        assert!(!heard().await.articles.is_empty());
        let stopped = scene.server.begin_stop();
        for status in [changes.message().await.map(drop), responses.message().await.map(drop)] {
            assert_eq!(status.expect_err("the server stops").code(), Code::Unavailable);
        }
        drop((changes, responses, send, watcher, scene.shop, scene.customer));
        stopped.await.expect("no panic").expect("served");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_shuts_down_takes_no_writes() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut shop = server.knowledge().await;
        server.pipeline.shutdown().await;
        for request in [put(lantern(1)), UpsertRequest { dry_run: true, ..put(lantern(1)) }] {
            assert_eq!(shop.upsert(request).await.expect_err("shutting down").code(), Code::Unavailable);
        }
        let requests = [ImportRequest { article: Some(lantern(1)), expected_version: None }];
        let mut responses = shop.import(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        assert_eq!(responses.message().await.expect_err("shutting down").code(), Code::Unavailable);
        server.stop().await;
    })
    .await;
}
