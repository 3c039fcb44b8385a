//! The sample shop that comes with Turnflow: a made-up shop's articles, and a morning of its customers' questions.

use std::io::Cursor;

use turnflow_pipeline::ArticleDraft;
use turnflow_state::Limits;

use crate::kb_file::parse_articles;
use crate::replay::LogReader;

const ARTICLES: &str = include_str!("../sample/articles.jsonl");
const LOG: &str = include_str!("../sample/log.jsonl");

/// The sample shop's articles.
///
/// # Errors
/// When the limits are too small for them.
pub fn articles(limits: &Limits) -> anyhow::Result<Vec<ArticleDraft>> {
    parse_articles(ARTICLES.as_bytes(), "sample articles", limits)
}

/// The sample shop's log.
#[must_use]
pub fn log(limits: &Limits) -> LogReader<Cursor<&'static [u8]>> {
    LogReader::new(Cursor::new(LOG.as_bytes()), "sample log", limits, None)
}

/// Turns of the sample shop's log.
#[must_use]
pub fn log_turns() -> u64 {
    LOG.lines().filter(|line| !line.trim().is_empty()).count() as u64
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::Config;

    use super::*;

    #[test]
    fn the_sample_is_in_order() {
        let limits = Config::defaults().limits;
        assert!(!articles(&limits).expect("good articles").is_empty());
        let (mut reader, mut turns) = (log(&limits), 0);
        while let Some(turn) = reader.next_turn().expect("no I/O error") {
            let turn = turn.expect("a good line");
            assert!(turn.gold.is_some(), "line {} has no label", turn.line);
            turns += 1;
        }
        assert_eq!(turns, log_turns());
    }
}
