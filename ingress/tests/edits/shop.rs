//! The sample shop edits its articles while its customers ask: the real program, with the real models.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::{finish, sample, turnflow};

/// Where the shortened log ends, and the time of the edits within it.
const LOG_END: &str = "2026-05-04T09:16:00Z";
const RESPACED: &str = "2026-05-04T09:07:00Z";
const SHORTENED: &str = "2026-05-04T09:08:00Z";
const DELETED: &str = "2026-05-04T09:12:00Z";
const INSERTED: &str = "2026-05-04T09:13:00Z";
const TOO_LATE: &str = "2026-05-04T09:17:00Z";

/// What the edits take out.
const OLD_TIMES: &str = "3 to 5 business days";
const OLD_WINDOW: &str = "You can return most items within 45 days of delivery";

struct Shop {
    dir: TempDir,
    log: String,
    kb: String,
    updates: String,
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn write(dir: &TempDir, name: &str, lines: &[Value]) -> String {
    let path = dir.path().join(name);
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).expect("a file");
    path.display().to_string()
}

/// The first quarter of an hour of the log, with labels that know of the edits.
fn log() -> Vec<Value> {
    let mut turns = lines(&sample("log.jsonl"));
    turns.retain(|turn| turn["ts"].as_str() < Some(LOG_END));
    for turn in &mut turns {
        let since = |edit: &str| turn["ts"].as_str() >= Some(edit);
        match turn["gold"]["kb_id"].as_str() {
            Some("order-tracking") if since(RESPACED) => turn["gold"]["kb_version"] = json!(2),
            Some("delivery-times") if since(SHORTENED) => turn["gold"]["kb_version"] = json!(2),
            Some("returns-window") if since(DELETED) => {
                (turn["gold"]["kind"], turn["gold"]["kb_version"]) = (json!("no_article"), Value::Null);
            }
            _ => {}
        }
    }
    turns
}

fn edits() -> Vec<Value> {
    let articles = lines(&sample("articles.jsonl"));
    let edited = |id: &str, edit: fn(&str) -> String| {
        let mut article = articles.iter().find(|article| article["id"] == id).expect("an article").clone();
        article["body"] = json!(edit(article["body"].as_str().expect("a text")));
        article
    };
    let respaced = edited("order-tracking", |body| body.replace(' ', "  "));
    let shortened = edited("delivery-times", |body| body.replace(OLD_TIMES, "2 to 4 business days"));
    let returned = edited("refund-timing", |body| body.replace("5 to 7", "1 to 2"));
    let gift_wrap = json!({"id": "gift-wrap", "title": "Gift wrapping", "body": "We wrap gifts in blue paper for $3."});
    vec![
        json!({
            "ts": RESPACED, "op": "update", "kind": "cosmetic", "kb_id": "order-tracking", "version": 2,
            "article": respaced, "probes": ["Where is my order?"],
        }),
        json!({
            "ts": SHORTENED, "op": "update", "kind": "fact", "kb_id": "delivery-times", "version": 2,
            "article": shortened, "affects_kb_ids": ["delivery-times"], "must_contain": ["2 to 4 business days"],
            "must_not_contain": [OLD_TIMES], "probes": ["how long is shipping", "How long is shipping?"],
        }),
        json!({
            "ts": DELETED, "op": "delete", "kind": "delete", "kb_id": "returns-window", "version": 2, "article": null,
            "affects_kb_ids": ["returns-window"], "must_not_contain": [OLD_WINDOW],
            "probes": ["how long do i have to return something"],
        }),
        json!({
            "ts": INSERTED, "op": "insert", "kind": "insert", "kb_id": "gift-wrap", "version": 1,
            "article": gift_wrap, "affects_kb_ids": ["gift-wrap"], "must_contain": ["blue paper"],
            "probes": ["do you wrap gifts"],
        }),
        json!({
            "ts": TOO_LATE, "op": "update", "kind": "fact", "kb_id": "refund-timing", "version": 2, "article": returned,
        }),
    ]
}

