//! What customers say, taken from a log: conversations with their turns in order, each text kept once.

use std::collections::HashMap;
use std::io::BufRead;

use anyhow::Context as _;
use jiff::Timestamp;

use crate::replay::LogReader;

/// Turns of a log that are used; what comes after them is not read.
const TURNS_MAX: usize = 1_000_000;

/// The conversations of a log. Each has a turn at least.
#[derive(Clone, Debug)]
pub struct Texts {
    conversations: Vec<Vec<String>>,
    /// Those with more turns than one; all of them where none has.
    long: Vec<usize>,
}

impl Texts {
    /// Reads the conversations of a log.
    ///
    /// # Errors
    /// When the log cannot be read, has a line that is no turn, or has no turn.
    pub fn read<R: BufRead>(mut log: LogReader<R>) -> anyhow::Result<Self> {
        let (mut places, mut conversations) = (HashMap::new(), Vec::<Vec<String>>::new());
        for _ in 0..TURNS_MAX {
            let Some(turn) = log.next_turn().context("cannot read the log")?.transpose()? else { break };
            let place = *places.entry(turn.conversation).or_insert(conversations.len());
            if place == conversations.len() {
                conversations.push(Vec::new());
            }
            conversations[place].push(turn.text);
        }
        anyhow::ensure!(!conversations.is_empty(), "the log has no turns");
        let mut long: Vec<usize> = (0..conversations.len()).filter(|&place| conversations[place].len() > 1).collect();
        if long.is_empty() {
            long = (0..conversations.len()).collect();
        }
        Ok(Self { conversations, long })
    }

    /// How a conversation of this number begins; after the last, the first comes again.
    pub(super) fn opening(&self, number: usize) -> &str {
        &self.conversations[number % self.conversations.len()][0]
    }

    /// The same among conversations that go on, where there are such.
    pub(super) fn long_opening(&self, number: usize) -> &str {
        &self.conversations[self.long[number % self.long.len()]][0]
    }

    /// How a conversation that goes on does so when it was asked so many times since its opening: with its own turns, over
    /// and over. Where no conversation goes on, it takes the openings of others.
    pub(super) fn later(&self, number: usize, times: usize) -> &str {
        let place = self.long[number % self.long.len()];
        match &self.conversations[place][1..] {
            [] => self.opening(place + 1 + times),
            later => &later[times % later.len()],
        }
    }
}

/// When the turns of a log came, for a [`Trace`](super::Trace).
///
/// # Errors
/// When the log cannot be read, or has a line that is no turn.
pub fn arrival_times<R: BufRead>(mut log: LogReader<R>) -> anyhow::Result<Vec<Timestamp>> {
    let mut times = Vec::new();
    while times.len() < TURNS_MAX {
        let Some(turn) = log.next_turn().context("cannot read the arrivals")?.transpose()? else { break };
        times.push(turn.at);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::Config;

    use super::*;

    fn read(turns: &[(&str, &str)]) -> anyhow::Result<Texts> {
        let line = |(number, (conversation, text)): (u64, &(&str, &str))| {
            let ts = "2026-03-02T09:00:00Z";
            let line = serde_json::json!({"conversation_id": conversation, "turn": number, "ts": ts, "channel": "web", "text": text});
            line.to_string()
        };
        let log = (1..).zip(turns).map(line).collect::<Vec<_>>().join("\n");
        Texts::read(LogReader::new(log.as_bytes(), "log", &Config::defaults().limits, None))
    }

    #[test]
    fn conversations_keep_the_order_of_their_turns() {
        let texts =
            read(&[("a", "a1"), ("b", "b1"), ("c", "c1"), ("b", "b2"), ("c", "c2"), ("b", "b3")]).expect("a log");
        let openings: Vec<_> = (0..4).map(|number| texts.opening(number)).collect();
        assert_eq!(openings, ["a1", "b1", "c1", "a1"]);
        let openings: Vec<_> = (0..3).map(|number| texts.long_opening(number)).collect();
        assert_eq!(openings, ["b1", "c1", "b1"]);
        let later: Vec<_> = (0..3).map(|times| texts.later(0, times)).collect();
        assert_eq!(later, ["b2", "b3", "b2"]);
        assert_eq!((texts.later(1, 5), texts.later(2, 0)), ("c2", "b2"));
    }

    #[test]
    fn where_no_conversation_goes_on_others_openings_do() {
        let texts = read(&[("a", "a1"), ("b", "b1"), ("c", "c1")]).expect("a log");
        let later: Vec<_> = (0..3).map(|times| texts.later(1, times)).collect();
        assert_eq!((texts.long_opening(1), later.as_slice()), ("b1", ["c1", "a1", "b1"].as_slice()));
    }

    #[test]
    fn a_log_that_is_none_is_refused() {
        assert!(read(&[]).expect_err("no turns").to_string().contains("no turns"));
        assert!(read(&[("a", "a1"), ("a", " ")]).expect_err("a bad line").to_string().contains("log:2: empty text"));
    }
}
