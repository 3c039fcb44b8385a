//! `models pull`, `models list` and `models verify` as a user meets them, against a server on loopback that plays the hub.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

#[expect(dead_code, reason = "reads nothing of the sample shop")]
mod binary;
#[path = "../../models/src/hub/server.rs"]
mod server;

use std::fs;
use std::path::Path;

use serde_json::Value;

use binary::{finish, turnflow};
use server::{COMMIT, HubServer, Plan};

/// A tiny checkpoint in two parts, as a repository.
fn plan() -> Plan {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama-shards");
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let file = |name| (name, fs::read(folder.join(name)).expect(name));
    let mut files: Vec<_> = names.map(file).into();
    files.push(("README.md", b"not needed".to_vec()));
    Plan { files, ..Plan::default() }
}

/// A tiny sentence encoder, as a repository.
fn encoder_plan() -> Plan {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/bert-cls");
    let names = [
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
    ];
    let mut files: Vec<_> = names.map(|name| (name, fs::read(folder.join(name)).expect(name))).into();
    files.push(("onnx/model.onnx", b"not needed".to_vec()));
    Plan { files, ..Plan::default() }
}

fn run(home: &Path, server: &HubServer, arguments: &[&str]) -> (i32, String, String) {
    let mut command = turnflow();
    command.args(arguments).env("TURNFLOW_HOME", home).env("HF_ENDPOINT", &server.endpoint).env_remove("HF_TOKEN");
    finish(&mut command)
}

#[test]
fn a_checkpoint_is_pulled_listed_and_verified() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = HubServer::start(Plan { cuts: vec![100], ..plan() });
    let run = |arguments: &[&str]| run(dir.path(), &server, arguments);

    let (code, stdout, stderr) = run(&["models", "pull", "org/name"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("it will load") && stdout.contains("every byte checked"), "{stdout}");
    let fetched = server.fetched();
    assert!(fetched.iter().any(|file| file.ends_with(" bytes=100-")), "it was cut and went on: {fetched:?}");
    assert!(!fetched.iter().any(|file| file.contains("README")), "{fetched:?}");

    let (code, stdout, _) = run(&["models", "verify", "org/name", "--json"]);
    assert_eq!(code, 0);
    let told: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&told["family"], &told["loads"]), (&Value::from("llama"), &Value::from(true)));
    assert_eq!((&told["repository"], &told["commit"]), (&Value::from("org/name"), &Value::from(COMMIT)));
    let numbers = told["parameters"].as_u64().expect("a number");
    assert!(numbers > 0 && told["weight_bytes"]["f32"] == 4 * numbers);
    assert_eq!(told["weight_bytes"]["f16"], Value::from(2 * numbers));

    let (code, stdout, _) = run(&["models", "list", "--json"]);
    assert_eq!(code, 0);
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&list[1]["model"], &list[1]["intact"]), (&Value::from("org/name"), &Value::from(true)));

    // A folder that came another way is told from one that was pulled.
    let folder = dir.path().join("models/org/name");
    fs::remove_file(folder.join("turnflow.json")).expect("removed");
    let (code, stdout, _) = run(&["models", "verify", &folder.display().to_string()]);
    assert!(code == 0 && stdout.contains("bytes are not checked"), "{stdout}");

    // What loads but refuses every conversation is no tier.
    fs::write(folder.join("chat_template.jinja"), "{{ raise_exception('not for you') }}").expect("written");
    let (code, stdout, stderr) = run(&["models", "verify", &folder.display().to_string()]);
    assert!(code == 1 && stderr.contains("not for you") && !stdout.contains("it will load"), "{stdout}{stderr}");
    // And one that a pull has not come to the end of is told from both.
    fs::create_dir(folder.join(".partial")).expect("made");
    let (code, _, stderr) = run(&["models", "verify", "org/name"]);
    assert!(code == 1 && stderr.contains("has not come to its end"), "{stderr}");
}

