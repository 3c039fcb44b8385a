//! Backups as operators meet them: made while a server answers and is written to, restored on the command line, and refused where
//! something is not as it should be.

#![cfg(unix)]
#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod announced;
mod binary;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use turnflow::grpc::proto::ask_response::Event;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::knowledge_base_client::KnowledgeBaseClient;
use turnflow::grpc::proto::{Article, AskRequest, CacheLevel, Channel, Done, Turn, UpsertRequest};
use turnflow_state::{ArticleId, ConversationId, Store, TenantId, TurnId, TurnKey};

use announced::announced;
use binary::{finish, sample, turnflow};

const BACKUPS: usize = 3;
const QUESTION: &str = "How long does standard delivery take?";

/// A server in a process of its own, which ends with it.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut process = turnflow()
            .args(["serve", "--json", "--listen", "127.0.0.1:0", "--http", "off", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .expect("turnflow starts");
        let announced = announced(&mut process);
        let address = announced["listening"].as_str().expect("an address").to_owned();
        Self { process, address }
    }

    fn stop(mut self) {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().expect("kill runs");
        assert!(told.success());
        assert_eq!(self.process.wait().expect("an end").code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn ask(address: &str, conversation: &str, text: &str) -> Done {
    let mut client = ConversationsClient::connect(format!("http://{address}")).await.expect("connected");
    let turn = Turn {
        conversation_id: conversation.to_owned(),
        turn_id: "1".to_owned(),
        channel: Channel::Web.into(),
        text: text.to_owned(),
        cache_control: None,
        deadline_ms: None,
    };
    let mut events = client.ask(AskRequest { turn: Some(turn) }).await.expect("asked").into_inner();
    while let Some(response) = events.message().await.expect("no error") {
        if let Some(Event::Done(done)) = response.event {
            return done;
        }
    }
    unreachable!("a turn without an end")
}

fn tenant() -> TenantId {
    TenantId::new("default").expect("an id")
}

/// Runs a command that shall succeed, and reads what it says.
fn run(arguments: &[&str]) -> Value {
    let (code, stdout, _) = finish(turnflow().args(arguments).arg("--json"));
    assert_eq!(code, 0);
    serde_json::from_str(&stdout).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_is_in_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let start = move || {
        let (code, ..) =
            finish(turnflow().args(["kb", "import", text(&sample("articles.jsonl")), "--data", text(&data)]));
        assert_eq!(code, 0);
        Server::start(&data)
    };
    let server = Arc::new(spawn_blocking(start).await.expect("started"));
    let (acknowledged, mut written) = watch::channel(0_u64);
    let (answered, mut asked) = watch::channel(Vec::new());

    let address = server.address.clone();
    let writer = tokio::spawn(async move {
        let mut client = KnowledgeBaseClient::connect(format!("http://{address}")).await.expect("connected");
        for number in 1.. {
            let (id, title, body) = ("ticker".to_owned(), "Ticker".to_owned(), number.to_string());
            let article = Article { id, title, body, ..Article::default() };
            let request = UpsertRequest { article: Some(article), expected_version: None, dry_run: false };
            client.upsert(request).await.expect("written");
            acknowledged.send_replace(number);
        }
    });
    let address = server.address.clone();
    let asker = tokio::spawn(async move {
        for number in 0.. {
            let conversation = format!("c{number}");
            ask(&address, &conversation, QUESTION).await;
            answered.send_modify(|answered| answered.push(conversation));
        }
    });

    let mut restored = Vec::new();
    for number in 0..BACKUPS {
        // Something was written and asked since the last one.
        let (writes, turns) = (*written.borrow(), asked.borrow().len());
        let writes = *written.wait_for(|&now| now > writes).await.expect("the writer goes on");
        let turns = asked.wait_for(|now| now.len() > turns).await.expect("the asker goes on").clone();
        let (address, to) = (server.address.clone(), dir.path().join(format!("restored-{number}")));
        let path = to.clone();
        spawn_blocking(move || {
            let made = run(&["backup", &format!("b{number}"), "--endpoint", &address]);
            let backup = made["path"].as_str().expect("a path").to_owned();
            run(&["restore", &backup, "--data", text(&path)]);
        })
        .await
        .expect("restored");
        restored.push((to, writes, turns));
    }
    writer.abort();
    asker.abort();

    for (path, writes, turns) in &restored {
        let store = Store::open(path).expect("opens");
        let ticker = store.article(&tenant(), &ArticleId::new("ticker").expect("an id")).expect("readable");
        let body = ticker.expect("the article").body.parse::<u64>().expect("a number");
        assert!(body >= *writes, "{body} in the backup, {writes} were acknowledged");
        for conversation in turns {
            let conversation = ConversationId::new(conversation.clone()).expect("an id");
            let key = TurnKey { tenant: tenant(), conversation, turn: TurnId::new("1").expect("an id") };
            assert!(store.turn(&key).expect("readable").is_some(), "turn {key:?} is missing");
        }
    }
    // Answers are written to the caches when they are known to hold, a moment after they are told: the first backup may have come between.
    let (path, ..) = restored.pop().expect("backups");
    let again = Arc::new(spawn_blocking(move || Server::start(&path)).await.expect("started"));
    let done = ask(&again.address, "new", QUESTION).await;
    let level = done.verdict.map(|verdict| verdict.level());
    assert_eq!(level, Some(CacheLevel::Exact), "the caches are in a backup as well");
    for server in [server, again] {
        spawn_blocking(move || Arc::into_inner(server).expect("nobody else has it").stop()).await.expect("stopped");
    }
}

/// A store with one article, and a backup of it named `one`.
struct Shop {
    dir: TempDir,
}

impl Shop {
    fn new() -> Self {
        let shop = Self { dir: tempfile::tempdir().expect("a folder") };
        let article = ["kb", "upsert", "delivery", "--title", "Delivery", "--body", "Delivery takes two days."];
        let (code, ..) = shop.run(&article);
        assert_eq!(code, 0);
        let (code, ..) = shop.run(&["backup", "one"]);
        assert_eq!(code, 0);
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command on the store.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finish(turnflow().args(arguments).arg("--data").arg(self.path("data")))
    }

    /// Runs one that shall fail with such words.
    fn fails(&self, arguments: &[&str], words: &[&str]) {
        let (code, _, stderr) = self.run(arguments);
        assert_ne!(code, 0);
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} in {stderr}");
    }
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let shop = Shop::new();
    shop.fails(&["backup", "one"], &["backups/one is there already"]);
    shop.fails(&["backup", ".hidden"], &["no name for a backup"]);
    shop.fails(&["backup", "a/b"], &["no name for a backup"]);
    shop.fails(&["restore", "one"], &["data is there already", "--replace"]);
    shop.fails(&["restore", "two"], &["backups/two is no complete backup"]);

    let (code, ..) = shop.run(&["kb", "upsert", "delivery", "--title", "Delivery", "--body", "It takes ten days."]);
    assert_eq!(code, 0);
    let (code, stdout, _) = shop.run(&["restore", "one", "--replace"]);
    assert!(code == 0 && stdout.contains("data.replaced-"), "{stdout}");
    let (_, stdout, _) = shop.run(&["kb", "get", "delivery"]);
    assert!(stdout.contains("two days"), "{stdout}");
    let aside = fs::read_dir(shop.dir.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
    let aside = aside.filter(|path| text(path).contains("data.replaced-")).collect::<Vec<_>>();
    let [aside] = aside.as_slice() else { unreachable!("one store was put aside: {aside:?}") };
    let (_, stdout, _) = finish(turnflow().args(["kb", "get", "delivery", "--data"]).arg(aside));
    assert!(stdout.contains("ten days"), "{stdout}");
}

#[test]
fn a_damaged_backup_is_named_and_not_restored() {
    let shop = Shop::new();
    let backup = shop.path("backups/one");
    let files: Vec<PathBuf> =
        fs::read_dir(backup.join("store")).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    let table = files.iter().find(|file| text(file).ends_with(".sst")).expect("a table");
    let intact = fs::read(table).expect("readable");
    let name = text(table).rsplit('/').next().expect("a name");
    let elsewhere = text(&shop.path("elsewhere")).to_owned();
    let restore = |words: &[&str]| {
        let (code, _, stderr) = finish(turnflow().args(["restore", text(&backup), "--data", &elsewhere]));
        assert_eq!(code, 1);
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} in {stderr}");
        assert!(!Path::new(&elsewhere).exists());
    };
    // A backup shares its tables with the store, so the damage is done to a copy.
    fs::remove_file(table).expect("removed");
    restore(&[name, "the file is missing"]);
    let mut damaged = intact.clone();
    damaged[0] ^= 1;
    fs::write(table, &damaged).expect("written");
    restore(&[name, "BLAKE3 hash differs"]);
    damaged.pop();
    fs::write(table, &damaged).expect("written");
    restore(&[name, "bytes, not"]);
    fs::write(table, &intact).expect("written");

    let manifest = backup.join("turnflow-backup.json");
    let listed = fs::read_to_string(&manifest).expect("readable");
    fs::write(&manifest, listed.replace("\"format\": 1", "\"format\": 2")).expect("written");
    restore(&["format 2, this build reads 1"]);
    fs::write(&manifest, listed.replace("store/CURRENT", "../CURRENT")).expect("written");
    restore(&["is not in the backup"]);
    fs::remove_file(&manifest).expect("removed");
    restore(&["no complete backup"]);
}

#[test]
fn a_key_that_was_revoked_stays_revoked() {
    let shop = Shop::new();
    let (_, stdout, _) = shop.run(&["keys", "create", "--tenant", "shop", "--scopes", "chat", "--json"]);
    let made: Value = serde_json::from_str(&stdout).expect("JSON");
    let id = made["id"].as_str().expect("an id");
    assert_eq!(shop.run(&["backup", "two"]).0, 0);
    assert!(!shop.path("backups/two/keys/keys.pepper").exists(), "the pepper is in no backup");
    assert_eq!(shop.run(&["keys", "revoke", id]).0, 0);
    assert_eq!(shop.run(&["restore", "two", "--replace"]).0, 0);
    let (_, stdout, _) = shop.run(&["keys", "list"]);
    assert!(stdout.contains(id) && stdout.contains("revoked"), "{stdout}");
    assert!(shop.path("data/keys.pepper").exists() && shop.path("data/keys-audit.jsonl").exists());

    // However their path is written.
    let config = shop.path("turnflow.toml");
    let other_way = shop.path("data/../data/keys.jsonl");
    fs::write(&config, format!("[gateway]\nkeys = {:?}\n", text(&other_way))).expect("written");
    assert_eq!(shop.run(&["restore", "two", "--replace", "--config", text(&config)]).0, 0);
    let (_, stdout, _) = shop.run(&["keys", "list"]);
    assert!(stdout.contains(id) && stdout.contains("revoked"), "{stdout}");

    // Where there are no keys, the backup's are better than an open door.
    let elsewhere = shop.path("elsewhere");
    let (code, stdout, _) =
        finish(turnflow().args(["restore", text(&shop.path("backups/two")), "--data", text(&elsewhere)]));
    assert!(code == 0 && stdout.contains("the keys are the backup's"), "{stdout}");
    let (_, stdout, _) = finish(turnflow().args(["keys", "list", "--data", text(&elsewhere)]));
    assert!(stdout.contains(id) && stdout.contains("valid"), "{stdout}");
}

#[test]
fn a_store_in_use_is_not_replaced() {
    let shop = Shop::new();
    let server = Server::start(&shop.path("data"));
    shop.fails(&["restore", "one", "--replace"], &["in use", "stop the server first"]);
    server.stop();
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let (code, stdout, _) = finish(turnflow().args(["completions", "bash"]));
    assert!(code == 0 && stdout.contains("turnflow") && stdout.contains("restore"), "{stdout}");
    let dir = tempfile::tempdir().expect("a folder");
    let (code, ..) = finish(turnflow().arg("man").arg(dir.path()));
    assert_eq!(code, 0);
    let page = fs::read_to_string(dir.path().join("turnflow-restore.1")).expect("a page");
    assert!(page.contains("Put a backup in the place of a store"), "{page}");
}
