//! Recorded requests: AIPerf's and Mooncake's JSONL, and Azure's CSV of arrivals.
//!
//! Requests without text are load only, and get a text that is made up of their block hashes: equal hashes give equal
//! words, so that what begins alike in the log begins alike here. Without hashes, every request gets words of its own.
//! The words are no language: what is retrieved and answered for them means nothing. Nothing is random.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp, civil};
use serde::Deserialize;
use serde_json::Value;

use super::Said;
use super::messages::{Message, name};
use crate::lines::parse_line;
use crate::object::Object;

/// Most words of a text that is made up for a number of tokens: no encoder reads further.
const WORDS_MAX: u64 = 256;
const WORDS_PER_BLOCK: u64 = 4;

#[rustfmt::skip]
const WORDS: [&str; 64] = [
    "apple", "arrow", "basket", "beach", "bell", "bird", "boat", "bread", "bridge", "butter", "cabin", "candle", "castle",
    "chair", "cloud", "coat", "copper", "corn", "desert", "door", "dragon", "drum", "eagle", "engine", "feather", "field",
    "flower", "forest", "garden", "glass", "grape", "hammer", "harbor", "hill", "honey", "horse", "island", "jacket",
    "kitchen", "lake", "lamp", "leaf", "lemon", "lion", "map", "market", "meadow", "mirror", "moon", "mountain", "needle",
    "ocean", "orange", "paint", "paper", "pearl", "piano", "river", "rope", "silver", "stone", "table", "tower", "violin",
];

/// A row of AIPerf's or Mooncake's.
#[derive(Deserialize)]
struct Row {
    /// Milliseconds since the log began.
    timestamp: Option<f64>,
    /// Milliseconds since the session's row before.
    delay: Option<f64>,
    #[serde(default)]
    session_id: Value,
    messages: Option<Vec<Object<Message>>>,
    #[serde(default)]
    message_mode: MessageMode,
    text_input: Option<String>,
    input_length: Option<u64>,
    hash_ids: Option<Vec<u64>>,
}

/// What the messages of a row are.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MessageMode {
    /// Everything that was said so far.
    #[default]
    History,
    /// What was said since the session's row before.
    Delta,
}

/// AIPerf's rows, and what has to be known of each session: a few bytes.
pub(super) struct Sessions {
    sessions: HashMap<String, Session>,
    /// When the row before came.
    latest: Timestamp,
    text_bytes_max: usize,
}

#[derive(Clone, Copy)]
struct Session {
    turns: u64,
    latest: Timestamp,
}

impl Sessions {
    pub(super) fn new(text_bytes_max: usize) -> Self {
        Self { sessions: HashMap::new(), latest: Timestamp::UNIX_EPOCH, text_bytes_max }
    }

    pub(super) fn parse(&mut self, line: u64, text: &str) -> Result<Vec<Said>, String> {
        let row: Row = parse_line(text)?;
        let (texts, made_up) = self.texts(line, &row)?;
        let id = name(&row.session_id);
        let before = id.as_ref().and_then(|id| self.sessions.get(id)).copied();
        let mut session = before.unwrap_or(Session { turns: 0, latest: self.latest });
        session.latest = match (row.timestamp, row.delay) {
            (Some(timestamp), _) => after(Timestamp::UNIX_EPOCH, timestamp)?,
            (None, Some(delay)) => after(session.latest, delay)?,
            (None, None) => session.latest,
        };
        self.latest = session.latest;
        let conversation = id.clone().unwrap_or_else(|| format!("line-{line}"));
        let said = texts.into_iter().map(|text| {
            session.turns += 1;
            Said { made_up, ..Said::plain(conversation.clone(), session.turns, session.latest, text) }
        });
        let said = said.collect();
        if let Some(id) = id {
            self.sessions.insert(id, session);
        }
        Ok(said)
    }

    /// What a row says that was not said before, and whether it is made up.
    fn texts(&self, line: u64, row: &Row) -> Result<(Vec<String>, bool), String> {
        if let Some(messages) = &row.messages {
            return Ok((new_texts(messages, row.message_mode), false));
        }
        match (&row.text_input, &row.hash_ids, row.input_length) {
            (Some(text), ..) => Ok((vec![text.clone()], false)),
            (None, Some(blocks), _) if !blocks.is_empty() => {
                Ok((vec![made_up(blocks.iter().copied(), self.text_bytes_max)], true))
            }
            (None, _, Some(tokens)) => Ok((vec![made_up_for(line, tokens, self.text_bytes_max)], true)),
            _ => Err("neither messages nor text_input, hash_ids or input_length".to_owned()),
        }
    }
}

