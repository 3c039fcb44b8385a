//! What HTTP clients hear of an answer while it is written: pieces, those of others, what becomes void, and the end of a key, a client or
//! the server meanwhile.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use axum::http::{Method, Response};
use crossbeam_channel::{Receiver, Sender, unbounded};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use turnflow::keys::{KeyFiles, KeyLimits, NewKey, Scope};
use turnflow_models::{Cancel, Lane, ModelError, Rejected, TierBackend, TierHandle, TierJob, TierStats};
use turnflow_pipeline::Config;
use turnflow_state::{Answer, TenantId, Tier, Usage};

use self::support::http::{CHAT, HttpClient, Reply, asks, streamed, text, whole, with};
use self::support::{TestServer, bounded, plain};

const DELIVERY: &str = "How long does standard delivery take?";
const SIMILAR: &str = "How many days does standard delivery take?";
const OTHER: &str = "Do you ship to Canada?";

/// A tier that says a piece, and the rest when it is told to.
struct Paced {
    go: Receiver<()>,
    tells: mpsc::UnboundedSender<Happened>,
}

/// What became of a question to it.
#[derive(Debug, PartialEq)]
enum Happened {
    Came,
    /// Nobody waits any more.
    Left,
}

impl TierBackend for Paced {
    fn tier(&self) -> Tier {
        Tier::Openai
    }

    fn identity(&self) -> String {
        "paced".to_owned()
    }

    fn submit(&self, _: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        let TierJob { request, mut on_delta, done, .. } = job;
        let (go, tells) = (self.go.clone(), self.tells.clone());
        let _ = tells.send(Happened::Came);
        let cancel: Cancel = request.cancel.clone();
        cancel.on_cancel(move || {
            let _ = tells.send(Happened::Left);
        });
        std::thread::spawn(move || {
            on_delta("In two ".to_owned());
            if go.recv().is_err() {
                return done(Err(ModelError::Cancelled));
            }
            on_delta("days.".to_owned());
            let usage = Usage { input_tokens: 7, output_tokens: 3 };
            done(Ok(Answer {
                text: "In two days.".to_owned(),
                tier: Tier::Openai,
                sources: Vec::new(),
                usage,
                grounded: true,
                cut_off: true,
            }));
        });
        Ok(())
    }

    fn stats(&self) -> TierStats {
        TierStats::default()
    }

    fn queued(&self) -> usize {
        0
    }
}

async fn paced() -> (TestServer, HttpClient, Sender<()>, mpsc::UnboundedReceiver<Happened>) {
    paced_with(plain).await
}