#[test]
fn an_encoder_is_pulled_and_verified() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = HubServer::start(encoder_plan());
    let run = |arguments: &[&str]| run(dir.path(), &server, arguments);
    let (code, stdout, stderr) = run(&["models", "pull", "org/name"]);
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "a sentence encoder, bert: 3 layers",
        "30 numbers by cls pooling",
        "\"ask: \" before what asks",
        "bf16 on disk",
    ] {
        assert!(stdout.contains(part), "{part:?} in {stdout}");
    }
    let fetched = server.fetched();
    assert!(fetched.contains(&"1_Pooling/config.json".to_owned()), "{fetched:?}");
    assert!(!fetched.iter().any(|file| file.contains("onnx")), "{fetched:?}");
    let (code, stdout, _) = run(&["models", "verify", "org/name", "--json"]);
    assert_eq!(code, 0);
    let told: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&told["pooling"], &told["tokens_max"]), (&Value::from("cls"), &Value::from(44)));
    assert_eq!((&told["query_prefix"], &told["commit"]), (&Value::from("ask: "), &Value::from(COMMIT)));

    // A file in a folder of its own is checked, and mended, like the others.
    let pooling = dir.path().join("models/org/name/1_Pooling/config.json");
    let text = fs::read_to_string(&pooling).expect("there");
    fs::write(&pooling, text.replace("cls", "max")).expect("written");
    let (code, _, stderr) = run(&["models", "verify", "org/name"]);
    assert!(code == 1 && stderr.contains("1_Pooling/config.json has SHA-1 "), "{stderr}");
    let (code, _, stderr) = run(&["models", "pull", "org/name"]);
    assert_eq!((code, server.fetched()), (0, vec!["1_Pooling/config.json".to_owned()]), "{stderr}");

    // What is not computed is told by field.
    let folder = dir.path().join("copy");
    fs::create_dir_all(folder.join("1_Pooling")).expect("made");
    for (name, content) in encoder_plan().files.into_iter().filter(|(name, _)| !name.starts_with("onnx")) {
        fs::write(folder.join(name), content).expect("written");
    }
    fs::write(folder.join("1_Pooling/config.json"), text.replace("cls", "max")).expect("written");
    let (code, _, stderr) = run(&["models", "verify", &folder.display().to_string()]);
    assert!(code == 1 && stderr.contains("1_Pooling/config.json") && stderr.contains("pooling_mode max"), "{stderr}");
}

#[test]
fn the_encoder_that_ships_is_verified_by_its_path_too() {
    let (code, stdout, stderr) = finish(turnflow().args(["models", "pull", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    let folder = list[0]["path"].as_str().expect("a path");
    let (code, stdout, stderr) = finish(turnflow().args(["models", "verify", folder]));
    assert!(code == 0 && stdout.contains("the encoder that ships: every byte checked"), "{stdout}{stderr}");
}

#[test]
fn damage_and_absence_are_told_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = HubServer::start(Plan { token: Some("hf_1"), ..plan() });
    let run = |arguments: &[&str]| run(dir.path(), &server, arguments);
    let check = |arguments: &[&str], code: i32, parts: &[&str]| {
        let (found, _, stderr) = run(arguments);
        assert_eq!(found, code, "{stderr}");
        parts.iter().for_each(|part| assert!(stderr.contains(part), "{part:?} in {stderr}"));
    };
    check(&["models", "pull", "org/name"], 1, &["HTTP status 401: Access to model org/name is restricted", "HF_TOKEN"]);
    check(&["models", "pull", "name"], 64, &["\"name\" is no name of a model on the hub, expected ORG/NAME"]);
    check(&["models", "pull", "org/name", "--from", "x"], 64, &[]);
    check(&["models", "pull", "--revision", "x"], 64, &[]);
    check(&["models", "verify", "org/name"], 1, &["turnflow models pull org/name"]);
    check(&["models", "verify", "/no/such/folder"], 1, &["missing file /no/such/folder"]);

    let server = HubServer::start(plan());
    let (code, _, stderr) = self::run(dir.path(), &server, &["models", "pull", "org/name"]);
    assert_eq!(code, 0, "{stderr}");
    let weights = dir.path().join("models/org/name/model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&weights).expect("there");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&weights, &bytes).expect("written");
    check(
        &["models", "verify", "org/name"],
        1,
        &["has SHA-256 ", "mend it with: turnflow models pull org/name --revision main"],
    );
    check(
        &["models", "verify", &weights.display().to_string()],
        64,
        &["is a file, expected the folder of a checkpoint"],
    );
    bytes.pop();
    fs::write(&weights, &bytes).expect("written");
    let (_, stdout, _) = run(&["models", "list"]);
    assert!(stdout.contains("damaged: ") && stdout.contains(" bytes, expected "), "{stdout}");
}