fn shop() -> Shop {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (log, updates) = (write(&dir, "log.jsonl", &log()), write(&dir, "edits.jsonl", &edits()));
    Shop { log, updates, kb: sample("articles.jsonl").display().to_string(), dir }
}

impl Shop {
    fn replay(&self, more: &[&str]) -> (i32, String, String) {
        let files = ["replay", &self.log, "--kb", &self.kb, "--updates", &self.updates];
        finish(turnflow().args(files).args(more))
    }

    fn report(&self, more: &[&str]) -> Value {
        let (code, stdout, _) = self.replay(&[more, &["--json"]].concat());
        assert_eq!(code, 0);
        serde_json::from_str(&stdout).expect("JSON")
    }
}

/// Whether the turn of the log on which a hit was made needed another version than the turn whose answer was served.
fn is_stale(log: &[Value], hit: &Value, result: &Value) -> bool {
    let origin = &result["origin"];
    let of_origin =
        |turn: &&Value| turn["conversation_id"] == origin["conversation_id"] && turn["turn"] == origin["turn"];
    let Some(origin) = log.iter().find(of_origin) else { return false };
    let label = |turn: &Value| (turn["gold"]["kb_id"].clone(), turn["gold"]["kb_version"].clone());
    let (wanted, served) = (label(hit), label(origin));
    // Of order-tracking, nothing but white space was edited; and no label of the log is personal about these articles.
    wanted.0.is_string() && wanted.0 != "order-tracking" && wanted.0 == served.0 && wanted.1 != served.1
}

#[test]
fn no_answer_outlives_what_it_was_made_from() {
    let shop = shop();
    // An answer that is made anew and comes out as before has other labels than the turn that it is served to may want.
    let config = shop.dir.path().join("turnflow.toml");
    std::fs::write(&config, "[refresh]\nenabled = false\n").expect("written");
    let report = shop.report(&["--config", &config.display().to_string()]);
    assert_eq!((&report["scores"]["parts"][0]["stale"], &report["refresh"]), (&json!(0), &Value::Null));

    std::fs::write(&config, "[refresh]\nserved-min = 1\n").expect("written");
    let out = shop.dir.path().join("results.jsonl");
    let report = shop.report(&["--config", &config.display().to_string(), "--out", &out.display().to_string()]);
    let changes = &report["changes"];
    assert_eq!((&changes["edits"], &changes["edits_not_made"]), (&json!(4), &json!(1)));
    assert_eq!(changes["stale_by_content"], 0);
    let count = |name: &str| report["refresh"][name].as_u64().expect("a number");
    assert!(count("refreshed") > count("unchanged") && count("answers") >= count("refreshed"), "{report}");
    assert!(
        count("tokens_spent") > 0 && report["load_taken_off"]["tokens_spent"].as_u64() > Some(count("tokens_spent"))
    );
    let on_them = lines(&out).iter().filter(|result| result["origin"]["refreshed"] == true).count() as u64;
    assert!(on_them > 0 && on_them == count("hits"), "{on_them}");
    assert_eq!(changes["probes"]["cached"]["stale"], 0);
    assert_eq!(changes["probes"]["failed"], 0);
    let invalidated: Vec<_> = (0..4).map(|n| changes["by_edit"][n]["invalidated"]["all"].as_u64()).collect();
    assert_eq!(invalidated[0], Some(0), "white space is no content");
    assert!(invalidated[1] > Some(0) && invalidated[2] > Some(0), "{invalidated:?}");
    // What is said of an article that came is not in a cache, so a tier has written it.
    let probes = &changes["by_edit"][3]["probes"]["written"];
    assert_eq!((&probes["all"], &probes["lack_new"]), (&json!(1), &json!(0)), "{probes}");
}