async fn paced_with(
    adjust: impl FnOnce(&mut Config),
) -> (TestServer, HttpClient, Sender<()>, mpsc::UnboundedReceiver<Happened>) {
    let ((go, told), (tells, happened)) = (unbounded(), mpsc::unbounded_channel());
    let server =
        TestServer::start_with(adjust, move |_, parts| parts.tiers.large = TierHandle::new(Paced { go: told, tells }))
            .await;
    let client = HttpClient::new(server.http);
    (server, client, go, happened)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_an_answer_as_it_is_written() {
    bounded(async {
        let (server, client, go, _happened) = paced().await;
        let (response, first) = told(&client, DELIVERY, "In two ").await;
        // The head says what is known while the answer is being written.
        assert_eq!(response.headers()["x-turnflow-cache"], "miss");
        assert_eq!(response.headers()["x-turnflow-tier"], "openai");
        assert!(response.headers().get("server-timing").is_none());
        go.send(()).expect("the tier waits");
        let rest = whole(response).await;
        let events = Reply { body: first + &rest.body, ..rest }.events();
        assert_eq!(streamed(&events), "In two days.");
        let last = events.last().expect("the end");
        assert_eq!(
            (&last["turnflow"]["cache"]["level"], &last["turnflow"]["tier"]),
            (&json!("miss"), &json!("openai"))
        );
        // It was cut off, which who asks the same is told as well, and who asks similarly is spared.
        assert_eq!(last["choices"][0]["finish_reason"], "length");
        let same = client.ask(DELIVERY, &[]).await;
        assert_eq!((same.level(), &same.json()["choices"][0]["finish_reason"]), ("exact", &json!("length")));
        go.send(()).expect("the tier waits");
        assert_eq!(client.ask(SIMILAR, &[]).await.level(), "miss");
        server.stop().await;
    })
    .await;
}

/// A stream, read up to where it has told this.
async fn told(client: &HttpClient, question: &str, piece: &str) -> (Response<Incoming>, String) {
    told_with(client, "", question, piece).await
}

/// The same with a key.
async fn told_with(client: &HttpClient, key: &str, question: &str, piece: &str) -> (Response<Incoming>, String) {
    let body = with(asks(question), json!({ "stream": true })).to_string();
    let headers = [("content-type", "application/json"), ("api-key", key)];
    let mut response = client.begin(Method::POST, CHAT, &headers, body).await;
    let mut heard = String::new();
    while !heard.contains(piece) {
        let frame = response.frame().await.expect("a piece").expect("no error");
        heard.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
    }
    (response, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_key() {
    bounded(async {
        let dir = tempfile::tempdir().expect("a folder");
        let files = KeyFiles::new(&Config::defaults().gateway, dir.path()).expect("files");
        let tenant = TenantId::new("default").expect("valid id");
        let wanted = NewKey {
            tenant,
            scopes: BTreeSet::from([Scope::Chat]),
            name: None,
            expires: None,
            limits: KeyLimits::default(),
        };
        let (key, record) = files.create(wanted, Timestamp::now()).expect("made");
        let (server, client, go, mut happened) =
            paced_with(|config| config.gateway.keys = files.path().to_owned()).await;
        let (response, _) = told_with(&client, key.reveal(), DELIVERY, "In two ").await;
        files.revoke(&record.id, Timestamp::now()).expect("revoked");
        let end = whole(response).await.body;
        assert!(end.contains("invalid_api_key") && !end.contains("[DONE]"), "{end}");
        assert_eq!((happened.recv().await, happened.recv().await), (Some(Happened::Came), Some(Happened::Left)));
        drop(go);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_void_after_it_was_streamed_ends_the_stream() {
    bounded(async {
        let (server, client, go, _happened) = paced().await;
        let (leading, _) = told(&client, DELIVERY, "In two ").await;
        let (following, _) = told(&client, SIMILAR, "In two ").await;
        assert_eq!(following.headers()["x-turnflow-cache"], "joined");
        // The answer that both hear rests on this article.
        let edited = json!({ "id": "delivery-times", "title": "Standard delivery", "body": "Delivery takes a week." });
        assert_eq!(client.post("/v1/articles", &[], &edited).await.status, 200);
        go.send(()).expect("the tier waits");
        assert!(whole(leading).await.body.ends_with("data: [DONE]\n\n"));
        let end = whole(following).await.body;
        assert!(end.contains("answer_withdrawn") && !end.contains("[DONE]"), "{end}");
        // The tier was asked once more, for the one that had followed.
        go.send(()).expect("the tier waits");
        server.stop().await;
    })
    .await;
}

/// A tier that streams what it then finds to be no answer.
struct Unsure;

impl TierBackend for Unsure {
    fn tier(&self) -> Tier {
        Tier::Burn
    }

    fn identity(&self) -> String {
        "unsure".to_owned()
    }

    fn submit(&self, _: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        let TierJob { mut on_delta, done, .. } = job;
        std::thread::spawn(move || {
            on_delta("Hm.".to_owned());
            let usage = Usage { input_tokens: 1, output_tokens: 1 };
            done(Ok(Answer {
                text: "Hm.".to_owned(),
                tier: Tier::Burn,
                sources: Vec::new(),
                usage,
                grounded: false,
                cut_off: false,
            }));
        });
        Ok(())
    }

    fn stats(&self) -> TierStats {
        TierStats::default()
    }

    fn queued(&self) -> usize {
        0
    }
}

/// A server with two tiers, of which the small one gets what is about an article at least so much.
async fn routed(relevance_min: f32, small: impl TierBackend, large: Option<Paced>) -> (TestServer, HttpClient) {
    let adjust = |config: &mut Config| {
        plain(config);
        config.routing.enabled = true;
        config.routing.router = "plain".to_owned();
        (config.routing.plain.relevance_min, config.routing.plain.margin_min) = (relevance_min, -1.0);
    };
    let server = TestServer::start_with(adjust, |config, parts| {
        parts.tiers.small = Some(TierHandle::new(small));
        if let Some(large) = large {
            parts.tiers.large = TierHandle::new(large);
        }
        parts.chooser = Some(turnflow_pipeline::chooser(config, parts.encoder.identity()).expect("a rule"));
    })
    .await;
    let client = HttpClient::new(server.http);
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_may_become_void_are_held() {
    bounded(async {
        // Everything is simple.
        let (server, client) = routed(-1.0, Unsure, None).await;
        let models = client.get("/v1/models").await.json();
        assert_eq!(models["data"][1]["id"], "turnflow-small");
        let reply = client.post(CHAT, &[], &with(asks(DELIVERY), json!({ "stream": true }))).await;
        assert_eq!((reply.level(), reply.header("x-turnflow-tier")), ("miss", Some("extractive")));
        let events = reply.events();
        assert!(!reply.body.contains("Hm.") && streamed(&events).contains("3 to 5 business days"), "{reply:?}");
        assert_eq!(events.last().expect("the end")["turnflow"]["route"]["escalated"], true);
        // Whoever names the small tier gets its answer, such as it is.
        let small = with(asks(DELIVERY), json!({ "model": "turnflow-small" }));
        let reply = client.post(CHAT, &[], &small).await;
        assert_eq!((reply.level(), text(&reply).as_str()), ("bypass", "Hm."));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_hears_what_the_large_tier_writes_as_it_does() {
    bounded(async {
        let ((go, may), (tells, _happened)) = (unbounded(), mpsc::unbounded_channel());
        // Nothing is simple.
        let (server, client) = routed(1.0, Unsure, Some(Paced { go: may, tells })).await;
        let (leading, _) = told(&client, DELIVERY, "In two ").await;
        let (following, first) = told(&client, SIMILAR, "In two ").await;
        go.send(()).expect("the tier waits");
        let rest = whole(following).await;
        assert_eq!(streamed(&Reply { body: first + &rest.body, ..rest }.events()), "In two days.");
        assert!(whole(leading).await.body.ends_with("data: [DONE]\n\n"));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_hears_nothing_that_may_become_void() {
    bounded(async {
        let ((go, may), (tells, mut happened)) = (unbounded(), mpsc::unbounded_channel());
        // Its answer is cut off, so that the large tier is asked in its place.
        let (server, client) = routed(-1.0, Paced { go: may, tells }, None).await;
        let ask = |question: &str| {
            let (client, body) = (client.clone(), with(asks(question), json!({ "stream": true })));
            tokio::spawn(async move { client.post(CHAT, &[], &body).await })
        };
        let leading = ask(DELIVERY);
        assert_eq!(happened.recv().await, Some(Happened::Came));
        let following = ask(SIMILAR);
        while server.pipeline.stats().turns_following == 0 {
            tokio::task::yield_now().await;
        }
        go.send(()).expect("the tier waits");
        for stream in [leading, following] {
            let told = streamed(&stream.await.expect("no panic").events());
            assert!(told.contains("3 to 5 business days") && !told.contains("In two "), "{told}");
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_its_turn() {
    bounded(async {
        let (server, _, go, mut happened) = paced().await;
        for stream in [true, false] {
            let body = with(asks(if stream { DELIVERY } else { OTHER }), json!({ "stream": stream })).to_string();
            let mut socket = TcpStream::connect(server.http).await.expect("the server listens");
            let head = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all((head + &body).as_bytes()).await.expect("written");
            if stream {
                let mut heard = Vec::new();
                while !String::from_utf8_lossy(&heard).contains("In two ") {
                    assert!(socket.read_buf(&mut heard).await.expect("read") > 0, "the stream goes on");
                }
            }
            assert_eq!(happened.recv().await, Some(Happened::Came));
            drop(socket);
            assert_eq!(happened.recv().await, Some(Happened::Left));
            go.send(()).expect("the tier waits");
            while server.pipeline.stats().turns_in_flight > 0 {
                tokio::task::yield_now().await;
            }
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_answered_when_the_server_stops() {
    bounded(async {
        let (server, client, go, _happened) = paced().await;
        let (address, pipeline) = (server.http, server.pipeline.clone());
        let asked = tokio::spawn({
            let client = client.clone();
            async move { client.ask(DELIVERY, &[]).await }
        });
        while pipeline.stats().turns_in_flight == 0 {
            tokio::task::yield_now().await;
        }
        let stopped = server.begin_stop();
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        go.send(()).expect("the tier waits");
        let answered = asked.await.expect("no panic");
        assert_eq!((answered.status, text(&answered).as_str()), (200, "In two days."));
        stopped.await.expect("no panic").expect("served");
    })
    .await;
}
