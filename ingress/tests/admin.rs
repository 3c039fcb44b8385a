//! Those who run a server, by gRPC and by the command line: how it does, what is cached, a flush, and the end.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
mod binary;
mod support;

use std::process::Stdio;

use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};
use turnflow::grpc::client::Access;
use turnflow::grpc::proto::admin_client::AdminClient;
use turnflow::grpc::proto::{
    CacheLevel, DrainRequest, EntrySelection, FlushRequest, GetEntryRequest, ListEntriesRequest, LoadLevel,
    StatsRequest,
};

use self::announced::announced;
use self::binary::{finish, sample, turnflow};
use self::support::{TestServer, ask, bounded, turn};

const DELIVERY: &str = "How long does standard delivery take?";
const GIFTS: &str = "Do gift cards expire?";

async fn admin(server: &TestServer) -> AdminClient<Channel> {
    AdminClient::new(server.channel().await)
}

/// Asks both questions, the first of them three times.
async fn served(server: &TestServer) {
    let mut client = server.client().await;
    for (conversation, question) in [("a", DELIVERY), ("b", GIFTS), ("c", DELIVERY), ("d", DELIVERY)] {
        ask(&mut client, turn(conversation, "1", question)).await.expect("answered");
    }
}

async fn level(server: &TestServer, conversation: &str, question: &str) -> CacheLevel {
    let done = ask(&mut server.client().await, turn(conversation, "1", question)).await.expect("answered");
    done.verdict.expect("a verdict").level()
}

fn about(article: &str) -> Option<EntrySelection> {
    Some(EntrySelection { article_id: article.to_owned(), ..EntrySelection::default() })
}

