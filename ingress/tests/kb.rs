//! `turnflow kb` as a user meets it: on a running server, and on a store of its own.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod announced;
mod binary;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use announced::announced;
use binary::{finish, sample, turnflow};

const QUESTION: &str = "How long does the battery of the Brightside lantern last?";

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// A server with the sample shop on a port of its own; it is killed when it is dropped.
struct Server {
    process: Child,
    address: String,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = folder();
        let data = dir.path().join("data").display().to_string();
        let mut process = turnflow()
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--sample", "--json", "--data", &data])
            .stdout(Stdio::piped())
            .spawn()
            .expect("turnflow starts");
        let announced = announced(&mut process);
        let address = announced["listening"].as_str().expect("an address").to_owned();
        Self { process, address, _dir: dir }
    }

    /// Asks a question in a conversation of its own, and returns answer and origin.
    fn ask(&self, question: &str) -> String {
        let mut chat = turnflow()
            .args(["chat", "--endpoint", &self.address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("turnflow starts");
        writeln!(chat.stdin.take().expect("a pipe"), "{question}").expect("it listens");
        let output = chat.wait_with_output().expect("an end");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `kb` with some more arguments, of a server or of a store.
struct Kb {
    place: [String; 2],
}

impl Kb {
    fn of_server(server: &Server) -> Self {
        Self { place: ["--endpoint".to_owned(), server.address.clone()] }
    }

    fn of_store(dir: &Path) -> Self {
        Self { place: ["--data".to_owned(), dir.display().to_string()] }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = turnflow();
        command.arg("kb").args(arguments).args(&self.place);
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finish(&mut self.command(arguments))
    }

    /// The lines of JSON that a command prints when it succeeds.
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let (code, stdout, _) = finish(self.command(arguments).arg("--json"));
        assert_eq!(code, 0);
        stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.json(&["list"]).iter().map(|article| article["id"].as_str().expect("an id").to_owned()).collect()
    }
}

fn lantern(hours: u32) -> [String; 5] {
    let body = format!("The battery of the Brightside lantern lasts {hours} hours.");
    ["lantern", "--title", "Brightside lantern: battery", "--body", &body].map(str::to_owned)
}

fn upsert<'a>(article: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    ["upsert"].into_iter().chain(article.iter().map(String::as_str)).chain(more.iter().copied()).collect()
}

/// What all commands do, wherever the knowledge base is.
fn articles_come_change_and_go(kb: &Kb) {
    let (first, second) = (lantern(40), lantern(55));
    let written = &kb.json(&upsert(&first, &["--meta", "category=lamps", "--meta", "by=Ada=Bo"]))[0];
    assert_eq!((&written["version"], &written["chunks"], &written["dry_run"]), (&1.into(), &1.into(), &false.into()));

    let (code, stdout, stderr) = kb.run(&["get", "lantern"]);
    assert_eq!(code, 0);
    assert!(stderr.contains("using the "), "it says what it works on: {stderr}");
    let dir = folder();
    let page = write(dir.path(), "page.md", &stdout);
    let again = &kb.json(&["import", &page])[0];
    assert_eq!((&again["articles"], &again["unchanged"]), (&1.into(), &1.into()), "what is shown can be imported");
    let shown = &kb.json(&["get", "lantern"])[0];
    assert_eq!((&shown["metadata"]["by"], &shown["version"]), (&"Ada=Bo".into(), &1.into()));

    let forecast = &kb.json(&upsert(&second, &["--dry-run"]))[0];
    assert_eq!((&forecast["version"], &forecast["epoch"], &forecast["dry_run"]), (&2.into(), &0.into(), &true.into()));
    let (code, _, stderr) = kb.run(&upsert(&second, &["--expect", "7"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("article lantern: expected version 7, found version 1"), "{stderr}");
    let body = write(dir.path(), "body.txt", &second[4]);
    let from_file =
        ["upsert", "lantern", "--title", &second[2], "--body-file", &body, "--version", "5", "--expect", "1"];
    assert_eq!(kb.json(&from_file)[0]["version"], 5);

    let found = &kb.json(&["search", QUESTION, "-k", "2"])[0];
    assert_eq!((&found[0]["article_id"], &found[0]["version"]), (&"lantern".into(), &5.into()));
    assert_eq!(found.as_array().map(Vec::len), Some(2));
    let (_, stdout, _) = kb.run(&["search", QUESTION]);
    assert!(stdout.contains("lantern") && stdout.contains("55 hours"), "{stdout}");

    assert!(kb.ids().is_sorted() && kb.ids().contains(&"lantern".to_owned()));
    assert_eq!(kb.json(&["list", "--prefix", "lan"]).len(), 1);
    assert_eq!(kb.json(&["list", "--limit", "1", "--with-body"]).len(), 1);
    let (_, stdout, _) = kb.run(&["list", "--prefix", "lantern"]);
    assert_eq!(stdout, "lantern  v5  Brightside lantern: battery\n");

    assert_eq!(kb.json(&["delete", "lantern", "--dry-run"])[0]["version"], 6);
    assert_eq!(kb.run(&["delete", "lantern", "--expect", "1"]).0, 1);
    assert_eq!(kb.json(&["delete", "lantern", "--expect", "5"])[0]["version"], 6);
    for gone in [["delete", "lantern"], ["get", "lantern"]] {
        let (code, _, stderr) = kb.run(&gone);
        assert!(code == 1 && stderr.contains("turnflow: there is no article lantern"), "{stderr}");
    }
    let (code, _, stderr) = kb.run(&["upsert", "", "--title", "T", "--body", "B"]);
    assert!(code == 1 && stderr.contains("article.id: empty"), "{stderr}");
}

#[test]
fn all_commands_work_on_a_store() {
    let dir = folder();
    let kb = Kb::of_store(&dir.path().join("data"));
    assert_eq!(kb.run(&["import", &sample("articles.jsonl").display().to_string()]).0, 0);
    articles_come_change_and_go(&kb);
    let (code, stdout, stderr) = kb.run(&["search", QUESTION, "--tenant", "stranger", "--json"]);
    assert_eq!((code, stdout.trim()), (0, "[]"), "another tenant's knowledge base is not searched");
    assert!(stderr.contains("nothing found"), "{stderr}");
}

#[test]
fn all_commands_work_on_a_running_server() {
    let server = Server::start();
    let kb = Kb::of_server(&server);
    let mut watch = turnflow()
        .args(["kb", "watch", "--endpoint", &server.address, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let mut said = BufReader::new(watch.stderr.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    assert_eq!(said.next(), Some(format!("watching the server at {}", server.address)));
    let mut changes = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut heard =
        || -> Value { serde_json::from_str(&changes.next().expect("a change").expect("text")).expect("JSON") };

    articles_come_change_and_go(&kb);
    for (version, deleted) in [(1, false), (5, false), (6, true)] {
        let change = heard();
        let article = &change["articles"][0];
        assert_eq!((&article["version"], &article["deleted"]), (&version.into(), &deleted.into()), "{change}");
    }

    // A dry run says what the write then does, and who asks gets the new text.
    let (first, second) = (lantern(40), lantern(55));
    kb.json(&upsert(&first, &[]));
    let answer = server.ask(QUESTION);
    assert!(answer.contains("40 hours") && answer.contains("miss"), "{answer}");
    assert!(server.ask(QUESTION).contains("exact hit"));
    let (code, stdout, _) = kb.run(&upsert(&second, &["--dry-run"]));
    assert_eq!(code, 0);
    let expected = format!("\"{QUESTION}\": a chunk that it rests on changes");
    assert!(stdout.contains("1 cached answers invalidated") && stdout.contains(&expected), "{stdout}");
    assert!(server.ask(QUESTION).contains("exact hit"), "a dry run changes nothing");
    assert_eq!(kb.json(&upsert(&second, &[]))[0]["cached_answers_invalidated"], 1);
    let answer = server.ask(QUESTION);
    // It may have been answered anew already.
    assert!(answer.contains("55 hours"), "{answer}");
    assert_eq!(
        (&heard()["cached_answers_invalidated"], &heard()["cached_answers_invalidated"]),
        (&0.into(), &1.into())
    );

    let (code, _, stderr) = kb.run(&["list", "--tenant", "other"]);
    assert!(code == 64 && stderr.contains("cannot be asked for tenant other"), "{stderr}");

    // The configured address is that of the server: no need to name it.
    let dir = folder();
    let config = write(dir.path(), "turnflow.toml", format!("[server]\nlisten = \"{}\"\n", server.address));
    let (code, _, stderr) = finish(turnflow().args(["kb", "get", "lantern", "--config", &config]));
    assert_eq!(code, 0);
    assert!(stderr.contains(&format!("using the server at {}", server.address)), "{stderr}");

    drop(server);
    assert_eq!(watch.wait().expect("an end").code(), Some(1), "a watch ends with its server");
    assert!(said.any(|line| line.starts_with("turnflow: ")), "and says why");
}

#[cfg(unix)]
#[test]
fn without_a_server_the_store_is_opened_and_a_watch_refused() {
    let home = folder();
    let models = turnflow_models::default_home().expect("a home").join("models");
    std::os::unix::fs::symlink(models, home.path().join("models")).expect("linked");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let config = write(home.path(), "turnflow.toml", format!("[server]\nlisten = \"{free}\"\n"));
    let run = |arguments: &[&str]| {
        finish(turnflow().arg("kb").args(arguments).args(["--config", &config]).env("TURNFLOW_HOME", home.path()))
    };
    let (code, stdout, stderr) = run(&["upsert", "a", "--title", "T", "--body", "B"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("wrote a, version 1, in 1 chunks; "), "{stdout}");
    assert!(stderr.contains(&format!("no server at {free}")) && stderr.contains("using the store in "), "{stderr}");
    assert!(home.path().join("data").is_dir());

    let (code, _, stderr) = run(&["watch"]);
    assert!(code == 1 && stderr.contains("start it with `turnflow serve`"), "{stderr}");
    // Who names a server wants that one.
    let (code, _, stderr) = run(&["list", "--endpoint", &free.to_string()]);
    assert!(code == 1 && stderr.contains("turnflow: nothing answers at http://"), "{stderr}");
}

#[test]
fn folders_of_markdown_are_imported_and_what_is_missing_is_deleted() {
    let dir = folder();
    let kb = Kb::of_store(&dir.path().join("data"));
    let pages = dir.path().join("pages");
    write(&pages, "care/pans.md", "# Caring for pans\n\nDo not put pans into the dishwasher.\n");
    write(&pages, "returns.md", "---\ntitle: Returns\nversion: 3\nteam: orders\n---\nWithin 30 days.\n");
    let lines = write(dir.path(), "kb.jsonl", "{\"id\":\"extra\",\"title\":\"Extra\",\"metadata\":{\"by\":\"Ada\"}}\n");
    let pages = pages.display().to_string();

    let summary = &kb.json(&["import", &pages, &lines])[0];
    assert_eq!((&summary["articles"], &summary["chunks"], &summary["bad"]), (&3.into(), &3.into(), &0.into()));
    assert_eq!(kb.ids(), ["care/pans", "extra", "returns"]);
    let pans = &kb.json(&["get", "care/pans"])[0];
    assert_eq!(
        (&pans["title"], &pans["body"]),
        (&"Caring for pans".into(), &"Do not put pans into the dishwasher.".into())
    );
    let returns = &kb.json(&["get", "returns"])[0];
    assert_eq!((&returns["version"], &returns["metadata"]["team"]), (&3.into(), &"orders".into()));

    // What could not be read may be what is missing.
    let broken = write(dir.path(), "pages/broken.md", "---\ntags:\n  - a\n---\n");
    let (code, stdout, stderr) = kb.run(&["import", &pages, "--delete-missing"]);
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("skipped {broken}:3: ")) && stderr.contains("nothing is deleted"), "{stderr}");
    assert!(stdout.contains("1 unchanged") && stdout.contains("1 skipped"), "{stdout}");
    assert_eq!(kb.ids().len(), 3);

    fs::remove_file(broken).expect("removed");
    let forecast = &kb.json(&["import", &pages, "--delete-missing", "--dry-run"])[0];
    assert_eq!((&forecast["deleted"], kb.ids().len()), (&1.into(), 3));
    assert_eq!(kb.json(&["import", &pages, "--delete-missing"])[0]["deleted"], 1);
    assert_eq!(kb.ids(), ["care/pans", "returns"]);
}

#[test]
fn bad_items_are_named_and_stop_nothing_unless_told_to() {
    let dir = folder();
    let data = dir.path().join("data");
    let kb = Kb::of_store(&data);
    let (code, _, stderr) = kb.run(&["import", "/no/such/kb.jsonl"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("cannot open the knowledge base /no/such/kb.jsonl: "), "{stderr}");
    assert!(!data.exists(), "a store was made for a file that is not there");

    let good = |id: &str| format!("{{\"id\":\"{id}\",\"title\":\"Title of {id}\",\"version\":2}}\n");
    let text = [
        good("a").as_bytes(),
        b"{\"title\":\"U\"}\n{\"id\":\"b\"}\n{\"id\":\"c\",\"title\":\"\xFF\"}\n",
        b"{\"id\":\"d\",\"title\":\"Bell\\u0007\"}\n",
        good("e").as_bytes(),
    ]
    .concat();
    let file = write(dir.path(), "kb.jsonl", text);
    let stop = ["import", &file, "--on-bad-item", "stop"];
    let (code, stdout, stderr) = kb.run(&stop);
    assert!(
        code == 1 && stdout.starts_with("imported 1 articles") && stderr.matches("skipped ").count() == 1,
        "{stderr}"
    );
    assert_eq!(kb.ids(), ["a"]);

    let (code, stdout, stderr) = kb.run(&["import", &file]);
    assert_eq!(code, 1);
    for expected in [
        "skipped {}:2: missing field `id`",
        "skipped {}:3: article b has neither a title nor a body",
        "skipped {}:4: not UTF-8",
        "refused {}:5: article.title: contains a control character",
        "turnflow: 4 items were not imported",
    ] {
        assert!(stderr.contains(&expected.replace("{}", &file)), "{expected}: {stderr}");
    }
    assert!(stdout.starts_with("imported 1 articles in 1 chunks, 1 unchanged, 1 refused, 3 skipped; "), "{stdout}");
    assert_eq!(kb.ids(), ["a", "e"]);

    // The same version with another content is a mistake, and is named.
    let file = write(dir.path(), "again.jsonl", good("e").replace("Title", "Heading"));
    for more in [&[][..], &["--dry-run"]] {
        let (code, _, stderr) = kb.run(&[&["import", file.as_str()], more].concat());
        let expected = format!("refused {file}:1: article e: version 2 is not greater than 2");
        assert!(code == 1 && stderr.contains(&expected), "{stderr}");
    }
    let empty = write(dir.path(), "empty.jsonl", "\n");
    let (code, _, stderr) = kb.run(&["import", &empty, "--delete-missing"]);
    assert!(code == 1 && stderr.contains("no articles in "), "{stderr}");
    assert_eq!(kb.ids(), ["a", "e"]);
}