/// What the user says for the first time. In a history that is the last message of a user, unless it is answered in the
/// same row: then the request carries on with tools, and the user says nothing new.
fn new_texts(messages: &[Object<Message>], mode: MessageMode) -> Vec<String> {
    let unanswered = messages.rsplit(|message| message.is_from("assistant")).next().unwrap_or_default();
    let of_user = |messages: &[Object<Message>]| -> Vec<String> {
        messages.iter().filter(|message| message.is_from("user")).map(|message| message.text()).collect()
    };
    match mode {
        MessageMode::Delta => of_user(messages),
        MessageMode::History => of_user(unanswered).pop().into_iter().collect(),
    }
}

fn after(start: Timestamp, ms: f64) -> Result<Timestamp, String> {
    let wrong = || format!("{ms} ms is not a time");
    if !(ms >= 0.0 && ms.is_finite()) {
        return Err(wrong());
    }
    let duration = SignedDuration::try_from_secs_f64(ms / 1e3).map_err(|_| wrong())?;
    start.checked_add(duration).map_err(|_| wrong())
}

/// Azure's rows: where its header says the columns are.
pub(super) struct Columns {
    places: Option<(usize, usize)>,
    text_bytes_max: usize,
}

impl Columns {
    pub(super) fn new(text_bytes_max: usize) -> Self {
        Self { places: None, text_bytes_max }
    }

    pub(super) fn parse(&mut self, line: u64, text: &str) -> Result<Vec<Said>, String> {
        let cells: Vec<&str> = text.split(',').map(str::trim).collect();
        let Some((time, tokens)) = self.places else {
            let place = |name: &str| {
                let place = cells.iter().position(|cell| cell.eq_ignore_ascii_case(name));
                place.ok_or_else(|| format!("the header has no column {name}"))
            };
            self.places = Some((place("TIMESTAMP")?, place("ContextTokens")?));
            return Ok(Vec::new());
        };
        let cell = |place: usize| cells.get(place).copied().unwrap_or_default();
        let at = time_of(cell(time))?;
        let tokens = cell(tokens).parse().map_err(|_| format!("{:?} is not a number of tokens", cell(tokens)))?;
        let text = made_up_for(line, tokens, self.text_bytes_max);
        Ok(vec![Said { made_up: true, ..Said::plain(format!("line-{line}"), 1, at, text) }])
    }
}

/// A time with its offset from UTC, or without one in UTC.
fn time_of(text: &str) -> Result<Timestamp, String> {
    let in_utc = || text.parse::<civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse()
        .ok()
        .or_else(|| Some(in_utc()?.timestamp()))
        .ok_or_else(|| format!("{text:?} is not a time such as 2023-11-16 18:15:46.68"))
}

/// A text of so many tokens, about, that no other line has.
fn made_up_for(line: u64, tokens: u64, bytes_max: usize) -> String {
    let blocks = tokens.clamp(1, WORDS_MAX).div_ceil(WORDS_PER_BLOCK);
    let first = line.saturating_mul(WORDS_MAX / WORDS_PER_BLOCK);
    made_up(first..first.saturating_add(blocks), bytes_max)
}

/// Words for blocks of text, in their order, as far as there is room.
fn made_up(blocks: impl Iterator<Item = u64>, bytes_max: usize) -> String {
    let mut text = String::new();
    for block in blocks {
        let words = words(block);
        if text.len() + 1 + words.len() > bytes_max {
            break;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&words);
    }
    text
}

/// The words of a block: four, and other ones for each of the first 16 million blocks.
fn words(block: u64) -> String {
    // Every step is reversible within 24 bits; neighbours share no word that they need not share.
    const MASK: u64 = (1 << 24) - 1;
    let mut mixed = (block ^ (block >> 24)) & MASK;
    for factor in [0x9E_3779, 0xC2_B2AF] {
        mixed = mixed.wrapping_mul(factor | 1) & MASK;
        mixed ^= mixed >> 12;
    }
    let word = |place: u64| WORDS[(mixed >> (6 * place)) as usize % WORDS.len()];
    [word(0), word(1), word(2), word(3)].join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn blocks_have_words_of_their_own() {
        let texts: HashSet<_> = (0..100_000).map(words).collect();
        assert_eq!(texts.len(), 100_000);
        assert_eq!(WORDS.iter().collect::<HashSet<_>>().len(), WORDS.len());
    }

    #[test]
    fn equal_prefixes_give_equal_words() {
        let [short, long] = [&[7, 8][..], &[7, 8, 9]].map(|blocks| made_up(blocks.iter().copied(), 1_000));
        assert_eq!(long.strip_prefix(&short), Some(format!(" {}", words(9)).as_str()));
        assert_eq!(made_up([7, 8, 9].into_iter(), long.len() - 1), short);
        assert_eq!(made_up_for(3, 1, 1_000).split(' ').count(), 4);
        assert_eq!(made_up_for(3, 1_000_000, 100_000).split(' ').count(), 256);
        assert_ne!(made_up_for(3, 9, 1_000), made_up_for(4, 9, 1_000));
    }
}
