//! Edits of the knowledge base during a replay: when they are made, what they are said to have done, and what their probes
//! hear.

mod shop;

use serde_json::{Value, json};
use turnflow::replay::changes::{Invalidations, ProbeAnswers};
use turnflow::replay::report::Report;
use turnflow::replay::{ContentVersions, Ending, OnBadLine, Plan, Speed, Updates, run};
use turnflow_pipeline::Config;

use crate::script::{Collected, Script, Write, line_at, plan, reader};
use crate::{kb, plain};

/// So many seconds after nine.
fn time(second: u64) -> String {
    format!("2026-03-02T09:00:{second:02}.000Z")
}

/// An edit that has an article say one thing from a second on.
pub(crate) fn edit(id: &str, version: u64, second: u64, body: &str) -> Value {
    json!({
        "ts": time(second), "op": "update", "kind": "fact", "kb_id": id, "version": version,
        "article": {"id": id, "body": body}, "affects_kb_ids": [id], "must_contain": [body],
    })
}

pub(crate) fn updates(edits: &[Value]) -> Updates {
    let lines: Vec<_> = edits.iter().map(Value::to_string).collect();
    Updates::read(lines.join("\n").as_bytes(), "edits.jsonl", &Config::defaults().limits).expect("good edits")
}

fn said(second: u64, conversation: &str, text: &str, gold: &Value) -> String {
    line_at(&time(second), conversation, 1, text, gold)
}

async fn replay(log: &[String], script: &Script, plan: &Plan, updates: &Updates) -> (Ending, Collected) {
    let mut sink = Collected::default();
    let log = reader(&log.join("\n"), Some(ContentVersions::of(&updates.edits)));
    let ending = run(log, script, plan, Some(updates), &mut sink, std::future::pending()).await.expect("a replay");
    (ending, sink)
}

fn write(article: &str, after: usize) -> Write {
    Write { article: article.to_owned(), after, open: 0 }
}

#[tokio::test]
async fn at_full_speed_an_edit_stands_between_the_turns_of_its_time() {
    let edits = updates(&[
        edit("early", 1, 0, "x"),
        edit("a", 2, 5, "x"),
        edit("a", 3, 5, "y"),
        edit("b", 2, 7, "x"),
        edit("late", 1, 8, "x"),
    ]);
    // The slow turn is still under way when the time of the next edit has come.
    let turns = [(1, "quick"), (2, "slow"), (5, "at the same time"), (6, "slow"), (7, "last")];
    let log: Vec<_> = (0..).zip(turns).map(|(n, (at, text))| said(at, &format!("c{n}"), text, &Value::Null)).collect();
    let script = Script::default();
    let (ending, sink) = replay(&log, &script, &plan(4, OnBadLine::Stop), &edits).await;
    let expected = [write("early", 0), write("a", 2), write("a", 2), write("b", 4)];
    assert_eq!(script.state().writes, expected);
    let changes = ending.changes.expect("edits");
    let lines: Vec<_> = changes.made.iter().map(|edit| edit.line).collect();
    assert_eq!((lines, changes.not_made, sink.results.len()), (vec![1, 2, 3, 4], 1, 5));
}

#[tokio::test]
async fn on_a_schedule_an_edit_waits_for_no_turn() {
    // Answers are held back until something is edited: who waits for them first waits for ever.
    let script = Script::holding_back(usize::MAX);
    let log = [said(0, "c0", "t0", &Value::Null), said(2, "c1", "t1", &Value::Null)];
    let plan = Plan { speed: Speed::Times(100.0), ..plan(4, OnBadLine::Stop) };
    let (ending, _) = replay(&log, &script, &plan, &updates(&[edit("a", 2, 1, "x")])).await;
    assert_eq!(script.state().writes, [Write { open: 1, ..write("a", 1) }]);
    assert_eq!(ending.tally.turns, 2);
}

#[tokio::test]
async fn an_edit_that_cannot_be_made_ends_the_replay_and_is_named() {
    let log = reader(&said(1, "c", "t", &Value::Null), None);
    let (script, edits) = (Script::default(), updates(&[edit("refused", 2, 0, "x")]));
    let (plan, mut sink) = (plan(4, OnBadLine::Stop), Collected::default());
    let ending = run(log, &script, &plan, Some(&edits), &mut sink, std::future::pending()).await;
    let error = format!("{:#}", ending.err().expect("no replay"));
    assert_eq!(error, "cannot make the edit of edits.jsonl:1, article refused: the article does not exist");
}

