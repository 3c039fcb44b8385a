//! `policy fit`, `policy eval` and `cache explain`, with the real encoder.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Questions of a small shop by what answers them.
const QUESTIONS: &[(&str, &[&str])] = &[
    (
        "delivery",
        &[
            "How long does delivery take?",
            "when will my parcel arrive",
            "how many days until it is delivered",
            "delivery time please",
            "how soon can I have my order",
            "what is the delivery time",
            "how long do I wait for my parcel",
            "when do you deliver",
        ],
    ),
    (
        "returns",
        &[
            "How do I return something?",
            "I want to send it back",
            "can I return a pan",
            "what is your return policy",
            "how can I give back my order",
            "sending an item back",
            "I do not like it, can I return it",
            "return an article",
        ],
    ),
    (
        "payment",
        &[
            "How can I pay?",
            "do you take credit cards",
            "which payment methods are there",
            "can I pay by card",
            "paying with a credit card",
            "what ways to pay do you offer",
            "is it possible to pay later",
            "payment options",
        ],
    ),
    (
        "account",
        &[
            "How do I create an account?",
            "sign up for an account",
            "I want to register",
            "opening a new account",
            "where can I register",
            "how to sign up",
            "create a user account",
            "I need an account",
        ],
    ),
];

fn turnflow(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_turnflow")).arg("--json").args(args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

fn article() -> Value {
    serde_json::json!({"id": "payment", "title": "Payment", "body": "You can pay by card."})
}

fn write_lines(path: &Path, lines: impl Iterator<Item = Value>) {
    std::fs::write(path, lines.map(|line| format!("{line}\n")).collect::<String>()).expect("written");
}

#[test]
fn a_verifier_is_fitted_judged_and_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let labelled = QUESTIONS.iter().flat_map(|(label, texts)| {
        texts.iter().map(move |text| serde_json::json!({"text": text, "label": label, "source": "shop"}))
    });
    write_lines(Path::new(&path("questions.jsonl")), labelled);
    write_lines(Path::new(&path("kb.jsonl")), std::iter::once(article()));
    let (questions, kb) = (path("questions.jsonl"), path("kb.jsonl"));
    // What is read is never written over.
    let over = ["policy", "fit", &questions, "--kb", &kb, "--out", &questions];
    let refused = Command::new(env!("CARGO_BIN_EXE_turnflow")).args(over).output().expect("it runs");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(64) && told.contains("which is read"), "{told}");
    let fitted = turnflow(&["policy", "fit", &questions, "--kb", &kb, "--out", &path("shop.verifier")]);
    let (trained, calibrated) = (&fitted["questions_trained"], &fitted["questions_calibrated"]);
    assert_eq!(trained.as_u64().unwrap() + calibrated.as_u64().unwrap(), 32, "{fitted}");
    // So few questions cannot show that an error is small, and it says so.
    assert!(fitted["levels"].as_array().unwrap().iter().all(|level| level["probability_min"].is_null()), "{fitted}");

    let pairs = QUESTIONS.iter().enumerate().flat_map(|(at, (_, texts))| {
        let (_, others) = QUESTIONS[(at + 1) % QUESTIONS.len()];
        (0..texts.len() - 1).flat_map(move |i| {
            [(texts[i + 1], true), (others[i], false)].map(
                |(b, same)| serde_json::json!({"a": texts[i], "b": b, "same_answer": same, "source": "shop", "kind": "near"}),
            )
        })
    });
    write_lines(Path::new(&path("pairs.jsonl")), pairs);
    let svg = path("reliability.svg");
    let judged =
        turnflow(&["policy", "eval", &path("pairs.jsonl"), "--verifier", &path("shop.verifier"), "--report", &svg]);
    let all = judged["recalls"].as_array().unwrap().iter().find(|recalls| recalls["source"] == "all").unwrap();
    assert_eq!(all["pairs"], 56);
    assert!(all["at_5_percent"].as_f64().unwrap() > 0.5, "most of what it has seen is told apart: {all}");
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
}

#[test]
fn it_is_explained_why_texts_share_an_answer() {
    let orders = turnflow(&["cache", "explain", "where is order 41", "where is order 42"]);
    assert_eq!(orders["shared"], false);
    assert!(orders["reason"].as_str().unwrap().contains("41"), "{orders}");
    let same = turnflow(&["cache", "explain", "Where is my order?", "where is my ORDER"]);
    assert_eq!((same["shared"].as_bool(), same["level"].as_str()), (Some(true), Some("exact")));
    let apart = turnflow(&["cache", "explain", "How do I enable alerts?", "How do I disable alerts?"]);
    assert_eq!(apart["shared"], false);
    assert!(apart["similarity"].as_f64().unwrap() > 0.5, "similar all the same: {apart}");
}

#[test]
fn bad_data_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, "{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"a\"}\n").expect("written");
    let (out, kb) = (dir.path().join("out"), dir.path().join("kb.jsonl"));
    write_lines(&kb, std::iter::once(article()));
    let fit = |kb: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnflow"));
        command.args(["policy", "fit"]).arg(&path).arg("--out").arg(&out);
        let output = command.args(kb.into_iter().flat_map(|kb| [Path::new("--kb"), kb])).output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(fit(Some(&kb)).contains("data.jsonl:2"), "{}", fit(Some(&kb)));
    assert!(fit(None).contains("--kb is missing"), "{}", fit(None));
    std::fs::write(&path, "{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"c\", \"label\": \"b\"}\n")
        .expect("written");
    let too_few = fit(Some(&kb));
    assert!(too_few.contains("2 lines were read: cannot train: of 2 different questions with a label, "), "{too_few}");
    assert!(!out.exists());
}
