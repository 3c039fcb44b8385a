//! The replay against a scripted stand-in for the pipeline: order, bounds, bad lines and scores, without a model. And with
//! edits of the knowledge base: against the stand-in, and the real thing on the sample shop.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod binary;
mod edits;
mod formats;
mod script;
mod sweep;

use serde_json::{Value, json};
use turnflow::replay::report::Report;
use turnflow::replay::scores::PartScore;
use turnflow::replay::{ContentVersions, OnBadLine, Plan, Speed, Stop, run, write_result};

use edits::{edit, updates};
use script::{Collected, SLOW, Script, TEXT_BYTES_MAX, line, plan, reader, replay};

#[tokio::test]
async fn results_come_in_the_logs_order_whatever_order_answers_come_in() {
    // The last turns never fill the script's hand: conversations end so that every batch is complete.
    let lines: Vec<_> = (0..40).map(|n| line(&format!("c{}", n % 8), n / 8, &format!("t{n}"), &Value::Null)).collect();
    for in_flight_max in [1, 2, 4, 8] {
        let script = Script::holding_back(in_flight_max);
        let (ending, sink) = replay(&lines.join("\n"), &script, &plan(in_flight_max, OnBadLine::Stop)).await;
        let order: Vec<_> = sink.results.iter().map(|r| (r.conversation.to_string(), r.turn)).collect();
        let expected: Vec<_> = (0..40).map(|n| (format!("c{}", n % 8), n / 8)).collect();
        assert_eq!(order, expected, "{in_flight_max} in flight");
        let state = script.state();
        let submitted: Vec<_> =
            state.submitted.iter().map(|key| (key.conversation.to_string(), key.turn.to_string())).collect();
        let expected: Vec<_> =
            expected.into_iter().map(|(conversation, turn)| (conversation, turn.to_string())).collect();
        assert_eq!(submitted, expected, "{in_flight_max} in flight");
        assert_eq!(state.open_max, in_flight_max);
        assert_eq!((ending.tally.turns, ending.tally.errors, ending.stop), (40, 0, None));
    }
}

#[tokio::test]
async fn one_conversation_does_not_take_all_places() {
    let lines: Vec<_> = (0..30).map(|n| line("long", n, &format!("t{n}"), &Value::Null)).collect();
    let script = Script::holding_back(3);
    let (ending, _) = replay(&lines.join("\n"), &script, &plan(64, OnBadLine::Stop)).await;
    assert_eq!(ending.tally.turns, 30);
    assert_eq!(script.state().open_of_max, 3);
}

#[tokio::test]
async fn bad_lines_stop_a_replay_or_are_passed_over() {
    let good = |n: u64| line("c", n, &format!("t{n}"), &Value::Null);
    // (the bad line, what is said about it)
    let table = [
        ("{".to_owned(), "EOF while parsing"),
        (json!({"turn": 1}).to_string(), "missing field"),
        (line("c", 7, "t", &Value::Null).replace("web", "pigeon"), "channel: unknown value \"pigeon\""),
        (line("c", 7, "t", &Value::Null).replace("T09", "T99"), "is not an RFC 3339 time"),
        (line("c", 7, " ", &Value::Null), "empty text"),
        (line("c", 7, &"x".repeat(TEXT_BYTES_MAX + 1), &Value::Null), "text of 101 bytes, at most 100 are allowed"),
        (good(1), "turn 1 of conversation c was already given"),
        (line("c", 7, "unwelcome", &Value::Null), "text: not today"),
    ];
    for (bad, reason) in table {
        let log = [good(1), bad, good(2)].join("\n");
        let (ending, sink) = replay(&log, &Script::default(), &plan(4, OnBadLine::Stop)).await;
        let Some(Stop::BadLine(stop)) = &ending.stop else { panic!("{reason}: stopped by {:?}", ending.stop) };
        assert!(stop.to_string().starts_with("log.jsonl:2: ") && stop.reason.contains(reason), "{stop}");
        assert_eq!((sink.results.len(), ending.lines_skipped), (1, 0), "{reason}");

        let (ending, sink) = replay(&log, &Script::default(), &plan(4, OnBadLine::Skip)).await;
        assert_eq!((sink.results.len(), ending.lines_skipped, ending.stop), (2, 1, None), "{reason}");
        assert!(sink.bad.len() == 1 && sink.bad[0].contains(reason), "{:?}", sink.bad);
    }
}

