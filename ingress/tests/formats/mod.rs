//! Logs in every format: recognised by their content, read turn by turn, bad records named, and replayed.

use serde_json::{Value, json};
use tempfile::TempDir;
use turnflow::replay::{Format, LogReader};
use turnflow_pipeline::Config;

use crate::binary::{finish, sample, turnflow};

/// A turn in short: line, conversation, turn, milliseconds, text.
type Short = (u64, String, u64, i64, String);

fn read(log: &str, format: Format) -> (Format, Vec<Result<Short, String>>) {
    let limits = Config::defaults().limits;
    let mut reader = LogReader::open(log.as_bytes(), "l", format, &limits, None).expect("no I/O error");
    let mut turns = Vec::new();
    while let Some(turn) = reader.next_turn().expect("no I/O error") {
        turns.push(match turn {
            Ok(turn) => {
                let made_up = matches!(reader.format(), Format::AzureCsv) || turn.text == made_up_text(&turn.text);
                assert_eq!(turn.made_up, made_up, "{turn:?}");
                Ok((turn.line, turn.conversation.to_string(), turn.turn, turn.at.as_millisecond(), turn.text))
            }
            Err(bad) => Err(bad.to_string()),
        });
    }
    (reader.format(), turns)
}

/// A text without anything that only people write, in groups of four words.
fn made_up_text(text: &str) -> String {
    let words: Vec<_> = text.split(' ').filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())).collect();
    if words.len().is_multiple_of(4) { words.join(" ") } else { String::new() }
}

fn short(line: u64, conversation: &str, turn: u64, ms: i64, text: &str) -> Result<Short, String> {
    Ok((line, conversation.to_owned(), turn, ms, text.to_owned()))
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A log whose second record is bad, and what is said of it.
fn check(log: &str, format: Format, expected: &[Result<Short, String>]) {
    for asked in [Format::Auto, format] {
        assert_eq!(read(log, asked), (format, expected.to_vec()), "{asked:?}");
    }
}

fn bad(line: u64, reason: &str) -> Result<Short, String> {
    Err(format!("l:{line}: {reason}"))
}

#[test]
fn openai_batches_are_conversations_of_what_the_user_says() {
    let request = |id: &str, messages: Value| json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": messages}});
    let long = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "t"}]},
        {"role": "tool", "content": "on its way", "tool_call_id": "t"},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "now?"}]},
    ]);
    let log = lines(&[
        request("r1", long),
        request(
            "r2",
            json!([{"role": "user", "content": "Good"}, {"role": "user", "content": [{"type": "image_url"}]}]),
        ),
        json!({"custom_id": "r3", "body": {"input": "x"}}),
        request("r4", json!([{"role": "system", "content": "Be kind."}])),
        request("r5", json!([{"role": "user", "content": "Hello!"}])),
    ]);
    check(
        &log,
        Format::OpenaiBatch,
        &[
            short(1, "r1", 1, 0, "Where is it?"),
            short(1, "r1", 2, 0, "And\nnow?"),
            bad(2, "empty text"),
            bad(3, "missing field `messages` (column 38)"),
            bad(4, "no message of a user"),
            short(5, "r5", 1, 0, "Hello!"),
        ],
    );
}

