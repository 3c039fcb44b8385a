//! The formats of a log, and how each is recognised: by the first line that is not empty.
//!
//! | Format | Begins with |
//! |---|---|
//! | turnflow | an object with `conversation_id`, and whatever is none of the others |
//! | openai-batch | an object with `custom_id` and `body` |
//! | sharegpt | an object with `conversations`, or a JSON array |
//! | aiperf | an object with one of `session_id`, `messages`, `text_input`, `hash_ids`, `input_length` |
//! | azure-csv | a header with `ContextTokens` |

use std::io::{self, BufRead, Read as _};

use serde_json::{Map, Value};

use crate::lines::LINE_BYTES_MAX;

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Whichever its first line looks like
    Auto,
    /// One turn per line: conversation_id, turn, ts, channel, text
    Turnflow,
    /// Requests of OpenAI's batch interface, one per line: the user's messages are the turns of a conversation
    OpenaiBatch,
    /// Conversations in ShareGPT's form, one per line or in an array: what the human says are the turns
    Sharegpt,
    /// Requests as AIPerf and Mooncake record them, one per line; without text they are load only
    Aiperf,
    /// Arrivals as Azure records them: load only
    AzureCsv,
}

impl Format {
    /// Whether its turns say when they came.
    #[must_use]
    pub const fn has_times(self) -> bool {
        !matches!(self, Self::OpenaiBatch | Self::Sharegpt)
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Turnflow => "turnflow",
            Self::OpenaiBatch => "openai-batch",
            Self::Sharegpt => "sharegpt",
            Self::Aiperf => "aiperf",
            Self::AzureCsv => "azure-csv",
        }
    }
}

/// Reads up to the end of the first line that is not empty, or as much as a line may be long.
pub(super) fn head(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let left = (LINE_BYTES_MAX + 1).saturating_sub(before);
        let more = reader.by_ref().take(left as u64).read_until(b'\n', &mut head)?;
        if more == 0 || !content(&head[before..]).is_empty() {
            return Ok(head);
        }
    }
}

/// A text without the byte order mark and the white space around it.
fn content(head: &[u8]) -> &[u8] {
    head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii()
}

/// Whether this is the first byte that is not white space.
pub(super) fn begins_with(head: &[u8], byte: u8) -> bool {
    content(head).first() == Some(&byte)
}

/// The format of a log that begins like this.
pub(super) fn recognise(head: &[u8]) -> Format {
    let content = content(head);
    if let Some(first) = content.strip_prefix(b"[") {
        // An array of anything but objects is no format's.
        let first = first.trim_ascii_start();
        return if first.is_empty() || first.starts_with(b"{") { Format::Sharegpt } else { Format::Turnflow };
    }
    let text = String::from_utf8_lossy(content);
    if text.split(',').any(|name| name.trim() == "ContextTokens") {
        return Format::AzureCsv;
    }
    let object: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    let has = |name: &str| object.contains_key(name);
    if has("conversation_id") {
        Format::Turnflow
    } else if has("custom_id") && has("body") {
        Format::OpenaiBatch
    } else if has("conversations") {
        Format::Sharegpt
    } else if ["session_id", "messages", "text_input", "hash_ids", "input_length"].into_iter().any(has) {
        Format::Aiperf
    } else {
        Format::Turnflow
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_line() {
        let check = |text: &str, expected: Format| {
            let mut reader = text.as_bytes();
            let head = head(&mut reader).expect("no I/O error");
            assert_eq!(recognise(&head), expected, "{text}");
            assert_eq!([head.as_slice(), reader].concat(), text.as_bytes(), "nothing is lost");
        };
        check(r#"{"conversation_id": "c", "turn": 1, "text": "t", "messages": []}"#, Format::Turnflow);
        check("\n \n{\"custom_id\": \"a\", \"body\": {}}\nmore\n", Format::OpenaiBatch);
        check("\u{feff}{\"id\": 1, \"conversations\": []}", Format::Sharegpt);
        check("[{\"id\": 1}]", Format::Sharegpt);
        check("[\n  {\n", Format::Sharegpt);
        check("{\"timestamp\": 0, \"hash_ids\": [1]}\n", Format::Aiperf);
        check("{\"session_id\": \"s\", \"messages\": []}", Format::Aiperf);
        check("{\"text_input\": \"t\"}", Format::Aiperf);
        check("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n", Format::AzureCsv);
        for text in ["", "\n\n", "{", "[]", "[1]", "[[]]", "null", "{\"text\": \"t\"}", "a,b,c"] {
            check(text, Format::Turnflow);
        }
    }

    #[test]
    fn a_head_is_no_longer_than_a_line_may_be() {
        let text = vec![b'['; 2 * LINE_BYTES_MAX];
        assert_eq!(head(&mut text.as_slice()).expect("no I/O error").len(), LINE_BYTES_MAX + 1);
        let blank = vec![b'\n'; 2 * LINE_BYTES_MAX];
        assert_eq!(head(&mut blank.as_slice()).expect("no I/O error").len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for format in Format::value_variants() {
            assert_eq!(format.to_possible_value().expect("a name").get_name(), format.as_str());
        }
    }
}
