//! Our own format: one turn per line.
//!
//! A line needs `conversation_id`, `turn` (a whole number, counting within the conversation), `ts` (RFC 3339), `channel`
//! and `text`; other fields are ignored. `gold`, where present, is read for scoring only.

use serde::Deserialize;

use super::Said;
use crate::lines::parse_line;

#[derive(Deserialize)]
struct RawTurn {
    conversation_id: String,
    turn: u64,
    ts: String,
    channel: String,
    text: String,
    #[serde(default)]
    gold: Option<serde_json::Value>,
}

/// The turn of a line.
pub(super) fn parse(text: &str) -> Result<Vec<Said>, String> {
    let raw: RawTurn = parse_line(text)?;
    let at = raw.ts.parse().map_err(|_| format!("ts {:?} is not an RFC 3339 time", raw.ts))?;
    let channel = raw.channel.parse().map_err(|error| format!("channel: {error}"))?;
    let RawTurn { conversation_id: conversation, turn, text, gold: label, .. } = raw;
    Ok(vec![Said { conversation, turn, at, channel, text, label, made_up: false }])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use turnflow_pipeline::Config;
    use turnflow_state::Channel;

    use super::super::{LogReader, LogTurn};

    fn read(text: &[u8]) -> Vec<Result<LogTurn, String>> {
        let mut limits = Config::defaults().limits;
        limits.text_bytes_max = 20;
        let mut reader = LogReader::new(text, "l", &limits, None);
        let mut turns = Vec::new();
        while let Some(turn) = reader.next_turn().expect("no I/O error") {
            turns.push(turn.map_err(|bad| bad.to_string()));
        }
        turns
    }

    fn good() -> Value {
        json!({"conversation_id": "c", "turn": 3, "ts": "2026-03-02T09:00:04.542Z", "channel": "mobile_app", "text": "hi"})
    }

    #[test]
    fn a_turn_is_read_and_unknown_fields_are_ignored() {
        let mut line = good();
        line["mood"] = json!({"deep": [1, 2]});
        line["gold"] = json!({"kind": "chitchat", "source": "star"});
        let turns = read(line.to_string().as_bytes());
        let turn = turns[0].as_ref().expect("a good line");
        assert_eq!((turn.line, turn.conversation.as_str(), turn.turn, turn.channel), (1, "c", 3, Channel::MobileApp));
        assert_eq!(turn.at.as_millisecond(), 1_772_442_004_542);
        assert_eq!(turn.gold.as_ref().and_then(|gold| gold.source.as_deref()), Some("star"));
    }

    #[test]
    fn bad_lines_name_line_and_fault() {
        let check = |field: &str, value: Option<Value>, expected: &str| {
            let mut line = good();
            match value {
                Some(value) => line[field] = value,
                None => drop(line.as_object_mut().expect("an object").remove(field)),
            }
            let text = format!("{}\n{line}\n{}", good(), good());
            let turns = read(text.as_bytes());
            assert_eq!(turns.len(), 3);
            let reason = turns[1].as_ref().expect_err("a bad line");
            assert!(reason.starts_with("l:2: ") && reason.contains(expected), "{field}: {reason}");
            assert!(turns[2].is_ok(), "reading goes on");
        };
        for field in ["conversation_id", "turn", "ts", "channel", "text"] {
            check(field, None, &format!("missing field `{field}`"));
            check(field, Some(Value::Null), "invalid type: null");
        }
        check("conversation_id", Some(json!("")), "empty conversation id");
        check("conversation_id", Some(json!("a\u{0}")), "control character");
        check("turn", Some(json!(-1)), "invalid value: integer `-1`");
        check("turn", Some(json!(1.5)), "invalid type: floating point");
        check("ts", Some(json!("yesterday")), "ts \"yesterday\" is not an RFC 3339 time");
        check("channel", Some(json!("pigeon")), "channel: unknown value \"pigeon\"");
        check("text", Some(json!(" \t")), "empty text");
        check("text", Some(json!("x".repeat(21))), "text of 21 bytes, at most 20 are allowed");
    }

    #[test]
    fn what_is_no_turn_at_all_is_a_bad_line() {
        for text in [
            "{",
            "[]",
            "null",
            "7",
            "\"x\"",
            r#"["c",1,"2026-03-02T09:00:00Z","web","hi"]"#,
            "{\"text\":\"a\",\"text\":\"b\"}",
            "{\"text\":\"\\ud800\"}",
            "{}{}",
        ] {
            let turns = read(text.as_bytes());
            assert!(turns.len() == 1 && turns[0].is_err(), "{text}: {turns:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(deep.as_bytes())[0].is_err());
        assert!(read(b"\xFF\n")[0].is_err());
    }
}