#[test]
fn sharegpt_is_read_from_lines_and_from_an_array() {
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    let rows = [
        json!({"id": "a", "conversations": [said("system", "S"), said("human", "One?"), said("gpt", "1"), said("human", "Two?")]}),
        json!({"id": "b", "conversations": [{"from": "human"}]}),
        json!({"id": 7, "conversations": [said("user", "Three, [or] \"{four\"?")]}),
        json!({"conversations": []}),
        json!({"conversations": [said("human", "Five?")]}),
    ];
    let expected = |lines: [u64; 4]| {
        [
            short(lines[0], "a", 1, 0, "One?"),
            short(lines[0], "a", 2, 0, "Two?"),
            Err(format!("l:{}: missing field `value`", lines[1])),
            short(lines[2], "7", 1, 0, "Three, [or] \"{four\"?"),
            short(lines[3], &format!("line-{}", lines[3]), 1, 0, "Five?"),
        ]
    };
    let without_column = |(format, turns): (Format, Vec<Result<Short, String>>)| {
        assert_eq!(format, Format::Sharegpt);
        let cut = |turn: Result<Short, String>| {
            turn.map_err(|bad| bad.split(" (column").next().unwrap_or_default().to_owned())
        };
        turns.into_iter().map(cut).collect::<Vec<_>>()
    };
    for format in [Format::Auto, Format::Sharegpt] {
        assert_eq!(without_column(read(&lines(&rows), format)), expected([1, 2, 3, 5]));
        let compact = Value::from(rows.to_vec()).to_string();
        assert_eq!(without_column(read(&compact, format)), expected([1, 1, 1, 1]));
        // As it is usually published: every element begins two lines further than one would guess.
        let pretty = serde_json::to_string_pretty(&rows).expect("JSON");
        let begins =
            |text: &str| (1..).zip(pretty.lines()).find(|(_, line)| line.contains(text)).map_or(0, |(line, _)| line);
        let places = [begins("\"a\"") - 1, begins("\"b\"") - 1, begins("7,") - 1, begins("Five") - 4];
        assert_eq!(without_column(read(&pretty, format)), expected(places));
    }
    let cut_off = "[{\"id\": \"a\", \"conversations\": [{\"from\": \"human\", \"value\": \"One?\"}]},\n{\"id\": ";
    check(cut_off, Format::Sharegpt, &[short(1, "a", 1, 0, "One?"), bad(2, "the array has no end")]);
}

#[test]
fn aiperf_histories_and_deltas_give_what_is_new() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let log = lines(&[
        json!({"session_id": "h", "messages": [user("One?")], "output_length": 5, "timestamp": 1000}),
        json!({"session_id": "d", "message_mode": "delta", "messages": [{"role": "system", "content": "S"}, user("A?")], "timestamp": 1500.5}),
        json!({"session_id": "h", "messages": [user("One?"), assistant("1"), user("Two?")], "delay": 2000}),
        json!({"session_id": "h", "messages": [user("One?"), assistant("1"), user("Two?"), assistant("f()"), {"role": "tool", "content": "2"}]}),
        json!({"session_id": "d", "message_mode": "delta", "messages": [user("B?")], "delay": 500}),
        json!({"text_input": "Alone?", "timestamp": 9000}),
        json!({"text_input": "And who next?"}),
        json!({"session_id": "d", "message_mode": "sideways", "messages": [user("C?")]}),
        json!({"session_id": "d", "timestamp": 1}),
        json!({"text_input": "Never?", "timestamp": -1}),
    ]);
    let (format, turns) = read(&log, Format::Auto);
    assert_eq!(format, Format::Aiperf);
    assert_eq!(
        turns[..6],
        [
            short(1, "h", 1, 1_000, "One?"),
            short(2, "d", 1, 1_500, "A?"),
            short(3, "h", 2, 3_000, "Two?"),
            short(5, "d", 2, 2_000, "B?"),
            short(6, "line-6", 1, 9_000, "Alone?"),
            short(7, "line-7", 1, 9_000, "And who next?"),
        ]
    );
    let reasons: Vec<_> = turns[6..].iter().map(|turn| turn.clone().expect_err("bad")).collect();
    assert!(reasons[0].starts_with("l:8: unknown variant `sideways`, expected `history` or `delta`"), "{reasons:?}");
    assert_eq!(
        reasons[1..],
        ["l:9: neither messages nor text_input, hash_ids or input_length", "l:10: -1 ms is not a time"]
    );
}

#[test]
fn load_without_text_keeps_its_repetitions() {
    let log = lines(&[
        json!({"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]}),
        json!({"timestamp": 7, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 3]}),
        json!({"timestamp": 9, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]}),
        json!({"timestamp": 11, "input_length": 100, "output_length": 5}),
        json!({"timestamp": 12, "input_length": 100, "output_length": 5}),
    ]);
    let (format, turns) = read(&log, Format::Auto);
    assert_eq!(format, Format::Aiperf);
    let turns: Vec<_> = turns.into_iter().map(|turn| turn.expect("a turn")).collect();
    let words = |turn: &Short| turn.4.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let [first, second, third] = [&turns[0], &turns[1], &turns[2]].map(words);
    assert_eq!((first.len(), &first[..8]), (12, &second[..8]));
    assert_ne!(first, second);
    assert_eq!(first, third);
    assert_ne!(turns[3].4, turns[4].4);
    assert_eq!(
        turns.iter().map(|turn| (turn.1.as_str(), turn.2, turn.3)).collect::<Vec<_>>(),
        [("line-1", 1, 0), ("line-2", 1, 7), ("line-3", 1, 9), ("line-4", 1, 11), ("line-5", 1, 12)]
    );
}

