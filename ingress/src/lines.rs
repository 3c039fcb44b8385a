//! Lines of a JSONL file, one at a time: a file of any length is read in the memory of its longest allowed line.
//!
//! A line that is too long or not UTF-8 is handed out as an error with its number, and reading goes on with the next one.
//! Empty lines are passed over. What a line means is the business of its reader, through [`parse_line`].

use std::fmt;
use std::io::{self, BufRead};
use std::sync::Arc;

use serde::de::DeserializeOwned;

/// Longest line accepted, in bytes: far above any legal turn or article, far below what would hurt.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Longest reason told about a bad line, in characters: parsers may quote the line itself.
const REASON_CHARS_MAX: usize = 240;

/// A line that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {reason}")]
pub struct BadLine {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl BadLine {
    /// A bad line with its reason, cut to a bearable length.
    pub fn new(file: &Arc<str>, line: u64, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let reason = match reason.char_indices().nth(REASON_CHARS_MAX) {
            Some((cut, _)) => format!("{}…", &reason[..cut]),
            None => reason,
        };
        Self { file: Arc::clone(file), line, reason }
    }
}

/// Reads lines and counts them.
pub struct Lines<R> {
    reader: R,
    file: Arc<str>,
    line: u64,
    bytes_max: usize,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `reader`, which is called `file` in messages.
    pub fn new(reader: R, file: &str) -> Self {
        Self::with_limit(reader, file, LINE_BYTES_MAX)
    }

    /// The same with another bound on the length of a line, in bytes.
    pub fn with_limit(reader: R, file: &str, bytes_max: usize) -> Self {
        Self { reader, file: file.into(), line: 0, bytes_max }
    }

    /// The file's name in messages.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// The next line that is not empty, with its number; `None` at the end.
    ///
    /// # Errors
    /// The outer error is the file system's and final; the inner one is about this line alone.
    pub fn next_line(&mut self) -> io::Result<Option<Result<(u64, String), BadLine>>> {
        loop {
            let mut bytes = Vec::new();
            let end = self.read_line(&mut bytes)?;
            let complete = match end {
                End::Nothing => return Ok(None),
                End::Line => true,
                End::TooLong => false,
            };
            self.line += 1;
            if !complete {
                let reason = format!("line of more than {} bytes", self.bytes_max);
                return Ok(Some(Err(BadLine::new(&self.file, self.line, reason))));
            }
            // Files written on Windows often begin with a byte order mark, which JSON does not allow.
            let text = if self.line == 1 { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes) } else { &bytes };
            match std::str::from_utf8(text) {
                Err(error) => {
                    let reason = format!("not UTF-8 at byte {}", error.valid_up_to() + 1);
                    return Ok(Some(Err(BadLine::new(&self.file, self.line, reason))));
                }
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => return Ok(Some(Ok((self.line, text.to_owned())))),
            }
        }
    }

    /// Reads up to the next line feed; of a line that is too long, the rest is read and thrown away.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<End> {
        let mut end = End::Nothing;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(end);
            }
            let line_feed = available.iter().position(|&byte| byte == b'\n');
            let piece = line_feed.map_or(available, |at| &available[..at]);
            if line.len() + piece.len() > self.bytes_max {
                end = End::TooLong;
                line.clear();
            } else if end != End::TooLong {
                end = End::Line;
                line.extend_from_slice(piece);
            }
            let used = piece.len() + usize::from(line_feed.is_some());
            self.reader.consume(used);
            if line_feed.is_some() {
                return Ok(end);
            }
        }
    }
}

/// How reading a line ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Line,
    TooLong,
}

/// Parses one line as a JSON object.
///
/// # Errors
/// The parser's words, with the column but without its idea of the line, which is always 1 here.
pub fn parse_line<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err("not a JSON object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let bare = message.strip_suffix(&place).unwrap_or(&message);
        format!("{bare} (column {})", error.column())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufReader, Cursor};

    use super::*;

    fn all(bytes: &[u8], limit: usize, buffer: usize) -> Vec<Result<(u64, String), String>> {
        let reader = BufReader::with_capacity(buffer, Cursor::new(bytes.to_vec()));
        let mut lines = Lines::with_limit(reader, "f", limit);
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().expect("no I/O error") {
            found.push(line.map_err(|bad| bad.to_string()));
        }
        found
    }

    #[test]
    fn lines_are_counted_and_bounded_at_any_buffer_size() {
        let text = b"\xEF\xBB\xBFone\r\n\n  \nfour\n123456789\n\xFF\xFE\nseven\n12345678";
        let expected = vec![
            Ok((1, "one\r".to_owned())),
            Ok((4, "four".to_owned())),
            Err("f:5: line of more than 8 bytes".to_owned()),
            Err("f:6: not UTF-8 at byte 1".to_owned()),
            Ok((7, "seven".to_owned())),
            Ok((8, "12345678".to_owned())),
        ];
        for buffer in [1, 2, 3, 8, 64] {
            assert_eq!(all(text, 8, buffer), expected, "buffer of {buffer} bytes");
        }
        assert_eq!(all(b"", 8, 4), vec![]);
        assert_eq!(all(b"123456789", 8, 4), vec![Err("f:1: line of more than 8 bytes".to_owned())]);
    }

    #[test]
    fn parse_errors_tell_the_column_only() {
        let parse = |text: &str| parse_line::<HashMap<String, u8>>(text);
        assert_eq!(parse("{\"a\":1}"), Ok(HashMap::from([("a".to_owned(), 1)])));
        assert_eq!(parse("{\"a\":1,}"), Err("trailing comma (column 8)".to_owned()));
        assert_eq!(parse("[[\"a\",1]]"), Err("not a JSON object".to_owned()));
    }

    #[test]
    fn reasons_are_cut() {
        let bad = BadLine::new(&"f".into(), 1, "ä".repeat(1000));
        assert_eq!(bad.reason.chars().count(), REASON_CHARS_MAX + 1);
    }
}
