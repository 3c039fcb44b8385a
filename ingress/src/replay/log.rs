//! Reads a log of customer turns, one record at a time, in any of the formats that [`Format`] names.
//!
//! A record is a line, or an element of a JSON array, and gives any number of turns. One that cannot be used is handed
//! out as a bad line, with the line that it begins at, and gives none. What a format does not tell stays empty: a log
//! without times has all its turns at the beginning of 1970, and a log of mere load has texts that are made up, so that
//! its arrivals and repetitions are kept; figures about the content of its answers mean nothing.

mod elements;
mod format;
mod messages;
mod own;
mod trace;

use std::collections::VecDeque;
use std::io::{self, BufRead, Cursor, Read as _};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use turnflow_state::{Channel, ConversationId, Limits};

use self::elements::Elements;
pub use self::format::Format;
use self::format::{head, recognise};
use self::trace::{Columns, Sessions};
use super::gold::{ContentVersions, Gold};
use crate::lines::{BadLine, Lines};

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
    /// Whether the text is made up, because the log has none.
    pub made_up: bool,
}

/// A log being read.
pub struct LogReader<R> {
    records: Records<io::Chain<Cursor<Vec<u8>>, R>>,
    format: Format,
    parser: Parser,
    /// Turns of the last record that were not handed out yet.
    turns: VecDeque<LogTurn>,
    text_bytes_max: usize,
    versions: Option<ContentVersions>,
}

impl<R: BufRead> LogReader<R> {
    /// Reads turns from `reader`, which is called `name` in messages and has a turn per line in our own format. `versions`
    /// tells labels apart by what an article said at the time.
    pub fn new(reader: R, name: &str, limits: &Limits, versions: Option<ContentVersions>) -> Self {
        Self::with_head(Vec::new(), reader, name, Format::Turnflow, limits, versions)
    }

    /// The same in a format that is named, or else recognised by how the log begins.
    ///
    /// # Errors
    /// When the beginning cannot be read.
    pub fn open(
        mut reader: R,
        name: &str,
        format: Format,
        limits: &Limits,
        versions: Option<ContentVersions>,
    ) -> io::Result<Self> {
        let head = head(&mut reader)?;
        let format = if format == Format::Auto { recognise(&head) } else { format };
        Ok(Self::with_head(head, reader, name, format, limits, versions))
    }

    fn with_head(
        head: Vec<u8>,
        reader: R,
        name: &str,
        format: Format,
        limits: &Limits,
        versions: Option<ContentVersions>,
    ) -> Self {
        let is_array = format == Format::Sharegpt && format::begins_with(&head, b'[');
        let reader = Cursor::new(head).chain(reader);
        let records = if is_array {
            Records::Array(Elements::new(reader, name))
        } else {
            Records::Lines(Lines::new(reader, name))
        };
        let text_bytes_max = limits.text_bytes_max;
        let parser = Parser::of(format, text_bytes_max);
        Self { records, format, parser, turns: VecDeque::new(), text_bytes_max, versions }
    }

    /// The log's format, recognised where it was not named.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The next turn or bad line; `None` at the end.
    ///
    /// # Errors
    /// When reading fails; that is final.
    pub fn next_turn(&mut self) -> io::Result<Option<Result<LogTurn, BadLine>>> {
        loop {
            if let Some(turn) = self.turns.pop_front() {
                return Ok(Some(Ok(turn)));
            }
            let (line, text) = match self.records.next()? {
                None => return Ok(None),
                Some(Err(bad)) => return Ok(Some(Err(bad))),
                Some(Ok(record)) => record,
            };
            let turns = self.parser.parse(line, &text).and_then(|said| self.check(line, said));
            match turns {
                Ok(turns) => self.turns = turns,
                Err(reason) => return Ok(Some(Err(BadLine::new(self.records.file(), line, reason)))),
            }
        }
    }

    fn check(&self, line: u64, said: Vec<Said>) -> Result<VecDeque<LogTurn>, String> {
        let check = |Said { conversation, turn, at, channel, text, label, made_up }| {
            let conversation = ConversationId::new(&conversation).map_err(|error| error.to_string())?;
            let bytes = String::len(&text);
            if text.trim().is_empty() {
                return Err("empty text".to_owned());
            }
            if bytes > self.text_bytes_max {
                return Err(format!("text of {bytes} bytes, at most {} are allowed", self.text_bytes_max));
            }
            let gold = label.and_then(|label| Gold::read(label, &text, self.versions.as_ref()));
            let file = Arc::clone(self.records.file());
            Ok(LogTurn { file, line, conversation, turn, at, channel, text, gold, made_up })
        };
        said.into_iter().map(check).collect()
    }
}

/// A time of the log as the pipeline counts it.
pub(super) fn at_ms(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or_default()
}

/// Where records come from.
enum Records<R> {
    Lines(Lines<R>),
    Array(Elements<R>),
}

impl<R: BufRead> Records<R> {
    fn next(&mut self) -> io::Result<Option<Result<(u64, String), BadLine>>> {
        match self {
            Self::Lines(lines) => lines.next_line(),
            Self::Array(elements) => elements.next_element(),
        }
    }

    fn file(&self) -> &Arc<str> {
        match self {
            Self::Lines(lines) => lines.file(),
            Self::Array(elements) => elements.file(),
        }
    }
}

/// A turn as a record gives it.
struct Said {
    conversation: String,
    turn: u64,
    at: Timestamp,
    channel: Channel,
    text: String,
    label: Option<Value>,
    made_up: bool,
}

impl Said {
    /// A turn that came over a programming interface, of which no more is known.
    fn plain(conversation: String, turn: u64, at: Timestamp, text: String) -> Self {
        Self { conversation, turn, at, channel: Channel::Api, text, label: None, made_up: false }
    }
}

/// Makes turns of records, and keeps what it has to know of earlier ones.
enum Parser {
    Own,
    OpenaiBatch,
    Sharegpt,
    Aiperf(Sessions),
    AzureCsv(Columns),
}

impl Parser {
    fn of(format: Format, text_bytes_max: usize) -> Self {
        match format {
            Format::Auto | Format::Turnflow => Self::Own,
            Format::OpenaiBatch => Self::OpenaiBatch,
            Format::Sharegpt => Self::Sharegpt,
            Format::Aiperf => Self::Aiperf(Sessions::new(text_bytes_max)),
            Format::AzureCsv => Self::AzureCsv(Columns::new(text_bytes_max)),
        }
    }

    fn parse(&mut self, line: u64, text: &str) -> Result<Vec<Said>, String> {
        match self {
            Self::Own => own::parse(text),
            Self::OpenaiBatch => messages::parse_openai_batch(text),
            Self::Sharegpt => messages::parse_sharegpt(line, text),
            Self::Aiperf(sessions) => sessions.parse(line, text),
            Self::AzureCsv(columns) => columns.parse(line, text),
        }
    }
}
