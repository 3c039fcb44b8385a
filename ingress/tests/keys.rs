//! Keys as callers and operators meet them: made on the command line, needed from the first one on, good for one tenant and some
//! scopes, and at an end soon after they are revoked, on open streams too.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
mod binary;
mod support;

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};
use turnflow::grpc::proto::admin_client::AdminClient;
use turnflow::grpc::proto::{
    AskRequest, BackupRequest, ConverseRequest, DrainRequest, FeedbackRequest, GetRequest, ListEntriesRequest,
    ListRequest, StatsRequest, WatchRequest,
};

use self::announced::announced;
use self::binary::{finish, sample, turnflow};
use self::support::http::{CHAT, HttpClient, Reply, asks, whole, with};
use self::support::{TestServer, bounded, converse_request, turn};

/// Any free port of this machine.
const LOOPBACK: &str = "127.0.0.1:0";
const DELIVERY: &str = "How long does standard delivery take?";

/// `turnflow keys` on the keys in a folder.
struct Keys {
    dir: TempDir,
}

impl Keys {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finish(turnflow().arg("keys").args(arguments).arg("--data").arg(self.dir.path()))
    }

    /// The text and the name of a new key.
    fn create(&self, tenant: &str, scopes: &str) -> (String, String) {
        let (code, stdout, _) = self.run(&["create", "--tenant", tenant, "--scopes", scopes, "--json"]);
        assert_eq!(code, 0);
        let made: Value = serde_json::from_str(&stdout).expect("JSON");
        let text = |field: &str| made[field].as_str().expect("a text").to_owned();
        (text("key"), text("id"))
    }

    fn revoke(&self, id: &str) {
        assert_eq!(self.run(&["revoke", id]).0, 0);
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("a file")
    }

    /// A server that follows these keys.
    async fn server(&self) -> TestServer {
        let keys = self.dir.path().join("keys.jsonl");
        TestServer::start(|config| config.gateway.keys = keys).await
    }
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// A call with a key.
fn call<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer(key).parse().expect("a header"));
    request
}

async fn get(client: &HttpClient, path: &str, key: &str) -> Reply {
    client.send(Method::GET, path, &[("authorization", &bearer(key))], Bytes::new()).await
}

async fn ask(client: &HttpClient, key: &str, question: &str) -> Reply {
    client.ask(question, &[("authorization", &bearer(key))]).await
}

