//! The command line as a user meets it: exit codes, messages that name file and line, JSON that parses.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod announced;
mod binary;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use announced::announced;
use binary::{finish, sample, turnflow};

const GOOD_TURN: &str =
    r#"{"conversation_id":"c","turn":1,"ts":"2026-03-02T09:00:00Z","channel":"web","text":"how long do refunds take"}"#;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[test]
fn usage_errors_exit_64_and_help_exits_0() {
    let check = |arguments: &[&str], expected: i32| {
        let (code, ..) = finish(turnflow().args(arguments));
        assert_eq!(code, expected, "{arguments:?}");
    };
    check(&["--help"], 0);
    check(&["--version"], 0);
    check(&["replay", "--help"], 0);
    check(&[], 64);
    check(&["fly"], 64);
    check(&["replay", "log.jsonl"], 64);
    check(&["replay", "log.jsonl", "--kb", "kb.jsonl", "--speed", "soon"], 64);
    check(&["replay", "log.jsonl", "--kb", "kb.jsonl", "--in-flight", "0"], 64);
    check(&["kb", "search"], 64);
    check(&["kb", "import"], 64);
    check(&["kb", "import", "kb.jsonl", "--tenant", ""], 64);
    check(&["kb", "list", "--data", "data", "--endpoint", "127.0.0.1:1"], 64);
    check(&["kb", "upsert", "a", "--title", "T"], 64);
    check(&["kb", "upsert", "a", "--title", "T", "--body", "B", "--body-file", "-"], 64);
    check(&["kb", "upsert", "a", "--title", "T", "--body", "B", "--meta", "category"], 64);
    check(&["kb", "watch", "--data", "data"], 64);
    check(&["serve", "--listen", "here"], 64);
    check(&["bench", "load"], 64);
    check(&["bench", "load", "log.jsonl", "--multiples", "1,0"], 64);
    check(&["bench", "load", "log.jsonl", "--seconds", "NaN"], 64);
    check(&["bench", "load", "log.jsonl", "--ongoing-share", "1.5"], 64);
    check(&["bench", "load", "log.jsonl", "--kb", "kb.jsonl", "--server", "127.0.0.1:1"], 64);
}

#[test]
fn results_never_overwrite_what_is_read() {
    let dir = folder();
    let log = write(dir.path(), "log.jsonl", GOOD_TURN);
    let kb = sample("articles.jsonl").display().to_string();
    let (code, _, stderr) = finish(turnflow().args(["replay", &log, "--kb", &kb, "--out", &log]));
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("which is read"), "{stderr}");
    assert_eq!(fs::read_to_string(&log).expect("still there"), GOOD_TURN);
}

#[test]
fn configuration_errors_exit_64_and_name_the_line() {
    let dir = folder();
    let check = |text: &str, line: u32, expected: &str| {
        let file = write(dir.path(), "turnflow.toml", text);
        let (code, _, stderr) = finish(turnflow().args(["check", "--config", &file]));
        assert_eq!(code, 64, "{text}");
        assert!(stderr.starts_with("turnflow: ") && stderr.contains(&format!("{file}:{line}")), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    };
    check("[server]\nlisten = \"127.0.0.1:0\"\nlisten-to = 3\n", 3, "listen-to");
    check("[cache]\n\nsimilarity-min = 7.0\n", 3, "between 0 and 1");
    check("[cache\n", 1, "");
    check("[workers]\nthreads = \"many\"\n", 2, "threads");
    let (code, _, stderr) = finish(turnflow().args(["check", "--config", "/no/such/file.toml"]));
    assert_eq!(code, 64);
    assert!(stderr.contains("/no/such/file.toml"), "{stderr}");
}

#[test]
fn a_replay_reports_what_it_did_before_a_bad_line() {
    let dir = folder();
    let out = dir.path().join("results.jsonl").display().to_string();
    let kb = sample("articles.jsonl").display().to_string();
    let second = GOOD_TURN.replace("\"turn\":1", "\"turn\":2");
    let log = write(dir.path(), "log.jsonl", format!("{GOOD_TURN}\n{{\"turn\":\n{second}\n"));
    let results = || fs::read_to_string(&out).expect("results").lines().count();

    let (code, stdout, stderr) = finish(turnflow().args(["replay", &log, "--kb", &kb, "--out", &out, "--json"]));
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("turnflow: {log}:2: ")) && stderr.contains("--on-bad-line skip"), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&report["turns"], results()), (&Value::from(1), 1));

    let skip = ["replay", &log, "--kb", &kb, "--out", &out, "--on-bad-line", "skip"];
    let (code, stdout, stderr) = finish(turnflow().args(skip));
    assert_eq!(code, 0);
    assert!(stderr.contains(&format!("skipped {log}:2: ")), "{stderr}");
    assert!(stdout.contains("lines skipped") && stdout.contains("exact cache"), "{stdout}");
    assert_eq!(results(), 2);
}

