//! The log of a real server: what it says of turns and requests, and what it never says.

#![cfg(unix)]
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
#[expect(dead_code, reason = "the server runs while it is asked, and no other command does")]
mod binary;
mod support;

use std::io::Read as _;
use std::process::{Command, Stdio};

use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};
use tonic::Request;
use turnflow::grpc::proto::admin_client::AdminClient;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::{AskRequest, EntrySelection, FlushRequest};

use self::announced::announced;
use self::binary::turnflow;
use self::support::http::HttpClient;
use self::support::{bounded, turn};

/// What only a customer says.
const SAID: &str = "zwetschgenkuchen";
/// What the sample shop answers to a question about delivery, and no log should repeat.
const TOLD: &str = "working days";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Has a server answer over HTTP and gRPC, and flush what was answered, and gives every line of its log.
async fn log_of_two_turns() -> Vec<Value> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = turnflow()
        .args(["-v", "serve", "--sample", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "--data"])
        .arg(dir.path())
        .env("TURNFLOW_LOG_FORMAT", "json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let mut log = server.stderr.take().expect("a pipe");
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        log.read_to_end(&mut text).expect("read");
        String::from_utf8_lossy(&text).into_owned()
    });
    let announced = tokio::task::block_in_place(|| announced(&mut server));
    let address = |name: &str| announced[name].as_str().expect("an address").to_owned();

    let question = format!("How long does standard delivery of a {SAID} take?");
    let client = HttpClient::new(address("http").parse().expect("an address"));
    let reply = client.ask(&question, &[("x-request-id", "request-7"), ("traceparent", TRACE)]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut grpc = ConversationsClient::connect(format!("http://{}", address("listening"))).await.expect("it listens");
    let mut request = Request::new(AskRequest { turn: Some(turn("c", "1", &question)) });
    request.metadata_mut().insert("x-request-id", "request-8".parse().expect("a value"));
    // Whoever puts a text into it is not shown.
    request.metadata_mut().insert("traceparent", format!("where is my {SAID}").parse().expect("a value"));
    let mut events = grpc.ask(request).await.expect("asked").into_inner();
    while events.message().await.expect("an event").is_some() {}
    flush(&client, &address).await;

    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill runs");
    // Meanwhile the clients hear that it stops, and let go.
    let ended = tokio::task::block_in_place(|| server.wait().expect("an end"));
    assert!(killed.success() && ended.success());
    let log = reading.join().expect("read");
    eprintln!("{log}");
    // Beside the log, the command tells people what it does.
    log.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Flushes what somebody said, from the page and over gRPC.
async fn flush(client: &HttpClient, address: &impl Fn(&str) -> String) {
    let page = client.send(Method::GET, "/ui/", &[], Bytes::new()).await.body;
    let (_, token) = page.split_once("name=\"token\" content=\"").expect("a token");
    let (token, origin) = (token.split('"').next().expect("a token"), format!("http://{}", address("http")));
    let headers = [("origin", origin.as_str()), ("x-csrf-token", token)];
    let reply = client.post("/ui/flush", &headers, &json!({ "text": SAID })).await;
    assert_eq!(reply.json()["count"], 1, "{reply:?}");
    let mut admin = AdminClient::connect(format!("http://{}", address("listening"))).await.expect("it listens");
    let selection = Some(EntrySelection { text: SAID.to_owned(), ..EntrySelection::default() });
    admin.flush(FlushRequest { selection, all: false, dry_run: false }).await.expect("flushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_logged_within_their_requests_and_no_word_of_a_customer_at_info() {
    bounded(async {
        let log = log_of_two_turns().await;
        for line in log.iter().filter(|line| line["level"] != "DEBUG" && line["level"] != "TRACE") {
            let text = line.to_string();
            assert!(!text.contains(SAID) && !text.contains(TOLD), "{text}");
        }
        let flushed = |line: &&Value| line["fields"]["has_text"] == true;
        assert_eq!(log.iter().filter(flushed).count(), 2, "both flushes are told");
        let answered: Vec<&Value> =
            log.iter().filter(|line| line["fields"]["message"] == "a turn was answered").collect();
        let [first, second] = answered[..] else { panic!("two turns were answered: {log:?}") };
        for (line, protocol, method, id) in [
            (first, "http", "/v1/chat/completions", "request-7"),
            (second, "grpc", "/turnflow.v1.Conversations/Ask", "request-8"),
        ] {
            let text = line.to_string();
            assert!(!text.contains(SAID) && !text.contains(TOLD), "{text}");
            let [request, turn] = &line["spans"].as_array().expect("spans")[..] else { panic!("{line}") };
            assert_eq!((&request["name"], &turn["name"]), (&"request".into(), &"turn".into()), "{line}");
            let said = |name: &str| request[name].as_str().unwrap_or_default();
            assert_eq!((said("protocol"), said("method"), said("request_id")), (protocol, method, id), "{line}");
            assert!(turn["total_us"].as_u64().is_some_and(|total_us| total_us > 0), "{line}");
        }
        assert_eq!(first["spans"][0]["traceparent"], TRACE);
        assert!(first["spans"][1]["generate_us"].as_u64().is_some_and(|us| us > 0), "{first}");
        assert_eq!((&first["spans"][1]["level"], &second["spans"][1]["level"]), (&"miss".into(), &"exact".into()));
    })
    .await;
}
