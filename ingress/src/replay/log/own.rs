//! Reads a log of customer turns from JSONL, one turn at a time.
//!
//! A line needs `conversation_id`, `turn` (a whole number, counting within the conversation), `ts` (RFC 3339), `channel`
//! and `text`; other fields are ignored. `gold`, where present, is read for scoring only.

use std::io::{self, BufRead};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use turnflow_state::{Channel, ConversationId, Limits};

use super::gold::{ContentVersions, Gold};
use crate::lines::{BadLine, Lines, parse_line};

/// One turn of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogTurn {
    /// The log's name in messages.
    pub file: Arc<str>,
    /// Line number in the log, from 1.
    pub line: u64,
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn of it.
    pub turn: u64,
    /// When it was said.
    pub at: Timestamp,
    /// Where it came from.
    pub channel: Channel,
    /// What was said.
    pub text: String,
    /// What a right answer depends on, when the log says so.
    pub gold: Option<Gold>,
}

/// A log being read.
pub struct LogReader<R> {
    lines: Lines<R>,
    text_bytes_max: usize,
    versions: Option<ContentVersions>,
}

impl<R: BufRead> LogReader<R> {
    /// Reads turns from `reader`, which is called `name` in messages. `versions` tells labels apart by what an article
    /// said at the time.
    pub fn new(reader: R, name: &str, limits: &Limits, versions: Option<ContentVersions>) -> Self {
        Self { lines: Lines::new(reader, name), text_bytes_max: limits.text_bytes_max, versions }
    }

    /// The next turn or bad line; `None` at the end.
    ///
    /// # Errors
    /// When reading fails; that is final.
    pub fn next_turn(&mut self) -> io::Result<Option<Result<LogTurn, BadLine>>> {
        Ok(match self.lines.next_line()? {
            None => None,
            Some(Err(bad)) => Some(Err(bad)),
            Some(Ok((line, text))) => {
                Some(self.parse(line, &text).map_err(|reason| BadLine::new(self.lines.file(), line, reason)))
            }
        })
    }

    fn parse(&self, line: u64, text: &str) -> Result<LogTurn, String> {
        let raw: RawTurn = parse_line(text)?;
        let conversation = ConversationId::new(&raw.conversation_id).map_err(|error| error.to_string())?;
        let at = raw.ts.parse().map_err(|_| format!("ts {:?} is not an RFC 3339 time", raw.ts))?;
        let channel = raw.channel.parse().map_err(|error| format!("channel: {error}"))?;
        if raw.text.trim().is_empty() {
            return Err("empty text".to_owned());
        }
        if raw.text.len() > self.text_bytes_max {
            return Err(format!("text of {} bytes, at most {} are allowed", raw.text.len(), self.text_bytes_max));
        }
        let gold = raw.gold.and_then(|label| Gold::read(label, &raw.text, self.versions.as_ref()));
        let file = Arc::clone(self.lines.file());
        Ok(LogTurn { file, line, conversation, turn: raw.turn, at, channel, text: raw.text, gold })
    }
}

/// A time of the log as the pipeline counts it.
pub(super) fn at_ms(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or_default()
}

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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use turnflow_pipeline::Config;

    use super::*;

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
