//! The HTTP server as clients meet it: chat completions, where answers come from, errors, the knowledge base, and bounds of connections.
//! What is heard while an answer is written is in `http_streams.rs`.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use turnflow_pipeline::OtherModels;

use self::support::http::{CHAT, HttpClient, Reply, asks, streamed, text, with};
use self::support::{TestServer, bounded, plain};

const DELIVERY: &str = "How long does standard delivery take?";
const SIMILAR: &str = "How many days does standard delivery take?";
const OTHER: &str = "Do you ship to Canada?";

async fn started() -> (TestServer, HttpClient) {
    let server = TestServer::start(plain).await;
    let client = HttpClient::new(server.http);
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_where_it_came_from() {
    bounded(async {
        let (server, client) = started().await;
        let miss = client.ask(DELIVERY, &[]).await;
        assert_eq!((miss.status, miss.level(), miss.header("x-turnflow-tier")), (200, "miss", Some("extractive")));
        assert!(miss.header("server-timing").is_some_and(|timing| timing.contains("total;dur=")), "{miss:?}");
        assert_eq!((miss.header("age"), miss.header("x-turnflow-entry")), (None, None));
        let body = miss.json();
        assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("turnflow")));
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert!(body["usage"]["total_tokens"].as_u64() > Some(0), "{body}");
        assert_eq!(body["turnflow"]["sources"][0]["article"], "delivery-times");
        assert!(text(&miss).contains("3 to 5 business days"), "{body}");

        let hit = client.ask(DELIVERY, &[]).await;
        let age_ms = hit.json()["turnflow"]["cache"]["age_ms"].as_u64().expect("an age");
        assert_eq!((hit.level(), hit.header("age")), ("exact", Some((age_ms / 1_000).to_string().as_str())));
        assert_eq!(text(&hit), text(&miss));
        assert_eq!(hit.json()["usage"]["total_tokens"], 0);
        let entry = hit.header("x-turnflow-entry").expect("an entry").to_owned();
        assert_eq!(hit.json()["turnflow"]["cache"]["entry"].to_string(), entry);
        assert_eq!(hit.json()["turnflow"]["cache"]["question"], DELIVERY);
        assert_ne!(hit.header("x-turnflow-turn"), miss.header("x-turnflow-turn"));

        let similar = client.ask(SIMILAR, &[]).await;
        assert_eq!((similar.level(), similar.header("x-turnflow-entry")), ("semantic", Some(entry.as_str())));
        let similarity: f32 = similar.header("x-turnflow-similarity").expect("told").parse().expect("a number");
        assert!((0.5..1.0).contains(&similarity), "{similarity}");
        assert_eq!(server.gate.arrivals(), 1);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_the_answer_its_verdict_and_its_usage() {
    bounded(async {
        let (server, client) = started().await;
        let body = with(asks(DELIVERY), json!({ "stream": true, "stream_options": { "include_usage": true } }));
        for level in ["miss", "exact"] {
            let reply = client.post(CHAT, &[], &body).await;
            assert_eq!((reply.status, reply.level()), (200, level));
            assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
            let events = reply.events();
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
            assert!(streamed(&events).contains("3 to 5 business days"), "{events:?}");
            let [.., last, usage] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!(last["choices"][0]["finish_reason"], "stop");
            assert_eq!(last["turnflow"]["cache"]["level"], level);
            assert_eq!((&usage["choices"], usage["usage"]["total_tokens"] == 0), (&json!([]), level == "exact"));
            assert!(events.iter().all(|event| event["id"] == events[0]["id"]), "{events:?}");
        }
        let without = client.post(CHAT, &[], &with(asks(DELIVERY), json!({ "stream": true }))).await;
        assert!(without.events().iter().all(|event| event.get("usage").is_none()), "{without:?}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_control_narrows() {
    bounded(async {
        let (server, client) = started().await;
        let control = async |question: &str, value: &str| client.ask(question, &[("cache-control", value)]).await;
        let refused = control(DELIVERY, "only-if-cached").await;
        assert_eq!(refused.error(), (504, "not_cached".to_owned(), None));
        assert_eq!(refused.header("x-should-retry"), Some("false"));
        assert_eq!(server.gate.arrivals(), 0, "nothing is generated for it");
        assert_eq!(control(DELIVERY, "no-store").await.level(), "miss");
        assert_eq!(control(DELIVERY, "only-if-cached").await.status, 504, "nothing was kept");
        assert_eq!(control(DELIVERY, "no-cache").await.level(), "bypass");
        assert_eq!(control(DELIVERY, "only-if-cached").await.status, 504, "nothing was kept");
        assert_eq!(client.ask(DELIVERY, &[]).await.level(), "miss");
        assert_eq!(server.gate.arrivals(), 3);
        for question in [DELIVERY, SIMILAR] {
            assert!(["exact", "semantic"].contains(&control(question, "only-if-cached").await.level()));
            assert!(["exact", "semantic"].contains(&control(question, "max-age=3600").await.level()));
        }
        assert_eq!(server.gate.arrivals(), 3);
        // It is older than that as soon as the clock has moved on.
        the_clock_moves_on().await;
        assert_eq!(control(DELIVERY, "max-age=0, only-if-cached").await.status, 504);
        assert_eq!(control(SIMILAR, "max-age=0, only-if-cached").await.status, 504);
        assert_eq!(control(DELIVERY, "max-age=0").await.level(), "miss");
        assert_eq!(control(DELIVERY, "max-age=soon").await.error().2.as_deref(), Some("Cache-Control"));
        server.stop().await;
    })
    .await;
}

/// Lets the clock of the turns move on: it counts milliseconds.
async fn the_clock_moves_on() -> u128 {
    let began = std::time::SystemTime::now();
    loop {
        tokio::task::yield_now().await;
        let elapsed_ms = began.elapsed().map_or(0, |elapsed| elapsed.as_millis());
        if elapsed_ms > 1 {
            return elapsed_ms;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_here_or_is_told() {
    bounded(async {
        let (server, client) = started().await;
        // Kept here: the second question leans on the first.
        let named = with(asks(OTHER), json!({ "conversation": "c1" }));
        assert_eq!(client.post(CHAT, &[], &named).await.header("x-conversation-id"), Some("c1"));
        let leaning = client.ask("And how much is it?", &[("x-conversation-id", "c1")]).await;
        assert_eq!((leaning.level(), leaning.header("x-conversation-id")), ("bypass", Some("c1")));
        assert!(text(&leaning).contains("$18"), "{leaning:?}");

        // Told by the client: the same, and what leans on it is neither cached nor served from a cache.
        let told = json!([
            { "role": "system", "content": "Be kind." },
            { "role": "user", "content": OTHER },
            { "role": "assistant", "content": "Yes, we do." },
            { "role": "user", "content": [{ "type": "text", "text": "And how much is it?" }] },
        ]);
        let told = json!({ "model": "turnflow", "messages": told });
        for _ in 0..2 {
            let reply = client.post(CHAT, &[], &told).await;
            assert_eq!(reply.level(), "bypass");
            assert!(reply.json()["turnflow"]["cache"]["reason"].as_str().expect("why").contains("leans"), "{reply:?}");
            assert!(text(&reply).contains("$18"), "{reply:?}");
        }
        let only = client.post(CHAT, &[("cache-control", "only-if-cached")], &told).await;
        assert_eq!(only.error().1, "not_cached");
        let alone = client.ask("And how much is it?", &[]).await;
        assert_eq!(alone.level(), "miss", "nothing of the conversation was cached");

        // A question that stands alone is served and cached, whatever was said before.
        let mut standing = told.clone();
        standing["messages"][3]["content"] = json!(OTHER);
        assert_eq!(client.post(CHAT, &[], &standing).await.level(), "exact");

        // The same request again is the same turn.
        let key = [("idempotency-key", "k1")];
        let (first, again) = (client.ask(DELIVERY, &key).await, client.ask(DELIVERY, &key).await);
        assert_eq!((first.level(), again.level()), ("miss", "miss"));
        let named = |reply: &Reply| reply.header("x-conversation-id").expect("a name").to_owned();
        assert_eq!((text(&first), named(&first)), (text(&again), named(&again)));
        // What comes with the same key and asks something else is another.
        let other = client.ask(OTHER, &key).await;
        assert!(named(&other) != named(&first) && text(&other) != text(&first), "{other:?}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_one_shape() {
    bounded(async {
        let server = TestServer::start(|config| {
            config.http.body_bytes_max = config.limits.article_bytes_max;
            config.http.other_models = OtherModels::Refuse;
            config.limits.turns_in_flight_max = 1;
            config.limits.admission_wait_ms = 0;
        })
        .await;
        let client = HttpClient::new(server.http);
        let check = |reply: Reply, status: u16, code: &str, param: Option<&str>| {
            assert_eq!(reply.error(), (status, code.to_owned(), param.map(str::to_owned)), "{reply:?}");
        };
        let json_type = [("content-type", "application/json")];
        let post = async |body: &str| client.send(Method::POST, CHAT, &json_type, body.to_owned()).await;
        let broken = post("{\"model\": \"turnflow\",\n \"messages\": [}").await;
        assert!(broken.json()["error"]["message"].as_str().expect("words").contains("line 2 column 15"), "{broken:?}");
        check(broken, 400, "invalid_json", None);
        check(post("").await, 400, "invalid_json", None);
        check(post("{\"model\": 3, \"messages\": []}").await, 400, "invalid_value", Some("model"));
        check(
            post("{\"model\": \"m\", \"messages\": [{\"role\": 1}]}").await,
            400,
            "invalid_value",
            Some("messages[0].role"),
        );
        check(client.ask(" ", &[]).await, 400, "invalid_value", Some("messages[0].content"));
        check(client.ask(&"x".repeat(8_193), &[]).await, 400, "invalid_value", Some("messages[0].content"));
        let tools = with(asks(OTHER), json!({ "tools": [{ "type": "function" }] }));
        check(client.post(CHAT, &[], &tools).await, 400, "unsupported_value", Some("tools"));
        let unknown = with(asks(OTHER), json!({ "model": "gpt-4o" }));
        check(client.post(CHAT, &[], &unknown).await, 404, "model_not_found", Some("model"));
        let large = "x".repeat(300_000);
        check(client.ask(&large, &[]).await, 413, "body_too_large", None);
        let plain = client.send(Method::POST, CHAT, &[("content-type", "text/plain")], asks(OTHER).to_string()).await;
        check(plain, 415, "unsupported_media_type", None);
        check(client.get("/v1/nothing").await, 404, "unknown_route", None);
        // A page that came upon this address under a name of its own.
        let rebound = raw(&server, b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
        assert!(rebound.starts_with("HTTP/1.1 421") && rebound.contains("wrong_host"), "{rebound}");
        for hosts in ["", "host: localhost\r\nhost: localhost\r\n"] {
            let request = format!("GET /health HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
            let refused = raw(&server, request.as_bytes()).await;
            assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("\"Host: there "), "{refused}");
        }
        check(client.get(CHAT).await, 405, "wrong_method", None);

        // Its deadline has passed before it can be begun.
        let late = with(asks(DELIVERY), json!({ "deadline_ms": 0 }));
        for body in [late.clone(), with(late, json!({ "stream": true }))] {
            check(client.post(CHAT, &[], &body).await, 504, "deadline_exceeded", None);
        }
        // One turn is under way, and there is no place for another.
        server.gate.set_open(false);
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.ask(DELIVERY, &[]).await }
        });
        server.gate.arrived(1).await;
        let refused = client.post(CHAT, &[], &with(asks(OTHER), json!({ "stream": true }))).await;
        assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()), "{refused:?}");
        check(refused, 429, "overloaded", None);
        server.gate.set_open(true);
        assert_eq!(first.await.expect("no panic").status, 200);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn articles_are_read_and_written() {
    bounded(async {
        let (server, client) = started().await;
        let put = async |path: &str, headers: &[(&str, &str)], body: &Value| {
            let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
            client.send(Method::PUT, path, &headers, body.to_string()).await
        };
        let article = json!({ "title": "Moon", "body": "We deliver to the moon in 9 days.", "metadata": { "a": "b" } });
        let path = "/v1/articles/to%2Fthe%20moon";
        assert_eq!(client.get(path).await.error().1, "article_not_found");
        let written = put(path, &[("if-none-match", "*")], &article).await;
        assert_eq!((written.status, written.header("etag")), (200, Some("\"1\"")), "{written:?}");
        assert_eq!(written.json()["id"], "to/the moon");
        let refused = put(path, &[("if-none-match", "*")], &article).await;
        assert_eq!((refused.error().0, refused.header("etag")), (412, Some("\"1\"")));
        let read = client.get(path).await;
        assert_eq!(
            read.json(),
            json!({ "id": "to/the moon", "object": "article", "title": "Moon", "metadata": { "a": "b" }, "version": 1, "body": "We deliver to the moon in 9 days." })
        );
        let known = client.send(Method::GET, path, &[("if-none-match", "\"1\"")], Bytes::new()).await;
        assert_eq!((known.status, known.body.as_str()), (304, ""));

        // An edit makes the answers invalid that rest on it.
        let question = "Do you deliver to the moon?";
        assert!(text(&client.ask(question, &[]).await).contains("9 days"));
        assert_eq!(client.ask(question, &[]).await.level(), "exact");
        let edited = with(article, json!({ "id": "to/the moon", "body": "We deliver to the moon in 7 days." }));
        let dry = client.post("/v1/articles?dry_run=true", &[], &edited).await.json();
        assert_eq!((&dry["would_invalidate"][0]["question"], &dry["dry_run"]), (&json!(question), &json!(true)));
        assert_eq!(client.ask(question, &[]).await.level(), "exact");
        assert_eq!(client.post("/v1/articles", &[("if-match", "\"7\"")], &edited).await.error().1, "version_mismatch");
        let written = client.post("/v1/articles", &[("if-match", "\"1\"")], &edited).await;
        assert_eq!((&written.json()["version"], &written.json()["cached_answers_invalidated"]), (&json!(2), &json!(1)));
        let anew = client.ask(question, &[]).await;
        assert!(anew.level() == "miss" && text(&anew).contains("7 days"), "{anew:?}");

        let found = client.post("/v1/articles/search", &[], &json!({ "query": question, "k": 1 })).await.json();
        assert_eq!((&found["data"][0]["article"], found["data"][1].is_null()), (&json!("to/the moon"), true));

        // A walk through all pages meets every article once, in order.
        let (mut ids, mut after): (Vec<String>, String) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/v1/articles?limit=7{after}")).await.json();
            let data = page["data"].as_array().expect("articles");
            assert!(data.iter().all(|article| article.get("body").is_none()), "{page}");
            ids.extend(data.iter().map(|article| article["id"].as_str().expect("an id").to_owned()));
            if page["has_more"] == false {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().expect("an id"));
        }
        assert!(ids.is_sorted() && ids.len() > 14 && ids.contains(&"to/the moon".to_owned()), "{ids:?}");
        let bodies = client.get("/v1/articles?limit=1&with_body=true").await.json();
        assert!(bodies["data"][0]["body"].is_string(), "{bodies}");

        let deleted = client.send(Method::DELETE, path, &[("if-match", "\"2\"")], Bytes::new()).await;
        assert_eq!((deleted.status, deleted.json()["deleted"].clone()), (200, json!(true)));
        assert_eq!(client.send(Method::DELETE, path, &[], Bytes::new()).await.error().0, 404);
        for (parameter, param) in [("limit=0", "limit"), ("limit=101", "limit"), ("after=", "after"), ("limit=many", "limit")] {
            let wrong = client.get(&format!("/v1/articles?{parameter}")).await.error();
            assert_eq!((wrong.0, wrong.2.as_deref()), (400, Some(param)), "{parameter}");
        }
        // What is not known must not be taken for what it is not.
        let spelled = client.send(Method::DELETE, "/v1/articles/delivery?dry-run=true", &[], Bytes::new()).await;
        assert_eq!((spelled.error().0, spelled.error().2.as_deref()), (400, Some("dry-run")));
        let body = json!({ "title": "T", "body": "B", "expected_version": 1 });
        let unconditional = client.send(Method::PUT, "/v1/articles/delivery", &[("content-type", "application/json")], body.to_string()).await;
        assert_eq!((unconditional.error().0, unconditional.error().2.as_deref()), (400, Some("expected_version")));
        // A page of long articles is cut short, and the next goes on behind it.
        for id in ["long-1", "long-2", "long-3", "long-4", "long-5"] {
            let body = json!({ "id": id, "title": id, "body": format!("word{}", " ".repeat(240_000)) });
            assert_eq!(client.post("/v1/articles", &[], &body).await.status, 200);
        }
        let page = client.get("/v1/articles?after=long-&with_body=true").await.json();
        assert_eq!((page["data"].as_array().map(Vec::len), &page["last_id"], &page["has_more"]), (Some(4), &json!("long-4"), &json!(true)));
        assert_eq!(client.post("/v1/articles", &[], &json!({ "id": "e" })).await.error().2.as_deref(), Some("article"));
        assert_eq!(client.post("/v1/articles", &[], &json!({ "title": "T" })).await.error().2.as_deref(), Some("id"));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_embeddings_and_health() {
    bounded(async {
        let (server, client) = started().await;
        let models = client.get("/v1/models").await.json();
        let names: Vec<&str> =
            models["data"].as_array().expect("models").iter().filter_map(|model| model["id"].as_str()).collect();
        assert_eq!(names, ["turnflow", "all-MiniLM-L6-v2"]);
        assert_eq!(client.get("/v1/models/turnflow").await.json()["object"], "model");
        assert_eq!(client.get("/v1/models/gpt-4o").await.error().1, "model_not_found");

        let body = json!({ "model": "all-MiniLM-L6-v2", "input": [DELIVERY, DELIVERY, OTHER] });
        let floats = client.post("/v1/embeddings", &[], &body).await.json();
        let vector = |at: usize| -> Vec<f32> {
            serde_json::from_value(floats["data"][at]["embedding"].clone()).expect("numbers")
        };
        assert_eq!((vector(0).len(), vector(0) == vector(1), vector(0) == vector(2)), (384, true, false));
        let length: f32 = vector(0).iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-3, "{length}");
        assert!(floats["usage"]["prompt_tokens"].as_u64() > Some(10), "{floats}");
        let body = with(body, json!({ "input": DELIVERY, "encoding_format": "base64" }));
        let packed = client.post("/v1/embeddings", &[], &body).await.json();
        assert_eq!(packed["data"][0]["embedding"].as_str().expect("text").len(), 384 * 4 / 3 * 4);
        let wrong = with(body, json!({ "dimensions": 64 }));
        assert_eq!(client.post("/v1/embeddings", &[], &wrong).await.error().2.as_deref(), Some("dimensions"));
        let wrong = json!({ "model": "all-MiniLM-L6-v2", "input": DELIVERY, "input_type": "document" });
        assert_eq!(client.post("/v1/embeddings", &[], &wrong).await.error().2.as_deref(), Some("input_type"));

        assert_eq!(client.get("/health").await.json(), json!({ "status": "ok" }));
        assert_eq!(client.get("/ready").await.json(), json!({ "status": "ready" }));
        assert_eq!(client.get("/openapi.json").await.json()["openapi"], "3.1.0");
        server.stop().await;
    })
    .await;
}

/// Sends bytes and hears what comes until the server closes the connection.
async fn raw(server: &TestServer, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(server.http).await.expect("the server listens");
    socket.write_all(bytes).await.expect("written");
    let mut heard = Vec::new();
    // A server that closes before it has read everything resets.
    let _ = socket.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_bounds() {
    bounded(async {
        let server = TestServer::start(|config| {
            config.http.head_wait_ms = 200;
            config.http.body_wait_ms = 200;
            config.http.headers_max = 8;
        })
        .await;
        // One that never says anything, one that begins a head, and one that was answered and stays idle are closed.
        assert_eq!(raw(&server, b"").await, "");
        assert_eq!(raw(&server, b"GET /health HT").await, "");
        let idle = raw(&server, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(idle.starts_with("HTTP/1.1 200 OK"), "{idle}");
        let slow =
            b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        let slow = raw(&server, slow).await;
        assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("body_too_slow"), "{slow}");
        let many = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(9));
        assert!(raw(&server, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
        let long = format!("GET /health HTTP/1.1\r\nhost: localhost\r\na: {}\r\n\r\n", "b".repeat(20_000));
        assert!(raw(&server, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
        server.stop().await;
        // A second connection waits for the first to end.
        let server = TestServer::start(|config| config.http.connections_max = 1).await;
        let first = TcpStream::connect(server.http).await.expect("the server listens");
        let client = HttpClient::new(server.http);
        let second = tokio::time::timeout(Duration::from_millis(50), client.get("/health")).await;
        assert!(second.is_err(), "{second:?}");
        drop(first);
        assert_eq!(client.get("/health").await.status, 200);
        server.stop().await;
    })
    .await;
}
