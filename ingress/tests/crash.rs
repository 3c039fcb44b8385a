//! `kill -9` in the middle of a replay: what was answered stays answered, with the same words. A gentler signal lets a
//! replay finish what it began.

#![cfg(unix)]
#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod binary;

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use binary::{finish, sample, turnflow};

const KILLS: u64 = 3;

type Answers = HashMap<(String, u64), String>;

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let seed = std::env::var("TURNFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed") % 1_000_000);
    eprintln!("TURNFLOW_TEST_SEED={seed}");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let turns = fs::read_to_string(sample("log.jsonl")).expect("the sample log").lines().count() as u64;
    let mut acknowledged = Answers::new();
    for kill in 1..=KILLS {
        // Each run gets further than the one before, up to some point in the next part of the log.
        // The last two parts are more than a pipe holds: no replay ends before it is killed.
        let part = turns / (KILLS + 2);
        let lines = part * (kill - 1) + 1 + scramble(seed + kill) % part;
        eprintln!("killing after {lines} results of {turns}");
        for (turn, text) in killed_after(lines, dir.path()) {
            if let Some(before) = acknowledged.insert(turn.clone(), text.clone()) {
                assert_eq!(before, text, "turn {turn:?} was answered in other words after a crash");
            }
        }
    }
    assert!(!acknowledged.is_empty());

    let out = dir.path().join("results.jsonl");
    let (code, stdout, _) = finish(turnflow().args(arguments(dir.path(), &out)).arg("--json"));
    assert_eq!(code, 0, "the last run completes");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&report["turns"], &report["errors"]), (&Value::from(turns), &Value::from(0)));
    let before = report["answered_before"].as_u64().expect("a number");
    assert!(before >= acknowledged.len() as u64, "{before} turns found, {} were acknowledged", acknowledged.len());
    let results: Answers = fs::read_to_string(&out).expect("results").lines().map(answer).collect();
    assert_eq!(results.len() as u64, turns);
    for (turn, text) in &acknowledged {
        assert_eq!(results.get(turn), Some(text), "turn {turn:?}");
    }
}

#[test]
fn sigterm_ends_a_replay_in_order() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut child = turnflow()
        .args(arguments(dir.path(), Path::new("/dev/stdout")))
        .arg("--json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    let mut results: Vec<_> = lines.by_ref().take(20).collect();
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill runs");
    assert!(told.success());
    results.extend(lines);
    assert_eq!(child.wait().expect("an end").code(), Some(1));
    let report: Value = serde_json::from_str(&results.pop().expect("a report")).expect("JSON");
    assert_eq!((&report["stopped_by"], &report["errors"]), (&Value::from("interrupted"), &Value::from(0)));
    assert_eq!(report["turns"], Value::from(results.len()), "every turn that was counted was written");
}

/// Runs a replay, kills it when it has written so many results, and returns all that it wrote.
fn killed_after(lines: u64, dir: &Path) -> Answers {
    let mut child = turnflow()
        .args(arguments(dir, Path::new("/dev/stdout")))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("turnflow starts");
    let mut results = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut answers = Answers::new();
    let mut line = String::new();
    while results.read_line(&mut line).expect("text") > 0 {
        // What was still in the pipe counts as well; the last line may be cut by the kill.
        if line.ends_with('\n') && line.starts_with('{') {
            let (turn, text) = answer(line.trim_end());
            answers.insert(turn, text);
        }
        if answers.len() as u64 == lines {
            child.kill().expect("SIGKILL");
        }
        line.clear();
    }
    let status = child.wait().expect("an end");
    assert!(!status.success(), "the replay was over before it could be killed");
    assert!(answers.len() as u64 >= lines);
    answers
}

fn arguments(dir: &Path, out: &Path) -> Vec<String> {
    let file = |path: &Path| path.display().to_string();
    let (log, kb, data) = (file(&sample("log.jsonl")), file(&sample("articles.jsonl")), file(&dir.join("data")));
    let arguments = ["replay", &log, "--kb", &kb, "--data", &data, "--out", &file(out), "--in-flight", "8"];
    arguments.map(str::to_owned).to_vec()
}

fn answer(line: &str) -> ((String, u64), String) {
    let result: Value = serde_json::from_str(line).expect("JSON");
    let text = |field: &str| result[field].as_str().expect("text").to_owned();
    ((text("conversation_id"), result["turn"].as_u64().expect("a number")), text("text"))
}

/// SplitMix64, for numbers that follow from a seed.
fn scramble(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 31)
}