#[test]
fn missing_logs_and_folders_in_their_place_are_named() {
    let dir = folder();
    let kb = sample("articles.jsonl").display().to_string();
    let (code, _, stderr) = finish(turnflow().args(["replay", "/no/such/log.jsonl", "--kb", &kb]));
    assert_eq!(code, 1);
    assert!(stderr.starts_with("turnflow: cannot open the log /no/such/log.jsonl: "), "{stderr}");
    let place = dir.path().display().to_string();
    let (code, _, stderr) = finish(turnflow().args(["replay", &place, "--kb", &kb]));
    assert_eq!(code, 1);
    assert!(stderr.contains("is a folder"), "{stderr}");
}

#[test]
fn models_that_are_not_there_are_listed_as_such() {
    let dir = folder();
    let (code, stdout, _) = finish(turnflow().args(["models", "list", "--json"]).env("TURNFLOW_HOME", dir.path()));
    assert_eq!(code, 0);
    let models: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&models[0]["intact"], &models[0]["bytes"]), (&Value::from(false), &Value::from(0)));
    let pull = ["models", "pull", "--from", "/no/such/folder"];
    let (code, _, stderr) = finish(turnflow().args(pull).env("TURNFLOW_HOME", dir.path()));
    assert_eq!(code, 1);
    assert!(stderr.contains("/no/such/folder"), "{stderr}");
}

#[test]
fn check_prints_settings_and_what_is_not_usable() {
    let dir = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let config = write(dir.path(), "turnflow.toml", format!("[server]\nlisten = \"{address}\"\n"));
    let file = write(dir.path(), "occupied", "");
    let check = ["check", "--config", &config, "--json"];
    let (code, stdout, stderr) =
        finish(turnflow().args(check).args(["--data", &file]).env("TURNFLOW_HOME", dir.path()));
    assert_eq!(code, 64);
    assert!(stderr.contains("not usable: data folder, weights, port"), "{stderr}");
    assert!(stdout.contains("\"in use by another process than a server of this store\""), "{stdout}");
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (&found["usable"], &found["config"]["server"]["listen"]),
        (&Value::from(false), &Value::from(address.to_string()))
    );
    assert!(found["config"]["limits"]["text-bytes-max"].as_u64() > Some(0), "{found}");
    assert_eq!(found["config"]["cache"]["validity"], "exact");
    assert_eq!(found["origins"], serde_json::json!({ "server.listen": format!("{config}:2") }));
    for setting in ["ttl-s", "bytes-max", "tenant-bytes-max"] {
        assert!(found["config"]["cache"][setting].is_u64(), "{setting} is missing: {found}");
    }

    drop(taken);
    let data = dir.path().join("data").display().to_string();
    let (code, stdout, _) =
        finish(turnflow().args(["check", "--config", &config, "--data", &data]).env("TURNFLOW_HOME", dir.path()));
    assert_eq!(code, 64, "no weights");
    let listen = format!("server.listen = \"{address}\"");
    let written = stdout.lines().find(|line| line.starts_with(&listen)).expect("the setting");
    assert!(written.ends_with("turnflow.toml:2"), "{written}");
    let is_toml = |settings: &str| settings.parse::<toml::Table>().is_ok();
    assert!(is_toml(stdout.split("\n\n").next().expect("the settings")), "{stdout}");
    assert!(stdout.contains("\nlimits.text-bytes-max = 8192\n"), "{stdout}");
    assert!(stdout.contains("ok  port") && stdout.contains("BAD weights"), "{stdout}");
    assert!(!Path::new(&data).exists(), "check changes nothing");
}