#[test]
fn azure_arrivals_are_read_by_their_header() {
    let log = "\u{feff}TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n\
               2023-11-16 18:15:50.9951690,x,109\r\n2024-05-10 00:00:00.009930+00:00,4,5\r\nsoon,4,5\r\n";
    let (format, turns) = read(log, Format::Auto);
    assert_eq!(format, Format::AzureCsv);
    let [Ok(first), Err(tokens), Ok(third), Err(time)] = &turns[..] else { panic!("{turns:?}") };
    assert_eq!((first.0, first.1.as_str(), first.3, first.4.split(' ').count()), (2, "line-2", 1_700_158_546_680, 256));
    assert_eq!((third.0, third.3, third.4.split(' ').count()), (4, 1_715_299_200_009, 4));
    assert_eq!(tokens, "l:3: \"x\" is not a number of tokens");
    assert!(time.starts_with("l:5: \"soon\" is not a time"), "{time}");
    let (_, turns) = read("When,ContextTokens\n1,2\n", Format::Auto);
    assert_eq!(turns[0], bad(1, "the header has no column TIMESTAMP"));
}

/// Every format through the real parts, and what the reports say.
#[test]
fn logs_of_every_format_are_replayed() {
    let dir = TempDir::new().expect("a temporary folder");
    let kb = sample("articles.jsonl").display().to_string();
    // An answer to words that mean nothing is cached only if nothing is too doubtful to be an answer.
    let config = dir.path().join("turnflow.toml").display().to_string();
    std::fs::write(&config, "[extractive]\nconfidence-min = -1.0\n").expect("written");
    let ask = "How long does delivery take?";
    let logs = [
        ("batch", lines(&[json!({"custom_id": "a", "body": {"messages": [{"role": "user", "content": ask}, {"role": "user", "content": ask}]}})])),
        ("sharegpt", json!([{"id": "a", "conversations": [{"from": "human", "value": ask}]}, {"id": "b", "conversations": [{"from": "human", "value": ask}]}]).to_string()),
        ("aiperf", lines(&[json!({"timestamp": 0, "hash_ids": [1, 2]}), json!({"timestamp": 5, "hash_ids": [1, 2]})])),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,3,4\n2023-11-16 18:15:46.69,3,4\n".to_owned()),
    ];
    for (name, log) in logs {
        let path = dir.path().join(name).display().to_string();
        std::fs::write(&path, log).expect("written");
        let replay = |more: &[&str]| {
            finish(turnflow().args(["replay", &path, "--kb", &kb, "--config", &config, "--in-flight", "1"]).args(more))
        };
        let (code, stdout, stderr) = replay(&["--json"]);
        assert_eq!(code, 0, "{name}: {stderr}");
        let report: Value = serde_json::from_str(&stdout).expect("JSON");
        let is_load = matches!(name, "aiperf" | "azure");
        assert_eq!((&report["turns"], &report["errors"]), (&json!(2), &json!(0)), "{name}");
        assert_eq!(report["made_up"], if is_load { 2 } else { 0 }, "{name}");
        // Of arrivals alone nobody knows whether they repeat each other.
        assert_eq!(report["answered_by"]["exact"], u64::from(name != "azure"), "{name}");
        if !is_load {
            let (code, _, stderr) = replay(&["--speed", "10x"]);
            assert_eq!(code, 64);
            assert!(stderr.contains("tells no times"), "{stderr}");
        } else {
            assert!(replay(&[]).1.contains("means nothing"), "{name}");
        }
    }
    let path = dir.path().join("azure").display().to_string();
    let (code, _, stderr) = finish(turnflow().args(["replay", &path, "--kb", &kb, "--format", "sharegpt"]));
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("{path}:1: not a JSON object")), "{stderr}");
}
