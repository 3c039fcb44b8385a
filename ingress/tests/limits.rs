//! Limits as callers meet them, over gRPC and HTTP: what is too much is refused with the time to come back, and what it has cost counts
//! once it is known.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::http::Method;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use turnflow::grpc::proto::converse_response::Event;
use turnflow::grpc::proto::{AskRequest, ErrorKind, ListRequest, WatchRequest};
use turnflow::keys::{Key, KeyFiles, NewKey, Scope};
use turnflow_pipeline::{CallerLimits, Config};
use turnflow_state::{CacheControl, Channel, ConversationId, TenantId, Turn, TurnId};

use self::support::http::{CHAT, HttpClient, Reply, asks, with};
use self::support::{TEST_MAX, TestServer, bounded, converse_request, turn};

const DELIVERY: &str = "How long does standard delivery take?";
const RETURNS: &str = "How do I return an item?";

/// A server with one key, which has these limits.
struct Limited {
    server: TestServer,
    http: HttpClient,
    key: Key,
    id: String,
    _keys: TempDir,
}

impl Limited {
    async fn start(limits: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let files = KeyFiles::new(&Config::defaults().gateway, dir.path()).expect("files");
        let wanted = NewKey {
            tenant: TenantId::new("default").expect("valid id"),
            scopes: BTreeSet::from([Scope::Admin]),
            name: None,
            expires: None,
            limits: limits.parse().expect("limits"),
        };
        let (key, record) = files.create(wanted, Timestamp::now()).expect("made");
        let keys = files.path().to_owned();
        let server = TestServer::start(|config| {
            config.gateway.keys = keys;
            adjust(config);
        })
        .await;
        let http = HttpClient::new(server.http);
        Self { server, http, key, id: record.id.to_string(), _keys: dir }
    }

    async fn models(&self) -> Reply {
        let headers = [("api-key", self.key.reveal())];
        self.http.send(Method::GET, "/v1/models", &headers, Bytes::new()).await
    }

    async fn ask(&self, question: &str) -> Reply {
        self.http.ask(question, &[("api-key", self.key.reveal())]).await
    }

    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", self.key.reveal().parse().expect("a header"));
        request
    }
}

/// A turn that does not come through the door.
fn asked_inside(question: &str) -> Turn {
    Turn {
        tenant: TenantId::new("default").expect("valid id"),
        conversation: ConversationId::new("inside").expect("valid id"),
        id: TurnId::new("1").expect("valid id"),
        channel: Channel::Api,
        text: question.to_owned(),
        at_ms: 0,
        cache_control: CacheControl::Default,
    }
}

/// What a limit has left, by the header `ratelimit`.
fn left(reply: &Reply, limit: &str) -> u64 {
    let field = reply.header("ratelimit").unwrap_or_default();
    let (_, rest) = field.split_once(&format!("\"{limit}\";r=")).expect("the limit is told");
    rest.split([';', ',']).next().and_then(|left| left.parse().ok()).expect("a number")
}

