//! Server-sent events, as far as a stream of completions needs them.
//!
//! Contract: gives the data of each event, whatever the borders of the pieces that bytes come in, and whichever of CR, LF
//! and CRLF ends lines. Comments, names and ids of events are passed over. Holds at most one line and one event, each bounded.
//! It reads no clock and knows nothing of what the data means.
//!
//! Source: the section "Server-sent events" of the WHATWG HTML standard, with one liberty: an event that the end of the stream cuts off
//! after a whole line counts, since some servers leave out the last empty line.

use super::fault::RemoteFault;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Turns bytes into events.
#[derive(Debug)]
pub(crate) struct EventReader {
    bytes_max: usize,
    line: Vec<u8>,
    /// Lines of the event so far, joined.
    data: Option<Vec<u8>>,
    last_was_cr: bool,
    is_first_line: bool,
}

impl EventReader {
    /// `bytes_max` bounds a line, and the data of an event.
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self { bytes_max, line: Vec::new(), data: None, last_was_cr: false, is_first_line: true }
    }

    /// Reads on, and appends the data of each event that is complete.
    ///
    /// # Errors
    /// [`RemoteFault::TooLong`].
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), RemoteFault> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.last_was_cr) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let piece = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + piece.len() > self.bytes_max {
                return Err(RemoteFault::TooLong { what: "a line", limit: self.bytes_max });
            }
            self.line.extend_from_slice(piece);
            let Some(end) = end else { break };
            self.last_was_cr = rest[end] == b'\r';
            self.end_line(events)?;
            rest = &rest[end + 1..];
        }
        Ok(())
    }

    /// The event that the end of the stream cut off, if it has a whole line.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        self.data.take()
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) -> Result<(), RemoteFault> {
        let line = std::mem::take(&mut self.line);
        let mut text = line.as_slice();
        if std::mem::take(&mut self.is_first_line) {
            text = text.strip_prefix(BOM).unwrap_or(text);
        }
        if text.is_empty() {
            events.extend(self.data.take());
        } else if let Some(value) = text.strip_prefix(b"data") {
            self.add_data(value)?;
        }
        // The buffer serves the next line too.
        self.line = line;
        self.line.clear();
        Ok(())
    }

    /// `value` is what follows the word `data`.
    fn add_data(&mut self, value: &[u8]) -> Result<(), RemoteFault> {
        let value = match value {
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            [] => value,
            // Another field, whose name only begins like this one.
            _ => return Ok(()),
        };
        let held = self.data.as_ref().map_or(0, |data| data.len() + 1);
        if held + value.len() > self.bytes_max {
            return Err(RemoteFault::TooLong { what: "an event", limit: self.bytes_max });
        }
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_owned()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<String>, RemoteFault> {
        let mut reader = EventReader::new(64);
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut events)?;
        }
        events.extend(reader.finish());
        Ok(events.into_iter().map(|event| String::from_utf8(event).expect("UTF-8")).collect())
    }

    #[test]
    fn events_of_a_stream() {
        let check = |stream: &str, expected: &[&str]| {
            assert_eq!(read([stream.as_bytes()]).expect(stream), expected, "{stream:?}");
        };
        check("", &[]);
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
        check("data:a\n\ndata:  b\n\n", &["a", " b"]);
        check(": a comment\n\n:\n\ndata: a\n: within\n\n", &["a"]);
        check("event: message\nid: 7\nretry: 10\ndata: a\n\n", &["a"]);
        check("data: a\ndata: b\ndata\n\n", &["a\nb\n"]);
        check("database: no\ndatum\n data: no\n\n", &[]);
        check("\u{feff}data: a\n\n", &["a"]);
        check("data: [DONE]\n", &["[DONE]"]);
        check("data: cut in the mid", &[]);
        check("\n\n\n\ndata: ü€𝄞\n\n", &["ü€𝄞"]);
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_held() {
        let line = |length: usize| format!("data: {}\n\n", "x".repeat(length));
        assert_eq!(read([line(58).as_bytes()]).expect("it fits").len(), 1);
        assert_eq!(read([line(59).as_bytes()]), Err(RemoteFault::TooLong { what: "a line", limit: 64 }));
        let many = "data: 0123456789\n".repeat(6);
        assert_eq!(read([many.as_bytes()]), Err(RemoteFault::TooLong { what: "an event", limit: 64 }));
        let mut reader = EventReader::new(64);
        let endless = std::iter::repeat_n(&b"0123456789"[..], 1000);
        let read = endless.map(|piece| reader.push(piece, &mut Vec::new())).take_while(Result::is_ok).count();
        assert_eq!((read, reader.line.len()), (6, 60), "no more is held");
    }

    proptest! {
        /// However a stream is cut, it says the same.
        #[test]
        fn borders_do_not_matter(
            lines in prop::collection::vec(("(data:? ?|: ?|id: |)", "[a-z ü€]{0,6}", "(\r|\n|\r\n)"), 0..24),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: Vec<u8> = lines.iter().flat_map(|(a, b, c)| [a, b, c]).flat_map(|s| s.bytes()).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
            let whole = read([&stream[..]]);
            prop_assert_eq!(&read(pieces), &whole);
            prop_assert_eq!(&read(stream.chunks(1)), &whole);
        }
    }
}
