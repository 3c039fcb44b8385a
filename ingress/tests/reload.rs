//! A server reads its configuration again when it is told to, by a signal or by an admin over HTTP.

#![cfg(unix)]
#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod announced;
mod binary;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use announced::announced;
use binary::{finish, sample, turnflow};

fn post(address: &str) -> (String, Value) {
    let mut connection = TcpStream::connect(address).expect("the server listens");
    let request = "POST /admin/reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    connection.write_all(request.as_bytes()).expect("sent");
    let mut response = String::new();
    connection.read_to_string(&mut response).expect("answered");
    let (head, body) = response.split_once("\r\n\r\n").expect("a response");
    (head.lines().next().expect("a status").to_owned(), serde_json::from_str(body).expect("JSON"))
}

#[test]
fn settings_change_on_a_signal_and_over_http() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("turnflow.toml");
    let write = |delta: &str| fs::write(&path, format!("[policy]\ndelta = {delta}\n")).expect("written");
    write("0.01");
    let articles = sample("articles.jsonl");
    let (code, ..) =
        finish(turnflow().args(["kb", "import"]).arg(&articles).arg("--data").arg(dir.path().join("data")));
    assert_eq!(code, 0);
    let mut server = turnflow()
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--config"])
        .arg(&path)
        .arg("--data")
        .arg(dir.path().join("data"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let announced = announced(&mut server);
    let http = announced["http"].as_str().expect("an address");

    write("0.02");
    let (status, changed) = post(http);
    let expected = json!({ "changed": [{ "key": "policy.delta", "before": "0.01", "after": "0.02" }] });
    assert_eq!((status.as_str(), &changed), ("HTTP/1.1 200 OK", &expected));
    write("2.0");
    let (status, refused) = post(http);
    assert_eq!((status.as_str(), &refused["error"]["code"]), ("HTTP/1.1 409 Conflict", &json!("wrong_configuration")));
    assert!(refused["error"]["message"].as_str().is_some_and(|told| told.contains("turnflow.toml:2: policy.delta")));

    write("0.03");
    let told = Command::new("kill").args(["-HUP", &server.id().to_string()]).status().expect("kill runs");
    assert!(told.success());
    // The log tells when it has happened.
    let mut log = BufReader::new(server.stderr.take().expect("a pipe")).lines().map(|line| line.expect("a line"));
    let line = log.find(|line| line.contains("a setting has changed") && line.contains("0.03")).expect("the log tells");
    assert!(line.contains("policy.delta") && line.contains("0.02"), "{line}");
    let told = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill runs");
    assert!(told.success());
    // Read to its end, or the server could not write it.
    log.for_each(drop);
    assert_eq!(server.wait().expect("an end").code(), Some(0));
}