#[tokio::test]
async fn a_failed_turn_is_a_result_and_the_replay_goes_on() {
    let log = [(1, "t1"), (2, "broken"), (3, "t3")].map(|(turn, text)| line("c", turn, text, &Value::Null));
    let (ending, sink) = replay(&log.join("\n"), &Script::default(), &plan(2, OnBadLine::Stop)).await;
    assert_eq!((ending.tally.turns, ending.tally.errors), (3, 1));
    let mut out = Vec::new();
    write_result(&mut out, &sink.results[1]).expect("written");
    let written: Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!((&written["verdict"], &written["error"]), (&json!("miss"), &json!("internal: out of order")));
    let report = Report::of(&ending, false);
    assert_eq!((report.errors, report.answered_by.tier), (1, 2));
}

#[tokio::test]
async fn an_interrupt_waits_for_what_is_in_flight() {
    let lines: Vec<_> = (0..20).map(|n| line(&format!("c{n}"), 1, &format!("t{n}"), &Value::Null)).collect();
    let script = Script::holding_back(usize::MAX);
    let interrupt = async {
        // All places are taken and nothing is answered: only the interrupt can end this.
        while script.state().open < 5 {
            tokio::task::yield_now().await;
        }
        script.release();
    };
    let mut sink = Collected::default();
    let plan = plan(5, OnBadLine::Stop);
    let ending =
        run(reader(&lines.join("\n"), None), &script, &plan, None, &mut sink, interrupt).await.expect("a replay");
    assert_eq!(ending.stop, Some(Stop::Interrupted));
    assert_eq!((sink.results.len(), script.state().submitted.len()), (5, 5));
}

#[tokio::test]
async fn on_a_schedule_latency_counts_from_the_time_a_turn_was_due() {
    // Both are due at once, but there is one place: the second waits for the first, and its latency says so.
    let log = [line("a", 1, "slow", &Value::Null), line("b", 1, "quick", &Value::Null)].join("\n");
    let plan = Plan { speed: Speed::Times(1.0), ..plan(1, OnBadLine::Stop) };
    let (_, sink) = replay(&log, &Script::default(), &plan).await;
    assert!(u128::from(sink.results[1].total_us) >= SLOW.as_micros(), "{:?}", sink.results);
}

pub(crate) fn kb(id: &str, version: u64, entity: Option<&str>) -> Value {
    let entities: Vec<_> = entity.iter().map(|value| json!(["id", value])).collect();
    json!({
        "kind": "kb", "kb_id": id, "kb_version": version, "personal": entity.is_some(), "entities": entities, "source": "bitext",
    })
}

pub(crate) fn plain(kind: &str, id: Option<&str>, source: &str) -> Value {
    json!({"kind": kind, "kb_id": id, "personal": false, "entities": [], "source": source})
}

