//! `router train` and `router eval`, with the real encoder.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod binary;

use std::path::Path;

use serde_json::{Value, json};

use binary::{finish, sample, turnflow};

/// Prompts of two kinds, one of which the small tier cannot answer, and turns of a shop.
fn rows() -> impl Iterator<Item = Value> {
    let things =
        ["a pan", "the blue mug", "my kettle", "this knife", "your teapot", "an old lid", "two bowls", "a whisk"];
    let easy = |thing, at| (format!("What colour is {thing} of customer {at}?"), true);
    let hard = |thing, at| (format!("Compute {at} * (x + 17) / 3 = 2^{at} for {thing}, and prove it."), false);
    let prompt = |(prompt, weak_correct): (String, bool)| {
        let source = "exam/part";
        json!({"prompt": prompt, "weak_correct": weak_correct, "strong_correct": true, "source": source})
    };
    let turn = |(text, is_simple): (String, bool)| {
        let gold = json!({"route_hint": if is_simple { "simple" } else { "complex" }, "source": "shop"});
        json!({"text": format!("Please: {text}"), "turn": 1, "gold": gold})
    };
    (0..80).zip(things.into_iter().cycle()).flat_map(move |(at, thing)| {
        [prompt(easy(thing, at)), prompt(hard(thing, at)), turn(easy(thing, at)), turn(hard(thing, at))]
    })
}

fn write_lines(path: &Path, lines: impl Iterator<Item = Value>) {
    std::fs::write(path, lines.map(|line| format!("{line}\n")).collect::<String>()).expect("written");
}

fn run_json(args: &[&str]) -> Value {
    let (code, stdout, _) = finish(turnflow().arg("--json").args(args));
    assert_eq!(code, 0, "{args:?}");
    serde_json::from_str(&stdout).expect("one line of JSON")
}

#[test]
fn a_router_is_trained_and_judged() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (data, out) = (path("turns.jsonl"), path("shop.router"));
    let kb = sample("articles.jsonl").display().to_string();
    write_lines(Path::new(&data), rows());
    let trained = run_json(&["router", "train", &data, "--kb", &kb, "--held-out", "0.25", "--out", &out]);
    let count = |of: &Value| of.as_u64().expect("a count");
    let used =
        count(&trained["turns_trained"]) + count(&trained["turns_validated"]) + count(&trained["turns_calibrated"]);
    let held_out = trained["held_out"].as_array().expect("a list");
    let sources: Vec<_> = held_out.iter().map(|one| one["source"].as_str().expect("a name")).collect();
    assert_eq!(sources, ["all", "exam", "shop"], "{trained}");
    assert_eq!(used + count(&held_out[0]["turns"]), 320, "{trained}");
    assert!(
        held_out[0]["gap_closed"].as_f64().expect("a share") > 0.8,
        "two kinds that are easy to tell apart: {trained}"
    );

    let judged = run_json(&["router", "eval", &data, "--kb", &kb, "--source", "elsewhere", "--router", &out]);
    let sources = judged["sources"].as_array().expect("a list");
    assert_eq!(sources.len(), 1, "prompts alone are left: {judged}");
    assert_eq!((sources[0]["source"].as_str(), count(&sources[0]["turns"])), (Some("exam"), 160));
    let (code, stdout, _) = finish(turnflow().args(["router", "eval", &data, "--router", &out]));
    assert!(code == 0 && stdout.contains("of the gap between chance and an oracle"), "{stdout}");

    // Another encoder's vectors mean something else.
    let config = path("config.toml");
    std::fs::write(&config, "[encoder]\nadapter = \"none\"\n").expect("written");
    let (code, _, stderr) = finish(turnflow().args(["--config", &config, "router", "eval", &data, "--router", &out]));
    assert!(code == 64 && stderr.contains("was fitted with the encoder"), "{stderr}");
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (data, out) = (path("turns.jsonl"), path("shop.router"));
    let train = || finish(turnflow().args(["router", "train", &data, "--out", &out]));
    std::fs::write(
        &data,
        "{\"prompt\": \"a\", \"weak_correct\": true, \"strong_correct\": true}\n{\"prompt\": \"b\"}\n",
    )
    .expect("written");
    let (code, _, stderr) = train();
    assert!(code == 1 && stderr.contains("turns.jsonl:2: neither a prompt"), "{stderr}");
    std::fs::write(&data, "\n").expect("written");
    let (code, _, stderr) = train();
    assert!(code == 64 && stderr.contains("no turns"), "{stderr}");
    assert!(!Path::new(&out).exists());
    let (code, _, stderr) = finish(turnflow().args(["router", "train", &data, "--out", &data]));
    assert!(code == 64 && stderr.contains("which is read") && Path::new(&data).exists(), "{stderr}");
    let elsewhere = path("nowhere/shop.router");
    let (code, _, stderr) = finish(turnflow().args(["router", "train", &data, "--out", &elsewhere]));
    assert!(code == 64 && stderr.contains("--out: there is no folder"), "{stderr}");
    std::fs::write(&out, "something else").expect("written");
    let (code, _, stderr) = finish(turnflow().args(["router", "eval", &data, "--router", &out]));
    assert!(code == 1 && stderr.contains("holds no router"), "{stderr}");
    let (code, _, stderr) = finish(turnflow().args(["router", "train", &data, "--out", &out, "--held-out", "1"]));
    assert!(code == 64 && stderr.contains("less than 1"), "{stderr}");
}