#[test]
fn a_check_finds_what_an_encoder_cannot_be_used_with() {
    let dir = folder();
    let store = turnflow_state::Store::open(dir.path().join("data")).expect("a store");
    store.bind_encoder("another").expect("bound");
    drop(store);
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/bert-mean");
    let check = |chunks: &str, data: &str| {
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n[policy]\nverifier = \"none\"\n\
             [encoder]\nmodel = {encoder:?}\nadapter = \"none\"\n[knowledge]\n{chunks}"
        );
        let config = write(dir.path(), "turnflow.toml", settings);
        let data = dir.path().join(data).display().to_string();
        finish(turnflow().args(["check", "--config", &config, "--data", &data]))
    };
    let (code, stdout, stderr) = check("", "data");
    assert!(code == 64 && stderr.contains("not usable: data folder, chunks"), "{stderr}");
    assert!(stdout.contains("the database holds vectors of another, not of bert "), "{stdout}");
    assert!(stdout.contains("knowledge.chunk-tokens-max = 240 is more than the 40 word pieces"), "{stdout}");
    let (code, stdout, _) = check("chunk-tokens-max = 41", "data");
    assert!(code == 64 && stdout.contains("turnflow.toml:11: knowledge.chunk-tokens-max = 41 is more"), "{stdout}");
    let (code, stdout, stderr) = check("chunk-tokens-max = 40", "other");
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn chat_says_when_there_is_no_server() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (code, _, stderr) = finish(turnflow().args(["chat", "--endpoint", &free.to_string()]));
    assert_eq!(code, 1);
    assert!(stderr.starts_with(&format!("turnflow: nothing answers at http://{free}: ")), "{stderr}");
    assert!(stderr.contains("start it with `turnflow serve`") && stderr.contains("--endpoint"), "{stderr}");
    let feedback = ["feedback", "c", "1", "good", "--endpoint", "somewhere else"];
    let (code, _, stderr) = finish(turnflow().args(feedback));
    assert!(code == 1 && stderr.contains("\"somewhere else\" is no address, HOST:PORT or"), "{stderr}");
}

#[test]
fn beside_a_running_server_a_check_says_so() {
    let dir = folder();
    let data = dir.path().join("data").display().to_string();
    let mut server = turnflow()
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", &data])
        .stdout(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let at = announced(&mut server);
    let settings = format!("[server]\nlisten = {}\n[http]\nlisten = {}\n", at["listening"], at["http"]);
    let check = |settings: &str, data: &str| {
        let config = write(dir.path(), "turnflow.toml", settings);
        let (code, stdout, _) = finish(turnflow().args(["check", "--config", &config, "--json", "--data", data]));
        let found: Value = serde_json::from_str(&stdout).expect("JSON");
        let findings = found["findings"].as_array().expect("a list").clone();
        let told = |what: &str| findings.iter().find(|finding| finding["what"] == what).map(|f| f["detail"].clone());
        (code, ["data folder", "port", "HTTP port", "server"].map(|what| told(what).unwrap_or_default()))
    };
    let in_use = "in use by a running server";
    let as_set = "runs with these ports and certificates";
    assert_eq!(check(&settings, &data), (0, [in_use, in_use, in_use, as_set].map(Value::from)));
    // What the file says for the next start is told, and no fault.
    let moved = format!("[server]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = {}\n", at["listening"]);
    let (code, found) = check(&moved, &data);
    let expected = format!("at a restart with these settings, HTTP moves from {} to {}", at["http"], at["listening"]);
    assert_eq!((code, &found[1..]), (0, &["free", in_use, &expected.replace('"', "")].map(Value::from)[..]));
    // A server with another store is in the way of one with this.
    let (code, found) = check(&settings, &format!("{data}-of-another"));
    let taken = "in use by another process than a server of this store";
    assert_eq!((code, found), (64, [Value::from("can be made"), taken.into(), taken.into(), Value::Null]));
    server.kill().expect("it runs");
    server.wait().expect("an end");
    // What it left behind says nothing.
    let listener = TcpListener::bind(at["listening"].as_str().expect("an address")).expect("free again");
    let (code, found) = check(&settings, &data);
    assert_eq!((code, &found[1..]), (64, &[taken.into(), "free".into(), Value::Null][..]));
    drop(listener);
}

#[test]
fn all_that_settings_name_and_is_not_there_is_told_at_once() {
    let dir = folder();
    let settings = "[policy]\nverifier = \"no.verifier\"\n[routing]\nenabled = true\nrouter = \"/no/router\"\n\
         [small-tier]\nkind = \"burn\"\nburn.model = \"no/model\"\n[tier]\nkind = \"openai\"\n[tier.openai]\n\
         base-url = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\nkey-env = \"TURNFLOW_NO_SUCH_KEY\"\n\
         [gateway]\nkeys = \"keys.jsonl\"\npepper-file = \"no.pepper\"\n";
    let config = write(dir.path(), "turnflow.toml", settings);
    let run = |arguments: &[&str]| {
        let run = |arguments: &[&str]| finish(turnflow().args(arguments).current_dir(dir.path()));
        let (code, ..) = run(&["keys", "create", "--tenant", "t", "--scopes", "chat", "--config", &config]);
        assert_eq!(code, 0, "a key for which there is a pepper");
        fs::remove_file(dir.path().join("no.pepper")).expect("it was there");
        let said = run(&[arguments, &["--config", &config, "--data", "data"]].concat());
        fs::remove_file(dir.path().join("keys.jsonl")).expect("it was there");
        said
    };
    let expected = [
        (2, "policy.verifier = \"no.verifier\": cannot read"),
        (5, "routing.router = \"/no/router\": "),
        (8, "small-tier.burn.model = \"no/model\": "),
        (14, "tier.openai.key-env = \"TURNFLOW_NO_SUCH_KEY\": no key in the environment variable"),
        (17, "gateway.pepper-file = \"no.pepper\": there are keys, but"),
    ];
    let (code, _, stderr) = run(&["serve"]);
    assert_eq!(code, 64);
    for (line, text) in expected {
        assert!(stderr.contains(&format!("{config}:{line}: {text}")), "{line}: {text}");
    }
    let seen_from = dir.path().canonicalize().expect("it is there");
    assert!(stderr.contains(&format!("seen from {}; `turnflow policy fit` writes one", seen_from.display())));
    assert!(!dir.path().join("data").exists(), "nothing was opened");
    // Without a server, its store is opened; keys do not matter there.
    let (code, _, stderr) = run(&["kb", "list"]);
    let expected_of_parts = &expected[..expected.len() - 1];
    assert_eq!((code, expected_of_parts.iter().all(|(_, text)| stderr.contains(text))), (64, true), "{stderr}");

    let (code, stdout, _) = run(&["check", "--settings-only"]);
    assert_eq!((code, stdout.matches("\nBAD ").count()), (64, expected.len() - 1), "variables are the machine's");
    assert!(!stdout.contains("data folder") && !stdout.contains("HTTP port"), "{stdout}");
    let good = write(dir.path(), "good.toml", settings.lines().skip(2).take(2).collect::<Vec<_>>().join("\n"));
    let check = ["check", "--settings-only", "--config", &good, "--data", "/no/such/folder"];
    assert_eq!(finish(turnflow().args(check).env("TURNFLOW_HOME", dir.path())).0, 0, "no weights are needed");
}

/// A pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[cfg(unix)]
#[test]
fn where_nobody_reads_a_command_ends_quietly() {
    let dir = folder();
    let data = dir.path().display().to_string();
    for arguments in [vec!["completions", "bash"], vec!["keys", "list", "--json", "--data", &data]] {
        let output = turnflow().args(&arguments).stdout(unread()).stderr(Stdio::piped()).spawn().expect("it starts");
        let output = output.wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(141), "{said}");
        assert!(!said.contains("turnflow: ") && !said.contains("panicked"), "{said}");
    }
    // What is said beside a result is for nobody, and the result is there.
    let create = ["keys", "create", "--tenant", "t", "--scopes", "chat", "--data", &data];
    let output = turnflow().args(create).stderr(unread()).output().expect("it starts");
    assert!(output.status.success() && output.stdout.starts_with(b"tf_"), "{output:?}");
    let failed = turnflow().args(["keys", "revoke", "aaaaaaaa", "--data", &data]).stderr(unread()).status();
    assert_eq!(failed.expect("it starts").code(), Some(1));
}

