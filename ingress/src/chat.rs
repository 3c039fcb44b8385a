//! `turnflow chat`: asks a server line by line, and shows for each answer where it came from.
//!
//! Works at a terminal, with a prompt, and in a pipe, where it prints answers only and stops at the first error.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tonic::Status;

use crate::failure::written;
use crate::grpc::client::{Keyed, told};
use crate::grpc::proto::ask_response::Event;
use crate::grpc::proto::conversations_client::ConversationsClient;
use crate::grpc::proto::{self, AskRequest, CacheLevel, Done, Turn};

/// A matched question is shown up to this many characters.
const QUESTION_CHARS_MAX: usize = 80;

/// Reads questions from standard input and prints their answers, all as one conversation.
///
/// `server` is a connection to one, with its address. Without `conversation` a new one is begun.
///
/// # Errors
/// When standard input or output fails. A turn that fails ends a pipe, but not a terminal's
/// session.
pub async fn chat(server: (Keyed, &str), conversation: Option<String>) -> Result<()> {
    let (connection, address) = server;
    let mut client = ConversationsClient::new(connection);
    // Turn ids have to be new in a conversation that is taken up again: they start with the time.
    let started = Timestamp::now().as_microsecond();
    let conversation = conversation.unwrap_or_else(|| format!("chat-{started}"));
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut screen = Screen::new(interactive);
    screen.greet(address, &conversation)?;

    let mut lines = read_lines();
    let (mut turns, mut refused) = (0_u64, 0_u64);
    loop {
        screen.prompt()?;
        let Some(line) = lines.recv().await else {
            screen.leave()?;
            anyhow::ensure!(refused == 0, "{refused} of {turns} turns got no answer");
            return Ok(());
        };
        let text = line.context("reading standard input")?;
        if text.trim().is_empty() {
            continue;
        }
        turns += 1;
        let turn = Turn {
            conversation_id: conversation.clone(),
            turn_id: format!("{started}-{turns}"),
            channel: proto::Channel::Api.into(),
            text,
            cache_control: None,
            deadline_ms: None,
        };
        if let Err(status) = ask(&mut client, turn, &mut screen).await? {
            screen.complain(&status)?;
            refused += 1;
        }
    }
}