#[test]
fn keys_are_managed_on_the_command_line() {
    let keys = Keys::new();
    let (code, stdout, stderr) = keys.run(&["list"]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("there are no keys"), "{stdout}{stderr}");
    let create = ["create", "--tenant", "shop", "--scopes", "chat,kb", "--name", "the bot", "--expires", "90d"];
    let (code, stdout, stderr) = keys.run(&create);
    assert_eq!(code, 0);
    // A script takes it from there.
    let key = stdout.trim_end();
    assert!(key.starts_with("tf_") && key.len() == 55, "{key}");
    assert!(stderr.contains("tenant shop, for chat,kb") && !stderr.contains(key), "{stderr}");
    let id = &key[3..11];

    let (_, stdout, _) = keys.run(&["list"]);
    assert!(stdout.starts_with("KEY       STATE  TENANT  SCOPES   CREATED     EXPIRES     LIMITS  NAME\n"), "{stdout}");
    let line = format!("\n{id}  valid  shop    chat,kb  ");
    assert!(stdout.contains(&line) && stdout.ends_with("  the bot\n"), "{stdout}");
    let (code, stdout, _) = keys.run(&["rotate", id, "--overlap", "0s", "--json"]);
    let rotated: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &rotated["tenant"], &rotated["name"]), (0, &json!("shop"), &json!("the bot")));
    let successor = rotated["id"].as_str().expect("a name");
    let (code, stdout, _) = keys.run(&["revoke", successor]);
    assert!(code == 0 && stdout.contains("revoked key"), "{stdout}");
    let (_, stdout, _) = keys.run(&["list", "--json"]);
    let listed: Value = serde_json::from_str(&stdout).expect("JSON");
    let states: Vec<_> = listed.as_array().expect("a list").iter().map(|key| &key["state"]).collect();
    assert_eq!(states, ["expired", "revoked"]);
    assert!(!stdout.contains("hash") && !stdout.contains(&key[12..]), "{stdout}");

    for file in ["keys.jsonl", "keys-audit.jsonl"] {
        assert!(!keys.read(file).contains(&key[12..]), "{file} has a key's text");
    }
    assert_eq!(keys.read("keys-audit.jsonl").lines().count(), 3);

    let check = |arguments: &[&str], code: i32, expected: &str| {
        let (found, _, stderr) = keys.run(arguments);
        assert_eq!(found, code, "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    };
    let with_limits = |limits| ["create", "--tenant", "shop", "--scopes", "kb", "--limits", limits];
    check(&with_limits("requests=1"), 64, "there is no limit \"requests\"");
    check(&with_limits("streams=4,budget-per-day=2.5"), 0, "tenant shop");
    let (_, stdout, _) = keys.run(&["list"]);
    assert!(stdout.contains("  streams=4,budget-per-day=2.5\n") && stdout.contains("  LIMITS  "), "{stdout}");
    check(&["create", "--tenant", "shop"], 64, "--scopes");
    check(&["create", "--tenant", "shop", "--scopes", "fly"], 64, "fly");
    check(&["create", "--tenant", "", "--scopes", "kb"], 64, "--tenant");
    check(&["create", "--tenant", "shop", "--scopes", "kb", "--expires", "2001-01-01"], 64, "no time to come");
    check(&["revoke", "aaaaaaaa"], 1, "there is no key aaaaaaaa");
    check(&["rotate", successor], 1, "is revoked");
    check(&["rotate", id, "--overlap=-1h"], 64, "--overlap");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_need_a_key_for_what_they_do() {
    bounded(async {
        let keys = Keys::new();
        let (chat, chat_id) = keys.create("default", "chat");
        let ((kb, _), (admin, _)) = (keys.create("default", "kb"), keys.create("default", "admin"));
        let server = keys.server().await;
        let http = HttpClient::new(server.http);
        let (mut conversations, mut knowledge) = (server.client().await, server.knowledge().await);

        let without = http.get("/v1/models").await;
        assert_eq!(without.error(), (401, "invalid_api_key".to_owned(), None));
        assert_eq!(without.header("www-authenticate"), Some("Bearer"));
        for wrong in ["none", &format!("{chat}x"), &format!("tf_{chat_id}_{}", "A".repeat(43)), "tf_aaaaaaaa_secret"] {
            let refused = get(&http, "/v1/models", wrong).await;
            // Which of them it is, nobody is told.
            assert_eq!((refused.status, &refused.body), (401, &without.body), "{wrong}");
        }
        for open in ["/health", "/ready", "/openapi.json"] {
            assert_eq!(http.get(open).await.status, 200, "{open}");
        }
        for (key, models, articles) in [(&chat, 200, 403), (&kb, 403, 200), (&admin, 200, 200)] {
            assert_eq!(get(&http, "/v1/models", key).await.status, models);
            assert_eq!(get(&http, "/v1/articles", key).await.status, articles);
        }
        let forbidden = get(&http, "/v1/articles", &chat).await;
        assert_eq!(forbidden.error(), (403, "missing_scope".to_owned(), None));
        for header in ["api-key", "x-api-key"] {
            let reply = http.send(Method::GET, "/v1/models", &[(header, &chat)], Bytes::new()).await;
            assert_eq!(reply.status, 200, "{header}");
        }
        assert_eq!(ask(&http, &kb, DELIVERY).await.status, 403);
        assert_eq!(ask(&http, &chat, DELIVERY).await.status, 200);

        let code = |result: Result<(), tonic::Status>| result.err().map(|status| status.code());
        let found = knowledge.list(ListRequest::default()).await.map(drop);
        assert_eq!(code(found), Some(Code::Unauthenticated));
        let found = knowledge.list(call(&chat, ListRequest::default())).await.map(drop);
        assert_eq!(code(found), Some(Code::PermissionDenied));
        assert_eq!(code(knowledge.list(call(&kb, ListRequest::default())).await.map(drop)), None);
        let asked = || AskRequest { turn: Some(turn("c", "1", DELIVERY)) };
        assert_eq!(code(conversations.ask(asked()).await.map(drop)), Some(Code::Unauthenticated));
        assert_eq!(code(conversations.ask(call(&kb, asked())).await.map(drop)), Some(Code::PermissionDenied));
        assert_eq!(code(conversations.ask(call(&admin, asked())).await.map(drop)), None);
        let converse = conversations.converse(tokio_stream::empty::<ConverseRequest>()).await.map(drop);
        assert_eq!(code(converse), Some(Code::Unauthenticated));
        let feedback = conversations.feedback(call(&kb, FeedbackRequest::default())).await.map(drop);
        assert_eq!(code(feedback), Some(Code::PermissionDenied));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_a_wall() {
    bounded(async {
        let keys = Keys::new();
        let ((ours, _), (theirs, _)) = (keys.create("ours", "chat,kb"), keys.create("theirs", "chat,kb"));
        let server = keys.server().await;
        let http = HttpClient::new(server.http);
        let (mut conversations, mut knowledge) = (server.client().await, server.knowledge().await);
        let both = [&ours, &theirs];

        // Articles: each has one of the same name, and neither sees the other's, nor the shop's.
        for (key, days) in both.into_iter().zip(["two", "nine"]) {
            let body = format!("Standard delivery takes {days} days.");
            let article = json!({ "id": "delivery", "title": "Standard delivery", "body": body });
            let reply = http.post("/v1/articles", &[("authorization", &bearer(key))], &article).await;
            assert_eq!((reply.status, &reply.json()["version"]), (200, &json!(1)), "{reply:?}");
        }
        let own = json!({ "id": "own", "title": "Own", "body": "Only ours." });
        assert_eq!(http.post("/v1/articles", &[("authorization", &bearer(&ours))], &own).await.status, 200);
        assert_eq!(get(&http, "/v1/articles/own", &theirs).await.status, 404);
        for (key, count, days) in [(&ours, 2, "two"), (&theirs, 1, "nine")] {
            let listed = get(&http, "/v1/articles", key).await.json();
            assert_eq!(listed["data"].as_array().map(Vec::len), Some(count));
            let article = GetRequest { id: "delivery".to_owned() };
            let found = knowledge.get(call(key, article)).await.expect("there").into_inner().article;
            assert!(found.is_some_and(|article| article.body.contains(days)));
        }

        // Cached answers: the same question is a hit for who asked it, and for nobody else.
        for (key, days) in both.into_iter().zip(["two", "nine"]) {
            for level in ["miss", "exact"] {
                let reply = ask(&http, key, DELIVERY).await;
                assert_eq!((reply.status, reply.level()), (200, level), "{days}");
                assert!(reply.body.contains(days), "{reply:?}");
            }
        }

        // Conversations: of the same name and turn, each tenant has its own.
        for (key, days) in both.into_iter().zip(["two", "nine"]) {
            let asked = AskRequest { turn: Some(turn("c", "1", DELIVERY)) };
            let mut events = conversations.ask(call(key, asked)).await.expect("admitted").into_inner();
            let mut heard = String::new();
            while let Some(event) = events.message().await.expect("an event") {
                heard += &format!("{event:?}");
            }
            assert!(heard.contains(days), "{heard}");
        }
        let judge = |key: &str, conversation: &str| {
            let (conversation_id, turn_id) = (conversation.to_owned(), "1".to_owned());
            call(key, FeedbackRequest { conversation_id, turn_id, judgement: 1 })
        };
        let asked = AskRequest { turn: Some(turn("only-ours", "1", DELIVERY)) };
        let mut events = conversations.ask(call(&ours, asked)).await.expect("admitted").into_inner();
        while events.message().await.expect("an event").is_some() {}
        assert!(conversations.feedback(judge(&ours, "only-ours")).await.is_ok());
        let unknown = conversations.feedback(judge(&theirs, "only-ours")).await.expect_err("not theirs");
        assert_eq!(unknown.code(), Code::NotFound);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_with_a_key_ends_when_it_is_revoked() {
    bounded(async {
        let keys = Keys::new();
        let ((key, id), (other, _)) = (keys.create("default", "admin"), keys.create("default", "admin"));
        let server = keys.server().await;
        let (mut conversations, mut knowledge) = (server.client().await, server.knowledge().await);
        server.gate.set_open(false);
        let (asking, requests) = tokio::sync::mpsc::channel(1);
        let mut open =
            conversations.converse(call(&key, ReceiverStream::new(requests))).await.expect("open").into_inner();
        asking.send(converse_request(turn("a", "1", DELIVERY))).await.expect("open");
        assert!(open.message().await.expect("accepted").is_some());
        let (idling, requests) = tokio::sync::mpsc::channel::<ConverseRequest>(1);
        let idle = conversations.converse(call(&other, ReceiverStream::new(requests))).await.expect("open");
        let asked = AskRequest { turn: Some(turn("b", "1", "Do you ship abroad?")) };
        let mut answer = conversations.ask(call(&key, asked)).await.expect("admitted").into_inner();
        assert!(answer.message().await.expect("accepted").is_some());
        let mut changes = knowledge.watch(call(&key, WatchRequest {})).await.expect("watching").into_inner();
        let client = HttpClient::new(server.http);
        let waiting = tokio::spawn({
            let (client, authorization) = (client.clone(), bearer(&key));
            async move {
                let body = with(asks("Can I return a pan?"), json!({ "stream": true })).to_string();
                let headers = [("content-type", "application/json"), ("authorization", authorization.as_str())];
                whole(client.begin(Method::POST, CHAT, &headers, body).await).await
            }
        });
        server.gate.arrived(1).await;

        let revoked = std::time::Instant::now();
        keys.revoke(&id);
        let ended = async |what: &str, end: Option<tonic::Status>| {
            let status = end.unwrap_or_else(|| panic!("{what} goes on"));
            assert_eq!(status.code(), Code::Unauthenticated, "{what}");
        };
        ended("converse", open.message().await.err()).await;
        ended("ask", answer.message().await.err()).await;
        ended("watch", changes.message().await.err()).await;
        assert_eq!(waiting.await.expect("no panic").error(), (401, "invalid_api_key".to_owned(), None));
        // Within a second where nothing else runs; here much else may.
        assert!(revoked.elapsed().as_secs() < 20, "{:?}", revoked.elapsed());
        assert_eq!(get(&client, "/v1/models", &key).await.status, 401);
        assert_eq!(get(&client, "/v1/models", &other).await.status, 200);
        // What is open with another key stays open until it is closed.
        drop(idling);
        server.gate.set_open(true);
        assert!(idle.into_inner().message().await.expect("no error").is_none());
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_key_closes_the_door_of_a_running_server() {
    bounded(async {
        let keys = Keys::new();
        let server = keys.server().await;
        let (mut conversations, http) = (server.client().await, HttpClient::new(server.http));
        assert_eq!(http.get("/v1/models").await.status, 200);
        let (_asking, requests) = tokio::sync::mpsc::channel::<ConverseRequest>(1);
        let mut open = conversations.converse(ReceiverStream::new(requests)).await.expect("open").into_inner();
        let (key, _) = keys.create("default", "chat");
        let end = open.message().await.expect_err("a key is needed now");
        assert_eq!(end.code(), Code::Unauthenticated);
        assert_eq!(http.get("/v1/models").await.status, 401);
        assert_eq!(get(&http, "/v1/models", &key).await.status, 200);
        server.stop().await;
    })
    .await;
}

fn serve(dir: &Path, listen: &str, http: &str) -> std::process::Command {
    let mut command = turnflow();
    command.args(["serve", "-vv", "--json", "--listen", listen, "--http", http, "--data"]).arg(dir);
    command
}

#[test]
fn without_keys_other_machines_are_kept_out() {
    let keys = Keys::new();
    let (code, _, stderr) = finish(&mut serve(keys.dir.path(), "0.0.0.0:0", LOOPBACK));
    assert_eq!(code, 64);
    assert!(stderr.contains("there are no keys, so 0.0.0.0:0") && stderr.contains("keys create"), "{stderr}");
    let (code, _, stderr) = finish(&mut serve(keys.dir.path(), LOOPBACK, "[::]:0"));
    assert!(code == 64 && stderr.contains("[::]:0"), "{stderr}");
    let config = keys.dir.path().join("turnflow.toml");
    let checked = |more: &str| {
        std::fs::write(&config, format!("[server]\nlisten = \"0.0.0.0:0\"\n{more}")).expect("written");
        finish(turnflow().arg("check").arg("--config").arg(&config).arg("--data").arg(keys.dir.path())).1
    };
    assert!(checked("").contains("there are no keys, so 0.0.0.0:0"), "{}", checked(""));
    assert!(checked("[gateway]\nopen = true\n").contains("ok  port         0.0.0.0:0: free"));

    keys.create("shop", "chat");
    std::fs::remove_file(keys.dir.path().join("keys.pepper")).expect("removed");
    let (code, _, stderr) = finish(&mut serve(keys.dir.path(), LOOPBACK, LOOPBACK));
    assert!(code == 64 && stderr.contains("keys.pepper") && stderr.contains("TURNFLOW_PEPPER"), "{stderr}");
    std::fs::write(keys.dir.path().join("keys.jsonl"), "\nbroken\n").expect("written");
    let (code, _, stderr) = finish(&mut serve(keys.dir.path(), LOOPBACK, LOOPBACK));
    assert!(code == 64 && stderr.contains("keys.jsonl:2: no key"), "{stderr}");
}

#[test]
fn the_commands_that_call_a_server_take_a_key_and_no_log_has_its_text() {
    let keys = Keys::new();
    let (key, id) = keys.create("default", "chat,kb");
    let mut server = serve(keys.dir.path(), LOOPBACK, LOOPBACK)
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
    let announced = announced(&mut server);
    let address = announced["listening"].as_str().expect("an address");
    let run = |arguments: &[&str], key: Option<&str>| {
        let mut command = turnflow();
        command.args(arguments).args(["--endpoint", address]).stdin(Stdio::null());
        finish(key.into_iter().fold(&mut command, |command, key| command.env("TURNFLOW_KEY", key)))
    };
    let (code, _, stderr) = run(&["kb", "list"], None);
    assert!(code == 1 && stderr.contains("a valid key is needed") && stderr.contains("TURNFLOW_KEY"), "{stderr}");
    let articles = sample("articles.jsonl").display().to_string();
    assert_eq!(run(&["kb", "import", &articles], Some(&key)).0, 0);
    let (code, stdout, _) = run(&["kb", "list"], Some(&key));
    assert!(code == 0 && stdout.contains("delivery"), "{stdout}");
    let (code, stdout, _) = run(&["kb", "search", DELIVERY, "--key", &key], None);
    assert!(code == 0 && stdout.contains("delivery"), "{stdout}");
    let (code, _, stderr) = run(&["feedback", "c", "1", "good"], Some(&key));
    assert!(code == 1 && stderr.contains("no answered turn"), "{stderr}");
    let (code, _, stderr) = run(&["chat"], Some(&key));
    assert_eq!(code, 0, "{stderr}");
    let wrong = format!("{key}x");
    let (code, stdout, stderr) = run(&["kb", "list"], Some(&wrong));
    assert!(code == 1 && !stderr.contains(&key[12..]) && !stdout.contains(&key[12..]), "{stderr}");
    let (code, _, stderr) = run(&["kb", "list"], Some("no\nkey"));
    assert!(code == 1 && stderr.contains("a valid key is needed"), "{stderr}");

    // It has no time to end in order: what it logged so far is enough.
    server.kill().expect("killed");
    server.wait().expect("an end");
    let log = reading.join().expect("no panic");
    assert!(log.contains(&format!("key={id}")) && log.contains("a call was refused"), "{log}");
    assert!(!log.contains(&key[12..]), "a key is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_as_a_whole_is_for_operators_and_a_tenant_for_its_admins() {
    bounded(async {
        let keys = Keys::new();
        let [(chat, _), (admin, _), (operator, _), (both, _)] =
            ["chat,kb", "admin", "operator", "admin,operator"].map(|scopes| keys.create("default", scopes));
        let server = keys.server().await;
        let client = HttpClient::new(server.http);
        assert_eq!(client.get("/metrics").await.error().0, 401);
        for key in [&chat, &admin] {
            let refused = get(&client, "/metrics", key).await;
            assert!(refused.error().0 == 403 && refused.body.contains("scope operator"), "{refused:?}");
        }
        let told = get(&client, "/metrics", &operator).await;
        assert!(told.status == 200 && told.body.starts_with("# HELP turnflow_"), "{told:?}");
        let reload = async |key: &str| {
            client.send(Method::POST, "/admin/reload", &[("authorization", &bearer(key))], Bytes::new()).await.error().1
        };
        assert_eq!(
            (reload(&admin).await, reload(&operator).await),
            ("missing_scope".into(), "no_configuration".into())
        );
        assert_eq!(get(&client, "/v1/models", &operator).await.status, 403, "no tenant's work is an operator's");

        let mut calls = AdminClient::new(server.channel().await);
        let code = |result: Result<(), tonic::Status>| result.err().map(|status| status.code());
        for (key, of_tenant, of_server) in [
            (&chat, Some(Code::PermissionDenied), Some(Code::PermissionDenied)),
            (&admin, None, Some(Code::PermissionDenied)),
            // There is no folder for backups here.
            (&operator, Some(Code::PermissionDenied), Some(Code::FailedPrecondition)),
            (&both, None, Some(Code::FailedPrecondition)),
        ] {
            let listed = calls.list_entries(call(key, ListEntriesRequest::default())).await.map(drop);
            let copied = calls.backup(call(key, BackupRequest::default())).await.map(drop);
            assert_eq!((code(listed), code(copied)), (of_tenant, of_server));
        }
        for (key, expected) in [(&admin, false), (&both, true)] {
            let mut stats = calls.stats(call(key, StatsRequest::default())).await.expect("told").into_inner();
            let told = stats.message().await.expect("told").expect("at once");
            assert!(told.turns.is_some() && told.server.is_some() == expected, "{told:?}");
        }
        assert_eq!(code(calls.drain(call(&admin, DrainRequest {})).await.map(drop)), Some(Code::PermissionDenied));
        calls.drain(call(&operator, DrainRequest {})).await.expect("it goes");
        server.stop().await;
    })
    .await;
}