#[test]
fn keys_are_not_made_in_a_folder_that_is_not_there() {
    let dir = folder();
    let typo = dir.path().join("dta");
    for arguments in [vec!["create", "--tenant", "t", "--scopes", "chat"], vec!["list"], vec!["revoke", "aaaaaaaa"]] {
        let (code, _, stderr) = finish(turnflow().arg("keys").args(&arguments).arg("--data").arg(&typo));
        assert_eq!(code, 64, "{arguments:?}");
        assert!(stderr.contains(&format!("there is no folder {}", typo.display())), "{stderr}");
        assert!(stderr.contains("--data") && !typo.exists(), "{stderr}");
    }
    // The folder that nobody named is made: keys come before the first start.
    let create = ["keys", "create", "--tenant", "t", "--scopes", "chat"];
    assert_eq!(finish(turnflow().args(create).env("TURNFLOW_HOME", &typo)).0, 0);
    assert!(typo.join("data/keys.jsonl").is_file());
}

#[test]
fn the_demo_tells_its_story() {
    let dir = folder();
    let data = dir.path().display().to_string();
    let (code, stdout, _) = finish(turnflow().args(["demo", "--data", &data]));
    assert_eq!(code, 0);
    for expected in ["What happened", "from the cache", "asked", "why", "turnflow kb import"] {
        assert!(stdout.contains(expected), "{expected:?} is missing");
    }
    // The second time, the same store serves the same answers.
    let (code, stdout, _) = finish(turnflow().args(["demo", "--data", &data, "--json"]));
    assert_eq!(code, 0);
    let demo: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(demo["report"]["errors"], 0);
    assert_eq!(demo["report"]["answered_before"], demo["report"]["turns"]);
    let hits = ["exact", "semantic", "joined"].iter().filter_map(|level| demo["report"]["answered_by"][level].as_u64());
    assert!(hits.sum::<u64>() > 100, "{demo}");
}
