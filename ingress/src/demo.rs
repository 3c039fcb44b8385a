//! The demo's story: what the replay of a sample shop means to somebody who owns a shop. Words only; the command runs it.

use std::fmt::Write as _;

use serde::Serialize;
use turnflow_state::{CacheLevel, Completion, Tier};

use crate::replay::report::{PathLatency, count, millis, percent, share};
use crate::replay::{Gold, Report, TurnResult};

/// Characters of a question or answer that are shown.
const QUOTE_CHARS_MAX: usize = 150;

const NEXT: &str = "\
What to do next
  turnflow kb import FILE.jsonl                     your own articles: {\"id\": …, \"title\": …, \"body\": …} on each line
  turnflow replay LOG.jsonl --kb FILE.jsonl         the same report on your own customers' questions
  turnflow serve                                    answer them for real, over gRPC
  turnflow chat                                     talk to the server yourself
";

/// Turns worth showing, one of each kind.
#[derive(Debug, Default, Serialize)]
pub struct Examples {
    /// Written from the article that the question is about.
    written: Option<Example>,
    /// The same question again.
    same: Option<Example>,
    /// The question in other words.
    similar: Option<Example>,
    /// Answered with "I do not know".
    unknown: Option<Example>,
}

/// One turn worth showing.
#[derive(Debug, Serialize)]
pub struct Example {
    asked: String,
    answered: String,
    why: String,
    took_us: u64,
}

impl Examples {
    /// Keeps a turn if it is the first of its kind. The label only chooses what is shown.
    pub fn consider(&mut self, result: &TurnResult, gold: Option<&Gold>) {
        let Ok(completion) = &result.outcome else { return };
        let needed = gold.and_then(|gold| gold.article.as_deref());
        let cited = completion.sources.first().map(|source| source.article_id.as_str());
        let slot = match (completion.verdict.level, completion.grounded) {
            (CacheLevel::Semantic, true) => &mut self.similar,
            (CacheLevel::Exact, true) => &mut self.same,
            (CacheLevel::Miss, true) if needed.is_some() && cited == needed => &mut self.written,
            (CacheLevel::Miss, false) if completion.tier != Tier::Scripted => &mut self.unknown,
            _ => return,
        };
        slot.get_or_insert_with(|| Example {
            asked: result.question.clone(),
            answered: completion.text.clone(),
            why: why(completion),
            took_us: result.total_us,
        });
    }

    fn iter(&self) -> impl Iterator<Item = &Example> {
        [&self.written, &self.same, &self.similar, &self.unknown].into_iter().flatten()
    }
}

/// Why an answer came from where it did, for somebody who has not read a word about caches.
fn why(completion: &Completion) -> String {
    let verdict = &completion.verdict;
    let before =
        || verdict.question.as_deref().map_or_else(String::new, |question| format!(", \"{}\"", quote(question)));
    match verdict.level {
        CacheLevel::Exact | CacheLevel::Joined if verdict.similarity.is_none() => {
            format!("answered from the cache: somebody had asked the same{}", before())
        }
        CacheLevel::Exact | CacheLevel::Joined | CacheLevel::Semantic => {
            let similarity =
                verdict.similarity.map_or_else(String::new, |cosine| format!(" (similarity {cosine:.2} of 1)"));
            format!("answered from the cache: it means the same as an earlier question{}{similarity}", before())
        }
        CacheLevel::Miss | CacheLevel::Bypass => match completion.sources.first().filter(|_| completion.grounded) {
            Some(source) => format!("nobody had asked that before: written from the article \"{}\"", source.article_id),
            None => "no article answers that, and a guess is worse than no answer".to_owned(),
        },
    }
}

/// The whole story.
#[must_use]
pub fn story(report: &Report, examples: &Examples) -> String {
    let mut text = String::from("\nWhat happened\n");
    let mut say = |line: String| {
        let _infallible = writeln!(text, "  {line}");
    };
    let (by, load) = (&report.answered_by, &report.load_taken_off);
    let answers = report.turns - report.errors;
    let hits = by.exact + by.semantic + by.joined;
    say(format!("{} questions came in, and {} of them were answered.", count(report.turns), count(answers)));
    if report.answered_before > 0 {
        let again = count(report.answered_before);
        say(format!("{again} of them had been answered in an earlier run and got the very same answer again."));
    }
    say(format!(
        "{} ({}) were answered from the cache: {} word for word the same as an earlier question,",
        count(hits),
        percent(share(hits, answers)),
        count(by.exact)
    ));
    say(format!(
        "  {} in other words, and {} while the question was just being answered.",
        count(by.semantic),
        count(by.joined)
    ));
    say(format!("{} were answered from the shop's articles.", count(by.tier)));
    say(format!(
        "That takes {} off a model's bill: of every 100 dollars for reading and writing, {:.0} stay in the shop.",
        percent(load.tokens_share),
        load.tokens_share * 100.0
    ));
    for line in speed(report) {
        say(line);
    }
    if let Some(all) = report.scores.as_ref().and_then(|scores| scores.parts.first()) {
        let wrong = percent(all.wrong_per_hit);
        say(format!(
            "{wrong} of the answers from the cache belonged to a different question, judged by hand-made labels."
        ));
        if let Some(right) = all.right_article_on_kb_turns {
            say(format!(
                "{} of the questions that an article answers were answered from that article.",
                percent(right)
            ));
        }
    }
    text += "\nExamples\n";
    for example in examples.iter() {
        let _infallible = writeln!(
            text,
            "  asked     \"{}\"\n  answered  \"{}\"\n  why       {}, in {}\n",
            quote(&example.asked),
            quote(&example.answered),
            example.why,
            millis(example.took_us)
        );
    }
    text + NEXT
}

fn speed(report: &Report) -> Vec<String> {
    let sentence = |path: &PathLatency| {
        let what = match path.path {
            "exact" => "a repeated question",
            "semantic" => "a question in other words",
            "tier" => "a new question",
            _ => return None,
        };
        Some(format!(
            "Half of the answers to {what} took less than {}, 95 of 100 less than {}.",
            millis(path.p50_us),
            millis(path.p95_us)
        ))
    };
    report.latency.iter().filter_map(sentence).collect()
}

/// The beginning of a text, on one line.
fn quote(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((cut, _)) => format!("{}…", line[..cut].trim_end()),
        None => line,
    }
}