/// A log in which every question about an edited article is asked before and after.
fn edited_log() -> (Updates, Vec<String>) {
    let mut first = edit("a", 2, 5, "in two  days");
    first["must_not_contain"] = json!(["answer\tto"]);
    first["probes"] = json!(["a when", "a other", "b when"]);
    let mut cosmetic = edit("a", 3, 6, "In two days");
    (cosmetic["kind"], cosmetic["affects_kb_ids"]) = (json!("cosmetic"), json!([]));
    let log = vec![
        said(0, "c0", "a when", &kb("a", 1, None)),
        said(1, "c1", "a mistaken", &kb("b", 1, None)),
        said(2, "c2", "a hello", &plain("chitchat", None, "star")),
        said(3, "c3", "a nothing", &Value::Null),
        said(4, "c4", "b when", &kb("b", 1, None)),
        said(5, "c5", "a when", &kb("a", 2, None)),
        said(6, "c6", "a when", &kb("a", 3, None)),
        said(7, "c7", "b when", &kb("b", 1, None)),
    ];
    (updates(&[first, cosmetic]), log)
}

#[tokio::test]
async fn what_edits_invalidate_is_counted_by_need() {
    let (edits, log) = edited_log();
    let (ending, sink) = replay(&log, &Script::default(), &plan(4, OnBadLine::Stop), &edits).await;
    let report = Report::of(&ending, true);
    let changes = report.changes.as_ref().expect("edits");
    let by_edit: Vec<_> = changes.by_edit.iter().map(|edit| edit.invalidated).collect();
    let counts = |all, without_need, unlabelled| Invalidations { all, without_need, unlabelled };
    // The cosmetic edit affects nothing, so the answer that it takes along was taken without need.
    assert_eq!(by_edit, [counts(4, 1, 2), counts(1, 1, 0)]);
    assert_eq!(changes.invalidated, counts(5, 2, 2));
    assert_eq!((changes.stale_by_content, report.scores.as_ref().expect("labels").parts[0].stale), (0, 0));
    assert_eq!(sink.results[5].outcome.as_ref().expect("an answer").text, "in two  days");
    let text = report.to_string();
    for expected in ["edits made", "by line 1, a (fact)", "without need", "unlabelled", "stale by content"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert_eq!(serde_json::to_value(&report).expect("JSON")["changes"]["by_edit"][0]["invalidated"]["all"], 4);
}

#[tokio::test]
async fn stale_answers_are_found_where_nothing_keeps_them_in_step() {
    let (edits, log) = edited_log();
    let (ending, _) = replay(&log, &Script::keeping_outdated(), &plan(4, OnBadLine::Stop), &edits).await;
    let report = Report::of(&ending, true);
    let all = &report.scores.as_ref().expect("labels").parts[0];
    assert_eq!((all.hits, all.stale), (3, 2));
    let changes = report.changes.expect("edits");
    assert_eq!((changes.hits_checked, changes.stale_by_content, changes.invalidated.all), (2, 2, 0));
    // "a when" comes from the cache, outdated; "a other" is new; "b when" is cached and never says what it should.
    let probes = changes.by_edit[0].probes;
    assert_eq!(probes.cached, ProbeAnswers { all: 2, stale: 2, to_hold_new: 2, lack_new: 2 });
    assert_eq!(probes.written, ProbeAnswers { all: 1, stale: 0, to_hold_new: 1, lack_new: 0 });
}

#[tokio::test]
async fn probes_change_no_result() {
    let (edits, log) = edited_log();
    let mut seen = Vec::new();
    for probes in [true, false] {
        let (script, edits) = (Script::default(), Updates { probes, ..edits.clone() });
        let (ending, sink) = replay(&log, &script, &plan(4, OnBadLine::Stop), &edits).await;
        let results: Vec<_> = sink.results.into_iter().map(|result| result.outcome).collect();
        seen.push((results, ending.tally.turns, ending.tally.tokens_spent, ending.tally.tokens_saved));
        let asked = &script.state().asked_read_only;
        let texts: Vec<_> = asked.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, if probes { vec!["a when", "a other", "b when"] } else { vec![] });
        for (place, (_, key)) in asked.iter().enumerate() {
            assert!(key.turn.as_str().parse::<u64>().is_err(), "{key:?} may be a turn of a log");
            assert!(asked[..place].iter().all(|(_, other)| other != key), "{key:?} is asked twice");
        }
    }
    assert_eq!(seen[0], seen[1]);
}