fn with_words(text: &str) -> Option<EntrySelection> {
    Some(EntrySelection { text: text.to_owned(), ..EntrySelection::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_is_listed_shown_and_flushed() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        served(&server).await;
        let mut admin = admin(&server).await;
        let listed = admin.list_entries(ListEntriesRequest::default()).await.expect("listed").into_inner();
        let short: Vec<_> = listed.entries.iter().map(|entry| (entry.question.as_str(), entry.hits)).collect();
        assert_eq!((listed.matched, short), (2, vec![(DELIVERY, 2), (GIFTS, 0)]));
        let delivery = &listed.entries[0];
        assert_eq!(delivery.origin.as_ref().expect("a turn").conversation_id, "a");
        assert!(delivery.rests_on.iter().any(|article| article == "delivery-times"), "{delivery:?}");
        let whole = admin.get_entry(GetEntryRequest { id: delivery.id }).await.expect("there").into_inner();
        assert!(whole.entry.expect("an entry").answer.contains("3 to 5 business days"));

        let refused = |result: Result<_, Status>| result.err().map(|status| status.code());
        let first = ListEntriesRequest { limit: 1, ..ListEntriesRequest::default() };
        assert_eq!(admin.list_entries(first).await.expect("listed").into_inner().entries.len(), 1);
        let many = ListEntriesRequest { limit: 1_001, ..ListEntriesRequest::default() };
        assert_eq!(refused(admin.list_entries(many).await.map(drop)), Some(Code::InvalidArgument));
        assert_eq!(refused(admin.get_entry(GetEntryRequest { id: 77 }).await.map(drop)), Some(Code::NotFound));
        for (selection, all) in [
            (None, false),
            (about("delivery-times"), true),
            (about("\u{1}"), false),
            (about(" "), false),
            (with_words(" \n\u{3000}"), false),
            (with_words(" "), true),
        ] {
            let request = FlushRequest { selection, all, dry_run: false };
            assert_eq!(refused(admin.flush(request).await.map(drop)), Some(Code::InvalidArgument));
        }
        let blank = ListEntriesRequest { selection: with_words(" "), ..ListEntriesRequest::default() };
        assert_eq!(refused(admin.list_entries(blank).await.map(drop)), Some(Code::InvalidArgument));

        let request = |dry_run| FlushRequest { selection: about("delivery-times"), all: false, dry_run };
        let would = admin.flush(request(true)).await.expect("counted").into_inner();
        assert_eq!((would.epoch, level(&server, "e", DELIVERY).await), (0, CacheLevel::Exact));
        let flushed = admin.flush(request(false)).await.expect("flushed").into_inner();
        assert!(flushed.entries == would.entries && flushed.epoch > 0, "{flushed:?}");
        assert_eq!(level(&server, "f", DELIVERY).await, CacheLevel::Miss);
        let all = FlushRequest { selection: None, all: true, dry_run: false };
        assert!(admin.flush(all).await.expect("flushed").into_inner().entries > 0);
        assert_eq!(level(&server, "g", GIFTS).await, CacheLevel::Miss);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_the_server_does_is_told_until_it_ends() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut admin = admin(&server).await;
        let refused = admin.stats(StatsRequest { interval_ms: 99 }).await.map(drop).expect_err("too often");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let mut stats = admin.stats(StatsRequest { interval_ms: 100 }).await.expect("told").into_inner();
        let first = stats.message().await.expect("told").expect("at once");
        let whole = first.server.expect("without keys everybody is an operator");
        assert_eq!((whole.load(), whole.entries, first.hits), (LoadLevel::Normal, 0, None));
        served(&server).await;
        let mut hits = 0;
        loop {
            let next = stats.message().await.expect("told").expect("again and again");
            hits += next.hits.map_or(0, |times| times.count);
            let turns = next.turns.expect("counts");
            if (turns.exact, turns.miss) == (2, 2) {
                assert_eq!((hits, next.server.expect("told").entries, turns.failed), (2, 2, 0));
                break;
            }
        }
        let stopped = server.begin_stop();
        let end = loop {
            match stats.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends with a reason"),
                Err(status) => break status.code(),
            }
        };
        assert_eq!(end, Code::Unavailable);
        stopped.await.expect("no panic").expect("served");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_lists_shows_and_flushes() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        served(&server).await;
        let address = server.address.to_string();
        let run = async |arguments: &[&str]| {
            let mut command = turnflow();
            command.arg("cache").args(arguments).args(["--endpoint", &address]);
            tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it ends")
        };
        let (code, stdout, _) = run(&["list", "--text", "standard DELIVERY"]).await;
        assert!(code == 0 && stdout.starts_with("1 cached answers\n") && stdout.contains(DELIVERY), "{stdout}");
        let (_, stdout, _) = run(&["list", "--json"]).await;
        let listed: Value = serde_json::from_str(&stdout).expect("JSON");
        let id = listed["entries"][0]["id"].to_string();
        let (code, stdout, _) = run(&["show", &id]).await;
        assert!(code == 0 && stdout.contains("3 to 5 business days") && stdout.contains("turn 1 of a"), "{stdout}");
        assert_eq!(run(&["flush"]).await.0, 64, "something has to be said");
        assert_eq!(run(&["flush", "--all", "--entry", &id]).await.0, 64);
        let (_, stdout, _) = run(&["flush", "--entry", &id, "--dry-run"]).await;
        assert_eq!(stdout, "1 cached answers would be gone\n");
        let (_, stdout, _) = run(&["flush", "--entry", &id]).await;
        assert_eq!(stdout, "1 cached answers are gone\n");
        let (code, _, stderr) = run(&["show", &id]).await;
        assert!(code == 1 && stderr.contains("not cached"), "{stderr}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_ends_in_order() {
    bounded(async {
        let dir = tempfile::tempdir().expect("a folder");
        let import =
            turnflow().args(["kb", "import"]).arg(sample("articles.jsonl")).arg("--data").arg(dir.path()).output();
        assert!(import.expect("turnflow starts").status.success());
        let mut server = turnflow()
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "off", "--json", "--data"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("turnflow starts");
        let waiting = tokio::task::spawn_blocking(move || (announced(&mut server), server));
        let (announced, mut server) = waiting.await.expect("announced");
        let address = announced["listening"].as_str().expect("an address");
        let mut admin = AdminClient::new(Access::default().connect(address).await.expect("connected"));
        admin.drain(DrainRequest {}).await.expect("it goes");
        let ended = tokio::task::spawn_blocking(move || server.wait()).await.expect("waited").expect("an end");
        assert_eq!(ended.code(), Some(0));
    })
    .await;
}