/// Reads on a thread of its own: a read of standard input cannot be cancelled, and must not hold up the runtime's end.
fn read_lines() -> mpsc::Receiver<io::Result<String>> {
    let (out, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let failed = line.is_err();
            if out.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// Asks, and shows the answer as it comes. The outer error is the screen's, the inner one the server's.
async fn ask(client: &mut ConversationsClient<Keyed>, turn: Turn, screen: &mut Screen) -> Result<Result<(), Status>> {
    let id = turn.turn_id.clone();
    let mut events = match client.ask(AskRequest { turn: Some(turn) }).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut streamed = false;
    loop {
        match events.message().await {
            Ok(Some(response)) => match response.event {
                Some(Event::Delta(delta)) => {
                    streamed = true;
                    screen.print(&delta.text)?;
                }
                Some(Event::Restart(_)) => {
                    streamed = false;
                    screen.print("\n")?;
                    screen.print_dim("that answer does not hold, here is another")?;
                }
                Some(Event::Done(done)) => {
                    if !streamed {
                        screen.print(&done.text)?;
                    }
                    screen.print("\n")?;
                    screen.print_dim(&format!("{} · turn {id}", origin_of(&done)))?;
                }
                Some(Event::Accepted(_)) | None => {}
            },
            Ok(None) => return Ok(Ok(())),
            Err(status) => return Ok(Err(status)),
        }
    }
}

/// Where an answer came from, on one line.
fn origin_of(done: &Done) -> String {
    let verdict = done.verdict.clone().unwrap_or_default();
    let mut parts = vec![match verdict.level() {
        CacheLevel::Exact => "exact hit".to_owned(),
        CacheLevel::Semantic => match verdict.similarity {
            Some(similarity) => format!("semantic hit ({similarity:.3})"),
            None => "semantic hit".to_owned(),
        },
        CacheLevel::Joined => match verdict.similarity {
            Some(similarity) => format!("joined a similar question in flight ({similarity:.3})"),
            None => "joined a question in flight".to_owned(),
        },
        CacheLevel::Miss => "miss".to_owned(),
        CacheLevel::Bypass => "cache bypassed".to_owned(),
        CacheLevel::Unspecified => "origin unknown".to_owned(),
    }];
    if let Some(question) = &verdict.question {
        parts.push(format!("asked before as {}", quoted(question)));
    }
    if verdict.refreshed {
        parts.push("made anew since".to_owned());
    }
    if !done.grounded {
        parts.push("not in the knowledge base".to_owned());
    }
    if done.cut_off {
        parts.push("cut off".to_owned());
    }
    let sources: Vec<_> = done.sources.iter().map(|source| format!("{}#{}", source.article_id, source.chunk)).collect();
    if !sources.is_empty() {
        parts.push(format!("from {}", sources.join(", ")));
    }
    let total_us = done.latency.as_ref().map_or(0, |latency| latency.total_us);
    parts.push(format!("{}.{} ms", total_us / 1_000, total_us % 1_000 / 100));
    parts.join(" · ")
}

/// The text in quotes and on one line, cut when it is long.
fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(QUESTION_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// Standard output, with or without a person in front of it.
struct Screen {
    out: io::Stdout,
    interactive: bool,
    dim: bool,
}

impl Screen {
    fn new(interactive: bool) -> Self {
        let out = io::stdout();
        // https://no-color.org: any value but the empty one turns colours off.
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { dim: colours && out.is_terminal(), out, interactive }
    }

    fn greet(&mut self, address: &str, conversation: &str) -> Result<()> {
        if self.interactive {
            self.print_dim(&format!("conversation {conversation} with {address}; Ctrl-D ends it"))?;
        }
        Ok(())
    }

    fn prompt(&mut self) -> Result<()> {
        if self.interactive { self.print("> ") } else { Ok(()) }
    }

    /// The line of a prompt that was answered with the end of input is still open.
    fn leave(&mut self) -> Result<()> {
        if self.interactive { self.print("\n") } else { Ok(()) }
    }

    fn complain(&mut self, status: &Status) -> Result<()> {
        self.print_dim(&format!("no answer: {}", told(status)))
    }

    fn print(&mut self, text: &str) -> Result<()> {
        written(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()))
    }

    fn print_dim(&mut self, line: &str) -> Result<()> {
        if self.dim { self.print(&format!("\x1b[2m{line}\x1b[0m\n")) } else { self.print(&format!("{line}\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::{Latency, Source, Verdict};

    #[test]
    fn the_origin_fits_a_line() {
        let check = |grounded: bool, verdict: Verdict, sources: &[&str], expected: &str| {
            let sources = sources.iter().map(|id| Source { article_id: (*id).to_owned(), version: 1, chunk: 2 });
            let latency = Latency { total_us: 12_345, ..Latency::default() };
            let done = Done {
                grounded,
                sources: sources.collect(),
                verdict: Some(verdict),
                latency: Some(latency),
                ..Done::default()
            };
            assert_eq!(origin_of(&done), expected);
        };
        let level = |level: CacheLevel| Verdict { level: level.into(), ..Verdict::default() };
        check(true, level(CacheLevel::Miss), &["returns", "delivery"], "miss · from returns#2, delivery#2 · 12.3 ms");
        check(false, level(CacheLevel::Bypass), &[], "cache bypassed · not in the knowledge base · 12.3 ms");
        let cut_off = Done { grounded: true, cut_off: true, ..Done::default() };
        assert_eq!(origin_of(&cut_off), "origin unknown · cut off · 0.0 ms");
        let semantic = Verdict {
            similarity: Some(0.912_34),
            question: Some("how long\ndo I have?".to_owned()),
            ..level(CacheLevel::Semantic)
        };
        let expected = r#"semantic hit (0.912) · asked before as "how long\ndo I have?" · 12.3 ms"#;
        check(true, semantic, &[], expected);
        let refreshed = Verdict { refreshed: true, ..level(CacheLevel::Exact) };
        check(true, refreshed, &["returns"], "exact hit · made anew since · from returns#2 · 12.3 ms");
    }

    #[test]
    fn long_questions_are_cut() {
        assert_eq!(quoted("short"), r#""short""#);
        assert_eq!(quoted(&"ü".repeat(QUESTION_CHARS_MAX)), format!("\"{}\"", "ü".repeat(QUESTION_CHARS_MAX)));
        assert_eq!(quoted(&"ü".repeat(QUESTION_CHARS_MAX + 1)), format!("\"{}…\"", "ü".repeat(QUESTION_CHARS_MAX)));
    }
}