/// Two turns of each kind with the same text, so that the second is a hit, and what the scores say of it.
#[tokio::test]
async fn hits_are_scored_by_kind_and_source() {
    let pairs = [
        ("a one", kb("a", 1, None), kb("a", 1, None), "right"),
        ("a two", kb("a", 1, Some("7")), kb("a", 1, Some("7")), "right"),
        ("a three", kb("a", 1, Some("7")), kb("a", 1, Some("8")), "wrong"),
        ("a four", kb("a", 1, None), kb("b", 1, None), "wrong"),
        ("a five", kb("a", 1, None), kb("a", 2, None), "wrong with edits"),
        ("n one", plain("no_article", Some("z"), "hint3"), plain("no_article", Some("z"), "hint3"), "right"),
        ("a six", kb("a", 1, None), plain("no_article", Some("a"), "hint3"), "wrong but for the article"),
        ("hello", plain("chitchat", None, "star"), plain("chitchat", None, "star"), "right"),
        ("and then", plain("context_dependent", None, "star"), plain("chitchat", None, "star"), "wrong"),
        ("my points", plain("account_lookup", None, "hint3"), plain("account_lookup", None, "hint3"), "right"),
        ("is it red", plain("product_question", None, "hint3"), plain("product_question", None, "hint3"), "right"),
        ("weather", plain("out_of_scope", None, "bitext"), plain("out_of_scope", None, "bitext"), "right"),
        ("unlabelled", Value::Null, plain("chitchat", None, "star"), "unjudged"),
    ];
    let mut lines = Vec::new();
    for (n, (text, first, second, _)) in pairs.iter().enumerate() {
        lines.push(line(&format!("first{n}"), 1, text, first));
        lines.push(line(&format!("second{n}"), 1, text, second));
    }
    for with_edits in [false, true] {
        let versions = with_edits.then(|| ContentVersions::of(&updates(&[edit("a", 2, 0, "new")]).edits));
        let mut sink = Collected::default();
        let log = reader(&lines.join("\n"), versions);
        let plan = plan(1, OnBadLine::Stop);
        let ending =
            run(log, &Script::default(), &plan, None, &mut sink, std::future::pending()).await.expect("a replay");
        let report = Report::of(&ending, with_edits);
        let scores = report.scores.expect("a labelled log");
        assert_eq!(scores.edits_not_applied, !with_edits);
        let of = |verdicts: &[&str]| pairs.iter().filter(|pair| verdicts.contains(&pair.3)).count() as f64;
        let strict =
            of(&["wrong", "wrong but for the article"]) + if with_edits { of(&["wrong with edits"]) } else { 0.0 };
        let all = part(&scores.parts, "all");
        assert_eq!((all.turns, all.hits, all.hits_unjudged), (25, 13, 1));
        assert_close(all.wrong_per_hit, strict / 13.0);
        assert_close(all.wrong_per_hit_kb_ignored, of(&["wrong"]) / 13.0);
        // Of 11 turns that article a or b answers, the one about b was answered from a.
        assert_close(all.right_article_on_kb_turns.expect("kb turns"), 10.0 / 11.0);
        let star = part(&scores.parts, "star");
        assert_eq!((star.turns, star.hits, star.right_article_on_kb_turns), (5, 3, None));
        assert_close(star.wrong_per_hit, 1.0 / 3.0);
        assert_eq!(part(&scores.parts, "hint3").hits, 4);
        assert_eq!(part(&scores.parts, "bitext").hits, 6);
    }
}

#[tokio::test]
async fn the_report_says_what_was_taken_off() {
    let lines: Vec<_> = (0..10).map(|n| line(&format!("c{n}"), 1, &format!("t{}", n % 4), &Value::Null)).collect();
    let (ending, _) = replay(&lines.join("\n"), &Script::default(), &plan(1, OnBadLine::Stop)).await;
    let report = Report::of(&ending, false);
    assert_eq!((report.answered_by.exact, report.answered_by.tier), (6, 4));
    assert_eq!((report.load_taken_off.tokens_spent, report.load_taken_off.tokens_saved), (40, 60));
    assert_close(report.load_taken_off.turns_share, 0.6);
    assert_close(report.load_taken_off.tokens_share, 0.6);
    assert!(report.scores.is_none());
    let paths: Vec<_> = report.latency.iter().map(|path| (path.path, path.turns)).collect();
    assert_eq!(paths, [("exact", 6), ("tier", 4)]);
    let text = report.to_string();
    for expected in ["exact cache", "60.0 %", "extractive tier", "load taken off", "p99"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["answered_by"]["exact"], 6);
}

fn part<'a>(parts: &'a [PartScore], source: &str) -> &'a PartScore {
    parts.iter().find(|part| part.source == source).expect("a part of that name")
}

fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
}
