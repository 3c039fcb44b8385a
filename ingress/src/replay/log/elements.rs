//! Elements of a JSON array, one at a time: a file of any length is read in the memory of its longest allowed element.
//!
//! An element is found by its commas and brackets alone; whether it is JSON is its reader's business. So one that is not is
//! handed out like any other, and reading goes on behind it as long as its brackets and quotes are closed.

use std::io::{self, BufRead};
use std::sync::Arc;

use crate::lines::{BadLine, LINE_BYTES_MAX};

/// Reads elements and counts lines.
pub(super) struct Elements<R> {
    reader: R,
    file: Arc<str>,
    line: u64,
    begun: bool,
    ended: bool,
}

/// An element being read.
#[derive(Default)]
struct Element {
    bytes: Vec<u8>,
    line: u64,
    depth: usize,
    in_string: bool,
    escaped: bool,
    too_long: bool,
}

type Found = Result<(u64, String), BadLine>;

impl<R: BufRead> Elements<R> {
    /// Elements of `reader`, which is called `file` in messages and begins with `[`.
    pub(super) fn new(reader: R, file: &str) -> Self {
        Self { reader, file: file.into(), line: 1, begun: false, ended: false }
    }

    /// The file's name in messages.
    pub(super) fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// The next element with the line that it begins at; `None` at the end of the array.
    ///
    /// # Errors
    /// The outer error is the file system's and final; the inner one is about this element alone.
    pub(super) fn next_element(&mut self) -> io::Result<Option<Found>> {
        let mut element = Element::default();
        while !self.ended {
            let line = self.line;
            let Some(byte) = self.next_byte()? else {
                self.ended = true;
                return Ok(Some(Err(BadLine::new(&self.file, line, "the array has no end"))));
            };
            if !self.begun {
                self.begun = byte == b'[';
                continue;
            }
            let outside = element.depth == 0 && !element.in_string;
            if outside && matches!(byte, b',' | b']') {
                self.ended = byte == b']';
                if element.line > 0 {
                    return Ok(Some(self.finish(element)));
                }
            } else if !(element.line == 0 && byte.is_ascii_whitespace()) {
                element.push(byte, line);
            }
        }
        Ok(None)
    }

    fn finish(&self, element: Element) -> Found {
        let bad = |reason: String| BadLine::new(&self.file, element.line, reason);
        if element.too_long {
            return Err(bad(format!("element of more than {LINE_BYTES_MAX} bytes")));
        }
        let text = String::from_utf8(element.bytes);
        let text = text.map_err(|error| bad(format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to() + 1)))?;
        Ok((element.line, text))
    }

    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        let byte = loop {
            match self.reader.fill_buf() {
                Ok(available) => break available.first().copied(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        if byte.is_some() {
            self.reader.consume(1);
        }
        self.line += u64::from(byte == Some(b'\n'));
        Ok(byte)
    }
}

impl Element {
    fn push(&mut self, byte: u8, line: u64) {
        if self.line == 0 {
            self.line = line;
        }
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.too_long |= self.bytes.len() == LINE_BYTES_MAX;
        if self.too_long {
            self.bytes = Vec::new();
        } else {
            self.bytes.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn all(bytes: &[u8]) -> Vec<Result<(u64, String), String>> {
        let mut elements = Elements::new(BufReader::with_capacity(3, bytes), "f");
        let mut found = Vec::new();
        while let Some(element) = elements.next_element().expect("no I/O error") {
            found.push(element.map_err(|bad| bad.to_string()));
        }
        found
    }

    fn good(line: u64, text: &str) -> Result<(u64, String), String> {
        Ok((line, text.to_owned()))
    }

    #[test]
    fn elements_are_told_apart_by_commas_outside() {
        let text = r#" [{"a": "],}[{\"\\"},
            {"b": [1, 2]} , 7
            ,{"c": "é"}] and so on"#;
        let expected = [
            good(1, r#"{"a": "],}[{\"\\"}"#),
            good(2, "{\"b\": [1, 2]} "),
            good(2, "7\n            "),
            good(3, "{\"c\": \"é\"}"),
        ];
        assert_eq!(all(text.as_bytes()), expected);
        assert_eq!(all(b"\xEF\xBB\xBF[ ]"), []);
        assert_eq!(all(b"[,,{}]"), [good(1, "{}")]);
    }

    #[test]
    fn a_bad_element_is_handed_out_and_the_next_is_found() {
        assert_eq!(
            all(b"[{\"a\" 1},\n{\"b\": \"\xFF\"},\n{}\n"),
            [
                good(1, "{\"a\" 1}"),
                Err("f:2: not UTF-8 at byte 8".to_owned()),
                Err("f:4: the array has no end".to_owned())
            ]
        );
        let long = format!("[{{\"a\":\"{}\"}},{{}}]", "x".repeat(LINE_BYTES_MAX));
        let too_long = format!("f:1: element of more than {LINE_BYTES_MAX} bytes");
        assert_eq!(all(long.as_bytes()), [Err(too_long), good(1, "{}")]);
    }
}