#[test]
fn without_validity_stale_answers_are_served_and_reported() {
    let shop = shop();
    let out = shop.dir.path().join("results.jsonl");
    let report = shop.report(&["--validity", "none", "--no-probes", "--out", &out.display().to_string()]);
    let changes = &report["changes"];
    assert_eq!((&changes["edits"], &changes["invalidated"]["all"]), (&json!(4), &json!(0)));
    assert_eq!((&changes["probes"]["cached"]["all"], &changes["probes"]["written"]["all"]), (&json!(0), &json!(0)));
    let (log, results) = (log(), lines(&out));
    assert_eq!(log.len(), results.len());
    let hits = || log.iter().zip(&results).filter(|(_, result)| result["origin"].is_object());
    let stale = hits().filter(|(turn, result)| is_stale(&log, turn, result)).count();
    let holds = |turn: &Value, result: &Value, id: &str, since: &str, text: &str| {
        turn["gold"]["kb_id"] == id
            && turn["ts"].as_str() >= Some(since)
            && result["text"].as_str().is_some_and(|answer| answer.contains(text))
    };
    let by_content = hits().filter(|(turn, result)| {
        holds(turn, result, "delivery-times", SHORTENED, OLD_TIMES)
            || holds(turn, result, "returns-window", DELETED, OLD_WINDOW)
    });
    let by_content = by_content.count();
    assert!(stale > 0 && by_content > 0, "{stale} stale, {by_content} by content: the edits do not matter");
    assert_eq!(report["scores"]["parts"][0]["stale"], stale);
    assert_eq!(changes["stale_by_content"], by_content);
}

#[test]
fn ways_to_keep_in_step_are_compared() {
    let shop = shop();
    let comparison = shop.report(&["--compare", "--no-probes"]);
    let runs = comparison["runs"].as_array().expect("runs");
    let names: Vec<_> = runs.iter().filter_map(|run| run["setting"].as_str()).collect();
    assert_eq!(names, ["exact", "ttl=60s", "ttl=600s", "none"]);
    let stale = |run: &Value| run["report"]["changes"]["stale_by_content"].as_u64();
    let invalidated = |run: &Value| run["report"]["changes"]["invalidated"]["all"].as_u64();
    assert!(stale(&runs[0]) == Some(0) && stale(&runs[3]) > Some(0), "{comparison}");
    assert!(invalidated(&runs[0]) > Some(0) && runs[1..].iter().all(|run| invalidated(run) == Some(0)), "{comparison}");
    let hits = |run: &Value| run["report"]["scores"]["parts"][0]["hits"].as_u64();
    assert!(hits(&runs[1]) < hits(&runs[3]), "a minute is shorter than the log: {comparison}");
}

#[test]
fn bad_edits_stop_a_replay_before_it_begins() {
    let shop = shop();
    let out = shop.dir.path().join("results.jsonl").display().to_string();
    let mut good = edits();
    let check = |lines: &[Value], expected: &str| {
        write(&shop.dir, "edits.jsonl", lines);
        let (code, stdout, stderr) = shop.replay(&["--out", &out]);
        assert_eq!((code, stdout.as_str()), (1, ""));
        assert!(stderr.starts_with(&format!("turnflow: {}:{expected}", shop.updates)), "{stderr}");
        assert!(!Path::new(&out).exists(), "results of a replay that did not begin");
    };
    let mut unknown = good.clone();
    unknown[2]["op"] = json!("move");
    check(&unknown, "3: unknown variant `move`");
    check(&[good[0].clone(), json!("no edit")], "2: not a JSON object");
    good.swap(0, 1);
    check(&good, "2: ts 2026-05-04T09:07:00Z is before 2026-05-04T09:08:00Z, the time of line 1");
    for conflict in [&["--data", "x"][..], &["--out", "x"], &["--validity", "none"]] {
        assert_eq!(shop.replay(&[&["--compare"], conflict].concat()).0, 64, "{conflict:?}");
    }
}