/// Checks that a call was refused for a limit, which says whose it is, how much, and when to come back.
fn check_refused(status: &Status, subject: &str, metric: &str, quota: i64) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    let retry = details.retry_info().and_then(|retry| retry.retry_delay).expect("when to come back");
    assert!(!retry.is_zero(), "{status:?}");
    let violations = details.quota_failure().map(|failure| failure.violations.as_slice()).unwrap_or_default();
    let [violation] = violations else { panic!("{status:?}") };
    assert_eq!((violation.subject.as_str(), violation.quota_metric.as_str()), (subject, metric));
    assert_eq!(violation.quota_value, quota);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_whichever_way_they_come() {
    bounded(async {
        let limited = Limited::start("requests-per-minute=3", |config| {
            config.gateway.limits.tenant = CallerLimits { requests_per_minute: 100, ..CallerLimits::default() };
        })
        .await;
        let open = limited.http.get("/health").await;
        assert_eq!((open.status, open.header("ratelimit")), (200, None), "nobody's in particular");
        let first = limited.models().await;
        assert_eq!(first.header("ratelimit-policy"), Some("\"key-requests\";q=3;w=60, \"tenant-requests\";q=100;w=60"));
        assert_eq!((first.status, left(&first, "key-requests"), left(&first, "tenant-requests")), (200, 2, 99));
        assert_eq!(left(&limited.ask(DELIVERY).await, "key-requests"), 1);
        let mut knowledge = limited.server.knowledge().await;
        knowledge.list(limited.call(ListRequest::default())).await.expect("the third");

        let refused = limited.models().await;
        assert_eq!(refused.error(), (429, "rate_limit_exceeded".to_owned(), None));
        assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
        assert_eq!(left(&refused, "key-requests"), 0);
        let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a number");
        assert!((1..=20).contains(&wait), "{wait}");
        let status = knowledge.list(limited.call(ListRequest::default())).await.expect_err("the fifth");
        check_refused(&status, &format!("key {}", limited.id), "requests", 3);
        limited.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_and_streams_at_once_are_bounded() {
    bounded(async {
        let limited = Limited::start("turns-in-flight=1,streams=2", |_| {}).await;
        let (mut conversations, mut knowledge) = (limited.server.client().await, limited.server.knowledge().await);
        limited.server.gate.set_open(false);
        let (asking, requests) = tokio::sync::mpsc::channel(2);
        let requests = limited.call(ReceiverStream::new(requests));
        let mut heard = conversations.converse(requests).await.expect("open").into_inner();
        asking.send(converse_request(turn("a", "1", DELIVERY))).await.expect("open");
        limited.server.gate.arrived(1).await;

        let refused = limited.ask(RETURNS).await;
        assert_eq!((refused.error().1.as_str(), left(&refused, "key-turns")), ("rate_limit_exceeded", 0));
        let asked = AskRequest { turn: Some(turn("b", "1", RETURNS)) };
        let status = conversations.ask(limited.call(asked)).await.expect_err("a second turn");
        check_refused(&status, &format!("key {}", limited.id), "turns", 1);
        asking.send(converse_request(turn("c", "1", RETURNS))).await.expect("open");
        let error = loop {
            let response = heard.message().await.expect("open").expect("open");
            if let Some(Event::Error(error)) = response.event {
                break (response.conversation_id, error);
            }
        };
        assert_eq!((error.0.as_str(), error.1.kind()), ("c", ErrorKind::Limited));
        assert!(error.1.retry_after_ms.is_some() && error.1.message.contains("1 turns at once"), "{error:?}");

        let watching = knowledge.watch(limited.call(WatchRequest {})).await.expect("a second stream");
        let status = knowledge.watch(limited.call(WatchRequest {})).await.expect_err("a third stream");
        check_refused(&status, &format!("key {}", limited.id), "streams", 2);
        limited.server.gate.set_open(true);
        drop((watching, asking));
        while heard.message().await.expect("open").is_some() {}
        // The server has noticed when it takes both again.
        let body = with(asks(RETURNS), serde_json::json!({ "stream": true }));
        while limited.http.post(CHAT, &[("api-key", limited.key.reveal())], &body).await.status != 200 {}
        limited.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_count_once_they_are_known_and_a_hit_costs_none() {
    bounded(async {
        let limited = Limited::start("tokens-per-minute=60", |_| {}).await;
        // An answer that nobody was charged for.
        let mut events = limited.server.pipeline.submit(asked_inside(DELIVERY)).await.expect("admitted");
        while events.next().await.is_some() {}
        for _ in 0..30 {
            let hit = limited.ask(DELIVERY).await;
            assert_eq!((hit.status, hit.level()), (200, "exact"), "30 times the question is more than a minute has");
        }
        let answered = limited.ask(RETURNS).await;
        let tokens = answered.json()["usage"]["total_tokens"].as_u64().expect("a number");
        assert!(tokens > 60 + TEST_MAX.as_secs(), "the rest is a debt for longer than this test takes: {answered:?}");
        assert_eq!((answered.status, left(&answered, "key-tokens")), (200, 0));
        let refused = limited.ask(DELIVERY).await;
        assert_eq!(refused.error(), (429, "rate_limit_exceeded".to_owned(), None));
        assert!(refused.json()["error"]["message"].as_str().is_some_and(|told| told.contains("60 tokens a minute")));
        limited.server.stop().await;
    })
    .await;
}

/// A token costs a millionth.
fn priced(config: &mut Config) {
    config.tier.price.input_per_million = 1.0;
    config.tier.price.output_per_million = 1.0;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_asked_again_under_its_id_costs_nothing_more() {
    bounded(async {
        let limited = Limited::start("budget-per-day=1", priced).await;
        let headers = [("api-key", limited.key.reveal()), ("idempotency-key", "1"), ("x-conversation-id", "c")];
        let first = limited.http.ask(DELIVERY, &headers).await;
        let spent = first.json()["turnflow"]["cost_micros"].as_u64().expect("a number");
        assert!(spent > 0, "{first:?}");
        assert_eq!((first.status, left(&first, "key-budget")), (200, 1_000_000 - spent));
        let again = limited.http.ask(DELIVERY, &headers).await;
        assert_eq!(again.json()["choices"], first.json()["choices"]);
        assert_eq!((again.status, left(&again, "key-budget")), (200, 1_000_000 - spent));
        let body = with(asks(DELIVERY), serde_json::json!({ "stream": true }));
        assert_eq!(limited.http.post(CHAT, &headers, &body).await.status, 200);
        // What a stream has cost is known at its end.
        assert_eq!(left(&limited.models().await, "key-budget"), 1_000_000 - spent);
        limited.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_pays_for_what_is_written_for_others() {
    bounded(async {
        let limited = Limited::start("budget-per-day=1,turns-in-flight=9", priced).await;
        limited.server.gate.set_open(false);
        let asked = || limited.call(AskRequest { turn: Some(turn("leaves", "1", DELIVERY)) });
        let leader = limited.server.client().await.ask(asked()).await.expect("admitted").into_inner();
        limited.server.gate.arrived(1).await;
        drop(leader);
        // The server has noticed that it is gone.
        while left(&limited.models().await, "key-turns") < 9 {}
        let estimated = 1_000_000 - left(&limited.models().await, "key-budget");
        let leads_to = async {
            while limited.server.pipeline.stats().turns_in_flight < 2 {
                tokio::task::yield_now().await;
            }
            limited.server.gate.set_open(true);
        };
        let (joined, ()) = tokio::join!(limited.ask(DELIVERY), leads_to);
        assert_eq!((joined.status, joined.level()), (200, "joined"));
        assert_eq!(joined.json()["turnflow"]["cost_micros"], 0, "{joined:?}");
        // The same turn again comes behind the first.
        let mut again = limited.server.client().await.ask(asked()).await.expect("admitted").into_inner();
        while again.message().await.expect("open").is_some() {}
        let cost: u64 = limited.server.pipeline.tally().iter().map(|(_, tally)| tally.account.cost_micros).sum();
        assert!(cost > estimated, "{cost} > {estimated}");
        assert_eq!(left(&limited.models().await, "key-budget"), 1_000_000 - cost);
        limited.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_days_budget_ends_with_the_answer_that_exceeds_it() {
    bounded(async {
        let limited = Limited::start("budget-per-day=0.00005", priced).await;
        let first = limited.ask(DELIVERY).await;
        assert!(first.json()["turnflow"]["cost_micros"].as_u64() > Some(50), "{first:?}");
        assert_eq!((first.status, left(&first, "key-budget")), (200, 0));
        let refused = limited.ask(RETURNS).await;
        assert_eq!(refused.error(), (429, "insufficient_quota".to_owned(), None));
        let mut conversations = limited.server.client().await;
        let asked = AskRequest { turn: Some(turn("b", "1", RETURNS)) };
        let status = conversations.ask(limited.call(asked)).await.expect_err("nothing is left");
        check_refused(&status, &format!("key {}", limited.id), "budget", 50);
        assert_eq!(limited.models().await.status, 200, "what costs nothing goes on");
        limited.server.stop().await;
    })
    .await;
}
